//! A node with one machine, as a folder: what libvirt would keep, and what we leave beside the machine.
//!
//! ```text
//!   machine.json                                the machine's definition
//!   monitor  observer  agent  nbd  pid          of the QEMU that runs it, if one does
//!   saved.state                                 memory of a machine that was saved
//!   hikae/ID.json  ID.0.qcow2 …  ID.state       a checkpoint of ours: its note (mark, then facts), overlays, saved memory
//!   marks/NAME                                  marks beside the machine
//! ```

use std::fs;
use std::io::ErrorKind as IoKind;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use host::checkpoint::Checkpoint;
use host::custody::{MachineMark, Mark};
use host::ids::VmId;
use host::{Error, ErrorKind, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::image::GuestImage;
use super::qmp::Monitor;
use super::steps::Steps;

/// Seconds after which a QEMU ends, whatever it does.
const LONGEST: &str = "600";

/// What a machine is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MachineFile {
    pub(super) id: VmId,
    pub(super) name: String,
    pub(super) memory_mib: u64,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// Images, the first one plugged in first.
    pub(super) disks: Vec<PathBuf>,
}

/// What is written down of a checkpoint on the node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) mark: Mark,
    pub(super) made_at: Timestamp,
    /// Once it is whole.
    pub(super) checkpoint: Option<Checkpoint>,
}

/// The folder.
#[derive(Debug, Clone)]
pub(super) struct Place {
    folder: PathBuf,
}

impl Place {
    /// A place that is there.
    pub(super) fn open(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Makes a place with a machine that is off.
    pub(super) fn create(folder: &Path, id: VmId, image: GuestImage) -> Self {
        for below in ["hikae", "marks"] {
            fs::create_dir_all(folder.join(below)).expect("a folder of the place");
        }
        let machine = MachineFile {
            id,
            name: "tiny".to_owned(),
            memory_mib: 128,
            kernel: image.kernel,
            initrd: image.initrd,
            disks: image.disks,
        };
        let text = serde_json::to_vec(&machine).expect("a definition");
        fs::write(folder.join("machine.json"), text).expect("a definition");
        Self::open(folder)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn monitor(&self) -> PathBuf {
        self.folder.join("monitor")
    }

    pub(super) fn observer(&self) -> PathBuf {
        self.folder.join("observer")
    }

    pub(super) fn agent(&self) -> PathBuf {
        self.folder.join("agent")
    }

    pub(super) fn nbd(&self) -> PathBuf {
        self.folder.join("nbd")
    }

    pub(super) fn saved_state(&self) -> PathBuf {
        self.folder.join("saved.state")
    }

    pub(super) fn overlay(&self, id: &str, disk: usize) -> PathBuf {
        self.folder.join(format!("hikae/{id}.{disk}.qcow2"))
    }

    pub(super) fn memory(&self, id: &str) -> PathBuf {
        self.folder.join(format!("hikae/{id}.state"))
    }

    fn note_path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("hikae/{id}.json"))
    }

    pub(super) fn definition(&self) -> PathBuf {
        self.folder.join("machine.json")
    }

    pub(super) fn machine(&self) -> Result<MachineFile> {
        let text = fs::read(self.definition()).map_err(on_node)?;
        serde_json::from_slice(&text).map_err(|error| {
            Error::with_source(ErrorKind::Protocol, "the machine's definition", error)
        })
    }

    pub(super) fn write_note(&self, id: &str, note: &Note) -> Result<()> {
        let text = serde_json::to_vec(note).map_err(|error| {
            Error::with_source(ErrorKind::Invalid, "a checkpoint's note", error)
        })?;
        let fresh = self.folder.join(format!("hikae/{id}.new"));
        fs::write(&fresh, text).map_err(on_node)?;
        fs::rename(&fresh, self.note_path(id)).map_err(on_node)
    }

    pub(super) fn note(&self, id: &str) -> Result<Option<Note>> {
        match fs::read(self.note_path(id)) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
                Error::with_source(ErrorKind::Protocol, "a checkpoint's note", error)
            }),
            Err(error) if error.kind() == IoKind::NotFound => Ok(None),
            Err(error) => Err(on_node(error)),
        }
    }

    /// Ids of checkpoints that have files here.
    pub(super) fn noted(&self) -> Result<Vec<String>> {
        let mut ids: Vec<String> = Vec::new();
        for name in names_in(&self.folder.join("hikae"))? {
            if let Some((id, _)) = name.split_once('.') {
                ids.push(id.to_owned());
            }
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// Removes the files of a checkpoint, its note last.
    pub(super) fn remove_files(&self, id: &str) -> Result<()> {
        let of_it = |name: &String| name.split_once('.').is_some_and(|(it, _)| it == id);
        let folder = self.folder.join("hikae");
        let names: Vec<String> = names_in(&folder)?.into_iter().filter(of_it).collect();
        let (notes, others): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| name.ends_with(".json"));
        for name in others.into_iter().chain(notes) {
            remove(&folder.join(name))?;
        }
        Ok(())
    }

    pub(super) fn set_mark(&self, mark: &MachineMark) -> Result<()> {
        let path = self.folder.join("marks").join(mark.item_name());
        fs::write(path, mark.item_text()).map_err(on_node)
    }

    pub(super) fn remove_mark(&self, mark: &MachineMark) -> Result<()> {
        remove(&self.folder.join("marks").join(mark.item_name()))
    }

    pub(super) fn marks(&self) -> Result<Vec<MachineMark>> {
        let folder = self.folder.join("marks");
        let mut marks = Vec::new();
        for name in names_in(&folder)? {
            // One that goes while we look is gone.
            let text = fs::read_to_string(folder.join(&name)).unwrap_or_default();
            marks.extend(MachineMark::parse(&name, &text));
        }
        Ok(marks)
    }

    /// Starts QEMU: from the begin, or from memory in a file, then standing still.
    pub(super) fn launch(&self, memory: Option<&Path>) -> Result<()> {
        let machine = self.machine()?;
        for socket in [self.monitor(), self.observer(), self.agent(), self.nbd()] {
            remove(&socket)?;
        }
        let path = |path: PathBuf| path.display().to_string();
        // Ended from outside when everybody who would end it has died: a machine that stands still cannot do so itself.
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", LONGEST, "qemu-system-x86_64"])
            .args(["-no-user-config", "-nodefaults", "-display", "none"])
            .args(["-name", &machine.name, "-uuid", &machine.id.to_string()])
            .args(["-M", "q35", "-accel", "tcg"])
            .args(["-m", &machine.memory_mib.to_string()])
            .args(["-append", "quiet panic=1 mitigations=off"])
            .arg("-kernel")
            .arg(&machine.kernel)
            .arg("-initrd")
            .arg(&machine.initrd)
            .args(["-device", "virtio-serial-pci"])
            .args([
                "-device",
                "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
            ])
            .arg("-chardev")
            .arg(format!(
                "socket,id=agent,path={},server=on,wait=off",
                path(self.agent())
            ))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", path(self.monitor())))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", path(self.observer())))
            .arg("-pidfile")
            .arg(self.folder.join("pid"));
        for (number, disk) in machine.disks.iter().enumerate() {
            command
                .arg("-blockdev")
                .arg(format!(
                    "driver=qcow2,node-name=disk{number},file.driver=file,file.filename={}",
                    disk.display()
                ))
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive=disk{number},id=slot{number}"));
        }
        if let Some(memory) = memory {
            command
                .arg("-S")
                .arg("-incoming")
                .arg(format!("exec:cat '{}'", memory.display()));
        }
        // It outlives whoever started it; a pipe to it would be waited for.
        let said = fs::File::create(self.folder.join("qemu.log")).map_err(on_node)?;
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .process_group(0)
            .spawn()
            .map_err(on_node)?;
        let until = Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(self.observer()).is_err() {
            if process.try_wait().map_err(on_node)?.is_some() || Instant::now() > until {
                let said = fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::Failed,
                    format!("QEMU does not start: {}", said.trim()),
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn pid(&self) -> Option<String> {
        let pid = fs::read_to_string(self.folder.join("pid")).ok()?;
        Some(pid.trim().to_owned()).filter(|it| !it.is_empty())
    }

    /// Whether the process that was started last still runs.
    pub(super) fn is_alive(&self) -> bool {
        let Some(pid) = self.pid() else { return false };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            return false;
        };
        // Behind the name, which may hold anything: the state. A zombie has let go of everything.
        let state = stat
            .rsplit_once(')')
            .and_then(|(_, it)| it.split_whitespace().next());
        !matches!(state, None | Some("Z" | "X"))
    }

    /// Waits until the process has ended.
    pub(super) fn wait_for_end(&self, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() > until {
                return Err(Error::new(ErrorKind::TimedOut, "QEMU does not end"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        remove(&self.folder.join("pid"))
    }

    /// Ends the process as a power cut would.
    pub(super) fn kill(&self) {
        if let Some(pid) = self.pid().filter(|_| self.is_alive()) {
            let killed = Command::new("kill").args(["-9", &pid]).status();
            assert!(killed.is_ok_and(|it| it.success()), "QEMU was not killed");
            self.wait_for_end(Duration::from_secs(10))
                .expect("QEMU ends");
        }
    }
}

/// A machine that a test started: it ends with the test.
pub(super) struct Started(pub(super) Place);

impl Drop for Started {
    fn drop(&mut self) {
        let steps = Steps::default();
        if let Ok(Some(mut monitor)) = Monitor::connect(&self.0.observer(), &steps)
            && monitor.change("quit", &serde_json::json!({})).is_ok()
            && self.0.wait_for_end(Duration::from_secs(5)).is_ok()
        {
            return;
        }
        self.0.kill();
    }
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(on_node)? {
        let name = entry.map_err(on_node)?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != IoKind::NotFound => Err(on_node(error)),
        _ => Ok(()),
    }
}

pub(super) fn on_node(error: std::io::Error) -> Error {
    Error::with_source(ErrorKind::Io, "a file on the node", error)
}
