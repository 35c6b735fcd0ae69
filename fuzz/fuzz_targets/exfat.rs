//! A volume of exFAT, asked everything.
#![no_main]

hikae_fuzz::target!(input => hikae_fuzz::walk::volume(input, guestfs::fat::exfat::open));
