//! A volume of Btrfs of up to four devices, asked everything.
#![no_main]

hikae_fuzz::target!(input => {
    if let Ok(fs) = guestfs::btrfs::open(hikae_fuzz::images::files(input)) {
        hikae_fuzz::walk::file_system(&fs);
    }
});
