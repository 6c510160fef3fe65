//! Decoding of a few columns at once, without what `reed-solomon-simd` does at each call.
//!
//! Whatever shards are lost, each symbol of the wanted one is a sum over the sources of their symbols in the same place, each times a number of its own in the
//! library's field. The library is asked for these factors once for each pattern of loss, by decoding impulses, and its own arithmetic multiplies: what the library says is
//! what is decoded, in either way, and a test compares them. Its decoder takes a transform over the whole field at each call, some 600 µs whatever the length, and makes all shards
//! that are lost.

use super::erasure::decode;
use crate::error::Damaged;
use bytes::Bytes;
use parking_lot::Mutex;
use reed_solomon_simd::engine::{DefaultEngine, Engine, GfElement, tables, utils};
use std::collections::VecDeque;
use std::sync::Arc;

/// Symbols of 16 bits in a column of a shard: their low bytes, then their high ones.
const SYMBOLS: usize = 32;

/// Columns that are multiplied and added at once: with their sums they stay in the processor's fastest cache.
const COLUMNS_AT_ONCE: usize = 128;

/// Patterns that are kept: a pool with a few nodes gone has not many.
const RECIPES_KEPT: usize = 64;

/// What is lost, and what it is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Pattern {
    data: u8,
    parity: u8,
    wanted: usize,
    /// In ascending order.
    sources: Vec<usize>,
}

/// The logarithm of each source's factor; `None` for zero.
struct Recipe {
    factors: Vec<Option<GfElement>>,
}

/// Recipes of the latest patterns.
#[derive(Default)]
pub(crate) struct Recipes {
    kept: Mutex<VecDeque<(Pattern, Arc<Recipe>)>>,
}

impl std::fmt::Debug for Recipes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipes({})", self.kept.lock().len())
    }
}

impl Recipes {
    /// The columns of the shard `wanted` from those of exactly `data` others.
    pub(crate) fn decode(
        &self,
        data: u8,
        parity: u8,
        wanted: usize,
        sources: &[(usize, &[u8])],
    ) -> Result<Bytes, Damaged> {
        let length = sources.first().map_or(0, |(_, bytes)| bytes.len());
        let is_sound = sources.len() == usize::from(data)
            && length.is_multiple_of(2 * SYMBOLS)
            && sources.iter().all(|(shard, bytes)| bytes.len() == length && *shard != wanted);
        if !is_sound {
            return Err(Damaged("too few shards, or of different lengths, to make another of"));
        }
        // In whatever order they come, it is one pattern.
        let mut sources = sources.to_vec();
        sources.sort_unstable_by_key(|(shard, _)| *shard);
        let pattern =
            Pattern { data, parity, wanted, sources: sources.iter().map(|(shard, _)| *shard).collect() };
        let known =
            self.kept.lock().iter().find(|(kept, _)| *kept == pattern).map(|(_, recipe)| Arc::clone(recipe));
        let recipe = match known {
            Some(recipe) => recipe,
            None => self.learn(pattern)?,
        };
        Ok(recipe.apply(&sources, length).into())
    }

    fn learn(&self, pattern: Pattern) -> Result<Arc<Recipe>, Damaged> {
        let recipe = Arc::new(Recipe::of(&pattern)?);
        let mut kept = self.kept.lock();
        if kept.len() == RECIPES_KEPT {
            kept.pop_front();
        }
        kept.push_back((pattern, Arc::clone(&recipe)));
        Ok(recipe)
    }
}

impl Recipe {
    /// Decodes impulses: symbol i is one in source i, and zero in the others.
    fn of(pattern: &Pattern) -> Result<Self, Damaged> {
        let field = tables::get_exp_log();
        let one = field.exp[0];
        let count = pattern.sources.len();
        let mut impulses = vec![vec![0; count.div_ceil(SYMBOLS) * 2 * SYMBOLS]; count];
        for (number, impulse) in impulses.iter_mut().enumerate() {
            set_symbol(impulse, number, one);
        }
        let sources: Vec<_> =
            pattern.sources.iter().zip(&impulses).map(|(shard, bytes)| (*shard, &bytes[..])).collect();
        let decoded = decode(pattern.data, pattern.parity, &[pattern.wanted], &sources)?.remove(0);
        let factor = |number: usize| Some(symbol(&decoded, number)).filter(|factor| *factor != 0);
        let logarithm = |factor: GfElement| field.log[usize::from(factor)];
        Ok(Self { factors: (0..count).map(|number| factor(number).map(logarithm)).collect() })
    }

    fn apply(&self, sources: &[(usize, &[u8])], length: usize) -> Vec<u8> {
        // Its tables, of 8 MiB, are made at the first use in the process.
        let engine = DefaultEngine::new();
        let mut made = vec![0; length];
        let mut product = [[0; 2 * SYMBOLS]; COLUMNS_AT_ONCE];
        let (columns, _) = made.as_chunks_mut::<{ 2 * SYMBOLS }>();
        for (number, sums) in columns.chunks_mut(COLUMNS_AT_ONCE).enumerate() {
            let product = &mut product[..sums.len()];
            for (factor, (_, bytes)) in self.factors.iter().zip(sources) {
                let Some(factor) = factor else { continue };
                let (source, _) = bytes.as_chunks::<{ 2 * SYMBOLS }>();
                product.copy_from_slice(&source[number * COLUMNS_AT_ONCE..][..sums.len()]);
                engine.mul(product, *factor);
                utils::xor(sums, product);
            }
        }
        made
    }
}

/// Where the low byte of a symbol is in a shard.
const fn place(symbol: usize) -> usize {
    symbol / SYMBOLS * 2 * SYMBOLS + symbol % SYMBOLS
}

fn set_symbol(shard: &mut [u8], at: usize, value: u16) {
    [shard[place(at)], shard[place(at) + SYMBOLS]] = value.to_le_bytes();
}

fn symbol(shard: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([shard[place(at)], shard[place(at) + SYMBOLS]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::erasure::encode;
    use cairn_model::{Entropy, SeededEntropy};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn recipes_make_what_the_library_makes(
            (data, parity) in (2u8..9, 1u8..5),
            order in Just((0usize..12).collect::<Vec<_>>()).prop_shuffle(),
            length in 1usize..20_000,
            seed in any::<u64>(),
        ) {
            let mut object = vec![0; length];
            SeededEntropy::new(seed).fill(&mut object);
            let shards = encode(&[object.into()], data, parity, |_, _| {});
            let shards: Vec<_> = shards.iter().map(|pieces| pieces.concat()).collect();
            let order: Vec<_> = order.into_iter().filter(|shard| *shard < shards.len()).collect();
            let (kept, lost) = order.split_at(usize::from(data));
            let sources: Vec<_> = kept.iter().map(|shard| (*shard, &shards[*shard][..])).collect();
            let recipes = Recipes::default();
            for wanted in lost {
                for _ in 0..2 {
                    let made = recipes.decode(data, parity, *wanted, &sources).unwrap();
                    prop_assert_eq!(&made[..], &shards[*wanted][..], "shard {}", wanted);
                }
            }
        }
    }

    #[test]
    fn only_the_latest_patterns_are_kept() {
        let recipes = Recipes::default();
        let bytes = [7; 64];
        for wanted in 0..20 {
            for skipped in 0..20 {
                let sources: Vec<_> = (0..24)
                    .filter(|shard| *shard != wanted && *shard != skipped)
                    .map(|shard| (shard, &bytes[..]))
                    .take(20)
                    .collect();
                recipes.decode(20, 4, wanted, &sources).unwrap();
            }
        }
        assert!(recipes.kept.lock().len() <= RECIPES_KEPT);
    }

    #[test]
    fn a_pattern_is_one_whatever_the_order_of_its_sources() {
        let recipes = Recipes::default();
        let bytes: Vec<_> = (0..4u8).map(|shard| [shard + 1; 64]).collect();
        let order = [[0, 1, 2], [2, 1, 0], [1, 2, 0]];
        let decoded = order.map(|order| {
            let sources = order.map(|shard| (shard, &bytes[shard][..]));
            recipes.decode(3, 2, 4, &sources).unwrap()
        });
        assert_eq!(recipes.kept.lock().len(), 1);
        assert!(decoded.iter().all(|one| *one == decoded[0]));
    }

    #[test]
    fn too_few_shards_or_uneven_ones_are_refused() {
        let (recipes, bytes) = (Recipes::default(), [0; 128]);
        assert!(recipes.decode(2, 1, 0, &[(1, &bytes)]).is_err());
        assert!(recipes.decode(2, 1, 0, &[(1, &bytes), (2, &bytes[..64])]).is_err());
        assert!(recipes.decode(2, 1, 0, &[(1, &bytes[..65]), (2, &bytes[..65])]).is_err());
        assert!(recipes.decode(2, 1, 0, &[(1, &bytes), (0, &bytes)]).is_err());
    }
}
