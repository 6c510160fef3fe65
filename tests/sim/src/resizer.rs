//! An administrator who changes a volume's size while guests work on it.

use crate::guest::Shared;
use crate::settings::millis;
use crate::stamp::SECTOR;
use crate::steps::steps;
use crate::tenure::Tenure;
use crate::volume::SimVolume;
use cairn_engine::{Engine, Volume};
use cairn_model::{Clock, ErrorKind, Kinded, Monotonic};
use cairn_wal::testing::Dice;
use std::sync::Arc;
use system_tests::oracle::journal::Effect;

const PAUSE_MS_MAX: u64 = 600;
/// The administrator's place among a volume's guests, in its journal.
const NUMBER: usize = 99;

/// See the module.
pub(crate) struct Resizer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) volume: Arc<SimVolume>,
    pub(crate) device: Arc<Volume>,
    pub(crate) tenure: Tenure,
    pub(crate) dice: Dice,
}

impl Resizer {
    pub(crate) async fn live(self, until: Monotonic) {
        loop {
            self.shared.clock.sleep(millis(&self.dice, PAUSE_MS_MAX)).await;
            if self.shared.clock.now() >= until
                || !self.resize(1 + self.dice.below(self.volume.sectors)).await
            {
                return;
            }
        }
    }

    /// What a smaller size cuts off is zeroed. False when there is nothing more to do here.
    async fn resize(&self, sectors: u64) -> bool {
        let (volume, sector) = (&*self.volume, SECTOR as u64);
        let before = self.device.size_bytes() / sector;
        self.shared.note(&format_args!("{} from {before} to {sectors} sectors", volume.name()));
        // A revert may give it another size before its turn comes.
        let cut = steps(sectors, volume.sectors - sectors);
        let places = volume.sent(NUMBER, &cut, Effect::Zeroes, true, |_, _| {});
        volume.resize_begins();
        match self.engine.resize_volume(&volume.name(), sectors * sector).await {
            Ok(()) => {
                volume.resize_ends();
                if let Err(finding) = volume.may_answer(self.tenure, "a resize") {
                    self.shared.found(finding);
                    return false;
                }
                volume.answered(&places);
                self.shared.note(&format_args!("{} has {sectors} sectors", volume.name()));
                true
            }
            Err(error) => {
                self.shared.note(&format_args!("{} keeps its size: {error}", volume.name()));
                if self.shared.log_is_gone(&error) {
                    self.shared.faults.end.notify_one();
                    return false;
                }
                match error.kind() {
                    ErrorKind::Unavailable if self.shared.faults.are_any() => true,
                    ErrorKind::OutOfSpace if self.shared.faults.pool_is_full() => true,
                    ErrorKind::Fenced if !volume.is_held(self.tenure) => false,
                    ErrorKind::Fenced if volume.history.lock().is_unclear() => false,
                    ErrorKind::NotFound if !volume.is_there() => false,
                    _ => {
                        self.shared.found(format!("{} refuses a resize: {error}", volume.name()));
                        false
                    }
                }
            }
        }
    }
}
