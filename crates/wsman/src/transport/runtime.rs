//! The threads that sockets are served by. Whoever calls never meets them: calls block.

use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

use crate::{Error, ErrorKind, Result};

/// A runtime for transports and servers; cheap to clone, shared by as many as there are. The last one dropped ends it.
#[derive(Debug, Clone)]
pub struct TransportRuntime {
    owned: Arc<Owned>,
}

#[derive(Debug)]
struct Owned {
    runtime: Option<Runtime>,
}

impl TransportRuntime {
    /// One thread for sockets, and a few that come and go for what blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the operating system gives no threads.
    pub fn new() -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("wsman")
            .enable_all()
            .build()
            .map_err(|cause| {
                Error::new(ErrorKind::Io, "threads of the transport").caused_by(cause)
            })?;
        Ok(Self {
            owned: Arc::new(Owned {
                runtime: Some(runtime),
            }),
        })
    }

    pub(super) fn handle(&self) -> &tokio::runtime::Handle {
        match &self.owned.runtime {
            Some(runtime) => runtime.handle(),
            None => unreachable!("the runtime is taken out only when nobody has it any more"),
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Waiting here could be forbidden: the last owner may be a task of some other runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
