//! One run: who is in it, the intent, the snapshots, the end.

use super::{current, event, is_ending, kind_of, retain};
use crate::engine::{Shared, administer, until_known};
use crate::error::EngineError;
use crate::snapshot::{Taken, take_each};
use crate::volume::Volume;
use cairn_metadata::{
    CatalogError, GroupMember, GroupRow, GroupRunEnd, GroupRunRow, MemberState, NewSnapshot, RunOutcome,
    SnapshotName, VolumeRow,
};
use cairn_model::{GroupRunId, SnapshotId, WallTime, utc};
use cairn_policy::{Due, Policy};
use std::sync::Arc;

/// Labels that are tried: runs of one second, or of a second that comes again when the clock is set back.
const ATTEMPTS_MAX: u32 = 1000;

/// Why a group runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why {
    Due(Due),
    Asked,
}

/// A member that can have a snapshot, as far as is known before.
type Candidate = (Arc<Volume>, SnapshotId, SnapshotName);

/// Runs a group. The caller has the turn of groups. What members could not have their snapshot is told in the run; an error says that nothing
/// is written down of it, or not how it ended. None begins when the engine ends: what it took would be in the log alone.
pub(super) async fn run(
    shared: &Arc<Shared>,
    group: &GroupRow,
    policy: &Policy,
    why: Why,
) -> Result<GroupRunRow, EngineError> {
    let volumes = until_known(shared, || shared.catalog.volumes()).await?;
    let matched: Vec<&VolumeRow> =
        volumes.iter().filter(|volume| policy.matches(volume.name.as_str())).collect();
    if is_ending(shared) {
        return Err(EngineError::Stopped);
    }
    let (begun, candidates) = begin(shared, group, policy, why, &matched).await?;
    let taken = take_all(shared, candidates, begun.began_at).await?;
    let end = end_of(shared, &begun, &taken);
    conclude(shared, group, &begun, &end).await?;
    retain::prune(shared, group, begun.id).await;
    let runs = until_known(shared, || shared.catalog.group_runs(group.id, 1)).await?;
    runs.into_iter()
        .find(|run| run.id == begun.id)
        .ok_or_else(|| CatalogError::NotFound { what: "run", name: begun.id.to_string() }.into())
}

/// Writes the intent down.
async fn begin(
    shared: &Shared,
    group: &GroupRow,
    policy: &Policy,
    why: Why,
    matched: &[&VolumeRow],
) -> Result<(GroupRunRow, Vec<Candidate>), EngineError> {
    let (clock, entropy) = (&*shared.ports.clock, &*shared.ports.entropy);
    let served = shared.registry.all();
    let mut attempt = 1;
    loop {
        let began_at = clock.wall();
        let label = label(began_at, attempt);
        let name = SnapshotName::new(format!("{}-{label}", group.name)).expect("a group's name leaves room");
        let mut candidates = Vec::new();
        let mut members = Vec::with_capacity(matched.len());
        for row in matched {
            let snapshot = SnapshotId::fresh(clock, entropy);
            let volume = served.iter().find(|volume| volume.id() == row.id);
            members.push(GroupMember {
                volume: row.id,
                volume_name: row.name.clone(),
                snapshot,
                snapshot_name: name.clone(),
                state: if volume.is_some() { MemberState::Planned } else { MemberState::Failed },
                error: volume.is_none().then(|| not_served(row)),
            });
            candidates.extend(volume.map(|volume| (Arc::clone(volume), snapshot, name.clone())));
        }
        let (planned, missed, handled_through) = match why {
            Why::Due(due) => (Some(due.latest), due.count - 1, due.latest),
            // As it is now: what somebody else has dealt with meanwhile stays so.
            Why::Asked => {
                let current = current(shared, group).await?.ok_or_else(|| gone(group))?;
                (None, 0, current.handled_through)
            }
        };
        let run = GroupRunRow {
            id: GroupRunId::fresh(clock, entropy),
            group: group.id,
            gateway: shared.gateway,
            label,
            planned,
            missed,
            began_at,
            ended: None,
            error: None,
            pruned: 0,
            prune_error: None,
            members,
        };
        let locked_until = policy.locked_until(began_at);
        let attempted = || shared.catalog.begin_group_run(&run, locked_until, handled_through);
        match until_known(shared, attempted).await {
            Err(EngineError::Catalog(error))
                if matches!(*error, CatalogError::NameTaken { .. }) && attempt < ATTEMPTS_MAX =>
            {
                attempt += 1;
            }
            begun => return begun.map(|()| (run, candidates)),
        }
    }
}

fn gone(group: &GroupRow) -> EngineError {
    CatalogError::NotFound { what: "group", name: group.name.to_string() }.into()
}

/// What the names of a run's snapshots end with.
fn label(at: WallTime, attempt: u32) -> String {
    let stamp = utc(at).stamp();
    if attempt == 1 { stamp } else { format!("{stamp}-{attempt}") }
}

fn not_served(row: &VolumeRow) -> String {
    match &row.holder {
        Some(holder) => format!("this gateway does not serve it; {} has it", holder.name),
        None => "this gateway does not serve it".to_owned(),
    }
}

/// Takes the snapshots, in the turn of administration.
async fn take_all(
    shared: &Arc<Shared>,
    candidates: Vec<Candidate>,
    created_at: WallTime,
) -> Result<Vec<(SnapshotId, Taken)>, EngineError> {
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    administer(shared, move |shared| async move {
        let wanted: Vec<(Arc<Volume>, NewSnapshot)> = candidates
            .into_iter()
            .map(|(volume, id, name)| {
                let size_bytes = volume.size_bytes();
                (volume, NewSnapshot { id, name, size_bytes, created_at })
            })
            .collect();
        let taken = take_each(&shared, &wanted).await;
        Ok(wanted.into_iter().map(|(_, snapshot)| snapshot.id).zip(taken).collect())
    })
    .await
}

fn end_of(shared: &Shared, begun: &GroupRunRow, taken: &[(SnapshotId, Taken)]) -> GroupRunEnd {
    let members = taken.iter().map(|(snapshot, taken)| match taken {
        Taken::Yes => (*snapshot, MemberState::Taken, None),
        Taken::No(error) => (*snapshot, MemberState::Failed, Some(error.to_string())),
        Taken::Unsure(error) => (*snapshot, MemberState::Unknown, Some(error.to_string())),
    });
    let members: Vec<_> = members.collect();
    let outcome = outcome(begun, &members);
    let error = (outcome == RunOutcome::Nothing).then(|| "no volume matches".to_owned());
    GroupRunEnd {
        run: begun.id,
        at: shared.ports.clock.wall(),
        outcome,
        error,
        members,
        handled_through: None,
    }
}

/// What a run came to, by what became of those that were planned.
pub(super) fn outcome(
    begun: &GroupRunRow,
    ended: &[(SnapshotId, MemberState, Option<String>)],
) -> RunOutcome {
    let taken = ended.iter().filter(|(_, state, _)| *state == MemberState::Taken).count();
    if begun.members.is_empty() {
        RunOutcome::Nothing
    } else if taken == begun.members.len() {
        RunOutcome::Complete
    } else if taken > 0 {
        RunOutcome::Partial
    } else {
        RunOutcome::Failed
    }
}

/// Writes the end of a run down, with an event, and counts it.
pub(super) async fn conclude(
    shared: &Shared,
    group: &GroupRow,
    begun: &GroupRunRow,
    end: &GroupRunEnd,
) -> Result<(), EngineError> {
    let told = event(shared, group.name.as_str(), kind_of(end.outcome), story(begun, end));
    until_known(shared, || shared.catalog.end_group_run(end, &told)).await?;
    shared.groups.count_run(end.outcome, begun.missed);
    let (group, text) = (group.name.as_str(), told.text.as_str());
    if end.outcome == RunOutcome::Complete {
        tracing::info!(group, text, "protection group ran");
    } else {
        tracing::warn!(group, text, "protection group ran, and not all is well");
    }
    Ok(())
}

/// A run for people, in a sentence or two.
fn story(begun: &GroupRunRow, end: &GroupRunEnd) -> String {
    let of = begun.members.len();
    let taken = end.members.iter().filter(|(_, state, _)| *state == MemberState::Taken).count();
    let mut parts = vec![match end.outcome {
        RunOutcome::Nothing => "ran and matched no volume: nothing is protected".to_owned(),
        _ => format!("run {}: {taken} of {of} snapshots taken", begun.label),
    }];
    if begun.missed > 0 {
        parts.push(format!("{} earlier runs were missed", begun.missed));
    }
    let reason_of = |member: &GroupMember| {
        let ended = end.members.iter().find(|(snapshot, _, _)| *snapshot == member.snapshot);
        let reason = ended.map_or(member.error.as_deref(), |(_, _, error)| error.as_deref());
        reason.map(|reason| format!("{}: {reason}", member.volume_name))
    };
    let mut reasons = begun.members.iter().filter_map(reason_of);
    parts.extend(reasons.next());
    let more = reasons.count();
    if more > 0 {
        parts.push(format!("and {more} more"));
    }
    parts.extend(end.error.clone().filter(|_| end.outcome != RunOutcome::Nothing));
    parts.join("; ")
}
