//! One segment is given the place that it should have.
//!
//! ```text
//! plan ─► make shards under fresh keys, each acknowledged ─► place them, one transaction ─► what is left over is doomed ─► delete, forget
//! ```
//!
//! - The catalog names a shard only after its node has acknowledged it, and an object is deleted only after the catalog does not name it any more.
//! - A place is changed from exactly what the plan was made for: whoever was first with another change (reclaim, another gateway) wins, and what was made here
//!   goes.
//! - Keys of shards that are made here have a tag that was never used: nobody else puts or names them.
//! - Shards that are left over are deleted as all that is doomed is: only after a checkpoint that has them so is durable (`reclaim::doomed`). In the one before, the segment has its
//!   old place, and all of it is there. What was made here and never placed is in no checkpoint and goes at once.
//!
//! Crash cases: before the transaction, objects are left that nothing names, at most those of the segments under way; after it, what is doomed is deleted
//! by whoever comes next. What a transaction did whose answer does not come is found out before anything else is made or lost: until then its objects stay, and
//! there are never more of these than segments under way.

use super::plan::{Plan, ShardPlan, View, Wait};
use super::{Healed, wait_for_turn};
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use cairn_metadata::{CatalogError, PlacementChange, SegmentPlace};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{Entropy, ErrorKind, Kinded, NodeId, ObjectPlace, Placement, SegmentId, ShardPlace};
use cairn_segment_writer::{BreakerState, PoolError, ShardState, Stray};
use std::collections::HashSet;

/// What became of a segment.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is as it should be.
    Fine,
    Healed(Healed),
    /// Somebody else changed it first, or took it away.
    Changed,
    Waits(Wait),
}

/// One segment's work.
pub(super) struct Step<'a> {
    pub(super) shared: &'a Shared,
    pub(super) view: &'a View,
    /// Where it should be today is where it goes.
    pub(super) rebalance: bool,
}

impl Step<'_> {
    /// Does what is to be done about a segment. `lost` are shards of it that were found missing or damaged.
    pub(super) async fn heal(&self, segment: &SegmentPlace, lost: &[usize]) -> Result<Outcome, EngineError> {
        let SegmentPlace { id, place } = segment;
        match self.view.plan(*id, place, lost, self.rebalance) {
            Plan::Done => Ok(Outcome::Fine),
            Plan::Waits(wait) => Ok(Outcome::Waits(wait)),
            Plan::Shards(plan) => self.make_shards(*id, place, plan, lost).await,
            Plan::Convert(source, nodes) => self.convert(*id, place, &source, &nodes).await,
        }
    }

    async fn make_shards(
        &self,
        segment: SegmentId,
        from: &ObjectPlace,
        plan: ShardPlan,
        lost: &[usize],
    ) -> Result<Outcome, EngineError> {
        let ShardPlan { source, kept, made, drops } = plan;
        let profile = source.placement.profile();
        if drops && !self.are_whole(segment, &source).await? {
            return Ok(Outcome::Waits(Wait::Readable));
        }
        let (mut shards, mut healed, mut problem) = (kept, Healed::default(), None);
        // What is found lost stays until its successor is there: its node may only be slow, and what the others have may be worse.
        if profile == from.placement.profile() {
            for (index, _) in made.iter().filter(|(index, _)| lost.contains(index)) {
                shards[*index] = from.placement.shards()[*index];
            }
        }
        let mut put = Vec::new();
        let shard_bytes = profile.shard_bytes(from.length_bytes);
        let risk = self.view.is_at_risk(from, lost);
        for (index, node) in made {
            let shard = ShardPlace { node, tag: fresh_tag(&*self.shared.ports.entropy) };
            let reads = shard_bytes * profile.needed() as u64;
            self.wait_for_turn(reads + shard_bytes, risk).await;
            let domains = |key| self.shared.domains.by_key(key);
            let pool = &self.shared.pool;
            let done = pool.rebuild_shard(&source, segment, index, node, shard.tag, &domains).await;
            put.push((index, shard));
            match done {
                Err(_) if is_planted(Bug::PlaceUnstored) => shards[index] = Some(shard),
                Ok(()) => {
                    shards[index] = Some(shard);
                    healed.shards += 1;
                    healed.bytes += shard_bytes;
                }
                // The put may take effect yet, or have had its effect: it goes with what is not placed.
                Err(error) => {
                    problem = Some(error);
                    break;
                }
            }
        }
        if drops && let Some(problem) = problem {
            // Whatever would go stays until all that is to be there is.
            let keys = put.iter().filter_map(|(index, shard)| key_of(&source, *index, *shard)).collect();
            delete(self.shared, keys).await;
            return if is_gone(&problem) {
                self.explain(segment, from, problem).await
            } else {
                Err(problem.into())
            };
        }
        let to = Placement::new(profile, shards).map(|placement| ObjectPlace { placement, ..source.clone() });
        let to = to.filter(|to| to != from);
        let keys: Vec<_> = put.iter().filter_map(|(index, shard)| key_of(&source, *index, *shard)).collect();
        let outcome = if let Some(to) = to {
            self.place(segment, from, to, keys, healed).await?
        } else {
            delete(self.shared, keys).await;
            Outcome::Waits(Wait::Readable)
        };
        match (outcome, problem) {
            (_, Some(error)) if is_gone(&error) => self.explain(segment, from, error).await,
            (_, Some(error)) => Err(error.into()),
            (outcome, None) => Ok(outcome),
        }
    }

    async fn convert(
        &self,
        segment: SegmentId,
        from: &ObjectPlace,
        source: &ObjectPlace,
        nodes: &[NodeId],
    ) -> Result<Outcome, EngineError> {
        let profile = self.view.profile;
        let tag = fresh_tag(&*self.shared.ports.entropy);
        let bytes = profile.shard_bytes(from.length_bytes) * profile.shards() as u64;
        self.wait_for_turn(from.length_bytes + bytes, self.view.is_at_risk(from, &[])).await;
        let shards: Vec<_> = nodes.iter().map(|node| Some(ShardPlace { node: *node, tag })).collect();
        let Some(placement) = Placement::new(profile, shards) else {
            return Ok(Outcome::Waits(Wait::Profile { profile, nodes: nodes.len() }));
        };
        // All that may be in the pool after an attempt, whatever came of it.
        let whole = ObjectPlace { placement, ..from.clone() };
        let keys: Vec<_> = whole.objects().map(|(node, key, _)| (node, key)).collect();
        let domains = |key| self.shared.domains.by_key(key);
        match self.shared.pool.convert(source, segment, profile, nodes, tag, &domains).await {
            Ok(to) => {
                let healed =
                    Healed { shards: to.placement.present().count() as u64, bytes, ..Healed::default() };
                self.place(segment, from, to, keys, healed).await
            }
            Err(error) => {
                delete(self.shared, keys).await;
                if is_gone(&error) { self.explain(segment, from, error).await } else { Err(error.into()) }
            }
        }
    }

    /// Whether the copies that stay are good: others are left out.
    async fn are_whole(&self, segment: SegmentId, source: &ObjectPlace) -> Result<bool, EngineError> {
        for (index, _) in source.placement.present() {
            self.wait_for_turn(source.length_bytes, false).await;
            let domains = |key| self.shared.domains.by_key(key);
            let state = self.shared.pool.verify_shard(source, index, &domains).await?;
            if state != ShardState::Whole {
                // It is lost from the place that it has now, under the number that it has there.
                tracing::warn!(%segment, key = source.key, ?state, "a copy is not good: no other one is left out before it is mended");
                self.shared.heal.suspect(segment);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives the segment its new place. `keys` are objects that were put for it, or may have been.
    async fn place(
        &self,
        segment: SegmentId,
        from: &ObjectPlace,
        to: ObjectPlace,
        keys: Vec<(NodeId, String)>,
        healed: Healed,
    ) -> Result<Outcome, EngineError> {
        let change = PlacementChange { segment, from: from.clone(), to };
        match place(self.shared, change, keys).await? {
            Placed::Yes => Ok(Outcome::Healed(Healed { segments: 1, ..healed })),
            Placed::No => Ok(Outcome::Changed),
        }
    }

    /// Where the segment is now.
    async fn now(&self, segment: SegmentId) -> Result<Option<SegmentPlace>, EngineError> {
        place_of(self.shared, segment).await
    }

    /// Something of a segment was not where it should be: lost, or moved since.
    async fn explain(
        &self,
        segment: SegmentId,
        from: &ObjectPlace,
        error: PoolError,
    ) -> Result<Outcome, EngineError> {
        match self.now(segment).await? {
            Some(now) if now.place == *from => {
                self.shared.heal.suspect(segment);
                Err(error.into())
            }
            _ => Ok(Outcome::Changed),
        }
    }

    /// Guests and destage come first, unless the next loss of a node may be one too many.
    async fn wait_for_turn(&self, bytes: u64, is_at_risk: bool) {
        if !is_at_risk {
            wait_for_turn(self.shared, bytes).await;
        }
    }
}

/// A change of a segment's place whose answer did not come: the place that it was to get, and the objects that were put for it, or may have been.
#[derive(Debug)]
pub(super) struct Unanswered {
    segment: SegmentId,
    to: ObjectPlace,
    keys: Vec<(NodeId, String)>,
}

impl Unanswered {
    pub(super) fn keys(&self) -> &[(NodeId, String)] {
        &self.keys
    }
}

/// What became of a change of a segment's place.
enum Placed {
    Yes,
    /// It is elsewhere by now, or gone.
    No,
}

/// Finds out what became of changes that the catalog did not answer. An error means that it still does not say.
pub(super) async fn settle(shared: &Shared) -> Result<(), EngineError> {
    loop {
        let Some(Unanswered { segment, to, keys }) = shared.heal.unanswered.lock().pop() else {
            return Ok(());
        };
        // A change of nothing: it has its turn after the lost one, and does not repeat it. Much may have happened since.
        let nothing = PlacementChange { segment, from: to.clone(), to };
        let answer = until_known(shared, || shared.catalog.place_shards(&nothing)).await;
        ended(shared, segment, nothing.to, keys, answer).await?;
        shared.heal.moved(segment);
    }
}

/// Gives a segment its new place. What was put for it and is not named then is deleted.
async fn place(
    shared: &Shared,
    change: PlacementChange,
    keys: Vec<(NodeId, String)>,
) -> Result<Placed, EngineError> {
    if is_planted(Bug::DeleteBeforePlaced) {
        let left = change.from.objects().map(|(node, key, _)| (node, key)).collect();
        delete_unnamed(shared, left, &change.to).await;
    }
    let answer = until_known(shared, || shared.catalog.place_shards(&change)).await;
    let failed = answer.as_ref().err().filter(|error| !is_refused(error)).cloned();
    let placed = ended(shared, change.segment, change.to, keys, answer).await?;
    failed.map_or(Ok(placed), Err)
}

/// Deletes what was put for a change and is not named after it. Until the catalog says what it names, the change is one without an answer.
async fn ended(
    shared: &Shared,
    segment: SegmentId,
    to: ObjectPlace,
    keys: Vec<(NodeId, String)>,
    answer: Result<(), EngineError>,
) -> Result<Placed, EngineError> {
    let named = match answer {
        Ok(()) => {
            delete_unnamed(shared, keys, &to).await;
            shared.heal.moved(segment);
            shared.heal.beyond_repair.lock().doubt(segment);
            return Ok(Placed::Yes);
        }
        // What attempts before the last one did is done by now. One whose answer was lost may have been made all the same, and others gone on from there: what is
        // named stays.
        Err(error) if says_no(&error) => place_of(shared, segment).await,
        // Nobody knows whether it was made, or will be.
        Err(error) => Err(error),
    };
    match named {
        Ok(now) => {
            let keys = match now {
                Some(now) => unnamed(keys, &now.place),
                None => keys,
            };
            delete_once_named(shared, keys).await;
            Ok(Placed::No)
        }
        Err(error) => {
            shared.heal.unanswered.lock().push(Unanswered { segment, to, keys });
            Err(error)
        }
    }
}

async fn delete_unnamed(shared: &Shared, keys: Vec<(NodeId, String)>, place: &ObjectPlace) {
    delete(shared, unnamed(keys, place)).await;
}

fn unnamed(keys: Vec<(NodeId, String)>, place: &ObjectPlace) -> Vec<(NodeId, String)> {
    let named: Vec<_> = place.objects().map(|(node, key, _)| (node, key)).collect();
    keys.into_iter().filter(|object| !named.contains(object)).collect()
}

/// Deletes objects that nothing names any more and that may have been named for a moment, by an attempt whose answer was lost: a checkpoint of that moment names them. Not before
/// one that began after this is durable.
async fn delete_once_named(shared: &Shared, objects: Vec<(NodeId, String)>) {
    if !crate::record::is_on(shared) {
        return delete(shared, objects).await;
    }
    for (node, key) in objects {
        shared.heal.note_once_named(&shared.record, Stray { node, key });
    }
}

/// Deletes objects that nothing names and nothing will. Those whose nodes do not answer are for later.
async fn delete(shared: &Shared, objects: Vec<(NodeId, String)>) {
    let strays = objects.into_iter().map(|(node, key)| Stray { node, key }).collect();
    delete_strays(shared, strays, u64::MAX).await;
}

/// Deletes objects that nothing names and nothing will, so many at most. Those whose nodes do not take it are for later.
pub(super) async fn delete_strays(shared: &Shared, strays: Vec<Stray>, most: u64) {
    let mut passed_over = HashSet::new();
    let mut tried = 0;
    for stray in strays {
        // What has left the pool is nobody's to delete.
        let Ok(node) = shared.pool.node(stray.node) else { continue };
        let is_silent = node.health().snapshot().breaker == BreakerState::Open;
        if is_silent || tried >= most || passed_over.contains(&stray.node) {
            shared.pool.note_stray(stray);
            continue;
        }
        tried += 1;
        if let Err(error) = shared.pool.delete(stray.node, &stray.key).await {
            tracing::debug!(%error, key = stray.key, "an object that nothing names is left in the pool for now");
            passed_over.insert(stray.node);
            shared.pool.note_stray(stray);
        }
    }
}

/// Where a segment is, if the catalog has it.
pub(crate) async fn place_of(
    shared: &Shared,
    segment: SegmentId,
) -> Result<Option<SegmentPlace>, EngineError> {
    let before = u128::from_be_bytes(*segment.as_bytes()).checked_sub(1);
    let before = before.map(|before| SegmentId::from_bytes(before.to_be_bytes()));
    let found = until_known(shared, || shared.catalog.segment_places(before, 1)).await?;
    Ok(found.into_iter().find(|found| found.id == segment))
}

fn key_of(source: &ObjectPlace, index: usize, shard: ShardPlace) -> Option<(NodeId, String)> {
    let profile = source.placement.profile();
    (index < profile.shards())
        .then(|| (shard.node, cairn_model::shard_key(&source.key, profile, index, shard.tag)))
}

/// A number that no shard of the segment has or had: zero is that of shards put with their segment.
fn fresh_tag(entropy: &dyn Entropy) -> u32 {
    loop {
        let mut bytes = [0; 4];
        entropy.fill(&mut bytes);
        let tag = u32::from_le_bytes(bytes);
        if tag != 0 {
            return tag;
        }
    }
}

/// Whether the catalog has not made the change, and never will: the segment is elsewhere by now, or a node was removed.
fn is_refused(error: &EngineError) -> bool {
    let EngineError::Catalog(refusal) = error else { return false };
    matches!(**refusal, CatalogError::PlacementChanged { .. } | CatalogError::NotFound { what: "node", .. })
}

/// Whether the catalog has said that it did not make the change, whatever the reason.
fn says_no(error: &EngineError) -> bool {
    let is_invalid = |error: &EngineError| matches!(error, EngineError::Catalog(error) if matches!(**error, CatalogError::Invalid(_)));
    is_refused(error) || is_invalid(error) || error.kind() == ErrorKind::OutOfSpace
}

/// Whether something is missing or damaged, rather than a node silent or gone.
fn is_gone(error: &PoolError) -> bool {
    error.is_of_object()
}
