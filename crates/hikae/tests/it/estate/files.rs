//! Files of the lab's hosts, as far as those who come from outside may read them. Nothing is written here.

use std::sync::Arc;

use block::ReadAt;
use host::access::{DiskAccess, NoFiles};
use host::boundary::{FolderEntry, HostFileWriter, HostFiles};
use host::checkpoint::Presence;
use host::ids::NodeName;
use host::path::HostPath;
use host::{Error, ErrorKind, Result};
use lab::estate::{HostName, WindowsPath};
use lab::provider::SharedEstate;
use vdisk::file::{FileAccess, HostFile};

/// The way to the files of every host.
pub struct LabFiles(pub Arc<SharedEstate>);

impl DiskAccess for LabFiles {
    fn open(&self, node: &NodeName, path: &HostPath) -> Result<Option<Arc<dyn ReadAt>>> {
        let host = HostName::new(node.as_str());
        let Ok(at) = WindowsPath::parse(path.as_str()) else {
            return Ok(None);
        };
        let Ok(backing) = self.0.read(|it| it.backing(&host, &at)) else {
            return Ok(None);
        };
        if !backing.exists() {
            return Ok(None);
        }
        let readable = self.0.read(|it| it.check_readable(&host, &at));
        readable.map_err(|error| {
            let kind = match error.return_code() {
                Some(lab::ReturnCode::AccessDenied) => ErrorKind::Denied,
                _ => ErrorKind::Io,
            };
            Error::with_source(kind, format!("opening {path} on {node}"), error)
        })?;
        let file = HostFile::open(&backing, FileAccess::ReadOnly)
            .map_err(|error| Error::with_source(ErrorKind::Io, format!("opening {path}"), error))?;
        Ok(Some(Arc::new(file)))
    }
}

impl HostFiles for LabFiles {
    fn create_folder(&self, node: &NodeName, folder: &HostPath) -> Result<()> {
        NoFiles.create_folder(node, folder)
    }

    fn create_file(&self, node: &NodeName, path: &HostPath) -> Result<Arc<dyn HostFileWriter>> {
        NoFiles.create_file(node, path)
    }

    fn open_file_for_update(
        &self,
        node: &NodeName,
        path: &HostPath,
    ) -> Result<Arc<dyn HostFileWriter>> {
        NoFiles.open_file_for_update(node, path)
    }

    fn rename(&self, node: &NodeName, from: &HostPath, to: &HostPath) -> Result<()> {
        NoFiles.rename(node, from, to)
    }

    fn remove(&self, node: &NodeName, path: &HostPath) -> Result<Presence> {
        NoFiles.remove(node, path)
    }

    fn size_bytes(&self, node: &NodeName, path: &HostPath) -> Result<Option<u64>> {
        NoFiles.size_bytes(node, path)
    }

    fn list(&self, node: &NodeName, folder: &HostPath) -> Result<Vec<FolderEntry>> {
        NoFiles.list(node, folder)
    }

    fn free_bytes(&self, node: &NodeName, folder: &HostPath) -> Result<Option<u64>> {
        NoFiles.free_bytes(node, folder)
    }
}
