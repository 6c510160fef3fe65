//! Putting a segment: all its shards at once, each on a node of its own.
//!
//! Order of a put: its keys are noted as attempted, the shards are put, and a receipt is made when enough nodes have acknowledged theirs. Nothing names a shard
//! before that. What goes wrong:
//!
//! - a node fails: its shard goes to the next node in the order that has none; one that was late may still store it, which leaves a stray;
//! - a node is late: its shard goes to a spare node as well, and the first that acknowledges it holds it; the other one is a stray;
//! - a node hangs: it is passed over by the puts of the next while, whatever it answers to reads;
//! - no node is left for a shard, or the deadline has passed: the receipt is made without it if the setting allows, and the shard is `None` in it,
//!   which is what repair looks for; otherwise the put fails, and its caller tries again later;
//! - the put fails, or is dropped: what it stored has keys that no other segment will have. Repeating it may choose other nodes; [`Pool::abandon`] deletes
//!   on every node that was asked;
//! - the process dies: as above, but nobody knows what was attempted. It stays in the pool and costs room: nothing names it.

use super::erasure::Pieces;
use super::health::Direction;
use super::node::DataNode;
use super::notes::Stray;
use super::roster::{Member, NodeState, Roster};
use super::{Pool, layout, shard};
use crate::error::PoolError;
use crate::segment::SealedSegment;
use bytes::Bytes;
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{
    Clock, NodeId, ObjectPlace, Placement, Profile, SegmentId, ShardPlace, UploadReceipt, boxed, shard_key,
};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::time::Duration;

/// How long a node that fails is tried again when there are others.
const PATIENCE: Duration = Duration::from_secs(2);

/// A segment made into the shards of a profile.
#[derive(Clone, Debug)]
pub struct EncodedSegment {
    id: SegmentId,
    key: String,
    length_bytes: u64,
    profile: Profile,
    shards: Shards,
}

#[derive(Clone, Debug)]
enum Shards {
    /// Every shard is the segment.
    Copies([Bytes; 2]),
    Coded(Vec<Pieces>),
}

impl EncodedSegment {
    /// CPU work: nothing for copies, a few milliseconds for parity. Data shards share the segment's memory.
    pub fn new(segment: &SealedSegment, profile: Profile) -> Self {
        let pieces = segment.pieces();
        let shards = match profile {
            Profile::Single | Profile::Replica { .. } => Shards::Copies(pieces),
            Profile::Ec { data, parity } => Shards::Coded(
                shard::encode_segment(&pieces, data, parity).expect("a sealed segment begins as one does"),
            ),
        };
        Self {
            id: segment.id(),
            key: segment.key().to_owned(),
            length_bytes: segment.length_bytes(),
            profile,
            shards,
        }
    }

    pub const fn profile(&self) -> Profile {
        self.profile
    }

    pub(super) fn pieces(&self, index: usize) -> &[Bytes] {
        match &self.shards {
            Shards::Copies(pieces) => pieces,
            Shards::Coded(shards) => &shards[index],
        }
    }

    fn shard_key(&self, index: usize) -> String {
        shard_key(&self.key, self.profile, index, 0)
    }
}

impl Pool {
    /// Makes a segment durable under the profile of now. May be repeated with the same segment after any error, and dropped at any point: what is
    /// left behind then has no receipt and a key that nothing else uses.
    #[boxed]
    pub async fn put(&self, segment: &SealedSegment) -> Result<UploadReceipt, PoolError> {
        let profile = self.profile();
        let mut encoded = None;
        let is_small = !matches!(profile, Profile::Ec { .. });
        if is_small
            || !self.ports.spawn.in_place(&mut || encoded = Some(EncodedSegment::new(segment, profile)))
        {
            encoded = Some(EncodedSegment::new(segment, profile));
        }
        self.put_encoded(&encoded.expect("it was made, there or here")).await
    }

    /// The same for a segment that was encoded elsewhere, as on threads for CPU work.
    #[boxed]
    pub async fn put_encoded(&self, segment: &EncodedSegment) -> Result<UploadReceipt, PoolError> {
        let roster = self.roster();
        let mut put = Put::new(self, &roster, segment);
        let stored = put.run().await;
        let stored = match stored {
            Err(_) if is_planted(Bug::PublishUnstored) => Ok(put.intended()),
            stored => stored,
        };
        drop(put);
        let shards = stored?;
        let named: Vec<_> = (0..)
            .zip(&shards)
            .filter_map(|(index, node)| Some(Stray { node: (*node)?, key: segment.shard_key(index) }))
            .collect();
        for stray in self.attempts.take(segment.id) {
            if !named.contains(&stray) {
                self.notes.stray(stray);
            }
        }
        self.attempts.stored(segment.id, named);
        let shards = shards.into_iter().map(|node| Some(ShardPlace { node: node?, tag: 0 })).collect();
        let placement = Placement::new(segment.profile, shards)
            .expect("enough shards were stored, each on a node that has no other");
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the pool, and the nodes acknowledged the shards"
        )]
        Ok(UploadReceipt::attest(
            segment.id,
            ObjectPlace { key: segment.key.clone(), length_bytes: segment.length_bytes, placement },
        ))
    }

    /// Deletes whatever attempts to put the segment may have left. For one that nothing names and nothing will. May be repeated after an error.
    #[boxed]
    pub async fn abandon(&self, segment: &SealedSegment) -> Result<(), PoolError> {
        let mut strays = self.attempts.take_all(segment.id());
        if strays.is_empty() {
            // Put by another pool, or so long ago that it is forgotten: every name that it may have here.
            let profile = self.profile();
            for node in self.nodes() {
                for index in 0..profile.shards() {
                    let stray = Stray { node: node.id(), key: shard_key(segment.key(), profile, index, 0) };
                    if !strays.contains(&stray) {
                        strays.push(stray);
                    }
                }
            }
        }
        let deletes = strays.iter().map(|stray| async move {
            match self.delete(stray.node, &stray.key).await {
                // What has left the pool is nobody's to delete.
                Err(PoolError::UnknownNode { .. }) => Ok(()),
                result => result,
            }
        });
        let results = futures::future::join_all(deletes).await;
        let left: Vec<_> = strays
            .iter()
            .zip(&results)
            .filter(|(_, result)| result.is_err())
            .map(|(stray, _)| stray.clone())
            .collect();
        self.attempts.keep(segment.id(), left);
        results.into_iter().collect()
    }
}

/// What a put waits for.
enum Event {
    Put {
        index: usize,
        member: usize,
        result: Result<(), PoolError>,
    },
    /// Shards that are not stored yet go to spare nodes as well.
    Late,
    /// Shards that are not stored yet are done without, if that may be.
    Deadline,
}

/// One shard on its way.
#[derive(Default)]
struct Slot {
    /// The member that has it.
    stored: Option<usize>,
    /// Puts under way.
    running: usize,
}

struct Put<'a> {
    pool: &'a Pool,
    roster: &'a Roster,
    segment: &'a EncodedSegment,
    clock: &'a dyn Clock,
    /// Members that take new segments, the best first; those that are likely to fail last.
    order: Vec<usize>,
    /// How many of the order are likely to succeed.
    healthy: usize,
    /// Which shard each member was given last. It has one at most that counts.
    given: Vec<Option<usize>>,
    slots: Vec<Slot>,
    /// Of nodes that failed, with their members.
    errors: Vec<(usize, PoolError)>,
    events: FuturesUnordered<BoxFuture<'a, Event>>,
}

impl<'a> Put<'a> {
    fn new(pool: &'a Pool, roster: &'a Roster, segment: &'a EncodedSegment) -> Self {
        let clock = &*pool.ports.clock;
        let now = clock.now();
        let active =
            roster.members.iter().enumerate().filter(|(_, member)| member.state == NodeState::Active);
        let (healthy, others): (Vec<_>, Vec<_>) = active.partition(|(_, member)| {
            let health = member.node.health();
            health.takes_puts(now) && health.admits(now)
        });
        let ordered = |members: &[(usize, &Member)]| -> Vec<usize> {
            let candidates: Vec<_> = members.iter().map(|(_, member)| member.candidate()).collect();
            layout::order(segment.id, &candidates).iter().map(|placed| members[placed.at].0).collect()
        };
        // Those that are said to be full are as good as the others, when it takes them.
        let (filled, roomy): (Vec<_>, Vec<_>) =
            healthy.iter().copied().partition(|(_, member)| member.node.health().is_filled());
        let mut order = ordered(&roomy);
        order.extend(ordered(&filled));
        order.extend(ordered(&others));
        Self {
            pool,
            roster,
            segment,
            clock,
            order,
            healthy: healthy.len(),
            given: vec![None; roster.members.len()],
            slots: (0..segment.profile.shards()).map(|_| Slot::default()).collect(),
            errors: Vec::new(),
            events: FuturesUnordered::new(),
        }
    }

    /// The nodes that have the shards now, when that is enough.
    async fn run(&mut self) -> Result<Vec<Option<NodeId>>, PoolError> {
        let settings = &self.roster.settings;
        for index in 0..self.slots.len() {
            self.send(index);
        }
        if self.order.len() > 1 {
            self.wake(self.hedge_delay(), || Event::Late);
            self.wake(settings.put_deadline, || Event::Deadline);
        }
        let mut is_overdue = false;
        while self.slots.iter().any(|slot| slot.stored.is_none() && slot.running > 0)
            && !(is_overdue && self.may_end())
        {
            match self.events.next().await {
                Some(Event::Put { index, member, result }) => self.ended(index, member, result),
                Some(Event::Late) => self.hedge(),
                Some(Event::Deadline) => is_overdue = true,
                None => break,
            }
        }
        if self.may_end() {
            let id = |member: usize| self.roster.members[member].node.id();
            return Ok(self.slots.iter().map(|slot| slot.stored.map(id)).collect());
        }
        Err(self.error())
    }

    /// Where the shards would be if all had gone well.
    fn intended(&self) -> Vec<Option<NodeId>> {
        let order = self.order.iter().map(|member| Some(self.roster.members[*member].node.id()));
        order.chain(std::iter::repeat(None)).take(self.slots.len()).collect()
    }

    fn stored(&self) -> usize {
        self.slots.iter().filter(|slot| slot.stored.is_some()).count()
    }

    fn may_miss(&self, missing: usize) -> bool {
        let settings = super::PoolSettings { profile: self.segment.profile, ..self.roster.settings };
        settings.may_miss(missing)
    }

    fn may_end(&self) -> bool {
        self.may_miss(self.slots.len() - self.stored())
    }

    fn ended(&mut self, index: usize, member: usize, result: Result<(), PoolError>) {
        let slot = &mut self.slots[index];
        slot.running -= 1;
        match result {
            Ok(()) => {
                // The first one has it; a second one is a stray.
                slot.stored.get_or_insert(member);
                // A node that was waited for may be free now, for a shard that found none.
                let without = |slot: &Slot| slot.stored.is_none() && slot.running == 0;
                let waiting: Vec<_> = (0..self.slots.len()).filter(|at| without(&self.slots[*at])).collect();
                for index in waiting {
                    self.send(index);
                }
            }
            Err(error) => {
                let node = self.roster.members[member].node.name();
                tracing::debug!(%node, key = self.segment.key, index, %error, "a shard was not stored");
                self.errors.push((member, error));
                if slot.stored.is_none() && slot.running == 0 {
                    self.send(index);
                }
            }
        }
    }

    /// Gives a shard to the next node, if there is one that is worth it.
    fn send(&mut self, index: usize) {
        // Nodes that will fail by all odds are tried only when it cannot be done without them.
        let without = self.slots.len().saturating_sub(self.healthy);
        let order = if self.may_miss(without) && self.errors.is_empty() {
            &self.order[..self.healthy]
        } else {
            &self.order[..]
        };
        let member = self.pick(order, |given| given.is_none());
        // A node that was late with a shard that another one has by now is free for this one.
        let is_free = |given: Option<usize>| given.is_some_and(|index| self.slots[index].stored.is_some());
        if let Some(member) = member.or_else(|| self.pick(order, is_free)) {
            self.start(index, member);
        }
    }

    /// Shards that are late go to spare nodes as well: to those that are likely to be faster only.
    fn hedge(&mut self) {
        let mut has_started = false;
        for index in 0..self.slots.len() {
            if self.slots[index].stored.is_none()
                && let Some(member) = self.pick(&self.order[..self.healthy], |given| given.is_none())
            {
                self.start(index, member);
                has_started = true;
            }
        }
        if has_started {
            self.wake(self.hedge_delay(), || Event::Late);
        }
    }

    fn wake(&self, after: Duration, event: fn() -> Event) {
        let sleep = self.clock.sleep(after);
        self.events.push(Box::pin(async move {
            sleep.await;
            event()
        }));
    }

    fn has_failed(&self, member: usize) -> bool {
        self.errors.iter().any(|(failed, _)| *failed == member)
    }

    /// The first that has not failed and may be taken for what it was given, of a domain that has no shard if there is such a one.
    fn pick(&self, order: &[usize], may_take: impl Fn(Option<usize>) -> bool) -> Option<usize> {
        let domain = |member: usize| self.roster.members[member].domain.as_ref();
        let counts = |member: usize| {
            self.given[member].is_some_and(|index| {
                let stored = self.slots[index].stored;
                stored.is_none_or(|stored| stored == member) && !self.has_failed(member)
            })
        };
        let taken: Vec<_> =
            (0..self.given.len()).filter(|member| counts(*member)).filter_map(domain).collect();
        let is_free =
            |member: &usize| !counts(*member) && may_take(self.given[*member]) && !self.has_failed(*member);
        let mut free = order.iter().copied().filter(is_free);
        let first = free.next()?;
        let is_apart = |member: &usize| domain(*member).is_none_or(|domain| !taken.contains(&domain));
        std::iter::once(first).chain(free).find(is_apart).or(Some(first))
    }

    fn start(&mut self, index: usize, member: usize) {
        self.given[member] = Some(index);
        self.slots[index].running += 1;
        let node: &'a DataNode = &self.roster.members[member].node;
        node.health().asked(Direction::Put, self.clock.now());
        let segment = self.segment;
        let key = segment.shard_key(index);
        self.pool.attempts.note(segment.id, Stray { node: node.id(), key: key.clone() });
        let is_alone = self.order.len() == 1;
        self.events.push(Box::pin(async move {
            let pieces = segment.pieces(index);
            let result = if is_alone {
                node.put(&key, pieces).await
            } else {
                node.put_within(&key, pieces, PATIENCE).await
            };
            Event::Put { index, member, result }
        }));
    }

    /// When a shard is late: by far later than is usual of the nodes.
    fn hedge_delay(&self) -> Duration {
        let typical = self.roster.typical(|node| node.health().put_p95());
        typical.unwrap_or_default().saturating_mul(3).max(self.roster.settings.put_hedge_floor)
    }

    /// Why too few shards are stored.
    fn error(&mut self) -> PoolError {
        let slots = self.slots.len();
        let required = (0..=slots).find(|stored| self.may_miss(slots - stored)).unwrap_or(slots);
        let with_room = self.order.len()
            - self.errors.iter().filter(|(_, error)| matches!(error, PoolError::OutOfSpace { .. })).count();
        let full = |error: &PoolError| matches!(error, PoolError::OutOfSpace { .. });
        if with_room < required
            && let Some((_, error)) = self.errors.iter().find(|(_, error)| full(error))
        {
            return error.clone();
        }
        if let ([(_, error)], 1) = (&self.errors[..], self.order.len())
            && (error.retryable() || !error.is_of_node())
        {
            return error.clone();
        }
        let mut reasons: Vec<_> = self.errors.iter().map(|(_, error)| error.to_string()).collect();
        if self.order.len() < required {
            reasons.insert(0, format!("{} nodes take new segments", self.order.len()));
        }
        PoolError::TooFewNodes {
            key: self.segment.key.clone(),
            profile: self.segment.profile,
            acknowledged: self.stored(),
            required,
            reason: reasons.join("; "),
        }
    }
}
