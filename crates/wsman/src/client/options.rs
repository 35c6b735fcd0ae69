//! What a client allows, how often it tries, and where its time and ids come from.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::CancelToken;
use crate::xml::XmlLimits;

/// Bounds of what a host may send.
#[derive(Debug, Clone, Copy)]
pub struct ClientLimits {
    /// Bytes of one answer.
    pub answer_max_bytes: usize,
    /// Items of one enumeration.
    pub items_max: usize,
    /// Bytes of all answers of one enumeration.
    pub enumeration_max_bytes: usize,
    /// Answers of one enumeration that bring nothing, one after the other.
    pub empty_pulls_max: usize,
    /// Time of one enumeration.
    pub enumeration_timeout: Duration,
    /// Bounds of the XML of one answer.
    pub xml: XmlLimits,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            answer_max_bytes: 4 << 20,
            items_max: 250_000,
            enumeration_max_bytes: 64 << 20,
            empty_pulls_max: 20,
            enumeration_timeout: Duration::from_secs(600),
            xml: XmlLimits::default(),
        }
    }
}

/// How often and with which pauses something is tried again.
#[derive(Debug, Clone, Copy)]
pub struct RetryOptions {
    /// Times that a thing is tried again.
    pub attempts: u32,
    /// First pause; each further one is twice as long.
    pub pause: Duration,
    /// Longest pause.
    pub pause_max: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        Self {
            attempts: 4,
            pause: Duration::from_millis(250),
            pause_max: Duration::from_secs(5),
        }
    }
}

impl RetryOptions {
    /// The pause before the attempt of this number, from 0.
    pub(super) fn pause_before(&self, attempt: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempt.min(16)).unwrap_or(u32::MAX);
        self.pause.saturating_mul(factor).min(self.pause_max)
    }
}

/// How a client asks.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Longest answer that is asked for (`MaxEnvelopeSize`).
    pub max_envelope_bytes: u32,
    /// How long the host may take for one operation (`OperationTimeout`).
    pub operation_timeout: Duration,
    /// How much longer the client waits, for the way there and back.
    pub grace: Duration,
    /// Items per answer that are asked for.
    pub max_elements: u32,
    /// Language that is asked for.
    pub locale: String,
    /// Bounds.
    pub limits: ClientLimits,
    /// Trying again.
    pub retry: RetryOptions,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            max_envelope_bytes: 512_000,
            operation_timeout: Duration::from_secs(60),
            grace: Duration::from_secs(15),
            max_elements: 250,
            locale: "en-US".to_owned(),
            limits: ClientLimits::default(),
            retry: RetryOptions::default(),
        }
    }
}

/// Waits that long, or until cancelled; whether it was cancelled.
pub type Pause = dyn Fn(Duration, &CancelToken) -> bool + Send + Sync;

/// Where ids and time come from, and how a pause is made.
#[derive(Clone)]
pub struct ClientSources {
    /// 16 bytes that did not come before.
    pub ids: Arc<dyn Fn() -> [u8; 16] + Send + Sync>,
    /// Time since some moment; never goes back.
    pub clock: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// Waits, or until cancelled; whether it was cancelled.
    pub pause: Arc<Pause>,
}

impl ClientSources {
    /// The machine's own clock, and real pauses.
    pub fn system(ids: impl Fn() -> [u8; 16] + Send + Sync + 'static) -> Self {
        let start = Instant::now();
        Self {
            ids: Arc::new(ids),
            clock: Arc::new(move || start.elapsed()),
            pause: Arc::new(|pause, cancel| cancel.wait(pause)),
        }
    }
}

impl fmt::Debug for ClientSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSources").finish_non_exhaustive()
    }
}
