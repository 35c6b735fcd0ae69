//! What automation shares with tests: killing real processes ([`crash`]).

pub mod crash;
