//! An image of any format with its whole chain, as one disk.
//!
//! ```text
//!   path ──► probe ──► leaf ──► parent ──► … ──► root        each found by `chain`, checked, and read through
//!                       └────────── Image: ReadAt ─────────┘
//! ```
//!
//! [`Image::open`] finds the format by content, never by the file's name, unless it is told. What reads through a chain
//! sees the disk as the machine sees it; [`ChainMode::LeafOnly`] sees one file, whose holes are
//! [`InParent`](block::ExtentKind::InParent).
//!
//! **Invariants.** Every parent was identified before a byte is read through it. Nothing is written, not even a log
//! replayed: opening for reading leaves every file as it is.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

mod care;
mod child;
mod editor;
mod probe;
mod reader;
mod resize;
mod siblings;
mod target;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Extent, ReadAt};

pub use care::{RepairReport, check, repair};
pub use child::{ChildOptions, create_child};
pub use editor::{ImageEditor, Qcow2Editor, RawEditor};
pub use probe::probe;
pub use reader::{ImageReader, Linkage};
pub use resize::{ResizePlan, ResizeReport, plan_resize, resize};
pub use writer::{
    CreateOptions, IfExists, ImageProfile, ImageWriter, WriteOrder, create, create_on,
    discard_partial, partial_path, resume, resume_on,
};

use self::siblings::Siblings;
use crate::chain::{self, Candidates, FileOpener, HostFiles, ParentMap, ParentPolicy};
use crate::{Error, ErrorKind, Format, ImageInfo, Result};

/// How the format of an image is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FormatHint {
    /// By its content. A raw disk on which the guest wrote an image's marks is then taken for that image.
    #[default]
    Probe,
    /// The caller knows it.
    Exactly(Format),
}

/// How much of a chain is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChainMode {
    /// All of it: the disk as the machine sees it.
    #[default]
    Whole,
    /// The one file: parents are neither searched nor needed, and what lies in them cannot be read.
    LeafOnly,
}

/// How an image is opened.
#[derive(Clone)]
pub struct OpenOptions {
    /// How the leaf's format is known.
    pub format: FormatHint,
    /// How much of the chain is opened.
    pub chain: ChainMode,
    /// How far paths inside the images are followed.
    pub parent_policy: ParentPolicy,
    /// Where parents lie, as far as the caller knows.
    pub parent_map: ParentMap,
    /// Opens the files.
    pub opener: Arc<dyn FileOpener>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            format: FormatHint::default(),
            chain: ChainMode::default(),
            parent_policy: ParentPolicy::default(),
            parent_map: ParentMap::default(),
            opener: Arc::new(HostFiles::default()),
        }
    }
}

/// One image of a chain.
pub struct Layer {
    path: PathBuf,
    info: ImageInfo,
    linkage: Option<Linkage>,
    reader: Arc<ImageReader>,
}

impl Layer {
    /// The file, as it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says about itself.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// How it is tied to the next layer; `None` for the root and where the chain was not opened.
    pub fn linkage(&self) -> Option<Linkage> {
        self.linkage
    }

    /// The reader itself, for what only one format has.
    pub fn reader(&self) -> &Arc<ImageReader> {
        &self.reader
    }
}

/// An image and, unless only its leaf was wanted, every parent: one readable disk.
pub struct Image {
    leaf: Arc<ImageReader>,
    layers: Vec<Layer>,
}

/// How the format of a parent came to be known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FormatSource {
    /// The caller or the child says so.
    Told,
    /// By its content, which a guest may have written: such a parent must not name further files.
    Guessed,
}

/// A layer before it knows its parent.
struct Found {
    path: PathBuf,
    source: FormatSource,
    linkage: Option<Linkage>,
    reader: ImageReader,
}

impl Image {
    /// Opens the image at `path` and, unless told otherwise, its parents.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let Some(file) = options.opener.open_file(path)? else {
            return Err(Error::new(
                ErrorKind::Io,
                format!("{} is not there", path.display()),
            ));
        };
        let leaf = open_reader(file, options.format, beside(path, options))?;
        let mut seen = vec![options.opener.canonical_path(path)?];
        let mut found = vec![Found {
            path: path.to_owned(),
            source: FormatSource::Told,
            linkage: None,
            reader: leaf,
        }];
        while let Some(child) = found
            .last_mut()
            .filter(|_| options.chain == ChainMode::Whole)
        {
            let Some((parent, linkage)) = find_parent(child, options)? else {
                break;
            };
            child.linkage = Some(linkage);
            let canonical = options.opener.canonical_path(&parent.path)?;
            if seen.contains(&canonical) {
                return Err(Error::corrupt(format!(
                    "the chain of {} comes back to {}",
                    path.display(),
                    parent.path.display()
                )));
            }
            seen.push(canonical);
            found.push(parent);
            if found.len() > chain::MAX_DEPTH {
                let context = format!(
                    "{} has more than {} parents",
                    path.display(),
                    chain::MAX_DEPTH
                );
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
        }
        Self::stack(found)
    }

    /// An image without a path and without parents: a blob of a repository, a file over the wire.
    pub fn from_file(file: Arc<dyn ReadAt>, format: FormatHint) -> Result<Self> {
        let reader = open_reader(file, format, Siblings::Refused)?;
        let path = PathBuf::new();
        Self::stack(vec![Found {
            path,
            source: FormatSource::Told,
            linkage: None,
            reader,
        }])
    }

    /// Puts the layers on one another, root first.
    fn stack(found: Vec<Found>) -> Result<Self> {
        let mut layers: Vec<Layer> = Vec::with_capacity(found.len());
        for Found {
            path,
            linkage,
            reader,
            ..
        } in found.into_iter().rev()
        {
            let reader = match layers.last() {
                Some(parent) => {
                    let parent: Arc<dyn ReadAt> = parent.reader.clone();
                    reader.with_parent(parent)
                }

                None => reader,
            };
            layers.push(Layer {
                path,
                info: reader.info(),
                linkage,
                reader: Arc::new(reader),
            });
        }
        layers.reverse();
        match layers.first() {
            Some(leaf) => Ok(Self {
                leaf: Arc::clone(&leaf.reader),
                layers,
            }),
            None => Err(Error::new(ErrorKind::Invalid, "a chain without an image")),
        }
    }

    /// What the leaf says about itself.
    pub fn info(&self) -> ImageInfo {
        self.leaf.info()
    }

    /// The images of the chain, leaf first.
    pub fn chain(&self) -> &[Layer] {
        &self.layers
    }
}

impl ReadAt for Image {
    fn size_bytes(&self) -> u64 {
        self.leaf.size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.leaf.read_at(offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.leaf.extent_at(offset, limit_bytes)
    }
}

/// What may be opened beside an image.
fn beside<'a>(image: &'a Path, options: &'a OpenOptions) -> Siblings<'a> {
    Siblings::Beside {
        image,
        opener: &*options.opener,
        policy: options.parent_policy,
    }
}

fn open_reader(
    file: Arc<dyn ReadAt>,
    format: FormatHint,
    siblings: Siblings<'_>,
) -> Result<ImageReader> {
    let format = match format {
        FormatHint::Probe => probe(&*file)?,
        FormatHint::Exactly(format) => format,
    };
    ImageReader::open(file, format, siblings)
}

/// The parent of a layer, found and identified; `None` for a root.
fn find_parent(child: &Found, options: &OpenOptions) -> Result<Option<(Found, Linkage)>> {
    let Some(check) = child.reader.parent_check() else {
        return Ok(None);
    };
    if child.source == FormatSource::Guessed {
        let context = format!(
            "{} names a parent, but its own format is recorded nowhere: a guest may have written that",
            child.path.display()
        );
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let locators = child.reader.info().parent_paths;
    let (policy, map) = (options.parent_policy, &options.parent_map);
    let (candidates, mapped) =
        match chain::plan_candidates(&child.path, &locators, check, policy, map) {
            Candidates::Mapped(path) => (vec![path], true),
            Candidates::Found(paths) => (paths, false),
        };
    let mut refusal = None;
    for path in &candidates {
        match try_parent(child, path, options) {
            Ok(None) => {}
            Ok(Some(parent)) => return Ok(Some(parent)),
            Err(error) if mapped => return Err(error),
            // Another file of that name: the next place may have the right one.
            Err(error) => {
                refusal.get_or_insert(error);
            }
        }
    }
    Err(refusal.unwrap_or_else(|| chain::parent_not_found(&child.path, &locators, &candidates)))
}

/// One candidate: `None` when nothing is there, an error when it is not the parent.
fn try_parent(
    child: &Found,
    path: &Path,
    options: &OpenOptions,
) -> Result<Option<(Found, Linkage)>> {
    let Some(file) = options.opener.open_file(path)? else {
        return Ok(None);
    };
    let (format, source, siblings) = match child.reader.parent_format() {
        Some(format) => (
            FormatHint::Exactly(format),
            FormatSource::Told,
            beside(path, options),
        ),
        None => (FormatHint::Probe, FormatSource::Guessed, Siblings::Refused),
    };
    let reader = open_reader(file, format, siblings)?;
    let linkage = child.reader.check_parent(&reader, path)?;
    Ok(Some((
        Found {
            path: path.to_owned(),
            source,
            linkage: None,
            reader,
        },
        linkage,
    )))
}
