//! A volume as the oracle knows it: what was asked, what was answered, what is there.

use crate::family::Family;
use crate::history::{Explained, History};
use crate::snapshots::Snapshots;
use crate::stamp::SECTOR;
use crate::steps::Step;
use crate::tenure::{Past, Tenure};
use bytes::{Bytes, BytesMut};
use cairn_engine::{EngineError, Volume};
use cairn_metadata::memory::MemoryCatalog;
use cairn_model::{BlockDevice, DomainId, GatewayId, ReadBuffer, VolumeId};
use parking_lot::Mutex;
use std::iter::Sum;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use system_tests::oracle::journal::{Effect, Flush, Journal, Moment, Read, Write};
use system_tests::oracle::stamp::Seen;
use system_tests::oracle::verdict::{Promise, Violation};

/// Sectors of one read of a check.
const CHECK_SECTORS: u64 = 256;
/// Violations that a failure names.
const SHOWN: usize = 5;

/// What a check found wrong, or that it could not be made.
pub(crate) enum CheckError {
    Engine(EngineError),
    /// Another gateway has the volume by now.
    Lost,
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

/// Whether a volume is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existence {
    There,
    /// This gateway was asked to delete it and has not answered.
    Deleting(GatewayId),
    /// It was to be deleted; nobody knows.
    Unknown,
    Deleted,
}

/// See the module. The oracle's granule is a sector here.
#[derive(Debug)]
pub(crate) struct SimVolume {
    pub(crate) id: VolumeId,
    pub(crate) habits: VolumeHabits,
    pub(crate) number: u64,
    /// At its largest.
    pub(crate) sectors: u64,
    pub(crate) is_clone: bool,
    pub(crate) family: Arc<Family>,
    pub(crate) catalog: MemoryCatalog,
    pub(crate) past: Mutex<Past>,
    pub(crate) history: Mutex<History>,
    pub(crate) snapshots: Mutex<Snapshots>,
    pub(crate) existence: Mutex<Existence>,
    moment: AtomicU64,
    requests: Mutex<Requests>,
    /// Changes of the size that were asked for, and those whose outcome is known.
    resizes: Mutex<(u64, u64)>,
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
        let family = Arc::new(Family::new(number));
        Self::assemble(id, number, habits, base, family, catalog)
    }

    /// A clone that shows `base` of a volume.
    pub(crate) fn clone_of(parent: &Self, id: VolumeId, number: u64, base: Vec<Seen>) -> Self {
        let (family, catalog) = (Arc::clone(&parent.family), parent.catalog.clone());
        Self { is_clone: true, ..Self::assemble(id, number, parent.habits, base, family, catalog) }
    }

    fn assemble(
        id: VolumeId,
        number: u64,
        habits: VolumeHabits,
        base: Vec<Seen>,
        family: Arc<Family>,
        catalog: MemoryCatalog,
    ) -> Self {
        Self {
            id,
            habits,
            number,
            sectors: base.len() as u64,
            is_clone: false,
            family,
            catalog,
            past: Mutex::new(Past::new()),
            history: Mutex::new(History::of(base)),
            snapshots: Mutex::default(),
            existence: Mutex::new(Existence::There),
            moment: AtomicU64::new(1),
            requests: Mutex::default(),
            resizes: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> String {
        format!("volume-{}", self.number)
    }

    pub(crate) fn requests(&self) -> Requests {
        *self.requests.lock()
    }

    /// Whether nobody has asked for its end.
    pub(crate) fn is_there(&self) -> bool {
        *self.existence.lock() == Existence::There
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
        let journal = &mut self.history.lock().journal;
        let mut places = Vec::with_capacity(steps.len());
        for step in steps {
            let number = self.family.next_write();
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
        let mut history = self.history.lock();
        for place in places {
            history.answered(*place, self.now());
        }
    }

    pub(crate) fn flushed(&self, guest: usize, sent: Moment) {
        self.history.lock().journal.flushes.push(Flush { connection: guest, sent });
    }

    pub(crate) fn destaged(&self, sent: Moment) {
        self.snapshots.lock().destaged(sent);
        self.history.lock().journal.destages.push(sent);
    }

    /// Journals what a read saw; returns something of it for the trace.
    pub(crate) fn was_read(&self, first: u64, sent: Moment, data: &ReadBuffer) -> Result<u64, String> {
        let seen = self.family.decode(first, &data.to_vec())?;
        let digest = digest(&seen);
        let answered = self.now();
        self.history.lock().was_read(Read { first_block: first, sent, answered, seen });
        Ok(digest)
    }

    /// Reads everything and judges it by what is promised after what has happened since the last time; from here on it is what the volume
    /// held at the start. What lies beyond the end counts as zeroes. Returns something of it for the trace.
    pub(crate) async fn check(&self, device: &Volume, tenure: Tenure) -> Result<u64, CheckError> {
        let name = self.name();
        let bytes = read_whole(device).await.map_err(CheckError::Engine)?;
        let mut seen = self
            .family
            .decode(0, &bytes)
            .map_err(|wrong| CheckError::Finding(format!("{name}, after the start: {wrong}")))?;
        if !self.is_held(tenure) {
            return Err(CheckError::Lost);
        }
        seen.resize(usize::try_from(self.sectors).expect("a small volume"), Seen::Zero);
        let mut past = self.past.lock();
        let promise = past.promise;
        let explained = self.history.lock().judge(&seen, promise).map_err(|violations| {
            CheckError::Finding(format!("{name} breaks {promise:?} {}", violations_shown(&violations)))
        })?;
        past.promise = Promise::Acknowledged;
        let digest = digest(&seen);
        let without_log = std::mem::take(&mut past.without_log);
        self.begin_anew(seen, explained, promise, without_log);
        let mut resizes = self.resizes.lock();
        // Those of earlier terms have no effect any more.
        resizes.1 = resizes.0;
        Ok(digest)
    }

    /// What comes after a check that found `base` explained.
    pub(crate) fn begin_anew(
        &self,
        base: Vec<Seen>,
        explained: Explained,
        promise: Promise,
        without_log: bool,
    ) {
        let mut history = self.history.lock();
        self.count(&history.journal);
        self.snapshots.lock().era_ends(&history.journal, &base, promise, explained);
        history.begin_anew(base, explained, without_log);
    }

    pub(crate) fn count(&self, journal: &Journal) {
        let mut requests = self.requests.lock();
        requests.writes += journal.writes.iter().filter(|write| write.blocks > 0).count() as u64;
        requests.flushes += journal.flushes.len() as u64;
        requests.reads += journal.reads.len() as u64;
        requests.unanswered += journal.writes.iter().filter(|write| write.answered.is_none()).count() as u64;
    }

    /// The bytes of a write of these steps, as [`Family::fill`] makes them, and their places in the journal.
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
            self.family.fill(&mut bytes[from..], step, number, colour);
        });
        (bytes.freeze(), places)
    }
}

/// All bytes of a device.
pub(crate) async fn read_whole(device: &Volume) -> Result<Vec<u8>, EngineError> {
    let mut bytes = Vec::new();
    let (mut first, end) = (0, device.size_bytes() / SECTOR as u64);
    while first < end {
        let sectors = CHECK_SECTORS.min(end - first);
        let length = u32::try_from(sectors * SECTOR as u64).expect("a short read");
        let data = device.read(first * SECTOR as u64, length).await?;
        bytes.extend_from_slice(&data.to_vec());
        first += sectors;
    }
    Ok(bytes)
}

/// The first violations, and how many there are.
pub(crate) fn violations_shown(violations: &[Violation]) -> String {
    let lines: Vec<_> = violations.iter().take(SHOWN).map(|one| format!("\n  {one}")).collect();
    format!("{} times:{}", violations.len(), lines.concat())
}

/// Something of what was seen, for the trace.
fn digest(seen: &[Seen]) -> u64 {
    seen.iter().fold(0, |mixed: u64, seen| {
        let number = match seen {
            Seen::Zero => 0,
            Seen::Write(number) => *number,
        };
        mixed.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number
    })
}
