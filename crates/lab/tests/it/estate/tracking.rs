//! Resilient change tracking: never less than the truth while it is honest, and lost when it should be.

use block::ByteRange;
use lab::estate::{
    Answer, CheckpointId, CheckpointRequest, ConsistencyLevel, EstateOptions, Fault, FaultKind,
    RctId, ReferencePointId, ReferencePointKind, Started, Switch, WindowsPath,
};
use lab::guest::GuestOs;
use lab::{Error, ReturnCode};

use super::rig::{MIB, Rig, code, spec, vhd_spec};

const SIZE: u64 = 32 * MIB;

impl Rig {
    fn limits(&self, point: ReferencePointId) -> Vec<RctId> {
        let vm = self.estate.vm(&self.host, self.vm).unwrap();
        let point = &vm.reference_points[&point];
        point.disks.iter().map(|(_, id)| id.clone()).collect()
    }

    fn changes(&mut self, file: &WindowsPath, limit: &RctId) -> Result<Vec<ByteRange>, Error> {
        let host = self.host.clone();
        let mut ranges = Vec::new();
        let mut offset = 0;
        while offset < SIZE {
            let length = (SIZE - offset).min(8 * MIB);
            let part = self
                .estate
                .disk_changes(&host, file, limit, offset, length)?;
            assert!(part.processed_bytes > 0 && part.processed_bytes <= length);
            for range in &part.ranges {
                assert!(range.offset >= offset && range.end() <= offset + part.processed_bytes);
            }
            ranges.extend(part.ranges);
            offset += part.processed_bytes;
        }
        Ok(ranges)
    }

    /// A backup as a product does it: checkpoint, changes since the last, bytes, conversion.
    fn backup(&mut self, last: Option<ReferencePointId>, level: ConsistencyLevel) -> Backup {
        let id = self.recovery(level).unwrap();
        let files = self.frozen_files(id);
        let bytes = self.bytes(&files);
        let changes = last.map(|last| {
            let limits = self.limits(last);
            let pairs = files.iter().zip(&limits);
            pairs
                .map(|(file, limit)| self.changes(file, limit).unwrap())
                .collect()
        });
        let point = self.convert(id).unwrap();
        self.settle();
        Backup {
            bytes,
            changes,
            point,
        }
    }
}

struct Backup {
    bytes: Vec<Vec<u8>>,
    changes: Option<Vec<Vec<ByteRange>>>,
    point: ReferencePointId,
}

/// Whether every byte that differs lies in a range; how many bytes the ranges hold.
fn uncovered(old: &[u8], new: &[u8], ranges: &[ByteRange]) -> usize {
    let mut patched = old.to_vec();
    for range in ranges {
        let at = usize::try_from(range.offset).unwrap()..usize::try_from(range.end()).unwrap();
        patched[at.clone()].copy_from_slice(&new[at]);
    }
    patched
        .iter()
        .zip(new)
        .filter(|(left, right)| left != right)
        .count()
}

#[test]
fn an_incremental_backup_is_the_disk_whatever_the_consistency() {
    let mut rig = Rig::new();
    rig.start();
    rig.pass(20);
    let mut last = rig.backup(None, ConsistencyLevel::Application);
    for round in 0..5 {
        rig.pass(15);
        let level = match round % 2 {
            0 => ConsistencyLevel::Crash,
            _ => ConsistencyLevel::Application,
        };
        let next = rig.backup(Some(last.point), level);
        for (disk, ranges) in next.changes.as_ref().unwrap().iter().enumerate() {
            let missed = uncovered(&last.bytes[disk], &next.bytes[disk], ranges);
            assert_eq!(missed, 0, "round {round}, disk {disk}");
            let told: u64 = ranges.iter().map(|it| it.length_bytes).sum();
            assert!(told < 2 * MIB, "{told}");
        }
        let (host, vm) = (rig.host.clone(), rig.vm);
        let started = rig
            .estate
            .destroy_reference_point(&host, vm, last.point)
            .unwrap();
        rig.wait(&started).unwrap();
        last = next;
    }
}

#[test]
fn a_tracker_that_lies_leaves_changes_out() {
    let mut rig = Rig::new();
    rig.start();
    rig.pass(20);
    let last = rig.backup(None, ConsistencyLevel::Crash);
    rig.pass(30);
    rig.inject(Fault::next(FaultKind::TrackingLies));
    let next = rig.backup(Some(last.point), ConsistencyLevel::Crash);
    let missed: usize = (0..2)
        .map(|disk| {
            uncovered(
                &last.bytes[disk],
                &next.bytes[disk],
                &next.changes.as_ref().unwrap()[disk],
            )
        })
        .sum();
    assert!(missed > 0);
}

#[test]
fn a_name_is_known_until_its_reference_point_goes() {
    let mut rig = Rig::new();
    rig.start();
    let last = rig.backup(None, ConsistencyLevel::Crash);
    let limits = rig.limits(last.point);
    let live = rig.live_files();
    rig.changes(&live[0], &limits[0]).unwrap();
    let error = rig.changes(&live[0], &limits[1]).unwrap_err();
    assert_eq!(
        code(&error),
        ReturnCode::InvalidParameter,
        "the other disk's"
    );
    let error = rig
        .changes(&live[0], &RctId::from_text("rctX:none"))
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidParameter);
    let (host, vm) = (rig.host.clone(), rig.vm);
    let started = rig
        .estate
        .destroy_reference_point(&host, vm, last.point)
        .unwrap();
    rig.wait(&started).unwrap();
    let error = rig.changes(&live[0], &limits[0]).unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidParameter);
}

#[test]
fn the_whole_disk_at_once_is_a_switch() {
    let mut rig = Rig::new();
    rig.start();
    let last = rig.backup(None, ConsistencyLevel::Crash);
    let limit = rig.limits(last.point)[0].clone();
    let (host, file) = (rig.host.clone(), rig.live_files()[0].clone());
    let ask = |rig: &mut Rig, offset, length| {
        rig.estate
            .disk_changes(&host, &file, &limit, offset, length)
            .map_err(|error| code(&error))
    };
    assert_eq!(ask(&mut rig, 0, SIZE), Err(ReturnCode::InvalidParameter));
    ask(&mut rig, 0, SIZE - 512).unwrap();
    for (offset, length) in [(0, 0), (1, SIZE), (SIZE, 1), (u64::MAX, 2)] {
        assert_eq!(
            ask(&mut rig, offset, length),
            Err(ReturnCode::InvalidParameter)
        );
    }
    rig.estate
        .set_switch(Switch::FullByteLength, Answer::Optimistic);
    assert_eq!(ask(&mut rig, 0, SIZE).unwrap().processed_bytes, SIZE);
}

#[test]
fn tracking_is_lost_with_its_files_and_with_the_disk() {
    for how in ["rct", "mrt", "disk"] {
        let mut rig = Rig::new();
        rig.start();
        rig.pass(3);
        let last = rig.backup(None, ConsistencyLevel::Crash);
        rig.request(3);
        let (host, file) = (rig.host.clone(), rig.live_files()[0].clone());
        let backing = rig.estate.backing(&host, &file).unwrap();
        match how {
            "disk" => {
                // Somebody restored another disk over it.
                let other = rig.estate.backing(&host, &rig.live_files()[1]).unwrap();
                std::fs::copy(other, &backing).unwrap();
            }
            _ => {
                let mut name = backing.into_os_string();
                name.push(format!(".{how}"));
                std::fs::remove_file(name).unwrap();
            }
        }
        let limit = rig.limits(last.point)[0].clone();
        let error = rig.changes(&file, &limit).unwrap_err();
        assert_eq!(code(&error), ReturnCode::InvalidParameter, "{how}");
    }
}

#[test]
fn a_checkpoint_of_a_user_in_the_chain_is_a_switch_and_going_back_to_one_ends_tracking() {
    let mut rig = Rig::new();
    rig.start();
    let last = rig.backup(None, ConsistencyLevel::Crash);
    let limit = rig.limits(last.point)[0].clone();
    let user = rig.checkpoint(CheckpointRequest::user()).unwrap();
    let live = rig.live_files()[0].clone();
    assert_eq!(
        code(&rig.changes(&live, &limit).unwrap_err()),
        ReturnCode::InvalidParameter
    );
    rig.estate
        .set_switch(Switch::LimitIdAcrossUserCheckpoints, Answer::Optimistic);
    rig.changes(&live, &limit).unwrap();
    rig.request(3);
    let host = rig.host.clone();
    let started = rig.estate.apply_checkpoint(&host, user).unwrap();
    rig.wait(&started).unwrap();
    rig.settle();
    let live = rig.live_files()[0].clone();
    assert_eq!(
        code(&rig.changes(&live, &limit).unwrap_err()),
        ReturnCode::InvalidParameter
    );
}

#[test]
fn a_vhd_is_in_no_reference_point() {
    let mut rig = Rig::with(EstateOptions::seeded(1), vhd_spec("old", GuestOs::Windows));
    rig.start();
    let last = rig.backup(None, ConsistencyLevel::Crash);
    assert_eq!(rig.limits(last.point), []);
}

#[test]
fn a_reference_point_without_a_checkpoint_names_the_moment() {
    let mut rig = Rig::with(EstateOptions::seeded(5), spec("a", GuestOs::Linux));
    rig.start();
    rig.pass(5);
    let (host, vm) = (rig.host.clone(), rig.vm);
    let make = |rig: &mut Rig, kind| {
        rig.estate
            .create_reference_point(&host, vm, kind, ConsistencyLevel::Application)
    };
    let error = make(&mut rig, ReferencePointKind::Log).unwrap_err();
    assert_eq!(code(&error), ReturnCode::NotSupported);
    let started: Started = make(&mut rig, ReferencePointKind::Rct).unwrap();
    rig.wait(&started).unwrap();
    let point = *rig
        .estate
        .vm(&host, vm)
        .unwrap()
        .reference_points
        .keys()
        .next()
        .unwrap();
    let limit = rig.limits(point)[0].clone();
    rig.pass(5);
    let id: CheckpointId = rig.recovery(ConsistencyLevel::Crash).unwrap();
    let file = rig.frozen_files(id)[0].clone();
    assert!(!rig.changes(&file, &limit).unwrap().is_empty());
}
