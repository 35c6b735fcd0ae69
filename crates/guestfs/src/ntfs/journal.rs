//! Whether the journal `$LogFile` was closed properly. It is looked at, not replayed.
//!
//! ```text
//!  page 0, page 1: "RSTR" │ fixups │ size of a page │ restart area: newest LSN │ client in use │ flags
//! ```
//!
//! Clean is: no client in use, or the flag that says so; or a journal of nothing but 0xFF, as `mkntfs` and `ntfsfix` leave it.

use super::arithmetic::length;
use super::record::{DATA, apply_fixups};
use super::stream::AttributeReader;
use super::table::FileTable;
use crate::{Error, Result, field};

const JOURNAL_RECORD: u64 = 2;
const NO_CLIENT: u16 = 0xFFFF;
const IS_CLEAN: u16 = 2;

/// `None` when there is nothing to replay, else why there is.
pub(super) fn pending(table: &FileTable) -> Result<Option<String>> {
    let file = table.file(JOURNAL_RECORD)?;
    let reader = table.reader(&file, DATA, &[])?;
    let (first, page_bytes) = match restart_page(&reader, 0, 4096) {
        Ok(Page::Restart(area, page_bytes)) => (Ok(area), page_bytes),
        Ok(Page::Empty) => return Ok(None),
        Ok(Page::Checked) => {
            return Ok(Some(
                "chkdsk wrote to its journal and did not end".to_owned(),
            ));
        }
        Err(error) => (Err(error), 4096),
    };
    let second = match restart_page(&reader, page_bytes, page_bytes) {
        Ok(Page::Restart(area, _)) => Some(area),
        _ => None,
    };
    let newest = match (first, second) {
        (Ok(first), Some(second)) if second.lsn > first.lsn => second,
        (Ok(first), _) => first,
        (Err(_), Some(second)) => second,
        (Err(error), None) => return Err(error),
    };
    let is_clean = newest.client == NO_CLIENT || newest.flags & IS_CLEAN != 0;
    Ok((!is_clean).then(|| {
        "it was in use: its journal was not replayed, so that the latest changes may be missing"
            .to_owned()
    }))
}

struct RestartArea {
    lsn: u64,
    client: u16,
    flags: u16,
}

enum Page {
    Empty,
    Checked,
    Restart(RestartArea, u64),
}

fn restart_page(reader: &AttributeReader, offset: u64, size: u64) -> Result<Page> {
    if !size.is_power_of_two() || !(512..=65536).contains(&size) {
        return Err(Error::corrupt(format!("pages of {size} bytes")));
    }
    let mut page = vec![0; length(size)?];
    reader.read(offset, &mut page)?;
    match field::slice(&page, 0, 4)? {
        b"\xFF\xFF\xFF\xFF" => return Ok(Page::Empty),
        b"CHKD" => return Ok(Page::Checked),
        b"RSTR" => {}
        _ => return Err(Error::corrupt("no restart page")),
    }
    let page_bytes = u64::from(field::u32_le(&page, 16)?);
    if page_bytes != size {
        return match restart_page_of(reader, offset, page_bytes)? {
            Some(area) => Ok(Page::Restart(area, page_bytes)),
            None => Err(Error::corrupt(format!("pages of {page_bytes} bytes"))),
        };
    }
    apply_fixups(&mut page, b"RSTR")?;
    Ok(Page::Restart(area(&page)?, page_bytes))
}

/// The same with the size that the page itself says.
fn restart_page_of(
    reader: &AttributeReader,
    offset: u64,
    size: u64,
) -> Result<Option<RestartArea>> {
    if !size.is_power_of_two() || !(512..=65536).contains(&size) {
        return Ok(None);
    }
    let mut page = vec![0; length(size)?];
    reader.read(offset, &mut page)?;
    apply_fixups(&mut page, b"RSTR")?;
    area(&page).map(Some)
}

fn area(page: &[u8]) -> Result<RestartArea> {
    let at = usize::from(field::u16_le(page, 24)?);
    Ok(RestartArea {
        lsn: field::u64_le(page, at)?,
        client: field::u16_le(page, at.saturating_add(12))?,
        flags: field::u16_le(page, at.saturating_add(14))?,
    })
}
