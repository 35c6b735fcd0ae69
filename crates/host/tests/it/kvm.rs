//! The boundary over a second hypervisor: a Linux guest that is booted in QEMU, driven through its monitor and its agent.
//!
//! ```text
//!   image ── a kernel, an initrd and two disks, made on the spot of the parts in target/guest
//!     │
//!   place ── a node with one machine, as a folder: what libvirt would keep, the sockets, marks and checkpoints of ours
//!     │
//!   QemuGuest (guest, checkpoints, parts, absent) ── the traits, by qmp, agent, nbd, watchdog
//!     │
//!   suite (the conformance suite)   round (bytes, changes, moves of state)   kills (a process that dies at each call)
//! ```
//!
//! This is a spike: it shows that the traits fit (RFD 23), and keeps showing it. It is not the driver that a product needs, which
//! would leave processes, sockets and definitions to libvirt.

mod absent;
mod agent;
mod checkpoints;
mod guest;
mod image;
mod kills;
mod making;
mod nbd;
mod parts;
mod place;
mod qmp;
mod round;
mod steps;
mod suite;
mod watchdog;
