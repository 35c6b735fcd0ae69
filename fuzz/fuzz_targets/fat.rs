//! A volume of FAT12, FAT16 or FAT32, asked everything.
#![no_main]

hikae_fuzz::target!(input => hikae_fuzz::walk::volume(input, guestfs::fat::open));
