//! The cache in memory for the simulation: the same promises, and faults as ordered.

use crate::support::{CHUNK, chunk, stored};
use cairn_flash::testing::Fault;
use cairn_flash::{MemoryFlash, SealedCache, Source};
use cairn_model::SeededEntropy;
use std::sync::Arc;

fn filled(cache: MemoryFlash) -> MemoryFlash {
    (0..100).for_each(|number| cache.insert(chunk(number), stored(number), Source::Fetch));
    cache
}

#[tokio::test]
async fn it_keeps_the_newest_that_fit() {
    let cache = filled(MemoryFlash::new(10 * CHUNK as u64));
    assert_eq!(cache.get(chunk(89)).await, None);
    assert_eq!(cache.get(chunk(90)).await, Some(stored(90)));
    assert_eq!(cache.status().used_bytes, 10 * CHUNK as u64);
    cache.close().await;
    assert_eq!(cache.get(chunk(90)).await, None);
}

#[tokio::test]
async fn it_lies_as_told() {
    let faults = |asked| match asked {
        asked if asked == chunk(1) => Fault::FlippedBit(8 * 100 + 3),
        asked if asked == chunk(2) => Fault::Truncated(10),
        asked if asked == chunk(3) => Fault::Lost,
        _ => Fault::None,
    };
    let cache = filled(MemoryFlash::new(1 << 30).with_faults(faults));
    assert_eq!(cache.get(chunk(0)).await, Some(stored(0)));
    let mut flipped = stored(1).to_vec();
    flipped[100] ^= 8;
    assert_eq!(cache.get(chunk(1)).await.unwrap(), flipped);
    assert_eq!(cache.get(chunk(2)).await, Some(stored(2).slice(..10)));
    assert_eq!(cache.get(chunk(3)).await, None);
}

#[tokio::test]
async fn one_seed_is_one_sequence_of_faults() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let entropy = Arc::new(SeededEntropy::new(5));
        let cache = filled(MemoryFlash::new(1 << 30).with_seeded_faults(entropy, 20));
        let mut answers = Vec::new();
        for number in 0..100 {
            answers.push(cache.get(chunk(number)).await);
        }
        let right = answers.iter().zip(0..).filter(|(answer, number)| **answer == Some(stored(*number)));
        assert!((60..95).contains(&right.count()));
        runs.push(answers);
    }
    assert!(runs[0] == runs[1]);
}

#[tokio::test]
async fn damage_is_counted_forgotten_and_retires_it() {
    let cache = filled(MemoryFlash::new(1 << 30).with_damage_max(2));
    cache.damaged(chunk(1));
    assert_eq!(cache.get(chunk(1)).await, None);
    assert_eq!(cache.get(chunk(2)).await, Some(stored(2)));
    cache.damaged(chunk(2));
    assert!(cache.status().retired.is_some());
    assert_eq!(cache.get(chunk(3)).await, None);
}
