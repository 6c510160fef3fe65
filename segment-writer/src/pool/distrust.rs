//! Reading what was found wrong again, from whatever else has it.
//!
//! Copies are read until one is good. Of an erasure-coded segment, the regions that matter of all shards are read and held to the checksums of
//! their own trailers; what fails is left out, and the rest is put together as soon as there is enough. Where that passes and the result is still wrong, a shard
//! lies consistently or was wrong from the start: other combinations are tried, up to a limit, as more shards come. Nobody waits for a node that is
//! silent while the others suffice. Shards that are found out are noted for repair and counted against their nodes.
//!
//! What is good is for the caller to say: it has the tags.

use super::Pool;
use super::candidates::{Known, Span, choices, spans_of};
use super::erasure::decode;
use super::get::check_range;
use super::notes::DamagedShard;
use super::pieces::{join, pieces_of};
use super::roster::Roster;
use super::verified::shard_at;
use crate::error::PoolError;
use bytes::Bytes;
use cairn_model::{Monotonic, NodeId, ObjectPlace, Profile, ShardPlace};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::ops::Range;
use std::time::Duration;

/// Ways to put a range together that are tried.
const TRIES_MAX: usize = 128;

/// After this time nodes are asked that were passed over.
const LATE: Duration = Duration::from_millis(500);

/// How long the shards that every reader asks first are waited for when others have served: what is wrong with them is to be known.
const GRACE: Duration = Duration::from_millis(100);

/// Ways that are tried before other tasks have their turn.
const WAYS_AT_ONCE: usize = 4;

impl Pool {
    /// What `check` makes of the bytes of a range once they are good. `None`: nothing that the pool has of it is. An error: what might be good
    /// cannot be had now.
    pub async fn get_checked<T: Send>(
        &self,
        place: &ObjectPlace,
        range: Range<u64>,
        mut check: impl FnMut(Bytes) -> Option<T> + Send,
    ) -> Result<Option<T>, PoolError> {
        let roster = self.roster();
        check_range(place, &roster, &range)?;
        let now = self.ports.clock.now();
        let (likely, others): (Vec<_>, Vec<_>) =
            place.placement.present().partition(|(_, shard)| is_admitted(&roster, shard.node, now));
        match place.placement.profile() {
            Profile::Ec { data, parity } => {
                let mut distrust = Distrust::new(self, &roster, place, (data, parity), &range);
                distrust.ask(&likely);
                distrust.others = others;
                distrust.run(&mut check).await
            }
            Profile::Single | Profile::Replica { .. } => {
                let copies = likely.into_iter().chain(others);
                self.get_checked_copy(&roster, place, range, copies, &mut check).await
            }
        }
    }

    /// The first copy that is good; the next one is asked when one fails or is late.
    async fn get_checked_copy<T: Send>(
        &self,
        roster: &Roster,
        place: &ObjectPlace,
        range: Range<u64>,
        mut copies: impl Iterator<Item = (usize, ShardPlace)> + Send,
        check: &mut (impl FnMut(Bytes) -> Option<T> + Send),
    ) -> Result<Option<T>, PoolError> {
        let mut events: FuturesUnordered<BoxFuture<'_, Event>> = FuturesUnordered::new();
        let ask = |events: &FuturesUnordered<_>, (index, shard): (usize, ShardPlace)| {
            let (range, key) = (range.clone(), place.shard_key(index).expect("it is present"));
            let read: BoxFuture<'_, Event> = Box::pin(async move {
                let result = match roster.member(shard.node) {
                    Ok(member) => member.node.get_range(&key, range).await,
                    Err(error) => Err(error),
                };
                Event::Read { span: 0, index, node: shard.node, result }
            });
            events.push(read);
            events.push(late(self));
        };
        let mut running = 0;
        let mut unread = None;
        let mut is_next_due = true;
        loop {
            if std::mem::take(&mut is_next_due)
                && let Some(copy) = copies.next()
            {
                ask(&events, copy);
                running += 1;
            }
            if running == 0 {
                break;
            }
            let Some(event) = events.next().await else { break };
            is_next_due = true;
            let Event::Read { index, node, result, .. } = event else { continue };
            running -= 1;
            match result.map(&mut *check) {
                Ok(Some(good)) => return Ok(Some(good)),
                Ok(None) => self.found_damaged(roster, place, index, node),
                Err(error) if error.is_of_object() => self.found_damaged(roster, place, index, node),
                Err(error) => unread = Some(error),
            }
        }
        unread.map_or(Ok(None), |error| Err(waits(place, &error)))
    }

    /// Notes a shard for repair.
    pub(super) fn found_damaged(&self, roster: &Roster, place: &ObjectPlace, index: usize, node: NodeId) {
        tracing::warn!(key = %place.key, index, %node, "a shard is missing or damaged");
        if let Ok(member) = roster.member(node) {
            member.node.health().damaged_chunk();
        }
        self.notes.damaged(DamagedShard { key: place.key.clone(), index, node });
    }
}

impl Pool {
    /// Notes a shard that passes its checksums and is not what the others give.
    pub(super) fn found_lying(&self, roster: &Roster, place: &ObjectPlace, index: usize, node: NodeId) {
        self.notes.lying(place, index);
        self.found_damaged(roster, place, index, node);
    }
}

enum Event {
    Read {
        span: usize,
        index: usize,
        node: NodeId,
        result: Result<Bytes, PoolError>,
    },
    /// What was asked for takes long.
    Late,
}

fn late<'a>(pool: &Pool) -> BoxFuture<'a, Event> {
    let sleep = pool.ports.clock.sleep(LATE);
    Box::pin(async {
        sleep.await;
        Event::Late
    })
}

/// A range of an erasure-coded segment that is put together of shards that may lie.
struct Distrust<'a> {
    pool: &'a Pool,
    roster: &'a Roster,
    place: &'a ObjectPlace,
    data: u8,
    parity: u8,
    spans: Vec<Span>,
    pieces: Vec<Known>,
    /// Shards on nodes that are likely to be silent: asked only when the others fail or are late.
    others: Vec<(usize, ShardPlace)>,
    events: FuturesUnordered<BoxFuture<'a, Event>>,
    /// Reads under way.
    running: usize,
    /// Ways to put the range together that were tried.
    tries: usize,
    /// Why a shard that may be good could not be read.
    unread: Option<PoolError>,
}

impl<'a> Distrust<'a> {
    fn new(
        pool: &'a Pool,
        roster: &'a Roster,
        place: &'a ObjectPlace,
        (data, parity): (u8, u8),
        range: &Range<u64>,
    ) -> Self {
        let shard_bytes = place.placement.profile().shard_bytes(place.length_bytes);
        let pieces = pieces_of(range, shard_bytes);
        let spans = spans_of(&pieces, shard_bytes);
        let pieces = pieces.into_iter().map(|piece| Known::new(piece, &spans)).collect();
        let events = FuturesUnordered::new();
        events.push(late(pool));
        let (others, unread) = (Vec::new(), None);
        Self {
            pool,
            roster,
            place,
            data,
            parity,
            spans,
            pieces,
            others,
            events,
            running: 0,
            tries: 0,
            unread,
        }
    }

    /// Asks for all that matters of these shards.
    fn ask(&mut self, shards: &[(usize, ShardPlace)]) {
        let (pool, roster, place) = (self.pool, self.roster, self.place);
        for (number, span) in self.spans.iter_mut().enumerate() {
            for (index, shard) in shards.iter().copied() {
                span.awaited.push(index);
                self.running += 1;
                let regions = span.range.clone();
                self.events.push(Box::pin(async move {
                    let result = pool.verified_regions(roster, place, index, regions).await;
                    let result = result.map(|(_, bytes)| bytes);
                    Event::Read { span: number, index, node: shard.node, result }
                }));
            }
        }
    }

    fn ask_others(&mut self) {
        let others = std::mem::take(&mut self.others);
        self.ask(&others);
    }

    async fn run<T: Send>(
        mut self,
        check: &mut (impl FnMut(Bytes) -> Option<T> + Send),
    ) -> Result<Option<T>, PoolError> {
        loop {
            if self.running == 0 {
                self.ask_others();
            }
            if self.running == 0 {
                break;
            }
            let Some(event) = self.events.next().await else { break };
            let Some((span, index)) = self.took(event) else { continue };
            if let Some((good, choice)) = self.judge(span, index, check).await {
                self.settle().await;
                self.find_liars(&choice);
                return Ok(Some(good));
            }
        }
        self.unread.map_or(Ok(None), |error| Err(waits(self.place, &error)))
    }

    /// Takes in what was waited for. Which shard is good now, and where.
    fn took(&mut self, event: Event) -> Option<(usize, usize)> {
        let Event::Read { span, index, node, result } = event else {
            self.ask_others();
            return None;
        };
        self.running -= 1;
        self.spans[span].awaited.retain(|awaited| *awaited != index);
        match result {
            Ok(bytes) => {
                self.spans[span].good.push((index, bytes));
                return Some((span, index));
            }
            Err(error) if error.is_of_object() => {
                self.pool.found_damaged(self.roster, self.place, index, node);
            }
            Err(error) => self.unread = Some(error),
        }
        self.ask_others();
        None
    }

    /// Tries what can be put together now that one more shard is there: what is good, and which candidate of each piece it is made of.
    async fn judge<T: Send>(
        &mut self,
        span: usize,
        added: usize,
        check: &mut (impl FnMut(Bytes) -> Option<T> + Send),
    ) -> Option<(T, Vec<usize>)> {
        let mut made = 0;
        for at in 0..self.pieces.len() {
            if self.pieces[at].span != span {
                continue;
            }
            for way in self.pieces[at].ways(&self.spans[span], added, self.data) {
                made += 1;
                if made % WAYS_AT_ONCE == 0 {
                    tokio::task::yield_now().await;
                }
                let Some(candidate) = self.make(at, way) else { continue };
                let count = |(number, piece): (usize, &Known)| {
                    if number == at { 1 } else { piece.candidates.len() }
                };
                let counts: Vec<_> = self.pieces.iter().enumerate().map(count).collect();
                for mut choice in choices(&counts).take(TRIES_MAX - self.tries) {
                    choice[at] = candidate;
                    self.tries += 1;
                    let part = |(at, piece): (&usize, &Known)| piece.candidates[*at].bytes.clone();
                    let bytes = join(choice.iter().zip(&self.pieces).map(part).collect());
                    if let Some(good) = check(bytes) {
                        return Some((good, choice));
                    }
                }
            }
        }
        None
    }

    fn make(&mut self, at: usize, way: Vec<usize>) -> Option<usize> {
        let piece = &mut self.pieces[at];
        let span = &self.spans[piece.span];
        let work_bytes = piece.piece.length() * way.len();
        let (data, parity) = (self.data, self.parity);
        self.pool.work(work_bytes, || piece.make(span, way, data, parity))
    }

    /// Waits a moment for the shards that have the range themselves, and takes what else is there by now: whoever lies is to be found out.
    async fn settle(&mut self) {
        let clock = &*self.pool.ports.clock;
        let awaits_own = |this: &Self| {
            this.pieces.iter().any(|known| this.spans[known.span].awaited.contains(&known.piece.shard))
        };
        let own = async {
            while awaits_own(self)
                && let Some(event) = self.events.next().await
            {
                self.took(event);
            }
        };
        // Later, it is for the next reader to find.
        let _ = cairn_model::timeout(clock, GRACE, own).await;
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.took(event);
        }
    }

    /// Notes the shards that differ from what those, of which a good range was made, say of them.
    fn find_liars(&self, choice: &[usize]) {
        for (at, known) in choice.iter().zip(&self.pieces) {
            let of = &known.candidates[*at].of;
            // A piece from its own shard says nothing about the others.
            if of.len() < usize::from(self.data) {
                continue;
            }
            let span = &self.spans[known.span];
            let sources: Vec<_> =
                of.iter().filter_map(|index| Some((*index, &span.bytes(*index)?[..]))).collect();
            let others: Vec<_> =
                span.good.iter().map(|(index, _)| *index).filter(|index| !of.contains(index)).collect();
            let work_bytes = sources.iter().map(|(_, bytes)| bytes.len()).sum();
            let decoded = self.pool.work(work_bytes, || decode(self.data, self.parity, &others, &sources));
            let Ok(decoded) = decoded else { continue };
            for (index, expected) in others.iter().zip(&decoded) {
                if span.bytes(*index) != Some(expected) {
                    let (node, _) = shard_at(self.place, *index);
                    self.pool.found_lying(self.roster, self.place, *index, node);
                }
            }
        }
    }
}

/// Whether a node is likely to answer.
fn is_admitted(roster: &Roster, node: NodeId, now: Monotonic) -> bool {
    roster.member(node).is_ok_and(|member| member.node.health().admits(now))
}

/// What was asked for may be on a node that cannot be read now, whatever the reason: whoever asked waits for it.
fn waits(place: &ObjectPlace, error: &PoolError) -> PoolError {
    PoolError::TooFewShards {
        key: place.key.clone(),
        found: 0,
        required: place.placement.profile().needed(),
        reason: error.to_string(),
    }
}
