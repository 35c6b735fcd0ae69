//! File systems: how each is made, mounted and checked.

/// One kind of file system.
pub struct Kind {
    pub name: &'static str,
    /// Commands that it needs.
    pub tools: &'static [&'static str],
    pub size_mib: u64,
    /// Makes it in the file `volume`.
    pub make: &'static str,
    /// Mounts `volume` at `mount`.
    pub mount: &'static str,
    pub unmount: &'static str,
    /// Changes files from `$seed`, with nothing mounted; by default through a mount.
    pub change: Option<&'static str>,
    /// Writes `told`, with nothing mounted; by default through a mount.
    pub tell: Option<&'static str>,
    /// Checks `volume` and changes nothing.
    pub check: &'static str,
}

impl Kind {
    /// Bytes of a volume.
    pub fn size_bytes(&self) -> u64 {
        self.size_mib << 20
    }
}

pub const EXT4: Kind = Kind {
    name: "ext4",
    tools: &["mke2fs", "e2fsck", "mount", "mkswap"],
    size_mib: 96,
    make: "mke2fs -q -F -t ext4 -E nodiscard volume",
    mount: "mount -o loop volume mount",
    unmount: "umount mount",
    change: None,
    tell: None,
    check: "e2fsck -fn volume",
};

pub const XFS: Kind = Kind {
    name: "xfs",
    tools: &["mkfs.xfs", "xfs_repair", "mount"],
    size_mib: 320,
    make: "mkfs.xfs -q -f -K volume",
    mount: "mount -o loop volume mount",
    unmount: "umount mount",
    change: None,
    tell: None,
    check: "xfs_repair -n volume",
};

pub const BTRFS: Kind = Kind {
    name: "btrfs",
    tools: &["mkfs.btrfs", "btrfs", "mount"],
    size_mib: 192,
    make: "mkfs.btrfs -q -f -K volume",
    mount: "mount -o loop volume mount",
    unmount: "umount mount",
    change: None,
    tell: None,
    check: "btrfs check --readonly --check-data-csum volume",
};

pub const NTFS: Kind = Kind {
    name: "ntfs",
    tools: &["mkntfs", "ntfs-3g", "ntfsfix", "ntfsinfo"],
    size_mib: 96,
    make: "mkntfs -F -Q -q volume",
    mount: "ntfs-3g -o no_detach volume mount & pid=$!\n\
        until mountpoint -q mount; do kill -0 $pid; done",
    unmount: "umount mount; wait $pid",
    change: None,
    tell: None,
    check: "ntfsfix -n volume; ntfsinfo -m volume",
};

pub const EXFAT: Kind = Kind {
    name: "exfat",
    tools: &["mkfs.exfat", "fsck.exfat", "mount.exfat-fuse"],
    size_mib: 64,
    make: "mkfs.exfat volume",
    // Read from a device, so that no other program holds the file.
    mount: "device=$(losetup -f --show volume); mount.exfat-fuse $device mount",
    unmount: "umount mount; while pgrep -f \"mount.exfat-fuse $device mount\" >/dev/null; do :; done; losetup -d $device",
    change: None,
    tell: None,
    check: "fsck.exfat -n volume",
};

pub const FAT32: Kind = Kind {
    name: "fat32",
    tools: &["mkfs.fat", "fsck.fat", "mcopy", "mdeltree"],
    size_mib: 64,
    make: "mkfs.fat -F 32 -s 1 volume >/dev/null",
    mount: "false",
    unmount: "false",
    change: Some(
        "mkdir -p host; python3 fill.py change host $seed\n\
        for one in $(mdir -b -i volume ::/ | sed 's|^::/||; s|/$||'); do mdeltree -i volume ::/$one; done\n\
        mcopy -s -Q -i volume host/* ::/",
    ),
    tell: Some(
        "rm -rf out; mkdir out; mcopy -s -n -Q -i volume '::/*' out\n\
        python3 fill.py tell out > told",
    ),
    check: "fsck.fat -n volume",
};

/// Clusters of 32 KiB, so that there are few enough for numbers of 12 bits.
pub const FAT12: Kind = Kind {
    name: "fat12",
    make: "mkfs.fat -F 12 -s 64 volume >/dev/null",
    ..FAT32
};
