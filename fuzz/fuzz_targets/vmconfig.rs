//! A configuration of a VM, in a container or XML: its tree and its model.
#![no_main]

use guestfs::vmconfig::StoredConfiguration;

hikae_fuzz::target!(input => {
    // XML is as good as it stands: sectors mean nothing there.
    let plain: std::sync::Arc<dyn block::ReadAt> = std::sync::Arc::new(vdisk::memory::MemoryFile::from_bytes(input));
    for file in hikae_fuzz::images::files(input).into_iter().take(1).chain([plain]) {
        if let Ok(stored) = StoredConfiguration::read(&file) {
            let _ = stored.model();
        }
    }
});
