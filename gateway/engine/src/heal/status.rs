//! What healing tells about itself. Field names are stable: they are the admin API's.

use cairn_model::WallTime;
use serde::Serialize;
use std::time::Duration;

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealKind {
    /// Shards of a node that was found without one are looked for.
    Check,
    /// Segments that the next loss would lose get shards back.
    Rescue,
    /// Segments get back shards that are missing or on failed nodes.
    Repair,
    /// Draining nodes are emptied.
    Drain,
    /// Segments get the pool's profile.
    Conversion,
    /// Segments get to where they would be put today.
    Rebalance,
}

/// What was made anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Healed {
    /// Segments that got another place.
    pub segments: u64,
    /// Shards that were made.
    pub shards: u64,
    /// What was put for them.
    pub bytes: u64,
    /// Shards that were found missing or damaged.
    pub lost: u64,
}

impl Healed {
    pub(super) const fn add(&mut self, other: &Self) {
        self.segments += other.segments;
        self.shards += other.shards;
        self.bytes += other.bytes;
        self.lost += other.lost;
    }
}

/// Work under way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct HealProgress {
    pub kind: HealKind,
    pub since_ms: u64,
    /// Segments looked at.
    pub segments_done: u64,
    /// Of so many, by an estimate.
    pub segments_total: u64,
    /// Put so far.
    pub bytes: u64,
    /// When it goes on like this; unknown at the beginning.
    pub eta_seconds: Option<u64>,
}

/// Reading everything, to see whether it is whole.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ScrubStatus {
    /// A pass is under way that somebody asked for.
    pub is_asked: bool,
    /// Segments read in the pass under way, of so many.
    pub segments_done: u64,
    pub segments_total: u64,
    pub eta_seconds: Option<u64>,
    /// Passes that came to their end since the start.
    pub passes: u64,
    pub last_at_ms: Option<u64>,
    /// Since the start.
    pub total: ScrubReport,
    /// Why the pass does not go on, while it does not.
    pub problem: Option<String>,
}

/// What reading everything found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ScrubReport {
    pub segments: u64,
    pub shards: u64,
    pub bytes: u64,
    /// Shards that were not where the catalog says.
    pub missing: u64,
    /// Shards that were not what they should be.
    pub damaged: u64,
    /// Of both: those that it takes to read their segment, so that something is lost unless they come back.
    pub beyond_repair: u64,
    /// Shards that could not be read because their node does not answer.
    pub unread: u64,
}

impl ScrubReport {
    pub(super) const fn add(&mut self, other: &Self) {
        self.segments += other.segments;
        self.shards += other.shards;
        self.bytes += other.bytes;
        self.missing += other.missing;
        self.damaged += other.damaged;
        self.beyond_repair += other.beyond_repair;
        self.unread += other.unread;
    }
}

/// Healing since the start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct HealStatus {
    /// `None`: nothing is to be done, or nothing can be.
    pub work: Option<HealProgress>,
    pub total: Healed,
    /// Segments that are not as they should be and wait, and what the first of them waits for.
    pub waiting_segments: u64,
    pub waits_for: Option<String>,
    /// Nodes that have not answered for so long that they would be declared failed, if anything were gained by it.
    pub silent_nodes: Vec<String>,
    /// Everything was as it should be when it was looked at last.
    pub settled_at_ms: Option<u64>,
    /// The last problem, while it lasts.
    pub problem: Option<String>,
    pub scrub: ScrubStatus,
}

/// How long the rest takes, when it goes on as it went.
pub(super) fn eta(elapsed: Duration, done: u64, total: u64) -> Option<u64> {
    let rest = total.checked_sub(done)?;
    let seconds = u128::from(rest).saturating_mul(elapsed.as_millis()) / u128::from(done).max(1) / 1000;
    (done > 0).then(|| u64::try_from(seconds).unwrap_or(u64::MAX))
}

pub(super) fn progress(kind: HealKind, now: WallTime, segments_total: u64) -> HealProgress {
    HealProgress {
        kind,
        since_ms: now.unix_millis(),
        segments_done: 0,
        segments_total,
        bytes: 0,
        eta_seconds: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_what_was_done_did() {
        let after = Duration::from_secs(10);
        assert_eq!(eta(after, 0, 100), None);
        assert_eq!(eta(after, 20, 100), Some(40));
        assert_eq!(eta(after, 100, 100), Some(0));
        assert_eq!(eta(after, 101, 100), None, "the estimate was wrong");
        assert_eq!(eta(Duration::MAX, 1, u64::MAX), Some(u64::MAX));
    }
}
