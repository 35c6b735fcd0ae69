//! The asking half of NTLMv2.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::keys::{self, Key};
use super::message::{self, Authenticate, Challenge, Flags, MIC_PRESENT, TargetInfo, id};
use super::seal::{Checksum, NtlmSeal, Side};
use crate::auth::account::LoginName;
use crate::auth::binding::ChannelBinding;
use crate::auth::{Entropy, NtHash, filetime};
use crate::{Error, ErrorKind, Result};

const WANTED: Flags = Flags::UNICODE
    .with(Flags::REQUEST_TARGET)
    .with(Flags::SIGN)
    .with(Flags::SEAL)
    .with(Flags::NTLM)
    .with(Flags::ALWAYS_SIGN)
    .with(Flags::EXTENDED_SECURITY)
    .with(Flags::TARGET_INFO)
    .with(Flags::VERSION)
    .with(Flags::STRONG)
    .with(Flags::KEY_EXCHANGE)
    .with(Flags::WEAK);

/// Without these a server is not talked to.
const NEEDED: Flags = Flags::UNICODE
    .with(Flags::SIGN)
    .with(Flags::SEAL)
    .with(Flags::EXTENDED_SECURITY)
    .with(Flags::STRONG);

/// Whose login, and to whom.
#[derive(Debug, Clone)]
pub struct NtlmClientOptions {
    /// The account.
    pub login: LoginName,
    /// The hash of its password.
    pub hash: NtHash,
    /// The service's name, such as `HTTP/hv01.example.net`; the server may compare it.
    pub target: String,
    /// Over TLS: the channel.
    pub binding: Option<ChannelBinding>,
}

/// One login: [`NtlmClient::negotiate`], then [`NtlmClient::authenticate`].
pub struct NtlmClient {
    options: NtlmClientOptions,
    entropy: Arc<dyn Entropy>,
    negotiate: Vec<u8>,
}

/// The last message and what holds from then on.
pub(in crate::auth) struct Authenticated {
    pub(in crate::auth) message: Vec<u8>,
    pub(in crate::auth) seal: NtlmSeal,
    /// Where the messages are signed, SPNEGO's list has to be, too.
    pub(in crate::auth) mic: Mic,
}

/// Whether the messages are signed: with servers that send their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::auth) enum Mic {
    Sent,
    Absent,
}

impl NtlmClient {
    /// A login that has not begun.
    pub fn new(options: NtlmClientOptions, entropy: Arc<dyn Entropy>) -> Self {
        Self {
            options,
            entropy,
            negotiate: Vec::new(),
        }
    }

    /// The first message.
    pub(in crate::auth) fn negotiate(&mut self) -> Result<Vec<u8>> {
        self.negotiate = message::write_negotiate(WANTED)?;
        Ok(self.negotiate.clone())
    }

    /// The last message, from what the server asked.
    pub(in crate::auth) fn authenticate(&self, challenge_bytes: &[u8]) -> Result<Authenticated> {
        let challenge = Challenge::read(challenge_bytes)?;
        if !challenge.flags.has(NEEDED) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "NTLM: the server offers too little (flags {:#010x}): sealing with 128 bits is needed",
                    challenge.flags.0
                ),
            ));
        }
        let timestamp = challenge.target_info.get(id::TIMESTAMP);
        let mic = match timestamp {
            Some(_) => Mic::Sent,
            None => Mic::Absent,
        };
        let time = match timestamp.map(TryInto::try_into) {
            Some(Ok(time)) => time,
            Some(Err(_)) => return Err(Error::malformed("NTLM CHALLENGE: the timestamp's size")),
            None => filetime(self.entropy.now()).to_le_bytes(),
        };
        let mut client_nonce = [0; 8];
        self.entropy.fill(&mut client_nonce)?;
        let login = &self.options.login;
        let domain = login.domain().unwrap_or_default();
        let response_key = keys::response_key(&self.options.hash, login.user(), domain);
        let blob = client_blob(time, client_nonce, &self.target_info(&challenge, mic))?;
        let proof = keys::hmac_md5(response_key.as_slice(), &[&challenge.nonce, &blob]);
        let base_key = Zeroizing::new(keys::hmac_md5(response_key.as_slice(), &[&proof]));
        let (session_key, exchanged, checksum) = self.session_key(&challenge, base_key)?;
        let mut nt_response = proof.to_vec();
        nt_response.extend_from_slice(&blob);
        let message = Authenticate {
            flags: challenge.flags.only(WANTED),
            lm_response: lm_response(&response_key, &challenge, client_nonce, mic),
            nt_response,
            domain: domain.to_owned(),
            user: login.user().to_owned(),
            workstation: String::new(),
            session_key: exchanged,
        }
        .write()?;
        let message = if mic == Mic::Sent {
            let parts: [&[u8]; 3] = [&self.negotiate, challenge_bytes, &message];
            let mic = keys::hmac_md5(session_key.as_slice(), &parts);
            message::with_mic(&message, &mic)?
        } else {
            message
        };
        Ok(Authenticated {
            message,
            seal: NtlmSeal::new(&session_key, Side::Client, checksum),
            mic,
        })
    }

    fn target_info(&self, challenge: &Challenge, mic: Mic) -> TargetInfo {
        let mut info = challenge.target_info.clone();
        if mic == Mic::Sent {
            let flags = info.flags() | MIC_PRESENT;
            info.set(id::FLAGS, flags.to_le_bytes().to_vec());
        }
        info.set_text(id::TARGET_NAME, &self.options.target);
        let binding = self.options.binding.as_ref();
        let binding = binding.map_or([0; 16], ChannelBinding::ntlm_hash);
        info.set(id::CHANNEL_BINDING, binding.to_vec());
        info
    }

    /// The session key, how it travels, and what follows for checksums.
    fn session_key(&self, challenge: &Challenge, base: Key) -> Result<(Key, Vec<u8>, Checksum)> {
        if !challenge.flags.has(Flags::KEY_EXCHANGE) {
            return Ok((base, Vec::new(), Checksum::Plain));
        }
        let mut session = Zeroizing::new([0; 16]);
        self.entropy.fill(session.as_mut_slice())?;
        let mut exchanged = session.to_vec();
        keys::rc4(&base, &mut exchanged);
        Ok((session, exchanged, Checksum::Enciphered))
    }
}

/// `NTLMv2_CLIENT_CHALLENGE` (MS-NLMP 2.2.2.7).
fn client_blob(time: [u8; 8], nonce: [u8; 8], info: &TargetInfo) -> Result<Vec<u8>> {
    let mut blob = vec![1, 1, 0, 0, 0, 0, 0, 0];
    blob.extend_from_slice(&time);
    blob.extend_from_slice(&nonce);
    blob.extend_from_slice(&[0; 4]);
    blob.extend_from_slice(&info.write()?);
    blob.extend_from_slice(&[0; 4]);
    Ok(blob)
}

/// LMv2, or zeros to a server that sends its time (MS-NLMP 3.1.5.1.2).
fn lm_response(key: &Key, challenge: &Challenge, nonce: [u8; 8], mic: Mic) -> Vec<u8> {
    if mic == Mic::Sent {
        return vec![0; 24];
    }
    let mut response = keys::hmac_md5(key.as_slice(), &[&challenge.nonce, &nonce]).to_vec();
    response.extend_from_slice(&nonce);
    response
}
