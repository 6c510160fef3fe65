//! How the engine's caches are made: bounded by weight, and the same keys leave in the same order in every process.
//!
//! The hash is fixed, so that a simulated schedule replays. Nobody can choose keys that collide: they are random identities.

use foldhash::fast::FixedState;
use quick_cache::sync::DefaultLifecycle;
use quick_cache::{OptionsBuilder, Weighter};
use std::hash::Hash;

const SEED: u64 = 0x6361_6972_6e21;
/// Whatever the machine: as many as keep some dozens of threads from waiting for each other.
const SHARDS: usize = 32;
const ITEMS_MIN: usize = 64;

pub(crate) type Cache<K, V, W> = quick_cache::sync::Cache<K, V, W, FixedState>;

/// A cache of `capacity_bytes` by `weighter`, of values of about `each_bytes`. `hot_part` of it is for what was asked for more
/// than once.
pub(crate) fn cache<K: Eq + Hash, V: Clone, W: Weighter<K, V> + Clone>(
    capacity_bytes: u64,
    each_bytes: u64,
    hot_part: f64,
    weighter: W,
) -> Cache<K, V, W> {
    let items = usize::try_from(capacity_bytes / each_bytes).unwrap_or(usize::MAX).max(ITEMS_MIN);
    let options = OptionsBuilder::new()
        .estimated_items_capacity(items)
        .weight_capacity(capacity_bytes)
        .hot_allocation(hot_part)
        .shards(SHARDS)
        .build()
        .expect("both capacities are given");
    Cache::with_options(options, weighter, FixedState::with_seed(SEED), DefaultLifecycle::default())
}
