//! BitLocker, the encrypted volumes of Windows: from Vista on, To Go, opened with what a person may hold.
//!
//! ```text
//!   boot sector ─► metadata (three copies) ─► protectors: password, recovery password, startup key, none
//!                                                 └► volume master key ─► volume key ─► sectors
//!   volume     [ first sectors: moved elsewhere ]…encrypted…[ metadata: zeros ]…encrypted…[ plain behind the watermark ]
//! ```
//!
//! A volume whose protection is suspended holds its key in the clear, and one that was decrypted needs none: both open
//! without a key, as they do in Windows. A volume that is being converted is read as far as its watermark or its
//! bitmaps tell; one that stopped in the middle of a step, with a log to replay, is refused.
//!
//! Sources: "BitLocker Drive Encryption (BDE) format specification" of libbde; its findings were held against volumes
//! that Windows wrote.

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

mod boot;
mod conversion;
mod metadata;
mod protector;
mod reader;

use super::{OpenedVolume, UnlockKey};
use crate::volume::pieces::Source;
use crate::{Error, Result};

/// The end of a volume that Windows is done with.
const STATE_DECRYPTED: u16 = 1;
/// In the middle of a step of conversion.
const STATE_STEP: u16 = 2;
/// The usual one.
const STATE_ENCRYPTED: u16 = 4;

/// Opens a volume with the first key that fits, or with none where none is needed.
pub(super) fn open(volume: Source, keys: &[UnlockKey]) -> Result<OpenedVolume> {
    inner(volume, keys).map_err(|error| error.within("BitLocker"))
}

fn inner(volume: Source, keys: &[UnlockKey]) -> Result<OpenedVolume> {
    let boot = boot::read(&*volume)?;
    let (information, mut findings) = metadata::read(&*volume, &boot)?;
    let conversion = conversion::read(&*volume, &boot, &mut findings)?;
    if information.state == STATE_DECRYPTED {
        let cipher = reader::VolumeCipher::none();
        let reader = reader::open(volume, &boot, &information, conversion, cipher)?;
        return Ok(OpenedVolume {
            reader,
            opened_by: "no key: it was decrypted".to_owned(),
            cipher: "none".to_owned(),
            findings,
        });
    }
    if information.state == STATE_STEP && information.step_bytes != 0 {
        return Err(Error::unsupported(
            "Windows was stopped in the middle of encrypting or decrypting it: let Windows finish first",
        ));
    }
    if conversion.is_some() {
        findings.push(
            "it was being encrypted or decrypted: what Windows worked on at that moment may read wrong"
                .to_owned(),
        );
    } else if information.state != STATE_ENCRYPTED {
        findings.push("encrypting or decrypting it is not finished".to_owned());
    }
    let (master_key, opened_by) = protector::unlock(&information, keys)?;
    if !information.is_signed_with(&master_key) {
        findings.push("its metadata is not what Windows signed".to_owned());
    }
    let volume_key = protector::volume_key(&information, &master_key)?;
    let cipher = reader::VolumeCipher::new(volume_key.method, &volume_key.bytes)?;
    let name = cipher.name().to_owned();
    let reader = reader::open(volume, &boot, &information, conversion, cipher)?;
    Ok(OpenedVolume {
        reader,
        opened_by,
        cipher: name,
        findings,
    })
}
