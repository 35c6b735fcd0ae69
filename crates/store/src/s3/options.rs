//! Which bucket, at which server, with which credentials.

use std::fmt;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, RetryConfig};

use crate::{Error, ErrorKind, Result};

/// Name of one put, left with the object it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutId([u8; 16]);

impl PutId {
    /// Takes the bytes, which no other put may have.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A number of its own, to keep racing puts apart in time.
    pub(super) fn spread(self) -> u8 {
        self.0.iter().fold(0, |sum, byte| sum ^ byte)
    }
}

impl fmt::Display for PutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which bucket, at which server, with which credentials.
#[derive(Clone)]
pub struct S3Options {
    bucket: String,
    /// Empty, or ending in a slash.
    root: String,
    settings: Vec<(AmazonS3ConfigKey, String)>,
    /// How often a put is sent before the server counts as not serving.
    pub put_attempts: u32,
    /// How long to wait before the second attempt; then twice as long each time.
    pub first_backoff: Duration,
    /// How often reads and deletions are repeated.
    pub read_retries: usize,
    /// Where names of puts come from: random, or unlike any other in another way.
    pub put_ids: fn() -> PutId,
}

impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Settings hold secrets.
        f.write_str(&self.description())
    }
}

impl S3Options {
    /// Reads `s3://BUCKET` or `s3://BUCKET/PREFIX`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`].
    pub fn from_url(text: &str) -> Result<Self> {
        let invalid = |what: &str| Error::new(ErrorKind::Invalid, format!("{text:?}: {what}"));
        let rest = text
            .strip_prefix("s3://")
            .ok_or_else(|| invalid("not an s3:// address"))?;
        let (bucket, root) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if bucket.len() < 3 || bucket.len() > 255 || !bucket.bytes().all(plain) {
            return Err(invalid(
                "a bucket's name has 3 or more letters, digits, dots or dashes",
            ));
        }
        let root = root.trim_end_matches('/');
        // Room for the longest name: S3 keys have at most 1,024 bytes.
        if root.len() > 500 {
            return Err(invalid("the prefix is longer than 500 bytes"));
        }
        let path = Path::parse(root).map_err(|error| invalid("the prefix").caused_by(error))?;
        if path.as_ref() != root {
            return Err(invalid("the prefix has an empty component"));
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            root: if root.is_empty() {
                String::new()
            } else {
                format!("{root}/")
            },
            settings: Vec::new(),
            put_attempts: 8,
            first_backoff: Duration::from_millis(100),
            read_retries: 8,
            put_ids: || PutId(*uuid::Uuid::new_v4().as_bytes()),
        })
    }

    /// Takes what the environment says in `AWS_*` variables: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, `AWS_VIRTUAL_HOSTED_STYLE_REQUEST` and
    /// more. Variables that mean nothing here are passed over, as other programs have some, too.
    #[must_use]
    pub fn with_environment(mut self) -> Self {
        for (name, value) in std::env::vars_os() {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
                continue;
            };
            if name.starts_with("AWS_")
                && let Ok(key) = name.to_ascii_lowercase().parse()
            {
                self.settings.push((key, value.to_owned()));
            }
        }
        self
    }

    /// Sets one thing by its variable's name in small letters, for instance `aws_endpoint_url`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a name that means nothing.
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Result<Self> {
        let key = name.parse().map_err(|error: object_store::Error| {
            Error::new(ErrorKind::Invalid, format!("s3 setting {name:?}")).caused_by(error)
        })?;
        self.settings.push((key, value.into()));
        Ok(self)
    }

    pub(super) fn root(&self) -> &str {
        &self.root
    }

    pub(super) fn description(&self) -> String {
        let place = format!("s3://{}/{}", self.bucket, self.root);
        match self.endpoint() {
            Some(endpoint) => format!("{place} at {endpoint}"),
            None => place,
        }
    }

    fn endpoint(&self) -> Option<&str> {
        let of = |wanted: AmazonS3ConfigKey| {
            self.settings
                .iter()
                .rev()
                .find(|(key, _)| *key == wanted)
                .map(|(_, value)| value)
        };
        of(AmazonS3ConfigKey::S3Endpoint)
            .or_else(|| of(AmazonS3ConfigKey::Endpoint))
            .map(|s| s.as_str())
    }

    /// A client that repeats requests, and one that does not.
    pub(super) fn build(&self) -> Result<(AmazonS3, AmazonS3)> {
        // TLS needs one source of cryptography per process. If the program has chosen already, its choice stands.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok((self.client(self.read_retries)?, self.client(0)?))
    }

    fn client(&self, max_retries: usize) -> Result<AmazonS3> {
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: self.first_backoff,
                max_backoff: self.first_backoff.saturating_mul(64),
                base: 2.0,
            },
            max_retries,
            retry_timeout: Duration::from_secs(15 * 60),
        };
        let mut builder = AmazonS3Builder::new()
            // A pack over a slow line takes minutes: what must not last is silence, not the whole.
            .with_config(
                AmazonS3ConfigKey::Client(ClientConfigKey::Timeout),
                "15 minutes",
            )
            .with_config(
                AmazonS3ConfigKey::Client(ClientConfigKey::ReadTimeout),
                "5 minutes",
            );
        for (key, value) in &self.settings {
            builder = builder.with_config(*key, value);
        }
        if self
            .endpoint()
            .is_some_and(|endpoint| endpoint.starts_with("http://"))
        {
            builder = builder.with_allow_http(true);
        }
        builder
            .with_bucket_name(&self.bucket)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_disable_bulk_delete(true)
            .with_retry(retry)
            .build()
            .map_err(|error| Error::new(ErrorKind::Invalid, self.description()).caused_by(error))
    }
}
