//! Logging a connection in: empty requests until the server says 200.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::header::{HeaderMap, WWW_AUTHENTICATE};

use super::connection::{Connection, LoginAnswer};
use super::{Credentials, HttpTransportOptions};
use crate::auth::binding::ChannelBinding;
#[cfg(feature = "kerberos")]
use crate::auth::kerberos::{KerberosClientOptions, KerberosInitiator};
use crate::auth::negotiate::NegotiateInitiator;
use crate::auth::ntlm::NtlmClientOptions;
use crate::auth::{Initiator, Seal, TOKEN_MAX_BYTES};
use crate::{Error, ErrorKind, Result};

/// Kerberos needs one or two, NTLM two; nobody needs more.
const LEGS_MAX: usize = 6;

/// Who speaks for us on one connection; nobody where every request carries the credentials.
pub(super) async fn initiator(
    options: &HttpTransportOptions,
    binding: Option<ChannelBinding>,
) -> Result<Option<Box<dyn Initiator>>> {
    match &options.credentials {
        Credentials::Basic { .. } | Credentials::Certificate(_) => Ok(None),
        Credentials::Ntlm { login, hash } => {
            let ntlm = NtlmClientOptions {
                login: login.clone(),
                hash: hash.clone(),
                target: format!("HTTP/{}", options.endpoint.host),
                binding,
            };
            let initiator = NegotiateInitiator::ntlm(ntlm, options.entropy.clone());
            Ok(Some(Box::new(initiator)))
        }
        #[cfg(feature = "kerberos")]
        Credentials::Kerberos {
            principal,
            password,
            scheme,
        } => {
            let options = KerberosClientOptions {
                principal: principal.clone(),
                password: password.clone(),
                service: "HTTP".to_owned(),
                host: options.endpoint.host.clone(),
                scheme: *scheme,
                binding,
            };
            let initiator = blocking(move || KerberosInitiator::new(&options)).await??;
            Ok(Some(Box::new(initiator)))
        }
    }
}

/// Runs what may wait for a KDC where waiting is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|cause| Error::new(ErrorKind::Io, "the login's thread").caused_by(cause))
}

/// Logs the connection in.
pub(super) async fn log_in(
    connection: &mut Connection,
    options: &HttpTransportOptions,
    mut initiator: Box<dyn Initiator>,
) -> Result<Box<dyn Seal>> {
    let scheme = initiator.scheme();
    let mut token: Option<Vec<u8>> = None;
    for _ in 0..LEGS_MAX {
        let step = move || {
            let next = initiator.step(token.as_deref());
            (initiator, next)
        };
        let (back, next) = blocking(step).await?;
        initiator = back;
        let authorization = format!("{scheme} {}", STANDARD.encode(next?));
        let answer = connection.ask(options, &authorization).await?;
        token = answered_token(&answer, scheme)?;
        match answer.status {
            StatusCode::OK => {
                return blocking(move || initiator.finish(token.as_deref())).await?;
            }
            StatusCode::UNAUTHORIZED if token.is_some() => {
                if !connection.is_open() {
                    return Err(Error::new(
                        ErrorKind::Io,
                        "the server closes the connection in the middle of the login",
                    ));
                }
            }
            StatusCode::UNAUTHORIZED => return Err(denied(&answer.headers, scheme)),
            status => {
                return Err(Error::malformed(format!(
                    "status {} in the middle of the login",
                    status.as_u16()
                )));
            }
        }
    }
    Err(Error::malformed("a login without end"))
}

fn denied(headers: &HeaderMap, scheme: &str) -> Error {
    let offered: Vec<&str> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .take(8)
        .filter_map(|value| value.to_str().ok())
        .map(|value| value.split(' ').next().unwrap_or_default())
        .collect();
    let has = offered.iter().any(|it| it.eq_ignore_ascii_case(scheme));
    let reason = if has {
        "the credentials are not taken".to_owned()
    } else {
        format!("the server offers [{}], not {scheme}", offered.join(", "))
    };
    Error::new(ErrorKind::Unauthorized, format!("status 401: {reason}"))
}

/// The token behind the scheme's word, if there is one.
fn answered_token(answer: &LoginAnswer, scheme: &str) -> Result<Option<Vec<u8>>> {
    for value in answer.headers.get_all(WWW_AUTHENTICATE) {
        let Ok(value) = value.to_str() else { continue };
        let Some((word, token)) = value.trim().split_once(' ') else {
            continue;
        };
        if !word.eq_ignore_ascii_case(scheme) {
            continue;
        }
        if token.len() > TOKEN_MAX_BYTES.saturating_mul(2) {
            return Err(Error::limit("the login: the server's token is too long"));
        }
        let token = STANDARD
            .decode(token.trim())
            .map_err(|cause| Error::malformed("the login: base64").caused_by(cause))?;
        return Ok(Some(token));
    }
    Ok(None)
}
