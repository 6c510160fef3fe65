//! One object of a record on its way to the nodes.

use super::store::{Copies, RecordStore, count, worse};
use crate::error::PoolError;
use crate::pool::{Direction, Member};
use bytes::Bytes;
use cairn_model::{Monotonic, NodeId};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// How long others are waited for where an object is on as few nodes as count while those are silent.
const SILENCE: Duration = Duration::from_secs(20);
/// How long those are waited for that are not needed.
const PATIENCE: Duration = Duration::from_secs(2);

type Answers<'a> = FuturesUnordered<BoxFuture<'a, (NodeId, Result<(), PoolError>)>>;

/// The put of an object to the nodes of which it is not known that they have it. Dropped at any point, those that answered are among the copies.
pub(super) struct Putting<'a> {
    store: &'a RecordStore,
    members: &'a [Member],
    key: &'a str,
    object: &'a Bytes,
    copies: &'a mut Copies,
    began: Monotonic,
    under_way: Answers<'a>,
    /// Those that likely do not answer, or have no room: they are asked one by one, as far as it takes them.
    doubtful: VecDeque<&'a Member>,
    failed: Option<PoolError>,
    /// Since when there are as many copies as count while others are silent.
    least_since: Option<Monotonic>,
    /// Since when it is everywhere.
    everywhere_since: Option<Monotonic>,
}

impl<'a> Putting<'a> {
    pub(super) fn new(
        store: &'a RecordStore,
        members: &'a [Member],
        key: &'a str,
        object: &'a Bytes,
        copies: &'a mut Copies,
    ) -> Self {
        let now = store.clock.now();
        let lacking = members.iter().filter(|member| !copies.contains(&member.node.id()));
        let (well, doubtful): (Vec<_>, Vec<_>) = lacking.partition(|member| {
            let health = member.node.health();
            health.takes_puts(now) && health.admits(now) && !store.is_silent(member, now)
        });
        let mut putting = Self {
            store,
            members,
            key,
            object,
            copies,
            began: now,
            under_way: FuturesUnordered::new(),
            doubtful: doubtful.into(),
            failed: None,
            least_since: None,
            everywhere_since: None,
        };
        for member in well {
            putting.ask(member);
        }
        putting
    }

    fn ask(&mut self, member: &'a Member) {
        let (node, pieces, key) = (Arc::clone(&member.node), [self.object.clone()], self.key);
        node.health().asked(Direction::Put, self.began);
        self.under_way.push(Box::pin(async move { (node.id(), node.put(key, &pieces).await) }));
    }

    /// Until the object is durable.
    pub(super) async fn run(mut self) -> Result<(), PoolError> {
        loop {
            let now = self.store.clock.now();
            let copies = count(self.members, self.copies);
            if copies >= self.store.needed() {
                self.everywhere_since.get_or_insert(now);
            }
            if copies >= self.store.least(self.members) {
                self.least_since.get_or_insert(now);
            }
            if self.under_way.is_empty() {
                if self.everywhere_since.is_some() {
                    return Ok(());
                }
                let Some(member) = self.next_doubtful() else { break };
                self.ask(member);
            }
            match self.answer().await {
                Some((node, Ok(()))) => drop(self.copies.insert(node)),
                Some((node, Err(error))) => {
                    tracing::debug!(%node, %error, key = self.key, "a node did not take an object of the record");
                    self.failed = Some(worse(self.failed.take(), error));
                }
                None if self.everywhere_since.is_some() => return Ok(()),
                None if self.suffices() => {
                    let late = self.members.iter().map(|member| member.node.id());
                    self.store.late.lock().extend(late.filter(|id| !self.copies.contains(id)));
                    return Ok(());
                }
                // One that refuses may take it yet, or says why not.
                None => self.least_since = None,
            }
        }
        if self.suffices() {
            return Ok(());
        }
        Err(self.failed.unwrap_or_else(|| self.store.too_few("put", self.key)))
    }

    /// Whether it can be left at the copies there are, since all others are silent.
    fn suffices(&self) -> bool {
        let now = self.store.clock.now();
        let refuses = |member: &Member| {
            !self.copies.contains(&member.node.id()) && member.node.health().is_refusing(now)
        };
        count(self.members, self.copies) >= self.store.least(self.members)
            && !matches!(self.failed, Some(PoolError::OutOfSpace { .. }))
            && !self.members.iter().any(refuses)
    }

    /// Whom to ask when nobody else is under way. Those that are silent are tried when it cannot be done without them.
    fn next_doubtful(&mut self) -> Option<&'a Member> {
        while self.suffices()
            && self.doubtful.front().is_some_and(|member| self.store.is_silent(member, self.began))
        {
            self.doubtful.pop_front();
        }
        self.doubtful.pop_front()
    }

    /// The next answer. `None` when it was waited for long enough.
    async fn answer(&mut self) -> Option<(NodeId, Result<(), PoolError>)> {
        let clock = &*self.store.clock;
        let until = match (self.everywhere_since, self.least_since) {
            (Some(since), _) => Some((since, PATIENCE)),
            (None, since) => since.map(|since| (since, SILENCE)),
        };
        let Some((since, patience)) = until else { return self.under_way.next().await };
        let left = patience.saturating_sub(clock.now().since(since));
        cairn_model::timeout(clock, left, self.under_way.next()).await.ok().flatten()
    }
}
