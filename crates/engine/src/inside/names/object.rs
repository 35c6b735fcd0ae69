//! Listings and trees as bytes.
//!
//! ```text
//!   listing:  (kind u8 ‖ tree varint ‖ number varint ‖ length varint ‖ name) …        one folder, in its own order
//!   tree:     listing id 16 ‖ tree id 16 of each folder of the listing, in its order   zeros: not read
//! ```
//!
//! An id is the first half of the BLAKE3 of the bytes, derived for the kind of object. Ids do not leave this host.

use guestfs::filesystem::FileKind;
use guestfs::{FileId, FileName};
use serde::{Deserialize, Serialize};

/// Longest listing.
pub(super) const LISTING_BYTES_MAX: usize = 96 << 20;
const ID_BYTES: usize = 16;

/// What an object is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct ObjectId(pub(super) [u8; ID_BYTES]);

impl ObjectId {
    /// A folder that was not read.
    pub(super) const UNREAD: Self = Self([0; ID_BYTES]);

    fn of(context: &str, bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(bytes);
        Self::cut(&hasher.finalize())
    }

    /// The first half of a hash.
    pub(super) fn cut(hash: &blake3::Hash) -> Self {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(hash.as_bytes()) {
            *to = *from;
        }
        Self(id)
    }

    pub(super) fn of_listing(bytes: &[u8]) -> Self {
        Self::of("hikae v1 index of names: listing", bytes)
    }

    pub(super) fn of_tree(bytes: &[u8]) -> Self {
        Self::of("hikae v1 index of names: tree", bytes)
    }
}

/// What a name is, in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameKind {
    File,
    Folder,
    Link,
    Other,
    /// Its file could not be read.
    Unknown,
}

impl NameKind {
    pub(super) fn of(kind: FileKind) -> Self {
        match kind {
            FileKind::Regular => Self::File,
            FileKind::Directory => Self::Folder,
            FileKind::SymbolicLink => Self::Link,
            _ => Self::Other,
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::File => 0,
            Self::Folder => 1,
            Self::Link => 2,
            Self::Other => 3,
            Self::Unknown => 4,
        }
    }

    const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::File,
            1 => Self::Folder,
            2 => Self::Link,
            3 => Self::Other,
            _ => Self::Unknown,
        }
    }
}

fn put_number(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push(u8::try_from(value & 0x7F).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    into.push(u8::try_from(value).unwrap_or(0));
}

fn take_number(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7F).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedName {
    pub(super) kind: NameKind,
    pub(super) file: FileId,
    pub(super) name: FileName,
}

/// A listing while it is made.
#[derive(Debug, Default)]
pub(super) struct ListingBuilder {
    bytes: Vec<u8>,
    /// Where entries lie whose kind is not known yet.
    unknown: Vec<(usize, FileId)>,
}

impl ListingBuilder {
    /// Adds an entry; `false` when there is no room for it.
    pub(super) fn add(&mut self, kind: Option<FileKind>, file: FileId, name: &FileName) -> bool {
        let length = name.as_bytes().len();
        if self.bytes.len().saturating_add(length) > LISTING_BYTES_MAX {
            return false;
        }
        if kind.is_none() {
            self.unknown.push((self.bytes.len(), file));
        }
        let code = kind.map_or(NameKind::Unknown, NameKind::of).code();
        self.bytes.push(code);
        put_number(file.tree, &mut self.bytes);
        put_number(file.number, &mut self.bytes);
        put_number(u64::try_from(length).unwrap_or(u64::MAX), &mut self.bytes);
        self.bytes.extend_from_slice(name.as_bytes());
        true
    }

    /// Entries whose kind the folder did not tell.
    pub(super) fn take_unknown(&mut self) -> Vec<(usize, FileId)> {
        std::mem::take(&mut self.unknown)
    }

    /// Tells one of them.
    pub(super) fn set_kind(&mut self, at: usize, kind: FileKind) {
        if let Some(code) = self.bytes.get_mut(at) {
            *code = NameKind::of(kind).code();
        }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Goes through a listing; `None` when it is malformed.
pub(super) fn each_name(
    listing: &[u8],
    mut visit: impl FnMut(NameKind, FileId, &[u8]) -> Option<()>,
) -> Option<()> {
    let mut rest = listing;
    while let Some((code, after)) = rest.split_first() {
        rest = after;
        let tree = take_number(&mut rest)?;
        let number = take_number(&mut rest)?;
        let length = usize::try_from(take_number(&mut rest)?).ok()?;
        let (name, after) = rest.split_at_checked(length)?;
        rest = after;
        visit(NameKind::from_code(*code), FileId { tree, number }, name)?;
    }
    Some(())
}

/// The folders of a listing.
pub(super) fn folders_of(listing: &[u8]) -> Option<Vec<ListedName>> {
    let mut folders = Vec::new();
    each_name(listing, |kind, file, name| {
        if kind == NameKind::Folder {
            folders.push(ListedName {
                kind,
                file,
                name: FileName::from_bytes(name),
            });
        }
        Some(())
    })?;
    Some(folders)
}

/// A tree as bytes.
pub(super) fn encode_tree(listing: ObjectId, children: &[ObjectId]) -> Vec<u8> {
    let mut bytes = listing.0.to_vec();
    for child in children {
        bytes.extend_from_slice(&child.0);
    }
    bytes
}

/// The listing and the trees below a tree; `None` when it is malformed.
pub(super) fn decode_tree(bytes: &[u8]) -> Option<(ObjectId, Vec<ObjectId>)> {
    let (ids, rest) = bytes.as_chunks::<ID_BYTES>();
    let (listing, children) = ids.split_first().filter(|_| rest.is_empty())?;
    Some((
        ObjectId(*listing),
        children.iter().map(|id| ObjectId(*id)).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_and_trees_come_back_as_they_were() {
        let mut builder = ListingBuilder::default();
        let id = |number| FileId { tree: 0, number };
        let names: [(&[u8], Option<FileKind>, u64); 4] = [
            (b"a", Some(FileKind::Regular), 5),
            (b"folder", Some(FileKind::Directory), 300),
            (b"\xff\xfe", None, u64::MAX),
            (b"", Some(FileKind::SymbolicLink), 0),
        ];
        for (name, kind, number) in names {
            assert!(builder.add(kind, id(number), &FileName::from_bytes(name)));
        }
        let unknown = builder.take_unknown();
        assert_eq!(unknown.len(), 1);
        builder.set_kind(unknown[0].0, FileKind::Directory);
        let bytes = builder.into_bytes();
        let mut found = Vec::new();
        each_name(&bytes, |kind, file, name| {
            found.push((kind, file.number, name.to_vec()));
            Some(())
        })
        .expect("well-formed");
        assert_eq!(found[0], (NameKind::File, 5, b"a".to_vec()));
        assert_eq!(found[2], (NameKind::Folder, u64::MAX, b"\xff\xfe".to_vec()));
        assert_eq!(found[3], (NameKind::Link, 0, Vec::new()));
        assert_eq!(folders_of(&bytes).expect("well-formed").len(), 2);
        for cut in 1..bytes.len() {
            // Cut anywhere it is refused or shorter, and nothing panics.
            let mut count = 0;
            each_name(&bytes[..cut], |_, _, _| {
                count += 1;
                Some(())
            });
            assert!(count < 4);
        }
        let listing = ObjectId::of_listing(&bytes);
        let tree = encode_tree(listing, &[ObjectId::UNREAD, listing]);
        assert_eq!(
            decode_tree(&tree),
            Some((listing, vec![ObjectId::UNREAD, listing]))
        );
        assert_eq!(decode_tree(&tree[1..]), None);
        assert_eq!(decode_tree(&[]), None);
    }
}
