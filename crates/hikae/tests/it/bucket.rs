//! A repository in a bucket: a real S3 server's wire and storage, in the test process.
//!
//! `s3s-fs` looks whether a key is taken and then writes, so that racing puts could both succeed. Puts go through one lock
//! here, which makes it what S3 promises to be.

use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, GetObjectInput, GetObjectOutput, HeadObjectInput,
    HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, PutObjectInput, PutObjectOutput,
};
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result};
use s3s_fs::FileSystem;

use super::disk::{self, Random};
use super::site::{Outcome, Site, os, text};

const MIB: u64 = 1 << 20;

#[derive(Clone)]
struct Service {
    files: Arc<FileSystem>,
    puts: Arc<tokio::sync::Mutex<()>>,
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let _one_at_a_time = self.puts.lock().await;
        self.files.put_object(request).await
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        self.files.get_object(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.files.head_object(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.files.delete_object(request).await
    }
}

/// A server with the bucket `backup`.
struct BucketServer {
    address: String,
    _runtime: tokio::runtime::Runtime,
}

impl BucketServer {
    fn start(site: &Site) -> Self {
        let place = site.path("server");
        std::fs::create_dir_all(place.join("backup")).expect("make the bucket");
        let files = Arc::new(FileSystem::new(place).expect("file system"));
        let mut builder = S3ServiceBuilder::new(Service {
            files,
            puts: Arc::default(),
        });
        builder.set_auth(SimpleAuth::from_single("access", "secret"));
        let service = builder.build();
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0)))
            .expect("a free port");
        let address = listener.local_addr().expect("address").to_string();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    // A client that goes away is nothing to the server.
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self {
            address,
            _runtime: runtime,
        }
    }

    fn run(&self, site: &Site, arguments: &[&str]) -> Outcome {
        let mut command = site.command(arguments.iter().map(|word| os(word)));
        command
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.address))
            .env("AWS_ACCESS_KEY_ID", "access")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("AWS_REGION", "us-east-1");
        site.start_command(command).wait()
    }
}

#[test]
fn a_repository_in_a_bucket_keeps_and_gives_back_versions() {
    let site = Site::new();
    let server = BucketServer::start(&site);
    let (url, key) = ("s3://backup/hikae", site.path("key"));
    let key = text(&key);
    server
        .run(&site, &["repo", "check-store", "s3://backup/scratch"])
        .expect(0);
    server
        .run(&site, &["repo", "init", url, "--key-file", key])
        .expect(0);
    let image = site.path("disk.raw");
    let mut random = Random::new(20);
    disk::create(&image, 32 * MIB, 8 * MIB, &mut random);
    let image = text(&image);
    let backup = [
        "disk",
        "backup",
        image,
        "--repo",
        url,
        "--key-file",
        key,
        "--name",
        "vm",
    ];
    let first = server.run(&site, &backup).expect(0).json();
    let first_hash = disk::hash_file(image.as_ref());
    disk::change(image.as_ref(), 10, &mut random);
    server.run(&site, &backup).expect(0);

    let out = site.path("restored.raw");
    for (selector, hash) in [
        (format!("vm@{}", first["version"]), first_hash),
        ("vm".to_owned(), disk::hash_file(image.as_ref())),
    ] {
        let restore = [
            "disk",
            "restore",
            "--repo",
            url,
            "--key-file",
            key,
            &selector,
            text(&out),
        ];
        server
            .run(
                &site,
                &[restore.as_slice(), &["--format", "raw", "--overwrite"]].concat(),
            )
            .expect(0);
        assert_eq!(disk::hash_file(&out), hash);
    }
    server
        .run(
            &site,
            &["disk", "forget", "--repo", url, "--key-file", key, "vm@1"],
        )
        .expect(0);
    server
        .run(&site, &["repo", "gc", url, "--key-file", key])
        .expect(0);
    server
        .run(&site, &["repo", "verify", url, "--key-file", key])
        .expect(0);
}
