//! What the pool noticed and somebody else is to mend.
//!
//! Each list is bounded. What does not fit is counted and logged, and not lost for good where something finds it again: damage is found by the next reader and by the
//! next scrub; a shard that lies and is not noted passes for whole until a reader finds it again. A stray that is not noted stays in the pool and costs room, nothing else: nothing names it.

use cairn_model::{NodeId, ObjectPlace};
use parking_lot::Mutex;
use std::collections::BTreeSet;

/// Notes of one kind that are kept.
const NOTES_MAX: usize = 4096;

/// A shard that a read found missing or damaged.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DamagedShard {
    /// Of the segment.
    pub key: String,
    pub index: usize,
    pub node: NodeId,
}

/// An object that nothing names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stray {
    pub node: NodeId,
    pub key: String,
}

#[derive(Debug)]
pub(super) struct Notes {
    damaged: Mutex<Kept<DamagedShard>>,
    strays: Mutex<Kept<Stray>>,
    /// Keys of shards that pass their checksums and are wrong. Keys are used once, so this stays true.
    lying: Mutex<Kept<String>>,
}

impl Default for Notes {
    fn default() -> Self {
        Self {
            damaged: Mutex::new(Kept::new("damaged shards")),
            strays: Mutex::new(Kept::new("objects that puts left behind")),
            lying: Mutex::new(Kept::new("shards that lie")),
        }
    }
}

impl Notes {
    pub(super) fn damaged(&self, shard: DamagedShard) {
        self.damaged.lock().note(shard);
    }

    pub(super) fn stray(&self, stray: Stray) {
        self.strays.lock().note(stray);
    }

    pub(super) fn lying(&self, place: &ObjectPlace, index: usize) {
        if let Some(key) = place.shard_key(index) {
            self.lying.lock().note(key);
        }
    }

    pub(super) fn is_lying(&self, place: &ObjectPlace, index: usize) -> bool {
        let lying = self.lying.lock();
        !lying.notes.is_empty() && place.shard_key(index).is_some_and(|key| lying.notes.contains(&key))
    }

    /// The object is deleted: whether it lied matters no more.
    pub(super) fn deleted(&self, key: &str) {
        self.lying.lock().notes.remove(key);
    }

    pub(super) fn take_damaged(&self) -> Vec<DamagedShard> {
        self.damaged.lock().take()
    }

    pub(super) fn take_strays(&self) -> Vec<Stray> {
        self.strays.lock().take()
    }
}

/// Notes of one kind.
#[derive(Debug)]
struct Kept<T> {
    of: &'static str,
    notes: BTreeSet<T>,
    /// Those that did not fit since the latest were taken.
    left_out: u64,
}

impl<T: Ord> Kept<T> {
    const fn new(of: &'static str) -> Self {
        Self { of, notes: BTreeSet::new(), left_out: 0 }
    }

    fn note(&mut self, one: T) {
        if self.notes.len() < NOTES_MAX {
            self.notes.insert(one);
        } else if !self.notes.contains(&one) {
            if self.left_out == 0 {
                tracing::warn!(of = self.of, max = NOTES_MAX, "too many notes; further ones are left out");
            }
            self.left_out += 1;
        }
    }

    fn take(&mut self) -> Vec<T> {
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            tracing::warn!(of = self.of, left_out, "there is room for notes again");
        }
        std::mem::take(&mut self.notes).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::Placement;

    #[test]
    fn a_shard_that_lies_is_forgotten_when_it_is_deleted() {
        let notes = Notes::default();
        let placement = Placement::single(NodeId::from_bytes([1; 16]));
        let place = ObjectPlace { key: "segments/00/a".to_owned(), length_bytes: 1, placement };
        assert!(!notes.is_lying(&place, 0));
        notes.lying(&place, 0);
        assert!(notes.is_lying(&place, 0));
        notes.deleted(&place.shard_key(0).unwrap());
        assert!(!notes.is_lying(&place, 0) && notes.lying.lock().notes.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_counted_and_left_out() {
        let mut kept = Kept::new("numbers");
        for number in 0..NOTES_MAX + 10 {
            kept.note(number);
        }
        // Known already, and one that is not.
        kept.note(0);
        kept.note(NOTES_MAX);
        assert_eq!((kept.notes.len(), kept.left_out), (NOTES_MAX, 11));
        assert_eq!(kept.take().len(), NOTES_MAX);
        assert_eq!((kept.notes.len(), kept.left_out), (0, 0));
        kept.note(NOTES_MAX);
        assert_eq!(kept.take(), [NOTES_MAX]);
    }
}
