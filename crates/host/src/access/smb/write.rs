//! Writing a file of a server by position, behind the caller's back.
//!
//! ```text
//!   write_at ─► pieces of 1 MiB ─► wait until none overlaps and few are under way ─► task ─► landed │ failed
//!   read_at  ─► wait for all ─► a handle of its own for reading                                │        │
//!   flush    ─► wait for all ─► the server's own flush ─► durable                          counted   kept: every later call
//! ```
//!
//! **Invariants.** Two writes that overlap land in the order in which they were asked for. What a read sees is what was written before.
//! A write that failed is told by the next call, and by every later one: what the server still had in memory then may be gone
//! with it, so a lost connection is never made anew under a file that is being written. Bytes under way are bounded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use block::{ReadAt, WriteAt};
use smb::resource::SetLen;
use smb::{CreateDisposition, FileAccessMask, FileCreateArgs, Resource};

use super::folders::{close, existing};
use super::names::{Place, told, told_of_bytes};
use super::read::SmbFile;
use super::{Share, Shared, SmbAccess};
use crate::boundary::{FolderEntry, HostFileWriter, HostFiles};
use crate::checkpoint::Presence;
use crate::ids::NodeName;
use crate::path::HostPath;
use crate::{Error, ErrorKind, Result};

/// Requests under way at once, when they are small; large ones are bounded by their bytes.
const MOST_UNDER_WAY: usize = 64;
/// Zeros of one request, where a range is zeroed.
const ZEROS_BYTES: usize = 1 << 20;

impl HostFiles for SmbAccess {
    fn create_folder(&self, node: &NodeName, folder: &HostPath) -> Result<()> {
        folder.check_new()?;
        let place = self.shared.place(node, folder)?;
        if place.path.is_empty() {
            // A share is there or not: nobody makes it here.
            return self.list(node, folder).map(drop);
        }
        self.shared.create_folder(&place, folder)
    }

    fn create_file(&self, node: &NodeName, path: &HostPath) -> Result<Arc<dyn HostFileWriter>> {
        path.check_new()?;
        self.open_writer(node, path, CreateDisposition::Create)
    }

    fn open_file_for_update(
        &self,
        node: &NodeName,
        path: &HostPath,
    ) -> Result<Arc<dyn HostFileWriter>> {
        self.open_writer(node, path, CreateDisposition::Open)
    }

    fn rename(&self, node: &NodeName, from: &HostPath, to: &HostPath) -> Result<()> {
        to.check_new()?;
        let here = self.shared.place(node, from)?.of_file(from)?;
        let there = self.shared.place(node, to)?.of_file(to)?;
        let what = format!("renaming {from} to {to} on {}", here.server);
        self.shared.rename(&here, &there, &what)
    }

    fn remove(&self, node: &NodeName, path: &HostPath) -> Result<Presence> {
        let place = self.shared.place(node, path)?.of_file(path)?;
        let what = format!("removing {path} on {}", place.server);
        self.shared.remove(&place, &what)
    }

    fn size_bytes(&self, node: &NodeName, path: &HostPath) -> Result<Option<u64>> {
        let place = self.shared.place(node, path)?.of_file(path)?;
        let what = format!("looking for {path} on {}", place.server);
        self.shared.file_size(&place, &what)
    }

    fn list(&self, node: &NodeName, folder: &HostPath) -> Result<Vec<FolderEntry>> {
        let place = self.shared.place(node, folder)?;
        self.shared.entries(&place, folder)
    }

    fn free_bytes(&self, node: &NodeName, folder: &HostPath) -> Result<Option<u64>> {
        let place = self.shared.place(node, folder)?;
        let what = format!("asking for the free space of {folder} on {}", place.server);
        self.shared.free_space(&place, &what).map(Some)
    }
}

impl SmbAccess {
    fn open_writer(
        &self,
        node: &NodeName,
        path: &HostPath,
        disposition: CreateDisposition,
    ) -> Result<Arc<dyn HostFileWriter>> {
        let shared = &self.shared;
        let place = shared.place(node, path)?.of_file(path)?;
        let (opened, share) = shared.twice(&place, || {
            let share = shared.share(&place)?;
            match shared.open_to_write(&share, &place, path, disposition) {
                Ok(opened) => Ok((opened, share)),
                Err(error) => {
                    shared.retire(share);
                    Err(error)
                }
            }
        })?;
        let (file, size_bytes) = opened;
        Ok(Arc::new(SmbWriter {
            shared: Arc::clone(shared),
            place,
            path: path.clone(),
            size_bytes: AtomicU64::new(size_bytes),
            file: Some(Arc::new(file)),
            share: Some(share),
            flight: Arc::new(Flight::default()),
            reader: Mutex::new(None),
        }))
    }
}

impl Shared {
    fn open_to_write(
        &self,
        share: &Arc<Share>,
        place: &Place,
        path: &HostPath,
        disposition: CreateDisposition,
    ) -> Result<(smb::File, u64)> {
        let what = format!("opening {path} on {} for writing", place.server);
        let (held, below, context) = (Arc::clone(share), place.path.clone(), what.clone());
        self.wait(&what, async move {
            let access = FileAccessMask::new()
                .with_generic_read(true)
                .with_generic_write(true);
            let arguments = FileCreateArgs {
                disposition,
                options: smb::CreateOptions::new().with_non_directory_file(true),
                ..existing(access)
            };
            let opened = held.tree.create(&below, &arguments).await;
            match opened.map_err(|error| told(error, context.clone()))? {
                Resource::File(file) => {
                    let size = smb::GetLen::get_len(&file).await;
                    let size_bytes = size.map_err(|error| told(error, context))?;
                    Ok((file, size_bytes))
                }
                other => {
                    close(&other).await.unwrap_or(());
                    let why = format!("{context}: no file");
                    Err(Error::new(ErrorKind::Invalid, why))
                }
            }
        })
    }
}

/// Writes under way.
#[derive(Default)]
struct Flight {
    state: Mutex<FlightState>,
    landed: Condvar,
}

#[derive(Default)]
struct FlightState {
    /// Number, first byte and first byte behind of each.
    under_way: Vec<(u64, u64, u64)>,
    next_number: u64,
    /// The first write that failed: kind and text.
    failure: Option<(ErrorKind, String)>,
}

impl FlightState {
    fn bytes(&self) -> u64 {
        let lengths = self.under_way.iter();
        lengths.fold(0, |sum, (_, first, behind)| {
            sum.saturating_add(behind.saturating_sub(*first))
        })
    }

    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.under_way
            .iter()
            .any(|(_, first, behind)| *first < end && start < *behind)
    }
}

impl Flight {
    fn locked(&self) -> MutexGuard<'_, FlightState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `must_wait`: every write under way ends within its own time limit, so this does.
    fn wait_while(
        &self,
        mut must_wait: impl FnMut(&FlightState) -> bool,
    ) -> MutexGuard<'_, FlightState> {
        self.landed
            .wait_while(self.locked(), |state| must_wait(state))
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a write off the list when its task ends, however it ends.
struct Landing {
    flight: Arc<Flight>,
    number: u64,
    outcome: Option<Result<()>>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut state = self.flight.locked();
        state.under_way.retain(|(it, _, _)| *it != self.number);
        let failure = match self.outcome.take() {
            Some(Ok(())) => None,
            Some(Err(error)) => Some((error.kind(), crate::error::chain_text(&error))),
            None => Some((
                ErrorKind::Protocol,
                "the answer to a write could not be understood".to_owned(),
            )),
        };
        if state.failure.is_none() {
            state.failure = failure;
        }
        drop(state);
        self.flight.landed.notify_all();
    }
}

/// A file on a server that is being written.
struct SmbWriter {
    shared: Arc<Shared>,
    place: Place,
    path: HostPath,
    size_bytes: AtomicU64,
    /// `None` only while it is dropped.
    file: Option<Arc<smb::File>>,
    share: Option<Arc<Share>>,
    flight: Arc<Flight>,
    /// A handle for reading, which knows of the file what it was when it was opened.
    reader: Mutex<Option<Arc<SmbFile>>>,
}

impl SmbWriter {
    fn what(&self, doing: &str) -> String {
        format!("{doing} {} on {}", self.path, self.place.server)
    }

    fn handle(&self) -> Result<Arc<smb::File>> {
        let file = self.file.as_ref().map(Arc::clone);
        file.ok_or_else(|| Error::new(ErrorKind::State, self.what("using the closed file")))
    }

    fn check(&self, state: &FlightState) -> Result<()> {
        match &state.failure {
            None => Ok(()),
            Some((kind, text)) => Err(Error::new(
                *kind,
                format!("{}: {text}", self.what("an earlier write to")),
            )),
        }
    }

    /// Fails from now on.
    fn fail(&self, error: &Error) {
        let mut state = self.flight.locked();
        let text = crate::error::chain_text(error);
        state.failure.get_or_insert((error.kind(), text));
    }

    /// Waits until all writes have landed that were asked for by now; not for those of others that follow.
    fn settle(&self) -> Result<()> {
        let behind = self.flight.locked().next_number;
        let state = self.flight.wait_while(|state| {
            let mut numbers = state.under_way.iter().map(|(number, _, _)| *number);
            numbers.any(|number| number < behind)
        });
        self.check(&state)
    }

    fn write_range(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let request_bytes =
            usize::try_from(self.shared.options.request_bytes.max(4096)).unwrap_or(usize::MAX);
        let mut at = offset;
        for part in bytes.chunks(request_bytes) {
            self.launch(at, Arc::from(part))?;
            at = at.saturating_add(length_of(part));
        }
        Ok(())
    }

    /// Sends one request on its way as soon as nothing overlaps it and there is room.
    fn launch(&self, offset: u64, bytes: Arc<[u8]>) -> Result<()> {
        let file = self.handle()?;
        let end = offset.saturating_add(length_of(&bytes));
        let options = &self.shared.options;
        let depth = u64::try_from(options.depth.max(1)).unwrap_or(u64::MAX);
        let most_bytes = u64::from(options.request_bytes).saturating_mul(depth);
        let mut state = self.flight.wait_while(|state| {
            let is_full = state.under_way.len() >= MOST_UNDER_WAY || state.bytes() >= most_bytes;
            state.failure.is_none() && (is_full || state.overlaps(offset, end))
        });
        self.check(&state)?;
        let number = state.next_number;
        state.next_number = number.saturating_add(1);
        state.under_way.push((number, offset, end));
        drop(state);
        let mut landing = Landing {
            flight: Arc::clone(&self.flight),
            number,
            outcome: None,
        };
        let limit = self.shared.options.timeout;
        let context = self.what("writing");
        self.shared.runtime.0.spawn(async move {
            let work = write_all(&file, offset, bytes, &context);
            let outcome = tokio::time::timeout(limit, work).await;
            // The handle goes first: whoever waits for the landing may close the file.
            drop(file);
            landing.outcome = Some(outcome.unwrap_or_else(|_| {
                let why = format!("{context}: no answer within {} s", limit.as_secs());
                Err(Error::new(ErrorKind::TimedOut, why))
            }));
            drop(landing);
        });
        Ok(())
    }

    /// Something with the file itself, when nothing is under way. What fails, fails for good.
    fn alone<T, F>(&self, doing: &str, work: impl FnOnce(Arc<smb::File>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.settle()?;
        let done = self.shared.wait(&self.what(doing), work(self.handle()?));
        if let Err(error) = &done {
            self.fail(error);
        }
        done
    }

    fn change_size(&self, size_bytes: u64) -> Result<()> {
        let what = self.what("resizing");
        self.alone("resizing", |file| async move {
            let done = file.set_len(size_bytes).await;
            done.map_err(|error| told(error, what))
        })?;
        self.size_bytes.store(size_bytes, Ordering::Release);
        // It knows the old size.
        let reader = self.reader.lock();
        drop(reader.unwrap_or_else(PoisonError::into_inner).take());
        Ok(())
    }

    fn make_durable(&self) -> Result<()> {
        let what = self.what("flushing");
        self.alone("flushing", |file| async move {
            file.flush()
                .await
                .map_err(|error| told_of_bytes(error, what))
        })
    }

    /// A handle for reading that knows the file to be long enough.
    fn reader(&self, end: u64) -> Result<Arc<SmbFile>> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = reader.as_ref().filter(|open| open.size_bytes() >= end) {
            return Ok(Arc::clone(open));
        }
        let open = SmbFile::open(&self.shared, &self.place, &self.path)?;
        let open = open
            .filter(|open| open.size_bytes() >= end)
            .ok_or_else(|| {
                let why = format!("{}: it is gone or became shorter", self.what("reading"));
                Error::new(ErrorKind::Failed, why)
            })?;
        let open = Arc::new(open);
        *reader = Some(Arc::clone(&open));
        Ok(open)
    }
}

fn length_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Writes the whole buffer, in as many requests as the server takes.
async fn write_all(file: &smb::File, offset: u64, bytes: Arc<[u8]>, context: &str) -> Result<()> {
    let mut rest = bytes;
    let mut at = offset;
    loop {
        let count = file
            .write_block_zc(Arc::clone(&rest), at, None)
            .await
            .map_err(|error| told_of_bytes(error, context.to_owned()))?;
        match rest.get(count..) {
            Some([]) => return Ok(()),
            Some(left) if count > 0 => {
                at = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                rest = Arc::from(left);
            }
            _ => {
                let why = format!("{context}: {count} of {} bytes were taken", rest.len());
                return Err(Error::new(ErrorKind::Protocol, why));
            }
        }
    }
}

fn below(error: Error, context: String) -> block::Error {
    block::Error::with_source(block::ErrorKind::Io, context, error)
}

impl ReadAt for SmbWriter {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let length = length_of(buffer);
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= self.size_bytes());
        let Some(end) = end else {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!("{length} bytes at {offset} of {}", self.path),
            ));
        };
        let context = || self.what("reading");
        // All of them, since one behind the range may be what the file's length rests on.
        self.settle().map_err(|error| below(error, context()))?;
        let reader = self.reader(end).map_err(|error| below(error, context()))?;
        reader.read_at(offset, buffer)
    }
}

impl WriteAt for SmbWriter {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        let end = offset
            .checked_add(length_of(buffer))
            .filter(|end| *end <= i64::MAX.unsigned_abs());
        let Some(end) = end else {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!("{} bytes at {offset} of {}", buffer.len(), self.path),
            ));
        };
        if buffer.is_empty() {
            return Ok(());
        }
        self.write_range(offset, buffer)
            .map_err(|error| below(error, self.what("writing")))?;
        self.size_bytes.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        let end = offset.saturating_add(length_bytes);
        let size = self.size_bytes();
        let zeros = vec![0; ZEROS_BYTES];
        let mut at = offset;
        while at < end.min(size) {
            let left = end.min(size).saturating_sub(at);
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS_BYTES);
            let piece = zeros.get(..count).unwrap_or(&zeros);
            self.write_at(at, piece)?;
            at = at.saturating_add(length_of(piece));
        }
        if length_bytes > 0 && end > size {
            // What lies behind an old end reads as zeros.
            self.set_size(end)?;
        }
        Ok(())
    }

    fn set_size(&self, size_bytes: u64) -> block::Result<()> {
        self.change_size(size_bytes)
            .map_err(|error| below(error, self.what("resizing")))
    }

    fn flush(&self) -> block::Result<()> {
        self.make_durable()
            .map_err(|error| below(error, self.what("flushing")))
    }
}

impl HostFileWriter for SmbWriter {}

impl Drop for SmbWriter {
    fn drop(&mut self) {
        // Closed when this returns, so that the file can be renamed or removed next. Who wanted to know how it went has flushed.
        let failed = self.settle().is_err();
        if let Some(file) = self.file.take() {
            if !failed {
                let what = self.what("closing");
                let kept = Arc::clone(&file);
                let work = async move {
                    let closed = kept.close().await;
                    closed.map_err(|error| told(error, "closing".to_owned()))
                };
                self.shared.wait(&what, work).unwrap_or(());
            }
            self.shared.retire(file);
        }
        let reader = self
            .reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(reader);
        self.shared.retire(self.share.take());
    }
}
