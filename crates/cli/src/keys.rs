//! Opening a repository: where its key is found, and where its cache lies.
//!
//! A key is taken from the flags or the environment; without either, from the place where `repo init` wrote it:
//! `$XDG_CONFIG_HOME/hikae/keys/REPOSITORY-ID.key` (else `~/.config/…`). Never from beside the repository.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use repo::{Encryption, Environment, OpenOptions, Repository, RepositoryIdentity, Unlock};
use store::Store;

use crate::args::{RepoArgs, UnlockArgs};

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
