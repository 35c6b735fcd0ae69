//! What an extraction into a folder leaves there until it is finished, and how the next run goes on from it.
//!
//! ```text
//!   TARGET/.hikae-partial/ ── job.json      what was asked for; locked while somebody extracts into this folder
//!                          ├─ notes.jsonl   lines of the side file so far
//!                          └─ 0, 1, …       files that have no name of their own yet
//! ```
//!
//! **What the next run believes.** A file has its name only once its bytes and all else were written. When the same thing
//! is asked for again, a file is finished that has the wanted kind, size and time of change, and was last touched after
//! `job.json` was made: touched by us, for the clock of that moment is the host's, and nobody can set it. After a restart
//! of the machine nothing is believed that may not have reached the disk: then bytes are compared. So they are when the
//! disk has no identity, as an image that may have changed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use rustix::fs::{OFlags, Stat};
use serde::{Deserialize, Serialize};

use super::super::folder::{Access, Folder, Held, LOCK_TRIES, host_error, lock};
use super::super::note::NoteKey;
use super::super::{Existing, ExtractRequest, PARTIAL_FOLDER, SIDE_FILE};
use crate::job::JobContext;
use crate::{Error, ErrorKind, Result};

const JOB: &str = "job.json";
const NOTES: &str = "notes.jsonl";
const MERGED: &str = "side";
const JOB_BYTES_MAX: u64 = 16 << 20;
/// Lines of the side file that are told apart when an older one is there.
const LINES_MAX: usize = 4_000_000;
const LINE_BYTES_MAX: u64 = 64 << 20;

/// What was asked for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Job {
    source: Option<String>,
    paths: Vec<String>,
    /// Since when the machine runs.
    boot: Option<String>,
}

/// What is believed of files that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Nothing: the run is a new one.
    Nothing,
    /// Bytes that were compared.
    Bytes,
    /// Size and times of what was touched since the run began.
    Times,
}

/// The unfinished extraction in a target.
pub(super) struct Unfinished {
    folder: Folder,
    /// Locked until it is closed.
    _job: File,
    /// Seconds and nanoseconds of when the first run began.
    since: (i64, i64),
    pub(super) trust: Trust,
}

fn boot() -> Option<String> {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    // Where it cannot be told, nothing is believed without looking at it.
    read.ok().map(|text| text.trim().to_owned())
}

impl Unfinished {
    /// Begins, or goes on.
    pub(super) fn open(
        target: &Folder,
        request: &ExtractRequest,
        context: JobContext<'_>,
    ) -> Result<Self> {
        let (folder, mut job) = locked(target)?;
        let wanted = Job {
            source: request.source.as_ref().map(|source| source.0.clone()),
            paths: request.paths.clone(),
            boot: boot(),
        };
        let found = read_job(&mut job)?;
        let trust = match &found {
            Some(found) if found.source != wanted.source || found.paths != wanted.paths => {
                let text = "an unfinished extraction of something else into this folder is given up; \
                     what it finished stays";
                context.progress.warn(text);
                Trust::Nothing
            }
            Some(found)
                if found.source.is_some() && found.boot.is_some() && found.boot == wanted.boot =>
            {
                Trust::Times
            }
            Some(_) => Trust::Bytes,
            None => Trust::Nothing,
        };
        if trust == Trust::Nothing {
            folder.remove(OsStr::new(NOTES))?;
            write_job(&mut job, &wanted)?;
        }
        let stat = rustix::fs::fstat(&job).map_err(|error| host_error(JOB, error))?;
        Ok(Self {
            folder,
            _job: job,
            since: (changed(&stat)),
            trust,
        })
    }

    /// Where unnamed files lie.
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Whether something in the target was made, or touched, since the extraction began.
    pub(super) fn is_ours(&self, stat: &Stat) -> bool {
        self.trust != Trust::Nothing && self.is_touched(stat)
    }

    /// The same, whether there is anything to go on from or not: what was there before is not meant.
    pub(super) fn is_touched(&self, stat: &Stat) -> bool {
        changed(stat) >= self.since
    }

    /// The notes so far, to be added to.
    pub(super) fn notes(&self) -> Result<File> {
        let mut notes = self.folder.open_own(NOTES, OFlags::APPEND)?;
        let failed = |error| host_error("the notes so far", error);
        let length = notes.seek(SeekFrom::End(0)).map_err(failed)?;
        if length > 0 {
            let mut last = [0];
            notes.seek(SeekFrom::End(-1)).map_err(failed)?;
            notes.read_exact(&mut last).map_err(failed)?;
            if last != *b"\n" {
                // A line that was being written when the run was killed; it is left out in the end.
                notes.write_all(b"\n").map_err(failed)?;
            }
        }
        Ok(notes)
    }

    /// Puts the notes where they belong and takes everything else away. How many lines the side file has now.
    pub(super) fn finish(self, target: &Folder) -> Result<()> {
        let notes = self.notes()?;
        let failed = |error| host_error(SIDE_FILE, error);
        let length = notes.metadata().map_err(failed)?.len();
        if length > 0 {
            let older = target.open_plain(OsStr::new(SIDE_FILE))?;
            let made = if older.is_none() && self.trust == Trust::Nothing {
                notes.sync_all().map_err(failed)?;
                NOTES
            } else {
                let merged = self.folder.create(MERGED, Access::Private)?;
                merge(older, notes, &merged)?;
                merged.sync_all().map_err(failed)?;
                MERGED
            };
            let name = OsStr::new(SIDE_FILE);
            self.folder
                .hand_over(made, target, name, Existing::Replace)?;
        }
        self.give_up(target)
    }

    /// Takes everything away; the lock is the last to go.
    pub(super) fn give_up(self, target: &Folder) -> Result<()> {
        self.folder.clear_but(JOB)?;
        self.folder.remove(OsStr::new(JOB))?;
        // From here on somebody else may begin in it, and may have ended by now.
        for _ in 0..LOCK_TRIES {
            match target.remove_folder(OsStr::new(PARTIAL_FOLDER)) {
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Refused => {
                    if self.folder.look(OsStr::new(JOB))?.is_some() {
                        return Ok(());
                    }
                }
                removed => return removed,
            }
        }
        target.remove_folder(OsStr::new(PARTIAL_FOLDER))
    }
}

/// The folder of what is unfinished and the locked file in it, both still at their places.
fn locked(target: &Folder) -> Result<(Folder, File)> {
    let place = OsStr::new(PARTIAL_FOLDER);
    let busy = || {
        Error::new(
            ErrorKind::Busy,
            "another extraction into this folder is running",
        )
    };
    for _ in 0..LOCK_TRIES {
        let folder = match target.enter(place, Access::Private) {
            Err(error) if is_gone(&error) => continue,
            folder => folder?,
        };
        let job = match folder.open_own(JOB, OFlags::empty()) {
            Err(error) if is_gone(&error) => continue,
            job => job?,
        };
        if lock(&job)? == Held::ByOthers {
            return Err(busy());
        }
        // Its last owner may have taken it away, and the folder with it, in between.
        let there = target.look(place)?.map(|it| (it.st_dev, it.st_ino));
        if folder.is_at(&job, JOB)? && there == Some(folder.identity()?) {
            return Ok((folder, job));
        }
    }
    Err(busy())
}

/// Whether a folder vanished while it was entered.
fn is_gone(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    let cause = source.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::NotFound)
}

fn changed(stat: &Stat) -> (i64, i64) {
    (
        stat.st_ctime,
        i64::try_from(stat.st_ctime_nsec).unwrap_or(0),
    )
}

fn read_job(file: &mut File) -> Result<Option<Job>> {
    let mut bytes = Vec::new();
    file.take(JOB_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| host_error(JOB, error))?;
    // One that was being written when the run was killed is none.
    Ok(serde_json::from_slice(&bytes).ok())
}

fn write_job(file: &mut File, job: &Job) -> Result<()> {
    let failed = |error| host_error(JOB, error);
    let bytes =
        serde_json::to_vec(job).map_err(|error| Error::new(ErrorKind::Io, JOB).caused_by(error))?;
    file.set_len(0).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    file.write_all(&bytes).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Which file a line is about; none when it is no whole line.
fn key(line: &[u8]) -> Option<u64> {
    let key: NoteKey = serde_json::from_slice(line).ok()?;
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    Some(hasher.finish())
}

/// Gives every line in turn; its number is counted from zero.
fn lines(file: File, mut take: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let failed = |error| host_error("reading the side file", error);
    let mut file = file;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 0_u64.. {
        line.clear();
        let mut limited = (&mut reader).take(LINE_BYTES_MAX);
        if limited.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            break;
        }
        take(number, &line)?;
    }
    Ok(())
}

/// Writes the older lines that nothing newer replaces, then the newest line of each file.
fn merge(older: Option<File>, notes: File, into: &File) -> Result<()> {
    let failed = |error| host_error("writing the side file", error);
    let again = notes.try_clone().map_err(failed)?;
    let mut last: HashMap<u64, u64> = HashMap::new();
    lines(again, |number, line| {
        if let Some(key) = key(line)
            && (last.len() < LINES_MAX || last.contains_key(&key))
        {
            last.insert(key, number);
        }
        Ok(())
    })?;
    let mut into = BufWriter::new(into);
    if let Some(older) = older {
        lines(older, |_, line| {
            let is_replaced = key(line).is_some_and(|key| last.contains_key(&key));
            if is_replaced || !line.ends_with(b"\n") {
                return Ok(());
            }
            into.write_all(line).map_err(failed)
        })?;
    }
    lines(notes, |number, line| {
        let Some(key) = key(line) else { return Ok(()) };
        if last.get(&key).is_some_and(|last| *last != number) {
            return Ok(());
        }
        into.write_all(line).map_err(failed)
    })?;
    into.flush().map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::job::NoJournal;
    use crate::{Cancellation, Unwatched};

    /// Begins and ends an extraction; whether it was let in.
    fn begin_and_end(target: &Path, inside: &AtomicUsize) -> bool {
        let target = Folder::target(target).expect("the target");
        let (request, cancel) = (ExtractRequest::default(), Cancellation::default());
        let context = JobContext {
            progress: &Unwatched,
            cancel: &cancel,
            journal: &NoJournal,
        };
        let unfinished = match Unfinished::open(&target, &request, context) {
            Ok(unfinished) => unfinished,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
                return false;
            }
        };
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at a time");
        unfinished
            .notes()
            .expect("notes")
            .write_all(b"{}\n")
            .expect("a note");
        let made = unfinished.folder().create("0", Access::Private);
        made.expect("an unfinished file");
        assert!(
            unfinished
                .folder()
                .look(OsStr::new("0"))
                .expect("seen")
                .is_some()
        );
        inside.fetch_sub(1, Ordering::SeqCst);
        unfinished.give_up(&target).expect("all is taken away");
        true
    }

    #[test]
    fn who_begins_while_another_cleans_up_is_told_so_or_begins_anew() {
        let place = tempfile::tempdir().expect("a folder");
        let (target, inside) = (place.path().join("to"), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        while !begin_and_end(&target, &inside) {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        assert!(!target.join(PARTIAL_FOLDER).exists());
    }

    #[test]
    fn the_side_file_has_one_line_for_each_file_and_the_newest() {
        let place = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = place.path().join(name);
            std::fs::write(&path, text).expect("written");
            File::options()
                .read(true)
                .append(true)
                .open(path)
                .expect("opened")
        };
        let old = r#"{"volume":1,"path":"/a","kind":"old"}
{"volume":1,"path":"/b","kind":"old"}
"#;
        let new = r#"{"volume":1,"path":"/b","kind":"first"}
{"volume":1,"pa
{"volume":2,"path":"/a","kind":"other"}
{"volume":1,"path":"/b","kind":"second"}
"#;
        let into = File::create(place.path().join("into")).expect("made");
        merge(Some(file("old", old)), file("new", new), &into).expect("merged");
        let told = std::fs::read_to_string(place.path().join("into")).expect("read");
        let kinds: Vec<_> = told.lines().map(|line| line.split('"').nth(9)).collect();
        assert_eq!(
            kinds,
            [Some("old"), Some("other"), Some("second")],
            "{told}"
        );
    }
}
