//! The task: looks at nodes, goes through what is to be done in the order of danger, rests.

mod check;
mod nodes;

pub(super) use nodes::is_there;

use super::examine::{are_any_given_up, remember_unread, unreadable};
use super::plan::{Node, Plan, View, Wait};
use super::status::{HealKind, HealProgress, Healed, eta, progress};
use super::step::{Outcome, Step, delete_strays, place_of};
use super::watch::Watch;
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use crate::reclaim::delete_doomed_beside;
use crate::record::Need;
use cairn_metadata::{NodeState, NodeUsage, SegmentPlace};
use cairn_model::{ErrorKind, Kinded, Monotonic, NodeId, Profile, SegmentId};
use check::{Check, Checking};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Segments of one question to the catalog.
const PAGE: u32 = 500;
/// Segments after which it is asked what has come up.
const BETWEEN_LOOKS: usize = 32;
/// Segments under way at the same time.
const AT_ONCE: usize = 2;
/// The same when the next loss may be one too many.
const AT_ONCE_AT_RISK: usize = 4;
/// The same when it is only asked whether a shard is there. What is not is examined, and made anew if the next loss may be one too many, by [`AT_ONCE_AT_RISK`].
const AT_ONCE_LOOKED_FOR: usize = 16;
/// Failures in a row that end a pass: the next segments would fail too. The next one goes on behind them.
const FAILURES_MAX: u32 = 8;
/// Before it is begun anew because nodes or the profile have changed.
const CHANGE_PAUSE: Duration = Duration::from_millis(200);
/// Objects that are deleted before something else is looked at; the rest is for the next time, or for reclaim.
const DELETED_AT_ONCE: u64 = 256;
/// The part of the time that is spent on what cannot be done: looking through the catalog for it is work.
const REST_FACTOR: u32 = 4;
/// The same in looks, at most: what ended a long round may be over long before.
const RESTS_MAX: u32 = 30;

/// Heals until the engine stops.
pub(crate) async fn heal_until_stopped(shared: Arc<Shared>) {
    let clock = &*shared.ports.clock;
    let mut healer = Healer::new(&shared);
    let (mut rest, mut rests_until) = (Duration::ZERO, clock.now());
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = shared.heal.wake.notified() => rests_until = clock.now(),
            () = clock.sleep(rest) => {}
        }
        if clock.now() < rests_until && !healer.has_news().await {
            rest = rests_until.since(clock.now()).min(shared.config.heal_interval);
            continue;
        }
        let began = clock.now();
        let done = healer.round().await;
        let took = clock.now().since(began);
        let mut status = shared.heal.status.lock();
        status.work = None;
        rest = shared.config.heal_interval;
        // Nodes and what is found damaged are looked at all the same.
        let pause = rest.max(took.saturating_mul(REST_FACTOR).min(rest * RESTS_MAX));
        rests_until = clock.now();
        match done {
            Ok(true) => {
                status.problem = None;
                status.settled_at_ms = Some(clock.wall().unix_millis());
            }
            Ok(false) => {
                status.problem = None;
                if healer.waiting > 0 {
                    rests_until = rests_until.plus(pause);
                }
            }
            Err(EngineError::Stopped) => return,
            Err(error) => {
                if status.problem.is_none() {
                    tracing::warn!(%error, "healing the pool does not go on; will try again");
                }
                status.problem = Some(error.to_string());
                rests_until = rests_until.plus(pause);
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
    /// Something else comes first: nodes or the profile have changed, or something was found lost.
    Changed,
}

struct Healer<'a> {
    shared: &'a Shared,
    watch: Watch,
    /// When a node was last known to answer or not, and how many requests had succeeded then.
    probed: HashMap<NodeId, Probe>,
    /// Nodes that lack something they should have.
    checks: BTreeMap<NodeId, Check>,
    /// Shards that were found lost by chance, until that was taken into account.
    lost_seen: u64,
    /// Some pass of the round has not seen all that there is to it.
    is_partial: bool,
    /// With these nodes and this profile a sweep found everything in its place.
    settled: Option<View>,
    /// The nodes and the profile at the last look.
    seen: Option<View>,
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
    /// Nodes that were given up, at the last look.
    given_up: BTreeSet<NodeId>,
    /// Objects that are to be deleted were dealt with up to this one. What could not be deleted then is for reclaim, or for when its node is back.
    doomed_through: Option<u64>,
    /// Something may be there to be deleted behind that.
    is_left_over: bool,
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
            lost_seen: 0,
            is_partial: false,
            settled: None,
            seen: None,
            throughout: None,
            looked_at: None,
            waiting: 0,
            waits_for: None,
            failures: 0,
            cursors: HashMap::new(),
            problem: None,
            without_row: BTreeSet::new(),
            given_up: BTreeSet::new(),
            doomed_through: None,
            // An earlier run may have left something.
            is_left_over: true,
        }
    }

    /// Does all there is to do at the moment. Whether nothing is left.
    async fn round(&mut self) -> Result<bool, EngineError> {
        self.problem = None;
        loop {
            self.shared.record.check_owner()?;
            let mut view = self.look().await?;
            (self.waiting, self.waits_for, self.is_partial) = (0, None, false);
            if self.go_through(&mut view).await? {
                break;
            }
            // Something that changes all the time is not followed at any price.
            self.shared.ports.clock.sleep(CHANGE_PAUSE).await;
        }
        // What waited for a checkpoint in between.
        self.delete_left_over().await?;
        {
            let mut status = self.shared.heal.status.lock();
            status.waiting_segments = self.waiting;
            status.waits_for = self.waits_for.map(|wait| wait.to_string());
        }
        match self.problem.take() {
            Some(problem) => Err(problem),
            None => Ok(self.waiting == 0 && !self.is_partial),
        }
    }

    /// Looks at nodes and damage between two rounds. Whether something has changed that a round is to follow at once.
    async fn has_news(&mut self) -> bool {
        let (before, checks) = (self.seen.clone(), self.checks.len());
        match self.look().await {
            Ok(view) => {
                let has_changed = before.is_none_or(|before| !view.is_like(&before));
                self.has_lost_more() || has_changed || self.checks.len() > checks
            }
            Err(error) => {
                tracing::debug!(%error, "nodes cannot be looked at now");
                false
            }
        }
    }

    /// Whether shards were found lost by chance, or given up as unreadable, since this was asked last or a pass for those of which something is missing began.
    fn has_lost_more(&mut self) -> bool {
        let lost = self.shared.heal.lost_by_chance.load(Ordering::Relaxed);
        let before = std::mem::replace(&mut self.lost_seen, lost);
        lost > before || are_any_given_up(self.shared)
    }

    /// Whether everything was gone through before something changed.
    async fn go_through(&mut self, view: &mut View) -> Result<bool, EngineError> {
        self.replace_unreadable(view).await?;
        for pass in self.passes(view).await? {
            let (waiting, had_problem) = (self.waiting, self.problem.is_some());
            let ended = self.pass(view, pass).await?;
            self.is_partial |= matches!(ended, Ended::Partly);
            match (pass.kind, pass.source) {
                _ if matches!(ended, Ended::Changed) => return Ok(false),
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
        // Those of silent nodes go on when they answer.
        self.is_partial |= !self.checks.is_empty();
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
        let of = |kind, nodes: &dyn Fn(&Node) -> bool| {
            let nodes = view.nodes.iter().filter(|node| nodes(node));
            let nodes = nodes.map(|node| node.candidate.id).filter(|node| held(*node) > 0);
            nodes
                .map(move |node| Pass { kind, source: Source::On(node), total: held(node) })
                .collect::<Vec<_>>()
        };
        let missing = |kind| {
            let degraded = Pass { kind, source: Source::Degraded, total: totals.degraded_segments };
            std::iter::once(degraded).chain(of(kind, &|node| node.state == NodeState::Failed))
        };
        let is_draining = |node: &Node| node.state == NodeState::Draining;
        // What is known to be at risk, before it is looked for what else is missing.
        let mut passes: Vec<Pass> = missing(HealKind::Rescue).collect();
        passes.extend(of(HealKind::Rescue, &|node| is_draining(node) && !node.answers));
        let answers = |node: &&NodeId| view.answers(**node) == Some(true);
        for node in self.checks.keys().filter(answers) {
            passes.push(Pass { kind: HealKind::Check, source: Source::On(*node), total: held(*node) });
        }
        passes.extend(missing(HealKind::Repair));
        passes.extend(of(HealKind::Drain, &is_draining));
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
            (HealKind::Check, Source::On(node)) => self.checks.get(&node).and_then(|check| check.after),
            _ => self.cursors.remove(&(pass.kind, pass.source)),
        };
        self.failures = 0;
        self.throughout = Some(view.clone());
        if pass.source == Source::Degraded {
            // What was found lost until now is gone through.
            self.has_lost_more();
        }
        let ended = if after.is_none() { Ended::Through } else { Ended::Partly };
        loop {
            let page = self.page(pass.source, after).await?;
            let Some(last) = page.last().map(|segment| segment.id) else {
                return Ok(if self.has_come_to_the_end(pass) { ended } else { Ended::Partly });
            };
            let to_do: Vec<&SegmentPlace> =
                page.iter().filter(|segment| is_to_do(view, pass.kind, segment)).collect();
            report.segments_done += (page.len() - to_do.len()) as u64;
            for some in to_do.chunks(BETWEEN_LOOKS) {
                self.tell_progress(&report, &Healed::default());
                let lost_before = self.shared.heal.status.lock().total.lost;
                let (healed, done) = self.heal_some(view, pass, after, some).await?;
                let some = &some[..done];
                let Some(last) = some.last().map(|segment| segment.id) else { continue };
                report.segments_done += some.len() as u64;
                report.bytes += healed.bytes;
                report.eta_seconds =
                    eta(clock.now().since(began), report.segments_done, report.segments_total);
                self.tell_progress(&report, &healed);
                let is_any_lost = self.shared.heal.status.lock().total.lost > lost_before;
                self.tidy(healed.segments > 0 || is_any_lost).await?;
                self.has_come_to(pass, last);
                after = Some(last);
                if self.failures >= FAILURES_MAX {
                    if pass.kind != HealKind::Check {
                        self.cursors.insert((pass.kind, pass.source), last);
                    }
                    return Ok(Ended::Partly);
                }
                if self.is_interrupted(view, pass, last).await? {
                    return Ok(Ended::Changed);
                }
            }
            after = Some(last);
            self.has_come_to(pass, last);
            if self.is_interrupted(view, pass, last).await? {
                return Ok(Ended::Changed);
            }
        }
    }

    /// Looks at nodes and damage when it is time. Whether something else comes first now. Then a pass goes on behind `last` the next time, unless it is to do with
    /// segments before it what could not be done with the nodes as they were.
    async fn is_interrupted(
        &mut self,
        view: &mut View,
        pass: Pass,
        last: SegmentId,
    ) -> Result<bool, EngineError> {
        if !self.is_look_due() {
            return Ok(false);
        }
        let checks = self.checks.len();
        let before = std::mem::replace(view, self.look().await?);
        if let Some(throughout) = &mut self.throughout {
            throughout.weaken(view);
        }
        let has_changed = !view.is_like(&before);
        // What was lost by chance may be at risk; and the look for more comes before what is only to be elsewhere.
        let is_urgent = (pass.kind != HealKind::Rescue && self.has_lost_more())
            || (pass.kind > HealKind::Repair && self.checks.len() > checks);
        if has_changed {
            // What could not be done may be possible now.
            self.cursors.clear();
        }
        let is_interrupted = has_changed || is_urgent;
        // A sweep that was cut off is followed by a whole one: it need not begin anew for every node that comes and goes.
        if is_interrupted
            && pass.kind != HealKind::Check
            && (!has_changed || pass.kind == HealKind::Rebalance)
        {
            self.cursors.insert((pass.kind, pass.source), last);
        }
        Ok(is_interrupted)
    }

    /// The check of a pass, if it is one.
    fn check_of(&mut self, pass: Pass) -> Option<&mut Check> {
        let (HealKind::Check, Source::On(node)) = (pass.kind, pass.source) else { return None };
        self.checks.get_mut(&node)
    }

    /// A check remembers how far it is, beyond the end of the pass.
    fn has_come_to(&mut self, pass: Pass, last: SegmentId) {
        if let Some(check) = self.check_of(pass) {
            check.after = Some(last);
        }
    }

    /// Whether a check is over, too: it is not where some could not be asked.
    fn has_come_to_the_end(&mut self, pass: Pass) -> bool {
        let Some(check) = self.check_of(pass) else { return true };
        if !check.is_over() {
            return false;
        }
        if let Source::On(node) = pass.source {
            self.checks.remove(&node);
        }
        true
    }

    /// Shards that cannot be read although their nodes answer are made anew from the others. They are what they are until their successors are there: a node may only be slow.
    async fn replace_unreadable(&mut self, view: &View) -> Result<(), EngineError> {
        let shared = self.shared;
        let turn = shared.heal.turn.lock().await;
        let given_up = unreadable(shared);
        for which in &given_up {
            match self.replace(view, *which).await {
                Ok(Outcome::Healed(healed)) => shared.heal.status.lock().total.add(&healed),
                Ok(Outcome::Fine | Outcome::Changed) => {}
                Ok(Outcome::Waits(wait)) => {
                    self.waiting += 1;
                    self.waits_for.get_or_insert(wait);
                    remember_unread(shared, *which, None, 1);
                }
                Err(error) => {
                    self.problem.get_or_insert(error);
                    remember_unread(shared, *which, None, 1);
                }
            }
        }
        drop(turn);
        self.tidy(!given_up.is_empty()).await
    }

    async fn replace(&self, view: &View, (id, index): (SegmentId, usize)) -> Result<Outcome, EngineError> {
        let shared = self.shared;
        let is_named =
            |segment: &SegmentPlace| segment.place.placement.shards().get(index).is_some_and(Option::is_some);
        let Some(segment) = place_of(shared, id).await?.filter(is_named) else { return Ok(Outcome::Changed) };
        tracing::warn!(
            key = segment.place.key,
            index,
            "a shard cannot be read although its node answers: it is made anew"
        );
        Step { shared, view, rebalance: false }.heal(&segment, &[index]).await
    }

    fn tell_progress(&self, report: &HealProgress, healed: &Healed) {
        let mut status = self.shared.heal.status.lock();
        status.work = Some(report.clone());
        status.total.add(healed);
    }

    /// Heals some segments, all of them behind `after`, a few at a time. With how many of them were begun before too much failed.
    async fn heal_some(
        &mut self,
        view: &View,
        pass: Pass,
        after: Option<SegmentId>,
        some: &[&SegmentPlace],
    ) -> Result<(Healed, usize), EngineError> {
        let shared = self.shared;
        let _turn = shared.heal.turn.lock().await;
        let step = Step { shared, view, rebalance: pass.kind == HealKind::Rebalance };
        let at_once = match pass.kind {
            HealKind::Rescue => AT_ONCE_AT_RISK,
            HealKind::Check => AT_ONCE_LOOKED_FOR,
            _ => AT_ONCE,
        };
        let checking = Checking::new();
        let (mut begun, mut under_way, mut healed) = (0, FuturesUnordered::new(), Healed::default());
        loop {
            while under_way.len() < at_once && !shared.stop.is_cancelled() && self.failures < FAILURES_MAX {
                let Some(segment) = some.get(begun) else { break };
                under_way.push(one(&step, pass, segment, &checking));
                begun += 1;
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
        drop(under_way);
        if shared.stop.is_cancelled() {
            return Err(EngineError::Stopped);
        }
        if checking.has_skipped()
            && let Some(check) = self.check_of(pass)
        {
            check.passes_by(after);
        }
        Ok((healed, begun))
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
        self.is_left_over |= is_left_over;
        self.delete_left_over().await
    }

    /// Old places of shards stay until a checkpoint has the new ones: on a large site that is when the next one is due, and the next round or reclaim deletes them. None is waited for here.
    async fn delete_left_over(&mut self) -> Result<(), EngineError> {
        let once_named = self.shared.heal.take_once_named(&self.shared.record);
        delete_strays(self.shared, once_named, u64::MAX).await;
        if self.is_left_over {
            // Segments at risk do not wait for checkpoints, which may take long.
            let need = Need::Soon(self.shared.pressure.is_pool_full());
            let through = &mut self.doomed_through;
            self.is_left_over = delete_doomed_beside(self.shared, through, DELETED_AT_ONCE, need).await?;
        }
        Ok(())
    }

    fn is_look_due(&self) -> bool {
        let now = self.shared.ports.clock.now();
        self.looked_at.is_none_or(|at| now.since(at) >= self.shared.config.heal_interval)
    }
}

/// What a pass does about one segment.
async fn one(
    step: &Step<'_>,
    pass: Pass,
    segment: &SegmentPlace,
    checking: &Checking,
) -> Result<Outcome, EngineError> {
    match (pass.kind, pass.source) {
        (HealKind::Check, Source::On(node)) => checking.look_for(step, segment, node).await,
        _ => step.heal(segment, &[]).await,
    }
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
