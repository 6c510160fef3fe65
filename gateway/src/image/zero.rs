//! Finding zeros.

use std::ops::Range;

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Whole words first: the compiler makes vector code of the fold, and the early exit is per 4 KiB.
    bytes.chunks(4096).all(|chunk| {
        let (head, words, tail) = split_words(chunk);
        words.iter().fold(0u64, |seen, word| seen | word) == 0
            && head.iter().chain(tail).all(|byte| *byte == 0)
    })
}

fn split_words(chunk: &[u8]) -> (&[u8], &[u64], &[u8]) {
    // SAFETY: any bytes are a valid u64.
    unsafe { chunk.align_to::<u64>() }
}

/// Cuts `bytes` into runs of zeros and of data, in order and without gaps: `(range, is_zero)`. Only runs of at least
/// `run_min` zeros, in steps of `granule`, are told apart from the data around them.
pub(super) fn runs(bytes: &[u8], granule: usize, run_min: usize) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        let end = (start + granule).min(bytes.len());
        let zero = is_zero(&bytes[start..end]);
        match runs.last_mut() {
            Some((range, was_zero)) if *was_zero == zero => range.end = end,
            _ => runs.push((start..end, zero)),
        }
        start = end;
    }
    let mut merged: Vec<(Range<usize>, bool)> = Vec::new();
    for (range, zero) in runs {
        let zero = zero && range.len() >= run_min.min(bytes.len());
        match merged.last_mut() {
            Some((last, was_zero)) if *was_zero == zero => last.end = range.end,
            _ => merged.push((range, zero)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_single_set_byte_is_found_wherever_it_is() {
        let mut bytes = vec![0; 9001];
        assert!(is_zero(&bytes));
        assert!(is_zero(&[]));
        for at in [0, 1, 7, 8, 4095, 4096, 8999, 9000] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
    }

    #[test]
    fn short_runs_of_zeros_stay_with_their_data() {
        let mut bytes = vec![0; 10 * 4096];
        bytes[0] = 1;
        bytes[2 * 4096] = 1;
        let found = runs(&bytes, 4096, 4 * 4096);
        assert_eq!(found, [(0..3 * 4096, false), (3 * 4096..10 * 4096, true)]);
    }

    proptest! {
        #[test]
        fn runs_cover_everything_once_and_call_only_zeros_zero(
            blocks in prop::collection::vec(any::<bool>(), 0..40), tail in 0usize..4096, least in 1usize..6,
        ) {
            let mut bytes: Vec<u8> = blocks.iter().flat_map(|set| vec![u8::from(*set); 4096]).collect();
            bytes.extend(vec![0; tail]);
            let mut at = 0;
            for (range, zero) in runs(&bytes, 4096, least * 4096) {
                prop_assert_eq!(range.start, at);
                prop_assert!(range.end > range.start);
                prop_assert!(!zero || is_zero(&bytes[range.clone()]));
                at = range.end;
            }
            prop_assert_eq!(at, bytes.len());
        }
    }
}
