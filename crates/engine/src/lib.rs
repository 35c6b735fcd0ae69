//! The protection domain.
