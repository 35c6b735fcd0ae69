//! Btrfs on up to four devices, asked everything.
#![no_main]

hikae_fuzz::target!(input => {
    let disks = hikae_fuzz::images::files(input);
    if let Ok(layout) = guestfs::disk::inspect(&disks) {
        for volume in layout.volumes.iter().take(4) {
            let Ok(reader) = &volume.reader else { continue };
            if let Ok(fs) = guestfs::btrfs::open(reader.clone()) {
                hikae_fuzz::walk::file_system(&fs);
            }
        }
    }
});
