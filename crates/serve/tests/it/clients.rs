//! Clients that were not written here read the same bytes. Where they are missing the tests are skipped aloud, and fail in CI.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::ReadAt;
use serve::nbd::{Address, Export, Exports, NbdListener, NbdOptions, NbdServer, Reach};
use serve::{CachedDisk, ReadCache, Unwatched};

use super::disks::{Numbers, Random, seed};

const MIB: u64 = 1 << 20;

/// Whether the clients are there; without them a test is skipped, but not in CI.
fn have(programs: &[&str]) -> bool {
    for program in programs {
        let known = Command::new("sh")
            .args(["-c", "command -v \"$0\"", program])
            .env("PATH", path())
            .stdout(Stdio::null())
            .status();
        if !known.is_ok_and(|status| status.success()) {
            assert!(std::env::var_os("CI").is_none(), "{program} is missing");
            println!("SKIP: {program} is missing");
            return false;
        }
    }
    true
}

fn path() -> String {
    // The system's own first: the modules of its Python belong to that one.
    let given = std::env::var("PATH").unwrap_or_default();
    format!("/usr/bin:/usr/sbin:/bin:/sbin:{given}")
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", path())
        .stdin(Stdio::null());
    command.output().expect("the client starts")
}

#[track_caller]
fn tool(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Two exports on both kinds of socket, behind a cache.
struct Site {
    disks: [Arc<Numbers>; 2],
    dir: tempfile::TempDir,
    servers: Vec<NbdServer>,
    cache: Arc<ReadCache>,
}

const NAMES: [&str; 2] = ["web 01@3", "db/ü@12"];

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let seed = seed();
        // No whole number of sectors: the last bytes must come, too.
        let disks = [
            Arc::new(Numbers::new(seed, 24 * MIB + 512 * 3, 40)),
            Arc::new(Numbers::new(seed + 1, 6 * MIB, 90)),
        ];
        let cache = ReadCache::new(0);
        let socket = Address::Unix(dir.path().join("nbd.sock"));
        let servers = [Address::Tcp("127.0.0.1:0".to_owned()), socket]
            .iter()
            .map(|address| {
                let exports = NAMES.iter().zip(&disks).map(|(name, disk)| {
                    let source = Arc::clone(disk) as Arc<dyn ReadAt>;
                    let mut export = Export::new(*name, CachedDisk::new(source, &cache));
                    export.description = format!("the disk {name}");
                    export
                });
                let exports = Exports::new(exports.collect()).expect("two names");
                let listener = NbdListener::bind(address, Reach::Loopback).expect("free");
                let options = NbdOptions::default();
                NbdServer::start(listener, exports, options, Arc::new(Unwatched)).expect("starts")
            })
            .collect();
        Self {
            disks,
            dir,
            servers,
            cache,
        }
    }

    fn uri(&self, server: usize, export: usize) -> String {
        self.servers[server].address().uri(NAMES[export])
    }

    fn path(&self, name: &str) -> String {
        self.dir
            .path()
            .join(name)
            .to_str()
            .expect("text")
            .to_owned()
    }

    #[track_caller]
    fn assert_holds(&self, file: &str, export: usize) {
        let bytes = fs::read(file).expect("what the client wrote");
        let disk = &self.disks[export];
        assert_eq!(bytes.len() as u64, disk.size_bytes);
        assert!(
            bytes == disk.bytes(0, bytes.len()),
            "{file} is another disk"
        );
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.cache.stop();
    }
}

#[test]
fn qemu_reads_converts_maps_and_compares() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let site = Site::new();
    for (server, export) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let uri = site.uri(server, export);
        let info = tool("qemu-img", &["info", "--output=json", &uri]);
        let size = site.disks[export].size_bytes;
        assert!(
            info.contains(&format!("\"virtual-size\": {size}")),
            "{info}"
        );
        let copy = site.path(&format!("copy-{server}-{export}.raw"));
        tool(
            "qemu-img",
            &["convert", "-f", "raw", "-O", "raw", &uri, &copy],
        );
        site.assert_holds(&copy, export);
        tool(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &copy, &uri],
        );
        let twice = site.path("copy.qcow2");
        tool(
            "qemu-img",
            &[
                "convert", "-m", "16", "-W", "-f", "raw", "-O", "qcow2", &uri, &twice,
            ],
        );
        tool(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "qcow2", &uri, &twice],
        );
    }
    // Holes are known without reading: as many bytes of zeros as the disk says.
    let map = tool(
        "qemu-img",
        &["map", "--output=json", "-f", "raw", &site.uri(0, 0)],
    );
    let disk = &site.disks[0];
    let bytes = disk.bytes(0, disk.size_bytes as usize);
    let zeros = bytes
        .chunks(65_536)
        .filter(|block| block.iter().all(|byte| *byte == 0));
    let expected: usize = zeros.map(<[u8]>::len).sum();
    let told: usize = map
        .lines()
        .filter(|line| line.contains("\"zero\": true"))
        .map(|line| {
            let length = line.split("\"length\": ").nth(1).expect("a length");
            let digits: String = length.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<usize>().expect("a number")
        })
        .sum();
    assert_eq!(told, expected, "{map}");
}

#[test]
fn qemu_io_reads_at_odd_places_and_may_not_write() {
    if !have(&["qemu-io"]) {
        return;
    }
    let site = Site::new();
    let uri = site.uri(1, 1);
    let mut random = Random(seed());
    for _ in 0..12 {
        let length = 1 + random.below(200_000);
        let offset = random.below(site.disks[1].size_bytes - length);
        let wanted = site.disks[1].bytes(offset, length as usize);
        let shown = tool(
            "qemu-io",
            &[
                "-r",
                "-f",
                "raw",
                "-c",
                &format!("read -v {offset} {length}"),
                &uri,
            ],
        );
        let mut heard = Vec::new();
        for line in shown.lines() {
            // 00000000:  0a 1b …  ........
            let Some((_, bytes)) = line.split_once(":  ") else {
                continue;
            };
            let bytes = bytes.split("  ").next().expect("bytes");
            heard.extend(
                bytes
                    .split(' ')
                    .filter_map(|byte| u8::from_str_radix(byte, 16).ok()),
            );
        }
        assert!(heard == wanted, "{length} bytes at {offset}");
    }
    let refused = run("qemu-io", &["-f", "raw", "-c", "write 0 512", &uri]);
    assert!(!refused.status.success(), "{refused:?}");
}

#[test]
fn the_tools_of_libnbd_list_describe_and_copy() {
    if !have(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let site = Site::new();
    for server in 0..2 {
        let Address::Tcp(host) = site.servers[0].address() else {
            panic!("not TCP")
        };
        let list = match server {
            0 => tool("nbdinfo", &["--list", &format!("nbd://{host}")]),
            _ => tool(
                "nbdinfo",
                &[
                    "--list",
                    &format!("nbd+unix:///?socket={}", site.path("nbd.sock")),
                ],
            ),
        };
        for name in NAMES {
            assert!(list.contains(&format!("export=\"{name}\"")), "{list}");
            assert!(list.contains(&format!("the disk {name}")), "{list}");
        }
        for export in 0..2 {
            let uri = site.uri(server, export);
            let info = tool("nbdinfo", &[&uri]);
            for fact in [
                "is_read_only: true",
                "can_multi_conn: true",
                "can_cache: true",
                "can_df: true",
                "base:allocation",
            ] {
                assert!(info.contains(fact), "{fact}: {info}");
            }
            let copy = site.path("copy.raw");
            tool("nbdcopy", &[&uri, &copy]);
            site.assert_holds(&copy, export);
            tool(
                "nbdcopy",
                &[
                    "--connections=1",
                    "--requests=1",
                    "--synchronous",
                    &uri,
                    &copy,
                ],
            );
            site.assert_holds(&copy, export);
            let totals = tool("nbdinfo", &["--map", "--totals", &uri]);
            assert!(totals.contains("hole,zero"), "{totals}");
        }
    }
    let unknown = run("nbdinfo", &[&site.servers[0].address().uri("nobody")]);
    assert!(!unknown.status.success(), "{unknown:?}");
}

/// What a program in the language of libnbd's shell says about an export.
const PYTHON: &str = r#"
import errno, hashlib, os, sys
whole = open(os.environ["WHOLE"], "rb").read()
size = h.get_size()
assert size == len(whole), size
assert h.is_read_only() and h.can_multi_conn() and h.can_df() and h.can_cache()
assert h.get_structured_replies_negotiated() and h.can_meta_context("base:allocation")
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1 and h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
for offset, length in [(0, 1), (size - 1, 1), (65535, 2), (12345, 777777), (0, size)]:
    assert h.pread(length, offset) == whole[offset:offset + length], (offset, length)

pieces = []
def chunk(data, offset, status, error):
    assert error.value == 0
    pieces.append((offset, bytes(data), status))
got = h.pread_structured(size, 0, chunk)
assert got == whole
assert sum(len(data) for _, data, _ in pieces) == size
assert any(status == nbd.READ_HOLE for _, _, status in pieces)

pieces.clear()
assert h.pread_structured(70000, 3, chunk, nbd.CMD_FLAG_DF) == whole[3:70003]
assert len(pieces) == 1

states = []
def extent(context, offset, entries, error):
    assert context == "base:allocation"
    at = offset
    for length, state in zip(entries[::2], entries[1::2]):
        states.append((at, length, state))
        at += length
    return 0
h.block_status(size, 0, extent)
assert sum(length for _, length, _ in states) == size
for at, length, state in states:
    assert (state == 3) == (whole[at:at + length].count(0) == length), (at, length, state)
h.cache(65536, 0)

h.set_strict_mode(0)
def fails(number, act):
    try:
        act()
    except nbd.Error as error:
        assert error.errnum == number, (error.errnum, str(error))
        return
    raise AssertionError("it did not fail")
fails(errno.EPERM, lambda: h.pwrite(b"x" * 512, 0))
fails(errno.EPERM, lambda: h.trim(512, 0))
fails(errno.EPERM, lambda: h.zero(512, 0))
fails(errno.EINVAL, lambda: h.pread(2, size - 1))
fails(errno.EINVAL, lambda: h.pread(1, 1 << 62))
fails(errno.EOVERFLOW, lambda: h.pread_structured(2 << 20, 0, lambda *_: 0, nbd.CMD_FLAG_DF))
assert h.pread(100, 5) == whole[5:105]

# Many at once, of odd lengths, answered in any order.
import random
random.seed(7)
waiting = []
for number in range(300):
    length = random.randrange(1, 100000)
    offset = random.randrange(0, size - length)
    buffer = nbd.Buffer(length)
    waiting.append((h.aio_pread(buffer, offset), buffer, offset, length))
for cookie, buffer, offset, length in waiting:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
    assert buffer.to_bytearray() == whole[offset:offset + length], (offset, length)
print("fine")
"#;

#[test]
fn a_program_over_libnbd_finds_every_answer_right() {
    if !have(&["nbdsh"]) {
        return;
    }
    let site = Site::new();
    for export in 0..2 {
        let whole = site.path("whole.raw");
        let disk = &site.disks[export];
        fs::write(&whole, disk.bytes(0, disk.size_bytes as usize)).expect("a file");
        if export == 1 {
            // It has no hole at all, or few: the program wants one.
            continue;
        }
        let output = Command::new("nbdsh")
            .env("PATH", path())
            .args([
                "--base-allocation",
                "-u",
                &site.uri(0, export),
                "-c",
                PYTHON,
            ])
            .env("WHOLE", &whole)
            .output()
            .expect("it starts");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "fine");
    }
}

#[test]
fn old_clients_that_know_neither_chunks_nor_contexts_read_the_same() {
    if !have(&["nbdsh"]) {
        return;
    }
    let site = Site::new();
    let whole = site.path("whole.raw");
    let disk = &site.disks[0];
    fs::write(&whole, disk.bytes(0, disk.size_bytes as usize)).expect("a file");
    for flags in ["0", "nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE"] {
        let program = format!(
            "import os\nh.set_request_structured_replies(False)\nh.set_handshake_flags({flags})\n\
             h.set_export_name({:?})\nh.connect_unix({:?})\nwhole = open(os.environ['WHOLE'], 'rb').read()\n\
             assert not h.get_structured_replies_negotiated()\nassert h.get_size() == len(whole)\n\
             assert h.pread(3 << 20, 1) == whole[1:(3 << 20) + 1]\nh.shutdown()\nprint('fine')\n",
            NAMES[0],
            site.path("nbd.sock"),
        );
        let output = Command::new("nbdsh")
            .env("PATH", path())
            .args(["-c", &program])
            .env("WHOLE", &whole)
            .output()
            .expect("it starts");
        assert!(output.status.success(), "{flags}: {output:?}");
    }
}

#[test]
fn nbd_client_lists_what_is_served() {
    if !have(&["nbd-client"]) {
        return;
    }
    let site = Site::new();
    let Address::Tcp(host) = site.servers[0].address() else {
        panic!("not TCP")
    };
    let (host, port) = host.rsplit_once(':').expect("a port");
    let output = run("nbd-client", &["-l", host, port]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    for name in NAMES {
        assert!(shown.contains(name), "{output:?}");
    }
}

#[test]
fn many_clients_at_once_read_the_same_bytes_also_while_others_are_killed() {
    if !have(&["qemu-img", "nbdcopy"]) {
        return;
    }
    let site = Site::new();
    let uris: Vec<String> = (0..2).map(|server| site.uri(server, 0)).collect();
    let copies: Vec<String> = (0..6)
        .map(|number| site.path(&format!("copy-{number}.raw")))
        .collect();
    let mut killed = Vec::new();
    for number in 0..4 {
        let child = Command::new("nbdcopy")
            .args([&uris[number % 2], "null:"])
            .stderr(Stdio::null())
            .spawn();
        killed.push(child.expect("it starts"));
    }
    std::thread::scope(|scope| {
        for (number, copy) in copies.iter().enumerate() {
            let uri = &uris[number % 2];
            scope.spawn(move || {
                if number < 3 {
                    tool("nbdcopy", &[uri, copy]);
                } else {
                    tool(
                        "qemu-img",
                        &["convert", "-f", "raw", "-O", "raw", uri, copy],
                    );
                }
            });
        }
        for child in &mut killed {
            child.kill().expect("it was there");
            child.wait().expect("its end");
        }
    });
    for copy in &copies {
        site.assert_holds(copy, 0);
    }
}

#[test]
fn a_client_learns_at_once_that_serving_ended() {
    if !have(&["nbdsh"]) {
        return;
    }
    let mut site = Site::new();
    let program = "h.pread(1, 0)\nprint('reading', flush=True)\nimport sys\nsys.stdin.readline()\n\
         try:\n    h.pread(1 << 20, 0)\nexcept nbd.Error as error:\n    print('ended')\n";
    let mut child = Command::new("nbdsh")
        .env("PATH", path())
        .args(["-u", &site.uri(1, 0), "-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut said = child.stdout.take().expect("its output");
    let mut first = [0; 8];
    std::io::Read::read_exact(&mut said, &mut first).expect("it reads");
    assert_eq!(&first, b"reading\n");
    let begun = Instant::now();
    site.servers.pop().expect("the second").stop();
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "nobody was waited for"
    );
    assert!(!Path::new(&site.path("nbd.sock")).exists());
    child
        .stdin
        .take()
        .expect("its input")
        .write_all(b"go on\n")
        .expect("said");
    let output = child.wait_with_output().expect("its end");
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut said, &mut rest).expect("the rest");
    assert!(
        output.status.success() && rest.contains("ended"),
        "{output:?} {rest}"
    );
}
