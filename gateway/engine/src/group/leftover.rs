//! Runs that began and have not ended: what became of their snapshots is found out by their identities.

use super::run::{conclude, outcome};
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use cairn_metadata::{GroupMember, GroupRunEnd, GroupRunRow, MemberState};
use cairn_model::{ErrorKind, Kinded, WallTime};
use std::time::Duration;

/// How long another gateway may take for a run before it is taken for dead.
const FOREIGN_LIMIT: Duration = Duration::from_hours(1);

/// Ends them. `at_start`: this process has run none yet, so what its own log and the catalog do not have is not there, and will not come.
pub(super) async fn settle(shared: &Shared, at_start: bool) -> Result<(), EngineError> {
    for run in until_known(shared, || shared.catalog.unfinished_group_runs()).await? {
        let age = shared.ports.clock.wall().unix_millis().abs_diff(run.began_at.unix_millis());
        if run.gateway != shared.gateway && u128::from(age) < FOREIGN_LIMIT.as_millis() {
            continue;
        }
        end(shared, &run, at_start).await?;
    }
    Ok(())
}

async fn end(shared: &Shared, run: &GroupRunRow, at_start: bool) -> Result<(), EngineError> {
    let groups = until_known(shared, || shared.catalog.groups()).await?;
    let Some(group) = groups.iter().find(|group| group.id == run.group) else { return Ok(()) };
    let knows_log = at_start && run.gateway == shared.gateway;
    let mut members = Vec::new();
    for member in run.members.iter().filter(|member| member.state == MemberState::Planned) {
        let (state, error) = became(shared, member, knows_log).await?;
        members.push((member.snapshot, state, error.map(str::to_owned)));
    }
    let may_exist = |(_, state, _): &(_, MemberState, _)| *state != MemberState::Failed;
    // An instant of which nothing came is due again, now that somebody can run it.
    let again = run.planned.filter(|_| at_start && !members.is_empty() && !members.iter().any(may_exist));
    let handled_through = again.map(|planned| WallTime::from_unix_millis(planned.unix_millis() - 1));
    let end = GroupRunEnd {
        run: run.id,
        at: shared.ports.clock.wall(),
        outcome: outcome(run, &members),
        error: Some("the gateway ended in the middle of it".to_owned()),
        members,
        handled_through: handled_through.filter(|through| *through < group.handled_through),
    };
    conclude(shared, group, run, &end).await
}

/// What became of a snapshot that was planned.
async fn became(
    shared: &Shared,
    member: &GroupMember,
    knows_log: bool,
) -> Result<(MemberState, Option<&'static str>), EngineError> {
    let served = shared.registry.all().into_iter().find(|volume| volume.id() == member.volume);
    // First the log: what it has the catalog may get in between.
    if let Some(volume) = &served {
        let is_logged = volume.state().lock().buffer.snapshots().any(|logged| logged.id == member.snapshot);
        if is_logged {
            return Ok((MemberState::Taken, None));
        }
    }
    match until_known(shared, || shared.catalog.snapshot(member.snapshot)).await {
        Ok(_) => return Ok((MemberState::Taken, None)),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match until_known(shared, || shared.catalog.volume(member.volume)).await {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok((MemberState::Failed, Some("the volume was deleted")));
        }
        Err(error) => return Err(error),
    }
    if served.is_some() && knows_log {
        return Ok((MemberState::Failed, Some("the gateway ended before its snapshot was taken")));
    }
    Ok((MemberState::Unknown, Some("whether its snapshot was taken cannot be told from here")))
}
