//! Objects that the catalog does not name any more are deleted.

use super::{OBJECTS_AT_ONCE, PAUSE};
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use cairn_model::NodeId;
use cairn_segment_writer::BreakerState;
use std::collections::HashSet;

/// What was deleted.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    pub(super) objects: u64,
    pub(super) bytes: u64,
    /// The first thing that went wrong with one of them.
    pub(super) problem: Option<EngineError>,
}

/// Deletes the objects of segments and shards that the catalog does not have any more, from `after` on, which is moved behind them. One that cannot be deleted holds up neither the
/// others nor the caller, and nodes that do not answer are passed over: what they have is for the next time.
pub(super) async fn delete_doomed(
    shared: &Shared,
    after: &mut Option<u64>,
    objects_max: u64,
) -> Result<Deleted, EngineError> {
    let mut deleted = Deleted::default();
    let nodes = shared.pool.nodes();
    let is_silent = |node: &NodeId| {
        let node = nodes.iter().find(|known| known.id() == *node);
        node.is_none_or(|node| node.health().snapshot().breaker == BreakerState::Open)
    };
    let mut passed_over: HashSet<NodeId> = HashSet::new();
    loop {
        let from = *after;
        let doomed = until_known(shared, || shared.catalog.doomed_objects(from, OBJECTS_AT_ONCE)).await?;
        if doomed.is_empty() || shared.stop.is_cancelled() {
            return Ok(deleted);
        }
        for object in doomed {
            if deleted.objects >= objects_max {
                return Ok(deleted);
            }
            *after = Some(object.id);
            if passed_over.contains(&object.node) || is_silent(&object.node) {
                continue;
            }
            if let Err(error) = shared.pool.delete(object.node, &object.key).await {
                tracing::debug!(%error, key = object.key, "an object cannot be deleted; the next pass tries again");
                if error.retryable() {
                    passed_over.insert(object.node);
                }
                deleted.problem.get_or_insert(error.into());
                continue;
            }
            until_known(shared, || shared.catalog.forget_doomed(object.id)).await?;
            deleted.objects += 1;
            deleted.bytes += object.length_bytes;
            shared.ports.clock.sleep(PAUSE).await;
        }
    }
}

/// [`delete_doomed`] for others than passes: while one is under way, that one deletes.
pub(crate) async fn delete_doomed_beside(
    shared: &Shared,
    after: &mut Option<u64>,
    objects_max: u64,
) -> Result<(), EngineError> {
    let Ok(_turn) = shared.reclaim.turn.try_lock() else { return Ok(()) };
    delete_doomed(shared, after, objects_max).await.map(drop)
}
