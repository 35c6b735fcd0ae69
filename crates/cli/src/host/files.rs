//! The ways to a host's files: read from the command line, kept in the registry, made for the driver.
//!
//! ```text
//!   --files-at D:\\=/srv/d ──► FilesEntry::Local ──► LocalPaths
//!   (nothing), --files-smb…──► FilesEntry::Smb ────► SmbAccess: \\\\HOST\\D$ as the host's account
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use host::access::smb::{SMB_PORT, SmbAccess, SmbAccount, SmbOptions, SmbRuntime, SmbServer};
use host::access::{LocalPaths, NodeFiles};
use host::path::{HostPath, PathPlace};

use super::absolute;
use super::connect::{self, Address};
use super::registry::{FilesEntry, HostEntry, ServerEntry};
use crate::args::HostFilesArgs;
use crate::exit::misused_flag;

/// What the flags say.
pub fn entry(arguments: &HostFilesArgs) -> anyhow::Result<FilesEntry> {
    if !arguments.files_at.is_empty() {
        let roots = arguments.files_at.iter().map(|text| root(text));
        return Ok(FilesEntry::Local {
            roots: roots.collect::<anyhow::Result<_>>()?,
        });
    }
    let mut server = None;
    let mut share_servers = BTreeMap::new();
    for text in &arguments.files_smb_server {
        match text.split_once('=') {
            Some((name, at)) => {
                let known = other_server(text, at)?;
                let is_new = share_servers.insert(name.to_lowercase(), known).is_none();
                if name.is_empty() || !is_new {
                    return Err(wrong_server(text));
                }
            }
            None if server.is_none() && is_name(text) => server = Some(text.clone()),
            None => return Err(wrong_server(text)),
        }
    }
    Ok(FilesEntry::Smb {
        server,
        port: arguments.files_smb_port,
        share_servers,
    })
}

fn is_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    !text.is_empty() && text.len() <= 255 && text.chars().all(is_plain)
}

fn wrong_server(text: &str) -> anyhow::Error {
    misused_flag(format!(
        "--files-smb-server {text}: write NAME once for the host itself, SERVER=ADDRESS or SERVER=ADDRESS:PORT once for each other"
    ))
}

fn other_server(text: &str, at: &str) -> anyhow::Result<ServerEntry> {
    // Read as the address of a host is, which knows brackets and ports.
    let address: Address = format!("http://{at}")
        .parse()
        .map_err(|_| wrong_server(text))?;
    let has_port = at.ends_with(&format!(":{}", address.port));
    Ok(ServerEntry {
        address: address.host,
        port: if has_port { address.port } else { SMB_PORT },
    })
}

fn root(text: &str) -> anyhow::Result<(HostPath, std::path::PathBuf)> {
    let wrong = || {
        misused_flag(format!(
            "--files-at {text}: write a folder of the host and a folder here, such as D:\\=/srv/d or \\\\server\\share=/mnt/share"
        ))
    };
    let (windows, here) = text.split_once('=').ok_or_else(wrong)?;
    // `D:` is said for the whole drive.
    let windows = if windows.len() == 2 && windows.ends_with(':') {
        format!("{windows}\\")
    } else {
        windows.to_owned()
    };
    let folder = HostPath::new(windows).map_err(|_| wrong())?;
    if matches!(folder.place(), PathPlace::Other | PathPlace::Posix) || here.is_empty() {
        return Err(wrong());
    }
    let here = absolute(std::path::Path::new(here))?;
    if !here.is_dir() {
        return Err(misused_flag(format!(
            "--files-at {text}: {} is no folder",
            here.display()
        )));
    }
    Ok((folder, here))
}

/// Refuses what cannot work.
pub fn refuse(entry: &HostEntry) -> anyhow::Result<()> {
    let is_smb = matches!(entry.files, FilesEntry::Smb { .. });
    if is_smb && (entry.user.is_none() || entry.password_file.is_none()) {
        return Err(misused_flag(
            "the host's files are reached over SMB, which needs --user USER and --password-file FILE; or say where they lie here: --files-at WINDOWS=LOCAL",
        ));
    }
    Ok(())
}

/// The way to the files of a host that listens at an address.
pub fn open(
    entry: &HostEntry,
    address: &Address,
    runtime: &SmbRuntime,
) -> anyhow::Result<Arc<dyn NodeFiles>> {
    match &entry.files {
        FilesEntry::Local { roots } => {
            let mut paths = LocalPaths::new();
            for (folder, here) in roots {
                paths = paths.with_root(folder.clone(), here);
            }
            Ok(Arc::new(paths))
        }
        FilesEntry::Smb { .. } => {
            let options = smb_options(entry, address)?;
            Ok(Arc::new(SmbAccess::on(options, runtime.clone())))
        }
    }
}

fn smb_options(entry: &HostEntry, address: &Address) -> anyhow::Result<SmbOptions> {
    refuse(entry)?;
    let mut options = SmbOptions::new(SmbAccount {
        user: entry.user.clone().unwrap_or_default(),
        password: connect::password_text(entry)?.to_string(),
    });
    options.server = Some(address.host.clone());
    if let FilesEntry::Smb {
        server,
        port,
        share_servers,
    } = &entry.files
    {
        if server.is_some() {
            options.server.clone_from(server);
        }
        options.port = port.unwrap_or(SMB_PORT);
        options.share_servers = share_servers
            .iter()
            .map(|(name, at)| {
                let server = SmbServer {
                    address: at.address.clone(),
                    port: at.port,
                };
                (name.clone(), server)
            })
            .collect();
    }
    Ok(options)
}

/// The same way for another node of the cluster: its own name, the same shares.
pub fn for_peer(entry: &HostEntry) -> HostEntry {
    let mut entry = entry.clone();
    if let FilesEntry::Smb { server, .. } = &mut entry.files {
        *server = None;
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_files_are_read_and_kept() {
        let here = std::env::temp_dir().canonicalize().unwrap();
        let given = here.display().to_string();
        let arguments = HostFilesArgs {
            files_at: vec![format!("D:={given}"), format!("\\\\sofs\\vms={given}")],
            ..HostFilesArgs::default()
        };
        let kept = serde_json::to_value(entry(&arguments).unwrap()).unwrap();
        let roots = serde_json::json!([["D:\\", given], ["\\\\sofs\\vms", given]]);
        assert_eq!(kept, serde_json::json!({"kind": "local", "roots": roots}));

        let kept = serde_json::to_value(entry(&HostFilesArgs::default()).unwrap()).unwrap();
        assert_eq!(kept, serde_json::json!({"kind": "smb"}));
        let arguments = HostFilesArgs {
            files_smb_port: Some(4450),
            files_smb_server: ["hv01.example.net", "SOFS=10.0.0.9:4451", "other=nas"]
                .map(str::to_owned)
                .to_vec(),
            ..HostFilesArgs::default()
        };
        let kept = serde_json::to_value(entry(&arguments).unwrap()).unwrap();
        let expected = serde_json::json!({
            "kind": "smb", "server": "hv01.example.net", "port": 4450,
            "share_servers": {
                "sofs": {"address": "10.0.0.9", "port": 4451},
                "other": {"address": "nas", "port": 445},
            }
        });
        assert_eq!(kept, expected);
        assert_eq!(
            serde_json::from_value::<FilesEntry>(kept).unwrap(),
            entry(&arguments).unwrap()
        );
        for wrong in [
            "D:\\",
            "=/tmp",
            "vm=/tmp",
            "/var=/tmp",
            "D:\\=",
            "D:\\=/nowhere/at/all",
        ] {
            let arguments = HostFilesArgs {
                files_at: vec![wrong.to_owned()],
                ..HostFilesArgs::default()
            };
            assert!(entry(&arguments).is_err(), "{wrong}");
        }
        for wrong in ["a b", "=x", "a=", "a=b:c", ""] {
            let arguments = HostFilesArgs {
                files_smb_server: vec![wrong.to_owned()],
                ..HostFilesArgs::default()
            };
            assert!(entry(&arguments).is_err(), "{wrong}");
        }
    }
}
