//! Schedules, driven by the wall clock.
//!
//! Between looks the task sleeps by the monotonic clock, never for long: a wall clock that is set is noticed soon.
//!
//! - Set ahead: instants seem missed; one run catches up with them.
//! - Set back a little: the instants that come again are dealt with, and nothing runs until the time that was reached is reached again.
//! - Set back by more than [`TOLERANCE`], as after a clock that was a year ahead: the group would be silent for as long. What it has dealt with is
//!   set to now, an event tells of it, and instants that ran before, by the list of its runs, are not run again.

use super::run::{Why, run};
use super::{current, event, is_ending, kind, policy_of};
use crate::engine::Shared;
use crate::error::EngineError;
use cairn_metadata::{GROUP_RUNS_MAX, GroupChange, GroupRow, RunOutcome};
use cairn_model::{WallTime, utc};
use cairn_policy::{Due, Policy, Timetable};
use std::sync::Arc;
use std::time::Duration;

/// How far what a group has dealt with may lie ahead of the clock.
const TOLERANCE: Duration = Duration::from_mins(5);
/// Longest sleep between two looks at the clock.
const LOOK: Duration = Duration::from_secs(20);
/// After a catalog that did not answer.
const RETRY: Duration = Duration::from_secs(5);
/// Never a busy loop.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// Runs groups when they are due, until the engine stops.
pub(crate) async fn run_groups_until_stopped(shared: Arc<Shared>) {
    loop {
        let pause = match look(&shared).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::warn!(%error, "protection groups cannot be looked at; will try again");
                RETRY
            }
        };
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = shared.groups.closing.cancelled() => return,
            () = shared.groups.wake.notified() => {}
            () = shared.ports.clock.sleep(pause) => {}
        }
    }
}

/// Runs what is due. Returns how long nothing will be, as far as the clock is not set.
async fn look(shared: &Arc<Shared>) -> Result<Duration, EngineError> {
    let mut turn = Arc::clone(&shared.groups.turn).lock_owned().await;
    if is_ending(shared) {
        return Ok(LOOK);
    }
    turn.settle(shared).await?;
    if !shared.config.run_schedules {
        return Ok(LOOK);
    }
    let mut next: Option<WallTime> = None;
    for group in shared.catalog.groups().await? {
        if is_ending(shared) {
            break;
        }
        let wake = match look_at(shared, group.clone()).await {
            Ok(wake) => wake,
            Err(EngineError::Stopped) => break,
            // It is due still; the others have nothing to do with it.
            Err(error) => {
                tracing::warn!(group = %group.name, %error, "a protection group could not run; will try again");
                Some(WallTime::from_unix_millis(millis_after(shared.ports.clock.wall(), RETRY)))
            }
        };
        next = [next, wake].into_iter().flatten().min();
    }
    let now = shared.ports.clock.wall();
    let wait =
        next.map_or(LOOK, |next| Duration::from_millis(next.unix_millis().saturating_sub(now.unix_millis())));
    Ok(wait.clamp(PAUSE_MIN, LOOK))
}

fn millis_after(at: WallTime, wait: Duration) -> u64 {
    at.unix_millis().saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}

/// Runs the group if it is due; returns when to look at it again.
async fn look_at(shared: &Arc<Shared>, mut group: GroupRow) -> Result<Option<WallTime>, EngineError> {
    if group.paused {
        return Ok(None);
    }
    // One that cannot be read is shown in the status.
    let Ok(policy) = policy_of(&group) else { return Ok(None) };
    let Some(timetable) = policy.timetable() else { return Ok(None) };
    let now = shared.ports.clock.wall();
    notice_clock(shared, &mut group, now).await?;
    let Some(due) = timetable.due(group.handled_through, now) else {
        return Ok(timetable.next_after(group.handled_through.max(now)));
    };
    if has_run(shared, &group, due).await? {
        handled(shared, &group, due.latest).await?;
        return Ok(timetable.next_after(due.latest.max(now)));
    }
    if !timetable.is_open(now) {
        return Ok(timetable.opens(now));
    }
    run_due(shared, &group, &policy, timetable, due).await
}

async fn run_due(
    shared: &Arc<Shared>,
    group: &GroupRow,
    policy: &Policy,
    timetable: &Timetable,
    due: Due,
) -> Result<Option<WallTime>, EngineError> {
    // Runs of others came before it: it may have been paused, changed or deleted meanwhile, and then what is due is looked at anew.
    match current(shared, group).await? {
        None => return Ok(None),
        Some(current) if current != *group => return Ok(Some(shared.ports.clock.wall())),
        Some(_) => {}
    }
    run(shared, group, policy, Why::Due(due)).await?;
    Ok(timetable.next_after(due.latest.max(shared.ports.clock.wall())))
}

/// Sets what the group has dealt with to now, if that lies so far ahead that it would be silent.
async fn notice_clock(shared: &Shared, group: &mut GroupRow, now: WallTime) -> Result<(), EngineError> {
    let ahead = group.handled_through.unix_millis().saturating_sub(now.unix_millis());
    if u128::from(ahead) <= TOLERANCE.as_millis() {
        return Ok(());
    }
    let text = format!(
        "its schedule was dealt with up to {}, which is ahead of the clock: the clock was set back, and the schedule goes on from {}",
        utc(group.handled_through),
        utc(now)
    );
    group.handled_through = now;
    handled(shared, group, now).await?;
    tracing::warn!(group = %group.name, text);
    shared.catalog.add_event(&event(shared, group.name.as_str(), kind::CLOCK, text)).await?;
    Ok(())
}

async fn handled(shared: &Shared, group: &GroupRow, through: WallTime) -> Result<(), EngineError> {
    let change = GroupChange { handled_through: Some(through), ..GroupChange::default() };
    Ok(shared.catalog.update_group(group.id, &change).await?)
}

/// Whether a run of that very instant took snapshots: before the clock was set back.
async fn has_run(shared: &Shared, group: &GroupRow, due: Due) -> Result<bool, EngineError> {
    let runs = shared.catalog.group_runs(group.id, GROUP_RUNS_MAX).await?;
    let took = |outcome| matches!(outcome, RunOutcome::Complete | RunOutcome::Partial);
    Ok(runs
        .iter()
        .any(|run| run.planned == Some(due.latest) && run.ended.is_some_and(|(_, outcome)| took(outcome))))
}
