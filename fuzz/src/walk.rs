//! Everything that can be asked of a file system, within a budget, and what its answers must keep to whatever the disk
//! says.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use block::ReadAt;
use guestfs::disk::DiskLayout;
use guestfs::filesystem::{DirectoryCursor, FileKind, VolumeRange};
use guestfs::{FileId, FileName, FileSystem};

const ENTRIES: usize = 600;
const READ_BYTES: usize = 64 << 10;
const TOTAL_BYTES: u64 = 4 << 20;
const RANGES: usize = 20_000;

/// Opens one volume and asks.
pub fn volume<F: FileSystem>(
    input: &[u8],
    open: impl FnOnce(Arc<dyn ReadAt>) -> guestfs::Result<F>,
) {
    let Some(first) = crate::images::files(input).into_iter().next() else {
        return;
    };
    if let Ok(fs) = open(first) {
        file_system(&fs);
    }
}

/// Reads begin, middle and end of every volume.
pub fn volumes(layout: &DiskLayout) {
    for volume in layout.volumes.iter().take(64) {
        let Ok(reader) = &volume.reader else { continue };
        let size = reader.size_bytes();
        let mut bytes = [0; 4096];
        for offset in [0, size / 2, size.saturating_sub(4096)] {
            let length = (size - offset).min(4096) as usize;
            let _ = reader.read_at(offset, &mut bytes[..length]);
            if offset < size {
                let extent = reader.extent_at(offset, size - offset);
                assert!(
                    extent.is_err()
                        || extent.is_ok_and(|it| it.length_bytes > 0 && it.end() <= size)
                );
            }
        }
    }
}

/// Asks one file system everything.
pub fn file_system(fs: &dyn FileSystem) {
    let facts = fs.facts();
    assert!(facts.free_bytes <= facts.size_bytes || facts.size_bytes == 0 || facts.free_bytes > 0);
    ascending(&mut |visit| fs.used_ranges(visit));
    let mut seen = HashSet::from([fs.root()]);
    let mut waiting = vec![fs.root()];
    let mut left = TOTAL_BYTES;
    let mut entries = ENTRIES;
    while let Some(file) = waiting.pop() {
        let Ok(metadata) = fs.metadata(file) else {
            continue;
        };
        beside(fs, file);
        match metadata.kind {
            FileKind::Directory => {
                for (name, child) in children(fs, file, &mut entries) {
                    // Whatever is told can be looked for, and looking for it ends.
                    let _ = fs.find(file, &name);
                    if seen.insert(child) {
                        waiting.push(child);
                    }
                }
            }
            FileKind::SymbolicLink | FileKind::ReparsePoint(_) => {
                let _ = fs.read_link(file);
            }
            _ => {}
        }
        let Ok(streams) = fs.streams(file) else {
            continue;
        };
        for stream in streams.iter().take(8) {
            if let Ok(bytes) = fs.open(file, stream.name.as_ref()) {
                contents(&*bytes, &mut left);
            }
        }
        ascending_or_not(&mut |visit| fs.file_ranges(file, visit));
    }
    let _ = fs.metadata(FileId {
        tree: 0,
        number: u64::MAX,
    });
}

fn beside(fs: &dyn FileSystem, file: FileId) {
    let _ = fs.extended_attributes(file);
    let _ = fs.security(file);
}

fn children(fs: &dyn FileSystem, folder: FileId, left: &mut usize) -> Vec<(FileName, FileId)> {
    let mut found = Vec::new();
    let mut last = DirectoryCursor::default();
    let _ = fs.list(folder, DirectoryCursor::default(), &mut |entry| {
        if *left == 0 {
            return ControlFlow::Break(());
        }
        *left -= 1;
        last = entry.next;
        found.push((entry.name, entry.file));
        ControlFlow::Continue(())
    });
    // A listing goes on where it was left.
    let _ = fs.list(folder, last, &mut |_| ControlFlow::Break(()));
    found
}

fn contents(bytes: &dyn ReadAt, left: &mut u64) {
    let size = bytes.size_bytes();
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    for _ in 0..32 {
        if offset >= size || *left == 0 {
            break;
        }
        let Ok(extent) = bytes.extent_at(offset, size - offset) else {
            break;
        };
        assert!(extent.length_bytes > 0 && extent.end() <= size && extent.offset == offset);
        if !extent.kind.is_zero() {
            let length = extent.length_bytes.min(READ_BYTES as u64) as usize;
            *left = left.saturating_sub(length as u64);
            let _ = bytes.read_at(offset, &mut buffer[..length]);
        }
        offset = extent.end();
    }
    if size > 0 {
        let _ = bytes.read_at(size - 1, &mut buffer[..1]);
        assert!(bytes.read_at(size, &mut buffer[..1]).is_err());
    }
}

type Tell<'a> =
    &'a mut dyn FnMut(&mut dyn FnMut(VolumeRange) -> ControlFlow<()>) -> guestfs::Result<()>;

fn ascending(tell: Tell<'_>) {
    let mut end = 0;
    let mut count = 0;
    let _ = tell(&mut |range| {
        assert!(
            range.offset >= end,
            "ranges overlap or go back at {}",
            range.offset
        );
        end = range
            .offset
            .checked_add(range.length_bytes)
            .expect("a range beyond all bytes");
        count += 1;
        if count > RANGES {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
}

fn ascending_or_not(tell: Tell<'_>) {
    let mut count = 0;
    let _ = tell(&mut |range| {
        assert!(range.offset.checked_add(range.length_bytes).is_some());
        count += 1;
        if count > RANGES {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
}
