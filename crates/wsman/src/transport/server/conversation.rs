//! One connection's requests: who asks, opening, serving, sealing.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, SERVER,
    WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Mutex;

use super::super::sealed;
use super::body::AnswerBody;
use super::{BasicOffer, OpenBodies, Shared, WireFault};
use crate::auth::account::{ClientCertificate, LoginName};
#[cfg(feature = "kerberos")]
use crate::auth::kerberos::KerberosAcceptor;
use crate::auth::negotiate::{KerberosOffer, NEGOTIATE, NegotiateAcceptor};
use crate::auth::{Accepted, Acceptor, Seal, TOKEN_MAX_BYTES, basic};
use crate::message::{Fault, FaultCode, MessageId};
use crate::server::{Caller, Reply, refusal};
use crate::{Error, ErrorKind, Result};

const KERBEROS: &str = "Kerberos";
const CERTIFICATE_SCHEME: &str =
    "http://schemas.dmtf.org/wbem/wsman/1/wsman/secprofile/https/mutual";

/// The connection ends without an answer.
#[derive(Debug)]
pub(super) struct Hangup;

impl fmt::Display for Hangup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed without an answer")
    }
}

impl std::error::Error for Hangup {}

type Answer = Response<AnswerBody>;

struct Keys {
    seal: Box<dyn Seal>,
    protocol: &'static str,
}

/// What is known of who is at the other end.
enum Peer {
    Unknown,
    LoggingIn {
        scheme: &'static str,
        acceptor: Box<dyn Acceptor>,
    },
    Proved {
        caller: Caller,
        keys: Option<Keys>,
    },
}

/// What follows from a request's head.
enum Verdict {
    /// Served as this; the token, if any, goes back with the answer.
    Proved(Caller, Option<HeaderValue>),
    /// Served as nobody.
    Anonymous,
    /// 401 with this token.
    Continue(HeaderValue),
    /// 401.
    Denied,
}

/// One connection.
pub(super) struct Conversation {
    shared: Arc<Shared>,
    certificate: Option<ClientCertificate>,
    peer: Mutex<Peer>,
}

impl Conversation {
    pub(super) fn new(shared: Arc<Shared>, certificate: Option<ClientCertificate>) -> Self {
        Self {
            shared,
            certificate,
            peer: Mutex::new(Peer::Unknown),
        }
    }

    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> std::result::Result<Answer, Hangup> {
        let (head, body) = request.into_parts();
        let options = &self.shared.options;
        let body = Limited::new(body, options.request_max_bytes).collect();
        let body = match tokio::time::timeout(options.request_timeout, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(cause)) if cause.is::<LengthLimitError>() => {
                return Ok(closing(empty(StatusCode::PAYLOAD_TOO_LARGE)));
            }
            Ok(Err(_)) | Err(_) => return Err(Hangup),
        };
        if !head.uri.path().eq_ignore_ascii_case("/wsman") {
            return Ok(empty(StatusCode::NOT_FOUND));
        }
        if head.method != Method::POST {
            let mut answer = empty(StatusCode::METHOD_NOT_ALLOWED);
            let allowed = HeaderValue::from_static("POST");
            answer.headers_mut().insert(ALLOW, allowed);
            return Ok(answer);
        }
        let mut peer = self.peer.lock().await;
        let (caller, token) = match self.judge(&head.headers, &mut peer) {
            Verdict::Proved(caller, token) => (caller, token),
            Verdict::Anonymous => (Caller::Anonymous, None),
            Verdict::Continue(token) => {
                let mut answer = empty(StatusCode::UNAUTHORIZED);
                answer.headers_mut().insert(WWW_AUTHENTICATE, token);
                return Ok(answer);
            }
            Verdict::Denied => return Ok(self.denied()),
        };
        let mut answer = if token.is_some() && body.is_empty() {
            empty(StatusCode::OK)
        } else {
            self.serve(caller, &head.headers, body, &mut peer).await?
        };
        if let Some(token) = token {
            answer.headers_mut().insert(WWW_AUTHENTICATE, token);
        }
        Ok(answer)
    }

    /// 401 with a header for each scheme.
    fn denied(&self) -> Answer {
        let options = &self.shared.options;
        let mut answer = empty(StatusCode::UNAUTHORIZED);
        let mut offer = |scheme: &'static str| {
            let value = HeaderValue::from_static(scheme);
            answer.headers_mut().append(WWW_AUTHENTICATE, value);
        };
        if let Some(negotiate) = &options.negotiate {
            offer(NEGOTIATE);
            if negotiate.kerberos == KerberosOffer::Keytab {
                offer(KERBEROS);
            }
        }
        if self.takes_basic() {
            offer("Basic realm=\"WSMAN\"");
        }
        answer
    }

    fn takes_basic(&self) -> bool {
        let options = &self.shared.options;
        options.basic == BasicOffer::Offered
            && (options.tls.is_some() || options.open_bodies == OpenBodies::Allowed)
    }

    fn judge(&self, headers: &HeaderMap, peer: &mut Peer) -> Verdict {
        let Some(authorization) = headers.get(AUTHORIZATION) else {
            return match peer {
                Peer::Proved { caller, .. } => Verdict::Proved(caller.clone(), None),
                Peer::Unknown | Peer::LoggingIn { .. } if asks_to_identify(headers) => {
                    Verdict::Anonymous
                }
                Peer::Unknown | Peer::LoggingIn { .. } => Verdict::Denied,
            };
        };
        let Ok(authorization) = authorization.to_str() else {
            return Verdict::Denied;
        };
        let (word, rest) = authorization
            .trim()
            .split_once(' ')
            .unwrap_or((authorization.trim(), ""));
        if word.eq_ignore_ascii_case(NEGOTIATE) {
            self.log_in(NEGOTIATE, rest, peer)
        } else if word.eq_ignore_ascii_case(KERBEROS) {
            self.log_in(KERBEROS, rest, peer)
        } else if word.eq_ignore_ascii_case("Basic") && self.takes_basic() {
            self.by_password(rest)
        } else if word.eq_ignore_ascii_case(CERTIFICATE_SCHEME) {
            let account = self
                .certificate
                .as_ref()
                .and_then(|it| self.shared.accounts.by_certificate(it));
            match account {
                Some(account) => Verdict::Proved(Caller::Account(account), None),
                None => Verdict::Denied,
            }
        } else {
            Verdict::Denied
        }
    }

    fn by_password(&self, token: &str) -> Verdict {
        let account = basic::decode(token).ok().and_then(|(user, password)| {
            let login = LoginName::parse(&user);
            self.shared.accounts.by_password(&login, &password)
        });
        match account {
            Some(account) => Verdict::Proved(Caller::Account(account), None),
            None => Verdict::Denied,
        }
    }

    /// One leg of a login. Whatever goes wrong, the client learns no more than 401, and starts again.
    fn log_in(&self, scheme: &'static str, token: &str, peer: &mut Peer) -> Verdict {
        match self.leg(scheme, token, peer) {
            Ok(verdict) => verdict,
            Err(_) => {
                *peer = Peer::Unknown;
                Verdict::Denied
            }
        }
    }

    fn leg(&self, scheme: &'static str, token: &str, peer: &mut Peer) -> Result<Verdict> {
        if token.len() > TOKEN_MAX_BYTES.saturating_mul(2) {
            return Err(Error::limit("the login: the token is too long"));
        }
        let token = STANDARD
            .decode(token.trim())
            .map_err(|cause| Error::malformed("the login: base64").caused_by(cause))?;
        let mut acceptor = match std::mem::replace(peer, Peer::Unknown) {
            Peer::LoggingIn {
                scheme: begun,
                acceptor,
            } if begun == scheme && !is_first(&token) => acceptor,
            _ => self.acceptor(scheme)?,
        };
        match acceptor.step(&token)? {
            Accepted::Continue(token) => {
                *peer = Peer::LoggingIn { scheme, acceptor };
                Ok(Verdict::Continue(with_token(scheme, Some(&token))?))
            }
            Accepted::Done(proof) => {
                let caller = Caller::Account(proof.account);
                *peer = Peer::Proved {
                    caller: caller.clone(),
                    keys: proof.seal.map(|seal| Keys {
                        seal,
                        protocol: sealed::protocol(scheme),
                    }),
                };
                let token = with_token(scheme, proof.token.as_deref())?;
                Ok(Verdict::Proved(caller, Some(token)))
            }
        }
    }

    fn acceptor(&self, scheme: &'static str) -> Result<Box<dyn Acceptor>> {
        let shared = &self.shared;
        let negotiate = shared.options.negotiate.clone();
        let negotiate = negotiate
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "negotiate is not offered"))?;
        if scheme == KERBEROS {
            #[cfg(feature = "kerberos")]
            if negotiate.kerberos == KerberosOffer::Keytab {
                let acceptor = KerberosAcceptor::new(
                    Arc::clone(&shared.accounts),
                    shared.binding.clone(),
                    negotiate.ntlm.hardening,
                )?;
                return Ok(Box::new(acceptor));
            }
            return Err(Error::new(
                ErrorKind::Unsupported,
                "Kerberos is not offered",
            ));
        }
        Ok(Box::new(NegotiateAcceptor::new(
            negotiate,
            shared.binding.clone(),
            Arc::clone(&shared.accounts),
            Arc::clone(&shared.options.entropy),
        )))
    }

    async fn serve(
        &self,
        caller: Caller,
        headers: &HeaderMap,
        body: Bytes,
        peer: &mut Peer,
    ) -> std::result::Result<Answer, Hangup> {
        let fault = match (&self.shared.options.faults, &caller) {
            (Some(faults), Caller::Account(_)) => faults.next(),
            _ => None,
        };
        match fault {
            Some(WireFault::Unauthorized) => {
                *peer = Peer::Unknown;
                return Ok(self.denied());
            }
            Some(WireFault::CloseBefore) => return Err(Hangup),
            Some(
                WireFault::CloseAfter
                | WireFault::CloseInside
                | WireFault::Slow(_)
                | WireFault::Refused(_),
            )
            | None => {}
        }
        let content_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let (charset, plain, keys) = match self.opened(&caller, &content_type, body, peer) {
            Ok(opened) => opened,
            Err(unopened) => return Ok(unopened.answer()),
        };
        let reply = match fault {
            Some(WireFault::Refused(code)) => self.refusal(code, charset.as_deref(), &plain)?,
            _ => self.served(caller, charset, plain).await?,
        };
        match fault {
            Some(WireFault::CloseAfter) => return Err(Hangup),
            Some(WireFault::Slow(time)) => tokio::time::sleep(time).await,
            _ => {}
        }
        let mut answer = written(reply, keys).map_err(|_| Hangup)?;
        if fault == Some(WireFault::CloseInside) {
            answer.body_mut().cut();
        }
        Ok(answer)
    }

    async fn served(
        &self,
        caller: Caller,
        charset: Option<String>,
        plain: Bytes,
    ) -> std::result::Result<Reply, Hangup> {
        let Ok(_working) = self.shared.working.acquire().await else {
            return Err(Hangup);
        };
        let service = Arc::clone(&self.shared.service);
        let reply =
            tokio::task::spawn_blocking(move || service.serve(&caller, charset.as_deref(), &plain));
        // Where the service panicked, a person finds that in the log of panics; the client gets no answer.
        reply.await.map_err(|_| Hangup)
    }

    fn refusal(
        &self,
        code: FaultCode,
        charset: Option<&str>,
        plain: &[u8],
    ) -> std::result::Result<Reply, Hangup> {
        let mut id = [0; 16];
        let entropy = &self.shared.options.entropy;
        entropy.fill(&mut id).map_err(|_| Hangup)?;
        let fault = Fault::new(code).because("(A fault that was asked for.)");
        Ok(refusal(&fault, charset, plain, &MessageId::from_bytes(id)))
    }

    /// The plain envelope, and the keys that the answer is to be sealed with; or the refusal.
    fn opened<'p>(
        &self,
        caller: &Caller,
        content_type: &str,
        body: Bytes,
        peer: &'p mut Peer,
    ) -> std::result::Result<Opened<'p>, Unopened> {
        if !sealed::is_sealed(content_type) {
            let options = &self.shared.options;
            let is_allowed = options.tls.is_some()
                || options.open_bodies == OpenBodies::Allowed
                || *caller == Caller::Anonymous;
            return if is_allowed {
                Ok((sealed::charset(content_type), body, None))
            } else {
                Err(Unopened::NotSealed)
            };
        }
        let Peer::Proved {
            keys: Some(keys), ..
        } = peer
        else {
            return Err(Unopened::NoKeys);
        };
        let opened = sealed::read(content_type, &body).and_then(|parts| {
            if !parts.protocol.eq_ignore_ascii_case(keys.protocol) {
                return Err(Error::malformed(
                    "sealed body: another protocol than the login's",
                ));
            }
            let plain = keys.seal.open(parts.header, parts.data.to_vec())?;
            Ok((sealed::charset(&parts.plain_type), Bytes::from(plain)))
        });
        match opened {
            Ok((charset, plain)) => Ok((charset, plain, Some(keys))),
            Err(_) => Err(Unopened::Broken),
        }
    }
}

/// Why a body is not served.
enum Unopened {
    /// It has to be sealed.
    NotSealed,
    /// It is sealed, but no login made keys.
    NoKeys,
    /// It does not open with the keys. The two no longer count alike: nothing that follows on this connection would.
    Broken,
}

impl Unopened {
    fn answer(self) -> Answer {
        match self {
            Self::NotSealed => empty(StatusCode::INTERNAL_SERVER_ERROR),
            Self::NoKeys => empty(StatusCode::BAD_REQUEST),
            Self::Broken => closing(empty(StatusCode::BAD_REQUEST)),
        }
    }
}

type Opened<'p> = (Option<String>, Bytes, Option<&'p mut Keys>);

fn asks_to_identify(headers: &HeaderMap) -> bool {
    headers
        .get("WSMANIDENTIFY")
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"unauthenticated"))
}

/// A token that starts a login, whatever went before on this connection.
fn is_first(token: &[u8]) -> bool {
    token.first() == Some(&0x60) || token.starts_with(b"NTLMSSP\0\x01")
}

fn with_token(scheme: &'static str, token: Option<&[u8]>) -> Result<HeaderValue> {
    let value = match token {
        Some(token) => format!("{scheme} {}", STANDARD.encode(token)),
        None => scheme.to_owned(),
    };
    HeaderValue::try_from(value)
        .map_err(|cause| Error::new(ErrorKind::Invalid, "a token").caused_by(cause))
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(AnswerBody::default());
    *answer.status_mut() = status;
    let server = HeaderValue::from_static("Microsoft-HTTPAPI/2.0");
    answer.headers_mut().insert(SERVER, server);
    answer
}

fn closing(mut answer: Answer) -> Answer {
    let close = HeaderValue::from_static("close");
    answer.headers_mut().insert(CONNECTION, close);
    answer
}

/// The service's answer, sealed where the question was.
fn written(reply: Reply, keys: Option<&mut Keys>) -> Result<Answer> {
    let status = StatusCode::from_u16(reply.status)
        .map_err(|cause| Error::new(ErrorKind::Invalid, "status").caused_by(cause))?;
    let (content_type, body) = match keys {
        None => (reply.content_type, reply.body),
        Some(keys) => (
            sealed::content_type(keys.protocol),
            sealed::write(
                keys.protocol,
                &reply.content_type,
                &keys.seal.seal(&reply.body)?,
            )?,
        ),
    };
    let content_type = HeaderValue::try_from(content_type)
        .map_err(|cause| Error::new(ErrorKind::Invalid, "content type").caused_by(cause))?;
    let mut answer = empty(status);
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    *answer.body_mut() = AnswerBody::whole(Bytes::from(body));
    Ok(answer)
}
