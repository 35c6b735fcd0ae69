//! An ext4 volume and what is in it, changed together.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use block::ReadAt;

/// Paths with the bytes of files; folders have none.
pub type Tree = BTreeMap<String, Option<Vec<u8>>>;

const VOLUME_BYTES: u64 = 48 << 20;
/// Where bytes are put that belong to no file.
const SPARE_BYTES: usize = 4 << 20;

/// Whether the tools are there; without them a test is skipped, but not in CI.
pub fn have_tools() -> bool {
    for tool in ["mke2fs", "debugfs"] {
        let started = Command::new(tool)
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if started.is_err() {
            assert!(std::env::var_os("CI").is_none(), "{tool} is missing");
            println!("SKIP: {tool} is missing");
            return false;
        }
    }
    true
}

/// A disk in memory.
pub struct Image(Vec<u8>);

impl Image {
    /// This disk with the blocks of 64 KiB in which a later one differs, but for the first, which holds the superblock;
    /// and how many those are.
    pub fn with_blocks_of(&self, later: &Self) -> (Self, usize) {
        let (mut bytes, mut count) = (self.0.clone(), 0);
        let pairs = bytes.chunks_mut(65_536).zip(later.0.chunks(65_536));
        for (old, new) in pairs.skip(1).filter(|(old, new)| old != new) {
            old.copy_from_slice(new);
            count += 1;
        }
        (Self(bytes), count)
    }
}

impl Image {
    /// A disk with a table of partitions, on which this one is the first partition and, if wanted, the second one, too.
    pub fn partitioned(&self, copies: usize) -> Self {
        const GAP: usize = 1 << 20;
        let mut bytes = vec![0; GAP + 2 * (self.0.len() + GAP)];
        for number in 0..copies {
            let at = GAP + number * (self.0.len() + GAP);
            bytes[at..at + self.0.len()].copy_from_slice(&self.0);
            let sectors = |length: usize| u32::try_from(length / 512).unwrap().to_le_bytes();
            let entry = &mut bytes[446 + 16 * number..][..16];
            entry[4] = 0x83;
            entry[8..12].copy_from_slice(&sectors(at));
            entry[12..16].copy_from_slice(&sectors(self.0.len()));
        }
        bytes[440..444].copy_from_slice(b"disk");
        bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
        Self(bytes)
    }
}

impl ReadAt for Image {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let from = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[from..from + buffer.len()]);
        Ok(())
    }
}

/// Goes into a folder, given without the slash at its end.
fn enter(folder: &str) -> String {
    format!("cd \"/{}\"", folder.trim_start_matches('/'))
}

/// A command for a path: debugfs takes the last name in the folder that it is in.
fn within(path: &str, verb: &str) -> [String; 2] {
    let (folder, name) = path.rsplit_once('/').unwrap();
    [enter(folder), format!("{verb} \"{name}\"")]
}

/// A machine with one volume, behind which the disk has some spare room that no file system owns.
pub struct Guest {
    place: tempfile::TempDir,
    tree: Tree,
    state: u64,
    spare: Vec<u8>,
}

impl Guest {
    pub fn new(seed: u64) -> Self {
        let place = tempfile::tempdir().unwrap();
        let volume = place.path().join("volume");
        fs::File::create(&volume)
            .unwrap()
            .set_len(VOLUME_BYTES)
            .unwrap();
        let made = Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-b", "4096", "-N", "4096"])
            .arg(&volume)
            .status()
            .unwrap();
        assert!(made.success());
        Self {
            place,
            tree: Tree::new(),
            state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            spare: vec![0; SPARE_BYTES],
        }
    }

    fn volume(&self) -> PathBuf {
        self.place.path().join("volume")
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    pub fn disk(&self) -> Image {
        let mut bytes = fs::read(self.volume()).unwrap();
        bytes.extend_from_slice(&self.spare);
        // Tables and members of sets are also looked for at the end of a disk.
        bytes.resize(bytes.len() + SPARE_BYTES, 0);
        Image(bytes)
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % below
    }

    /// Runs commands of debugfs; what it says against one of them fails the test.
    fn debugfs(&self, commands: &[String]) {
        let script = self.place.path().join("commands");
        fs::write(&script, format!("{}\n", commands.join("\n"))).unwrap();
        let output = Command::new("debugfs")
            .arg("-w")
            .arg("-f")
            .arg(&script)
            .arg(self.volume())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let complaints: Vec<_> = said.lines().skip(1).collect();
        assert!(
            output.status.success() && complaints.is_empty(),
            "{output:?}"
        );
    }

    fn write_commands(&mut self, path: &str, bytes: Vec<u8>, number: usize) -> Vec<String> {
        let (folder, name) = path.rsplit_once('/').unwrap();
        let source = self.place.path().join(format!("source{number}"));
        fs::write(&source, &bytes).unwrap();
        let mut commands = vec![enter(folder)];
        if self.tree.insert(path.to_owned(), Some(bytes)).is_some() {
            commands.push(format!("rm \"{name}\""));
        }
        commands.push(format!("write {} \"{name}\"", source.display()));
        commands
    }

    pub fn write(&mut self, path: &str, bytes: Vec<u8>) {
        let commands = self.write_commands(path, bytes, 0);
        self.debugfs(&commands);
    }

    /// Replaces bytes that are in the volume once, where they lie: nothing else of it changes.
    pub fn overwrite_in_place(&mut self, path: &str, old: &[u8], new: &[u8]) {
        assert_eq!(old.len(), new.len());
        let replace = |bytes: &mut Vec<u8>| {
            let is_old = |window: &&[u8]| *window == old;
            assert_eq!(bytes.windows(old.len()).filter(is_old).count(), 1);
            let at = bytes.windows(old.len()).position(|window| window == old);
            bytes[at.unwrap()..][..new.len()].copy_from_slice(new);
        };
        let mut volume = fs::read(self.volume()).unwrap();
        replace(&mut volume);
        fs::write(self.volume(), volume).unwrap();
        replace(self.tree.get_mut(path).unwrap().as_mut().unwrap());
    }

    /// Gives a file of a folder a second name, in the folder alone: no inode changes.
    pub fn name_again(&mut self, folder: &str, from: &str, to: &str) {
        let bytes = self.tree[&format!("{folder}/{from}")].clone();
        self.tree.insert(format!("{folder}/{to}"), bytes);
        self.debugfs(&[enter(folder), format!("ln \"{from}\" \"{to}\"")]);
    }

    pub fn remove(&mut self, path: &str) {
        assert!(self.tree.remove(path).is_some());
        self.debugfs(&within(path, "rm"));
    }

    pub fn make_folders(&mut self, count: usize, file_bytes: usize) {
        let mut commands = Vec::new();
        for number in 0..count {
            let folder = format!("/f{number}");
            commands.extend(within(&folder, "mkdir"));
            self.tree.insert(folder.clone(), None);
            let path = format!("{folder}/file.txt");
            commands.extend(self.write_commands(&path, vec![b'a'; file_bytes + number], number));
        }
        self.debugfs(&commands);
    }

    pub fn fill_free_space(&mut self, filling: u8) {
        self.spare.fill(filling);
    }

    /// Makes random changes: files made, replaced and removed, folders made and removed.
    pub fn change(&mut self, count: usize) {
        let mut commands = Vec::new();
        for number in 0..count {
            let folders: Vec<String> = std::iter::once(String::new())
                .chain(
                    self.tree
                        .iter()
                        .filter(|(_, it)| it.is_none())
                        .map(|(path, _)| path.clone()),
                )
                .collect();
            let files: Vec<String> = self
                .tree
                .iter()
                .filter(|(_, it)| it.is_some())
                .map(|(path, _)| path.clone())
                .collect();
            let at = self.random(folders.len() as u64);
            let folder = folders[usize::try_from(at).unwrap()].clone();
            match self.random(10) {
                0..=2 => {
                    let path = format!("{folder}/d{}", self.random(6));
                    let is_deep = path.matches('/').count() > 5;
                    if !is_deep && !self.tree.contains_key(&path) {
                        commands.extend(within(&path, "mkdir"));
                        self.tree.insert(path, None);
                    }
                }
                3..=6 => {
                    let path = format!("{folder}/file ä{}.txt", self.random(5));
                    let length = self.random(200_000);
                    let fill = u8::try_from(self.random(256)).unwrap();
                    let bytes = vec![fill; usize::try_from(length).unwrap()];
                    commands.extend(self.write_commands(&path, bytes, number));
                }
                7..=8 if !files.is_empty() => {
                    let at = self.random(files.len() as u64);
                    let path = &files[usize::try_from(at).unwrap()];
                    commands.extend(within(path, "rm"));
                    self.tree.remove(path);
                }
                _ => {
                    let below = format!("{folder}/");
                    let is_empty = !self.tree.keys().any(|path| path.starts_with(&below));
                    if is_empty && !folder.is_empty() {
                        commands.extend(within(&folder, "rmdir"));
                        self.tree.remove(&folder);
                    }
                }
            }
        }
        self.debugfs(&commands);
    }
}
