//! Waiting until everybody knows what is condemned, or can never commit.
//!
//! ```text
//!   lease has observed the generation ─► done
//!   lease is gone                     ─► done: its point, if any, is visible now
//!   process gone, or beat unchanged for stall_ms of our own time ─► fence, done
//!   else                              ─► look again
//! ```
//!
//! **Invariants.** The time that this takes is bounded: a lease either beats, and each beat observes, or it stalls. No clock but
//! this process's monotonic one is read.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::access::ObjectAccess;
use crate::environment::Environment;
use crate::lease::{
    BreakOutcome, Lease, LeaseKind, LeaseTerms, LeaseView, Liveness, StallWatch, break_lease,
    list_leases,
};
use crate::{Error, ErrorKind, LeaseId, Result};

use super::report::WaitedFor;

/// Between two looks at the leases.
const LOOK_AGAIN_MS: u64 = 200;

/// Everything that waiting needs.
pub(crate) struct Waiter<'a> {
    pub(crate) access: &'a dyn ObjectAccess,
    pub(crate) environment: &'a Environment,
    pub(crate) terms: &'a LeaseTerms,
    pub(crate) own: &'a Lease,
}

impl Waiter<'_> {
    /// Makes sure that this is the only collector: whoever else holds a lease of this kind lives (then [`ErrorKind::Busy`])
    /// or is broken.
    pub(crate) fn be_alone(&self, kind: LeaseKind) -> Result<Vec<WaitedFor>> {
        let mut first_beats: BTreeMap<LeaseId, u64> = BTreeMap::new();
        self.watch(|view| {
            let same = view.body.as_ref().is_ok_and(|body| body.kind == kind);
            if !same {
                return Ok(Verdict::Fine);
            }
            let first = *first_beats.entry(view.id).or_insert(view.beat);
            if first == view.beat {
                return Ok(Verdict::Pending);
            }
            let what = format!("another {kind} is at work (lease {})", view.id);
            Err(Error::new(ErrorKind::Busy, what))
        })
    }

    /// Breaks whoever is dead and waits until everybody else showed one sign of life: what the dead had put and not committed
    /// is garbage from now on.
    pub(crate) fn bury_the_dead(&self) -> Result<Vec<WaitedFor>> {
        let mut first_beats: BTreeMap<LeaseId, u64> = BTreeMap::new();
        self.watch(|view| {
            let first = *first_beats.entry(view.id).or_insert(view.beat);
            Ok(if first == view.beat {
                Verdict::Pending
            } else {
                Verdict::Fine
            })
        })
    }

    /// Waits until every lease has observed the generation.
    pub(crate) fn until_observed(&self, generation: u64) -> Result<Vec<WaitedFor>> {
        self.watch(|view| match &view.body {
            Ok(body) if body.observed_generation >= generation => Ok(Verdict::Fine),
            _ => Ok(Verdict::Pending),
        })
    }

    fn watch(
        &self,
        mut judge: impl FnMut(&LeaseView) -> Result<Verdict>,
    ) -> Result<Vec<WaitedFor>> {
        let mut stalls = StallWatch::default();
        let mut waited: BTreeMap<LeaseId, WaitedFor> = BTreeMap::new();
        loop {
            self.own.check()?;
            let mut pending = false;
            for view in list_leases(self.access)? {
                if view.id == self.own.id() || judge(&view)? == Verdict::Fine {
                    continue;
                }
                let now = self.environment.clock.monotonic_ms();
                let entry = waited.entry(view.id).or_insert_with(|| describe(&view));
                match stalls.judge(&view, &self.environment.host, self.terms, now) {
                    Liveness::Alive => pending = true,
                    Liveness::Stalled | Liveness::Gone => {
                        entry.broken = Some(break_lease(self.access, &view)?);
                    }
                }
            }
            if !pending {
                return Ok(waited.into_values().collect());
            }
            self.environment
                .clock
                .sleep(Duration::from_millis(LOOK_AGAIN_MS));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    Pending,
}

fn describe(view: &LeaseView) -> WaitedFor {
    let (kind, owner) = match &view.body {
        Ok(body) => {
            let owner = &body.owner;
            (
                Some(body.kind),
                format!("{} on {}, process {}", owner.program, owner.host, owner.pid),
            )
        }
        Err(error) => (None, error.to_string()),
    };
    WaitedFor {
        lease: view.id,
        kind,
        owner,
        broken: None::<BreakOutcome>,
    }
}
