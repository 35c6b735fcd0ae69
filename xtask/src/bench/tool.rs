//! The tools that are compared, and how each is told to do the same work.
//!
//! | tool | told to |
//! |---|---|
//! | Hikae | encrypt (AES-256-GCM), its defaults |
//! | restic | its defaults (encrypted, compressed), `--force`: read all, because the time stamp of a running disk says nothing |
//! | borg | `repokey-blake2`, `zstd,1`, blocks of 64 KiB, `--sparse`, no files cache |
//! | cp | `--sparse=always` |
//! | qemu-img | `convert` to qcow2, back to raw |
//! | b3sum | hash the file, all cores, memory mapped |
//! | plain loop | read, hash and compress on all cores, throw away ([`super::plain`]) |

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::measure::{self, Measured};
use super::{Programs, Section};

/// Which tool, and in which of its ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolKind {
    Hikae,
    /// Hikae told which ranges changed, as change tracking would.
    HikaeTracked,
    Restic,
    Borg,
    Cp,
    QemuImg,
    B3sum,
    PlainLoop,
}

impl ToolKind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Hikae,
        Self::HikaeTracked,
        Self::Restic,
        Self::Borg,
        Self::Cp,
        Self::QemuImg,
        Self::B3sum,
        Self::PlainLoop,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hikae => "Hikae",
            Self::HikaeTracked => "Hikae, changed ranges given",
            Self::Restic => "restic",
            Self::Borg => "borg",
            Self::Cp => "cp",
            Self::QemuImg => "qemu-img",
            Self::B3sum => "b3sum",
            Self::PlainLoop => "plain loop",
        }
    }

    /// The tool that is called so on the command line.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let names = [
            "hikae", "tracked", "restic", "borg", "cp", "qemu-img", "b3sum", "plain",
        ];
        names
            .iter()
            .zip(Self::ALL)
            .find(|(name, _)| **name == text)
            .map(|(_, kind)| kind)
    }

    /// Whether the tool is measured in that section.
    pub(crate) fn takes_part(self, section: Section) -> bool {
        match section {
            Section::Initial => self != Self::HikaeTracked,
            Section::Unchanged => {
                matches!(self, Self::Hikae | Self::Restic | Self::Borg | Self::B3sum)
            }
            Section::OnePercent | Section::Database => {
                matches!(
                    self,
                    Self::Hikae | Self::HikaeTracked | Self::Restic | Self::Borg
                )
            }
            Section::Restore => {
                matches!(
                    self,
                    Self::Hikae | Self::Restic | Self::Borg | Self::Cp | Self::QemuImg
                )
            }
            Section::Extract | Section::Convert | Section::Scaling | Section::Versions => false,
        }
    }

    /// Whether it keeps versions, so that a later section needs its repository.
    pub(crate) fn has_repository(self) -> bool {
        matches!(
            self,
            Self::Hikae | Self::HikaeTracked | Self::Restic | Self::Borg
        )
    }
}

/// One tool with its repository.
#[derive(Debug)]
pub(crate) struct Tool {
    pub(crate) kind: ToolKind,
    program: PathBuf,
    home: PathBuf,
    backups: u32,
    /// File with the changed ranges of the next backup, for [`ToolKind::HikaeTracked`].
    pub(crate) changed_ranges: Option<PathBuf>,
}

impl Tool {
    /// The tool, if it is installed.
    pub(crate) fn find(kind: ToolKind, programs: &Programs, work: &Path) -> Option<Self> {
        let program = match kind {
            ToolKind::Hikae | ToolKind::HikaeTracked => programs.hikae.clone(),
            ToolKind::Restic => programs.restic.clone()?,
            ToolKind::Borg => programs.borg.clone()?,
            ToolKind::Cp => PathBuf::from("cp"),
            ToolKind::QemuImg => programs.qemu_img.clone()?,
            ToolKind::B3sum => programs.b3sum.clone()?,
            ToolKind::PlainLoop => programs.plain.clone(),
        };
        let home = work.join("tools").join(format!("{kind:?}").to_lowercase());
        Some(Self {
            kind,
            program,
            home,
            backups: 0,
            changed_ranges: None,
        })
    }

    fn repository(&self) -> PathBuf {
        self.home.join("repository")
    }

    /// The program with its home and secrets in the environment.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("HOME", &self.home)
            .env("XDG_CONFIG_HOME", self.home.join("config"))
            .env("XDG_CACHE_HOME", self.home.join("cache"))
            .env("HIKAE_KEY_FILE", self.home.join("key"))
            .env("RESTIC_REPOSITORY", self.repository())
            .env("RESTIC_PASSWORD", "bench")
            .env("RESTIC_CACHE_DIR", self.home.join("cache"))
            .env("BORG_REPO", self.repository())
            .env("BORG_PASSPHRASE", "bench")
            .env("BORG_BASE_DIR", &self.home)
            .current_dir(self.home.parent().unwrap_or(&self.home));
        command
    }

    /// Begins anew with an empty repository.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.remove()?;
        fs::create_dir_all(&self.home)?;
        self.backups = 0;
        let repository = self.repository();
        let mut command = self.command();
        match self.kind {
            ToolKind::Hikae | ToolKind::HikaeTracked => {
                command
                    .args(["repo", "init"])
                    .arg(&repository)
                    .arg("--key-file")
                    .arg(self.home.join("key"));
            }
            ToolKind::Restic => {
                command.args(["--quiet", "init"]);
            }
            ToolKind::Borg => {
                command.args(["init", "--encryption", "repokey-blake2"]);
            }
            ToolKind::Cp | ToolKind::QemuImg | ToolKind::B3sum | ToolKind::PlainLoop => {
                return Ok(());
            }
        }
        measure::run(&mut command)?;
        Ok(())
    }

    /// Removes everything that the tool made.
    pub(crate) fn remove(&self) -> Result<()> {
        super::clear(&self.home)
    }

    /// Makes the next version of the image; the plain copiers overwrite their copy.
    pub(crate) fn back_up(&mut self, image: &Path) -> Result<Measured> {
        self.backups += 1;
        let mut command = self.command();
        match self.kind {
            ToolKind::Hikae | ToolKind::HikaeTracked => {
                command
                    .args(["disk", "backup"])
                    .arg(image)
                    .arg("--repo")
                    .arg(self.repository());
                command.args(["--name", "disk", "--json"]);
                if let Some(ranges) = &self.changed_ranges {
                    command.arg("--changed-ranges").arg(ranges);
                }
            }
            ToolKind::Restic => {
                command.args(["--quiet", "backup", "--force"]).arg(image);
            }
            ToolKind::Borg => {
                command
                    .args([
                        "create",
                        "--compression",
                        "zstd,1",
                        "--chunker-params",
                        "fixed,65536",
                    ])
                    .args(["--sparse", "--files-cache", "disabled"])
                    .arg(format!("::{}", self.backups))
                    .arg(image);
            }
            ToolKind::Cp => {
                command.arg("--sparse=always").arg(image).arg(self.copy());
            }
            ToolKind::QemuImg => {
                command
                    .args(["convert", "-f", "raw", "-O", "qcow2"])
                    .arg(image)
                    .arg(self.copy());
            }
            ToolKind::B3sum => {
                command.arg(image);
            }
            ToolKind::PlainLoop => {
                command.args(["bench", "--plain-loop"]).arg(image);
            }
        }
        measure::measure(&mut command, Some(&self.home))
    }

    /// Brings the newest version back to the raw file `out`, which does not exist. The copiers copy `image` itself.
    pub(crate) fn restore(&self, image: &Path, out: &Path) -> Result<Measured> {
        let mut command = self.command();
        let dir = self.home.join("restored");
        super::clear(&dir)?;
        fs::create_dir_all(&dir)?;
        match self.kind {
            ToolKind::Hikae | ToolKind::HikaeTracked => {
                command
                    .args(["disk", "restore", "--repo"])
                    .arg(self.repository())
                    .arg("disk")
                    .arg(out);
                command.args(["--format", "raw", "--json"]);
            }
            ToolKind::Restic => {
                command
                    .args(["--quiet", "restore", "latest", "--target"])
                    .arg(&dir);
            }
            ToolKind::Borg => {
                command
                    .args(["extract", "--sparse"])
                    .arg(format!("::{}", self.backups))
                    .current_dir(&dir);
            }
            ToolKind::Cp => {
                command.arg("--sparse=always").arg(image).arg(out);
            }
            ToolKind::QemuImg => {
                command
                    .args(["convert", "-f", "raw", "-O", "raw"])
                    .arg(image)
                    .arg(out);
            }
            ToolKind::B3sum | ToolKind::PlainLoop => bail!("{} restores nothing", self.kind.name()),
        }
        let measured = measure::measure(&mut command, Some(&self.home))?;
        if matches!(self.kind, ToolKind::Restic | ToolKind::Borg) {
            let inside = image.strip_prefix("/").context("an absolute path")?;
            fs::rename(dir.join(inside), out)?;
        }
        super::clear(&dir)?;
        Ok(measured)
    }

    /// Brings all files of the newest version in Hikae's repository into the folder `out`.
    pub(crate) fn extract(&self, out: &Path) -> Result<Measured> {
        let mut command = self.command();
        command
            .args(["disk", "extract", "--repo"])
            .arg(self.repository())
            .args(["disk", "/", "--to"])
            .arg(out)
            .arg("--json");
        measure::measure(&mut command, Some(&self.home))
    }

    /// Brings the newest version of Hikae's repository back as an image of `format`.
    pub(crate) fn restore_as(&self, out: &Path, format: &str) -> Result<Measured> {
        let mut command = self.command();
        command
            .args(["disk", "restore", "--repo"])
            .arg(self.repository())
            .arg("disk")
            .arg(out);
        command.args(["--format", format, "--json"]);
        measure::measure(&mut command, Some(&self.home))
    }

    fn copy(&self) -> PathBuf {
        self.home.join("copy")
    }

    /// Space that the repository or the copy takes up; nothing for the tools that write nothing.
    pub(crate) fn stored_bytes(&self) -> Result<Option<u64>> {
        let place = if self.kind.has_repository() {
            self.repository()
        } else {
            self.copy()
        };
        if place.exists() {
            measure::allocated_bytes(&place).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Hikae's commands on this tool's repository beyond backing up and restoring.
    pub(crate) fn repository_command(&self, verb: &str) -> Result<Measured> {
        let mut command = self.command();
        command
            .args(["repo", verb])
            .arg("--repo")
            .arg(self.repository())
            .arg("--json");
        measure::measure(&mut command, Some(&self.home))
    }
}
