//! `hikae repo key …`: ways to open a repository.

use anyhow::Context;
use repo::{Repository, SlotKind};
use serde::Serialize;

use crate::args::{KeyVerb, RepoTarget, SlotKindArg};
use crate::exit::Exit;
use crate::keys;
use crate::output::{Output, Table};
use crate::repo::init::refuse_inside;

/// Runs one verb.
pub fn run(verb: &KeyVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        KeyVerb::List { target } => list(&open(target)?, output),
        KeyVerb::Add { target, kind, file } => {
            if let (SlotKindArg::KeyFile, Some(file)) = (kind, file) {
                refuse_inside(file, &target.to_repo_args().repo)?;
            }
            add(&open(target)?, *kind, file.as_deref(), output)
        }
        KeyVerb::Remove { target, slot } => {
            let repository = open(target)?;
            let id = slot
                .parse()
                .with_context(|| format!("`{slot}` is not a slot id"))?;
            repository.remove_slot(id)?;
            output.report(
                &Removed {
                    removed: slot.clone(),
                },
                |report| {
                    format!(
                        "Slot {} is gone: what it held opens nothing any more.\n",
                        report.removed
                    )
                },
            )?;
            Ok(Exit::Done)
        }
        KeyVerb::Rotate { target } => {
            let repository = open(target)?;
            repository.rotate_data_key()?;
            output.report(&Rotated { rotated: true }, |_| {
                "New packs get a new data key; old packs stay readable. Key files stay as they are.\n"
                    .to_owned()
            })?;
            Ok(Exit::Done)
        }
        KeyVerb::Export { target, file } => {
            refuse_inside(file, &target.to_repo_args().repo)?;
            add(&open(target)?, SlotKindArg::KeyFile, Some(file), output)
        }
        KeyVerb::Test { target } => test(target, output),
    }
}

#[derive(Serialize)]
struct Removed {
    removed: String,
}

#[derive(Serialize)]
struct Rotated {
    rotated: bool,
}

#[derive(Serialize)]
struct SlotReport {
    id: Option<String>,
    kind: Option<&'static str>,
    label: Option<String>,
    created: Option<String>,
    error: Option<String>,
}

fn open(target: &RepoTarget) -> anyhow::Result<Repository> {
    keys::open(&target.to_repo_args())
}

fn kind_word(kind: SlotKind) -> &'static str {
    match kind {
        SlotKind::KeyFile => "key file",
        SlotKind::Passphrase => "passphrase",
        SlotKind::Recovery => "recovery key",
    }
}

fn list(repository: &Repository, output: &Output) -> anyhow::Result<Exit> {
    let mut reports = Vec::new();
    for slot in repository.slots()? {
        reports.push(match slot {
            Ok(slot) => SlotReport {
                id: Some(slot.id.to_string()),
                kind: Some(kind_word(slot.kind)),
                label: Some(slot.label),
                created: Some(slot.created),
                error: None,
            },
            Err(error) => SlotReport {
                id: None,
                kind: None,
                label: None,
                created: None,
                error: Some(error.to_string()),
            },
        });
    }
    let has_damage = reports.iter().any(|report| report.error.is_some());
    #[derive(Serialize)]
    struct Report {
        slots: Vec<SlotReport>,
    }
    output.report(&Report { slots: reports }, |report| {
        let mut table = Table::new(&["slot", "kind", "made", "label"], &[]);
        for slot in &report.slots {
            table.row(match &slot.error {
                Some(error) => vec!["damaged".to_owned(), error.clone()],
                None => vec![
                    slot.id.clone().unwrap_or_default(),
                    slot.kind.unwrap_or_default().to_owned(),
                    slot.created.clone().unwrap_or_default(),
                    slot.label.clone().unwrap_or_default(),
                ],
            });
        }
        table.to_string()
    })?;
    Ok(if has_damage { Exit::Found } else { Exit::Done })
}

#[derive(Serialize)]
struct Added {
    kind: &'static str,
    slot: Option<String>,
    file: Option<String>,
    recovery_key: Option<String>,
}

fn add(
    repository: &Repository,
    kind: SlotKindArg,
    file: Option<&std::path::Path>,
    output: &Output,
) -> anyhow::Result<Exit> {
    let mut added = Added {
        kind: "",
        slot: None,
        file: None,
        recovery_key: None,
    };
    match kind {
        SlotKindArg::KeyFile => {
            let path = file.ok_or_else(|| {
                crate::exit::not_possible("a key file needs --file FILE to write to")
            })?;
            if path.exists() {
                return Err(crate::exit::not_possible(format!(
                    "{} is there already: a key file is never overwritten",
                    path.display()
                )));
            }
            let key = repository.add_key_file("key file")?;
            added.slot = Some(key.slot().to_string());
            if let Err(error) = keys::write_secret(path, &key.to_string()) {
                repository.remove_slot(key.slot())?;
                return Err(error);
            }
            added.kind = "key file";
            added.file = Some(path.display().to_string());
        }
        SlotKindArg::Passphrase => {
            let path = file.ok_or_else(|| {
                crate::exit::not_possible("a passphrase needs --file FILE, its first line is taken")
            })?;
            let slot = repository.add_passphrase("passphrase", &keys::read_passphrase(path)?)?;
            added.kind = "passphrase";
            added.slot = Some(slot.to_string());
        }
        SlotKindArg::RecoveryKey => {
            added.kind = "recovery key";
            added.recovery_key = Some(repository.add_recovery_key("recovery key")?.to_string());
        }
    }
    output.report(&added, |added| match (&added.recovery_key, &added.file) {
        (Some(key), _) => format!("Recovery key, shown this once:\n\n    {key}\n"),
        (None, Some(file)) => format!("Key file written: {file}\n"),
        (None, None) => "The passphrase opens the repository now.\n".to_owned(),
    })?;
    Ok(Exit::Done)
}

fn test(target: &RepoTarget, output: &Output) -> anyhow::Result<Exit> {
    let arguments = target.to_repo_args();
    let store = keys::open_store(&arguments.repo)?;
    let unlock = keys::unlock(store.as_ref(), &arguments.unlock)?;
    if matches!(unlock, repo::Unlock::Plain) {
        return Err(crate::exit::not_possible(
            "the repository is not encrypted: there is no key to test",
        ));
    }
    let slot = Repository::test_unlock(store.as_ref(), &unlock)?;
    #[derive(Serialize)]
    struct Tested {
        opens: bool,
        slot: String,
    }
    output.report(
        &Tested {
            opens: true,
            slot: slot.to_string(),
        },
        |tested| {
            format!(
                "The key opens the repository (slot {}), and every data key is there.\n",
                tested.slot
            )
        },
    )?;
    Ok(Exit::Done)
}
