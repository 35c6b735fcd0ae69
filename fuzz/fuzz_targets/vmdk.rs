//! An image of Vmdk, alone and with its chain.
#![no_main]

hikae_fuzz::target!(input => hikae_fuzz::disk_image::ask(input, vdisk::Format::Vmdk));
