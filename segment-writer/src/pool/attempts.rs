//! Where puts may have left shards of segments that nothing names yet.

use super::notes::Stray;
use cairn_model::SegmentId;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};

/// Segments with a receipt of which it is kept where they were put: more than are ever on their way to the catalog.
const STORED_KEPT: usize = 1024;

/// Segments without a receipt of which that is kept. Who packs them holds them in memory, so they are few, but for those that were given up without a word.
const ATTEMPTED_KEPT: usize = 1024;

/// Where shards of segments may be that nothing names yet.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// Of those without a receipt. Of one that is forgotten, [`Pool::abandon`](super::Pool::abandon) deletes every name that it may have.
    of: Mutex<BTreeMap<SegmentId, Vec<Stray>>>,
    /// Of the latest with one: a batch that the catalog refuses abandons them.
    stored: Mutex<VecDeque<(SegmentId, Vec<Stray>)>>,
}

impl Attempts {
    pub(super) fn note(&self, segment: SegmentId, stray: Stray) {
        let mut of = self.of.lock();
        if of.len() >= ATTEMPTED_KEPT && !of.contains_key(&segment) {
            // Ids begin with the time: the oldest.
            of.pop_first();
        }
        let strays = of.entry(segment).or_default();
        if !strays.contains(&stray) {
            strays.push(stray);
        }
    }

    pub(super) fn take(&self, segment: SegmentId) -> Vec<Stray> {
        self.of.lock().remove(&segment).unwrap_or_default()
    }

    pub(super) fn stored(&self, segment: SegmentId, shards: Vec<Stray>) {
        let mut stored = self.stored.lock();
        if stored.len() == STORED_KEPT {
            stored.pop_front();
        }
        stored.push_back((segment, shards));
    }

    /// All that is known of a segment that is abandoned.
    pub(super) fn take_all(&self, segment: SegmentId) -> Vec<Stray> {
        let mut all = self.take(segment);
        let mut stored = self.stored.lock();
        while let Some(at) = stored.iter().position(|(id, _)| *id == segment) {
            all.extend(stored.remove(at).into_iter().flat_map(|(_, shards)| shards));
        }
        all
    }

    /// Takes back what was taken and not dealt with.
    pub(super) fn keep(&self, segment: SegmentId, strays: Vec<Stray>) {
        for stray in strays {
            self.note(segment, stray);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::NodeId;

    #[test]
    fn only_the_latest_attempts_are_kept() {
        let attempts = Attempts::default();
        let id = |number: usize| SegmentId::from_bytes((number as u128).to_be_bytes());
        let stray = |key: &str| Stray { node: NodeId::from_bytes([1; 16]), key: key.to_owned() };
        for number in 0..2 * ATTEMPTED_KEPT {
            attempts.note(id(number), stray("first"));
            attempts.note(id(number), stray("second"));
        }
        assert_eq!(attempts.of.lock().len(), ATTEMPTED_KEPT);
        assert!(attempts.take(id(0)).is_empty());
        assert_eq!(attempts.take(id(2 * ATTEMPTED_KEPT - 1)), [stray("first"), stray("second")]);
    }
}
