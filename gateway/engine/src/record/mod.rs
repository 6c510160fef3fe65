//! Checkpoints: what the catalog has goes to the pool, so that the pool and the key are enough.
//!
//! ```text
//! changes counted ─► rows of one moment ─► pieces ─► those that the pool lacks ─► manifest ─► older manifests go ─► pieces that no manifest names go
//! ```
//!
//! Invariants:
//! - a checkpoint that began after a change was durable has it. Whoever wants that takes one ([`checkpoint`]) after the change and waits;
//! - a checkpoint is durable when its manifest and all its pieces are: on one node more than the pool's profile survives the loss of, or on fewer while the others are silent (`RecordStore`).
//!   One that is not is an error: it is taken again, and whoever waits for it (`reclaim`) does not go on;
//! - of one that is on fewer, whatever an earlier one needs on a node that lacks it stays there ([`Partial`]): should the nodes that have it be lost, that node has the earlier one, and all
//!   that it needs but what was lost with those nodes. It is taken again when a node that lacks it answers. The catalog does not remember it: after a start it counts for nothing;
//! - everything that the newest durable manifest names is in the pool, pieces and segments: pieces are deleted only when no kept manifest names them, and objects of
//!   segments only after a checkpoint that has them among the doomed (`reclaim::doomed`), whoever doomed them;
//! - a number is used for one manifest, and is durable in the catalog before: what a failed one left on a node that is away never passes for a later one;
//! - a catalog of an earlier incarnation than the pool's newest deletes nothing; nor does one that is an older copy of itself, which the pool's numbers tell. Only manifests that open count for
//!   that: a name can be made up by whoever can write to one node. Where one cannot be read that would count, the checkpoint fails, and nothing is decided;
//! - a gateway whose site was taken over keeps its log as it is ([`step_down`]).
//!
//! Nodes that are away get what they lack with a later checkpoint, and rid of what is not needed any more: what they hold alone is garbage, never the newest.
//!
//! Crash cases: before the manifest, pieces that nothing names, found by the next checkpoint, which needs not put them again; after it, at worst an older manifest and its pieces too
//! many.

mod known;
mod watch;

pub(crate) use watch::{
    checkpoint_last, look_over, look_over_until_stopped, record_until_stopped, watch_owner_until_stopped,
};

use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use crate::lease::fence;
use cairn_metadata::{Catalog, RecordChanges, RecordSource};
use cairn_model::{DomainId, ErrorKind, Kinded, Monotonic, NodeId, WallTime};
use cairn_segment_writer::{
    Copies, Manifest, ManifestId, ManifestPiece, PieceCutter, PieceName, PoolError, RecordKey, RecordStore,
    SealedPiece,
};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use known::{Content, Known, KnownManifest, Ours, pieces_of};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Manifests that are kept, the newest among them.
const MANIFESTS_KEPT: usize = 3;
/// The part of the time that checkpoints may take.
const REST_FACTOR: u32 = 20;
const RETRY_PAUSE: Duration = Duration::from_secs(30);
/// How long somebody waits for the first one, and between two looks for it.
const FIRST_LIMIT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How long a segment may be made before it is on its way; and how long one may be on its way, where nobody knows what was.
const PACKING_MARGIN: Duration = Duration::from_mins(10);
const UNKNOWN_MARGIN: Duration = Duration::from_hours(24);
/// How long it is believed what the pool has: a node may lose objects, or come back as an older copy of itself.
const LOOK_AGAIN: Duration = Duration::from_hours(1);
/// How long the rows of one moment are held while no more of them are read or put, and how long in any case: the catalog's own log grows meanwhile. What was put until then the next attempt
/// need not put again, so it comes further.
const READ_LIMIT: Duration = Duration::from_mins(30);
const READ_LIMIT_IN_ALL: Duration = Duration::from_hours(4);
/// Pieces put at the same time.
const PIECES_AT_ONCE: usize = 4;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// One at a time; what its holder knows of the pool.
    turn: tokio::sync::Mutex<Option<Known>>,
    last: Mutex<Last>,
    /// Copies of pieces that were read and were not good, until they are put again. Lists show them as if they were, so this outlives what is known of lists.
    bad: Mutex<BTreeMap<PieceName, Copies>>,
    /// A node lost what it had, or is back after it was given up: what is known of the pool is not to be believed.
    is_stale: AtomicBool,
    /// The newest one is damaged, or names what is not there any more.
    is_lacking: AtomicBool,
    /// Somebody waits for one beside whoever takes them, and whether it may be taken before its time.
    wanted: Mutex<Option<bool>>,
    /// The last durable one, when it is not on as many nodes as may be lost, and one more.
    partial: Mutex<Option<Partial>>,
    /// The last durable one, and a time: whatever the catalog names, or has named, of segments that were made before that is in it, or was gone before. In milliseconds since 1970.
    covers: Mutex<Option<(ManifestId, u64)>>,
    /// Checkpoints that were begun since the start, and the last of them that is durable whatever nodes are lost.
    begun: AtomicU64,
    durable: AtomicU64,
    /// The checkpoint of another catalog that took the site over.
    superseded: Mutex<Option<ManifestId>>,
}

/// A checkpoint that only these nodes have.
#[derive(Debug)]
struct Partial {
    /// They have all of it.
    on: Copies,
    /// Objects up to this number are to be deleted by it, or gone.
    doomed_through: u64,
}

/// How much somebody wants a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    /// There is no going on without one.
    Now,
    /// The next one does as well: only where it keeps to the part of the time that they may take.
    IfRested,
    /// The next one does, and nobody waits for it; `true`: it need not keep to its part of the time, since there is no room.
    Soon(bool),
}

/// Checkpoints since the start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct RecordStatus {
    pub taken: u64,
    /// When the last one was.
    pub last_at_ms: Option<u64>,
    /// How long it took. The next one rests for twenty times that.
    pub took_ms: Option<u64>,
    /// Something but batches was changed that none has, or nobody has looked since the start.
    pub waits: bool,
    /// Why the last attempt failed, if it did.
    pub problem: Option<String>,
}

/// The last checkpoint.
#[derive(Clone, Debug, Default)]
struct Last {
    /// Changes that it has.
    covers: Option<RecordChanges>,
    /// When it began and ended.
    times: Option<(Monotonic, Monotonic)>,
    taken: u64,
    at: Option<WallTime>,
    /// When the last attempt failed, and why, if it did.
    failed_at: Option<Monotonic>,
    problem: Option<String>,
}

impl Record {
    /// Whether the last checkpoint is so long ago that another one keeps to the part of the time that they may take.
    fn is_rested(&self, now: Monotonic) -> bool {
        let last = self.last.lock();
        last.times.is_none_or(|(began, ended)| now.since(ended) >= ended.since(began) * REST_FACTOR)
            && last.failed_at.is_none_or(|failed| now.since(failed) >= RETRY_PAUSE)
    }

    /// A node lost what it had of records, or may have: it counts as having nothing before somebody looked, and the next checkpoint, which is due, puts what is lacking. One that is under way
    /// may have counted it among its copies: that one is not the last word, and what is kept on its word is looked at again too.
    pub(crate) fn doubt(&self) {
        self.is_stale.store(true, Ordering::Release);
        *self.partial.lock() = None;
        self.lacks_something();
    }

    /// The newest one is damaged, or names what is not there any more: another one is due, though nothing else changed. One that is under way may name it too.
    pub(crate) fn lacks_something(&self) {
        self.is_lacking.store(true, Ordering::Release);
        self.last.lock().covers = None;
    }

    /// Whether the newest one may lack something, though the catalog has not changed since.
    fn is_doubted(&self) -> bool {
        self.is_stale.load(Ordering::Acquire) || self.is_lacking.load(Ordering::Acquire)
    }

    /// Whether somebody waits for one that may be taken now. One that failed just now is not tried again at once, however urgent it is.
    fn is_wanted(&self, now: Monotonic) -> bool {
        let Some(is_urgent) = *self.wanted.lock() else { return false };
        let failed_at = self.last.lock().failed_at;
        let may_retry = failed_at.is_none_or(|failed| now.since(failed) >= RETRY_PAUSE);
        may_retry && (is_urgent || self.is_rested(now))
    }

    /// The checkpoint of another catalog that took the site over, if one did.
    fn superseded(&self) -> Option<ManifestId> {
        *self.superseded.lock()
    }

    /// Fails when another catalog took the site over: nothing is put, moved or deleted any more.
    pub(crate) fn check_owner(&self) -> Result<(), EngineError> {
        self.superseded().map_or(Ok(()), |newest| Err(EngineError::Superseded(newest)))
    }

    /// The last checkpoint that was begun. The next one has all that is durable now.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// Whether a checkpoint has an object among the doomed that not all nodes have that should.
    pub(crate) fn is_recorded(&self, doomed: u64) -> bool {
        self.partial.lock().as_ref().is_some_and(|partial| doomed <= partial.doomed_through)
    }

    /// Whether such a checkpoint is on that node: what is to be deleted there can be.
    pub(crate) fn is_recorded_on(&self, doomed: u64, node: NodeId) -> bool {
        let partial = self.partial.lock();
        let has = |partial: &Partial| doomed <= partial.doomed_through && partial.on.contains(&node);
        partial.as_ref().is_some_and(has)
    }

    /// The last one that is durable. Those before it are not what a catalog would be made of.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }
}

pub(crate) fn status(shared: &Shared) -> RecordStatus {
    let Some(source) = source(shared) else { return RecordStatus::default() };
    let last = shared.record.last.lock();
    RecordStatus {
        taken: last.taken,
        last_at_ms: last.at.map(WallTime::unix_millis),
        took_ms: last
            .times
            .map(|(began, ended)| u64::try_from(ended.since(began).as_millis()).unwrap_or(u64::MAX)),
        waits: last.covers.is_none_or(|covers| covers.rare != source.changes().rare),
        problem: last.problem.clone(),
    }
}

/// Whether checkpoints are taken at all.
pub(crate) fn is_on(shared: &Shared) -> bool {
    source(shared).is_some()
}

/// Up to which number objects that are to be deleted are so in a checkpoint that is durable.
pub(crate) async fn recorded_through(shared: &Shared) -> Result<u64, EngineError> {
    shared.record.check_owner()?;
    match source(shared) {
        Some(source) => until_known(shared, || source.recorded_through()).await,
        // Nothing would be made of the pool.
        None => Ok(u64::MAX),
    }
}

/// [`checkpoint`], as far as it is needed. Whether one was taken.
pub(crate) async fn checkpoint_for(shared: &Shared, need: Need) -> Result<bool, EngineError> {
    if let Need::Soon(is_urgent) = need {
        let mut wanted = shared.record.wanted.lock();
        *wanted = Some(wanted.unwrap_or_default() || is_urgent);
        return Ok(false);
    }
    if need == Need::IfRested && !shared.record.is_rested(shared.ports.clock.now()) {
        return Ok(false);
    }
    checkpoint(shared).await.map(|()| true)
}

/// Takes a checkpoint, which has everything that was durable before the call. Where nothing is recorded it is done at once.
pub(crate) async fn checkpoint(shared: &Shared) -> Result<(), EngineError> {
    let Some(source) = source(shared) else { return Ok(()) };
    let taken = match shared.record.superseded() {
        Some(newest) => Err(EngineError::Superseded(newest)),
        None => take_in_turn(shared, source).await,
    };
    if let Err(error @ EngineError::Superseded(newest)) = &taken {
        step_down(shared, *newest, error);
    }
    let mut last = shared.record.last.lock();
    last.problem = taken.as_ref().err().map(ToString::to_string);
    last.failed_at = taken.is_err().then(|| shared.ports.clock.now());
    if taken.is_ok() {
        last.taken += 1;
        last.at = Some(shared.ports.clock.wall());
    }
    taken
}

/// Waits until the first checkpoint after a start is there or has failed, for a while: that there is none before says nothing.
pub(crate) async fn until_first_tried(shared: &Shared) {
    let began = shared.ports.clock.now();
    let is_tried = |last: &Last| last.times.is_some() || last.failed_at.is_some();
    while !is_tried(&shared.record.last.lock())
        && !shared.stop.is_cancelled()
        && shared.ports.clock.now().since(began) < FIRST_LIMIT
    {
        shared.ports.clock.sleep(FIRST_PAUSE).await;
    }
}

/// Looks whether another catalog took the site over, as a checkpoint does when it is there.
async fn look_for_owner(shared: &Shared) -> Result<(), EngineError> {
    let Some(source) = source(shared) else { return Ok(()) };
    shared.record.check_owner()?;
    let incarnation = until_known(shared, || source.incarnation()).await?;
    let newest =
        store(shared)?.newest_above(incarnation).await.map_err(|error| EngineError::Pool(error.into()))?;
    newest.map_or(Ok(()), |newest| {
        let error = EngineError::Superseded(newest);
        step_down(shared, newest, &error);
        Err(error)
    })
}

/// Another catalog has the site: what is written here goes where nobody will read it, so nothing more is acknowledged. Stores have no fence that can be trusted; this is the gateway's own.
///
/// The write buffers are gone with that, and the log is all that has what was acknowledged and not destaged: from the first line on it is neither freed nor called clean
/// (`destage`), and the end of the engine is [`Engine::abandon`](crate::Engine::abandon). A batch cut before has every volume, and may be committed: the log keeps it all the same.
/// A crash at any point leaves the log too.
fn step_down(shared: &Shared, newest: ManifestId, error: &EngineError) {
    *shared.record.superseded.lock() = Some(newest);
    for volume in shared.registry.all() {
        fence(shared, &volume, error);
    }
}

async fn take_in_turn(shared: &Shared, source: &dyn RecordSource) -> Result<(), EngineError> {
    let clock = &*shared.ports.clock;
    let mut turn = shared.record.turn.lock().await;
    let number = shared.record.begun.fetch_add(1, Ordering::AcqRel) + 1;
    let (began, covers) = (clock.now(), source.changes());
    // What is on its way may be committed after the rows are read, however long ago it was made.
    let made_before = shared.in_flight.oldest_ms().unwrap_or(u64::MAX).min(clock.wall().unix_millis());
    *shared.record.wanted.lock() = None;
    shared.record.is_lacking.store(false, Ordering::Release);
    // Asked before the rows are read: rows up to it that are there later were there then.
    let doomed = source.doomed_through().await?;
    // What an error leaves is looked for again.
    let is_stale = shared.record.is_stale.swap(false, Ordering::AcqRel);
    let known = turn.take().filter(|known| !is_stale && began.since(known.found_at) < LOOK_AGAIN);
    let store = store(shared)?;
    let taken = match take(shared, source, &store, known).await {
        // Not the catalog's own disk: nothing here makes room on that.
        Err(EngineError::Pool(error)) if error.kind() == ErrorKind::OutOfSpace => {
            take_with_room(shared, source, &store, error).await?
        }
        taken => taken?,
    };
    shared.record.bad.lock().retain(|name, nodes| {
        // What no checkpoint needs any more is not put again.
        nodes.retain(|node| taken.lacks(*name, *node));
        !nodes.is_empty()
    });
    let (on, id) = (taken.taken_on(&store), taken.taken);
    *turn = Some(taken);
    match on {
        None => {
            *shared.record.partial.lock() = None;
            *shared.record.covers.lock() = id.map(|id| (id, made_before));
            shared.record.durable.store(number, Ordering::Release);
            source.recorded(doomed).await?;
        }
        Some(on) => {
            let lacking = store.lacking(&on);
            tracing::warn!(
                nodes = on.len(),
                lacking = lacking.len(),
                "a checkpoint is on fewer nodes than it should be: what is to be deleted on the others stays"
            );
            *shared.record.partial.lock() = Some(Partial { on, doomed_through: doomed });
        }
    }
    let mut last = shared.record.last.lock();
    last.times = Some((began, clock.now()));
    last.covers = (!shared.record.is_doubted()).then_some(covers);
    Ok(())
}

fn source(shared: &Shared) -> Option<&dyn RecordSource> {
    shared.config.checkpoint_interval.and_then(|_| shared.catalog.record())
}

fn store(shared: &Shared) -> Result<RecordStore, EngineError> {
    let domain = shared.domains.get(DomainId::DEFAULT)?;
    Ok(RecordStore::new(Arc::clone(&shared.pool), RecordKey::new(&domain, shared.site)))
}

/// Takes a checkpoint in a pool that is full. What is deleted when it is there is what makes room, so it gets what there is until then: first the reserve, then what older
/// checkpoints alone name. The newest one stays in any case, and the others too when that one cannot be read: somebody may need them yet.
async fn take_with_room(
    shared: &Shared,
    source: &dyn RecordSource,
    store: &RecordStore,
    full: Arc<PoolError>,
) -> Result<Known, EngineError> {
    let known = find(shared, store).await?;
    // Whoever is not the site's any more deletes nothing.
    let begun = source.next_checkpoint().await?;
    known.check(&ours(shared, source, begun).await?)?;
    store.delete_reserve().await;
    match take(shared, source, store, Some(known)).await {
        Err(EngineError::Pool(error)) if error.kind() == ErrorKind::OutOfSpace => {}
        taken => return taken,
    }
    let mut known = find(shared, store).await?;
    if known.manifests.len() > 1 && !known.is_newest_whole(store).await? {
        tracing::warn!("the newest checkpoint is not whole: older ones are kept although the pool is full");
        return Err(EngineError::Pool(full));
    }
    // Beside older ones, what tries that failed have left.
    known.tidy(store, 1).await;
    take(shared, source, store, Some(known)).await
}

/// What the pool has, but for what is known to be bad there.
async fn find(shared: &Shared, store: &RecordStore) -> Result<Known, EngineError> {
    let mut known = Known::find(store, shared.ports.clock.now()).await?;
    for (name, copies) in &*shared.record.bad.lock() {
        known.lack(*name, copies);
    }
    Ok(known)
}

/// The catalog, of which the checkpoint of that number is the last that was begun.
async fn ours(shared: &Shared, source: &dyn RecordSource, begun: u64) -> Result<Ours, EngineError> {
    let rows = until_known(shared, || shared.catalog.gateways()).await?;
    let gateways = rows.into_iter().map(|row| row.id).chain([shared.gateway]).collect();
    Ok(Ours { incarnation: source.incarnation().await?, begun, gateways })
}

async fn take(
    shared: &Shared,
    source: &dyn RecordSource,
    store: &RecordStore,
    known: Option<Known>,
) -> Result<Known, EngineError> {
    let mut known = match known {
        Some(known) => known,
        None => find(shared, store).await?,
    };
    let number = source.next_checkpoint().await?;
    let mut ours = ours(shared, source, number - 1).await?;
    known.check(&ours)?;
    let taken_at = shared.ports.clock.wall();
    // The catalog's own log grows while its rows are read.
    let progress = AtomicU64::new(0);
    let (schema, pieces) = {
        let began = shared.ports.clock.now();
        let mut bringing =
            std::pin::pin!(bring_rows(shared, source, store, &mut known, ours.incarnation, &progress));
        loop {
            let seen = progress.load(Ordering::Relaxed);
            match cairn_model::timeout(&*shared.ports.clock, READ_LIMIT, bringing.as_mut()).await {
                Ok(brought) => break brought?,
                Err(_) if progress.load(Ordering::Relaxed) == seen => {
                    return Err(EngineError::PoolSilent(READ_LIMIT.as_secs()));
                }
                Err(_) if shared.ports.clock.now().since(began) >= READ_LIMIT_IN_ALL => {
                    return Err(EngineError::CheckpointTooLong(READ_LIMIT_IN_ALL.as_secs() / 3600));
                }
                Err(_) => {}
            }
        }
    };
    let id = ManifestId { incarnation: ours.incarnation, number, gateway: shared.gateway };
    let manifest = Manifest { id, schema, taken_at, pieces };
    let mut copies = Copies::new();
    store.put_manifest(&manifest, &*shared.ports.entropy, &mut copies).await?;
    known.manifests.insert(id, KnownManifest { copies, content: Content::Pieces(pieces_of(&manifest)) });
    ours.begun = number;
    // Whoever took the site over says so before it deletes anything.
    for (other, copies) in store.manifests().await? {
        match known.manifests.get_mut(&other) {
            Some(known) => known.copies.extend(copies),
            None => drop(known.manifests.insert(other, KnownManifest::open(store, other, copies).await)),
        }
    }
    known.check(&ours)?;
    known.taken = Some(id);
    known.tidy(store, MANIFESTS_KEPT).await;
    Ok(known)
}

/// A time before which segments were made that the checkpoint has, or is without for good, with which a recovery would begin; in milliseconds since 1970. `None`: there is no checkpoint. An error where that is not known.
pub(crate) async fn newest_covers(shared: &Shared) -> Result<Option<u64>, EngineError> {
    let store = store(shared)?;
    let known = find(shared, &store).await?;
    let Some(id) = known.to_recover_from(&store) else { return Ok(None) };
    let margin = |of: Duration| u64::try_from(of.as_millis()).unwrap_or(u64::MAX);
    let own = shared.record.covers.lock().filter(|(taken, _)| *taken == id);
    if let Some((_, made_before)) = own {
        return Ok(Some(made_before.saturating_sub(margin(PACKING_MARGIN))));
    }
    // What was on its way then may have waited for long.
    let manifest = store.read_manifest(id).await.map_err(|error| EngineError::Pool(error.into()))?;
    Ok(Some(manifest.taken_at.unix_millis().saturating_sub(margin(UNKNOWN_MARGIN))))
}

/// What is wrong with the checkpoints of a catalog.
pub(crate) enum RecordProblem {
    /// The pool has a later catalog of the site, or a later copy of this one.
    Outdated(EngineError),
    /// The newest would be of no use.
    NotWhole(&'static str),
}

/// What is wrong with the newest checkpoint, if anything is. For whoever only looks.
pub(crate) async fn newest_problem(
    store: &RecordStore,
    catalog: &dyn Catalog,
    source: &dyn RecordSource,
    now: Monotonic,
) -> Result<Option<RecordProblem>, EngineError> {
    let known = Known::find(store, now).await?;
    // Asked after the list: what is in it had its number before.
    let gateways = catalog.gateways().await?.into_iter().map(|row| row.id).collect();
    let ours =
        Ours { incarnation: source.incarnation().await?, begun: source.last_checkpoint().await?, gateways };
    match known.check(&ours) {
        Ok(()) => {}
        // Nobody can tell.
        Err(error @ EngineError::Pool(_)) => return Err(error),
        Err(error) => return Ok(Some(RecordProblem::Outdated(error))),
    }
    Ok(if known.manifests.is_empty() {
        Some(RecordProblem::NotWhole("the pool has none"))
    } else if known.is_newest_whole(store).await? {
        None
    } else {
        Some(RecordProblem::NotWhole("not all of it is on as many nodes as it takes, or can be read"))
    })
}

/// Takes a checkpoint that is whole in the place of one that is not: nothing is believed of what the pool has, everything that it names is read, and what is not good is put again. What is wrong
/// with it still, if anything is.
pub(crate) async fn make_whole(shared: &Shared) -> Result<Option<String>, EngineError> {
    let Some(source) = source(shared) else { return Ok(None) };
    shared.record.doubt();
    checkpoint(shared).await?;
    if look_over(shared).await? > 0 {
        checkpoint(shared).await?;
    }
    let problem = newest_problem(&store(shared)?, &*shared.catalog, source, shared.ports.clock.now()).await?;
    Ok(problem.map(|problem| match problem {
        RecordProblem::Outdated(error) => error.to_string(),
        RecordProblem::NotWhole(reason) => reason.to_owned(),
    }))
}

/// Fails when the pool has a later catalog of the site than this one.
pub(crate) async fn check_newest(shared: &Shared) -> Result<(), EngineError> {
    shared.record.check_owner()?;
    let Some(source) = source(shared) else { return Ok(()) };
    let known = find(shared, &store(shared)?).await?;
    // Asked after the list: what is in it had its number before.
    known.check(&ours(shared, source, source.last_checkpoint().await?).await?)
}

/// Brings the rows of one moment to the pool, and counts its steps. Returns their schema and the pieces that they are in.
async fn bring_rows(
    shared: &Shared,
    source: &dyn RecordSource,
    store: &RecordStore,
    known: &mut Known,
    incarnation: u64,
    progress: &AtomicU64,
) -> Result<(u64, Vec<ManifestPiece>), EngineError> {
    let mut reader = source.read_record().await?;
    let mut cutter = PieceCutter::new(store.key().clone(), incarnation, shared.gateway);
    let (mut pieces, mut puts) = (Vec::new(), FuturesUnordered::new());
    let put = |piece: SealedPiece, mut copies: Copies| async move {
        let put = store.put_piece(&piece, &mut copies).await;
        progress.fetch_add(1, Ordering::Relaxed);
        put.map(|()| (piece.name, copies))
    };
    while let Some(rows) = reader.next().await? {
        progress.fetch_add(1, Ordering::Relaxed);
        let cut = move || {
            let complete = cutter.push(&rows.head, &rows.rows);
            (cutter, complete)
        };
        let (returned, complete) = shared.compute.run(cut).await?;
        cutter = returned;
        for piece in complete {
            pieces.push(named(&piece));
            while puts.len() >= PIECES_AT_ONCE
                && let Some(put) = puts.next().await
            {
                let (name, copies) = put?;
                known.brought(name, copies);
            }
            let copies = known.copies_of(&piece);
            puts.push(put(piece, copies));
        }
    }
    if let Some(piece) = cutter.finish() {
        pieces.push(named(&piece));
        let copies = known.copies_of(&piece);
        puts.push(put(piece, copies));
    }
    while let Some(put) = puts.next().await {
        let (name, copies) = put?;
        known.brought(name, copies);
    }
    Ok((reader.schema(), pieces))
}

fn named(piece: &SealedPiece) -> ManifestPiece {
    ManifestPiece { name: piece.name, length_bytes: piece.length_bytes(), rows: piece.rows }
}

#[cfg(test)]
mod tests;
