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
    /// One was taken: what was doomed before waits no more.
    pub(super) recorded: bool,
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
    let mut checkpoints = Checkpoints::new(shared, need);
    let mut at = *after;
    'pages: loop {
        let doomed = until_known(shared, || shared.catalog.doomed_objects(at, OBJECTS_AT_ONCE)).await?;
        if doomed.is_empty() {
            let asks = checkpoints.made_room && !shared.stop.is_cancelled();
            if asks && checkpoints.ask(&mut deleted).await? {
                (deleted.waits, at) = (false, *after);
                continue 'pages;
            }
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
            if !checkpoints.is_asked
                && !checkpoints.have(object.id).await?
                && checkpoints.ask(&mut deleted).await?
            {
                (deleted.waits, at) = (false, *after);
                continue 'pages;
            }
            let is_recorded = checkpoints.have(object.id).await?;
            if !is_recorded && checkpoints.last_resort.objects == 0 {
                // Doomed since, or without a checkpoint: it and what follows are for a later call.
                deleted.waits = true;
                return Ok(deleted);
            }
            let goes = !passed_over.contains(&object.node)
                && !is_silent(&object.node)
                && checkpoints.let_go(&object, is_recorded).await?;
            // What is passed over without a checkpoint is looked at again when there is one.
            deleted.waits |= !is_recorded && !goes;
            at = Some(object.id);
            if !deleted.waits {
                *after = at;
            }
            if !goes {
                continue;
            }
            let is_gone = delete(shared, &object, &mut passed_over, &mut deleted).await?;
            if !is_recorded {
                checkpoints.went_without(is_gone);
            }
        }
    }
}

/// Deletes an object and forgets it. What its node has besides is passed over from now on where it does not answer. Whether it is gone.
async fn delete(
    shared: &Shared,
    object: &DoomedObject,
    passed_over: &mut HashSet<NodeId>,
    deleted: &mut Deleted,
) -> Result<bool, EngineError> {
    if let Err(error) = shared.pool.delete(object.node, &object.key).await {
        tracing::debug!(%error, key = object.key, "an object cannot be deleted; the next pass tries again");
        if error.retryable() {
            passed_over.insert(object.node);
        }
        deleted.problem.get_or_insert(error.into());
        return Ok(false);
    }
    until_known(shared, || shared.catalog.forget_doomed(object.id)).await?;
    shared.heal.deleted_from(object.segment);
    deleted.objects += 1;
    deleted.bytes += object.length_bytes;
    shared.ports.clock.sleep(PAUSE).await;
    Ok(true)
}

/// What checkpoints let go.
struct Checkpoints<'a> {
    shared: &'a Shared,
    need: Need,
    /// [`recorded_through`]; `None`: not asked yet.
    through: Option<u64>,
    /// One was taken, or cannot be for now.
    is_asked: bool,
    last_resort: LastResort,
    /// Something went without one since one was asked for. There may be room now; and as long as there is none, the one before names what is gone.
    made_room: bool,
}

impl<'a> Checkpoints<'a> {
    fn new(shared: &'a Shared, need: Need) -> Self {
        let last_resort = LastResort::default();
        Self { shared, need, through: None, is_asked: false, last_resort, made_room: false }
    }

    /// Whether one is there with an object among the doomed, on whatever nodes.
    async fn have(&mut self, object: u64) -> Result<bool, EngineError> {
        Ok(object <= self.through().await? || self.shared.record.is_recorded(object))
    }

    async fn through(&mut self) -> Result<u64, EngineError> {
        let through = match self.through {
            Some(through) => through,
            None => recorded_through(self.shared).await?,
        };
        self.through = Some(through);
        Ok(through)
    }

    /// Takes one, or waits or asks for one. Whether there was room in the end: then what was passed over before may go, too.
    async fn ask(&mut self, deleted: &mut Deleted) -> Result<bool, EngineError> {
        let need = if std::mem::take(&mut self.made_room) { Need::Now } else { self.need };
        self.is_asked = true;
        self.last_resort = ask_for_checkpoint(self.shared, need, deleted).await?;
        self.through = None;
        Ok(deleted.waits && deleted.unrecorded.is_none())
    }

    /// Whether an object may go from its node: one that they have, or one that they have not.
    async fn let_go(&mut self, object: &DoomedObject, is_recorded: bool) -> Result<bool, EngineError> {
        if !is_recorded {
            return self.last_resort.may_take(self.shared, object).await;
        }
        let record = &self.shared.record;
        Ok(object.id <= self.through().await? || record.is_recorded_on(object.id, object.node))
    }

    /// One that none has was to be deleted.
    fn went_without(&mut self, is_gone: bool) {
        self.last_resort.objects = self.last_resort.objects.saturating_sub(1);
        // After some it is tried again.
        self.is_asked = self.last_resort.objects > 0;
        if is_gone {
            self.made_room = true;
            self.shared.record.lacks_something();
        }
    }
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
    deleted.recorded |= matches!(asked, Ok(true));
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
    let on: HashSet<NodeId> = full.map(|node| node.id()).collect();
    if on.is_empty() {
        // There is room by now, or nobody knows where there is none.
        return Ok(LastResort::default());
    }
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
