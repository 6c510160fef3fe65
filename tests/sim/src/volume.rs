//! A volume as the oracle knows it: what was asked, what was answered, what is there.

use crate::stamp::{self, COLOURS, Held, SECTOR};
use bytes::{Bytes, BytesMut};
use cairn_engine::{EngineError, Volume};
use cairn_metadata::memory::{MemoryCatalog, MemoryHolder};
use cairn_model::{BlockDevice, DomainId, GatewayId, Generation, ReadBuffer, VolumeId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::iter::Sum;
use std::sync::atomic::{AtomicU64, Ordering};
use system_tests::oracle::journal::{Effect, Flush, Journal, Moment, Read, Write};
use system_tests::oracle::stamp::Seen;
use system_tests::oracle::verdict::{Promise, Violation, judge};

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
    /// Another gateway has the volume by now.
    Lost,
    Finding(String),
}

/// A gateway's term, in which its answers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tenure {
    gateway: GatewayId,
    generation: Generation,
}

/// The state of a volume's history.
#[derive(Debug)]
struct Past {
    /// Who served it last, and since which term without a break: only then does its log count.
    last: Option<(GatewayId, Generation)>,
    /// What the events since the last check leave no excuse for losing.
    promise: Promise,
    /// No log has a say: whatever is there now is in the catalog.
    without_log: bool,
    moves: u64,
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

impl Sum for Requests {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            writes: sum.writes + one.writes,
            flushes: sum.flushes + one.flushes,
            reads: sum.reads + one.reads,
            unanswered: sum.unanswered + one.unanswered,
        })
    }
}

/// How a volume is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VolumeHabits {
    /// Every write is durable when it is answered.
    pub(crate) always: bool,
    pub(crate) dedupe: bool,
    /// What is shared is compared first.
    pub(crate) verify: bool,
    pub(crate) domain: DomainId,
}

/// See the module. The oracle's granule is a sector here.
#[derive(Debug)]
pub(crate) struct SimVolume {
    pub(crate) id: VolumeId,
    pub(crate) habits: VolumeHabits,
    pub(crate) number: u64,
    /// At its largest.
    pub(crate) sectors: u64,
    catalog: MemoryCatalog,
    past: Mutex<Past>,
    /// Since the last check.
    journal: Mutex<Journal>,
    /// Those before, oldest first, back to one in which a destage ended: a volume that has lost its log may go back to any of them.
    older: Mutex<Vec<Journal>>,
    moment: AtomicU64,
    next_write: AtomicU64,
    requests: Mutex<Requests>,
    /// Changes of the size that were asked for, and those whose outcome is known.
    resizes: Mutex<(u64, u64)>,
    /// The write that put a colour to a block.
    colours: Mutex<HashMap<(u64, u64), u64>>,
}

impl SimVolume {
    pub(crate) fn new(
        id: VolumeId,
        number: u64,
        sectors: u64,
        habits: VolumeHabits,
        catalog: MemoryCatalog,
    ) -> Self {
        let base = vec![Seen::Zero; usize::try_from(sectors).expect("a small volume")];
        Self {
            id,
            habits,
            number,
            sectors,
            catalog,
            past: Mutex::new(Past {
                last: None,
                promise: Promise::Acknowledged,
                without_log: false,
                moves: 0,
            }),
            journal: Mutex::new(Journal::new(base, true)),
            older: Mutex::default(),
            moment: AtomicU64::new(1),
            next_write: AtomicU64::new(1),
            requests: Mutex::default(),
            resizes: Mutex::default(),
            colours: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> String {
        format!("volume-{}", self.number)
    }

    pub(crate) fn requests(&self) -> Requests {
        *self.requests.lock()
    }

    pub(crate) fn moves(&self) -> u64 {
        self.past.lock().moves
    }

    /// Something happened to the host of this gateway that only `promise` survives.
    pub(crate) fn excuse(&self, gateway: GatewayId, promise: Promise) {
        let mut past = self.past.lock();
        if past.last.is_some_and(|(last, _)| last == gateway) {
            past.promise = past.promise.max(promise);
        }
    }

    /// The gateway has lost its log.
    pub(crate) fn log_is_lost(&self, gateway: GatewayId) {
        self.excuse(gateway, Promise::Destaged);
        let mut past = self.past.lock();
        past.without_log |= past.last.is_some_and(|(last, _)| last == gateway);
    }

    /// The gateway serves the volume now. `None` if another one has it already.
    pub(crate) fn came_to(&self, gateway: GatewayId, generation: Generation) -> Option<Tenure> {
        let tenure = Tenure { gateway, generation };
        let holder = self.holder_if(tenure)?;
        let mut past = self.past.lock();
        let now = (gateway, holder.held_since);
        if past.last.is_some_and(|last| last != now) {
            // The log of whoever had it before says nothing any more.
            past.promise = Promise::Destaged;
            past.without_log = true;
            past.moves += 1;
        }
        past.last = Some(now);
        Some(tenure)
    }

    /// The gateway has ended in order: if it had the volume, it has given it back with everything in it.
    pub(crate) fn was_given_back(&self, gateway: GatewayId) {
        let holder =
            self.catalog.holder(self.id).filter(|holder| holder.released && holder.gateway == gateway);
        let mut past = self.past.lock();
        if holder.is_some_and(|holder| past.last == Some((gateway, holder.held_since))) {
            past.last = None;
        }
    }

    fn holder_if(&self, tenure: Tenure) -> Option<MemoryHolder> {
        let Tenure { gateway, generation } = tenure;
        self.catalog
            .holder(self.id)
            .filter(|holder| !holder.released)
            .filter(|holder| (holder.gateway, holder.generation) == (gateway, generation))
    }

    /// Whether the term goes on.
    pub(crate) fn is_held(&self, tenure: Tenure) -> bool {
        self.holder_if(tenure).is_some()
    }

    /// An answer counts, and is a broken promise if the volume belongs to somebody else.
    pub(crate) fn may_answer(&self, tenure: Tenure, what: &str) -> Result<(), String> {
        if self.is_held(tenure) {
            return Ok(());
        }
        Err(format!(
            "{} answers {what} in a term that is over: {:?} has it",
            self.name(),
            self.catalog.holder(self.id)
        ))
    }

    pub(crate) fn resize_begins(&self) {
        self.resizes.lock().0 += 1;
    }

    /// Its outcome is known now.
    pub(crate) fn resize_ends(&self) {
        self.resizes.lock().1 += 1;
    }

    /// How many changes of the size have an outcome.
    pub(crate) fn resizes_ended(&self) -> u64 {
        self.resizes.lock().1
    }

    /// Whether the size may have changed since so many changes had an outcome.
    pub(crate) fn may_have_been_resized_since(&self, ended: u64) -> bool {
        self.resizes.lock().0 > ended
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
                fua: fua || self.habits.always,
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

    pub(crate) fn destaged(&self, sent: Moment) {
        self.journal.lock().destages.push(sent);
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

    /// Reads everything and judges it by what is promised after what has happened since the last time; from here on it is what the volume
    /// held at the start. What lies beyond the end counts as zeroes. Returns something of it for the trace.
    pub(crate) async fn check(&self, device: &Volume, tenure: Tenure) -> Result<u64, CheckError> {
        let mut seen = Vec::new();
        let (mut first, end) = (0, device.size_bytes() / SECTOR as u64);
        while first < end {
            let sectors = CHECK_SECTORS.min(end - first);
            let length = u32::try_from(sectors * SECTOR as u64).expect("a short read");
            let data = device.read(first * SECTOR as u64, length).await.map_err(CheckError::Engine)?;
            let name = self.name();
            seen.extend(
                self.decode(first, &data)
                    .map_err(|wrong| CheckError::Finding(format!("{name}, after the start: {wrong}")))?,
            );
            first += sectors;
        }
        if !self.is_held(tenure) {
            return Err(CheckError::Lost);
        }
        seen.resize(usize::try_from(self.sectors).expect("a small volume"), Seen::Zero);
        let mut past = self.past.lock();
        let promise = past.promise;
        let judged = self.judge(&seen, promise);
        if let Err(violations) = &judged {
            let shown: Vec<_> = violations.iter().take(SHOWN).map(|one| format!("\n  {one}")).collect();
            let (name, count, shown) = (self.name(), violations.len(), shown.concat());
            return Err(CheckError::Finding(format!("{name} breaks {promise:?} {count} times:{shown}")));
        }
        past.promise = Promise::Acknowledged;
        let digest = digest(&seen);
        let without_log = std::mem::take(&mut past.without_log);
        self.begin_anew(seen, judged.unwrap_or_default(), without_log);
        let mut resizes = self.resizes.lock();
        // Those of earlier terms have no effect any more.
        resizes.1 = resizes.0;
        Ok(digest)
    }

    /// The journal that explains what is seen, if it is one of the older.
    fn judge(&self, seen: &[Seen], promise: Promise) -> Result<Option<usize>, Vec<Violation>> {
        let journal = self.journal.lock();
        let violations = judge(&journal, seen, promise);
        if violations.is_empty() {
            return Ok(None);
        }
        if promise < Promise::Destaged || !journal.destages.is_empty() {
            return Err(violations);
        }
        for (index, older) in self.older.lock().iter().enumerate().rev() {
            if judge(older, seen, promise).is_empty() {
                return Ok(Some(index));
            }
            if !older.destages.is_empty() {
                break;
            }
        }
        Err(violations)
    }

    /// The journal of what comes after a check that found `base`.
    fn begin_anew(&self, base: Vec<Seen>, older_journal: Option<usize>, without_log: bool) {
        let old = std::mem::replace(&mut *self.journal.lock(), Journal::new(base, true));
        let mut requests = self.requests.lock();
        requests.writes += old.writes.len() as u64;
        requests.flushes += old.flushes.len() as u64;
        requests.reads += old.reads.len() as u64;
        requests.unanswered += old.writes.iter().filter(|write| write.answered.is_none()).count() as u64;
        let mut older = self.older.lock();
        if let Some(index) = older_journal {
            // What came after it is lost for good.
            older.truncate(index + 1);
        }
        if without_log || !old.destages.is_empty() {
            older.clear();
        }
        // What was there without the log is in the catalog: nothing older comes back.
        if !without_log && older_journal.is_none() {
            older.push(old);
        }
    }

    /// The bytes of a write of these steps, and their places in the journal: stamped, or whole blocks from `colour` on in the order of
    /// colours, as a copy of something would be, where none of them was written to its place before.
    pub(crate) fn filled(
        &self,
        guest: usize,
        steps: &[Step],
        fua: bool,
        colour: Option<u64>,
    ) -> (Bytes, Vec<usize>) {
        let mut bytes = BytesMut::new();
        let places = self.sent(guest, steps, Effect::Stamps, fua, |step, number| {
            let from = bytes.len();
            bytes.resize(from + usize::try_from(step.sectors).expect("a short write") * SECTOR, 0);
            if colour.is_none_or(|colour| !self.colour(&mut bytes[from..], step, number, colour)) {
                stamp::stamp(&mut bytes[from..], self.number, step.first, number);
            }
        });
        (bytes.freeze(), places)
    }

    /// Whether the step could be filled with common blocks.
    fn colour(&self, bytes: &mut [u8], step: Step, number: u64, first_colour: u64) -> bool {
        if !step.first.is_multiple_of(BLOCK_SECTORS) || !step.sectors.is_multiple_of(BLOCK_SECTORS) {
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
            colours.insert((block, colour), number);
        }
        true
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
