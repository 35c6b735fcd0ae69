//! Signing and sealing with extended session security (MS-NLMP 3.4.4.2).
//!
//! ```text
//!   signature: version 1 (4) | first 8 bytes of HMAC-MD5(sign key, sequence, plain), through RC4 after a key exchange | sequence (4)
//! ```
//!
//! **Invariant.** Each direction counts on its own, and its RC4 stream goes on from message to message: what is lost or comes
//! twice no longer opens.

use rc4::{Rc4, StreamCipher};

use super::keys::{self, Direction, Key};
use crate::auth::{Seal, Sealed};
use crate::{Error, ErrorKind, Result};

const VERSION: [u8; 4] = [1, 0, 0, 0];

/// Which side of a connection somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// Whether the session key was exchanged, which is whether checksums are enciphered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum {
    Enciphered,
    Plain,
}

struct Stream {
    sign_key: Key,
    seal_key: Key,
    cipher: Rc4,
    checksum: Checksum,
    sequence: u32,
}

impl Stream {
    fn new(session: &[u8; 16], direction: Direction, checksum: Checksum) -> Self {
        let seal_key = keys::seal_key(session, direction);
        Self {
            sign_key: keys::sign_key(session, direction),
            cipher: keys::cipher(&seal_key),
            seal_key,
            checksum,
            sequence: 0,
        }
    }

    /// The signature of the next message. When it is sealed, too, that comes first.
    fn signature(&mut self, plain: &[u8]) -> [u8; 16] {
        let sequence = self.sequence.to_le_bytes();
        let mac = keys::hmac_md5(self.sign_key.as_slice(), &[&sequence, plain]);
        let mut checksum = [0; 8];
        checksum.copy_from_slice(mac.split_at(8).0);
        if self.checksum == Checksum::Enciphered {
            self.cipher.apply_keystream(&mut checksum);
        }
        self.sequence = self.sequence.wrapping_add(1);
        let mut out = [0; 16];
        let parts = VERSION.iter().chain(&checksum).chain(&sequence);
        for (to, from) in out.iter_mut().zip(parts) {
            *to = *from;
        }
        out
    }

    fn is_signature(&mut self, plain: &[u8], signature: &[u8]) -> bool {
        crate::auth::equal(&self.signature(plain), signature)
    }

    /// The key stream begins again; the count does not (MS-SPNG 3.3.5.1).
    fn restart_cipher(&mut self) {
        self.cipher = keys::cipher(&self.seal_key);
    }
}

/// The keys of a connection.
pub struct NtlmSeal {
    outgoing: Stream,
    incoming: Stream,
}

impl NtlmSeal {
    pub(super) fn new(session: &[u8; 16], side: Side, checksum: Checksum) -> Self {
        let (outgoing, incoming) = match side {
            Side::Client => (Direction::ToServer, Direction::ToClient),
            Side::Server => (Direction::ToClient, Direction::ToServer),
        };
        Self {
            outgoing: Stream::new(session, outgoing, checksum),
            incoming: Stream::new(session, incoming, checksum),
        }
    }

    /// Signs SPNEGO's list of mechanisms.
    pub(in crate::auth) fn sign_mechanisms(&mut self, list: &[u8]) -> [u8; 16] {
        let signature = self.outgoing.signature(list);
        self.outgoing.restart_cipher();
        signature
    }

    /// Checks the other side's signature of SPNEGO's list of mechanisms.
    pub(in crate::auth) fn check_mechanisms(&mut self, list: &[u8], mic: &[u8]) -> Result<()> {
        if !self.incoming.is_signature(list, mic) {
            return Err(Error::new(
                ErrorKind::Refused,
                "the signature of the list of mechanisms is wrong",
            ));
        }
        self.incoming.restart_cipher();
        Ok(())
    }
}

impl Seal for NtlmSeal {
    fn seal(&mut self, plain: &[u8]) -> Result<Sealed> {
        let mut data = plain.to_vec();
        self.outgoing.cipher.apply_keystream(&mut data);
        Ok(Sealed {
            header: self.outgoing.signature(plain).to_vec(),
            data,
        })
    }

    fn open(&mut self, header: &[u8], mut data: Vec<u8>) -> Result<Vec<u8>> {
        self.incoming.cipher.apply_keystream(&mut data);
        if self.incoming.is_signature(&data, header) {
            Ok(data)
        } else {
            Err(Error::new(
                ErrorKind::Refused,
                "the signature of a sealed body is wrong",
            ))
        }
    }
}
