//! The dedupe domains whose keys are open.

use crate::error::EngineError;
use cairn_model::DomainId;
use cairn_model::crypto::KeyId;
use cairn_segment_writer::Domain;
use parking_lot::RwLock;
use std::collections::BTreeMap;

/// Domains by identity. One whose key could not be opened is not here: its volumes are not served, the others are.
#[derive(Debug)]
pub(crate) struct Domains {
    open: RwLock<BTreeMap<DomainId, Domain>>,
}

impl Domains {
    pub(crate) fn new(domains: Vec<Domain>) -> Self {
        Self { open: RwLock::new(domains.into_iter().map(|domain| (domain.id(), domain)).collect()) }
    }

    /// The open domain whose key is called so.
    pub(crate) fn by_key(&self, key: KeyId) -> Option<Domain> {
        self.open.read().values().find(|domain| domain.key_id() == key).cloned()
    }

    pub(crate) fn get(&self, id: DomainId) -> Result<Domain, EngineError> {
        self.open.read().get(&id).cloned().ok_or(EngineError::DomainClosed(id))
    }

    pub(crate) fn add(&self, domain: Domain) {
        self.open.write().insert(domain.id(), domain);
    }
}
