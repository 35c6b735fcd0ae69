//! What has arrived so far of a machine: the draft of its point, the record of its machine and the report, kept together.

use host::checkpoint::{Checkpoint, ConfigurationFile, FrozenDisk, Settled, Warning, WarningCode};
use host::facts::VmFacts;
use repo::{Consistency, DiskVersion, PointDraft};
use serde::Serialize;

use super::configuration::MovedFile;
use super::record::{ConfigurationRecord, DiskRecord, MachineRecord, live_image};
use super::{Gathered, VmBackupPlan, VmBackupReport, disk_label, source_facts};
use crate::job::backup_disk::{BackupScope, Moved, counters, pairs};
use crate::{Error, ErrorKind, Result};

/// What was read and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct SourceRead {
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Bytes hashed.
    pub hashed_bytes: u64,
    /// Bytes known to be zero without reading.
    pub known_zero_bytes: u64,
    /// What travelled from source to repository.
    pub sent_bytes: u64,
    /// Blocks that the version before does not have at their place.
    pub changed_blocks: u64,
    /// Unchanged blocks read to audit change tracking.
    pub audited_blocks: u64,
}

impl SourceRead {
    fn of(stats: &block::sync::SyncStats) -> Self {
        Self {
            read_bytes: stats.read_bytes,
            hashed_bytes: stats.hashed_bytes,
            known_zero_bytes: stats.known_zero_bytes,
            sent_bytes: stats.sent_bytes(),
            changed_blocks: stats.sent_blocks,
            audited_blocks: stats.audited_blocks,
        }
    }
}

/// One disk of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskReport {
    /// What it is called in the repository.
    pub label: String,
    /// Its live image.
    pub path: String,
    /// Its root.
    pub root: String,
    /// Its length.
    pub length_bytes: u64,
    /// How it was looked at.
    pub scope: BackupScope,
    /// Why change tracking was not used; `None` where it was, or where there was nothing to track from.
    pub untracked_because: Option<String>,
    /// Whether it went on where an interrupted run had stopped.
    pub is_resumed: bool,
    /// How often it was opened again elsewhere, because its machine or its storage moved.
    pub reopened: u64,
    /// What it cost.
    #[serde(flatten)]
    pub read: SourceRead,
    /// Ranges that tracking called unchanged and that had changed.
    pub lies: Vec<(u64, u64)>,
    /// Ranges that could not be read and were taken for zeros.
    pub unreadable: Vec<(u64, u64)>,
}

/// One disk that arrived.
pub(super) struct MovedDisk {
    pub reopened: u64,
    /// Where the disk's own image lies.
    pub home: Option<host::path::HostPath>,
    pub untracked_because: Option<String>,
    pub disk: Moved,
}

/// What has arrived so far.
pub(super) struct Gathering<'m> {
    machine: &'m VmFacts,
    record: MachineRecord,
    disks: Vec<DiskVersion>,
    devices: Vec<host::ids::DeviceId>,
    files: Vec<repo::ConfigurationFile>,
    reports: Vec<DiskReport>,
    stats: block::sync::SyncStats,
    warnings: Vec<Warning>,
    parent: Option<u64>,
}

impl<'m> Gathering<'m> {
    pub(super) fn new(plan: &VmBackupPlan, machine: &'m VmFacts, checkpoint: &Checkpoint) -> Self {
        Self {
            record: MachineRecord::begun(machine, checkpoint, &plan.not_protected),
            machine,
            disks: Vec::new(),
            devices: Vec::new(),
            files: Vec::new(),
            reports: Vec::new(),
            stats: block::sync::SyncStats::default(),
            warnings: checkpoint.warnings.clone(),
            parent: plan.parent,
        }
    }

    pub(super) fn add_disk(&mut self, frozen: &FrozenDisk, moved: MovedDisk) {
        let label = disk_label(frozen.slot);
        let live = live_image(self.machine, frozen.slot).unwrap_or(&frozen.path);
        let disk = moved.disk;
        self.stats.add(&disk.transferred.stats);
        self.record.disks.push(DiskRecord {
            label: label.clone(),
            slot: frozen.slot,
            device: frozen.device.clone(),
            path: live.clone(),
            home: moved.home.unwrap_or_else(|| live.clone()),
            image: frozen.image,
        });
        self.reports.push(DiskReport {
            label,
            path: live.to_string(),
            root: disk.version.root.to_string(),
            length_bytes: disk.version.length_bytes,
            scope: disk.plan.scope,
            untracked_because: moved.untracked_because,
            is_resumed: disk.is_resumed,
            reopened: moved.reopened,
            read: SourceRead::of(&disk.transferred.stats),
            lies: pairs(&disk.transferred.lies),
            unreadable: pairs(&disk.transferred.unreadable),
        });
        self.devices.push(frozen.device.clone());
        self.disks.push(disk.version);
    }

    pub(super) fn add_file(&mut self, file: &ConfigurationFile, moved: MovedFile) {
        self.stats.add(&moved.stats);
        self.record.configuration.push(ConfigurationRecord {
            name: moved.file.path.clone(),
            kind: file.kind,
        });
        self.files.push(moved.file);
    }

    /// Where the disks are plugged in that arrived.
    pub(super) fn slots(&self) -> Vec<host::facts::DiskSlot> {
        self.record.disks.iter().map(|disk| disk.slot).collect()
    }

    /// A disk that could have been protected is not in the checkpoint: that must not go unseen.
    pub(super) fn miss(&mut self, slot: host::facts::DiskSlot) {
        let skipped = self
            .record
            .skipped
            .iter()
            .find(|skipped| skipped.slot == Some(slot));
        let reason = skipped.map_or("the checkpoint does not hold it", |it| it.reason.as_str());
        let line = format!("{slot}: {reason}");
        self.warnings.push(Warning {
            code: WarningCode::Skipped,
            text: format!("a disk is not in the point: {line}"),
        });
        self.record.not_protected.push(line);
    }

    /// Two disks at one slot would be one disk in the repository.
    pub(super) fn check_complete(&self, checkpoint: &Checkpoint) -> Result<()> {
        for (index, disk) in self.disks.iter().enumerate() {
            let is_twice = self
                .disks
                .iter()
                .skip(index.saturating_add(1))
                .any(|other| other.label == disk.label);
            if is_twice {
                let what = format!(
                    "the checkpoint {} has two disks at {}",
                    checkpoint.reference.checkpoint, disk.label
                );
                return Err(Error::new(ErrorKind::HostFailed, what));
            }
        }
        Ok(())
    }

    /// Takes over where tracking starts from next time.
    pub(super) fn settled(&mut self, settled: Settled) -> Result<()> {
        for (device, token) in settled.tokens {
            let index = self.devices.iter().position(|it| *it == device);
            let Some(disk) = index.and_then(|index| self.disks.get_mut(index)) else {
                continue;
            };
            let text = serde_json::to_string(&token).map_err(|error| {
                Error::new(ErrorKind::Invalid, "a token of change tracking").caused_by(error)
            })?;
            disk.tracking_token = Some(text);
        }
        self.record.tracking_point = settled.point;
        self.warnings.extend(settled.warnings);
        Ok(())
    }

    pub(super) fn warn(&mut self, code: WarningCode, text: String) {
        self.warnings.push(Warning { code, text });
    }

    pub(super) fn finish(self, name: &str) -> Result<Gathered> {
        let record = self.record;
        let report = VmBackupReport {
            name: name.to_owned(),
            sequence: 0,
            point: String::new(),
            parent: self.parent,
            vm: record.vm,
            machine: record.name.clone(),
            node: record.node.clone(),
            consistency: record.consistency,
            missed: record.missed.clone(),
            still: record.still,
            disks: self.reports,
            configuration: self.files.iter().map(|it| it.path.clone()).collect(),
            not_protected: record.not_protected.clone(),
            tracking_point: record.tracking_point.clone(),
            read: SourceRead::of(&self.stats),
            stored_bytes: 0,
            warnings: self.warnings,
            elapsed_ms: 0,
        };
        let draft = PointDraft {
            disks: self.disks,
            configuration: self.files,
            consistency: kept_consistency(record.consistency),
            source: source_facts(&record)?,
            counters: counters(&self.stats, &repo::BlobStats::default(), 0),
            ..PointDraft::default()
        };
        Ok(Gathered {
            draft,
            record,
            report,
        })
    }
}

fn kept_consistency(reached: host::consistency::Consistency) -> Consistency {
    match reached {
        host::consistency::Consistency::Application => Consistency::Application,
        host::consistency::Consistency::FileSystem => Consistency::FileSystem,
        host::consistency::Consistency::Crash => Consistency::Crash,
        host::consistency::Consistency::SavedState => Consistency::Offline,
    }
}
