//! Making and opening data nodes.

use super::marker::{MARKER_BYTES_MAX, MARKER_KEY, Marker};
use super::node::DataNode;
use super::source::Source;
use super::{Credentials, NodeUrl, RequestPolicy, classify, directory, s3};
use crate::error::{Action, PoolError};
use cairn_model::{NodeId, Ports, SiteId, boxed};
use object_store::ObjectStore;
use std::path::Path;
use std::sync::Arc;

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

    pub(super) fn store(&self) -> Result<Arc<dyn ObjectStore>, PoolError> {
        self.store_for(directory::DirectoryStore::open)
    }

    /// The store, of which `open` opens a directory.
    fn store_for(
        &self,
        open: fn(&Path) -> std::io::Result<directory::DirectoryStore>,
    ) -> Result<Arc<dyn ObjectStore>, PoolError> {
        match &self.url {
            NodeUrl::Directory(path) => {
                let store = open(path).map_err(|error| self.io_error(path, error))?;
                Ok(Arc::new(store))
            }
            NodeUrl::S3(url) => s3::store(url, &self.credentials()?),
        }
    }

    /// Whoever was to open the store has died.
    pub(super) fn opening_failed(&self, died: impl std::error::Error + Send + Sync + 'static) -> PoolError {
        self.io_error(Path::new(&self.url.to_string()), std::io::Error::other(died))
    }

    fn io_error(&self, path: &Path, error: std::io::Error) -> PoolError {
        let source = object_store::Error::Generic { store: "directory", source: Box::new(error) };
        let action = Action { verb: "open", key: path.display().to_string() };
        classify::classify(&self.url.to_string().into(), action, source).error
    }
}

/// A name that no object of a pool has, such as one that is not UTF-8, is what a place that is not empty holds.
fn foreign_name(error: PoolError) -> Result<Option<String>, PoolError> {
    match error {
        PoolError::Rejected { cause, source: Some(source), .. }
            if matches!(*source, object_store::Error::InvalidPath { .. }) =>
        {
            Ok(Some(cause))
        }
        error => Err(error),
    }
}

impl DataNode {
    /// Makes a place a data node of `site` and opens it. The place must be empty, or be a node of this site already. A
    /// directory is made if it is missing; a bucket is not (see [`S3Admin`](crate::S3Admin)).
    #[boxed]
    pub async fn attach(access: &NodeAccess, site: SiteId, ports: Ports) -> Result<Self, PoolError> {
        if let NodeUrl::Directory(path) = &access.url {
            directory::DirectoryStore::create(path).map_err(|error| access.io_error(path, error))?;
        }
        let name = access.url.to_string();
        Self::attach_store(access.store()?, &name, site, access.policy, ports).await
    }

    /// [`attach`](Self::attach) for a store that is at hand.
    #[boxed]
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
                if let Some(example) = node.any_key().await.or_else(foreign_name)? {
                    return Err(PoolError::NotEmpty { node: Arc::clone(node.name()), example });
                }
                node.put_new(MARKER_KEY, Marker { site, node: fresh }.encode().into()).await?;
                // Two that attach at once: the marker that stands decides.
                node.read_marker().await?
            }
            Err(error) => return Err(error),
        };
        marker.check_site(site, node.name())?;
        let source = Source::Open(store);
        Ok(Self::of_source(marker.node, name, source, Some(site), policy, ports).verified())
    }

    /// Opens the node that was attached as `id`. Anything else in its place is refused, and nothing is created.
    #[boxed]
    pub async fn open(
        access: &NodeAccess,
        site: SiteId,
        id: NodeId,
        ports: Ports,
    ) -> Result<Self, PoolError> {
        let name = access.url.to_string();
        Self::open_store(access.store()?, &name, site, id, access.policy, ports).await
    }

    /// [`open`](Self::open) for a store that is at hand.
    #[boxed]
    pub async fn open_store(
        store: Arc<dyn ObjectStore>,
        name: &str,
        site: SiteId,
        id: NodeId,
        policy: RequestPolicy,
        ports: Ports,
    ) -> Result<Self, PoolError> {
        let looking = Self::with_store(id, name, Arc::clone(&store), policy, ports.clone());
        looking.read_marker().await?.check(site, id, looking.name())?;
        Ok(Self::of_source(id, name, Source::Open(store), Some(site), policy, ports).verified())
    }

    /// The node that was attached as `id`, without a look at it: it may be down. Its marker is verified before the first request for data, and anything
    /// else in its place is refused then, for as long as it is there.
    pub fn open_lazily(access: &NodeAccess, site: SiteId, id: NodeId, ports: Ports) -> Self {
        let name = access.url.to_string();
        Self::of_source(id, &name, Source::lazy(access.clone()), Some(site), access.policy, ports)
    }

    /// [`open_lazily`](Self::open_lazily) for a store that is at hand.
    pub fn open_store_lazily(
        store: Arc<dyn ObjectStore>,
        name: &str,
        site: SiteId,
        id: NodeId,
        policy: RequestPolicy,
        ports: Ports,
    ) -> Self {
        Self::of_source(id, name, Source::Open(store), Some(site), policy, ports)
    }

    /// Opens whatever node is in that place, and says whose it is. Nothing is written.
    #[boxed]
    pub async fn open_found(access: &NodeAccess, ports: Ports) -> Result<(Self, SiteId), PoolError> {
        let store = access.store_for(directory::DirectoryStore::open_untouched)?;
        let name = access.url.to_string();
        let nameless = NodeId::from_bytes([0; 16]);
        let looking = Self::with_store(nameless, &name, Arc::clone(&store), access.policy, ports.clone());
        let Marker { site, node } = looking.read_marker().await?;
        let found = Self::of_source(node, &name, Source::Open(store), Some(site), access.policy, ports);
        Ok((found.verified(), site))
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
