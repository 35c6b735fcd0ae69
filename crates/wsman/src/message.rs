//! The messages: what is asked, what is answered, and faults.
//!
//! ```text
//!   Envelope
//!     Header   To · Action · MessageID · ResourceURI · SelectorSet · limits        RequestHeader
//!     Body     Identify │ Enumerate │ Pull │ Release │ Get │ Put │ <X_INPUT>       RequestBody
//!              …Response │ instance │ <X_OUTPUT> │ Fault                           answer
//! ```
//! After DSP0226 (WS-Management), DSP0227 (its binding to CIM) and MS-WSMV, in the forms that WinRM writes.
//!
//! **Invariants.** Read by namespace and local name, never by prefix; written with the prefixes of Windows. Reading a request is
//! strict where Windows is and says the fault; reading an answer takes every legal form.
//!
//! **What it does not do.** No authentication, no sockets, no state: [`crate::client`] and [`crate::server`] have that.

mod answer;
mod fault;
mod filter;
mod header;
mod request;
mod uri;
mod value;

pub use answer::{
    AnswerWriter, Batch, Identity, Item, read_answer, read_batch, read_identity,
    read_instance_answer, read_output,
};
pub use fault::{Fault, FaultCode, FaultSide, ProviderError, hresult, wsman_code};
pub use filter::{Association, AssociationQuery, Dialect, Filter};
pub use header::{EnumerationContext, MessageId, RequestHeader};
pub use request::{Delivery, Enumerate, Items, Polymorphism, Request, RequestBody};
pub use uri::{Action, ResourceTarget, ResourceUri, UriFamily};
pub use value::{
    ReferenceForm, read_instance, read_reference, read_value, write_instance, write_reference,
    write_value,
};
