//! Images made by mkfs.xfs and filled by Linux with what is nasty, compared with what Linux sees.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::filesystem::{Cleanliness, FileKind};

use crate::conformance;
use crate::images::{FileVolume, has_commands, missing, script};

const FILL: &str = r#"
truncate -s 400M image
mkfs.xfs -q -L hikae OPTIONS image
mkdir mnt
mount -o loop image mnt
cd mnt
mkdir few many deep
for i in 1 2 3; do echo "$i" > few/$i; done
for i in $(seq 1 5000); do : > "many/a file with a rather long name, so that blocks fill up: $i"; done
for i in $(seq 1 60); do echo $i > "many/$i"; rm "many/a file with a rather long name, so that blocks fill up: $((i*50))"; done
d=deep; for i in $(seq 1 100); do d=$d/d; mkdir $d; done; echo bottom > $d/bottom
head -c 3000000 /dev/urandom > data
truncate -s 5T huge; printf end | dd of=huge bs=1 seek=4000000000000 conv=notrunc status=none
fallocate -l 1M unwritten; printf x | dd of=unwritten bs=1 seek=300000 conv=notrunc status=none
python3 - <<'P'
import os
f = os.open('pieces', os.O_RDWR | os.O_CREAT)
for i in range(2000):
    os.pwrite(f, bytes([i % 251]) * 4096, i * 12288)
os.close(f)
P
ln data few/hard
ln -s ../data few/short
ln -s "$(printf 'x%.0s' $(seq 1 900))" few/long
ln -s circle circle
mkfifo few/fifo
mknod few/null c 1 3
chown 1234:5678 few/1; chmod 4751 few/1
touch -d '1969-12-31T23:59:58.5Z' few/2
printf 'é' > 'few/ünï'
cd ..
(cd mnt; find . -mindepth 1 -printf '%P\t%y\t%s\t%U\t%G\t%m\t%n\t%l\n' > ../list
 find . -type f -size -1000M -print0 | xargs -0 sha256sum > ../sums)
umount mnt
"#;

fn check(options: &str) {
    if !has_commands(&["mkfs.xfs", "mount", "python3"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    if let Err(why) = script(folder.path(), &FILL.replace("OPTIONS", options)) {
        missing(&format!("XFS cannot be made or mounted here: {why}"));
        return;
    }
    let volume: Arc<dyn ReadAt> = FileVolume::open(&folder.path().join("image"));
    let fs = guestfs::xfs::open(Arc::clone(&volume)).expect("XFS");
    assert_eq!(fs.facts().cleanliness, Cleanliness::Clean);
    assert_eq!(fs.facts().label.as_deref(), Some("hikae"));
    let tree = conformance::check(&fs);
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("UTF-8");
    let sums: BTreeMap<String, String> = read("sums")
        .lines()
        .filter_map(|line| line.trim_start_matches('\\').split_once("  ./"))
        .map(|(sum, path)| (path.to_owned(), sum.to_owned()))
        .collect();
    let mut count = 0;
    for line in read("list").lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let path = fields[0];
        let seen = tree
            .get(format!("/{path}").as_bytes())
            .unwrap_or_else(|| panic!("{path}"));
        let owner = seen.metadata.owner.expect("owner");
        let told = (
            owner.user,
            owner.group,
            format!("{:o}", owner.mode),
            seen.metadata.link_count,
        );
        let wanted = (
            fields[3].parse().expect("user"),
            fields[4].parse().expect("group"),
            fields[5].to_owned(),
            fields[6].parse().expect("links"),
        );
        assert_eq!(told, wanted, "{path}");
        if fields[1] == "f" {
            assert_eq!(seen.metadata.kind, FileKind::Regular);
            assert_eq!(seen.metadata.size_bytes.to_string(), fields[2], "{path}");
            if let Some(sum) = sums.get(path) {
                assert_eq!(seen.sha256.as_ref(), Some(sum), "{path}");
            }
        }
        if fields[1] == "l" {
            assert_eq!(seen.target.as_deref(), Some(fields[7].as_bytes()), "{path}");
        }
        count += 1;
    }
    assert_eq!(tree.len(), count + 1, "the root and what Linux lists");
    conformance::check_unused(volume, &tree, &super::open);
}

#[test]
fn a_filled_file_system_reads_as_linux_reads_it() {
    check("-m bigtime=1");
}

#[test]
fn small_blocks_and_large_directory_blocks_read_as_linux_reads_them() {
    check("-b size=1024 -n size=8192 -m bigtime=0,reflink=0");
}
