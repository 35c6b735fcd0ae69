//! Where this installation keeps what it has caused on hosts.
//!
//! ```text
//!   $XDG_STATE_HOME/hikae/custody/REPOSITORY-ID/   (else ~/.local/state/…)
//!     owner              who marks on hosts say that we are: made once, at random
//!     JOB.journal        one for each job that runs, or that died with something open
//! ```
//!
//! **Invariants.** A repository has a folder of its own: whether a tracking point is needed is known to the repository that
//! its job wrote to, and to no other.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use engine::job::leftovers::{LeftoversTools, remove_leftovers};
use host::custody::{JournalFolder, SweepReport};
use host::ids::{JobId, OwnerId, VmId};
use host::{Clock, SystemClock};
use repo::Repository;

use crate::exit::not_possible;
use crate::host::connect::{self, Estate, IdSource};

/// Longer texts are no owner.
const OWNER_MAX_BYTES: u64 = 128;

/// The journals of one repository, and who we are.
pub struct Keeping {
    pub journals: JournalFolder,
    pub owner: OwnerId,
    pub clock: SystemClock,
    ids: IdSource,
}

impl Keeping {
    /// For jobs that write to a repository.
    pub fn of(repository: &Repository) -> anyhow::Result<Self> {
        let folder = state_folder()?
            .join("custody")
            .join(repository.id().to_string());
        Self::at(&folder)
    }

    /// In a folder of its own.
    pub fn at(folder: &Path) -> anyhow::Result<Self> {
        let journals = JournalFolder::open(folder)?;
        let ids = connect::ids()?;
        Ok(Self {
            owner: owner(folder, &ids)?,
            journals,
            clock: SystemClock::new(),
            ids,
        })
    }

    /// A job that begins.
    pub fn job(&self) -> JobId {
        JobId::from_bytes((self.ids)())
    }

    /// Holds a machine until the file is dropped: two restores of one would write into the same places.
    pub fn hold(&self, vm: VmId) -> anyhow::Result<File> {
        let path = self.journals.path().join(format!("restore-{vm}.lock"));
        let place = || format!("opening {}", path.display());
        let file = File::create(&path).with_context(place)?;
        file.try_lock().map_err(|error| {
            let what = format!("machine {vm} is being restored by another command");
            anyhow::Error::new(engine::Error::new(engine::ErrorKind::Busy, what).caused_by(error))
        })?;
        Ok(file)
    }

    /// One round of the custodian over the hosts of an estate.
    pub fn sweep(&self, estate: &Estate, repository: &Repository) -> engine::Result<SweepReport> {
        remove_leftovers(LeftoversTools {
            host: &estate.driver,
            journals: &self.journals,
            owner: &self.owner,
            repository,
            clock: &self.clock as &dyn Clock,
            cancel: &estate.cancel,
            job: self.job(),
        })
    }
}

fn state_folder() -> anyhow::Result<PathBuf> {
    let given = |variable: &str| {
        std::env::var_os(variable)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = given("XDG_STATE_HOME").or_else(|| given("HOME").map(|it| it.join(".local/state")));
    let base = base.ok_or_else(|| {
        not_possible("no home folder for the journal of checkpoints: set XDG_STATE_HOME")
    })?;
    Ok(base.join("hikae"))
}

/// Who we are here; made when nobody was yet.
fn owner(folder: &Path, ids: &IdSource) -> anyhow::Result<OwnerId> {
    let path = folder.join("owner");
    let place = || format!("reading {}", path.display());
    if let Ok(metadata) = std::fs::metadata(&path) {
        if metadata.len() > OWNER_MAX_BYTES {
            return Err(not_possible(format!("{}: too long", path.display())));
        }
        let text = std::fs::read_to_string(&path).with_context(place)?;
        return Ok(OwnerId::new(text.trim())?);
    }
    let made: String = ids().iter().map(|byte| format!("{byte:02x}")).collect();
    // Whole under its name or not there; when two processes make one, the first stays.
    let fresh = folder.join(format!("owner.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&fresh)
        .with_context(|| format!("making {}", fresh.display()))?;
    file.write_all(made.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("writing {}", fresh.display()))?;
    let linked = std::fs::hard_link(&fresh, &path);
    std::fs::remove_file(&fresh).with_context(|| format!("removing {}", fresh.display()))?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("making {}", path.display()))
        }
        _ => {
            let text = std::fs::read_to_string(&path).with_context(place)?;
            Ok(OwnerId::new(text.trim())?)
        }
    }
}
