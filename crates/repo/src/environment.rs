//! What a repository takes from the world: the time, randomness, and who this process is. All of it injected, so that
//! a whole estate can be simulated from one seed.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ring::rand::SecureRandom;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// Time, as a repository sees it.
///
/// An implementer **must** never let `monotonic_ms` go back. `unix_ms` may jump: only stamps and retention use it.
pub trait Clock: Send + Sync {
    /// Wall time in milliseconds since 1970.
    fn unix_ms(&self) -> u64;
    /// Milliseconds since some fixed instant of this process.
    fn monotonic_ms(&self) -> u64;
    /// Waits.
    fn sleep(&self, duration: Duration);
}

/// Randomness fit for keys.
pub trait Random: Send + Sync {
    /// Fills the buffer.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] when the system has none.
    fn fill(&self, buffer: &mut [u8]) -> Result<()>;
}

/// Who this process is, so that a later one can tell whether it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostIdentity {
    /// Host name.
    pub host: String,
    /// Changes with every boot; empty where the system has none.
    pub boot_id: String,
    /// Process number.
    pub pid: u32,
    /// When the process started, in the system's own unit; tells a reused process number.
    pub process_started: u64,
    /// Program name and version.
    pub program: String,
}

/// The world around a repository.
#[derive(Clone)]
pub struct Environment {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// This process.
    pub host: HostIdentity,
}

impl Environment {
    /// The real world, for a program of this name and version.
    pub fn system(program: &str) -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            random: Arc::new(SystemRandom::new()),
            host: HostIdentity::current(program),
        }
    }
}

/// The system's clocks.
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// Starts counting monotonic time now.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// The system's source of randomness.
pub struct SystemRandom(ring::rand::SystemRandom);

impl SystemRandom {
    /// Opens it.
    pub fn new() -> Self {
        Self(ring::rand::SystemRandom::new())
    }
}

impl Default for SystemRandom {
    fn default() -> Self {
        Self::new()
    }
}

impl Random for SystemRandom {
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        self.0
            .fill(buffer)
            .map_err(|_| Error::new(ErrorKind::Local, "the system gives no randomness"))
    }
}

impl HostIdentity {
    /// This process, as far as the system tells.
    pub fn current(program: &str) -> Self {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let host = read("/proc/sys/kernel/hostname");
        Self {
            host: if host.is_empty() {
                "unknown".to_owned()
            } else {
                host
            },
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            pid: std::process::id(),
            process_started: process_started(std::process::id()).unwrap_or(0),
            program: program.to_owned(),
        }
    }
}

/// When a process of this host started, in ticks since boot; `None` when there is no such process (or no way to know).
pub fn process_started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may hold anything, also spaces and brackets: what follows it starts after the last bracket.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Wall time as RFC 3339 in UTC with milliseconds.
pub fn rfc3339(unix_ms: u64) -> String {
    let (seconds, millis) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from a day count: eras of 400 years, years that begin in March.
    let shifted = days.saturating_add(719_468);
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let leaps = (day_of_era / 1_460).saturating_add(day_of_era / 146_096);
    let year_of_era = day_of_era
        .saturating_add(day_of_era / 36_524)
        .saturating_sub(leaps)
        / 365;
    let before = year_of_era
        .saturating_mul(365)
        .saturating_add(year_of_era / 4)
        .saturating_sub(year_of_era / 100);
    let day_of_year = day_of_era.saturating_sub(before);
    let month_from_march = day_of_year.saturating_mul(5).saturating_add(2) / 153;
    let days_before = month_from_march.saturating_mul(153).saturating_add(2) / 5;
    let day = day_of_year.saturating_sub(days_before).saturating_add(1);
    let month = if month_from_march < 10 {
        month_from_march.saturating_add(3)
    } else {
        month_from_march.saturating_sub(9)
    };
    let year = era
        .saturating_mul(400)
        .saturating_add(year_of_era)
        .saturating_add(u64::from(month <= 2));
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{millis:03}Z",
        second % 60
    )
}
