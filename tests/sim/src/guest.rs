//! A guest on a volume: requests of its own habits, several in flight, until its time is over.

use crate::clock::VirtualClock;
use crate::faults::Faults;
use crate::limits::Part;
use crate::settings::{Habits, millis};
use crate::site::SimSite;
use crate::stamp::{COLOURS, SECTOR};
use crate::steps::{BLOCK_SECTORS, steps};
use crate::tenure::Tenure;
use crate::volume::SimVolume;
use cairn_engine::{Engine, EngineError, Volume};
use cairn_model::{BlockDevice, Clock, ErrorKind, Kinded, Monotonic, WriteFlags};
use cairn_wal::testing::Dice;
use parking_lot::Mutex;
use std::fmt::Display;
use std::sync::Arc;
use system_tests::oracle::journal::Effect;
use tokio::task::JoinSet;

/// Sectors that take many of the requests of some guests.
const HOT_SECTORS: u64 = 64;

/// What everybody in one life shares.
pub(crate) struct Shared {
    pub(crate) site: Arc<SimSite>,
    /// The gateway, in the trace.
    pub(crate) place: String,
    pub(crate) clock: Arc<VirtualClock>,
    pub(crate) faults: Arc<Faults>,
    /// The first thing that nothing excuses.
    pub(crate) finding: Mutex<Option<String>>,
}

impl Shared {
    pub(crate) fn note(&self, event: &dyn Display) {
        self.site.trace.note(self.clock.world(), &self.place, event);
    }

    pub(crate) fn found(&self, what: String) {
        self.finding.lock().get_or_insert(what);
        self.faults.end.notify_one();
    }

    /// Whether the disk's end or its failed sync explains the error: then the process is about to end.
    pub(crate) fn log_is_gone(&self, error: &EngineError) -> bool {
        matches!(error, EngineError::Wal(_))
            && (self.faults.sync_failed() || error.to_string().contains("interrupted"))
    }
}

#[derive(Clone, Copy, Debug)]
enum Request {
    Flush,
    Destage,
    Read { first: u64, sectors: u64 },
    Write { first: u64, sectors: u64, fua: bool, colour: Option<u64> },
    Zero { first: u64, sectors: u64, fua: bool },
    Discard { first: u64, sectors: u64, fua: bool },
}

pub(crate) struct Guest {
    pub(crate) number: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) volume: Arc<SimVolume>,
    pub(crate) device: Arc<Volume>,
    pub(crate) tenure: Tenure,
    pub(crate) dice: Dice,
    pub(crate) habits: Habits,
}

impl Guest {
    /// Sends requests until `until` or until the volume is lost, then waits for their answers.
    pub(crate) async fn live(self, until: Monotonic) {
        let guest = Arc::new(self);
        let mut in_flight = JoinSet::new();
        let mut left = guest.shared.site.limits.requests;
        while guest.shared.clock.now() < until && guest.volume.is_held(guest.tenure) {
            while in_flight.try_join_next().is_some() {}
            if in_flight.len() >= guest.habits.depth {
                in_flight.join_next().await;
                continue;
            }
            let (sender, resizes) = (Arc::clone(&guest), guest.volume.resizes_ended());
            let request = guest.draw();
            if left == 0 {
                break;
            }
            left -= 1;
            in_flight.spawn(async move { sender.send(request, resizes).await });
            if guest.dice.percent(60) {
                guest.shared.clock.sleep(millis(&guest.dice, guest.habits.pause_ms_max)).await;
            }
        }
        while in_flight.join_next().await.is_some() {}
    }

    fn draw(&self) -> Request {
        let (dice, habits) = (&self.dice, &self.habits);
        let mut roll = dice.below(100);
        let mut is = |share: u64| {
            let hit = roll < share;
            roll = roll.saturating_sub(share);
            if hit {
                roll = u64::MAX;
            }
            hit
        };
        let is_destage = dice.percent(habits.destages);
        let kind = [is(habits.flushes), is(habits.reads), is(habits.zeroes), is(habits.discards)];
        let (first, sectors) = self.choose();
        let fua = dice.percent(habits.forced);
        let colour = (dice.percent(habits.common), dice.below(COLOURS));
        let colour = (colour.0 && self.shared.site.limits.allow(Part::Copies)).then_some(colour.1);
        match kind {
            _ if is_destage => Request::Destage,
            [true, ..] => Request::Flush,
            [_, true, ..] => Request::Read { first, sectors },
            [_, _, true, _] => Request::Zero { first, sectors, fua },
            [.., true] => Request::Discard { first, sectors, fua },
            _ => Request::Write { first, sectors, fua, colour },
        }
    }

    fn choose(&self) -> (u64, u64) {
        let dice = &self.dice;
        let size = self.device.size_bytes() / SECTOR as u64;
        let within = if dice.percent(self.habits.hot) { HOT_SECTORS.min(size) } else { size };
        let longest = if dice.percent(50) { BLOCK_SECTORS } else { self.habits.sectors_max };
        let mut sectors = 1 + dice.below(longest.min(within));
        let mut first = dice.below(within - sectors + 1);
        if dice.percent(self.habits.aligned) {
            first -= first % BLOCK_SECTORS;
            sectors = sectors.next_multiple_of(BLOCK_SECTORS).min(within - first);
        }
        (first, sectors)
    }

    async fn send(&self, request: Request, resizes: u64) {
        let (shared, who) = (&self.shared, (self.volume.number, self.number));
        shared.note(&format_args!("{who:?} {request:?}"));
        match self.perform(request).await {
            Ok(seen) => shared.note(&format_args!("{who:?} {request:?} = {seen:x}")),
            Err(error) => {
                shared.note(&format_args!("{who:?} {request:?}: {error}"));
                if shared.log_is_gone(&error) {
                    shared.faults.end.notify_one();
                } else if !self.is_excused(&error, resizes) {
                    shared.found(format!("{} refuses {request:?}: {error}", self.volume.name()));
                }
            }
        }
    }

    /// `resizes`: those that had ended when the request was made up.
    fn is_excused(&self, error: &EngineError, resizes: u64) -> bool {
        match error.kind() {
            ErrorKind::Unavailable => self.shared.faults.are_any(),
            ErrorKind::OutOfSpace => self.shared.faults.pool_is_full(),
            ErrorKind::OutOfRange => self.volume.may_have_been_resized_since(resizes),
            ErrorKind::Fenced => !self.volume.is_held(self.tenure) || self.volume.history.lock().is_unclear(),
            ErrorKind::NotFound => !self.volume.is_there(),
            _ => false,
        }
    }

    /// An answer that the volume's next owner would not stand by is a broken promise.
    fn answered(&self, request: Request) {
        if let Err(finding) = self.volume.may_answer(self.tenure, &format!("{request:?}")) {
            self.shared.found(finding);
        }
    }

    /// Sends the request, journals it and its answer. Returns something of what a read saw.
    async fn perform(&self, request: Request) -> Result<u64, EngineError> {
        let (volume, device) = (&*self.volume, &*self.device);
        let bytes = |sectors: u64| sectors * SECTOR as u64;
        match request {
            Request::Flush => {
                let sent = volume.now();
                device.flush().await?;
                self.answered(request);
                volume.flushed(self.number, sent);
            }
            Request::Destage => {
                let sent = volume.now();
                self.engine.destage().await?;
                // The engine answers for all its volumes, also when it has just lost this one.
                if volume.is_held(self.tenure) {
                    volume.destaged(sent);
                }
            }
            Request::Read { first, sectors } => {
                let sent = volume.now();
                let length = u32::try_from(bytes(sectors)).expect("a short read");
                let data = device.read(bytes(first), length).await?;
                self.answered(request);
                match volume.was_read(first, sent, &data) {
                    Ok(seen) => return Ok(seen),
                    Err(wrong) => self.shared.found(format!("{}, a read: {wrong}", volume.name())),
                }
            }
            Request::Write { first, sectors, fua, colour } => {
                let (data, places) = volume.filled(self.number, &steps(first, sectors), fua, colour);
                device.write(bytes(first), data, WriteFlags { fua }).await?;
                self.answered(request);
                volume.answered(&places);
            }
            Request::Zero { first, sectors, fua } => {
                let places = volume.sent(self.number, &steps(first, sectors), Effect::Zeroes, fua, |_, _| {});
                device.write_zeroes(bytes(first), bytes(sectors), WriteFlags { fua }).await?;
                self.answered(request);
                volume.answered(&places);
            }
            Request::Discard { first, sectors, fua } => {
                let mut whole = steps(first, sectors);
                whole.retain(|step| {
                    step.first.is_multiple_of(BLOCK_SECTORS) && step.sectors.is_multiple_of(BLOCK_SECTORS)
                });
                let places = volume.sent(self.number, &whole, Effect::Zeroes, fua, |_, _| {});
                device.discard(bytes(first), bytes(sectors), WriteFlags { fua }).await?;
                self.answered(request);
                volume.answered(&places);
            }
        }
        Ok(0)
    }
}
