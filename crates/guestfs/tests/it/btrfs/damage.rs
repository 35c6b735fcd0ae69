//! Images that lie, under right checksums: a typed error or a part, in bounded time.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::filesystem::{DirectoryCursor, FileKind};

use crate::corpus::{self, Dice};

const NODE: usize = 16 << 10;

/// An image of which some parts are others.
struct Patched {
    base: Arc<Vec<u8>>,
    parts: Vec<(usize, Vec<u8>)>,
}

impl ReadAt for Patched {
    fn size_bytes(&self) -> u64 {
        self.base.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = start
            .checked_add(buffer.len())
            .and_then(|end| self.base.get(start..end))
            .ok_or_else(|| block::Error::new(block::ErrorKind::OutOfRange, "behind the end"))?;
        buffer.copy_from_slice(part);
        let end = start + buffer.len();
        for (at, bytes) in &self.parts {
            let (from, to) = (start.max(*at), end.min(at + bytes.len()));
            if from < to {
                buffer[from - start..to - start].copy_from_slice(&bytes[from - at..to - at]);
            }
        }
        Ok(())
    }
}

/// All nodes of an image: the address to the places of its copies.
fn nodes(image: &[u8]) -> BTreeMap<u64, Vec<usize>> {
    let mut found: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for at in (1 << 20..image.len() - NODE).step_by(4096) {
        let node = &image[at..at + NODE];
        let sum = u32::from_le_bytes(node[..4].try_into().expect("four"));
        if sum != 0 && sum == crc32c::crc32c(&node[32..]) {
            let address = u64::from_le_bytes(node[48..56].try_into().expect("eight"));
            found.entry(address).or_default().push(at);
        }
    }
    found
}

/// Wounds a node or the superblock, and makes its checksum right.
fn wound(
    dice: &mut Dice,
    image: &[u8],
    nodes: &BTreeMap<u64, Vec<usize>>,
) -> Vec<(usize, Vec<u8>)> {
    let (places, length) = if dice.below(12) == 0 {
        (vec![65_536], 4096)
    } else {
        let index = dice.below(nodes.len());
        (nodes.values().nth(index).expect("a node").clone(), NODE)
    };
    let mut bytes = image[places[0]..places[0] + length].to_vec();
    let count = u32::from_le_bytes(bytes[96..100].try_into().expect("four")) as usize;
    for _ in 0..=dice.below(4) {
        // Heads and keys are what leads somewhere; items lie at the end.
        let from = [64, 101, length / 2][dice.below(3)];
        let to = (if from == 101 {
            101 + count * 33 + 80
        } else {
            length
        })
        .clamp(from + 65, length);
        let to = if dice.below(3) == 0 { length } else { to };
        dice.damage(&mut bytes[..to], from);
    }
    let sum = crc32c::crc32c(&bytes[32..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    places.into_iter().map(|at| (at, bytes.clone())).collect()
}

fn exercise(volume: Arc<dyn ReadAt>) -> usize {
    let Ok(fs) = guestfs::btrfs::open(volume) else {
        return 0;
    };
    let mut waiting = vec![fs.root()];
    let mut steps = 0;
    while let Some(file) = waiting.pop() {
        steps += 1;
        if steps > 300 {
            break;
        }
        let _ = fs.extended_attributes(file);
        let _ = fs.read_link(file);
        let _ = fs.file_ranges(file, &mut |_| ControlFlow::Continue(()));
        if let Ok(contents) = fs.open(file, None) {
            let size = contents.size_bytes().min(1 << 20);
            let mut buffer = vec![0; usize::try_from(size).expect("small")];
            let _ = contents.read_at(0, &mut buffer);
            let _ = contents.read_at(contents.size_bytes() - size, &mut buffer);
            let mut at = 0;
            for _ in 0..100 {
                let Ok(extent) = contents.extent_at(at, u64::MAX) else {
                    break;
                };
                assert!(extent.length_bytes > 0 && extent.end() <= contents.size_bytes());
                at = extent.end();
            }
        }
        let kind = fs.metadata(file).map(|it| it.kind);
        if kind.is_ok_and(|kind| kind == FileKind::Directory) {
            let _ = fs.list(file, DirectoryCursor::default(), &mut |entry| {
                waiting.push(entry.file);
                ControlFlow::Continue(())
            });
        }
    }
    let mut end = 0;
    let _ = fs.used_ranges(&mut |range| {
        assert!(range.offset >= end && range.length_bytes > 0);
        end = range.offset + range.length_bytes;
        ControlFlow::Continue(())
    });
    steps
}

#[test]
fn lies_under_right_checksums_cost_little_and_never_panic() {
    for name in ["subvolume", "sparse"] {
        let Some(image) = corpus::bytes(&format!("btrfs/dissect-btrfs-{name}.bin.gz")) else {
            return;
        };
        let image = Arc::new(image);
        let nodes = nodes(&image);
        assert!(nodes.len() > 8, "{} nodes", nodes.len());
        let mut read = 0;
        for seed in 0..700 {
            let mut dice = Dice::new(seed);
            let mut parts = Vec::new();
            for _ in 0..=dice.below(3) {
                parts.extend(wound(&mut dice, &image, &nodes));
            }
            let begin = Instant::now();
            read += exercise(Arc::new(Patched {
                base: Arc::clone(&image),
                parts,
            }));
            let passed = begin.elapsed();
            assert!(
                passed < Duration::from_secs(10),
                "{name}, seed {seed}: {passed:?}"
            );
        }
        assert!(read > 700, "{name}: only {read} files were looked at");
    }
}

#[test]
fn cut_images_are_refused_or_read_in_part() {
    let Some(image) = corpus::bytes("btrfs/dissect-btrfs-default.bin.gz") else {
        return;
    };
    for kept in [
        0,
        4096,
        65_536,
        69_632,
        1 << 20,
        4 << 20,
        13 << 20,
        30 << 20,
        60 << 20,
    ] {
        exercise(corpus::Bytes::shared(image[..kept].to_vec()));
    }
}
