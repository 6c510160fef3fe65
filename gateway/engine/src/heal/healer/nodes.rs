//! What is known of nodes and damage, and what follows from it.

use super::super::examine::{examine_suspects, is_absent};
use super::super::plan::{Node, View, Wait};
use super::super::roster::{are_alike, members, weights};
use super::super::step::settle;
use super::super::watch::{Sight, Verdict};
use super::super::{kind, tell};
use super::check::{Check, index_on};
use super::{Healer, PAGE, Probe};
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use cairn_metadata::{CatalogError, NodeChange, NodeRow, NodeState, SegmentPlace};
use cairn_model::{Monotonic, NodeId, Profile, SegmentId};
use cairn_segment_writer::{BreakerState, Candidate, DataNode, MARKER_KEY, Member, PoolError};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long an answer of a node to the question whether it is there may take.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// An idle node is asked so often: requests may cost money.
const PROBE_PAUSE: Duration = Duration::from_mins(1);
/// Shards of a node that was away are looked for that were written so long ago, or next after: it may be an older copy of itself, or have lost everything.
const SAMPLE_AGES: [Duration; 12] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(20),
    Duration::from_mins(1),
    Duration::from_mins(10),
    Duration::from_hours(1),
    Duration::from_hours(6),
    Duration::from_hours(24),
    Duration::from_hours(24 * 7),
    Duration::from_hours(24 * 30),
    Duration::from_hours(24 * 365),
    Duration::from_hours(24 * 365 * 50),
];

impl Healer<'_> {
    /// Looks at nodes and at what is known of damage; decides what follows; returns what placements are to be like.
    pub(super) async fn look(&mut self) -> Result<View, EngineError> {
        let shared = self.shared;
        let rows = self.rows().await?;
        // Before anything is lost from a place that such a change may have made.
        settle(shared).await?;
        let settings = until_known(shared, || shared.catalog.pool_settings()).await?;
        self.look_at_room(&rows).await?;
        let sights = self.look_at(&rows).await;
        let now = shared.ports.clock.now();
        let (failed_after, pause) = (shared.config.node_failed_after, shared.config.heal_interval * 6);
        let verdicts = self.watch.look(now, &sights, settings.profile, failed_after, pause);
        let is_one_back = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Sample(_)));
        let mut silent = Vec::new();
        let mut problem = None;
        for verdict in verdicts {
            let followed = match problem {
                None => self.follow(verdict, &rows, &mut silent).await,
                Some(_) => Ok(()),
            };
            problem = problem.or(followed.err());
            // What was not looked at yet is not forgotten for that.
            if let (Some(_), Verdict::Sample(node)) = (&problem, verdict) {
                self.watch.doubt(node);
            }
        }
        if let Some(problem) = problem {
            return Err(problem);
        }
        self.reuse_wiped(&rows, &silent).await?;
        shared.heal.status.lock().silent_nodes = silent;
        let is_any_lost = examine_suspects(shared).await?;
        let doubted = std::mem::take(&mut *shared.heal.doubted.lock());
        for row in &rows {
            if let Some(missing) = doubted.get(&row.id) {
                self.check(row.id, &row.name, *missing).await;
            }
        }
        self.tidy(is_any_lost || is_one_back).await?;
        let rows = self.rows().await?;
        let settings = until_known(shared, || shared.catalog.pool_settings()).await?;
        self.looked_at = Some(shared.ports.clock.now());
        let view = self.adopt(&rows, settings.profile);
        self.seen = Some(view.clone());
        Ok(view)
    }

    /// A node that holds what it was said to have room for gets nothing more while others take it.
    async fn look_at_room(&self, rows: &[NodeRow]) -> Result<(), EngineError> {
        let shared = self.shared;
        for used in until_known(shared, || shared.catalog.node_usage()).await? {
            let row = rows.iter().find(|row| row.id == used.node);
            let capacity = row.and_then(|row| row.capacity_bytes);
            if let Ok(node) = shared.pool.node(used.node) {
                node.health().set_filled(capacity.is_some_and(|capacity| used.bytes >= capacity));
            }
        }
        Ok(())
    }

    async fn rows(&self) -> Result<Vec<NodeRow>, EngineError> {
        until_known(self.shared, || self.shared.catalog.nodes()).await
    }

    /// The pool learns what the catalog says of it.
    fn adopt(&mut self, rows: &[NodeRow], profile: Profile) -> View {
        let pool = &self.shared.pool;
        if pool.profile() != profile {
            pool.set_profile(profile);
        }
        let (open, shared_now) = (pool.nodes(), self.shared.ports.clock.now());
        // Somebody may have taken the node in after these rows were read. One that had no row at the last look either has none.
        let seen_before = std::mem::take(&mut self.without_row);
        let mut without_row = BTreeSet::new();
        pool.change_nodes(|present| {
            let open: Vec<_> = present.iter().map(|member| Arc::clone(&member.node)).collect();
            let mut wanted = members(rows, &open);
            let has_no_row = |member: &&Member| rows.iter().all(|row| row.id != member.node.id());
            without_row = present.iter().filter(has_no_row).map(|member| member.node.id()).collect();
            let is_new = |member: &&Member| !seen_before.contains(&member.node.id());
            wanted.extend(present.iter().filter(has_no_row).filter(is_new).cloned());
            (!are_alike(&wanted, present)).then_some(wanted)
        });
        let failed = rows.iter().filter(|row| row.state == NodeState::Failed).map(|row| row.id).collect();
        let given_up = std::mem::replace(&mut self.given_up, failed);
        // Who knows what was done to one that is back.
        if !given_up.is_subset(&self.given_up) {
            self.shared.record.doubt();
        }
        self.without_row = without_row;
        let nodes = rows.iter().zip(weights(rows)).map(|(row, weight)| {
            let node = open.iter().find(|node| node.id() == row.id);
            let answers = self.probed.get(&row.id).is_some_and(|probe| probe.answers);
            let domain = row.domain.as_deref().map(Arc::from);
            Node {
                candidate: Candidate { id: row.id, domain, weight },
                state: row.state,
                answers,
                takes: answers && node.is_some_and(|node| takes_puts(node, shared_now)),
                has_room: node.is_none_or(|node| !node.health().is_filled()),
            }
        });
        View { profile, nodes: nodes.collect() }
    }

    /// Which nodes are there, and are themselves. One that is busy has shown it; an idle one is asked now and then, a silent one every time.
    async fn look_at(&mut self, rows: &[NodeRow]) -> Vec<Sight> {
        let shared = self.shared;
        let now = shared.ports.clock.now();
        let pause = shared.config.node_failed_after.map_or(PROBE_PAUSE, |after| (after / 4).min(PROBE_PAUSE));
        let asked = rows.iter().map(|row| {
            let node = shared.pool.node(row.id).ok();
            let before = self.probed.get(&row.id).copied();
            async move {
                let Some(node) = node else {
                    return Probe { at: now, successes: 0, errors: 0, answers: false };
                };
                let health = node.health().snapshot();
                let (successes, errors) = (health.puts + health.gets + health.deletes, health.errors);
                let probe = |answers| Probe { at: now, successes, errors, answers };
                match before.filter(|probe| probe.answers && !health.failing) {
                    Some(before) if before.successes < successes => probe(true),
                    Some(before) if now.since(before.at) < pause => Probe { errors, ..before },
                    _ => probe(is_there(shared, &node).await),
                }
            }
        });
        let probes = futures::future::join_all(asked).await;
        let before = std::mem::take(&mut self.probed);
        self.probed = rows.iter().map(|row| row.id).zip(probes).collect();
        // Of a node that this gateway has not opened it knows nothing.
        let open = rows.iter().filter(|row| shared.pool.node(row.id).is_ok());
        let sight = |row: &NodeRow| {
            let probe = self.probed[&row.id];
            let stumbled = before.get(&row.id).is_some_and(|before| before.errors < probe.errors);
            Sight { node: row.id, state: row.state, answers: probe.answers, stumbled }
        };
        open.map(sight).collect()
    }

    async fn follow(
        &mut self,
        verdict: Verdict,
        rows: &[NodeRow],
        silent: &mut Vec<String>,
    ) -> Result<(), EngineError> {
        let name = |id: NodeId| {
            let row = rows.iter().find(|row| row.id == id);
            row.map_or_else(|| id.to_string(), |row| row.name.clone())
        };
        match verdict {
            Verdict::Failed(node, lasts) => {
                self.set_state(node, NodeState::Failed).await?;
                let (name, minutes) = (name(node), lasts.as_secs_f32() / 60.0);
                let text = format!(
                    "it has not answered this gateway for {minutes:.1} minutes and is declared failed: what it held is made anew on other nodes"
                );
                tracing::warn!(node = name, text, "a data node is declared failed");
                tell(self.shared, kind::NODE_FAILED, format!("node {name}"), text).await;
            }
            Verdict::Back(node) => {
                self.set_state(node, NodeState::Active).await?;
                let name = name(node);
                tracing::info!(node = name, "a failed data node answers again and is in service");
                let text = "it answers again and is in service, with what is left on it".to_owned();
                tell(self.shared, kind::NODE_BACK, format!("node {name}"), text).await;
            }
            Verdict::Sample(node) => {
                // What is to be deleted on it can be now.
                (self.doomed_through, self.is_left_over) = (None, true);
                let before = self.seen.as_ref().and_then(|view| view.answers(node));
                if before != Some(true) {
                    // There may be enough now to make from what could not be made.
                    self.shared.heal.beyond_repair.lock().doubt_all();
                }
                if let Some(missing) = self.lacks_shard(node).await? {
                    self.check(node, &name(node), missing).await;
                }
            }
            Verdict::Needed(node, _) => silent.push(name(node)),
        }
        Ok(())
    }

    /// Nodes whose places are empty, for as long as it takes to be declared failed, are used again where the pool cannot be whole without them: without what they had.
    /// A directory that is not mounted looks like that. So nothing is given up that it takes to read a segment, and what is there is there again when it is mounted.
    async fn reuse_wiped(&mut self, rows: &[NodeRow], silent: &[String]) -> Result<(), EngineError> {
        let shared = self.shared;
        let (Some(after), true) = (shared.config.node_failed_after, shared.config.reuse_wiped_nodes) else {
            return Ok(());
        };
        let waits = matches!(self.waits_for, Some(Wait::Nodes { .. } | Wait::Profile { .. }));
        for row in rows {
            let is_wanted = silent.contains(&row.name) || (row.state == NodeState::Failed && waits);
            let is_long =
                self.watch.silent_for(row.id, shared.ports.clock.now()).is_some_and(|lasts| lasts >= after);
            let Ok(node) = shared.pool.node(row.id) else { continue };
            if !is_wanted || !is_long || !matches!(node.is_wiped().await, Ok(true)) {
                continue;
            }
            // Others that are away, or given up themselves, may not come back: what is on them counts for nothing here.
            let serves = |other: &&NodeRow| {
                let answers = self.probed.get(&other.id).is_some_and(|probe| probe.answers);
                other.id != row.id && other.state != NodeState::Failed && answers
            };
            let serving: BTreeSet<NodeId> = rows.iter().filter(serves).map(|other| other.id).collect();
            if !give_up(shared, row.id, &serving).await? {
                continue;
            }
            // In service before it is itself: whoever is killed in between finds it empty again.
            self.set_state(row.id, NodeState::Active).await?;
            match node.refound().await {
                Ok(()) => {
                    shared.record.doubt();
                    give_keys(shared, &node).await;
                    let text = "its place was empty and is used again: what it held is made anew".to_owned();
                    tracing::warn!(node = row.name, text, "a data node was wiped");
                    tell(shared, kind::NODE_REUSED, format!("node {}", row.name), text).await;
                }
                Err(error) => {
                    tracing::warn!(node = row.name, %error, "a data node that was wiped cannot be used again");
                }
            }
        }
        Ok(())
    }

    /// A shard of the node was not there: all of its shards are looked for, if that is not being done already, and has not passed by that one.
    async fn check(&mut self, node: NodeId, name: &str, missing: SegmentId) {
        if let Some(check) = self.checks.get_mut(&node) {
            check.must_see(missing);
            return;
        }
        self.checks.insert(node, Check::default());
        // It may lack records too.
        self.shared.record.doubt();
        let text = "a shard that it should have is not there: all of its shards are looked for".to_owned();
        tracing::warn!(node = name, text, "a data node lacks a shard");
        tell(self.shared, kind::NODE_CHECK, format!("node {name}"), text).await;
    }

    async fn set_state(&self, node: NodeId, state: NodeState) -> Result<(), EngineError> {
        let change = NodeChange { state: Some(state), ..NodeChange::default() };
        until_known(self.shared, || self.shared.catalog.update_node(node, &change)).await
    }

    /// Looks for a few of a node's shards, the youngest among them. The segment of one that should be there and is not.
    async fn lacks_shard(&mut self, node: NodeId) -> Result<Option<SegmentId>, EngineError> {
        let now_ms = self.shared.ports.clock.wall().unix_millis();
        let mut seen = BTreeSet::new();
        let ages = SAMPLE_AGES.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let youngest = self.youngest_on(node).await?;
        let times = ages.map(|age_ms| now_ms.saturating_sub(age_ms));
        for at_ms in std::iter::once(youngest).chain(times) {
            let Some(segment) = self.next_on(node, at_ms).await?.filter(|segment| seen.insert(segment.id))
            else {
                continue;
            };
            let Some(index) = index_on(&segment, node) else { continue };
            if self.shared.heal.beyond_repair.lock().has(segment.id, index) {
                continue;
            }
            // One that cannot be asked now says nothing.
            if is_absent(self.shared, &segment, index).await.unwrap_or(false) {
                return Ok(Some(segment.id));
            }
        }
        Ok(None)
    }

    /// The last time, in milliseconds since 1970, that is before a segment of the node: an older copy of it lacks that one.
    async fn youngest_on(&self, node: NodeId) -> Result<u64, EngineError> {
        let (mut before, mut behind) = (0, 1 << 48);
        while behind - before > 1 {
            let middle = before + (behind - before) / 2;
            match self.next_on(node, middle).await? {
                Some(_) => before = middle,
                None => behind = middle,
            }
        }
        Ok(before)
    }

    /// The first segment with a shard on the node that was made at that time or later.
    async fn next_on(&self, node: NodeId, at_ms: u64) -> Result<Option<SegmentPlace>, EngineError> {
        let mut after = [0; 16];
        after[..6].copy_from_slice(&at_ms.to_be_bytes()[2..]);
        let (after, catalog) = (SegmentId::from_bytes(after), &self.shared.catalog);
        let found = until_known(self.shared, || catalog.segments_on(node, Some(after), 1)).await?;
        Ok(found.into_iter().next())
    }
}

/// The copy of the site's keys that each node has, from one that has it still.
async fn give_keys(shared: &Shared, node: &DataNode) {
    for other in shared.pool.nodes() {
        if other.id() == node.id() {
            continue;
        }
        if let Ok(Some(keys)) = other.read_keys().await {
            match node.put_keys(keys).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, node = %node.name(), "a node that is used again has no copy of the keys");
                }
            }
        }
    }
}

/// All that a node held is lost. `false`, and nothing is, when it takes some of that to read a segment beside what is on the nodes that serve.
async fn give_up(shared: &Shared, node: NodeId, serving: &BTreeSet<NodeId>) -> Result<bool, EngineError> {
    for is_dry_run in [true, false] {
        let mut after = None;
        loop {
            let page = until_known(shared, || shared.catalog.segments_on(node, after, PAGE)).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            for segment in &page {
                let place = &segment.place;
                let left =
                    place.placement.present().filter(|(_, shard)| serving.contains(&shard.node)).count();
                if left < place.placement.profile().needed() {
                    return Ok(false);
                }
                let Some(index) = index_on(segment, node).filter(|_| !is_dry_run) else { continue };
                let losing = || shared.catalog.lose_shard(segment.id, place.clone(), index);
                match until_known(shared, losing).await {
                    Ok(()) => {
                        shared.heal.moved(segment.id);
                    }
                    // Somebody else changed it: it is looked at again below.
                    Err(EngineError::Catalog(error))
                        if matches!(*error, CatalogError::PlacementChanged { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    let left = until_known(shared, || shared.catalog.segments_on(node, None, 1)).await?;
    Ok(left.is_empty())
}

/// Whether a node answers, and is itself.
pub(in crate::heal) async fn is_there(shared: &Shared, node: &DataNode) -> bool {
    let ask = async {
        match node.get_range(MARKER_KEY, 0..1).await {
            // A node without its marker is refused from the next request on, unless it needs none.
            Err(PoolError::NotFound { .. }) => match node.get_range(MARKER_KEY, 0..1).await {
                Ok(_) | Err(PoolError::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            },
            asked => asked.map(drop),
        }
    };
    match cairn_model::timeout(&*shared.ports.clock, PROBE_LIMIT, ask).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, node = %node.name(), "a data node does not answer as it should");
            false
        }
        Err(cairn_model::Elapsed) => false,
    }
}

/// Whether puts to the node are worth a try.
fn takes_puts(node: &DataNode, now: Monotonic) -> bool {
    let health = node.health();
    health.snapshot().breaker != BreakerState::Open && health.takes_puts(now)
}
