//! Exit codes, for scripts. They never change their meaning.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed, or was told to stop (Ctrl-C, SIGTERM); standard error (or the JSON object) holds the problem |
//! | 2 | the command line was not understood, or a flag of it names what is not there |
//! | 3 | done, and something was found: a difference, damage, a store that is not fit |
//! | 4 | busy: somebody else holds what is needed; try again later |
//! | 5 | fenced: this writer was declared dead by gc or an operator and can no longer commit |
//! | 130 | ended at once by a second Ctrl-C |

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All was done.
    Done,
    /// It failed.
    Failed,
    /// The command line makes no sense.
    Misunderstood,
    /// It was done, and found what an operator must look at.
    Found,
    /// Somebody else holds what is needed.
    Busy,
    /// This writer can no longer commit.
    Fenced,
}

/// A failure because what was asked for cannot be.
pub fn not_possible(text: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(engine::Error::new(engine::ErrorKind::Invalid, text))
}

/// A flag that cannot mean anything here; what is wrong is its source.
#[derive(Debug)]
struct MisusedFlag(engine::Error);

impl std::fmt::Display for MisusedFlag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the command line")
    }
}

impl std::error::Error for MisusedFlag {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// A failure because a flag names something that is not there.
pub fn misused_flag(text: impl Into<String>) -> anyhow::Error {
    let error = engine::Error::new(engine::ErrorKind::NotFound, text);
    anyhow::Error::new(MisusedFlag(error))
}

/// The same, with what to do about it.
pub fn misused_flag_advised(text: impl Into<String>, advice: impl Into<String>) -> anyhow::Error {
    let error = engine::Error::new(engine::ErrorKind::NotFound, text);
    anyhow::Error::new(MisusedFlag(error.advised(advice)))
}

impl Exit {
    /// How a failure ends the process: the deepest error that knows decides.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut exit = Self::Failed;
        let mut next = Some(error);
        while let Some(at) = next {
            if at.is::<MisusedFlag>() {
                return Self::Misunderstood;
            } else if let Some(error) = at.downcast_ref::<engine::Error>() {
                exit = match error.kind() {
                    engine::ErrorKind::Busy => Self::Busy,
                    engine::ErrorKind::Fenced => Self::Fenced,
                    _ => exit,
                };
            } else if let Some(error) = at.downcast_ref::<repo::Error>() {
                exit = match error.kind() {
                    repo::ErrorKind::Busy => Self::Busy,
                    repo::ErrorKind::Fenced => Self::Fenced,
                    _ => exit,
                };
            }
            next = at.source();
        }
        exit
    }

    /// The number that the process ends with.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Misunderstood => 2,
            Self::Found => 3,
            Self::Busy => 4,
            Self::Fenced => 5,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
