//! Serving, tried from outside.
//!
//! | module | what it proves |
//! |---|---|
//! | [`cached`] | a disk behind the cache is the disk, for many readers at once, whatever fails meanwhile |
//! | [`protocol`] | each option and command is answered as the protocol says, byte by byte |
//! | [`hostile`] | any bytes end a conversation, and nothing else |
//! | [`sockets`] | clients that dawdle, crowd, die or come while serving ends cost nobody else anything |
//! | [`clients`] | clients that were not written here read the same bytes: qemu-img, qemu-io, libnbd's tools, nbd-client |
//! | [`folder`] | files of a folder are the disks: copies, holes, loop mounts, and a folder whose process was killed |

mod cached;
mod clients;
mod disks;
#[cfg(target_os = "linux")]
mod folder;
mod hostile;
mod protocol;
mod sockets;
mod speaker;
