//! The bytes of NTLM's messages (MS-NLMP 2.2).
//!
//! ```text
//!   NEGOTIATE     "NTLMSSP\0" 1 | flags @12 | domain @16 | workstation @24 | version @32
//!   CHALLENGE     "NTLMSSP\0" 2 | target name @12 | flags @20 | challenge @24 | 0 @32 | target info @40 | version @48 | …
//!   AUTHENTICATE  "NTLMSSP\0" 3 | LM @12 | NT @20 | domain @28 | user @36 | workstation @44 | session key @52 | flags @60
//!                 | version @64 | MIC @72 | …
//!   a field is length (2), room (2), offset (4)
//!   target info   { id (2), length (2), value }*, ended by id 0
//! ```

use crate::{Error, ErrorKind, Result};

pub(in crate::auth) const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";

/// Where the MIC of an AUTHENTICATE lies, and how long it is.
pub(super) const MIC_AT: usize = 72;
pub(super) const MIC_BYTES: usize = 16;

/// Version 10.0, revision 15: informational (MS-NLMP 2.2.2.10).
const VERSION: [u8; 8] = [0x0a, 0x00, 0x63, 0x45, 0x00, 0x00, 0x00, 0x0f];

/// Flags of MS-NLMP 2.2.2.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags(pub(super) u32);

impl Flags {
    pub(super) const UNICODE: Self = Self(0x0000_0001);
    pub(super) const OEM: Self = Self(0x0000_0002);
    pub(super) const REQUEST_TARGET: Self = Self(0x0000_0004);
    pub(super) const SIGN: Self = Self(0x0000_0010);
    pub(super) const SEAL: Self = Self(0x0000_0020);
    pub(super) const NTLM: Self = Self(0x0000_0200);
    pub(super) const ALWAYS_SIGN: Self = Self(0x0000_8000);
    pub(super) const TARGET_IS_SERVER: Self = Self(0x0002_0000);
    pub(super) const EXTENDED_SECURITY: Self = Self(0x0008_0000);
    pub(super) const TARGET_INFO: Self = Self(0x0080_0000);
    pub(super) const VERSION: Self = Self(0x0200_0000);
    pub(super) const STRONG: Self = Self(0x2000_0000);
    pub(super) const KEY_EXCHANGE: Self = Self(0x4000_0000);
    pub(super) const WEAK: Self = Self(0x8000_0000);

    pub(super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn only(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

fn bytes_at<const N: usize>(message: &[u8], at: usize) -> Result<[u8; N]> {
    at.checked_add(N)
        .and_then(|end| message.get(at..end))
        .and_then(|slice| slice.try_into().ok())
        .ok_or_else(|| Error::malformed(format!("NTLM message: cut short at byte {at}")))
}

fn u16_at(message: &[u8], at: usize) -> Result<u16> {
    bytes_at(message, at).map(u16::from_le_bytes)
}

fn u32_at(message: &[u8], at: usize) -> Result<u32> {
    bytes_at(message, at).map(u32::from_le_bytes)
}

/// What the field at `at` points to; empty when its length is zero, wherever it points.
fn field_at(message: &[u8], at: usize) -> Result<&[u8]> {
    let length = usize::from(u16_at(message, at)?);
    if length == 0 {
        return Ok(&[]);
    }
    let broken = || {
        Error::malformed(format!(
            "NTLM message: the field at byte {at} points outside"
        ))
    };
    let offset = u32_at(message, at.saturating_add(4))?;
    let offset = usize::try_from(offset).map_err(|_| broken())?;
    let end = offset.checked_add(length).ok_or_else(broken)?;
    message.get(offset..end).ok_or_else(broken)
}

fn check_kind(message: &[u8], kind: u32) -> Result<()> {
    if message.get(..8) != Some(SIGNATURE.as_slice()) {
        return Err(Error::malformed("NTLM message: signature"));
    }
    match u32_at(message, 8)? {
        found if found == kind => Ok(()),
        found => Err(Error::malformed(format!(
            "NTLM message: kind {found} instead of {kind}"
        ))),
    }
}

fn text(bytes: &[u8]) -> Result<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Error::malformed("NTLM message: half a UTF-16 unit"));
    }
    let units: Vec<u16> = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    String::from_utf16(&units)
        .map_err(|cause| Error::malformed("NTLM message: UTF-16").caused_by(cause))
}

/// Text as the flags say: UTF-16, or a code page of which only ASCII is known here.
fn text_as(flags: Flags, bytes: &[u8]) -> Result<String> {
    if flags.has(Flags::UNICODE) {
        return text(bytes);
    }
    if !bytes.is_ascii() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "NTLM message: a name in an unknown code page",
        ));
    }
    Ok(bytes.iter().copied().map(char::from).collect())
}

/// Writes fields behind a fixed head.
struct MessageWriter {
    head: Vec<u8>,
    payload: Vec<u8>,
    head_bytes: usize,
}

impl MessageWriter {
    fn new(kind: u32, head_bytes: usize) -> Self {
        let mut head = SIGNATURE.to_vec();
        head.extend_from_slice(&kind.to_le_bytes());
        Self {
            head,
            payload: Vec::new(),
            head_bytes,
        }
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.head.extend_from_slice(bytes);
    }

    fn field(&mut self, bytes: &[u8]) -> Result<()> {
        let too_long = |_| Error::new(ErrorKind::Limit, "NTLM message: a field is too long");
        let length = u16::try_from(bytes.len()).map_err(too_long)?;
        let offset = self.head_bytes.saturating_add(self.payload.len());
        let offset = u32::try_from(offset).map_err(too_long)?;
        self.raw(&length.to_le_bytes());
        self.raw(&length.to_le_bytes());
        self.raw(&offset.to_le_bytes());
        self.payload.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        assert_eq!(
            self.head.len(),
            self.head_bytes,
            "the head has its fixed size"
        );
        self.head.append(&mut self.payload);
        self.head
    }
}

/// NEGOTIATE as we send it.
pub(super) fn write_negotiate(flags: Flags) -> Result<Vec<u8>> {
    let mut out = MessageWriter::new(1, 40);
    out.raw(&flags.0.to_le_bytes());
    out.field(&[])?;
    out.field(&[])?;
    out.raw(&VERSION);
    Ok(out.finish())
}

/// The flags of a NEGOTIATE; names in it are not looked at.
pub(super) fn read_negotiate(message: &[u8]) -> Result<Flags> {
    check_kind(message, 1)?;
    u32_at(message, 12).map(Flags)
}

/// A CHALLENGE.
#[derive(Debug, Clone)]
pub(super) struct Challenge {
    pub(super) flags: Flags,
    pub(super) nonce: [u8; 8],
    pub(super) target_name: String,
    pub(super) target_info: TargetInfo,
}

impl Challenge {
    pub(super) fn write(&self) -> Result<Vec<u8>> {
        let mut out = MessageWriter::new(2, 56);
        out.field(&if self.flags.has(Flags::UNICODE) {
            crate::auth::secret::utf16(&self.target_name)
        } else {
            self.target_name.clone().into_bytes()
        })?;
        out.raw(&self.flags.0.to_le_bytes());
        out.raw(&self.nonce);
        out.raw(&[0; 8]);
        out.field(&self.target_info.write()?)?;
        out.raw(&VERSION);
        Ok(out.finish())
    }

    pub(super) fn read(message: &[u8]) -> Result<Self> {
        check_kind(message, 2)?;
        let flags = Flags(u32_at(message, 20)?);
        let target_info = if flags.has(Flags::TARGET_INFO) {
            TargetInfo::read(field_at(message, 40)?)?
        } else {
            TargetInfo::default()
        };
        Ok(Self {
            flags,
            nonce: bytes_at(message, 24)?,
            // Informational, and in a code page when Unicode was not agreed on, which is refused later.
            target_name: text(field_at(message, 12)?).unwrap_or_default(),
            target_info,
        })
    }
}

/// An AUTHENTICATE.
#[derive(Debug, Clone)]
pub(super) struct Authenticate {
    pub(super) flags: Flags,
    pub(super) lm_response: Vec<u8>,
    pub(super) nt_response: Vec<u8>,
    pub(super) domain: String,
    pub(super) user: String,
    pub(super) workstation: String,
    pub(super) session_key: Vec<u8>,
}

impl Authenticate {
    /// With a MIC of zeros, to be filled in.
    pub(super) fn write(&self) -> Result<Vec<u8>> {
        let mut out = MessageWriter::new(3, MIC_AT + MIC_BYTES);
        out.field(&self.lm_response)?;
        out.field(&self.nt_response)?;
        for name in [&self.domain, &self.user, &self.workstation] {
            out.field(&crate::auth::secret::utf16(name))?;
        }
        out.field(&self.session_key)?;
        out.raw(&self.flags.0.to_le_bytes());
        out.raw(&VERSION);
        out.raw(&[0; MIC_BYTES]);
        Ok(out.finish())
    }

    pub(super) fn read(message: &[u8]) -> Result<Self> {
        check_kind(message, 3)?;
        let flags = Flags(u32_at(message, 60)?);
        Ok(Self {
            flags,
            lm_response: field_at(message, 12)?.to_vec(),
            nt_response: field_at(message, 20)?.to_vec(),
            domain: text_as(flags, field_at(message, 28)?)?,
            user: text_as(flags, field_at(message, 36)?)?,
            workstation: text_as(flags, field_at(message, 44)?)?,
            session_key: field_at(message, 52)?.to_vec(),
        })
    }
}

/// The MIC of an AUTHENTICATE that has one, and the same message with zeros in its place.
pub(super) fn split_mic(message: &[u8]) -> Result<([u8; MIC_BYTES], Vec<u8>)> {
    let mic = bytes_at(message, MIC_AT)?;
    Ok((mic, with_mic(message, &[0; MIC_BYTES])?))
}

/// The same message with that MIC.
pub(super) fn with_mic(message: &[u8], mic: &[u8; MIC_BYTES]) -> Result<Vec<u8>> {
    let mut message = message.to_vec();
    message
        .get_mut(MIC_AT..MIC_AT + MIC_BYTES)
        .ok_or_else(|| Error::malformed("NTLM AUTHENTICATE: no room for the MIC"))?
        .copy_from_slice(mic);
    Ok(message)
}

/// Ids of [`TargetInfo`] (MS-NLMP 2.2.2.1).
pub(super) mod id {
    pub(in super::super) const END: u16 = 0;
    pub(in super::super) const NETBIOS_COMPUTER: u16 = 1;
    pub(in super::super) const NETBIOS_DOMAIN: u16 = 2;
    pub(in super::super) const DNS_COMPUTER: u16 = 3;
    pub(in super::super) const DNS_DOMAIN: u16 = 4;
    pub(in super::super) const FLAGS: u16 = 6;
    pub(in super::super) const TIMESTAMP: u16 = 7;
    pub(in super::super) const TARGET_NAME: u16 = 9;
    pub(in super::super) const CHANNEL_BINDING: u16 = 10;
}

/// In [`id::FLAGS`]: the messages carry a MIC.
pub(super) const MIC_PRESENT: u32 = 2;

const PAIRS_MAX: usize = 64;

/// A list of attributes, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TargetInfo {
    pairs: Vec<(u16, Vec<u8>)>,
}

impl TargetInfo {
    /// Up to the end mark; what lies behind it is padding.
    pub(super) fn read(mut bytes: &[u8]) -> Result<Self> {
        let truncated = || Error::malformed("NTLM target info: cut short");
        let mut pairs = Vec::new();
        loop {
            let id = u16_at(bytes, 0)?;
            let length = usize::from(u16_at(bytes, 2)?);
            if id == id::END {
                return Ok(Self { pairs });
            }
            if pairs.len() == PAIRS_MAX {
                return Err(Error::limit("NTLM target info: too many attributes"));
            }
            let rest = bytes.get(4..).ok_or_else(truncated)?;
            let (value, rest) = rest.split_at_checked(length).ok_or_else(truncated)?;
            pairs.push((id, value.to_vec()));
            bytes = rest;
        }
    }

    pub(super) fn write(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (id, value) in &self.pairs {
            let length = u16::try_from(value.len())
                .map_err(|_| Error::limit("NTLM target info: a value is too long"))?;
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(value);
        }
        out.extend_from_slice(&[0; 4]);
        Ok(out)
    }

    pub(super) fn get(&self, id: u16) -> Option<&[u8]> {
        let found = self.pairs.iter().find(|pair| pair.0 == id);
        found.map(|pair| pair.1.as_slice())
    }

    /// Puts a value in place of the one that is there, or at the end.
    pub(super) fn set(&mut self, id: u16, value: Vec<u8>) {
        match self.pairs.iter_mut().find(|pair| pair.0 == id) {
            Some(pair) => pair.1 = value,
            None => self.pairs.push((id, value)),
        }
    }

    pub(super) fn set_text(&mut self, id: u16, value: &str) {
        self.set(id, crate::auth::secret::utf16(value));
    }

    /// The value of [`id::FLAGS`]; zero when there is none.
    pub(super) fn flags(&self) -> u32 {
        self.get(id::FLAGS)
            .and_then(|value| value.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    }
}
