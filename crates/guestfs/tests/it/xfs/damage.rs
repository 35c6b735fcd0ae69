//! Images that lie: a typed error or a part, in bounded time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use guestfs::FileSystem;
use guestfs::filesystem::{DirectoryCursor, FileKind};

use crate::corpus::{self, Bytes, Dice};

fn exercise(bytes: Vec<u8>) {
    let Ok(fs) = guestfs::xfs::open(Bytes::shared(bytes)) else {
        return;
    };
    let mut waiting = vec![fs.root()];
    let mut steps = 0;
    while let Some(file) = waiting.pop() {
        steps += 1;
        if steps > 500 {
            break;
        }
        let _ = fs.extended_attributes(file);
        let _ = fs.read_link(file);
        if let Ok(contents) = fs.open(file, None) {
            let mut buffer = vec![0; 4096];
            let size = contents.size_bytes().min(4096);
            let length = usize::try_from(size).expect("small");
            let _ = contents.read_at(contents.size_bytes() - size, &mut buffer[..length]);
        }
        if fs
            .metadata(file)
            .is_ok_and(|it| it.kind == FileKind::Directory)
        {
            let _ = fs.list(file, DirectoryCursor::default(), &mut |entry| {
                waiting.push(entry.file);
                ControlFlow::Continue(())
            });
        }
    }
    let _ = fs.used_ranges(&mut |_| ControlFlow::Continue(()));
}

#[test]
fn lies_cost_little_and_never_panic() {
    let Some(image) = corpus::bytes("xfs/dissect-xfs_symlink_test.bin.gz") else {
        return;
    };
    // Damage goes where metadata is: what is not zero, in the first 1 MiB.
    for seed in 0..400 {
        let mut dice = Dice::new(seed);
        let mut bytes = image.clone();
        for _ in 0..=dice.below(40) {
            let from = if dice.below(10) == 0 { 0 } else { 512 };
            dice.damage(&mut bytes[..1 << 20], from);
        }
        let begin = Instant::now();
        exercise(bytes);
        assert!(begin.elapsed() < Duration::from_secs(5), "seed {seed}");
    }
}
