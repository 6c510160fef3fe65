//! An S3 bucket, or a prefix in one, as a data node.

use super::credentials::Credentials;
use super::location::{NodeUrl, S3Url};
use crate::error::PoolError;
use object_store::aws::AmazonS3Builder;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use std::sync::Arc;
use std::time::Duration;

/// A server that does not accept a connection in this time is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The store at `url`. Only these credentials are used: a machine without them is told so at once, instead of waiting
/// for a cloud's metadata service that may not exist.
pub(crate) fn store(url: &S3Url, credentials: &Credentials) -> Result<Arc<dyn ObjectStore>, PoolError> {
    // Retries and timeouts are the node's own, under its clock.
    let no_retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 0,
        retry_timeout: Duration::from_secs(1),
    };
    let options = ClientOptions::new()
        .with_allow_http(true)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout_disabled()
        .with_read_timeout_disabled();
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&url.bucket)
        .with_region(url.region())
        .with_access_key_id(&credentials.access_key_id)
        .with_secret_access_key(credentials.secret_access_key.as_str())
        .with_virtual_hosted_style_request(false)
        // One request per object: not every server knows the other form, and its errors are none of the usual ones.
        .with_disable_bulk_delete(true)
        .with_retry(no_retry)
        .with_client_options(options);
    if let Some(token) = &credentials.session_token {
        builder = builder.with_token(token.as_str());
    }
    if let Some(endpoint) = &url.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    let bucket = builder.build().map_err(|error| PoolError::InvalidUrl {
        url: NodeUrl::S3(url.clone()).to_string(),
        reason: error.to_string(),
    })?;
    Ok(if url.prefix.is_empty() {
        Arc::new(bucket)
    } else {
        Arc::new(PrefixStore::new(bucket, url.prefix.as_str()))
    })
}
