//! Volumes spread over several members: stripes, mirrors, parity, and what is left of them when members are missing.
//!
//! ```text
//!   Striped    row 0 │ c0 │ c1 │ c2 │      Parity, left symmetric   row 0 │ c0 │ c1 │ P  │
//!              row 1 │ c3 │ c4 │ c5 │      (MD and LDM by default)  row 1 │ c3 │ P  │ c2 │
//!   Mirrored   every member holds all                               row 2 │ P  │ c4 │ c5 │
//!   Redundant  (MD RAID-10) copies of a chunk beside each other (near), in the next row (offset), in the next half (far)
//! ```
//!
//! A chunk of a missing or failing column is computed: from P as the exclusive-or of the others, from P and Q over
//! GF(2^8) with the polynomial 0x11D and generator 2 (H. P. Anvin, "The mathematics of RAID-6").
//!
//! **Invariants.** Columns are as long as the shortest of them; members that are missing are `None`. Memory is one chunk
//! piece of at most [`PIECE_BYTES`] per column.

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

use block::{Extent, Origin, ReadAt};

use super::galois;
use super::pieces::{Source, check_extent, check_range, distance, origin_limit, take};
use crate::{Error, Result};

/// Longest piece that is computed at once.
pub const PIECE_BYTES: u64 = 64 * 1024;
/// More members than any format here can name.
const MAX_MEMBERS: usize = 4096;

/// A member of a set, or its name when it is missing.
#[derive(Clone)]
pub enum Member {
    /// Here it is.
    Present(Source),
    /// Not among the disks given, or out of date.
    Missing(String),
}

impl Member {
    fn source(&self) -> block::Result<&Source> {
        match self {
            Self::Present(source) => Ok(source),
            Self::Missing(name) => Err(missing(name)),
        }
    }
}

fn missing(name: &str) -> block::Error {
    block::Error::new(block::ErrorKind::NotFound, format!("{name} is missing"))
}

/// Size of every column: the shortest present one, cut to whole chunks; `told` where the metadata says it.
fn column_bytes(members: &[Member], told: Option<u64>, chunk_bytes: u64) -> Result<u64> {
    if members.is_empty() || members.len() > MAX_MEMBERS || chunk_bytes == 0 {
        return Err(Error::corrupt(format!(
            "a set of {} members with chunks of {chunk_bytes} bytes",
            members.len()
        )));
    }
    let shortest = members
        .iter()
        .filter_map(|member| match member {
            Member::Present(source) => Some(source.size_bytes()),
            Member::Missing(_) => None,
        })
        .min()
        .unwrap_or(0);
    let size = told.map_or(shortest, |told| {
        if shortest == 0 {
            told
        } else {
            told.min(shortest)
        }
    });
    let chunks = size.checked_div(chunk_bytes).unwrap_or(0);
    Ok(chunks.saturating_mul(chunk_bytes))
}

/// Chunks dealt out in turn.
pub struct Striped {
    columns: Vec<Member>,
    chunk_bytes: u64,
    size_bytes: u64,
}

impl Striped {
    /// Over these columns; `told_bytes` is the length of a column where the metadata says it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] without columns or with chunks of no length.
    pub fn new(columns: Vec<Member>, chunk_bytes: u64, told_bytes: Option<u64>) -> Result<Self> {
        let column = column_bytes(&columns, told_bytes, chunk_bytes)?;
        let size_bytes = column.saturating_mul(distance(columns.len()));
        Ok(Self {
            columns,
            chunk_bytes,
            size_bytes,
        })
    }

    /// The column of a byte, where in it, and how many bytes of the chunk are left.
    fn place(&self, offset: u64) -> (usize, u64, u64) {
        let (chunk, inside) = divide(offset, self.chunk_bytes);
        let (row, column) = divide(chunk, distance(self.columns.len()));
        (
            index(column),
            row.saturating_mul(self.chunk_bytes).saturating_add(inside),
            self.chunk_bytes.saturating_sub(inside),
        )
    }
}

/// Quotient and remainder; the divisor was checked when the reader was made.
fn divide(number: u64, by: u64) -> (u64, u64) {
    (
        number.checked_div(by).unwrap_or(0),
        number.checked_rem(by).unwrap_or(0),
    )
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn column(columns: &[Member], at: usize) -> block::Result<&Member> {
    columns.get(at).ok_or_else(|| missing("a column"))
}

impl ReadAt for Striped {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, distance(buffer.len()), self.size_bytes)?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (number, inside, left) = self.place(at);
            let here = take(left, &mut rest);
            column(&self.columns, number)?
                .source()?
                .read_at(inside, here)?;
            at = at.saturating_add(distance(here.len()));
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let limit = check_extent(offset, limit_bytes, self.size_bytes)?;
        let (number, inside, left) = self.place(offset);
        extent_of(
            column(&self.columns, number)?,
            offset,
            inside,
            left.min(limit),
        )
    }

    fn origin_at(&self, offset: u64, limit_bytes: u64) -> Option<Origin> {
        let limit = origin_limit(offset, limit_bytes, self.size_bytes)?;
        let (number, inside, left) = self.place(offset);
        let source = column(&self.columns, number).ok()?.source().ok()?;
        source.origin_at(inside, left.min(limit))
    }
}

/// What a member knows about a part of it, told as a part of the volume.
fn extent_of(member: &Member, offset: u64, inside: u64, limit_bytes: u64) -> block::Result<Extent> {
    let known = match member {
        Member::Present(source) => source.extent_at(inside, limit_bytes)?,
        Member::Missing(_) => Extent {
            offset: inside,
            length_bytes: limit_bytes,
            kind: block::ExtentKind::Data,
        },
    };
    Ok(Extent { offset, ..known })
}

/// Every member holds everything; a member that fails is passed over.
pub struct Mirrored {
    legs: Vec<Source>,
    size_bytes: u64,
}

impl Mirrored {
    /// Of these, in the order in which they are asked.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] when all are missing; the text names them.
    pub fn new(members: Vec<Member>) -> Result<Self> {
        let mut legs = Vec::new();
        let mut names = Vec::new();
        for member in members {
            match member {
                Member::Present(source) => legs.push(source),
                Member::Missing(name) => names.push(name),
            }
        }
        let size_bytes = legs
            .iter()
            .map(|leg| leg.size_bytes())
            .min()
            .ok_or_else(|| {
                Error::new(
                    crate::ErrorKind::NotFound,
                    format!("all of a mirror is missing: {}", names.join(", ")),
                )
            })?;
        Ok(Self { legs, size_bytes })
    }
}

impl ReadAt for Mirrored {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, distance(buffer.len()), self.size_bytes)?;
        let mut first_error = None;
        for leg in &self.legs {
            match leg.read_at(offset, buffer) {
                Ok(()) => return Ok(()),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| missing("every member of a mirror")))
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let limit = check_extent(offset, limit_bytes, self.size_bytes)?;
        match self.legs.first() {
            Some(leg) => leg.extent_at(offset, limit),
            None => Err(missing("every member of a mirror")),
        }
    }
}

/// How parity wanders over the columns; numbers are those of MD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParityLayout {
    /// Parity from the last column down, data from the first column on.
    LeftAsymmetric,
    /// Parity from the first column up, data from the first column on.
    RightAsymmetric,
    /// Parity from the last column down, data behind it.
    LeftSymmetric,
    /// Parity from the first column up, data behind it.
    RightSymmetric,
    /// Parity on the first column (with Q: on the first two).
    First,
    /// Parity on the last column (with Q: on the last two).
    Last,
    /// RAID-6 of DDF: from the first column up, data from the first column on.
    ZeroRestart,
    /// RAID-6 of DDF: from the last column down, data from the first column on.
    LastRestart,
    /// RAID-6 of DDF: from the last column down, data behind it.
    LastContinue,
    /// Q on the last column, the others as RAID-5 left asymmetric.
    LeftAsymmetricQ,
    /// Q on the last column, the others as RAID-5 right asymmetric.
    RightAsymmetricQ,
    /// Q on the last column, the others as RAID-5 left symmetric.
    LeftSymmetricQ,
    /// Q on the last column, the others as RAID-5 right symmetric.
    RightSymmetricQ,
    /// Q on the last column, P on the first.
    FirstQ,
}

impl ParityLayout {
    /// By the number that MD gives it.
    pub fn from_md(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::LeftAsymmetric,
            1 => Self::RightAsymmetric,
            2 => Self::LeftSymmetric,
            3 => Self::RightSymmetric,
            4 => Self::First,
            5 => Self::Last,
            8 => Self::ZeroRestart,
            9 => Self::LastRestart,
            10 => Self::LastContinue,
            16 => Self::LeftAsymmetricQ,
            17 => Self::RightAsymmetricQ,
            18 => Self::LeftSymmetricQ,
            19 => Self::RightSymmetricQ,
            20 => Self::FirstQ,
            _ => return None,
        })
    }

    fn needs_q(self) -> bool {
        !matches!(
            self,
            Self::LeftAsymmetric
                | Self::RightAsymmetric
                | Self::LeftSymmetric
                | Self::RightSymmetric
                | Self::First
                | Self::Last
        )
    }

    /// Whether Q counts all columns instead of the data columns behind it.
    fn is_ddf(self) -> bool {
        matches!(
            self,
            Self::ZeroRestart | Self::LastRestart | Self::LastContinue
        )
    }
}

/// How many columns of a row hold parity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParityCount {
    /// P: RAID-4 and RAID-5.
    One,
    /// P and Q: RAID-6.
    Two,
}

/// Where things lie in one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    p: usize,
    q: Option<usize>,
    /// Columns that `data` counts round in, where it wraps.
    wrap: usize,
    /// Added to a data number before wrapping or skipping.
    rule: DataRule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DataRule {
    /// Behind this column, round and round.
    Behind(usize),
    /// From the first column on, skipping parity.
    Skipping,
}

/// Where P and Q lie in row `row` of `columns` columns.
pub(crate) fn row_at(layout: ParityLayout, parity: ParityCount, columns: usize, row: u64) -> Row {
    let turn = |count: usize| index(row.checked_rem(distance(count)).unwrap_or(0));
    let last = columns.saturating_sub(1);
    let next = |at: usize| {
        at.saturating_add(1)
            .checked_rem(columns.max(1))
            .unwrap_or(0)
    };
    let down = last.saturating_sub(turn(columns));
    let up = turn(columns);
    let behind = |p: usize, q: Option<usize>, start: usize| Row {
        p,
        q,
        wrap: columns,
        rule: DataRule::Behind(start),
    };
    let skipping = |p: usize, q: Option<usize>| Row {
        p,
        q,
        wrap: columns,
        rule: DataRule::Skipping,
    };
    let two = parity == ParityCount::Two;
    let beside = |p: usize| two.then(|| next(p));
    // Layouts with Q apart are RAID-5 over one column less.
    let inner_down = last.saturating_sub(1).saturating_sub(turn(last));
    let inner_up = turn(last);
    let inner = |p: usize| Row {
        p,
        q: Some(last),
        wrap: last,
        rule: DataRule::Behind(p),
    };
    match layout {
        ParityLayout::LeftAsymmetric => skipping(down, beside(down)),
        ParityLayout::RightAsymmetric | ParityLayout::ZeroRestart => skipping(up, beside(up)),
        ParityLayout::LeftSymmetric => behind(down, beside(down), beside(down).unwrap_or(down)),
        ParityLayout::RightSymmetric => behind(up, beside(up), beside(up).unwrap_or(up)),
        ParityLayout::First => skipping(0, two.then_some(1)),
        ParityLayout::Last if two => skipping(last.saturating_sub(1), Some(last)),
        ParityLayout::Last => skipping(last, None),
        ParityLayout::LastRestart => {
            let shifted = row.saturating_add(1);
            let p = last.saturating_sub(index(shifted.checked_rem(distance(columns)).unwrap_or(0)));
            skipping(p, Some(next(p)))
        }
        ParityLayout::LastContinue => {
            let q = down.checked_sub(1).unwrap_or(last);
            behind(down, Some(q), down)
        }
        ParityLayout::LeftAsymmetricQ => skipping(inner_down, Some(last)),
        ParityLayout::RightAsymmetricQ => skipping(inner_up, Some(last)),
        ParityLayout::LeftSymmetricQ => inner(inner_down),
        ParityLayout::RightSymmetricQ => inner(inner_up),
        ParityLayout::FirstQ => skipping(0, Some(last)),
    }
}

impl Row {
    /// The column of the `number`th data chunk.
    pub(crate) fn data(&self, number: usize) -> usize {
        match self.rule {
            DataRule::Behind(start) => start
                .saturating_add(1)
                .saturating_add(number)
                .checked_rem(self.wrap.max(1))
                .unwrap_or(0),
            DataRule::Skipping => {
                let mut skipped: Vec<usize> =
                    [Some(self.p), self.q].into_iter().flatten().collect();
                skipped.sort_unstable();
                skipped.iter().fold(number, |at, parity| {
                    if at >= *parity {
                        at.saturating_add(1)
                    } else {
                        at
                    }
                })
            }
        }
    }
}

/// RAID-4, RAID-5 and RAID-6.
pub struct Parity {
    columns: Vec<Member>,
    chunk_bytes: u64,
    layout: ParityLayout,
    parity: ParityCount,
    data_columns: usize,
    size_bytes: u64,
}

impl Parity {
    /// Over these columns; `told_bytes` is the length of a column where the metadata says it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] when the numbers do not fit together.
    pub fn new(
        columns: Vec<Member>,
        chunk_bytes: u64,
        layout: ParityLayout,
        parity: ParityCount,
        told_bytes: Option<u64>,
    ) -> Result<Self> {
        let column = column_bytes(&columns, told_bytes, chunk_bytes)?;
        let extra = match parity {
            ParityCount::One => 1,
            ParityCount::Two => 2,
        };
        let data_columns = columns.len().saturating_sub(extra);
        if data_columns == 0 || columns.len() > 255 || (layout.needs_q() && extra == 1) {
            return Err(Error::corrupt(format!(
                "parity of {parity:?} with {layout:?} over {} columns",
                columns.len()
            )));
        }
        Ok(Self {
            size_bytes: column.saturating_mul(distance(data_columns)),
            columns,
            chunk_bytes,
            layout,
            parity,
            data_columns,
        })
    }

    /// The row of a byte, its column, where in the columns, and how many bytes of the chunk are left.
    fn place(&self, offset: u64) -> (Row, usize, u64, u64) {
        let (chunk, inside) = divide(offset, self.chunk_bytes);
        let (number, data) = divide(chunk, distance(self.data_columns));
        let row = row_at(self.layout, self.parity, self.columns.len(), number);
        let column = row.data(index(data));
        let at = number
            .saturating_mul(self.chunk_bytes)
            .saturating_add(inside);
        (row, column, at, self.chunk_bytes.saturating_sub(inside))
    }

    fn read_column(&self, at: usize, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        column(&self.columns, at)?.source()?.read_at(offset, buffer)
    }

    /// Computes what column `wanted` holds from the others; `why` is told when that cannot be.
    fn compute(
        &self,
        row: Row,
        wanted: usize,
        offset: u64,
        buffer: &mut [u8],
        why: block::Error,
    ) -> block::Result<()> {
        let others: Vec<usize> = (0..self.data_columns)
            .map(|number| row.data(number))
            .filter(|at| *at != wanted)
            .collect();
        let mut scratch = vec![0; buffer.len()];
        buffer.fill(0);
        let mut lost = None;
        for at in others.iter().copied().chain([row.p]) {
            match self.read_column(at, offset, &mut scratch) {
                Ok(()) => galois::add(buffer, &scratch),
                Err(_) if lost.is_none() => lost = Some(at),
                Err(_) => return Err(why),
            }
        }
        let Some(other) = lost else { return Ok(()) };
        let Some(q) = row.q else { return Err(why) };
        // `buffer` holds P ^ (data that is there); without P it is not of use.
        let mut syndrome = vec![0; buffer.len()];
        if self.read_column(q, offset, &mut syndrome).is_err() {
            return Err(why);
        }
        for at in others.iter().copied().filter(|at| *at != other) {
            if self.read_column(at, offset, &mut scratch).is_err() {
                return Err(why);
            }
            galois::add_scaled(
                &mut syndrome,
                &scratch,
                galois::power(self.slot(row, q, at)),
            );
        }
        let x = galois::power(self.slot(row, q, wanted));
        if other == row.p {
            buffer.copy_from_slice(&syndrome);
            galois::scale(buffer, galois::inverse(x));
        } else {
            // P' = x + y, Q' = gx·x + gy·y, so x = (gy·P' + Q') / (gx + gy).
            let y = galois::power(self.slot(row, q, other));
            galois::scale(buffer, y);
            galois::add(buffer, &syndrome);
            galois::scale(buffer, galois::inverse(x ^ y));
        }
        Ok(())
    }

    /// Which power of the generator Q multiplies a column with.
    fn slot(&self, row: Row, q: usize, at: usize) -> usize {
        if self.layout.is_ddf() {
            return at;
        }
        let count = self.columns.len().max(1);
        let start = q.saturating_add(1).checked_rem(count).unwrap_or(0);
        (0..count)
            .map(|step| start.saturating_add(step).checked_rem(count).unwrap_or(0))
            .take_while(|one| *one != at)
            .filter(|one| *one != row.p && *one != q)
            .count()
    }
}

impl ReadAt for Parity {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, distance(buffer.len()), self.size_bytes)?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (row, column, inside, left) = self.place(at);
            let here = take(left.min(PIECE_BYTES), &mut rest);
            if let Err(error) = self.read_column(column, inside, here) {
                self.compute(row, column, inside, here, error)?;
            }
            at = at.saturating_add(distance(here.len()));
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let limit = check_extent(offset, limit_bytes, self.size_bytes)?;
        let (_, number, inside, left) = self.place(offset);
        extent_of(
            column(&self.columns, number)?,
            offset,
            inside,
            left.min(limit),
        )
    }
}

/// Where the copies of a chunk of RAID-10 lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FarCopies {
    /// There are only near ones.
    None,
    /// So many, each in its own part of the columns.
    Far(u32),
    /// So many, each in the next row.
    Offset(u32),
}

/// RAID-10 of MD.
pub struct Redundant {
    columns: Vec<Member>,
    chunk_bytes: u64,
    near: u64,
    far: u64,
    /// Rows per row of data.
    row_factor: u64,
    /// From one far copy to the next in a column.
    stride_bytes: u64,
    size_bytes: u64,
}

impl Redundant {
    /// With `near` copies side by side, and others further away.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] when the numbers do not fit together.
    pub fn new(
        columns: Vec<Member>,
        chunk_bytes: u64,
        near: u32,
        far_copies: FarCopies,
        told_bytes: Option<u64>,
    ) -> Result<Self> {
        let column = column_bytes(&columns, told_bytes, chunk_bytes)?;
        let count = distance(columns.len());
        let (far, is_offset) = match far_copies {
            FarCopies::None => (1, false),
            FarCopies::Far(far) => (u64::from(far), false),
            FarCopies::Offset(far) => (u64::from(far), true),
        };
        let near = u64::from(near);
        let copies = near.saturating_mul(far);
        if near == 0 || far == 0 || copies > count {
            return Err(Error::corrupt(format!(
                "{near} near and {far} far copies over {count} columns"
            )));
        }
        // As the kernel's calc_sectors does: chunks per far part, over all columns, per near copy.
        let chunks = divide(divide(column, chunk_bytes).0, far).0;
        let data_chunks = divide(chunks.saturating_mul(count), near).0;
        let used = data_chunks.saturating_mul(copies).div_ceil(count.max(1));
        let stride_bytes = if is_offset {
            chunk_bytes
        } else {
            divide(used, far).0.saturating_mul(chunk_bytes)
        };
        Ok(Self {
            columns,
            chunk_bytes,
            near,
            far,
            row_factor: if is_offset { far } else { 1 },
            stride_bytes,
            size_bytes: data_chunks.saturating_mul(chunk_bytes),
        })
    }

    /// Columns and places of the copies of a byte, and how many bytes of the chunk are left.
    fn places(&self, offset: u64) -> (Vec<(usize, u64)>, u64) {
        let (chunk, inside) = divide(offset, self.chunk_bytes);
        let count = distance(self.columns.len());
        let mut places = Vec::new();
        for copy in 0..self.near {
            let (row, column) = divide(chunk.saturating_mul(self.near).saturating_add(copy), count);
            // A near copy that wraps lies in the next chunk row of the first columns.
            let first_row = divide(chunk.saturating_mul(self.near), count).0;
            let wrapped = row.saturating_sub(first_row);
            let at = first_row
                .saturating_mul(self.row_factor)
                .saturating_add(wrapped)
                .saturating_mul(self.chunk_bytes)
                .saturating_add(inside);
            for far in 0..self.far {
                let shifted = column.saturating_add(far.saturating_mul(self.near));
                places.push((
                    index(divide(shifted, count).1),
                    at.saturating_add(far.saturating_mul(self.stride_bytes)),
                ));
            }
        }
        (places, self.chunk_bytes.saturating_sub(inside))
    }
}

impl ReadAt for Redundant {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, distance(buffer.len()), self.size_bytes)?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (places, left) = self.places(at);
            let here = take(left, &mut rest);
            let mut outcome = Err(missing("every copy of a chunk"));
            for (number, inside) in places {
                outcome = column(&self.columns, number)
                    .and_then(Member::source)
                    .and_then(|source| source.read_at(inside, here));
                if outcome.is_ok() {
                    break;
                }
            }
            outcome?;
            at = at.saturating_add(distance(here.len()));
        }
        Ok(())
    }
}
