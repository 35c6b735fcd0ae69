//! The answering half of HTTP: a listener, logins, sealed bodies, and a [`SoapService`] behind them.
//!
//! ```text
//!   accept ─► TLS? ─► a conversation for each connection
//!     POST /wsman, body read whole
//!       Authorization: Negotiate, Kerberos ─► Acceptor: 401 with a token, again and again ─► proved, for this connection
//!       Authorization: Basic, certificate  ─► proved, for this request
//!       WSMANIDENTIFY: unauthenticated     ─► nobody, who may ask Identify
//!       nothing, and not proved            ─► 401, empty, with a header for each scheme that is offered
//!     proved: sealed body ─► opened ─► service ─► sealed answer
//!             open body over HTTP ─► 500, empty (AllowUnencrypted=false), unless allowed
//! ```
//!
//! **Invariants.** Connections, bytes of a request, time for a request and services at work are bounded. A body is read
//! before a refusal is answered, so that the connection lives on. Requests of a connection are answered in their order.
//!
//! **What it does not do.** No CredSSP, no path but `/wsman`, no chunked answers.

mod body;
mod conversation;

use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use self::conversation::Conversation;
use super::runtime::TransportRuntime;
use super::tls::{self, TlsIdentity};
use crate::auth::account::{Accounts, ClientCertificate};
use crate::auth::binding::ChannelBinding;
use crate::auth::negotiate::{KerberosOffer, NegotiateOptions};
use crate::auth::{Entropy, SystemEntropy};
use crate::message::FaultCode;
use crate::server::SoapService;
use crate::{Error, ErrorKind, Result};

/// Whether Basic is taken (`Service/Auth/Basic`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BasicOffer {
    /// No: the default of Windows.
    #[default]
    Absent,
    /// Over HTTPS; over HTTP only where open bodies are allowed, too.
    Offered,
}

/// Whether bodies may be open over HTTP (`Service/AllowUnencrypted`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OpenBodies {
    /// No: the default of Windows.
    #[default]
    Refused,
    /// Yes.
    Allowed,
}

/// HTTPS.
#[derive(Debug, Clone)]
pub struct TlsServerOptions {
    /// The certificate that is shown.
    pub identity: TlsIdentity,
    /// Authorities (PEM) whose clients may log in by certificate (`Service/Auth/Certificate`); none: nobody is asked for one.
    pub client_authorities: Option<Vec<u8>>,
}

/// A fault of the wire, for rehearsals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireFault {
    /// Status 401, as if the login had expired.
    Unauthorized,
    /// The connection is closed before the service sees the request.
    CloseBefore,
    /// The service acts, then the connection is closed without an answer.
    CloseAfter,
    /// The service acts, then the connection is closed in the middle of the answer.
    CloseInside,
    /// The service acts, and the answer comes so much later.
    Slow(Duration),
    /// A fault that has nothing to do with the request, for which nothing is done.
    Refused(FaultCode),
}

/// Decides which requests a fault befalls.
pub trait WireFaults: Send + Sync {
    /// Asked once for each request of somebody who is logged in.
    fn next(&self) -> Option<WireFault>;
}

/// Everything that an [`HttpServer`] is made from.
#[derive(Clone)]
pub struct HttpServerOptions {
    /// Negotiate (and Kerberos), where it is offered.
    pub negotiate: Option<NegotiateOptions>,
    /// Basic.
    pub basic: BasicOffer,
    /// Open bodies over HTTP.
    pub open_bodies: OpenBodies,
    /// HTTPS; plain HTTP without it.
    pub tls: Option<TlsServerOptions>,
    /// Longer requests get status 413.
    pub request_max_bytes: usize,
    /// More connections are closed at once.
    pub connections_max: NonZeroUsize,
    /// Requests that are with the service at once; more wait.
    pub services_max: NonZeroUsize,
    /// For a TLS handshake, and for reading a request's body.
    pub request_timeout: Duration,
    /// A connection that says nothing for so long is closed.
    pub idle_timeout: Duration,
    /// Faults to rehearse.
    pub faults: Option<Arc<dyn WireFaults>>,
    /// Randomness and time for logins.
    pub entropy: Arc<dyn Entropy>,
}

impl HttpServerOptions {
    /// The defaults of Windows: sealed Negotiate over HTTP, and nothing else.
    pub fn new(negotiate: NegotiateOptions) -> Self {
        Self {
            negotiate: Some(negotiate),
            basic: BasicOffer::Absent,
            open_bodies: OpenBodies::Refused,
            tls: None,
            request_max_bytes: 4 << 20,
            connections_max: NonZeroUsize::MIN.saturating_add(299),
            services_max: NonZeroUsize::MIN.saturating_add(31),
            request_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(120),
            faults: None,
            entropy: Arc::new(SystemEntropy),
        }
    }
}

/// What conversations share.
pub(super) struct Shared {
    options: HttpServerOptions,
    accounts: Arc<dyn Accounts>,
    service: Arc<dyn SoapService>,
    working: Semaphore,
    tls: Option<TlsAcceptor>,
    binding: Option<ChannelBinding>,
}

/// A server that listens until it is stopped or dropped.
pub struct HttpServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    ended: mpsc::Receiver<()>,
    _runtime: TransportRuntime,
}

impl HttpServer {
    /// Listens.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the listener cannot be used, [`ErrorKind::Invalid`] for certificates that make no sense,
    /// [`ErrorKind::Unsupported`] for Kerberos where it was not built in.
    pub fn start(
        listener: TcpListener,
        options: HttpServerOptions,
        accounts: Arc<dyn Accounts>,
        service: Arc<dyn SoapService>,
        runtime: TransportRuntime,
    ) -> Result<Self> {
        let offers = options.negotiate.as_ref().map(|it| it.kerberos);
        if offers == Some(KerberosOffer::Keytab) && !cfg!(feature = "kerberos") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "Kerberos was not built into this program",
            ));
        }
        let (tls, binding) = match &options.tls {
            None => (None, None),
            Some(tls) => {
                let config = tls::server_config(&tls.identity, tls.client_authorities.as_deref())?;
                let binding = ChannelBinding::of_certificate(tls.identity.certificate())?;
                (Some(TlsAcceptor::from(config)), Some(binding))
            }
        };
        let bad =
            |cause: std::io::Error| Error::new(ErrorKind::Io, "the listener").caused_by(cause);
        let address = listener.local_addr().map_err(bad)?;
        listener.set_nonblocking(true).map_err(bad)?;
        let listener = {
            let _inside = runtime.handle().enter();
            tokio::net::TcpListener::from_std(listener).map_err(bad)?
        };
        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = mpsc::channel();
        let shared = Arc::new(Shared {
            working: Semaphore::new(options.services_max.get()),
            options,
            accounts,
            service,
            tls,
            binding,
        });
        runtime
            .handle()
            .spawn(listen(listener, shared, stopped, alive));
        Ok(Self {
            address,
            stop,
            ended,
            _runtime: runtime,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening, lets requests under way end for at most `timeout`; whether all did.
    pub fn stop(self, timeout: Duration) -> StopReport {
        self.stop.send_replace(true);
        match self.ended.recv_timeout(timeout) {
            Err(mpsc::RecvTimeoutError::Timeout) => StopReport::CutOff,
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => StopReport::Drained,
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReport {
    /// Every connection was closed in peace.
    Drained,
    /// The time was over; some requests may still be at work, unheard.
    CutOff,
}

/// Accepts until stopped. `alive` is dropped with the last conversation, which is what stopping waits for.
async fn listen(
    listener: tokio::net::TcpListener,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
    alive: mpsc::Sender<()>,
) {
    let places = Arc::new(Semaphore::new(shared.options.connections_max.get()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|is_stopped| *is_stopped) => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, or the client has gone: the next one may be luckier.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let (shared, stopped, alive) = (Arc::clone(&shared), stopped.clone(), alive.clone());
        tokio::spawn(async move {
            converse(stream, shared, stopped).await;
            drop((place, alive));
        });
    }
}

/// One connection, from its first byte. What breaks it is the client's to notice.
async fn converse(stream: TcpStream, shared: Arc<Shared>, stopped: watch::Receiver<bool>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let Some(acceptor) = shared.tls.clone() else {
        serve(stream, shared, None, stopped).await;
        return;
    };
    let handshake = tokio::time::timeout(shared.options.request_timeout, acceptor.accept(stream));
    let Ok(Ok(stream)) = handshake.await else {
        return;
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|certificate| ClientCertificate {
            der: certificate.to_vec(),
        });
    serve(stream, shared, certificate, stopped).await;
}

async fn serve<T>(
    stream: T,
    shared: Arc<Shared>,
    certificate: Option<ClientCertificate>,
    mut stopped: watch::Receiver<bool>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let idle_timeout = shared.options.idle_timeout;
    let conversation = Arc::new(Conversation::new(shared, certificate));
    let service = service_fn(move |request| {
        let conversation = Arc::clone(&conversation);
        async move { conversation.answer(request).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .max_buf_size(128 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ended = connection.as_mut() => return,
        _ = stopped.wait_for(|is_stopped| *is_stopped) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ended = connection.await;
}
