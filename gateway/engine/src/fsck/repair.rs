//! A plan is carried out.
//!
//! ```text
//! sums: counted, and what lacks is added ─► needed objects are doomed no more ─► shards: read whole, given up, made anew by healing ─► checkpoint, if the record is bad
//! ─► everything that was written is destaged ─► objects that nothing names are doomed ─► a checkpoint that has them among the doomed ─► deleted, forgotten
//! ```
//!
//! A plan may be old, so nothing of it is believed:
//! - sums are counted anew;
//! - an object is taken from the doomed in a transaction that finds that a segment names it;
//! - a shard is read whole, as scrub does, and given up only if it is bad and enough others are whole. What cannot be given up so is told;
//! - an object is doomed in a transaction that finds that no segment names it and it is not doomed. Its segment is not on its way (`in_flight`), and no segment is being healed meanwhile. From then on the
//!   catalog refuses to name it. Whose it is was read when the plan was made: keys are used once, so that stays true.
//!
//! Why a deleted object is never needed:
//! - *by this catalog*: see above. Objects of the log's writes are not named before they are committed, and then they are not on their way any more;
//! - *by a recovery* from the newest durable checkpoint: it is deleted as all that is doomed is (`reclaim::doomed`), only after a checkpoint that has its row among the doomed is durable. That one does
//!   not name it, and a recovery leaves out segments that are doomed: a batch that was put and not committed before its gateway died is not taken up then. What it held is in the catalog before
//!   that checkpoint, if it was acknowledged and the log had it: everything is destaged first. Without that, and without a checkpoint, nothing is deleted;
//! - *by a later catalog* of the site, when this one was put back from a copy or taken over from: it has a later checkpoint in the pool, or the footers of the very objects tell of writes that this one
//!   does not have although everything is destaged (`later`), and then nothing is doomed;
//! - *by another node* that is in the place of one by now: each is asked who it is before anything on it is doomed;
//! - *by another gateway*: while another one holds a volume, and as long as nobody took that from it, since its clock is not ours, it may have put what this one knows nothing of, and nothing is doomed. A catalog that another one has taken over from deletes nothing.
//!
//! Crash cases: between any two steps the rest of the plan is undone, and the next check finds it again. What was doomed is deleted by the next pass of reclaim.

use super::later::{Asked, Held, Later, lacking};
use super::report::Many;
use super::{Fsck, Plan, source};
use crate::engine::{Engine, Shared, until_known};
use crate::error::EngineError;
use crate::heal::{Found, examine, place_of};
use crate::record::{check_newest, make_whole};
use cairn_metadata::{CheckSource, UnnamedObject};
use cairn_model::{NodeId, SegmentId, boxed};
use serde::Serialize;
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

/// Objects doomed by one transaction.
const DOOMED_AT_ONCE: usize = 200;
/// What is left undone of them.
const ORPHANS: &str = "of objects that nothing names";
/// How long deleting waits for what else deletes, and for the pool, while nothing of it gets done.
const PATIENCE: Duration = Duration::from_mins(10);

/// What a repair did.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Repaired {
    /// Objects that nothing named, which are to be deleted or are; and their bytes.
    pub orphans: u64,
    pub orphan_bytes: u64,
    /// Whether they are deleted; otherwise reclaim does that.
    pub deleted: bool,
    /// Shards that were given up: healing makes them anew.
    pub shards: u64,
    /// Shards that were right when they were looked at again, or elsewhere.
    pub shards_right: u64,
    /// Sums that were set.
    pub sums: u64,
    /// Objects that a segment names, and that were not deleted yet or may not have been.
    pub kept: u64,
    /// A checkpoint was taken in the place of one that could not be read, and can be.
    pub checkpoint: bool,
    /// What was not done, and why: the first of each kind, and how many more there are. `left_count` are all.
    pub left: Vec<String>,
    pub left_count: u64,
}

/// What is being done.
#[derive(Default)]
struct Work {
    repaired: Repaired,
    left: Many,
}

impl Work {
    /// `kind` says in the plural what it is.
    fn left(&mut self, kind: &'static str, what: String) {
        self.left.add(kind, what);
    }

    fn done(self) -> Repaired {
        let left_count = self.left.count();
        Repaired { left: self.left.into_lines(), left_count, ..self.repaired }
    }
}

impl Fsck {
    /// Carries out the plan of the last check. One that is not the last is refused: check again.
    #[boxed]
    pub async fn repair(&self, engine: &Engine, plan: u64) -> Result<Repaired, EngineError> {
        let _turn = self.turn.try_lock().map_err(|_| EngineError::FsckUnderWay)?;
        let plan = self.take_plan(plan)?;
        let shared = engine.shared();
        shared.record.check_owner()?;
        let source = source(&*shared.catalog)?;
        let mut work = Work::default();
        if !plan.sums.is_empty() {
            work.repaired.sums = source.recount(&plan.sums.leaves).await?.len() as u64;
        }
        for some in plan.doomed.chunks(DOOMED_AT_ONCE) {
            work.repaired.kept += until_known(shared, || source.keep_named(some)).await?;
        }
        for (segment, index) in &plan.shards {
            stop_if_asked(shared)?;
            give_up_shard(shared, *segment, *index, &mut work).await?;
        }
        if work.repaired.shards > 0 {
            shared.heal.wake();
        }
        if plan.is_record_bad {
            let left = match make_whole(shared).await {
                Ok(None) => None,
                Ok(Some(problem)) => Some(format!("the newest checkpoint is not whole yet: {problem}")),
                Err(error) => Some(format!("no checkpoint was taken: {error}")),
            };
            work.repaired.checkpoint = left.is_none();
            if let Some(left) = left {
                work.left("checkpoints", left);
            }
        }
        if !plan.orphans.is_empty() {
            delete_orphans(engine, source, &plan, &mut work).await?;
        }
        Ok(work.done())
    }
}

fn stop_if_asked(shared: &Shared) -> Result<(), EngineError> {
    if shared.stop.is_cancelled() { Err(EngineError::Stopped) } else { Ok(()) }
}

async fn give_up_shard(
    shared: &Shared,
    id: SegmentId,
    index: usize,
    work: &mut Work,
) -> Result<(), EngineError> {
    let Some(segment) = place_of(shared, id).await? else {
        work.repaired.shards_right += 1;
        return Ok(());
    };
    if segment.place.placement.shards().get(index).copied().flatten().is_none() {
        // Somebody gave it up before.
        work.repaired.shards_right += 1;
        return Ok(());
    }
    match examine(shared, &segment, index).await? {
        Found::Lost(_) => work.repaired.shards += 1,
        Found::Whole | Found::Changed => work.repaired.shards_right += 1,
        Found::BeyondRepair(_) => {
            let text = format!("shard {index} of segment {id}: too few others are whole to make it anew");
            work.left("shards without enough others", text);
        }
        Found::Unread => {
            let text = format!("shard {index} of segment {id} cannot be read now: its node does not answer");
            work.left("shards on nodes that do not answer", text);
        }
    }
    Ok(())
}

async fn delete_orphans(
    engine: &Engine,
    source: &dyn CheckSource,
    plan: &Plan,
    work: &mut Work,
) -> Result<(), EngineError> {
    let shared = engine.shared();
    let needed = match why_they_stay(engine, source, plan).await? {
        Ok(needed) => needed,
        Err(why) => {
            work.left(ORPHANS, format!("{} objects that nothing names stay: {why}", plan.orphans.len()));
            return Ok(());
        }
    };
    let mut others: BTreeSet<NodeId> = BTreeSet::new();
    for node in plan.orphans.iter().map(|object| object.node).collect::<BTreeSet<_>>() {
        if let Err(error) = shared.pool.look_who(node).await {
            let count = plan.orphans.iter().filter(|object| object.node == node).count();
            work.left(ORPHANS, format!("{count} objects that nothing names stay: {error}"));
            others.insert(node);
        }
    }
    let mut doomed: HashSet<(NodeId, String)> = HashSet::new();
    for some in plan.orphans.chunks(DOOMED_AT_ONCE) {
        stop_if_asked(shared)?;
        let _turn = shared.heal.own_turn().await;
        let is_open = |object: &&UnnamedObject| {
            !others.contains(&object.node)
                && !shared.in_flight.contains(object.segment)
                && !shared.heal.deals_with(object.node, &object.key)
        };
        let mut objects: Vec<UnnamedObject> = some.iter().filter(is_open).cloned().collect();
        let of = objects.iter().map(|object| object.segment).collect();
        let mut stays = lacking(source, of).await?;
        stays.extend(objects.iter().map(|object| object.segment).filter(|id| needed.contains(id)));
        objects.retain(|object| !stays.contains(&object.segment));
        if !stays.is_empty() {
            let text = format!(
                "objects of {} segments stay: they may be needed by something that lacks shards now",
                stays.len()
            );
            work.left(ORPHANS, text);
        }
        let (count, bytes) = until_known(shared, || source.doom_unnamed(&objects)).await?;
        work.repaired.orphans += count;
        work.repaired.orphan_bytes += bytes;
        doomed.extend(objects.into_iter().map(|object| (object.node, object.key)));
    }
    let mut left = doomed.len();
    let problem = loop {
        let done = engine.delete_left_over(PATIENCE).await;
        let before = std::mem::replace(&mut left, count_doomed(shared, &doomed).await?);
        match done {
            Ok(()) => break "their nodes do not answer".to_owned(),
            Err(error) if error.is_of_another_catalog() => return Err(error),
            // There are many.
            Err(EngineError::PoolSilent(_)) if left < before => stop_if_asked(shared)?,
            Err(error) => break error.to_string(),
        }
    };
    work.repaired.deleted = left == 0;
    if left > 0 {
        work.left(ORPHANS, format!("{left} objects are not deleted yet, reclaim goes on with it: {problem}"));
    }
    Ok(())
}

/// Which segments that nothing names stay, when everything that can be is in the pool and the catalog; or why all do.
async fn why_they_stay(
    engine: &Engine,
    source: &dyn CheckSource,
    plan: &Plan,
) -> Result<Result<BTreeSet<SegmentId>, String>, EngineError> {
    let shared = engine.shared();
    if let Some(volume) = held_elsewhere(shared).await? {
        return Ok(Err(format!("another gateway holds volume {volume}, and may be about to commit them")));
    }
    // A copy of the catalog from before does not name what was written since.
    check_newest(shared).await?;
    let limit = shared.config.read_deadline;
    let destaged = cairn_model::timeout(&*shared.ports.clock, limit, engine.destage()).await;
    if let Err(error) = destaged.unwrap_or(Err(EngineError::PoolSilent(limit.as_secs()))) {
        return Ok(Err(format!("what was written is not in the pool yet ({error})")));
    }
    let asked = Asked {
        site: shared.site,
        catalog: &*shared.catalog,
        source,
        pool: &shared.pool,
        domains: &shared.domains,
        beside: Some(shared),
        counts_log: false,
        is_all_there: plan.is_all_there,
        not_whole: None,
    };
    let Held { later, needed } = asked.held(&plan.orphans).await?;
    Ok(match later {
        None => Ok(needed),
        Some(Later::Writes(text)) => Err(text),
        Some(Later::Unknown(text)) => Err(format!("what they hold cannot be read ({text})")),
    })
}

/// How many of the objects are doomed yet.
async fn count_doomed(shared: &Shared, objects: &HashSet<(NodeId, String)>) -> Result<usize, EngineError> {
    let (mut after, mut count) = (None, 0);
    loop {
        let page = until_known(shared, || shared.catalog.doomed_objects(after, 1000)).await?;
        let Some(last) = page.last() else { return Ok(count) };
        after = Some(last.id);
        count += page.into_iter().filter(|row| objects.contains(&(row.node, row.key.clone()))).count();
    }
}

/// A volume that another gateway holds.
async fn held_elsewhere(shared: &Shared) -> Result<Option<String>, EngineError> {
    let volumes = until_known(shared, || shared.catalog.volumes()).await?;
    let is_elsewhere = |volume: &cairn_metadata::VolumeRow| {
        volume.holder.as_ref().is_some_and(|holder| holder.gateway != shared.gateway)
    };
    Ok(volumes.iter().find(|volume| is_elsewhere(volume)).map(|volume| volume.name.to_string()))
}
