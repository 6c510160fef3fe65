//! Who is in the pool, and how it works: exchanged as a whole while it serves.

use super::layout::Candidate;
use super::node::DataNode;
use crate::error::PoolError;
use cairn_model::{Monotonic, NodeId, Profile};
use std::sync::Arc;
use std::time::Duration;

/// What the site has decided about a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NodeState {
    /// It takes new segments.
    #[default]
    Active,
    /// It serves what it has, and is being emptied.
    Draining,
    /// It was given up. It is asked only for what no other node can serve.
    Failed,
}

/// A data node in its place in the pool.
#[derive(Clone, Debug)]
pub struct Member {
    pub node: Arc<DataNode>,
    /// What fails together: a host, a rack. `None`: the node alone.
    pub domain: Option<Arc<str>>,
    /// Share of the data relative to other nodes' weights, as of capacity.
    pub weight: u64,
    pub state: NodeState,
}

impl Member {
    /// An active node that is like the others.
    pub fn new(node: DataNode) -> Self {
        Self { node: Arc::new(node), domain: None, weight: 1, state: NodeState::Active }
    }

    pub(super) fn candidate(&self) -> Candidate {
        Candidate { id: self.node.id(), domain: self.domain.clone(), weight: self.weight }
    }
}

/// How the pool works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolSettings {
    /// How new segments are protected.
    pub profile: Profile,
    /// Losses that a segment must still survive when it is written without all its shards. Where the profile survives fewer, none may be missing.
    pub spare_losses: usize,
    /// After this time a put goes on without the shards that are late, if it may.
    pub put_deadline: Duration,
    /// No shard that is late is put on another node as well before this time.
    pub put_hedge_floor: Duration,
    /// No read that is late is sent to other nodes as well before this time.
    pub get_hedge_floor: Duration,
    /// Of 1024 reads, those that may be sent to other nodes as well because they are late.
    pub get_hedges_per_1024: u32,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            profile: Profile::Single,
            spare_losses: 1,
            put_deadline: Duration::from_secs(10),
            put_hedge_floor: Duration::from_millis(500),
            get_hedge_floor: Duration::from_millis(10),
            get_hedges_per_1024: 128,
        }
    }
}

impl PoolSettings {
    /// Whether a segment may be published with so many of its shards missing.
    pub(super) fn may_miss(&self, missing: usize) -> bool {
        let tolerates = self.profile.tolerates();
        missing + self.spare_losses.min(tolerates) <= tolerates
    }
}

/// One state of the pool.
#[derive(Debug)]
pub(super) struct Roster {
    pub(super) members: Vec<Member>,
    pub(super) settings: PoolSettings,
}

impl Roster {
    pub(super) fn member(&self, id: NodeId) -> Result<&Member, PoolError> {
        let found = self.members.iter().find(|member| member.node.id() == id);
        found.ok_or(PoolError::UnknownNode { node: id })
    }

    /// How much slower than the node in the middle a node may be before others are asked instead.
    const SLOW_FACTOR: u32 = 4;

    /// The middle of what the nodes' requests take at their slow end. `None` before any was made.
    pub(super) fn typical(&self, of: impl Fn(&DataNode) -> Option<Duration>) -> Option<Duration> {
        let mut all: Vec<_> = self.members.iter().filter_map(|member| of(&member.node)).collect();
        all.sort_unstable();
        // Of two the faster.
        all.get(all.len().saturating_sub(1) / 2).copied()
    }

    /// Whether reads go to other nodes if they can.
    pub(super) fn avoids(&self, member: &Member, typical: Option<Duration>, now: Monotonic) -> bool {
        let health = member.node.health();
        let floor = self.settings.get_hedge_floor;
        let is_slow = || {
            let (Some(p50), Some(typical)) = (health.get_p50(), typical) else { return false };
            // A look now and then, or it would be slow for good.
            p50 > typical.saturating_mul(Self::SLOW_FACTOR).max(floor) && !health.is_due_for_a_look()
        };
        member.state == NodeState::Failed || !health.admits(now) || is_slow()
    }
}
