//! Objects in a bucket of an S3-compatible server.
//!
//! ```text
//!   put ──PUT If-None-Match:* ──► 200 ─────────────────────────────► done
//!            ▲                    412, no attempt in doubt ────────► AlreadyExists
//!            │                    412, an earlier attempt in doubt ► whose put id has the object? ours: done
//!            │                    409 (a rival is at it) ─┐                                    else: AlreadyExists
//!            └──── wait, again ◄─ no answer, 5xx, 429 ────┴─ doubt, unless it was 409
//! ```
//!
//! A put whose answer was lost may have happened. Its repetition is then refused for an object of its own making, so
//! every put carries an id in the object's metadata (`x-amz-meta-hikae-put`), and what is there is asked for it; a
//! server that does not keep metadata is asked for the bytes. Repeating is therefore left to this driver, not to the
//! HTTP client, which would hide the doubt. Reads and deletions are repeated below.
//!
//! **Invariants.** No caller thread needs to be in, or out of, an async runtime: the driver owns one. Listings are
//! checked to go forwards. A body is one PUT (S3 takes 5 GiB; objects here have a GiB at most).
//!
//! **What it does not do.** It makes no buckets, reads no `~/.aws` files (credentials come from `AWS_*` variables, a web
//! identity or the machine's metadata service), sets no object locks, and uploads nothing in parts.

mod failure;
mod options;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload,
};
use tokio::runtime::Runtime;

pub use options::{PutId, S3Options};

use crate::store::{check_body, check_limit, check_page_limit, check_range, page_of};
use crate::{
    Error, ErrorKind, ListEntry, ListPage, MAX_OBJECT_SIZE_BYTES, ObjectName, Prefix, Result,
    Store, Verb,
};
use failure::{Answer, answer_of, error_of};

/// Metadata key under which a put leaves its id.
const PUT_ID_KEY: &str = "hikae-put";

/// Most entries that S3 gives at once.
const MAX_KEYS: usize = 1_000;

/// Empty pages in a row after which a listing is taken for endless.
const MAX_EMPTY_PAGES: u32 = 1_000;

/// A store in a bucket.
pub struct S3Store {
    inner: Arc<Inner>,
    /// Present until dropped: an async caller may not wait for a runtime to end.
    runtime: Option<Runtime>,
    description: String,
}

struct Inner {
    /// Repeats requests by itself.
    reader: AmazonS3,
    /// Makes each request once.
    writer: AmazonS3,
    /// What every key begins with: empty, or ending in a slash.
    root: String,
    put_attempts: u32,
    first_backoff: Duration,
    put_ids: fn() -> PutId,
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Store")
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

impl Drop for S3Store {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Whether an earlier attempt of the same put may have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    None,
    MayHaveHappened,
}

impl S3Store {
    /// Prepares a store; nothing is sent yet, so a bucket that is not there shows at the first call.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the options make no sense.
    pub fn open(options: &S3Options) -> Result<Self> {
        let (reader, writer) = options.build()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store-s3")
            .enable_all()
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "start threads for s3").caused_by(error)
            })?;
        let inner = Inner {
            reader,
            writer,
            root: options.root().to_owned(),
            put_attempts: options.put_attempts.max(1),
            first_backoff: options.first_backoff,
            put_ids: options.put_ids,
        };
        Ok(Self {
            inner: Arc::new(inner),
            runtime: Some(runtime),
            description: options.description(),
        })
    }

    /// Runs a call on the driver's runtime and waits for it, from any kind of thread.
    fn wait<T, F>(&self, call: impl FnOnce(Arc<Inner>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let stopped = || Error::new(ErrorKind::Cancelled, "the s3 driver has stopped");
        let runtime = self.runtime.as_ref().ok_or_else(stopped)?;
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let call = call(Arc::clone(&self.inner));
        runtime.spawn(async move {
            // The receiver waits below; it is gone only together with its thread.
            let _ = sender.send(call.await);
        });
        receiver.recv().map_err(|_| stopped())?
    }
}

impl Inner {
    fn path(&self, verb: Verb, name: &ObjectName) -> Result<Path> {
        Path::parse(format!("{}{name}", self.root))
            .map_err(|error| Error::of(ErrorKind::Invalid, verb, name, "key").caused_by(error))
    }

    async fn put(&self, name: &ObjectName, body: Vec<u8>) -> Result<()> {
        let path = self.path(Verb::PutNew, name)?;
        let payload = PutPayload::from(body);
        let id = (self.put_ids)();
        let mut attributes = Attributes::new();
        attributes.insert(
            Attribute::Metadata(PUT_ID_KEY.into()),
            id.to_string().into(),
        );
        let mut doubt = Doubt::None;
        let mut attempt = 1;
        loop {
            let options = PutOptions {
                mode: PutMode::Create,
                attributes: attributes.clone(),
                ..PutOptions::default()
            };
            let error = match self.writer.put_opts(&path, payload.clone(), options).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            match answer_of(&error) {
                Answer::Taken if doubt == Doubt::None => return Err(Error::already_exists(name)),
                Answer::Taken => return self.settle(name, &path, &payload, id).await,
                Answer::Rival => {}
                Answer::Lost => doubt = Doubt::MayHaveHappened,
                Answer::Refused => return Err(error_of(Verb::PutNew, name, error)),
            }
            if attempt >= self.put_attempts {
                return self.give_up(name, &path, &payload, id, doubt, error).await;
            }
            tokio::time::sleep(self.backoff(attempt, id)).await;
            attempt += 1;
        }
    }

    /// Twice as long each time up to 64 times the first, and for each put another length between half and one and a
    /// half of that, so that racers part.
    fn backoff(&self, attempt: u32, id: PutId) -> Duration {
        let whole = self
            .first_backoff
            .saturating_mul(1 << attempt.saturating_sub(1).min(6));
        whole / 2 + whole.saturating_mul(u32::from(id.spread())) / 256
    }

    /// After the last attempt: the object may be there all the same.
    async fn give_up(
        &self,
        name: &ObjectName,
        path: &Path,
        payload: &PutPayload,
        id: PutId,
        doubt: Doubt,
        error: object_store::Error,
    ) -> Result<()> {
        let exists = self.reader.head(path).await.is_ok();
        match (exists, doubt) {
            (true, Doubt::MayHaveHappened) => self.settle(name, path, payload, id).await,
            (true, Doubt::None) => Err(Error::already_exists(name)),
            (false, _) => Err(
                Error::of(ErrorKind::Unavailable, Verb::PutNew, name, "no answer").caused_by(error),
            ),
        }
    }

    /// The name is taken, perhaps by an attempt of this very put: asks whose the object is.
    async fn settle(
        &self,
        name: &ObjectName,
        path: &Path,
        payload: &PutPayload,
        id: PutId,
    ) -> Result<()> {
        let head = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        let there = self
            .reader
            .get_opts(path, head)
            .await
            .map_err(|error| self.lost(name, error))?;
        let left = there
            .attributes
            .get(&Attribute::Metadata(PUT_ID_KEY.into()));
        let ours = match left {
            Some(left) => **left == id.to_string(),
            None if usize::try_from(there.meta.size) != Ok(payload.content_length()) => false,
            None => {
                let whole = self
                    .reader
                    .get(path)
                    .await
                    .map_err(|error| self.lost(name, error))?;
                let bytes = whole
                    .bytes()
                    .await
                    .map_err(|error| self.lost(name, error))?;
                let mut rest = bytes.as_ref();
                payload.iter().all(|part| {
                    rest.strip_prefix(part.as_ref())
                        .map(|behind| rest = behind)
                        .is_some()
                }) && rest.is_empty()
            }
        };
        if ours {
            Ok(())
        } else {
            Err(Error::already_exists(name))
        }
    }

    /// A put in doubt that could not be looked after.
    fn lost(&self, name: &ObjectName, error: object_store::Error) -> Error {
        Error::of(
            ErrorKind::Unavailable,
            Verb::PutNew,
            name,
            "whether it happened is not known",
        )
        .caused_by(error)
    }

    async fn get(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        let path = self.path(Verb::Get, name)?;
        let failed = |error| error_of(Verb::Get, name, error);
        let found = self.reader.get(&path).await.map_err(failed)?;
        let length = check_limit(name, found.meta.size, limit_bytes)?;
        body_of(Verb::Get, name, found, length).await
    }

    async fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length_bytes: u64,
    ) -> Result<Vec<u8>> {
        let path = self.path(Verb::GetRange, name)?;
        let failed = |error| error_of(Verb::GetRange, name, error);
        let end = offset.checked_add(length_bytes);
        let asked = match end {
            // HTTP has no empty ranges, and nothing of this size is ever read.
            Some(end) if length_bytes > 0 && length_bytes <= MAX_OBJECT_SIZE_BYTES => {
                let range = Some(GetRange::Bounded(offset..end));
                self.reader
                    .get_opts(
                        &path,
                        GetOptions {
                            range,
                            ..GetOptions::default()
                        },
                    )
                    .await
            }
            _ => {
                let size_bytes = self.reader.head(&path).await.map_err(failed)?.size;
                check_range(name, offset, length_bytes, size_bytes)?;
                return Ok(Vec::new());
            }
        };
        match asked {
            Ok(found) => {
                let length = check_range(name, offset, length_bytes, found.meta.size)?;
                body_of(Verb::GetRange, name, found, length).await
            }
            Err(error) => {
                // Servers say "not satisfiable" in several ways; the size tells what they mean.
                if let Ok(there) = self.reader.head(&path).await {
                    check_range(name, offset, length_bytes, there.size)?;
                }
                Err(failed(error))
            }
        }
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<ListPage> {
        let wanted = limit.saturating_add(1);
        let key_prefix = format!("{}{}", self.root, prefix.as_str());
        let mut entries: Vec<ListEntry> = Vec::new();
        let mut page_token = None;
        let mut empty_pages = 0;
        loop {
            let options = PaginatedListOptions {
                offset: after.map(|after| format!("{}{after}", self.root)),
                max_keys: Some(wanted.saturating_sub(entries.len()).min(MAX_KEYS)),
                page_token: page_token.take(),
                ..PaginatedListOptions::default()
            };
            let prefix_text = (!key_prefix.is_empty()).then_some(key_prefix.as_str());
            let page = self
                .reader
                .list_paginated(prefix_text, options)
                .await
                .map_err(|error| error_of(Verb::List, prefix, error))?;
            empty_pages = if page.result.objects.is_empty() {
                empty_pages + 1
            } else {
                0
            };
            for object in page.result.objects {
                let key: &str = object.location.as_ref();
                let Some(name) = key.strip_prefix(&self.root) else {
                    continue;
                };
                let Ok(name) = ObjectName::new(name) else {
                    continue;
                };
                let before = entries.last().map(|entry| &entry.name).or(after);
                if before.is_some_and(|before| name <= *before) || !prefix.contains(&name) {
                    let what = format!("the server listed {name} out of order");
                    return Err(Error::of(ErrorKind::Invalid, Verb::List, prefix, what));
                }
                entries.push(ListEntry {
                    name,
                    size_bytes: object.size,
                });
            }
            page_token = page.page_token;
            if page_token.is_none() || entries.len() >= wanted {
                return Ok(page_of(entries, limit));
            }
            if empty_pages > MAX_EMPTY_PAGES {
                let what = "the server's listing does not end";
                return Err(Error::of(ErrorKind::Invalid, Verb::List, prefix, what));
            }
        }
    }
}

/// The bytes of an answer, which must be as many as it said.
async fn body_of(
    verb: Verb,
    name: &ObjectName,
    found: GetResult,
    length: usize,
) -> Result<Vec<u8>> {
    let bytes = found
        .bytes()
        .await
        .map_err(|error| error_of(verb, name, error))?;
    if bytes.len() != length {
        let what = format!("{} bytes came instead of {length}", bytes.len());
        return Err(Error::of(ErrorKind::Io, verb, name, what));
    }
    Ok(Vec::from(bytes))
}

impl Store for S3Store {
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()> {
        check_body(name, body)?;
        let (name, body) = (name.clone(), body.to_vec());
        self.wait(|inner| async move { inner.put(&name, body).await })
    }

    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        let name = name.clone();
        self.wait(move |inner| async move { inner.get(&name, limit_bytes).await })
    }

    fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>> {
        let name = name.clone();
        self.wait(move |inner| async move { inner.get_range(&name, offset, length_bytes).await })
    }

    fn size(&self, name: &ObjectName) -> Result<u64> {
        let name = name.clone();
        self.wait(|inner| async move {
            let path = inner.path(Verb::Size, &name)?;
            match inner.reader.head(&path).await {
                Ok(there) => Ok(there.size),
                Err(error) => Err(error_of(Verb::Size, &name, error)),
            }
        })
    }

    fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage> {
        let limit = check_page_limit(prefix, limit)?;
        let (prefix, after) = (prefix.clone(), after.cloned());
        self.wait(move |inner| async move { inner.list(&prefix, after.as_ref(), limit).await })
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        let name = name.clone();
        self.wait(|inner| async move {
            let path = inner.path(Verb::Delete, &name)?;
            match inner.reader.delete(&path).await {
                Ok(()) => Ok(()),
                Err(error) => match error_of(Verb::Delete, &name, error) {
                    absent if absent.kind() == ErrorKind::NotFound => Ok(()),
                    other => Err(other),
                },
            }
        })
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}
