//! The world before an operation: a repository of many small packs, its committed points, what lies around it.
//!
//! ```text
//!   FOLDER/home, repo, repo.key, target, target.key      everything that a round changes: copied for each round
//!   IMAGES/disk.raw, new.raw                             what is backed up: read only
//! ```
//!
//! | operation | the world |
//! |---|---|
//! | backup | many versions, some forgotten; a disk with changes |
//! | resume | the same, and a backup that was killed when half of its packs were there |
//! | gc | the same as backup: dead, sparse and small packs, many index segments and points |
//! | settle | the same, and a gc that was killed behind its first verdict |
//! | copy | a target that has the older half of the points |
//! | repair | a target that has everything; packs that are damaged or gone |
//! | forget | the same as backup |

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::disk::{self, ContentHash, Random};
use super::phase::Landmarks;
use super::program::{Program, Running, Sight};

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A backup of a changed disk.
    Backup,
    /// A backup after one that was killed.
    Resume,
    /// Garbage collection.
    Gc,
    /// Garbage collection after one that was killed behind its verdict.
    Settle,
    /// Copying points into another repository.
    Copy,
    /// Repair from another repository.
    Repair,
    /// Forgetting a point.
    Forget,
}

impl Operation {
    /// All, by the word on the command line.
    pub const ALL: [(&'static str, Self); 7] = [
        ("backup", Self::Backup),
        ("resume", Self::Resume),
        ("gc", Self::Gc),
        ("settle", Self::Settle),
        ("copy", Self::Copy),
        ("repair", Self::Repair),
        ("forget", Self::Forget),
    ];

    /// Its word.
    pub fn word(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, operation)| *operation == self)
            .map_or("", |(word, _)| word)
    }

    /// The repository that it writes to.
    pub(super) fn written(self) -> &'static str {
        match self {
            Self::Copy => "target",
            _ => "repo",
        }
    }

    /// The number of that store in traces.
    pub(super) fn written_store(self) -> u32 {
        u32::from(self == Self::Copy)
    }

    pub(super) fn landmarks(self) -> Landmarks {
        match self {
            Self::Backup | Self::Resume | Self::Copy => Landmarks::Session,
            Self::Gc | Self::Settle | Self::Repair => Landmarks::Collection,
            Self::Forget => Landmarks::Mark,
        }
    }
}

/// How large the world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SceneSize {
    /// Versions made; about a fifth of them is forgotten.
    pub versions: u64,
    /// Blocks that change from one to the next.
    pub changed_blocks: u64,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Data in its first version.
    pub data_bytes: u64,
    /// Where data packs are closed.
    pub pack_bytes: u64,
}

impl SceneSize {
    /// As large as the operation needs to show all it does: gc bundles points from 64 on, and merges index segments when
    /// there are more than 16.
    pub fn usual(operation: Operation) -> Self {
        match operation {
            Operation::Gc | Operation::Settle => Self {
                versions: 84,
                ..Self::MANY_PACKS
            },
            _ => Self::MANY_PACKS,
        }
    }

    /// About a hundred packs.
    pub const MANY_PACKS: Self = Self {
        versions: 36,
        changed_blocks: 5,
        disk_bytes: 24 << 20,
        data_bytes: 6 << 20,
        pack_bytes: 256 << 10,
    };
    /// For tests that run on every change.
    pub const SMALL: Self = Self {
        versions: 14,
        changed_blocks: 4,
        disk_bytes: 8 << 20,
        data_bytes: 3 << 20,
        pack_bytes: 256 << 10,
    };
}

/// A committed point.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listed {
    pub(super) version: u64,
    pub(super) root: String,
}

/// The world before an operation, and what must be found afterwards.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) operation: Operation,
    pub(super) program: Program,
    pub(super) images: PathBuf,
    /// Visible points of `repo`.
    pub(super) committed: Vec<Listed>,
    /// Visible points of `target`.
    pub(super) target: Vec<Listed>,
    /// Bytes of every disk by its root.
    pub(super) contents: BTreeMap<String, ContentHash>,
    /// Content of the disk that is backed up.
    pub(super) new_content: ContentHash,
    /// Versions whose bytes cannot be had before the repair.
    pub(super) hit: BTreeSet<u64>,
    /// Packs in `repo`.
    pub(super) packs: usize,
}

impl Scene {
    /// Makes the world of an operation below an empty folder.
    pub(super) fn create(
        operation: Operation,
        binary: &Path,
        folder: &Path,
        size: SceneSize,
        seed: u64,
    ) -> Result<Self> {
        let world = folder.join("pristine");
        let images = folder.join("images");
        std::fs::create_dir_all(&world)?;
        std::fs::create_dir_all(&images)?;
        let program = Program {
            binary: binary.to_owned(),
            folder: world,
            pack_bytes: size.pack_bytes,
        };
        let mut random = Random::new(seed);
        let mut scene = Self {
            operation,
            program,
            images,
            committed: Vec::new(),
            target: Vec::new(),
            contents: BTreeMap::new(),
            new_content: blake3::hash(b""),
            hit: BTreeSet::new(),
            packs: 0,
        };
        scene.fill(size, &mut random)?;
        scene.prepare(&mut random)?;
        let repo = scene.program.folder.join("repo");
        scene.packs = files(&repo.join("data"))?.len() + files(&repo.join("node"))?.len();
        scene.committed = scene.program.list("repo")?;
        scene.target = scene.program.list("target")?;
        ensure!(scene.packs >= 20, "only {} packs", scene.packs);
        Ok(scene)
    }

    fn fill(&mut self, size: SceneSize, random: &mut Random) -> Result<()> {
        let program = &self.program;
        for name in ["repo", "target"] {
            let key = format!("{name}.key");
            program
                .run(["repo", "init", name, "--key-file", &key])?
                .expect(0, "init")?;
        }
        let image = self.images.join("disk.raw");
        disk::create(&image, size.disk_bytes, size.data_bytes, random)?;
        let image_text = path_text(&image)?;
        for version in 1..=size.versions {
            disk::change(&image, size.changed_blocks, random)?;
            let made = program
                .run(backup_words(image_text))?
                .expect(0, "a backup of the scene")?
                .json()?;
            let root = made["root"].as_str().context("a root")?.to_owned();
            self.contents.insert(root, disk::hash(&image)?);
            if version == size.versions * 3 / 4 {
                program
                    .run(words(Operation::Copy, image_text))?
                    .expect(0, "a copy of the scene")?;
            }
        }
        // Whole packs die with the oldest; single ones make sparse packs.
        let mut forgotten: BTreeSet<u64> = (1..=size.versions / 7).collect();
        for _ in 0..size.versions / 20 {
            forgotten.insert(1 + random.below(size.versions - 4));
        }
        for version in forgotten {
            let selector = format!("vm@{version}");
            program
                .run(forget_words(&selector))?
                .expect(0, "forgetting in the scene")?;
        }
        let new = self.images.join("new.raw");
        std::fs::copy(&image, &new)?;
        disk::change(&new, size.changed_blocks * 5, random)?;
        self.new_content = disk::hash(&new)?;
        Ok(())
    }

    /// What is special about the operation's world.
    fn prepare(&mut self, random: &mut Random) -> Result<()> {
        match self.operation {
            Operation::Resume => self.interrupt(Operation::Backup, "after:0:put:data/:3"),
            // The second call below `gc/` that puts is the verdict of its first generation.
            Operation::Settle => self.interrupt(Operation::Gc, "after:0:put:gc/:2"),
            Operation::Repair => {
                let image = path_text(&self.images)?.to_owned();
                self.program
                    .run(words(Operation::Copy, &image))?
                    .expect(0, "a copy of the scene")?;
                self.damage(random)
            }
            Operation::Backup | Operation::Gc | Operation::Copy | Operation::Forget => Ok(()),
        }
    }

    fn interrupt(&self, operation: Operation, stop: &str) -> Result<()> {
        let program = &self.program;
        let new = self.images.join("new.raw");
        let list = words(operation, path_text(&new)?);
        let mut command = program.command(&list);
        let trace = self.images.join("interrupted.trace");
        command
            .env("HIKAE_TRACE_STORE", trace)
            .env("HIKAE_TRACE_STOP", stop);
        let mut running = Running::start(command, &program.folder)?;
        let sight = running.watch_until(Duration::from_secs(60))?;
        ensure!(sight == Sight::Stopped, "{stop} was not met: {sight:?}");
        running.kill()?;
        Ok(())
    }

    /// Flips a byte in some packs, removes one, and finds out which versions that hits.
    fn damage(&mut self, random: &mut Random) -> Result<()> {
        let repo = self.program.folder.join("repo");
        for (kind, flips) in [("data", 3), ("node", 1)] {
            let packs = files(&repo.join(kind))?;
            for _ in 0..flips {
                let pack = packs.get(random.index(packs.len())).context("a pack")?;
                let size_bytes = std::fs::metadata(pack)?.len();
                disk::flip(pack, 200 + random.below(size_bytes.saturating_sub(400)))?;
            }
        }
        let packs = files(&repo.join("data"))?;
        let gone = packs.get(random.index(packs.len())).context("a pack")?;
        std::fs::remove_file(gone)?;
        let listed = self.program.list("repo")?;
        for one in &listed {
            if self.program.restored("repo", one.version)?.is_none() {
                self.hit.insert(one.version);
            }
        }
        ensure!(!self.hit.is_empty(), "the damage hits no version");
        Ok(())
    }

    /// A copy of the world in an empty or absent folder.
    pub(super) fn copy_to(&self, folder: &Path) -> Result<Program> {
        if folder.exists() {
            std::fs::remove_dir_all(folder)
                .with_context(|| format!("remove {}", folder.display()))?;
        }
        let status = Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .arg(&self.program.folder)
            .arg(folder)
            .status()
            .context("start cp")?;
        ensure!(status.success(), "copying the world failed");
        Ok(Program {
            folder: folder.to_owned(),
            ..self.program.clone()
        })
    }

    /// What is typed for the operation.
    pub(super) fn words(&self) -> Result<Vec<String>> {
        if self.operation == Operation::Forget {
            return Ok(words(self.operation, &selector(self.victim())));
        }
        let image = self.images.join("new.raw");
        Ok(words(self.operation, path_text(&image)?))
    }

    /// The version that is forgotten by [`Operation::Forget`].
    pub(super) fn victim(&self) -> u64 {
        self.committed
            .iter()
            .rev()
            .nth(3)
            .map_or(0, |one| one.version)
    }

    /// The content that a point must have.
    pub(super) fn content(&self, root: &str) -> Result<ContentHash> {
        self.contents
            .get(root)
            .copied()
            .with_context(|| format!("a root that nobody made: {root}"))
    }
}

impl Program {
    /// Visible points of a repository, by version.
    pub(super) fn list(&self, name: &str) -> Result<Vec<Listed>> {
        let key = format!("{name}.key");
        let report = self
            .run(["disk", "list", "--repo", name, "--key-file", &key])?
            .expect(0, "listing")?
            .json()?;
        let rows = report["points"].as_array().context("points of a listing")?;
        let mut listed = Vec::new();
        for row in rows {
            listed.push(Listed {
                version: row["version"].as_u64().context("a version")?,
                root: row["root"].as_str().context("a root")?.to_owned(),
            });
        }
        listed.sort();
        Ok(listed)
    }

    /// Hash of a restored version; nothing when it was refused with a problem because of damage.
    pub(super) fn restored(&self, name: &str, version: u64) -> Result<Option<ContentHash>> {
        let key = format!("{name}.key");
        let selector = selector(version);
        let arguments = ["disk", "restore", "--repo", name, "--key-file", &key];
        let more = [&selector, "restored.raw", "--format", "raw", "--overwrite"];
        let outcome = self.run(arguments.into_iter().chain(more))?;
        match outcome.code {
            Some(0) => Ok(Some(disk::hash(&self.folder.join("restored.raw"))?)),
            Some(1 | 3) if outcome.json()?["problem"].is_object() => Ok(None),
            _ => bail!("restoring {selector}: {outcome:?}"),
        }
    }
}

fn selector(version: u64) -> String {
    format!("vm@{version}")
}

fn backup_words(image: &str) -> [&str; 9] {
    [
        "disk",
        "backup",
        "--repo",
        "repo",
        "--key-file",
        "repo.key",
        image,
        "--name",
        "vm",
    ]
}

fn forget_words(selector: &str) -> [&str; 7] {
    [
        "disk",
        "forget",
        "--repo",
        "repo",
        "--key-file",
        "repo.key",
        selector,
    ]
}

/// What is typed; `subject` is the image of a backup, the selector of what is forgotten.
fn words(operation: Operation, subject: &str) -> Vec<String> {
    let key = ["--key-file", "repo.key"];
    let words: Vec<&str> = match operation {
        Operation::Backup | Operation::Resume => backup_words(subject).to_vec(),
        Operation::Gc | Operation::Settle => {
            [&["repo", "gc", "repo", "--stall", "6"][..], &key].concat()
        }
        Operation::Copy => {
            let to = ["--to", "target", "--to-key-file", "target.key"];
            [&["repo", "copy", "repo"][..], &key, &to].concat()
        }
        Operation::Repair => {
            let from = ["--from", "target", "--from-key-file", "target.key"];
            [&["repo", "repair", "repo"][..], &key, &from].concat()
        }
        Operation::Forget => forget_words(subject).to_vec(),
    };
    words.into_iter().map(str::to_owned).collect()
}

/// A path as text.
pub(super) fn path_text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// Files below a folder, in order.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut places = vec![folder.to_owned()];
    while let Some(place) = places.pop() {
        let entries =
            std::fs::read_dir(&place).with_context(|| format!("list {}", place.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                places.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
