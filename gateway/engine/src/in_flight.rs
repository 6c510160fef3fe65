//! Segments between their put and the catalog.
//!
//! Invariant: a segment is here from before the first of its objects can be in the pool until the catalog has answered whether it names it, or nothing will ever ask it to. So an object that was
//! *listed*, and whose segment was *not here after that*, and that the catalog *does not name after that*, is named by nothing and will not be: if its segment was put before the list and
//! was not here after, its commit had been answered before the catalog was asked. That is the order in which `fsck` looks.
//!
//! Of a change whose answer never came nobody knows what becomes of it: its segment stays here until the end of the process.

use cairn_model::SegmentId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    segments: Mutex<HashMap<SegmentId, usize>>,
}

impl InFlight {
    /// The segment is about to be put.
    pub(crate) fn enter(self: &Arc<Self>, segment: SegmentId) -> OnItsWay {
        *self.segments.lock().entry(segment).or_default() += 1;
        OnItsWay { segment, all: Arc::clone(self) }
    }

    /// When the oldest of them was made, in milliseconds since 1970.
    pub(crate) fn oldest_ms(&self) -> Option<u64> {
        self.segments.lock().keys().map(SegmentId::created_at_ms).min()
    }

    pub(crate) fn contains(&self, segment: SegmentId) -> bool {
        self.segments.lock().contains_key(&segment)
    }
}

/// A segment on its way; not any more when it is dropped.
#[derive(Debug)]
pub(crate) struct OnItsWay {
    segment: SegmentId,
    all: Arc<InFlight>,
}

impl OnItsWay {
    /// Nobody knows whether the catalog will name it.
    pub(crate) fn stay(self) {
        *self.all.segments.lock().entry(self.segment).or_default() += 1;
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let mut segments = self.all.segments.lock();
        if let Some(count) = segments.get_mut(&self.segment) {
            *count -= 1;
            if *count == 0 {
                segments.remove(&self.segment);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_on_its_way_until_the_last_one_lets_go() {
        let all = Arc::new(InFlight::default());
        let id = SegmentId::from_bytes([1; 16]);
        let (first, second) = (all.enter(id), all.enter(id));
        drop(first);
        assert!(all.contains(id));
        drop(second);
        assert!(!all.contains(id));
        all.enter(id).stay();
        assert!(all.contains(id), "nobody knows what becomes of it");
    }
}
