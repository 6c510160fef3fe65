//! What the catalog has of segments: rows, shards, containers, footers.
//!
//! A segment may be moved, healed or deleted while it is looked at. So what seems wrong counts only if the catalog has the segment where it was before the look, after it: then its
//! objects were to be there all the time, because what a segment needs no more is deleted after it was placed elsewhere.

use super::containers::{compare_footer, judge};
use super::{Checker, FsckPhase, PLANNED_MAX, ProblemKind, Remedy};
use crate::error::EngineError;
use cairn_metadata::{CheckedContainer, CheckedSegment};
use cairn_model::{ContainerId, NodeId, ObjectPlace, SegmentId};
use cairn_segment_writer::{PoolError, ShardLook};
use futures::StreamExt;
use std::collections::BTreeMap;

/// Segments of one question to the catalog.
const PAGE: u32 = 64;
/// Objects asked at the same time.
const REQUESTS_AT_ONCE: usize = 8;
/// What a look at a segment reads, about.
const LOOK_BYTES: u64 = 128 << 10;
/// A segment that changes so often is left to the next check.
const TRIES: u32 = 4;

/// What was seen of a segment.
#[derive(Debug, Default)]
struct Seen {
    /// Shards that are not what they should be.
    flaws: Vec<(usize, NodeId, Flaw)>,
    /// How many are.
    right: usize,
    /// Nodes that told, and those that did not.
    told: Vec<NodeId>,
    silent: Vec<(usize, NodeId, PoolError)>,
    /// What is wrong with its footer.
    footer: Vec<String>,
    /// Why that could not be read now, if it could not.
    unread: Option<PoolError>,
    /// The key of its domain is not open.
    is_closed: bool,
}

#[derive(Debug)]
enum Flaw {
    Missing,
    Other(String),
}

impl Checker<'_> {
    pub(super) async fn segments(&mut self) -> Result<(), EngineError> {
        self.begin(FsckPhase::Segments, self.catalog.totals().await?.segments);
        let mut after = None;
        loop {
            let page = self.source.segment_rows(after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
            let ids: Vec<SegmentId> = page.iter().map(|segment| segment.id).collect();
            let mut containers: BTreeMap<SegmentId, Vec<CheckedContainer>> = BTreeMap::new();
            for container in self.source.containers_in(&ids).await? {
                containers.entry(container.segment).or_default().push(container);
            }
            for segment in page {
                let held = containers.remove(&segment.id).unwrap_or_default();
                self.segment(segment, &held).await?;
                self.advance(1);
                self.rest(LOOK_BYTES).await?;
            }
        }
    }

    async fn segment(
        &mut self,
        segment: CheckedSegment,
        held: &[CheckedContainer],
    ) -> Result<(), EngineError> {
        let id = segment.id;
        {
            let counts = self.findings.counts();
            (counts.segments, counts.containers) =
                (counts.segments + 1, counts.containers + held.len() as u64);
        }
        let place = match segment.place {
            Ok(place) => place,
            Err(reason) => {
                let text = format!("its rows make no sense ({reason}): nothing of it can be read");
                self.findings.problem(ProblemKind::Segment, format!("segment {id}"), text, None);
                self.not_whole.add(id);
                self.lose_all(held, &format!("segment {id} has no place in the catalog"));
                return Ok(());
            }
        };
        // Length and key of a segment do not change, nor what a row of a container says as long as it is in it.
        for (container, text) in judge(held, place.length_bytes) {
            self.findings.problem(
                ProblemKind::Container,
                format!("container {container}"),
                text.clone(),
                None,
            );
            self.lost.container(container, &text);
        }
        let Some((place, seen)) = self.look(id, place, held).await? else {
            self.not_whole.add(id);
            return Ok(());
        };
        self.tell(id, &place, seen, held).await;
        Ok(())
    }

    /// Looks at a segment until it stays where it is for as long as that takes. `None`: it is gone, or never does.
    async fn look(
        &self,
        id: SegmentId,
        mut place: ObjectPlace,
        held: &[CheckedContainer],
    ) -> Result<Option<(ObjectPlace, Seen)>, EngineError> {
        for _ in 0..TRIES {
            let mut seen = self.look_once(id, &place, held).await;
            if seen.flaws.is_empty() && seen.footer.is_empty() {
                return Ok(Some((place, seen)));
            }
            // It may have happened on the way, or be a false answer.
            seen = self.look_once(id, &place, held).await;
            let now = self.source.segments(&[id]).await?;
            match now.into_iter().next().map(|now| now.place) {
                Some(Ok(now)) if now == place => return Ok(Some((place, seen))),
                Some(Ok(now)) => place = now,
                // The next check tells of it, if it was not changed by then.
                Some(Err(_)) | None => return Ok(None),
            }
        }
        tracing::debug!(segment = %id, "a segment changes all the time; the next check looks at it");
        Ok(None)
    }

    async fn look_once(&self, id: SegmentId, place: &ObjectPlace, held: &[CheckedContainer]) -> Seen {
        let mut seen = Seen::default();
        let asked = place.placement.present().filter(|(_, shard)| !self.silent.contains_key(&shard.node));
        let looks = asked.map(|(index, shard)| async move {
            (index, shard.node, self.pool.look_at_shard(place, index, self.site).await)
        });
        let mut looks = futures::stream::iter(looks).buffer_unordered(REQUESTS_AT_ONCE);
        while let Some((index, node, looked)) = looks.next().await {
            if looked.is_ok() {
                seen.told.push(node);
            }
            match looked {
                Ok(ShardLook::Right) => seen.right += 1,
                Ok(ShardLook::Missing) => seen.flaws.push((index, node, Flaw::Missing)),
                Ok(ShardLook::Other(reason)) => seen.flaws.push((index, node, Flaw::Other(reason))),
                Err(error) => seen.silent.push((index, node, error)),
            }
        }
        seen.flaws.sort_by_key(|(index, ..)| *index);
        if seen.right < place.placement.profile().needed() {
            return seen;
        }
        if held.iter().any(|container| self.domains.get(container.domain).is_err()) {
            seen.is_closed = true;
            return seen;
        }
        let footer = self.pool.read_footer_of(place, &|key| self.domains.by_key(key)).await;
        match footer {
            Ok(footer) => seen.footer = compare_footer(id, self.site, &footer, held),
            Err(error) if error.is_of_object() => seen.footer = vec![error.to_string()],
            // A node went away in between, whichever it was, or a newer version wrote it.
            Err(error) => seen.unread = Some(error),
        }
        seen
    }

    async fn tell(&mut self, id: SegmentId, place: &ObjectPlace, seen: Seen, held: &[CheckedContainer]) {
        self.findings.counts().shards += (seen.right + seen.flaws.len()) as u64;
        let needed = place.placement.profile().needed();
        let unknown = place.placement.present().count() - seen.right - seen.flaws.len();
        let can_be_read = seen.right >= needed;
        let is_footer_right = seen.footer.is_empty() && seen.unread.is_none() && !seen.is_closed;
        if seen.right < place.placement.profile().shards() || !is_footer_right {
            self.not_whole.add(id);
        }
        for (index, node, flaw) in seen.flaws {
            let subject = format!("shard {index} of segment {id} on {}", self.node_name(node));
            let (kind, text) = match flaw {
                Flaw::Missing => (ProblemKind::MissingShard, "it is not there".to_owned()),
                Flaw::Other(reason) => (ProblemKind::WrongShard, reason),
            };
            let is_planned = can_be_read && self.plan.shards.len() < PLANNED_MAX;
            self.findings.problem(kind, subject, text, is_planned.then_some(Remedy::Heal));
            if is_planned {
                self.plan.shards.push((id, index));
            }
        }
        for node in seen.told {
            self.answered(node);
        }
        for (index, node, error) in seen.silent {
            self.failed(node, &error, ("shards", format!("shard {index} of segment {id}"))).await;
        }
        if let Some(error) = seen.unread {
            self.findings.unchecked("footers", format!("the footer of segment {id}: {error}"));
        }
        if seen.is_closed {
            let text = format!("the footer of segment {id}: it is of a domain whose key is not open");
            self.findings.unchecked("footers", text);
        }
        for text in seen.footer {
            self.findings.problem(ProblemKind::Footer, format!("segment {id}"), text, None);
        }
        if can_be_read {
            return;
        }
        if seen.right + unknown >= needed {
            let text = format!(
                "segment {id}: {} of the {needed} shards that it takes to read it are there, {unknown} are on nodes that do not answer",
                seen.right
            );
            self.findings.unchecked("segments", text);
            return;
        }
        let reason =
            format!("segment {id} has {} of the {needed} shards that it takes to read it", seen.right);
        self.lose_all(held, &reason);
    }

    fn lose_all(&mut self, held: &[CheckedContainer], reason: &str) {
        let ids: Vec<ContainerId> = held.iter().map(|container| container.id).collect();
        for id in ids {
            self.lost.container(id, reason);
        }
    }
}
