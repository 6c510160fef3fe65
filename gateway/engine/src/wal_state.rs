//! Whether the log holds anything that the catalog and the pool do not.
//!
//! The catalog remembers it as *dirty* or *clean*, so that a log that has vanished is noticed when it mattered and forgiven when it
//! held nothing. Invariant: while any record that is not destaged exists, the catalog durably says dirty.
//! - to dirty: the first write after a clean time waits for the catalog; later ones see a flag;
//! - to clean: only under every volume's state lock with every write buffer empty, and while nobody has it pinned; from then on an append sees
//!   the flag down and goes through the catalog again, ordered behind this change by `transition`.
//! - a pin keeps it dirty for one who appends later, and not under a lock of his own: a snapshot, whose mark is appended by destage.
//!
//! Crash between the two: the catalog says dirty and the log is empty. That is safe: an existing empty log is fine either way.

use crate::error::EngineError;
use cairn_metadata::{Catalog, CatalogError, WalState};
use cairn_model::GatewayId;
use cairn_model::planted::{Bug, is_planted};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// The log is dirty; the bits above count pins.
const DIRTY: u64 = 1;
const PIN: u64 = 2;

#[derive(Debug)]
pub(crate) struct WalStateFlag {
    gateway: GatewayId,
    /// Pins and the flag in one word: it falls only when there are none.
    word: AtomicU64,
    /// Orders the catalog's changes; held across its calls, never by a write while the log is dirty.
    transition: Mutex<()>,
}

impl WalStateFlag {
    pub(crate) fn new(gateway: GatewayId, state: WalState) -> Self {
        let word = if state == WalState::Dirty { DIRTY } else { 0 };
        Self { gateway, word: AtomicU64::new(word), transition: Mutex::new(()) }
    }

    /// Exact while any volume's state is held: the flag falls only under all of them.
    pub(crate) fn is_dirty(&self) -> bool {
        self.word.load(Ordering::Acquire) & DIRTY != 0
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
            self.word.fetch_or(DIRTY, Ordering::Release);
        }
        Ok(())
    }

    /// The same, and it stays so until the pin is dropped. When nothing was written by then, the log stays marked as dirty until destage has next to do.
    pub(crate) async fn pin_dirty(self: &Arc<Self>, catalog: &dyn Catalog) -> Result<DirtyPin, CatalogError> {
        self.word.fetch_add(PIN, Ordering::AcqRel);
        let pin = DirtyPin(Arc::clone(self));
        self.make_dirty(catalog).await?;
        Ok(pin)
    }

    /// Makes the catalog say clean if `lower_if_empty`, which must hold every volume's state while it looks and while it calls the
    /// closure it is given, which lowers the flag unless it is pinned, finds every buffer empty. Returns whether the log is clean now.
    pub(crate) async fn make_clean(
        &self,
        catalog: &dyn Catalog,
        lower_if_empty: impl FnOnce(&dyn Fn() -> bool) -> bool,
    ) -> Result<bool, EngineError> {
        let _ordered = self.transition.lock().await;
        if !self.is_dirty() {
            return Ok(true);
        }
        let lower = || self.word.compare_exchange(DIRTY, 0, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !lower_if_empty(&lower) {
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

/// Keeps the log dirty. It goes with what is to be appended: whoever asked for that may stop waiting.
#[derive(Debug)]
pub(crate) struct DirtyPin(Arc<WalStateFlag>);

impl Drop for DirtyPin {
    fn drop(&mut self) {
        self.0.word.fetch_sub(PIN, Ordering::AcqRel);
    }
}
