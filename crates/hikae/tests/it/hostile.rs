//! Images that lie, through the real commands: `image inspect`, `ls` and `extract` end by themselves, in little memory and
//! time, with an exit code that means something.
//!
//! ```text
//!   corpora, unpacked ─┬─ as they are ───────────────────┬─► inspect ─► ls --recursive, each volume ─► extract --tar -
//!                      └─ seeded wounds where bytes are ─┘        each under `prlimit`, at most 20 s
//! ```
//! `HIKAE_HOSTILE_SEED` and `HIKAE_HOSTILE_CASES` (wounded copies of each image) choose another walk; the name of a failing
//! case brings it back. Where the corpora or tools are missing the test is skipped aloud, and fails in CI.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::disk::Random;
use super::site::{Site, text};

/// Heap, stacks and private mappings of a process.
const MEMORY_LIMIT_BYTES: u64 = 256 << 20;
const TIME_LIMIT: Duration = Duration::from_secs(20);
/// What is read of an output before its reader goes: a lie about sizes may be endless.
const OUTPUT_MAX: u64 = 64 << 20;
/// Longest image that is unpacked.
const IMAGE_BYTES_MAX: u64 = 512 << 20;
/// Longest image of which wounded copies are made.
const WOUNDED_BYTES_MAX: u64 = 64 << 20;
/// Done, failed, and done with something to tell.
const EXIT_CODES: [i32; 3] = [0, 1, 3];
const BLOCK: usize = 4096;

fn corpora() -> Option<PathBuf> {
    let folder = std::env::var_os("HIKAE_CORPORA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpora"),
        PathBuf::from,
    );
    if folder.join("manifest.json").exists() {
        return Some(folder);
    }
    skip("the corpora are not there");
    None
}

fn skip(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what}");
    println!("SKIP: {what}");
}

fn setting(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Disks and volumes of the corpora; not what is neither.
fn images(root: &Path) -> Vec<String> {
    let manifest = fs::read(root.join("manifest.json")).expect("the manifest");
    let entries: Vec<Value> = serde_json::from_slice(&manifest).expect("a list");
    let is_image = |entry: &&Value| {
        let group = entry["group"].as_str();
        let size = entry["unpacked_size"].as_u64();
        !matches!(group, Some("registry" | "vmconfig" | "pve"))
            && size.is_none_or(|size| size <= IMAGE_BYTES_MAX)
    };
    let paths = entries.iter().filter(is_image).map(|entry| {
        let path = entry["path"].as_str();
        path.expect("a path").to_owned()
    });
    paths.filter(|path| !path.ends_with(".zip")).collect()
}

/// Unpacks an image; whether there is a tool for it.
fn unpack(packed: &Path, to: &Path) {
    let tool = match packed.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("gz") => "gzip",
        Some("bz2") => "bzip2",
        Some("zst") => "zstd",
        _ => {
            fs::copy(packed, to).expect("copied");
            return;
        }
    };
    let status = Command::new(tool)
        .arg("-dc")
        .stdin(File::open(packed).expect("the packed image"))
        .stdout(File::create(to).expect("a file"))
        .status();
    assert!(status.expect("it starts").success(), "{tool} {packed:?}");
}

/// Changes bytes where there are any: numbers at their limits, bits, and pieces of other places.
fn wound(path: &Path, random: &mut Random) {
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("the image");
    let bytes = fs::read(path).expect("its bytes");
    let is_full = |at: &usize| bytes[*at..].iter().take(BLOCK).any(|byte| *byte != 0);
    let full: Vec<usize> = (0..bytes.len()).step_by(BLOCK).filter(is_full).collect();
    if full.is_empty() {
        return;
    }
    for _ in 0..=random.below(40) {
        let block = full[random.below(full.len() as u64) as usize];
        let at = block as u64 + random.below(BLOCK as u64);
        let left = bytes.len() as u64 - at.min(bytes.len() as u64);
        let wound: Vec<u8> = match random.below(5) {
            0 => vec![0xFF; 4],
            1 => vec![0; 8],
            2 => random.below(bytes.len() as u64).to_le_bytes()[..4].to_vec(),
            3 => random.next().to_be_bytes().to_vec(),
            _ => {
                let from = full[random.below(full.len() as u64) as usize];
                bytes[from..].iter().take(64).copied().collect()
            }
        };
        let length = wound.len().min(left as usize);
        file.write_all_at(&wound[..length], at).expect("wounded");
    }
}

/// A process under limits, and what it wrote first.
struct Ended {
    code: Option<i32>,
    output: Vec<u8>,
    errors: String,
    took: Duration,
}

fn limited(site: &Site, words: &[&str]) -> Ended {
    let command = site.command(words);
    let mut limited = Command::new("prlimit");
    limited
        .arg(format!("--data={MEMORY_LIMIT_BYTES}"))
        .arg("--core=0")
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(site.path(""))
        .env("HOME", site.path("home"))
        .env("XDG_CACHE_HOME", site.path("home/cache"))
        .env("TMPDIR", site.path(""))
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = limited.spawn().expect("prlimit starts");
    let stdout = child.stdout.take().expect("its output");
    let mut stderr = child.stderr.take().expect("its errors");
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).expect("what it said");
        String::from_utf8_lossy(&bytes).into_owned()
    });
    // Dropped when so much was read: whoever writes on is told.
    let output = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout
            .take(OUTPUT_MAX)
            .read_to_end(&mut bytes)
            .expect("what it wrote");
        bytes
    });
    let code = wait(&mut child, begun);
    Ended {
        code,
        output: output.join().expect("the reading thread"),
        errors: errors.join().expect("the reading thread"),
        took: begun.elapsed(),
    }
}

/// Its exit code; none when it was killed for taking too long, or by a signal.
fn wait(child: &mut Child, begun: Instant) -> Option<i32> {
    loop {
        if let Some(status) = child.try_wait().expect("its status") {
            return status.code();
        }
        if begun.elapsed() > TIME_LIMIT {
            child.kill().expect("it is there");
            child.wait().expect("its end");
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// What is wrong with how a command ended, if anything is.
fn fault(ended: &Ended) -> Option<String> {
    let is_fine = ended.code.is_some_and(|code| EXIT_CODES.contains(&code))
        && !ended.errors.contains("panicked")
        && ended.took < TIME_LIMIT;
    let tail: String = ended.errors.chars().take(600).collect();
    (!is_fine).then(|| format!("{:?} after {:?}: {tail}", ended.code, ended.took))
}

/// Runs all commands on an image; what went wrong.
fn put_through(site: &Site, image: &Path) -> Vec<String> {
    let image = text(image);
    let mut faults = Vec::new();
    let mut run = |words: &[&str]| {
        let ended = limited(site, words);
        if let Some(fault) = fault(&ended) {
            faults.push(format!("{words:?}: {fault}"));
        }
        ended
    };
    let seen = run(&["image", "inspect", image]);
    let seen: Value = serde_json::from_slice(&seen.output).unwrap_or_default();
    let volumes = seen["volumes"].as_array().map_or(0, Vec::len);
    run(&["image", "ls", image]);
    for volume in 1..=volumes.min(8) {
        let root = format!("{volume}:/");
        run(&["image", "ls", image, &root, "--recursive"]);
    }
    run(&["image", "extract", image, "/", "--tar", "-"]);
    faults
}

/// Puts every image through, as it is and wounded; each worker in a place of its own.
fn put_all_through(root: &Path, images: &[String], seed: u64, cases: u64) -> Vec<String> {
    let (next, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let site = Site::new();
                let image = site.path("image");
                while let Some(path) = images.get(next.fetch_add(1, Ordering::Relaxed)) {
                    for case in 0..=cases {
                        unpack(&root.join(path), &image);
                        if case > 0 {
                            let length = fs::metadata(&image).expect("its size").len();
                            if length > WOUNDED_BYTES_MAX {
                                break;
                            }
                            let own = path.bytes().fold(0_u64, |sum, byte| {
                                sum.wrapping_mul(31).wrapping_add(u64::from(byte))
                            });
                            wound(&image, &mut Random::new(seed ^ own ^ case));
                        }
                        for fault in put_through(&site, &image) {
                            let mut faults = faults.lock().expect("nobody panicked");
                            faults.push(format!("{path}, seed {seed}, case {case}: {fault}"));
                        }
                    }
                }
            });
        }
    });
    faults.into_inner().expect("nobody panicked")
}

#[test]
fn images_that_lie_cost_little_and_end_with_a_code_that_means_something() {
    for tool in ["prlimit", "xz", "gzip", "bzip2", "zstd"] {
        if Command::new(tool).arg("--version").output().is_err() {
            skip(&format!("{tool} is missing"));
            return;
        }
    }
    let Some(root) = corpora() else { return };
    let images = images(&root);
    assert!(images.len() > 100, "{}", images.len());
    let seed = setting("HIKAE_HOSTILE_SEED", 1);
    let cases = setting("HIKAE_HOSTILE_CASES", 1);
    let faults = put_all_through(&root, &images, seed, cases);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
