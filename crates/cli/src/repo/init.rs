//! `hikae repo init`: a new repository, and the key that opens it.

use repo::{CreateOptions, Encryption, Repository};
use serde::Serialize;

use crate::args::InitArgs;
use crate::exit::Exit;
use crate::keys;
use crate::output::Output;

#[derive(Serialize)]
struct Report {
    repository: String,
    id: String,
    encrypted: bool,
    key_file: Option<String>,
    recovery_key: Option<String>,
}

/// Runs the verb.
pub fn run(arguments: &InitArgs, output: &Output) -> anyhow::Result<Exit> {
    if let Some(path) = &arguments.key_file {
        if path.exists() {
            return Err(crate::exit::not_possible(format!(
                "{} is there already: a key file is never overwritten",
                path.display()
            )));
        }
        refuse_inside(path, &arguments.repo)?;
    }
    refuse_occupied(&arguments.repo)?;
    if !arguments.no_encryption {
        // A repository whose key could not be kept is worth nothing: find out before it is made.
        let place = match &arguments.key_file {
            Some(path) => path.clone(),
            None => keys::default_key_path(repo::RepositoryId::from_bytes([0; 16]))?,
        };
        keys::prepare_secret_folder(&place)?;
    }
    let store = store::create_url(&arguments.repo)?;
    let options = CreateOptions {
        encryption: if arguments.no_encryption {
            Encryption::None
        } else {
            Encryption::Aes256Gcm
        },
        passphrase: arguments
            .passphrase_file
            .as_deref()
            .map(keys::read_passphrase)
            .transpose()?,
        ..CreateOptions::default()
    };
    let created = Repository::create(
        store,
        &options,
        &keys::open_options(&crate::args::UnlockArgs::default()),
        &keys::environment(),
    )?;
    let id = created.repository.id();
    let mut key_path = None;
    if let Some(file) = &created.key_file {
        let path = match &arguments.key_file {
            Some(path) => path.clone(),
            None => keys::default_key_path(id)?,
        };
        if let Err(error) = keys::write_secret(&path, &file.to_string()) {
            if let Some(recovery) = &created.recovery_key {
                eprintln!(
                    "The repository is made, but its key file is not. Recovery key: {recovery}"
                );
            }
            return Err(error);
        }
        key_path = Some(path.display().to_string());
    }
    let report = Report {
        repository: created.repository.describe(),
        id: id.to_string(),
        encrypted: options.encryption == Encryption::Aes256Gcm,
        key_file: key_path,
        recovery_key: created.recovery_key.as_ref().map(ToString::to_string),
    };
    output.report(&report, text)?;
    Ok(Exit::Done)
}

/// A folder with something else in it is hardly the one that was meant. What is a repository already is told by `create`.
fn refuse_occupied(repo: &str) -> anyhow::Result<()> {
    let folder = std::path::Path::new(repo.strip_prefix("file://").unwrap_or(repo));
    if repo.starts_with("s3://") || !folder.is_dir() || folder.join("config").exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        // Every new ext4 file system has one.
        if name != "lost+found" {
            return Err(crate::exit::not_possible(format!(
                "{repo} is not empty: it holds {}",
                name.display()
            )));
        }
    }
    Ok(())
}

/// A key beside what it opens protects nothing.
pub(super) fn refuse_inside(key: &std::path::Path, repo: &str) -> anyhow::Result<()> {
    let absolute = |path: &std::path::Path| std::path::absolute(path);
    if !repo.contains("://") && absolute(key)?.starts_with(absolute(std::path::Path::new(repo))?) {
        return Err(crate::exit::not_possible(
            "the key file would lie inside the repository: whoever takes one takes both",
        ));
    }
    Ok(())
}

fn text(report: &Report) -> String {
    let mut text = format!("Repository {} made at {}.\n", report.id, report.repository);
    match (&report.key_file, &report.recovery_key) {
        (Some(key), Some(recovery)) => text.push_str(&format!(
            "\nEncrypted. Key file:  {key}\n\
             Recovery key, shown this once; print it and lock it away:\n\n    {recovery}\n\n\
             Without the key file, the recovery key or a passphrase nobody can read it: not you, not us.\n\
             Copy the key file to a second safe place now.\n"
        )),
        _ => text.push_str("\nNot encrypted: whoever can read the store can read every disk.\n"),
    }
    text.push_str("\nNext: hikae disk backup IMAGE --repo REPO --name NAME\n");
    text
}
