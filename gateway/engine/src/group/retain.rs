//! Retention: after each run, what the rules do not keep is deleted.
//!
//! Rules are applied to the snapshots of each volume by themselves: one that failed for a while keeps the ones it has. Where all members of
//! all runs have their snapshots, that keeps the same runs of all.
//!
//! Only snapshots that the catalog has are counted, and only those are deleted. One that the log alone has can be lost with the log, and one of
//! which nobody knows whether it was taken may not be there: for neither is one deleted that is durable in the pool. They are kept besides.
//!
//! It goes on until nothing is due, or the engine stops; what an ended process left is due after the next run.

use super::{current, event, is_ending, kind, policy_of};
use crate::engine::{Shared, administer, until_known};
use crate::error::EngineError;
use crate::snapshot;
use crate::volume::Volume;
use cairn_metadata::{GroupRow, GroupSnapshot};
use cairn_model::{ErrorKind, GroupRunId, Kinded, SnapshotId, VolumeId, WallTime};
use cairn_policy::Policy;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What retention did after a run.
#[derive(Debug, Default)]
struct Tally {
    pruned: u64,
    /// Snapshots that could not be deleted.
    failures: u64,
    /// Why the first of them could not.
    first: Option<String>,
    /// Due snapshots that were not tried, after a failure that the next one of the volume would share.
    untried: u64,
}

/// What is to be done about one volume.
#[derive(PartialEq, Eq, Debug, Default)]
struct Plan {
    delete: Vec<GroupSnapshot>,
    /// They are not there, and will not come.
    forget: Vec<SnapshotId>,
}

/// Where a snapshot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Catalog,
    Log,
    Nowhere,
}

/// Deletes what the group's rules of now do not keep. What goes wrong is written down with the run, and tried again after the next one.
pub(super) async fn prune(shared: &Arc<Shared>, group: &GroupRow, run: GroupRunId) {
    let mut tally = Tally::default();
    if let Err(error) = prune_all(shared, group, &mut tally).await {
        tally.first.get_or_insert(error.to_string());
    }
    let counters = &shared.groups.counters;
    counters.pruned.fetch_add(tally.pruned, Ordering::Relaxed);
    counters.prune_failures.fetch_add(tally.failures, Ordering::Relaxed);
    let (pruned, problem) = (tally.pruned, tally.problem());
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

impl Tally {
    fn failed(&mut self, snapshot: &GroupSnapshot, error: &EngineError) {
        self.failures += 1;
        let label = format!("{}@{}", snapshot.volume_name, snapshot.snapshot_name);
        self.first.get_or_insert_with(|| format!("{label} could not be deleted: {error}"));
    }

    fn problem(&self) -> Option<String> {
        let first = self.first.as_ref()?;
        let left = self.failures.saturating_sub(1) + self.untried;
        Some(if left > 0 { format!("{first} (and {left} more are left)") } else { first.clone() })
    }
}

async fn prune_all(shared: &Arc<Shared>, group: &GroupRow, tally: &mut Tally) -> Result<(), EngineError> {
    // The rules may have changed since the run began.
    let Some(group) = current(shared, group).await? else { return Ok(()) };
    let policy = policy_of(&group)?;
    let mut by_volume: BTreeMap<VolumeId, Vec<GroupSnapshot>> = BTreeMap::new();
    for snapshot in until_known(shared, || shared.catalog.group_snapshots(group.id)).await? {
        by_volume.entry(snapshot.volume).or_default().push(snapshot);
    }
    for (volume, snapshots) in by_volume {
        if is_ending(shared) {
            break;
        }
        let now = shared.ports.clock.wall();
        // If nothing is to go even if all of them are there, nobody needs to be asked which are.
        let all_there = vec![Place::Catalog; snapshots.len()];
        let due = plan(&policy, snapshots.clone(), &all_there, now).delete;
        let Some(first) = due.first() else { continue };
        let served = shared.registry.all().into_iter().find(|served| served.id() == volume);
        let Some(served) = served else {
            tally.failed(first, &EngineError::NotServedHere(first.volume_name.to_string()));
            tally.untried += due.len() as u64 - 1;
            continue;
        };
        match places(shared, &served, &snapshots).await {
            Ok(places) => carry_out(shared, &served, plan(&policy, snapshots, &places, now), tally).await,
            Err(error) => {
                tally.failed(first, &error);
                tally.untried += due.len() as u64 - 1;
            }
        }
    }
    Ok(())
}

/// Where each of a volume's snapshots is.
async fn places(
    shared: &Shared,
    volume: &Volume,
    snapshots: &[GroupSnapshot],
) -> Result<Vec<Place>, EngineError> {
    // First the log: what it has the catalog may get in between.
    let logged: BTreeSet<SnapshotId> =
        volume.state().lock().buffer.snapshots().map(|logged| logged.id).collect();
    let committed = until_known(shared, || shared.catalog.snapshots(volume.id())).await?;
    let committed: BTreeSet<SnapshotId> = committed.into_iter().map(|row| row.id).collect();
    let place = |snapshot: &GroupSnapshot| match snapshot.snapshot {
        id if committed.contains(&id) => Place::Catalog,
        id if logged.contains(&id) => Place::Log,
        _ => Place::Nowhere,
    };
    Ok(snapshots.iter().map(place).collect())
}

/// What is to go of a volume's snapshots, the oldest first. They are in the order in which their runs began.
fn plan(policy: &Policy, snapshots: Vec<GroupSnapshot>, places: &[Place], now: WallTime) -> Plan {
    let counted = snapshots.iter().zip(places).filter(|(_, place)| **place == Place::Catalog);
    let cuts: Vec<WallTime> = counted.map(|(snapshot, _)| snapshot.began_at).collect();
    let mut kept = policy.keep().kept(&cuts, policy.zone()).into_iter();
    // Marks come into the log in the order in which they were asked for: what is not there once a later one is will not come.
    let settled = places.iter().rposition(|place| *place != Place::Nowhere);
    let mut plan = Plan::default();
    for (at, (snapshot, place)) in snapshots.into_iter().zip(places).enumerate() {
        let is_kept = match place {
            Place::Catalog => kept.next().unwrap_or(true),
            Place::Log => true,
            Place::Nowhere => settled.is_none_or(|settled| at > settled),
        };
        let is_locked = snapshot.locked_until.is_some_and(|until| until > now);
        match place {
            _ if is_kept || is_locked => {}
            Place::Nowhere => plan.forget.push(snapshot.snapshot),
            _ => plan.delete.push(snapshot),
        }
    }
    plan
}

async fn carry_out(shared: &Arc<Shared>, volume: &Arc<Volume>, plan: Plan, tally: &mut Tally) {
    for snapshot in plan.forget {
        // What is not forgotten now is later: it does not count.
        if until_known(shared, || shared.catalog.forget_group_snapshot(snapshot)).await.is_err() {
            break;
        }
    }
    let mut left = plan.delete.into_iter();
    while let Some(snapshot) = left.next() {
        if is_ending(shared) {
            return;
        }
        let (volume, id) = (Arc::clone(volume), snapshot.snapshot);
        match administer(shared, move |shared| async move { delete(&shared, &volume, id).await }).await {
            Ok(()) => tally.pruned += 1,
            Err(EngineError::Stopped) => return,
            Err(error) => {
                tally.failed(&snapshot, &error);
                // Somebody reads it, or has locked it: nothing that the others share.
                if error.kind() != ErrorKind::Conflict {
                    tally.untried += left.len() as u64;
                    return;
                }
            }
        }
    }
}

/// The caller has the turn of administration.
async fn delete(shared: &Shared, volume: &Volume, id: SnapshotId) -> Result<(), EngineError> {
    match until_known(shared, || shared.catalog.snapshot(id)).await {
        Ok(row) => snapshot::delete(shared, volume, id, &row.name).await,
        // Somebody else deleted it.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_policy::PolicySpec;

    const HOUR: u64 = 3_600_000;

    fn snapshot(hour: u8, locked_until: Option<u64>) -> GroupSnapshot {
        GroupSnapshot {
            volume: VolumeId::from_bytes([9; 16]),
            volume_name: "disk".parse().unwrap(),
            snapshot: SnapshotId::from_bytes([hour; 16]),
            snapshot_name: format!("g-{hour}").parse().unwrap(),
            began_at: WallTime::from_unix_millis(u64::from(hour) * HOUR),
            locked_until: locked_until.map(|hour| WallTime::from_unix_millis(hour * HOUR)),
        }
    }

    /// The hours of those that are deleted, and of those that are forgotten.
    fn planned(keep: &str, places: &[Place], locked: &[usize]) -> (Vec<u8>, Vec<u8>) {
        let spec = PolicySpec {
            matching: vec!["disk".to_owned()],
            timezone: "UTC".to_owned(),
            keep: keep.to_owned(),
            ..PolicySpec::default()
        };
        let policy = Policy::new(&spec, WallTime::from_unix_millis(0)).unwrap();
        let lock = |at: usize| locked.contains(&at).then_some(101);
        let snapshots = (0..places.len()).map(|at| snapshot(u8::try_from(at).unwrap(), lock(at))).collect();
        let plan = plan(&policy, snapshots, places, WallTime::from_unix_millis(100 * HOUR));
        let hour = |id: SnapshotId| id.as_bytes()[0];
        (
            plan.delete.iter().map(|snapshot| hour(snapshot.snapshot)).collect(),
            plan.forget.into_iter().map(hour).collect(),
        )
    }

    #[test]
    fn only_what_the_catalog_has_counts_and_goes() {
        use Place::{Catalog, Log, Nowhere};
        let nothing = (vec![], vec![]);
        assert_eq!(planned("1", &[Catalog; 3], &[]), (vec![0, 1], vec![]));
        assert_eq!(planned("1", &[Catalog; 3], &[0]), (vec![1], vec![]));
        assert_eq!(planned("1", &[Catalog, Log, Log], &[]), nothing);
        // They may come yet.
        assert_eq!(planned("1", &[Catalog, Nowhere, Nowhere], &[]), nothing);
        assert_eq!(planned("1", &[Nowhere, Nowhere], &[]), nothing);
        assert_eq!(planned("2", &[Catalog, Nowhere, Catalog, Log, Nowhere], &[]), (vec![], vec![1]));
        assert_eq!(planned("2", &[Catalog, Nowhere, Catalog, Catalog, Log], &[1]), (vec![0], vec![]));
        assert_eq!(planned("daily:1", &[Catalog, Catalog, Nowhere, Log], &[]), (vec![0], vec![2]));
        assert_eq!(planned("all", &[Catalog, Log, Catalog], &[]), nothing);
    }
}
