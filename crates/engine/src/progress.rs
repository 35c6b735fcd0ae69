//! What a running job tells, and how it is told to stop. Libraries never print; whoever runs a job watches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, ErrorKind, Result};

/// Watches a job. Every method may be called from any thread, often; it must be cheap and must not block.
pub trait Progress: Send + Sync {
    /// A step begins; `total_bytes` is how much it will go through, when that is known.
    fn begin(&self, step: &str, total_bytes: Option<u64>);
    /// So many more bytes of the step are done, whether read or known to need no reading.
    fn advance(&self, bytes: u64);
    /// Something an operator should know although the job goes on.
    fn warn(&self, text: &str);
    /// The step is over.
    fn end(&self);
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn begin(&self, _step: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn warn(&self, _text: &str) {}
    fn end(&self) {}
}

/// Tells a job to stop. Clones share one switch; it is never switched back.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<AtomicBool>);

impl Cancellation {
    /// Tells the job to stop at its next safe place.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was told to.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`ErrorKind::Cancelled`] once told to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            Err(Error::new(ErrorKind::Cancelled, "the job was told to stop"))
        } else {
            Ok(())
        }
    }
}
