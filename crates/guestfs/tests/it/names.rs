//! Names as the host may see them.

use guestfs::FileName;

#[test]
fn a_windows_name_with_an_unpaired_surrogate_keeps_it() {
    let name = FileName::from_utf16([0x61, 0xD83D, 0x62]);
    assert_eq!(name.as_bytes(), [0x61, 0xED, 0xA0, 0xBD, 0x62]);
    let pair = FileName::from_utf16([0xD83D, 0xDE00]);
    assert_eq!(pair.as_bytes(), "😀".as_bytes());
}

#[test]
fn names_that_would_leave_their_directory_are_not_safe() {
    for name in ["", ".", "..", "a/b", "a\0b"] {
        assert!(!FileName::from(name).is_safe(), "{name:?}");
    }
    for name in ["...", "a", "C:", "a\\b"] {
        assert!(FileName::from(name).is_safe(), "{name:?}");
    }
}
