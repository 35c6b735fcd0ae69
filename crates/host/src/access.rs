//! How a path on a host becomes bytes: [`DiskAccess`], the frozen disk that stands on it, and the ways that also write.
//!
//! ```text
//!   FrozenDisk ──► vdisk::Image (chain) ──► Paths (opener) ──► DiskAccess ──► LocalPaths │ SmbAccess
//!    D:\vm\a.vhdx      parents by locator      one name per file   node + HostPath → ReadAt   │
//!                                                                HostFiles ─────────┴──── the same, for writing
//! ```
//!
//! Paths of a host are carried through `vdisk` as made-up absolute paths (`/` + the Windows path with `/`), so that relative
//! locators of a chain resolve as they would on the host. Absolute locators are followed only when the identity that the
//! child remembers fits.
//!
//! **Invariants.** What reads opens nothing for writing. Nothing outside of what the access was given is touched.

mod local;
#[cfg(feature = "smb")]
pub mod smb;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use block::ReadAt;
use vdisk::chain::{FileOpener, ParentMap, ParentPolicy};
use vdisk::{Image, OpenOptions};

use crate::boundary::{BatchRead, FolderEntry, HostFileWriter, HostFiles, RangeRead};
use crate::checkpoint::Presence;
use crate::ids::NodeName;
use crate::path::HostPath;
use crate::{Error, ErrorKind, Result};

pub use local::LocalPaths;

/// Opens files of a host for reading.
///
/// **Must** answer `None` when nothing is there, and an error when that cannot be told. **Never** takes a lock that a hypervisor
/// would have to break, and never writes.
pub trait DiskAccess: Send + Sync {
    /// The file at a path, as the node sees it.
    fn open(&self, node: &NodeName, path: &HostPath) -> Result<Option<Arc<dyn ReadAt>>>;
}

/// One way to the files of a node that reads and writes.
pub trait NodeFiles: DiskAccess + HostFiles {}

impl<T: DiskAccess + HostFiles + ?Sized> NodeFiles for T {}

/// A chain of images on a host, opened and readable.
pub struct ChainDisk {
    image: Image,
    layers: Vec<HostPath>,
}

impl ChainDisk {
    /// Opens the image at `path` and its parents, through `access`, as `node` sees them.
    pub fn open(access: Arc<dyn DiskAccess>, node: &NodeName, path: &HostPath) -> Result<Self> {
        let opener = Paths {
            access,
            node: node.clone(),
        };
        let options = OpenOptions {
            opener: Arc::new(opener),
            parent_policy: ParentPolicy::Relative,
            parent_map: ParentMap::default(),
            ..OpenOptions::default()
        };
        let image = Image::open(&carried(path), &options).map_err(|error| {
            let kind = match error.kind() {
                vdisk::ErrorKind::Io => ErrorKind::Io,
                vdisk::ErrorKind::Unsupported => ErrorKind::Unsupported,
                vdisk::ErrorKind::Cancelled => ErrorKind::Cancelled,
                _ => ErrorKind::Failed,
            };
            Error::with_source(
                kind,
                format!("opening the chain of {path} on {node}"),
                error,
            )
        })?;
        let layers = image
            .chain()
            .iter()
            .map(|layer| uncarried(layer.path()))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { image, layers })
    }

    /// The images of the chain, the top first.
    pub fn layers(&self) -> &[HostPath] {
        &self.layers
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }
}

impl ReadAt for ChainDisk {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.image.read_at(offset, buffer)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<block::Extent> {
        self.image.extent_at(offset, limit_bytes)
    }
}

impl BatchRead for ChainDisk {
    fn read_batch(&self, reads: &mut [RangeRead<'_>]) -> block::Result<()> {
        // In disk order, so that what lies together in the images is read together.
        reads.sort_by_key(|read| read.offset);
        for read in reads {
            self.read_at(read.offset, read.buffer)?;
        }
        Ok(())
    }

    fn shape(&self) -> Option<vdisk::ImageInfo> {
        self.image.chain().last().map(|layer| layer.info().clone())
    }

    fn home(&self) -> Option<HostPath> {
        self.layers.last().cloned()
    }
}

/// Files of a node under made-up paths.
struct Paths {
    access: Arc<dyn DiskAccess>,
    node: NodeName,
}

impl FileOpener for Paths {
    fn open_file(&self, path: &Path) -> vdisk::Result<Option<Arc<dyn ReadAt>>> {
        let host = uncarried(path).map_err(foreign_error)?;
        self.access.open(&self.node, &host).map_err(foreign_error)
    }

    fn canonical_path(&self, path: &Path) -> vdisk::Result<PathBuf> {
        let host = uncarried(path).map_err(foreign_error)?;
        Ok(carried(&host_key(&host).map_err(foreign_error)?))
    }
}

fn host_key(path: &HostPath) -> Result<HostPath> {
    HostPath::new(path.key())
}

fn foreign_error(error: Error) -> vdisk::Error {
    let context = error.to_string();
    vdisk::Error::with_source(vdisk::ErrorKind::Io, context, error)
}

const CARRIED_WINDOWS: &str = "/host";

/// A host's path as an absolute path of this system, for nothing but to be taken apart again.
fn carried(path: &HostPath) -> PathBuf {
    if path.is_posix() {
        return PathBuf::from(path.as_str());
    }
    let mut carried = PathBuf::from(CARRIED_WINDOWS);
    // A share's server stands behind an empty part, so that it is not taken for a drive.
    let text = path.as_str().replace('/', "\\");
    let rest = match text.strip_prefix("\\\\") {
        Some(rest) => {
            carried.push("unc");
            rest
        }
        None => {
            carried.push("drive");
            &text
        }
    };
    for part in rest.split('\\').filter(|part| !part.is_empty()) {
        carried.push(part);
    }
    carried
}

fn uncarried(path: &Path) -> Result<HostPath> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => {
                let part = part.to_str();
                parts.push(part.ok_or_else(|| no_host_path(path))?);
            }
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir => {
                parts.pop();
            }
            Component::Prefix(_) => return Err(no_host_path(path)),
        }
    }
    match parts.as_slice() {
        ["host", "unc", rest @ ..] if rest.len() >= 2 => {
            HostPath::new(format!("\\\\{}", rest.join("\\")))
        }
        ["host", "drive", rest @ ..] if !rest.is_empty() => HostPath::new(rest.join("\\")),
        ["host", "unc" | "drive", ..] | ["host"] => Err(no_host_path(path)),
        rest => HostPath::new(format!("/{}", rest.join("/"))),
    }
}

fn no_host_path(path: &Path) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("{} is no path on a host", path.display()),
    )
}

/// Several accesses behind one: by node, for estates whose nodes are reached differently.
#[derive(Default)]
pub struct AccessByNode {
    nodes: BTreeMap<NodeName, Arc<dyn NodeFiles>>,
}

impl AccessByNode {
    /// No node yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Files of `node` are reached through `access`.
    #[must_use]
    pub fn with_node(mut self, node: NodeName, access: Arc<dyn NodeFiles>) -> Self {
        self.nodes.insert(node, access);
        self
    }

    fn of(&self, node: &NodeName) -> Result<&dyn NodeFiles> {
        let access = self.nodes.get(node).ok_or_else(|| no_way(node))?;
        Ok(access.as_ref())
    }
}

fn no_way(node: &NodeName) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("no way to the files of {node} is known"),
    )
}

impl DiskAccess for AccessByNode {
    fn open(&self, node: &NodeName, path: &HostPath) -> Result<Option<Arc<dyn ReadAt>>> {
        self.of(node)?.open(node, path)
    }
}

/// Every call is handed to what [`AccessByNode`] (or another type with a fallible `of`) has for the node.
macro_rules! host_files_by_node {
    ($type:ty, |$it:ident, $node:ident| $way:expr) => {
        impl HostFiles for $type {
            fn create_folder(&self, $node: &NodeName, folder: &HostPath) -> Result<()> {
                let $it = self;
                $way.create_folder($node, folder)
            }
            fn create_file(
                &self,
                $node: &NodeName,
                path: &HostPath,
            ) -> Result<Arc<dyn HostFileWriter>> {
                let $it = self;
                $way.create_file($node, path)
            }
            fn open_file_for_update(
                &self,
                $node: &NodeName,
                path: &HostPath,
            ) -> Result<Arc<dyn HostFileWriter>> {
                let $it = self;
                $way.open_file_for_update($node, path)
            }
            fn rename(&self, $node: &NodeName, from: &HostPath, to: &HostPath) -> Result<()> {
                let $it = self;
                $way.rename($node, from, to)
            }
            fn remove(&self, $node: &NodeName, path: &HostPath) -> Result<Presence> {
                let $it = self;
                $way.remove($node, path)
            }
            fn size_bytes(&self, $node: &NodeName, path: &HostPath) -> Result<Option<u64>> {
                let $it = self;
                $way.size_bytes($node, path)
            }
            fn list(&self, $node: &NodeName, folder: &HostPath) -> Result<Vec<FolderEntry>> {
                let $it = self;
                $way.list($node, folder)
            }
            fn free_bytes(&self, $node: &NodeName, folder: &HostPath) -> Result<Option<u64>> {
                let $it = self;
                $way.free_bytes($node, folder)
            }
        }
    };
}

host_files_by_node!(AccessByNode, |it, node| it.of(node)?);
host_files_by_node!(crate::hyperv::HyperV, |it, node| it.files_of(node)?);
host_files_by_node!(NoFiles, |_it, node| Self::refused(node)?);

/// No way to the files of any node: every call says so.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFiles;

impl NoFiles {
    /// The way that there is not, in the type of one that there is.
    fn refused(node: &NodeName) -> Result<LocalPaths> {
        Err(no_way(node))
    }
}

impl DiskAccess for NoFiles {
    fn open(&self, node: &NodeName, _path: &HostPath) -> Result<Option<Arc<dyn ReadAt>>> {
        Err(no_way(node))
    }
}
