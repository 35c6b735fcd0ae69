//! Tests of the crate from outside.

mod auth;
mod canonical;
mod client;
mod faults;
mod forms;
mod golden;
mod hostile;
mod odd;
mod query;
mod service;
mod shelf;
mod transport;
mod transport_hand;
#[cfg(feature = "kerberos")]
mod transport_kerberos;
mod transport_lies;
mod transport_python;
mod transport_raw;
mod transport_stage;
mod values;
