//! Reading a range of a segment: from the shards that have it, or from any that suffice.
//!
//! A range is one piece for copies, and for erasure coding one for each data shard that it touches: mostly one, two where it crosses a border. A piece is read from its own
//! shard (of copies, from that on the fastest node). When that fails, is late or is on a node that is avoided, the same columns of other shards are read until there
//! are as many as it takes, counting what is in hand, and the piece is decoded; whatever comes first counts.
//!
//! At first every node is asked once, without retries: another one is faster. When too few are left that may answer soon, those that failed are asked again,
//! once each and with all patience, while those that are silent go on: a node that hangs does not keep the others from being tried again.

use super::Pool;
use super::erasure::columns;
use super::health::Direction;
use super::node::{DataNode, GET_BYTES_MAX};
use super::notes::DamagedShard;
use super::pieces::{Piece, join, pieces_of};
use super::roster::Roster;
use crate::error::PoolError;
use bytes::Bytes;
use cairn_model::{ObjectPlace, Profile, boxed};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How late a read is whose node has not been read from before.
const LATE_UNKNOWN: Duration = Duration::from_millis(100);

impl Pool {
    /// The bytes of a range of a segment, all of them. They are not verified.
    #[boxed]
    pub async fn get_range(&self, place: &ObjectPlace, range: Range<u64>) -> Result<Bytes, PoolError> {
        let roster = self.roster();
        if place.placement.profile() == Profile::Single {
            let (node, key, _) = place.objects().next().expect("a placement has a shard");
            return match roster.member(node)?.node.get_range(&key, range).await {
                // The node is not what it should be: as good as down, until it is.
                Err(error) if error.is_of_node() && !error.retryable() => Err(PoolError::TooFewShards {
                    key: place.key.clone(),
                    found: 0,
                    required: 1,
                    reason: error.to_string(),
                }),
                result => result,
            };
        }
        check_range(place, &roster, &range)?;
        self.hedges.earn(roster.settings.get_hedges_per_1024);
        Gather::new(self, &roster, place, &range).run().await
    }
}

/// Refuses what no reader asks for unless it was told nonsense.
pub(super) fn check_range(place: &ObjectPlace, roster: &Roster, range: &Range<u64>) -> Result<(), PoolError> {
    let is_sound = range.start < range.end
        && range.end <= place.length_bytes
        && range.end - range.start <= GET_BYTES_MAX;
    if is_sound {
        return Ok(());
    }
    Err(PoolError::Corrupt {
        node: name_of_holder(place, roster),
        key: place.key.clone(),
        part: format!("bytes {} to {}", range.start, range.end),
        reason: "the segment has no such range: the catalog's entry is damaged".to_owned(),
    })
}

/// A node that has a part of the segment, for messages.
pub(super) fn name_of_holder(place: &ObjectPlace, roster: &Roster) -> Arc<str> {
    let nodes = place.placement.present().map(|(_, shard)| shard.node);
    let mut names =
        nodes.filter_map(|id| roster.member(id).ok()).map(|member| Arc::clone(member.node.name()));
    names.next().unwrap_or_else(|| "(unknown)".into())
}

/// A shard that is somewhere.
struct Source<'a> {
    index: usize,
    node: &'a DataNode,
    key: String,
    /// Others are asked first.
    is_avoided: bool,
    /// Others are asked as well: it has not answered for long.
    is_late: bool,
    /// It did not answer, or is another node: perhaps it will.
    silent: Option<PoolError>,
    /// It failed, and is asked with patience since.
    is_patient: bool,
    /// The shard is not there.
    gone: Option<PoolError>,
    /// What it was asked for and has not failed to return.
    asked: Vec<Range<u64>>,
    /// What it returned.
    extents: Vec<(Range<u64>, Bytes)>,
}

impl Source<'_> {
    fn is_usable(&self) -> bool {
        self.silent.is_none() && self.gone.is_none()
    }

    /// It was asked for something that has not come.
    fn is_awaited(&self) -> bool {
        self.asked.len() > self.extents.len()
    }

    /// It failed in a way that may pass, and was not asked again since.
    fn may_try_again(&self) -> bool {
        self.silent.is_some() && self.gone.is_none() && !self.is_patient
    }

    fn has_asked(&self, range: &Range<u64>) -> bool {
        self.asked.iter().any(|asked| covers(asked, range))
    }

    fn extent(&self, range: &Range<u64>) -> Option<Bytes> {
        let (extent, bytes) = self.extents.iter().find(|(extent, _)| covers(extent, range))?;
        let start = usize::try_from(range.start - extent.start).ok()?;
        let length = usize::try_from(range.end - range.start).ok()?;
        Some(bytes.slice(start..start + length))
    }
}

fn covers(outer: &Range<u64>, inner: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

enum Event {
    Got {
        source: usize,
        range: Range<u64>,
        result: Result<Bytes, PoolError>,
    },
    Late,
    /// Those that failed have had a pause.
    Again,
}

/// How many times the wait for what is late doubles while nothing can be done about it.
const LATE_DOUBLINGS_MAX: u32 = 5;

struct Gather<'a> {
    pool: &'a Pool,
    roster: &'a Roster,
    place: &'a ObjectPlace,
    profile: Profile,
    /// In the order in which they are asked.
    sources: Vec<Source<'a>>,
    /// A node that the pool does not have holds a shard.
    unknown: Option<PoolError>,
    pieces: Vec<Piece>,
    events: FuturesUnordered<BoxFuture<'a, Event>>,
    /// Gets under way.
    running: usize,
    /// Times in a row that something was late and nothing could be done about it.
    in_vain: u32,
    /// An [`Event::Again`] is under way.
    is_pausing: bool,
}

impl<'a> Gather<'a> {
    fn new(pool: &'a Pool, roster: &'a Roster, place: &'a ObjectPlace, range: &Range<u64>) -> Self {
        let profile = place.placement.profile();
        let now = pool.ports.clock.now();
        let typical = roster.typical(|node| node.health().get_p50());
        let mut unknown = None;
        let mut sources = Vec::with_capacity(profile.shards());
        for (index, shard) in place.placement.present() {
            let member = match roster.member(shard.node) {
                Ok(member) => member,
                Err(error) => {
                    unknown = Some(error);
                    continue;
                }
            };
            sources.push(Source {
                index,
                node: &member.node,
                key: place.shard_key(index).expect("it is present"),
                is_avoided: roster.avoids(member, typical, now),
                is_late: false,
                silent: None,
                is_patient: false,
                gone: None,
                asked: Vec::new(),
                extents: Vec::new(),
            });
        }
        // One that is to show whether it is well again comes first: behind the others it would never be asked.
        sources.sort_by_key(|source| {
            let health = source.node.health();
            (source.is_avoided, !health.is_suspect(), health.get_p50())
        });
        let pieces = match profile {
            Profile::Ec { .. } => pieces_of(range, profile.shard_bytes(place.length_bytes)),
            Profile::Single | Profile::Replica { .. } => {
                let shard = sources.first().map_or(0, |source| source.index);
                vec![Piece { shard, bytes: range.clone() }]
            }
        };
        let events = FuturesUnordered::new();
        Self {
            pool,
            roster,
            place,
            profile,
            sources,
            unknown,
            pieces,
            events,
            running: 0,
            in_vain: 0,
            is_pausing: false,
        }
    }

    async fn run(mut self) -> Result<Bytes, PoolError> {
        self.plan();
        self.wait_for_late();
        loop {
            if let Some(parts) = self.parts() {
                return self.end(parts);
            }
            if self.running == 0 && !self.try_again() {
                return Err(self.error());
            }
            match self.events.next().await {
                Some(Event::Got { source, range, result }) => self.got(source, range, result),
                Some(Event::Late) => self.late(),
                Some(Event::Again) => {
                    self.is_pausing = false;
                    self.ask_failed_again();
                }
                None => return Err(self.error()),
            }
        }
    }

    /// What a shard must return so that `piece` can be made of it and others.
    fn wide(&self, piece: &Piece) -> Range<u64> {
        match self.profile {
            Profile::Ec { .. } => columns(&piece.bytes),
            Profile::Single | Profile::Replica { .. } => piece.bytes.clone(),
        }
    }

    /// Asks for what is not asked for yet.
    fn plan(&mut self) {
        for piece in self.pieces.clone() {
            let own = self.sources.iter().position(|source| source.index == piece.shard);
            let own = own.filter(|at| {
                let source = &self.sources[*at];
                source.is_usable() && !source.is_late && !source.is_avoided
            });
            if let Some(at) = own {
                self.ask(at, piece.bytes);
                continue;
            }
            let wide = self.wide(&piece);
            let is_counted = |source: &Source<'_>| {
                source.extent(&wide).is_some()
                    || (source.is_usable() && !source.is_late && source.has_asked(&wide))
            };
            let mut counted = self.sources.iter().filter(|source| is_counted(source)).count();
            for at in 0..self.sources.len() {
                let source = &self.sources[at];
                if counted < self.profile.needed()
                    && source.is_usable()
                    && !source.is_late
                    && !source.has_asked(&wide)
                {
                    self.ask(at, wide.clone());
                    counted += 1;
                }
            }
        }
    }

    fn ask(&mut self, at: usize, range: Range<u64>) {
        let source = &mut self.sources[at];
        if source.has_asked(&range) {
            return;
        }
        source.asked.push(range.clone());
        self.running += 1;
        let (node, key, is_patient) = (source.node, source.key.clone(), source.is_patient);
        node.health().asked(Direction::Get, self.pool.ports.clock.now());
        self.events.push(Box::pin(async move {
            let result = if is_patient {
                node.get_range(&key, range.clone()).await
            } else {
                node.get_range_within(&key, range.clone(), Duration::ZERO).await
            };
            Event::Got { source: at, range, result }
        }));
    }

    fn got(&mut self, at: usize, range: Range<u64>, result: Result<Bytes, PoolError>) {
        self.running -= 1;
        let source = &mut self.sources[at];
        match result {
            Ok(bytes) => source.extents.push((range, bytes)),
            Err(error) => {
                source.asked.retain(|asked| *asked != range);
                if error.is_of_object() {
                    source.gone = Some(error);
                } else {
                    source.silent = Some(error);
                }
                self.plan();
                self.pause_if_short();
            }
        }
    }

    /// Whether some piece cannot be made of what is in hand and of nodes that may answer soon.
    fn is_short(&self) -> bool {
        let is_short_of = |piece: &Piece| {
            let wide = self.wide(piece);
            let serves = |source: &&Source<'_>, range: &Range<u64>| {
                source.extent(range).is_some() || (source.is_usable() && !source.is_late)
            };
            let own = self.sources.iter().find(|source| source.index == piece.shard);
            own.is_none_or(|own| !serves(&own, &piece.bytes))
                && self.sources.iter().filter(|source| serves(source, &wide)).count() < self.profile.needed()
        };
        self.pieces.iter().any(is_short_of)
    }

    /// Those that failed are asked again after a pause when it cannot be done without them.
    fn pause_if_short(&mut self) {
        let failed = self.sources.iter().filter(|source| source.may_try_again());
        let Some(pause) = failed.map(|source| source.node.first_pause()).min() else { return };
        if self.is_pausing || !self.is_short() {
            return;
        }
        self.is_pausing = true;
        let sleep = self.pool.ports.clock.sleep(pause);
        self.events.push(Box::pin(async {
            sleep.await;
            Event::Again
        }));
    }

    fn ask_failed_again(&mut self) {
        for source in self.sources.iter_mut().filter(|source| source.may_try_again()) {
            source.silent = None;
            source.is_late = false;
            source.is_patient = true;
        }
        self.plan();
    }

    /// Others are asked as well for what has not come yet: such that were not asked, or else such that failed.
    fn late(&mut self) {
        let has_others = self.sources.iter().any(|source| source.asked.is_empty() && source.is_usable());
        let may_act = if has_others {
            self.pool.hedges.spend()
        } else {
            self.sources.iter().any(Source::may_try_again)
        };
        if may_act {
            self.in_vain = 0;
            for source in &mut self.sources {
                source.is_late |= source.is_awaited();
            }
            self.plan();
            self.pause_if_short();
        } else {
            self.in_vain = (self.in_vain + 1).min(LATE_DOUBLINGS_MAX);
        }
        self.wait_for_late();
    }

    fn wait_for_late(&mut self) {
        let floor = self.roster.settings.get_hedge_floor;
        let asked = self.sources.iter().filter(|source| source.is_awaited());
        let slowest = asked.map(|source| source.node.health().get_p95().unwrap_or(LATE_UNKNOWN)).max();
        // A node that is always late is not waited for longer than the others are.
        let typical = self.roster.typical(|node| node.health().get_p95()).unwrap_or(LATE_UNKNOWN);
        let delay = slowest.unwrap_or(floor).min(typical.saturating_mul(3)).max(floor);
        let sleep = self.pool.ports.clock.sleep(delay.saturating_mul(1 << self.in_vain));
        self.events.push(Box::pin(async {
            sleep.await;
            Event::Late
        }));
    }

    /// Asks those again that did not answer, with patience, once. Whether anything is under way.
    fn try_again(&mut self) -> bool {
        // Nothing is awaited, so nothing is late.
        self.sources.iter_mut().for_each(|source| source.is_late = false);
        self.ask_failed_again();
        self.running > 0
    }

    /// What each piece is to be made of, once all can be.
    fn parts(&self) -> Option<Vec<Part>> {
        let part = |piece: &Piece| {
            let own = |source: &&Source<'_>| match self.profile {
                Profile::Ec { .. } => source.index == piece.shard,
                Profile::Single | Profile::Replica { .. } => true,
            };
            let direct = self.sources.iter().filter(own).find_map(|source| source.extent(&piece.bytes));
            if let Some(bytes) = direct {
                return Some(Part::Direct(bytes));
            }
            let wide = self.wide(piece);
            let extent = |source: &Source<'_>| Some((source.index, source.extent(&wide)?));
            let extents: Vec<_> =
                self.sources.iter().filter_map(extent).take(self.profile.needed()).collect();
            (extents.len() == self.profile.needed()).then_some(Part::Decode(extents))
        };
        self.pieces.iter().map(part).collect()
    }

    fn end(self, parts: Vec<Part>) -> Result<Bytes, PoolError> {
        for source in self.sources.iter().filter(|source| source.gone.is_some()) {
            let shard =
                DamagedShard { key: self.place.key.clone(), index: source.index, node: source.node.id() };
            self.pool.notes.damaged(shard);
        }
        let mut made = Vec::with_capacity(parts.len());
        for (piece, part) in self.pieces.iter().zip(parts) {
            made.push(match part {
                Part::Direct(bytes) => bytes,
                Part::Decode(extents) => self.pool.decode_piece(self.place, self.roster, piece, &extents)?,
            });
        }
        Ok(join(made))
    }

    /// Why the range cannot be had.
    fn error(mut self) -> PoolError {
        let needed = self.profile.needed();
        let total = self.place.placement.present().count();
        let gone: Vec<_> = self.sources.iter_mut().filter_map(|source| source.gone.take()).collect();
        let silent: Vec<_> = self.sources.iter_mut().filter_map(|source| source.silent.take()).collect();
        if total - gone.len() < needed {
            // A segment that was deleted since it was located is missing everywhere.
            let missing = gone.iter().find(|error| matches!(error, PoolError::NotFound { .. }));
            if let Some(error) = missing.or(gone.first()) {
                return error.clone();
            }
        }
        match (&silent[..], self.unknown) {
            ([], Some(unknown)) => unknown,
            (silent, unknown) => PoolError::TooFewShards {
                key: self.place.key.clone(),
                found: total.saturating_sub(gone.len() + silent.len() + usize::from(unknown.is_some())),
                required: needed,
                reason: silent.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            },
        }
    }
}

/// What a piece is made of.
enum Part {
    Direct(Bytes),
    /// The same columns of as many shards as it takes.
    Decode(Vec<(usize, Bytes)>),
}
