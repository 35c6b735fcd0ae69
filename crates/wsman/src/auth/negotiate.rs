//! The scheme Negotiate with NTLM: SPNEGO around it, or NTLM bare as some clients send it.
//!
//! ```text
//!   asking:     offer(NEGOTIATE) ─► ◄─ response(CHALLENGE) ─► response(AUTHENTICATE, MIC of the list) ─► ◄─ response(MIC of the list)
//!   answering:  Fresh ─offer─► Challenged{Spnego} ─response─► done
//!                 │ └─"NTLMSSP"─► Challenged{Bare} ─"NTLMSSP"─► done
//!                 ├─offer with Kerberos first─► GSS-API (feature `kerberos`)
//!                 └─offer without NTLM's token─► Awaited ─response─► Challenged{Spnego}
//! ```
//!
//! **Invariant.** Where NTLM was not the client's first choice, the list of mechanisms must be signed: nobody between the two
//! can have struck a better one from it.

use std::sync::Arc;

use super::account::Accounts;
use super::binding::ChannelBinding;
use super::ntlm::{
    Mic, NtlmClient, NtlmClientOptions, NtlmProof, NtlmSeal, NtlmServer, NtlmServerOptions,
};
use super::spnego::{self, FirstToken, Mechanism, Offer, Response, State};
use super::{Accepted, Acceptor, Entropy, Initiator, Proof, Seal, TOKEN_MAX_BYTES};
use crate::{Error, ErrorKind, Result};

/// The word of the scheme.
pub const NEGOTIATE: &str = "Negotiate";

/// The asking half: NTLM in SPNEGO.
pub struct NegotiateInitiator {
    ntlm: NtlmClient,
    mechanisms: Vec<u8>,
    seal: Option<NtlmSeal>,
}

impl NegotiateInitiator {
    /// A login that has not begun.
    pub fn ntlm(options: NtlmClientOptions, entropy: Arc<dyn Entropy>) -> Self {
        Self {
            ntlm: NtlmClient::new(options, entropy),
            mechanisms: spnego::ntlm_alone(),
            seal: None,
        }
    }
}

impl Initiator for NegotiateInitiator {
    fn scheme(&self) -> &'static str {
        NEGOTIATE
    }

    fn step(&mut self, token: Option<&[u8]>) -> Result<Vec<u8>> {
        let Some(token) = token else {
            self.seal = None;
            let negotiate = self.ntlm.negotiate()?;
            return Ok(spnego::write_offer(&self.mechanisms, &negotiate));
        };
        if self.seal.is_some() {
            return Err(Error::new(
                ErrorKind::Unauthorized,
                "negotiate: the server does not take the credentials",
            ));
        }
        check_size(token)?;
        let response = spnego::read_response(token)?;
        if response.state == Some(State::Reject) {
            return Err(Error::new(ErrorKind::Unauthorized, "negotiate: rejected"));
        }
        if response.mechanism.is_some_and(|it| it != Mechanism::Ntlm) {
            return Err(Error::malformed(
                "negotiate: a mechanism that was not offered",
            ));
        }
        let challenge = response
            .token
            .ok_or_else(|| Error::malformed("negotiate: no challenge"))?;
        let mut answer = self.ntlm.authenticate(challenge)?;
        let mic = match answer.mic {
            Mic::Sent => Some(answer.seal.sign_mechanisms(&self.mechanisms)),
            Mic::Absent => None,
        };
        self.seal = Some(answer.seal);
        Ok(spnego::write_response(&Response {
            token: Some(&answer.message),
            mic: mic.as_ref().map(<[u8; 16]>::as_slice),
            ..Response::default()
        }))
    }

    fn finish(self: Box<Self>, token: Option<&[u8]>) -> Result<Box<dyn Seal>> {
        let mut seal = self.seal.ok_or_else(|| {
            Error::malformed("negotiate: accepted before the credentials were sent")
        })?;
        if let Some(token) = token {
            check_size(token)?;
            let response = spnego::read_response(token)?;
            match response.state {
                None | Some(State::AcceptCompleted) => {}
                Some(State::Reject) => {
                    return Err(Error::new(ErrorKind::Unauthorized, "negotiate: rejected"));
                }
                Some(State::AcceptIncomplete | State::RequestMic) => {
                    return Err(Error::malformed("negotiate: accepted, but not complete"));
                }
            }
            if let Some(mic) = response.mic {
                seal.check_mechanisms(&self.mechanisms, mic)?;
            }
        }
        Ok(Box::new(seal))
    }
}

fn check_size(token: &[u8]) -> Result<()> {
    if token.len() > TOKEN_MAX_BYTES {
        return Err(Error::limit("negotiate: the token is too long"));
    }
    Ok(())
}

/// What an answering side offers under Negotiate.
#[derive(Clone)]
pub struct NegotiateOptions {
    /// NTLM and its names.
    pub ntlm: NtlmServerOptions,
    /// Whether Kerberos is taken, too, with the keys of the process's default keytab (feature `kerberos`).
    pub kerberos: KerberosOffer,
}

/// Whether Kerberos is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KerberosOffer {
    /// No.
    #[default]
    Absent,
    /// Yes. Without the feature `kerberos` a server with this does not start.
    Keytab,
}

enum AcceptorState {
    Fresh,
    /// NTLM was chosen, its first message has not come.
    Awaited(Wrapping),
    Challenged(Wrapping),
    #[cfg(feature = "kerberos")]
    Gss(super::kerberos::KerberosAcceptor),
    Over,
}

enum Wrapping {
    Bare,
    Spnego {
        mechanisms: Vec<u8>,
        was_first_choice: bool,
    },
}

/// The answering half.
pub struct NegotiateAcceptor {
    ntlm: NtlmServer,
    state: AcceptorState,
    kerberos: KerberosParts,
}

struct KerberosParts {
    offer: KerberosOffer,
    #[cfg(feature = "kerberos")]
    accounts: Arc<dyn Accounts>,
    #[cfg(feature = "kerberos")]
    binding: Option<ChannelBinding>,
    #[cfg(feature = "kerberos")]
    hardening: super::ntlm::CbtHardening,
}

impl NegotiateAcceptor {
    /// A login that has not begun; `binding` is the TLS channel's, where there is one.
    pub fn new(
        options: NegotiateOptions,
        binding: Option<ChannelBinding>,
        accounts: Arc<dyn Accounts>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self {
            kerberos: KerberosParts {
                offer: options.kerberos,
                #[cfg(feature = "kerberos")]
                accounts: Arc::clone(&accounts),
                #[cfg(feature = "kerberos")]
                binding: binding.clone(),
                #[cfg(feature = "kerberos")]
                hardening: options.ntlm.hardening,
            },
            ntlm: NtlmServer::new(options.ntlm, binding, accounts, entropy),
            state: AcceptorState::Fresh,
        }
    }

    fn first(&mut self, token: &[u8]) -> Result<Accepted> {
        if token.starts_with(b"NTLMSSP\0") {
            let challenge = self.ntlm.challenge(token)?;
            self.state = AcceptorState::Challenged(Wrapping::Bare);
            return Ok(Accepted::Continue(challenge));
        }
        match spnego::read_first(token)? {
            FirstToken::Kerberos => self.gss(token),
            FirstToken::Spnego(offer) => {
                let prefers_kerberos = offer.mechanisms.first() == Some(&Mechanism::Kerberos);
                if prefers_kerberos && self.kerberos.offer == KerberosOffer::Keytab {
                    self.gss(token)
                } else {
                    self.offered(&offer)
                }
            }
        }
    }

    fn offered(&mut self, offer: &Offer<'_>) -> Result<Accepted> {
        let Some(place) = offer
            .mechanisms
            .iter()
            .position(|it| *it == Mechanism::Ntlm)
        else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "negotiate: no mechanism in common",
            ));
        };
        let wrapping = Wrapping::Spnego {
            mechanisms: offer.mechanisms_der.to_vec(),
            was_first_choice: place == 0,
        };
        let challenge = match offer.token.filter(|_| place == 0) {
            Some(negotiate) => Some(self.ntlm.challenge(negotiate)?),
            None => None,
        };
        let response = spnego::write_response(&Response {
            state: Some(match place {
                0 => State::AcceptIncomplete,
                _ => State::RequestMic,
            }),
            mechanism: Some(Mechanism::Ntlm),
            token: challenge.as_deref(),
            mic: None,
        });
        self.state = match challenge {
            Some(_) => AcceptorState::Challenged(wrapping),
            None => AcceptorState::Awaited(wrapping),
        };
        Ok(Accepted::Continue(response))
    }

    fn awaited(&mut self, token: &[u8], wrapping: Wrapping) -> Result<Accepted> {
        let response = spnego::read_response(token)?;
        let negotiate = response
            .token
            .ok_or_else(|| Error::malformed("negotiate: no first message of NTLM"))?;
        let challenge = self.ntlm.challenge(negotiate)?;
        self.state = AcceptorState::Challenged(wrapping);
        Ok(Accepted::Continue(spnego::write_response(&Response {
            state: Some(State::AcceptIncomplete),
            token: Some(&challenge),
            ..Response::default()
        })))
    }

    fn challenged(&mut self, token: &[u8], wrapping: &Wrapping) -> Result<Accepted> {
        let Wrapping::Spnego {
            mechanisms,
            was_first_choice,
        } = wrapping
        else {
            let proof = self.ntlm.authenticate(token)?;
            return Ok(done(proof, None));
        };
        let response = spnego::read_response(token)?;
        let message = response
            .token
            .ok_or_else(|| Error::malformed("negotiate: no last message of NTLM"))?;
        let mut proof = self.ntlm.authenticate(message)?;
        let mic = match (response.mic, &mut proof.seal) {
            (Some(mic), Some(seal)) => {
                seal.check_mechanisms(mechanisms, mic).map_err(|cause| {
                    Error::new(ErrorKind::Unauthorized, "negotiate").caused_by(cause)
                })?;
                Some(seal.sign_mechanisms(mechanisms))
            }
            _ if *was_first_choice => None,
            _ => {
                return Err(Error::new(
                    ErrorKind::Unauthorized,
                    "negotiate: NTLM was not the first choice, and the list is not signed",
                ));
            }
        };
        let token = spnego::write_response(&Response {
            state: Some(State::AcceptCompleted),
            mic: mic.as_ref().map(<[u8; 16]>::as_slice),
            ..Response::default()
        });
        Ok(done(proof, Some(token)))
    }

    #[cfg(feature = "kerberos")]
    fn gss(&mut self, token: &[u8]) -> Result<Accepted> {
        if self.kerberos.offer == KerberosOffer::Absent {
            return Err(no_kerberos());
        }
        let parts = &self.kerberos;
        let mut acceptor = super::kerberos::KerberosAcceptor::new(
            Arc::clone(&parts.accounts),
            parts.binding.clone(),
            parts.hardening,
        )?;
        let accepted = acceptor.step(token)?;
        if matches!(accepted, Accepted::Continue(_)) {
            self.state = AcceptorState::Gss(acceptor);
        }
        Ok(accepted)
    }

    #[cfg(not(feature = "kerberos"))]
    #[expect(clippy::unused_self, reason = "the other one has a use for it")]
    fn gss(&mut self, _token: &[u8]) -> Result<Accepted> {
        Err(no_kerberos())
    }
}

fn no_kerberos() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "negotiate: Kerberos is not taken here",
    )
}

fn done(proof: NtlmProof, token: Option<Vec<u8>>) -> Accepted {
    Accepted::Done(Proof {
        token,
        account: proof.account,
        seal: proof.seal.map(|seal| -> Box<dyn Seal> { Box::new(seal) }),
    })
}

impl Acceptor for NegotiateAcceptor {
    fn step(&mut self, token: &[u8]) -> Result<Accepted> {
        check_size(token)?;
        match std::mem::replace(&mut self.state, AcceptorState::Over) {
            AcceptorState::Fresh => self.first(token),
            AcceptorState::Awaited(wrapping) => self.awaited(token, wrapping),
            AcceptorState::Challenged(wrapping) => self.challenged(token, &wrapping),
            #[cfg(feature = "kerberos")]
            AcceptorState::Gss(mut acceptor) => {
                let accepted = acceptor.step(token)?;
                if matches!(accepted, Accepted::Continue(_)) {
                    self.state = AcceptorState::Gss(acceptor);
                }
                Ok(accepted)
            }
            AcceptorState::Over => Err(Error::malformed("negotiate: a token after the end")),
        }
    }
}
