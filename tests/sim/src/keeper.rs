//! An administrator who takes snapshots of a volume, reads and deletes them, makes clones and reverts, while guests work on it or not.

use crate::attachment::Attachment;
use crate::guest::Shared;
use crate::history::Revert;
use crate::limits::Part;
use crate::settings::{millis, pick};
use crate::snapshots::{Pinned, Standing};
use crate::tenure::Tenure;
use crate::volume::{Existence, SimVolume, read_whole};
use cairn_engine::{Engine, EngineError, Volume};
use cairn_metadata::SnapshotName;
use cairn_model::{Clock, ErrorKind, GatewayId, Kinded, Monotonic};
use cairn_wal::testing::Dice;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use tokio::task::JoinSet;

const PAUSE_MS_MAX: u64 = 250;
/// Snapshots of a volume that are kept.
const KEPT_MAX: usize = 4;

/// See the module.
pub(crate) struct Keeper {
    pub(crate) shared: Arc<Shared>,
    pub(crate) gateway: GatewayId,
    pub(crate) engine: Arc<Engine>,
    pub(crate) volume: Arc<SimVolume>,
    pub(crate) device: Arc<Volume>,
    pub(crate) tenure: Tenure,
    pub(crate) dice: Dice,
}

/// What became of a revert.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reverted {
    Done,
    Not,
    /// The volume must be taken and checked to know.
    Perhaps,
}

fn parsed(name: &str) -> SnapshotName {
    name.parse().expect("a plain name")
}

impl Keeper {
    /// Until `until` or until the volume is lost.
    pub(crate) async fn live(self, until: Monotonic) {
        let mut clones = JoinSet::new();
        self.look(pick(&self.dice, &[1, 50, 100])).await;
        loop {
            self.shared.clock.sleep(millis(&self.dice, PAUSE_MS_MAX)).await;
            if self.shared.clock.now() >= until || !self.volume.is_held(self.tenure) {
                break;
            }
            let there = self.volume.snapshots.lock().there();
            match self.dice.below(22) {
                0..9 if there.len() < KEPT_MAX => self.take().await,
                0..11 => self.delete_one(&there).await,
                11..13 => self.look(0).await,
                13..17 => self.read_one(&there).await,
                17 if self.dice.percent(50) => {
                    if self.revert(true).await == Reverted::Perhaps {
                        break;
                    }
                }
                _ => {
                    if let Some(attachment) = self.clone_one(until).await {
                        clones.spawn(attached(attachment));
                    }
                }
            }
        }
        while clones.join_next().await.is_some() {}
    }

    /// Whether the engine still answers for the volume.
    fn is_served(&self) -> bool {
        self.device.status().condition == "serving"
    }

    fn name_of(&self, snapshot: &str) -> String {
        format!("{}@{snapshot}", self.volume.name())
    }

    /// Notes an error that may be; any other is a finding.
    fn excuse(&self, doing: &str, error: &EngineError) {
        self.shared.note(&format_args!("{doing}: {error}"));
        if self.shared.log_is_gone(error) {
            self.shared.faults.end.notify_one();
            return;
        }
        let is_excused = match error.kind() {
            ErrorKind::Unavailable => self.shared.faults.are_any(),
            ErrorKind::OutOfSpace => self.shared.faults.pool_is_full(),
            ErrorKind::Fenced | ErrorKind::NotFound => !self.volume.is_held(self.tenure),
            _ => false,
        };
        if !is_excused {
            self.shared.found(format!("{doing} fails: {error}"));
        }
    }

    async fn take(&self) {
        let (volume, before) = (&*self.volume, self.device.size_bytes());
        let resizes = volume.resizes_ended();
        let name = volume.snapshot_begins(false);
        let doing = format!("taking {}", self.name_of(&name));
        self.shared.note(&doing);
        match self.engine.create_snapshot(&volume.name(), &parsed(&name)).await {
            Ok(_) => {
                self.shared.note(&format_args!("{doing}: done"));
                if let Err(finding) = volume.may_answer(self.tenure, &doing) {
                    return self.shared.found(finding);
                }
                let is_fixed = !volume.may_have_been_resized_since(resizes);
                volume.snapshot_taken(&name, is_fixed.then_some(before));
            }
            Err(error) => self.excuse(&doing, &error),
        }
    }

    /// Looks which snapshots are there, and reads some of a hundred of those that should be.
    pub(crate) async fn look(&self, read_percent: u64) {
        let volume = &*self.volume;
        let before = volume.snapshots.lock().standings();
        let doing = format!("the list of {}'s snapshots", volume.name());
        let list = match self.engine.snapshots(&volume.name()).await {
            Ok(list) => list,
            Err(error) => return self.excuse(&doing, &error),
        };
        if !volume.is_held(self.tenure) {
            return;
        }
        let told: Vec<_> = list.iter().map(|one| format!("{} {:?}", one.name, one.phase)).collect();
        self.shared.note(&format_args!("{doing}: {}", told.join(", ")));
        let now = volume.now();
        let compared = volume.snapshots.lock().listed(&before, &list, now);
        if let Err(wrong) = compared {
            return self.shared.found(format!("{}: {wrong}", volume.name()));
        }
        let there = volume.snapshots.lock().there();
        for name in there {
            if self.dice.percent(read_percent) {
                self.read(&name).await;
            }
        }
    }

    async fn read_one(&self, there: &[String]) {
        if let Some(name) = self.one_of(there) {
            self.read(&name).await;
        }
    }

    fn one_of(&self, there: &[String]) -> Option<String> {
        let roll = self.dice.below(there.len().max(1) as u64);
        there.get(usize::try_from(roll).expect("an index")).cloned()
    }

    async fn read(&self, name: &str) {
        let volume = &*self.volume;
        let doing = format!("reading {}", self.name_of(name));
        let read = async {
            let device = self.engine.open_snapshot(&volume.name(), &parsed(name)).await?;
            read_whole(&device).await
        };
        let read = read.await;
        // Another gateway may have lost or deleted it meanwhile.
        if volume.snapshots.lock().standing(name) != Standing::There {
            return;
        }
        match read.map(|bytes| volume.snapshot_read(name, &bytes)) {
            Ok(Ok(told)) => self.shared.note(&format_args!("{doing} = {told:x}")),
            Ok(Err(wrong)) => self.shared.found(wrong),
            Err(error) => self.excuse(&doing, &error),
        }
    }

    async fn delete_one(&self, there: &[String]) {
        let Some(name) = self.one_of(there) else { return };
        let volume = &*self.volume;
        let doing = format!("deleting {}", self.name_of(&name));
        self.shared.note(&doing);
        volume.snapshots.lock().deletion_begins(&name, self.gateway);
        let deleted = self.engine.delete_snapshot(&volume.name(), &parsed(&name)).await;
        volume.snapshots.lock().deletion_ends(&name, deleted.is_ok());
        match deleted {
            Ok(()) => self.shared.note(&format_args!("{doing}: done")),
            Err(error) => self.excuse(&doing, &error),
        }
    }

    /// One that was read before, and what it showed.
    fn known_one(&self) -> Option<(String, Pinned)> {
        let known = self.volume.snapshots.lock().known_there();
        let roll = self.dice.below(known.len().max(1) as u64);
        known.into_iter().nth(usize::try_from(roll).expect("an index"))
    }

    async fn clone_one(&self, until: Monotonic) -> Option<Attachment> {
        let (from, pinned) = self.known_one()?;
        let (site, volume) = (&self.shared.site, &self.volume);
        let (number, name) = site.clone_begins(volume, pinned.seen, self.gateway)?;
        let doing = format!("cloning {} to {name}", self.name_of(&from));
        self.shared.note(&doing);
        match self.engine.clone_snapshot(&volume.name(), &parsed(&from), &name).await {
            Ok(device) => {
                self.shared.note(&format_args!("{doing}: done"));
                Some(Attachment {
                    shared: Arc::clone(&self.shared),
                    gateway: self.gateway,
                    engine: Arc::clone(&self.engine),
                    volume: site.clone_made(number, device.id())?,
                    dice: Dice::new(self.dice.below(u64::MAX)),
                    until: Some(until),
                    must_come: !self.shared.faults.are_any(),
                })
            }
            Err(error) => {
                site.clone_failed(number);
                self.excuse(&doing, &error);
                None
            }
        }
    }

    /// Deletes the volume itself, with its snapshots.
    pub(crate) async fn delete_volume(&self) {
        let volume = &*self.volume;
        let doing = format!("deleting {}", volume.name());
        self.shared.note(&doing);
        *volume.existence.lock() = Existence::Deleting(self.gateway);
        let deleted = self.engine.delete_volume(&volume.name(), true).await;
        *volume.existence.lock() = if deleted.is_ok() { Existence::Deleted } else { Existence::Unknown };
        match deleted {
            Ok(()) => self.shared.note(&format_args!("{doing}: done")),
            Err(error) => self.excuse(&doing, &error),
        }
    }

    /// Reverts the volume, perhaps while guests are at work on it.
    pub(crate) async fn revert(&self, among_guests: bool) -> Reverted {
        let volume = &*self.volume;
        let Some((to, pinned)) = self.known_one() else { return Reverted::Not };
        if !self.shared.site.limits.allow(Part::Reverts) || !volume.is_held(self.tenure) || !self.is_served()
        {
            return Reverted::Not;
        }
        let sent = among_guests.then(|| volume.now());
        let safety = volume.snapshot_begins(true);
        volume.history.lock().revert_begins(Revert { base: pinned.seen.to_vec(), sent });
        // The volume gets the size of the snapshot.
        volume.resize_begins();
        let doing = format!("reverting to {}, {safety} before", self.name_of(&to));
        self.shared.note(&doing);
        match self.engine.revert_volume(&volume.name(), &parsed(&to), &parsed(&safety)).await {
            Ok(status) => {
                self.shared.note(&format_args!("{doing}: done"));
                if volume.is_held(self.tenure) {
                    volume.was_reverted(&pinned);
                    volume.resize_ends();
                    if status.name.as_str() != safety {
                        self.shared.found(format!("{doing}: {} is its safety", status.name));
                    }
                    return Reverted::Done;
                }
                Reverted::Perhaps
            }
            Err(error) => {
                self.excuse(&doing, &error);
                if self.shared.log_is_gone(&error) {
                    return pending().await;
                }
                if !volume.is_held(self.tenure) || !self.is_served() {
                    return Reverted::Perhaps;
                }
                volume.resize_ends();
                volume.history.lock().revert_failed();
                volume.snapshots.lock().is_no_safety(&safety);
                Reverted::Not
            }
        }
    }
}

/// An attachment's life, where the compiler would otherwise see one that contains itself.
fn attached(attachment: Attachment) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(attachment.live())
}
