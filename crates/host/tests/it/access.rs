//! From a host's path to bytes: chains of real images, found as the host would find them.

use std::path::Path;
use std::sync::Arc;

use block::{ReadAt, WriteAt};
use host::ErrorKind;
use host::access::{AccessByNode, ChainDisk, DiskAccess, LocalPaths, NodeFiles};
use host::boundary::{BatchRead, RangeRead};
use host::ids::NodeName;
use host::path::HostPath;
use vdisk::Format;
use vdisk::image::{
    ChildOptions, CreateOptions, IfExists, ImageEditor, ImageProfile, OpenOptions, create,
    create_child,
};
use vdisk::vhdx::IdSource;

fn path(text: &str) -> HostPath {
    HostPath::new(text).expect("a path")
}

fn node() -> NodeName {
    NodeName::new("hv01").expect("a name")
}

/// A disk of 4 MiB and a child of it in a folder beside: the parent's first block is ones, the child's second is twos.
pub fn chain(folder: &Path) {
    std::fs::create_dir_all(folder.join("Disks")).expect("a folder");
    std::fs::create_dir_all(folder.join("Leaves")).expect("a folder");
    let base = folder.join("Disks/Base.VHDX");
    let options = CreateOptions {
        size_bytes: 4 << 20,
        profile: ImageProfile::of(Format::Vhdx),
        if_exists: IfExists::Refuse,
        ids: IdSource::seeded(1),
        unix_seconds: 1_700_000_000,
    };
    let writer = create(&base, &options).expect("a base");
    writer.write_at(0, &[1; 4096]).expect("written");
    writer.finish().expect("whole");
    let leaf = folder.join("Leaves/leaf.avhdx");
    let child = ChildOptions {
        allocation_unit_bytes: None,
        ids: IdSource::seeded(2),
        unix_seconds: 1_700_000_001,
    };
    create_child(&leaf, &base, &OpenOptions::default(), &child).expect("a child");
    let editor =
        ImageEditor::open(&leaf, &OpenOptions::default(), IdSource::seeded(3)).expect("an editor");
    editor.write_at(4096, &[2; 4096]).expect("written");
    editor.flush().expect("durable");
}

pub fn check(disk: &ChainDisk) {
    let mut first = [0; 4096];
    let mut second = [0; 4096];
    let mut reads = [
        RangeRead {
            offset: 4096,
            buffer: &mut second,
        },
        RangeRead {
            offset: 0,
            buffer: &mut first,
        },
    ];
    disk.read_batch(&mut reads).expect("read");
    assert!(first.iter().all(|byte| *byte == 1));
    assert!(second.iter().all(|byte| *byte == 2));
    assert_eq!(disk.size_bytes(), 4 << 20);
}

#[test]
fn a_chain_is_followed_on_drives_shares_and_shared_volumes_in_any_case() {
    let folder = tempfile::tempdir().expect("a folder");
    chain(folder.path());
    for root in [
        "D:\\vm",
        "\\\\sofs\\vms",
        "C:\\ClusterStorage\\Volume1",
        "/var/lib/vm",
    ] {
        let is_posix = root.starts_with('/');
        let paths: Arc<dyn DiskAccess> =
            Arc::new(LocalPaths::new().with_root(path(root), folder.path()));
        let leaf = if is_posix {
            path(&format!("{root}/Leaves/leaf.avhdx"))
        } else {
            path(&format!("{}\\LEAVES\\Leaf.avhdx", root.to_uppercase()))
        };
        let disk = ChainDisk::open(paths, &node(), &leaf).expect(root);
        check(&disk);
        assert_eq!(disk.layers().len(), 2);
        assert!(
            disk.layers()[1]
                .as_str()
                .to_lowercase()
                .ends_with("base.vhdx"),
            "{:?}",
            disk.layers()
        );
    }
}

#[test]
fn the_longest_folder_wins_and_nothing_leads_out_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = folder.path().join("elsewhere");
    std::fs::create_dir_all(&inner).expect("a folder");
    std::fs::write(inner.join("a.bin"), b"inner").expect("written");
    let paths = LocalPaths::new()
        .with_root(path("D:\\"), folder.path())
        .with_root(path("D:\\vm"), &inner);
    let file = paths
        .open(&node(), &path("d:\\VM\\A.bin"))
        .expect("opened")
        .expect("there");
    assert_eq!(file.size_bytes(), 5);
    assert!(
        paths
            .open(&node(), &path("D:\\vm\\b.bin"))
            .expect("opened")
            .is_none()
    );
    let error = paths
        .open(&node(), &path("D:\\vm\\..\\..\\secret"))
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = paths
        .open(&node(), &path("E:\\a"))
        .err()
        .expect("no folder");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_parent_that_is_gone_is_told_and_so_is_a_node_without_files() {
    let folder = tempfile::tempdir().expect("a folder");
    chain(folder.path());
    std::fs::remove_file(folder.path().join("Disks/Base.VHDX")).expect("removed");
    let local: Arc<dyn NodeFiles> =
        Arc::new(LocalPaths::new().with_root(path("D:\\vm"), folder.path()));
    let leaf = path("D:\\vm\\Leaves\\leaf.avhdx");
    let error = ChainDisk::open(Arc::clone(&local) as Arc<dyn DiskAccess>, &node(), &leaf)
        .err()
        .expect("no parent");
    assert_eq!(error.kind(), ErrorKind::Failed);
    let by_node: Arc<dyn DiskAccess> = Arc::new(AccessByNode::new().with_node(node(), local));
    let other = NodeName::new("hv02").expect("a name");
    let error = ChainDisk::open(by_node, &other, &leaf)
        .err()
        .expect("no way");
    assert_eq!(error.kind(), ErrorKind::Io);
}
