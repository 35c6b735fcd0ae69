//! What a volume is taken for, and what a table of partitions says.
#![no_main]

hikae_fuzz::target!(input => {
    for file in hikae_fuzz::images::files(input) {
        let _ = guestfs::probe::probe(&*file);
        let _ = guestfs::partition::read(&*file);
    }
});
