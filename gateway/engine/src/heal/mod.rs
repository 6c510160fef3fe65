//! The machine that heals: desired placement minus actual placement, segment by segment.
//!
//! ```text
//! look at nodes ─► what is most in danger ─► plan of a segment ─► make shards ─► place them ─► delete what is left over ─► the next
//!     ▲                                                                                                        │
//!     └──────────────────────────────── every interval, and when something changes ────────────────────────────┘
//! ```
//!
//! - What is desired (the pool's profile, nodes with their states, weights and domains) and what is (placements) are in the catalog alone. So all of this is resumable:
//!   a restart begins again with what is still to be done, and every step may be done by several gateways at once.
//! - Repair, draining, conversion and rebalance are the same work in this order of danger: segments that the next loss would lose; shards that are missing or
//!   on failed nodes; nodes that are drained; segments of another profile than the pool's; and, when nodes or weights have changed since a sweep that found nothing to do,
//!   segments that would be put elsewhere today. Between any few segments it is asked whether something more dangerous has come up.
//! - One step (`step`) changes one segment, and orders its effects; what it does is decided by a function of nodes and placement alone (`plan`).
//! - Guests come first: bytes are bounded by a rate, few segments are under way at a time, and destage of a log that fills up goes before. Segments at risk are an exception.
//! - Readers that located a container before find its shards gone, and locate it again (`read`).
//! - Which nodes are failed is decided by silence (`watch`). Damage is found by readers, by samples of nodes that were away, and by reading everything in the course of
//!   weeks (`scrub`); what is found missing or damaged is lost in the catalog first, and then made anew.

mod beyond_repair;
mod examine;
mod healer;
mod plan;
mod roster;
mod scrub;
mod status;
mod step;
mod throttle;
mod watch;

pub(crate) use examine::{Found, examine};
pub(crate) use healer::heal_until_stopped;
pub use roster::members;
pub(crate) use scrub::scrub_until_stopped;
pub use status::{HealKind, HealProgress, HealStatus, Healed, ScrubReport, ScrubStatus};
pub(crate) use step::place_of;

use crate::config::EngineConfig;
use crate::engine::{Engine, Shared, until_known};
use crate::error::EngineError;
use crate::record::Record;
use beyond_repair::BeyondRepair;
use cairn_metadata::EventRow;
use cairn_model::{NodeId, SegmentId, boxed};
use cairn_segment_writer::{DataNode, Stray};
use examine::Unreadable;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use step::Unanswered;
use throttle::Throttle;
use tokio::sync::{Notify, oneshot};

/// Kinds of events.
mod kind {
    pub(super) const NODE_FAILED: &str = "node-failed";
    pub(super) const NODE_BACK: &str = "node-back";
    pub(super) const NODE_REUSED: &str = "node-reused";
    pub(super) const NODE_CHECK: &str = "node-check";
    pub(super) const LOST: &str = "segment-damaged";
}

/// Segments that somebody doubts, shards that cannot be read, and objects that are to be deleted, that are remembered of each.
const REMEMBERED_MAX: usize = 10_000;
/// How long the end of the engine waits for segments under way.
pub(crate) const HEAL_LIMIT: Duration = Duration::from_secs(10);

type ScrubAnswer = oneshot::Sender<Result<ScrubReport, EngineError>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Heal {
    /// Held while segments are under way.
    turn: tokio::sync::Mutex<()>,
    /// Nodes, the profile, or what is known of damage have changed.
    wake: Notify,
    status: Mutex<HealStatus>,
    throttle: Throttle,
    /// Segments of which something was not as it should be.
    suspects: Mutex<BTreeSet<SegmentId>>,
    /// Segments that have another place since readers were told last.
    moved: Mutex<HashSet<SegmentId>>,
    beyond_repair: Mutex<BeyondRepair>,
    /// Shards that cannot be read although their nodes answer, and what was seen of that.
    unreadable: Mutex<BTreeMap<(SegmentId, usize), Unreadable>>,
    /// Changes of places whose answer did not come: nothing is made anew before it has.
    unanswered: Mutex<Vec<Unanswered>>,
    /// Objects that the catalog does not name and may have named for a moment, each with the last checkpoint that may have seen that ([`Record::begun`]).
    once_named: Mutex<Vec<(u64, Stray)>>,
    /// Nodes on which a shard was missing since they were looked at last, and the first segment of which one was.
    doubted: Mutex<BTreeMap<NodeId, SegmentId>>,
    /// Shards that were found lost and no check was looking for.
    lost_by_chance: AtomicU64,
    /// Who waits for a pass of scrub.
    askers: Mutex<Vec<ScrubAnswer>>,
    scrub_wake: Notify,
}

impl Heal {
    /// Something was lost: it is to be made anew now.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn new(config: &EngineConfig) -> Self {
        Self {
            turn: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            status: Mutex::default(),
            throttle: Throttle::new(config.heal_bytes_per_second),
            suspects: Mutex::default(),
            moved: Mutex::default(),
            beyond_repair: Mutex::default(),
            unreadable: Mutex::default(),
            unanswered: Mutex::default(),
            once_named: Mutex::default(),
            doubted: Mutex::default(),
            lost_by_chance: AtomicU64::new(0),
            askers: Mutex::default(),
            scrub_wake: Notify::new(),
        }
    }

    /// Something of the segment was not as it should be.
    pub(crate) fn suspect(&self, segment: SegmentId) {
        let mut suspects = self.suspects.lock();
        if suspects.len() < REMEMBERED_MAX {
            suspects.insert(segment);
        }
    }

    /// The segment has another place.
    fn moved(&self, segment: SegmentId) {
        self.moved.lock().insert(segment);
    }

    /// An object of the segment was deleted: all of that may be gone.
    pub(crate) fn deleted_from(&self, segment: SegmentId) {
        self.beyond_repair.lock().doubt(segment);
    }

    /// Remembers an object that the catalog does not name any more, if it ever did. Beyond what is remembered they stay as what a crash leaves.
    fn note_once_named(&self, record: &Record, stray: Stray) {
        let mut once_named = self.once_named.lock();
        if once_named.len() < REMEMBERED_MAX {
            once_named.push((record.begun(), stray));
        }
    }

    /// Those of them that no checkpoint names from which a catalog would be made again.
    fn take_once_named(&self, record: &Record) -> Vec<Stray> {
        let durable = record.durable();
        let gone = self.once_named.lock().extract_if(.., |(seen, _)| *seen < durable).collect::<Vec<_>>();
        gone.into_iter().map(|(_, stray)| stray).collect()
    }

    /// Whether healing put the object, and knows yet what is to become of it. Between segments only: while [`Heal::own_turn`] is held.
    pub(crate) fn deals_with(&self, node: NodeId, key: &str) -> bool {
        let is_it = |(on, of): &(NodeId, String)| *on == node && of == key;
        self.unanswered.lock().iter().any(|change| change.keys().iter().any(is_it))
            || self.once_named.lock().iter().any(|(_, stray)| stray.node == node && stray.key == key)
    }

    pub(crate) fn status(&self) -> HealStatus {
        self.status.lock().clone()
    }

    /// Waits until no segment is under way. While what this returns is held, none begins.
    pub(crate) async fn own_turn(&self) -> impl Drop + use<'_> {
        self.turn.lock().await
    }
}

impl Engine {
    /// Nodes or the pool's profile were changed in the catalog: healing looks at once.
    pub fn pool_changed(&self) {
        self.shared().heal.wake.notify_one();
    }

    /// The pool has these nodes from now on, in the places that the catalog gives them; those that it does not know are left out.
    #[boxed]
    pub async fn set_nodes(&self, nodes: &[Arc<DataNode>]) -> Result<(), EngineError> {
        let shared = self.shared();
        let rows = until_known(shared, || shared.catalog.nodes()).await?;
        shared.pool.set_nodes(members(&rows, nodes));
        self.pool_changed();
        Ok(())
    }

    /// Reads everything in the pool now, whatever the period, and returns what was found. What is missing or damaged is mended after. Goes on
    /// if the caller stops waiting.
    #[boxed]
    pub async fn scrub(&self) -> Result<ScrubReport, EngineError> {
        let (answer, report) = oneshot::channel();
        let heal = &self.shared().heal;
        heal.askers.lock().push(answer);
        heal.scrub_wake.notify_one();
        report.await.unwrap_or(Err(EngineError::Stopped))
    }
}

/// Destage of a log that fills up goes first, but healing goes on by so many bytes a second: guests that write all the time must not keep the pool from being whole.
const BYTES_PER_SECOND_LEAST: u64 = 8 << 20;

/// Guests and destage come first, and a rate is kept.
pub(crate) async fn wait_for_turn(shared: &Shared, bytes: u64) {
    let mut destage_first = shared.pressure.destage_first();
    let turn = async {
        // For a while: destage may itself be waiting for what healing does. An error means that nobody is there any more who could say so.
        let clock = &*shared.ports.clock;
        let longest = Duration::from_micros(bytes.saturating_mul(1_000_000) / BYTES_PER_SECOND_LEAST);
        let _ = cairn_model::timeout(clock, longest, destage_first.wait_for(|is_first| !is_first)).await;
        shared.heal.throttle.pass(&*shared.ports.clock, bytes).await;
    };
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => {}
        () = turn => {}
    }
}

/// Writes an event down, if the catalog takes it: it only tells.
async fn tell(shared: &Shared, kind: &str, subject: String, text: String) {
    let event = EventRow { at: shared.ports.clock.wall(), kind: kind.to_owned(), subject, text };
    if let Err(error) = shared.catalog.add_event(&event).await {
        tracing::debug!(%error, kind, "an event is not written down");
    }
}
