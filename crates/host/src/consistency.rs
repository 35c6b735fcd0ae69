//! How consistent a checkpoint is, what is wanted, and what may be taken instead.
//!
//! ```text
//!   application ──► file system ──► crash            saved state: the guest stands still, memory is kept
//!   (VSS writers)   (freeze)        (power cut)      (offline; as good as application, at the price of downtime)
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a checkpoint holds of the guest's running state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// Applications flushed and paused (VSS writers inside a Windows guest).
    Application,
    /// File systems were flushed and frozen; applications come back as after a crash.
    FileSystem,
    /// As after a power cut: writes that were acknowledged as flushed are there.
    Crash,
    /// The guest was saved: memory and disks of one instant. Also what a machine that is off has.
    SavedState,
}

impl Consistency {
    /// `application`, `file-system`, `crash`, `saved-state`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::FileSystem => "file-system",
            Self::Crash => "crash",
            Self::SavedState => "saved-state",
        }
    }

    /// Whether a checkpoint of `self` is good enough where `wanted` was asked for.
    pub fn satisfies(self, wanted: Self) -> bool {
        match wanted {
            Self::Application => matches!(self, Self::Application | Self::SavedState),
            Self::FileSystem => !matches!(self, Self::Crash),
            Self::Crash => true,
            Self::SavedState => matches!(self, Self::SavedState),
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What is wanted, and what may be taken instead, in order. Nothing else is ever taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsistencyPolicy {
    /// The level to try first.
    pub wanted: Consistency,
    /// What to try, one after the other, when it was not reached. Empty: then the checkpoint fails.
    pub otherwise: Vec<Consistency>,
}

impl ConsistencyPolicy {
    /// This level or none.
    pub fn only(wanted: Consistency) -> Self {
        Self {
            wanted,
            otherwise: Vec::new(),
        }
    }

    /// The levels to try, in order, each once.
    pub fn attempts(&self) -> Vec<Consistency> {
        let mut attempts = vec![self.wanted];
        for level in &self.otherwise {
            if !attempts.contains(level) {
                attempts.push(*level);
            }
        }
        attempts
    }
}

impl Default for ConsistencyPolicy {
    /// Application, else file system, else crash: never a pause of the guest that nobody asked for.
    fn default() -> Self {
        Self {
            wanted: Consistency::Application,
            otherwise: vec![Consistency::FileSystem, Consistency::Crash],
        }
    }
}

/// A level that was tried and not reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedConsistency {
    /// The level.
    pub wanted: Consistency,
    /// Why it was not reached, as the host tells it or as known beforehand.
    pub reason: String,
    /// The host's number for it.
    pub code: Option<u32>,
}

/// What a guest's VSS-aware applications are told about the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestBackupType {
    /// A copy: logs of applications are left as they are. The default, so that no other product's chain of logs is broken.
    #[default]
    Copy,
    /// A full backup: applications may cut their logs.
    Full,
}
