//! The suite on the catalog in memory, and its faults.

use super::{CallFault, CallPlan, MemoryCatalog};
use crate::conformance::{CatalogStore, World};
use crate::{Catalog, CatalogError};
use async_trait::async_trait;
use std::sync::Arc;

mod conformance {
    crate::catalog_conformance!(crate::memory::tests::fresh);
}

#[expect(clippy::unused_async, reason = "the suite makes stores asynchronously")]
async fn fresh() -> MemoryCatalog {
    MemoryCatalog::new()
}

#[async_trait]
impl CatalogStore for MemoryCatalog {
    async fn open(&self) -> Arc<dyn Catalog> {
        Arc::new(self.clone())
    }
}

fn always(fault: CallFault) -> Arc<CallPlan> {
    Arc::new(move |_| Box::pin(async move { Some(fault) }))
}

#[tokio::test]
async fn a_refused_call_changes_nothing_and_a_lost_reply_everything() {
    let catalog = MemoryCatalog::new();
    let world = World::new(&catalog).await;
    let volume = world.new_volume("disk");
    let refused = catalog.with_plan(always(CallFault::Refused)).create_volume(&volume).await;
    assert!(matches!(refused, Err(CatalogError::Unavailable { doing: "create_volume", .. })));
    assert!(catalog.volumes().await.unwrap().is_empty());
    let lost = catalog.with_plan(always(CallFault::ReplyLost)).create_volume(&volume).await;
    assert!(matches!(lost, Err(CatalogError::Unavailable { .. })));
    assert_eq!(catalog.volumes().await.unwrap().len(), 1);
}
