//! Reading a file of a server by position.

use std::sync::{Arc, Mutex, PoisonError};

use block::ReadAt;

use super::names::{Place, told_of_bytes};
use super::{OpenFile, Shared, may_be_the_line};
use crate::path::HostPath;
use crate::{Error, ErrorKind, Result};

/// A file on a server, readable by position.
pub(super) struct SmbFile {
    shared: Arc<Shared>,
    place: Place,
    path: HostPath,
    size_bytes: u64,
    opened: Mutex<Option<OpenFile>>,
}

impl SmbFile {
    /// Opens it; `None` when it is not there.
    pub(super) fn open(
        shared: &Arc<Shared>,
        place: &Place,
        path: &HostPath,
    ) -> Result<Option<Self>> {
        let opened = shared.open_twice(place, path)?;
        Ok(opened.map(|file| Self {
            shared: Arc::clone(shared),
            place: place.clone(),
            path: path.clone(),
            size_bytes: file.size_bytes,
            opened: Mutex::new(Some(file)),
        }))
    }

    fn handle(&self) -> Result<Arc<smb::File>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = opened.as_ref() {
            return Ok(Arc::clone(&open.file));
        }
        let again = self.shared.open_twice(&self.place, &self.path)?;
        let again = again.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{} is gone from {}", self.path, self.place.server),
            )
        })?;
        if again.size_bytes < self.size_bytes {
            self.shared.retire(again);
            return Err(Error::new(
                ErrorKind::Failed,
                format!("{} became shorter while it was read", self.path),
            ));
        }
        let file = Arc::clone(&again.file);
        *opened = Some(again);
        Ok(file)
    }

    fn close(&self) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = opened.take();
        drop(opened);
        self.shared.retire(gone);
    }

    /// Reads a range in requests, several under way at once.
    fn read_range(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let request_bytes =
            usize::try_from(self.shared.options.request_bytes.max(4096)).unwrap_or(usize::MAX);
        let wave_bytes = request_bytes.saturating_mul(self.shared.options.depth.max(1));
        let mut at = offset;
        for wave in buffer.chunks_mut(wave_bytes) {
            let file = self.handle()?;
            let mut tasks = Vec::new();
            for part in wave.chunks(request_bytes) {
                let length = part.len();
                tasks.push((length, self.spawn_read(Arc::clone(&file), at, length)));
                at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
            }
            let mut parts = wave.chunks_mut(request_bytes);
            let mut failure = None;
            // Every task is waited for, also after a failure: none outlives the call.
            for (length, task) in tasks {
                let done = self.shared.runtime.0.block_on(task);
                let bytes = match done {
                    Ok(Ok(bytes)) if bytes.len() == length => bytes,
                    Ok(Ok(_)) => {
                        failure = Some(self.broken("an answer of another length", None));
                        continue;
                    }
                    Ok(Err(error)) => {
                        failure = Some(error);
                        continue;
                    }
                    Err(error) => {
                        failure = Some(
                            self.broken("an answer that could not be understood", Some(error)),
                        );
                        continue;
                    }
                };
                if let Some(part) = parts.next() {
                    part.copy_from_slice(&bytes);
                }
            }
            self.shared.retire(file);
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(())
    }

    fn broken(&self, what: &str, cause: Option<tokio::task::JoinError>) -> Error {
        let context = format!("reading {} from {}: {what}", self.path, self.place.server);
        match cause {
            Some(cause) => Error::with_source(ErrorKind::Protocol, context, cause),
            None => Error::new(ErrorKind::Protocol, context),
        }
    }

    fn spawn_read(
        &self,
        file: Arc<smb::File>,
        offset: u64,
        length: usize,
    ) -> tokio::task::JoinHandle<Result<Vec<u8>>> {
        let limit = self.shared.options.timeout;
        let context = format!("reading {} from {}", self.path, self.place.server);
        self.shared.runtime.0.spawn(async move {
            let mut bytes = vec![0_u8; length];
            let mut filled = 0;
            while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                let at = offset.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
                let read =
                    tokio::time::timeout(limit, file.read_block(rest, at, None, false)).await;
                let read = read.map_err(|_| {
                    Error::new(ErrorKind::TimedOut, format!("{context}: no answer"))
                })?;
                let count = read.map_err(|error| told_of_bytes(error, context.clone()))?;
                if count == 0 {
                    return Err(Error::new(
                        ErrorKind::Failed,
                        format!("{context}: the file ends at {at}"),
                    ));
                }
                filled = filled.saturating_add(count);
            }
            Ok(bytes)
        })
    }
}

impl ReadAt for SmbFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let is_inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.size_bytes);
        if !is_inside {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!("{length} bytes at {offset} of {}", self.path),
            ));
        }
        let read = match self.read_range(offset, buffer) {
            Err(error) if may_be_the_line(&error) => {
                self.close();
                self.shared.drop_share(&self.place);
                self.read_range(offset, buffer)
            }
            other => other,
        };
        read.map_err(|error| {
            let context = format!("reading {} at {offset}", self.path);
            block::Error::with_source(block::ErrorKind::Io, context, error)
        })
    }
}

impl Drop for SmbFile {
    fn drop(&mut self) {
        self.close();
    }
}
