//! A transport that has the service at its other end: the real messages in one process, without a network.
//!
//! **Invariants.** It keeps what a transport promises of sizes and of being told to stop. Who calls is said, not proved: it is for
//! tests and simulations, and never stands between two machines.

use std::sync::Arc;

use super::{Answer, Post, Transport};
use crate::server::{Caller, SoapService};
use crate::{Error, ErrorKind, Result};

/// To a service of this process.
pub struct DirectTransport {
    service: Arc<dyn SoapService>,
    caller: Caller,
    address: String,
}

impl DirectTransport {
    /// To `service`, as `caller`; `address` is what envelopes say where they go.
    pub fn new(service: Arc<dyn SoapService>, caller: Caller, address: impl Into<String>) -> Self {
        Self {
            service,
            caller,
            address: address.into(),
        }
    }
}

impl Transport for DirectTransport {
    fn post(&self, post: &Post<'_>) -> Result<Answer> {
        if post.cancel.is_cancelled() {
            let what = format!("{}: told to stop", self.address);
            return Err(Error::new(ErrorKind::Cancelled, what));
        }
        let reply = self.service.serve(&self.caller, Some("utf-8"), post.body);
        if reply.body.len() > post.answer_max_bytes {
            let what = format!("{}: an answer of {} bytes", self.address, reply.body.len());
            return Err(Error::new(ErrorKind::Limit, what));
        }
        Ok(Answer {
            status: reply.status,
            charset: Some("utf-8".to_owned()),
            body: reply.body,
        })
    }

    fn address(&self) -> &str {
        &self.address
    }
}
