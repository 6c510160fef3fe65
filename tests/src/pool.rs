//! A pool of several data nodes under one gateway, and everything that can happen to a node.
//!
//! Two kinds of nodes: directories, which fail in an instant and in every way ([`Folders`]), and buckets behind the endpoints of a real Ceph RGW
//! ([`Buckets`]), which are killed and frozen like the servers they are. [`Relay`] puts a slow or failing network in front of one of those.

mod buckets;
mod folders;
mod known;
mod relay;
mod rounds;
mod site;

pub use buckets::Buckets;
pub use folders::Folders;
pub use known::Known;
pub use relay::{Mood, Relay};
pub use rounds::{Load, Nodes, Rounds, Summary};
pub use site::{NodeFigures, PoolFigures, PoolSite, wait_until};
