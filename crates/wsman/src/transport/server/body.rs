//! The body of an answer: whole, or cut off where a fault says so.
//!
//! **Invariant.** A cut body is announced with its whole length, so that who reads it knows that it is cut.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::conversation::Hangup;

/// What goes back.
#[derive(Debug, Default)]
pub(super) struct AnswerBody {
    left: Bytes,
    /// Bytes of `left` that are never sent.
    lost_bytes: usize,
    /// Bytes that were announced and are not sent yet.
    announced_bytes: usize,
    has_waited: bool,
}

impl AnswerBody {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self {
            announced_bytes: bytes.len(),
            left: bytes,
            lost_bytes: 0,
            has_waited: false,
        }
    }

    /// Half of it is sent; then the connection breaks.
    pub(super) fn cut(&mut self) {
        self.lost_bytes = self.left.len().div_ceil(2);
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Hangup;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Hangup>>> {
        let sent = self.left.len().saturating_sub(self.lost_bytes);
        if sent > 0 {
            let bytes = self.left.split_to(sent);
            self.announced_bytes = self.announced_bytes.saturating_sub(sent);
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if self.lost_bytes == 0 {
            return Poll::Ready(None);
        }
        if !std::mem::replace(&mut self.has_waited, true) {
            // What is there is sent before the line breaks.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(Hangup)))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.announced_bytes).unwrap_or(u64::MAX))
    }
}
