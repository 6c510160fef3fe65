//! Folding: unfolded changes go into the leaves of the map, in the background.
//!
//! A fold of a lineage goes through the address space in bounded steps. Each step is one catalog transaction that
//! writes new versions of some leaves; the deltas themselves are deleted by the last step alone. So after any
//! crash the remaining deltas, applied again in order, give the same map: a leaf that a step wrote already holds only
//! changes that the remaining deltas repeat.

use crate::engine::Shared;
use crate::error::EngineError;
use crate::volume::map::{FoldStep, MapTerm};
use crate::volume::{Condition, Volume};
use cairn_metadata::{FoldPlan, LeafIndex, MapLeaf};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{CommitSeq, Lba};
use std::sync::Arc;
use std::time::Duration;

/// Leaves rewritten by one transaction.
const LEAVES_PER_STEP: usize = 128;
/// Pieces looked at while the volume's state is held, about.
const PIECES_PER_STEP: usize = 16_384;
/// A volume is folded when this many pieces wait: enough for many changes to share one rewrite of a leaf.
const FOLD_FROM_PIECES: usize = 200_000;
/// A volume with fewer pieces is folded when its oldest delta is this many commits old, so that starting does not have
/// to read many deltas.
const FOLD_FROM_COMMITS: u64 = 64;
/// A volume without a commit for so long is folded whatever waits: then what the catalog counts of it is exact.
const REST: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Folds what needs it whenever a batch was committed, until the engine stops.
pub(crate) async fn fold_until_stopped(shared: Arc<Shared>) {
    loop {
        let is_any_unfolded =
            shared.registry.all().iter().any(|volume| volume.state().lock().map.unfolded_commits() > 0);
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = shared.fold_wake.notified() => {}
            () = shared.ports.clock.sleep(REST), if is_any_unfolded => {}
        }
        let now = shared.ports.clock.now();
        for volume in shared.registry.all() {
            let is_due = {
                let state = volume.state().lock();
                let (unfolded, commits) = (state.map.unfolded_len(), state.map.unfolded_commits());
                let is_at_rest = commits > 0 && now.since(state.committed_at) >= REST;
                state.condition == Condition::Serving
                    && (state.map.unsettled() > 0
                        || (commits > 0 && shared.reclaim.wants_folds())
                        || unfolded >= FOLD_FROM_PIECES
                        || commits >= FOLD_FROM_COMMITS
                        || is_at_rest)
            };
            if !is_due {
                continue;
            }
            if let Err(error) = fold(&shared, &volume).await {
                tracing::warn!(volume = volume.name(), %error, "folding failed; will try again");
                shared.ports.clock.sleep(RETRY_PAUSE).await;
                shared.fold_wake.notify_one();
            }
        }
    }
}

/// Folds everything that was committed when it began, from snapshot to snapshot.
async fn fold(shared: &Shared, volume: &Volume) -> Result<(), EngineError> {
    let (term, end) = {
        let state = volume.state().lock();
        (state.map.term(), state.map.last_commit())
    };
    while let Some(through) = fold_once(shared, volume, term).await? {
        if through >= end || shared.stop.is_cancelled() {
            break;
        }
    }
    Ok(())
}

/// Folds the changes up to the oldest snapshot that is not folded, or all that were committed when it began. Returns through which commit;
/// `None` when the volume was reverted meanwhile and has another map, or is not served any more and has none.
async fn fold_once(
    shared: &Shared,
    volume: &Volume,
    term: MapTerm,
) -> Result<Option<CommitSeq>, EngineError> {
    let goal = volume.state().lock().map.fold_goal();
    let mut from = Lba::ZERO;
    loop {
        let step = {
            let state = volume.state().lock();
            if state.map.term() != term || state.condition != Condition::Serving {
                return Ok(None);
            }
            state.map.next_to_fold(from, LEAVES_PER_STEP, PIECES_PER_STEP)
        };
        let is_last = step.resume.is_none();
        let mut leaves = Vec::with_capacity(step.pieces.len());
        for (index, ops) in &step.pieces {
            let mut leaf = MapLeaf::clone(&*current_leaf(shared, term, *index).await?);
            leaf.apply(*index, ops.iter().copied().skip(usize::from(is_planted(Bug::FoldDropsAChange))));
            leaves.push((*index, Arc::new(leaf)));
        }
        write(shared, volume, term, &step, &leaves, is_last.then_some(goal)).await?;
        {
            let mut state = volume.state().lock();
            if state.map.term() != term {
                return Ok(None);
            }
            state.map.folded(&step, &leaves, &shared.leaves);
            if is_last {
                state.map.deltas_deleted(goal);
            }
        }
        shared.reclaim.changed();
        match step.resume {
            Some(resume) => from = resume,
            None => return Ok(Some(goal)),
        }
    }
}

async fn current_leaf(shared: &Shared, term: MapTerm, index: LeafIndex) -> Result<Arc<MapLeaf>, EngineError> {
    // Only this task changes leaves in this term, so what the cache has of it is what the catalog has.
    match shared.leaves.get(term, index) {
        Some(leaf) => Ok(leaf),
        None => Ok(Arc::new(shared.catalog.leaf(term.point, index).await?.unwrap_or_default())),
    }
}

async fn write(
    shared: &Shared,
    volume: &Volume,
    term: MapTerm,
    step: &FoldStep,
    leaves: &[(LeafIndex, Arc<MapLeaf>)],
    forget: Option<CommitSeq>,
) -> Result<(), EngineError> {
    let plan = FoldPlan {
        lineage: term.point.lineage,
        gateway: shared.gateway,
        generation: volume.generation(),
        through: step.through,
        leaves: leaves.to_vec(),
        emptied: step.emptied.clone(),
        forget,
    };
    Ok(shared.catalog.fold(&plan).await?)
}
