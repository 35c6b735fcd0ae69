//! Paths on a host: text of the host's own world (Windows or POSIX), which only [`crate::access`] turns into bytes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

const MAX_PATH_BYTES: usize = 32 * 1024;
/// Longest path that every program on Windows takes, its end mark not counted.
const MAX_WINDOWS_UNITS: usize = 259;
/// Longest name of one file: NTFS, ReFS and the usual file systems of Linux.
const MAX_NAME_UNITS: usize = 255;
/// Names that Windows takes for devices, with any extension.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];

/// A path as the host writes it: `D:\vm\a.vhdx`, `\\server\share\a.vhdx`, `/var/lib/vm/a.qcow2`.
///
/// Windows paths compare without case, as their file systems do.
#[derive(Clone, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct HostPath(Box<str>);

/// Where a path points to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathPlace {
    /// A drive of the node, by its letter in upper case.
    Drive(char),
    /// A share: server and share.
    Share {
        /// The server.
        server: String,
        /// The share.
        share: String,
    },
    /// A volume by its GUID, without a letter: no administrative share leads there.
    Volume,
    /// A path of a POSIX system.
    Posix,
    /// None of these: relative, or a device.
    Other,
}

impl HostPath {
    /// Takes a path as it came. Empty and overlong paths and such with control characters are refused.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text: String = text.into();
        if text.is_empty() || text.len() > MAX_PATH_BYTES || text.contains(char::is_control) {
            let shown: String = text.chars().take(80).collect();
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{shown:?} is no path on a host"),
            ));
        }
        Ok(Self(text.into_boxed_str()))
    }

    /// The path, as it came.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a path of a POSIX system.
    pub fn is_posix(&self) -> bool {
        self.0.starts_with('/') && !self.0.starts_with("//")
    }

    fn separators(&self) -> &'static [char] {
        if self.is_posix() {
            &['/']
        } else {
            &['\\', '/']
        }
    }

    /// The last part.
    pub fn file_name(&self) -> &str {
        self.0.rsplit(self.separators()).next().unwrap_or(&self.0)
    }

    /// What stands behind the last dot of the last part, in lower case.
    pub fn extension(&self) -> Option<String> {
        let (stem, extension) = self.file_name().rsplit_once('.')?;
        (!stem.is_empty() && !extension.is_empty()).then(|| extension.to_lowercase())
    }

    /// The folder that it lies in, where the path names one.
    pub fn folder(&self) -> Option<Self> {
        let cut = self.0.rfind(self.separators())?;
        let head = self.0.get(..cut)?;
        (!head.is_empty()).then(|| Self(head.into()))
    }

    /// A path below this folder. `relative` is of the same world, and must not climb.
    pub fn join(&self, relative: &str) -> Result<Self> {
        let climbs = relative.split(['\\', '/']).any(|part| part == "..");
        let is_absolute = relative.starts_with(['\\', '/']) || relative.contains(':');
        if climbs || is_absolute {
            let shown: String = relative.chars().take(80).collect();
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{shown:?} does not stay below {self}"),
            ));
        }
        let separator = if self.is_posix() { '/' } else { '\\' };
        let base = self.0.trim_end_matches(self.separators());
        Self::new(format!("{base}{separator}{relative}"))
    }

    /// Whether the host's file system would take it as the name of something new: on Windows no reserved letters and
    /// names, no dot or space at the end of a part, and less than 260 letters unless it begins with `\\\\?\\`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], which says what is wrong.
    pub fn check_new(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::new(ErrorKind::Invalid, format!("{self}: {why}")));
        if self.is_posix() {
            return match self.0.split('/').find(|part| part.len() > MAX_NAME_UNITS) {
                Some(_) => wrong(format!("a name of more than {MAX_NAME_UNITS} bytes")),
                None if self.0.split('/').any(|part| part == "..") => wrong("it climbs".to_owned()),
                None => Ok(()),
            };
        }
        let text = self.0.replace('/', "\\");
        let verbatim = text.strip_prefix("\\\\?\\");
        if verbatim.is_none() && text.encode_utf16().count() > MAX_WINDOWS_UNITS {
            return wrong(format!(
                "more than {MAX_WINDOWS_UNITS} letters, which many programs on Windows do not take"
            ));
        }
        let skipped = match self.place() {
            PathPlace::Drive(_) => 1,
            PathPlace::Share { .. } if verbatim.is_some() => 3,
            PathPlace::Share { .. } => 2,
            PathPlace::Volume => 1,
            PathPlace::Posix | PathPlace::Other => {
                return wrong("neither on a drive nor on a share".to_owned());
            }
        };
        let parts = verbatim.unwrap_or(&text).split('\\');
        for part in parts.filter(|part| !part.is_empty()).skip(skipped) {
            if let Some(why) = wrong_in_name(part) {
                return wrong(format!("the part `{part}` {why}"));
            }
        }
        Ok(())
    }

    /// The same path without the mark `\\\\?\\` of long paths, where what is left is a drive's or a share's.
    pub fn without_mark(&self) -> Self {
        let text = self.0.replace('/', "\\");
        let Some(rest) = text.strip_prefix("\\\\?\\") else {
            return self.clone();
        };
        match (place_of_verbatim(rest), rest.strip_prefix("UNC\\")) {
            (PathPlace::Share { .. }, Some(share)) => Self(format!("\\\\{share}").into()),
            (PathPlace::Drive(_), _) => Self(rest.into()),
            _ => self.clone(),
        }
    }

    /// Where it points to.
    pub fn place(&self) -> PathPlace {
        if self.is_posix() {
            return PathPlace::Posix;
        }
        let text = self.0.replace('/', "\\");
        if let Some(rest) = text.strip_prefix("\\\\?\\") {
            return place_of_verbatim(rest);
        }
        if let Some(rest) = text.strip_prefix("\\\\") {
            return place_of_share(rest);
        }
        place_of_drive(&text)
    }

    /// Whether it lies in `folder` or below it, compared as its world compares names.
    pub fn is_below(&self, folder: &Self) -> bool {
        let (path, folder) = (self.key(), folder.key());
        path.strip_prefix(folder.trim_end_matches(['\\', '/']))
            .is_some_and(|rest| rest.starts_with(['\\', '/']))
    }

    /// By what two spellings of one path are the same.
    pub fn key(&self) -> String {
        if self.is_posix() {
            self.0.to_string()
        } else {
            self.0.replace('/', "\\").to_lowercase()
        }
    }
}

/// Why Windows does not take a name, if it does not.
fn wrong_in_name(name: &str) -> Option<&'static str> {
    let letters = |c: char| "<>:\"|?*".contains(c) || c.is_control();
    if name.chars().any(letters) {
        return Some("has letters that are reserved");
    }
    if name.ends_with(['.', ' ']) {
        return Some("ends in a dot or a space, or climbs");
    }
    if name.encode_utf16().count() > MAX_NAME_UNITS {
        return Some("is too long");
    }
    let stem = name.split('.').next().unwrap_or(name);
    let stem = stem.trim_end_matches(' ').to_lowercase();
    let numbered = stem
        .strip_prefix("com")
        .or_else(|| stem.strip_prefix("lpt"))
        .is_some_and(|rest| {
            let mut rest = rest.chars();
            let digit = rest.next();
            rest.next().is_none() && digit.is_some_and(|c| "0123456789¹²³".contains(c))
        });
    (numbered || DEVICES.contains(&stem.as_str())).then_some("is the name of a device")
}

fn place_of_verbatim(rest: &str) -> PathPlace {
    if let Some(share) = rest.strip_prefix("UNC\\") {
        return place_of_share(share);
    }
    let is_volume = rest
        .get(..7)
        .is_some_and(|head| head.eq_ignore_ascii_case("Volume{"));
    if is_volume {
        PathPlace::Volume
    } else {
        place_of_drive(rest)
    }
}

fn place_of_share(rest: &str) -> PathPlace {
    let mut parts = rest.split('\\');
    match (parts.next(), parts.next()) {
        (Some(server), Some(share)) if !server.is_empty() && !share.is_empty() => {
            PathPlace::Share {
                server: server.to_owned(),
                share: share.to_owned(),
            }
        }
        _ => PathPlace::Other,
    }
}

fn place_of_drive(text: &str) -> PathPlace {
    let mut letters = text.chars();
    match (letters.next(), letters.next(), letters.next()) {
        (Some(letter), Some(':'), Some('\\')) if letter.is_ascii_alphabetic() => {
            PathPlace::Drive(letter.to_ascii_uppercase())
        }
        _ => PathPlace::Other,
    }
}

impl PartialEq for HostPath {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for HostPath {}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl From<HostPath> for String {
    fn from(path: HostPath) -> Self {
        path.0.into()
    }
}

impl TryFrom<String> for HostPath {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::new(text)
    }
}
