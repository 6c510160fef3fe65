//! Reclaim: what nothing points at any more is taken out of the catalog and deleted from the pool.
//!
//! ```text
//! fold ─► look ─► choose ─► close ─► look again ─► commits on their way are shown ─► remove ─► move survivors ─► delete objects ─► forget
//! ```
//!
//! - A chunk is dead when no leaf of any lineage, no snapshot's, no clone's, and no delta points at it; a container, when all of its chunks are. The catalog
//!   looks through all of them at one consistent moment.
//! - Where too much of the pool is dead, the containers of the segments with the best ratio of benefit to cost (`victims`) move to new segments,
//!   without their dead chunks (`rewrite`).
//! - What the survey finds is a hint: a batch that is packed at this moment may share it. So candidates are *closed* first: a batch that points
//!   at one anew is refused and packed again without it. Whoever points at it from then on does so by a pointer that was there before. What the
//!   second look finds dead is dead for good. Another pass, of another gateway, may open what this one closed; then this one removes nothing.
//! - The catalog is ahead of this gateway's maps between a commit and the moment that it is shown. Before anything is removed, the commits that
//!   the second look may have seen are shown: no read is planned after that with a pointer that the look did not see. A read that was
//!   planned before, and comes too late, is planned again; so is one of another gateway, after that one has shown its own commit
//!   (`volume::read`).
//! - An object is deleted when the catalog has no segment of it any more: its row is *doomed* in the transaction that takes away its last container, and
//!   forgotten when the store has answered. Before, a checkpoint that has that row is brought to the pool (`record`): without the object, its footer can
//!   not say any more what the catalog was told. Keys are never used again.
//!
//! Crash cases: closed containers stay closed, which costs sharing, until the next start opens them; doomed objects are deleted by the
//! next pass, again if need be.

mod doomed;
mod pace;
mod pass;
mod rewrite;
mod victims;

use doomed::delete_doomed;
pub(crate) use doomed::delete_doomed_beside;

use crate::config::EngineConfig;
use crate::engine::{Engine, PURGE_ROWS, Shared, until_known};
use crate::error::EngineError;
use crate::record::Need;
use crate::volume::Condition;
use cairn_metadata::ContainerUse;
use cairn_model::{ContainerId, SegmentId, boxed};
use pace::{Dying, Pace};
use parking_lot::Mutex;
use pass::Pass;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use victims::{Limits, Space};

/// Containers looked at in one go, some terabyte of them: what memory (a bit for each chunk, 2 KiB at most each) and the number of looks are bounded by.
const WINDOW: u32 = 1 << 17;
/// Rows of one transaction: others want the catalog too.
const ROWS_AT_ONCE: usize = 500;
/// Objects deleted between two looks at the catalog.
const OBJECTS_AT_ONCE: u32 = 100;
/// Between objects: guests come first.
const PAUSE: Duration = Duration::from_millis(5);
const RETRY_PAUSE: Duration = Duration::from_secs(30);
/// How long a pass waits for folding.
const FOLD_LIMIT: Duration = Duration::from_mins(1);
/// The part of the time that passes may take: looking through the maps of a large site is much work.
const REST_FACTOR: u32 = 20;
/// The same where so much was written since the last pass that too much may be dead.
const REST_FACTOR_BEHIND: u32 = 1;
/// Containers that could not be moved that are remembered.
const STUCK_MAX: usize = 100_000;
/// Part of what may be dead, and objects, that are not worth a pass when they were written since the last one, nor a checkpoint at once when they moved.
const ALLOWANCE_PART: u64 = 10;
const ALLOWANCE_OBJECTS: u64 = 2;

/// Bytes that are not worth a pass of their own, or a checkpoint at once, in such a pool.
fn allowance(pool: Space, config: &EngineConfig) -> u64 {
    let objects = ALLOWANCE_OBJECTS * u64::from(config.pack.container_bytes_max);
    let bearable = pool.object_bytes / 100 * u64::from(config.reclaim_dead_percent_max);
    objects.max(bearable / ALLOWANCE_PART)
}

/// What a pass found or did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ReclaimReport {
    /// Containers that nothing points at.
    pub containers: u64,
    /// What they take in the pool, and what was left out of containers that moved.
    pub container_bytes: u64,
    /// Containers with something live that moved to new segments.
    pub moved_containers: u64,
    /// What was written to the pool for that.
    pub moved_bytes: u64,
    /// Objects deleted.
    pub objects: u64,
    pub object_bytes: u64,
}

/// Reclaim since the start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ReclaimStatus {
    pub passes: u64,
    pub total: ReclaimReport,
    /// When the last pass ended.
    pub last_at_ms: Option<u64>,
    /// What the last pass that may move found in the pool.
    pub last_look: Option<PoolUse>,
    /// Why it did not come to its end, if it did not.
    pub problem: Option<String>,
}

/// What objects take, and what of that something points at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct PoolUse {
    pub object_bytes: u64,
    pub live_bytes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Reclaim {
    /// One pass at a time.
    turn: tokio::sync::Mutex<()>,
    status: Mutex<ReclaimStatus>,
    /// Something may have died since a pass saw this number.
    changes: AtomicU64,
    /// Bytes of segments that batches stored since the start.
    stored: AtomicU64,
    /// The last batch's share of it.
    last_batch: AtomicU64,
    /// How much of that makes the next pass due.
    due_at: AtomicU64,
    due: Notify,
    pace: Mutex<Pace>,
    /// Containers that could not be moved, until something is mended: they would be tried again and again.
    stuck: Mutex<HashMap<ContainerId, SegmentId>>,
    /// A pass waits for folding: what is overwritten is pointed at until its delta is folded.
    wants_folds: AtomicBool,
}

impl ReclaimReport {
    fn found(&mut self, dead: &[ContainerUse]) {
        self.containers += dead.len() as u64;
        self.container_bytes += dead.iter().map(|container| u64::from(container.length)).sum::<u64>();
    }

    fn add(&mut self, other: &Self) {
        self.containers += other.containers;
        self.container_bytes += other.container_bytes;
        self.moved_containers += other.moved_containers;
        self.moved_bytes += other.moved_bytes;
        self.objects += other.objects;
        self.object_bytes += other.object_bytes;
    }
}

/// Folds are wanted until it is dropped.
struct FoldsWanted<'a>(&'a AtomicBool);

impl<'a> FoldsWanted<'a> {
    fn new(wanted: &'a AtomicBool) -> Self {
        wanted.store(true, Ordering::Relaxed);
        Self(wanted)
    }
}

impl Drop for FoldsWanted<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Reclaim {
    /// Something may have died: a commit, a fold, a deletion.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// A batch stored segments of so many bytes: as much may be dead that it replaced.
    pub(crate) fn batch_stored(&self, bytes: u64) {
        self.last_batch.store(bytes, Ordering::Relaxed);
        let stored = self.stored.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if stored >= self.due_at.load(Ordering::Relaxed) {
            self.due.notify_one();
        }
    }

    fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// The pool is full: a pass may be what helps.
    pub(crate) fn pool_full(&self) {
        self.due_at.store(0, Ordering::Relaxed);
        self.due.notify_one();
    }

    /// A pass that began when `stored` was stored found the pool so full of live bytes, and leaves it so.
    fn took_stock(&self, stored: u64, found: Space, left: Space, config: &EngineConfig) {
        let batch = self.last_batch.load(Ordering::Relaxed);
        self.pace.lock().look(stored, self.stored(), batch, found, left);
        self.due_after(stored, left, config);
    }

    /// When the next pass is due, if the pool was so when `stored` was stored.
    fn due_after(&self, stored: u64, left: Space, config: &EngineConfig) {
        let limits = Limits::of(config.reclaim_dead_percent_max);
        let due_at = if config.reclaim_dead_percent_max == 100 {
            u64::MAX
        } else if left.is_above(limits.begin) {
            // No more was moved than is good at once.
            0
        } else {
            let bearable = left.object_bytes / 1000 * u64::from(limits.begin);
            let dead = left.dead_bytes() + self.pace.lock().dying(limits).bytes(left.live_bytes);
            stored + bearable.saturating_sub(dead).max(allowance(left, config))
        };
        self.due_at.store(due_at, Ordering::Relaxed);
    }

    /// What is likely to die during a pass.
    fn dying(&self, config: &EngineConfig) -> Dying {
        self.pace.lock().dying(Limits::of(config.reclaim_dead_percent_max))
    }

    /// Containers that could not be moved.
    fn stuck(&self, containers: Vec<(ContainerId, SegmentId)>) {
        let mut stuck = self.stuck.lock();
        if stuck.len() + containers.len() > STUCK_MAX {
            stuck.clear();
        }
        stuck.extend(containers);
    }

    /// These segments were mended or moved: what of them could not be moved may be movable now.
    pub(crate) fn try_stuck_again(&self, segments: &HashSet<SegmentId>) {
        self.stuck.lock().retain(|_, segment| !segments.contains(segment));
    }

    fn stuck_containers(&self) -> HashSet<ContainerId> {
        self.stuck.lock().keys().copied().collect()
    }

    fn is_due(&self) -> bool {
        self.stored() >= self.due_at.load(Ordering::Relaxed)
    }

    /// Waits until so much was stored that too much may be dead.
    async fn due(&self) {
        while !self.is_due() {
            self.due.notified().await;
        }
    }

    /// Whether every volume is to be folded, however little waits.
    pub(crate) fn wants_folds(&self) -> bool {
        self.wants_folds.load(Ordering::Relaxed)
    }

    pub(crate) fn status(&self) -> ReclaimStatus {
        self.status.lock().clone()
    }
}

impl Engine {
    /// Takes back what nothing points at, all there is at the moment. With `dry_run`, only tells how much that would be.
    #[boxed]
    pub async fn reclaim(&self, dry_run: bool) -> Result<ReclaimReport, EngineError> {
        let shared = Arc::clone(self.shared_arc());
        let pass = shared.tasks.spawn({
            let shared = Arc::clone(&shared);
            async move { if dry_run { survey(&shared).await } else { pass(&shared).await.done } }
        });
        pass.await.ok().flatten().unwrap_or(Err(EngineError::Stopped))
    }
}

impl Engine {
    /// Deletes what is to be deleted, after a checkpoint where that takes one. For whoever cannot go on before; what cannot be done in `patience` is for later.
    #[boxed]
    pub async fn delete_left_over(&self, patience: Duration) -> Result<(), EngineError> {
        let shared = self.shared();
        let deleting = async {
            let _turn = shared.reclaim.turn.lock().await;
            let deleted = delete_doomed(shared, &mut None, u64::MAX, Need::Now).await?;
            deleted.unrecorded.or(deleted.problem).map_or(Ok(()), Err)
        };
        let done = cairn_model::timeout(&*shared.ports.clock, patience, deleting).await;
        done.unwrap_or(Err(EngineError::PoolSilent(patience.as_secs())))
    }
}

/// What a pass would do.
async fn survey(shared: &Shared) -> Result<ReclaimReport, EngineError> {
    let _turn = shared.reclaim.turn.lock().await;
    let mut pass = Pass::new(shared);
    pass.survey().await.map(|()| pass.report)
}

/// How a pass ended.
struct Ended {
    /// An error also when all was looked through and some of what is to be deleted could not be.
    done: Result<ReclaimReport, EngineError>,
    is_through: bool,
    /// All was looked through, but nothing moved: it would only have filled the pool, since what it came from waits for a checkpoint that cannot be taken.
    is_held: bool,
    /// How long looking took.
    looking: Duration,
}

/// Takes back all there is.
async fn pass(shared: &Shared) -> Ended {
    let _turn = shared.reclaim.turn.lock().await;
    let stored = shared.reclaim.stored();
    let mut pass = Pass::new(shared);
    let done = pass.take_back().await;
    // Without moves it has not seen what could be moved.
    let (is_through, is_held) = (done.is_ok() && !pass.no_more_moves, done.is_ok() && pass.no_more_moves);
    let mut status = shared.reclaim.status.lock();
    if is_through {
        shared.reclaim.took_stock(stored, pass.found, pass.left, &shared.config);
        if shared.config.reclaim_dead_percent_max < 100 {
            let Space { object_bytes, live_bytes } = pass.found;
            status.last_look = Some(PoolUse { object_bytes, live_bytes });
        }
    }
    let done = done.and(pass.undeleted.take().map_or(Ok(()), Err));
    status.total.add(&pass.report);
    status.last_at_ms = Some(shared.ports.clock.wall().unix_millis());
    status.problem = done.as_ref().err().map(ToString::to_string);
    status.passes += u64::from(done.is_ok());
    Ended { done: done.map(|()| pass.report), is_through, is_held, looking: pass.looking }
}

/// What is left of what was to be deleted.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Left {
    is_any: bool,
    /// Some of it waits for a checkpoint.
    waits: bool,
}

/// Deletes what the last pass could not delete.
async fn delete_what_is_left(shared: &Shared) -> Left {
    let _turn = shared.reclaim.turn.lock().await;
    let deleted = delete_doomed(shared, &mut None, u64::MAX, Need::Now).await;
    let mut status = shared.reclaim.status.lock();
    let mut waits = true;
    let problem = match deleted {
        Ok(deleted) => {
            status.total.objects += deleted.objects;
            status.total.object_bytes += deleted.bytes;
            waits = deleted.waits || deleted.unrecorded.is_some();
            deleted.problem.or(deleted.unrecorded)
        }
        Err(error) => Some(error),
    };
    status.problem = problem.map(|problem| problem.to_string());
    Left { is_any: waits || status.problem.is_some(), waits }
}

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Round {
    Pass,
    /// What the last pass could not delete.
    Deletions,
    Nothing,
}

/// What the passes so far have left to be done.
#[derive(Default)]
struct Rounds {
    /// Changes that need no other pass.
    seen: Option<u64>,
    /// Some of what is to be deleted is still there.
    is_left: bool,
    /// What could be moved was not: another pass is to come when nothing waits for a checkpoint.
    is_held: bool,
}

impl Rounds {
    fn next(&self, changes: u64) -> Round {
        match (self.seen == Some(changes), self.is_left) {
            (false, _) => Round::Pass,
            (true, true) => Round::Deletions,
            (true, false) => Round::Nothing,
        }
    }

    /// A pass that began when there were so many changes has ended; `is_due`: another one is due already.
    fn passed(&mut self, changes: u64, ended: &Ended, is_due: bool) {
        (self.is_left, self.is_held) = (ended.done.is_err(), ended.is_held);
        if ended.is_through {
            // Another pass goes on where this one stopped, though nothing changes meanwhile.
            self.seen = (!is_due).then_some(changes);
        } else if ended.is_held {
            // It would look through all maps and be held again.
            self.seen = Some(changes);
        }
    }

    /// What the last pass could not delete was tried again.
    fn deleted(&mut self, left: Left) {
        self.is_left = left.is_any;
        if self.is_held && !left.waits {
            (self.is_held, self.seen) = (false, None);
        }
    }
}

/// Makes a pass whenever something may have died, until the engine stops: every now and then, and when so much was written since the last one
/// that too much may be dead.
pub(crate) async fn reclaim_until_stopped(shared: Arc<Shared>) {
    // What a pass has closed that did not come to its end may be shared again. If it is another gateway's that is under way, that one removes nothing.
    if let Err(error) = until_known(&shared, || shared.catalog.open_containers(None)).await {
        tracing::debug!(%error, "what an earlier pass of reclaim has closed stays closed");
    }
    let Some(interval) = shared.config.reclaim_interval else { return };
    let (clock, reclaim) = (&*shared.ports.clock, &shared.reclaim);
    // Nobody knows yet how much of the pool is dead.
    reclaim.due_after(0, Space::default(), &shared.config);
    let (mut wait, mut rest, mut rounds) = (interval, Duration::ZERO, Rounds::default());
    loop {
        let behind = async {
            clock.sleep(rest).await;
            reclaim.due().await;
        };
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = clock.sleep(wait) => {}
            () = behind, if rest < wait => {}
        }
        let changes = reclaim.changes.load(Ordering::Relaxed);
        let round = rounds.next(changes);
        if round != Round::Pass {
            if round == Round::Deletions {
                rounds.deleted(delete_what_is_left(&shared).await);
            }
            rest = RETRY_PAUSE;
            continue;
        }
        let ended = pass(&shared).await;
        // What is moved and deleted has pauses of its own.
        (wait, rest) = (interval.max(ended.looking * REST_FACTOR), ended.looking * REST_FACTOR_BEHIND);
        rounds.passed(changes, &ended, reclaim.is_due());
        match ended.done {
            Ok(report) if report.objects > 0 => {
                tracing::info!(
                    objects = report.objects,
                    bytes = report.object_bytes,
                    moved_bytes = report.moved_bytes,
                    "space was taken back in the pool"
                );
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "reclaim failed; will try again");
                (wait, rest) = (wait.max(RETRY_PAUSE), rest.max(RETRY_PAUSE));
            }
        }
    }
}

/// What was overwritten or deleted so far is not held any more by what waits to be folded or purged. It only waits so long: what is held
/// then is for the next pass.
async fn settle(shared: &Shared) -> Result<(), EngineError> {
    while until_known(shared, || shared.catalog.purge_deleted(PURGE_ROWS)).await? {
        shared.ports.clock.sleep(PAUSE).await;
    }
    let goals: Vec<_> = shared
        .registry
        .all()
        .into_iter()
        .map(|volume| {
            let (lineage, goal) = {
                let state = volume.state().lock();
                (state.map.lineage(), state.map.last_commit())
            };
            (volume, lineage, goal)
        })
        .collect();
    let wanted = FoldsWanted::new(&shared.reclaim.wants_folds);
    let folded = cairn_model::timeout(&*shared.ports.clock, FOLD_LIMIT, async {
        for (volume, lineage, goal) in goals {
            loop {
                {
                    let state = volume.state().lock();
                    let is_other = state.condition != Condition::Serving || state.map.lineage() != lineage;
                    if is_other || state.map.folded_through() >= goal {
                        break;
                    }
                }
                shared.fold_wake.notify_one();
                shared.ports.clock.sleep(PAUSE).await;
            }
        }
    });
    if folded.await.is_err() {
        tracing::debug!("folding takes long; what it holds is for the next pass");
    }
    drop(wanted);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(is_ok: bool, is_through: bool, is_held: bool) -> Ended {
        let done = if is_ok { Ok(ReclaimReport::default()) } else { Err(EngineError::CatalogSilent) };
        Ended { done, is_through, is_held, looking: Duration::ZERO }
    }

    #[test]
    fn a_pass_comes_again_when_something_changed_or_is_due() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.next(0), Round::Pass, "nobody has looked since the start");
        rounds.passed(0, &ended(true, true, false), false);
        assert_eq!((rounds.next(0), rounds.next(1)), (Round::Nothing, Round::Pass));
        rounds.passed(1, &ended(true, true, false), true);
        assert_eq!(rounds.next(1), Round::Pass);
        rounds.passed(1, &ended(false, false, false), false);
        assert_eq!(rounds.next(1), Round::Pass, "it failed");
    }

    #[test]
    fn what_could_not_be_deleted_is_tried_again_without_a_pass() {
        let mut rounds = Rounds::default();
        rounds.passed(5, &ended(false, true, false), false);
        assert_eq!((rounds.next(5), rounds.next(6)), (Round::Deletions, Round::Pass));
        rounds.deleted(Left { is_any: true, waits: false });
        assert_eq!(rounds.next(5), Round::Deletions);
        rounds.deleted(Left::default());
        assert_eq!(rounds.next(5), Round::Nothing);
    }

    #[test]
    fn a_pass_that_could_not_move_comes_again_when_checkpoints_can_be_taken() {
        let mut rounds = Rounds::default();
        rounds.passed(5, &ended(false, false, true), true);
        for _ in 0..3 {
            assert_eq!(
                rounds.next(5),
                Round::Deletions,
                "looking through all maps again would be for nothing"
            );
            rounds.deleted(Left { is_any: true, waits: true });
        }
        assert_eq!(rounds.next(6), Round::Pass, "something else may have died");
        // One object cannot be deleted, which is no reason to hold back what moves.
        rounds.deleted(Left { is_any: true, waits: false });
        assert_eq!(rounds.next(5), Round::Pass);
        rounds.passed(5, &ended(true, true, false), false);
        assert_eq!(rounds.next(5), Round::Nothing);
    }
}
