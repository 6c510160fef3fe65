//! Reed-Solomon over the columns of a segment.
//!
//! ```text
//!             column 0         column 1               last column
//! data 0      bytes 0..64      64..128         …      … S           S = Profile::shard_bytes
//! data 1      S..S+64          S+64..S+128     …      … 2S
//! …                                                   the last data shards end with zeros
//! parity 0    made of the 64 bytes of each data shard in the same column
//! ```
//!
//! Columns of 64 bytes are independent of each other, so any run of columns of any K shards gives the same run of the others: a read decodes what it
//! wants and no more. `reed-solomon-simd` promises it of its own layout (each 64 bytes are 32 symbols of 16 bits, low bytes first); a test holds it to that,
//! and another to the parity bytes themselves, which are part of the format.

use crate::error::Damaged;
use bytes::Bytes;
use cairn_model::Profile;
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
use std::borrow::Cow;
use std::ops::Range;

/// Bytes of a column in one shard.
pub(crate) const COLUMN_BYTES: u64 = 64;

/// Bytes of every shard that are encoded at once: all of them fit the processor's cache, and are one region of a shard (see `shard`).
pub(crate) const STRIPE_BYTES: usize = 64 << 10;

const ZEROS: Bytes = Bytes::from_static(&[0; 4096]);

/// The widest run of whole columns that covers `range`.
pub(crate) fn columns(range: &Range<u64>) -> Range<u64> {
    range.start / COLUMN_BYTES * COLUMN_BYTES..range.end.next_multiple_of(COLUMN_BYTES)
}

/// A shard's bytes one piece behind the other.
pub(crate) type Pieces = Vec<Bytes>;

/// Makes the shards of an object, data first. `stripe` is shown each shard's number and the next up to [`STRIPE_BYTES`] bytes of it, in order, while they
/// are in the processor's cache. Data shards share the object's memory. CPU work.
pub(crate) fn encode(
    object: &[Bytes],
    data: u8,
    parity: u8,
    mut stripe: impl FnMut(usize, &[u8]),
) -> Vec<Pieces> {
    let object_bytes: usize = object.iter().map(Bytes::len).sum();
    let shard_bytes = usize::try_from(Profile::Ec { data, parity }.shard_bytes(object_bytes as u64))
        .expect("a shard is not longer than its object, which is in memory");
    let (data, parity) = (usize::from(data), usize::from(parity));
    let mut shards: Vec<Pieces> =
        (0..data).map(|shard| slice(object, shard * shard_bytes, shard_bytes)).collect();
    let mut made: Vec<Vec<u8>> = (0..parity).map(|_| Vec::with_capacity(shard_bytes)).collect();
    let mut kept: Option<ReedSolomonEncoder> = None;
    for start in (0..shard_bytes).step_by(STRIPE_BYTES) {
        let length = STRIPE_BYTES.min(shard_bytes - start);
        let coder = match &mut kept {
            Some(coder) => {
                coder.reset(data, parity, length).expect("the profile and the stripe are within limits");
                coder
            }
            none => none.insert(
                ReedSolomonEncoder::new(data, parity, length)
                    .expect("the profile and the stripe are within limits"),
            ),
        };
        for (number, shard) in shards.iter().enumerate() {
            let bytes = gather(shard, start, length);
            stripe(number, &bytes);
            coder.add_original_shard(&bytes).expect("there are as many as it was told of, of one length");
        }
        let parities = coder.encode().expect("it has all data shards");
        for (number, bytes) in parities.recovery_iter().enumerate() {
            stripe(data + number, bytes);
            made[number].extend_from_slice(bytes);
        }
    }
    shards.extend(made.into_iter().map(|bytes| vec![Bytes::from(bytes)]));
    shards
}

/// `length` bytes of an object from `start` on, with zeros behind its end. Nothing is copied.
fn slice(object: &[Bytes], start: usize, length: usize) -> Pieces {
    let mut pieces = Vec::with_capacity(object.len());
    let (mut at, mut missing) = (0, length);
    for piece in object {
        let from = start.saturating_sub(at).min(piece.len());
        let to = (start + length).saturating_sub(at).min(piece.len());
        if from < to {
            pieces.push(piece.slice(from..to));
            missing -= to - from;
        }
        at += piece.len();
    }
    while missing > 0 {
        let zeros = ZEROS.slice(..missing.min(ZEROS.len()));
        missing -= zeros.len();
        pieces.push(zeros);
    }
    pieces
}

/// The bytes of a range of a shard: where they are when one piece has them, else a copy.
fn gather(shard: &[Bytes], start: usize, length: usize) -> Cow<'_, [u8]> {
    let mut at = 0;
    let mut copy = Vec::new();
    for piece in shard {
        let from = start.saturating_sub(at).min(piece.len());
        let to = (start + length).saturating_sub(at).min(piece.len());
        at += piece.len();
        if to - from == length {
            return Cow::Borrowed(&piece[from..to]);
        }
        if from < to && copy.is_empty() {
            copy.reserve_exact(length);
        }
        copy.extend_from_slice(&piece[from..to]);
    }
    debug_assert_eq!(copy.len(), length, "a shard is as long as the profile says");
    Cow::Owned(copy)
}

/// The same columns of the shards `wanted`, from those of `data` or more other shards. CPU work.
pub(crate) fn decode(
    data: u8,
    parity: u8,
    wanted: &[usize],
    sources: &[(usize, &[u8])],
) -> Result<Vec<Bytes>, Damaged> {
    let (data, parity) = (usize::from(data), usize::from(parity));
    let length = sources.first().map_or(0, |(_, bytes)| bytes.len());
    let is_sound = sources.len() >= data
        && length > 0
        && (length as u64).is_multiple_of(COLUMN_BYTES)
        && sources.iter().all(|(shard, bytes)| bytes.len() == length && *shard < data + parity);
    if !is_sound {
        return Err(Damaged("too few shards, or of different lengths, to make another of"));
    }
    let known = |shard: usize| sources.iter().find(|(source, _)| *source == shard).map(|(_, bytes)| *bytes);
    if wanted.iter().all(|shard| known(*shard).is_some()) {
        return Ok(wanted.iter().filter_map(|shard| known(*shard)).map(Bytes::copy_from_slice).collect());
    }
    let refused = |_| Damaged("shards that do not belong together");
    let mut solver = ReedSolomonDecoder::new(data, parity, length).map_err(refused)?;
    for (shard, bytes) in sources {
        if *shard < data {
            solver.add_original_shard(*shard, bytes).map_err(refused)?;
        } else {
            solver.add_recovery_shard(*shard - data, bytes).map_err(refused)?;
        }
    }
    let restored = solver.decode().map_err(refused)?;
    let original = |shard| known(shard).or_else(|| restored.restored_original(shard));
    let mut remaker = None;
    if wanted.iter().any(|shard| *shard >= data && known(*shard).is_none()) {
        let mut making = ReedSolomonEncoder::new(data, parity, length).map_err(refused)?;
        for shard in 0..data {
            let bytes = original(shard).ok_or(Damaged("a data shard was not restored"))?;
            making.add_original_shard(bytes).map_err(refused)?;
        }
        remaker = Some(making);
    }
    let remade = remaker.as_mut().map(ReedSolomonEncoder::encode).transpose().map_err(refused)?;
    let shard = |shard: usize| {
        let made = || remade.as_ref().and_then(|remade| remade.recovery(shard.checked_sub(data)?));
        let bytes = if shard < data { original(shard) } else { known(shard).or_else(made) };
        bytes.map(Bytes::copy_from_slice).ok_or(Damaged("there is no such shard"))
    };
    wanted.iter().map(|wanted| shard(*wanted)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::{Entropy, SeededEntropy};
    use proptest::prelude::*;

    fn random(length: usize, seed: u64) -> Bytes {
        let mut bytes = vec![0; length];
        SeededEntropy::new(seed).fill(&mut bytes);
        bytes.into()
    }

    fn whole(shards: &[Pieces]) -> Vec<Vec<u8>> {
        shards.iter().map(|pieces| pieces.concat()).collect()
    }

    /// A profile of at most 12 shards.
    fn profiles() -> impl Strategy<Value = (u8, u8)> {
        (2u8..8, 1u8..5)
    }

    #[test]
    fn parity_is_what_it_was_in_the_first_version() {
        let object = [random(1000, 1), random(500, 2)];
        let hash = |data, parity| {
            let shards = whole(&encode(&object, data, parity, |_, _| {}));
            let parity = shards[usize::from(data)..].concat();
            blake3::hash(&parity).to_hex()[..16].to_owned()
        };
        let hashes = [(4, 2), (2, 1), (8, 3), (2, 4)].map(|(data, parity)| hash(data, parity));
        assert_eq!(hashes, KNOWN);
    }

    /// Parity bytes are read by every later version: these never change.
    const KNOWN: [&str; 4] = ["5671cddcf71a9c28", "85ab35787d9912a8", "38e8875d1e9215d0", "2ee9e08bd2dcfcd7"];

    #[test]
    fn data_shards_share_the_memory_of_the_object() {
        let object = [random(1 << 20, 1), random(1000, 2)];
        let shards = encode(&object, 4, 2, |_, _| {});
        assert_eq!(shards[0].len(), 1);
        assert_eq!(shards[0][0].as_ptr(), object[0].as_ptr());
        assert_eq!(shards[1][0].as_ptr(), object[0][shards[0][0].len()..].as_ptr());
    }

    #[test]
    fn too_few_shards_or_uneven_ones_are_refused() {
        let bytes = [0; 128];
        assert!(decode(2, 1, &[0], &[(1, &bytes)]).is_err());
        assert!(decode(2, 1, &[0], &[(1, &bytes), (2, &bytes[..64])]).is_err());
        assert!(decode(2, 1, &[0], &[(1, &bytes[..65]), (2, &bytes[..65])]).is_err());
        assert!(decode(2, 1, &[0], &[(1, &bytes), (1, &bytes)]).is_err());
        assert!(decode(2, 1, &[0], &[(1, &bytes), (3, &bytes)]).is_err());
        assert!(decode(2, 1, &[3], &[(1, &bytes), (2, &bytes)]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn shards_are_the_object_with_zeros_and_stripes_are_the_shards(
            (data, parity) in profiles(),
            lengths in prop::collection::vec(0usize..100_000, 1..4),
            seed in any::<u64>(),
        ) {
            let object: Vec<_> = lengths.iter().map(|length| random(*length, seed)).collect();
            let mut striped = vec![Vec::new(); usize::from(data + parity)];
            let shards = whole(&encode(&object, data, parity, |shard, bytes| {
                assert!(bytes.len() == STRIPE_BYTES || bytes.len() < STRIPE_BYTES);
                striped[shard].extend_from_slice(bytes);
            }));
            prop_assert_eq!(&striped, &shards);
            let mut joined = shards[..usize::from(data)].concat();
            let object = object.concat();
            prop_assert!(joined.len() - object.len() < 64 * usize::from(data) + usize::from(data));
            prop_assert!(joined[object.len()..].iter().all(|byte| *byte == 0));
            joined.truncate(object.len());
            prop_assert_eq!(joined, object);
        }

        #[test]
        fn any_columns_of_any_shards_give_those_of_the_others(
            (data, parity) in profiles(),
            length in 1usize..300_000,
            order in Just((0usize..12).collect::<Vec<_>>()).prop_shuffle(),
            (from, to) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
            seed in any::<u64>(),
        ) {
            let total = usize::from(data + parity);
            let shards = whole(&encode(&[random(length, seed)], data, parity, |_, _| {}));
            let order: Vec<_> = order.into_iter().filter(|shard| *shard < total).collect();
            let (kept, lost) = order.split_at(usize::from(data));
            let count = shards[0].len() / 64;
            let (from, to) = (from.index(count), to.index(count));
            let columns = from.min(to) * 64..(from.max(to) + 1) * 64;
            let sources: Vec<_> = kept.iter().map(|shard| (*shard, &shards[*shard][columns.clone()])).collect();
            let decoded = decode(data, parity, lost, &sources).unwrap();
            for (shard, bytes) in lost.iter().zip(&decoded) {
                // What decoding whole shards gives, which is what encoding gave.
                prop_assert_eq!(&bytes[..], &shards[*shard][columns.clone()], "shard {}", shard);
            }
            let sources: Vec<_> = kept.iter().map(|shard| (*shard, &shards[*shard][..])).collect();
            let decoded = decode(data, parity, lost, &sources).unwrap();
            for (shard, bytes) in lost.iter().zip(&decoded) {
                prop_assert_eq!(&bytes[..], &shards[*shard][..]);
            }
        }
    }
}
