//! Every change that the driver makes is a moment or two at which its process can be made to die.
//!
//! ```text
//!   a file on the node:  ● done              a command:  ● sent ● answered
//! ```
//!
//! After a change that is done, and before the next one, is the same moment.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts moments.
#[derive(Debug, Default)]
pub(super) struct Steps {
    passed: AtomicUsize,
    death: Option<usize>,
}

impl Steps {
    /// Counts, and dies at that moment, counted from zero.
    pub(super) fn until(death: usize) -> Self {
        Self {
            passed: AtomicUsize::new(0),
            death: Some(death),
        }
    }

    /// One moment: before a change, or when the other side was asked for it and has not answered yet.
    pub(super) fn pass(&self, name: &str) {
        let moment = self.passed.fetch_add(1, Ordering::Relaxed);
        if self.death == Some(moment) {
            println!("DIES {name}");
            // As a kill: no destructor runs, nothing is told to anybody.
            std::process::abort();
        }
    }
}
