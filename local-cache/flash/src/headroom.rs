//! How much capacity the reads would use: reuse distances of a sample of the keys.
//!
//! SHARDS (Waldspurger, Park, Garthwaite, Ahmad: Efficient MRC Construction with SHARDS, FAST 2015): a key is sampled when its hash
//! is below a threshold, so always or never, and distances among the sampled keys, divided by the rate, are those among all. The
//! rate is fixed by the capacity. The list of sampled keys is bounded: what was not read again within so many other keys, eight
//! times what the cache holds, counts as new. Distances are in chunks; the average size of a cached chunk makes bytes of them.

use crate::key::mix;
use parking_lot::Mutex;
use std::collections::HashMap;

/// Sampled keys that are remembered: half a megabyte.
const SAMPLES_MAX: usize = 8192;
/// The longest distance that is told from a first read, in capacities.
const HORIZON: u64 = 8;
const CHUNK_BYTES_GUESS: u64 = 8 << 10;
/// Divisions of the horizon: an eighth of the capacity each.
const BUCKETS: usize = 64;
/// Repeated reads below which nothing is said.
const REUSES_MIN: u64 = 64;
/// Sampled reuses after which older ones count half.
const REUSES_HALVED_AT: u64 = 65_536;
/// Of a hundred repeated reads, those that the working set serves.
const SERVED_PERCENT: u64 = 90;

/// The estimate.
#[derive(Debug)]
pub(crate) struct Headroom {
    /// A key is sampled when its hash is at most this.
    threshold: u64,
    /// Keys for each sampled one.
    scale: u64,
    sampled: Mutex<Sampled>,
}

#[derive(Debug)]
struct Sampled {
    /// When each key was read last: the position in `times`.
    last: HashMap<u64, usize>,
    /// The key read at each time, if it was not read again since; the oldest first.
    times: Vec<Option<u64>>,
    /// A Fenwick tree over `times`: how many of them are some.
    tree: Vec<u32>,
    /// Sampled reuses by distance.
    reuses: [u64; BUCKETS],
}

impl Headroom {
    pub(crate) fn new(capacity_bytes: u64) -> Self {
        let keys = (capacity_bytes / CHUNK_BYTES_GUESS).max(1) * HORIZON;
        let scale = keys.div_ceil(SAMPLES_MAX as u64).max(1);
        let sampled = Sampled {
            last: HashMap::new(),
            times: Vec::new(),
            tree: vec![0; 2 * SAMPLES_MAX + 1],
            reuses: [0; BUCKETS],
        };
        Self { threshold: u64::MAX / scale, scale, sampled: Mutex::new(sampled) }
    }

    /// Somebody asked for the chunk with this hash.
    pub(crate) fn asked(&self, hash: u64) {
        // Other bits than those that tables and groups are made of.
        if mix(hash ^ 0xa5a5_a5a5_a5a5_a5a5) <= self.threshold {
            self.sampled.lock().asked(hash);
        }
    }

    /// Chunks that a cache must hold to serve nine of ten repeated reads.
    pub(crate) fn working_set_chunks(&self) -> Option<u64> {
        let sampled = self.sampled.lock();
        let total: u64 = sampled.reuses.iter().sum();
        if total < REUSES_MIN {
            return None;
        }
        let mut served = 0;
        for (bucket, &count) in sampled.reuses.iter().enumerate() {
            served += count;
            if served * 100 >= total * SERVED_PERCENT {
                let distance = (bucket as u64 + 1) * (SAMPLES_MAX / BUCKETS) as u64;
                return Some(distance * self.scale);
            }
        }
        None
    }
}

impl Sampled {
    fn asked(&mut self, hash: u64) {
        if self.times.len() == 2 * SAMPLES_MAX {
            self.compact();
        }
        if let Some(&before) = self.last.get(&hash) {
            // Keys read since then, this one included: the size of the smallest cache that would still have it.
            let distance = self.last.len() - self.count_until(before);
            self.reuses[(distance * BUCKETS / SAMPLES_MAX).min(BUCKETS - 1)] += 1;
            self.times[before] = None;
            self.change(before, false);
        } else if self.last.len() == SAMPLES_MAX {
            self.forget_oldest();
        }
        self.times.push(Some(hash));
        self.change(self.times.len() - 1, true);
        self.last.insert(hash, self.times.len() - 1);
        if self.reuses.iter().sum::<u64>() >= REUSES_HALVED_AT {
            self.reuses.iter_mut().for_each(|count| *count /= 2);
        }
    }

    fn forget_oldest(&mut self) {
        // The first time at which the tree counts one.
        let (mut at, mut step) = (0, SAMPLES_MAX * 2);
        while step > 0 {
            if at + step < self.tree.len() && self.tree[at + step] == 0 {
                at += step;
            }
            step /= 2;
        }
        if let Some(hash) = self.times.get_mut(at).and_then(Option::take) {
            self.change(at, false);
            self.last.remove(&hash);
        }
    }

    /// Numbers the times again, without the gaps.
    fn compact(&mut self) {
        self.times.retain(Option::is_some);
        self.tree.fill(0);
        for at in 0..self.times.len() {
            let hash = self.times[at].expect("the others are gone");
            self.last.insert(hash, at);
            self.change(at, true);
        }
    }

    fn change(&mut self, at: usize, present: bool) {
        let mut node = at + 1;
        while node < self.tree.len() {
            self.tree[node] = if present { self.tree[node] + 1 } else { self.tree[node] - 1 };
            node += node & node.wrapping_neg();
        }
    }

    /// Keys whose last read was before this time.
    fn count_until(&self, at: usize) -> usize {
        let (mut node, mut count) = (at, 0);
        while node > 0 {
            count += self.tree[node] as usize;
            node -= node & node.wrapping_neg();
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads all of so many chunks, round after round.
    fn rounds(headroom: &Headroom, chunks: u64, rounds: u64) {
        for _ in 0..rounds {
            (0..chunks).for_each(|chunk| headroom.asked(mix(chunk)));
        }
    }

    #[test]
    fn a_loop_over_so_many_chunks_needs_all_of_them() {
        for (capacity_chunks, looped) in
            [(500, 300), (500, 1200), (1_000_000, 300_000), (1_000_000, 2_500_000)]
        {
            let headroom = Headroom::new(capacity_chunks * CHUNK_BYTES_GUESS);
            rounds(&headroom, looped, 3);
            let estimate = headroom.working_set_chunks().unwrap();
            let error = estimate.abs_diff(looped);
            let step = capacity_chunks.div_ceil(8).max((SAMPLES_MAX / BUCKETS) as u64);
            assert!(error <= looped / 10 + step, "{looped} estimated as {estimate}");
        }
    }

    #[test]
    fn nothing_is_said_of_chunks_that_are_read_once() {
        let headroom = Headroom::new(1 << 30);
        rounds(&headroom, 1_000_000, 1);
        assert_eq!(headroom.working_set_chunks(), None);
    }

    #[test]
    fn memory_is_bounded_and_what_was_long_ago_counts_as_new() {
        let headroom = Headroom::new(SAMPLES_MAX as u64 / HORIZON * CHUNK_BYTES_GUESS);
        rounds(&headroom, 3 * SAMPLES_MAX as u64, 3);
        let sampled = headroom.sampled.lock();
        assert_eq!(sampled.last.len(), SAMPLES_MAX);
        assert!(sampled.times.len() <= 2 * SAMPLES_MAX);
        assert_eq!(sampled.reuses.iter().sum::<u64>(), 0);
    }

    proptest! {
        #[test]
        fn distances_are_those_of_a_plain_list(reads in proptest::collection::vec(0u64..40, 1..400)) {
            let mut sampled = Headroom::new(1).sampled.into_inner();
            let mut list: Vec<u64> = Vec::new();
            let mut expected = [0; BUCKETS];
            for read in reads {
                if let Some(at) = list.iter().position(|&key| key == read) {
                    expected[(list.len() - at) * BUCKETS / SAMPLES_MAX] += 1;
                    list.remove(at);
                }
                list.push(read);
                sampled.asked(read);
                prop_assert_eq!(sampled.last.len(), list.len());
                let newest_first: Vec<u64> = sampled.times.iter().flatten().copied().collect();
                prop_assert_eq!(&newest_first, &list);
            }
            prop_assert_eq!(sampled.reuses, expected);
        }
    }
}
