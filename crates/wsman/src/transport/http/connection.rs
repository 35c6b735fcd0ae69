//! One connection: TCP, TLS, one HTTP request at a time.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::super::{Answer, sealed};
use super::{Credentials, HttpTransportOptions, Inner, login};
use crate::auth::binding::ChannelBinding;
use crate::auth::{Seal, basic};
use crate::{Error, ErrorKind, Result};

/// The only path that WinRM listens at.
const PATH: &str = "/wsman";
const PLAIN_TYPE: &str = "application/soap+xml;charset=UTF-8";

/// Bounds for the head of an answer.
const HEAD_MAX_BYTES: usize = 128 << 10;
const HEADERS_MAX: usize = 100;

/// How a certificate says that it is the credentials.
const CERTIFICATE_SCHEME: &str =
    "http://schemas.dmtf.org/wbem/wsman/1/wsman/secprofile/https/mutual";

/// A connection that is logged in, or needs no login.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    keys: Option<Keys>,
}

/// What bodies are sealed with.
struct Keys {
    seal: Box<dyn Seal>,
    protocol: &'static str,
}

/// What came of a request.
pub(super) enum Exchanged {
    Answered(Answer),
    /// Refused unread.
    Unauthorized,
    /// Not a byte of it was sent.
    NotSent,
}

/// An answer to a request of a login.
pub(super) struct LoginAnswer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

fn broken(what: &'static str) -> impl FnOnce(hyper::Error) -> Error {
    move |cause| {
        let kind = if cause.is_parse() {
            ErrorKind::Malformed
        } else {
            ErrorKind::Io
        };
        Error::new(kind, what).caused_by(cause)
    }
}

impl Connection {
    /// Connects and logs in.
    pub(super) async fn open(inner: &Inner) -> Result<Self> {
        let options = &inner.options;
        let (sender, binding) = tokio::time::timeout(options.connect_timeout, connect(inner))
            .await
            .map_err(|_| Error::new(ErrorKind::TimedOut, "connecting"))??;
        let mut connection = Self { sender, keys: None };
        if let Some(initiator) = login::initiator(options, binding).await? {
            let scheme = initiator.scheme();
            let seal = login::log_in(&mut connection, options, initiator).await?;
            if inner.tls.is_none() {
                connection.keys = Some(Keys {
                    seal,
                    protocol: sealed::protocol(scheme),
                });
            }
        }
        Ok(connection)
    }

    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends one envelope and brings the answer. A connection whose exchange failed is not used again.
    pub(super) async fn exchange(
        &mut self,
        inner: &Inner,
        envelope: &[u8],
        answer_max_bytes: usize,
    ) -> Result<Exchanged> {
        let request = self.request(&inner.options, envelope)?;
        if self.sender.ready().await.is_err() {
            return Ok(Exchanged::NotSent);
        }
        let response = match self.sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut error) => {
                return match error.take_message() {
                    Some(_) => Ok(Exchanged::NotSent),
                    None => Err(broken("the request's way or its answer's")(
                        error.into_error(),
                    )),
                };
            }
        };
        let status = response.status();
        match status.as_u16() {
            401 => return Ok(Exchanged::Unauthorized),
            200 | 400 | 500 => {}
            _ => return Err(unexpected(status)),
        }
        let content_type = content_type(response.headers());
        let limit = answer_max_bytes.saturating_add(sealed::OVERHEAD_MAX_BYTES);
        let body = read_body(response, limit, inner.options.read_timeout).await?;
        let answer = self.opened(status, &content_type, body)?;
        if answer.body.len() > answer_max_bytes {
            return Err(too_long(answer_max_bytes));
        }
        Ok(Exchanged::Answered(answer))
    }

    /// One request of a login, with an empty body.
    pub(super) async fn ask(
        &mut self,
        options: &HttpTransportOptions,
        authorization: &str,
    ) -> Result<LoginAnswer> {
        let mut value = HeaderValue::try_from(authorization)
            .map_err(|cause| Error::new(ErrorKind::Invalid, "a token").caused_by(cause))?;
        value.set_sensitive(true);
        let request = head(options)
            .header(CONTENT_TYPE, PLAIN_TYPE)
            .header(AUTHORIZATION, value)
            .body(Full::default())
            .map_err(bad_request)?;
        self.sender.ready().await.map_err(broken("the login"))?;
        let response = self.sender.send_request(request).await;
        let response = response.map_err(broken("the login"))?;
        let (status, headers) = (response.status(), response.headers().clone());
        read_body(response, sealed::OVERHEAD_MAX_BYTES, options.read_timeout).await?;
        Ok(LoginAnswer { status, headers })
    }

    fn request(
        &mut self,
        options: &HttpTransportOptions,
        envelope: &[u8],
    ) -> Result<Request<Full<Bytes>>> {
        let mut head = head(options);
        match &options.credentials {
            Credentials::Basic { user, password } => {
                let mut value = HeaderValue::try_from(basic::encode(user, password).as_str())
                    .map_err(|cause| Error::new(ErrorKind::Invalid, "user").caused_by(cause))?;
                value.set_sensitive(true);
                head = head.header(AUTHORIZATION, value);
            }
            Credentials::Certificate(_) => head = head.header(AUTHORIZATION, CERTIFICATE_SCHEME),
            _ => {}
        }
        let (content_type, body) = match &mut self.keys {
            None => (PLAIN_TYPE.to_owned(), envelope.to_vec()),
            Some(keys) => (
                sealed::content_type(keys.protocol),
                sealed::write(keys.protocol, PLAIN_TYPE, &keys.seal.seal(envelope)?)?,
            ),
        };
        head.header(CONTENT_TYPE, content_type)
            .body(Full::new(Bytes::from(body)))
            .map_err(bad_request)
    }

    /// The answer as it was before sealing.
    fn opened(&mut self, status: StatusCode, content_type: &str, body: Vec<u8>) -> Result<Answer> {
        if body.is_empty() {
            return Err(Error::malformed(format!(
                "status {} with an empty body: the service does not take the request as it was sent",
                status.as_u16()
            )));
        }
        let is_sealed = sealed::is_sealed(content_type);
        match &mut self.keys {
            Some(keys) if is_sealed => {
                let parts = sealed::read(content_type, &body)?;
                let body = keys.seal.open(parts.header, parts.data.to_vec())?;
                Ok(Answer {
                    status: status.as_u16(),
                    charset: sealed::charset(&parts.plain_type),
                    body,
                })
            }
            Some(_) => Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "status {}: an answer that is not sealed, of type {content_type:?}",
                    status.as_u16()
                ),
            )),
            None if is_sealed => Err(Error::malformed("a sealed answer to an open request")),
            None => Ok(Answer {
                status: status.as_u16(),
                charset: sealed::charset(content_type),
                body,
            }),
        }
    }
}

fn unexpected(status: StatusCode) -> Error {
    let kind = match status.as_u16() {
        403 => ErrorKind::AccessDenied,
        404 | 405 => ErrorKind::NotFound,
        413 => ErrorKind::Limit,
        429 | 503 => ErrorKind::Busy,
        _ => ErrorKind::Malformed,
    };
    Error::new(kind, format!("status {}", status.as_u16()))
}

fn bad_request(cause: hyper::http::Error) -> Error {
    Error::new(ErrorKind::Invalid, "the request's head").caused_by(cause)
}

fn head(options: &HttpTransportOptions) -> hyper::http::request::Builder {
    Request::post(PATH)
        .header(HOST, options.endpoint.authority())
        .header(USER_AGENT, concat!("Hikae/", env!("CARGO_PKG_VERSION")))
}

fn content_type(headers: &HeaderMap) -> String {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

fn too_long(limit: usize) -> Error {
    Error::limit(format!("an answer of more than {limit} bytes"))
}

/// The body, up to that many bytes and with silences of that length.
async fn read_body(
    response: Response<Incoming>,
    max_bytes: usize,
    read_timeout: Duration,
) -> Result<Vec<u8>> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    loop {
        let frame = tokio::time::timeout(read_timeout, body.frame())
            .await
            .map_err(|_| Error::new(ErrorKind::TimedOut, "silence inside an answer"))?;
        let Some(frame) = frame else {
            return Ok(bytes);
        };
        let frame = frame.map_err(broken("the answer's body"))?;
        if let Some(data) = frame.data_ref() {
            if bytes.len().saturating_add(data.len()) > max_bytes {
                return Err(too_long(max_bytes));
            }
            bytes.extend_from_slice(data);
        }
    }
}

/// TCP, then TLS where it is wanted, then a task that drives HTTP until the sender is dropped.
async fn connect(inner: &Inner) -> Result<(SendRequest<Full<Bytes>>, Option<ChannelBinding>)> {
    let endpoint = &inner.options.endpoint;
    let refused = |what: &'static str| {
        move |cause: std::io::Error| Error::new(ErrorKind::Io, what).caused_by(cause)
    };
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
        .await
        .map_err(refused("connecting"))?;
    stream.set_nodelay(true).map_err(refused("the socket"))?;
    let Some(config) = &inner.tls else {
        return Ok((handshake(TokioIo::new(stream)).await?, None));
    };
    let name = ServerName::try_from(endpoint.host.clone())
        .map_err(|cause| Error::new(ErrorKind::Invalid, "the host's name").caused_by(cause))?;
    let stream = TlsConnector::from(config.clone())
        .connect(name, stream)
        .await
        .map_err(tls_error)?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or(&[]);
    let binding = match certificates.first() {
        Some(certificate) => Some(ChannelBinding::of_certificate(certificate)?),
        None => None,
    };
    Ok((handshake(TokioIo::new(stream)).await?, binding))
}

/// A certificate that is not believed is no trouble of the network.
fn tls_error(cause: std::io::Error) -> Error {
    let inner = cause
        .get_ref()
        .and_then(|it| it.downcast_ref::<rustls::Error>());
    let kind = match inner {
        Some(rustls::Error::InvalidCertificate(_)) => ErrorKind::Refused,
        _ => ErrorKind::Io,
    };
    Error::new(kind, "TLS").caused_by(cause)
}

async fn handshake<T>(io: TokioIo<T>) -> Result<SendRequest<Full<Bytes>>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, driver) = http1::Builder::new()
        .max_buf_size(HEAD_MAX_BYTES)
        .max_headers(HEADERS_MAX)
        .handshake(io)
        .await
        .map_err(broken("HTTP"))?;
    // What ends it is told to whoever waits for an answer; to an idle connection it is just the end.
    tokio::spawn(async move {
        let _ended = driver.await;
    });
    Ok(sender)
}
