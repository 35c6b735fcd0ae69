//! Which lab is meant, and asking it.
//!
//! ```text
//!   $XDG_RUNTIME_DIR/hikae/labs/PID.json   { "folder": "/tmp/hikae-lab-PID" }     else below $XDG_STATE_HOME, ~/.local/state
//! ```
//!
//! **Invariants.** A lab is found only by the user that runs it. Notes of labs that run no more are taken away by whoever finds them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use lab::control::{ControlClient, Request, SOCKET};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::args::LabPlaceArgs;
use crate::exit::{misused_flag_advised, not_possible};

/// How long an answer is waited for that needs nothing but looking.
pub const SOON: Duration = Duration::from_secs(60);
/// How long one is waited for that needs work.
pub const LATER: Duration = Duration::from_secs(24 * 3600);
/// Longer notes are none of ours.
const NOTE_MAX_BYTES: u64 = 64 << 10;

/// What to do about what a lab refuses.
const LOOK: &str = "See how it is and what there is: hikae lab status, hikae lab fault list";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    folder: PathBuf,
}

/// The note of a lab that runs in this process; taken away when dropped.
pub struct Noted {
    path: PathBuf,
}

impl Noted {
    /// Writes down where this process's lab lies.
    pub fn write(folder: &Path) -> anyhow::Result<Self> {
        let at = places().into_iter().next().ok_or_else(|| {
            not_possible("there is neither XDG_RUNTIME_DIR nor HOME to write down where the lab is")
        })?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&at)
            .with_context(|| format!("making {}", at.display()))?;
        let path = at.join(format!("{}.json", std::process::id()));
        let text = serde_json::to_string(&Note {
            folder: folder.to_owned(),
        })?;
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            eprintln!("warning: {} is left: {error}", self.path.display());
        }
    }
}

/// Where labs of this user are written down, the preferred place first.
fn places() -> Vec<PathBuf> {
    let absolute = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from)?;
        path.is_absolute().then_some(path)
    };
    let runtime = absolute("XDG_RUNTIME_DIR").filter(|path| path.is_dir());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    let below = |path: PathBuf| path.join("hikae/labs");
    runtime.into_iter().chain(state).map(below).collect()
}

/// Labs that run: their folders. Notes of others are taken away.
fn running() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for place in places() {
        let Ok(entries) = fs::read_dir(&place) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_note = path.extension().is_some_and(|it| it == "json");
            let is_short = entry.metadata().is_ok_and(|it| it.len() <= NOTE_MAX_BYTES);
            if !is_note || !is_short {
                continue;
            }
            let note = fs::read_to_string(&path)
                .ok()
                .and_then(|text| serde_json::from_str::<Note>(&text).ok());
            let Some(note) = note else {
                continue;
            };
            match ControlClient::connect(&note.folder.join(SOCKET)) {
                Ok(_) => found.push(note.folder),
                Err(error) if error.kind() == lab::ErrorKind::NotFound => {
                    // Nobody listens there: what is left of a lab that was killed.
                    let _gone = fs::remove_file(&path);
                }
                Err(_) => {}
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The socket of the lab that is meant.
fn socket(place: &LabPlaceArgs) -> anyhow::Result<PathBuf> {
    if let Some(folder) = &place.lab {
        return Ok(folder.join(SOCKET));
    }
    let found = running();
    match found.as_slice() {
        [one] => Ok(one.join(SOCKET)),
        [] => {
            let error =
                engine::Error::new(engine::ErrorKind::NotFound, "no lab runs for this user");
            Err(anyhow::Error::new(error.advised(
                "Start one: hikae lab up; or say where it is: --lab FOLDER",
            )))
        }
        several => {
            let folders: Vec<String> = several
                .iter()
                .map(|folder| folder.display().to_string())
                .collect();
            Err(not_possible(format!(
                "several labs run for this user: say which with --lab, one of {}",
                folders.join(", ")
            )))
        }
    }
}

/// A connection to the lab that is meant.
pub fn connect(place: &LabPlaceArgs) -> anyhow::Result<ControlClient> {
    ControlClient::connect(&socket(place)?).map_err(failed)
}

/// Asks one thing of the lab that is meant.
pub fn ask<T: DeserializeOwned>(
    place: &LabPlaceArgs,
    request: &Request,
    patience: Duration,
) -> anyhow::Result<T> {
    connect(place)?.ask(request, patience).map_err(failed)
}

/// What a lab refuses, as the exit code and the problem that belong to it.
pub fn failed(error: lab::Error) -> anyhow::Error {
    match error.kind() {
        lab::ErrorKind::NotFound => misused_flag_advised(error.to_string(), LOOK),
        lab::ErrorKind::Io => anyhow::Error::new(error),
        _ => anyhow::Error::new(
            engine::Error::new(engine::ErrorKind::Invalid, error.to_string()).advised(LOOK),
        ),
    }
}
