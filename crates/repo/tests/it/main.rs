//! What the repository promises, seen from outside.

mod retention;
