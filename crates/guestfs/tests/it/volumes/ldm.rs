//! Dynamic disks that Windows made: every volume holds an NTFS with `test.txt`.

use std::sync::Arc;

use block::ReadAt;
use guestfs::disk::{self, Volume, VolumePlace};
use guestfs::filesystem::FileSystemKind;
use guestfs::probe::ContentKind;
use guestfs::volume::VolumeScheme;
use guestfs::{FileName, FileSystem};

use crate::corpus::{self, Bytes, Dice};

fn disks(names: &[&str]) -> Option<Vec<Arc<dyn ReadAt>>> {
    names
        .iter()
        .map(|name| corpus::bytes(&format!("ldm/libldm-ldm-{name}.img.xz")).map(Bytes::shared))
        .collect()
}

/// Volumes of which the disks given hold something.
fn dynamic(disks: &[Arc<dyn ReadAt>]) -> Vec<Volume> {
    let layout = disk::inspect(disks).expect("memory reads");
    for facts in &layout.disks {
        assert!(facts.ldm_group.is_some(), "{facts:?}");
    }
    layout
        .volumes
        .into_iter()
        .filter(|volume| {
            matches!(
                volume.place,
                VolumePlace::Logical {
                    manager: VolumeScheme::Ldm,
                    ..
                }
            )
        })
        .collect()
}

fn layout_of(volume: &Volume) -> &str {
    match &volume.place {
        VolumePlace::Logical { layout, .. } => layout,
        _ => "",
    }
}

/// What `test.txt` in the volume says.
fn test_txt(volume: &Volume) -> String {
    let reader = volume.reader.as_ref().expect("a reader");
    let fs = guestfs::ntfs::open(Arc::clone(reader)).expect("an NTFS");
    let file = fs
        .find(fs.root(), &FileName::from("test.txt"))
        .expect("the root lists")
        .expect("test.txt");
    let stream = fs.open(file, None).expect("it opens");
    let mut bytes = vec![0; usize::try_from(stream.size_bytes()).expect("small")];
    stream.read_at(0, &mut bytes).expect("it reads");
    String::from_utf8(bytes).expect("text")
}

/// Names of disks, the layout of their volume, and which of them may be missing.
const SETS: &[(&[&str], &str)] = &[
    (&["2003r2-simple-1"], "simple"),
    (&["2003r2-striped-1", "2003r2-striped-2"], "striped"),
    (&["2008r2-mirrored-1", "2008r2-mirrored-2"], "mirrored"),
    (&["2008r2-spanned-1", "2008r2-spanned-2"], "spanned"),
];

#[test]
fn every_dynamic_volume_of_the_corpora_is_put_together_and_its_files_read() {
    for (names, layout) in SETS {
        let Some(disks) = disks(names) else { return };
        // A group names volumes on other disks, too: those miss all.
        let volumes = dynamic(&disks);
        let whole: Vec<_> = volumes
            .iter()
            .filter(|one| one.missing.is_empty())
            .collect();
        let wanted = whole.iter().filter(|one| layout_of(one) == *layout);
        assert_eq!(wanted.count(), 1, "{volumes:#?}");
        for volume in whole {
            assert_eq!(
                volume.content.kind,
                ContentKind::FileSystem(FileSystemKind::Ntfs)
            );
            assert_eq!(test_txt(volume).trim_end(), "Filesystem test", "{names:?}");
        }
    }
}

#[test]
fn a_mirror_reads_from_either_half_and_names_the_other() {
    for half in ["2008r2-mirrored-1", "2008r2-mirrored-2"] {
        let Some(disks) = disks(&[half]) else { return };
        let volumes = dynamic(&disks);
        let mirror = volumes
            .iter()
            .find(|one| layout_of(one) == "mirrored")
            .expect("the mirror");
        assert_eq!(mirror.missing.len(), 1, "{mirror:?}");
        assert_eq!(test_txt(mirror).trim_end(), "Filesystem test", "{half}");
    }
}

#[test]
fn a_stripe_without_a_disk_names_it_and_reading_its_part_fails() {
    let Some(disks) = disks(&["2003r2-striped-1"]) else {
        return;
    };
    let volumes = dynamic(&disks);
    let stripe = volumes
        .iter()
        .find(|one| layout_of(one) == "striped")
        .expect("the stripe");
    assert_eq!(stripe.missing.len(), 1, "{stripe:?}");
    let reader = stripe.reader.as_ref().expect("a reader");
    let mut buffer = vec![0; 1 << 20];
    let error = reader
        .read_at(0, &mut buffer)
        .expect_err("half of it is missing");
    assert_eq!(error.kind(), block::ErrorKind::NotFound);
    assert!(
        error.to_string().contains("of the disk group is missing"),
        "{error}"
    );
}

#[test]
fn damaged_databases_give_findings_or_volumes_that_miss_something() {
    let Some(good) = corpus::bytes("ldm/libldm-ldm-2003r2-striped-1.img.xz") else {
        return;
    };
    let mut dice = Dice::new(9);
    // PRIVHEAD, and the database in the last MiB.
    let database = good.len() - (1 << 20);
    for _ in 0..30 {
        let mut bytes = good.clone();
        for _ in 0..=dice.below(8) {
            dice.damage(&mut bytes[3072..3584], 0);
            dice.damage(&mut bytes[database..database + (40 << 10)], 0);
        }
        disk::inspect(&[Bytes::shared(bytes)]).expect("damage is no error");
    }
}
