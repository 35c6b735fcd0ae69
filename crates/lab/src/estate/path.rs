//! Windows paths, as the wire carries them.
//!
//! ```text
//!   D:\vm\a.vhdx              a local volume of the host that is asked
//!   C:\ClusterStorage\V1\…    a volume of the host's cluster
//!   \\server\share\…          a share
//! ```
//!
//! **Invariants.** Paths compare without case and without regard for the kind of separator; `.` and empty parts are gone, `..`
//! is refused. Device paths (`\\?\`) other than `\\?\UNC\` and `\\?\C:\` are refused.

use std::fmt;

use super::ids::compare_without_case;
use crate::{Error, Result, ReturnCode};

/// Longest path that is taken.
const MAX_CHARS: usize = 4096;

/// An absolute path of Windows.
#[derive(Debug, Clone)]
pub struct WindowsPath {
    root: PathRoot,
    parts: Vec<String>,
}

/// Where a path begins.
#[derive(Debug, Clone)]
pub enum PathRoot {
    /// A drive letter, upper case.
    Drive(char),
    /// A share of a server.
    Share {
        /// Server.
        server: String,
        /// Share.
        share: String,
    },
}

impl WindowsPath {
    /// Reads a path.
    ///
    /// # Errors
    /// `InvalidParameter` for whatever is no absolute path.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::returned(
                ReturnCode::InvalidParameter,
                format!("{text:?} is {why}"),
            ))
        };
        if text.len() > MAX_CHARS || text.contains('\0') {
            return refuse("too long, or no text");
        }
        let slashed = text.trim().replace('/', "\\");
        let plain = match slashed.strip_prefix("\\\\?\\") {
            Some(rest)
                if rest
                    .get(..4)
                    .is_some_and(|it| it.eq_ignore_ascii_case("UNC\\")) =>
            {
                format!("\\\\{}", rest.get(4..).unwrap_or(""))
            }
            Some(rest) => rest.to_owned(),
            None => slashed,
        };
        let (root, rest) = if let Some(unc) = plain.strip_prefix("\\\\") {
            let mut parts = unc.splitn(3, '\\');
            match (parts.next(), parts.next(), parts.next()) {
                (Some(server), Some(share), rest) if !server.is_empty() && !share.is_empty() => {
                    let root = PathRoot::Share {
                        server: server.to_owned(),
                        share: share.to_owned(),
                    };
                    (root, rest.unwrap_or("").to_owned())
                }
                _ => return refuse("no path of a share"),
            }
        } else {
            let mut chars = plain.chars();
            match (chars.next(), chars.next(), chars.next()) {
                (Some(letter), Some(':'), None | Some('\\')) if letter.is_ascii_alphabetic() => (
                    PathRoot::Drive(letter.to_ascii_uppercase()),
                    plain.get(2..).unwrap_or("").to_owned(),
                ),
                _ => return refuse("no absolute path"),
            }
        };
        let mut parts = Vec::new();
        for part in rest.split('\\') {
            match part {
                "" | "." => {}
                ".." => return refuse("a path that goes up"),
                part if part.contains([':', '*', '?', '"', '<', '>', '|']) => {
                    return refuse("no path of a file");
                }
                part => parts.push(part.to_owned()),
            }
        }
        Ok(Self { root, parts })
    }

    /// Where it begins.
    pub fn root(&self) -> &PathRoot {
        &self.root
    }

    /// Its parts behind the root.
    pub fn parts(&self) -> &[String] {
        &self.parts
    }

    /// The last part; empty for a root.
    pub fn file_name(&self) -> &str {
        self.parts.last().map_or("", String::as_str)
    }

    /// The last part without its extension.
    pub fn stem(&self) -> &str {
        let name = self.file_name();
        name.rsplit_once('.').map_or(name, |(stem, _)| stem)
    }

    /// The extension in lower case; empty when there is none.
    pub fn extension(&self) -> String {
        self.file_name()
            .rsplit_once('.')
            .map_or(String::new(), |(_, extension)| extension.to_lowercase())
    }

    /// The folder it lies in; itself for a root.
    #[must_use]
    pub fn parent(&self) -> Self {
        let mut parts = self.parts.clone();
        parts.pop();
        Self {
            root: self.root.clone(),
            parts,
        }
    }

    /// A path below. `relative` may have several parts; parts that go up are left out.
    #[must_use]
    pub fn join(&self, relative: &str) -> Self {
        let mut parts = self.parts.clone();
        let more = relative.split(['\\', '/']);
        parts.extend(
            more.filter(|part| !matches!(*part, "" | "." | ".."))
                .map(str::to_owned),
        );
        Self {
            root: self.root.clone(),
            parts,
        }
    }

    /// A file beside this one.
    #[must_use]
    pub fn with_file_name(&self, name: &str) -> Self {
        self.parent().join(name)
    }

    /// Whether it names a share.
    pub fn is_share(&self) -> bool {
        matches!(self.root, PathRoot::Share { .. })
    }

    /// What of `self` lies behind `base`, if it lies below it.
    pub fn below(&self, base: &Self) -> Option<&[String]> {
        let same_root =
            compare_without_case(&base.root.to_string(), &self.root.to_string()).is_eq();
        let head = self.parts.get(..base.parts.len())?;
        let same = head
            .iter()
            .zip(&base.parts)
            .all(|(own, other)| compare_without_case(own, other).is_eq());
        (same_root && same).then(|| self.parts.get(base.parts.len()..))?
    }
}

impl fmt::Display for PathRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drive(letter) => write!(f, "{letter}:"),
            Self::Share { server, share } => write!(f, "\\\\{server}\\{share}"),
        }
    }
}

impl fmt::Display for WindowsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.fmt(f)?;
        if self.parts.is_empty() {
            return f.write_str("\\");
        }
        for part in &self.parts {
            write!(f, "\\{part}")?;
        }
        Ok(())
    }
}

impl PartialEq for WindowsPath {
    fn eq(&self, other: &Self) -> bool {
        self.parts.len() == other.parts.len() && self.below(other).is_some()
    }
}

impl Eq for WindowsPath {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_in_every_spelling() {
        for (text, shown) in [
            (r"D:\vm\a.vhdx", r"D:\vm\a.vhdx"),
            (r"d:/vm//./a.vhdx", r"D:\vm\a.vhdx"),
            (r"\\?\D:\vm\a.vhdx", r"D:\vm\a.vhdx"),
            (r"\\srv\share\x\y.vhd", r"\\srv\share\x\y.vhd"),
            (r"\\?\UNC\srv\share\y.vhd", r"\\srv\share\y.vhd"),
            (r"C:\", r"C:\"),
            (r"C:", r"C:\"),
        ] {
            assert_eq!(WindowsPath::parse(text).unwrap().to_string(), shown);
        }
        assert_eq!(
            WindowsPath::parse(r"D:\VM\A.vhdx").unwrap(),
            WindowsPath::parse(r"d:\vm\a.VHDX").unwrap()
        );
    }

    #[test]
    fn what_is_no_absolute_path_is_refused() {
        for text in [
            "",
            "a.vhdx",
            r"D:a",
            r"\vm",
            r"\\srv",
            r"D:\..\x",
            "D:\\a\0b",
            r"\\?\Volume{1}\x",
        ] {
            let error = WindowsPath::parse(text).unwrap_err();
            assert_eq!(
                error.return_code(),
                Some(ReturnCode::InvalidParameter),
                "{text}"
            );
        }
    }
}
