//! Tests of the lab.

mod estate;
mod lab_document;
mod provider;
mod scenario;
mod schema;
mod wire;
