//! A volume of LUKS or BitLocker (which begins with a key that is suspended, or that is known), and the disk as it then is.
#![no_main]

use guestfs::encrypted::UnlockKey;

hikae_fuzz::target!(input => {
    let disks = hikae_fuzz::images::files(input);
    let keys = [UnlockKey::passphrase(*b"open")];
    if let Ok(layout) = guestfs::disk::inspect_with_keys(&disks, &keys) {
        hikae_fuzz::walk::volumes(&layout);
    }
});
