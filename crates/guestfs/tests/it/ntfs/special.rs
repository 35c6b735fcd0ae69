//! Files whose contents are not to be had, made by hand: encrypted ones, and every tag that stands for another place.

use std::sync::Arc;

use guestfs::ErrorKind;
use guestfs::filesystem::FileKind;

use super::journal::image::{DATA, Image, STANDARD, attributes, value, word};
use super::{at, made, open};
use crate::images::{FileVolume, MemoryVolume};

const ENCRYPTED: u16 = 0x4000;

/// Marks the contents of the files of a name as EFS does; how many there were.
fn encrypt(image: &mut Image, file: &str) -> usize {
    let wanted: Vec<u8> = file.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut found = 0;
    for number in 24..image.count() {
        let Some(mut record) = image.record(number) else {
            continue;
        };
        let places: Vec<(usize, u32, usize)> = attributes(&record)
            .into_iter()
            .map(|(at, bytes)| (at, word(bytes, 0), value(bytes).start))
            .collect();
        if !record.windows(wanted.len()).any(|part| part == wanted) {
            continue;
        }
        for (at, kind, value) in places {
            let flags = match kind {
                DATA => at + 12,
                STANDARD => at + value + 32,
                _ => continue,
            };
            let marked = u16::from_le_bytes([record[flags], record[flags + 1]]) | ENCRYPTED;
            record[flags..flags + 2].copy_from_slice(&marked.to_le_bytes());
        }
        image.put_record(number, record);
        found += 1;
    }
    found
}

#[test]
fn encrypted_files_are_named_as_such_and_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = "head -c 9000 /dev/zero > mount/of-efs; echo plain > mount/plain";
    let Some(path) = made::make(folder.path(), "32M", "-c 4096", script) else {
        return;
    };
    let mut image = Image::new(std::fs::read(&path).expect("the image"));
    assert_eq!(encrypt(&mut image, "of-efs"), 1);
    let fs = open(Arc::new(MemoryVolume(image.bytes)));
    let file = at(&*fs, "of-efs");
    let metadata = fs.metadata(file).expect("metadata");
    assert_eq!(metadata.kind, FileKind::Regular);
    assert_eq!(metadata.size_bytes, 9000);
    assert_eq!(
        metadata.windows_attributes.expect("attributes") & u32::from(ENCRYPTED),
        u32::from(ENCRYPTED)
    );
    assert!(metadata.obstacle.expect("an obstacle").contains("EFS"));
    let error = fs.open(file, None).map(|_| ()).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("EFS"), "{error}");
    assert_eq!(super::bytes(&*fs, at(&*fs, "plain"), None), b"plain\n");
}

/// Tag, attributes of the file, a word of the reason; none where the contents are there.
const TAGS: [(u32, u32, Option<&str>); 9] = [
    (0x8000_0013, 0x20, Some("deduplication")),
    (0x9000_001A, 0x1020, Some("cloud")),
    (0x9000_F01A, 0x1020, Some("cloud")),
    (0x9000_301A, 0x20, None),
    (0x8000_0021, 0x1020, Some("cloud")),
    (0x8000_0021, 0x20, None),
    (0x9000_001C, 0x1020, Some("projection")),
    (0xC000_0004, 0x20, Some("hierarchical storage")),
    (0x8000_1234, 0x20, Some("0x80001234")),
];

#[test]
fn files_that_stand_for_contents_elsewhere_say_where() {
    let folder = tempfile::tempdir().expect("a folder");
    let tags: Vec<String> = TAGS
        .iter()
        .map(|(tag, attributes, _)| format!("({tag}, {attributes})"))
        .collect();
    let script = format!(
        "python3 - <<'END'\nimport os, struct\nos.chdir('mount')\n\
         for number, (tag, attributes) in enumerate([{}]):\n    \
         name = f'file {{number}}'\n    \
         open(name, 'w').write('contents')\n    \
         data = bytes(16) + b'tag data'\n    \
         os.setxattr(name, 'system.ntfs_reparse_data', struct.pack('<IHH', tag, len(data), 0) + data)\n    \
         old = int.from_bytes(os.getxattr(name, 'system.ntfs_attrib_be'), 'big')\n    \
         os.setxattr(name, 'system.ntfs_attrib_be', (old | attributes).to_bytes(4, 'big'))\nEND",
        tags.join(", ")
    );
    let Some(path) = made::make(folder.path(), "32M", "-c 4096", &script) else {
        return;
    };
    let fs = open(FileVolume::open(&path));
    for (number, (tag, _, word)) in TAGS.into_iter().enumerate() {
        let file = at(&*fs, &format!("file {number}"));
        let metadata = fs.metadata(file).expect("metadata");
        let Some(word) = word else {
            assert_eq!(metadata.kind, FileKind::Regular, "{tag:#x}");
            assert_eq!(metadata.obstacle, None, "{tag:#x}");
            assert_eq!(super::bytes(&*fs, file, None), b"contents", "{tag:#x}");
            continue;
        };
        assert_eq!(metadata.kind, FileKind::ReparsePoint(tag));
        let obstacle = metadata.obstacle.expect("an obstacle");
        assert!(obstacle.contains(word), "{tag:#x}: {obstacle}");
        let error = fs.open(file, None).map(|_| ()).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(word), "{error}");
    }
}
