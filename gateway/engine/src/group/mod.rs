//! Protection groups: volumes that are snapshotted together, by a schedule, and pruned by rules.
//!
//! ```text
//! due ─► intent: members, snapshots' identities, locks ─► snapshots at one moment ─► end: what became of each ─► retention
//!        └───────────── one transaction ─────────────┘
//! ```
//!
//! Invariants:
//! - an instant of a schedule is dealt with by the transaction that writes the intent down: it is not run twice, whatever happens after;
//! - a snapshot that is to be locked is locked before it is there, so there is no moment at which somebody could delete it;
//! - one run of a group at a time, and one of any group in a gateway: runs are short;
//! - retention deletes only what the group's own runs took, never a volume's newest in the catalog, never what is locked, and by the way that
//!   everybody deletes snapshots; it counts only what is in the catalog;
//! - what a group is told to do is read right before it is done: a run begins, and snapshots are deleted, by the policy of then.
//!
//! Crash cases, by how far a run came:
//! - before the intent: nothing happened; the instant is due at the next start;
//! - before the snapshots' frame is in the log: there is an intent without snapshots. The next start says so, takes the locks away, and runs the
//!   instant then;
//! - before the end is written down: the snapshots are in the log or in the catalog. The next start finds them by their identities and ends the run;
//! - before retention, or in it: the next run prunes.
//!
//! Instants that pass while nothing runs are caught up with by one run. The wall clock may jump: see [`schedule`].

mod leftover;
mod retain;
mod run;
mod schedule;

pub(crate) use schedule::run_groups_until_stopped;

use crate::engine::{Engine, Shared, until_known};
use crate::error::EngineError;
use cairn_metadata::{EventRow, GroupName, GroupRow, GroupRunRow, RunOutcome};
use cairn_model::boxed;
use cairn_policy::Policy;
use run::{Why, run};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Kinds of events.
mod kind {
    pub(super) const RUN: &str = "group-run";
    pub(super) const RUN_PARTIAL: &str = "group-run-partial";
    pub(super) const RUN_FAILED: &str = "group-run-failed";
    pub(super) const MATCHES_NOTHING: &str = "group-matches-nothing";
    pub(super) const CLOCK: &str = "group-clock";
    pub(super) const RETENTION: &str = "group-retention";
}

/// What groups did since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct GroupCounters {
    pub runs_complete: u64,
    pub runs_partial: u64,
    pub runs_failed: u64,
    pub runs_nothing: u64,
    /// Instants of schedules that had no run of their own.
    pub missed: u64,
    /// Snapshots that retention deleted.
    pub pruned: u64,
    /// Snapshots that it could not delete.
    pub prune_failures: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// Held by whoever runs a group, or changes what runs have written down.
    turn: Arc<tokio::sync::Mutex<Turn>>,
    /// Groups have changed.
    wake: Notify,
    /// No run begins any more, and retention ends before its next deletion.
    closing: CancellationToken,
    counters: Counters,
}

/// What the holder of the turn knows.
#[derive(Debug, Default)]
struct Turn {
    /// What earlier processes left is settled.
    has_settled: bool,
}

#[derive(Debug, Default)]
struct Counters {
    runs: [AtomicU64; 4],
    missed: AtomicU64,
    pruned: AtomicU64,
    prune_failures: AtomicU64,
}

impl Groups {
    pub(crate) fn counters(&self) -> GroupCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [complete, partial, failed, nothing] = self.counters.runs.each_ref().map(read);
        GroupCounters {
            runs_complete: complete,
            runs_partial: partial,
            runs_failed: failed,
            runs_nothing: nothing,
            missed: read(&self.counters.missed),
            pruned: read(&self.counters.pruned),
            prune_failures: read(&self.counters.prune_failures),
        }
    }

    /// From here on no run begins, and one that is under way deletes nothing more.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Waits for the run that is under way. While what this returns is held, none begins.
    pub(crate) async fn own_turn(&self) -> impl Drop + use<> {
        Arc::clone(&self.turn).lock_owned().await
    }

    fn count_run(&self, outcome: RunOutcome, missed: u64) {
        let place = match outcome {
            RunOutcome::Complete => 0,
            RunOutcome::Partial => 1,
            RunOutcome::Failed => 2,
            RunOutcome::Nothing => 3,
        };
        self.counters.runs[place].fetch_add(1, Ordering::Relaxed);
        self.counters.missed.fetch_add(missed, Ordering::Relaxed);
    }
}

impl Engine {
    /// Runs a group now, whatever its schedule and its window say. To its end, even if the caller stops waiting.
    #[boxed]
    pub async fn run_group(&self, name: &GroupName) -> Result<GroupRunRow, EngineError> {
        let name = name.clone();
        self.with_turn(move |shared| async move {
            let group = until_known(&shared, || shared.catalog.group_by_name(&name)).await?;
            let policy = policy_of(&group)?;
            run(&shared, &group, &policy, Why::Asked).await
        })
        .await
    }

    /// Deletes a group. Its snapshots stay, and their locks.
    #[boxed]
    pub async fn delete_group(&self, name: &GroupName) -> Result<(), EngineError> {
        let name = name.clone();
        self.with_turn(move |shared| async move {
            let group = until_known(&shared, || shared.catalog.group_by_name(&name)).await?;
            until_known(&shared, || shared.catalog.delete_group(group.id)).await
        })
        .await
    }

    /// Waits for the run that is under way. While what this returns is held, none begins and nothing is pruned: who changes a group in the catalog
    /// holds it, so that when the change is answered nothing goes by the old rules any more.
    pub async fn hold_groups(&self) -> Result<impl Drop + use<>, EngineError> {
        let groups = &self.shared().groups;
        tokio::select! {
            biased;
            () = groups.closing.cancelled() => Err(EngineError::Stopped),
            turn = groups.own_turn() => Ok(turn),
        }
    }

    /// Groups were made or changed in the catalog: their schedules are looked at now.
    pub fn groups_changed(&self) {
        self.shared().groups.wake.notify_one();
    }

    /// Runs `work` in the turn of groups, after what earlier processes left is settled.
    async fn with_turn<T, F>(
        &self,
        work: impl FnOnce(Arc<Shared>) -> F + Send + 'static,
    ) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        let shared = Arc::clone(self.shared_arc());
        let turn = Arc::clone(&shared.groups.turn);
        let task = self.shared().tasks.spawn(async move {
            let mut turn = turn.lock_owned().await;
            turn.settle(&shared).await?;
            work(shared).await
        });
        task.await.ok().flatten().unwrap_or(Err(EngineError::Stopped))
    }
}

impl Turn {
    /// Ends what began and has not ended: runs that earlier processes left, and those whose end could not be written down.
    async fn settle(&mut self, shared: &Arc<Shared>) -> Result<(), EngineError> {
        leftover::settle(shared, !self.has_settled).await?;
        self.has_settled = true;
        Ok(())
    }
}

/// The group as it is now; `None` when it was deleted.
async fn current(shared: &Shared, group: &GroupRow) -> Result<Option<GroupRow>, EngineError> {
    let groups = until_known(shared, || shared.catalog.groups()).await?;
    Ok(groups.into_iter().find(|current| current.id == group.id))
}

fn is_ending(shared: &Shared) -> bool {
    shared.stop.is_cancelled() || shared.groups.closing.is_cancelled()
}

fn policy_of(group: &GroupRow) -> Result<Policy, EngineError> {
    Policy::decode(&group.policy)
        .map_err(|error| EngineError::BadPolicy { group: group.name.to_string(), reason: error.to_string() })
}

fn event(shared: &Shared, group: &str, kind: &str, text: String) -> EventRow {
    EventRow { at: shared.ports.clock.wall(), kind: kind.to_owned(), subject: format!("group {group}"), text }
}

/// The kind of the event that tells of a run's end.
const fn kind_of(outcome: RunOutcome) -> &'static str {
    match outcome {
        RunOutcome::Complete => kind::RUN,
        RunOutcome::Partial => kind::RUN_PARTIAL,
        RunOutcome::Failed => kind::RUN_FAILED,
        RunOutcome::Nothing => kind::MATCHES_NOTHING,
    }
}
