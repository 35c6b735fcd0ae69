//! Everything that can be asked of a virtual disk image: the first file of a case, whose parents may be the others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::ReadAt;
use vdisk::chain::FileOpener;
use vdisk::image::{ChainMode, FormatHint, OpenOptions};
use vdisk::{Format, Image, map};

const EXTENTS: usize = 400;
const READ_BYTES: usize = 64 << 10;

struct Files(Vec<Arc<dyn ReadAt>>);

impl FileOpener for Files {
    fn open_file(&self, path: &Path) -> vdisk::Result<Option<Arc<dyn ReadAt>>> {
        // The image is called 0; any other name is the first other file, then the next: chains of lies are chains, too.
        let number = match path.to_str() {
            Some("0") => 0,
            Some(name) => 1 + name.len() % 3,
            None => 1,
        };
        Ok(self.0.get(number).map(Arc::clone))
    }
    fn canonical_path(&self, path: &Path) -> vdisk::Result<PathBuf> {
        Ok(path.to_owned())
    }
}

/// Opens an image of this format, alone and with its chain, and asks.
pub fn ask(input: &[u8], format: Format) {
    for chain in [ChainMode::LeafOnly, ChainMode::Whole] {
        let options = OpenOptions {
            format: FormatHint::Exactly(format),
            chain,
            opener: Arc::new(Files(crate::images::files(input))),
            ..OpenOptions::default()
        };
        let Ok(image) = Image::open(Path::new("0"), &options) else {
            continue;
        };
        let _ = image.info();
        let mut buffer = vec![0; READ_BYTES];
        let size = image.size_bytes();
        let mut end = 0;
        for extent in map::extents(&image).take(EXTENTS) {
            let Ok(extent) = extent else { break };
            assert!(extent.offset == end && extent.length_bytes > 0 && extent.end() <= size);
            end = extent.end();
            if !extent.kind.is_zero() {
                let length = extent.length_bytes.min(READ_BYTES as u64) as usize;
                let _ = image.read_at(extent.offset, &mut buffer[..length]);
            }
        }
        if let Some(last) = size.checked_sub(1) {
            let _ = image.read_at(last, &mut buffer[..1]);
        }
        assert!(image.read_at(size, &mut buffer[..1]).is_err());
    }
}
