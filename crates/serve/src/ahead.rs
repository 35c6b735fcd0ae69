//! Who reads in order, and how far to read ahead of them. Pure.
//!
//! ```text
//!   read read read ┄┄┄ next              ahead_to
//!   ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒│░░░░ window ░░░░░░│          every read that goes on doubles the window, up to its greatest
//! ```
//!
//! Requests of one reader may overtake each other a little: a stream goes on when a read begins near where it should.
//!
//! **Invariants.** A fixed number of streams is remembered; the one that was used least lately gives way.

use std::ops::Range;

/// Streams that are followed at once.
const STREAMS: usize = 8;
/// How far from its place a read may begin and still go on with a stream.
const SLACK_BYTES: u64 = 512 << 10;
/// Reads in order before anything is read ahead.
const PATIENCE: u32 = 2;
const WINDOW_MIN_BYTES: u64 = 256 << 10;
const WINDOW_MAX_BYTES: u64 = 8 << 20;

/// What is known of one reader.
#[derive(Debug, Clone, Copy)]
struct Stream {
    next: u64,
    ahead_to: u64,
    window: u64,
    in_order: u32,
    used: u64,
}

/// What a read tells about its reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pace {
    /// It jumps about, or it has just begun.
    Anywhere,
    /// It reads in order; what should be read ahead now, if anything.
    InOrder(Option<Range<u64>>),
}

/// The readers of one disk.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
    clock: u64,
}

impl Streams {
    /// Takes note of a read.
    pub(crate) fn note(&mut self, offset: u64, length_bytes: u64, size_bytes: u64) -> Pace {
        self.clock = self.clock.wrapping_add(1);
        let clock = self.clock;
        let end = offset.saturating_add(length_bytes);
        let going_on = self
            .streams
            .iter_mut()
            .find(|stream| offset.abs_diff(stream.next) <= SLACK_BYTES && end > stream.next);
        let Some(stream) = going_on else {
            self.begin(end);
            return Pace::Anywhere;
        };
        stream.used = clock;
        stream.next = end;
        stream.in_order = stream.in_order.saturating_add(1);
        if stream.in_order < PATIENCE {
            return Pace::Anywhere;
        }
        stream.window = stream
            .window
            .saturating_mul(2)
            .clamp(WINDOW_MIN_BYTES, WINDOW_MAX_BYTES);
        stream.ahead_to = stream.ahead_to.max(end);
        let wanted = end.saturating_add(stream.window).min(size_bytes);
        let missing = wanted.saturating_sub(stream.ahead_to);
        // In large pieces, or the rest of the disk.
        if missing == 0 || (missing < stream.window / 2 && wanted < size_bytes) {
            return Pace::InOrder(None);
        }
        let ahead = stream.ahead_to..wanted;
        stream.ahead_to = wanted;
        Pace::InOrder(Some(ahead))
    }

    fn begin(&mut self, next: u64) {
        let stream = Stream {
            next,
            ahead_to: next,
            window: 0,
            in_order: 0,
            used: self.clock,
        };
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.used) {
            *oldest = stream;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const SIZE: u64 = 1 << 30;

    #[test]
    fn who_reads_in_order_is_read_ahead_of_without_a_gap_up_to_the_end() {
        let mut streams = Streams::default();
        let mut covered = 0;
        let mut at = 0;
        while at < SIZE {
            if let Pace::InOrder(Some(ahead)) = streams.note(at, 128 * KIB, SIZE) {
                assert!(ahead.start <= covered.max(at + 128 * KIB), "no gap");
                assert!(ahead.end <= SIZE && ahead.end - at <= WINDOW_MAX_BYTES + 128 * KIB);
                covered = ahead.end;
            }
            at += 128 * KIB;
            assert!(
                at < 4 << 20 || covered >= (at + WINDOW_MAX_BYTES / 4).min(SIZE),
                "at {at}"
            );
        }
        assert_eq!(covered, SIZE);
    }

    #[test]
    fn who_jumps_about_is_not_read_ahead_of() {
        let mut streams = Streams::default();
        let mut state = 7_u64;
        for _ in 0..1000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let at = (state >> 20) % (SIZE - 4096);
            assert_eq!(streams.note(at, 4096, SIZE), Pace::Anywhere);
        }
        assert!(streams.streams.len() <= STREAMS);
    }

    #[test]
    fn several_readers_are_followed_at_once_though_requests_overtake_each_other() {
        let mut streams = Streams::default();
        let mut ahead = [0; 4];
        for step in 0..64_u64 {
            for (reader, sum) in ahead.iter_mut().enumerate() {
                let base = (reader as u64) * (SIZE / 4);
                // Every two are swapped.
                let at = base + (step ^ 1) * 64 * KIB;
                if let Pace::InOrder(Some(range)) = streams.note(at, 64 * KIB, SIZE) {
                    *sum += range.end - range.start;
                }
            }
        }
        assert!(ahead.iter().all(|sum| *sum > 2 << 20), "{ahead:?}");
    }

    #[test]
    fn the_greatest_offsets_do_no_harm() {
        let mut streams = Streams::default();
        for _ in 0..8 {
            streams.note(u64::MAX - 5, u64::MAX, u64::MAX);
            streams.note(u64::MAX, 1, u64::MAX);
        }
    }
}
