//! The files of hosts over SMB 3: a private Samba for each host, on loopback, on a port of its own.
//!
//! ```text
//!   \\NODE1\C$                          ─► folder of C:, in which ClusterStorage\Volume1 leads to the shared volume's
//!   \\NODE1\D$                          ─► folder of D:
//!   \\NODE1\ClusterStorage$\Volume1     ─► the shared volume's
//!   \\server\share                      ─► share "share" of every node's Samba
//! ```
//!
//! **Invariants.** Nothing in the clear, nothing below SMB 3, one account. Nothing of the system's own Samba is read or written: every
//! folder of its state lies in the lab's. A Samba ends with this process, however that ends: it watches a pipe. A host that is
//! down has none.
//!
//! **What it does not do.** No Kerberos, no DFS. It does not tell who coordinates a shared volume: every node shares all of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use wsman::auth::Secret;

use crate::estate::{Estate, HostFolder, HostName};
use crate::provider::SharedEstate;
use crate::{Error, Result};

/// How long a Samba may take until it listens, and until it has ended.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// Another process may take the port that was found.
const PORTS_TRIED: usize = 5;
/// Where shared volumes are seen.
const CLUSTER_STORAGE: &str = "ClusterStorage";

/// One host's Samba.
struct NodeServer {
    folder: PathBuf,
    port: u16,
    running: Option<(Child, ChildStdin)>,
}

/// All hosts' Sambas. Ended when dropped.
pub struct SmbServers {
    smbd: PathBuf,
    nodes: BTreeMap<HostName, NodeServer>,
}

impl SmbServers {
    /// Starts one for each host that is up; their state goes into `folder`.
    ///
    /// # Errors
    /// `Invalid` when Samba, or a part that is needed, is not installed: the text names the package. `Io`.
    pub fn start(
        estate: &SharedEstate,
        folder: &Path,
        user: &str,
        password: &Secret,
    ) -> Result<Self> {
        let smbd = program("smbd")?;
        let pdbedit = program("pdbedit")?;
        let has_clusters = estate.read(|it| it.clusters().next().is_some());
        if has_clusters {
            check_links(&smbd)?;
        }
        let unix_user = unix_user()?;
        let mut nodes = BTreeMap::new();
        let hosts = estate.read(all_folders)?;
        for (name, folders) in hosts {
            let server = NodeServer {
                folder: folder.join(name.as_str()),
                port: 0,
                running: None,
            };
            server.prepare(&name, &folders, (user, &unix_user))?;
            server.configure(&name, 0)?;
            add_account(&pdbedit, &server.configuration(), &unix_user, password)?;
            nodes.insert(name, server);
        }
        let mut servers = Self { smbd, nodes };
        servers.follow(estate)?;
        Ok(servers)
    }

    /// The port of each host.
    pub fn ports(&self) -> BTreeMap<HostName, u16> {
        let ports = self.nodes.iter();
        ports.map(|(name, it)| (name.clone(), it.port)).collect()
    }

    /// Ends those of hosts that went down and starts those of hosts that came back. To be asked now and then.
    ///
    /// # Errors
    /// `Io` when one does not start.
    pub fn follow(&mut self, estate: &SharedEstate) -> Result<()> {
        for (name, node) in &mut self.nodes {
            let is_up = estate.read(|it| it.live_host(name).is_ok());
            match (is_up, node.running.is_some()) {
                (true, false) => node.begin(&self.smbd, name)?,
                (false, true) => node.end(),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for SmbServers {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            node.end();
        }
    }
}

impl NodeServer {
    fn configuration(&self) -> PathBuf {
        self.folder.join("smb.conf")
    }

    /// Makes the folders of its state, the shares, and who may use them.
    fn prepare(
        &self,
        name: &HostName,
        folders: &[HostFolder],
        (user, unix_user): (&str, &str),
    ) -> Result<()> {
        let made = |path: &Path| {
            fs::create_dir_all(path)
                .map_err(|error| Error::io(format!("making {}", path.display()), error))
        };
        for part in ["private", "state", "lock", "cache", "pid", "rpc", "log"] {
            made(&self.folder.join(part))?;
        }
        let mut shares = String::new();
        let mut share = |share: &str, path: &Path| {
            // A stranger's quotes or line ends would be another share.
            let path = path.display().to_string();
            let is_plain = |text: &str| !text.contains(['\n', '\r', '[', ']', '"', '%', ';', '#']);
            if !is_plain(&path) || !is_plain(share) {
                return Err(Error::invalid(format!("{path} cannot be shared")));
            }
            write!(
                shares,
                "[{share}]\npath = {path}\nread only = no\nwide links = yes\n"
            )
            .map_err(|error| Error::io("writing shares", error))
        };
        let shared = folders.iter().filter_map(|it| {
            let rest = it.windows.strip_prefix("C:\\ClusterStorage\\")?;
            Some((rest, it.local.as_path()))
        });
        let shared: Vec<(&str, &Path)> = shared.collect();
        let system = folders.iter().find(|it| it.windows == "C:\\");
        let system = system.map_or_else(|| self.folder.join("C"), |it| it.local.clone());
        made(&system)?;
        share("C$", &system)?;
        if !shared.is_empty() {
            let seen = system.join(CLUSTER_STORAGE);
            made(&seen)?;
            for (volume, local) in &shared {
                let link = seen.join(volume);
                std::os::unix::fs::symlink(local, &link)
                    .map_err(|error| Error::io(format!("linking {}", link.display()), error))?;
            }
            share("ClusterStorage$", &seen)?;
        }
        for folder in folders {
            match folder.windows.strip_prefix("\\\\") {
                Some(unc) => share(unc.rsplit('\\').next().unwrap_or(unc), &folder.local)?,
                None => {
                    let drive = folder.windows.strip_suffix(":\\");
                    if let Some(letter) = drive.filter(|letter| *letter != "C") {
                        share(&format!("{letter}$"), &folder.local)?;
                    }
                }
            }
        }
        self.write("shares.conf", &shares)?;
        self.write("users", &format!("{unix_user} = {user}\n"))?;
        self.configure(name, 0)
    }

    fn configure(&self, name: &HostName, port: u16) -> Result<()> {
        let at = |part: &str| self.folder.join(part).display().to_string();
        let text = format!(
            "[global]\nnetbios name = {name}\nworkgroup = HIKAELAB\nserver role = standalone server\n\
             private dir = {}\nstate directory = {}\nlock directory = {}\ncache directory = {}\npid directory = {}\n\
             ncalrpc dir = {}\nlog file = {}/smbd\nsmb ports = {port}\ninterfaces = 127.0.0.1/8\nbind interfaces only = yes\n\
             disable netbios = yes\nserver min protocol = SMB3_00\nsmb encrypt = required\nmap to guest = never\n\
             restrict anonymous = 2\nusername map = {}\nhost msdfs = no\nallow insecure wide links = yes\n\
             load printers = no\nprintcap name = /dev/null\ndisable spoolss = yes\n\
             store dos attributes = no\nmap archive = no\nkernel share modes = no\nposix locking = no\noplocks = no\n\
             level2 oplocks = no\nsmb2 leases = no\nserver multi channel support = no\ninclude = {}\n",
            at("private"),
            at("state"),
            at("lock"),
            at("cache"),
            at("pid"),
            at("rpc"),
            at("log"),
            at("users"),
            at("shares.conf"),
        );
        self.write("smb.conf", &text)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text)
            .map_err(|error| Error::io(format!("writing {}", path.display()), error))
    }

    /// Starts it, on the port that it had, or on a new one the first time.
    fn begin(&mut self, smbd: &Path, name: &HostName) -> Result<()> {
        let is_new = self.port == 0;
        let tries = if is_new { PORTS_TRIED } else { 1 };
        let mut last = Error::invalid("no port");
        for _ in 0..tries {
            if is_new {
                self.port = free_port()?;
            }
            self.configure(name, self.port)?;
            match self.attempt(smbd, name) {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn attempt(&mut self, smbd: &Path, name: &HostName) -> Result<()> {
        let wrong = |error| Error::io(format!("starting the Samba of {name}"), error);
        let mut child = Command::new(smbd)
            .args(["--foreground", "--no-process-group"])
            .arg("--configfile")
            .arg(self.configuration())
            .arg("--log-basename")
            .arg(self.folder.join("log"))
            // When it ends it tells its whole group to end: a group of its own.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(wrong)?;
        let pipe = child.stdin.take();
        let pipe = pipe.ok_or_else(|| wrong(std::io::Error::other("no pipe")))?;
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let ended = child.try_wait().map_err(wrong)?;
            if ended.is_some() || begun.elapsed() > PATIENCE {
                drop(pipe);
                let _gone = child.kill();
                child.wait().map_err(wrong)?;
                let log = self.folder.join("log");
                let why = format!("it does not listen; what it says is in {}", log.display());
                return Err(wrong(std::io::Error::other(why)));
            }
            std::thread::sleep(LOOK);
        }
        self.running = Some((child, pipe));
        Ok(())
    }

    /// Ends it, and its connections with it.
    fn end(&mut self) {
        let Some((mut child, pipe)) = self.running.take() else {
            return;
        };
        drop(pipe);
        let begun = Instant::now();
        while let Ok(None) = child.try_wait() {
            if begun.elapsed() > PATIENCE {
                let _gone = child.kill();
                let _gone = child.wait();
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn all_folders(estate: &Estate) -> Result<Vec<(HostName, Vec<HostFolder>)>> {
    estate
        .hosts()
        .map(|host| Ok((host.name.clone(), estate.folders_of(&host.name)?)))
        .collect()
}

/// A program of Samba, where Debian and others put it.
fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/usr/local/samba/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(usual)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    found.ok_or_else(|| {
        Error::invalid(format!(
            "{name} is not installed here, and files over SMB need it: install the package samba"
        ))
    })
}

/// Shared volumes are seen below `C:` through links that lead out of it.
fn check_links(smbd: &Path) -> Result<()> {
    let built = Command::new(smbd)
        .arg("-b")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::io("asking smbd what it is built with", error))?;
    let text = String::from_utf8_lossy(&built.stdout);
    let folder = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("MODULESDIR:"));
    let is_there =
        folder.is_none_or(|folder| Path::new(folder.trim()).join("vfs/widelinks.so").is_file());
    if is_there {
        Ok(())
    } else {
        Err(Error::invalid(
            "Samba's module widelinks is not installed here, and shared volumes of clusters need it: install the package samba-vfs-modules",
        ))
    }
}

fn unix_user() -> Result<String> {
    let wrong = |error| Error::io("asking who runs this", error);
    let output = Command::new("id").arg("-un").output().map_err(wrong)?;
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || name.is_empty() {
        return Err(Error::invalid(
            "whoever runs this has no name on this system, and Samba needs one",
        ));
    }
    Ok(name)
}

fn add_account(
    pdbedit: &Path,
    configuration: &Path,
    unix_user: &str,
    password: &Secret,
) -> Result<()> {
    let wrong = |error| Error::io("making the account for SMB", error);
    let mut child = Command::new(pdbedit)
        .arg("-s")
        .arg(configuration)
        .args(["-a", "-t", "-u", unix_user])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(wrong)?;
    let password = password.expose();
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(format!("{password}\n{password}\n").as_bytes())
            .map_err(wrong)?;
    }
    if child.wait().map_err(wrong)?.success() {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "pdbedit does not make an account of {unix_user}"
        )))
    }
}

fn free_port() -> Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|it| it.local_addr())
        .map(|it| it.port())
        .map_err(|error| Error::io("looking for a port", error))
}
