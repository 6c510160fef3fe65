//! A volume as the oracle knows it: what was asked, what was answered, what is there.

use crate::stamp::{self, SECTOR};
use bytes::{Bytes, BytesMut};
use cairn_engine::{EngineError, Volume};
use cairn_model::{BlockDevice, ReadBuffer};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use system_tests::oracle::journal::{Effect, Flush, Journal, Moment, Read, Write};
use system_tests::oracle::stamp::Seen;
use system_tests::oracle::verdict::{Promise, judge};

/// Sectors in a block: what the engine writes as one.
pub(crate) const BLOCK_SECTORS: u64 = 8;
/// Sectors of one read of a check.
const CHECK_SECTORS: u64 = 256;
/// Violations that a failure names.
const SHOWN: usize = 5;

/// A run of sectors that the engine makes in one step of its write order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) first: u64,
    pub(crate) sectors: u64,
}

/// The steps of a request of any alignment: part of a block, whole blocks, part of a block.
pub(crate) fn steps(first: u64, sectors: u64) -> Vec<Step> {
    let end = first + sectors;
    let (whole, whole_end) = (first.next_multiple_of(BLOCK_SECTORS), end / BLOCK_SECTORS * BLOCK_SECTORS);
    if whole > whole_end {
        return vec![Step { first, sectors }];
    }
    let parts = [(first, whole), (whole, whole_end), (whole_end, end)];
    let parts = parts.into_iter().filter(|(from, to)| from < to);
    parts.map(|(from, to)| Step { first: from, sectors: to - from }).collect()
}

/// What a check found wrong, or that it could not be made.
pub(crate) enum CheckError {
    Engine(EngineError),
    Finding(String),
}

/// Totals over all lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    pub writes: u64,
    pub flushes: u64,
    pub reads: u64,
    /// Writes without an answer when the process ended.
    pub unanswered: u64,
}

/// See the module. The oracle's granule is a sector here.
#[derive(Debug)]
pub(crate) struct SimVolume {
    pub(crate) number: u64,
    pub(crate) sectors: u64,
    journal: Mutex<Journal>,
    moment: AtomicU64,
    next_write: AtomicU64,
    requests: Mutex<Requests>,
}

impl SimVolume {
    pub(crate) fn new(number: u64, sectors: u64) -> Self {
        let base = vec![Seen::Zero; usize::try_from(sectors).expect("a small volume")];
        Self {
            number,
            sectors,
            journal: Mutex::new(Journal::new(base, true)),
            moment: AtomicU64::new(1),
            next_write: AtomicU64::new(1),
            requests: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> String {
        format!("volume-{}", self.number)
    }

    pub(crate) fn requests(&self) -> Requests {
        *self.requests.lock()
    }

    pub(crate) fn now(&self) -> Moment {
        self.moment.fetch_add(1, Ordering::Relaxed)
    }

    /// Journals the steps of a request that is about to be sent; returns their places in the journal. With stamps, `fill` gets the
    /// bytes of each.
    pub(crate) fn sent(
        &self,
        guest: usize,
        steps: &[Step],
        effect: Effect,
        fua: bool,
        mut fill: impl FnMut(Step, u64),
    ) -> Vec<usize> {
        let mut journal = self.journal.lock();
        let mut places = Vec::with_capacity(steps.len());
        for step in steps {
            let number = self.next_write.fetch_add(1, Ordering::Relaxed);
            fill(*step, number);
            places.push(journal.writes.len());
            journal.writes.push(Write {
                number,
                connection: guest,
                first_block: step.first,
                blocks: step.sectors,
                effect,
                fua,
                sent: self.now(),
                answered: None,
            });
        }
        places
    }

    pub(crate) fn answered(&self, places: &[usize]) {
        let mut journal = self.journal.lock();
        for place in places {
            journal.writes[*place].answered = Some(self.now());
        }
    }

    pub(crate) fn flushed(&self, guest: usize, sent: Moment) {
        self.journal.lock().flushes.push(Flush { connection: guest, sent });
    }

    /// Journals what a read saw; returns something of it for the trace.
    pub(crate) fn was_read(&self, first: u64, sent: Moment, data: &ReadBuffer) -> Result<u64, String> {
        let seen = self.decode(first, data)?;
        let digest = digest(&seen);
        let answered = self.now();
        self.journal.lock().reads.push(Read { first_block: first, sent, answered, seen });
        Ok(digest)
    }

    fn decode(&self, first: u64, data: &ReadBuffer) -> Result<Vec<Seen>, String> {
        let bytes = data.to_vec();
        let sectors = (first..).zip(bytes.chunks_exact(SECTOR));
        sectors.map(|(sector, bytes)| stamp::read(bytes, self.number, sector)).collect()
    }

    /// Reads everything and judges it by what was promised; from here on it is what the volume held at the start. Returns
    /// something of it for the trace.
    pub(crate) async fn check(&self, device: &Volume, promise: Promise) -> Result<u64, CheckError> {
        let mut seen = Vec::new();
        let mut first = 0;
        while first < self.sectors {
            let sectors = CHECK_SECTORS.min(self.sectors - first);
            let length = u32::try_from(sectors * SECTOR as u64).expect("a short read");
            let data = device.read(first * SECTOR as u64, length).await.map_err(CheckError::Engine)?;
            let name = self.name();
            seen.extend(
                self.decode(first, &data)
                    .map_err(|wrong| CheckError::Finding(format!("{name}, after the start: {wrong}")))?,
            );
            first += sectors;
        }
        let mut journal = self.journal.lock();
        let violations = judge(&journal, &seen, promise);
        if !violations.is_empty() {
            let shown: Vec<_> = violations.iter().take(SHOWN).map(|one| format!("\n  {one}")).collect();
            let (name, count, shown) = (self.name(), violations.len(), shown.concat());
            return Err(CheckError::Finding(format!("{name} breaks {promise:?} {count} times:{shown}")));
        }
        let digest = digest(&seen);
        let old = std::mem::replace(&mut *journal, Journal::new(seen, true));
        let mut requests = self.requests.lock();
        requests.writes += old.writes.len() as u64;
        requests.flushes += old.flushes.len() as u64;
        requests.reads += old.reads.len() as u64;
        requests.unanswered += old.writes.iter().filter(|write| write.answered.is_none()).count() as u64;
        Ok(digest)
    }

    /// The bytes of a write of these steps, stamped, and their places in the journal.
    pub(crate) fn stamped(&self, guest: usize, steps: &[Step], fua: bool) -> (Bytes, Vec<usize>) {
        let mut bytes = BytesMut::new();
        let places = self.sent(guest, steps, Effect::Stamps, fua, |step, number| {
            let from = bytes.len();
            bytes.resize(from + usize::try_from(step.sectors).expect("a short write") * SECTOR, 0);
            stamp::stamp(&mut bytes[from..], self.number, step.first, number);
        });
        (bytes.freeze(), places)
    }
}

fn digest(seen: &[Seen]) -> u64 {
    seen.iter().fold(0, |mixed: u64, seen| {
        let number = match seen {
            Seen::Zero => 0,
            Seen::Write(number) => *number,
        };
        mixed.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_cut_where_the_engine_cuts_it() {
        let cut = |first, sectors| {
            steps(first, sectors).iter().map(|step| (step.first, step.sectors)).collect::<Vec<_>>()
        };
        assert_eq!(cut(1, 3), [(1, 3)]);
        assert_eq!(cut(8, 16), [(8, 16)]);
        assert_eq!(cut(5, 20), [(5, 3), (8, 16), (24, 1)]);
        assert_eq!(cut(5, 5), [(5, 3), (8, 2)]);
        assert_eq!(cut(0, 3), [(0, 3)]);
    }
}
