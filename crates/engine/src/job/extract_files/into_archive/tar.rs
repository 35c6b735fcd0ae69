//! Members of a tar archive: POSIX pax headers, as GNU tar, libarchive and Python read them.
//!
//! ```text
//!   ┌ 512 ─────────┐┌ records ─────────────────────────┐┌ 512 ─────────┐┌ bytes ────────────────────┐
//!   │ header  x    ││ 30 mtime=1795327825.123456789\n …││ header  0…6  ││ [map of a sparse file] …  │   each padded to 512
//!   └──────────────┘└──────────────────────────────────┘└──────────────┘└───────────────────────────┘
//! ```
//!
//! What the old header cannot hold stands in records: long and non-ASCII names, large sizes and numbers, moments to the
//! nanosecond, named values (`SCHILY.xattr.…`), access control lists (`SCHILY.acl.…`), holes (`GNU.sparse.…`, format 1.0).
//!
//! **Why not a crate.** The headers are 60 lines; the crates write no named values, holes and moments from a stream.

use guestfs::filesystem::{ExtendedAttribute, FileKind, Timestamp};

use super::super::acl;
use super::super::content::Run;
use super::Member;

const BLOCK_BYTES: usize = 512;
/// What the archive is padded to, as tapes want it.
const RECORD_BYTES: u64 = 10_240;
const OCTAL_8_MAX: u64 = 0o7_777_777;
const OCTAL_12_MAX: u64 = 0o77_777_777_777;
const NAME_BYTES: usize = 100;
/// Holes that are worth a map.
const HOLES_BYTES_MIN: u64 = 64 << 10;

/// How many bytes are missing to the next whole block.
pub(super) fn padding(length_bytes: u64) -> usize {
    let block = 512_u64;
    usize::try_from(
        length_bytes
            .next_multiple_of(block)
            .saturating_sub(length_bytes),
    )
    .unwrap_or(0)
}

/// What ends an archive of this length.
pub(super) fn end(length_bytes: u64) -> Vec<u8> {
    let whole = length_bytes
        .saturating_add(1024)
        .next_multiple_of(RECORD_BYTES);
    vec![0; usize::try_from(whole.saturating_sub(length_bytes)).unwrap_or(1024)]
}

/// The runs that are stored of a file: all of it where its holes are not worth a map.
pub(super) fn stored_runs(size_bytes: u64, runs: &[Run]) -> (Vec<Run>, Holes) {
    let data = runs
        .iter()
        .fold(0_u64, |sum, run| sum.saturating_add(run.length_bytes));
    if size_bytes.saturating_sub(data) < HOLES_BYTES_MIN {
        let whole = Run {
            offset: 0,
            length_bytes: size_bytes,
        };
        return (
            (size_bytes > 0).then_some(whole).into_iter().collect(),
            Holes::Filled,
        );
    }
    (runs.to_vec(), Holes::Mapped)
}

/// How holes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holes {
    /// As zeros.
    Filled,
    /// As what a map leaves out.
    Mapped,
}

/// The headers of a member, and the map of its holes. `runs` are the bytes that follow.
pub(super) fn head(member: &Member<'_>, runs: &[Run], holes: Holes) -> Vec<u8> {
    let map = match holes {
        Holes::Filled => Vec::new(),
        Holes::Mapped => map(member.size_bytes, runs),
    };
    let data = runs
        .iter()
        .fold(0_u64, |sum, run| sum.saturating_add(run.length_bytes));
    let size = data.saturating_add(u64::try_from(map.len()).unwrap_or(0));
    let mut records = Records::default();
    records.of(member, size, holes);
    let mut bytes = Vec::new();
    if !records.0.is_empty() {
        let length = u64::try_from(records.0.len()).unwrap_or(0);
        let name = b"PaxHeaders/member";
        let mut header = Header::new(name, b'x', length);
        header.number(100, 8, 0o644);
        header.number(136, 12, 0);
        bytes.extend(header.finish());
        bytes.extend(&records.0);
        bytes.resize(bytes.len().saturating_add(padding(length)), 0);
    }
    bytes.extend(plain_header(member, size, holes).finish());
    bytes.extend(map);
    bytes
}

/// Where bytes stand, in decimal lines, padded to whole blocks. A hole at the end is an empty run there.
fn map(size_bytes: u64, runs: &[Run]) -> Vec<u8> {
    let ends_in_hole = runs.last().is_none_or(|last| last.end() < size_bytes);
    let last = ends_in_hole.then_some(Run {
        offset: size_bytes,
        length_bytes: 0,
    });
    let count = runs.len().saturating_add(usize::from(ends_in_hole));
    let mut text = format!("{count}\n");
    for run in runs.iter().chain(last.as_ref()) {
        text.push_str(&format!("{}\n{}\n", run.offset, run.length_bytes));
    }
    let mut map = text.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK_BYTES), 0);
    map
}

fn type_flag(member: &Member<'_>) -> u8 {
    if member.is_another_name {
        return b'1';
    }
    match member.kind {
        FileKind::SymbolicLink => b'2',
        FileKind::CharacterDevice(_) => b'3',
        FileKind::BlockDevice(_) => b'4',
        FileKind::Directory => b'5',
        FileKind::Fifo => b'6',
        _ => b'0',
    }
}

/// The name as it stands in the archive.
fn path(member: &Member<'_>) -> Vec<u8> {
    let mut path = member.path.to_vec();
    if member.kind == FileKind::Directory {
        path.push(b'/');
    }
    path
}

fn plain_header(member: &Member<'_>, size: u64, holes: Holes) -> Header {
    let path = match holes {
        Holes::Filled => path(member),
        // For readers that do not know of holes: they make a file of this name with the map in front.
        Holes::Mapped => [b"GNUSparseFile.0/", member.path].concat(),
    };
    let mut header = Header::new(&path, type_flag(member), size);
    let (user, group, mode) = match member.owner {
        Some(owner) => (owner.user, owner.group, owner.mode),
        None => (0, 0, default_mode(member.kind)),
    };
    header.number(100, 8, u64::from(mode));
    header.number(108, 8, u64::from(user));
    header.number(116, 8, u64::from(group));
    let seconds = member.times.modified.map_or(0, |time| time.seconds);
    header.number(136, 12, u64::try_from(seconds).unwrap_or(0));
    header.text(157, NAME_BYTES, member.link);
    if let FileKind::CharacterDevice(number) | FileKind::BlockDevice(number) = member.kind {
        header.number(329, 8, u64::from(number.major));
        header.number(337, 8, u64::from(number.minor));
    }
    header
}

/// Rights of what has none.
pub(super) fn default_mode(kind: FileKind) -> u16 {
    match kind {
        FileKind::Directory => 0o755,
        FileKind::SymbolicLink => 0o777,
        _ => 0o644,
    }
}

/// A header of 512 bytes.
struct Header([u8; BLOCK_BYTES]);

impl Header {
    fn new(name: &[u8], kind: u8, size: u64) -> Self {
        let mut header = Self([0; BLOCK_BYTES]);
        header.text(0, NAME_BYTES, name);
        header.number(100, 8, 0);
        header.number(108, 8, 0);
        header.number(116, 8, 0);
        header.number(124, 12, size);
        header.text(156, 1, &[kind]);
        header.text(257, 8, b"ustar\x0000");
        header.number(329, 8, 0);
        header.number(337, 8, 0);
        header
    }

    fn text(&mut self, at: usize, width: usize, text: &[u8]) {
        let length = text.len().min(width);
        let end = at.saturating_add(length);
        if let (Some(field), Some(text)) = (self.0.get_mut(at..end), text.get(..length)) {
            field.copy_from_slice(text);
        }
    }

    /// Octal digits and a NUL; what does not fit stands in a record, and zero here.
    fn number(&mut self, at: usize, width: usize, value: u64) {
        let max = if width == 8 {
            OCTAL_8_MAX
        } else {
            OCTAL_12_MAX
        };
        let value = if value > max { 0 } else { value };
        let digits = width.saturating_sub(1);
        self.text(at, width, format!("{value:0digits$o}\0").as_bytes());
    }

    fn finish(mut self) -> [u8; BLOCK_BYTES] {
        self.text(148, 8, b"        ");
        let sum = self.0.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        self.text(148, 8, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

/// Records of a pax header.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    /// `LENGTH KEY=VALUE\n`, where the length counts itself.
    fn add(&mut self, key: &str, value: &[u8]) {
        let rest = key.len().saturating_add(value.len()).saturating_add(3);
        let mut length = rest;
        loop {
            let whole = rest.saturating_add(length.to_string().len());
            if whole == length {
                break;
            }
            length = whole;
        }
        self.0.extend(format!("{length} {key}=").into_bytes());
        self.0.extend(value);
        self.0.push(b'\n');
    }

    fn time(&mut self, key: &str, time: Option<Timestamp>) {
        if let Some(time) = time {
            self.add(key, decimal(time).as_bytes());
        }
    }

    fn of(&mut self, member: &Member<'_>, size: u64, holes: Holes) {
        let path = path(member);
        let is_short = |path: &[u8]| path.len() <= NAME_BYTES && path.is_ascii();
        let (has_path, has_link) = (!is_short(&path), !is_short(member.link));
        let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
        let are_text = is_text(&path) && is_text(member.link);
        // Short names that are no text are told by the old header, which promises nothing about them.
        let long = |path: &[u8]| path.len() > NAME_BYTES || holes == Holes::Mapped;
        if !are_text && (long(&path) || long(member.link)) {
            self.add("hdrcharset", b"BINARY");
        }
        if holes == Holes::Mapped {
            self.add("GNU.sparse.major", b"1");
            self.add("GNU.sparse.minor", b"0");
            self.add("GNU.sparse.name", &path);
            let real = member.size_bytes.to_string();
            self.add("GNU.sparse.realsize", real.as_bytes());
        } else if has_path && (is_text(&path) || path.len() > NAME_BYTES) {
            self.add("path", &path);
        }
        if has_link && (is_text(member.link) || member.link.len() > NAME_BYTES) {
            self.add("linkpath", member.link);
        }
        if size > OCTAL_12_MAX {
            self.add("size", size.to_string().as_bytes());
        }
        if let Some(owner) = member.owner {
            for (key, id) in [("uid", owner.user), ("gid", owner.group)] {
                if u64::from(id) > OCTAL_8_MAX {
                    self.add(key, id.to_string().as_bytes());
                }
            }
        }
        self.time("mtime", member.times.modified);
        self.time("atime", member.times.accessed);
        self.time("ctime", member.times.changed);
        for attribute in member.attributes {
            self.attribute(attribute);
        }
    }

    fn attribute(&mut self, attribute: &ExtendedAttribute) {
        let Some(name) = attribute_name(attribute) else {
            return;
        };
        self.add(&format!("SCHILY.xattr.{name}"), &attribute.value);
        let list = match name {
            "system.posix_acl_access" => "SCHILY.acl.access",
            "system.posix_acl_default" => "SCHILY.acl.default",
            _ => return,
        };
        if let Some(text) = acl::text(&attribute.value) {
            self.add(list, text.as_bytes());
        }
    }
}

/// The name of a value where an archive can hold it.
pub(super) fn attribute_name(attribute: &ExtendedAttribute) -> Option<&str> {
    let name = std::str::from_utf8(attribute.name.as_bytes()).ok()?;
    let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '=' | '%');
    name.chars().all(is_plain).then_some(name)
}

/// Seconds with a fraction, also before 1970.
fn decimal(time: Timestamp) -> String {
    let nanoseconds = i128::from(time.seconds)
        .saturating_mul(1_000_000_000)
        .saturating_add(i128::from(time.nanoseconds));
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let size = nanoseconds.unsigned_abs();
    let (seconds, rest) = (size / 1_000_000_000, size % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{seconds}");
    }
    format!("{sign}{seconds}.{rest:09}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        let mut records = Records::default();
        records.add("a", b"");
        records.add("key", &[b'v'; 91]);
        records.add("key", &[b'v'; 92]);
        let text = String::from_utf8(records.0).expect("text");
        let lines: Vec<_> = text.split_inclusive('\n').collect();
        assert_eq!(lines[0], "5 a=\n");
        for line in lines {
            let length: usize = line
                .split(' ')
                .next()
                .and_then(|it| it.parse().ok())
                .expect("it");
            assert_eq!(length, line.len(), "{line}");
        }
    }

    #[test]
    fn moments_before_1970_are_told_as_one_number() {
        let told = |seconds, nanoseconds| {
            decimal(Timestamp {
                seconds,
                nanoseconds,
            })
        };
        assert_eq!(told(5, 0), "5");
        assert_eq!(told(5, 7), "5.000000007");
        assert_eq!(told(-2, 500_000_000), "-1.500000000");
        assert_eq!(told(-1, 0), "-1");
    }
}
