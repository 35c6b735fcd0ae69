//! Guests: how they are, and what they are told to do.
//!
//! **Invariant.** What a guest's records are marked with is remembered when its VM is gone, so that restored bytes can still be
//! judged.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::desk::ControlDesk;
use super::messages::{GuestFacts, GuestReport};
use super::status;
use crate::estate::{Estate, HostName, Realm, VirtualMachine, VmId};
use crate::guest::{Guest, Health, WriterState};
use crate::{Error, ErrorKind, Result};

/// More at once than fits any disk of a lab.
const WRITE_MAX_BYTES: u64 = 1 << 40;
/// Written while the estate is locked.
const STEP_BYTES: u64 = 8 << 20;

/// Guests that were seen.
#[derive(Default)]
pub(super) struct GuestBook {
    seen: BTreeMap<VmId, (String, GuestFacts)>,
}

impl GuestBook {
    pub(super) fn note(&mut self, estate: &Estate) {
        for vm in estate.systems().filter(|vm| vm.realm == Realm::Realized) {
            if let Some(guest) = vm.guest() {
                let facts = facts(vm, guest);
                self.seen.insert(vm.id, (vm.settings.name.clone(), facts));
            }
        }
    }

    fn find(&self, named: &str) -> Option<(&VmId, &(String, GuestFacts))> {
        let is_it = |id: &VmId, name: &str| {
            name.eq_ignore_ascii_case(named) || id.to_string().eq_ignore_ascii_case(named)
        };
        let mut found = self.seen.iter().filter(|(id, (name, _))| is_it(id, name));
        found.next().filter(|_| found.next().is_none())
    }
}

fn facts(vm: &VirtualMachine, guest: &Guest) -> GuestFacts {
    GuestFacts {
        os: guest.os(),
        writers: guest.writers(),
        committed: guest.committed(),
        unflushed: guest.unflushed(),
        frozen: guest.is_frozen(),
        broken: match guest.health() {
            Health::Working => None,
            Health::Broken(why) => Some(why.clone()),
        },
        tag: guest.tag(),
        layout: guest.layout().clone(),
        disks: vm.settings.hardware.own_disks().count(),
    }
}

fn report(vm: &VirtualMachine) -> GuestReport {
    GuestReport {
        vm: vm.settings.name.clone(),
        id: vm.id.to_string(),
        node: Some(vm.host.to_string()),
        state: Some(status::power(vm.power).to_owned()),
        guest: vm.guest().map(|guest| facts(vm, guest)),
    }
}

impl ControlDesk {
    pub(super) fn guest(&self, named: &str) -> Result<GuestReport> {
        let found = self
            .parts
            .estate
            .read(|estate| self.find(estate, named).map(report));
        match found {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
                let (id, (name, facts)) = book.find(named).ok_or(error)?;
                Ok(GuestReport {
                    vm: name.clone(),
                    id: id.to_string(),
                    node: None,
                    state: None,
                    guest: Some(facts.clone()),
                })
            }
            // Made anew from its disks alone: the guest of the one that had its name wrote them.
            Ok(mut report) if report.guest.is_none() => {
                let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
                let known = book.find(&report.id).or_else(|| book.find(&report.vm));
                report.guest = known.map(|(_, (_, facts))| facts.clone());
                Ok(report)
            }
            found => found,
        }
    }

    /// Where a VM is now, which has a guest that writes.
    pub(super) fn place(&self, named: &str) -> Result<(HostName, VmId)> {
        self.parts.estate.read(|estate| {
            let vm = self.find(estate, named)?;
            Ok((vm.host.clone(), vm.id))
        })
    }

    pub(super) fn guest_writes(&self, named: &str, bytes: u64) -> Result<GuestReport> {
        if bytes == 0 || bytes > WRITE_MAX_BYTES {
            return Err(Error::invalid(format!("{bytes} bytes to write")));
        }
        let mut left = bytes;
        while left > 0 {
            // It may move meanwhile.
            let (host, id) = self.place(named)?;
            let step = left.min(STEP_BYTES);
            self.parts
                .estate
                .write(|estate| estate.guest_writes(&host, id, step))?;
            left = left.saturating_sub(step);
        }
        self.guest(named)
    }

    pub(super) fn guest_writers(&self, named: &str, state: WriterState) -> Result<GuestReport> {
        let (host, id) = self.place(named)?;
        self.parts
            .estate
            .write(|estate| estate.set_writers(&host, id, state))?;
        self.guest(named)
    }
}
