//! The folder of a command that serves: each disk as a raw file and, where there can be one, as a VHDX.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use block::ReadAt;
use serve::{CachedDisk, Watch};

use super::{Offer, Served, chain, failed};
use crate::args::ServeArgs;

/// The files of one disk, before they have a folder.
pub(super) struct Files {
    name: String,
    raw: Arc<dyn ReadAt>,
    vhdx: Option<Arc<dyn ReadAt>>,
    data_bytes: u64,
    modified: SystemTime,
}

pub(super) fn files_of(offer: Offer<'_>, disk: &Arc<CachedDisk>) -> Files {
    let raw: Arc<dyn ReadAt> = Arc::clone(disk) as Arc<dyn ReadAt>;
    let (vhdx, data_bytes) = match (offer.vhdx)(Arc::clone(&raw)) {
        Ok(view) => {
            let data_bytes = view.data_bytes();
            let view: Arc<dyn ReadAt> = Arc::new(view);
            (Some(view), data_bytes)
        }
        Err(error) => {
            let below: &(dyn StdError + 'static) = error.as_ref();
            let why = chain(below);
            eprintln!("warning: {}: there is no .vhdx of it: {why}", offer.name);
            (None, raw.size_bytes())
        }
    };
    Files {
        // What a file's name cannot hold; a `%` is written so that no two names become one.
        name: offer.name.replace('%', "%25").replace('/', "%2F"),
        raw,
        vhdx,
        data_bytes,
        modified: offer.modified,
    }
}

#[cfg(target_os = "linux")]
pub(super) struct Mount(serve::fuse::FuseMount);

#[cfg(target_os = "linux")]
impl Mount {
    pub(super) fn new(
        dir: &Path,
        all: Vec<Files>,
        what: &ServeArgs,
        watch: &Arc<dyn Watch>,
        served: &mut [Served],
    ) -> anyhow::Result<Self> {
        use serve::fuse::{Access, FuseMount, FuseOptions, ServedFile};
        let mut names = Vec::new();
        let mut files = Vec::new();
        for one in all {
            let mut of_one = Vec::new();
            let of_vhdx = one.vhdx.as_ref().map_or(0, |disk| disk.size_bytes());
            let kinds = [
                ("raw", Some(one.raw), one.data_bytes),
                ("vhdx", one.vhdx, of_vhdx),
            ];
            for (ending, disk, allocated_bytes) in kinds {
                let Some(disk) = disk else { continue };
                let name = format!("{}.{ending}", one.name);
                of_one.push(name.clone());
                files.push(ServedFile {
                    name,
                    disk,
                    allocated_bytes,
                    modified: one.modified,
                });
            }
            names.push(of_one);
        }
        let options = FuseOptions {
            access: if what.allow_other {
                Access::Everybody
            } else {
                Access::Owner
            },
        };
        let mount =
            FuseMount::mount(dir, files, options, Arc::clone(watch)).map_err(not_mounted)?;
        for (one, names) in served.iter_mut().zip(names) {
            one.files = names.iter().map(|name| mount.dir().join(name)).collect();
        }
        Ok(Self(mount))
    }

    pub(super) fn dir(&self) -> &Path {
        self.0.dir()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.0.has_ended()
    }

    pub(super) fn end(self) -> anyhow::Result<()> {
        let dir = self.0.dir().display().to_string();
        if self.0.unmount().map_err(failed)? == serve::fuse::Unmounted::WhileInUse {
            eprintln!("warning: {dir} was still in use; whoever uses it gets errors from now on");
        }
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) enum Mount {}

#[cfg(not(target_os = "linux"))]
impl Mount {
    pub(super) fn new(
        dir: &Path,
        all: Vec<Files>,
        what: &ServeArgs,
        watch: &Arc<dyn Watch>,
        served: &mut [Served],
    ) -> anyhow::Result<Self> {
        let _ = (all, what, watch, served);
        let what = format!(
            "{}: folders are mounted on Linux only; use --nbd",
            dir.display()
        );
        Err(failed(serve::Error::new(
            serve::ErrorKind::Unsupported,
            what,
        )))
    }

    pub(super) fn dir(&self) -> &Path {
        match *self {}
    }

    pub(super) fn has_ended(&self) -> bool {
        match *self {}
    }

    pub(super) fn end(self) -> anyhow::Result<()> {
        match self {}
    }
}

/// The same where a folder could not be mounted, for what the system says about it.
#[cfg(target_os = "linux")]
fn not_mounted(error: serve::Error) -> anyhow::Error {
    if error.kind() != serve::ErrorKind::Io {
        return failed(error);
    }
    let problem = engine::Error::new(engine::ErrorKind::Io, "serving disks")
        .advised("See that /dev/fuse is there and, without root, fusermount3 (Debian: fuse3); or serve with --nbd");
    anyhow::Error::new(problem.caused_by(error))
}
