//! What `object_store` lacks: buckets themselves, and finding out what a server can do.

use crate::error::{Action, PoolError};
use crate::pool::classify::{Class, class_of_code, class_of_status, failure};
use crate::pool::{Credentials, NodeAccess, NodeUrl, S3Url};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketLocationConstraint, BucketVersioningStatus, CreateBucketConfiguration};
use cairn_model::{Entropy, boxed};
use std::sync::Arc;
use std::time::Duration;

const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a bucket keeps what is overwritten or deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Versioning {
    Off,
    On,
    /// Was on: old versions are there still.
    Suspended,
    /// The server does not say.
    Unknown,
}

/// What was found out about a node's server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// `If-None-Match: *` refuses to overwrite. Some servers ignore it and say that all is well.
    pub conditional_create: bool,
    pub versioning: Versioning,
}

/// Administers the bucket of an S3 node.
#[derive(Clone, Debug)]
pub struct S3Admin {
    name: Arc<str>,
    url: S3Url,
    client: Client,
}

impl S3Admin {
    /// `None` for a node that is no S3 bucket. Sends nothing yet.
    pub fn new(access: &NodeAccess) -> Result<Option<Self>, PoolError> {
        let NodeUrl::S3(url) = &access.url else { return Ok(None) };
        let client = client(url, &access.credentials()?);
        Ok(Some(Self { name: access.url.to_string().into(), url: url.clone(), client }))
    }

    /// Makes the bucket unless it exists and is ours. `true`: it was made.
    #[boxed]
    pub async fn create_bucket(&self) -> Result<bool, PoolError> {
        let mut request = self.client.create_bucket().bucket(&self.url.bucket);
        // AWS wants the region named, except for its first; other servers know theirs.
        if self.url.endpoint.is_none() && self.url.region() != "us-east-1" {
            let constraint = BucketLocationConstraint::from(self.url.region());
            let configuration = CreateBucketConfiguration::builder().location_constraint(constraint).build();
            request = request.create_bucket_configuration(configuration);
        }
        if self.bucket_exists().await? {
            return Ok(false);
        }
        match request.send().await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("BucketAlreadyOwnedByYou") => Ok(false),
            Err(error) => Err(self.judge("create bucket", &self.url.bucket, error)),
        }
    }

    async fn bucket_exists(&self) -> Result<bool, PoolError> {
        match self.client.head_bucket().bucket(&self.url.bucket).send().await {
            Ok(_) => Ok(true),
            Err(error) if status(&error) == Some(404) => Ok(false),
            Err(error) => Err(self.judge("look for bucket", &self.url.bucket, error)),
        }
    }

    /// What the server can do. Writes and removes a small object below the node's prefix.
    #[boxed]
    pub async fn capabilities(&self, entropy: &dyn Entropy) -> Result<Capabilities, PoolError> {
        Ok(Capabilities {
            conditional_create: self.probe_conditional_create(entropy).await?,
            versioning: self.versioning().await?,
        })
    }

    #[boxed]
    pub async fn versioning(&self) -> Result<Versioning, PoolError> {
        match self.client.get_bucket_versioning().bucket(&self.url.bucket).send().await {
            Ok(answer) => Ok(match answer.status {
                None => Versioning::Off,
                Some(BucketVersioningStatus::Enabled) => Versioning::On,
                Some(BucketVersioningStatus::Suspended) => Versioning::Suspended,
                Some(_) => Versioning::Unknown,
            }),
            Err(error) if matches!(status(&error), Some(400 | 405 | 501)) => Ok(Versioning::Unknown),
            Err(error) => Err(self.judge("ask about versioning of", &self.url.bucket, error)),
        }
    }

    /// Creates an object twice on the condition that it does not exist: the second must be refused.
    async fn probe_conditional_create(&self, entropy: &dyn Entropy) -> Result<bool, PoolError> {
        let mut random = [0; 8];
        entropy.fill(&mut random);
        let name = format!("cairn-probe-{:016x}", u64::from_le_bytes(random));
        let key = if self.url.prefix.is_empty() { name } else { format!("{}/{name}", self.url.prefix) };
        let found = match self.create(&key).await {
            Ok(true) => self.create(&key).await.map(|created_again| !created_again),
            // A server that does not know the condition may refuse it, also for a new object.
            other => other,
        };
        let deleted = self.client.delete_object().bucket(&self.url.bucket).key(&key).send().await;
        let found = found?;
        deleted.map_err(|error| self.judge("delete", &key, error))?;
        Ok(found)
    }

    /// `false`: the server refused because of the condition.
    async fn create(&self, key: &str) -> Result<bool, PoolError> {
        let body = ByteStream::from_static(b"probe of conditional writes; may be deleted\n");
        let request =
            self.client.put_object().bucket(&self.url.bucket).key(key).if_none_match("*").body(body);
        match request.send().await {
            Ok(_) => Ok(true),
            Err(error) if matches!(status(&error), Some(400 | 409 | 412 | 501)) => Ok(false),
            Err(error) => Err(self.judge("put", key, error)),
        }
    }

    fn judge<E>(&self, verb: &'static str, key: &str, error: SdkError<E>) -> PoolError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let code = error.code().map(str::to_owned);
        let class = match (code.as_deref(), status(&error)) {
            // The name is taken by somebody else.
            (Some("BucketAlreadyExists"), _) => Class::AccessDenied,
            (code, status) => match (code.and_then(class_of_code), status.map(class_of_status)) {
                // Nothing here asks for an object that must exist.
                (None, Some(Class::NoSuchObject)) => Class::NoSuchBucket,
                (Some(class), _) | (None, Some(class)) => class,
                (None, None) => Class::Transient,
            },
        };
        let cause = match (code, error.message(), status(&error)) {
            (Some(code), Some(message), _) if !message.is_empty() => format!("{code}: {message}"),
            (Some(code), ..) => code,
            (None, _, Some(status)) => format!("status {status}"),
            (None, _, None) => DisplayErrorContext(&error).to_string(),
        };
        let source = object_store::Error::Generic { store: "S3", source: Box::new(error) };
        failure(&self.name, Action { verb, key: key.to_owned() }, class, cause, source).error
    }
}

fn client(url: &S3Url, credentials: &Credentials) -> Client {
    let credentials = aws_sdk_s3::config::Credentials::new(
        &credentials.access_key_id,
        credentials.secret_access_key.as_str(),
        credentials.session_token.as_ref().map(|token| token.to_string()),
        None,
        "cairn",
    );
    let timeouts = TimeoutConfig::builder()
        .operation_timeout(OPERATION_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        .build();
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(aws_sdk_s3::config::Region::new(url.region().to_owned()))
        .credentials_provider(credentials)
        .force_path_style(true)
        .timeout_config(timeouts)
        // Newer checksum trailers are unknown to many servers.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(endpoint) = &url.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::from_conf(config.build())
}

fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}
