//! Retention: after each run, what the rules do not keep is deleted.
//!
//! Rules are applied to the snapshots of each volume by themselves: one that failed for a while keeps the ones it has. Where all members of
//! all runs have their snapshots, that keeps the same runs of all.

use super::{event, kind};
use crate::engine::{Shared, administer, until_known};
use crate::error::EngineError;
use crate::snapshot;
use cairn_metadata::{GroupRow, GroupSnapshot};
use cairn_model::{ErrorKind, GroupRunId, Kinded, VolumeId, WallTime};
use cairn_policy::Policy;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Snapshots that are deleted after one run: more may go after the next.
const DELETIONS_MAX: usize = 500;

/// What a try to delete came to.
enum Pruned {
    Deleted,
    /// It is not due, or was not there.
    Left,
}

/// Deletes what the group's rules do not keep. What goes wrong is written down with the run, and tried again after the next one.
pub(super) async fn prune(shared: &Arc<Shared>, group: &GroupRow, policy: &Policy, run: GroupRunId) {
    let (pruned, problem) = match until_known(shared, || shared.catalog.group_snapshots(group.id)).await {
        Ok(snapshots) => delete_all(shared, unwanted(policy, snapshots, shared.ports.clock.wall())).await,
        Err(error) => (0, Some(error.to_string())),
    };
    shared.groups.counters.pruned.fetch_add(pruned, Ordering::Relaxed);
    if pruned == 0 && problem.is_none() {
        return;
    }
    let recorded = || shared.catalog.record_pruning(run, pruned, problem.as_deref());
    if let Err(error) = until_known(shared, recorded).await {
        tracing::warn!(group = %group.name, %error, "what retention did could not be written down");
    }
    if let Some(problem) = problem {
        tracing::warn!(group = %group.name, problem, "retention could not delete everything; the next run tries again");
        let told = event(shared, group.name.as_str(), kind::RETENTION, problem);
        if let Err(error) = shared.catalog.add_event(&told).await {
            tracing::warn!(%error, "an event could not be written down");
        }
    }
}

/// What is to go, the oldest first.
fn unwanted(policy: &Policy, snapshots: Vec<GroupSnapshot>, now: WallTime) -> Vec<GroupSnapshot> {
    let mut by_volume: BTreeMap<VolumeId, Vec<GroupSnapshot>> = BTreeMap::new();
    for snapshot in snapshots {
        by_volume.entry(snapshot.volume).or_default().push(snapshot);
    }
    let mut unwanted = Vec::new();
    for of_volume in by_volume.into_values() {
        let cuts: Vec<WallTime> = of_volume.iter().map(|snapshot| snapshot.began_at).collect();
        let kept = policy.keep().kept(&cuts, policy.zone());
        let is_due = |(snapshot, kept): (GroupSnapshot, bool)| {
            let is_locked = snapshot.locked_until.is_some_and(|until| until > now);
            (!kept && !is_locked).then_some(snapshot)
        };
        unwanted.extend(of_volume.into_iter().zip(kept).filter_map(is_due));
    }
    unwanted.sort_by_key(|snapshot| (snapshot.began_at, snapshot.snapshot));
    unwanted
}

/// Deletes them, up to a number. Returns how many, and what went wrong.
async fn delete_all(shared: &Arc<Shared>, unwanted: Vec<GroupSnapshot>) -> (u64, Option<String>) {
    let (mut pruned, mut failures, mut first) = (0, 0_u64, None);
    for snapshot in unwanted.into_iter().take(DELETIONS_MAX) {
        let label = format!("{}@{}", snapshot.volume_name, snapshot.snapshot_name);
        match administer(shared, move |shared| async move { delete(&shared, &snapshot).await }).await {
            Ok(Pruned::Deleted) => pruned += 1,
            Ok(Pruned::Left) => {}
            Err(EngineError::Stopped) => break,
            Err(error) => {
                failures += 1;
                first.get_or_insert_with(|| format!("{label} could not be deleted: {error}"));
            }
        }
    }
    shared.groups.counters.prune_failures.fetch_add(failures, Ordering::Relaxed);
    let more = if failures > 1 { format!(" (and {} more)", failures - 1) } else { String::new() };
    (pruned, first.map(|first| first + &more))
}

/// The caller has the turn of administration.
async fn delete(shared: &Shared, unwanted: &GroupSnapshot) -> Result<Pruned, EngineError> {
    let Some(volume) = shared.registry.all().into_iter().find(|volume| volume.id() == unwanted.volume) else {
        return Err(EngineError::NotServedHere(unwanted.volume_name.to_string()));
    };
    let is_logged = volume.state().lock().buffer.snapshots().any(|logged| logged.id == unwanted.snapshot);
    if is_logged {
        // The pool is behind: nobody waits for it here, the next run comes again.
        return Ok(Pruned::Left);
    }
    match until_known(shared, || shared.catalog.snapshot(unwanted.snapshot)).await {
        Ok(row) => snapshot::delete(shared, &volume, row.id, &row.name).await.map(|()| Pruned::Deleted),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            until_known(shared, || shared.catalog.forget_group_snapshot(unwanted.snapshot)).await?;
            Ok(Pruned::Left)
        }
        Err(error) => Err(error),
    }
}
