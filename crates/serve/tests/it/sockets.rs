//! Clients that dawdle, crowd, die or come while serving ends cost nobody else anything.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use block::ReadAt;
use serve::nbd::{Address, Export, Exports, NbdListener, NbdOptions, NbdServer, Reach};
use serve::{ErrorKind, Event, Unwatched, Watch};

use super::disks::Numbers;
use super::speaker::{Speech, messages, read_of};

const MIB: u64 = 1 << 20;

/// A server of one disk at a free port.
pub fn server(disk: &Arc<Numbers>, options: NbdOptions, watch: Arc<dyn Watch>) -> NbdServer {
    let exports = Exports::new(vec![Export::new(
        "disk",
        Arc::clone(disk) as Arc<dyn ReadAt>,
    )]);
    let address = Address::Tcp("127.0.0.1:0".to_owned());
    let listener = NbdListener::bind(&address, Reach::Loopback).expect("a free port");
    NbdServer::start(listener, exports.expect("one"), options, watch).expect("it starts")
}

fn connect(server: &NbdServer) -> TcpStream {
    let Address::Tcp(host) = server.address() else {
        panic!("not TCP");
    };
    let stream = TcpStream::connect(host).expect("it listens");
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).expect("a timeout");
    stream
}

fn chosen() -> Speech {
    Speech::new(3).option(8, &[]).choose(7, "disk", &[])
}

/// Bytes of the greeting and of the answers to [`chosen`].
const CHOSEN_BYTES: usize = 18 + 20 + (20 + 12) + (20 + 14) + 20;

fn take(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("an answer");
    bytes
}

/// Reads something.
#[track_caller]
fn ask(stream: &mut TcpStream, disk: &Numbers) {
    let request = Speech::default().request(0, 0, 7, 0, 100);
    stream.write_all(&request.0).expect("said");
    let heard = take(stream, 20 + 8 + 100);
    let bytes = read_of(&messages(&heard), 7, 0, 100);
    assert_eq!(bytes, Some(disk.bytes(0, 100)));
}

/// Whether somebody is served now.
fn is_served(server: &NbdServer, disk: &Numbers) -> bool {
    let mut stream = connect(server);
    let speech = chosen().request(0, 0, 1, 5, 1000).request(0, 2, 2, 0, 0);
    if stream.write_all(&speech.0).is_err() {
        return false;
    }
    let mut heard = Vec::new();
    if stream.read_to_end(&mut heard).is_err() || heard.len() < CHOSEN_BYTES {
        return false;
    }
    read_of(&messages(&heard[CHOSEN_BYTES..]), 1, 5, 1000) == Some(disk.bytes(5, 1000))
}

#[test]
fn who_says_nothing_or_says_it_too_slowly_is_left() {
    let disk = Arc::new(Numbers::new(1, MIB, 100));
    let options = NbdOptions {
        negotiation_ms: 300,
        ..NbdOptions::default()
    };
    let server = server(&disk, options, Arc::new(Unwatched));
    let mut silent = connect(&server);
    let mut slow = connect(&server);
    let begun = Instant::now();
    let trickle = std::thread::spawn(move || {
        // A byte now and then: each on time, all of them too late.
        for byte in Speech::new(3).option(3, &[0; 40]).0 {
            if slow.write_all(&[byte]).is_err() {
                return;
            }
            slow.set_read_timeout(Some(Duration::from_millis(50)))
                .expect("a timeout");
            let mut answer = [0; 64];
            if matches!(slow.read(&mut answer), Ok(0)) {
                return;
            }
        }
        panic!("it was listened to for ever");
    });
    let mut heard = Vec::new();
    silent
        .read_to_end(&mut heard)
        .expect("the greeting and the end");
    assert_eq!(heard.len(), 18);
    trickle.join().expect("it was left");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(is_served(&server, &disk));
}

#[test]
fn more_clients_than_there_is_room_for_are_sent_away_and_the_others_stay() {
    let disk = Arc::new(Numbers::new(1, MIB, 100));
    let options = NbdOptions {
        clients_max: 3,
        ..NbdOptions::default()
    };
    let server = server(&disk, options, Arc::new(Unwatched));
    let mut here: Vec<TcpStream> = (0..3).map(|_| connect(&server)).collect();
    for stream in &mut here {
        stream.write_all(&chosen().0).expect("said");
        take(stream, CHOSEN_BYTES);
        ask(stream, &disk);
    }
    let mut heard = Vec::new();
    connect(&server).read_to_end(&mut heard).unwrap_or(0);
    assert_eq!(heard, b"", "sent away without a word");
    for stream in &mut here {
        ask(stream, &disk);
    }
    drop(here.pop());
    let begun = Instant::now();
    while !is_served(&server, &disk) {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "its place became free"
        );
    }
}

#[test]
fn clients_that_never_choose_lose_their_places_to_those_that_do() {
    let disk = Arc::new(Numbers::new(1, MIB, 100));
    let watch = Arc::new(Heard::default());
    let server = server(&disk, NbdOptions::default(), watch.clone());
    let mut working = connect(&server);
    working.write_all(&chosen().0).expect("said");
    take(&mut working, CHOSEN_BYTES);
    ask(&mut working, &disk);
    // More than there are places, each greeted and silent; the last ones stay.
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..40 {
        let mut stream = connect(&server);
        take(&mut stream, 18);
        silent.push(stream);
    }
    assert!(is_served(&server, &disk), "well before any deadline");
    let mut rest = Vec::new();
    silent[0].read_to_end(&mut rest).unwrap_or(0);
    assert_eq!(rest, b"", "who came first goes first");
    silent[39].write_all(&chosen().0).expect("said");
    take(&mut silent[39], CHOSEN_BYTES - 18);
    ask(&mut working, &disk);
    drop(server);
    let heard = watch.0.lock().expect("what was heard");
    let is_told = |event: &String| event.contains("somebody else needed its place");
    assert_eq!(heard.iter().filter(|event| is_told(event)).count(), 10);
}

#[test]
fn clients_that_are_idle_for_very_long_lose_their_places_only_when_all_are_taken() {
    let disk = Arc::new(Numbers::new(1, MIB, 100));
    let options = NbdOptions {
        clients_max: 2,
        idle_ms: 0,
        ..NbdOptions::default()
    };
    let server = server(&disk, options, Arc::new(Unwatched));
    let mut here: Vec<TcpStream> = (0..2).map(|_| connect(&server)).collect();
    for stream in &mut here {
        stream.write_all(&chosen().0).expect("said");
        take(stream, CHOSEN_BYTES);
    }
    // An answer came: then the question was noted.
    ask(&mut here[1], &disk);
    ask(&mut here[0], &disk);
    assert!(is_served(&server, &disk));
    let mut rest = Vec::new();
    here[1].read_to_end(&mut rest).unwrap_or(0);
    assert_eq!(rest, b"", "it was idle for longer");
    ask(&mut here[0], &disk);
}

#[test]
fn a_client_that_reads_no_answers_or_dies_does_not_keep_others_waiting() {
    let disk = Arc::new(Numbers::new(1, 16 * MIB, 100));
    let server = server(&disk, NbdOptions::default(), Arc::new(Unwatched));
    let mut deaf = connect(&server);
    let mut speech = chosen();
    for cookie in 0..200 {
        speech = speech.request(0, 0, cookie, 0, 16 << 20);
    }
    deaf.write_all(&speech.0).expect("said");
    assert!(is_served(&server, &disk));
    drop(deaf);
    for _ in 0..8 {
        let mut dying = connect(&server);
        dying
            .write_all(&chosen().request(0, 0, 1, 0, 16 << 20).0)
            .expect("said");
        take(&mut dying, 1000);
    }
    assert!(is_served(&server, &disk));
}

#[test]
fn requests_of_one_client_are_answered_side_by_side() {
    let disk = Arc::new(Numbers::new(1, 4 * MIB, 100));
    let server = server(&disk, NbdOptions::default(), Arc::new(Unwatched));
    let mut stream = connect(&server);
    disk.set_open(false);
    let mut speech = chosen();
    for cookie in 0..4 {
        speech = speech.request(0, 0, cookie, cookie * MIB, 65_536);
    }
    stream.write_all(&speech.0).expect("said");
    let begun = Instant::now();
    while disk.waiting.load(Ordering::Relaxed) < 4 {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "all four are being read"
        );
        std::thread::yield_now();
    }
    disk.set_open(true);
    take(&mut stream, CHOSEN_BYTES);
    let heard = messages(&take(&mut stream, 4 * (28 + 65_536)));
    for cookie in 0..4 {
        let bytes = disk.bytes(cookie * MIB, 65_536);
        assert!(read_of(&heard, cookie, cookie * MIB, 65_536) == Some(bytes));
    }
}

/// Remembers what it was told.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Watch for Heard {
    fn tell(&self, event: &Event<'_>) {
        self.0
            .lock()
            .expect("what was heard")
            .push(format!("{event:?}"));
    }
}

#[test]
fn when_serving_ends_what_was_begun_is_answered_and_nobody_is_left() {
    let disk = Arc::new(Numbers::new(1, 4 * MIB, 100));
    let watch = Arc::new(Heard::default());
    let server = server(&disk, NbdOptions::default(), watch.clone());
    let mut busy = connect(&server);
    let mut idle = connect(&server);
    for stream in [&mut busy, &mut idle] {
        stream.write_all(&chosen().0).expect("said");
        take(stream, CHOSEN_BYTES);
    }
    disk.set_open(false);
    let request = Speech::default().request(0, 0, 9, 0, 65_536);
    busy.write_all(&request.0).expect("said");
    let begun = Instant::now();
    while disk.waiting.load(Ordering::Relaxed) == 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "it is being read"
        );
        std::thread::yield_now();
    }
    let ending = std::thread::spawn(move || server.stop());
    // Its input ends first; then the disk answers.
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).expect("hung up");
    disk.set_open(true);
    let heard = take(&mut busy, 28 + 65_536);
    assert!(read_of(&messages(&heard), 9, 0, 65_536) == Some(disk.bytes(0, 65_536)));
    busy.read_to_end(&mut rest).expect("hung up");
    assert_eq!(rest, b"");
    let stats = ending.join().expect("it ended");
    assert_eq!(
        (stats.clients, stats.requests, stats.read_bytes),
        (2, 1, 65_536)
    );
    let heard = watch.0.lock().expect("what was heard");
    assert!(
        heard.iter().all(|event| !event.contains("Some(")),
        "nobody did wrong: {heard:?}"
    );
}

#[test]
fn a_read_that_fails_is_told_to_who_serves() {
    let disk = Arc::new(Numbers::new(1, 4 * MIB, 100));
    disk.bad_block.store(3, Ordering::Relaxed);
    let watch = Arc::new(Heard::default());
    let server = server(&disk, NbdOptions::default(), watch.clone());
    let mut stream = connect(&server);
    let speech = chosen().request(0, 0, 1, 0, 1 << 20).request(0, 2, 2, 0, 0);
    stream.write_all(&speech.0).expect("said");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("all of it");
    drop(server);
    let told = watch.0.lock().expect("what was heard").join("\n");
    assert!(
        told.contains("ReadFailed") && told.contains("a block is bad"),
        "{told}"
    );
}

#[test]
fn addresses_that_others_reach_need_a_word_and_taken_ones_are_named() {
    for host in ["0.0.0.0:0", "[::]:0"] {
        let address = Address::Tcp(host.to_owned());
        let refused = NbdListener::bind(&address, Reach::Loopback)
            .err()
            .map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::Refused), "{host}");
    }
    let anybody = Address::Tcp("0.0.0.0:0".to_owned());
    let listener = NbdListener::bind(&anybody, Reach::Anybody).expect("meant so");
    let taken = NbdListener::bind(listener.address(), Reach::Anybody).err();
    assert_eq!(taken.map(|error| error.kind()), Some(ErrorKind::Busy));
    for bad in ["", "tcp:", "tcp:localhost", "unix:", "http://x", "/run/x"] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
    let uri = "unix:/run/a b.sock"
        .parse::<Address>()
        .expect("fine")
        .uri("vm/1 ü@3");
    assert_eq!(uri, "nbd+unix:///vm/1%20%C3%BC@3?socket=/run/a%20b.sock");
}

#[cfg(unix)]
#[test]
fn a_dead_socket_is_replaced_a_living_one_and_a_file_are_not() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("nbd.sock");
    let address = Address::Unix(path.clone());
    let first = NbdListener::bind(&address, Reach::Loopback).expect("free");
    let mode = std::fs::metadata(&path)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "its owner's alone");
    let taken = NbdListener::bind(&address, Reach::Loopback).err();
    assert_eq!(taken.map(|error| error.kind()), Some(ErrorKind::Busy));
    drop(first);
    assert!(!path.exists(), "it is taken away");

    drop(std::os::unix::net::UnixListener::bind(&path).expect("left behind"));
    assert!(path.exists());
    drop(NbdListener::bind(&address, Reach::Loopback).expect("replaced"));
    std::fs::write(&path, b"precious").expect("a file");
    let refused = NbdListener::bind(&address, Reach::Loopback).err();
    assert_eq!(
        refused.map(|error| error.kind()),
        Some(ErrorKind::AlreadyExists)
    );
    assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
}
