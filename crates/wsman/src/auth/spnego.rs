//! SPNEGO (RFC 4178, MS-SPNG): the envelope in which two sides agree on a mechanism.
//!
//! ```text
//!   first token:  60 { OID SPNEGO, A0 { 30 { A0 mechTypes, A1 flags?, A2 mechToken?, A3 … } } }
//!   all others:   A1 { 30 { A0 negState?, A1 supportedMech?, A2 responseToken?, A3 mechListMIC? } }
//! ```

use super::der::{self, DerReader, context};
use crate::{Error, Result};

const APPLICATION: u8 = 0x60;
const OID_SPNEGO: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x02];

/// NTLM: 1.3.6.1.4.1.311.2.2.10.
pub(super) const OID_NTLM: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x02, 0x0a];
/// Kerberos: 1.2.840.113554.1.2.2.
const OID_KERBEROS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 0x01, 0x02, 0x02];
/// Kerberos as Windows 2000 mistyped it, offered first to this day: 1.2.840.48018.1.2.2.
const OID_KERBEROS_MICROSOFT: &[u8] = &[0x2a, 0x86, 0x48, 0x82, 0xf7, 0x12, 0x01, 0x02, 0x02];

/// More mechanisms than anybody offers.
const MECHANISMS_MAX: usize = 32;

/// A mechanism that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    Ntlm,
    Kerberos,
    Other,
}

impl Mechanism {
    fn of(oid: &[u8]) -> Self {
        match oid {
            OID_NTLM => Self::Ntlm,
            OID_KERBEROS | OID_KERBEROS_MICROSOFT => Self::Kerberos,
            _ => Self::Other,
        }
    }
}

/// What a first token is.
#[derive(Debug)]
pub(super) enum FirstToken<'a> {
    Spnego(Offer<'a>),
    /// A GSS token of Kerberos without SPNEGO around it.
    Kerberos,
}

/// `NegTokenInit`.
#[derive(Debug)]
pub(super) struct Offer<'a> {
    /// In the order of preference.
    pub(super) mechanisms: Vec<Mechanism>,
    /// The list as it was sent, which is what the mechListMIC signs.
    pub(super) mechanisms_der: &'a [u8],
    /// For the first mechanism.
    pub(super) token: Option<&'a [u8]>,
}

/// `NegTokenResp`.
#[derive(Debug, Default)]
pub(super) struct Response<'a> {
    pub(super) state: Option<State>,
    pub(super) mechanism: Option<Mechanism>,
    pub(super) token: Option<&'a [u8]>,
    pub(super) mic: Option<&'a [u8]>,
}

/// `negState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    AcceptCompleted = 0,
    AcceptIncomplete = 1,
    Reject = 2,
    RequestMic = 3,
}

/// The DER of a list with NTLM alone.
pub(super) fn ntlm_alone() -> Vec<u8> {
    der::element(der::SEQUENCE, &[&der::element(der::OID, &[OID_NTLM])])
}

/// A `NegTokenInit` that offers these and carries a token for the first.
pub(super) fn write_offer(mechanisms_der: &[u8], token: &[u8]) -> Vec<u8> {
    let body = der::element(
        der::SEQUENCE,
        &[
            &der::element(context(0), &[mechanisms_der]),
            &der::element(context(2), &[&der::element(der::OCTETS, &[token])]),
        ],
    );
    der::element(
        APPLICATION,
        &[
            &der::element(der::OID, &[OID_SPNEGO]),
            &der::element(context(0), &[&body]),
        ],
    )
}

/// A `NegTokenResp`.
pub(super) fn write_response(response: &Response<'_>) -> Vec<u8> {
    let mut parts = Vec::new();
    if let Some(state) = response.state {
        let state = der::element(der::ENUMERATED, &[&[state as u8]]);
        parts.push(der::element(context(0), &[&state]));
    }
    if response.mechanism == Some(Mechanism::Ntlm) {
        let oid = der::element(der::OID, &[OID_NTLM]);
        parts.push(der::element(context(1), &[&oid]));
    }
    for (number, octets) in [(2, response.token), (3, response.mic)] {
        if let Some(octets) = octets {
            let octets = der::element(der::OCTETS, &[octets]);
            parts.push(der::element(context(number), &[&octets]));
        }
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    der::element(context(1), &[&der::element(der::SEQUENCE, &parts)])
}

/// Reads a first token.
pub(super) fn read_first(token: &[u8]) -> Result<FirstToken<'_>> {
    let mut reader = DerReader::new(DerReader::new(token).expect(APPLICATION, "first token")?);
    let oid = reader.expect(der::OID, "first token")?;
    if Mechanism::of(oid) == Mechanism::Kerberos {
        return Ok(FirstToken::Kerberos);
    }
    if oid != OID_SPNEGO {
        return Err(Error::malformed("first token: neither SPNEGO nor Kerberos"));
    }
    let what = "SPNEGO offer";
    let body = reader.expect(context(0), what)?;
    let mut fields = DerReader::new(DerReader::new(body).expect(der::SEQUENCE, what)?);
    let list = DerReader::new(fields.expect(context(0), what)?).element()?;
    if list.tag != der::SEQUENCE {
        return Err(Error::malformed("SPNEGO offer: no list of mechanisms"));
    }
    let mut mechanisms = Vec::new();
    let mut oids = DerReader::new(list.content);
    while !oids.is_empty() {
        if mechanisms.len() == MECHANISMS_MAX {
            return Err(Error::limit("SPNEGO offer: too many mechanisms"));
        }
        mechanisms.push(Mechanism::of(oids.expect(der::OID, what)?));
    }
    fields.optional(context(1))?;
    let token = match fields.optional(context(2))? {
        Some(field) => Some(DerReader::new(field).expect(der::OCTETS, what)?),
        None => None,
    };
    Ok(FirstToken::Spnego(Offer {
        mechanisms,
        mechanisms_der: list.whole,
        token,
    }))
}

/// Reads a later token.
pub(super) fn read_response(token: &[u8]) -> Result<Response<'_>> {
    let what = "SPNEGO response";
    let body = DerReader::new(token).expect(context(1), what)?;
    let mut fields = DerReader::new(DerReader::new(body).expect(der::SEQUENCE, what)?);
    let mut response = Response::default();
    if let Some(field) = fields.optional(context(0))? {
        response.state = Some(match DerReader::new(field).expect(der::ENUMERATED, what)? {
            [0] => State::AcceptCompleted,
            [1] => State::AcceptIncomplete,
            [2] => State::Reject,
            [3] => State::RequestMic,
            _ => return Err(Error::malformed("SPNEGO response: unknown state")),
        });
    }
    if let Some(field) = fields.optional(context(1))? {
        response.mechanism = Some(Mechanism::of(DerReader::new(field).expect(der::OID, what)?));
    }
    if let Some(field) = fields.optional(context(2))? {
        response.token = Some(DerReader::new(field).expect(der::OCTETS, what)?);
    }
    if let Some(field) = fields.optional(context(3))? {
        response.mic = Some(DerReader::new(field).expect(der::OCTETS, what)?);
    }
    Ok(response)
}
