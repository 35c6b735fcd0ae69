//! Reparse points: what stands in them, and what that makes of a file.
//!
//! ```text
//!  tag (u32) │ bytes behind the head (u16) │ 0 (u16) │ data
//!  link:      substitute name at, length │ print name at, length │ (flags, symbolic links only) │ names
//!  WOF:       1 │ provider (2: file) │ 1 │ algorithm
//! ```
//!
//! Source: \[MS-FSCC\] 2.1.2; the structures `WOF_EXTERNAL_INFO` and `FILE_PROVIDER_EXTERNAL_INFO_V1` of the Windows SDK.

use super::record::utf16;
use crate::filesystem::FileKind;
use crate::{Error, FileName, Result, field};

pub(super) const MAX_REPARSE_BYTES: u64 = 64 << 10;

const MOUNT_POINT: u32 = 0xA000_0003;
const SYMBOLIC_LINK: u32 = 0xA000_000C;
const UNIX_LINK: u32 = 0xA000_001D;
const UNIX_SOCKET: u32 = 0x8000_0023;
const UNIX_FIFO: u32 = 0x8000_0024;
pub(super) const WOF: u32 = 0x8000_0017;
const DEDUPLICATION: u32 = 0x8000_0013;
const ONE_DRIVE: u32 = 0x8000_0021;
const PROJECTED: u32 = 0x9000_001C;
/// Cloud files have sixteen tags, which differ in these bits.
const CLOUD: u32 = 0x9000_001A;
const CLOUD_MASK: u32 = 0xFFFF_0FFF;
/// The tag stands for another place: a directory with it is no directory of this volume.
const IS_SURROGATE: u32 = 0x2000_0000;

const OFFLINE: u32 = 0x0000_1000;
const RECALL_ON_OPEN: u32 = 0x0004_0000;
const RECALL_ON_ACCESS: u32 = 0x0040_0000;

/// How a file compressed by the Windows Overlay Filter is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WofAlgorithm {
    Xpress4K,
    Xpress8K,
    Xpress16K,
    Lzx32K,
}

/// What a reparse point makes of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reparse {
    /// A link to this.
    Link(FileName),
    /// Another kind of file.
    Kind(FileKind),
    /// Compressed in a stream beside it.
    Wof(WofAlgorithm),
    /// Nothing: the file or directory is what it would be without.
    Transparent,
    /// Contents that are not here; why.
    Elsewhere { tag: u32, reason: String },
}

impl Reparse {
    pub(super) fn parse(data: &[u8], is_directory: bool, attributes: u32) -> Result<Self> {
        let tag = field::u32_le(data, 0)?;
        let size = usize::from(field::u16_le(data, 4)?);
        let body = || field::slice(data, 8, size);
        Ok(match tag {
            SYMBOLIC_LINK => Self::Link(link(body()?, 12)?),
            MOUNT_POINT => Self::Link(link(body()?, 8)?),
            UNIX_LINK => {
                let target = body()?
                    .get(4..)
                    .ok_or_else(|| Error::corrupt("a Unix link without a target"))?;
                Self::Link(FileName::from_bytes(target))
            }
            UNIX_SOCKET => Self::Kind(FileKind::Socket),
            UNIX_FIFO => Self::Kind(FileKind::Fifo),
            WOF => wof(body()?)?,
            _ if is_directory && tag & IS_SURROGATE == 0 => Self::Transparent,
            _ => match reason(tag, attributes) {
                Some(reason) => Self::Elsewhere { tag, reason },
                None => Self::Transparent,
            },
        })
    }
}

/// Why the contents of a file with this tag are not on the volume; `None` when they are.
fn reason(tag: u32, attributes: u32) -> Option<String> {
    let is_away = attributes & (OFFLINE | RECALL_ON_OPEN | RECALL_ON_ACCESS) != 0;
    let text = match tag {
        DEDUPLICATION => {
            "its contents lie in the chunk store of Windows data deduplication, which is not read here"
        }
        ONE_DRIVE | PROJECTED if !is_away => return None,
        _ if tag & CLOUD_MASK == CLOUD && !is_away => return None,
        _ if tag & CLOUD_MASK == CLOUD || tag == ONE_DRIVE => {
            "a placeholder of a cloud (OneDrive or alike): its contents were never on this disk, or were given up"
        }
        PROJECTED => "a projection of another program: its contents were never on this disk",
        0xC000_0004 | 0x8000_0006 => "hierarchical storage moved its contents away from this disk",
        0x8000_001B => "an alias of a Windows app, without contents",
        0x8000_0018 => "a layer of a container gives its contents",
        0x8000_0008 => "an image mounted by WIM gives its contents",
        _ => {
            return Some(format!(
                "reparse point {tag:#010x}, which is not resolved here"
            ));
        }
    };
    Some(text.to_owned())
}

/// The target of a link: its substitute name in the form that programs use.
fn link(body: &[u8], names: usize) -> Result<FileName> {
    let at = usize::from(field::u16_le(body, 0)?).saturating_add(names);
    let size = usize::from(field::u16_le(body, 2)?);
    let units = utf16(field::slice(body, at, size)?);
    Ok(FileName::from_utf16(without_object_prefix(units)))
}

/// `\??\C:\x` is `C:\x`, `\??\UNC\server` is `\\server`, and any other `\??\` is `\\?\`.
fn without_object_prefix(units: Vec<u16>) -> Vec<u16> {
    let text = |text: &str| text.encode_utf16().collect::<Vec<u16>>();
    let Some(rest) = units.strip_prefix(text(r"\??\").as_slice()) else {
        return units;
    };
    if rest.get(1) == Some(&u16::from(b':')) {
        return rest.to_vec();
    }
    let (front, rest) = match rest.strip_prefix(text(r"UNC\").as_slice()) {
        Some(rest) => (text(r"\\"), rest),
        None => (text(r"\\?\"), rest),
    };
    front.into_iter().chain(rest.iter().copied()).collect()
}

fn wof(body: &[u8]) -> Result<Reparse> {
    let elsewhere = |reason: String| Reparse::Elsewhere { tag: WOF, reason };
    let provider = field::u32_le(body, 4)?;
    if provider != 2 {
        return Ok(elsewhere(format!(
            "an image beside it gives its contents (provider {provider} of the Windows Overlay Filter)"
        )));
    }
    Ok(match field::u32_le(body, 12)? {
        0 => Reparse::Wof(WofAlgorithm::Xpress4K),
        1 => Reparse::Wof(WofAlgorithm::Lzx32K),
        2 => Reparse::Wof(WofAlgorithm::Xpress8K),
        3 => Reparse::Wof(WofAlgorithm::Xpress16K),
        other => elsewhere(format!(
            "algorithm {other} of the Windows Overlay Filter, which is not known here"
        )),
    })
}
