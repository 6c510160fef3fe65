//! Shards whose damage cannot be mended, as far as is known.

use cairn_model::SegmentId;
use std::collections::BTreeMap;

/// How many are remembered.
const REMEMBERED_MAX: usize = 100_000;

/// They are not read again and again, and told of once.
#[derive(Debug, Default)]
pub(super) struct BeyondRepair {
    /// With whether that may have changed since.
    shards: BTreeMap<(SegmentId, usize), bool>,
}

impl BeyondRepair {
    /// Whether it is one, and nothing has changed that could help.
    pub(super) fn has(&self, segment: SegmentId, index: usize) -> bool {
        self.shards.get(&(segment, index)) == Some(&false)
    }

    /// Remembers one. Whether it is news. Beyond what is remembered nothing is: each of those would be told of again and again, and be a reason to look for more.
    pub(super) fn note(&mut self, segment: SegmentId, index: usize) -> bool {
        if self.shards.len() >= REMEMBERED_MAX && !self.shards.contains_key(&(segment, index)) {
            // What may be mended by now makes room: whoever comes by finds out.
            let doubtful = self.shards.iter().find(|(_, is_doubtful)| **is_doubtful).map(|(which, _)| *which);
            let Some(doubtful) = doubtful else { return false };
            self.shards.remove(&doubtful);
        }
        self.shards.insert((segment, index), false).is_none()
    }

    /// It is whole.
    pub(super) fn forget(&mut self, segment: SegmentId, index: usize) {
        self.shards.remove(&(segment, index));
    }

    /// Shards of the segment were made anew, or deleted: what could not be mended may be mended now, or gone.
    pub(super) fn doubt(&mut self, segment: SegmentId) {
        for (_, is_doubtful) in self.shards.range_mut((segment, 0)..=(segment, usize::MAX)) {
            *is_doubtful = true;
        }
    }

    /// A node is back: the same for all of them.
    pub(super) fn doubt_all(&mut self) {
        self.shards.values_mut().for_each(|is_doubtful| *is_doubtful = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_however_many_there_are() {
        let mut known = BeyondRepair::default();
        let id = |number: usize| SegmentId::from_bytes((number as u128).to_be_bytes());
        for number in 0..REMEMBERED_MAX {
            assert!(known.note(id(number), 0));
        }
        for _ in 0..2 {
            assert!(!known.note(id(3), 0), "it was told");
            assert!(!known.note(id(REMEMBERED_MAX), 0), "there is no room for more");
        }
        assert!(known.has(id(0), 0) && known.has(id(REMEMBERED_MAX - 1), 0));
        known.doubt_all();
        assert!(!known.has(id(0), 0));
        assert!(known.note(id(REMEMBERED_MAX), 0), "what may be mended makes room");
        assert!(known.has(id(REMEMBERED_MAX), 0));
        assert!(!known.note(id(5), 0), "it was told before");
    }
}
