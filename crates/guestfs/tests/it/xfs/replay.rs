//! Logs in which something lies: a crash at any moment, against what Linux makes of it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::filesystem::Cleanliness;

use super::{damage, linux};
use crate::conformance;
use crate::images::{FileVolume, has_commands, missing, script};

/// Does random things in a folder.
const CHAOS: &str = r#"
import fcntl, os, random, subprocess, sys
top, seed, steps, ending = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
r = random.Random(seed)
files, folders, count = [], [top], 0
def name(folder):
    global count
    count += 1
    length = r.choice([1, 1, 1, 8, 40, 120])
    return os.path.join(folder, f'{count}' + 'n' * length)
def write(path, size):
    with open(path, 'ab') as f:
        f.write(r.randbytes(1 + size % 4096) * (1 + size // 4096))
        if r.random() < .05: os.fsync(f.fileno())
def make():
    path = name(r.choice(folders))
    write(path, r.choice([0, 10, 3000, 20000, 300000]))
    files.append(path)
def pieces():
    path = name(r.choice(folders))
    with open(path, 'wb') as f:
        for i in range(r.choice([3, 30, 400])):
            os.pwrite(f.fileno(), bytes([i % 251]) * 4096, i * 12288)
    files.append(path)
def folder():
    path = name(r.choice(folders)); os.mkdir(path); folders.append(path)
def many():
    path = name(r.choice(folders)); os.mkdir(path); folders.append(path)
    for i in range(r.choice([50, 400, 1500])):
        one = os.path.join(path, f'one of many files in a folder {i}')
        open(one, 'w').close()
        if r.random() < .1: files.append(one)
        elif r.random() < .3: os.unlink(one)
def one(): return r.choice(files) if files else None
def unlink():
    p = one()
    if p: files.remove(p); os.unlink(p)
def rename():
    p = one()
    if p:
        q = name(r.choice(folders)); os.rename(p, q); files.remove(p); files.append(q)
def over():
    p, q = one(), one()
    if p and p != q: os.rename(p, q); files.remove(p)
def cut():
    p = one()
    if p and not os.path.islink(p): os.truncate(p, r.choice([0, 5, 4096, 100000, 1 << 33]))
def holes():
    p = one()
    if p and not os.path.islink(p):
        how = r.choice([0, 1, 3, 0x10, 8, 0x20])
        args = {8: (4096, 4096), 0x20: (4096, 8192)}.get(how, (r.randrange(50000), 1 + r.randrange(90000)))
        subprocess.run(['xfs_io', '-c', {0: 'falloc %d %d', 1: 'falloc -k %d %d', 3: 'fpunch %d %d', 0x10: 'fzero %d %d',
            8: 'fcollapse %d %d', 0x20: 'finsert %d %d'}[how] % args, p], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
def clone():
    p = one()
    if p and not os.path.islink(p):
        q = name(r.choice(folders))
        with open(p, 'rb') as a, open(q, 'wb') as b:
            try: fcntl.ioctl(b, 0x40049409, a.fileno())
            except OSError: pass
        files.append(q)
        if r.random() < .7: write(q, 5000)
def attribute():
    p = one() or top
    for i in range(r.choice([1, 1, 3, 40])):
        os.setxattr(p, r.choice(['user', 'trusted', 'security']) + f'.k{r.randrange(60)}' + 'k' * r.choice([0, 30, 200]),
            r.randbytes(r.choice([0, 5, 60, 800, 3000, 9000, 65536])), follow_symlinks=False) if not os.path.islink(p) else 0
def forget():
    p = one() or top
    if not os.path.islink(p):
        for k in os.listxattr(p):
            if r.random() < .5 and not k.startswith('system'): os.removexattr(p, k)
def link():
    p = one()
    if p: q = name(r.choice(folders)); os.link(p, q, follow_symlinks=False); files.append(q)
def short():
    q = name(r.choice(folders)); os.symlink('t' * r.choice([1, 100, 400, 1000]), q); files.append(q)
def device():
    # Nobody opens them.
    q = name(r.choice(folders)); os.mknod(q, r.choice([0o20600, 0o60600, 0o10600]), os.makedev(7, 13))
def change():
    p = one()
    if p and not os.path.islink(p):
        os.chmod(p, r.randrange(0o10000)); os.chown(p, r.randrange(70000), r.randrange(70000))
        os.utime(p, (1e9 * r.random(), 1e9 * r.random()))
def prune():
    if len(folders) > 3:
        path = folders.pop(r.randrange(1, len(folders)))
        for q in [f for f in folders if f.startswith(path + '/')]: folders.remove(q)
        for q in [f for f in files if f.startswith(path + '/')]: files.remove(q)
        subprocess.run(['rm', '-rf', path])
deeds = [make] * 12 + [unlink] * 6 + [rename] * 4 + [attribute] * 4 + [folder] * 3 + [pieces] * 2 + [over, cut, cut, holes,
    holes, clone, clone, forget, link, link, short, device, change, change, prune]
for step in range(steps):
    try: r.choice(deeds)()
    except OSError as e:
        if e.errno not in (28, 31, 27, 1, 95, 7, 5): raise
    if r.random() < (.01 if steps > 1000 else .004): many()
    if r.random() < (.01 if steps > 1000 else .002): os.sync()
if ending == 'sync': os.sync()
if ending != 'none':
    subprocess.run(['xfs_io', '-x', '-c', 'shutdown' if ending == 'lost' else 'shutdown -f', top], check=True)
"#;

fn is_here() -> bool {
    has_commands(&["mkfs.xfs", "xfs_io", "xfs_repair", "mount", "python3"])
}

/// A crashed image; `None` where it cannot be made.
pub fn crash(folder: &Path, options: &str, seed: u64, steps: u32, ending: &str) -> Option<()> {
    if !is_here() {
        return None;
    }
    std::fs::write(folder.join("chaos.py"), CHAOS).expect("a script");
    linux::make(folder, "image", options);
    let text = format!(
        "mount -o loop image mnt
         python3 chaos.py mnt {seed} {steps} {ending}
         umount mnt"
    );
    if let Err(why) = script(folder, &text) {
        missing(&format!("XFS cannot be mounted or shut down here: {why}"));
        return None;
    }
    Some(())
}

/// Turns everything that is not used into zeros.
fn zero_unused(fs: &dyn FileSystem, image: &Path) {
    let file = OpenOptions::new()
        .write(true)
        .open(image)
        .expect("the image");
    let length = file.metadata().expect("its size").len();
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    let used = conformance::used_ranges(fs);
    let ends = used
        .iter()
        .map(|range| (range.offset, range.offset + range.length_bytes));
    for (start, end) in ends.chain([(length, length)]) {
        while at < start {
            let count = (start - at).min(1 << 20);
            let count = usize::try_from(count).expect("small");
            file.write_all_at(&zeros[..count], at).expect("room");
            at += count as u64;
        }
        at = end.max(at);
    }
}

fn check(options: &str, seed: u64, steps: u32, ending: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let what = format!("mkfs.xfs {options}, seed {seed}, {ending}");
    if crash(folder, options, seed, steps, ending).is_none() {
        return;
    }
    // The first seeds are known to fill their small logs.
    if seed < 100 && options.contains("-l size=") {
        let volume = FileVolume::open(&folder.join("image"));
        let cycle = damage::newest_cycle(&*volume);
        assert!(cycle > 1, "{what}: the log did not go round");
    }
    check_image(folder, &what);
}

fn check_image(folder: &Path, what: &str) {
    let image = folder.join("image");
    linux::list(folder, "image", "listed").unwrap_or_else(|why| panic!("{what}: {why}"));
    let volume: Arc<dyn ReadAt> = FileVolume::open(&image);
    let fs = guestfs::xfs::open(Arc::clone(&volume)).expect("XFS");
    assert_eq!(fs.facts().cleanliness, Cleanliness::Replayed, "{what}");
    let tree = conformance::check(&fs);
    linux::compare(what, &tree, &folder.join("listed"));
    conformance::check_unused(Arc::clone(&volume), &tree, &super::open);
    // What is unused is not needed by Linux either, with the log as it is.
    zero_unused(&fs, &image);
    let copied = File::open(&image).and_then(|file| file.sync_all());
    copied.expect("on the disk");
    linux::list(folder, "image", "again").unwrap_or_else(|why| panic!("{what}: {why}"));
    linux::compare(
        &format!("{what}, unused zeroed"),
        &tree,
        &folder.join("again"),
    );
    script(folder, "xfs_repair -n -o force_geometry again.image")
        .unwrap_or_else(|why| panic!("{what}: xfs_repair: {why}"));
}

/// What mkfs can do that changes how things lie, and how it ends.
const KINDS: [(&str, u32, &str); 9] = [
    ("", 400, "flush"),
    (
        "-l size=13m -m rmapbt=1,reflink=1 -i nrext64=1,sparse=1",
        4000,
        "flush",
    ),
    ("-b size=1024 -n size=8192 -m reflink=0", 500, "lost"),
    (
        "-m finobt=0,reflink=0,bigtime=0 -i sparse=0 -l su=32k",
        500,
        "sync",
    ),
    ("-i size=2048 -n size=65536", 500, "flush"),
    ("-l su=256k,size=24m -d agcount=16", 1500, "flush"),
    ("-s size=4096 -m inobtcount=0,rmapbt=1", 500, "lost"),
    ("-b size=2048 -i size=1024 -l size=8m", 2500, "flush"),
    ("-m crc=1 -l su=4k -d agcount=1", 30, "flush"),
];

/// Runs some of them; more seeds with as many rounds as the environment says.
fn check_kinds(kinds: std::ops::Range<usize>) {
    if !is_here() {
        return;
    }
    let rounds: u64 = std::env::var("HIKAE_XFS_ROUNDS")
        .map_or(Ok(1), |text| text.parse())
        .expect("a number");
    for round in 0..rounds {
        for index in kinds.clone() {
            let (options, steps, ending) = KINDS[index];
            check(options, round * 100 + index as u64, steps, ending);
        }
    }
}

#[test]
fn after_a_crash_everything_is_as_linux_makes_it() {
    check_kinds(0..3);
}

#[test]
fn after_a_crash_with_stripes_and_large_inodes_everything_is_as_linux_makes_it() {
    check_kinds(3..6);
}

#[test]
fn after_a_crash_of_a_log_that_went_round_everything_is_as_linux_makes_it() {
    check_kinds(6..9);
}

/// A snapshot of the image while Linux works on it: an XFS under it shares its blocks in one moment.
#[test]
fn a_snapshot_of_a_working_file_system_is_as_linux_makes_it() {
    if !is_here() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    std::fs::write(path.join("chaos.py"), CHAOS).expect("a script");
    let made = script(
        path,
        "truncate -s 3G under; mkfs.xfs -q under; mkdir under.mnt mnt; mount -o loop under under.mnt
         truncate -s 400M under.mnt/image; TEST_DIR=. TEST_DEV=. QA_CHECK_FS=1 mkfs.xfs -q -l size=16m under.mnt/image
         mount -o loop under.mnt/image mnt
         python3 chaos.py mnt 77 6000 none & worker=$!
         for i in 1 2 3 4; do
             python3 -c 'import select; select.select([], [], [], 0.7)'
             cp --reflink=always under.mnt/image under.mnt/image$i
         done
         kill $worker || true; wait $worker || true
         for i in 1 2 3 4; do cp --sparse=always under.mnt/image$i image$i; done
         umount mnt; umount under.mnt; rm under",
    );
    if let Err(why) = made {
        missing(&format!("snapshots cannot be made here: {why}"));
        return;
    }
    for index in 1..=4 {
        std::fs::rename(path.join(format!("image{index}")), path.join("image")).expect("an image");
        check_image(path, &format!("snapshot {index}"));
    }
}
