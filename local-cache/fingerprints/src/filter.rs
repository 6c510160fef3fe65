//! Which anchors may be on disk, told by memory.
//!
//! Nearly every block that is written is new, and the store takes a microsecond or two to say that it has no anchor for it: a skip list, and a filter for each
//! table. Here one filter (Bloom, "Space/Time Trade-offs in Hash Coding with Allowable Errors", CACM 1970) answers for all of it in a tenth of that.
//!
//! It is not kept on disk. After a start it says "maybe" to everything until the store's anchors were *gathered*, slice by slice, by whoever writes. It
//! cannot forget either: when it has taken as many anchors as it has room for, those of removed containers among them, another one is
//! gathered, and takes its place.
//!
//! Whatever it says wrongly costs a look-up or a block that is stored twice.

use fastbloom::AtomicBloomFilter;
use foldhash::fast::FixedState;
use parking_lot::RwLock;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};

/// Key of an anchor in the store.
pub(crate) type AnchorKey = [u8; 16];

/// Below one absent fingerprint in a hundred is asked for in the store when the filter is full, fewer before.
const BITS_PER_ANCHOR: usize = 10;
/// Room of the smallest filter: 640 KiB.
const ANCHORS_MIN: u64 = 1 << 19;
/// Room of the largest one, 1.25 GiB: what a store says of its size decides no more than that.
const ANCHORS_MAX: u64 = 1 << 30;
const SEED: u64 = 0x616e_6368_6f72;

type Bits = AtomicBloomFilter<FixedState>;

#[derive(Debug)]
struct Sized {
    bits: Bits,
    room: u64,
    /// How many were taken in, some of them twice perhaps.
    taken: AtomicU64,
}

impl Sized {
    /// With room for twice as many as there are.
    fn for_anchors(anchors: u64) -> Self {
        let room = anchors.saturating_mul(2).clamp(ANCHORS_MIN, ANCHORS_MAX);
        let bits = usize::try_from(room).expect("memory holds them") * BITS_PER_ANCHOR;
        let bits = AtomicBloomFilter::with_num_bits(bits)
            .hasher(FixedState::with_seed(SEED))
            .expected_items(usize::try_from(room).expect("memory holds them"));
        Self { bits, room, taken: AtomicU64::new(0) }
    }

    fn take(&self, key: &AnchorKey) {
        self.bits.insert(key);
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.bits.num_bits() as u64 / 8
    }
}

#[derive(Debug)]
struct Gathering {
    filter: Sized,
    /// Behind which of the store's anchors the next ones are.
    after: Bound<AnchorKey>,
}

#[derive(Debug, Default)]
struct Filters {
    complete: Option<Sized>,
    gathering: Option<Gathering>,
    /// Not all of the store's anchors can be read: what there is stays.
    is_given_up: bool,
}

/// Changes are made by one at a time; anybody asks.
#[derive(Debug)]
pub(crate) struct AnchorFilter(RwLock<Filters>);

impl AnchorFilter {
    /// For a store without anchors.
    pub(crate) fn of_nothing() -> Self {
        Self(RwLock::new(Filters { complete: Some(Sized::for_anchors(0)), ..Filters::default() }))
    }

    /// For a store with about so many anchors, which are to be gathered.
    pub(crate) fn to_gather(anchors: u64) -> Self {
        let gathering = Gathering { filter: Sized::for_anchors(anchors), after: Bound::Unbounded };
        Self(RwLock::new(Filters { gathering: Some(gathering), ..Filters::default() }))
    }

    /// Whether the store may have the anchor.
    pub(crate) fn may_have(&self, key: &AnchorKey) -> bool {
        self.0.read().complete.as_ref().is_none_or(|filter| filter.bits.contains(key))
    }

    /// The store is about to have these.
    pub(crate) fn take<'a>(&self, keys: impl Iterator<Item = &'a AnchorKey>) {
        let filters = self.0.read();
        let gathering = filters.gathering.as_ref().map(|gathering| &gathering.filter);
        for key in keys {
            filters.complete.iter().chain(gathering).for_each(|filter| filter.take(key));
        }
    }

    /// Begins to gather once more if the filter is full. `anchors`: about how many the store has.
    pub(crate) fn renew_if_full(&self, anchors: impl FnOnce() -> u64) {
        let is_full = |filter: &Sized| filter.taken.load(Ordering::Relaxed) > filter.room;
        let is_due = {
            let filters = self.0.read();
            let may_begin = filters.gathering.is_none() && !filters.is_given_up;
            may_begin && filters.complete.as_ref().is_some_and(is_full)
        };
        if is_due {
            let filter = Sized::for_anchors(anchors());
            self.0.write().gathering = Some(Gathering { filter, after: Bound::Unbounded });
        }
    }

    /// Where gathering goes on, if there is something to gather.
    pub(crate) fn gathers_after(&self) -> Option<Bound<AnchorKey>> {
        self.0.read().gathering.as_ref().map(|gathering| gathering.after)
    }

    /// What the store has behind [`Self::gathers_after`], in its order; nothing when that was all.
    pub(crate) fn gathered(&self, keys: &[AnchorKey]) {
        let mut filters = self.0.write();
        let Some(mut gathering) = filters.gathering.take() else { return };
        let Some(last) = keys.last() else {
            filters.complete = Some(gathering.filter);
            return;
        };
        gathering.after = Bound::Excluded(*last);
        filters.gathering = Some(gathering);
        drop(filters);
        let filters = self.0.read();
        if let Some(gathering) = &filters.gathering {
            for key in keys {
                gathering.filter.take(key);
            }
        }
    }

    /// The store's anchors cannot be gathered. Until the next start it says of those that it lacks, or of all, that they may be there.
    pub(crate) fn give_up(&self) {
        let mut filters = self.0.write();
        (filters.gathering, filters.is_given_up) = (None, true);
    }

    /// Memory that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        let filters = self.0.read();
        let gathering = filters.gathering.as_ref().map(|gathering| &gathering.filter);
        filters.complete.iter().chain(gathering).map(Sized::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> AnchorKey {
        let mut key = [0; 16];
        key[8..].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn keys(numbers: std::ops::Range<u64>) -> Vec<AnchorKey> {
        numbers.map(key).collect()
    }

    /// Of a thousand that were never taken in.
    fn false_positives(filter: &AnchorFilter) -> usize {
        (1 << 40..(1 << 40) + 1000).filter(|number| filter.may_have(&key(*number))).count()
    }

    #[test]
    fn what_was_taken_in_is_there_and_little_else() {
        let filter = AnchorFilter::of_nothing();
        assert_eq!(false_positives(&filter), 0);
        let taken = keys(0..ANCHORS_MIN);
        filter.take(taken.iter());
        assert!(taken.iter().all(|key| filter.may_have(key)));
        let errs = false_positives(&filter);
        assert!((1..25).contains(&errs), "{errs} of 1000 at its full size");
        assert_eq!(filter.bytes(), ANCHORS_MIN * BITS_PER_ANCHOR as u64 / 8);
    }

    #[test]
    fn until_all_is_gathered_everything_may_be_there() {
        let filter = AnchorFilter::to_gather(100);
        assert_eq!(filter.gathers_after(), Some(Bound::Unbounded));
        filter.gathered(&keys(0..10));
        assert_eq!(filter.gathers_after(), Some(Bound::Excluded(key(9))));
        // Written meanwhile, where gathering has been and where it has not.
        filter.take([key(3), key(5000)].iter());
        assert_eq!(false_positives(&filter), 1000);
        filter.gathered(&keys(10..20));
        filter.gathered(&[]);
        assert_eq!(filter.gathers_after(), None);
        assert!(keys(0..20).iter().chain([&key(5000)]).all(|key| filter.may_have(key)));
        assert_eq!(false_positives(&filter), 0);
    }

    #[test]
    fn a_full_one_is_gathered_anew_and_answers_until_then() {
        let filter = AnchorFilter::of_nothing();
        filter.take(keys(0..ANCHORS_MIN).iter());
        filter.renew_if_full(|| panic!("it is not full"));
        filter.take(keys(ANCHORS_MIN..2 * ANCHORS_MIN).iter());
        let before = false_positives(&filter);
        assert!(before > 25, "{before} of 1000 when it is too full");
        // Most of them were removed from the store.
        let left = keys(0..1000);
        filter.renew_if_full(|| left.len() as u64);
        filter.renew_if_full(|| panic!("it is under way"));
        filter.gathered(&left);
        filter.take([key(1 << 50)].iter());
        assert_eq!(false_positives(&filter), before);
        filter.gathered(&[]);
        assert!(left.iter().chain([&key(1 << 50)]).all(|key| filter.may_have(key)));
        assert_eq!(false_positives(&filter), 0);
    }

    #[test]
    fn what_cannot_be_gathered_is_not_tried_again_and_everything_may_be_there() {
        let filter = AnchorFilter::to_gather(100);
        filter.gathered(&keys(0..10));
        filter.give_up();
        assert_eq!(filter.gathers_after(), None);
        assert_eq!(false_positives(&filter), 1000);
        let full = AnchorFilter::of_nothing();
        full.take(keys(0..2 * ANCHORS_MIN).iter());
        full.renew_if_full(|| 10);
        full.give_up();
        full.renew_if_full(|| panic!("it was given up"));
        assert!(keys(0..2 * ANCHORS_MIN).iter().all(|key| full.may_have(key)), "the one before answers");
    }

    #[test]
    fn what_a_store_says_of_its_size_is_not_believed_without_end() {
        assert_eq!(Sized::for_anchors(u64::MAX).room, ANCHORS_MAX);
    }
}
