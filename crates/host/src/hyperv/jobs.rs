//! Methods and the jobs that they start, waited for by the injected clock.
//!
//! ```text
//!   call ──► 0 ───────────────────────────────────────────► Ended::Done
//!        ├─► 4096 + job ──► poll ──► Completed (7), with warnings (32768) ─► Ended::Done
//!        │                   ├─────► Terminated, Killed, Exception (8, 9, 10) ─► error with the job's own words
//!        │                   ├─────► not found ─► Ended::Vanished: judge by the effect
//!        │                   └─────► too long, or cancelled ─► asked to end, error
//!        ├─► 4096 without a job ──► whatever runs on the node now is over ─► Ended::Vanished
//!        └─► anything else ──► error by the service's list of return values
//! ```

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use wsman::cim::{CimInstance, CimPath, CimValue};

use super::HyperV;
use super::node::{Node, Realm, return_error};
use crate::clock::CancelToken;
use crate::error::HostCode;
use crate::{Error, ErrorKind, Result};

const STARTED: u32 = 4096;
/// Longest text of a job's error that is told.
const MAX_TEXT: usize = 2000;

/// How a method ended.
pub(super) struct Ended {
    /// The method's output.
    pub output: CimInstance,
    /// The job, where there was one.
    pub job: Option<CimPath>,
    /// Whether it is known to have ended well, or only that nothing tells of it any more.
    pub certainty: Certainty,
    /// From the call to when the end was seen.
    pub took: Duration,
}

/// What is known of a method's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certainty {
    /// It ended well.
    Done,
    /// Its job is gone: look at the effect.
    Vanished,
}

impl HyperV {
    /// Calls a method and waits for its job.
    pub(super) fn run(
        &self,
        node: &Node,
        target: &CimPath,
        method: &str,
        inputs: &[(&str, CimValue)],
        cancel: &CancelToken,
    ) -> Result<Ended> {
        cancel.check(method)?;
        let began = self.clock.elapsed();
        let output = node.call(target, method, inputs)?;
        let place = node.place(target, method);
        let value = output
            .u32("ReturnValue")
            .map_err(|error| super::cim::told(error, place.clone()))?;
        let (job, certainty) = match value {
            0 => (None, Certainty::Done),
            STARTED => match output.opt_reference("Job") {
                Ok(Some(job)) => {
                    let certainty = self.wait(node, &job, &place, cancel)?;
                    (Some(job), certainty)
                }
                Ok(None) => {
                    self.wait_unnamed(node, &place, cancel)?;
                    (None, Certainty::Vanished)
                }
                Err(error) => return Err(super::cim::told(error, place)),
            },
            other => return Err(return_error(other, place)),
        };
        Ok(Ended {
            output,
            job,
            certainty,
            took: self.clock.elapsed().saturating_sub(began),
        })
    }

    /// Calls a method that must end well where nothing else tells its effect.
    pub(super) fn run_done(
        &self,
        node: &Node,
        target: &CimPath,
        method: &str,
        inputs: &[(&str, CimValue)],
        cancel: &CancelToken,
    ) -> Result<Ended> {
        let ended = self.run(node, target, method, inputs, cancel)?;
        if ended.certainty == Certainty::Vanished {
            return Err(Error::new(
                ErrorKind::Failed,
                format!(
                    "the job of {} is gone, and nothing tells how it ended",
                    node.place(target, method)
                ),
            ));
        }
        Ok(ended)
    }

    /// Waits for a job that nobody named: until every job that the node runs now is over, or longer than a busy machine is waited
    /// for. How it ended is seen by its effect.
    fn wait_unnamed(&self, node: &Node, place: &str, cancel: &CancelToken) -> Result<()> {
        let Ok(first) = running_on(node) else {
            return Ok(());
        };
        self.poll(self.options.busy_timeout, place, cancel, || {
            let is_over = match running_on(node) {
                Ok(now) => first.is_disjoint(&now),
                // Not to be seen is not to be over.
                Err(error) if is_passing(&error) => false,
                Err(_) => true,
            };
            Ok(is_over.then_some(()))
        })
        .map(drop)
    }

    pub(super) fn wait(
        &self,
        node: &Node,
        job: &CimPath,
        place: &str,
        cancel: &CancelToken,
    ) -> Result<Certainty> {
        let began = self.clock.elapsed();
        let mut pause = self.options.poll_first;
        loop {
            let last_failure = match node.find(job) {
                Ok(None) => return Ok(Certainty::Vanished),
                Ok(Some(row)) => {
                    if let Some(certainty) = judge(node, job, &row, place)? {
                        return Ok(certainty);
                    }
                    None
                }
                // The job goes on whether or not one look at it failed.
                Err(error) if is_passing(&error) => Some(error),
                Err(error) => return Err(error.within(place.to_owned())),
            };
            if cancel.is_cancelled() {
                end(node, job);
                return Err(Error::cancelled(place));
            }
            if self.clock.elapsed().saturating_sub(began) >= self.options.job_timeout {
                end(node, job);
                let context = format!(
                    "{place}: its job did not end within {} s",
                    self.options.job_timeout.as_secs()
                );
                return Err(match last_failure {
                    Some(error) => Error::with_source(error.kind(), context, error),
                    None => Error::new(ErrorKind::TimedOut, context),
                });
            }
            self.clock.pause(pause, cancel);
            pause = pause.saturating_mul(2).min(self.options.poll_most);
        }
    }

    /// Looks again and again until `look` says something, for at most `limit`.
    pub(super) fn poll<T>(
        &self,
        limit: Duration,
        what: &str,
        cancel: &CancelToken,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let began = self.clock.elapsed();
        let mut pause = self.options.poll_first;
        loop {
            cancel.check(what)?;
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            if self.clock.elapsed().saturating_sub(began) >= limit {
                return Ok(None);
            }
            self.clock.pause(pause, cancel);
            pause = pause.saturating_mul(2).min(self.options.poll_most);
        }
    }
}

/// Jobs of a node that are not over, by their ids.
fn running_on(node: &Node) -> Result<HashSet<String>> {
    /// New, starting, running, suspended, shutting down.
    const NOT_OVER: RangeInclusive<u32> = 2..=6;
    let rows = node.rows(Realm::Virtualization, "Msvm_ConcreteJob", None)?;
    let running = rows
        .iter()
        .filter(|row| row.u32("JobState").is_ok_and(|it| NOT_OVER.contains(&it)));
    Ok(running
        .filter_map(|row| row.text_ref("InstanceID").map(str::to_owned))
        .collect())
}

/// Whether looking again may help.
pub(super) fn is_passing(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unreachable | ErrorKind::TimedOut | ErrorKind::Busy
    )
}

/// What a job's row says; `None` while it goes on.
fn judge(node: &Node, job: &CimPath, row: &CimInstance, place: &str) -> Result<Option<Certainty>> {
    let state = row
        .u32("JobState")
        .map_err(|error| super::cim::told(error, format!("the job of {place}")))?;
    match state {
        7 | 32_768 => Ok(Some(Certainty::Done)),
        8..=10 => Err(job_error(node, job, row, place)),
        _ => Ok(None),
    }
}

fn job_error(node: &Node, job: &CimPath, row: &CimInstance, place: &str) -> Error {
    let code = row.opt_u32("ErrorCode").ok().flatten();
    // Storage jobs tell more in a property of their own.
    let status = row.opt_u32("JobCompletionStatusCode").ok().flatten();
    let told = texts_of(node, job)
        .or_else(|| text(row, "ErrorDescription"))
        .or_else(|| text(row, "ErrorSummaryDescription"))
        .unwrap_or_else(|| "without a word".to_owned());
    let context = format!("{place} failed: {told}");
    let code = status.filter(|it| *it != 0).or(code).unwrap_or(0);
    match code {
        0 => Error::new(ErrorKind::Failed, context),
        code => {
            let error = return_error(code, context);
            if error.kind() == ErrorKind::NotFound {
                // A file that is not there is no machine that is elsewhere.
                return Error::new(ErrorKind::Failed, error.to_string()).coded(HostCode(code));
            }
            error
        }
    }
}

fn text(row: &CimInstance, property: &str) -> Option<String> {
    let text = row.text_ref(property)?.trim();
    (!text.is_empty()).then(|| text.chars().take(MAX_TEXT).collect())
}

/// The messages of `GetErrorEx`, joined; nothing when they cannot be had.
fn texts_of(node: &Node, job: &CimPath) -> Option<String> {
    let output = node.call(job, "GetErrorEx", &[]).ok()?;
    let errors = output.instances("Errors").ok()?;
    let texts: Vec<String> = errors
        .iter()
        .take(16)
        .filter_map(|error| text(error, "Message"))
        .collect();
    let joined = texts.join("; ");
    (!joined.is_empty()).then(|| joined.chars().take(MAX_TEXT).collect())
}

/// Asks a job to end. Whether it does is seen by its effect: this is a wish, and failing it changes nothing.
fn end(node: &Node, job: &CimPath) {
    const TERMINATE: u64 = 4;
    let wish = node.call(
        job,
        "RequestStateChange",
        &[("RequestedState", CimValue::Uint(TERMINATE))],
    );
    drop(wish);
}
