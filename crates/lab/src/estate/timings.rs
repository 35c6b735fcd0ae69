//! How long things take in virtual time.

use std::time::Duration;

/// Durations of jobs. All can be set; those of the default are what one sees on a host that is not busy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings {
    /// Starting a VM.
    pub start: Duration,
    /// Turning it off.
    pub turn_off: Duration,
    /// A guest shutting down.
    pub shut_down: Duration,
    /// Saving its memory.
    pub save: Duration,
    /// Pausing and resuming.
    pub pause: Duration,
    /// Making a checkpoint.
    pub checkpoint: Duration,
    /// Until a guest's writers are timed out.
    pub writer_timeout: Duration,
    /// Applying a checkpoint.
    pub apply: Duration,
    /// Deleting a checkpoint, without the merge.
    pub destroy_checkpoint: Duration,
    /// Converting a checkpoint, without the merge.
    pub convert: Duration,
    /// A merge at least.
    pub merge: Duration,
    /// Bytes that a merge, a copy and a migration of storage move in a second.
    pub bytes_per_second: u64,
    /// A live migration.
    pub migrate: Duration,
    /// Defining, importing, realizing, validating.
    pub define: Duration,
    /// Changing settings and resources.
    pub modify: Duration,
    /// An export, without copying disks.
    pub export: Duration,
    /// From the loss of a node until its groups start elsewhere.
    pub failover: Duration,
    /// A host starting.
    pub boot: Duration,
    /// Between two ticks of a guest.
    pub guest_tick: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            start: seconds(2),
            turn_off: seconds(1),
            shut_down: seconds(20),
            save: seconds(5),
            pause: Duration::from_millis(200),
            checkpoint: seconds(3),
            writer_timeout: seconds(60),
            apply: seconds(2),
            destroy_checkpoint: seconds(1),
            convert: seconds(1),
            merge: seconds(2),
            bytes_per_second: 500_000_000,
            migrate: seconds(10),
            define: seconds(1),
            modify: Duration::from_millis(300),
            export: seconds(3),
            failover: seconds(15),
            boot: seconds(120),
            guest_tick: seconds(1),
        }
    }
}
