//! What goes wrong on the way to a host: logins that expire, connections that break, hosts that are down.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use wsman::transport::{WireFault, WireFaults};

use crate::estate::HostName;
use crate::provider::SharedEstate;

/// Faults of one host's wire, to come in their order.
pub struct WirePlan {
    estate: Arc<SharedEstate>,
    host: HostName,
    /// How many requests go well before each.
    planned: Mutex<VecDeque<(u32, WireFault)>>,
}

impl WirePlan {
    pub(super) fn of(estate: Arc<SharedEstate>, host: HostName) -> Self {
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
