//! How a volume compares names: by its own table of upper case, then exactly.
//!
//! The table has 65536 code units in the file `$UpCase`; 256 at a time are read when a name needs them.

use std::cmp::Ordering;
use std::sync::OnceLock;

use super::record::DATA;
use super::table::FileTable;
use crate::{Result, field};

const UPCASE_RECORD: u64 = 10;
const PAGE_UNITS: usize = 256;

pub(super) struct UpperCase {
    pages: Vec<OnceLock<Vec<u16>>>,
}

impl UpperCase {
    pub(super) fn new() -> Self {
        Self {
            pages: (0..PAGE_UNITS).map(|_| OnceLock::new()).collect(),
        }
    }

    fn unit(&self, table: &FileTable, unit: u16) -> Result<u16> {
        let [low, high] = unit.to_le_bytes();
        let Some(cell) = self.pages.get(usize::from(high)) else {
            return Ok(unit);
        };
        let page = match cell.get() {
            Some(page) => page,
            None => {
                let page = read_page(table, high).map_err(|error| error.within("$UpCase"))?;
                cell.get_or_init(|| page)
            }
        };
        Ok(page.get(usize::from(low)).copied().unwrap_or(unit))
    }

    /// The order of names in a directory: without case first, then with it. The second says whether they differ in case only.
    pub(super) fn compare(
        &self,
        table: &FileTable,
        left: &[u16],
        right: &[u16],
    ) -> Result<(Ordering, NameMatch)> {
        for (left, right) in left.iter().zip(right) {
            if left == right {
                continue;
            }
            let order = self.unit(table, *left)?.cmp(&self.unit(table, *right)?);
            if order != Ordering::Equal {
                return Ok((order, NameMatch::Different));
            }
        }
        match left.len().cmp(&right.len()) {
            Ordering::Equal => {}
            order => return Ok((order, NameMatch::Different)),
        }
        match left.cmp(right) {
            Ordering::Equal => Ok((Ordering::Equal, NameMatch::Exact)),
            order => Ok((order, NameMatch::WithoutCase)),
        }
    }
}

/// How far two names are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameMatch {
    Exact,
    WithoutCase,
    Different,
}

fn read_page(table: &FileTable, high: u8) -> Result<Vec<u16>> {
    let file = table.file(UPCASE_RECORD)?;
    let reader = table.reader(&file, DATA, &[])?;
    let mut bytes = [0; PAGE_UNITS * 2];
    let offset = u64::from(high).saturating_mul(field::bytes(bytes.len()));
    reader.read(offset, &mut bytes)?;
    Ok(super::record::utf16(&bytes))
}
