//! The files beside an image that it keeps its own bytes in: the extents of a VMDK, the data file of a qcow2.
//!
//! **Invariants.** A name is a stranger's word: it must stay in the image's directory, links followed, unless the policy
//! is [`ParentPolicy::Anywhere`].

use std::path::{Component, Path};
use std::sync::Arc;

use block::ReadAt;

use crate::chain::{FileOpener, ParentPolicy};
use crate::vmdk::ExtentOpener;
use crate::{Error, ErrorKind, Result};

/// Opens the files beside an image.
#[derive(Clone, Copy)]
pub(super) enum Siblings<'a> {
    /// None may be opened.
    Refused,
    /// Those of this directory.
    Beside {
        image: &'a Path,
        opener: &'a dyn FileOpener,
        policy: ParentPolicy,
    },
}

impl Siblings<'_> {
    /// The file of that name.
    pub fn open(&self, name: &str) -> Result<Arc<dyn ReadAt>> {
        let refused = |why: &str| {
            Error::new(
                ErrorKind::ParentNotFound,
                format!("the image keeps bytes in {name:?}, {why}"),
            )
        };
        let Self::Beside {
            image,
            opener,
            policy,
        } = self
        else {
            return Err(refused("and no other file may be opened"));
        };
        let directory = image.parent().unwrap_or(Path::new(""));
        let relative = name.replace('\\', "/");
        let stays = Path::new(&relative)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let anywhere = *policy == ParentPolicy::Anywhere;
        if !stays && !anywhere {
            return Err(refused("which is outside its directory"));
        }
        let path = directory.join(&relative);
        let Some(file) = opener.open_file(&path)? else {
            return Err(refused("which is not there"));
        };
        if !anywhere {
            let home = opener.canonical_path(image)?;
            let inside = home.parent().is_some_and(|home| {
                opener
                    .canonical_path(&path)
                    .is_ok_and(|canonical| canonical.starts_with(home))
            });
            if !inside {
                return Err(refused("which is a link out of its directory"));
            }
        }
        Ok(file)
    }
}

impl ExtentOpener for Siblings<'_> {
    fn open_extent(&self, name: &str) -> Result<Arc<dyn ReadAt>> {
        self.open(name)
    }
}
