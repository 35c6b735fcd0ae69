//! What the repository promises, seen from outside.

mod concurrency;
mod copy;
mod crash;
mod doubles;
mod format;
mod format_damage;
mod gc;
mod gc_races;
mod index;
mod keys;
mod local;
mod marks;
mod numbers;
mod read;
mod repair;
mod retention;
mod session;
mod stats;
mod stop;
mod support;
mod verify;
mod world;
