//! The pool: where segments become durable, and where they are read from.
//!
//! A segment has one or more shards, each on another data node, as its profile says (see `Profile`). The pool chooses the nodes ([`choose`]), puts the shards
//! (`put`), and reads from whichever of them serve (`get`), also when some are gone, late, or lie (`distrust`). A node's own business (attempts,
//! health, marker) stays in [`DataNode`].
//!
//! Invariants:
//! 1. A receipt names a shard only after its node acknowledged all of it, and names no node twice.
//! 2. A receipt has all shards, or as few less as the setting allows: its segment survives as many losses more as that says.
//! 3. What comes from here is what the nodes returned or was decoded from it. It is authenticated by who opens it; what fails there is read again
//!    with distrust, and wrong shards are noted for repair.
//! 4. What one gateway sees of a node decides whom it asks first, never whether a shard counts as lost.

mod assemble;
mod attach;
mod attempts;
mod breaker;
mod candidates;
pub(crate) mod classify;
mod credentials;
mod directory;
mod distrust;
pub(crate) mod erasure;
mod found;
mod get;
mod health;
mod hedge;
mod keys;
mod latency;
mod layout;
mod location;
mod look;
mod marker;
mod node;
mod notes;
mod pieces;
mod policy;
mod put;
pub(crate) mod recipe;
mod refound;
mod repair;
mod roster;
mod s3;
pub(crate) mod shard;
mod source;
mod staged;
mod verified;

pub use attach::NodeAccess;
pub use breaker::BreakerState;
pub use credentials::Credentials;
pub use found::{FoundSegment, ObjectTally};
pub(crate) use health::Direction;
pub use health::{HealthSnapshot, LastError, NodeHealth, Refusal};
pub use keys::{KEYS_BYTES_MAX, KEYS_KEY};
pub use layout::{Candidate, choose};
pub use location::{NodeUrl, S3Url};
pub use look::{ListedObject, ObjectIdentity, ShardLook};
pub use marker::MARKER_KEY;
pub use node::{DataNode, GET_BYTES_MAX};
pub use notes::{DamagedShard, Stray};
pub use policy::RequestPolicy;
pub use put::EncodedSegment;
pub use repair::{Domains, ShardState};
pub use roster::{Member, NodeState, PoolSettings};

use crate::error::PoolError;
use attempts::Attempts;
use cairn_model::{NodeId, ObjectPlace, Ports, Profile, boxed};
use hedge::HedgeBudget;
use notes::Notes;
use parking_lot::RwLock;
use recipe::Recipes;
use roster::Roster;
use std::sync::Arc;

/// The data nodes of a site.
#[derive(Debug)]
pub struct Pool {
    /// Never locked across a wait: callers take what is there now and work with that.
    roster: RwLock<Arc<Roster>>,
    ports: Ports,
    notes: Notes,
    attempts: Attempts,
    hedges: HedgeBudget,
    recipes: Recipes,
}

impl Pool {
    pub fn new(members: Vec<Member>, settings: PoolSettings, ports: Ports) -> Self {
        Self {
            roster: RwLock::new(Arc::new(Roster { members, settings })),
            ports,
            notes: Notes::default(),
            attempts: Attempts::default(),
            hedges: HedgeBudget::default(),
            recipes: Recipes::default(),
        }
    }

    /// A pool that keeps one copy, on one node.
    pub fn single(node: DataNode) -> Self {
        let ports = node.ports().clone();
        Self::new(vec![Member::new(node)], PoolSettings::default(), ports)
    }

    pub(crate) const fn ports(&self) -> &Ports {
        &self.ports
    }

    fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.roster.read())
    }

    /// Exchanges the nodes. Requests that are under way end with those they began with.
    pub fn set_nodes(&self, members: Vec<Member>) {
        let mut roster = self.roster.write();
        *roster = Arc::new(Roster { members, settings: roster.settings });
    }

    /// Changes the nodes that there are at this moment, whoever exchanges them beside it. `None` leaves them as they are.
    pub fn change_nodes(&self, change: impl FnOnce(&[Member]) -> Option<Vec<Member>>) {
        let mut roster = self.roster.write();
        if let Some(members) = change(&roster.members) {
            *roster = Arc::new(Roster { members, settings: roster.settings });
        }
    }

    /// Changes how new segments are protected, and nothing about those that are there.
    pub fn set_profile(&self, profile: Profile) {
        self.set_settings(PoolSettings { profile, ..self.settings() });
    }

    pub fn set_settings(&self, settings: PoolSettings) {
        let mut roster = self.roster.write();
        *roster = Arc::new(Roster { members: roster.members.clone(), settings });
    }

    pub fn settings(&self) -> PoolSettings {
        self.roster.read().settings
    }

    pub fn profile(&self) -> Profile {
        self.settings().profile
    }

    /// The nodes with their places in the pool.
    pub fn members(&self) -> Vec<Member> {
        self.roster.read().members.clone()
    }

    pub fn nodes(&self) -> Vec<Arc<DataNode>> {
        self.roster.read().members.iter().map(|member| Arc::clone(&member.node)).collect()
    }

    pub fn node(&self, id: NodeId) -> Result<Arc<DataNode>, PoolError> {
        self.roster.read().member(id).map(|member| Arc::clone(&member.node))
    }

    /// Deletes every shard of a segment that nothing names. Those that could be deleted are, whatever becomes of the others.
    #[boxed]
    pub async fn discard(&self, place: &ObjectPlace) -> Result<(), PoolError> {
        let deletes = place.objects().map(|(node, key, _)| async move { self.delete(node, &key).await });
        let results = futures::future::join_all(deletes).await;
        results.into_iter().collect()
    }

    /// Deletes an object that nothing names any more. One that is not there is deleted already.
    #[boxed]
    pub async fn delete(&self, node: NodeId, key: &str) -> Result<(), PoolError> {
        self.node(node)?.delete(key).await?;
        self.notes.deleted(key);
        Ok(())
    }

    /// Shards that were found missing or damaged since the last call, for repair.
    pub fn take_damaged(&self) -> Vec<DamagedShard> {
        self.notes.take_damaged()
    }

    /// Objects that puts may have left behind beside those that their receipts name, since the last call: to be deleted. Nothing names them and nothing will.
    pub fn take_strays(&self) -> Vec<Stray> {
        self.notes.take_strays()
    }

    /// Notes an object that is to be deleted when its node answers again: nothing names it and nothing will.
    pub fn note_stray(&self, stray: Stray) {
        self.notes.stray(stray);
    }
}
