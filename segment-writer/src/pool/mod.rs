//! The pool: where segments become durable, and where they are read from.
//!
//! One data node holds everything. A segment's shards on several nodes change [`Pool::put`] and the location that
//! [`Pool::read_chunks`] is given; a node's own business (attempts, health, marker) stays in [`DataNode`].

pub(crate) mod classify;
mod credentials;
mod directory;
mod health;
mod keys;
mod location;
mod marker;
mod node;
mod policy;
mod s3;

pub use credentials::Credentials;
pub use health::{HealthSnapshot, LastError, NodeHealth};
pub use keys::{KEYS_BYTES_MAX, KEYS_KEY};
pub use location::{NodeUrl, S3Url};
pub use marker::MARKER_KEY;
pub use node::{DataNode, GET_BYTES_MAX};
pub use policy::RequestPolicy;

use crate::error::{Action, PoolError};
use crate::segment::SealedSegment;
use bytes::Bytes;
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{NodeId, Ports, SiteId, UploadReceipt};
use marker::{MARKER_BYTES_MAX, Marker};
use object_store::ObjectStore;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The data nodes of a site.
#[derive(Debug)]
pub struct Pool {
    node: Arc<DataNode>,
}

impl Pool {
    /// A pool that keeps one copy, on one node.
    pub fn single(node: DataNode) -> Self {
        Self { node: Arc::new(node) }
    }

    pub fn nodes(&self) -> &[Arc<DataNode>] {
        std::slice::from_ref(&self.node)
    }

    pub fn node(&self, id: NodeId) -> Result<&Arc<DataNode>, PoolError> {
        self.nodes().iter().find(|node| node.id() == id).ok_or(PoolError::UnknownNode { node: id })
    }

    /// Makes a segment durable. May be repeated with the same segment after any error, and dropped at any point: what is
    /// left behind then has no receipt and a key that nothing else uses.
    pub async fn put(&self, segment: &SealedSegment) -> Result<UploadReceipt, PoolError> {
        let stored = self.node.put(segment.key(), &segment.pieces()).await;
        if !is_planted(Bug::PublishUnstored) {
            stored?;
        }
        #[expect(clippy::disallowed_methods, reason = "this is the pool, and the node acknowledged the put")]
        Ok(UploadReceipt::attest(
            segment.id(),
            self.node.id(),
            segment.key().to_owned(),
            segment.length_bytes(),
        ))
    }

    /// Deletes an object that nothing names any more. One that is not there is deleted already.
    pub async fn delete(&self, node: NodeId, key: &str) -> Result<(), PoolError> {
        self.node(node)?.delete(key).await
    }

    /// The bytes of a range of an object, all of them.
    pub async fn get_range(&self, node: NodeId, key: &str, range: Range<u64>) -> Result<Bytes, PoolError> {
        self.node(node)?.get_range(key, range).await
    }
}

/// What it takes to reach a data node.
#[derive(Clone, Debug)]
pub struct NodeAccess {
    pub url: NodeUrl,
    /// For S3; `None` takes them from the environment.
    pub credentials: Option<Credentials>,
    pub policy: RequestPolicy,
}

impl NodeAccess {
    /// With credentials from the environment and the default policy.
    pub fn new(url: NodeUrl) -> Self {
        Self { url, credentials: None, policy: RequestPolicy::default() }
    }

    pub(crate) fn credentials(&self) -> Result<Credentials, PoolError> {
        self.credentials
            .clone()
            .or_else(Credentials::from_env)
            .ok_or_else(|| PoolError::NoCredentials { url: self.url.to_string() })
    }

    fn store(&self) -> Result<Arc<dyn ObjectStore>, PoolError> {
        match &self.url {
            NodeUrl::Directory(path) => {
                let store =
                    directory::DirectoryStore::open(path).map_err(|error| self.io_error(path, error))?;
                Ok(Arc::new(store))
            }
            NodeUrl::S3(url) => s3::store(url, &self.credentials()?),
        }
    }

    fn io_error(&self, path: &Path, error: std::io::Error) -> PoolError {
        let source = object_store::Error::Generic { store: "directory", source: Box::new(error) };
        let action = Action { verb: "open", key: path.display().to_string() };
        classify::classify(&self.url.to_string().into(), action, source).error
    }
}

impl DataNode {
    /// Makes a place a data node of `site` and opens it. The place must be empty, or be a node of this site already. A
    /// directory is made if it is missing; a bucket is not (see [`S3Admin`](crate::S3Admin)).
    pub async fn attach(access: &NodeAccess, site: SiteId, ports: Ports) -> Result<Self, PoolError> {
        if let NodeUrl::Directory(path) = &access.url {
            directory::DirectoryStore::create(path).map_err(|error| access.io_error(path, error))?;
        }
        Self::attach_store(access.store()?, &access.url.to_string(), site, access.policy, ports).await
    }

    /// [`attach`](Self::attach) for a store that is at hand.
    pub async fn attach_store(
        store: Arc<dyn ObjectStore>,
        name: &str,
        site: SiteId,
        policy: RequestPolicy,
        ports: Ports,
    ) -> Result<Self, PoolError> {
        let fresh = NodeId::fresh(&*ports.clock, &*ports.entropy);
        let node = Self::with_store(fresh, name, Arc::clone(&store), policy, ports.clone());
        let marker = match node.read_marker().await {
            Ok(marker) => marker,
            Err(PoolError::MarkerMissing { .. }) => {
                if let Some(example) = node.any_key().await? {
                    return Err(PoolError::NotEmpty { node: Arc::clone(node.name()), example });
                }
                node.put_new(MARKER_KEY, Marker { site, node: fresh }.encode().into()).await?;
                // Two that attach at once: the marker that stands decides.
                node.read_marker().await?
            }
            Err(error) => return Err(error),
        };
        marker.check_site(site, node.name())?;
        Ok(Self::with_store(marker.node, name, store, policy, ports))
    }

    /// Opens the node that was attached as `id`. Anything else in its place is refused, and nothing is created.
    pub async fn open(
        access: &NodeAccess,
        site: SiteId,
        id: NodeId,
        ports: Ports,
    ) -> Result<Self, PoolError> {
        Self::open_store(access.store()?, &access.url.to_string(), site, id, access.policy, ports).await
    }

    /// [`open`](Self::open) for a store that is at hand.
    pub async fn open_store(
        store: Arc<dyn ObjectStore>,
        name: &str,
        site: SiteId,
        id: NodeId,
        policy: RequestPolicy,
        ports: Ports,
    ) -> Result<Self, PoolError> {
        let node = Self::with_store(id, name, store, policy, ports);
        let marker = node.read_marker().await?;
        marker.check_site(site, node.name())?;
        if marker.node == id {
            Ok(node)
        } else {
            Err(PoolError::OtherNode { node: Arc::clone(node.name()), found: marker.node, expected: id })
        }
    }

    async fn read_marker(&self) -> Result<Marker, PoolError> {
        match self.get_suffix(MARKER_KEY, MARKER_BYTES_MAX).await {
            Ok((bytes, _)) => Marker::decode(&bytes, self.name()),
            Err(PoolError::NotFound { .. }) => {
                Err(PoolError::MarkerMissing { node: Arc::clone(self.name()), key: MARKER_KEY })
            }
            Err(error) => Err(error),
        }
    }
}
