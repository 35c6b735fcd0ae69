//! The answering half of NTLMv2.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::keys;
use super::message::{self, Authenticate, Challenge, Flags, MIC_PRESENT, TargetInfo, id};
use super::seal::{Checksum, NtlmSeal, Side};
use crate::auth::account::{Accounts, LoginName};
use crate::auth::binding::ChannelBinding;
use crate::auth::{Entropy, NtHash, equal, filetime};
use crate::server::AccountName;
use crate::{Error, ErrorKind, Result};

/// What is granted when it is asked for.
const OFFERED: Flags = Flags::UNICODE
    .with(Flags::REQUEST_TARGET)
    .with(Flags::SIGN)
    .with(Flags::SEAL)
    .with(Flags::NTLM)
    .with(Flags::ALWAYS_SIGN)
    .with(Flags::EXTENDED_SECURITY)
    .with(Flags::VERSION)
    .with(Flags::STRONG)
    .with(Flags::KEY_EXCHANGE)
    .with(Flags::WEAK);

/// Without these there are no keys to seal with, only a login: enough over HTTPS.
const SEALING: Flags = Flags::EXTENDED_SECURITY
    .with(Flags::SIGN)
    .with(Flags::SEAL)
    .with(Flags::STRONG);

/// Bytes of a proof, before the client's blob.
const PROOF_BYTES: usize = 16;
/// Where the attributes lie in a client's blob.
const BLOB_INFO_AT: usize = 28;

/// Whether a login has to be bound to the TLS channel below it (`CbtHardeningLevel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CbtHardening {
    /// Bindings are not looked at.
    None,
    /// A binding must be right if there is one: the default of Windows.
    #[default]
    Relaxed,
    /// There must be a right one.
    Strict,
}

/// Who answers, and how strictly.
#[derive(Clone)]
pub struct NtlmServerOptions {
    /// NetBIOS name of the host, such as `HV01`.
    pub computer: String,
    /// NetBIOS name of its domain; the host's own name in a workgroup.
    pub domain: String,
    /// Full name of the host.
    pub dns_computer: String,
    /// Full name of the domain; empty in a workgroup.
    pub dns_domain: String,
    /// Whether logins have to be bound to TLS.
    pub hardening: CbtHardening,
}

/// A login that succeeded.
pub struct NtlmProof {
    /// Who it is.
    pub account: AccountName,
    /// The keys; none when the client asked for no sealing.
    pub seal: Option<NtlmSeal>,
}

/// One login: [`NtlmServer::challenge`], then [`NtlmServer::authenticate`].
pub struct NtlmServer {
    options: NtlmServerOptions,
    binding: Option<ChannelBinding>,
    accounts: Arc<dyn Accounts>,
    entropy: Arc<dyn Entropy>,
    begun: Option<Begun>,
}

struct Begun {
    negotiate: Vec<u8>,
    challenge: Vec<u8>,
    nonce: [u8; 8],
    flags: Flags,
}

impl NtlmServer {
    /// A login that has not begun; `binding` is the TLS channel's, where there is one.
    pub fn new(
        options: NtlmServerOptions,
        binding: Option<ChannelBinding>,
        accounts: Arc<dyn Accounts>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self {
            options,
            binding,
            accounts,
            entropy,
            begun: None,
        }
    }

    /// Answers the first message.
    pub(in crate::auth) fn challenge(&mut self, negotiate: &[u8]) -> Result<Vec<u8>> {
        let asked = message::read_negotiate(negotiate)?;
        let mut nonce = [0; 8];
        self.entropy.fill(&mut nonce)?;
        let charset = if asked.has(Flags::UNICODE) {
            Flags::UNICODE
        } else {
            Flags::OEM
        };
        let flags = asked
            .only(OFFERED)
            .with(charset)
            .with(Flags::TARGET_INFO)
            .with(Flags::TARGET_IS_SERVER);
        let mut target_info = TargetInfo::default();
        let names = [
            (id::NETBIOS_DOMAIN, &self.options.domain),
            (id::NETBIOS_COMPUTER, &self.options.computer),
            (id::DNS_DOMAIN, &self.options.dns_domain),
            (id::DNS_COMPUTER, &self.options.dns_computer),
        ];
        for (id, name) in names {
            target_info.set_text(id, name);
        }
        let time = filetime(self.entropy.now());
        target_info.set(id::TIMESTAMP, time.to_le_bytes().to_vec());
        let challenge = Challenge {
            flags,
            nonce,
            target_name: self.options.domain.clone(),
            target_info,
        };
        let challenge = challenge.write()?;
        self.begun = Some(Begun {
            negotiate: negotiate.to_vec(),
            challenge: challenge.clone(),
            nonce,
            flags,
        });
        Ok(challenge)
    }

    /// Judges the last message. A challenge is good for one try.
    pub(in crate::auth) fn authenticate(&mut self, bytes: &[u8]) -> Result<NtlmProof> {
        let begun = self
            .begun
            .take()
            .ok_or_else(|| Error::malformed("NTLM AUTHENTICATE without a CHALLENGE before it"))?;
        let message = Authenticate::read(bytes)?;
        let flags = message.flags.only(begun.flags);
        let (proof, blob) = message
            .nt_response
            .split_at_checked(PROOF_BYTES)
            .filter(|(_, blob)| blob.len() > BLOB_INFO_AT)
            .ok_or_else(|| Error::new(ErrorKind::Unauthorized, "NTLM: no proof of version 2"))?;
        let login = LoginName::new(Some(&message.domain), &message.user);
        let found = self.accounts.by_login(&login);
        // An unknown name takes the same way, with a hash that no password has.
        let (account, hash) = match found {
            Some((account, hash)) => (Some(account), hash),
            None => (None, NtHash::from_bytes([0; 16])),
        };
        let response_key = keys::response_key(&hash, &message.user, &message.domain);
        let is_right = keys::is_hmac_md5(response_key.as_slice(), &[&begun.nonce, blob], proof);
        let account = account.filter(|_| is_right).ok_or_else(|| {
            Error::new(ErrorKind::Unauthorized, format!("NTLM: login of {login}"))
        })?;
        let info = TargetInfo::read(blob.get(BLOB_INFO_AT..).unwrap_or(&[]))?;
        self.check_binding(&info, &login)?;
        let base_key = Zeroizing::new(keys::hmac_md5(response_key.as_slice(), &[proof]));
        let (session_key, checksum) = session_key(flags, &message, base_key)?;
        if info.flags() & MIC_PRESENT != 0 {
            let (mic, zeroed) = message::split_mic(bytes)?;
            let parts: [&[u8]; 3] = [&begun.negotiate, &begun.challenge, &zeroed];
            if !keys::is_hmac_md5(session_key.as_slice(), &parts, &mic) {
                return Err(Error::new(
                    ErrorKind::Unauthorized,
                    format!("NTLM: the messages of {login} were changed on their way"),
                ));
            }
        }
        Ok(NtlmProof {
            account,
            seal: flags
                .has(SEALING)
                .then(|| NtlmSeal::new(&session_key, Side::Server, checksum)),
        })
    }

    fn check_binding(&self, info: &TargetInfo, login: &LoginName) -> Result<()> {
        let Some(binding) = &self.binding else {
            return Ok(());
        };
        let sent = info.get(id::CHANNEL_BINDING);
        let sent = sent.filter(|sent| sent.iter().any(|byte| *byte != 0));
        let is_right = match (self.options.hardening, sent) {
            (CbtHardening::None, _) | (CbtHardening::Relaxed, None) => true,
            (CbtHardening::Strict, None) => false,
            (_, Some(sent)) => equal(sent, &binding.ntlm_hash()),
        };
        if is_right {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Unauthorized,
                format!("NTLM: the login of {login} is not bound to this TLS channel"),
            ))
        }
    }
}

fn session_key(
    flags: Flags,
    message: &Authenticate,
    base: keys::Key,
) -> Result<(keys::Key, Checksum)> {
    if !flags.has(Flags::KEY_EXCHANGE) {
        return Ok((base, Checksum::Plain));
    }
    let exchanged: [u8; 16] = message
        .session_key
        .as_slice()
        .try_into()
        .map_err(|_| Error::malformed("NTLM AUTHENTICATE: the session key's size"))?;
    let mut session = Zeroizing::new(exchanged);
    keys::rc4(&base, session.as_mut_slice());
    Ok((session, Checksum::Enciphered))
}
