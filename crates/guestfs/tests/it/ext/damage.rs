//! Damage: typed errors or partial answers, never a panic, never without end.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guestfs::filesystem::{DirectoryCursor, FileKind};
use guestfs::{ErrorKind, FileSystem};

use crate::images::{MemoryVolume, has_commands, missing, script};

/// What a walk over a damaged file system met.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Wandered {
    pub files: u64,
    pub errors: u64,
}

/// Walks as far as it goes, reads a little of everything, and bounds itself.
pub fn wander(fs: &dyn FileSystem) -> Wandered {
    let mut seen = Wandered::default();
    let mut visited = HashSet::new();
    let mut stack = vec![fs.root()];
    while let Some(file) = stack.pop() {
        if !visited.insert(file) || visited.len() > 5000 {
            continue;
        }
        seen.files += 1;
        let Ok(metadata) = fs.metadata(file) else {
            seen.errors += 1;
            continue;
        };
        seen.errors += u64::from(fs.extended_attributes(file).is_err());
        match metadata.kind {
            FileKind::Directory => {
                let told = fs.list(file, DirectoryCursor::default(), &mut |entry| {
                    stack.push(entry.file);
                    if stack.len() > 20_000 {
                        return ControlFlow::Break(());
                    }
                    ControlFlow::Continue(())
                });
                seen.errors += u64::from(told.is_err());
            }
            FileKind::SymbolicLink => seen.errors += u64::from(fs.read_link(file).is_err()),
            FileKind::Regular => {
                if let Ok(contents) = fs.open(file, None) {
                    let mut position = 0;
                    for _ in 0..100 {
                        let Ok(extent) = contents.extent_at(position, u64::MAX) else {
                            break;
                        };
                        let mut buffer = vec![0; extent.length_bytes.min(65536) as usize];
                        seen.errors += u64::from(contents.read_at(position, &mut buffer).is_err());
                        position = extent.end();
                    }
                } else {
                    seen.errors += 1;
                }
                let mut left = 1000;
                let _ = fs.file_ranges(file, &mut |_| {
                    left -= 1;
                    if left == 0 {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                });
            }
            _ => {}
        }
    }
    let _ = fs.used_ranges(&mut |_| ControlFlow::Continue(()));
    seen
}

/// Numbers that look random and are the same every time.
pub struct Dice(pub u64);

impl Dice {
    /// The next number below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ mixed >> 31) % limit
    }
}

/// Damages some bytes where the structures are.
pub fn damage(image: &mut [u8], places: &[usize], dice: &mut Dice) {
    for _ in 0..=dice.below(6) {
        let block = places[dice.below(places.len() as u64) as usize];
        let at = block + dice.below(1024) as usize;
        let Some(part) = image.get_mut(at..at + 4) else {
            continue;
        };
        match dice.below(6) {
            0 => part[0] ^= 1 << dice.below(8),
            1 => part.fill(0),
            2 => part.fill(0xFF),
            3 => part.copy_from_slice(&(dice.below(4096) as u32).to_le_bytes()),
            4 => part[1] = part[1].wrapping_add(1),
            _ => part[0] = dice.below(256) as u8,
        }
    }
}

/// Places of 1 KiB that are not all zeros.
pub fn places(image: &[u8]) -> Vec<usize> {
    (0..image.len() / 1024)
        .map(|index| index * 1024)
        .filter(|&at| image[at..at + 1024].iter().any(|&byte| byte != 0))
        .collect()
}

#[test]
fn any_damage_gives_an_error_or_a_partial_answer_in_bounded_time() {
    if !has_commands(&["mke2fs", "debugfs"]) {
        return;
    }
    let fill = "
        mkdir tree; for i in $(seq 40); do mkdir -p tree/d$i/e; echo $i > tree/d$i/f$i; done
        for i in $(seq 200); do : > tree/d1/a-rather-long-name-that-fills-blocks-$i; done
        ln -s ../nowhere tree/link; ln -s $(printf 'x%.0s' $(seq 300)) tree/long
        truncate -s 3G tree/hole; for i in 0 5 90; do dd if=/dev/urandom of=tree/parts bs=1k seek=$i count=3 conv=notrunc status=none; done
        dd if=/dev/urandom of=tree/plain bs=1k count=400 status=none
        mke2fs -q -t ext4 -b 1024 -O ^metadata_csum,inline_data -d tree new4 4m
        mke2fs -q -t ext4 -b 1024 -d tree sums 4m
        mke2fs -q -t ext2 -b 1024 -d tree old2 4m";
    let folder = tempfile::tempdir().expect("a folder");
    if let Err(why) = script(folder.path(), fill) {
        missing(&format!("no image could be made: {why}"));
        return;
    }
    for name in ["new4", "sums", "old2"] {
        let image = std::fs::read(folder.path().join(name)).expect("the image");
        let sound =
            wander(&guestfs::ext::open(Arc::new(MemoryVolume(image.clone()))).expect("sound"));
        assert_eq!(sound.errors, 0, "{name}");
        assert!(sound.files > 200, "{name}: {sound:?}");
        let places = places(&image);
        let mut refused = 0;
        for seed in 0..150 {
            let mut dice = Dice(seed);
            let mut damaged = image.clone();
            damage(&mut damaged, &places, &mut dice);
            if seed % 10 == 9 {
                damaged.truncate(dice.below(image.len() as u64) as usize);
            }
            let start = Instant::now();
            match guestfs::ext::open(Arc::new(MemoryVolume(damaged))) {
                Ok(fs) => {
                    wander(&fs);
                }
                Err(error) => {
                    assert_ne!(error.kind(), ErrorKind::Io, "{name}, seed {seed}: {error}");
                    refused += 1;
                }
            }
            let taken = start.elapsed();
            assert!(
                taken < Duration::from_secs(20),
                "{name}, seed {seed}: {taken:?}"
            );
        }
        assert!(
            refused < 150,
            "{name}: damage somewhere does not lose everything"
        );
    }
}

/// An ext with a few files; `None` when this machine cannot make it.
fn made(folder: &std::path::Path, options: &str) -> Option<Vec<u8>> {
    if !has_commands(&["mke2fs"]) {
        return None;
    }
    let text = format!(
        "mkdir -p tree/folder; head -c 300000 /dev/urandom > tree/folder/noise; echo kept > tree/note
         rm -f image; truncate -s 160M image; mke2fs -q -F {options} -L wounded -d tree image"
    );
    script(folder, &text).expect("the tools make it");
    Some(std::fs::read(folder.join("image")).expect("the image"))
}

#[test]
fn a_bitmap_that_its_descriptor_does_not_agree_with_frees_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    // Without any checksum, with those of descriptors; the second group's bitmap, its descriptor's count.
    for options in [
        "-t ext2 -b 1024",
        "-t ext4 -b 4096 -O ^metadata_csum,^uninit_bg,^has_journal",
    ] {
        let Some(image) = made(folder.path(), options) else {
            return;
        };
        let used = |bytes: Vec<u8>| {
            let fs = guestfs::ext::open(Arc::new(MemoryVolume(bytes))).expect("an ext");
            fs.used_ranges(&mut |_| ControlFlow::Continue(()))
        };
        used(image.clone()).expect("sound");
        let block = if options.contains("1024") { 1024 } else { 4096 };
        let descriptor = 2048.max(block);
        let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().expect("four"));
        let bitmap = word(descriptor) as usize * block;
        for at in [bitmap + 300, descriptor + 12] {
            let mut bytes = image.clone();
            bytes[at] ^= 1;
            let refused = used(bytes).map_err(|error| error.kind());
            assert_eq!(refused, Err(ErrorKind::Corrupt), "{options}: byte {at}");
        }
    }
}

#[test]
fn an_ext_without_its_first_superblock_is_known_by_a_copy_and_is_called_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    for options in ["-t ext4 -b 1024", "-t ext4 -b 4096", "-t ext2 -b 2048"] {
        let Some(image) = made(folder.path(), options) else {
            return;
        };
        let wounds: [(usize, usize); 3] = [(1024 + 56, 2), (1024, 1024), (0, 2048)];
        for (at, length) in wounds {
            let mut bytes = image.clone();
            bytes[at..at + length].fill(0);
            let volume: Arc<dyn block::ReadAt> = Arc::new(MemoryVolume(bytes));
            let layout = guestfs::disk::inspect(&[Arc::clone(&volume)]).expect("it is read");
            let content = &layout.volumes[0].content;
            let kind = if options.contains("ext2") {
                "ext2"
            } else {
                "ext4"
            };
            assert_eq!(content.kind.name(), kind, "{options}: {length} at {at}");
            assert_eq!(content.label.as_deref(), Some("wounded"));
            let fs = guestfs::ext::open(volume).expect("by the copy");
            let told = format!("{:?}", fs.facts().cleanliness);
            assert!(
                told.starts_with("Dirty") && told.contains("a copy"),
                "{told}"
            );
            assert!(wander(&fs).files > 4);
            let refused = fs.used_ranges(&mut |_| ControlFlow::Continue(()));
            refused.expect_err("of a damaged one nothing is free");
        }
        // Without copies it is not known what it was.
        let mut bytes = image.clone();
        bytes[1024 + 56..1024 + 58].fill(0);
        for log in 10..13_usize {
            let copy = (8 << (2 * log)) + if log == 10 { 1024 } else { 0 };
            bytes[copy + 56..copy + 58].fill(0);
        }
        let layout =
            guestfs::disk::inspect(&[Arc::new(MemoryVolume(bytes)) as Arc<dyn block::ReadAt>]);
        let content = &layout.expect("it is read").volumes[0].content;
        assert_eq!(content.kind.name(), "unknown");
    }
}
