//! A volume in the hands of a gateway: taken, checked, used by guests, perhaps lost to another gateway and taken back.

use crate::guest::{Guest, Shared};
use crate::keeper::{Keeper, Reverted};
use crate::limits::Part;
use crate::resizer::Resizer;
use crate::settings::Habits;
use crate::tenure::Tenure;
use crate::volume::{CheckError, SimVolume};
use cairn_engine::{Engine, Volume};
use cairn_model::{Clock, ErrorKind, GatewayId, Kinded, Monotonic};
use cairn_wal::testing::Dice;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Between two attempts at what has failed.
const PAUSE: Duration = Duration::from_millis(50);

/// See the module.
pub(crate) struct Attachment {
    pub(crate) shared: Arc<Shared>,
    pub(crate) gateway: GatewayId,
    pub(crate) engine: Arc<Engine>,
    pub(crate) volume: Arc<SimVolume>,
    pub(crate) dice: Dice,
    /// Guests work until then; `None`: there are none.
    pub(crate) until: Option<Monotonic>,
    /// The volume is waited for as long as it takes.
    pub(crate) must_come: bool,
}

impl Attachment {
    pub(crate) async fn live(self) {
        while let Some(device) = self.obtain().await {
            let Some(tenure) = self.volume.came_to(self.gateway, device.generation()) else {
                // Lost again, and the engine will see it soon.
                self.shared.clock.sleep(PAUSE).await;
                continue;
            };
            self.shared.note(&format_args!("{} in {:?}", self.volume.name(), device.generation()));
            if !self.check(&device, tenure).await {
                continue;
            }
            let keeper = self.keeper(&device, tenure);
            let Some(until) = self.until else { return keeper.look(100).await };
            let (reverts_first, reverts_last) = (self.dice.percent(15), self.dice.percent(15));
            let deletes = self.dice.percent(if self.volume.is_clone { 15 } else { 8 });
            if reverts_first && keeper.revert(false).await != Reverted::Not {
                continue;
            }
            self.entertain(&device, tenure, until).await;
            if reverts_last && keeper.revert(false).await == Reverted::Done {
                self.check(&device, tenure).await;
            }
            // Clones of it live on.
            let may_go = self.volume.is_clone || self.shared.site.has_clones(&self.volume);
            if may_go && deletes && self.volume.is_held(tenure) {
                return keeper.delete_volume().await;
            }
            if self.volume.is_held(tenure) || self.dice.percent(50) {
                return;
            }
        }
    }

    /// The volume, in service: at once, or when another gateway has lost it.
    async fn obtain(&self) -> Option<Arc<Volume>> {
        let (clock, name) = (&*self.shared.clock, self.volume.name());
        let taken = async {
            loop {
                let served =
                    self.engine.volume(&name).filter(|volume| volume.status().condition == "serving");
                if let Some(volume) = served {
                    return Some(volume);
                }
                let plain = name.parse().expect("a plain name");
                match self.engine.take_volume(&plain).await {
                    Ok(volume) => return Some(volume),
                    Err(error) if error.kind() == ErrorKind::Unavailable => clock.sleep(PAUSE).await,
                    Err(_) if !self.volume.is_there() => return None,
                    Err(error) => {
                        self.shared.found(format!("{name} cannot be taken: {error}"));
                        pending::<()>().await;
                    }
                }
            }
        };
        match self.until.filter(|_| !self.must_come) {
            Some(until) => cairn_model::timeout(clock, until.since(clock.now()), taken).await.ok().flatten(),
            None => taken.await,
        }
    }

    /// Checks until it succeeds; false when the volume has gone to another gateway.
    async fn check(&self, device: &Volume, tenure: Tenure) -> bool {
        let name = self.volume.name();
        loop {
            match self.volume.check(device, tenure).await {
                Ok(seen) => {
                    self.shared.note(&format_args!("{name} = {seen:x}"));
                    return true;
                }
                Err(CheckError::Lost) => return false,
                Err(CheckError::Finding(finding)) => {
                    self.shared.found(finding);
                    return pending().await;
                }
                Err(CheckError::Engine(error)) => {
                    self.shared.note(&format_args!("the check of {name}: {error}"));
                    match error.kind() {
                        ErrorKind::Unavailable => self.shared.clock.sleep(PAUSE).await,
                        ErrorKind::Fenced if !self.volume.is_held(tenure) => return false,
                        ErrorKind::NotFound if !self.volume.is_there() => return false,
                        _ if self.shared.log_is_gone(&error) => return pending().await,
                        _ => {
                            self.shared.found(format!("the check of {name}: {error}"));
                            return pending().await;
                        }
                    }
                }
            }
        }
    }

    fn keeper(&self, device: &Arc<Volume>, tenure: Tenure) -> Keeper {
        Keeper {
            shared: Arc::clone(&self.shared),
            gateway: self.gateway,
            engine: Arc::clone(&self.engine),
            volume: Arc::clone(&self.volume),
            device: Arc::clone(device),
            tenure,
            dice: Dice::new(self.dice.below(u64::MAX)),
        }
    }

    /// Guests and a keeper of snapshots, until their time is over or the volume is lost.
    async fn entertain(&self, device: &Arc<Volume>, tenure: Tenure, until: Monotonic) {
        let mut guests = JoinSet::new();
        let limits = &self.shared.site.limits;
        for number in 0..=self.dice.below(3) {
            let dice = Dice::new(self.dice.below(u64::MAX));
            if number >= limits.guests || self.volume.is_clone && number > 0 {
                continue;
            }
            let guest = Guest {
                number: usize::try_from(number).expect("few guests"),
                shared: Arc::clone(&self.shared),
                engine: Arc::clone(&self.engine),
                volume: Arc::clone(&self.volume),
                device: Arc::clone(device),
                tenure,
                habits: Habits::draw(&dice, limits),
                dice,
            };
            guests.spawn(guest.live(until));
        }
        let dice = Dice::new(self.dice.below(u64::MAX));
        if self.dice.percent(25) && limits.allow(Part::Resizes) {
            let resizer = Resizer {
                shared: Arc::clone(&self.shared),
                engine: Arc::clone(&self.engine),
                volume: Arc::clone(&self.volume),
                device: Arc::clone(device),
                tenure,
                dice,
            };
            guests.spawn(resizer.live(until));
        }
        let keeper = self.keeper(device, tenure);
        if limits.allow(Part::Snapshots) {
            guests.spawn(keeper.live(until));
        }
        while guests.join_next().await.is_some() {}
    }
}
