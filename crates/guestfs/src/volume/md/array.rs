//! From the members of one MD set to its bytes.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use std::sync::Arc;

use super::superblock::{Role, Superblock};
use crate::volume::pieces::{Absent, Concat, Source, Window};
use crate::volume::raid::{
    FarCopies, Member, Mirrored, Parity, ParityCount, ParityLayout, Redundant, Striped,
};
use crate::volume::{Candidate, LogicalVolume, Obstacle, VolumeScheme};
use crate::{Error, Result};

/// More columns than MD makes.
const MAX_COLUMNS: u32 = 4096;

/// Puts one set together. `members` is not empty and all of one set.
pub(super) fn volume(members: &[(Candidate, Superblock)]) -> LogicalVolume {
    let mut findings = Vec::new();
    let mut missing = Vec::new();
    let newest = members
        .iter()
        .max_by_key(|(_, superblock)| superblock.events);
    let outcome = match newest {
        Some((_, newest)) => read(members, newest, &mut missing, &mut findings),
        None => Err(Error::corrupt("a set without members")),
    };
    let told = newest.map(|(_, superblock)| superblock);
    let id = told.map(|superblock| superblock.set.to_string());
    let name = told.map_or("", |superblock| superblock.name.as_str());
    let name = match name.split_once(':') {
        // "any:root" was made on any machine and is called root.
        Some((_, own)) if !own.is_empty() => own.to_owned(),
        _ if name.is_empty() => id.clone().unwrap_or_default(),
        _ => name.to_owned(),
    };
    LogicalVolume {
        manager: VolumeScheme::Md,
        group: String::new(),
        name,
        id,
        layout: told.map_or_else(String::new, |superblock| level_name(superblock.level)),
        missing,
        findings,
        reader: outcome.map_err(Obstacle::from),
    }
}

fn level_name(level: i32) -> String {
    match level {
        -1 => "linear".to_owned(),
        number => format!("raid{number}"),
    }
}

fn read(
    members: &[(Candidate, Superblock)],
    newest: &Superblock,
    missing: &mut Vec<String>,
    findings: &mut Vec<String>,
) -> Result<Source> {
    if newest.columns == 0 || newest.columns > MAX_COLUMNS {
        return Err(Error::corrupt(format!(
            "a set of {} members",
            newest.columns
        )));
    }
    if newest.is_reshaping {
        return Err(Error::unsupported("the set is in the middle of a reshape"));
    }
    if newest.is_dirty && !matches!(newest.level, -1 | 0) {
        findings.push("the set was not in step: copies or parity may be old".to_owned());
    }
    if newest.has_journal {
        findings.push("the set has a journal, which is not read".to_owned());
    }
    let mut columns: Vec<Option<(Source, &Superblock)>> =
        vec![None; newest.columns.try_into().unwrap_or(0)];
    for (candidate, superblock) in members {
        let Role::Active(number) = fresh_role(superblock, newest) else {
            let why = why_not(superblock, newest);
            findings.push(format!("{} is not used: {why}", candidate.name));
            continue;
        };
        let Some(column) = columns.get_mut(usize::try_from(number).unwrap_or(usize::MAX)) else {
            findings.push(format!(
                "{} says that it is member {number}",
                candidate.name
            ));
            continue;
        };
        if column.is_some() {
            findings.push(format!(
                "{} is not used: another one is member {number}, too",
                candidate.name
            ));
            continue;
        }
        let data = Window::new(
            Arc::clone(&candidate.source),
            superblock.data_offset,
            superblock.data_bytes,
        );
        *column = Some((Arc::new(data), superblock));
    }
    for (number, _) in columns.iter().enumerate().filter(|(_, one)| one.is_none()) {
        missing.push(format!("member {number} of the set"));
    }
    join(&columns, newest)
}

/// What the newest superblock says about this member, if it is still in step.
fn fresh_role(superblock: &Superblock, newest: &Superblock) -> Role {
    let is_fresh = superblock.events.saturating_add(1) >= newest.events;
    let is_whole = superblock.recovered_bytes.is_none();
    let known = usize::try_from(superblock.device)
        .ok()
        .and_then(|at| newest.roles.get(at))
        .copied()
        .unwrap_or(Role::Spare);
    match known {
        Role::Active(_) if !is_fresh || !is_whole => Role::Faulty,
        known => known,
    }
}

fn why_not(superblock: &Superblock, newest: &Superblock) -> String {
    if superblock.recovered_bytes.is_some() {
        return "it was being rebuilt".to_owned();
    }
    if superblock.events.saturating_add(1) < newest.events {
        return format!(
            "it is at event {}, the set at {}",
            superblock.events, newest.events
        );
    }
    match superblock.role {
        Role::Spare => "it is a spare".to_owned(),
        Role::Journal => "it is the journal".to_owned(),
        Role::Faulty | Role::Active(_) => "the set calls it faulty".to_owned(),
    }
}

fn join(columns: &[Option<(Source, &Superblock)>], newest: &Superblock) -> Result<Source> {
    let members: Vec<Member> = columns
        .iter()
        .enumerate()
        .map(|(number, column)| match column {
            Some((source, _)) => Member::Present(Arc::clone(source)),
            None => Member::Missing(format!("member {number} of the set")),
        })
        .collect();
    let told = (newest.column_bytes > 0).then_some(newest.column_bytes);
    Ok(match newest.level {
        -1 => linear(columns)?,
        0 => raid0(columns, newest)?,
        1 => {
            let mirror: Source = Arc::new(Mirrored::new(members)?);
            let size = told.unwrap_or(u64::MAX);
            Arc::new(Window::new(mirror, 0, size))
        }
        4 => Arc::new(Parity::new(
            members,
            newest.chunk_bytes,
            ParityLayout::Last,
            ParityCount::One,
            told,
        )?),
        5 | 6 => {
            let layout = ParityLayout::from_md(newest.layout).ok_or_else(|| {
                Error::unsupported(format!("layout {} of raid{}", newest.layout, newest.level))
            })?;
            let parity = if newest.level == 5 {
                ParityCount::One
            } else {
                ParityCount::Two
            };
            Arc::new(Parity::new(
                members,
                newest.chunk_bytes,
                layout,
                parity,
                told,
            )?)
        }
        10 => {
            let near = newest.layout & 0xFF;
            let far = newest.layout >> 8 & 0xFF;
            if newest.layout >> 17 != 0 {
                return Err(Error::unsupported("raid10 with far sets"));
            }
            let far = match (far, newest.layout & 0x1_0000) {
                (1, _) => FarCopies::None,
                (far, 0) => FarCopies::Far(far),
                (far, _) => FarCopies::Offset(far),
            };
            Arc::new(Redundant::new(
                members,
                newest.chunk_bytes,
                near,
                far,
                told,
            )?)
        }
        level => {
            return Err(Error::unsupported(format!("a set of level {level}")));
        }
    })
}

fn linear(columns: &[Option<(Source, &Superblock)>]) -> Result<Source> {
    let mut sources = Vec::new();
    for (number, column) in columns.iter().enumerate() {
        let Some((source, superblock)) = column else {
            // Its length is told nowhere else: nothing behind it can be placed.
            return Err(Error::new(
                crate::ErrorKind::NotFound,
                format!("member {number} of a linear set is missing"),
            ));
        };
        let used = match superblock.chunk_bytes {
            0 => source.size_bytes(),
            chunk => whole_chunks(source.size_bytes(), chunk),
        };
        sources.push(to_source(Window::new(Arc::clone(source), 0, used)));
    }
    Ok(Arc::new(Concat::new(sources)?))
}

fn whole_chunks(size: u64, chunk: u64) -> u64 {
    size.checked_div(chunk).unwrap_or(0).saturating_mul(chunk)
}

/// Stripes over all members as far as the shortest goes, then over the rest of the others, and so on.
fn raid0(columns: &[Option<(Source, &Superblock)>], newest: &Superblock) -> Result<Source> {
    let chunk = newest.chunk_bytes;
    let mut sizes = Vec::new();
    for (number, column) in columns.iter().enumerate() {
        sizes.push(match column {
            Some((source, _)) => whole_chunks(source.size_bytes(), chunk),
            None if newest.column_bytes > 0 => whole_chunks(newest.column_bytes, chunk),
            None => {
                return Err(Error::new(
                    crate::ErrorKind::NotFound,
                    format!("member {number} of a striped set is missing"),
                ));
            }
        });
    }
    let mut ends = sizes.clone();
    ends.sort_unstable();
    ends.dedup();
    // Only newer sets say which; which kernel filled an older one cannot be known.
    if ends.len() > 1 && !matches!(newest.layout, 1 | 2) {
        return Err(Error::unsupported(
            "raid0 of unequal members that does not say how its zones lie",
        ));
    }
    let mut zones: Vec<Source> = Vec::new();
    let mut start = 0;
    let mut zone_start = 0_u64;
    for end in ends {
        let length = end.saturating_sub(start);
        let mut members = Vec::new();
        for (number, (column, size)) in columns.iter().zip(&sizes).enumerate() {
            if *size <= start {
                continue;
            }
            let source: Source = match column {
                Some((source, _)) => Arc::new(Window::new(Arc::clone(source), start, length)),
                None => Arc::new(Absent::new(format!("member {number} of the set"), length)),
            };
            members.push(Member::Present(source));
        }
        if newest.layout == 1 && !members.is_empty() {
            // Linux before 3.14 counted chunks from the beginning of the set, not of the zone.
            let turn = zone_start
                .checked_div(chunk)
                .and_then(|chunks| chunks.checked_rem(crate::field::bytes(members.len())))
                .and_then(|turn| usize::try_from(turn).ok())
                .unwrap_or(0);
            members.rotate_left(turn);
        }
        zone_start =
            zone_start.saturating_add(length.saturating_mul(crate::field::bytes(members.len())));
        if !members.is_empty() && length > 0 {
            zones.push(Arc::new(Striped::new(members, chunk, Some(length))?));
        }
        start = end;
    }
    Ok(Arc::new(Concat::new(zones)?))
}

fn to_source(window: Window) -> Source {
    Arc::new(window)
}
