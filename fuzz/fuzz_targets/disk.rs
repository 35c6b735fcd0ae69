//! Up to four disks of one machine: tables, LDM, LVM, MD, and the begin and end of every volume found.
#![no_main]

hikae_fuzz::target!(input => {
    let disks = hikae_fuzz::images::files(input);
    if let Ok(layout) = guestfs::disk::inspect(&disks) {
        for volume in layout.volumes.iter().take(64) {
            let Ok(reader) = &volume.reader else { continue };
            let size = reader.size_bytes();
            let mut bytes = [0; 4096];
            let length = bytes.len().min(usize::try_from(size).unwrap_or(usize::MAX));
            for offset in [0, size / 2, size - length as u64] {
                let length = length.min(usize::try_from(size - offset).unwrap_or(usize::MAX));
                let _ = reader.read_at(offset, &mut bytes[..length]);
                if offset < size {
                    let extent = reader.extent_at(offset, size - offset);
                    assert!(extent.is_err() || extent.is_ok_and(|it| it.length_bytes > 0 && it.end() <= size));
                }
            }
        }
    }
});
