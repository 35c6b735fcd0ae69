//! What of a disk a backup may leave out without any file changing: space that no file has, page files, swap.
//!
//! ```text
//!   disk ─► volumes ─► pieces ─► overlaps?            volumes that share bytes stay whole
//!              │
//!              ├─► sleeping system? ─────────────────► nothing is left out of the disk
//!              ├─► used ranges ─► what is between ┐
//!              └─► page files, swap ──────────────┴─► pieces ─► whole blocks ─► not zero anyway ─► the longest
//! ```
//!
//! **Invariants.** Everything is told from the very disk that is backed up. A range is left out only if the volume that it
//! lies in was understood as a whole: its place on the disk, its file system, the state of its journal. What lies outside
//! of volumes, the first and the last MiB of every volume, and what lies behind the end of its file system is kept. Whatever
//! is not understood is kept and told, with the reason; it is never an error. Memory is bounded however cut up the free
//! space is. RFD 14 says why each rule is as it is.

mod files;
mod gather;
mod pieces;
pub(crate) mod shadow;
mod swap;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::disk::{Volume, VolumePlace};
use guestfs::filesystem::{FileSystemKind, VolumeRange};
use guestfs::partition::{Finding, GptCopy, PartitionTable, TableKind};
use guestfs::probe::{self, ContentKind, Membership};
use repo::Omissions;
use serde::Serialize;

use crate::inside::{InsideDisks, VolumeNumber};
use crate::job::JobContext;
use crate::transfer::explained;
use crate::{ErrorKind, Result};

use files::{FileFate, SpecialFile};
use gather::BlockRuns;
use pieces::{Anchored, Pieces};
use swap::SwapSpace;

/// Kept of every volume at both ends: boot code, and the marks of managers that are not known here.
const KEPT_AT_ENDS_BYTES: u64 = 1 << 20;
/// Most ranges that a version records as left out; the shorter ones are kept then.
const MAX_RANGES: usize = 16_384;

/// A file of which the contents are left out or kept on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnneededFile {
    /// Its path on the volume.
    pub path: String,
    /// Bytes of it that are left out.
    pub left_out_bytes: u64,
    /// Why it is kept, if it is.
    pub kept_because: Option<String>,
}

/// What of a volume is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnneededVolume {
    /// Its number, as `inspect` shows it.
    pub number: usize,
    /// Its name: `disk0.p2`, `vg/root`.
    pub name: String,
    /// What lies in it: `ntfs`, `swap`.
    pub content: &'static str,
    /// Bytes, where that is known.
    pub size_bytes: Option<u64>,
    /// Bytes left out that no file has; swap space.
    pub free_bytes: u64,
    /// Page files, swap files, hibernation files.
    pub files: Vec<UnneededFile>,
    /// Why nothing is left out, if nothing may be.
    pub kept_because: Option<String>,
}

/// What of a disk is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnneededPlan {
    /// One for each volume.
    pub volumes: Vec<UnneededVolume>,
    /// Why nothing is left out of the whole disk, if nothing may be.
    pub kept_because: Option<String>,
    /// Bytes left out in all.
    pub left_out_bytes: u64,
    /// Bytes kept only because they lie in too many small ranges.
    pub kept_in_small_ranges_bytes: u64,
    /// For the backup; `None` when nothing is left out.
    #[serde(skip)]
    pub omissions: Option<Omissions>,
}

impl UnneededPlan {
    fn nothing(kept_because: Option<String>) -> Self {
        Self {
            volumes: Vec::new(),
            kept_because,
            left_out_bytes: 0,
            kept_in_small_ranges_bytes: 0,
            omissions: None,
        }
    }
}

/// Works out what may be left out of a disk that does not change meanwhile: the one that is then backed up.
///
/// # Errors
/// [`ErrorKind::Cancelled`]. Whatever else stands in the way is a reason to keep everything, and is told.
pub fn plan_unneeded(disk: Arc<dyn ReadAt>, context: JobContext<'_>) -> Result<UnneededPlan> {
    context
        .progress
        .begin("looking for what need not be kept", None);
    let planned = plan(&disk, context);
    context.progress.end();
    match planned {
        Err(error) if error.kind() != ErrorKind::Cancelled => {
            Ok(UnneededPlan::nothing(Some(explained(&error))))
        }
        planned => planned,
    }
}

fn plan(disk: &Arc<dyn ReadAt>, context: JobContext<'_>) -> Result<UnneededPlan> {
    let anchored: Arc<dyn ReadAt> = Arc::new(Anchored(Arc::clone(disk)));
    let inside = InsideDisks::open(&[anchored])?;
    let table = inside.layout().disks.first().map(|disk| &disk.table);
    let mut plan = UnneededPlan::nothing(table.and_then(doubt_of_table));
    if plan.kept_because.is_none() && table.is_some_and(|it| it.kind != TableKind::None) {
        plan.kept_because = doubt_of_whole(&**disk)?;
    }
    let (mut surveys, crossing) = survey(&inside, context)?;
    if plan.kept_because.is_none() {
        plan.kept_because = crossing;
    }
    if plan.kept_because.is_none() {
        let asleep = surveys.iter().find_map(|one| one.asleep.clone());
        plan.kept_because = asleep;
    }
    if let Some(why) = &plan.kept_because {
        for one in &mut surveys {
            one.volume
                .kept_because
                .get_or_insert_with(|| format!("nothing is left out of this disk: {why}"));
        }
    }
    let mut all = BlockRuns::new(disk.size_bytes());
    for mut one in surveys {
        if one.volume.kept_because.is_none()
            && let Some(pieces) = one.pieces.take()
        {
            measure(&mut one, &pieces, &**disk, &mut all, context)?;
        }
        plan.volumes.push(one.volume);
    }
    let found_bytes = all.total_bytes();
    let ranges = all.longest(MAX_RANGES);
    plan.left_out_bytes = ranges.iter().map(|range| range.length_bytes).sum();
    plan.kept_in_small_ranges_bytes = found_bytes.saturating_sub(plan.left_out_bytes);
    if !ranges.is_empty() {
        plan.omissions = Some(Omissions {
            ranges,
            reason: "free space, page files and swap".to_owned(),
        });
    }
    Ok(plan)
}

/// Why a partition table is not good enough to leave anything out by it.
fn doubt_of_table(table: &PartitionTable) -> Option<String> {
    match table.kind {
        TableKind::None | TableKind::Mbr | TableKind::Gpt => {}
        kind => return Some(format!("its partition table is {}", kind.name())),
    }
    // A disk that was enlarged has no backup at its end. Everything else may be what is left of an older table: without
    // a boot record that vouches for it, or with only the backup sound, systems may go by another one.
    let is_harmless = |finding: &&Finding| {
        matches!(
            finding,
            Finding::OutOfOrder
                | Finding::DamagedCopy {
                    copy: GptCopy::Backup,
                    ..
                }
        )
    };
    let doubt = table
        .findings
        .iter()
        .find(|finding| !is_harmless(finding))?;
    Some(format!("its partition table is damaged: {doubt}"))
}

/// Why the tables of a disk may be left-overs: the disk as a whole is something, too.
fn doubt_of_whole(disk: &dyn ReadAt) -> Result<Option<String>> {
    let content = probe::probe(disk)?;
    Ok(match content.kind {
        ContentKind::Unknown
        | ContentKind::Empty
        | ContentKind::Member(Membership::Ldm | Membership::StorageSpaces) => None,
        kind => Some(format!(
            "besides its partition table, it begins or ends as {}",
            kind.name()
        )),
    })
}

/// What is known of a volume before anything is measured.
struct Survey {
    volume: UnneededVolume,
    pieces: Option<Pieces>,
    what: Candidate,
    /// Why the system on this disk is asleep, if it is.
    asleep: Option<String>,
}

/// What may be left out of a volume.
enum Candidate {
    Nothing,
    Files(Arc<dyn FileSystem>, Vec<SpecialFile>),
    Swap(SwapSpace),
}

/// Looks at every volume; also says why none may be touched, where that lies in how they lie together.
fn survey(inside: &InsideDisks, context: JobContext<'_>) -> Result<(Vec<Survey>, Option<String>)> {
    let mut surveys = Vec::new();
    for (number, volume) in inside.volumes() {
        context.cancel.check()?;
        let mut one = Survey {
            volume: UnneededVolume {
                number: number.0,
                name: volume.name.clone(),
                content: volume.content.kind.name(),
                size_bytes: volume.size_bytes(),
                free_bytes: 0,
                files: Vec::new(),
                kept_because: None,
            },
            pieces: pieces::of(volume),
            what: Candidate::Nothing,
            asleep: None,
        };
        if let Err(why) = look_into(inside, number, volume, &mut one)? {
            one.volume.kept_because = Some(why);
        }
        surveys.push(one);
    }
    let overlaps = pieces::overlapping(inside, surveys.iter().map(|one| one.pieces.as_ref()));
    for (one, other) in surveys.iter_mut().zip(overlaps.volumes) {
        if let Some(other) = other {
            let why = || format!("it shares bytes of the disk with {other}");
            one.volume.kept_because.get_or_insert_with(why);
        }
    }
    let crossing = overlaps.carriers.map(|(one, other)| {
        format!("{one} and {other} have bytes in common, and one of them carries other volumes")
    });
    Ok((surveys, crossing))
}

/// Fills in what may be left out of a volume, or says why nothing may.
fn look_into(
    inside: &InsideDisks,
    number: VolumeNumber,
    volume: &Volume,
    one: &mut Survey,
) -> Result<std::result::Result<(), String>> {
    let reader = match &volume.reader {
        Ok(reader) => reader,
        Err(obstacle) => return Ok(Err(obstacle.why.clone())),
    };
    // Also of a volume that stays whole: what sleeps here has its files on the other volumes open.
    let outcome = match volume.content.kind {
        ContentKind::FileSystem(kind) => match inside.file_system(number) {
            Ok(fs) => {
                let (files, asleep) = files::find(inside, number, kind, &*fs);
                one.asleep = asleep;
                one.what = Candidate::Files(fs, files);
                Ok(())
            }
            Err(error) => {
                one.asleep = Some(format!(
                    "volume {number} ({}) cannot be read, and a system may sleep in it",
                    volume.name
                ));
                lasting(error)?
            }
        },
        ContentKind::Swap => match swap::read(&**reader).map_err(crate::Error::from) {
            Ok(Some(swap)) => {
                one.what = Candidate::Swap(swap);
                Ok(())
            }
            Ok(None) => Err("its header is not that of swap space in use".to_owned()),
            Err(error) => lasting(error)?,
        },
        ContentKind::Hibernation => {
            one.asleep = Some(format!(
                "volume {number} ({}) holds a sleeping Linux",
                volume.name
            ));
            Err("it holds a sleeping Linux".to_owned())
        }
        ContentKind::Member(_) => Err("it carries other volumes; see those".to_owned()),
        ContentKind::Encrypted(_) => {
            one.asleep = Some(format!(
                "volume {number} ({}) is encrypted, and a system may sleep in it",
                volume.name
            ));
            Err("it is encrypted".to_owned())
        }
        _ => Err("what of it is needed is not known".to_owned()),
    };
    Ok(outcome.and_then(|()| doubt_of_volume(inside, volume, one.pieces.as_ref())))
}

/// A reason to keep a volume, out of what went wrong with it; only being told to stop is an error.
fn lasting(error: crate::Error) -> Result<std::result::Result<(), String>> {
    if error.kind() == ErrorKind::Cancelled {
        return Err(error);
    }
    Ok(Err(explained(&error)))
}

/// Why it is not certain which bytes of the disk a volume has, and that nobody else has them.
fn doubt_of_volume(
    inside: &InsideDisks,
    volume: &Volume,
    pieces: Option<&Pieces>,
) -> std::result::Result<(), String> {
    if let Some(missing) = volume.missing.first() {
        return Err(format!("a part of it is missing: {missing}"));
    }
    if let Some(finding) = volume.findings.first() {
        return Err(finding.clone());
    }
    if let VolumePlace::Logical { manager, group, .. } = &volume.place {
        if let Some(finding) = inside.layout().findings.first() {
            return Err(finding.clone());
        }
        let mut neighbours = inside.volumes().map(|(_, other)| other).filter(|other| {
            matches!(&other.place, VolumePlace::Logical { manager: its, group: name, .. } if its == manager && name == group)
        });
        let is_shared = |other: &&Volume| {
            let layout = match &other.place {
                VolumePlace::Logical { layout, .. } => layout.as_str(),
                _ => "",
            };
            layout == "snapshot" || (!group.is_empty() && !other.missing.is_empty())
        };
        if let Some(other) = neighbours.find(is_shared) {
            return Err(match other.missing.first() {
                Some(missing) => format!("a part of its group is missing: {missing}"),
                None => format!("the snapshot {} may need what it has freed", other.name),
            });
        }
    }
    if pieces.is_none() {
        return Err(
            "its bytes do not lie on the disk one by one, or in too many pieces".to_owned(),
        );
    }
    Ok(())
}

/// Adds what may be left out of a volume.
fn measure(
    one: &mut Survey,
    pieces: &Pieces,
    disk: &dyn ReadAt,
    all: &mut BlockRuns,
    context: JobContext<'_>,
) -> Result<()> {
    let mut free = BlockRuns::new(disk.size_bytes());
    match &one.what {
        Candidate::Nothing => return Ok(()),
        Candidate::Swap(swap) => free.add(pieces, inner(swap.contents, pieces)),
        Candidate::Files(fs, _) => match free_space(&**fs, pieces, &mut free, disk, context)? {
            Ok(()) => {}
            Err(why) => {
                one.volume.kept_because = Some(why);
                return Ok(());
            }
        },
    }
    free.drop_zeros(disk);
    one.volume.free_bytes = free.total_bytes();
    all.take(free);
    if let Candidate::Files(fs, files) = &one.what {
        for file in files {
            context.cancel.check()?;
            let mut runs = BlockRuns::new(disk.size_bytes());
            let fate = match &file.fate {
                FileFate::Keep(why) => Err(why.clone()),
                FileFate::LeaveOut {
                    from_bytes,
                    to_bytes,
                } => files::ranges(&**fs, file, (*from_bytes, *to_bytes), &mut |range| {
                    runs.add(pieces, inner(range, pieces));
                }),
            };
            runs.drop_zeros(disk);
            let left_out_bytes = if fate.is_ok() { runs.total_bytes() } else { 0 };
            one.volume.files.push(UnneededFile {
                path: file.path.clone(),
                left_out_bytes,
                kept_because: fate.as_ref().err().cloned(),
            });
            if fate.is_ok() {
                all.take(runs);
            }
        }
    }
    Ok(())
}

/// Without what is kept at both ends of a volume.
fn inner(range: VolumeRange, pieces: &Pieces) -> VolumeRange {
    let end = range.offset.saturating_add(range.length_bytes);
    let end = end.min(pieces.size_bytes().saturating_sub(KEPT_AT_ENDS_BYTES));
    let offset = range.offset.max(KEPT_AT_ENDS_BYTES);
    VolumeRange {
        offset,
        length_bytes: end.saturating_sub(offset),
    }
}

/// Adds what lies between the used ranges of a file system, or says why that is not known.
fn free_space(
    fs: &dyn FileSystem,
    pieces: &Pieces,
    free: &mut BlockRuns,
    disk: &dyn ReadAt,
    context: JobContext<'_>,
) -> Result<std::result::Result<(), String>> {
    if fs.facts().kind == FileSystemKind::Ntfs
        && let Err(why) = shadow::look(&pieces.reader(disk))
    {
        return Ok(Err(why));
    }
    let size_bytes = fs.facts().size_bytes.min(pieces.size_bytes());
    let mut at = 0_u64;
    let mut wrong = None;
    let mut add = |from: u64, to: u64| {
        let range = VolumeRange {
            offset: from,
            length_bytes: to.saturating_sub(from),
        };
        free.add(pieces, inner(range, pieces));
    };
    let told = fs.used_ranges(&mut |used| {
        if context.cancel.is_cancelled() {
            return ControlFlow::Break(());
        }
        let Some(end) = used.offset.checked_add(used.length_bytes) else {
            wrong = Some("a used range reaches behind every disk".to_owned());
            return ControlFlow::Break(());
        };
        if used.offset < at {
            wrong = Some("its used ranges are out of order".to_owned());
            return ControlFlow::Break(());
        }
        add(at, used.offset.min(size_bytes));
        at = end;
        ControlFlow::Continue(())
    });
    context.cancel.check()?;
    if let Err(error) = told {
        return lasting(error.into());
    }
    if let Some(wrong) = wrong {
        return Ok(Err(wrong));
    }
    if at == 0 {
        return Ok(Err("it has no used range at all".to_owned()));
    }
    add(at, size_bytes);
    free.close();
    Ok(Ok(()))
}
