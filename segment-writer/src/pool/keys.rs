//! The site's wrapped keys, kept on the node beside the data that they open.
//!
//! One small object, `cairn-keys`, which the gateway makes and checks; this only stores and bounds it. Unlike every other object it is
//! overwritten: readers see the old one or the new one, whole.

use super::node::DataNode;
use crate::error::PoolError;
use bytes::Bytes;
use cairn_model::boxed;
use std::sync::Arc;

pub const KEYS_KEY: &str = "cairn-keys";

/// Longest keys object that is stored or read.
pub const KEYS_BYTES_MAX: u64 = 1 << 20;

impl DataNode {
    /// The keys object, if there is one.
    #[boxed]
    pub async fn read_keys(&self) -> Result<Option<Bytes>, PoolError> {
        match self.get_suffix(KEYS_KEY, KEYS_BYTES_MAX).await {
            Ok((bytes, size)) if bytes.len() as u64 == size => Ok(Some(bytes)),
            Ok((_, size)) => {
                Err(self.bad_keys(format!("it has {size} bytes, at most {KEYS_BYTES_MAX} are read")))
            }
            Err(PoolError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores the keys object in the place of the one that is there.
    #[boxed]
    pub async fn put_keys(&self, bytes: Bytes) -> Result<(), PoolError> {
        assert!(bytes.len() as u64 <= KEYS_BYTES_MAX, "the maker of the keys object keeps it small");
        self.put(KEYS_KEY, &[bytes]).await
    }

    /// The error of a keys object that is not what it should be.
    pub fn bad_keys(&self, reason: String) -> PoolError {
        PoolError::Corrupt {
            node: Arc::clone(self.name()),
            key: KEYS_KEY.to_owned(),
            part: "the keys of the site".to_owned(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::RequestPolicy;
    use cairn_model::{NodeId, Ports};
    use object_store::memory::InMemory;
    use object_store::{ObjectStore, ObjectStoreExt, path::Path};

    fn node() -> (Arc<InMemory>, DataNode) {
        let store = Arc::new(InMemory::new());
        let dynamic: Arc<dyn ObjectStore> = Arc::clone(&store) as _;
        let id = NodeId::from_bytes([1; 16]);
        let node = DataNode::with_store(id, "memory", dynamic, RequestPolicy::default(), Ports::system());
        (store, node)
    }

    #[tokio::test]
    async fn keys_are_absent_then_there_then_replaced() {
        let (_, node) = node();
        assert_eq!(node.read_keys().await.unwrap(), None);
        for text in [&b"first"[..], b"2"] {
            node.put_keys(Bytes::copy_from_slice(text)).await.unwrap();
            assert_eq!(node.read_keys().await.unwrap().as_deref(), Some(text));
        }
    }

    #[tokio::test]
    async fn a_keys_object_that_is_too_long_is_refused_unread() {
        let (store, node) = node();
        let long = vec![0; usize::try_from(KEYS_BYTES_MAX).unwrap() + 1];
        store.put(&Path::from(KEYS_KEY), long.into()).await.unwrap();
        assert!(matches!(node.read_keys().await, Err(PoolError::Corrupt { .. })));
    }
}
