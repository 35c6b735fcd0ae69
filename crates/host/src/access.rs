//! How a path on a host becomes bytes: [`DiskAccess`], and the frozen disk that stands on it.
//!
//! ```text
//!   FrozenDisk ──► vdisk::Image (chain) ──► Paths (opener) ──► DiskAccess ──► local files │ SMB3
//!    D:\vm\a.vhdx      parents by locator      one name per file   node + HostPath → ReadAt
//! ```
//!
//! Paths of a host are carried through `vdisk` as made-up absolute paths (`/` + the Windows path with `/`), so that relative
//! locators of a chain resolve as they would on the host. Absolute locators are followed only when the identity that the
//! child remembers fits.
//!
//! **Invariants.** Nothing is opened for writing here, and nothing outside of what the access was given.

#[cfg(feature = "smb")]
pub mod smb;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use block::ReadAt;
use vdisk::chain::{FileOpener, ParentMap, ParentPolicy};
use vdisk::file::{FileAccess, HostFile};
use vdisk::{Image, OpenOptions};

use crate::boundary::{BatchRead, RangeRead};
use crate::ids::NodeName;
use crate::path::HostPath;
use crate::{Error, ErrorKind, Result};

/// Opens files of a host for reading.
///
/// **Must** answer `None` when nothing is there, and an error when that cannot be told. **Never** takes a lock that a hypervisor
/// would have to break, and never writes.
pub trait DiskAccess: Send + Sync {
    /// The file at a path, as the node sees it.
    fn open(&self, node: &NodeName, path: &HostPath) -> Result<Option<Arc<dyn ReadAt>>>;
}

/// Files of this system that stand for a host's: folders of the host mapped to folders here. For agents and tests.
#[derive(Debug, Clone, Default)]
pub struct LocalPaths {
    roots: Vec<(HostPath, PathBuf)>,
}

impl LocalPaths {
    /// No folder yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the host calls `folder` lies at `here`.
    #[must_use]
    pub fn with_root(mut self, folder: HostPath, here: impl Into<PathBuf>) -> Self {
        self.roots.push((folder, here.into()));
        self
    }

    /// Where a path of the host lies here: below the longest folder that fits, and never outside of it.
    pub fn local(&self, path: &HostPath) -> Result<PathBuf> {
        let best = self
            .roots
            .iter()
            .filter(|(folder, _)| path.is_below(folder))
            .max_by_key(|(folder, _)| folder.as_str().len());
        let Some((folder, here)) = best else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("no folder here stands for {path}"),
            ));
        };
        let rest = path
            .as_str()
            .get(folder.as_str().trim_end_matches(['\\', '/']).len()..)
            .unwrap_or_default();
        let mut local = here.clone();
        for part in rest.split(['\\', '/']) {
            match part {
                "" | "." => {}
                ".." => {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("{path} does not stay below {folder}"),
                    ));
                }
                part => local = beside_without_case(&local, part),
            }
        }
        Ok(local)
    }
}

/// The entry of a folder that Windows would take for `name`: the exact one, or else one that differs in case alone.
fn beside_without_case(folder: &Path, name: &str) -> PathBuf {
    let exact = folder.join(name);
    if exact.exists() {
        return exact;
    }
    let lower = name.to_lowercase();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return exact;
    };
    entries
        .filter_map(std::result::Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().to_lowercase() == lower)
        .map_or(exact, |entry| entry.path())
}

impl DiskAccess for LocalPaths {
    fn open(&self, _node: &NodeName, path: &HostPath) -> Result<Option<Arc<dyn ReadAt>>> {
        let local = self.local(path)?;
        if !local.exists() {
            return Ok(None);
        }
        let file = HostFile::open(&local, FileAccess::ReadOnly)
            .map_err(|error| Error::with_source(ErrorKind::Io, format!("opening {path}"), error))?;
        Ok(Some(Arc::new(file)))
    }
}

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
    nodes: BTreeMap<NodeName, Arc<dyn DiskAccess>>,
}

impl AccessByNode {
    /// No node yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Files of `node` are reached through `access`.
    #[must_use]
    pub fn with_node(mut self, node: NodeName, access: Arc<dyn DiskAccess>) -> Self {
        self.nodes.insert(node, access);
        self
    }
}

impl DiskAccess for AccessByNode {
    fn open(&self, node: &NodeName, path: &HostPath) -> Result<Option<Arc<dyn ReadAt>>> {
        let access = self.nodes.get(node).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("no way to the files of {node} is known"),
            )
        })?;
        access.open(node, path)
    }
}
