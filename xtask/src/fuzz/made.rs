//! Seeds that tools of file systems make on the spot, small and full of what readers trip over.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::seeds;

/// A target, a name, and a script of the shell that makes `image` (and `image2`, …) beside a folder `tree`.
const MADE: &[(&str, &str, &str)] = &[
    (
        "ext",
        "ext2",
        "mke2fs -q -t ext2 -b 1024 -N 256 -d tree image 600k",
    ),
    (
        "ext",
        "ext3",
        "mke2fs -q -t ext3 -b 1024 -J size=1 -d tree image 3m",
    ),
    ("ext", "ext4", "mke2fs -q -t ext4 -b 1024 -d tree image 3m"),
    (
        "ext",
        "inline",
        "mke2fs -q -t ext4 -b 4096 -O inline_data,^has_journal -d tree image 2m",
    ),
    (
        "ext",
        "bigalloc",
        "mke2fs -q -t ext4 -O bigalloc,^has_journal -C 16384 -d tree image 4m",
    ),
    (
        "ext",
        "meta_bg",
        "mke2fs -q -t ext4 -b 1024 -O meta_bg,^resize_inode,^has_journal -d tree image 20m",
    ),
    (
        "fat",
        "fat12",
        "mkfs.fat -C -F 12 image 512 && mcopy -s -i image tree/* ::",
    ),
    (
        "fat",
        "fat16",
        "mkfs.fat -C -F 16 -s 1 image 4300 && mcopy -s -i image tree/* ::",
    ),
    (
        "fat",
        "fat32",
        "mkfs.fat -C -F 32 -s 1 image 34000 && mcopy -s -i image tree/* ::",
    ),
    ("exfat", "exfat", "truncate -s 8M image && mkfs.exfat image"),
    (
        "ntfs",
        "small",
        "truncate -s 2M image && mkntfs -FQq -s 512 -c 512 -p 0 image && mkdir m && ntfs-3g -o streams_interface=xattr,compression image m && { cp -r tree/* m; ln m/plain m/second; setfattr -n user.side -v bytes m/plain; mkdir m/packed; setfattr -h -v 0x00080000 -n system.ntfs_attrib_be m/packed; cp tree/long m/packed/long; }",
    ),
    (
        "xfs",
        "v4",
        "truncate -s 320M image && mkfs.xfs -q -f -m crc=0 -b size=1024 -p proto image",
    ),
    (
        "xfs",
        "v5",
        "truncate -s 320M image && mkfs.xfs -q -f -b size=1024 -p proto image",
    ),
    (
        "btrfs",
        "mixed",
        "truncate -s 16M image && mkfs.btrfs -q -M -m single -d single --rootdir tree image",
    ),
    (
        "btrfs",
        "single",
        "truncate -s 120M image && mkfs.btrfs -q -m single -d single --rootdir tree image",
    ),
    (
        "btrfs",
        "raid1",
        "truncate -s 120M image image2 && mkfs.btrfs -q -m raid1 -d raid0 image image2",
    ),
    (
        "disk",
        "gpt",
        "truncate -s 8M image && printf 'label: gpt\\nsize=1M\\nsize=2M\\n' | sfdisk -q image",
    ),
    (
        "disk",
        "mbr",
        "truncate -s 8M image && printf 'label: dos\\nsize=1M\\ntype=5\\nsize=512K\\nsize=512K\\n' | sfdisk -q image",
    ),
    (
        "encrypted",
        "luks1",
        "qemu-img create -q --object secret,id=s,data=open -f luks -o key-secret=s,iter-time=10 image 1M",
    ),
    (
        "encrypted",
        "luks2",
        "truncate -s 20M image && printf open | cryptsetup luksFormat -q --type luks2 --luks2-metadata-size 16k --luks2-keyslots-size 256k --pbkdf pbkdf2 --pbkdf-force-iterations 1000 image -",
    ),
    (
        "nbd",
        "chosen",
        r"printf '\0\0\0\3IHAVEOPT\0\0\0\10\0\0\0\0IHAVEOPT\0\0\0\12\0\0\0\37\0\0\0\0\0\0\0\1\0\0\0\17base:allocationIHAVEOPT\0\0\0\7\0\0\0\6\0\0\0\0\0\0' > image; for command in 0 7 1 3; do printf '\45\140\225\23\0\0\0\'$command'AAAABBBB\0\0\0\0\0\0\0\1\0\0\2\0' >> image; done; printf '\45\140\225\23\0\0\0\2AAAABBBB\0\0\0\0\0\0\0\0\0\0\0\0' >> image",
    ),
    (
        "qcow2",
        "v3",
        "qemu-img create -q -f qcow2 image 64M && qemu-io -f qcow2 -c 'write -P 7 1M 64k' -c 'write -z 3M 1M' image",
    ),
    (
        "qcow2",
        "packed",
        "qemu-img convert -q -c -O qcow2 tree/long image",
    ),
    (
        "vhdx",
        "small",
        "qemu-img create -q -f vhdx -o block_size=1M image 64M && qemu-io -f vhdx -c 'write -P 7 1M 4k' image",
    ),
    (
        "vhd",
        "dynamic",
        "qemu-img create -q -f vpc image 64M && qemu-io -f vpc -c 'write -P 7 1M 4k' image",
    ),
    (
        "vmdk",
        "sparse",
        "qemu-img create -q -f vmdk image 64M && qemu-io -f vmdk -c 'write -P 7 1M 4k' image",
    ),
    (
        "vmdk",
        "stream",
        "qemu-img convert -q -O vmdk -o subformat=streamOptimized tree/long image",
    ),
    (
        "wsman",
        "wql",
        r#"printf 'SELECT a, b.c FROM X WHERE NOT (JobState >= 7 OR Owner LIKE "a%%[b-c]_") AND InstanceID IS NOT NULL' > image"#,
    ),
    (
        "wsman",
        "relations",
        r#"printf "ASSOCIATORS OF {Msvm_ConcreteJob.InstanceID='9D4B'} WHERE AssocClass = X ResultRole = y" > image"#,
    ),
    (
        "wsman",
        "cim-xml",
        r#"printf '<INSTANCE CLASSNAME="Msvm_ConcreteJob"><PROPERTY NAME="JobState" TYPE="uint16"><VALUE>7</VALUE></PROPERTY><PROPERTY.ARRAY NAME="Owner" TYPE="string"><VALUE.ARRAY><VALUE>a</VALUE></VALUE.ARRAY></PROPERTY.ARRAY></INSTANCE>' > image"#,
    ),
    (
        "wsman",
        "path",
        r#"printf '\\\\H\\root\\v2:X.A="b\\\\c",D=5' > image"#,
    ),
    (
        "vmconfig",
        "xml",
        "printf '<?xml version=\"1.0\"?><configuration><properties><name type=\"string\">vm</name><version type=\"integer\">2304</version></properties></configuration>' > image",
    ),
];

/// What the file systems are filled with; and what `mkfs.xfs` wants to be told.
const TREE: &str = r#"
mkdir -p tree/deep/er/est tree/many
printf 'plain\n' > tree/plain
: > tree/empty
for i in $(seq 400); do echo "line $i of a file that takes more than a block"; done > tree/long
truncate -s 300K tree/holes; printf end >> tree/holes
for i in $(seq 120); do : > "tree/many/name number $i"; done
cp tree/plain tree/deep/er/est/leaf
ln -sf deep/er tree/link 2>/dev/null || true
setfattr -n user.note -v value tree/plain 2>/dev/null || true
printf '/dev/null\n0 0\nd--755 0 0\nlong ---644 0 0 tree/long\nlink l--777 0 0 deep\ndeep d--755 0 0\nleaf ---644 0 0 tree/plain\n$\n$\n' > proto
"#;

/// Makes the seeds of a target; how many.
pub(super) fn write(target: &str, own: &Path) -> Result<usize> {
    let mut count = 0;
    for (_, name, script) in MADE.iter().filter(|made| made.0 == target) {
        let seed = own.join(format!("made-{name}"));
        if seed.exists() || make(target, script, &seed).with_context(|| format!("make {name}"))? {
            count += 1;
        } else {
            println!("{target}: no seed {name}: its tool is missing, or it is too large");
        }
    }
    Ok(count)
}

fn make(target: &str, script: &str, seed: &Path) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let path = std::env::var("PATH").unwrap_or_default();
    // Links are no good on FAT: they are taken away where a script copies by itself.
    let text = format!(
        "set -eu\ntrap 'umount m 2>/dev/null || :' EXIT\n{TREE}\n{}\n{script}",
        match script {
            fat if fat.contains("mcopy") => "rm -f tree/link",
            _ => ":",
        }
    );
    let status = Command::new("bash")
        .args(["-c", &text])
        .current_dir(folder.path())
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("start bash")?;
    if !status.success() {
        return Ok(false);
    }
    if matches!(target, "nbd" | "wsman") {
        // Its input is what a client says, not files.
        std::fs::copy(folder.path().join("image"), seed)?;
        return Ok(true);
    }
    let mut files = Vec::new();
    for name in ["image", "image2"] {
        let path = folder.path().join(name);
        if path.exists() {
            files.push(BufReader::with_capacity(1 << 20, File::open(path)?));
        }
    }
    let mut files: Vec<&mut dyn Read> = files.iter_mut().map(|it| it as &mut dyn Read).collect();
    seeds::put(&mut files, seed)
}
