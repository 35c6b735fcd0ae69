//! Up to four disks of one machine: tables, LDM, LVM, MD, and the begin and end of every volume found.
#![no_main]

hikae_fuzz::target!(input => {
    let disks = hikae_fuzz::images::files(input);
    if let Ok(layout) = guestfs::disk::inspect(&disks) {
        hikae_fuzz::walk::volumes(&layout);
    }
});
