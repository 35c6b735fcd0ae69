//! Files over SMB 3 from a real Samba of our own, which takes nothing in the clear.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use block::ReadAt;
use host::ErrorKind;
use host::access::smb::{SmbAccess, SmbAccount, SmbEncryption, SmbOptions};
use host::access::{ChainDisk, DiskAccess};
use host::ids::NodeName;
use host::path::HostPath;

const PASSWORD: &str = "correct horse";

/// A Samba in a folder, on a port of its own; it dies with the test.
struct Samba {
    folder: tempfile::TempDir,
    port: u16,
    user: String,
    process: Option<Child>,
}

impl Drop for Samba {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Samba {
    /// `None`, said aloud, where there is no Samba or no right to run one.
    fn begin() -> Option<Self> {
        let is_there = Command::new("smbd")
            .arg("--version")
            .output()
            .is_ok_and(|it| it.status.success());
        let user = Command::new("id").arg("-un").output().ok()?;
        let user = String::from_utf8(user.stdout).ok()?.trim().to_owned();
        if !is_there || user != "root" {
            assert!(
                std::env::var_os("CI").is_none(),
                "smbd, and being root, are needed for tests of SMB"
            );
            println!("SKIP: no smbd, or not root: nothing was read over SMB");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|it| it.local_addr())
            .expect("a port")
            .port();
        let mut samba = Self {
            folder,
            port,
            user,
            process: None,
        };
        samba.configure();
        samba.start();
        Some(samba)
    }

    fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    fn configure(&self) {
        let root = self.folder.path();
        for name in [
            "files", "private", "state", "lock", "cache", "pid", "rpc", "log",
        ] {
            std::fs::create_dir_all(root.join(name)).expect("a folder");
        }
        let at = |name: &str| root.join(name).display().to_string();
        let share = |name: &str| format!("[{name}]\npath = {}\nread only = yes\n", at("files"));
        let text = format!(
            "[global]\nprivate dir = {}\nstate directory = {}\nlock directory = {}\ncache directory = {}\npid directory = {}\n\
             ncalrpc dir = {}\nlog file = {}/smbd\nsmb ports = {}\ninterfaces = 127.0.0.1/8\nbind interfaces only = yes\n\
             disable netbios = yes\nserver min protocol = SMB3_00\nsmb encrypt = required\nload printers = no\n{}{}",
            at("private"),
            at("state"),
            at("lock"),
            at("cache"),
            at("pid"),
            at("rpc"),
            at("log"),
            self.port,
            share("vms"),
            share("D$"),
        );
        std::fs::write(root.join("smb.conf"), text).expect("written");
        let mut child = Command::new("smbpasswd")
            .arg("-c")
            .arg(root.join("smb.conf"))
            .args(["-L", "-a", "-s", &self.user])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("smbpasswd");
        let text = format!("{PASSWORD}\n{PASSWORD}\n");
        std::io::Write::write_all(child.stdin.as_mut().expect("a pipe"), text.as_bytes())
            .expect("written");
        assert!(child.wait().expect("smbpasswd").success());
    }

    fn start(&mut self) {
        let child = Command::new("smbd")
            .arg("--foreground")
            .arg("--no-process-group")
            // It tells its whole group to end when it ends: a group of its own.
            .process_group(0)
            .arg("--configfile")
            .arg(self.folder.path().join("smb.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("smbd");
        self.process = Some(child);
        for _ in 0..600 {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        panic!("smbd does not listen");
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.process.take() {
            // Its children, one for each connection, end with it.
            let id = child.id().to_string();
            let asked = Command::new("kill").args(["-TERM", &id]).status();
            asked.expect("kill");
            child.wait().expect("smbd");
        }
    }

    fn access(&self, password: &str) -> SmbAccess {
        let mut options = SmbOptions::new(SmbAccount {
            user: self.user.clone(),
            password: password.to_owned(),
        });
        options.port = self.port;
        options.encryption = SmbEncryption::Required;
        options.timeout = Duration::from_secs(20);
        options.request_bytes = 256 << 10;
        SmbAccess::new(options).expect("an access")
    }
}

fn node() -> NodeName {
    NodeName::new("127.0.0.1").expect("an address")
}

fn path(text: &str) -> HostPath {
    HostPath::new(text).expect("a path")
}

fn content(folder: &Path) -> Vec<u8> {
    let mut state = 0x1234_5678_u32;
    let bytes: Vec<u8> = (0..5_000_001)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24).to_le_bytes()[0]
        })
        .collect();
    std::fs::write(folder.join("plain.bin"), &bytes).expect("written");
    bytes
}

#[test]
fn bytes_are_the_same_encrypted_over_the_wire_and_a_restarted_server_is_found_again() {
    let Some(mut samba) = Samba::begin() else {
        return;
    };
    let bytes = content(&samba.files());
    let access = samba.access(PASSWORD);
    for name in ["\\\\127.0.0.1\\vms\\plain.bin", "D:\\plain.bin"] {
        let file = access
            .open(&node(), &path(name))
            .expect("opened")
            .expect("there");
        assert_eq!(file.size_bytes(), 5_000_001);
        for (offset, length) in [
            (0, 5_000_001),
            (1, 4096),
            (4_999_999, 2),
            (262_143, 262_146),
        ] {
            let mut buffer = vec![0; length];
            file.read_at(offset, &mut buffer).expect("read");
            let start = usize::try_from(offset).expect("small");
            assert!(buffer == bytes[start..start + length], "{name} at {offset}");
        }
        let error = file
            .read_at(5_000_000, &mut [0; 2])
            .expect_err("behind the end");
        assert_eq!(error.kind(), block::ErrorKind::OutOfRange);
    }
    assert!(
        access
            .open(&node(), &path("D:\\nothing.bin"))
            .expect("asked")
            .is_none()
    );
    let error = access
        .open(&node(), &path("\\\\?\\Volume{1}\\a"))
        .err()
        .expect("no share");
    assert_eq!(error.kind(), ErrorKind::Unsupported);

    let file = access
        .open(&node(), &path("D:\\plain.bin"))
        .expect("opened")
        .expect("there");
    samba.stop();
    samba.start();
    let mut buffer = vec![0; 4096];
    file.read_at(8192, &mut buffer)
        .expect("over a new connection");
    assert!(buffer == bytes[8192..12288]);
    samba.stop();
    let error = file.read_at(0, &mut buffer).expect_err("nobody is there");
    assert_eq!(error.kind(), block::ErrorKind::Io);
}

#[test]
fn a_chain_is_read_through_the_share_and_a_wrong_password_is_refused() {
    let Some(samba) = Samba::begin() else { return };
    super::access::chain(&samba.files());
    let access: Arc<dyn DiskAccess> = Arc::new(samba.access(PASSWORD));
    let disk = ChainDisk::open(access, &node(), &path("D:\\Leaves\\leaf.avhdx")).expect("a chain");
    super::access::check(&disk);
    assert_eq!(disk.layers().len(), 2);
    let wrong = samba.access("wrong");
    let error = wrong
        .open(&node(), &path("D:\\Leaves\\leaf.avhdx"))
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}
