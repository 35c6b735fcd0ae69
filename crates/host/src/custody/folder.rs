//! The journals of one protection server in a folder: one file for each job, locked while its process lives.
//!
//! ```text
//!   FOLDER/JOB.journal      held by the process that runs the job: the job is alive
//!   FOLDER/JOB.journal      held by nobody: the job is dead; whoever sweeps holds it meanwhile
//!   (no file)               nothing of that job is open
//! ```
//!
//! **Invariants.** A job has its journal before it makes anything, and the lock that tells that it lives goes with its process,
//! however that ends. A journal is removed only when nothing in it is open.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Closing, CustodyLog, Entry, EntryId, Intent, JournalFile, no_entry};
use crate::ids::JobId;
use crate::{Error, ErrorKind, Result};

const SUFFIX: &str = ".journal";
/// More journals are not looked at in one round.
const MAX_JOURNALS: usize = 10_000;
/// A sweeper may hold a new file for an instant.
const TRIES: usize = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(10);

/// Where the journals lie.
#[derive(Debug, Clone)]
pub struct JournalFolder {
    path: PathBuf,
}

/// The journal of a job that runs in this process.
#[derive(Debug)]
pub struct JobJournal {
    journal: Arc<JournalFile>,
    path: PathBuf,
}

impl JobJournal {
    /// The log.
    pub fn log(&self) -> Arc<dyn CustodyLog> {
        Arc::clone(&self.journal) as Arc<dyn CustodyLog>
    }

    /// Ends the job: its journal goes when nothing is open in it, and stays for the custodian otherwise. Says how many
    /// entries are open.
    pub fn finish(self) -> Result<usize> {
        let open = self.journal.open_entries()?.len();
        if open == 0 {
            remove(&self.path)?;
        }
        Ok(open)
    }
}

impl JournalFolder {
    /// The folder at `path`, made when it is not there.
    pub fn open(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|error| failed("making", path, error))?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A journal for a job that begins.
    pub fn begin(&self, job: JobId) -> Result<JobJournal> {
        let path = self.place(job);
        let mut tries = 0;
        let journal = loop {
            match JournalFile::open(&path) {
                Err(error) if error.kind() == ErrorKind::Busy && tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(BETWEEN_TRIES);
                }
                outcome => break outcome?,
            }
        };
        // The name must be as durable as what will stand under it.
        File::open(&self.path)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| failed("syncing", &self.path, error))?;
        Ok(JobJournal {
            journal: Arc::new(journal),
            path,
        })
    }

    /// Whether a job's process lives. What cannot be told counts as living: its things are not touched.
    pub fn is_alive(&self, job: JobId) -> bool {
        let path = self.place(job);
        match File::open(&path) {
            Ok(file) => file.try_lock_shared().is_err(),
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        }
    }

    /// Takes the journals of all dead jobs.
    pub fn take_dead(&self) -> Result<DeadJournals> {
        let listed =
            std::fs::read_dir(&self.path).map_err(|error| failed("listing", &self.path, error))?;
        let mut taken = DeadJournals {
            journals: Vec::new(),
            jobs: Vec::new(),
            known: Mutex::new(Known::default()),
            problems: Vec::new(),
        };
        for entry in listed.take(MAX_JOURNALS) {
            let entry = entry.map_err(|error| failed("listing", &self.path, error))?;
            let name = entry.file_name();
            let job = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            let Some(job) = job.and_then(|job| job.parse::<JobId>().ok()) else {
                continue;
            };
            match JournalFile::open(&entry.path()) {
                Ok(journal) => {
                    taken.journals.push((entry.path(), journal));
                    taken.jobs.push(job);
                }
                Err(error) if error.kind() == ErrorKind::Busy => {}
                Err(error) => taken.problems.push(crate::error::chain_text(&error)),
            }
        }
        Ok(taken)
    }

    fn place(&self, job: JobId) -> PathBuf {
        self.path.join(format!("{job}{SUFFIX}"))
    }
}

/// Journals of dead jobs as one log, held until this is dropped.
#[derive(Debug)]
pub struct DeadJournals {
    journals: Vec<(PathBuf, JournalFile)>,
    jobs: Vec<JobId>,
    known: Mutex<Known>,
    /// Journals that cannot be read: something may exist that nobody knows of any more.
    problems: Vec<String>,
}

/// Numbers that are given to entries of several journals.
#[derive(Debug, Default)]
struct Known {
    given: BTreeMap<(usize, EntryId), EntryId>,
    places: Vec<(usize, EntryId)>,
}

impl Known {
    fn number(&mut self, journal: usize, entry: EntryId) -> EntryId {
        let next = EntryId(u64::try_from(self.places.len()).unwrap_or(u64::MAX));
        let given = *self.given.entry((journal, entry)).or_insert(next);
        if given == next {
            self.places.push((journal, entry));
        }
        given
    }
}

impl DeadJournals {
    /// The jobs whose journals are held: they are dead, although somebody (we) holds their journals.
    pub fn jobs(&self) -> &[JobId] {
        &self.jobs
    }

    /// Journals that could not be read.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Removes journals in which nothing is open any more.
    pub fn finish(&self) -> Result<()> {
        for (path, journal) in &self.journals {
            if journal.open_entries()?.is_empty() {
                remove(path)?;
            }
        }
        Ok(())
    }

    fn place(&self, entry: EntryId) -> Result<(&JournalFile, EntryId)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let place = usize::try_from(entry.0)
            .ok()
            .and_then(|number| known.places.get(number));
        let (journal, inner) = place.copied().ok_or_else(|| no_entry(entry))?;
        let (_, journal) = self.journals.get(journal).ok_or_else(|| no_entry(entry))?;
        Ok((journal, inner))
    }
}

impl CustodyLog for DeadJournals {
    fn intend(&self, intent: Intent) -> Result<EntryId> {
        let index = self.jobs.iter().position(|job| *job == intent.job);
        let found = index.and_then(|index| Some((index, self.journals.get(index)?)));
        let Some((index, (_, journal))) = found else {
            return Err(Error::new(
                ErrorKind::Custody,
                format!("job {} has no journal among those of dead jobs", intent.job),
            ));
        };
        let inner = journal.intend(intent)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(known.number(index, inner))
    }

    fn made(&self, entry: EntryId, id: &str) -> Result<()> {
        let (journal, inner) = self.place(entry)?;
        journal.made(inner, id)
    }

    fn close(&self, entry: EntryId, closing: Closing) -> Result<()> {
        let (journal, inner) = self.place(entry)?;
        journal.close(inner, closing)
    }

    fn open_entries(&self) -> Result<Vec<Entry>> {
        let mut all = Vec::new();
        for (index, (_, journal)) in self.journals.iter().enumerate() {
            for entry in journal.open_entries()? {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                let id = known.number(index, entry.id);
                all.push(Entry { id, ..entry });
            }
        }
        all.sort_by_key(|entry| entry.intent.at);
        Ok(all)
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed("removing", path, error))
        }
        _ => Ok(()),
    }
}

fn failed(verb: &str, path: &Path, error: std::io::Error) -> Error {
    let context = format!("{verb} the custody journals at {}", path.display());
    Error::with_source(ErrorKind::Custody, context, error)
}
