//! The way into a lab that runs: what an operator, a trainer or a test does to it, beside the wire.
//!
//! ```text
//!   hikae lab status … ─► ControlClient ── Unix socket, JSON lines ──► ControlServer ─► ControlDesk ─► SharedEstate, WirePlans
//! ```
//!
//! **Invariants.** Only the owner of the lab reaches it: the socket is made with mode 0600 in a folder of theirs. Lines,
//! connections and waits are bounded. Nothing here is on the wire of a real host; drivers never see it.

mod client;
mod desk;
mod faults;
mod guests;
mod messages;
mod moves;
mod server;
mod socket;
mod status;

pub use client::{ControlClient, ask};
pub use desk::{ControlDesk, DeskParts};
pub use faults::fault_kinds;
pub use messages::{
    ArmedFault, ClearReport, ClusterStatus, DownReport, FaultKindReport, FaultRequest,
    FaultsReport, GuestFacts, GuestProgress, GuestReport, HostStatus, InjectReport, JobStatus,
    MigrateReport, MigrateRequest, PowerChange, Refusal, RefusalKind, Reply, Request, RoleStatus,
    RunReport, StatusReport, StruckFault, VmStatus, VolumeStatus,
};
pub use server::ControlServer;

/// Name of the socket in a lab's folder.
pub const SOCKET: &str = "control.sock";
