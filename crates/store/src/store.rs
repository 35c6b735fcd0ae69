//! The seam: what every place of named immutable objects must promise, and what follows from it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::{Error, ErrorKind, ObjectName, Prefix, Result, Verb};

/// Largest object any store takes or hands out: 1 GiB. Packs have 64 MiB; the bound keeps a damaged or hostile store
/// from filling memory.
pub const MAX_OBJECT_SIZE_BYTES: u64 = 1 << 30;

/// Most entries of one [`ListPage`]; a larger limit is taken for this one.
pub const MAX_PAGE_ENTRIES: usize = 10_000;

/// Entries of the first page of [`list_all`]: many callers want no more than a few.
const FIRST_PAGE_ENTRIES: usize = 1_000;

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// Its name.
    pub name: ObjectName,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// A part of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListPage {
    /// Objects in the order of their names' bytes, each name once.
    pub entries: Vec<ListEntry>,
    /// What to pass as `after` for the next page; `None` when this was the last.
    pub next_after: Option<ObjectName>,
}

/// A place of named immutable objects.
///
/// An implementer **must**
/// - make [`Store::put_new`] atomic: of any number of racing puts of one name exactly one succeeds, and nobody ever
///   sees half an object;
/// - show an object to every reader and every listing that begins after its put returned, and to none that begins
///   after its delete returned;
/// - answer with the bytes that were put, or an error, never fewer.
///
/// A caller **may rely on** nothing about objects put or deleted while a listing runs, nor about empty prefixes, nor
/// about times. It must **never** use a name as an object and as a prefix of other objects: drivers that can tell
/// refuse that with [`ErrorKind::Invalid`].
///
/// After any error but [`ErrorKind::AlreadyExists`] a put may or may not have happened: the object is absent or whole.
pub trait Store: Send + Sync {
    /// Creates an object: atomic, and durable when it returns.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if the name is taken, even by the same bytes; [`ErrorKind::Full`] without space.
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()>;

    /// The whole object, if it has at most `limit_bytes` (and at most [`MAX_OBJECT_SIZE_BYTES`]).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::OutOfRange`] when it is larger.
    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>>;

    /// The whole object.
    ///
    /// # Errors
    /// As [`Store::get_bounded`].
    fn get(&self, name: &ObjectName) -> Result<Vec<u8>> {
        self.get_bounded(name, MAX_OBJECT_SIZE_BYTES)
    }

    /// Exactly `length_bytes` from `offset` on. An empty range inside the object or at its end is empty.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::OutOfRange`] when the range reaches behind the end.
    fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>>;

    /// The object's size in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    fn size(&self, name: &ObjectName) -> Result<u64>;

    /// Objects under `prefix` whose names order behind `after`, at most `limit` (and [`MAX_PAGE_ENTRIES`]) of them.
    /// What lies in the same place and is no object by its name is not listed. A limit of zero is
    /// [`ErrorKind::Invalid`].
    ///
    /// # Errors
    /// What the driver met; a prefix without objects is an empty page, no error.
    fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage>;

    /// Removes an object, durably when it returns. To delete what is absent is no error.
    ///
    /// # Errors
    /// What the driver met; then the object may or may not be there.
    fn delete(&self, name: &ObjectName) -> Result<()>;

    /// What and where this is, for people: never with a secret in it.
    fn describe(&self) -> String;
}

macro_rules! forward {
    ($($type:ty),+) => {$(
        impl<T: Store + ?Sized> Store for $type {
            fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()> {
                (**self).put_new(name, body)
            }
            fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
                (**self).get_bounded(name, limit_bytes)
            }
            fn get(&self, name: &ObjectName) -> Result<Vec<u8>> {
                (**self).get(name)
            }
            fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>> {
                (**self).get_range(name, offset, length_bytes)
            }
            fn size(&self, name: &ObjectName) -> Result<u64> {
                (**self).size(name)
            }
            fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage> {
                (**self).list(prefix, after, limit)
            }
            fn delete(&self, name: &ObjectName) -> Result<()> {
                (**self).delete(name)
            }
            fn describe(&self) -> String {
                (**self).describe()
            }
        }
    )+};
}

forward!(&T, Arc<T>, Box<T>);

/// Every object under `prefix`, in the order of names, one page at a time. It ends after the first error.
pub fn list_all<'a>(store: &'a dyn Store, prefix: &Prefix) -> ListAll<'a> {
    ListAll {
        store,
        prefix: prefix.clone(),
        page: VecDeque::new(),
        after: None,
        limit: FIRST_PAGE_ENTRIES,
        state: ListState::More,
    }
}

/// Iterator of [`list_all`].
pub struct ListAll<'a> {
    store: &'a dyn Store,
    prefix: Prefix,
    page: VecDeque<ListEntry>,
    after: Option<ObjectName>,
    limit: usize,
    state: ListState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ListState {
    More,
    Finished,
}

impl Iterator for ListAll<'_> {
    type Item = Result<ListEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.page.pop_front() {
                return Some(Ok(entry));
            }
            if self.state == ListState::Finished {
                return None;
            }
            match self.next_page() {
                Ok(()) => {}
                Err(error) => {
                    self.state = ListState::Finished;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl ListAll<'_> {
    fn next_page(&mut self) -> Result<()> {
        let page = self
            .store
            .list(&self.prefix, self.after.as_ref(), self.limit)?;
        match &page.next_after {
            None => self.state = ListState::Finished,
            // A page that does not go forwards would be asked for for ever.
            Some(next) if self.after.as_ref().is_some_and(|after| next <= after) => {
                return Err(Error::of(
                    ErrorKind::Invalid,
                    Verb::List,
                    &self.prefix,
                    format!("the store went back to {next}"),
                ));
            }
            Some(_) => {}
        }
        self.after = page.next_after;
        self.page = page.entries.into();
        // Who goes on wants it all, and a large directory is read once for each page.
        self.limit = MAX_PAGE_ENTRIES;
        Ok(())
    }
}

/// Refuses a body that no store takes.
pub(crate) fn check_body(name: &ObjectName, body: &[u8]) -> Result<()> {
    if u64::try_from(body.len()).is_ok_and(|length| length <= MAX_OBJECT_SIZE_BYTES) {
        return Ok(());
    }
    Err(Error::of(
        ErrorKind::Invalid,
        Verb::PutNew,
        name,
        format!("{} bytes are more than an object may have", body.len()),
    ))
}

/// Refuses an object that is larger than its reader wants, before a byte of it is read.
pub(crate) fn check_limit(name: &ObjectName, size_bytes: u64, limit_bytes: u64) -> Result<usize> {
    let limit = limit_bytes.min(MAX_OBJECT_SIZE_BYTES);
    match usize::try_from(size_bytes) {
        Ok(size) if size_bytes <= limit => Ok(size),
        _ => Err(Error::of(
            ErrorKind::OutOfRange,
            Verb::Get,
            name,
            format!("{size_bytes} bytes, more than the limit of {limit}"),
        )),
    }
}

/// Refuses a range that reaches behind the object's end; the range's end and length otherwise.
pub(crate) fn check_range(
    name: &ObjectName,
    offset: u64,
    length_bytes: u64,
    size_bytes: u64,
) -> Result<usize> {
    let inside = offset
        .checked_add(length_bytes)
        .is_some_and(|end| end <= size_bytes);
    match usize::try_from(length_bytes) {
        Ok(length) if inside && length_bytes <= MAX_OBJECT_SIZE_BYTES => Ok(length),
        _ => Err(out_of_range(name, offset, length_bytes, size_bytes)),
    }
}

pub(crate) fn out_of_range(
    name: &ObjectName,
    offset: u64,
    length_bytes: u64,
    size_bytes: u64,
) -> Error {
    Error::of(
        ErrorKind::OutOfRange,
        Verb::GetRange,
        name,
        format!("{length_bytes} bytes at {offset} of {size_bytes}"),
    )
}

/// How many entries a page has for the limit that was asked for.
pub(crate) fn check_page_limit(prefix: &Prefix, limit: usize) -> Result<usize> {
    if limit == 0 {
        return Err(Error::of(
            ErrorKind::Invalid,
            Verb::List,
            prefix,
            "a page of no entries",
        ));
    }
    Ok(limit.min(MAX_PAGE_ENTRIES))
}

/// Makes a page of entries that were gathered with one more than `limit`, which tells whether another page follows.
pub(crate) fn page_of(mut entries: Vec<ListEntry>, limit: usize) -> ListPage {
    let more = entries.len() > limit;
    entries.truncate(limit);
    let next_after = if more {
        entries.last().map(|entry| entry.name.clone())
    } else {
        None
    };
    ListPage {
        entries,
        next_after,
    }
}
