//! The store behind a node: at hand, or opened when it is first needed.

use super::attach::NodeAccess;
use super::classify::Failure;
use crate::error::PoolError;
use cairn_model::Ports;
use object_store::ObjectStore;
use parking_lot::Mutex;
use std::sync::Arc;

#[derive(Debug)]
pub(super) enum Source {
    Open(Arc<dyn ObjectStore>),
    Lazy { access: Box<NodeAccess>, opened: Mutex<Option<Arc<dyn ObjectStore>>> },
}

impl Source {
    pub(super) fn lazy(access: NodeAccess) -> Self {
        Self::Lazy { access: Box::new(access), opened: Mutex::new(None) }
    }

    /// The store, opened if need be: a few calls of the file system for a directory, none of the network for a bucket.
    pub(super) fn store(&self, ports: &Ports) -> Result<Arc<dyn ObjectStore>, Failure> {
        let (access, opened) = match self {
            Self::Open(store) => return Ok(Arc::clone(store)),
            Self::Lazy { access, opened } => (access, opened),
        };
        if let Some(store) = &*opened.lock() {
            return Ok(Arc::clone(store));
        }
        let mut result: Option<Result<Arc<dyn ObjectStore>, PoolError>> = None;
        if !ports.spawn.in_place(&mut || result = Some(access.store())) {
            result = Some(access.store());
        }
        let store = result.expect("it ran, there or here");
        let store = store.map_err(|error| Failure { transient: error.retryable(), error })?;
        // Two that open at once: either is good, the later one stays.
        *opened.lock() = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Lets go of a store that turned out to be another place. One that is at hand stays.
    pub(super) fn close(&self) {
        if let Self::Lazy { opened, .. } = self {
            *opened.lock() = None;
        }
    }
}
