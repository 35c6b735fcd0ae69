//! The protection domain: what an operator asks for, as jobs with a plan, steps and undo.
//!
//! - [`Progress`], [`Cancellation`]: how a job is watched and stopped.
//! - [`Problem`]: a failure as an operator sees it.

mod error;
mod problem;
mod progress;

pub use error::{Error, ErrorKind, Result};
pub use problem::{Problem, ProblemCode};
pub use progress::{Cancellation, Progress, Unwatched};
