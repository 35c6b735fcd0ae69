//! What goes wrong on the way to a host: logins that expire, connections that break, hosts that are down.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use wsman::transport::{WireFault, WireFaults};

use crate::estate::HostName;
use crate::provider::SharedEstate;

/// More repetitions of one fault than this are cut to it.
const PLAN_MAX: usize = 100_000;

/// Faults of one host's wire, to come in their order.
pub struct WirePlan {
    estate: Arc<SharedEstate>,
    host: HostName,
    /// How many requests go well before each.
    planned: Mutex<VecDeque<(u32, WireFault)>>,
}

impl WirePlan {
    /// No fault yet.
    pub fn new(estate: Arc<SharedEstate>, host: HostName) -> Self {
        Self {
            estate,
            host,
            planned: Mutex::new(VecDeque::new()),
        }
    }

    /// A fault, after so many requests that go well, counted from the fault before it.
    pub fn after(&self, requests: u32, fault: WireFault) {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        planned.push_back((requests, fault));
    }

    /// The same fault so many times: the first after some requests that go well, the others at once behind it.
    pub fn repeat(&self, requests: u32, times: u32, fault: WireFault) {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = std::iter::once(requests).chain(std::iter::repeat(0));
        for wait in waits.take(usize::try_from(times).unwrap_or(usize::MAX).min(PLAN_MAX)) {
            planned.push_back((wait, fault));
        }
    }

    /// Those still to come: after how many requests that go well, counted from the one before, and what.
    pub fn planned(&self) -> Vec<(u32, WireFault)> {
        let planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        planned.iter().copied().collect()
    }

    /// Takes back those still to come; how many they were.
    pub fn clear(&self) -> usize {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let left = planned.len();
        planned.clear();
        left
    }

    /// How many are still to come.
    pub fn left(&self) -> usize {
        self.planned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

impl WireFaults for WirePlan {
    fn next(&self) -> Option<WireFault> {
        if self.estate.read(|it| it.live_host(&self.host).is_err()) {
            return Some(WireFault::CloseBefore);
        }
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, fault) = planned.front_mut()?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let fault = *fault;
        planned.pop_front();
        Some(fault)
    }
}
