//! Tests of what is inside disks.

mod names;
