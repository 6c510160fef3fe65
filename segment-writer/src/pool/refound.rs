//! A node whose place was wiped is founded anew: it has its identity, and nothing else.

use super::marker::{MARKER_BYTES_MAX, MARKER_KEY, Marker};
use super::node::DataNode;
use crate::error::PoolError;
use cairn_model::boxed;
use std::sync::Arc;

impl DataNode {
    /// Whether nothing at all is in the node's place, neither its marker nor any object. A directory that is not mounted looks like that. An error: that
    /// cannot be told now, because the place does not answer or is not there.
    #[boxed]
    pub async fn is_wiped(&self) -> Result<bool, PoolError> {
        Ok(self.unguarded().await?.any_key().await?.is_none())
    }

    /// Makes an empty place this node again. What it held must count as lost before. A place that is not empty is refused, unless the marker in it is this node's.
    #[boxed]
    pub async fn refound(&self) -> Result<(), PoolError> {
        let Some(site) = self.site() else { return Ok(()) };
        let place = self.unguarded().await?;
        let present = match place.get_suffix(MARKER_KEY, MARKER_BYTES_MAX).await {
            Ok((bytes, _)) => Some(bytes),
            Err(PoolError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        if present.is_none() {
            if let Some(example) = place.any_key().await? {
                return Err(PoolError::NotEmpty { node: Arc::clone(self.name()), example });
            }
            place.put_new(MARKER_KEY, Marker { site, node: self.id() }.encode().into()).await?;
        }
        // Two that do it at once, or another node: the marker that stands decides.
        let (bytes, _) = place.get_suffix(MARKER_KEY, MARKER_BYTES_MAX).await?;
        Marker::decode(&bytes, self.name())?.check(site, self.id(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestPolicy;
    use cairn_model::{Ports, SiteId};
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt};

    const SITE: SiteId = SiteId::from_bytes([1; 16]);

    async fn attached(store: &Arc<InMemory>) -> DataNode {
        let store: Arc<dyn ObjectStore> = Arc::clone(store) as _;
        let policy = RequestPolicy::default();
        let node = DataNode::attach_store(Arc::clone(&store), "memory", SITE, policy, Ports::system())
            .await
            .unwrap();
        DataNode::open_store_lazily(store, "memory", SITE, node.id(), policy, Ports::system())
    }

    #[tokio::test]
    async fn an_empty_place_becomes_the_node_that_it_was() {
        let store = Arc::new(InMemory::new());
        let node = attached(&store).await;
        node.put("segments/a", &["bytes".into()]).await.unwrap();
        assert!(!node.is_wiped().await.unwrap());
        for key in [MARKER_KEY, "segments/a"] {
            store.delete(&Path::from(key)).await.unwrap();
        }
        assert!(matches!(node.get_range("segments/a", 0..1).await, Err(PoolError::NotFound { .. })));
        assert!(matches!(node.get_range("segments/a", 0..1).await, Err(PoolError::MarkerMissing { .. })));
        assert!(node.is_wiped().await.unwrap());
        for _ in 0..2 {
            node.refound().await.unwrap();
            node.put("segments/b", &["bytes".into()]).await.unwrap();
            assert!(!node.is_wiped().await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_place_with_something_in_it_is_refused() {
        let store = Arc::new(InMemory::new());
        let node = attached(&store).await;
        store.delete(&Path::from(MARKER_KEY)).await.unwrap();
        store.put(&Path::from("segments/a"), "bytes".into()).await.unwrap();
        assert!(!node.is_wiped().await.unwrap());
        assert!(matches!(node.refound().await, Err(PoolError::NotEmpty { .. })));
        // Another node's place.
        let other = Arc::new(InMemory::new());
        let marker = attached(&other).await;
        let bytes = other.get(&Path::from(MARKER_KEY)).await.unwrap().bytes().await.unwrap();
        store.put(&Path::from(MARKER_KEY), bytes.into()).await.unwrap();
        assert_ne!(marker.id(), node.id());
        assert!(matches!(node.refound().await, Err(PoolError::OtherNode { .. })));
    }
}
