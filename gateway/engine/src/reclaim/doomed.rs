//! Objects that the catalog does not name any more are deleted.
//!
//! An object that the catalog does not name may be named by a checkpoint in the pool, from which the catalog would be made again if it were lost. What that checkpoint names must be
//! there then, and a segment that is put and dead since it was taken is needed for its footer: the batches after it continue from there. So
//! - an object is deleted only when its row of `doomed` is in a checkpoint that is durable: that one does not name the object, and has what its footer told in another way (what lived
//!   in it moved, or is in leaves). This holds whoever doomed it: reclaim, or healing that has put a shard elsewhere. In the checkpoint before, the shard has its old
//!   place, where it still is;
//! - where a checkpoint is durable on fewer nodes than it should be, because others are silent, objects are deleted on those that have it and on no other: the others have an earlier checkpoint,
//!   which would be the newest if the first were lost, and what that needs stays on them;
//! - rows have growing numbers, so one number, kept in the catalog, says which those are ([`Record::recorded_through`](crate::record)). They need no further checkpoint: a pool that is full, in
//!   which none can be put, gets room from them first;
//! - for the others a checkpoint is taken, or waited for, or asked for ([`Need`]): healing waits for none;
//! - in a pool without room for a checkpoint, whatever makes way for it, some objects on nodes that are full go without one, and it is tried again. Otherwise nothing would ever go, and guests could not
//!   write any more. Whoever has to recover the site from the checkpoint before, in that moment, misses what it names of them and what nothing else in the pool has, and is told. Of segments that may have been committed since
//!   that checkpoint nothing goes, but old shards of those that have others in their place: the footers of their batches are all that tells of the writes since.
//!
//! Crash cases: between checkpoint and deletion, rows are left that the next call deals with at once; between deletion and `forget_doomed`, one that deletes what is not there.

use super::{OBJECTS_AT_ONCE, PAUSE};
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use crate::heal::place_of;
use crate::record::{Need, checkpoint_for, newest_covers, recorded_through};
use cairn_metadata::DoomedObject;
use cairn_model::{ErrorKind, Kinded, NodeId};
use cairn_segment_writer::BreakerState;
use std::collections::HashSet;
use std::time::Duration;

/// Objects that go without a checkpoint before the next try to take one.
const LAST_RESORT_OBJECTS: u64 = 64;

/// What was deleted.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    pub(super) objects: u64,
    pub(super) bytes: u64,
    /// The first thing that went wrong with one of them.
    pub(super) problem: Option<EngineError>,
    /// Some are left that wait for a checkpoint.
    pub(super) waits: bool,
    /// Why they do, if one was tried.
    pub(super) unrecorded: Option<EngineError>,
    /// How long checkpoints took.
    pub(super) recording: Duration,
}

/// Deletes the objects of segments and shards that the catalog does not have any more, from `after` on, which is moved behind them. One that cannot be deleted holds up neither the
/// others nor the caller, and nodes that do not answer are passed over: what they have is for the next time. An error when the pool has another catalog by now.
pub(super) async fn delete_doomed(
    shared: &Shared,
    after: &mut Option<u64>,
    objects_max: u64,
    need: Need,
) -> Result<Deleted, EngineError> {
    let mut deleted = Deleted::default();
    let nodes = shared.pool.nodes();
    let is_silent = |node: &NodeId| {
        let node = nodes.iter().find(|known| known.id() == *node);
        node.is_none_or(|node| node.health().snapshot().breaker == BreakerState::Open)
    };
    let mut passed_over: HashSet<NodeId> = HashSet::new();
    // `None`: not asked yet.
    let mut through: Option<u64> = None;
    let mut is_asked = false;
    let mut last_resort = LastResort::default();
    let mut at = *after;
    'pages: loop {
        let doomed = until_known(shared, || shared.catalog.doomed_objects(at, OBJECTS_AT_ONCE)).await?;
        if doomed.is_empty() {
            if !deleted.waits {
                // Nothing waits for a checkpoint, whatever became of it.
                deleted.unrecorded = None;
            }
            return Ok(deleted);
        }
        if shared.stop.is_cancelled() {
            return Ok(deleted);
        }
        shared.record.check_owner()?;
        for object in doomed {
            if deleted.objects >= objects_max {
                return Ok(deleted);
            }
            let mut recorded = match through {
                Some(through) => through,
                None => recorded_through(shared).await?,
            };
            if object.id > recorded && !shared.record.is_recorded(object.id) && !is_asked {
                is_asked = true;
                last_resort = ask_for_checkpoint(shared, need, &mut deleted).await?;
                recorded = recorded_through(shared).await?;
                if deleted.waits && deleted.unrecorded.is_none() {
                    // There was room in the end: what was passed over before may go, too.
                    (deleted.waits, through, at) = (false, Some(recorded), *after);
                    continue 'pages;
                }
            }
            through = Some(recorded);
            let is_recorded = object.id <= recorded || shared.record.is_recorded(object.id);
            if !is_recorded && last_resort.objects == 0 {
                // Doomed since, or without a checkpoint: it and what follows are for a later call.
                deleted.waits = true;
                return Ok(deleted);
            }
            let is_silent = passed_over.contains(&object.node) || is_silent(&object.node);
            let may_go = if is_recorded {
                object.id <= recorded || shared.record.is_recorded_on(object.id, object.node)
            } else {
                last_resort.may_take(shared, &object).await?
            };
            let goes = may_go && !is_silent;
            // What is passed over without a checkpoint is looked at again when there is one.
            deleted.waits |= !is_recorded && !goes;
            at = Some(object.id);
            if !deleted.waits {
                *after = at;
            }
            if !is_recorded && goes {
                last_resort.objects -= 1;
                // Perhaps there is room now.
                is_asked = last_resort.objects > 0;
            }
            if goes {
                delete(shared, &object, &mut passed_over, &mut deleted).await?;
            }
        }
    }
}

/// Deletes an object and forgets it. What its node has besides is passed over from now on where it does not answer.
async fn delete(
    shared: &Shared,
    object: &DoomedObject,
    passed_over: &mut HashSet<NodeId>,
    deleted: &mut Deleted,
) -> Result<(), EngineError> {
    if let Err(error) = shared.pool.delete(object.node, &object.key).await {
        tracing::debug!(%error, key = object.key, "an object cannot be deleted; the next pass tries again");
        if error.retryable() {
            passed_over.insert(object.node);
        }
        deleted.problem.get_or_insert(error.into());
        return Ok(());
    }
    until_known(shared, || shared.catalog.forget_doomed(object.id)).await?;
    shared.heal.deleted_from(object.segment);
    deleted.objects += 1;
    deleted.bytes += object.length_bytes;
    shared.ports.clock.sleep(PAUSE).await;
    Ok(())
}

/// What may go without a checkpoint.
#[derive(Debug, Default)]
struct LastResort {
    /// How many objects.
    objects: u64,
    /// On these nodes: they have no room. Elsewhere it would help nobody, and the checkpoint before may need it.
    on: HashSet<NodeId>,
    /// Of segments that were made before that ([`newest_covers`]).
    before_ms: Option<u64>,
}

impl LastResort {
    async fn may_take(&self, shared: &Shared, object: &DoomedObject) -> Result<bool, EngineError> {
        if !self.on.contains(&object.node) {
            return Ok(false);
        }
        if self.before_ms.is_none_or(|before| object.segment.created_at_ms() < before) {
            return Ok(true);
        }
        // Its footer is in others.
        let segment = place_of(shared, object.segment).await?;
        Ok(segment.is_some_and(|segment| segment.place.placement.missing() == 0))
    }
}

/// Takes a checkpoint, or waits or asks for one. Returns what may go without, because the pool has no room for it.
async fn ask_for_checkpoint(
    shared: &Shared,
    need: Need,
    deleted: &mut Deleted,
) -> Result<LastResort, EngineError> {
    let began = shared.ports.clock.now();
    let asked = checkpoint_for(shared, need).await;
    deleted.recording += shared.ports.clock.now().since(began);
    deleted.unrecorded = match asked {
        Err(error) if error.is_of_another_catalog() => return Err(error),
        Err(error) => Some(error),
        Ok(true) => None,
        // None was tried: the reason is the one of before, if there is one.
        Ok(false) => return Ok(LastResort::default()),
    };
    let Some(error) = deleted.unrecorded.as_ref().filter(|error| is_full(error)) else {
        return Ok(LastResort::default());
    };
    let now = shared.ports.clock.now();
    let full = shared.pool.nodes().into_iter().filter(|node| node.health().is_full(now));
    let on = full.map(|node| node.id()).collect();
    let before_ms = match newest_covers(shared).await {
        Ok(before_ms) => before_ms,
        Err(unknown) => {
            tracing::warn!(%error, %unknown, "the pool has no room for a checkpoint, and what the newest one has is not known: everything stays");
            return Ok(LastResort::default());
        }
    };
    tracing::warn!(%error, "the pool has no room for a checkpoint: some of what nothing points at goes without one");
    Ok(LastResort { objects: LAST_RESORT_OBJECTS, on, before_ms })
}

/// Whether the pool has no room, rather than the catalog's own disk.
fn is_full(error: &EngineError) -> bool {
    matches!(error, EngineError::Pool(error) if error.kind() == ErrorKind::OutOfSpace)
}

/// [`delete_doomed`] for others than passes: while one is under way, that one deletes. Whether some may be left.
pub(crate) async fn delete_doomed_beside(
    shared: &Shared,
    after: &mut Option<u64>,
    objects_max: u64,
    need: Need,
) -> Result<bool, EngineError> {
    let Ok(_turn) = shared.reclaim.turn.try_lock() else { return Ok(true) };
    let deleted = delete_doomed(shared, after, objects_max, need).await?;
    Ok(deleted.waits || deleted.objects >= objects_max)
}
