//! An S3 server in the test process: a real one's wire and storage, with troubles on request.
//!
//! `s3s-fs` looks whether a key is taken and then writes, so that racing puts can both succeed. Puts go through one
//! lock here, which makes it what S3 promises to be.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, GetObjectInput, GetObjectOutput, HeadObjectInput,
    HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, PutObjectInput, PutObjectOutput,
    StreamingBlob,
};
use s3s::service::S3ServiceBuilder;
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use s3s_fs::FileSystem;
use store::s3::S3Options;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

pub const BUCKET: &str = "backup";

/// What happens to one put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// 503 before anything happened.
    Busy,
    /// 409 before anything happened: somebody else is at the same key.
    Conflict,
    /// It happens, and the answer is 500.
    FailsAfter,
    /// It happens, and the connection breaks instead of an answer.
    HangsUpAfter,
    /// Nothing happens to this put, but another's object gets the name; the answer is 500.
    RivalWins,
    /// 507: no space.
    Full,
    /// 403 with a quota's name on it.
    OverQuota,
}

/// How the server differs from what S3 promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Proper,
    /// `If-None-Match` is not looked at.
    IgnoresConditions,
    /// User metadata is not kept.
    ForgetsMetadata,
}

struct State {
    files: FileSystem,
    manner: Manner,
    troubles: Mutex<VecDeque<Trouble>>,
    puts: tokio::sync::Mutex<u32>,
    hang_up: Notify,
}

pub struct BucketServer {
    state: Arc<State>,
    address: String,
    _runtime: Runtime,
    _place: TempDir,
}

struct Service(Arc<State>);

impl BucketServer {
    pub fn start(manner: Manner) -> Self {
        let place = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(place.path().join(BUCKET)).expect("make the bucket");
        let state = Arc::new(State {
            files: FileSystem::new(place.path()).expect("file system"),
            manner,
            troubles: Mutex::default(),
            puts: tokio::sync::Mutex::new(0),
            hang_up: Notify::new(),
        });
        let mut builder = S3ServiceBuilder::new(Service(Arc::clone(&state)));
        builder.set_auth(SimpleAuth::from_single("access", "secret"));
        let service = builder.build();
        let runtime = Runtime::new().expect("runtime");
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0)))
            .expect("a free port");
        let address = listener.local_addr().expect("address").to_string();
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (service, shared) = (service.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    let connection = server.serve_connection(TokioIo::new(socket), service);
                    tokio::select! {
                        // A client that goes away is nothing to the server.
                        _ = connection => {}
                        () = shared.hang_up.notified() => {}
                    }
                });
            }
        });
        Self {
            state,
            address,
            _runtime: runtime,
            _place: place,
        }
    }

    pub fn troubles(&self, troubles: &[Trouble]) {
        *self.state.troubles.lock().expect("lock") = troubles.iter().copied().collect();
    }

    /// How many puts have come, refused ones included.
    pub fn puts(&self) -> u32 {
        *self.state.puts.blocking_lock()
    }

    pub fn options(&self) -> S3Options {
        self.options_of(&format!("s3://{BUCKET}/some/where"), "secret")
    }

    pub fn options_of(&self, url: &str, secret: &str) -> S3Options {
        let mut options = S3Options::from_url(url)
            .and_then(|options| options.set("aws_endpoint_url", format!("http://{}", self.address)))
            .and_then(|options| options.set("aws_access_key_id", "access"))
            .and_then(|options| options.set("aws_secret_access_key", secret))
            .expect("options");
        options.first_backoff = Duration::from_millis(1);
        options.put_attempts = 4;
        options.read_retries = 2;
        options
    }
}

fn error(code: &str, status: u16) -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::Custom(code.into()));
    error.set_status_code(status.try_into().expect("status"));
    error
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let mut puts = self.0.puts.lock().await;
        *puts += 1;
        let trouble = self.0.troubles.lock().expect("lock").pop_front();
        match self.0.manner {
            Manner::Proper => {}
            Manner::IgnoresConditions => request.input.if_none_match = None,
            Manner::ForgetsMetadata => request.input.metadata = None,
        }
        match trouble {
            Some(Trouble::Busy) => return Err(error("SlowDown", 503)),
            Some(Trouble::Conflict) => return Err(error("ConditionalRequestConflict", 409)),
            Some(Trouble::Full) => return Err(error("XMinioStorageFull", 507)),
            Some(Trouble::OverQuota) => return Err(error("QuotaExceeded", 403)),
            Some(Trouble::RivalWins) => {
                request.input.metadata = None;
                request.input.content_md5 = None;
                request.input.body = Some(StreamingBlob::from(Body::from("rival".to_owned())));
            }
            Some(Trouble::FailsAfter | Trouble::HangsUpAfter) | None => {}
        }
        let answer = self.0.files.put_object(request).await;
        match trouble {
            Some(Trouble::FailsAfter | Trouble::RivalWins) => Err(error("InternalError", 500)),
            Some(Trouble::HangsUpAfter) => {
                drop(puts);
                self.0.hang_up.notify_waiters();
                std::future::pending().await
            }
            _ => answer,
        }
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        self.0.files.get_object(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.0.files.head_object(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.0.files.list_objects_v2(request).await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.0.files.delete_object(request).await
    }
}
