//! A host's files: on each volume where machines have disks, one disk is looked at, and the space that is free.
//!
//! Only the disk's attributes are asked for: the disk of a machine that runs is open to nobody else.

use std::collections::BTreeMap;

use host::access::NodeFiles;
use host::ids::NodeName;
use host::path::{HostPath, PathPlace};
use wsman::cim::Namespace;
use wsman::client::{CimClient, WsmanClient};

use super::super::connect::{Hosts, VIRTUALIZATION, own_name};
use super::super::registry::{FilesEntry, HostEntry};
use super::{Outcome, Step};
use crate::output;
use crate::serving::chain;

/// Volumes that are tried.
const MOST_VOLUMES: usize = 32;
const DISKS: &str = "SELECT HostResource FROM Msvm_StorageAllocationSettingData WHERE ResourceSubType = 'Microsoft:Hyper-V:Virtual Hard Disk'";
const DEFAULTS: &str =
    "SELECT DefaultVirtualHardDiskPath FROM Msvm_VirtualSystemManagementServiceSettingData";

/// What is tried: a disk of a machine, or the folder for new ones.
enum Sample {
    Disk(HostPath),
    Folder(HostPath),
}

/// One step for each volume.
pub fn steps(hosts: &Hosts, entry: &HostEntry, client: &WsmanClient) -> Vec<Step> {
    let files = match hosts.files(entry) {
        Ok(files) => files,
        Err(error) => return vec![failed(format!("{error:#}"), again(entry))],
    };
    let node = match own_name(client) {
        Ok(Some(node)) => node,
        // Told by the step before.
        _ => return Vec::new(),
    };
    let samples = match samples(client) {
        Ok(samples) => samples,
        Err(error) => {
            return vec![Step {
                step: "files",
                outcome: Outcome::Warning,
                found: format!("where its disks lie was not told: {}", chain(&error)),
                next: None,
            }];
        }
    };
    if samples.is_empty() {
        return vec![Step {
            step: "files",
            outcome: Outcome::Warning,
            found: "it has no disks, and no folder for new ones: nothing was tried".to_owned(),
            next: None,
        }];
    }
    let tried = samples.iter().take(MOST_VOLUMES);
    tried
        .map(|(volume, sample)| tried_at(entry, files.as_ref(), &node, volume, sample))
        .collect()
}

/// One path for each volume.
fn samples(client: &WsmanClient) -> wsman::Result<BTreeMap<String, Sample>> {
    let namespace = Namespace::new(VIRTUALIZATION);
    let mut samples = BTreeMap::new();
    for row in client.query(&namespace, DISKS)? {
        for text in row.texts("HostResource").unwrap_or_default() {
            if let Ok(path) = HostPath::new(text)
                && let Some(volume) = volume(&path)
            {
                samples.entry(volume).or_insert(Sample::Disk(path));
            }
        }
    }
    for row in client.query(&namespace, DEFAULTS)? {
        let folder = row.text_ref("DefaultVirtualHardDiskPath");
        if let Some(Ok(path)) = folder.map(HostPath::new)
            && let Some(volume) = volume(&path)
        {
            samples.entry(volume).or_insert(Sample::Folder(path));
        }
    }
    Ok(samples)
}

/// The volume that a path lies on, as people call it.
fn volume(path: &HostPath) -> Option<String> {
    match path.without_mark().place() {
        PathPlace::Drive(letter) => {
            let plain = path.without_mark();
            let text = plain.as_str().replace('/', "\\");
            let mut parts = text.split('\\').skip(1);
            let is_shared = parts
                .next()
                .is_some_and(|part| part.eq_ignore_ascii_case("ClusterStorage"));
            match parts.next() {
                Some(name) if is_shared => Some(format!("{letter}:\\ClusterStorage\\{name}")),
                _ => Some(format!("{letter}:\\")),
            }
        }
        PathPlace::Share { server, share } => Some(format!("\\\\{server}\\{share}")),
        PathPlace::Volume => Some(path.as_str().chars().take(49).collect()),
        PathPlace::Posix | PathPlace::Other => None,
    }
}

fn tried_at(
    entry: &HostEntry,
    files: &dyn NodeFiles,
    node: &NodeName,
    volume: &str,
    sample: &Sample,
) -> Step {
    let (path, looked) = match sample {
        Sample::Disk(path) => (path, files.size_bytes(node, path)),
        Sample::Folder(path) => (path, Ok(None)),
    };
    let free = files.free_bytes(node, path);
    match (sample, looked, free) {
        (_, Err(error), _) | (_, _, Err(error)) => {
            failed(format!("{volume}: {}", chain(&error)), next(entry, &error))
        }
        (Sample::Disk(path), Ok(None), _) => failed(
            format!("{volume}: reached, but {path} is not there"),
            match entry.files {
                FilesEntry::Local { .. } => again(entry),
                FilesEntry::Smb { .. } => format!(
                    "Look whether this is the host's share: `Get-SmbShare` on the host, --files-smb-server of {}",
                    again(entry)
                ),
            },
        ),
        (_, Ok(_), Ok(free)) => Step {
            step: "files",
            outcome: Outcome::Ok,
            found: match free {
                Some(free) => format!("{volume}: reached, {} free", output::bytes(free)),
                None => format!("{volume}: reached"),
            },
            next: None,
        },
    }
}

fn failed(found: String, next: String) -> Step {
    Step {
        step: "files",
        outcome: Outcome::Failed,
        found,
        next: Some(next),
    }
}

fn again(entry: &HostEntry) -> String {
    match entry.files {
        FilesEntry::Local { .. } => format!(
            "Say where the volume lies here: hikae host add {} … --files-at WINDOWS=LOCAL --replace",
            entry.name
        ),
        FilesEntry::Smb { .. } => format!("hikae host add {} … --replace", entry.name),
    }
}

fn next(entry: &HostEntry, error: &host::Error) -> String {
    use host::ErrorKind;

    if matches!(entry.files, FilesEntry::Local { .. }) {
        return again(entry);
    }
    let other = format!(
        "or say where the volume is mounted here: hikae host add {} … --files-at WINDOWS=LOCAL --replace",
        entry.name
    );
    match error.kind() {
        ErrorKind::Unreachable | ErrorKind::TimedOut => format!(
            "Look at name and port (--files-smb-server, --files-smb-port) and the firewall; on the host: \
             Enable-NetFirewallRule -DisplayGroup 'File and Printer Sharing'; {other}"
        ),
        ErrorKind::Denied => format!(
            "Administrative shares are for members of Administrators, and for a local account other than Administrator only with \
             LocalAccountTokenFilterPolicy = 1; SMB 3 with encryption must be possible; {other}"
        ),
        ErrorKind::Unsupported => format!(
            "No share leads there: look at `Get-SmbShare` on the host (volumes without a letter have none); {other}"
        ),
        _ => format!("Look at `Get-SmbShare` on the host; {other}"),
    }
}
