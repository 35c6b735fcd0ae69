//! What the repository promises, seen from outside.

mod format;
mod format_damage;
mod index;
mod keys;
mod read;
mod retention;
mod session;
mod support;
