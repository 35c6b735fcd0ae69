//! What the repository promises, seen from outside.

mod retention;
mod session;
mod support;
mod format;
mod keys;
