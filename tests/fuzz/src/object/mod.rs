//! What comes back from an object store.

pub(crate) mod bytes;
pub(crate) mod marker;
pub(crate) mod record;
pub(crate) mod shard;
pub(crate) mod whole;

use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{DomainId, NodeId, Ports, SiteId};
use cairn_segment_writer::{DataNode, Domain, Pool, RequestPolicy};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;
use std::time::Duration;

/// The domain and the site of the format fixtures.
fn domain() -> Domain {
    Domain::new(DomainId::DEFAULT, SecretKey::from_bytes([7; 32]), Encryption::Aes256Gcm)
}

/// The domain of the fixtures without encryption.
fn open_domain() -> Domain {
    Domain::new(DomainId::from_bytes([20; 16]), SecretKey::from_bytes([21; 32]), Encryption::Off)
}

fn site() -> SiteId {
    SiteId::from_bytes([1; 16])
}

fn node_id() -> NodeId {
    NodeId::from_bytes([9; 16])
}

/// One attempt: what is in memory does not get better.
fn policy() -> RequestPolicy {
    let zero = Duration::ZERO;
    RequestPolicy { get_give_up: zero, put_give_up: zero, backoff_first: zero, ..RequestPolicy::default() }
}

const KEY: &str = "object";

/// A store with `object` under [`KEY`].
fn store_with(key: &str, object: &[u8]) -> Arc<dyn ObjectStore> {
    let memory = InMemory::new();
    block_on(memory.put(&Path::from(key), object.to_vec().into())).unwrap();
    Arc::new(memory)
}

fn pool_with(object: &[u8]) -> Pool {
    let store = store_with(KEY, object);
    Pool::single(DataNode::with_store(node_id(), "mem://node", store, policy(), Ports::system()))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}
