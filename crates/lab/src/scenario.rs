//! Ready-made estates.
//!
//! **Invariant.** The same scenario, seed and folder give the same estate.
