//! Reading many blobs at once: neighbouring frames in one request, in the order they lie in.

use std::sync::Arc;

use crate::access::ObjectAccess;
use crate::format::FRAME_HEADER_BYTES;
use crate::index::BlobPlace;
use crate::pack::PackFile;
use crate::repository::Repository;
use crate::{BlobName, Result};

/// Bytes between two frames that are read and thrown away rather than asked for separately.
const MAX_GAP_BYTES: u64 = 128 << 10;
/// Longest request.
const MAX_REQUEST_BYTES: u64 = 4 << 20;

/// A blob and where its plain bytes go; the slice has the blob's length.
pub(crate) struct Wanted<'a> {
    pub(crate) name: BlobName,
    pub(crate) plain: &'a mut [u8],
}

/// A wanted blob and where it lies.
struct Located<'a> {
    place: BlobPlace,
    offset: u64,
    end: u64,
    wanted: Wanted<'a>,
}

/// Reads, decodes and checks all of them.
///
/// # Errors
/// The first blob that cannot be read from any place.
pub(crate) fn fetch(repository: &Repository, wanted: Vec<Wanted<'_>>) -> Result<()> {
    let mut located = Vec::with_capacity(wanted.len());
    let mut last: Option<(u32, Arc<PackFile>)> = None;
    for blob in wanted {
        match locate(repository, &blob.name, &mut last)? {
            Some((place, offset, end)) => {
                located.push(Located {
                    place,
                    offset,
                    end,
                    wanted: blob,
                });
            }
            None => read_alone(repository, blob)?,
        }
    }
    located.sort_by_key(|blob| (blob.place.pack, blob.offset));
    let mut run: Vec<Located<'_>> = Vec::new();
    for blob in located {
        let joins = match (run.first(), run.last()) {
            (Some(first), Some(last)) => {
                blob.place.pack == last.place.pack
                    && blob.offset <= last.end.saturating_add(MAX_GAP_BYTES)
                    && blob.end.saturating_sub(first.offset) <= MAX_REQUEST_BYTES
            }
            _ => true,
        };
        if !joins {
            read_run(repository, std::mem::take(&mut run))?;
        }
        run.push(blob);
    }
    read_run(repository, run)
}

/// Where a blob lies; in the same pack as the one before it if it can be. `None` when it must be looked for.
fn locate(
    repository: &Repository,
    name: &BlobName,
    last: &mut Option<(u32, Arc<PackFile>)>,
) -> Result<Option<(BlobPlace, u64, u64)>> {
    let index = repository.index()?;
    let places = index.find_all(name)?;
    let same = |place: &&BlobPlace| last.as_ref().is_some_and(|(pack, _)| *pack == place.pack);
    let Some(place) = places.iter().find(same).or(places.last()).copied() else {
        return Ok(None);
    };
    let pack = match last {
        Some((number, pack)) if *number == place.pack => Arc::clone(pack),
        _ => {
            let Some(row) = index.pack(place.pack) else {
                return Ok(None);
            };
            match repository
                .pack_cache()
                .open(repository.vault(), row.kind, row.id)
            {
                Ok(pack) => {
                    *last = Some((place.pack, Arc::clone(&pack)));
                    pack
                }
                // Looked for in other packs, and told with all that is known.
                Err(_) => return Ok(None),
            }
        }
    };
    let entry = pack
        .entry(place.ordinal)
        .filter(|entry| entry.name == *name);
    Ok(entry.map(|entry| (place, u64::from(entry.offset), entry.end())))
}

fn read_alone(repository: &Repository, blob: Wanted<'_>) -> Result<()> {
    let plain = repository.read_blob(&blob.name)?;
    blob.plain.copy_from_slice(&plain);
    Ok(())
}

/// Reads blobs that lie in one stretch of one pack. What fails is looked for elsewhere, one by one.
fn read_run(repository: &Repository, run: Vec<Located<'_>>) -> Result<()> {
    let (Some(first), Some(end)) = (run.first(), run.iter().map(|blob| blob.end).max()) else {
        return Ok(());
    };
    let start = first.offset;
    let row = repository.index()?.pack(first.place.pack);
    let opened = row.and_then(|row| {
        repository
            .pack_cache()
            .open(repository.vault(), row.kind, row.id)
            .ok()
    });
    let bytes = opened.as_ref().and_then(|pack| {
        let store = repository.vault().store();
        store
            .get_range(pack.name(), start, end.saturating_sub(start))
            .ok()
    });
    let (Some(pack), Some(bytes)) = (opened, bytes) else {
        for blob in run {
            read_alone(repository, blob.wanted)?;
        }
        return Ok(());
    };
    let mut frame = Vec::new();
    for blob in run {
        let from = usize::try_from(blob.offset.saturating_sub(start)).unwrap_or(usize::MAX);
        let to = usize::try_from(blob.end.saturating_sub(start)).unwrap_or(usize::MAX);
        // One blob may be wanted twice, so that its frame is copied before it is decrypted in place.
        frame.clear();
        frame.extend_from_slice(bytes.get(from..to).unwrap_or_default());
        let whole = frame.len() > FRAME_HEADER_BYTES;
        if !whole
            || pack
                .decode(blob.place.ordinal, &mut frame, blob.wanted.plain)
                .is_err()
        {
            read_alone(repository, blob.wanted)?;
        }
    }
    Ok(())
}
