//! Compression of chunks: zstd where it pays, the bytes as they are where it does not.

use crate::error::Damaged;
use std::cell::RefCell;
use std::io::Cursor;

/// How a chunk's plaintext is represented before it is sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codec {
    /// The plaintext itself.
    Raw,
    /// One zstd frame (RFC 8878).
    Zstd,
}

impl Codec {
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Whether and how hard to compress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    Off,
    /// A zstd level, -7 to 19.
    Zstd(i8),
}

impl Compression {
    pub const DEFAULT: Self = Self::Zstd(1);
}

impl Default for Compression {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A chunk is stored compressed when that saves at least one byte in this many.
const WORTH_ONE_IN: usize = 20;

/// After this many chunks in a row that did not compress, only one in [`SAMPLE_ONE_IN`] is tried, until one does.
const INCOMPRESSIBLE_STREAK: u32 = 16;
const SAMPLE_ONE_IN: u32 = 8;

/// Compresses chunks one after another, reusing one zstd context.
pub(crate) struct Compressor {
    compression: Compression,
    /// Made when it is first needed.
    context: Option<zstd::bulk::Compressor<'static>>,
    /// The level that the context has.
    level: i32,
    /// Chunks since the last one that compressed.
    incompressible: u32,
}

impl Compressor {
    /// One that compresses nothing until a stream begins.
    pub(crate) fn new() -> Self {
        Self { compression: Compression::Off, context: None, level: 0, incompressible: 0 }
    }

    /// Other data follows, to be compressed like this: forgets what was learnt about the data so far.
    pub(crate) fn start_stream(&mut self, compression: Compression) {
        self.compression = compression;
        self.incompressible = 0;
    }

    /// The context, when it is worth a try.
    fn context(&mut self) -> Option<&mut zstd::bulk::Compressor<'static>> {
        let Compression::Zstd(level) = self.compression else { return None };
        if !worth_a_try(self.incompressible) {
            return None;
        }
        let level = i32::from(level.clamp(-7, 19));
        if self.context.is_none() || self.level != level {
            // An error costs space, never data; there is none, since zstd takes every level.
            match &mut self.context {
                Some(context) => context.set_compression_level(level).ok()?,
                none => *none = Some(zstd::bulk::Compressor::new(level).ok()?),
            }
            self.level = level;
        }
        self.context.as_mut()
    }

    /// Room that `compress` of `raw_bytes` needs behind what `out` holds.
    pub(crate) fn bound(raw_bytes: usize) -> usize {
        zstd::zstd_safe::compress_bound(raw_bytes).max(raw_bytes)
    }

    /// Appends the stored form of `raw` to `out`.
    pub(crate) fn compress(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Codec {
        let start = out.len();
        out.reserve(Self::bound(raw.len()));
        if let Some(context) = self.context() {
            // Writes into the spare room: nothing is zeroed before and nothing copied after.
            let mut behind = Cursor::new(&mut *out);
            behind.set_position(start as u64);
            match context.compress_to_buffer(raw, &mut behind) {
                Ok(length) if length <= raw.len() - raw.len() / WORTH_ONE_IN => {
                    debug_assert_eq!(out.len(), start + length);
                    self.incompressible = 0;
                    return Codec::Zstd;
                }
                // An error of the compressor costs space, never data.
                Ok(_) | Err(_) => out.truncate(start),
            }
        }
        self.incompressible = self.incompressible.wrapping_add(1);
        out.extend_from_slice(raw);
        Codec::Raw
    }
}

fn worth_a_try(incompressible: u32) -> bool {
    incompressible < INCOMPRESSIBLE_STREAK || incompressible.is_multiple_of(SAMPLE_ONE_IN)
}

thread_local! {
    /// A zstd context is some 160 KiB: one per thread, kept.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The plaintext of `stored`, which must have exactly `raw_bytes` (at most a chunk) or is refused.
pub(crate) fn decompress(codec: Codec, stored: &[u8], raw_bytes: usize) -> Result<Vec<u8>, Damaged> {
    match codec {
        Codec::Raw if stored.len() == raw_bytes => Ok(stored.to_vec()),
        Codec::Raw => Err(Damaged("an uncompressed chunk has another length than its directory says")),
        Codec::Zstd => DECOMPRESSOR.with_borrow_mut(|context| {
            let context = context.get_or_insert_with(|| {
                zstd::bulk::Decompressor::new().expect("memory for a zstd context is not out")
            });
            let mut raw = Vec::with_capacity(raw_bytes);
            context
                .decompress_to_buffer(stored, &mut raw)
                .map_err(|_| Damaged("a chunk does not decompress"))?;
            if raw.len() == raw_bytes {
                Ok(raw)
            } else {
                Err(Damaged("a chunk decompresses to another length than its directory says"))
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::{Entropy, SeededEntropy};
    use proptest::prelude::*;

    fn compressor(compression: Compression) -> Compressor {
        let mut compressor = Compressor::new();
        compressor.start_stream(compression);
        compressor
    }

    fn compressed(compressor: &mut Compressor, raw: &[u8]) -> (Codec, Vec<u8>) {
        let mut out = b"before".to_vec();
        let codec = compressor.compress(raw, &mut out);
        assert!(out.starts_with(b"before"));
        (codec, out.split_off(6))
    }

    fn random(bytes: usize, seed: u64) -> Vec<u8> {
        let mut out = vec![0; bytes];
        SeededEntropy::new(seed).fill(&mut out);
        out
    }

    proptest! {
        #[test]
        fn round_trips(raw in prop::collection::vec(any::<u8>(), 1..9000), repeat in 1usize..5, level in -7i8..10) {
            let raw = raw.repeat(repeat);
            let (codec, stored) = compressed(&mut compressor(Compression::Zstd(level)), &raw);
            prop_assert_eq!(decompress(codec, &stored, raw.len()).unwrap(), raw);
        }

        #[test]
        fn any_bytes_decompress_to_the_expected_length_or_are_refused(
            stored in prop::collection::vec(any::<u8>(), 0..200), raw_bytes in 0usize..9000, zstd: bool,
        ) {
            let codec = if zstd { Codec::Zstd } else { Codec::Raw };
            if let Ok(raw) = decompress(codec, &stored, raw_bytes) {
                prop_assert_eq!(raw.len(), raw_bytes);
            }
        }
    }

    #[test]
    fn random_bytes_are_kept_raw() {
        let raw = random(32768, 1);
        let (codec, stored) = compressed(&mut compressor(Compression::DEFAULT), &raw);
        assert_eq!((codec, stored), (Codec::Raw, raw));
    }

    #[test]
    fn a_chunk_that_expands_beyond_its_length_is_refused_without_growing() {
        let bomb = zstd::bulk::compress(&vec![0; 10 << 20], 1).unwrap();
        assert!(decompress(Codec::Zstd, &bomb, 4096).is_err());
    }

    #[test]
    fn compression_resumes_after_a_long_incompressible_stretch() {
        let mut compressor = compressor(Compression::DEFAULT);
        for seed in 0..100 {
            compressed(&mut compressor, &random(4096, seed));
        }
        let text = b"compressible ".repeat(400);
        let tries = (0..100).take_while(|_| compressed(&mut compressor, &text).0 == Codec::Raw).count();
        assert!(tries < SAMPLE_ONE_IN as usize, "{tries} chunks went uncompressed");
        assert_eq!(compressed(&mut compressor, &text).0, Codec::Zstd);
    }

    #[test]
    fn each_stream_has_its_own_level_and_begins_hopeful() {
        let text: Vec<u8> =
            (0..9000u32).flat_map(|number| (number * number).to_string().into_bytes()).collect();
        let alone = |level| compressed(&mut compressor(Compression::Zstd(level)), &text);
        let mut one = compressor(Compression::Zstd(1));
        for level in [9, -5, 1] {
            one.start_stream(Compression::Off);
            assert_eq!(compressed(&mut one, &text).0, Codec::Raw);
            one.start_stream(Compression::Zstd(level));
            for seed in 0..=u64::from(INCOMPRESSIBLE_STREAK) {
                compressed(&mut one, &random(4096, seed));
            }
            assert_eq!(compressed(&mut one, &text).0, Codec::Raw, "a stretch of random data is noticed");
            one.start_stream(Compression::Zstd(level));
            assert_eq!(compressed(&mut one, &text), alone(level), "level {level}");
        }
        assert!(alone(9).1.len() < alone(-5).1.len());
    }

    #[test]
    fn switched_off_it_compresses_nothing() {
        let text = b"compressible ".repeat(400);
        assert_eq!(compressed(&mut compressor(Compression::Off), &text).0, Codec::Raw);
    }
}
