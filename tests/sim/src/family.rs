//! A volume, its clones and theirs: each may show what was written to one that it comes from, so their writes are numbered together.

use crate::stamp::{self, COLOURS, Held, SECTOR};
use crate::steps::{BLOCK_SECTORS, Step};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use system_tests::oracle::stamp::Seen;

/// See the module.
#[derive(Debug)]
pub(crate) struct Family {
    /// The first volume's, in every stamp.
    number: u64,
    next_write: AtomicU64,
    /// The write that put a colour to a block.
    colours: Mutex<HashMap<(u64, u64), u64>>,
}

impl Family {
    pub(crate) fn new(number: u64) -> Self {
        Self { number, next_write: AtomicU64::new(1), colours: Mutex::default() }
    }

    /// The number of the next write.
    pub(crate) fn next_write(&self) -> u64 {
        self.next_write.fetch_add(1, Ordering::Relaxed)
    }

    /// Whose writes whole sectors from `first` on show.
    pub(crate) fn decode(&self, first: u64, bytes: &[u8]) -> Result<Vec<Seen>, String> {
        let sectors = (first..).zip(bytes.chunks_exact(SECTOR));
        let colours = self.colours.lock();
        let seen = sectors.map(|(sector, bytes)| match stamp::read(bytes, self.number, sector)? {
            Held::Zero => Ok(Seen::Zero),
            Held::Write(number) => Ok(Seen::Write(number)),
            Held::Common(colour) => {
                let write = colours.get(&(sector / BLOCK_SECTORS, colour));
                let write = write.copied().map(Seen::Write);
                write.ok_or_else(|| format!("sector {sector} holds common block {colour}, written elsewhere"))
            }
        });
        seen.collect()
    }

    /// Fills the bytes of a step: stamped, or whole blocks from `colour` on in the order of colours, as a copy of something would be, where
    /// none of them was written to its place before.
    pub(crate) fn fill(&self, bytes: &mut [u8], step: Step, write: u64, colour: Option<u64>) {
        if colour.is_none_or(|colour| !self.colour(bytes, step, write, colour)) {
            stamp::stamp(bytes, self.number, step.first, write);
        }
    }

    /// Whether the step could be filled with common blocks.
    fn colour(&self, bytes: &mut [u8], step: Step, write: u64, first_colour: u64) -> bool {
        if !step.is_aligned() {
            return false;
        }
        let blocks = step.first / BLOCK_SECTORS..(step.first + step.sectors) / BLOCK_SECTORS;
        let coloured: Vec<_> = blocks.zip((first_colour..).map(|colour| colour % COLOURS)).collect();
        let mut colours = self.colours.lock();
        if coloured.iter().any(|place| colours.contains_key(place)) {
            return false;
        }
        for ((block, colour), bytes) in coloured.into_iter().zip(bytes.chunks_exact_mut(SECTOR * 8)) {
            stamp::colour(bytes, colour);
            colours.insert((block, colour), write);
        }
        true
    }
}
