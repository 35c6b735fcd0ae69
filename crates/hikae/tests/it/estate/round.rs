//! Rounds of a backup, as a job runs them: checkpoint, changes, bytes, tracking. What a round brings is held against the lab's own
//! reading of the same files, and against what the guest's bytes tell of themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::ReadAt;
use host::boundary::{Checkpoints, DiskReads, Inventory};
use host::checkpoint::{Changes, Checkpoint, CheckpointRequest, MergeState};
use host::consistency::{Consistency, ConsistencyPolicy};
use host::custody::{Custodian, CustodianOptions, Custody, CustodyLog, MemoryLog, SweepReport};
use host::facts::{PowerState, VmFacts};
use host::hyperv::HyperV;
use host::ids::{DeviceId, JobId, OwnerId, TrackingPointRef, TrackingToken};
use host::{CancelToken, Clock, Timestamp};
use lab::estate::WindowsPath;
use lab::guest::{Consistency as Seen, examine};

use super::place::{LabClock, Place, Tree, calm, host_name};

/// What is kept of a version.
struct Version {
    disks: BTreeMap<DeviceId, Vec<u8>>,
    tokens: Vec<(DeviceId, TrackingToken)>,
    point: Option<TrackingPointRef>,
}

/// What tracking said of the disks of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracked {
    /// There was no version before.
    First,
    /// Of every disk.
    Known,
    /// Not of every disk, and why.
    Lost(String),
}

/// What a round brought.
#[derive(Debug)]
pub struct Round {
    pub made: Checkpoint,
    pub tracked: Tracked,
    /// Whether there is a point to track from.
    pub has_point: bool,
}

/// A job that backs a machine up again and again.
pub struct Backup<'p> {
    place: &'p Place,
    driver: &'p HyperV,
    pub log: Arc<MemoryLog>,
    last: Option<Version>,
    jobs: u8,
}

impl<'p> Backup<'p> {
    pub fn new(place: &'p Place, driver: &'p HyperV) -> Self {
        Self {
            place,
            driver,
            log: Arc::new(MemoryLog::default()),
            last: None,
            jobs: 0,
        }
    }

    pub fn custody(&mut self) -> Custody {
        self.jobs += 1;
        let log: Arc<dyn CustodyLog> = self.log.clone();
        Custody::new(log, owner(), JobId::from_bytes([self.jobs; 16]))
    }

    /// One round. The version before is forgotten only when this one is there.
    pub fn run(&mut self, policy: ConsistencyPolicy) -> host::Result<Round> {
        let custody = self.custody();
        let mut request = CheckpointRequest::new(self.place.id());
        request.policy = policy;
        let made = self.driver.create(&request, &custody, &calm())?;
        let read = self.read(&made);
        let (disks, tracked) = match read {
            Ok(read) => read,
            Err(error) => {
                self.driver.release(&made.reference, &custody, &calm())?;
                return Err(error);
            }
        };
        self.examine(&made, &disks);
        let settled = self.driver.settle(&made, &custody, &calm())?;
        if let Some(point) = &settled.point {
            self.driver.keep_tracking(point, &custody)?;
        }
        let has_point = settled.point.is_some();
        let before = self.last.replace(Version {
            disks,
            tokens: settled.tokens,
            point: settled.point,
        });
        if let Some(point) = before.and_then(|it| it.point) {
            self.driver.drop_tracking(&point, &custody, &calm())?;
        }
        Ok(Round {
            made,
            tracked,
            has_point,
        })
    }

    /// Whole disks by the driver, which must be those that the lab reads, and those of the last version with the changes.
    fn read(&self, made: &Checkpoint) -> host::Result<(BTreeMap<DeviceId, Vec<u8>>, Tracked)> {
        let mut disks = BTreeMap::new();
        let mut tracked = match self.last {
            Some(_) => Tracked::Known,
            None => Tracked::First,
        };
        for disk in &made.disks {
            let opened = self.driver.open_disk(&made.reference, disk, &calm())?;
            let bytes = whole(opened.as_ref());
            assert_eq!(disk.size_bytes, Some(opened.size_bytes()), "{}", disk.path);
            let truth = self.place.estate.write(|it| {
                let host = host_name(made.node.as_str());
                let path = WindowsPath::parse(disk.path.as_str()).expect("a path");
                let image = it.read_disk(&host, &path).expect("a disk");
                whole(&image)
            });
            assert!(bytes == truth, "{} is read otherwise by the lab", disk.path);
            if let Some(last) = &self.last {
                let token = last.tokens.iter().find(|it| it.0 == disk.device);
                let known = match token {
                    None => Err("there is no token".to_owned()),
                    Some((_, token)) => {
                        let changes =
                            self.driver
                                .changed_ranges(&made.reference, disk, token, &calm())?;
                        match changes {
                            Changes::Known(ranges) => Ok(ranges),
                            Changes::Lost { reason } => Err(reason),
                        }
                    }
                };
                match known {
                    Ok(ranges) => {
                        let mut patched = last.disks[&disk.device].clone();
                        for range in ranges.iter() {
                            let from = usize::try_from(range.offset).expect("a small disk");
                            let to = from + usize::try_from(range.length_bytes).expect("small");
                            patched[from..to].copy_from_slice(&bytes[from..to]);
                        }
                        assert!(patched == bytes, "{}: changes are left out", disk.path);
                    }
                    Err(reason) => tracked = Tracked::Lost(reason),
                }
            }
            disks.insert(disk.device.clone(), bytes);
        }
        Ok((disks, tracked))
    }

    /// Holds the level that the driver says to what the bytes say.
    fn examine(&self, made: &Checkpoint, disks: &BTreeMap<DeviceId, Vec<u8>>) {
        let (layout, tag) = self.place.estate.read(|it| {
            let vm = it.vms_named("app01").next().expect("it is there");
            let guest = vm.guest().expect("it has a guest");
            (guest.layout().clone(), guest.tag())
        });
        let ordered: Vec<Bytes<'_>> = made
            .disks
            .iter()
            .map(|it| Bytes(&disks[&it.device]))
            .collect();
        let read: Vec<&dyn ReadAt> = ordered.iter().map(|it| -> &dyn ReadAt { it }).collect();
        let seen = examine(&read, &layout, tag).expect("examined").consistency;
        let is_kept = match made.reached {
            Consistency::Application => seen == Seen::Application,
            Consistency::FileSystem => matches!(seen, Seen::Application | Seen::FileSystem),
            // Memory is in the saved state: what the disks hold is what was written.
            Consistency::Crash | Consistency::SavedState => {
                matches!(seen, Seen::Application | Seen::FileSystem | Seen::Crash)
            }
        };
        assert!(is_kept, "{} was told, the bytes are {seen:?}", made.reached);
    }

    /// Whether there is a version.
    pub fn has_version(&self) -> bool {
        self.last.is_some()
    }

    /// Gives tracking up; nothing of ours may be on the machine afterwards.
    pub fn finish(mut self) {
        let custody = self.custody();
        if let Some(point) = self.last.take().and_then(|it| it.point) {
            self.driver
                .drop_tracking(&point, &custody, &calm())
                .expect("the point goes");
        }
        nothing_is_left(self.place, self.driver, &self.log);
    }
}

/// Bytes as a disk.
struct Bytes<'b>(&'b [u8]);

impl ReadAt for Bytes<'_> {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let from = usize::try_from(offset).expect("a small disk");
        buffer.copy_from_slice(&self.0[from..from + buffer.len()]);
        Ok(())
    }
}

fn whole(disk: &(impl ReadAt + ?Sized)) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.size_bytes()).expect("a small disk")];
    disk.read_at(0, &mut bytes).expect("its bytes");
    bytes
}

pub fn owner() -> OwnerId {
    OwnerId::new("estate").expect("a name")
}

/// What a custodian does when every job is dead, some minutes later.
pub fn sweep(place: &Place, driver: &HyperV, log: &Arc<MemoryLog>) -> SweepReport {
    place.pass(300);
    let log: Arc<dyn CustodyLog> = log.clone();
    let now: Timestamp = LabClock(place.estate.clone()).now();
    let options = CustodianOptions {
        owner: owner(),
        now,
        is_alive: &|_| false,
        is_committed: &|_| false,
        settling: std::time::Duration::from_secs(60),
        window: std::time::Duration::from_secs(1800),
    };
    let swept = Custodian::new(driver, log, options).sweep(&CancelToken::new());
    swept.expect("the custodian goes round")
}

/// The machine runs as it did, and nothing tells that somebody backed it up.
pub fn nothing_is_left(place: &Place, driver: &HyperV, log: &Arc<MemoryLog>) {
    let machine = driver.machine(place.id(), &calm()).expect("the machine");
    nothing_is_on(place, &machine);
    let merge = driver.watch_merge(place.id(), &calm());
    assert_eq!(merge.expect("merged"), MergeState::Done);
    assert_eq!(log.open_entries().expect("the journal"), []);
    place.estate.read(|it| {
        for host in it.hosts() {
            let planned = it.planned_on(&host.name).count();
            assert_eq!(planned, 0, "half a machine is on {}", host.name);
        }
        let vm = it.vms_named("app01").next().expect("it is there");
        assert!(vm.host_items.is_empty(), "marks: {:?}", vm.host_items);
        if place.plan.tree == Tree::Bare {
            for (_, medium) in vm.settings.hardware.own_disks() {
                let ending = medium.path.extension();
                assert!(!ending.starts_with('a'), "{} is not merged", medium.path);
            }
        }
    });
}

fn nothing_is_on(place: &Place, machine: &VmFacts) {
    let recovery: Vec<_> = machine.recovery_checkpoints().collect();
    assert!(recovery.is_empty(), "left: {recovery:?}");
    let of_operators = match place.plan.tree {
        Tree::Bare => 0,
        Tree::Branch => 2,
    };
    assert_eq!(machine.user_checkpoints().count(), of_operators);
    assert_eq!(machine.tracking_points, [], "points are left");
    assert_eq!(machine.marks, []);
    assert_eq!(machine.power, PowerState::Running);
}
