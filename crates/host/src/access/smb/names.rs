//! Where a path of a host is reached over SMB, and what a server's refusals mean.

use super::{SMB_PORT, SmbOptions};
use crate::error::HostCode;
use crate::ids::NodeName;
use crate::path::{HostPath, PathPlace};
use crate::{Error, ErrorKind, Result};

/// Server, share, and the path below it; empty for the share's own folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub server: String,
    pub port: u16,
    pub share: String,
    pub path: String,
}

impl Place {
    /// The same, when it names something below the share.
    pub(super) fn of_file(self, path: &HostPath) -> Result<Self> {
        if self.path.is_empty() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{path} names no file on a share"),
            ));
        }
        Ok(self)
    }
}

/// Where a path of a node is reached.
pub(super) fn place_of(node: &NodeName, options: &SmbOptions, path: &HostPath) -> Result<Place> {
    let own = || {
        let server = options.server.as_deref().unwrap_or(node.as_str());
        (server.to_owned(), options.port)
    };
    let text = path.as_str().replace('/', "\\");
    let text = text.strip_prefix("\\\\?\\").unwrap_or(&text);
    let below = |skip: usize| {
        let parts: Vec<&str> = text
            .split('\\')
            .filter(|part| !part.is_empty())
            .skip(skip)
            .collect();
        if parts.contains(&"..") {
            return Err(Error::new(ErrorKind::Invalid, format!("{path} climbs")));
        }
        Ok(parts.join("\\"))
    };
    match path.place() {
        PathPlace::Drive(letter) => {
            let (server, port) = own();
            Ok(Place {
                server,
                port,
                share: format!("{letter}$"),
                path: below(1)?,
            })
        }
        PathPlace::Share {
            server: named,
            share,
        } => {
            let skip = if text.starts_with("UNC\\") { 3 } else { 2 };
            let is_node = NodeName::new(&named).is_ok_and(|named| named == *node);
            let (server, port) = match options.share_servers.get(&named.to_lowercase()) {
                Some(known) => (known.address.clone(), known.port),
                None if is_node => own(),
                None => (named, SMB_PORT),
            };
            Ok(Place {
                server,
                port,
                share,
                path: below(skip)?,
            })
        }
        PathPlace::Volume | PathPlace::Posix | PathPlace::Other => Err(Error::new(
            ErrorKind::Unsupported,
            format!("no share leads to {path}"),
        )),
    }
}

/// What a status of a server means here ([MS-ERREF] 2.3).
fn kind_of(status: u32) -> ErrorKind {
    match status {
        // No such file, path, or name.
        0xC000_0034 | 0xC000_003A | 0xC000_000F => ErrorKind::NotFound,
        0xC000_0035 => ErrorKind::AlreadyExists,
        // Access, logon, account disabled, privilege, locked out, expired, must change.
        0xC000_0022 | 0xC000_006D | 0xC000_0072 | 0xC000_0061 | 0xC000_0234 | 0xC000_0071
        | 0xC000_0193 | 0xC000_0224 | 0xC000_015B | 0xC000_00CA | 0xC000_006E => ErrorKind::Denied,
        // Shared with somebody who does not share, about to be deleted.
        0xC000_0043 | 0xC000_0056 => ErrorKind::Busy,
        // A name that cannot be.
        0xC000_0033 | 0xC000_003B | 0xC000_0106 => ErrorKind::Invalid,
        // A folder that is not empty.
        0xC000_0101 => ErrorKind::State,
        // No such share; a link, which would have to be followed here.
        0xC000_00CC | 0x8000_002D => ErrorKind::Unsupported,
        // The disk is full, or a quota.
        0xC000_007F | 0xC000_0044 => ErrorKind::Io,
        _ => ErrorKind::Failed,
    }
}

/// What an error of the crate means here, told of a path.
pub(super) fn told(error: smb::Error, context: String) -> Error {
    let status = match &error {
        smb::Error::UnexpectedMessageStatus(status) => Some(*status),
        smb::Error::ReceivedErrorMessage(status, _) => Some(*status),
        _ => None,
    };
    if let Some(status) = status {
        return Error::with_source(kind_of(status), context, error).coded(HostCode(status));
    }
    let kind = match &error {
        smb::Error::NegotiationError(_)
        | smb::Error::SspiError(_)
        | smb::Error::MissingPermissions(_) => ErrorKind::Denied,
        smb::Error::OperationTimeout(..) => ErrorKind::TimedOut,
        smb::Error::SignatureVerificationFailed | smb::Error::InvalidMessage(_) => {
            ErrorKind::Protocol
        }
        _ => ErrorKind::Unreachable,
    };
    Error::with_source(kind, context, error)
}

/// The same for reads and writes, whose errors the crate hands out as text: a status stands at the end, `(0xc000007f)`.
pub(super) fn told_of_bytes(error: std::io::Error, context: String) -> Error {
    let text = error.to_string();
    let status = text
        .rsplit_once("0x")
        .and_then(|(_, rest)| rest.get(..8))
        .and_then(|digits| u32::from_str_radix(digits, 16).ok());
    match status {
        Some(status) => Error::with_source(kind_of(status), context, error).coded(HostCode(status)),
        None => Error::with_source(ErrorKind::Unreachable, context, error),
    }
}
