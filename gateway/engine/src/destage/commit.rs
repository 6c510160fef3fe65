//! A prepared batch becomes what the catalog says; then the log may forget it.

use super::Waiter;
use super::prepare::{Prepared, Sharing, StoredSegment, prepare};
use crate::engine::Shared;
use crate::error::EngineError;
use crate::lease::{fence, gone};
use crate::volume::Condition;
use cairn_metadata::{
    BatchCommit, CatalogError, CommitReceipt, ContainerRow, SegmentRow, VolumeCommit, VolumeOutcome,
};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{ContainerId, ErrorKind, Kinded, NodeId, Reduction, UploadReceipt, VolumeId};
use cairn_segment_writer::{Member, SegmentContainer};
use std::sync::Arc;
use std::time::Duration;

const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(100);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Unfolded map pieces of one volume beyond which commits wait for folding.
const UNFOLDED_MAX: usize = 2_000_000;

/// Commits until the catalog has the batch, shows it to readers, and frees the log. Returns who waits for it.
pub(super) async fn commit(shared: &Arc<Shared>, mut prepared: Prepared) -> Result<Vec<Waiter>, EngineError> {
    if is_planted(Bug::FreeBeforeCommit) {
        shared.wal.free_through(prepared.batch.through);
    }
    if is_planted(Bug::RetireBeforeCommit) {
        for (volume, layer) in &prepared.batch.parts {
            shared.pressure.released(volume.state().lock().buffer.retire(layer));
        }
    }
    let mut reduction = Reduction::default();
    if !prepared.batch.parts.is_empty() {
        let (receipt, turn) = loop {
            let turn = shared.commit_turn.lock().await;
            match commit_until_done(shared, &prepared).await {
                Ok(receipt) => break (receipt, turn),
                Err(refused) => {
                    // Nothing happened, so nothing is to be shown: whoever waits for that need not wait for the pool.
                    drop(turn);
                    let sharing = match refused {
                        NotThere::Container(container) => {
                            tracing::info!(%container, "a batch shared what is not there; it is packed again");
                            shared.dedupe.refused(container, containers(&prepared));
                            Sharing::WithinBatch
                        }
                        NotThere::Object(key) => {
                            tracing::info!(key, "an object of a batch is to be deleted; it is packed again");
                            shared.dedupe.release(containers(&prepared).map(|container| container.id));
                            Sharing::Indexed
                        }
                        NotThere::Node => {
                            tracing::info!(
                                "a batch was put on a node that is not in the pool any more; it is packed again"
                            );
                            shared.dedupe.release(containers(&prepared).map(|container| container.id));
                            let_go_of_removed_nodes(shared, &prepared).await;
                            Sharing::Indexed
                        }
                    };
                    abandon(shared, &prepared.segments);
                    prepared = prepare(shared, prepared.batch, sharing).await?;
                }
            }
        };
        shared.dedupe.committed(containers(&prepared));
        for part in &prepared.deltas {
            if matches!(outcome_of(&receipt, part.header.volume), Some(VolumeOutcome::Committed(_))) {
                reduction += part.reduction;
            }
        }
        show(shared, &prepared, &receipt);
        drop(turn);
        shared.reclaim.changed();
        shared
            .reclaim
            .batch_stored(prepared.segments.iter().map(|stored| stored.receipt.length_bytes()).sum());
    }
    // A cut that was made while serving ended is not all of what was acknowledged.
    if shared.record.check_owner().is_ok() {
        shared.wal.free_through(prepared.batch.through);
    }
    shared.pressure.look_at(&shared.wal);
    {
        let mut status = shared.destage.status.lock();
        status.batches_committed += 1;
        status.reduction += reduction;
        status.problem = None;
    }
    shared.fold_wake.notify_one();
    wait_for_folding(shared, &prepared).await;
    Ok(prepared.batch.waiters)
}

/// Deletes the objects of a batch that was refused: the catalog does not know of them and never will. What cannot be deleted stays as what a
/// crash leaves.
fn abandon(shared: &Arc<Shared>, segments: &[StoredSegment]) {
    let receipts: Vec<UploadReceipt> = segments.iter().map(|stored| stored.receipt.clone()).collect();
    let shared_too = Arc::clone(shared);
    shared.tasks.spawn(async move {
        for receipt in receipts {
            if let Err(error) = shared_too.pool.discard(receipt.place()).await {
                tracing::debug!(%error, key = receipt.key(), "an object of a refused batch is left in the pool");
            }
        }
    });
}

fn containers(prepared: &Prepared) -> impl Iterator<Item = &SegmentContainer> {
    prepared.segments.iter().flat_map(|stored| &stored.containers)
}

/// The pool forgets nodes that a refused batch was put on and that the catalog does not have, so that nothing is put there again. No others: one may have been taken in since the
/// rows were read.
async fn let_go_of_removed_nodes(shared: &Shared, refused: &Prepared) {
    shared.ports.clock.sleep(RETRY_PAUSE_FIRST).await;
    let Ok(rows) = shared.catalog.nodes().await else { return };
    let places = || refused.segments.iter().map(|stored| stored.receipt.place());
    let has_put = |node: NodeId| places().any(|place| place.objects().any(|(on, ..)| on == node));
    shared.pool.change_nodes(|members| {
        let is_known = |member: &&Member| {
            let id = member.node.id();
            rows.iter().any(|row| row.id == id) || !has_put(id)
        };
        let known: Vec<Member> = members.iter().filter(is_known).cloned().collect();
        (known.len() < members.len()).then_some(known)
    });
}

/// Why the catalog does not take a batch, and never will.
enum NotThere {
    /// It points at a container that the catalog does not have, or not in the volume's domain.
    Container(ContainerId),
    /// One of its segments has a shard on a node that was removed meanwhile.
    Node,
    /// One of its objects is doomed: a check of the pool found that nothing named it.
    Object(String),
}

async fn commit_until_done(shared: &Shared, prepared: &Prepared) -> Result<CommitReceipt, NotThere> {
    let mut batch = batch_commit(shared, prepared);
    let mut pause = RETRY_PAUSE_FIRST;
    loop {
        match shared.catalog.commit_batch(&batch).await {
            Ok(receipt) => return Ok(receipt),
            Err(CatalogError::UnknownContainer { container, .. }) => {
                return Err(NotThere::Container(container));
            }
            Err(CatalogError::NotFound { what: "node", .. }) => return Err(NotThere::Node),
            Err(CatalogError::ObjectDoomed { key, .. }) => return Err(NotThere::Object(key)),
            Err(error) if error.kind() == ErrorKind::Fenced => {
                let error = EngineError::from(error);
                let fenced = find_fenced(shared, &batch).await;
                for (volume, _) in &prepared.batch.parts {
                    if fenced.contains(&volume.id()) {
                        fence(shared, volume, &error);
                    }
                }
                batch.volumes.retain(|part| !fenced.contains(&part.volume));
                if fenced.is_empty() {
                    shared.ports.clock.sleep(pause).await;
                }
            }
            Err(error) => {
                shared.destage.problem(&error);
                tracing::error!(%error, "a batch waits for the catalog");
                shared.ports.clock.sleep(pause).await;
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            }
        }
    }
}

/// Which parts of the batch the catalog refuses: those whose lease does not renew. Damage stays with them.
async fn find_fenced(shared: &Shared, batch: &BatchCommit) -> Vec<VolumeId> {
    let mut fenced = Vec::new();
    for part in &batch.volumes {
        let wall = shared.ports.clock.wall();
        let renewal = shared.catalog.renew_lease(
            part.volume,
            shared.gateway,
            part.generation,
            wall,
            shared.config.lease_ttl,
        );
        if renewal.await.is_err_and(|error| error.kind() == ErrorKind::Fenced) {
            fenced.push(part.volume);
        }
    }
    fenced
}

fn batch_commit(shared: &Shared, prepared: &Prepared) -> BatchCommit {
    let containers = prepared.segments.iter().flat_map(|stored| {
        stored.containers.iter().map(|container| ContainerRow {
            id: container.id,
            segment: stored.receipt.segment(),
            domain: container.domain,
            offset: container.offset,
            length: container.directory.stored_bytes(),
            raw_bytes: container.directory.raw_bytes(),
            directory: container.directory.encode(),
        })
    });
    BatchCommit {
        batch: prepared.batch.id,
        gateway: shared.gateway,
        segments: prepared
            .segments
            .iter()
            .map(|stored| SegmentRow { receipt: stored.receipt.clone() })
            .collect(),
        containers: containers.collect(),
        volumes: prepared
            .deltas
            .iter()
            .zip(&prepared.batch.parts)
            .map(|(part, (_, layer))| VolumeCommit {
                volume: part.header.volume,
                lineage: part.header.lineage,
                generation: part.header.generation,
                base: part.header.base,
                through: part.header.through,
                delta: part.delta.clone(),
                reduction: part.reduction,
                snapshots: layer.snapshots.clone(),
            })
            .collect(),
    }
}

/// Moves the batch from the write buffers into the maps, each volume in one critical section.
fn show(shared: &Shared, prepared: &Prepared, receipt: &CommitReceipt) {
    for ((volume, layer), part) in prepared.batch.parts.iter().zip(&prepared.deltas) {
        debug_assert_eq!(volume.id(), part.header.volume, "the packer keeps the order of the volumes");
        let commit = match outcome_of(receipt, volume.id()) {
            Some(VolumeOutcome::Committed(commit)) => commit,
            Some(VolumeOutcome::Deleted) => {
                gone(shared, volume);
                continue;
            }
            // Fenced, and left out of the commit.
            None => continue,
        };
        let mut state = volume.state().lock();
        if state.condition != Condition::Serving {
            continue;
        }
        state.map.apply(commit, &part.delta);
        if !layer.snapshots.is_empty() {
            state.map.pin();
        }
        state.committed_at = shared.ports.clock.now();
        if !is_planted(Bug::RetireBeforeCommit) {
            shared.pressure.released(state.buffer.retire(layer));
        }
    }
}

fn outcome_of(receipt: &CommitReceipt, volume: VolumeId) -> Option<VolumeOutcome> {
    receipt.volumes.iter().find(|part| part.volume == volume).map(|part| part.outcome)
}

async fn wait_for_folding(shared: &Shared, prepared: &Prepared) {
    let unfolded = || {
        prepared.batch.parts.iter().any(|(volume, _)| {
            let state = volume.state().lock();
            state.condition == Condition::Serving && state.map.unfolded_len() > UNFOLDED_MAX
        })
    };
    while unfolded() && !shared.stop.is_cancelled() {
        shared.ports.clock.sleep(RETRY_PAUSE_FIRST).await;
    }
}
