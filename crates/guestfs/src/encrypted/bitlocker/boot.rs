//! The first sector of a BitLocker volume: where the metadata lies.
//!
//! ```text
//!   Windows 7 and later, To Go    … identifier of BitLocker [16]  three places [8]
//!   encrypting on write           … its identifier [16]           three places [8]  two places of conversion [8]
//!   Windows Vista                 "-FVE-FS-" at 3, cluster of the first copy at 56
//! ```
//!
//! The identifiers are looked for anywhere in the sector, as Windows does: their place differs between layouts.

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

use block::ReadAt;

use super::super::sectors::check_sector;
use crate::volume::pieces::read_head;
use crate::{Error, Result, field};

/// 4967d63b-2e29-4ad8-8399-f6a339e3d001.
const PLACES_ID: [u8; 16] = 0x4967_d63b_2e29_4ad8_8399_f6a3_39e3_d001_u128.to_be_bytes();
/// 92a84d3b-dd80-4d0e-9e4e-b1e3284eaed8.
const CONVERSION_ID: [u8; 16] = 0x92a8_4d3b_dd80_4d0e_9e4e_b1e3_284e_aed8_u128.to_be_bytes();

/// What it says.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) sector_bytes: usize,
    pub(super) cluster_bytes: u64,
    /// Where copies of the metadata lie.
    pub(super) places: Vec<u64>,
    /// Where copies of the record of a conversion lie.
    pub(super) conversion_places: Vec<u64>,
}

/// An identifier as Windows writes it: its first three numbers are little-endian.
fn mixed(id: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = id;
    let [i, j, k, l, m, n, o, p] = rest;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

fn behind(sector: &[u8], id: [u8; 16]) -> Option<usize> {
    let id = mixed(id);
    let at = sector.windows(16).position(|window| window == id)?;
    at.checked_add(16)
}

fn numbers(sector: &[u8], at: usize, count: usize) -> Result<Vec<u64>> {
    field::slice(sector, at, count.saturating_mul(8))?
        .chunks_exact(8)
        .map(|number| field::u64_le(number, 0))
        .collect()
}

/// Reads it.
pub(super) fn read(volume: &dyn ReadAt) -> Result<Boot> {
    let sector = read_head(volume, 0, 512)?;
    let sector_bytes = usize::from(field::u16_le(&sector, 11)?);
    check_sector(sector_bytes)?;
    let cluster_sectors = u64::from(field::u8_at(&sector, 13)?);
    let mut boot = Boot {
        sector_bytes,
        cluster_bytes: cluster_sectors.saturating_mul(field::bytes(sector_bytes)),
        places: Vec::new(),
        conversion_places: Vec::new(),
    };
    if let Some(at) = behind(&sector, CONVERSION_ID) {
        let places = numbers(&sector, at, 5)?;
        let (copies, conversion) = places.split_at_checked(3).unwrap_or_default();
        boot.places = copies.to_vec();
        boot.conversion_places = conversion.to_vec();
    } else if let Some(at) = behind(&sector, PLACES_ID) {
        boot.places = numbers(&sector, at, 3)?;
    } else if field::slice(&sector, 3, 8)? == b"-FVE-FS-" {
        let place = field::u64_le(&sector, 56)?
            .checked_mul(boot.cluster_bytes)
            .ok_or_else(|| Error::corrupt("the place of its metadata"))?;
        boot.places = vec![place];
    } else {
        return Err(Error::corrupt("the boot sector names no metadata"));
    }
    Ok(boot)
}
