//! One pass over the site's segments.

use super::doomed::delete_doomed;
use super::rewrite::{Rewritten, Unit, group, is_refused, rewrite, weigh};
use super::victims::{Limits, Segment, Space, Wanted, choose};
use super::{PAUSE, ROWS_AT_ONCE, ReclaimReport, WINDOW, allowance, settle};
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use crate::record::Need;
use cairn_metadata::{ContainerUse, SegmentUse, UsePage};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{ContainerId, PassId, SegmentId};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Live bytes that move between two looks: what is closed meanwhile is not shared.
const MOVED_BYTES_MAX: u64 = 4 << 30;

/// What is to be done about some segments.
struct Plan {
    /// Containers that nothing points at.
    dead: Vec<ContainerUse>,
    /// Containers to be moved.
    units: Vec<Unit>,
    /// What the look found of these.
    uses: HashMap<ContainerId, ContainerUse>,
    /// Of all segments, as the look found them.
    found: Space,
    /// Of all segments with something live, when the plan is carried out.
    left: Space,
    /// More is dead already than may be, or will soon be.
    is_late: bool,
    /// Live bytes that move.
    moving_bytes: u64,
    /// Stored bytes of containers that move, without what lives.
    left_out_bytes: u64,
}

/// A pass under way.
pub(super) struct Pass<'a> {
    shared: &'a Shared,
    pub(super) report: ReclaimReport,
    /// Of what was looked at so far, as it was found.
    pub(super) found: Space,
    /// The same, as this pass leaves it.
    pub(super) left: Space,
    /// How long looking took. Moving and deleting have pauses of their own.
    pub(super) looking: Duration,
    /// The first thing that went wrong with moving and did not end the pass.
    problem: Option<EngineError>,
    /// The first thing that went wrong with deleting.
    pub(super) undeleted: Option<EngineError>,
    /// Objects that are to be deleted were dealt with up to this one.
    doomed_through: Option<u64>,
    /// Bytes that moved since nothing waited for a checkpoint: the pool holds them twice.
    moved_bytes: u64,
    /// Something went wrong with moving, which will likely go wrong with the next unit too.
    pub(super) no_more_moves: bool,
    /// The index forgot containers that are still where they were.
    forgot: bool,
}

impl<'a> Pass<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            report: ReclaimReport::default(),
            found: Space::default(),
            left: Space::default(),
            looking: Duration::ZERO,
            problem: None,
            undeleted: None,
            doomed_through: None,
            moved_bytes: 0,
            no_more_moves: false,
            forgot: false,
        }
    }

    /// What would be done.
    pub(super) async fn survey(&mut self) -> Result<(), EngineError> {
        settle(self.shared).await?;
        let mut after = None;
        loop {
            let (plan, next) = self.look(after).await?;
            self.report.found(&plan.dead);
            self.report.container_bytes += plan.left_out_bytes;
            self.report.moved_containers +=
                plan.units.iter().map(|unit| unit.containers.len() as u64).sum::<u64>();
            self.report.moved_bytes += plan.moving_bytes;
            match next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Takes back all there is. What an error leaves is for the next pass; one that concerns an object or a unit alone comes back after the others were
    /// dealt with.
    pub(super) async fn take_back(&mut self) -> Result<(), EngineError> {
        let done = self.look_through().await;
        if self.forgot {
            self.shared.dedupe.relearn();
        }
        done.and(self.problem.take().map_or(Ok(()), Err))
    }

    async fn look_through(&mut self) -> Result<(), EngineError> {
        self.shared.record.check_owner()?;
        // What an earlier pass has left, as far as a checkpoint has it already: so a pool that is full gets the room for the next one.
        self.delete_doomed(Need::Now).await?;
        let began = self.shared.ports.clock.now();
        settle(self.shared).await?;
        tracing::debug!(
            took_ms = self.shared.ports.clock.now().since(began).as_millis(),
            "reclaim waited for folding"
        );
        let mut after = None;
        loop {
            let (plan, next) = self.look(after).await?;
            self.found.add(plan.found);
            self.left.add(plan.left);
            let done = self.carry_out(plan).await;
            let next = next.filter(|_| done.is_ok() && !self.shared.stop.is_cancelled());
            // On a large site one checkpoint does for several pages, while there is room for what moved meanwhile.
            let has_room = self.moved_bytes < MOVED_BYTES_MAX && !self.shared.pressure.is_pool_full();
            let need = if next.is_some() && has_room { Need::IfRested } else { Need::Now };
            self.delete_doomed(need).await?;
            done?;
            match next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// A page of segments, and where the next one begins. However long it takes: who waits is in no hurry, and what is away is an error.
    async fn look(&mut self, after: Option<SegmentId>) -> Result<(Plan, Option<SegmentId>), EngineError> {
        let began = self.shared.ports.clock.now();
        let page = self.shared.catalog.segment_uses(after, WINDOW).await?;
        let next = page.next;
        let moves = !self.no_more_moves && self.shared.config.reclaim_dead_percent_max < 100;
        let plan = plan(self.shared, page, moves).await?;
        let took = self.shared.ports.clock.now().since(began);
        self.looking += took;
        tracing::debug!(
            took_ms = took.as_millis(),
            object_bytes = plan.found.object_bytes,
            dead_bytes = plan.found.dead_bytes(),
            dead_containers = plan.dead.len(),
            units = plan.units.len(),
            moving_bytes = plan.moving_bytes,
            moving_containers = plan.uses.len(),
            dead_bytes_after = plan.left.dead_bytes(),
            "reclaim looked at the maps"
        );
        Ok((plan, next))
    }

    async fn carry_out(&mut self, plan: Plan) -> Result<(), EngineError> {
        if plan.dead.is_empty() && plan.units.is_empty() {
            return Ok(());
        }
        let dead = Unit {
            pass: PassId::fresh(&*self.shared.ports.clock, &*self.shared.ports.entropy),
            containers: plan.dead.iter().map(|container| container.id).collect(),
        };
        let mut closed = Closed { shared: self.shared, passes: Vec::new() };
        let done = self.close_and_take(&mut closed, &dead, &plan).await;
        // What is in use after all may be shared again.
        let opened = closed.open_all().await;
        self.forgot |= done.is_err();
        done.and(opened)
    }

    async fn close_and_take(
        &mut self,
        closed: &mut Closed<'_>,
        dead: &Unit,
        plan: &Plan,
    ) -> Result<(), EngineError> {
        let shared = self.shared;
        let units = || std::iter::once(dead).chain(&plan.units);
        let ids: Vec<ContainerId> = units().flat_map(|unit| unit.containers.iter().copied()).collect();
        // Fewer batches are refused if the index does not offer them.
        shared.dedupe.gone(&ids).await;
        for unit in units() {
            closed.close(unit).await?;
        }
        // Pointers are made from pointers alone now: what nothing points at in this look, nothing ever will.
        let began = shared.ports.clock.now();
        let uses = shared.catalog.container_uses(&ids).await?;
        let took = shared.ports.clock.now().since(began);
        self.looking += took;
        tracing::debug!(took_ms = took.as_millis(), "reclaim looked again");
        // Whatever the look saw of a commit of this gateway, that commit is shown when its turn is over.
        let (clock, limit) = (&*shared.ports.clock, shared.config.read_deadline);
        if cairn_model::timeout(clock, limit, shared.commit_turn.lock()).await.is_err() {
            return Err(EngineError::CatalogSilent);
        }
        let (mut found_dead, mut of_units) = (Vec::new(), HashMap::new());
        for container in uses {
            if dead.containers.binary_search(&container.id).is_err() {
                of_units.insert(container.id, container);
            } else if container.live.is_empty() || is_planted(Bug::ReclaimWithoutLookingAgain) {
                found_dead.push(container);
            }
        }
        if is_planted(Bug::LeaveOutWithoutLookingAgain) {
            of_units.clone_from(&plan.uses);
        }
        self.forgot |= found_dead.len() < dead.containers.len();
        for some in found_dead.chunks(ROWS_AT_ONCE) {
            self.remove(dead.pass, some).await?;
        }
        closed.open(dead.pass).await?;
        if !plan.units.is_empty() {
            // Room for what moves.
            self.delete_doomed(Need::IfRested).await?;
        }
        for unit in &plan.units {
            if shared.stop.is_cancelled() || self.no_more_moves {
                self.forgot = true;
                // Not all was done that was to be: what is left is not what the plan says.
                if let Some(error) = self.undeleted.clone() {
                    self.problem.get_or_insert(error);
                }
                return Ok(());
            }
            self.move_unit(closed, unit, &of_units, plan.is_late).await?;
            // The pool holds old and new until a checkpoint has it.
            let is_much = self.moved_bytes > allowance(self.found, &shared.config);
            self.delete_doomed(if is_much { Need::Now } else { Need::IfRested }).await?;
        }
        Ok(())
    }

    async fn move_unit(
        &mut self,
        closed: &mut Closed<'_>,
        unit: &Unit,
        uses: &HashMap<ContainerId, ContainerUse>,
        is_late: bool,
    ) -> Result<(), EngineError> {
        let began = self.shared.ports.clock.now();
        let rewritten = match rewrite(self.shared, unit, uses).await {
            Ok(rewritten) => {
                tracing::debug!(
                    took_ms = self.shared.ports.clock.now().since(began).as_millis(),
                    containers = rewritten.moved.len(),
                    bytes = rewritten.put_bytes,
                    "survivors moved"
                );
                // Guests come first: half of the time at most, unless dead bytes grow faster than that takes them back.
                let took = if is_late { PAUSE } else { self.shared.ports.clock.now().since(began) };
                self.shared.ports.clock.sleep(PAUSE.max(took)).await;
                rewritten
            }
            // Another gateway's pass took them over.
            Err(error) if is_refused(&error) => Rewritten::default(),
            Err(error) => {
                self.no_more_moves = true;
                self.problem.get_or_insert(error);
                Rewritten::default()
            }
        };
        self.report.moved_containers += rewritten.moved.len() as u64;
        self.report.moved_bytes += rewritten.put_bytes;
        self.moved_bytes += rewritten.put_bytes;
        self.report.container_bytes += rewritten.left_out_bytes;
        self.shared.reclaim.stuck(rewritten.stuck);
        // All of a container may have died since the first look.
        let uses = unit.containers.iter().filter_map(|id| uses.get(id));
        let emptied: Vec<_> = uses.filter(|container| container.live.is_empty()).cloned().collect();
        self.forgot |= rewritten.moved.len() + emptied.len() < unit.containers.len();
        match self.remove(unit.pass, &emptied).await {
            Err(error) if !is_refused(&error) => return Err(error),
            _ => {}
        }
        closed.open(unit.pass).await?;
        self.shared.dedupe.committed(rewritten.moved.iter());
        Ok(())
    }

    async fn remove(&mut self, pass: PassId, dead: &[ContainerUse]) -> Result<(), EngineError> {
        if dead.is_empty() {
            return Ok(());
        }
        let ids: Vec<ContainerId> = dead.iter().map(|container| container.id).collect();
        until_known(self.shared, || self.shared.catalog.remove_containers(pass, &ids)).await?;
        self.shared.chunks.forget(&ids);
        self.report.found(dead);
        self.shared.ports.clock.sleep(PAUSE).await;
        Ok(())
    }

    /// Deletes what is doomed. Where a checkpoint has to come first and cannot be taken, what moved would only fill the pool: nothing does any more.
    async fn delete_doomed(&mut self, need: Need) -> Result<(), EngineError> {
        let deleted = delete_doomed(self.shared, &mut self.doomed_through, u64::MAX, need).await?;
        self.report.objects += deleted.objects;
        self.report.object_bytes += deleted.bytes;
        // Reading all of the catalog is no less work than looking through the maps, and rests as that does.
        self.looking += deleted.recording;
        // Healing may have doomed something since.
        if deleted.recorded || !deleted.waits {
            self.moved_bytes = 0;
        }
        if let Some(problem) = deleted.unrecorded {
            self.no_more_moves = true;
            self.undeleted.get_or_insert(problem);
        }
        if let Some(problem) = deleted.problem {
            self.undeleted.get_or_insert(problem);
        }
        Ok(())
    }
}

/// What to do about a page of segments: what is wholly dead goes; with `moves`, what lives in the sparsest moves.
async fn plan(shared: &Shared, page: UsePage, moves: bool) -> Result<Plan, EngineError> {
    let mut segments = Vec::new();
    let mut held = HashMap::new();
    if moves {
        let all: Vec<&ContainerUse> = page.segments.iter().flat_map(living).collect();
        held.extend(weigh(shared, &all).await?.into_iter().map(|held| (held.id, held)));
        let stuck = shared.reclaim.stuck_containers();
        held.retain(|id, _| !stuck.contains(id));
        // A segment of which something cannot be read stays as it is.
        segments.extend(page.segments.iter().filter_map(|segment| {
            let live_bytes = living_bytes(segment, |id| Some(held.get(&id)?.bytes))?;
            let containers: Vec<_> = living(segment).map(|container| container.id).collect();
            let (id, object_bytes) = (segment.id, segment.length_bytes);
            (!containers.is_empty()).then_some(Segment { id, object_bytes, live_bytes, containers })
        }));
    }
    let limits = Limits::of(shared.config.reclaim_dead_percent_max);
    let wanted = Wanted {
        limits,
        dying: shared.reclaim.dying(&shared.config),
        moved_bytes_max: MOVED_BYTES_MAX,
        now_ms: shared.ports.clock.wall().unix_millis(),
    };
    let victims = choose(&segments, &wanted);
    let mut left = Space::of(&segments);
    let (mut found, is_late) = (left, left.is_above(limits.most) || wanted.dying.is_fast(limits));
    let moving = Space::of(victims.iter().copied());
    left.object_bytes -= moving.dead_bytes();
    let units = group(shared, &victims, &held);
    let chosen: HashSet<ContainerId> =
        units.iter().flat_map(|unit| unit.containers.iter().copied()).collect();
    let (mut dead, mut uses, mut stored) = (Vec::new(), HashMap::new(), 0);
    // One that never held a container says what its batch changed, and stays.
    let is_dead = |segment: &&SegmentUse| !segment.containers.is_empty() && living(segment).next().is_none();
    let wholly_dead = page.segments.iter().filter(is_dead);
    found.object_bytes += wholly_dead.map(|segment| segment.length_bytes).sum::<u64>();
    for container in page.segments.into_iter().flat_map(|segment| segment.containers) {
        if container.live.is_empty() {
            dead.push(container);
        } else if chosen.contains(&container.id) {
            stored += u64::from(container.length);
            uses.insert(container.id, container);
        }
    }
    dead.sort_unstable_by_key(|container| container.id);
    let live_bytes = uses.keys().filter_map(|id| Some(held.get(id)?.stored_bytes)).sum::<u64>();
    let (moving_bytes, left_out_bytes) = (moving.live_bytes, stored.saturating_sub(live_bytes));
    Ok(Plan { dead, units, uses, found, left, is_late, moving_bytes, left_out_bytes })
}

/// Containers of a segment that something points at.
fn living(segment: &SegmentUse) -> impl Iterator<Item = &ContainerUse> {
    segment.containers.iter().filter(|container| !container.live.is_empty())
}

fn living_bytes(segment: &SegmentUse, bytes: impl Fn(ContainerId) -> Option<u64>) -> Option<u64> {
    living(segment).map(|container| bytes(container.id)).sum()
}

/// What the pass has closed and not opened yet.
struct Closed<'a> {
    shared: &'a Shared,
    passes: Vec<PassId>,
}

impl Closed<'_> {
    async fn close(&mut self, unit: &Unit) -> Result<(), EngineError> {
        self.passes.push(unit.pass);
        for some in unit.containers.chunks(ROWS_AT_ONCE) {
            if !is_planted(Bug::ReclaimWithoutClosing) {
                until_known(self.shared, || self.shared.catalog.close_containers(unit.pass, some)).await?;
            }
        }
        Ok(())
    }

    async fn open(&mut self, pass: PassId) -> Result<(), EngineError> {
        until_known(self.shared, || self.shared.catalog.open_containers(Some(pass))).await?;
        self.passes.retain(|closed| *closed != pass);
        Ok(())
    }

    async fn open_all(&mut self) -> Result<(), EngineError> {
        let mut done = Ok(());
        for pass in self.passes.clone() {
            done = done.and(self.open(pass).await);
        }
        done
    }
}
