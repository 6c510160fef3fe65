//! The task: looks at nodes, goes through what is to be done in the order of danger, rests.

mod nodes;

pub(super) use nodes::is_there;

use super::examine::{Found, examine, is_absent, unreadable};
use super::plan::{Plan, View, Wait};
use super::status::{HealKind, HealProgress, Healed, eta, progress};
use super::step::{Outcome, Step, delete_strays, place_of};
use super::watch::Watch;
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use crate::reclaim::delete_doomed_beside;
use cairn_metadata::{NodeState, NodeUsage, SegmentPlace};
use cairn_model::{ErrorKind, Kinded, Monotonic, NodeId, Profile, SegmentId};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Segments of one question to the catalog.
const PAGE: u32 = 500;
/// Segments after which it is asked what has come up.
const BETWEEN_LOOKS: usize = 32;
/// Segments under way at the same time.
const AT_ONCE: usize = 2;
/// The same when the next loss may be one too many.
const AT_ONCE_AT_RISK: usize = 4;
/// The same when it is only asked whether a shard is there: what is missing is to be known, and made anew, before more is lost.
const AT_ONCE_LOOKED_FOR: usize = 16;
/// Failures in a row that end a pass: the next segments would fail too. The next one goes on behind them.
const FAILURES_MAX: u32 = 8;
/// Before it is begun anew because nodes or the profile have changed.
const CHANGE_PAUSE: Duration = Duration::from_millis(200);
/// Objects that are deleted before something else is looked at; the rest is for the next time, or for reclaim.
const DELETED_AT_ONCE: u64 = 256;
/// The part of the time that is spent on what cannot be done: looking through the catalog for it is work.
const REST_FACTOR: u32 = 4;

/// Heals until the engine stops.
pub(crate) async fn heal_until_stopped(shared: Arc<Shared>) {
    let clock = &*shared.ports.clock;
    let mut healer = Healer::new(&shared);
    let mut rest = Duration::ZERO;
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = shared.heal.wake.notified() => {}
            () = clock.sleep(rest) => {}
        }
        let began = clock.now();
        let done = healer.round().await;
        let took = clock.now().since(began);
        let mut status = shared.heal.status.lock();
        status.work = None;
        rest = shared.config.heal_interval;
        match done {
            Ok(true) => {
                status.problem = None;
                status.settled_at_ms = Some(clock.wall().unix_millis());
            }
            Ok(false) => {
                status.problem = None;
                rest = rest.max(took * REST_FACTOR);
            }
            Err(EngineError::Stopped) => return,
            Err(error) => {
                if status.problem.is_none() {
                    tracing::warn!(%error, "healing the pool does not go on; will try again");
                }
                status.problem = Some(error.to_string());
                rest = rest.max(took * REST_FACTOR);
            }
        }
    }
}

/// Where segments that may be to heal are found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Source {
    Degraded,
    On(NodeId),
    OtherProfile(Profile),
    All,
}

/// One way through some segments.
#[derive(Clone, Copy, Debug)]
struct Pass {
    kind: HealKind,
    source: Source,
    /// Segments in it, by an estimate.
    total: u64,
}

/// How a pass ended.
enum Ended {
    Through,
    /// Too much failed, or it began where another one had ended for that: not all of it was looked at.
    Partly,
    /// Nodes or the profile have changed.
    Changed,
}

struct Healer<'a> {
    shared: &'a Shared,
    watch: Watch,
    /// When a node was last known to answer or not, and how many requests had succeeded then.
    probed: HashMap<NodeId, Probe>,
    /// Nodes that lack something they should have: how far their shards were looked at.
    checks: BTreeMap<NodeId, Option<SegmentId>>,
    /// With these nodes and this profile a sweep found everything in its place.
    settled: Option<View>,
    /// The nodes and the profile of the pass under way: what took puts, and had room, all the time.
    throughout: Option<View>,
    looked_at: Option<Monotonic>,
    waiting: u64,
    waits_for: Option<Wait>,
    /// Steps that failed in a row.
    failures: u32,
    /// Where passes ended because too much failed.
    cursors: HashMap<(HealKind, Source), SegmentId>,
    /// The first problem of the round that did not end it.
    problem: Option<EngineError>,
    /// Nodes of the pool that had no row in the catalog at the last look.
    without_row: BTreeSet<NodeId>,
    /// Objects that are to be deleted were dealt with up to this one. What could not be deleted then is for reclaim, or for when its node is back.
    doomed_through: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    at: Monotonic,
    successes: u64,
    /// As of the last look.
    errors: u64,
    answers: bool,
}

impl<'a> Healer<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            watch: Watch::default(),
            probed: HashMap::new(),
            checks: BTreeMap::new(),
            settled: None,
            throughout: None,
            looked_at: None,
            waiting: 0,
            waits_for: None,
            failures: 0,
            cursors: HashMap::new(),
            problem: None,
            without_row: BTreeSet::new(),
            doomed_through: None,
        }
    }

    /// Does all there is to do at the moment. Whether nothing is left.
    async fn round(&mut self) -> Result<bool, EngineError> {
        self.problem = None;
        loop {
            let mut view = self.look().await?;
            (self.waiting, self.waits_for) = (0, None);
            if self.go_through(&mut view).await? {
                break;
            }
            // Something that changes all the time is not followed at any price.
            self.shared.ports.clock.sleep(CHANGE_PAUSE).await;
        }
        {
            let mut status = self.shared.heal.status.lock();
            status.waiting_segments = self.waiting;
            status.waits_for = self.waits_for.map(|wait| wait.to_string());
        }
        match self.problem.take() {
            Some(problem) => Err(problem),
            None => Ok(self.waiting == 0),
        }
    }

    /// Whether everything was gone through before something changed.
    async fn go_through(&mut self, view: &mut View) -> Result<bool, EngineError> {
        self.replace_unreadable(view).await?;
        for pass in self.passes(view).await? {
            let (waiting, had_problem) = (self.waiting, self.problem.is_some());
            let ended = self.pass(view, pass).await?;
            match (pass.kind, pass.source) {
                _ if matches!(ended, Ended::Changed) => return Ok(false),
                (HealKind::Check, Source::On(node)) => {
                    self.checks.remove(&node);
                }
                (HealKind::Rebalance, _)
                    if matches!(ended, Ended::Through)
                        && self.waiting == waiting
                        && self.problem.is_some() == had_problem =>
                {
                    self.settled = self.throughout.take();
                }
                _ => {}
            }
        }
        Ok(true)
    }

    /// What there is to go through, the most dangerous first.
    async fn passes(&self, view: &View) -> Result<Vec<Pass>, EngineError> {
        let catalog = &self.shared.catalog;
        let totals = until_known(self.shared, || catalog.totals()).await?;
        let usage = until_known(self.shared, || catalog.node_usage()).await?;
        let held = |node: NodeId| {
            let of = |usage: &&NodeUsage| usage.node == node;
            usage.iter().find(of).map_or(0, |usage| usage.shards)
        };
        let on = |kind, state| {
            let nodes = view.nodes.iter().filter(move |node| node.state == state);
            let nodes = nodes.map(|node| node.candidate.id).filter(|node| held(*node) > 0);
            nodes
                .map(move |node| Pass { kind, source: Source::On(node), total: held(node) })
                .collect::<Vec<_>>()
        };
        let missing = |kind| {
            let degraded = Pass { kind, source: Source::Degraded, total: totals.degraded_segments };
            std::iter::once(degraded).chain(on(kind, NodeState::Failed))
        };
        // What is known to be at risk, before it is looked for what else is; and then that.
        let mut passes: Vec<Pass> = missing(HealKind::Rescue).collect();
        for node in self.checks.keys() {
            passes.push(Pass { kind: HealKind::Check, source: Source::On(*node), total: held(*node) });
            passes.extend(missing(HealKind::Rescue));
        }
        passes.extend(missing(HealKind::Repair));
        passes.extend(on(HealKind::Drain, NodeState::Draining));
        let source = Source::OtherProfile(view.profile);
        passes.push(Pass { kind: HealKind::Conversion, source, total: totals.segments });
        if !self.settled.as_ref().is_some_and(|settled| settled.covers(view)) {
            passes.push(Pass { kind: HealKind::Rebalance, source: Source::All, total: totals.segments });
        }
        Ok(passes)
    }

    async fn page(&self, source: Source, after: Option<SegmentId>) -> Result<Vec<SegmentPlace>, EngineError> {
        let catalog = &self.shared.catalog;
        match source {
            Source::Degraded => until_known(self.shared, || catalog.degraded_segments(after, PAGE)).await,
            Source::On(node) => until_known(self.shared, || catalog.segments_on(node, after, PAGE)).await,
            Source::OtherProfile(than) => {
                until_known(self.shared, || catalog.segments_of_other_profile(than, after, PAGE)).await
            }
            Source::All => until_known(self.shared, || catalog.segment_places(after, PAGE)).await,
        }
    }

    async fn pass(&mut self, view: &mut View, pass: Pass) -> Result<Ended, EngineError> {
        let clock = &*self.shared.ports.clock;
        let began = clock.now();
        let mut report = progress(pass.kind, clock.wall(), pass.total);
        let mut after = match (pass.kind, pass.source) {
            (HealKind::Check, Source::On(node)) => self.checks.get(&node).copied().flatten(),
            _ => self.cursors.remove(&(pass.kind, pass.source)),
        };
        self.failures = 0;
        self.throughout = Some(view.clone());
        let ended = if after.is_none() { Ended::Through } else { Ended::Partly };
        loop {
            let page = self.page(pass.source, after).await?;
            let Some(last) = page.last().map(|segment| segment.id) else { return Ok(ended) };
            let to_do: Vec<&SegmentPlace> =
                page.iter().filter(|segment| is_to_do(view, pass.kind, segment)).collect();
            report.segments_done += (page.len() - to_do.len()) as u64;
            for some in to_do.chunks(BETWEEN_LOOKS) {
                let healed = self.heal_some(view, pass, some).await?;
                report.segments_done += some.len() as u64;
                report.bytes += healed.bytes;
                report.eta_seconds =
                    eta(clock.now().since(began), report.segments_done, report.segments_total);
                self.tell_progress(&report, &healed);
                self.tidy(healed.segments + healed.lost > 0).await?;
                if self.failures >= FAILURES_MAX {
                    self.cursors.insert((pass.kind, pass.source), some.last().expect("a chunk has one").id);
                    return Ok(Ended::Partly);
                }
                if self.has_changed(view).await? {
                    return Ok(Ended::Changed);
                }
            }
            after = Some(last);
            if let (HealKind::Check, Source::On(node)) = (pass.kind, pass.source) {
                self.checks.insert(node, after);
            }
            if self.has_changed(view).await? {
                return Ok(Ended::Changed);
            }
        }
    }

    /// Looks at nodes when it is time. Whether there is something else to do now.
    async fn has_changed(&mut self, view: &mut View) -> Result<bool, EngineError> {
        if !self.is_look_due() {
            return Ok(false);
        }
        let before = std::mem::replace(view, self.look().await?);
        if let Some(throughout) = &mut self.throughout {
            throughout.weaken(view);
        }
        Ok(!view.is_like(&before))
    }

    /// Shards that cannot be read although their nodes answer are made anew from the others. They are what they are until their successors are there: a node may only be slow.
    async fn replace_unreadable(&mut self, view: &View) -> Result<(), EngineError> {
        let shared = self.shared;
        let turn = shared.heal.turn.lock().await;
        let given_up = unreadable(shared);
        for (id, index) in &given_up {
            let (id, index) = (*id, *index);
            let Some(segment) = place_of(shared, id).await? else { continue };
            if segment.place.placement.shards().get(index).copied().flatten().is_none() {
                continue;
            }
            tracing::warn!(
                key = segment.place.key,
                index,
                "a shard cannot be read although its node answers: it is made anew"
            );
            let step = Step { shared, view, rebalance: false };
            match step.heal(&segment, &[index]).await {
                Ok(Outcome::Healed(healed)) => shared.heal.status.lock().total.add(&healed),
                Ok(Outcome::Fine | Outcome::Changed) => {}
                Ok(Outcome::Waits(wait)) => {
                    self.waiting += 1;
                    self.waits_for.get_or_insert(wait);
                }
                Err(error) => {
                    self.problem.get_or_insert(error);
                }
            }
        }
        drop(turn);
        self.tidy(!given_up.is_empty()).await
    }

    fn tell_progress(&self, report: &HealProgress, healed: &Healed) {
        let mut status = self.shared.heal.status.lock();
        status.work = Some(report.clone());
        status.total.add(healed);
    }

    /// Heals some segments, a few at a time.
    async fn heal_some(
        &mut self,
        view: &View,
        pass: Pass,
        some: &[&SegmentPlace],
    ) -> Result<Healed, EngineError> {
        let shared = self.shared;
        let _turn = shared.heal.turn.lock().await;
        let step = Step { shared, view, rebalance: pass.kind == HealKind::Rebalance };
        let at_once = match pass.kind {
            HealKind::Rescue => AT_ONCE_AT_RISK,
            HealKind::Check => AT_ONCE_LOOKED_FOR,
            _ => AT_ONCE,
        };
        let (mut rest, mut under_way, mut healed) = (some.iter(), FuturesUnordered::new(), Healed::default());
        loop {
            while under_way.len() < at_once && !shared.stop.is_cancelled() && self.failures < FAILURES_MAX {
                let Some(segment) = rest.next() else { break };
                under_way.push(one(&step, pass, segment));
            }
            let Some(done) = under_way.next().await else { break };
            match done {
                Ok(Outcome::Fine | Outcome::Changed) => self.failures = 0,
                Ok(Outcome::Healed(more)) => {
                    healed.add(&more);
                    self.failures = 0;
                }
                Ok(Outcome::Waits(wait)) => {
                    // A pass for those at risk is followed by one for all.
                    if pass.kind != HealKind::Rescue {
                        self.waiting += 1;
                        self.waits_for.get_or_insert(wait);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a segment is not healed; it will be tried again");
                    // What is wrong with one segment says nothing about the next.
                    let may_concern_all =
                        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutOfSpace);
                    self.failures += u32::from(may_concern_all);
                    self.problem.get_or_insert(error);
                }
            }
        }
        if shared.stop.is_cancelled() {
            return Err(EngineError::Stopped);
        }
        Ok(healed)
    }

    /// Readers learn of new places, and what is not needed any more is deleted.
    async fn tidy(&mut self, is_left_over: bool) -> Result<(), EngineError> {
        let moved = std::mem::take(&mut *self.shared.heal.moved.lock());
        if !moved.is_empty() {
            self.shared.chunks.forget_segments(&moved);
            // What could not be moved for damage may be whole now.
            self.shared.reclaim.try_stuck_again(&moved);
        }
        delete_strays(self.shared, self.shared.pool.take_strays(), DELETED_AT_ONCE).await;
        if is_left_over {
            delete_doomed_beside(self.shared, &mut self.doomed_through, DELETED_AT_ONCE).await?;
        }
        Ok(())
    }

    fn is_look_due(&self) -> bool {
        let now = self.shared.ports.clock.now();
        self.looked_at.is_none_or(|at| now.since(at) >= self.shared.config.heal_interval)
    }
}

/// What a pass does about one segment.
async fn one(step: &Step<'_>, pass: Pass, segment: &SegmentPlace) -> Result<Outcome, EngineError> {
    let (HealKind::Check, Source::On(node)) = (pass.kind, pass.source) else {
        return step.heal(segment, &[]).await;
    };
    let Some(index) = index_on(segment, node) else { return Ok(Outcome::Changed) };
    if !is_absent(step.shared, segment, index).await {
        return Ok(Outcome::Fine);
    }
    let lost = match examine(step.shared, segment, index).await? {
        Found::Lost(_) => 1,
        Found::Whole | Found::BeyondRepair(_) | Found::Changed | Found::Unread => 0,
    };
    Ok(Outcome::Healed(Healed { lost, ..Healed::default() }))
}

/// Whether a segment is one of those that a pass is for.
fn is_to_do(view: &View, kind: HealKind, segment: &SegmentPlace) -> bool {
    match kind {
        HealKind::Rescue => view.is_at_risk(&segment.place, &[]),
        HealKind::Rebalance => {
            !matches!(view.plan(segment.id, &segment.place, &[], true), Plan::Done | Plan::Waits(_))
        }
        HealKind::Check | HealKind::Repair | HealKind::Drain | HealKind::Conversion => true,
    }
}

/// Which shard of a segment is on a node.
fn index_on(segment: &SegmentPlace, node: NodeId) -> Option<usize> {
    segment.place.placement.present().find(|(_, shard)| shard.node == node).map(|(index, _)| index)
}
