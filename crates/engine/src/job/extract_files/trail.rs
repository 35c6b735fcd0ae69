//! Where the walk is: the path on the volume, and the path on the other side, which differs where a name must be changed.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use guestfs::FileName;

use super::{PARTIAL_FOLDER, SIDE_FILE, STREAMS_FOLDER};
use crate::{Error, ErrorKind, Result};

/// Longest name that Linux file systems hold.
const NAME_BYTES_MAX: usize = 255;
/// What is kept of a name that is changed.
const KEPT_BYTES: usize = 200;
/// Longest path; Windows knows none longer, and an archive holds none.
const PATH_BYTES_MAX: usize = 60 << 10;

/// Which names the other side can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameRule {
    /// Any bytes without `/` and NUL.
    Bytes,
    /// Text.
    Text,
}

/// A path in both worlds.
#[derive(Debug)]
pub(super) struct Trail {
    rule: NameRule,
    source: Vec<u8>,
    written: Vec<u8>,
    lengths: Vec<(usize, usize)>,
}

impl Trail {
    pub(super) fn new(rule: NameRule) -> Self {
        Self {
            rule,
            source: Vec::new(),
            written: Vec::new(),
            lengths: Vec::new(),
        }
    }

    /// Path on the volume, such as `/etc`; empty for its root.
    pub(super) fn source(&self) -> &[u8] {
        &self.source
    }

    /// Goes down into a folder, and says how it is called on the other side.
    pub(super) fn enter(&mut self, name: &FileName, number: u64) -> Result<OsString> {
        let (source, written, host) = self.below(name, number)?;
        self.lengths.push((self.source.len(), self.written.len()));
        (self.source, self.written) = (source, written);
        Ok(host)
    }

    /// Goes down into a folder of the other side that has no like on the volume.
    pub(super) fn enter_written(&mut self, name: &str) {
        self.lengths.push((self.source.len(), self.written.len()));
        self.written = joined(&self.written, name.as_bytes());
    }

    /// Goes up.
    pub(super) fn leave(&mut self) {
        if let Some((source, written)) = self.lengths.pop() {
            self.source.truncate(source);
            self.written.truncate(written);
        }
    }

    /// The two paths of something here, and its name on the other side. `number` tells names apart that are cut.
    pub(super) fn below(
        &self,
        name: &FileName,
        number: u64,
    ) -> Result<(Vec<u8>, Vec<u8>, OsString)> {
        let host = host_name(name, number, self.rule, self.written.is_empty());
        let source = [&self.source, &b"/"[..], name.as_bytes()].concat();
        let written = joined(&self.written, host.as_bytes());
        if source.len().max(written.len()) > PATH_BYTES_MAX {
            let what = format!("its path is longer than {PATH_BYTES_MAX} bytes");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok((source, written, host))
    }
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, b"/", name].concat()
    }
}

/// The name that a file gets on the other side: its own wherever that is possible.
pub(super) fn host_name(name: &FileName, number: u64, rule: NameRule, is_top: bool) -> OsString {
    let bytes = name.as_bytes();
    let ours = [SIDE_FILE, PARTIAL_FOLDER, STREAMS_FOLDER];
    let is_ours = is_top && ours.iter().any(|own| own.as_bytes() == bytes);
    // Programs of Windows take a backslash for what parts folders, and `..\\..` for a way out.
    let is_text = || std::str::from_utf8(bytes).is_ok() && !bytes.contains(&b'\\');
    let is_held = rule == NameRule::Bytes || is_text();
    if name.is_safe() && !is_ours && is_held && bytes.len() <= NAME_BYTES_MAX {
        return OsStr::from_bytes(bytes).to_owned();
    }
    let plain: Vec<u8> = bytes
        .iter()
        .map(|byte| {
            if matches!(byte, 0 | b'/') || (rule == NameRule::Text && *byte == b'\\') {
                b'_'
            } else {
                *byte
            }
        })
        .collect();
    let kept = plain.get(..KEPT_BYTES).unwrap_or(&plain);
    let mut safe = match (rule, std::str::from_utf8(&plain)) {
        // Not in the middle of a character.
        (_, Ok(text)) => {
            let end = (0..=kept.len()).rev().find(|at| text.is_char_boundary(*at));
            OsStr::from_bytes(kept.get(..end.unwrap_or(0)).unwrap_or_default()).to_owned()
        }
        (NameRule::Bytes, Err(_)) => OsStr::from_bytes(kept).to_owned(),
        (NameRule::Text, Err(_)) => OsString::from(String::from_utf8_lossy(kept).into_owned()),
    };
    safe.push(format!("~{number:x}"));
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(bytes: &[u8], rule: NameRule) -> Vec<u8> {
        host_name(&FileName::from_bytes(bytes), 0x1f, rule, true).into_encoded_bytes()
    }

    #[test]
    fn names_that_the_host_cannot_hold_are_changed_and_others_are_not() {
        let bytes = |name: &[u8]| host(name, NameRule::Bytes);
        assert_eq!(bytes(b"a\xFF b"), b"a\xFF b");
        assert_eq!(bytes(b"new\nline"), b"new\nline");
        assert_eq!(bytes(b".."), b"..~1f");
        assert_eq!(bytes(b"."), b".~1f");
        assert_eq!(bytes(b""), b"~1f");
        assert_eq!(bytes(b"../etc\0"), b".._etc_~1f");
        assert_eq!(bytes(SIDE_FILE.as_bytes()), b"hikae-metadata.jsonl~1f");
        assert_eq!(bytes(&[b'x'; 255]).len(), 255);
        assert_eq!(bytes(&[b'x'; 256]).len(), 203);
        let wide = "あ".repeat(100);
        let cut = String::from_utf8(bytes(wide.as_bytes())).expect("cut between characters");
        assert_eq!(cut, format!("{}~1f", "あ".repeat(66)));
        let text = host(b"a\xFF b", NameRule::Text);
        assert_eq!(String::from_utf8(text).expect("text"), "a\u{FFFD} b~1f");
    }

    #[test]
    fn our_own_names_are_kept_free_at_the_top_only() {
        let name = FileName::from(SIDE_FILE);
        assert_eq!(host_name(&name, 1, NameRule::Bytes, false), SIDE_FILE);
        assert_ne!(host_name(&name, 1, NameRule::Bytes, true), SIDE_FILE);
    }

    #[test]
    fn a_trail_comes_back_to_where_it_was() {
        let mut trail = Trail::new(NameRule::Bytes);
        trail.enter_written("volume-2");
        let name = trail.enter(&FileName::from("etc"), 1).expect("short");
        assert_eq!(name, "etc");
        let (source, written, _) = trail.below(&FileName::from(".."), 2).expect("short");
        assert_eq!(source, b"/etc/..");
        assert_eq!(written, b"volume-2/etc/..~2");
        trail.leave();
        trail.leave();
        assert_eq!((trail.source(), &trail.written[..]), (&b""[..], &b""[..]));
    }
}
