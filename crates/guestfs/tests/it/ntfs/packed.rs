//! Files as CompactOS keeps them, with chunks packed by wimlib.

use std::path::Path;

use guestfs::filesystem::Stream;

use super::{assert_equal, at, made, open, seen, told};
use crate::conformance;
use crate::images::{self, FileVolume};

#[test]
fn files_packed_for_compact_os_are_read_unpacked() {
    if !made::is_possible() {
        return;
    }
    let has_wimlib = std::process::Command::new("python3")
        .args(["-c", "import ctypes; ctypes.CDLL('libwim.so.15')"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !has_wimlib {
        images::missing("libwim15 is not there");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("pack.py"), include_str!("pack.py")).expect("the script");
    let text = format!(
        "truncate -s 200M image\n\
         mkntfs -F -Q -q -c 4096 image >&2\n\
         mkdir mount\n\
         {}\n\
         python3 pack.py mount told\n\
         {}",
        made::mount("windows"),
        made::unmount()
    );
    images::script(folder.path(), &text).unwrap_or_else(|error| panic!("{error}"));
    check(folder.path());
}

fn check(folder: &Path) {
    let fs = open(FileVolume::open(&folder.join("image")));
    let tree = conformance::check(&*fs);
    let told = told(&folder.join("told"));
    assert_equal(&seen(&tree), &told);
    for (path, (_, size_bytes, _)) in &told {
        let streams = fs.streams(at(&*fs, path)).expect("streams");
        let wanted = Stream {
            name: None,
            size_bytes: *size_bytes,
        };
        assert_eq!(streams, [wanted], "{path}: the packed stream is not shown");
    }
}
