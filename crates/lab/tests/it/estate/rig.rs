//! A small estate to test with: one host, one VM with two disks and a guest that writes.

use std::time::Duration;

use block::ReadAt;
use lab::estate::{
    Affected, CheckpointId, CheckpointRequest, ConsistencyLevel, DiskSpec, Estate, EstateOptions,
    Fault, HostName, JobFailure, JobState, ReferencePointId, Started, VmGeneration, VmId, VmSpec,
    VolumeKind, WindowsGeneration, WindowsPath,
};
use lab::guest::{Consistency, Examination, GuestOs, examine};
use lab::{Error, ReturnCode};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

pub struct Rig {
    pub folder: TempDir,
    pub estate: Estate,
    pub host: HostName,
    pub vm: VmId,
}

pub fn path(text: &str) -> WindowsPath {
    WindowsPath::parse(text).unwrap()
}

pub fn spec(name: &str, os: GuestOs) -> VmSpec {
    let two = VmGeneration::Two;
    VmSpec::new(name, two, path(&format!("D:\\vm\\{name}")))
        .with_disk(DiskSpec::new(two, 0, &format!("{name}.vhdx"), 32 * MIB))
        .with_disk(DiskSpec::new(
            two,
            1,
            &format!("{name}-data.vhdx"),
            32 * MIB,
        ))
        .with_guest(os, MIB)
}

pub fn vhd_spec(name: &str, os: GuestOs) -> VmSpec {
    let one = VmGeneration::One;
    VmSpec::new(name, one, path(&format!("D:\\vm\\{name}")))
        .with_disk(DiskSpec::new(one, 0, &format!("{name}.vhd"), 32 * MIB))
        .with_disk(DiskSpec::new(one, 1, &format!("{name}-data.vhd"), 32 * MIB))
        .with_guest(os, MIB)
}

impl Rig {
    pub fn new() -> Self {
        Self::with(EstateOptions::seeded(1), spec("sql01", GuestOs::Windows))
    }

    pub fn with(options: EstateOptions, spec: VmSpec) -> Self {
        Self::on(WindowsGeneration::Server2022, options, spec)
    }

    pub fn on(windows: WindowsGeneration, options: EstateOptions, spec: VmSpec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut estate = Estate::new(options);
        let host = HostName::new("HV01");
        estate.add_host(&host, windows, "example.net").unwrap();
        add_volume(&mut estate, &folder, &host, 'C');
        add_volume(&mut estate, &folder, &host, 'D');
        let vm = estate.add_vm(&host, spec).unwrap();
        Self {
            folder,
            estate,
            host,
            vm,
        }
    }

    /// A second host with its own volumes.
    pub fn add_host(&mut self, name: &str) -> HostName {
        let host = HostName::new(name);
        self.estate
            .add_host(&host, WindowsGeneration::Server2022, "example.net")
            .unwrap();
        add_volume(&mut self.estate, &self.folder, &host, 'C');
        add_volume(&mut self.estate, &self.folder, &host, 'D');
        host
    }

    pub fn pass(&mut self, seconds: u64) {
        self.estate.advance(Duration::from_secs(seconds)).unwrap();
    }

    /// Waits for a job; what it made, or why it failed.
    pub fn wait(&mut self, started: &Started) -> Result<Vec<Affected>, JobFailure> {
        let id = match started {
            Started::Done(made) => return Ok(made.clone()),
            Started::UnnamedJob => panic!("the job has no name"),
            Started::Job(id) => *id,
        };
        let mut hosts = self.estate.hosts().map(|it| it.name.clone());
        let host = hosts
            .find(|host| self.estate.job(host, id).is_ok())
            .expect("the job is on a host");
        drop(hosts);
        for _ in 0..10_000 {
            let job = self.estate.job(&host, id).unwrap();
            match job.state {
                JobState::Completed => return Ok(job.created.clone()),
                state if state.is_over() => return Err(job.failure.clone().unwrap()),
                _ => {
                    let ends = job.ends;
                    self.estate.advance_to(ends).unwrap();
                }
            }
        }
        panic!("the job never ends");
    }

    pub fn request(&mut self, state: u16) {
        let (host, vm) = (self.host.clone(), self.vm);
        let started = self.estate.request_state_change(&host, vm, state).unwrap();
        self.wait(&started).unwrap();
    }

    pub fn start(&mut self) {
        self.request(2);
    }

    pub fn recovery(&mut self, level: ConsistencyLevel) -> Result<CheckpointId, JobFailure> {
        self.checkpoint(CheckpointRequest::recovery(level))
    }

    pub fn checkpoint(&mut self, request: CheckpointRequest) -> Result<CheckpointId, JobFailure> {
        let (host, vm) = (self.host.clone(), self.vm);
        let started = self.estate.create_checkpoint(&host, vm, request).unwrap();
        let made = self.wait(&started)?;
        match made.first() {
            Some(Affected::Checkpoint(id)) => Ok(*id),
            other => panic!("made {other:?}"),
        }
    }

    pub fn convert(&mut self, id: CheckpointId) -> Result<ReferencePointId, JobFailure> {
        let host = self.host.clone();
        let started = self.estate.convert_to_reference_point(&host, id).unwrap();
        match self.wait(&started)?.first() {
            Some(Affected::ReferencePoint(_, id)) => Ok(*id),
            other => panic!("made {other:?}"),
        }
    }

    /// Until nothing merges any more.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            self.pass(1);
            let vm = self.estate.vm(&self.host, self.vm).unwrap();
            let key = vm.key;
            if vm.merging.is_none() && vm.activity.is_none() && !self.estate.is_merge_pending(key) {
                return;
            }
        }
        panic!("merging never ends");
    }

    /// The files that the VM opens.
    pub fn live_files(&self) -> Vec<WindowsPath> {
        let vm = self.estate.vm(&self.host, self.vm).unwrap();
        vm.settings
            .hardware
            .disks()
            .map(|(_, it)| it.path.clone())
            .collect()
    }

    /// The files that a checkpoint names.
    pub fn frozen_files(&self, id: CheckpointId) -> Vec<WindowsPath> {
        let vm = self.estate.vm(&self.host, self.vm).unwrap();
        let checkpoint = vm.checkpoint(id).unwrap();
        checkpoint
            .settings
            .hardware
            .disks()
            .map(|(_, it)| it.path.clone())
            .collect()
    }

    /// Bytes of disks.
    pub fn bytes(&mut self, files: &[WindowsPath]) -> Vec<Vec<u8>> {
        let host = self.host.clone();
        files
            .iter()
            .map(|file| {
                let image = self.estate.read_disk(&host, file).unwrap();
                let mut bytes = vec![0; usize::try_from(image.size_bytes()).unwrap()];
                image.read_at(0, &mut bytes).unwrap();
                bytes
            })
            .collect()
    }

    /// What the bytes of disks say.
    pub fn examine(&mut self, files: &[WindowsPath]) -> Examination {
        let bytes = self.bytes(files);
        self.examine_bytes(&bytes)
    }

    pub fn examine_bytes(&self, bytes: &[Vec<u8>]) -> Examination {
        let vm = self.estate.vm(&self.host, self.vm).unwrap();
        let guest = vm.guest().unwrap();
        let disks: Vec<Bytes<'_>> = bytes.iter().map(|it| Bytes(it)).collect();
        let disks: Vec<&dyn ReadAt> = disks.iter().map(|it| it as &dyn ReadAt).collect();
        examine(&disks, guest.layout(), guest.tag()).unwrap()
    }

    pub fn consistency(&mut self, files: &[WindowsPath]) -> Consistency {
        self.examine(files).consistency
    }

    pub fn inject(&mut self, fault: Fault) {
        self.estate.inject(fault);
    }
}

pub fn add_volume(estate: &mut Estate, folder: &TempDir, host: &HostName, letter: char) {
    let kind = VolumeKind::Local {
        host: host.clone(),
        letter,
    };
    let backing = folder.path().join(format!("{host}-{letter}"));
    estate.add_volume(kind, backing, 100 << 30).unwrap();
}

pub fn code(error: &Error) -> ReturnCode {
    error
        .return_code()
        .unwrap_or_else(|| panic!("no return value: {error} ({:?})", error.kind()))
}

pub struct Bytes<'b>(pub &'b [u8]);

impl ReadAt for Bytes<'_> {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let bytes = self.0.get(at..at + buffer.len()).ok_or_else(|| {
            block::Error::new(
                block::ErrorKind::OutOfRange,
                "behind the end of a test's disk",
            )
        })?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}
