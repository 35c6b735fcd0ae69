//! What a server needs to know of the estate that it shows.

use std::sync::Arc;

use super::Caller;
use crate::cim::{CimInstance, CimPath, ClassName, Namespace};
use crate::message::{AssociationQuery, Fault, FaultCode, hresult, wsman_code};
use crate::schema::{MethodSchema, SchemaSet};
use crate::wql::Select;

/// What a request is about to do, for [`CimProvider::admit`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// Begin an enumeration of a class, or of what a query says.
    Enumerate {
        /// Where.
        namespace: &'a Namespace,
        /// The query, if it is one.
        query: Option<&'a str>,
        /// What is related to an instance, if that is asked for by a filter of its own and not by a query.
        association: Option<&'a AssociationQuery>,
    },
    /// Go on with one.
    Pull,
    /// End one.
    Release,
    /// Get an instance.
    Get(&'a CimPath),
    /// Change an instance.
    Put(&'a CimPath),
    /// Run a method.
    Invoke {
        /// Of which instance.
        path: &'a CimPath,
        /// Its name.
        method: &'a str,
    },
}

/// A call of a method, checked against its schema.
#[derive(Debug, Clone, Copy)]
pub struct Invocation<'a> {
    /// The instance, by the selectors that were sent: for services of which there is one, maybe not all keys.
    pub path: &'a CimPath,
    /// What is called.
    pub method: &'a MethodSchema,
    /// The inputs by name, of the types of the schema; what was left out is absent. Embedded instances are still texts: which
    /// code answers a broken one is the provider's to say (see [`crate::cim::embedded::read_strict`]).
    pub inputs: &'a CimInstance,
    /// Who calls.
    pub caller: &'a Caller,
}

/// The estate, seen as classes and instances. Called from many threads at once.
///
/// Must: give instances of exactly the class that they have, with the names and types of its schema (any scalar may be left out and
/// is then null). May rely on: classes and properties named in queries exist, keys of [`CimProvider::get`] are complete, inputs of
/// methods have their types. Never: block for longer than an operation may take.
pub trait CimProvider: Send + Sync {
    /// The classes of a namespace; `None` if there is no such namespace here.
    fn schema(&self, namespace: &Namespace) -> Option<Arc<SchemaSet>>;

    /// The name of the host, for `__SERVER` and as `Machine` of faults.
    fn server_name(&self) -> &str;

    /// Whether the caller may do this now. The place to refuse for want of rights, and to make things fail on purpose.
    ///
    /// # Errors
    /// The fault to answer.
    fn admit(&self, _operation: &Operation<'_>, _caller: &Caller) -> Result<(), Fault> {
        Ok(())
    }

    /// All instances of a class and of those that inherit from it. With a query, those that do not match may be left out; the
    /// caller filters again.
    ///
    /// # Errors
    /// The fault to answer.
    fn instances(
        &self,
        namespace: &Namespace,
        class: &ClassName,
        query: Option<&Select>,
        caller: &Caller,
    ) -> Result<Vec<CimInstance>, Fault>;

    /// The instance that a path names by all of its keys.
    ///
    /// # Errors
    /// The fault to answer; [`not_found`] where there is none.
    fn get(&self, path: &CimPath, caller: &Caller) -> Result<CimInstance, Fault>;

    /// What is related to an instance: all conditions of the query are the provider's to keep.
    ///
    /// # Errors
    /// The fault to answer.
    fn related(&self, query: &AssociationQuery, caller: &Caller)
    -> Result<Vec<CimInstance>, Fault>;

    /// Runs a method; gives its outputs, `ReturnValue` among them. A method that ran and failed is no fault.
    ///
    /// # Errors
    /// The fault to answer.
    fn invoke(&self, invocation: &Invocation<'_>) -> Result<CimInstance, Fault>;

    /// Changes an instance; gives it as it is then. Hyper-V's settings change by methods alone, so most providers have none.
    ///
    /// # Errors
    /// The fault to answer.
    fn put(
        &self,
        path: &CimPath,
        _instance: &CimInstance,
        _caller: &Caller,
    ) -> Result<CimInstance, Fault> {
        Err(Fault::new(FaultCode::UnsupportedFeature)
            .because(format_args!("{} is read-only.", path.class)))
    }
}

/// The fault for an instance that is not there.
pub fn not_found(path: &CimPath) -> Fault {
    Fault::new(FaultCode::DestinationUnreachable)
        .with_wsman_code(wsman_code::RESOURCE_NOT_FOUND)
        .with_hresult(hresult::NOT_FOUND, "Not found")
        .because(path.to_relative_text())
}
