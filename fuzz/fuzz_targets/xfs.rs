//! A volume of xfs, asked everything.
#![no_main]

hikae_fuzz::target!(input => hikae_fuzz::walk::volume(input, guestfs::xfs::open));
