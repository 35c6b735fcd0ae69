//! Section `extract`: all files of a version into a folder beside the whole disk into an image, and all names of a volume
//! beside mounting it and `find`.
//!
//! ```text
//!   tree ─► ext4 image (mkfs -d), NTFS image (ntfs-3g) ─► repository ─► round { restore, extract, mount and cp }
//!   names ─► the same two                                           ─► round { ls, mount and find }
//! ```
//!
//! The caches are dropped before each run. Every run writes into a folder of its own, and all of them are removed in the
//! end: ext4 passes over inodes that were freed a short while ago, which would slow whoever comes next.
//!
//! Mounting takes the rights of root, NTFS takes ntfs-3g; what is missing is left out and said in the table's text.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::disk::{self, Fill};
use super::measure::{self, Measured, Metric, Samples};
use super::random::Random;
use super::report::{Bar, Report, TIMING_HEADER, Table, timing_row, words};
use super::tool::{Tool, ToolKind};
use super::{Effort, Options, Programs, clear};

const SMALLEST_BYTES: u64 = 64 << 10;
/// Files double in size so often at most: up to 32 MiB.
const DOUBLINGS: u64 = 9;
const NAMES_PER_FOLDER: u64 = 1000;

/// What the volume is made and mounted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Volume {
    Ext4,
    Ntfs,
}

impl Volume {
    const ALL: [Self; 2] = [Self::Ext4, Self::Ntfs];

    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Ntfs => "NTFS",
        }
    }

    fn peer(self) -> &'static str {
        match self {
            Self::Ext4 => "the kernel",
            Self::Ntfs => "ntfs-3g",
        }
    }

    /// Makes an image of so many bytes that holds what lies in `tree`.
    fn create(self, image: &Path, size_bytes: u64, tree: &Path, mount: &Mount) -> Result<()> {
        fs::File::create(image)?.set_len(size_bytes)?;
        match self {
            Self::Ext4 => {
                let mut command = Command::new("mkfs.ext4");
                // An inode for each 4 KiB: enough for empty files.
                command.args(["-q", "-F", "-i", "4096", "-d"]);
                measure::run(command.arg(tree).arg(image))?;
            }
            Self::Ntfs => {
                measure::run(
                    Command::new("mkfs.ntfs")
                        .args(["-q", "-F", "-f"])
                        .arg(image),
                )?;
                measure::run(Command::new("ntfs-3g").arg(image).arg(&mount.0))?;
                let copied = measure::run(
                    Command::new("cp")
                        .arg("-rT")
                        .arg(tree)
                        .arg(&mount.0)
                        .env("LC_ALL", "C"),
                );
                mount.end()?;
                copied?;
            }
        }
        measure::flush(image)
    }

    fn mount(self, image: &Path, mount: &Mount) -> Command {
        let mut command = match self {
            Self::Ext4 => {
                let mut command = Command::new("mount");
                command.args(["-t", "ext4", "-o", "ro,loop"]);
                command
            }
            Self::Ntfs => {
                let mut command = Command::new("ntfs-3g");
                command.args(["-o", "ro"]);
                command
            }
        };
        command.arg(image).arg(&mount.0);
        command
    }
}

/// A folder to mount at.
struct Mount(PathBuf);

impl Mount {
    fn end(&self) -> Result<()> {
        measure::run(Command::new("umount").arg(&self.0)).map(drop)
    }
}

/// Measures both, on every file system that this machine can make and mount.
pub(crate) fn run(
    options: &Options,
    programs: &Programs,
    work: &Path,
    report: &mut Report,
) -> Result<()> {
    let place = work.join("extract");
    fs::create_dir_all(&place)?;
    let mount = Mount(place.join("mount"));
    fs::create_dir_all(&mount.0)?;
    let (data_bytes, names) = match options.effort {
        Effort::Full => (1 << 30, 200_000),
        Effort::Quick => (128 << 20, 10_000),
    };
    let can_mount = rustix::process::geteuid().is_root();
    let has_ntfs = can_mount && Command::new("ntfs-3g").arg("--version").output().is_ok();
    let volumes = Volume::ALL.into_iter();
    let volumes: Vec<Volume> = volumes
        .filter(|volume| *volume == Volume::Ext4 || has_ntfs)
        .collect();
    let tree = place.join("tree");
    make_files(&tree, data_bytes)?;
    for volume in &volumes {
        let image = place.join("files.img");
        volume.create(&image, data_bytes * 2, &tree, &mount)?;
        let bench = Bench {
            options,
            place: &place,
            volume: *volume,
            image,
            mount: can_mount.then_some(&mount),
        };
        bench.extraction(programs, data_bytes, report)?;
        fs::remove_file(&bench.image)?;
    }
    clear(&tree)?;
    make_names(&tree, names)?;
    for volume in &volumes {
        let image = place.join("names.img");
        volume.create(&image, (names * 6) << 10, &tree, &mount)?;
        let bench = Bench {
            options,
            place: &place,
            volume: *volume,
            image,
            mount: can_mount.then_some(&mount),
        };
        bench.listing(programs, names, report)?;
        fs::remove_file(&bench.image)?;
    }
    clear(&place)
}

/// Files of ordinary sizes, so many bytes together.
fn make_files(tree: &Path, data_bytes: u64) -> Result<()> {
    println!("making {} MiB of files …", data_bytes >> 20);
    let mut random = Random::new(71);
    let (mut left, mut number) = (data_bytes, 0_u64);
    while left >= SMALLEST_BYTES {
        let folder = tree.join(format!("folder-{:02}", number % 40));
        fs::create_dir_all(&folder)?;
        let doubled = SMALLEST_BYTES << random.below(DOUBLINGS).min(random.below(DOUBLINGS + 1));
        let size_bytes = (doubled + random.below(doubled)).min(left);
        let path = folder.join(format!("file-{number:05}"));
        disk::create_filled(&path, size_bytes, Fill::HalfCompressible(1000 + number))?;
        left -= size_bytes;
        number += 1;
    }
    Ok(())
}

/// Empty files, a thousand in a folder.
fn make_names(tree: &Path, names: u64) -> Result<()> {
    println!("making {names} names …");
    for number in 0..names {
        let folder = tree.join(format!("folder-{:04}", number / NAMES_PER_FOLDER));
        if number % NAMES_PER_FOLDER == 0 {
            fs::create_dir_all(&folder)?;
        }
        fs::File::create(folder.join(format!("file-{number:07}.txt")))?;
    }
    Ok(())
}

/// One image, and what is done with it.
struct Bench<'a> {
    options: &'a Options,
    place: &'a Path,
    volume: Volume,
    image: PathBuf,
    mount: Option<&'a Mount>,
}

impl Bench<'_> {
    fn rounds(
        &self,
        what: &str,
        runs: &[&dyn Fn(usize) -> Result<Measured>],
    ) -> Result<Vec<Samples>> {
        let mut samples = vec![Samples::default(); runs.len()];
        for round in 0..self.options.rounds {
            for turn in 0..runs.len() {
                let at = (round + turn) % runs.len();
                println!("{what}, round {}: {}", round + 1, at + 1);
                measure::drop_caches(self.place)?;
                let (run, samples) = (runs.get(at), samples.get_mut(at));
                let (run, samples) = run.zip(samples).context("a run")?;
                samples.0.push(run(round)?);
            }
        }
        Ok(samples)
    }

    /// Mounts, runs a command, and unmounts: all of it counts.
    fn mounted(&self, mount: &Mount, command: &mut Command) -> Result<Measured> {
        let mounted = measure::measure(&mut self.volume.mount(&self.image, mount), None)?;
        let done = measure::measure(command, Some(self.place));
        let ended = measure::measure(Command::new("umount").arg(&mount.0), None)?;
        let mut done = done?;
        done.wall_s += mounted.wall_s + ended.wall_s;
        Ok(done)
    }

    fn extraction(&self, programs: &Programs, data_bytes: u64, report: &mut Report) -> Result<()> {
        let mut tool = Tool::find(ToolKind::Hikae, programs, self.place).context("hikae")?;
        tool.reset()?;
        tool.back_up(&self.image)?;
        let target = |what: &str, round: usize| self.place.join(format!("{what}-{round}"));
        let restore = |round| tool.restore(&self.image, &target("restored", round));
        let extract = |round| tool.extract(&target("extracted", round));
        let copy = |round| {
            let mount = self.mount.context("a place to mount at")?;
            let mut command = Command::new("cp");
            command.arg("-a").arg(&mount.0).arg(target("copied", round));
            self.mounted(mount, &mut command)
        };
        let mut runs: Vec<&dyn Fn(usize) -> Result<Measured>> = vec![&restore, &extract];
        if self.mount.is_some() {
            runs.push(&copy);
        }
        let what = format!("extract from {}", self.volume.name());
        let samples = self.rounds(&what, &runs)?;
        let [restored, extracted, copied @ ..] = samples.as_slice() else {
            return Ok(());
        };
        self.compare(&target("extracted", 0))?;
        report.peak("extract", extracted.peak_bytes());
        let bar = match self.volume {
            Volume::Ext4 => Bar::ExtractExt4,
            Volume::Ntfs => Bar::ExtractNtfs,
        };
        report.judge(bar, extracted.ratio(restored, Metric::Wall));
        let mut rows = vec![
            timing_row("restore to a raw image", restored, restored),
            timing_row("extract into a folder", extracted, restored),
        ];
        let peer = format!("{} and cp, from the image itself", self.volume.peer());
        rows.extend(copied.iter().map(|it| timing_row(&peer, it, restored)));
        report.table(Table {
            title: format!("All files of a version, {}", self.volume.name()),
            text: format!(
                "{} MiB in files of {} KiB to 32 MiB, half-compressible; caches dropped before each run.{}",
                data_bytes >> 20,
                SMALLEST_BYTES >> 10,
                self.missing()
            ),
            header: words(&TIMING_HEADER),
            rows,
        });
        for round in 0..self.options.rounds {
            for what in ["extracted", "copied"] {
                clear(&target(what, round))?;
            }
            fs::remove_file(target("restored", round))?;
        }
        tool.remove()
    }

    /// What was extracted is what was put in.
    fn compare(&self, extracted: &Path) -> Result<()> {
        let mut command = Command::new("diff");
        command.args([
            "-r",
            "--exclude=lost+found",
            "--exclude=hikae-metadata.jsonl",
        ]);
        let status = command.arg(self.place.join("tree")).arg(extracted).status();
        ensure!(
            status.context("running diff")?.success(),
            "{} is not what lies in the image",
            extracted.display()
        );
        Ok(())
    }

    fn missing(&self) -> &'static str {
        if self.mount.is_some() {
            ""
        } else {
            " Nothing could be mounted here."
        }
    }

    fn listing(&self, programs: &Programs, names: u64, report: &mut Report) -> Result<()> {
        let ls = |more: &'static [&'static str]| {
            move |_: usize| {
                let mut command = Command::new(&programs.hikae);
                command.args(["image", "ls", "--recursive"]).args(more);
                measure::measure(command.arg(&self.image).arg("/"), None)
            }
        };
        let find = |more: &'static [&'static str]| {
            move |_: usize| {
                let mount = self.mount.context("a place to mount at")?;
                let mut command = Command::new("find");
                self.mounted(mount, command.arg(&mount.0).args(more))
            }
        };
        let (plain, long) = (ls(&[]), ls(&["--long"]));
        let (find_plain, find_long) = (find(&[]), find(&["-printf", "%s %t %p\\n"]));
        let mut runs: Vec<&dyn Fn(usize) -> Result<Measured>> = vec![&plain, &long];
        if self.mount.is_some() {
            runs.extend([&find_plain as &dyn Fn(usize) -> _, &find_long]);
        }
        let samples = self.rounds(&format!("names of {}", self.volume.name()), &runs)?;
        let [plain, long, found @ ..] = samples.as_slice() else {
            return Ok(());
        };
        for listed in plain.0.iter().chain(&long.0) {
            let lines = u64::try_from(listed.output.lines().count())?;
            ensure!(lines >= names, "{lines} lines of {names} files");
        }
        let mut rows = vec![
            timing_row("image ls, names", plain, plain),
            timing_row("image ls --long", long, plain),
        ];
        if let [find_plain, find_long] = found {
            let ratio = plain.ratio(find_plain, Metric::Wall);
            let ratio = ratio.max(long.ratio(find_long, Metric::Wall));
            let bar = match self.volume {
                Volume::Ext4 => Bar::ListExt4,
                Volume::Ntfs => Bar::ListNtfs,
            };
            report.judge(bar, ratio);
            let peer = self.volume.peer();
            rows.push(timing_row(
                &format!("{peer} and find, names"),
                find_plain,
                plain,
            ));
            let with = format!("{peer} and find, sizes and times");
            rows.push(timing_row(&with, find_long, plain));
        }
        report.peak("image ls", plain.peak_bytes().max(long.peak_bytes()));
        report.table(Table {
            title: format!("All names of a volume, {}", self.volume.name()),
            text: format!(
                "{names} empty files, {NAMES_PER_FOLDER} in a folder, in an image; caches dropped before each run; mounting \
                 counts.{}",
                self.missing()
            ),
            header: words(&TIMING_HEADER),
            rows,
        });
        Ok(())
    }
}
