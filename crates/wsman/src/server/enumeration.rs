//! Enumerations under way: what is left of each, who began it, and when it lapses.
//!
//! ```text
//!   Enumerate ──► context ──Pull──► context ──Pull──► … ──► ended
//!                    └── idle for too long, or Release ────► gone: InvalidEnumerationContext
//! ```
//!
//! **Invariants.** A context belongs to its caller; nobody else can pull from it. One Pull at a time takes a context out, so two at
//! once cannot both get items of it. Contexts are bounded per caller and altogether.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Caller;
use super::results::Row;
use crate::message::EnumerationContext;

/// What is left of an enumeration.
#[derive(Debug)]
pub(super) struct Enumeration {
    pub(super) rows: VecDeque<Row>,
    pub(super) caller: Caller,
    pub(super) used_at: Duration,
}

/// All enumerations under way.
#[derive(Debug, Default)]
pub(super) struct Enumerations {
    by_context: Mutex<HashMap<EnumerationContext, Enumeration>>,
}

/// Bounds of [`Enumerations`].
#[derive(Debug, Clone, Copy)]
pub(super) struct ContextLimits {
    pub(super) per_caller: usize,
    pub(super) altogether: usize,
    pub(super) idle: Duration,
}

impl Enumerations {
    /// Keeps what is left; `false` if there are too many already.
    pub(super) fn keep(
        &self,
        context: EnumerationContext,
        enumeration: Enumeration,
        limits: ContextLimits,
    ) -> bool {
        let now = enumeration.used_at;
        let mut all = self
            .by_context
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, it| now.saturating_sub(it.used_at) <= limits.idle);
        if all.len() >= limits.per_caller.min(limits.altogether) {
            let own = all
                .values()
                .filter(|it| it.caller == enumeration.caller)
                .count();
            if own >= limits.per_caller || all.len() >= limits.altogether {
                return false;
            }
        }
        all.insert(context, enumeration);
        true
    }

    /// Takes an enumeration out: to pull from it, or to end it. `None` if it is unknown, another's, or lapsed.
    pub(super) fn take(
        &self,
        context: &EnumerationContext,
        caller: &Caller,
        now: Duration,
        limits: ContextLimits,
    ) -> Option<Enumeration> {
        let mut all = self
            .by_context
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if all.get(context).is_none_or(|it| it.caller != *caller) {
            return None;
        }
        all.remove(context)
            .filter(|it| now.saturating_sub(it.used_at) <= limits.idle)
    }
}
