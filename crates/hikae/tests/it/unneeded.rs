//! `disk backup --skip-unneeded`: what is left out harms no file system and no file, and the rest is all that is stored.
//!
//! Volumes are made by their own tools upon garbage, filled through mounts, and put into a partitioned disk of garbage.
//! What comes back is put before the file system's own checker and mounted. Where tools or mounts are missing the tests
//! are skipped aloud, and fail in CI.

pub mod kinds;
pub mod scene;

use std::fs;

use kinds::{BTRFS, EXFAT, EXT4, FAT12, FAT32, Kind, NTFS, XFS};
use scene::{BLOCK, MIB, Scene, blocks, changed_blocks, ranges_text};

/// Runs of a chain: which versions leave out, which are told what changed, and by whom.
#[derive(Debug, Clone, Copy)]
struct Link {
    leaves_out: bool,
    tracking: Tracking,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tracking {
    No,
    /// Keeps silent about every block that the version before left out.
    Silent,
}

const CHAIN: [Link; 5] = [
    Link {
        leaves_out: true,
        tracking: Tracking::No,
    },
    Link {
        leaves_out: true,
        tracking: Tracking::Silent,
    },
    Link {
        leaves_out: false,
        tracking: Tracking::Silent,
    },
    Link {
        leaves_out: true,
        tracking: Tracking::Silent,
    },
    Link {
        leaves_out: true,
        tracking: Tracking::No,
    },
];

/// Backs up a chain of versions of one volume; each must come back sound.
fn chain(kind: &Kind, links: &[Link]) {
    let Some(scene) = Scene::begin(kind) else {
        return;
    };
    let repository = scene.site.init("repo");
    let mut before: Option<(Vec<u8>, Vec<u8>)> = None;
    for (number, link) in (1_u64..).zip(links) {
        scene.change(kind, number);
        let disk = scene.disk();
        let mut more = vec!["--name", "vm"];
        if link.leaves_out {
            more.push("--skip-unneeded");
        }
        let told = scene.site.path("changed");
        if let (Tracking::Silent, Some((image, restored))) = (link.tracking, &before) {
            let kept = |block: &u64| {
                let block = usize::try_from(*block).expect("small");
                blocks(image).nth(block) == blocks(restored).nth(block)
            };
            let changed: Vec<u64> = changed_blocks(image, &disk)
                .into_iter()
                .filter(kept)
                .collect();
            fs::write(&told, ranges_text(&changed)).expect("the ranges");
            more.extend(["--changed-ranges", told.to_str().expect("text")]);
            more.extend(["--audit", "1"]);
        }
        let report = scene.back_up(&repository, &more);
        assert_eq!(report["tracking_lies"].as_array().map(Vec::len), Some(0));
        let restored = scene.restored(&repository, &format!("vm@{number}"));
        scene.expect_sound(kind, &disk, &restored);
        let left_out = report["bytes_left_out"].as_u64().expect("a count");
        if link.leaves_out {
            scene.expect_cheap(kind, &report, &restored);
            assert!(left_out > kind.size_bytes() / 4, "{report:#}");
        } else {
            assert_eq!(left_out, 0);
            assert!(disk == restored, "nothing was left out");
        }
        before = Some((disk, restored));
    }
    // The whole chain once more, from the end: no version changed under another.
    let last = links.len();
    repository.repo("verify", &[]).expect(0);
    let listed = repository.disk("list", &["--name", "vm"]).expect(0).json();
    let rows = listed["points"].as_array().expect("versions").clone();
    assert_eq!(rows.len(), last);
    for (row, link) in rows.iter().zip(links) {
        assert_eq!(row["bytes_left_out"] != 0, link.leaves_out, "{row:#}");
    }
}

#[test]
fn a_chain_of_ext4_comes_back_sound_whatever_was_left_out_before() {
    chain(&EXT4, &CHAIN);
}

#[test]
fn a_chain_of_ntfs_comes_back_sound_whatever_was_left_out_before() {
    chain(&NTFS, &CHAIN);
}

#[test]
fn xfs_comes_back_sound() {
    chain(&XFS, &CHAIN[..2]);
}

#[test]
fn btrfs_comes_back_sound() {
    chain(&BTRFS, &CHAIN[..2]);
}

#[test]
fn fat32_comes_back_sound() {
    chain(&FAT32, &CHAIN[..2]);
}

#[test]
fn fat12_comes_back_sound() {
    chain(&FAT12, &CHAIN[..2]);
}

#[test]
fn exfat_comes_back_sound() {
    chain(&EXFAT, &CHAIN[..2]);
}

/// Bytes of a file that are left out, or why none are.
fn file<'a>(report: &'a serde_json::Value, path: &str) -> &'a serde_json::Value {
    let files = report["unneeded"]["volumes"][0]["files"].as_array();
    let found = files.and_then(|files| files.iter().find(|file| file["path"] == path));
    found.unwrap_or_else(|| panic!("no {path} in {report:#}"))
}

#[test]
fn page_files_of_windows_are_left_out_and_a_sleeping_windows_keeps_the_disk() {
    let Some(scene) = Scene::begin(&NTFS) else {
        return;
    };
    let repository = scene.site.init("repo");
    scene.change(&NTFS, 1);
    let fill = "head -c 8M /dev/urandom > mount/pagefile.sys\n\
        head -c 3M /dev/urandom > mount/swapfile.sys\n\
        { printf wake; head -c 5M /dev/urandom; } > mount/hiberfil.sys\n\
        cp mount/pagefile.sys mount/kept\n\
        setfattr -h -v 0x00000026 -n system.ntfs_attrib_be mount/pagefile.sys mount/swapfile.sys mount/hiberfil.sys";
    scene.mounted(&NTFS, fill);
    let disk = scene.disk();
    let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
    for (path, mib) in [
        ("/pagefile.sys", 8),
        ("/swapfile.sys", 3),
        ("/hiberfil.sys", 5),
    ] {
        let one = file(&report, path);
        let bytes = one["left_out_bytes"].as_u64().expect("a count");
        // Whole blocks of the disk, in several pieces.
        assert!(bytes + 8 * BLOCK >= mib * MIB, "{one}");
    }
    let restored = scene.restored(&repository, "vm@1");
    scene.expect_sound(&NTFS, &disk, &restored);
    scene.expect_cheap(&NTFS, &report, &restored);

    scene.mounted(
        &NTFS,
        "{ printf PAGEDU64; head -c 8M /dev/urandom; } > mount/pagefile.sys",
    );
    let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
    let why = file(&report, "/pagefile.sys")["kept_because"].as_str();
    assert!(why.is_some_and(|why| why.contains("crash dump")), "{why:?}");

    // What Windows has not made so is a file as any other, and so is one with a second name.
    for change in [
        "setfattr -h -v 0x00000020 -n system.ntfs_attrib_be mount/swapfile.sys",
        "setfattr -h -v 0x00000026 -n system.ntfs_attrib_be mount/swapfile.sys; ln mount/swapfile.sys mount/name",
    ] {
        scene.mounted(&NTFS, change);
        let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
        let why = file(&report, "/swapfile.sys")["kept_because"].as_str();
        assert!(
            why.is_some_and(|why| why.contains("hidden system")),
            "{why:?}"
        );
    }

    // A beginning that nobody knows: Windows may sleep there.
    scene.mounted(&NTFS, "head -c 5M /dev/urandom > mount/hiberfil.sys");
    let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
    assert_eq!(report["bytes_left_out"].as_u64(), Some(0));
    let why = report["unneeded"]["kept_because"].as_str();
    assert!(
        why.is_some_and(|why| why.contains("may hold a sleeping")),
        "{why:?}"
    );

    scene.mounted(
        &NTFS,
        "{ printf HIBR; head -c 5M /dev/urandom; } > mount/hiberfil.sys",
    );
    let disk = scene.disk();
    let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
    assert_eq!(report["bytes_left_out"], 0);
    let why = report["unneeded"]["kept_because"].as_str();
    assert!(
        why.is_some_and(|why| why.contains("sleeping Windows")),
        "{why:?}"
    );
    assert!(scene.restored(&repository, "vm") == disk);
}

/// Where the record of a file of NTFS has the field of a stream without a name that says how much of it was ever written.
fn initialized_field(volume: &[u8], name: &str) -> usize {
    let wanted: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let number = |at: usize| usize::from(u16::from_le_bytes([volume[at], volume[at + 1]]));
    for record in (0..volume.len() - 1024).step_by(1024) {
        let bytes = &volume[record..record + 1024];
        let is_it = bytes.windows(wanted.len()).any(|part| part == wanted);
        // In use, and no folder.
        if !bytes.starts_with(b"FILE") || !is_it || number(record + 22) != 1 {
            continue;
        }
        let mut at = record + number(record + 20);
        while volume[at] != 0xFF {
            if volume[at] == 0x80 && volume[at + 8] == 1 && volume[at + 9] == 0 {
                return at + 56;
            }
            at += number(at + 4);
        }
    }
    panic!("no record of {name}");
}

#[test]
fn what_windows_wrote_past_ntfs_is_looked_at_where_it_lies() {
    let Some(scene) = Scene::begin(&NTFS) else {
        return;
    };
    let repository = scene.site.init("repo");
    scene.change(&NTFS, 1);
    for (name, mark, whole_disk) in [
        ("pagefile.sys", "PAGEDU64", false),
        ("hiberfil.sys", "HIBR", true),
    ] {
        let fill = format!(
            "{{ printf {mark}; head -c 5M /dev/urandom; }} > mount/{name}\n\
             setfattr -h -v 0x00000026 -n system.ntfs_attrib_be mount/{name}"
        );
        scene.mounted(&NTFS, &fill);
        // To NTFS it was never written to, and reads as zeros.
        let volume = fs::read(scene.site.path("volume")).expect("the volume");
        let field = initialized_field(&volume, name) as u64;
        scene.patch_volume(field, &[0; 8]);
        let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
        let why = report["unneeded"]["kept_because"].as_str();
        if whole_disk {
            assert_eq!(report["bytes_left_out"], 0);
            assert!(why.is_some_and(|why| why.contains("sleeping Windows")));
        } else {
            let one = file(&report, &format!("/{name}"));
            assert!(one["kept_because"].is_string(), "{one}");
            assert_eq!((one["left_out_bytes"].as_u64(), why), (Some(0), None));
        }
    }
}

#[test]
fn by_a_table_that_systems_may_not_go_by_nothing_is_left_out() {
    use std::os::unix::fs::FileExt;
    let Some(scene) = Scene::begin(&EXT4) else {
        return;
    };
    let repository = scene.site.init("repo");
    scene.change(&EXT4, 1);
    let whole = scene.disk();
    let disk = fs::File::options()
        .write(true)
        .open(scene.site.path("disk.raw"));
    let disk = disk.expect("the disk");
    let mut plain_record = whole[..512].to_vec();
    plain_record[450] = 0x83;
    // A boot record of today in front of a table of yesterday; the first header gone; a RAID over the whole disk.
    let raid = [&0xA92B_4EFC_u32.to_le_bytes()[..], &1_u32.to_le_bytes()].concat();
    for (offset, bytes) in [
        (0, plain_record),
        (0, vec![0; 512]),
        (512, vec![0; 512]),
        (4096, raid),
    ] {
        disk.write_all_at(&whole[..8192], 0).expect("as it was");
        disk.write_all_at(&bytes, offset).expect("changed");
        let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
        assert_eq!(report["bytes_left_out"], 0, "{offset}: {report:#}");
        assert!(scene.restored(&repository, "vm") == scene.disk());
    }
    disk.write_all_at(&whole[..8192], 0).expect("as it was");
    let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
    assert!(report["bytes_left_out"].as_u64() > Some(10 * MIB));
}

#[test]
fn an_image_that_is_written_to_meanwhile_makes_no_version() {
    use std::os::unix::fs::FileExt;
    let Some(scene) = Scene::begin(&EXT4) else {
        return;
    };
    let repository = scene.site.init("repo");
    scene.change(&EXT4, 1);
    let whole = scene.disk();
    let path = scene.site.path("disk.raw");
    let image = path.to_str().expect("text");
    let arguments = [image, "--name", "vm", "--skip-unneeded"];
    let mut command = scene
        .site
        .command(repository.disk_arguments("backup", &arguments));
    // It stands still when the free space was looked at and nothing is read yet.
    command
        .env("HIKAE_TRACE_STORE", scene.site.path("trace"))
        .env("HIKAE_TRACE_STOP", "before:0:put:leases/:1");
    let running = scene.site.start_command(command);
    running.wait_until("it stands still", || running.stands_still());
    let disk = fs::File::options()
        .write(true)
        .open(&path)
        .expect("the disk");
    disk.write_all_at(&whole[..512], 0)
        .expect("the same bytes again");
    running.signal(rustix::process::Signal::CONT);
    let outcome = running.wait().expect(1);
    let problem = outcome.json();
    assert!(problem.to_string().contains("changed while"), "{problem}");
    assert_eq!(repository.versions("vm").len(), 0);
    scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
    let restored = scene.restored(&repository, "vm");
    scene.expect_sound(&EXT4, &whole, &restored);
}

#[test]
fn a_swap_file_of_linux_keeps_its_header_and_a_live_journal_is_followed() {
    let Some(scene) = Scene::begin(&EXT4) else {
        return;
    };
    let repository = scene.site.init("repo");
    let fill = "mkdir mount/etc\n\
        echo '/swap.img none swap sw 0 0' > mount/etc/fstab\n\
        head -c 12M /dev/urandom > mount/swap.img\n\
        mkswap -q -L swapped mount/swap.img 2>/dev/null";
    scene.mounted(&EXT4, fill);
    // Copied while it is mounted: what was deleted and written last stands in the journal only.
    scene.live(
        &EXT4,
        "python3 fill.py change mount 1; sync -f mount; python3 fill.py change mount 2; sync -f mount",
    );
    let disk = scene.disk();
    let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
    let left_out = file(&report, "/swap.img")["left_out_bytes"].as_u64();
    assert!(left_out > Some(10 * MIB), "{report:#}");
    let restored = scene.restored(&repository, "vm@1");
    scene.expect_sound(&EXT4, &disk, &restored);
    scene.expect_swap_label("swapped");

    // As uswsusp and the kernel mark a sleeping system.
    scene.mounted(
        &EXT4,
        "printf S1SUSPEND | dd of=mount/swap.img bs=1 seek=4086 conv=notrunc status=none",
    );
    let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
    assert_eq!(report["bytes_left_out"], 0, "{report:#}");
}

#[test]
fn a_live_xfs_comes_back_as_it_was_whether_its_log_is_followed_or_not() {
    let Some(scene) = Scene::begin(&XFS) else {
        return;
    };
    let repository = scene.site.init("repo");
    scene.live(
        &XFS,
        "python3 fill.py change mount 1; sync -f mount; python3 fill.py change mount 2; sync -f mount",
    );
    let disk = scene.disk();
    let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
    let volume = &report["unneeded"]["volumes"][0];
    let is_told = volume["kept_because"].is_string();
    assert_eq!(report["bytes_left_out"] == 0, is_told, "{report:#}");
    let restored = scene.restored(&repository, "vm@1");
    scene.expect_sound(&XFS, &disk, &restored);
}

#[test]
fn a_dirty_fat_is_kept_whole_and_a_dry_run_says_so() {
    let Some(scene) = Scene::begin(&FAT32) else {
        return;
    };
    let repository = scene.site.init("repo");
    scene.change(&FAT32, 1);
    // The bits that say "not shut down properly": in the boot sector, and in the second entry of the table.
    scene.patch_volume(0x41, &[1]);
    let disk = scene.disk();
    let dry = scene.back_up(
        &repository,
        &["--name", "vm", "--skip-unneeded", "--dry-run"],
    );
    assert_eq!(dry["left_out_bytes"], 0);
    assert!(dry["unneeded"]["volumes"][0]["kept_because"].is_string());
    let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
    assert_eq!(report["bytes_left_out"], 0);
    assert!(scene.restored(&repository, "vm@1") == disk);
}

#[test]
fn a_volume_of_lvm_in_two_pieces_is_found_on_its_disk() {
    let Some(scene) = Scene::begin_in_lvm(&EXT4) else {
        return;
    };
    let repository = scene.site.init("repo");
    scene.change(&EXT4, 1);
    scene.change(&EXT4, 2);
    let disk = scene.disk();
    let report = scene.back_up(&repository, &["--name", "vm", "--skip-unneeded"]);
    let volumes = report["unneeded"]["volumes"].as_array().expect("volumes");
    let names: Vec<_> = volumes.iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["disk0.p1", "vg/other", "vg/root"]);
    let kept: Vec<bool> = volumes
        .iter()
        .map(|one| one["kept_because"].is_string())
        .collect();
    assert_eq!(kept, [true, true, false], "{report:#}");
    let restored = scene.restored(&repository, "vm@1");
    scene.expect_sound(&EXT4, &disk, &restored);
    scene.expect_cheap(&EXT4, &report, &restored);
}

#[test]
fn a_check_and_a_seed_know_what_was_left_out() {
    let Some(scene) = Scene::begin(&EXT4) else {
        return;
    };
    let repository = scene.site.init("repo");
    scene.change(&EXT4, 1);
    let disk = scene.disk();
    let seed = scene.site.path("seed.raw");
    fs::write(&seed, &disk).expect("the seed");
    scene.change(&EXT4, 2);
    let disk = scene.disk();
    let seeding = ["--name", "vm", "--skip-unneeded", "--seed"];
    let more = [&seeding[..], &[seed.to_str().expect("text")]].concat();
    let report = scene.back_up(&repository, &more);
    assert_eq!(report["version"], 2);
    let first = scene.restored(&repository, "vm@1");
    scene.expect_only_zeroed(&fs::read(&seed).expect("the seed"), &first);
    let restored = scene.restored(&repository, "vm@2");
    scene.expect_sound(&EXT4, &disk, &restored);

    let image = scene.site.path("disk.raw");
    let image = image.to_str().expect("text");
    let checked = repository.disk("check", &[image, "vm"]).expect(0).json();
    assert_eq!(checked["is_equal"], true);
    assert_eq!(checked["left_out_bytes"], report["bytes_left_out"]);

    // Over the live disk: garbage in free space becomes zeros.
    repository
        .disk("restore", &["vm@2", image, "--in-place"])
        .expect(0);
    assert!(fs::read(image).expect("the disk") == restored);
}
