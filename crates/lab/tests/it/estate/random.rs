//! Random sequences of what an estate can be asked, against what must always hold.

use std::collections::BTreeMap;

use lab::estate::{
    Answer, CheckpointId, CheckpointKind, CheckpointRequest, ConsistencyLevel, EstateOptions,
    Fault, FaultKind, MigrationKind, MigrationRequest, PowerState, RctId, Switch, VmGeneration,
};
use lab::guest::{Consistency, GuestOs, Health};
use proptest::prelude::*;

use super::rig::{Rig, path, spec, vhd_spec};

#[derive(Debug, Clone, Copy)]
enum Act {
    Pass(u8),
    Power(u16),
    Recovery(bool),
    User,
    Remove(u8),
    Convert(u8),
    GoBack(u8),
    Move(u8),
    Crash,
    Trouble(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1_u8..20).prop_map(Act::Pass),
        3 => prop_oneof![Just(2_u16), Just(3), Just(6), Just(9), Just(11)].prop_map(Act::Power),
        4 => any::<bool>().prop_map(Act::Recovery),
        2 => Just(Act::User),
        3 => any::<u8>().prop_map(Act::Remove),
        3 => any::<u8>().prop_map(Act::Convert),
        1 => any::<u8>().prop_map(Act::GoBack),
        1 => any::<u8>().prop_map(Act::Move),
        1 => Just(Act::Crash),
        2 => any::<u8>().prop_map(Act::Trouble),
    ]
}

/// What was seen of a moment: bytes of each disk, and the names of its states.
struct Seen {
    bytes: Vec<Vec<u8>>,
    names: Vec<RctId>,
}

struct Run {
    rig: Rig,
    frozen: BTreeMap<CheckpointId, Seen>,
    named: Vec<Seen>,
}

impl Run {
    fn act(&mut self, act: Act) {
        let (host, vm) = (self.rig.host.clone(), self.rig.vm);
        let started = match act {
            Act::Pass(seconds) => {
                self.rig.pass(u64::from(seconds));
                return;
            }
            Act::Crash => {
                self.rig.estate.crash_host(&host).unwrap();
                self.rig.estate.start_host(&host).unwrap();
                self.rig.pass(130);
                while self.is_busy() {
                    self.rig.pass(1);
                }
                self.named.clear();
                return;
            }
            Act::Trouble(which) => {
                let kinds = [
                    FaultKind::WriterFails,
                    FaultKind::MergeFails,
                    FaultKind::DiskFull,
                    FaultKind::ConversionFails,
                    FaultKind::JobIsSlow,
                    FaultKind::StateChangeFails,
                    FaultKind::MigrationFails,
                ];
                let kind = kinds[usize::from(which) % kinds.len()];
                self.rig.inject(Fault::next(kind));
                return;
            }
            Act::Power(state) => self.rig.estate.request_state_change(&host, vm, state),
            Act::Recovery(application) => {
                let level = match application {
                    true => ConsistencyLevel::Application,
                    false => ConsistencyLevel::Crash,
                };
                let request = CheckpointRequest::recovery(level);
                self.rig.estate.create_checkpoint(&host, vm, request)
            }
            Act::User => self
                .rig
                .estate
                .create_checkpoint(&host, vm, CheckpointRequest::user()),
            Act::Remove(which) => match self.pick(which) {
                Some(id) => self.rig.estate.destroy_checkpoint(&host, id),
                None => return,
            },
            Act::Convert(which) => match self.pick(which) {
                Some(id) => self.rig.estate.convert_to_reference_point(&host, id),
                None => return,
            },
            Act::GoBack(which) => match self.pick(which) {
                Some(id) => self.rig.estate.apply_checkpoint(&host, id),
                None => return,
            },
            Act::Move(which) => {
                let request = MigrationRequest {
                    destination: None,
                    kind: MigrationKind::Storage,
                    folder: Some(path(&format!(r"C:\moved{which}"))),
                };
                self.rig.estate.migrate(&host, vm, request)
            }
        };
        // A refusal is an answer; what must hold is checked whatever happened.
        if let Ok(started) = started {
            let done = self.rig.wait(&started);
            if done.is_ok() && matches!(act, Act::GoBack(_) | Act::Move(_)) {
                self.named.clear();
            }
        }
    }

    fn is_busy(&self) -> bool {
        let vm = self.rig.estate.vm(&self.rig.host, self.rig.vm).unwrap();
        vm.activity.is_some()
    }

    fn pick(&self, which: u8) -> Option<CheckpointId> {
        let vm = self.rig.estate.vm(&self.rig.host, self.rig.vm).unwrap();
        let count = vm.checkpoints.len().max(1);
        vm.checkpoints
            .keys()
            .nth(usize::from(which) % count)
            .copied()
    }

    fn check(&mut self) {
        let vm = self.rig.estate.vm(&self.rig.host, self.rig.vm).unwrap();
        assert!(vm.activity.is_none());
        let now: Vec<(CheckpointId, CheckpointKind, ConsistencyLevel, Vec<RctId>)> = vm
            .checkpoints
            .values()
            .map(|it| {
                let names = it.tracked.values().map(|it| it.id.clone()).collect();
                (it.id, it.kind, it.consistency, names)
            })
            .collect();
        if let Some(guest) = vm.guest() {
            assert_eq!(guest.health(), &Health::Working);
        }
        self.frozen
            .retain(|id, _| now.iter().any(|(known, ..)| known == id));
        for (id, kind, level, names) in now {
            let files = self.rig.frozen_files(id);
            let bytes = self.rig.bytes(&files);
            match self.frozen.get(&id) {
                Some(seen) => assert!(seen.bytes == bytes, "frozen bytes of {id} changed"),
                None => {
                    self.check_new(kind, level, &bytes);
                    self.check_changes(&files, &bytes);
                    self.named.push(Seen {
                        bytes: bytes.clone(),
                        names: names.clone(),
                    });
                    self.frozen.insert(id, Seen { bytes, names });
                }
            }
        }
        let vm = self.rig.estate.vm(&self.rig.host, self.rig.vm).unwrap();
        if !vm.power.holds_disks() {
            let live = self.rig.live_files();
            let found = self.rig.consistency(&live);
            assert!(!matches!(found, Consistency::Inconsistent(_)), "{found:?}");
        }
    }

    fn check_new(&self, kind: CheckpointKind, level: ConsistencyLevel, bytes: &[Vec<u8>]) {
        let vm = self.rig.estate.vm(&self.rig.host, self.rig.vm).unwrap();
        let found = self.rig.examine_bytes(bytes).consistency;
        assert!(!matches!(found, Consistency::Inconsistent(_)), "{found:?}");
        let promises = kind != CheckpointKind::Standard
            && level == ConsistencyLevel::Application
            && vm.power == PowerState::Running;
        if promises {
            assert!(
                matches!(found, Consistency::Application | Consistency::FileSystem),
                "{kind:?} {level:?}: {found:?}"
            );
        }
    }

    /// Whatever changed since any moment that is still known is in the answer.
    fn check_changes(&mut self, files: &[lab::estate::WindowsPath], bytes: &[Vec<u8>]) {
        let host = self.rig.host.clone();
        for seen in &self.named {
            for (disk, name) in seen.names.iter().enumerate() {
                let size = bytes[disk].len() as u64;
                let answer = self
                    .rig
                    .estate
                    .disk_changes(&host, &files[disk], name, 0, size);
                let Ok(answer) = answer else {
                    continue;
                };
                let mut patched = seen.bytes[disk].clone();
                for range in &answer.ranges {
                    let at = usize::try_from(range.offset).unwrap()
                        ..usize::try_from(range.end()).unwrap();
                    patched[at.clone()].copy_from_slice(&bytes[disk][at]);
                }
                let done = usize::try_from(answer.processed_bytes).unwrap();
                assert!(
                    patched[..done] == bytes[disk][..done],
                    "changes since {name} are missing"
                );
            }
        }
    }
}

fn run(seed: u64, generation: VmGeneration, os: GuestOs, acts: &[Act]) {
    let mut options = EstateOptions::seeded(seed);
    for switch in [
        Switch::DestroyRecoveryCheckpoint,
        Switch::FullByteLength,
        Switch::LimitIdAcrossUserCheckpoints,
    ] {
        options.switches.set(switch, Answer::Optimistic);
    }
    let spec = match generation {
        VmGeneration::One => vhd_spec("vm", os),
        VmGeneration::Two => spec("vm", os),
    };
    let mut small = spec;
    for disk in &mut small.disks {
        if let lab::estate::DiskSource::New { size_bytes, .. } = &mut disk.source {
            *size_bytes = 4 << 20;
        }
    }
    if let Some(guest) = &mut small.guest {
        guest.ballast_records = 128;
    }
    let mut run = Run {
        rig: Rig::with(options, small),
        frozen: BTreeMap::new(),
        named: Vec::new(),
    };
    run.rig.start();
    for act in acts {
        run.act(*act);
        run.check();
    }
    run.rig.estate.clear_faults();
    run.rig.settle();
    run.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_frozen_bytes_stay_chains_hold_and_tracking_tells_enough(
        seed in any::<u64>(),
        is_two in any::<bool>(),
        is_windows in any::<bool>(),
        acts in proptest::collection::vec(act(), 1..40),
    ) {
        let generation = if is_two { VmGeneration::Two } else { VmGeneration::One };
        let os = if is_windows { GuestOs::Windows } else { GuestOs::Linux };
        run(seed, generation, os, &acts);
    }
}
