//! The folder: one level of files, each a disk.
//!
//! **Invariants.** Inode 1 is the folder, 2 the first file, and so on. A read that fails is `EIO` and is told to the watch.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use block::{ErrorKind, ExtentKind, ReadAt};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEntry, ReplyLseek, ReplyOpen, Request,
};

use crate::{Event, Watch};

/// How long the kernel may remember: nothing changes.
const REMEMBER: Duration = Duration::from_secs(24 * 3600);
const ROOT: u64 = 1;
const FIRST_FILE: u64 = 2;
/// Most bytes that the kernel is let ask for at once.
const READ_BYTES_MAX: u32 = 1 << 20;
/// Requests of the kernel that may be under way on its own account.
const BACKGROUND_MAX: u16 = 64;
/// Runs that one search for a hole or for data goes through.
const RUNS_MAX: usize = 65_536;
/// `lseek(2)`: the next data, the next hole.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// A file of the folder.
pub struct ServedFile {
    /// Its name: no `/` in it.
    pub name: String,
    /// Its bytes.
    pub disk: Arc<dyn ReadAt>,
    /// How much of it is not holes, as far as that is known: what `du` shows, and what lets `cp` look for holes.
    pub allocated_bytes: u64,
    /// What is shown as its time.
    pub modified: SystemTime,
}

pub(super) struct Folder {
    files: Vec<ServedFile>,
    owner: (u32, u32),
    mounted: SystemTime,
    watch: Arc<dyn Watch>,
}

impl Folder {
    pub(super) fn new(files: Vec<ServedFile>, watch: Arc<dyn Watch>) -> Self {
        Self {
            files,
            owner: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            mounted: SystemTime::now(),
            watch,
        }
    }

    fn file(&self, inode: INodeNo) -> Option<&ServedFile> {
        let index = inode.0.checked_sub(FIRST_FILE)?;
        self.files.get(usize::try_from(index).ok()?)
    }

    fn entries(&self) -> impl Iterator<Item = (u64, &ServedFile)> {
        (FIRST_FILE..).zip(&self.files)
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, size, allocated, time, permissions, links) = if inode.0 == ROOT {
            (FileType::Directory, 0, 0, self.mounted, 0o555, 2)
        } else {
            let file = self.file(inode)?;
            let size = file.disk.size_bytes();
            let allocated = file.allocated_bytes;
            (
                FileType::RegularFile,
                size,
                allocated,
                file.modified,
                0o444,
                1,
            )
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: allocated.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: permissions,
            nlink: links,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 65_536,
            flags: 0,
        })
    }

    fn tell(&self, file: &ServedFile, offset: u64, length_bytes: u64, error: &block::Error) {
        self.watch.tell(&Event::ReadFailed {
            disk: &file.name,
            offset,
            length_bytes,
            error,
        });
    }
}

/// Where data or a hole begins, from `offset` on. When that takes too long, the rest counts as data, which is always allowed.
/// `None` when no data follows.
fn seek(disk: &dyn ReadAt, offset: u64, wants_hole: bool) -> block::Result<Option<u64>> {
    let size = disk.size_bytes();
    let mut at = offset;
    for _ in 0..RUNS_MAX {
        let left = size.saturating_sub(at);
        if left == 0 {
            break;
        }
        let extent = disk.extent_at(at, left)?;
        let is_hole = matches!(extent.kind, ExtentKind::Zero | ExtentKind::Unallocated);
        if is_hole == wants_hole {
            return Ok(Some(at));
        }
        if extent.length_bytes == 0 {
            let what = format!("the disk tells nothing about what lies at {at}");
            return Err(block::Error::new(ErrorKind::Corrupt, what));
        }
        at = extent.end();
    }
    Ok(match (wants_hole, at < size) {
        // Behind the end there is always a hole.
        (true, _) => Some(size),
        (false, true) => Some(at),
        (false, false) => None,
    })
}

impl Filesystem for Folder {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Whichever the kernel does not take keeps its usual value.
        config.set_max_write(READ_BYTES_MAX).ok();
        config.set_max_readahead(READ_BYTES_MAX).ok();
        config.set_max_background(BACKGROUND_MAX).ok();
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self
            .entries()
            .find(|(_, file)| parent.0 == ROOT && OsStr::new(&file.name) == name);
        match found.and_then(|(inode, _)| self.attributes(INodeNo(inode))) {
            Some(attributes) => reply.entry(&REMEMBER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&REMEMBER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.file(inode).is_none() {
            reply.error(Errno::ENOENT);
        } else if flags.acc_mode() != OpenAccMode::O_RDONLY {
            reply.error(Errno::EROFS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.file(inode) else {
            return reply.error(Errno::ENOENT);
        };
        let left = file.disk.size_bytes().saturating_sub(offset);
        // Never fewer than were asked for and are there: the kernel would take the rest for zeros.
        let length = u64::from(size).min(left);
        let mut buffer = vec![0; usize::try_from(length).unwrap_or(0)];
        match file.disk.read_at(offset, &mut buffer) {
            Ok(()) => reply.data(&buffer),
            Err(error) => {
                self.tell(file, offset, length, &error);
                reply.error(Errno::EIO);
            }
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if inode.0 != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let links = [".", ".."].map(|name| (ROOT, FileType::Directory, name));
        let files = self
            .entries()
            .map(|(inode, file)| (inode, FileType::RegularFile, file.name.as_str()));
        let all = links.into_iter().chain(files);
        for (place, (inode, kind, name)) in (1u64..).zip(all) {
            if place > offset && reply.add(INodeNo(inode), place, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn lseek(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(file) = self.file(inode) else {
            return reply.error(Errno::ENOENT);
        };
        let wants_hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let Some(start) = u64::try_from(offset)
            .ok()
            .filter(|start| *start < file.disk.size_bytes())
        else {
            return reply.error(Errno::ENXIO);
        };
        match seek(file.disk.as_ref(), start, wants_hole) {
            Ok(Some(found)) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => {
                self.tell(file, start, 0, &error);
                reply.error(Errno::EIO);
            }
        }
    }
}
