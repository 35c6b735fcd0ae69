//! The custody journal as a file: one line for each event, each with its checksum, synced before anything is made.
//!
//! ```text
//!   hikae-custody 1\n
//!   CRC32C(hex) SPACE {"event":"intend","entry":{…}}\n
//!   CRC32C(hex) SPACE {"event":"made","entry":7,"id":"…"}\n
//!   CRC32C(hex) SPACE {"event":"close","entry":7,"closing":"removed"}\n
//! ```
//!
//! **Invariants.** One process has the file open (a lock of the operating system). A last line that was cut off by a crash is
//! dropped: what it announced was not asked for yet, or is known by an earlier line. Any other damaged line is told as an error,
//! because something may exist that nobody knows of any more. Closed entries go when the file is written anew.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Closing, CustodyLog, Entry, EntryId, Intent, no_entry};
use crate::{Error, ErrorKind, Result};

const HEADER: &str = "hikae-custody 1\n";
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Written anew when it is larger than this and mostly closed entries.
const COMPACT_BYTES: u64 = 256 << 10;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event {
    Intend { entry: Entry },
    Made { entry: EntryId, id: String },
    Close { entry: EntryId, closing: Closing },
}

/// A journal in a file.
#[derive(Debug)]
pub struct JournalFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    length_bytes: u64,
    next: u64,
    open: BTreeMap<EntryId, Entry>,
    /// Set when an append failed: the file's end is not known any more, so nothing more is believed to be durable.
    broken: bool,
}

impl JournalFile {
    /// Opens the journal at `path`, or makes one. A file that another process has open is refused.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| failed("opening", path, error))?;
        if let Err(error) = file.try_lock() {
            let context = format!(
                "the custody journal {} is in use by another process",
                path.display()
            );
            return Err(Error::with_source(ErrorKind::Busy, context, error));
        }
        let mut text = Vec::new();
        let read = Read::by_ref(&mut file)
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut text);
        read.map_err(|error| failed("reading", path, error))?;
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
            return Err(damaged(path, "is larger than 64 MiB"));
        }
        let replayed = replay(&text, path)?;
        let mut state = State {
            file,
            length_bytes: replayed.whole_bytes,
            next: replayed.next,
            open: replayed.open,
            broken: false,
        };
        if replayed.whole_bytes == 0 {
            start(&mut state, path)?;
        } else if replayed.is_torn {
            let cut = state
                .file
                .set_len(replayed.whole_bytes)
                .and_then(|()| state.file.sync_all());
            cut.map_err(|error| failed("cutting", path, error))?;
        }
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(state),
        })
    }

    fn append(&self, state: &mut State, event: &Event) -> Result<()> {
        if state.broken {
            let context = format!(
                "the custody journal {} could not be written before",
                self.path.display()
            );
            return Err(Error::new(ErrorKind::Custody, context));
        }
        let line = line_of(event, &self.path)?;
        let written = state
            .file
            .write_all(line.as_bytes())
            .and_then(|()| state.file.sync_data());
        if let Err(error) = written {
            state.broken = true;
            return Err(failed("writing", &self.path, error));
        }
        state.length_bytes = state.length_bytes.saturating_add(byte_count(&line));
        Ok(())
    }

    /// Writes the open entries alone into a new file and puts it in the place of the old one.
    fn compact(&self, state: &mut State) -> Result<()> {
        let mut text = HEADER.to_owned();
        for entry in state.open.values() {
            text.push_str(&line_of(
                &Event::Intend {
                    entry: entry.clone(),
                },
                &self.path,
            )?);
        }
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let beside = PathBuf::from(name);
        let written = write_new(&beside, &text);
        let file = written.map_err(|error| failed("writing", &beside, error))?;
        file.try_lock().map_err(|error| {
            Error::with_source(
                ErrorKind::Custody,
                format!("the new journal {} cannot be locked", beside.display()),
                error,
            )
        })?;
        std::fs::rename(&beside, &self.path)
            .and_then(|()| sync_folder(&self.path))
            .map_err(|error| failed("replacing", &self.path, error))?;
        state.file = file;
        state.length_bytes = byte_count(&text);
        Ok(())
    }
}

impl CustodyLog for JournalFile {
    fn intend(&self, intent: Intent) -> Result<EntryId> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let id = EntryId(state.next);
        let entry = Entry {
            id,
            intent,
            made: None,
        };
        self.append(
            &mut state,
            &Event::Intend {
                entry: entry.clone(),
            },
        )?;
        state.next = state.next.saturating_add(1);
        state.open.insert(id, entry);
        Ok(id)
    }

    fn made(&self, entry: EntryId, id: &str) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.open.contains_key(&entry) {
            return Err(no_entry(entry));
        }
        self.append(
            &mut state,
            &Event::Made {
                entry,
                id: id.to_owned(),
            },
        )?;
        if let Some(found) = state.open.get_mut(&entry) {
            found.made = Some(id.to_owned());
        }
        Ok(())
    }

    fn close(&self, entry: EntryId, closing: Closing) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.open.contains_key(&entry) {
            return Ok(());
        }
        self.append(&mut state, &Event::Close { entry, closing })?;
        state.open.remove(&entry);
        if state.length_bytes > COMPACT_BYTES && state.open.len() < 64 {
            self.compact(&mut state)?;
        }
        Ok(())
    }

    fn open_entries(&self) -> Result<Vec<Entry>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(state.open.values().cloned().collect())
    }
}

struct Replayed {
    open: BTreeMap<EntryId, Entry>,
    next: u64,
    whole_bytes: u64,
    is_torn: bool,
}

fn replay(text: &[u8], path: &Path) -> Result<Replayed> {
    let mut replayed = Replayed {
        open: BTreeMap::new(),
        next: 0,
        whole_bytes: 0,
        is_torn: false,
    };
    for (number, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if line.last() != Some(&b'\n') {
            replayed.is_torn = true;
            break;
        }
        if number == 0 {
            if line != HEADER.as_bytes() {
                return Err(damaged(path, "does not begin like one"));
            }
        } else {
            let event = event_of(line)
                .ok_or_else(|| damaged(path, &format!("is damaged in line {}", number + 1)))?;
            apply(&mut replayed, event);
        }
        let length_bytes = u64::try_from(line.len()).unwrap_or(u64::MAX);
        replayed.whole_bytes = replayed.whole_bytes.saturating_add(length_bytes);
    }
    Ok(replayed)
}

fn apply(replayed: &mut Replayed, event: Event) {
    match event {
        Event::Intend { entry } => {
            replayed.next = replayed.next.max(entry.id.0.saturating_add(1));
            replayed.open.insert(entry.id, entry);
        }
        Event::Made { entry, id } => {
            if let Some(found) = replayed.open.get_mut(&entry) {
                found.made = Some(id);
            }
        }
        Event::Close { entry, .. } => {
            replayed.open.remove(&entry);
        }
    }
}

fn event_of(line: &[u8]) -> Option<Event> {
    let line = std::str::from_utf8(line).ok()?.trim_end_matches('\n');
    let (checksum, json) = line.split_once(' ')?;
    let checksum = u32::from_str_radix(checksum, 16).ok()?;
    if checksum != crc32c::crc32c(json.as_bytes()) {
        return None;
    }
    serde_json::from_str(json).ok()
}

fn line_of(event: &Event, path: &Path) -> Result<String> {
    let json = serde_json::to_string(event).map_err(|error| {
        Error::with_source(
            ErrorKind::Custody,
            format!("an event for {} cannot be written", path.display()),
            error,
        )
    })?;
    Ok(format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())))
}

fn start(state: &mut State, path: &Path) -> Result<()> {
    let begun = state
        .file
        .set_len(0)
        .and_then(|()| state.file.write_all(HEADER.as_bytes()))
        .and_then(|()| state.file.sync_all())
        .and_then(|()| sync_folder(path));
    begun.map_err(|error| failed("beginning", path, error))?;
    state.length_bytes = byte_count(HEADER);
    Ok(())
}

fn write_new(path: &Path, text: &str) -> std::io::Result<File> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(true)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(file)
}

/// Makes the name durable. Only systems that can open a folder as a file need it and can do it.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

fn byte_count(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

fn failed(doing: &str, path: &Path, error: std::io::Error) -> Error {
    Error::with_source(
        ErrorKind::Custody,
        format!("{doing} the custody journal {}", path.display()),
        error,
    )
}

fn damaged(path: &Path, how: &str) -> Error {
    Error::new(
        ErrorKind::Custody,
        format!(
            "the custody journal {} {how}: move it away to go on without it, and look for left-overs by their marks",
            path.display()
        ),
    )
}
