//! What can go wrong between bytes and objects.

use crate::pool::MARKER_KEY;
use cairn_model::{ErrorKind, Kinded, NodeId, Profile, SiteId};
use std::sync::Arc;

/// Bytes that are not what the format or the authentication says they must be; the text says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damaged(pub &'static str);

/// A failure of the pool, or of an object in it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PoolError {
    #[error(
        "data node {node} does not answer ({action}: {cause}); the request can be repeated once the node is back"
    )]
    Unavailable { node: Arc<str>, action: Action, cause: String, source: Option<Arc<object_store::Error>> },
    #[error(
        "data node {node} refuses access ({action}: {cause}); check the access key, its rights and this machine's clock"
    )]
    AccessDenied { node: Arc<str>, action: Action, cause: String, source: Option<Arc<object_store::Error>> },
    #[error(
        "the bucket or directory of data node {node} does not exist ({action}: {cause}); restore it or correct its URL"
    )]
    NoSuchBucket { node: Arc<str>, action: Action, cause: String, source: Option<Arc<object_store::Error>> },
    #[error("data node {node} is full ({action}: {cause}); add space or remove data")]
    OutOfSpace { node: Arc<str>, action: Action, cause: String, source: Option<Arc<object_store::Error>> },
    #[error("data node {node} takes no writes ({action}: {cause}); make it writable again")]
    ReadOnly { node: Arc<str>, action: Action, cause: String, source: Option<Arc<object_store::Error>> },
    #[error("data node {node} refuses a request ({action}: {cause})")]
    Rejected { node: Arc<str>, action: Action, cause: String, source: Option<Arc<object_store::Error>> },
    #[error("object {key} is missing on data node {node}; it must be restored from another copy")]
    NotFound { node: Arc<str>, key: String },
    #[error("object {key} on data node {node} is damaged: {part}: {reason}")]
    Corrupt { node: Arc<str>, key: String, part: String, reason: String },
    #[error(
        "object {key} on data node {node} was written by a newer version (format {found}, this program reads up to {known}); upgrade this program"
    )]
    NewerFormat { node: Arc<str>, key: String, found: u64, known: u64 },
    #[error("the catalog names data node {node}, which this pool does not have; add it back")]
    UnknownNode { node: NodeId },
    #[error(
        "segment {key} cannot be stored as {profile} now: {acknowledged} of {required} shards are ({reason}); bring nodes back or add some, or choose another profile"
    )]
    TooFewNodes { key: String, profile: Profile, acknowledged: usize, required: usize, reason: String },
    #[error(
        "segment {key} cannot be read now: {found} of the {required} shards that it takes are there ({reason}); the request can be repeated once nodes are back"
    )]
    TooFewShards { key: String, found: usize, required: usize, reason: String },
    #[error("{url}: {reason}")]
    InvalidUrl { url: String, reason: String },
    #[error(
        "no credentials for {url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name them in the configuration"
    )]
    NoCredentials { url: String },
    #[error(
        "{node} is no data node: its marker {key} is missing; the bucket, prefix or directory is not the one that was \
         attached, or its content is lost"
    )]
    MarkerMissing { node: Arc<str>, key: &'static str },
    #[error("{node} belongs to site {found}, not to {expected}; use another bucket, prefix or directory")]
    OtherSite { node: Arc<str>, found: SiteId, expected: SiteId },
    #[error("{node} is data node {found}, not {expected}; correct the URL")]
    OtherNode { node: Arc<str>, found: NodeId, expected: NodeId },
    #[error("{node} is not empty ({example}) and no data node; use an empty bucket, prefix or directory")]
    NotEmpty { node: Arc<str>, example: String },
}

impl PoolError {
    /// Whether the same call may succeed later, without other data: because the cause goes away by itself or
    /// by what an operator does at the node.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::AccessDenied { .. }
            | Self::NoSuchBucket { .. }
            | Self::OutOfSpace { .. }
            | Self::ReadOnly { .. }
            | Self::TooFewNodes { .. }
            | Self::TooFewShards { .. } => true,
            Self::Rejected { .. }
            | Self::NotFound { .. }
            | Self::Corrupt { .. }
            | Self::NewerFormat { .. }
            | Self::UnknownNode { .. }
            | Self::InvalidUrl { .. }
            | Self::NoCredentials { .. }
            | Self::MarkerMissing { .. }
            | Self::OtherSite { .. }
            | Self::OtherNode { .. }
            | Self::NotEmpty { .. } => false,
        }
    }

    /// Whether it says something about the node as a whole: that it is down, or is not the node that it should be.
    pub(crate) fn is_of_node(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::AccessDenied { .. }
            | Self::NoSuchBucket { .. }
            | Self::MarkerMissing { .. }
            | Self::OtherSite { .. }
            | Self::OtherNode { .. } => true,
            Self::Corrupt { key, .. } | Self::NewerFormat { key, .. } => key == MARKER_KEY,
            _ => false,
        }
    }

    /// Whether it says that an object is not there as it should be.
    pub fn is_of_object(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Corrupt { .. }) && !self.is_of_node()
    }
}

impl Kinded for PoolError {
    fn kind(&self) -> ErrorKind {
        match self {
            // Wrong rights and a missing bucket are the operator's to mend; until then the node is as good as down.
            Self::Unavailable { .. }
            | Self::AccessDenied { .. }
            | Self::NoSuchBucket { .. }
            | Self::TooFewNodes { .. }
            | Self::TooFewShards { .. } => ErrorKind::Unavailable,
            Self::OutOfSpace { .. } => ErrorKind::OutOfSpace,
            Self::ReadOnly { .. } => ErrorKind::ReadOnly,
            // An object that the catalog names and the node has lost is a lost copy, not an absent name.
            Self::Corrupt { .. } | Self::NotFound { .. } => ErrorKind::Corrupt,
            Self::UnknownNode { .. } | Self::MarkerMissing { .. } => ErrorKind::NotFound,
            Self::OtherSite { .. } | Self::OtherNode { .. } | Self::NotEmpty { .. } => ErrorKind::Conflict,
            Self::NewerFormat { .. } | Self::InvalidUrl { .. } | Self::NoCredentials { .. } => {
                ErrorKind::Unsupported
            }
            Self::Rejected { .. } => ErrorKind::Internal,
        }
    }
}

/// What a request wanted, for messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    pub verb: &'static str,
    pub key: String,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.key)
    }
}
