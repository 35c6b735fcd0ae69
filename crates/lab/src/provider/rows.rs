//! Instances as the wire shows them, one module per kind of object.
//!
//! ```text
//!   Scene (estate, host, language, now) ──► rows::systems, settings, parts, devices, points, jobs, cluster, machine
//! ```
//!
//! **Invariants.** A row names only properties of its class's table; what it leaves out is null. Nothing here decides who may
//! see a row, and nothing changes the estate.

pub(super) mod cluster;
pub(super) mod devices;
pub(super) mod jobs;
pub(super) mod machine;
pub(super) mod part_rows;
pub(super) mod parts;
pub(super) mod points;
pub(super) mod settings;
pub(super) mod systems;

use std::time::Duration;

use wsman::cim::{CimDatetime, CimInstance, CimInterval, CimValue, Namespace};

use super::identity;
use super::texts::{Language, Phrase};
use crate::estate::{Checkpoint, Estate, Host, Realm, VirtualMachine, VirtualTime, VmSettings};

/// What rows are made from.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub estate: &'a Estate,
    pub host: &'a Host,
    pub language: Language,
}

impl<'a> Scene<'a> {
    pub(super) fn say(&self, phrase: Phrase) -> &'static str {
        self.language.say(phrase)
    }

    pub(super) fn now(&self) -> VirtualTime {
        self.estate.now()
    }

    /// Every VM and planned system of the host.
    pub(super) fn systems(&self) -> impl Iterator<Item = &'a VirtualMachine> + use<'a> {
        let estate = self.estate;
        let name = &self.host.name;
        estate.vms_on(name).chain(estate.planned_on(name))
    }
}

/// A point in time on the wire.
pub(super) fn datetime(time: VirtualTime) -> CimValue {
    let micros = i64::try_from(time.0)
        .ok()
        .and_then(|millis| millis.checked_mul(1000))
        .and_then(CimDatetime::from_unix_micros);
    CimValue::Datetime(micros.unwrap_or(CimDatetime::NONE))
}

/// The wire's "no such moment".
pub(super) fn never() -> CimValue {
    CimValue::Datetime(CimDatetime::NONE)
}

/// A span of time on the wire.
pub(super) fn interval(duration: Duration) -> CimValue {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    CimInterval::from_micros(micros).map_or(CimValue::Null, CimValue::Interval)
}

/// An instance to be filled.
pub(super) fn row(namespace: &Namespace, class: &str) -> CimInstance {
    CimInstance::new(class).in_namespace(namespace)
}

/// Whose settings: those of a system now, or of one of its checkpoints.
#[derive(Clone, Copy)]
pub(super) struct Holder<'a> {
    pub vm: &'a VirtualMachine,
    pub checkpoint: Option<&'a Checkpoint>,
}

impl<'a> Holder<'a> {
    /// The settings of a system now.
    pub(super) fn current(vm: &'a VirtualMachine) -> Self {
        Self {
            vm,
            checkpoint: None,
        }
    }

    /// Every holder of a system: itself, then its checkpoints.
    pub(super) fn all_of(vm: &'a VirtualMachine) -> impl Iterator<Item = Self> {
        let checkpoints = vm.checkpoints.values().map(move |checkpoint| Self {
            vm,
            checkpoint: Some(checkpoint),
        });
        std::iter::once(Self::current(vm)).chain(checkpoints)
    }

    /// The GUID as it is written.
    pub(super) fn guid_text(&self) -> String {
        self.checkpoint
            .map_or_else(|| self.vm.id.to_string(), |it| it.id.to_string())
    }

    pub(super) fn settings(&self) -> &'a VmSettings {
        self.checkpoint.map_or(&self.vm.settings, |it| &it.settings)
    }

    /// `VirtualSystemType`.
    pub(super) fn system_type(&self) -> &'static str {
        match (self.checkpoint, self.vm.realm) {
            (None, Realm::Realized) => "Microsoft:Hyper-V:System:Realized",
            (None, Realm::Planned) => "Microsoft:Hyper-V:System:Planned",
            (Some(it), _) if it.is_missing => "Microsoft:Hyper-V:Snapshot:Missing",
            (Some(it), Realm::Realized) => it.kind.system_type(),
            (Some(_), Realm::Planned) => "Microsoft:Hyper-V:Snapshot:Planned",
        }
    }

    /// Path of its settings.
    pub(super) fn path(&self) -> wsman::cim::CimPath {
        identity::settings(self.guid_text())
    }
}
