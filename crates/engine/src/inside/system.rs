//! Which operating system lies on a volume: Windows from its registry, Linux from `os-release`.
//!
//! Hives are read into memory with their logs, up to 256 MiB; text files up to 64 KiB. What cannot be read is told as
//! damage of the system, never as "there is none".

use std::sync::Arc;

use block::{Extent, ExtentKind, ReadAt};
use guestfs::disk::VolumePlace;
use guestfs::filesystem::{FileKind, FileSystemKind};
use guestfs::registry::Hive;
use guestfs::registry::windows::{MountTarget, ServiceStart, WindowsFacts};
use guestfs::{FileName, FileSystem};
use serde::Serialize;

use super::eligibility::WindowsBackupFacts;
use super::place::walk;
use super::{InsideDisks, LastLink, Place, VolumeNumber, is_of_windows};
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

const HIVE_BYTES_MAX: u64 = 256 << 20;
const LOG_BYTES_MAX: u64 = 64 << 20;
const TEXT_BYTES_MAX: u64 = 64 << 10;

/// An operating system, as far as its files tell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SystemReport {
    /// Number of the volume that it lies on.
    pub volume: usize,
    /// `windows` or `linux`.
    pub family: &'static str,
    /// `Windows Server 2022 Datacenter`, `Debian GNU/Linux 13 (trixie)`.
    pub name: Option<String>,
    /// `10.0.20348.1234`, `13`.
    pub version: Option<String>,
    /// Name of the machine.
    pub host_name: Option<String>,
    /// Its domain.
    pub domain: Option<String>,
    /// The key name of its time zone.
    pub time_zone: Option<String>,
    /// Integration services of Hyper-V that are installed, with when they start.
    pub integration_services: Vec<String>,
    /// When the service of shadow copies starts, where there is one.
    pub shadow_copy_service: Option<String>,
    /// Page files, as Windows writes them.
    pub page_files: Vec<String>,
    /// Whether it may hibernate.
    pub is_hibernation_enabled: Option<bool>,
    /// Drive letters with the number of the volume that they mean, where that is among those looked at.
    pub drive_letters: Vec<(String, Option<usize>)>,
    /// What could not be read.
    pub damage: Vec<String>,
    /// What the rules of online backups ask of a Windows; they tell it in words.
    #[serde(skip)]
    pub backup_facts: Option<WindowsBackupFacts>,
}

/// A file that was read whole.
struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn size_bytes(&self) -> u64 {
        u64::try_from(self.0.len()).unwrap_or(u64::MAX)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let found = usize::try_from(offset).ok().and_then(|from| {
            let end = from.checked_add(buffer.len())?;
            self.0.get(from..end)
        });
        let Some(found) = found else {
            let what = format!("{} bytes at {offset} of {}", buffer.len(), self.0.len());
            return Err(block::Error::new(block::ErrorKind::OutOfRange, what));
        };
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let left = self.size_bytes().saturating_sub(offset).min(limit_bytes);
        if left == 0 {
            let what = format!("extent at {offset} of {}", self.0.len());
            return Err(block::Error::new(block::ErrorKind::OutOfRange, what));
        }
        Ok(Extent {
            offset,
            length_bytes: left,
            kind: ExtentKind::Data,
        })
    }
}

/// A file by its path, read whole; `None` when it is not there.
fn whole(root: &Place, path: &[&str], limit_bytes: u64) -> Result<Option<Vec<u8>>> {
    let names = path.iter().map(|name| FileName::from(*name)).collect();
    let place = match walk(root, names, LastLink::Follow) {
        Ok(place) => place,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let fs = &place.file_system;
    let metadata = fs.metadata(place.file)?;
    if metadata.kind != FileKind::Regular {
        return Ok(None);
    }
    let length = usize::try_from(metadata.size_bytes)
        .ok()
        .filter(|_| metadata.size_bytes <= limit_bytes)
        .ok_or_else(|| {
            let what = format!("{}: {} bytes", place.display_path(), metadata.size_bytes);
            Error::new(ErrorKind::Unsupported, what)
        })?;
    let mut bytes = vec![0; length];
    fs.open(place.file, None)?.read_at(0, &mut bytes)?;
    Ok(Some(bytes))
}

impl InsideDisks {
    /// The operating system on a volume, if there is one; what stands in the way is told in it.
    ///
    /// # Errors
    /// What opening the file system answered.
    pub fn system(&self, volume: VolumeNumber) -> Result<Option<SystemReport>> {
        let root = self.root_of(volume)?;
        Ok(if is_of_windows(root.file_system.facts().kind) {
            let Some((facts, damage)) = windows_facts(&root) else {
                return Ok(None);
            };
            Some(self.windows_report(volume, &facts, damage))
        } else {
            system_roots(root)?.iter().find_map(linux)
        })
    }

    fn root_of(&self, volume: VolumeNumber) -> Result<Place> {
        let file_system: Arc<dyn FileSystem> = self.file_system(volume)?;
        Ok(Place {
            volume,
            file: file_system.root(),
            file_system,
            path: Vec::new(),
        })
    }

    fn windows_report(
        &self,
        volume: VolumeNumber,
        facts: &WindowsFacts,
        damage: Vec<String>,
    ) -> SystemReport {
        let mut report = SystemReport {
            volume: volume.0,
            family: "windows",
            name: facts.product_name.clone(),
            version: windows_version(facts),
            host_name: facts.computer_name.clone().or(facts.host_name.clone()),
            domain: facts.domain.clone(),
            time_zone: facts.time_zone.clone(),
            shadow_copy_service: facts.shadow_copies.service_start.map(start_word),
            page_files: facts.page_files.clone(),
            is_hibernation_enabled: facts.is_hibernation_enabled,
            backup_facts: Some(backup_facts(facts, &damage)),
            damage,
            ..SystemReport::default()
        };
        for service in &facts.integration_services {
            let start = start_word(service.start);
            let line = format!("{} ({}): {start}", service.name, service.purpose);
            report.integration_services.push(line);
        }
        for device in &facts.mounted_devices {
            if let Some(letter) = device.name.strip_prefix("\\DosDevices\\") {
                let number = self.volume_of_target(&device.target);
                report
                    .drive_letters
                    .push((letter.to_owned(), number.map(|number| number.0)));
            }
        }
        report.damage.extend(facts.damage.iter().cloned());
        report
    }

    fn volume_of_target(&self, target: &MountTarget) -> Option<VolumeNumber> {
        let is_it = |volume: &guestfs::disk::Volume| match target {
            MountTarget::Partition(id) => {
                let id = id.to_string();
                volume
                    .id
                    .as_deref()
                    .is_some_and(|own| own.eq_ignore_ascii_case(&id))
            }
            MountTarget::Mbr {
                disk_signature,
                offset_bytes,
            } => match &volume.place {
                VolumePlace::Partition { disk, offset, .. } if offset == offset_bytes => {
                    let own = self
                        .layout
                        .disks
                        .get(*disk)
                        .and_then(|disk| disk.table.id.as_deref());
                    own.is_some_and(|own| {
                        own.eq_ignore_ascii_case(&format!("{disk_signature:08x}"))
                    })
                }
                _ => false,
            },
            MountTarget::Path(_) | MountTarget::Other(_) => false,
        };
        self.volumes()
            .find(|(_, volume)| is_it(volume))
            .map(|(number, _)| number)
    }

    /// The volume of a drive letter, as a Windows on one of the volumes remembers it.
    pub(super) fn volume_of_letter(&self, letter: &str) -> Result<Option<VolumeNumber>> {
        if letter.len() != 1 || !letter.chars().all(|c| c.is_ascii_alphabetic()) {
            return Ok(None);
        }
        for (number, _) in self.readable() {
            let Ok(root) = self.root_of(number) else {
                continue;
            };
            if !is_of_windows(root.file_system.facts().kind) {
                continue;
            }
            let Some((facts, _)) = windows_facts(&root) else {
                continue;
            };
            for device in &facts.mounted_devices {
                let own = device.name.strip_prefix("\\DosDevices\\");
                let own = own.and_then(|own| own.strip_suffix(':'));
                if own.is_some_and(|own| own.eq_ignore_ascii_case(letter))
                    && let Some(found) = self.volume_of_target(&device.target)
                {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }
}

/// Where a Linux may have its root: that of the file system, and on Btrfs the subvolumes that Ubuntu, Debian and Fedora
/// name in their boot loaders.
fn system_roots(root: Place) -> Result<Vec<Place>> {
    let mut roots = vec![root];
    let [root] = roots.as_slice() else {
        return Ok(roots);
    };
    if root.file_system.facts().kind != FileSystemKind::Btrfs {
        return Ok(roots);
    }
    let mut below = Vec::new();
    for name in ["@", "@rootfs", "root"] {
        let name = FileName::from(name);
        if let Some(file) = root.file_system.find(root.file, &name)?
            && file.tree != root.file.tree
        {
            below.push(Place {
                file,
                path: vec![name],
                ..root.clone()
            });
        }
    }
    roots.extend(below);
    Ok(roots)
}

/// What the hives of a Windows tell, and what stood in the way; `None` when no hive is there.
fn windows_facts(root: &Place) -> Option<(WindowsFacts, Vec<String>)> {
    let mut damage = Vec::new();
    let mut open = |name: &str| -> Option<Hive> {
        hive(root, name).unwrap_or_else(|error| {
            damage.push(format!("hive {name}: {}", explained(&error)));
            None
        })
    };
    let (software, system) = (open("SOFTWARE"), open("SYSTEM"));
    if software.is_none() && system.is_none() && damage.is_empty() {
        return None;
    }
    Some((
        WindowsFacts::read(software.as_ref(), system.as_ref()),
        damage,
    ))
}

fn hive(root: &Place, name: &str) -> Result<Option<Hive>> {
    for folder in ["Windows", "WINNT"] {
        let path = |file: &str| whole(root, &[folder, "System32", "config", file], HIVE_BYTES_MAX);
        let Some(primary) = path(name)? else {
            continue;
        };
        let mut logs: Vec<Arc<dyn ReadAt>> = Vec::new();
        for ending in ["LOG1", "LOG2", "LOG"] {
            let file = format!("{name}.{ending}");
            let path = [folder, "System32", "config", &file];
            let log = whole(root, &path, LOG_BYTES_MAX)?.filter(|log| !log.is_empty());
            if let Some(log) = log {
                logs.push(Arc::new(Bytes(log)));
            }
        }
        return Ok(Some(Hive::open(Arc::new(Bytes(primary)), &logs)?));
    }
    Ok(None)
}

fn windows_version(facts: &WindowsFacts) -> Option<String> {
    let mut version = facts.kernel_version.clone()?;
    for number in [facts.build, facts.update_revision].into_iter().flatten() {
        version.push_str(&format!(".{number}"));
    }
    if let Some(display) = &facts.display_version {
        version.push_str(&format!(" ({display})"));
    }
    Some(version)
}

fn backup_facts(facts: &WindowsFacts, damage: &[String]) -> WindowsBackupFacts {
    let version = facts.kernel_version.as_deref().and_then(|text| {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    WindowsBackupFacts {
        version,
        services: facts.integration_services.clone(),
        integration_version: facts.integration_version.clone(),
        shadow_copy_service: facts.shadow_copies.service_start,
        // Without drivers to boot from, these are not the services of a Windows.
        is_complete: damage.is_empty() && facts.damage.is_empty() && !facts.boot_drivers.is_empty(),
    }
}

pub(super) fn start_word(start: ServiceStart) -> String {
    match start {
        ServiceStart::Boot => "boot".to_owned(),
        ServiceStart::System => "system".to_owned(),
        ServiceStart::Automatic => "automatic".to_owned(),
        ServiceStart::Manual => "manual".to_owned(),
        ServiceStart::Disabled => "disabled".to_owned(),
        ServiceStart::Other(number) => format!("start {number}"),
    }
}

fn linux(root: &Place) -> Option<SystemReport> {
    let mut report = SystemReport {
        volume: root.volume.0,
        family: "linux",
        ..SystemReport::default()
    };
    let mut text = |path: &[&str]| -> Option<String> {
        match whole(root, path, TEXT_BYTES_MAX) {
            Ok(bytes) => bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => {
                let what = format!("/{}: {}", path.join("/"), explained(&error));
                report.damage.push(what);
                None
            }
        }
    };
    let release = text(&["etc", "os-release"]).or_else(|| text(&["usr", "lib", "os-release"]));
    let host_name = text(&["etc", "hostname"]);
    let time_zone = text(&["etc", "timezone"]);
    if release.is_none() && report.damage.is_empty() {
        return None;
    }
    let release = release.unwrap_or_default();
    report.name =
        release_value(&release, "PRETTY_NAME").or_else(|| release_value(&release, "NAME"));
    report.version = release_value(&release, "VERSION_ID");
    let line = |text: String| {
        let line = text.lines().map(str::trim).find(|line| !line.is_empty());
        line.map(str::to_owned)
    };
    report.host_name = host_name.and_then(line);
    report.time_zone = time_zone.and_then(line);
    Some(report)
}

/// A value of `os-release`: `KEY=value`, `KEY="value"`; as in a shell, the last one counts.
fn release_value(text: &str, key: &str) -> Option<String> {
    let line = text
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    let value = line.trim();
    let quoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    let value = quoted.map_or(value.to_owned(), |inner| inner.replace('\\', ""));
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_is_read_as_a_shell_reads_it() {
        let text = "NAME=\"Debian \\\"x\\\"\"\nID=debian\nVERSION_ID='13'\nID=late\nEMPTY=\n";
        assert_eq!(release_value(text, "NAME").as_deref(), Some("Debian \"x\""));
        assert_eq!(release_value(text, "VERSION_ID").as_deref(), Some("13"));
        assert_eq!(release_value(text, "ID").as_deref(), Some("late"));
        assert_eq!(release_value(text, "EMPTY"), None);
        assert_eq!(release_value(text, "VERSION"), None);
    }
}
