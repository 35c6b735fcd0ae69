//! VHDX reading against the corpus: right bytes, or a typed refusal.

use std::path::Path;
use std::sync::Arc;

use block::{ExtentKind, ReadAt};
use vdisk::ErrorKind;
use vdisk::vhdx::VhdxReader;

use crate::corpora::{self, Trust};

fn open_corpus(root: &Path, path: &str, parent: Option<&str>) -> vdisk::Result<VhdxReader> {
    let parent = match parent {
        None => None,
        Some(path) => {
            let reader = VhdxReader::open(Arc::new(corpora::load(root, path)), None)?;
            Some(Arc::new(reader) as Arc<dyn ReadAt>)
        }
    };
    VhdxReader::open(Arc::new(corpora::load(root, path)), parent)
}

fn corpus_image_is_right(path: &str, trust: Trust) {
    let Some(root) = corpora::root() else { return };
    let image = corpora::image(&root, path);
    let parent = image.parent.as_ref().map(|name| format!("vhdx/{name}"));
    let disk = open_corpus(&root, path, parent.as_deref()).expect("opens");
    assert_eq!(Some(disk.size_bytes()), image.virtual_size_bytes, "{path}");
    assert_eq!(
        Some(corpora::sha256(&disk, trust)),
        image.raw_sha256,
        "{path}"
    );
}

/// Small images are hashed twice: by what is read, and by what extents say.
macro_rules! corpus_images {
    ($($name:ident: $path:literal, $trusts:expr;)*) => {$(
        #[test]
        fn $name() {
            for trust in $trusts {
                corpus_image_is_right($path, trust);
            }
        }
    )*
        const NAMED: &[&str] = &[$($path),*];
    };
}

const BOTH: [Trust; 2] = [Trust::Reads, Trust::Extents];
const ONE: [Trust; 1] = [Trust::Extents];

corpus_images! {
    windows_fixed_image_reads_right: "vhdx/dfvfs-ntfs-fixed.vhdx", BOTH;
    windows_parent_image_reads_right: "vhdx/dfvfs-ntfs-parent.vhdx", BOTH;
    windows_differencing_image_reads_right: "vhdx/dfvfs-ntfs-differential.vhdx", BOTH;
    qemu_image_reads_right: "vhdx/dfvfs-ext2.vhdx.xz", BOTH;
    windows_dynamic_image_reads_right: "vhdx/dissect-dynamic.vhdx.gz", BOTH;
    image_with_zero_blocks_reads_right: "vhdx/discutils-btrfs.vhdx.gz", BOTH;
    image_with_interleaved_bat_reads_right: "vhdx/discutils-xfs5.vhdx.gz", ONE;
    almost_empty_image_reads_right: "vhdx/discutils-swap.vhdx.gz", ONE;
    qemu_image_with_waiting_log_reads_right: "vhdx/qemu-iotest-dirtylog-10G-4M.vhdx.bz2", ONE;
    disk2vhd_image_with_equal_headers_reads_right: "vhdx/qemu-test-disk2vhd.vhdx.bz2", BOTH;
    windows_image_with_waiting_log_reads_right: "vhdx/discutils-log-replay.vhdx.gz", BOTH;
    image_with_unmapped_blocks_reads_right: "vhdx/discutils-lvm2.vhdx.gz", ONE;
    image_with_many_zero_blocks_reads_right: "vhdx/discutils-xfs.vhdx.gz", ONE;
}

#[test]
fn every_vhdx_of_the_corpus_has_its_test() {
    let Some(root) = corpora::root() else { return };
    for image in corpora::manifest(&root) {
        if image.group == "vhdx" && image.kind == "disk" {
            assert!(
                NAMED.contains(&image.path.as_str()),
                "{} is not tested",
                image.path
            );
        }
    }
}

#[test]
fn generated_images_read_right_or_are_refused() {
    let Some(root) = corpora::root() else { return };
    let cases = corpora::synth_cases(&root, &[".vhdx", ".avhdx"]);
    assert!(cases.len() >= 11, "only {} cases", cases.len());
    for case in cases {
        let leaf = format!("synth/{}", case.chain[0]);
        let parent = case.chain.get(1).map(|name| format!("synth/{name}"));
        let opened = open_corpus(&root, &leaf, parent.as_deref());
        match case.policy.as_str() {
            "ok" => {
                let disk = opened.unwrap_or_else(|fault| panic!("{}: {fault}", case.name));
                assert_eq!(
                    Some(disk.size_bytes()),
                    case.virtual_size_bytes,
                    "{}",
                    case.name
                );
                let hash = corpora::sha256(&disk, Trust::Extents);
                assert_eq!(Some(hash), case.raw_sha256, "{}", case.name);
            }
            "reject" => {
                let fault = opened
                    .err()
                    .unwrap_or_else(|| panic!("{} was opened", case.name));
                let wanted = match case.name.as_str() {
                    "s10-required-region" => ErrorKind::Unsupported,
                    "s13-incomplete" => ErrorKind::Incomplete,
                    _ => ErrorKind::Corrupt,
                };
                assert_eq!(fault.kind(), wanted, "{}: {fault}", case.name);
            }
            "reject-chain" => {
                let child = opened.expect("the child alone is sound");
                let parent = open_corpus(&root, &parent.expect("parent"), None).expect("parent");
                let fault = child
                    .parent_locator()
                    .expect("locator")
                    .check_linkage(parent.data_write_id())
                    .expect_err("another parent");
                assert_eq!(fault.kind(), ErrorKind::ParentMismatch, "{fault}");
            }
            other => panic!("{}: unknown policy {other}", case.name),
        }
    }
}

#[test]
fn a_windows_child_names_its_parent_and_shows_what_it_holds() {
    let Some(root) = corpora::root() else { return };
    let child = open_corpus(&root, "vhdx/dfvfs-ntfs-differential.vhdx", None).expect("opens");
    let parent = open_corpus(&root, "vhdx/dfvfs-ntfs-parent.vhdx", None).expect("opens");
    let locator = child.parent_locator().expect("locator");
    assert_eq!(locator.entries().len(), 5);
    assert_eq!(locator.linkages(), [parent.data_write_id()]);
    locator
        .check_linkage(parent.data_write_id())
        .expect("is the parent");
    assert_eq!(locator.get("relative_path"), Some(".\\ntfs-parent.vhdx"));
    assert_eq!(child.info().parent_paths.len(), 3);
    assert_eq!(child.disk_id(), parent.disk_id());

    let mut kinds = std::collections::BTreeMap::new();
    let mut at = 0;
    while at < child.size_bytes() {
        let extent = child.extent_at(at, u64::MAX).expect("extent");
        *kinds.entry(format!("{:?}", extent.kind)).or_insert(0) += extent.length_bytes;
        at = extent.end();
    }
    assert!(kinds["Data"] > 0 && kinds["InParent"] > 0, "{kinds:?}");
    let fault = child
        .read_at(0, &mut vec![0; 4 << 20])
        .expect_err("needs the parent");
    assert_eq!(fault.kind(), block::ErrorKind::NotFound);
    assert_eq!(
        parent.extent_at(0, 1).expect("extent").kind,
        ExtentKind::Data
    );
}
