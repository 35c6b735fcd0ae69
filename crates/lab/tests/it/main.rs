//! Tests of the lab.

mod control;
mod estate;
mod lab_document;
mod provider;
mod scenario;
mod schema;
mod wire;
