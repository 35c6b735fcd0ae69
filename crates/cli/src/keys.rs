//! Opening a repository: where its key is found, and where its cache lies.
//!
//! A key is taken from the flags or the environment; without either, from the place where `repo init` wrote it:
//! `$XDG_CONFIG_HOME/hikae/keys/REPOSITORY-ID.key` (else `~/.config/…`). Never from beside the repository.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use guestfs::encrypted::{KEY_BYTES_MAX, Secret, UnlockKey};
use repo::{Encryption, Environment, OpenOptions, Repository, RepositoryIdentity, Unlock};
use store::Store;
use zeroize::Zeroizing;

use crate::args::{RepoArgs, UnlockArgs, VolumeKeysArgs};

/// Name and version, as leases and points show it.
pub fn environment() -> Environment {
    Environment::system(concat!("hikae ", env!("CARGO_PKG_VERSION")))
}

/// Opens the repository that was named.
pub fn open(arguments: &RepoArgs) -> anyhow::Result<Repository> {
    open_on(arguments, open_store(&arguments.repo)?)
}

/// Opens the repository that was named over what `wrap` makes of its store.
pub fn open_through(
    arguments: &RepoArgs,
    wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
) -> anyhow::Result<Repository> {
    open_on(arguments, wrap(open_store(&arguments.repo)?))
}

fn open_on(arguments: &RepoArgs, store: Arc<dyn Store>) -> anyhow::Result<Repository> {
    let unlock = unlock(store.as_ref(), &arguments.unlock)?;
    let mut options = open_options(&arguments.unlock);
    options.pack_targets = crate::diagnosis::pack_targets()?;
    Repository::open(store, &unlock, &options, &environment())
        .with_context(|| format!("opening {}", arguments.repo))
}

/// Opens the store below a repository.
pub fn open_store(url: &str) -> anyhow::Result<Arc<dyn Store>> {
    if url.is_empty() {
        return Err(crate::exit::not_possible(
            "no repository was named: give REPO, --repo REPO or set HIKAE_REPO",
        ));
    }
    let store = store::open_url(url).with_context(|| format!("opening {url}"))?;
    crate::diagnosis::traced(store)
}

/// What opens this repository.
pub fn unlock(store: &dyn Store, arguments: &UnlockArgs) -> anyhow::Result<Unlock> {
    let identity = RepositoryIdentity::read(store).map_err(|error| {
        if error.kind() == repo::ErrorKind::NotFound {
            // Nothing of a repository is there: what is wrong is the place.
            anyhow::Error::new(store::Error::new(
                store::ErrorKind::NotFound,
                error.to_string(),
            ))
        } else {
            anyhow::Error::new(error)
        }
    })?;
    if identity.encryption == Encryption::None {
        return Ok(Unlock::Plain);
    }
    if let Some(path) = &arguments.recovery_key_file {
        return Ok(Unlock::RecoveryKey(read_text(path)?.parse()?));
    }
    // A flag of this command outweighs what the environment says for all.
    if let Some(path) = &arguments.passphrase_file {
        return Ok(Unlock::Passphrase(read_passphrase(path)?));
    }
    let path = match &arguments.key_file {
        Some(path) => path.clone(),
        None => default_key_path(identity.id)?,
    };
    if !path.exists() && arguments.key_file.is_none() {
        return Err(anyhow::Error::new(engine::Error::new(
            engine::ErrorKind::WrongKey,
            format!(
                "the repository is encrypted and no key was given; looked for {}",
                path.display()
            ),
        )));
    }
    let file: repo::KeyFile = read_text(&path)?
        .parse()
        .with_context(|| format!("key file {}", path.display()))?;
    Ok(Unlock::KeyFile(file))
}

/// Where the key file of a repository is kept unless somebody says otherwise.
pub fn default_key_path(id: repo::RepositoryId) -> anyhow::Result<PathBuf> {
    let base = folder("XDG_CONFIG_HOME", ".config")
        .context("no home folder for the key file: give --key-file FILE")?;
    Ok(base.join("hikae").join("keys").join(format!("{id}.key")))
}

/// Cache folder and lease terms.
pub fn open_options(arguments: &UnlockArgs) -> OpenOptions {
    let mut options = OpenOptions {
        cache_dir: cache_dir(arguments),
        ..OpenOptions::default()
    };
    if let Some(seconds) = arguments.stall_seconds {
        options.lease_terms.stall_ms = seconds.saturating_mul(1000);
    }
    options
}

fn cache_dir(arguments: &UnlockArgs) -> Option<PathBuf> {
    arguments
        .cache_dir
        .clone()
        .or_else(|| folder("XDG_CACHE_HOME", ".cache").map(|base| base.join("hikae")))
}

fn folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let given = std::env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    given.or_else(|| {
        let home = std::env::var_os("HOME").filter(|value| !value.is_empty())?;
        Some(PathBuf::from(home).join(below_home))
    })
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// The first line of a file, without its line end.
pub fn read_passphrase(path: &Path) -> anyhow::Result<String> {
    let text = read_text(path)?;
    let line = text.lines().next().unwrap_or("").to_owned();
    if line.is_empty() {
        return Err(crate::exit::not_possible(format!(
            "{}: the first line is empty",
            path.display()
        )));
    }
    Ok(line)
}

/// The keys that were given for encrypted volumes.
pub fn volume_keys(arguments: &VolumeKeysArgs) -> anyhow::Result<Vec<UnlockKey>> {
    let mut keys = Vec::new();
    for path in &arguments.unlock_passphrase_file {
        let mut bytes = read_secret(path)?;
        let line = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        if let Some(end) = line {
            bytes.truncate(end);
        }
        if bytes.is_empty() {
            let what = format!("{}: the first line is empty", path.display());
            return Err(crate::exit::not_possible(what));
        }
        keys.push(UnlockKey::Passphrase(bytes));
    }
    for path in &arguments.unlock_key_file {
        keys.push(UnlockKey::KeyFile(read_secret(path)?));
    }
    for path in &arguments.unlock_recovery_key_file {
        let bytes = read_secret(path)?;
        let found = recovery_passwords(&bytes);
        let mut parsed = found.iter().map(|text| UnlockKey::recovery_password(text));
        match parsed.next() {
            Some(first) => keys.push(first.with_context(|| path.display().to_string())?),
            None => {
                let what = format!(
                    "{}: no eight groups of six digits, such as 471207-278498-…",
                    path.display()
                );
                return Err(crate::exit::not_possible(what));
            }
        }
        for key in parsed {
            keys.push(key.with_context(|| path.display().to_string())?);
        }
    }
    Ok(keys)
}

/// Reads a secret whole, which may come from a pipe.
fn read_secret(path: &Path) -> anyhow::Result<Secret> {
    let file = std::fs::File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut bytes = Secret::default();
    let limit = u64::try_from(KEY_BYTES_MAX)?;
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading {}", path.display()))?;
    if bytes.len() > KEY_BYTES_MAX {
        let what = format!("{}: more than {limit} bytes are no key", path.display());
        return Err(crate::exit::not_possible(what));
    }
    Ok(bytes)
}

/// The recovery keys in a text. Windows saves them in UTF-16, between sentences, with ids that hold digits, too.
fn recovery_passwords(bytes: &[u8]) -> Vec<Zeroizing<String>> {
    let text: Zeroizing<String> = match bytes {
        [0xFF, 0xFE, rest @ ..] => Zeroizing::new(
            char::decode_utf16(rest.chunks_exact(2).map(|pair| match pair {
                [low, high] => u16::from_le_bytes([*low, *high]),
                _ => 0,
            }))
            .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect(),
        ),
        _ => Zeroizing::new(String::from_utf8_lossy(bytes).into_owned()),
    };
    let is_digits = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    let is_key = |word: &&str| {
        let groups: Vec<&str> = word.split('-').collect();
        groups.len() == 8
            && groups
                .iter()
                .all(|group| group.len() == 6 && is_digits(group))
    };
    let found: Vec<_> = text
        .split(|c: char| !c.is_ascii_digit() && c != '-')
        .filter(is_key)
        .map(|word| Zeroizing::new(word.to_owned()))
        .collect();
    if !found.is_empty() {
        return found;
    }
    // Typed without hyphens, or with blanks between the groups.
    let line = text.lines().find(|line| !line.trim().is_empty());
    let digits = line.map(|line| line.bytes().filter(u8::is_ascii_digit).count());
    match (line, digits) {
        (Some(line), Some(48)) => vec![Zeroizing::new(line.to_owned())],
        _ => Vec::new(),
    }
}

/// Makes the folder for a secret and proves that a file can be made in it, before anything depends on that.
pub fn prepare_secret_folder(path: &Path) -> anyhow::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    let probe = parent.join(format!(".hikae-probe-{}", std::process::id()));
    std::fs::File::create_new(&probe)
        .and_then(|_| std::fs::remove_file(&probe))
        .with_context(|| format!("writing into {}", parent.display()))
}

/// Writes a secret that only its owner may read; never over an existing file.
pub fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "471207-278498-422125-177177-561902-537405-468006-693451";

    #[test]
    fn recovery_keys_are_found_in_what_windows_saves() {
        let saved = format!(
            "BitLocker Drive Encryption recovery key\r\nIdentifier:\r\n\t0F2A1B3C-123456-654321\r\nRecovery Key:\r\n\t{KEY}\r\n"
        );
        let wide: Vec<u8> = std::iter::once(0xFEFF_u16)
            .chain(saved.encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect();
        for bytes in [saved.as_bytes(), &wide, KEY.as_bytes()] {
            let found = recovery_passwords(bytes);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].as_str(), KEY);
        }
        let blanks = KEY.replace('-', " ");
        assert_eq!(recovery_passwords(blanks.as_bytes()).len(), 1);
        let plain = KEY.replace('-', "");
        assert_eq!(recovery_passwords(plain.as_bytes()).len(), 1);
        assert!(recovery_passwords(b"471207-278498").is_empty());
        assert!(recovery_passwords(b"").is_empty());
    }
}
