//! One estate for all of its hosts: a lock, and what moves its clock.
//!
//! ```text
//!   Pace::Manual        somebody calls advance
//!   Pace::PerRequest    each request lets so much time pass: polling always ends, and a run can be repeated
//!   Pace::Bound         the estate's clock follows another one, faster or slower
//! ```
//!
//! **Invariant.** A thread that panicked with the lock in its hands does not take the estate with it: the lock is taken over.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::Result;
use crate::estate::{Estate, VirtualTime};

/// What moves the clock of an estate.
#[derive(Clone, Default)]
pub enum Pace {
    /// Nothing but calls of [`SharedEstate::write`] that advance it.
    #[default]
    Manual,
    /// Each request, by so much.
    PerRequest(Duration),
    /// Another clock.
    Bound {
        /// Time since some moment; never goes back.
        clock: Arc<dyn Fn() -> Duration + Send + Sync>,
        /// How many milliseconds of the estate are one of that clock.
        factor: u32,
    },
}

struct Shared {
    estate: Estate,
    pace: Pace,
    /// Where both clocks were when the pace was set.
    origin: (VirtualTime, Duration),
}

/// An estate that many hosts and tests share.
pub struct SharedEstate {
    shared: RwLock<Shared>,
}

impl SharedEstate {
    /// Shares an estate.
    pub fn new(estate: Estate, pace: Pace) -> Arc<Self> {
        let origin = origin(&estate, &pace);
        Arc::new(Self {
            shared: RwLock::new(Shared {
                estate,
                pace,
                origin,
            }),
        })
    }

    /// Looks at it.
    pub fn read<T>(&self, look: impl FnOnce(&Estate) -> T) -> T {
        let shared = self.shared.read().unwrap_or_else(PoisonError::into_inner);
        look(&shared.estate)
    }

    /// Changes it.
    pub fn write<T>(&self, change: impl FnOnce(&mut Estate) -> T) -> T {
        let mut shared = self.shared.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut shared.estate)
    }

    /// Sets what moves the clock.
    pub fn set_pace(&self, pace: Pace) {
        let mut shared = self.shared.write().unwrap_or_else(PoisonError::into_inner);
        shared.origin = origin(&shared.estate, &pace);
        shared.pace = pace;
    }

    /// Lets so much time pass at once; what the pace brings comes on top.
    ///
    /// # Errors
    /// As [`Estate::advance`].
    pub fn pass(&self, duration: Duration) -> Result<()> {
        let mut shared = self.shared.write().unwrap_or_else(PoisonError::into_inner);
        shared.origin.0 = shared.origin.0.after(duration);
        shared.estate.advance(duration)
    }

    /// A request has come: time passes as the pace says.
    ///
    /// # Errors
    /// As [`Estate::advance`].
    pub fn on_request(&self) -> Result<()> {
        let is_manual = {
            let shared = self.shared.read().unwrap_or_else(PoisonError::into_inner);
            matches!(shared.pace, Pace::Manual)
        };
        if is_manual {
            return Ok(());
        }
        let mut shared = self.shared.write().unwrap_or_else(PoisonError::into_inner);
        match shared.pace.clone() {
            Pace::Manual => Ok(()),
            Pace::PerRequest(step) => shared.estate.advance(step),
            Pace::Bound { clock, factor } => {
                let passed = clock().saturating_sub(shared.origin.1);
                let until = shared.origin.0.after(passed.saturating_mul(factor));
                shared.estate.advance_to(until)
            }
        }
    }
}

fn origin(estate: &Estate, pace: &Pace) -> (VirtualTime, Duration) {
    let other = match pace {
        Pace::Bound { clock, .. } => clock(),
        Pace::Manual | Pace::PerRequest(_) => Duration::ZERO,
    };
    (estate.now(), other)
}
