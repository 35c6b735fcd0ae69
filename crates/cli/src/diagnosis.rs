//! What the environment asks for besides the work: a trace of store calls, and small packs. For tests and for finding out;
//! `docs/TESTING.md` says how.
//!
//! | variable | meaning |
//! |---|---|
//! | `HIKAE_TRACE_STORE` | a file to which every call on a store is appended, see [`store::traced`] |
//! | `HIKAE_TRACE_STOP` | the call at which this process stops itself, see [`store::traced::TraceStop`] |
//! | `HIKAE_PACK_BYTES` | where data packs are closed, instead of 32 MiB; node packs at a quarter of it |

use std::sync::Arc;

use anyhow::Context;
use repo::PackTargets;
use store::Store;

const TRACE_STORE: &str = "HIKAE_TRACE_STORE";
const TRACE_STOP: &str = "HIKAE_TRACE_STOP";
const PACK_BYTES: &str = "HIKAE_PACK_BYTES";

/// The store, traced if that is asked for.
#[cfg(unix)]
pub fn traced(store: Arc<dyn Store>) -> anyhow::Result<Arc<dyn Store>> {
    use std::path::Path;
    use std::sync::{Mutex, PoisonError};

    use store::traced::{Trace, TracedStore};

    /// All stores of this process write to one trace.
    static TRACE: Mutex<Option<Arc<Trace>>> = Mutex::new(None);

    let Some(path) = std::env::var_os(TRACE_STORE).filter(|path| !path.is_empty()) else {
        return Ok(store);
    };
    let mut held = TRACE.lock().unwrap_or_else(PoisonError::into_inner);
    let trace = match held.as_ref() {
        Some(trace) => Arc::clone(trace),
        None => {
            let stop = text(TRACE_STOP)?
                .map(|text| text.parse())
                .transpose()
                .context(TRACE_STOP)?;
            let trace = Arc::new(Trace::append(Path::new(&path), stop).context(TRACE_STORE)?);
            *held = Some(Arc::clone(&trace));
            trace
        }
    };
    Ok(Arc::new(TracedStore::new(store, trace)?))
}

/// The store as it is: nothing is traced on other systems, and who asks for it is told.
#[cfg(not(unix))]
pub fn traced(store: Arc<dyn Store>) -> anyhow::Result<Arc<dyn Store>> {
    for variable in [TRACE_STORE, TRACE_STOP] {
        if text(variable)?.is_some() {
            let what = format!("{variable}: nothing can be traced on this system");
            return Err(crate::exit::not_possible(what));
        }
    }
    Ok(store)
}

/// Where packs are closed.
pub fn pack_targets() -> anyhow::Result<PackTargets> {
    let Some(text) = text(PACK_BYTES)? else {
        return Ok(PackTargets::default());
    };
    let bytes = crate::args::parse_bytes(&text)
        .ok()
        .and_then(|bytes| usize::try_from(bytes).ok())
        .filter(|bytes| *bytes >= 64 << 10)
        .ok_or_else(|| {
            let what = format!("{PACK_BYTES}: `{text}` is not a size of at least 64K");
            crate::exit::not_possible(what)
        })?;
    Ok(PackTargets::small(bytes, bytes / 4))
}

fn text(variable: &str) -> anyhow::Result<Option<String>> {
    match std::env::var(variable) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(anyhow::Error::new(error).context(variable.to_owned())),
    }
}
