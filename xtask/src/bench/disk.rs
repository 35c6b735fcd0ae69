//! The disks that are measured, the same on every run: a file system filled with programs and documents of this machine,
//! a database-like file, an incompressible file and holes; and the writes that change them.
//!
//! | share of the realistic disk | content |
//! |---|---|
//! | up to 45 % | files of `/usr/lib`, `/usr/share`, `/usr/bin`, in sorted order |
//! | 25 % | a file of half-compressible pages |
//! | 8 % | a file that nothing compresses |
//! | the rest | never written: holes |

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::measure;
use super::random::Random;

/// A changed range of a disk: offset and length in bytes.
pub(crate) type ChangedRange = (u64, u64);

/// What one write of a "page" is.
pub(crate) const PAGE_SIZE_BYTES: u64 = 4096;

/// Refuses to begin where the disks and repositories would not fit.
pub(crate) fn require_space(work: &Path, size_bytes: u64) -> Result<()> {
    let free = rustix::fs::statvfs(work).context("free space")?;
    let free_bytes = free.f_bavail.saturating_mul(free.f_frsize);
    let wanted_bytes = size_bytes.saturating_mul(7);
    ensure!(
        free_bytes >= wanted_bytes,
        "{} has {} GiB free, and this needs {} GiB: choose --dir or a smaller --size-gib",
        work.display(),
        free_bytes >> 30,
        wanted_bytes >> 30
    );
    Ok(())
}

/// Makes the realistic disk: an ext4 file system in a sparse raw file.
pub(crate) fn create_realistic(image: &Path, size_bytes: u64, work: &Path) -> Result<()> {
    println!("making a disk of {} GiB …", size_bytes >> 30);
    let staging = work.join("staging");
    fs::create_dir_all(&staging)?;
    let mut left_bytes = size_bytes / 100 * 45;
    for place in ["bin", "lib", "share"] {
        copy_files(
            &Path::new("/usr").join(place),
            &staging.join(place),
            &mut left_bytes,
        )?;
    }
    create_filled(
        &staging.join("database"),
        size_bytes / 4,
        Fill::HalfCompressible(11),
    )?;
    create_filled(
        &staging.join("archive"),
        size_bytes / 100 * 8,
        Fill::Incompressible(12),
    )?;
    File::create(image)?.set_len(size_bytes)?;
    measure::run(
        Command::new("mkfs.ext4")
            .args([
                "-q",
                "-F",
                "-E",
                "lazy_itable_init=1,nodiscard,hash_seed=00000000-0000-0000-0000-000000000001",
            ])
            .args(["-U", "00000000-0000-0000-0000-000000000002", "-d"])
            .arg(&staging)
            .arg(image),
    )?;
    fs::remove_dir_all(&staging)?;
    measure::flush(image)
}

/// Copies regular files in sorted order until `left_bytes` are used up.
fn copy_files(from: &Path, to: &Path, left_bytes: &mut u64) -> Result<()> {
    let mut places = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = places.pop() {
        let mut entries = fs::read_dir(&from)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("listing {}", from.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        fs::create_dir_all(&to)?;
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                places.push((entry.path(), to.join(entry.file_name())));
            } else if kind.is_file() {
                let size_bytes = entry.metadata()?.len();
                if size_bytes > *left_bytes {
                    return Ok(());
                }
                fs::copy(entry.path(), to.join(entry.file_name()))
                    .with_context(|| format!("copying {}", entry.path().display()))?;
                *left_bytes -= size_bytes;
            }
        }
    }
    Ok(())
}

/// What a file is filled with, and the seed of it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fill {
    HalfCompressible(u64),
    Incompressible(u64),
}

impl Fill {
    fn random(self) -> Random {
        match self {
            Self::HalfCompressible(seed) | Self::Incompressible(seed) => Random::new(seed),
        }
    }

    fn write_into(self, random: &mut Random, buffer: &mut [u8]) {
        match self {
            Self::HalfCompressible(_) => random.fill_half_compressible(buffer),
            Self::Incompressible(_) => random.fill(buffer),
        }
    }
}

/// Makes a file that is full from end to end.
pub(crate) fn create_filled(path: &Path, size_bytes: u64, fill: Fill) -> Result<()> {
    let mut file =
        BufWriter::new(File::create(path).with_context(|| format!("creating {}", path.display()))?);
    let mut random = fill.random();
    let mut buffer = vec![0u8; 1 << 20];
    let mut left_bytes = size_bytes;
    while left_bytes > 0 {
        let length = left_bytes.min(buffer.len() as u64);
        let step = buffer
            .get_mut(..usize::try_from(length)?)
            .context("a step fits the buffer")?;
        fill.write_into(&mut random, step);
        file.write_all(step)?;
        left_bytes -= length;
    }
    file.into_inner()
        .context("writing the last bytes")?
        .sync_all()?;
    Ok(())
}

/// The runs of a sparse file that hold data.
pub(crate) fn data_runs(path: &Path) -> Result<Vec<ChangedRange>> {
    use rustix::fs::{SeekFrom, seek};
    let file = File::open(path)?;
    let size_bytes = file.metadata()?.len();
    let (mut runs, mut at) = (Vec::new(), 0);
    while at < size_bytes {
        let data = match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error).context("looking for data"),
        };
        at = seek(&file, SeekFrom::Hole(data)).context("looking for a hole")?;
        runs.push((data, at - data));
    }
    Ok(runs)
}

/// Overwrites one allocated page in a hundred, chosen by the seed; answers the ranges in disk order.
pub(crate) fn change_one_percent(image: &Path, seed: u64) -> Result<Vec<ChangedRange>> {
    let runs = data_runs(image)?;
    let pages: u64 = runs
        .iter()
        .map(|(_, length)| length / PAGE_SIZE_BYTES)
        .sum();
    let mut random = Random::new(seed);
    let mut offsets: Vec<u64> = (0..pages / 100)
        .filter_map(|_| {
            let mut page = random.below(pages);
            runs.iter().find_map(|(offset, length)| {
                let here = length / PAGE_SIZE_BYTES;
                if page < here {
                    return Some(offset + page * PAGE_SIZE_BYTES);
                }
                page -= here;
                None
            })
        })
        .collect();
    offsets.sort_unstable();
    offsets.dedup();
    overwrite(image, offsets, PAGE_SIZE_BYTES, &mut random)
}

/// Overwrites random aligned pieces of a full file; answers the ranges in file order.
pub(crate) fn change_at_random(
    file: &Path,
    writes: u64,
    write_bytes: u64,
    seed: u64,
) -> Result<Vec<ChangedRange>> {
    let places = fs::metadata(file)?.len() / write_bytes;
    let mut random = Random::new(seed);
    let mut offsets: Vec<u64> = (0..writes)
        .map(|_| random.below(places) * write_bytes)
        .collect();
    offsets.sort_unstable();
    offsets.dedup();
    overwrite(file, offsets, write_bytes, &mut random)
}

fn overwrite(
    path: &Path,
    offsets: Vec<u64>,
    length: u64,
    random: &mut Random,
) -> Result<Vec<ChangedRange>> {
    let file = File::options().write(true).open(path)?;
    let mut page = vec![0u8; usize::try_from(length)?];
    for offset in &offsets {
        random.fill_half_compressible(&mut page);
        file.write_all_at(&page, *offset)?;
    }
    file.sync_all()?;
    Ok(offsets.into_iter().map(|offset| (offset, length)).collect())
}

/// Writes ranges as the text that `hikae disk backup --changed-ranges` reads: a line `offset length` each.
pub(crate) fn write_ranges(path: &Path, ranges: &[ChangedRange]) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for (offset, length) in ranges {
        writeln!(file, "{offset} {length}")?;
    }
    file.into_inner()
        .context("writing the last line")?
        .sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        Fill, PAGE_SIZE_BYTES, change_at_random, change_one_percent, create_filled, data_runs,
    };
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_changed_page_lies_in_data_and_nothing_else_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        let file = File::create(&path).expect("create");
        file.set_len(64 << 20).expect("size");
        file.write_all_at(&vec![7u8; 4 << 20], 16 << 20)
            .expect("write");
        drop(file);
        let before = fs::read(&path).expect("read");
        let runs = data_runs(&path).expect("runs");
        let ranges = change_one_percent(&path, 3).expect("change");
        let mut after = fs::read(&path).expect("read");
        assert!(!ranges.is_empty());
        for (offset, length) in ranges {
            assert_eq!(length, PAGE_SIZE_BYTES);
            assert!(
                runs.iter()
                    .any(|(run, size)| *run <= offset && offset + length <= run + size)
            );
            let range = usize::try_from(offset).expect("small")
                ..usize::try_from(offset + length).expect("small");
            assert_ne!(after[range.clone()], before[range.clone()]);
            after[range.clone()].copy_from_slice(&before[range]);
        }
        assert!(after == before, "a byte outside the ranges changed");
    }

    #[test]
    fn random_writes_stay_inside_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        create_filled(&path, 1 << 20, Fill::Incompressible(1)).expect("fill");
        let ranges = change_at_random(&path, 50, 8192, 9).expect("change");
        assert_eq!(fs::metadata(&path).expect("metadata").len(), 1 << 20);
        assert!(
            ranges
                .iter()
                .all(|(offset, length)| offset % 8192 == 0 && offset + length <= 1 << 20)
        );
    }
}
