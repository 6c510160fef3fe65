//! Recognises sequential readers.

use cairn_model::{Lba, LbaRange};
use parking_lot::Mutex;

/// Readers of one volume that are followed at the same time.
const STREAMS: usize = 8;
/// A reader is sequential once it has read this much in order.
const SEQUENTIAL_BLOCKS: u64 = 16;
const BLOCK: u64 = cairn_model::BLOCK_SIZE as u64;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Where the next read of the stream starts.
    next: Lba,
    /// Blocks read in order so far.
    run_blocks: u64,
    /// End of what was asked for ahead of it.
    ahead_end: Lba,
}

/// The streams of a volume, most recently used last.
#[derive(Debug, Default)]
pub(crate) struct ReadStreams {
    streams: Mutex<Vec<Stream>>,
}

impl ReadStreams {
    /// Takes note of a read; returns what to read ahead, if anything. The distance doubles with the run, up to
    /// `ahead_bytes_max`, and a new request is made when half of it is used up.
    pub(crate) fn observe(&self, range: LbaRange, end: Lba, ahead_bytes_max: u64) -> Option<LbaRange> {
        let mut streams = self.streams.lock();
        // A read inside the stream's last block continues it: requests need not be block-aligned.
        let follows = |stream: &Stream| stream.next == range.start() || stream.next == range.start().plus(1);
        let Some(position) = streams.iter().position(follows) else {
            if streams.len() == STREAMS {
                streams.remove(0);
            }
            streams.push(Stream { next: range.end(), run_blocks: range.blocks(), ahead_end: range.end() });
            return None;
        };
        let mut stream = streams.remove(position);
        stream.run_blocks += range.end().get().saturating_sub(stream.next.get());
        stream.next = range.end();
        stream.ahead_end = stream.ahead_end.max(range.end());
        let wanted = (stream.run_blocks * 2).min(ahead_bytes_max / BLOCK);
        let left = stream.ahead_end.get() - range.end().get();
        let mut ahead = None;
        if stream.run_blocks >= SEQUENTIAL_BLOCKS && left <= wanted / 2 {
            let until = Lba::new(range.end().get() + wanted).min(end);
            let part = LbaRange::between(stream.ahead_end, until);
            stream.ahead_end = part.end();
            ahead = (!part.is_empty()).then_some(part);
        }
        streams.push(stream);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: Lba = Lba::new(1 << 20);

    fn range(start: u64, blocks: u64) -> LbaRange {
        LbaRange::new(Lba::new(start), blocks).unwrap()
    }

    #[test]
    fn a_sequential_reader_is_read_ahead_without_gaps_or_repeats() {
        let streams = ReadStreams::default();
        let mut asked_to = None;
        for step in 0..200 {
            if let Some(ahead) = streams.observe(range(step * 8, 8), END, 1 << 20) {
                assert!(ahead.start().get() >= (step + 1) * 8, "never behind the reader");
                if let Some(asked_to) = asked_to {
                    assert_eq!(ahead.start(), asked_to);
                }
                asked_to = Some(ahead.end());
            }
        }
        assert!(asked_to.unwrap().get() > 200 * 8);
    }

    #[test]
    fn a_random_reader_is_left_alone() {
        let streams = ReadStreams::default();
        for step in 0..200u64 {
            assert_eq!(streams.observe(range(step * 7919 % 100_003, 1), END, 1 << 20), None);
        }
    }

    #[test]
    fn nothing_is_asked_for_beyond_the_end() {
        let streams = ReadStreams::default();
        for step in 0..32 {
            if let Some(ahead) = streams.observe(range(step * 8, 8), Lba::new(256), 1 << 20) {
                assert!(ahead.end() <= Lba::new(256));
            }
        }
    }
}
