//! Telling streams (a copy, a backup, a restore) from what is written here and there.
//!
//! A stream takes free room in the cache of decoded chunks, but nobody's place: who writes it rarely reads it soon, and a full cache would be
//! copied through for nothing.

use cairn_model::Lba;

/// A stream is at least so long.
const BLOCKS_MIN: u64 = 256;
/// What its requests have on average, at least. Small requests that happen to lie side by side, as those of a journal, are no stream.
const REQUEST_BLOCKS_MIN: u64 = 16;

/// Looks at the runs of a batch, volume by volume, in the order of their addresses.
#[derive(Debug, Default)]
pub(super) struct Streams {
    is_compared: bool,
    /// Where the run before ended, if it was of a stream.
    goes_on_at: Option<Lba>,
}

impl Streams {
    /// Another volume follows, whose blocks are compared with what is stored or not.
    pub(super) const fn begin(&mut self, is_compared: bool) {
        *self = Self { is_compared, goes_on_at: None };
    }

    pub(super) const fn is_compared(&self) -> bool {
        self.is_compared
    }

    /// Whether a run of so many blocks, written by so many requests, belongs to a stream: it is long, or it goes on with one, from which it was cut for packing.
    pub(super) fn has(&mut self, start: Lba, blocks: u64, requests: usize) -> bool {
        let is_long = blocks >= BLOCKS_MIN && blocks >= requests as u64 * REQUEST_BLOCKS_MIN;
        let has = is_long || self.goes_on_at == Some(start);
        self.goes_on_at = has.then(|| start.plus(blocks));
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_long_and_was_written_by_long_requests() {
        for (blocks, requests, expected) in
            [(255, 1, false), (256, 1, true), (256, 16, true), (256, 17, false), (1024, 65, false)]
        {
            let mut streams = Streams::default();
            assert_eq!(streams.has(Lba::new(7), blocks, requests), expected, "{blocks} in {requests}");
        }
    }

    #[test]
    fn what_was_cut_from_it_belongs_to_it() {
        let mut streams = Streams::default();
        assert!(!streams.has(Lba::new(100), 28, 1), "nothing is known of it yet");
        assert!(streams.has(Lba::new(128), 896, 4));
        assert!(streams.has(Lba::new(1024), 128, 1));
        assert!(streams.has(Lba::new(1152), 1, 1));
        assert!(!streams.has(Lba::new(1154), 1, 1), "there is a gap");
        assert!(!streams.has(Lba::new(1155), 1, 1));
        assert!(streams.has(Lba::new(2048), 256, 1));
        streams.begin(false);
        assert!(!streams.has(Lba::new(2304), 1, 1), "another volume");
    }
}
