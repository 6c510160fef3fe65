//! Which sparse segments are rewritten.
//!
//! A segment that is `u` full of live bytes gives back `1 - u` of itself, and costs reading and writing `u`. Data that has not changed for long will not soon
//! change by itself, so what it gives back lasts. Rosenblum and Ousterhout, "The Design and Implementation of a Log-Structured File System" (1992), take
//! benefit over cost, `(1 - u) * age / (1 + u)`; only live bytes are read here, so the cost is `2 u`. Age counts by its root, and no more than a month of it: what is
//! nearly full would come before what is nearly empty for being years old.
//!
//! How much may be dead is a limit for the worst moment. What moves is in the pool twice until a checkpoint has it, and guests go on writing meanwhile: so passes begin well
//! before the limit, and take small steps ([`Limits`]).

use super::pace::Dying;
use cairn_model::{ContainerId, SegmentId};
use std::cmp::Reverse;

/// A segment that holds something live.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    pub(super) id: SegmentId,
    /// Of the object, as long as it is.
    pub(super) object_bytes: u64,
    /// What it would take written anew: chunks that something points at, and what a footer says of them.
    pub(super) live_bytes: u64,
    pub(super) containers: Vec<ContainerId>,
}

const MINUTE_MS: u64 = 60 * 1000;
const AGE_MINUTES_MAX: u64 = 30 * 24 * 60;

/// Sums over some segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Space {
    pub(super) object_bytes: u64,
    pub(super) live_bytes: u64,
}

impl Space {
    pub(super) fn of<'a>(segments: impl IntoIterator<Item = &'a Segment>) -> Self {
        segments.into_iter().fold(Self::default(), |mut sum, segment| {
            sum.add(segment.space());
            sum
        })
    }

    pub(super) const fn dead_bytes(self) -> u64 {
        self.object_bytes.saturating_sub(self.live_bytes)
    }

    /// Whether more than so many thousandths of it are dead.
    pub(super) const fn is_above(self, per_mille: u16) -> bool {
        self.dead_bytes() as u128 * 1000 > self.object_bytes as u128 * per_mille as u128
    }

    pub(super) const fn add(&mut self, other: Self) {
        self.object_bytes += other.object_bytes;
        self.live_bytes += other.live_bytes;
    }
}

impl Segment {
    pub(super) const fn space(&self) -> Space {
        Space { object_bytes: self.object_bytes, live_bytes: self.live_bytes }
    }

    /// When the youngest of its data was written, by a wall clock: an estimate.
    fn written_at_ms(&self) -> u64 {
        self.containers.iter().map(ContainerId::created_at_ms).max().unwrap_or_default()
    }

    /// Benefit over cost, times 2^32.
    fn merit(&self, now_ms: u64) -> u128 {
        let minutes = now_ms.saturating_sub(self.written_at_ms()) / MINUTE_MS;
        let age = u128::from((1000 * (1 + minutes.min(AGE_MINUTES_MAX))).isqrt());
        ((u128::from(self.space().dead_bytes()) * age) << 32) / (2 * u128::from(self.live_bytes) + 1)
    }
}

/// Thousandths of the pool that may be dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    /// At any time.
    pub(super) most: u16,
    /// Before something moves.
    pub(super) begin: u16,
    /// After that.
    pub(super) goal: u16,
}

impl Limits {
    /// A pass begins somewhat below what may be dead, and takes a small step: of the pool's bytes it moves about three times as many as it gives back, since the sparsest segments of a
    /// pool under random writes are about three quarters full, and what moved is there twice for a while.
    pub(super) const fn of(dead_percent_max: u8) -> Self {
        let most = dead_percent_max as u16 * 10;
        if dead_percent_max >= 100 {
            // Never.
            return Self { most, begin: most, goal: most };
        }
        Self { most, begin: most * 17 / 20, goal: most * 16 / 20 }
    }
}

/// What a choice is to reach.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) limits: Limits,
    /// What is written meanwhile lets so much die.
    pub(super) dying: Dying,
    /// Live bytes that are moved at once.
    pub(super) moved_bytes_max: u64,
    pub(super) now_ms: u64,
}

impl Wanted {
    /// With what dies meanwhile: as much takes its place.
    const fn soon(&self, space: Space) -> Space {
        Space { object_bytes: space.object_bytes + self.dying.bytes(space.live_bytes), ..space }
    }
}

/// What to rewrite so that no more than is wanted is dead when that is done, best first. While little is dead, nothing; else a step's worth,
/// so that the next time does not come at once. Segments that are no emptier than the whole is to be are left alone: to write them anew gains little, and
/// when all are such, the whole is.
pub(super) fn choose<'a>(segments: &'a [Segment], wanted: &Wanted) -> Vec<&'a Segment> {
    let Limits { begin, goal, .. } = wanted.limits;
    let mut space = wanted.soon(Space::of(segments));
    if !space.is_above(begin) {
        return Vec::new();
    }
    let mut sparse: Vec<_> = segments.iter().filter(|segment| segment.space().is_above(goal)).collect();
    sparse.sort_by_cached_key(|segment| (Reverse(segment.merit(wanted.now_ms)), segment.id));
    let mut moved = 0;
    let chosen = sparse.into_iter().take_while(|segment| {
        let is_wanted = space.is_above(goal) && moved < wanted.moved_bytes_max;
        space.object_bytes -= segment.space().dead_bytes();
        moved += segment.live_bytes;
        is_wanted
    });
    chosen.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1 << 40;

    /// Written `age` milliseconds ago.
    fn segment(number: u8, age: u64, object_bytes: u64, live_bytes: u64) -> Segment {
        let mut id = [number; 16];
        id[..6].copy_from_slice(&(NOW - age).to_be_bytes()[2..]);
        let containers = vec![ContainerId::from_bytes(id)];
        Segment { id: SegmentId::from_bytes(id), object_bytes, live_bytes, containers }
    }

    fn wanted(dead_percent_max: u8) -> Wanted {
        let limits = Limits::of(dead_percent_max);
        Wanted { limits, dying: Dying::per_mille(0), moved_bytes_max: u64::MAX, now_ms: NOW }
    }

    fn chosen(segments: &[Segment], percent: u8) -> Vec<u8> {
        let chosen = choose(segments, &wanted(percent));
        chosen.iter().map(|segment| segment.id.as_bytes()[15]).collect()
    }

    const HOUR: u64 = 60 * MINUTE_MS;

    #[test]
    fn the_sparse_and_the_old_come_first() {
        let of = |first, second| chosen(&[first, second], 10);
        assert_eq!(of(segment(1, HOUR, 100, 80), segment(2, HOUR, 100, 30)), [2, 1]);
        assert_eq!(of(segment(1, HOUR, 100, 50), segment(2, 9 * HOUR, 100, 50)), [2, 1]);
        // Old and somewhat fuller beats young; as old as can be and nearly full does not beat nearly empty.
        assert_eq!(of(segment(1, HOUR, 100, 50), segment(2, 9 * HOUR, 100, 60)), [2, 1]);
        assert_eq!(of(segment(1, HOUR, 100, 5), segment(2, 100_000 * HOUR, 100, 88)), [1, 2]);
    }

    #[test]
    fn nothing_is_rewritten_while_little_is_dead() {
        let segments = [segment(1, HOUR, 100, 80), segment(2, HOUR, 100, 81)];
        // 195 of 1000 are dead.
        assert!(chosen(&segments, 23).is_empty());
        assert_eq!(chosen(&segments, 22), [1]);
        assert!(chosen(&[segment(1, 0, 100, 1)], 100).is_empty());
        assert!(chosen(&[], 0).is_empty());
        // What is written anew is a little larger than thought, and stays alone.
        assert!(chosen(&[segment(1, HOUR, 100, 110)], 0).is_empty());
    }

    #[test]
    fn what_is_full_is_left_alone_however_old() {
        let mut segments: Vec<_> = (0..100).map(|number| segment(number, 10_000 * HOUR, 1000, 995)).collect();
        segments.extend((100..200).map(|number| segment(number, HOUR, 1000, 500)));
        let sparse = chosen(&segments, 20);
        assert!(!sparse.is_empty() && sparse.iter().all(|number| *number >= 100), "{sparse:?}");
    }

    #[test]
    fn only_so_much_moves_at_once() {
        let segments: Vec<_> = (0..10).map(|number| segment(number, HOUR, 100, 40)).collect();
        assert_eq!(choose(&segments, &Wanted { moved_bytes_max: 100, ..wanted(10) }).len(), 3);
    }

    #[test]
    fn more_is_rewritten_where_more_dies_meanwhile() {
        let segments: Vec<_> = (0..100).map(|number| segment(number, HOUR, 10_000, 8_100)).collect();
        let count = |dying| choose(&segments, &Wanted { dying: Dying::per_mille(dying), ..wanted(23) }).len();
        assert_eq!(count(0), 0, "19 % is dead");
        // 100 * 1900 + 810 * 20 of 1000000 + 810 * 20 are; down to 18.4 %.
        assert_eq!(count(20), 13);
        assert!(count(50) > count(20));
    }

    proptest! {
        #[test]
        fn what_is_left_is_dense_enough_and_no_more_is_rewritten_than_that_takes(
            sizes in prop::collection::vec((1u64..1000, 0u64..100, 0u64..100_000_000), 1..60), percent in 0u8..100,
        ) {
            let segments: Vec<_> = (0u8..).zip(&sizes).map(|(number, (object, live, age))| {
                segment(number, *age, *object, object * live / 100)
            }).collect();
            let chosen = choose(&segments, &wanted(percent));
            let after = |chosen: &[&Segment]| {
                let mut space = Space::default();
                for segment in &segments {
                    let live_bytes = segment.live_bytes;
                    let is_chosen = chosen.contains(&segment);
                    space.add(if is_chosen { Space { object_bytes: live_bytes, live_bytes } } else { segment.space() });
                }
                space
            };
            let limits = Limits::of(percent);
            prop_assert!(!after(&chosen).is_above(limits.begin));
            if let Some((_, without_last)) = chosen.split_last() {
                prop_assert!(after(without_last).is_above(limits.goal));
                prop_assert!(after(&[]).is_above(limits.begin));
            }
        }
    }
}
