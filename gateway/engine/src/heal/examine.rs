//! Whether shards are what the catalog says, and losing those that are not.

use super::healer::is_there;
use super::step::place_of;
use super::{REMEMBERED_MAX, kind, tell, wait_for_turn};
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use cairn_metadata::{CatalogError, SegmentPlace};
use cairn_model::{ErrorKind, Kinded, Monotonic, NodeId, SegmentId};
use cairn_segment_writer::{DamagedShard, PoolError, ShardState};
use std::collections::HashSet;
use std::sync::atomic::Ordering;

/// What is wrong with a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flaw {
    Missing,
    Damaged,
}

/// What became of a shard that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    Whole,
    /// It was not there, or not what it should be, and is missing in the catalog now: it can be made anew.
    Lost(Flaw),
    /// The same, but it takes it to read the segment: it stays where it is.
    BeyondRepair(Flaw),
    /// Somebody else changed the segment meanwhile.
    Changed,
    /// It cannot be read now: its node does not answer, or not for this shard.
    Unread,
}

/// A shard that cannot be read is made anew when that was tried so often, with so many looks between, and its node answered otherwise every time: a sector of its disk is bad, say.
const TRIES: u32 = 3;
const LOOKS_BETWEEN_TRIES: u32 = 6;

/// See [`TRIES`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Unreadable {
    /// Where it was, as far as whoever looked last knew.
    holder: Option<NodeId>,
    tries: u32,
    last: Monotonic,
}

impl Unreadable {
    /// Learns where it is. What failed elsewhere says nothing of this node.
    fn is_on(&mut self, holder: Option<NodeId>) {
        if let (Some(was), Some(is)) = (self.holder, holder)
            && was != is
        {
            self.tries = 0;
        }
        self.holder = holder.or(self.holder);
    }
}

/// [`examine`] of a shard that no check of its node came by: where one is missing there may be others, and what is lost comes before other work.
pub(super) async fn examine_by_chance(
    shared: &Shared,
    segment: &SegmentPlace,
    index: usize,
) -> Result<Found, EngineError> {
    let was_known = shared.heal.beyond_repair.lock().has(segment.id, index);
    let found = examine(shared, segment, index).await?;
    let is_news = !was_known && shared.heal.beyond_repair.lock().has(segment.id, index);
    let is_missing = matches!(found, Found::Lost(Flaw::Missing))
        || (found == Found::BeyondRepair(Flaw::Missing) && is_news);
    if let Some(holder) =
        segment.place.placement.shards().get(index).copied().flatten().filter(|_| is_missing)
    {
        let mut doubted = shared.heal.doubted.lock();
        let first = doubted.entry(holder.node).or_insert(segment.id);
        *first = segment.id.min(*first);
    }
    if matches!(found, Found::Lost(_)) {
        shared.heal.lost_by_chance.fetch_add(1, Ordering::Relaxed);
    }
    Ok(found)
}

/// Reads a shard. Until the answer is sure: what was moved meanwhile is not taken for lost, because only the place that was looked at can lose it.
pub(crate) async fn examine(
    shared: &Shared,
    segment: &SegmentPlace,
    index: usize,
) -> Result<Found, EngineError> {
    let SegmentPlace { id, place } = segment;
    let holder = place.placement.shards().get(index).copied().flatten().map(|at| at.node);
    let verified = match verify(shared, segment, index).await {
        // It may have happened on the way, or be a false answer.
        Ok(ShardState::Damaged(_) | ShardState::Missing) => verify(shared, segment, index).await,
        verified => verified,
    };
    let (flaw, story) = match verified {
        Err(error) => {
            if error.kind() == ErrorKind::Unavailable {
                not_readable(shared, (*id, index), holder).await;
            }
            return Ok(Found::Unread);
        }
        Ok(ShardState::Whole) => {
            wait_for_turn(shared, place.placement.profile().shard_bytes(place.length_bytes)).await;
            shared.heal.beyond_repair.lock().forget(*id, index);
            shared.heal.unreadable.lock().remove(&(*id, index));
            return Ok(Found::Whole);
        }
        Ok(ShardState::Missing) => (Flaw::Missing, "missing".to_owned()),
        Ok(ShardState::Damaged(reason)) => (Flaw::Damaged, format!("damaged ({reason})")),
    };
    // Its node says something of it, but nothing has come of that yet: checks pass it by because it is looked for again.
    begin_anew(shared, (*id, index));
    // What is missing may be a place that is not there: a directory that is not mounted, say. Then its node is away, and nothing is lost yet.
    if flaw == Flaw::Missing && is_away(shared, holder).await {
        return Ok(Found::Unread);
    }
    // It is given up only for others that are whole, not for others on record: what is damaged may be a small part, and the rest what it takes to read the segment; and a
    // store that says falsely that it does not have something would cost the last good copy. Where one more may be bad, they need not all be read for that.
    let spare = place.placement.profile().tolerates().saturating_sub(place.placement.missing());
    if flaw == Flaw::Damaged || spare <= 1 {
        match are_others_enough(shared, segment, index, spare <= 1).await {
            Some(true) => {}
            Some(false) => return beyond_repair(shared, segment, index, flaw, &story).await,
            // Nobody knows before those answer that cannot be asked now.
            None => {
                remember_unread(shared, (*id, index), holder, 0);
                return Ok(Found::Unread);
            }
        }
    }
    let losing = || shared.catalog.lose_shard(*id, place.clone(), index);
    match until_known(shared, losing).await {
        Ok(()) => {
            tracing::warn!(key = place.key, index, story, "a shard is lost, and will be made anew");
            shared.heal.moved(*id);
            shared.heal.unreadable.lock().remove(&(*id, index));
            shared.heal.status.lock().total.lost += 1;
            Ok(Found::Lost(flaw))
        }
        Err(EngineError::Catalog(error)) => match &*error {
            CatalogError::LastShards { .. } => beyond_repair(shared, segment, index, flaw, &story).await,
            CatalogError::PlacementChanged { .. } => Ok(Found::Changed),
            _ => Err(EngineError::Catalog(error)),
        },
        Err(error) => Err(error),
    }
}

async fn is_away(shared: &Shared, holder: Option<NodeId>) -> bool {
    match holder.and_then(|node| shared.pool.node(node).ok()) {
        Some(node) => !is_there(shared, &node).await,
        None => true,
    }
}

/// Counts a try to read the shard that failed, if its node answers otherwise. Whether it will be read again for that.
pub(super) async fn not_readable(shared: &Shared, which: (SegmentId, usize), holder: Option<NodeId>) -> bool {
    if is_away(shared, holder).await {
        // The node may be what failed all the time. What is looked for is looked for all the same when it is back.
        begin_anew(shared, which);
        return false;
    }
    remember_unread(shared, which, holder, 1)
}

/// Tries that failed before count no more. If the shard is to be read again, it still is.
fn begin_anew(shared: &Shared, which: (SegmentId, usize)) {
    if let Some(seen) = shared.heal.unreadable.lock().get_mut(&which) {
        (seen.tries, seen.last) = (0, shared.ports.clock.now());
    }
}

/// The shard will be read again. A try that counts, counts if the last one was long enough ago. `false`: too much is remembered.
pub(super) fn remember_unread(
    shared: &Shared,
    which: (SegmentId, usize),
    holder: Option<NodeId>,
    counts: u32,
) -> bool {
    let now = shared.ports.clock.now();
    let mut unreadable = shared.heal.unreadable.lock();
    if unreadable.len() >= REMEMBERED_MAX && !unreadable.contains_key(&which) {
        return false;
    }
    let seen = unreadable.entry(which).or_insert(Unreadable { holder, tries: counts, last: now });
    seen.is_on(holder);
    if now.since(seen.last) >= shared.config.heal_interval * LOOKS_BETWEEN_TRIES {
        (seen.tries, seen.last) = (seen.tries + counts, now);
    }
    true
}

/// Shards that could not be read so often that they are to be made anew, a few of them. Whoever cannot do that remembers them anew.
pub(super) fn unreadable(shared: &Shared) -> Vec<(SegmentId, usize)> {
    const AT_ONCE: usize = 32;
    let mut unreadable = shared.heal.unreadable.lock();
    let given_up = unreadable.iter().filter(|(_, seen)| seen.tries >= TRIES);
    let given_up: Vec<_> = given_up.map(|(which, _)| *which).take(AT_ONCE).collect();
    for which in &given_up {
        unreadable.remove(which);
    }
    given_up
}

/// Whether there are shards that could not be read so often that they are to be made anew.
pub(super) fn are_any_given_up(shared: &Shared) -> bool {
    shared.heal.unreadable.lock().values().any(|seen| seen.tries >= TRIES)
}

/// Tries to read again what could not be read, the longest ago first. Of each node only until the first one fails again: that may take long, and others wait.
async fn examine_unreadable(shared: &Shared) -> Result<bool, EngineError> {
    const AT_ONCE: usize = 4;
    let now = shared.ports.clock.now();
    let due: Vec<_> = {
        let unreadable = shared.heal.unreadable.lock();
        let pause = shared.config.heal_interval * LOOKS_BETWEEN_TRIES;
        let is_due = |seen: &Unreadable| seen.tries < TRIES && now.since(seen.last) >= pause;
        let mut due: Vec<_> = unreadable.iter().filter(|(_, seen)| is_due(seen)).collect();
        due.sort_by_key(|(_, seen)| seen.last);
        due.into_iter().map(|(which, seen)| (*which, seen.holder)).collect()
    };
    let (mut is_any_lost, mut tried) = (false, 0);
    let mut failing: HashSet<NodeId> = HashSet::new();
    for (which @ (id, index), remembered) in due {
        if tried == AT_ONCE {
            break;
        }
        if remembered.is_some_and(|holder| failing.contains(&holder)) {
            continue;
        }
        let segment = place_of(shared, id).await?;
        let at = |segment: &SegmentPlace| segment.place.placement.shards().get(index).copied().flatten();
        let holder = segment.as_ref().and_then(at).map(|at| at.node);
        let (Some(segment), Some(holder)) = (segment, holder) else {
            shared.heal.unreadable.lock().remove(&which);
            continue;
        };
        if let Some(seen) = shared.heal.unreadable.lock().get_mut(&which) {
            seen.is_on(Some(holder));
        }
        if failing.contains(&holder) {
            continue;
        }
        tried += 1;
        match examine_by_chance(shared, &segment, index).await? {
            Found::Lost(_) => is_any_lost = true,
            Found::Unread => {
                failing.insert(holder);
                // The others of its node come first the next time.
                if let Some(seen) = shared.heal.unreadable.lock().get_mut(&which) {
                    seen.last = now.max(seen.last);
                }
            }
            Found::Whole | Found::BeyondRepair(_) | Found::Changed => {}
        }
    }
    Ok(is_any_lost)
}

/// Whether enough of the other shards are whole to make one anew; `None` when that depends on some that cannot be read now. Without limits where the loss of this one leaves none
/// to spare.
async fn are_others_enough(
    shared: &Shared,
    segment: &SegmentPlace,
    index: usize,
    is_at_risk: bool,
) -> Option<bool> {
    let placement = &segment.place.placement;
    let (mut whole, mut unread, needed) = (0, 0, placement.profile().needed());
    let bytes = placement.profile().shard_bytes(segment.place.length_bytes);
    for (other, _) in placement.present().filter(|(other, _)| *other != index) {
        if whole == needed {
            break;
        }
        if !is_at_risk {
            wait_for_turn(shared, bytes).await;
        }
        match verify(shared, segment, other).await {
            Ok(ShardState::Whole) => whole += 1,
            Ok(ShardState::Missing | ShardState::Damaged(_)) => {}
            Err(_) => unread += 1,
        }
    }
    (whole == needed || whole + unread < needed).then_some(whole == needed)
}

/// The shard stays where it is, and somebody is told, once.
async fn beyond_repair(
    shared: &Shared,
    segment: &SegmentPlace,
    index: usize,
    flaw: Flaw,
    story: &str,
) -> Result<Found, EngineError> {
    let SegmentPlace { id, place } = segment;
    // It was looked for where it was when somebody asked the catalog: it may have been moved, or deleted, since.
    if place_of(shared, *id).await?.is_none_or(|now| now.place != *place) {
        return Ok(Found::Changed);
    }
    shared.heal.unreadable.lock().remove(&(*id, index));
    let is_news = shared.heal.beyond_repair.lock().note(*id, index);
    if is_news {
        let text = format!(
            "shard {index} of segment {} is {story}, and too few others are whole to make it anew: what was written in it can be lost",
            place.key
        );
        tracing::error!(text, "the pool has lost data");
        tell(shared, kind::LOST, format!("segment {id}"), text).await;
    }
    Ok(Found::BeyondRepair(flaw))
}

/// Whether a node says that it does not have a shard. One small request: nothing is verified, and nothing concluded. An error: it does not say.
pub(super) async fn is_absent(
    shared: &Shared,
    segment: &SegmentPlace,
    index: usize,
) -> Result<bool, PoolError> {
    let at = segment.place.placement.shards().get(index).copied().flatten();
    let (Some(at), Some(key)) = (at, segment.place.shard_key(index)) else { return Ok(false) };
    match shared.pool.node(at.node)?.get_range(&key, 0..1).await {
        Ok(_) => Ok(false),
        Err(PoolError::NotFound { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// What the pool says of a shard; an error when it does not say.
async fn verify(shared: &Shared, segment: &SegmentPlace, index: usize) -> Result<ShardState, PoolError> {
    let verified = shared.pool.verify_shard(&segment.place, index, &|key| shared.domains.by_key(key)).await;
    verified.inspect_err(
        |error| tracing::debug!(%error, key = segment.place.key, index, "a shard cannot be read"),
    )
}

/// The segment that a key is of: its identity is the key's last part.
fn segment_of(key: &str) -> Option<SegmentId> {
    key.rsplit('/').next()?.parse().ok()
}

/// Reads what readers found damaged, and all shards of segments that somebody doubts, a few of them. Whether any were lost.
pub(super) async fn examine_suspects(shared: &Shared) -> Result<bool, EngineError> {
    const AT_ONCE: usize = 32;
    let mut is_any_lost = false;
    let mut now = shared.pool.take_damaged();
    // The rest is for the next time.
    let later = now.split_off(now.len().min(AT_ONCE));
    later.iter().filter_map(|damaged| segment_of(&damaged.key)).for_each(|left| shared.heal.suspect(left));
    let mut problem = None;
    for damaged in now {
        let Some(segment) = segment_of(&damaged.key) else { continue };
        if problem.is_some() {
            shared.heal.suspect(segment);
            continue;
        }
        match examine_damaged(shared, segment, &damaged).await {
            Ok(is_lost) => is_any_lost |= is_lost,
            Err(error) => {
                shared.heal.suspect(segment);
                problem = Some(error);
            }
        }
    }
    if let Some(problem) = problem {
        return Err(problem);
    }
    is_any_lost |= examine_unreadable(shared).await?;
    for _ in 0..AT_ONCE {
        let Some(segment) = shared.heal.suspects.lock().pop_first() else { break };
        let examined = examine_all(shared, segment).await;
        if !matches!(examined, Ok(false)) {
            // After a loss its place is another one; the rest is for the next time.
            shared.heal.suspect(segment);
        }
        is_any_lost |= examined?;
    }
    Ok(is_any_lost)
}

/// Whether what a reader found damaged is lost.
async fn examine_damaged(
    shared: &Shared,
    segment: SegmentId,
    damaged: &DamagedShard,
) -> Result<bool, EngineError> {
    // Readers may have an old place in hand, and take what was moved for damage.
    shared.heal.moved(segment);
    let Some(segment) = place_of(shared, segment).await? else { return Ok(false) };
    let at = segment.place.placement.shards().get(damaged.index).copied().flatten();
    let is_known = shared.heal.beyond_repair.lock().has(segment.id, damaged.index);
    if is_known || at.is_none_or(|at| at.node != damaged.node) {
        return Ok(false);
    }
    Ok(matches!(examine_by_chance(shared, &segment, damaged.index).await?, Found::Lost(_)))
}

/// Reads the shards of a segment until one is lost. Whether one is.
async fn examine_all(shared: &Shared, segment: SegmentId) -> Result<bool, EngineError> {
    let Some(segment) = place_of(shared, segment).await? else { return Ok(false) };
    for (index, _) in segment.place.placement.present() {
        if shared.heal.beyond_repair.lock().has(segment.id, index) {
            continue;
        }
        match examine_by_chance(shared, &segment, index).await? {
            Found::Lost(_) => return Ok(true),
            Found::Changed => break,
            Found::Whole | Found::BeyondRepair(_) | Found::Unread => {}
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
