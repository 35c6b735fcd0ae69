//! Damaged volumes: whatever is written into them, there is a typed error or a partial answer, soon and without a panic.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::ReadAt;
use guestfs::filesystem::DirectoryCursor;
use guestfs::{FileSystem, ntfs};

use super::made;
use crate::images::MemoryVolume;

/// Numbers out of a seed (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("small")
    }
}

/// A small volume with a bit of everything.
fn sample(folder: &Path) -> Option<Vec<u8>> {
    let script = r#"
        python3 - <<'END'
import os, struct
os.chdir("mount")
os.mkdir("folder")
for n in range(300):
    open(f"folder/a file with a name {n}", "w").write("x" * n)
for n in range(40):
    os.link("folder/a file with a name 1", f"link with a long name so that a record fills {n}")
with open("holes", "wb") as file:
    for n in range(50):
        file.seek(n * 20000); file.write(b"data" * 500)
os.mkdir("packed")
os.setxattr("packed", "system.ntfs_attrib_be", (0x810).to_bytes(4, "big"))
open("packed/text", "w").write("".join(f"line {n} of text\n" for n in range(20000)))
os.symlink("holes", "link")
open("wof", "wb").truncate(100000)
os.setxattr("wof", "user.WofCompressedData", struct.pack("<III", 300, 600, 900) + bytes(range(256)) * 5)
body = struct.pack("<IIII", 1, 2, 1, 1)
os.setxattr("wof", "system.ntfs_reparse_data", struct.pack("<IHH", 0x80000017, 16, 0) + body)
os.setxattr("holes", "system.ntfs_ea", struct.pack("<IBBH", 16, 0, 3, 3) + b"KEY\0val\0")
END
    "#;
    let image = made::make(folder, "16M", "-c 1024", script)?;
    Some(std::fs::read(image).expect("the image"))
}

/// Does everything with a volume that can be done, as far as it goes; how many answers were given.
fn use_all(volume: Arc<dyn ReadAt>) -> usize {
    let Ok(fs) = ntfs::open(volume) else { return 0 };
    let mut answers = fs.facts().label.iter().count();
    let mut bytes = 0_u64;
    answers += usize::from(fs.used_ranges(&mut |_| ControlFlow::Continue(())).is_ok());
    let mut visited = HashSet::new();
    let mut stack = vec![fs.root()];
    while let Some(file) = stack.pop() {
        if !visited.insert(file) || visited.len() > 3000 {
            continue;
        }
        answers += usize::from(fs.metadata(file).is_ok());
        answers += usize::from(fs.security(file).is_ok());
        answers += usize::from(fs.extended_attributes(file).is_ok());
        answers += usize::from(fs.read_link(file).is_ok());
        answers += usize::from(
            fs.file_ranges(file, &mut |_| ControlFlow::Continue(()))
                .is_ok(),
        );
        let listed = fs.list(file, DirectoryCursor::default(), &mut |entry| {
            stack.push(entry.file);
            if visited.len() % 16 == 0 {
                answers += usize::from(fs.find(file, &entry.name).is_ok());
            }
            ControlFlow::Continue(())
        });
        answers += usize::from(listed.is_ok());
        for stream in fs.streams(file).unwrap_or_default() {
            let Ok(reader) = fs.open(file, stream.name.as_ref()) else {
                continue;
            };
            bytes += read_some(&*reader, &mut answers);
        }
    }
    assert!(bytes < 1 << 34);
    answers
}

fn read_some(reader: &dyn ReadAt, answers: &mut usize) -> u64 {
    let size = reader.size_bytes();
    let mut buffer = vec![0; 64 << 10];
    let mut position = 0;
    // Damage can make a file of petabytes: a beginning is enough, and its end.
    for _ in 0..40 {
        if position >= size {
            break;
        }
        let length = (size - position).min(buffer.len() as u64);
        let part = &mut buffer[..usize::try_from(length).expect("a buffer")];
        *answers += usize::from(reader.read_at(position, part).is_ok());
        *answers += usize::from(reader.extent_at(position, u64::MAX).is_ok());
        position += length;
    }
    if size > 10 {
        *answers += usize::from(reader.read_at(size - 10, &mut buffer[..10]).is_ok());
    }
    position
}

/// Places of the volume that are worth hurting: those that are not zero.
fn sectors(whole: &[u8]) -> Vec<usize> {
    (0..whole.len() / 512)
        .filter(|sector| whole[sector * 512..][..512].iter().any(|byte| *byte != 0))
        .filter(|sector| {
            let bytes = &whole[sector * 512..][..512];
            *sector == 0
                || [b"FILE".as_slice(), b"INDX", b"RSTR"]
                    .iter()
                    .any(|magic| bytes.starts_with(magic))
        })
        .collect()
}

fn hurt(bytes: &mut Vec<u8>, sectors: &[usize], dice: &mut Dice) -> String {
    let mut said = String::new();
    for _ in 0..=dice.below(4) {
        let sector = sectors[dice.below(sectors.len())];
        // The fixup bytes at the end of a sector would only make it unreadable.
        let at = sector * 512 + dice.below(500);
        let length = [1, 2, 4, 8][dice.below(4)];
        let kind = dice.below(6);
        let part = &mut bytes[at..at + length];
        match kind {
            0 => part[0] ^= 1 << dice.below(8),
            1 => part.fill(0),
            2 => part.fill(0xFF),
            3 => part.fill_with(|| dice.next().to_le_bytes()[0]),
            4 => part[length - 1] = 0x7F,
            _ => part[0] = part[0].wrapping_add(1),
        }
        said.push_str(&format!("kind {kind} at {at}, {length} bytes; "));
    }
    if dice.below(40) == 0 {
        let end = dice.below(bytes.len());
        bytes.truncate(end);
        said.push_str(&format!("cut at {end}"));
    }
    said
}

#[test]
fn damage_gives_typed_errors_and_what_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(whole) = sample(folder.path()) else {
        return;
    };
    let sound = use_all(Arc::new(MemoryVolume(whole.clone())));
    assert!(sound > 1500, "{sound} answers of a sound volume");
    let sectors = sectors(&whole);
    assert!(sectors.len() > 300);
    let end = Instant::now() + Duration::from_secs(25);
    let mut rounds = 0;
    for seed in 0..2000 {
        if Instant::now() > end {
            break;
        }
        let mut bytes = whole.clone();
        let said = hurt(&mut bytes, &sectors, &mut Dice(seed));
        let start = Instant::now();
        let answers = use_all(Arc::new(MemoryVolume(bytes)));
        let taken = start.elapsed();
        assert!(
            taken < Duration::from_secs(20),
            "seed {seed}: {taken:?} after {said}"
        );
        assert!(
            answers < sound * 3,
            "seed {seed}: {answers} answers after {said}"
        );
        rounds += 1;
    }
    println!("{rounds} damaged volumes");
    assert!(rounds > 20, "only {rounds} rounds in the time");
}

#[test]
fn a_volume_cut_anywhere_is_refused_or_read_as_far_as_it_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(whole) = sample(folder.path()) else {
        return;
    };
    for part in 0..24 {
        let end = whole.len() * part / 24;
        use_all(Arc::new(MemoryVolume(whole[..end].to_vec())));
    }
}
