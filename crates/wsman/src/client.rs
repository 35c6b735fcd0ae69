//! The asking half: a host's classes and instances, whatever carries the messages.
//!
//! ```text
//!   CimClient  ◄── host::hyperv, tests with a client of their own
//!      │
//!   WsmanClient ── one request ── Transport
//!      retries what is safe to retry, pulls enumerations to their end, goes round what a host refuses
//! ```
//!
//! **What is tried again, and when**
//!
//! | what happened | reads | methods |
//! |---|---|---|
//! | the line broke | again, after a pause; an enumeration from its start | never: it may have run |
//! | the host is busy (a quota) | again, after a pause | again, after a pause: it did not run |
//! | an enumeration lapsed | from its start, if nothing was handed out | |
//! | an answer does not fit the envelope | fewer items at a time | never |
//! | the filter is refused | all instances of the class, filtered here | |
//!
//! **Invariants.** Items, bytes, pulls and time of every enumeration are bounded by [`ClientLimits`]: a host that never ends one
//! costs an error. Cancelling ends every wait.

mod enumerate;
mod options;
mod wsman;

use std::ops::ControlFlow;

use crate::Result;
use crate::cim::{CimInstance, CimPath, CimValue, ClassName, Namespace};
use crate::message::AssociationQuery;

pub use options::{ClientLimits, ClientOptions, ClientSources, Pause, RetryOptions};
pub use wsman::WsmanClient;

/// What is to be enumerated.
#[derive(Debug, Clone, PartialEq)]
pub enum Enumeration {
    /// All instances of a class, and of those that inherit from it.
    Class {
        /// Where.
        namespace: Namespace,
        /// Of what.
        class: ClassName,
    },
    /// What a query in WQL gives.
    Query {
        /// Where.
        namespace: Namespace,
        /// The query.
        wql: String,
    },
    /// What is related to an instance.
    Related(AssociationQuery),
}

impl Enumeration {
    /// All instances of a class.
    pub fn class(namespace: &Namespace, class: impl Into<ClassName>) -> Self {
        Self::Class {
            namespace: namespace.clone(),
            class: class.into(),
        }
    }

    /// What a query gives.
    pub fn query(namespace: &Namespace, wql: impl Into<String>) -> Self {
        Self::Query {
            namespace: namespace.clone(),
            wql: wql.into(),
        }
    }
}

/// Asks a host about its classes. Called from many threads at once.
///
/// Must: give complete results or an error. May rely on: nothing that the host says. Never: run a method twice for one call, unless the
/// host said that it did not run.
pub trait CimClient: Send + Sync {
    /// The instance that a path names by all of its keys.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) where there is none; else as the host or the line has it.
    fn get(&self, path: &CimPath) -> Result<CimInstance>;

    /// Hands each result to `each` as it comes, until that breaks off.
    ///
    /// # Errors
    /// As [`CimClient::get`]; what was handed out before an error is incomplete.
    fn for_each(
        &self,
        enumeration: &Enumeration,
        each: &mut dyn FnMut(CimInstance) -> ControlFlow<()>,
    ) -> Result<()>;

    /// All results.
    ///
    /// # Errors
    /// As [`CimClient::get`]; [`Limit`](crate::ErrorKind::Limit) for more than are allowed.
    fn collect(&self, enumeration: &Enumeration) -> Result<Vec<CimInstance>>;

    /// Runs a method. Gives its outputs and `ReturnValue`: a method that ran and failed is no error here.
    ///
    /// # Errors
    /// As [`CimClient::get`]; after [`Io`](crate::ErrorKind::Io) and [`TimedOut`](crate::ErrorKind::TimedOut) it may have run.
    fn invoke(
        &self,
        path: &CimPath,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> Result<CimInstance>;

    /// Changes an instance; gives it as it is then.
    ///
    /// # Errors
    /// As [`CimClient::invoke`].
    fn put(&self, path: &CimPath, instance: &CimInstance) -> Result<CimInstance>;

    /// All instances of a class, and of those that inherit from it.
    ///
    /// # Errors
    /// As [`CimClient::collect`].
    fn enumerate(&self, namespace: &Namespace, class: &ClassName) -> Result<Vec<CimInstance>> {
        self.collect(&Enumeration::class(namespace, class))
    }

    /// What a query in WQL gives.
    ///
    /// # Errors
    /// As [`CimClient::collect`].
    fn query(&self, namespace: &Namespace, wql: &str) -> Result<Vec<CimInstance>> {
        self.collect(&Enumeration::query(namespace, wql))
    }

    /// What is related to an instance.
    ///
    /// # Errors
    /// As [`CimClient::collect`].
    fn associators(&self, query: &AssociationQuery) -> Result<Vec<CimInstance>> {
        self.collect(&Enumeration::Related(query.clone()))
    }
}
