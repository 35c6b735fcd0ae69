//! Files over SMB 3 from a real Samba of our own, which takes nothing in the clear.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use block::ReadAt;
use host::ErrorKind;
use host::access::smb::{SmbAccess, SmbAccount, SmbEncryption, SmbOptions, SmbServer};
use host::access::{ChainDisk, DiskAccess};
use host::boundary::HostFiles;
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
        let share = |name: &str, only: &str| {
            format!("[{name}]\npath = {}\nread only = {only}\n", at("files"))
        };
        let text = format!(
            "[global]\nprivate dir = {}\nstate directory = {}\nlock directory = {}\ncache directory = {}\npid directory = {}\n\
             ncalrpc dir = {}\nlog file = {}/smbd\nsmb ports = {}\ninterfaces = 127.0.0.1/8\nbind interfaces only = yes\n\
             disable netbios = yes\nserver min protocol = SMB3_00\nsmb encrypt = required\nload printers = no\n{}{}{}",
            at("private"),
            at("state"),
            at("lock"),
            at("cache"),
            at("pid"),
            at("rpc"),
            at("log"),
            self.port,
            share("vms", "yes"),
            share("D$", "yes"),
            share("E$", "no"),
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

#[test]
fn files_are_written_over_the_wire_as_they_are_here() {
    let Some(samba) = Samba::begin() else { return };
    let access = samba.access(PASSWORD);
    super::files::check_writing(&access, &node(), &path("E:\\"));
    assert_eq!(
        samba
            .files()
            .join("New")
            .read_dir()
            .expect("listed")
            .count(),
        0
    );
    let error = access.create_file(&node(), &path("D:\\new.bin")).err();
    assert_eq!(error.expect("read only").kind(), ErrorKind::Denied);
    let error = access.list(&node(), &path("F:\\")).err();
    assert_eq!(error.expect("no such share").kind(), ErrorKind::Unsupported);
    // Another name for the node leads to the same place.
    let mut options = SmbOptions::new(SmbAccount {
        user: samba.user.clone(),
        password: PASSWORD.to_owned(),
    });
    options.port = samba.port;
    options.server = Some("127.0.0.1".to_owned());
    let server = SmbServer {
        address: "127.0.0.1".to_owned(),
        port: samba.port,
    };
    options.share_servers.insert("sofs".to_owned(), server);
    let access = SmbAccess::new(options).expect("an access");
    let named = NodeName::new("hv01").expect("a name");
    for root in ["E:\\", "\\\\HV01\\vms", "\\\\SOFS\\E$"] {
        let names = access.list(&named, &path(root)).expect("listed");
        assert_eq!(names.len(), 1, "{root}: {names:?}");
    }
}

#[test]
fn a_folder_of_thousands_is_listed_whole_and_one_of_too_many_is_refused() {
    let Some(samba) = Samba::begin() else { return };
    let access = samba.access(PASSWORD);
    let folder = samba.files().join("many");
    std::fs::create_dir(&folder).expect("a folder");
    let make = |numbers: std::ops::Range<usize>| {
        for number in numbers {
            std::fs::write(folder.join(format!("file{number:05}")), b"").expect("written");
        }
    };
    make(0..3_000);
    for _ in 0..20 {
        let names = access.list(&node(), &path("E:\\many")).expect("listed");
        assert_eq!(names.len(), 3_000);
        assert_eq!(names[2_999].name, "file02999");
    }
    make(3_000..10_001);
    let error = access
        .list(&node(), &path("E:\\many"))
        .expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::Failed, "{error}");
    std::fs::remove_file(folder.join("file00000")).expect("removed");
    assert_eq!(
        access
            .list(&node(), &path("E:\\many"))
            .expect("listed")
            .len(),
        10_000
    );
}

#[test]
fn an_image_is_made_on_a_share_and_a_lost_server_is_never_hidden() {
    use vdisk::image::{CreateOptions, IfExists, ImageProfile, create_on, resume_on};
    let Some(mut samba) = Samba::begin() else {
        return;
    };
    let access = samba.access(PASSWORD);
    let options = CreateOptions {
        size_bytes: 256 << 20,
        profile: ImageProfile::of(vdisk::Format::Vhdx),
        if_exists: IfExists::Refuse,
        ids: vdisk::vhdx::IdSource::seeded(1),
        unix_seconds: 1_700_000_000,
    };
    let place = path("E:\\restored.vhdx");
    let file = access.create_file(&node(), &place).expect("made");
    let writer = create_on(file, &options).expect("begun");
    let ones = vec![1; 3 << 20];
    writer.write_at(0, &ones).expect("written");
    writer.flush().expect("durable");
    samba.stop();
    samba.start();
    // What the server held may be gone: nothing after that succeeds on the old file.
    let written = writer.write_at(100 << 20, &ones);
    assert!(written.is_err() || writer.flush().is_err());
    assert!(writer.flush().is_err());
    assert!(writer.write_at(0, &ones).is_err());
    drop(writer);

    let file = access
        .open_file_for_update(&node(), &place)
        .expect("over a new connection");
    let writer = resume_on(file, &options).expect("gone on with");
    writer.write_at(200 << 20, &ones).expect("written");
    writer.finish().expect("whole");
    let access: Arc<dyn DiskAccess> = Arc::new(access);
    let disk = ChainDisk::open(access, &node(), &place).expect("an image");
    for (offset, value) in [(0, 1), (3 << 20, 0), (200 << 20, 1), ((203 << 20) - 1, 1)] {
        let mut byte = [9];
        disk.read_at(offset, &mut byte).expect("read");
        assert_eq!(byte, [value], "at {offset}");
    }
    let checked = Command::new("qemu-img")
        .args(["check", "-f", "vhdx"])
        .arg(samba.files().join("restored.vhdx"))
        .output()
        .expect("qemu-img");
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn a_server_that_says_nothing_ends_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut options = SmbOptions::new(SmbAccount {
        user: "u".to_owned(),
        password: "p".to_owned(),
    });
    options.port = silent.local_addr().expect("an address").port();
    options.timeout = Duration::from_millis(300);
    let access = SmbAccess::new(options).expect("an access");
    let begun = std::time::Instant::now();
    let place = path("D:\\a.bin");
    let kinds = [
        access.create_file(&node(), &place).err(),
        access.list(&node(), &path("D:\\")).err(),
        access.rename(&node(), &place, &path("D:\\b.bin")).err(),
        access.free_bytes(&node(), &path("D:\\")).err(),
    ]
    .map(|error| error.expect("nobody answered").kind());
    assert_eq!(kinds, [ErrorKind::TimedOut; 4]);
    assert!(begun.elapsed() < Duration::from_secs(20));
}
