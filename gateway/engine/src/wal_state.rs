//! Whether the log holds anything that the catalog and the pool do not.
//!
//! The catalog remembers it as *dirty* or *clean*, so that a log that has vanished is noticed when it mattered and forgiven when it
//! held nothing. Invariant: while any record that is not destaged exists, the catalog durably says dirty.
//! - to dirty: the first write after a clean time waits for the catalog; later ones see a flag;
//! - to clean: only under every volume's state lock with every write buffer empty; from then on an append sees
//!   the flag down and goes through the catalog again, ordered behind this change by `transition`.
//!
//! Crash between the two: the catalog says dirty and the log is empty. That is safe: an existing empty log is fine either way.

use crate::error::EngineError;
use cairn_metadata::{Catalog, CatalogError, WalState};
use cairn_model::GatewayId;
use cairn_model::planted::{Bug, is_planted};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Mutex;

#[derive(Debug)]
pub(crate) struct WalStateFlag {
    gateway: GatewayId,
    dirty: AtomicBool,
    /// Orders the catalog's changes; held across its calls, never by a write while the log is dirty.
    transition: Mutex<()>,
}

impl WalStateFlag {
    pub(crate) fn new(gateway: GatewayId, state: WalState) -> Self {
        Self { gateway, dirty: AtomicBool::new(state == WalState::Dirty), transition: Mutex::new(()) }
    }

    /// Exact while any volume's state is held: the flag falls only under all of them.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Makes the catalog say dirty before the first record of a clean log.
    pub(crate) async fn make_dirty(&self, catalog: &dyn Catalog) -> Result<(), CatalogError> {
        if self.is_dirty() {
            return Ok(());
        }
        let _ordered = self.transition.lock().await;
        if !self.is_dirty() {
            if !is_planted(Bug::ForgetDirtyLog) {
                catalog.set_wal_state(self.gateway, WalState::Dirty).await?;
            }
            self.dirty.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Makes the catalog say clean if `lower_if_empty`, which must hold every volume's state while it looks and while it calls the
    /// closure it is given, finds every buffer empty. Returns whether the log is clean now.
    pub(crate) async fn make_clean(
        &self,
        catalog: &dyn Catalog,
        lower_if_empty: impl FnOnce(&dyn Fn()) -> bool,
    ) -> Result<bool, EngineError> {
        let _ordered = self.transition.lock().await;
        if !self.is_dirty() {
            return Ok(true);
        }
        if !lower_if_empty(&|| self.dirty.store(false, Ordering::Release)) {
            return Ok(false);
        }
        if let Err(error) = catalog.set_wal_state(self.gateway, WalState::Clean).await {
            // The catalog may say either now; dirty is true for sure only after the next change.
            tracing::warn!(%error, "cannot record that the log is empty");
            return Err(error.into());
        }
        Ok(true)
    }
}
