//! Reclaim: what nothing points at any more is taken out of the catalog and deleted from the pool.
//!
//! ```text
//! fold ─► survey ─► close ─► look again ─► commits on their way are shown ─► remove, doom ─► delete objects ─► forget
//! ```
//!
//! - A container is dead when no leaf of any lineage, no snapshot's, no clone's, and no delta points at it. The catalog looks through all of
//!   them at one consistent moment.
//! - What the survey finds is a hint: a batch that is packed at this moment may share it. So candidates are *closed* first: a batch that points
//!   at one anew is refused and packed again without it. Whoever points at it from then on does so by a pointer that was there before. What the
//!   second look finds dead is dead for good. Another pass, of another gateway, may open what this one closed; then this one removes nothing.
//! - The catalog is ahead of this gateway's maps between a commit and the moment that it is shown. Before anything is removed, the commits that
//!   the second look may have seen are shown: no read is planned after that with a pointer that the look did not see. A read that was
//!   planned before, and comes too late, is planned again; so is one of another gateway, after that one has shown its own commit
//!   (`volume::read`).
//! - An object is deleted when the catalog has no segment of it any more: its row is *doomed* in the transaction that takes away its last container, and
//!   forgotten when the store has answered. Keys are never used again.
//!
//! Crash cases: closed containers stay closed, which costs sharing, until the next start opens them; doomed objects are deleted by the
//! next pass, again if need be. A segment that holds a live container stays whole.

use crate::engine::{Engine, PURGE_ROWS, Shared, until_known};
use crate::error::EngineError;
use crate::volume::Condition;
use cairn_metadata::{UnreferencedContainer, UnreferencedPage};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{ContainerId, PassId};
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Containers looked at in one go: what memory and the number of looks are bounded by.
const WINDOW: u32 = 1_000_000;
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

/// What a pass found or did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ReclaimReport {
    /// Containers that nothing points at.
    pub containers: u64,
    /// What they take in the pool.
    pub container_bytes: u64,
    /// Objects deleted. An object that holds anything live stays.
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
    /// Why it did not come to its end, if it did not.
    pub problem: Option<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Reclaim {
    /// One pass at a time.
    turn: tokio::sync::Mutex<()>,
    status: Mutex<ReclaimStatus>,
    /// Something may have died since a pass saw this number.
    changes: AtomicU64,
    /// A pass waits for folding: what is overwritten is pointed at until its delta is folded.
    wants_folds: AtomicBool,
}

impl ReclaimReport {
    fn found(&mut self, containers: &[UnreferencedContainer]) {
        self.containers += containers.len() as u64;
        self.container_bytes += containers.iter().map(|container| u64::from(container.length)).sum::<u64>();
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
    pub async fn reclaim(&self, dry_run: bool) -> Result<ReclaimReport, EngineError> {
        let shared = Arc::clone(self.shared_arc());
        let pass = shared.tasks.spawn({
            let shared = Arc::clone(&shared);
            async move { if dry_run { survey(&shared).await } else { pass(&shared).await } }
        });
        pass.await.ok().flatten().unwrap_or(Err(EngineError::Stopped))
    }
}

/// Makes a pass whenever something may have died, until the engine stops.
pub(crate) async fn reclaim_until_stopped(shared: Arc<Shared>) {
    let Some(interval) = shared.config.reclaim_interval else { return };
    let (mut wait, mut seen) = (interval, None);
    // What a pass has closed that did not come to its end may be shared again. If it is another gateway's that is under way, that one removes nothing.
    if let Err(error) = until_known(&shared, || shared.catalog.open_containers(None)).await {
        tracing::debug!(%error, "what an earlier pass of reclaim has closed stays closed");
    }
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = shared.ports.clock.sleep(wait) => {}
        }
        let changes = shared.reclaim.changes.load(Ordering::Relaxed);
        if seen == Some(changes) {
            continue;
        }
        let began = shared.ports.clock.now();
        match pass(&shared).await {
            Ok(report) => {
                seen = Some(changes);
                if report.objects > 0 {
                    tracing::info!(
                        objects = report.objects,
                        bytes = report.object_bytes,
                        "space was taken back in the pool"
                    );
                }
                wait = interval.max(shared.ports.clock.now().since(began) * REST_FACTOR);
            }
            Err(error) => {
                tracing::warn!(%error, "reclaim failed; will try again");
                wait = RETRY_PAUSE.max(interval);
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

async fn survey(shared: &Shared) -> Result<ReclaimReport, EngineError> {
    let _turn = shared.reclaim.turn.lock().await;
    settle(shared).await?;
    let (mut report, mut after) = (ReclaimReport::default(), None);
    loop {
        // However long it takes: who waits is in no hurry, and what is away is an error.
        let page = shared.catalog.unreferenced_containers(after, WINDOW).await?;
        report.found(&page.containers);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(report),
        }
    }
}

/// Takes back all there is. What an error leaves is for the next pass.
async fn pass(shared: &Shared) -> Result<ReclaimReport, EngineError> {
    let _turn = shared.reclaim.turn.lock().await;
    let mut report = ReclaimReport::default();
    let done = take_back(shared, &mut report).await;
    let mut status = shared.reclaim.status.lock();
    status.total.containers += report.containers;
    status.total.container_bytes += report.container_bytes;
    status.total.objects += report.objects;
    status.total.object_bytes += report.object_bytes;
    status.last_at_ms = Some(shared.ports.clock.wall().unix_millis());
    status.problem = done.as_ref().err().map(ToString::to_string);
    status.passes += u64::from(done.is_ok());
    done.map(|()| report)
}

async fn take_back(shared: &Shared, report: &mut ReclaimReport) -> Result<(), EngineError> {
    // An object that cannot be deleted holds up neither the others nor the rest of the pass.
    let mut deleted = delete_doomed(shared, report).await;
    settle(shared).await?;
    let mut after = None;
    loop {
        let next = remove_dead(shared, after, report).await?;
        deleted = deleted.and(delete_doomed(shared, report).await);
        match next {
            Some(next) if !shared.stop.is_cancelled() => after = Some(next),
            _ => return deleted,
        }
    }
}

/// Removes what is dead in the window after a container. Returns where the next window begins.
async fn remove_dead(
    shared: &Shared,
    after: Option<ContainerId>,
    report: &mut ReclaimReport,
) -> Result<Option<ContainerId>, EngineError> {
    let catalog = &*shared.catalog;
    let candidates = catalog.unreferenced_containers(after, WINDOW).await?;
    if candidates.containers.is_empty() {
        return Ok(candidates.next);
    }
    let pass = PassId::fresh(&*shared.ports.clock, &*shared.ports.entropy);
    let removed = close_and_remove(shared, pass, after, &candidates, report).await;
    // What is in use after all may be shared again.
    let opened = until_known(shared, || catalog.open_containers(Some(pass))).await;
    removed.and(opened).map(|()| candidates.next)
}

async fn close_and_remove(
    shared: &Shared,
    pass: PassId,
    after: Option<ContainerId>,
    candidates: &UnreferencedPage,
    report: &mut ReclaimReport,
) -> Result<(), EngineError> {
    let catalog = &*shared.catalog;
    let ids: Vec<ContainerId> = candidates.containers.iter().map(|container| container.id).collect();
    // Fewer batches are refused if the index does not offer them.
    shared.dedupe.gone(&ids).await;
    for some in ids.chunks(ROWS_AT_ONCE) {
        if !is_planted(Bug::ReclaimWithoutClosing) {
            until_known(shared, || catalog.close_containers(pass, some)).await?;
        }
    }
    let mut dead = if is_planted(Bug::ReclaimWithoutLookingAgain) {
        candidates.clone()
    } else {
        catalog.unreferenced_containers(after, WINDOW).await?
    };
    dead.containers.retain(|container| ids.binary_search(&container.id).is_ok());
    // Whatever the look saw of a commit of this gateway, that commit is shown when its turn is over.
    let (clock, limit) = (&*shared.ports.clock, shared.config.read_deadline);
    if cairn_model::timeout(clock, limit, shared.commit_turn.lock()).await.is_err() {
        return Err(EngineError::CatalogSilent);
    }
    for some in dead.containers.chunks(ROWS_AT_ONCE) {
        let ids: Vec<ContainerId> = some.iter().map(|container| container.id).collect();
        until_known(shared, || catalog.remove_containers(pass, &ids)).await?;
        shared.chunks.forget(&ids);
        report.found(some);
        shared.ports.clock.sleep(PAUSE).await;
    }
    Ok(())
}

/// Deletes the objects of segments that the catalog does not have any more. The first error comes back after the others were tried.
async fn delete_doomed(shared: &Shared, report: &mut ReclaimReport) -> Result<(), EngineError> {
    let (mut after, mut result) = (None, Ok(()));
    loop {
        let doomed = until_known(shared, || shared.catalog.doomed_objects(after, OBJECTS_AT_ONCE)).await?;
        if doomed.is_empty() || shared.stop.is_cancelled() {
            return result;
        }
        for object in doomed {
            after = Some(object.segment);
            if let Err(error) = shared.pool.delete(object.node, &object.key).await {
                tracing::debug!(%error, key = object.key, "an object cannot be deleted; the next pass tries again");
                result = result.and(Err(error.into()));
                continue;
            }
            until_known(shared, || shared.catalog.forget_doomed(object.segment)).await?;
            report.objects += 1;
            report.object_bytes += object.length_bytes;
            shared.ports.clock.sleep(PAUSE).await;
        }
    }
}
