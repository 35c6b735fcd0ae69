//! A store that fails as it is told: what every caller must live through.
//!
//! ```text
//!   call n ──► plan ──► no fault ───────────────► inner ──► answer
//!                 ├──► FailBefore(kind) ───────────────────► error, nothing happened
//!                 ├──► FailAfter(kind) ─────► inner ───────► error, though it happened
//!                 ├──► Crash(Before | After) ► (inner) ────► error, and so does every later call
//!                 ├──► ShortRead, FlipBit ──► inner ───────► damaged bytes, as if all were well
//!                 └──► TornPut ─────────────► half the body► error and crash: a store that breaks its promise
//! ```
//!
//! **Invariants.** The same plan and the same calls in the same order give the same faults. After a crash nothing
//! reaches the inner store. Faults that do not fit a call (a short read of a delete) leave it alone.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, ErrorKind, ListPage, ObjectName, Prefix, Result, Store, Verb};

/// One call, as a plan sees it before it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedCall<'a> {
    /// The how-manieth call on this store, from 1.
    pub number: u64,
    /// Which call.
    pub verb: Verb,
    /// The name or the prefix.
    pub name: &'a str,
}

/// Whether the call that crashes had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It never reached the store.
    Before,
    /// It happened, and its answer was lost.
    After,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The error, and nothing happened.
    FailBefore(ErrorKind),
    /// The error, though it happened.
    FailAfter(ErrorKind),
    /// The caller's process dies here: this and every later call is [`ErrorKind::Unavailable`].
    Crash(Moment),
    /// A read gives the first half of its bytes.
    ShortRead,
    /// A read gives its bytes with one bit wrong: this one, counted from the first and modulo their number.
    FlipBit(u64),
    /// A put leaves the first half of the body under the name, and crashes. No driver may do this; what reads a
    /// repository must notice it all the same.
    TornPut,
}

/// Decides which calls fail.
pub trait FaultPlan: Send {
    /// The fault of this call, if any.
    fn fault(&mut self, call: &PlannedCall<'_>) -> Option<Fault>;
}

impl<F: FnMut(&PlannedCall<'_>) -> Option<Fault> + Send> FaultPlan for F {
    fn fault(&mut self, call: &PlannedCall<'_>) -> Option<Fault> {
        self(call)
    }
}

/// Faults by chance, repeatable from a seed.
#[derive(Debug, Clone)]
pub struct SeededFaults {
    state: u64,
    per_mille: u16,
    faults: Vec<Fault>,
}

impl SeededFaults {
    /// Gives each call, with a chance of `per_mille` in a thousand, one of `faults`.
    pub fn new(seed: u64, per_mille: u16, faults: impl Into<Vec<Fault>>) -> Self {
        Self {
            state: seed,
            per_mille,
            faults: faults.into(),
        }
    }

    /// SplitMix64: small, and the same on every machine for ever, which a seed in a bug report needs.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl FaultPlan for SeededFaults {
    fn fault(&mut self, _call: &PlannedCall<'_>) -> Option<Fault> {
        let (chance, choice) = (self.draw(), self.draw());
        if chance % 1_000 >= u64::from(self.per_mille) {
            return None;
        }
        let count = u64::try_from(self.faults.len())
            .ok()
            .filter(|count| *count > 0)?;
        self.faults
            .get(usize::try_from(choice % count).ok()?)
            .copied()
    }
}

/// A store that fails as its plan says.
pub struct FaultyStore<S> {
    inner: S,
    state: Mutex<State>,
}

struct State {
    plan: Box<dyn FaultPlan>,
    calls: u64,
    life: Life,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    Crashed,
}

impl<S: fmt::Debug> fmt::Debug for FaultyStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S> FaultyStore<S> {
    /// Fails as `plan` says.
    pub fn new(inner: S, plan: impl FaultPlan + 'static) -> Self {
        let state = State {
            plan: Box::new(plan),
            calls: 0,
            life: Life::Running,
        };
        Self {
            inner,
            state: Mutex::new(state),
        }
    }

    /// Never fails, but counts.
    pub fn sound(inner: S) -> Self {
        Self::new(inner, |_: &PlannedCall<'_>| None)
    }

    /// Crashes at the `number`th call, from 1.
    pub fn crashing_at(inner: S, number: u64, moment: Moment) -> Self {
        Self::new(inner, move |call: &PlannedCall<'_>| {
            (call.number == number).then_some(Fault::Crash(moment))
        })
    }

    /// How many calls were made, those after the crash not counted.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Whether the crash has happened.
    pub fn has_crashed(&self) -> bool {
        self.state().life == Life::Crashed
    }

    /// Another plan from here on. It does not undo a crash.
    pub fn set_plan(&self, plan: impl FaultPlan + 'static) {
        self.state().plan = Box::new(plan);
    }

    /// The store below.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call and asks the plan; an error when it must not reach the store below.
    fn begin(&self, verb: Verb, name: &str) -> Result<Option<Fault>> {
        let mut state = self.state();
        if state.life == Life::Crashed {
            return Err(crashed(verb, name));
        }
        state.calls = state.calls.saturating_add(1);
        let number = state.calls;
        let fault = state.plan.fault(&PlannedCall { number, verb, name });
        match fault {
            Some(Fault::FailBefore(kind)) => Err(told(kind, verb, name)),
            Some(Fault::Crash(moment)) => {
                state.life = Life::Crashed;
                match moment {
                    Moment::Before => Err(crashed(verb, name)),
                    Moment::After => Ok(fault),
                }
            }
            Some(Fault::TornPut) if verb == Verb::PutNew => {
                state.life = Life::Crashed;
                Ok(fault)
            }
            other => Ok(other),
        }
    }

    fn run<T>(&self, verb: Verb, name: &str, call: impl FnOnce(&S) -> Result<T>) -> Result<T> {
        let fault = self.begin(verb, name)?;
        let answer = call(&self.inner);
        match fault {
            Some(Fault::FailAfter(kind)) => answer.and_then(|_| Err(told(kind, verb, name))),
            Some(Fault::Crash(_)) => Err(crashed(verb, name)),
            _ => answer,
        }
    }

    fn read(
        &self,
        verb: Verb,
        name: &ObjectName,
        call: impl FnOnce(&S) -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let fault = self.begin(verb, name.as_str())?;
        let mut bytes = call(&self.inner);
        match (fault, &mut bytes) {
            (Some(Fault::ShortRead), Ok(bytes)) => bytes.truncate(bytes.len() / 2),
            (Some(Fault::FlipBit(bit)), Ok(bytes)) => flip(bytes, bit),
            (Some(Fault::FailAfter(kind)), Ok(_)) => return Err(told(kind, verb, name)),
            (Some(Fault::Crash(_)), _) => return Err(crashed(verb, name)),
            _ => {}
        }
        bytes
    }
}

fn told(kind: ErrorKind, verb: Verb, name: impl fmt::Display) -> Error {
    Error::of(kind, verb, name, "failed as it was told to")
}

fn crashed(verb: Verb, name: impl fmt::Display) -> Error {
    Error::of(
        ErrorKind::Unavailable,
        verb,
        name,
        "crashed as it was told to",
    )
}

fn flip(bytes: &mut [u8], bit: u64) {
    let Some(bits) = u64::try_from(bytes.len())
        .ok()
        .and_then(|length| length.checked_mul(8))
    else {
        return;
    };
    let Some(bit) = bit.checked_rem(bits) else {
        return;
    };
    if let Some(byte) = usize::try_from(bit / 8)
        .ok()
        .and_then(|at| bytes.get_mut(at))
    {
        *byte ^= 1 << (bit % 8);
    }
}

impl<S: Store> Store for FaultyStore<S> {
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()> {
        let fault = self.begin(Verb::PutNew, name.as_str())?;
        let body = match fault {
            Some(Fault::TornPut) => body.split_at(body.len() / 2).0,
            _ => body,
        };
        let answer = self.inner.put_new(name, body);
        match fault {
            Some(Fault::FailAfter(kind)) => {
                answer.and_then(|()| Err(told(kind, Verb::PutNew, name)))
            }
            Some(Fault::Crash(_) | Fault::TornPut) => Err(crashed(Verb::PutNew, name)),
            _ => answer,
        }
    }

    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        self.read(Verb::Get, name, |inner| {
            inner.get_bounded(name, limit_bytes)
        })
    }

    fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>> {
        self.read(Verb::GetRange, name, |inner| {
            inner.get_range(name, offset, length_bytes)
        })
    }

    fn size(&self, name: &ObjectName) -> Result<u64> {
        self.run(Verb::Size, name.as_str(), |inner| inner.size(name))
    }

    fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage> {
        self.run(Verb::List, prefix.as_str(), |inner| {
            inner.list(prefix, after, limit)
        })
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.run(Verb::Delete, name.as_str(), |inner| inner.delete(name))
    }

    fn describe(&self) -> String {
        format!("{}, failing as told", self.inner.describe())
    }
}
