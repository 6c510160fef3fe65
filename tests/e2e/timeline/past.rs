//! Snapshots, clones, reverts and deletions of disks that are written to meanwhile, what each must show, and what became of those that nobody answered.

use super::Broken;
use super::blocks::{self, Content};
use super::disk::{Clock, Cut, Disk};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use system_tests::admin::{self, Failed};
use system_tests::gateway::Gateway;
use system_tests::random::Random;

/// What a snapshot shows.
#[derive(Debug)]
enum Shown {
    /// One of a few states: nobody has looked yet.
    Cut(Cut),
    Known(Vec<Content>),
}

impl Shown {
    fn check(&self, seen: &[Content]) -> Result<()> {
        let known = match self {
            Self::Cut(cut) => return cut.check(seen),
            Self::Known(known) => known,
        };
        ensure!(seen.len() == known.len(), "{} blocks instead of {}", seen.len(), known.len());
        let wrong: Vec<usize> = (0..seen.len()).filter(|block| seen[*block] != known[*block]).collect();
        ensure!(
            wrong.is_empty(),
            "{} blocks are not as they were, the first is {:?}",
            wrong.len(),
            wrong.first()
        );
        Ok(())
    }
}

/// What was asked for when the gateway was killed.
#[derive(Debug)]
enum Asked {
    Take {
        disk: Arc<Disk>,
        snapshot: String,
        cut: Cut,
    },
    DeleteSnapshot {
        snapshot: String,
    },
    /// If it was answered, the clone is there, and nobody has looked yet.
    Clone {
        snapshot: String,
        clone: String,
        answered: bool,
    },
    DeleteClone {
        clone: String,
    },
    Revert {
        disk: Arc<Disk>,
        before: Vec<Content>,
        after: Vec<Content>,
    },
}

/// How often each kind of action was done, for the record and for tests that go on until all were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) snapshots: u64,
    pub(crate) deletions: u64,
    pub(crate) clones: u64,
    pub(crate) reverts: u64,
    /// What a kill left without an answer.
    pub(crate) unanswered: u64,
    /// As the next start showed.
    pub(crate) carried_out: u64,
}

impl Done {
    pub(crate) fn everything(&self) -> bool {
        [self.snapshots, self.deletions, self.clones, self.reverts].iter().all(|count| *count > 0)
    }
}

/// Deletions that a client of a moment ago hinders are tried again for so long.
const ATTEMPTS: u32 = 250;
const PAUSE: Duration = Duration::from_millis(20);

/// More than these, and something is deleted instead.
const SNAPSHOTS_MAX: usize = 12;
const CLONES_MAX: usize = 2;

/// The disks, and all that hangs on them.
#[derive(Debug)]
pub(crate) struct Past {
    admin: PathBuf,
    /// Those with writers.
    pub(crate) disks: Vec<Arc<Disk>>,
    clones: BTreeMap<String, Arc<Disk>>,
    /// By `VOLUME@NAME`.
    snapshots: BTreeMap<String, Shown>,
    asked: Option<Asked>,
    random: Random,
    number: u32,
    pub(crate) done: Done,
}

type Step<T = ()> = Result<T, Broken>;

fn volume_of(snapshot: &str) -> (&str, &str) {
    snapshot.split_once('@').expect("names of snapshots have two parts")
}

impl Past {
    pub(crate) fn new(gateway: &Gateway, disks: Vec<Disk>, seed: u64) -> Self {
        Self {
            admin: gateway.admin_socket(),
            disks: disks.into_iter().map(Arc::new).collect(),
            clones: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            asked: None,
            random: Random::seeded(seed),
            number: 0,
            done: Done::default(),
        }
    }

    pub(crate) fn snapshots(&self) -> usize {
        self.snapshots.len()
    }

    fn next_name(&mut self, stem: &str) -> String {
        self.number += 1;
        format!("{stem}{}", self.number)
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failed> {
        admin::ask(&self.admin, method, path, body)
    }

    /// Deletes it. The gateway notices a moment late that clients have left.
    fn delete(&self, path: &str) -> Step {
        for _ in 1..ATTEMPTS {
            match self.ask("DELETE", path, None) {
                Err(Failed::Refused { status: 409, .. }) => std::thread::sleep(PAUSE),
                done => return Ok(done.map(drop)?),
            }
        }
        Ok(self.ask("DELETE", path, None).map(drop)?)
    }

    fn some_disk(&mut self) -> Arc<Disk> {
        let all: Vec<_> = self.disks.iter().chain(self.clones.values()).collect();
        Arc::clone(all[self.random.index(all.len())])
    }

    fn some_snapshot(&mut self) -> Option<String> {
        let count = self.snapshots.len();
        (count > 0).then(|| self.snapshots.keys().nth(self.random.index(count)).expect("it is there").clone())
    }

    /// One action of any kind.
    pub(crate) fn act(&mut self, gateway: &Gateway, clock: &Clock) -> Step {
        match self.random.below(20) {
            0..=7 if self.snapshots.len() < SNAPSHOTS_MAX => self.take(),
            0..=12 => self.delete_snapshot(),
            13 | 14 if self.clones.len() < CLONES_MAX => self.clone_snapshot(gateway, clock),
            13..=15 => self.delete_clone(),
            16 | 17 => self.revert(gateway),
            _ => self.look(gateway),
        }
    }

    pub(crate) fn take(&mut self) -> Step {
        let disk = self.some_disk();
        self.take_of(&disk).map(drop)
    }

    /// Takes a snapshot of the disk and returns its name.
    pub(crate) fn take_of(&mut self, disk: &Arc<Disk>) -> Step<String> {
        let name = self.next_name("s");
        let snapshot = format!("{}@{name}", disk.name);
        let mut cut = disk.begin_cut();
        let path = format!("/v1/volumes/{}/snapshots", disk.name);
        let taken = self.ask("POST", &path, Some(&json!({ "name": name })));
        if let Err(Failed::Unanswered(error)) = taken {
            // Its changes are known when all writers have ended.
            self.asked = Some(Asked::Take { disk: Arc::clone(disk), snapshot, cut });
            return Err(Broken::Unanswered(error));
        }
        disk.end_cut(&mut cut);
        taken?;
        self.snapshots.insert(snapshot.clone(), Shown::Cut(cut));
        self.done.snapshots += 1;
        Ok(snapshot)
    }

    pub(crate) fn delete_snapshot(&mut self) -> Step {
        let Some(snapshot) = self.some_snapshot() else { return Ok(()) };
        self.delete_this_snapshot(&snapshot)
    }

    fn delete_this_snapshot(&mut self, snapshot: &str) -> Step {
        let (volume, name) = volume_of(snapshot);
        let deleted = self.delete(&format!("/v1/volumes/{volume}/snapshots/{name}"));
        self.note(deleted, || Asked::DeleteSnapshot { snapshot: snapshot.to_owned() })?;
        self.snapshots.remove(snapshot);
        self.done.deletions += 1;
        Ok(())
    }

    /// Clones a snapshot, and writes to the clone.
    pub(crate) fn clone_snapshot(&mut self, gateway: &Gateway, clock: &Clock) -> Step {
        let Some(snapshot) = self.some_snapshot() else { return Ok(()) };
        let clone = self.next_name("c");
        let (volume, name) = volume_of(&snapshot);
        let path = format!("/v1/volumes/{volume}/snapshots/{name}/clone");
        let cloned = self.ask("POST", &path, Some(&json!({ "name": clone }))).map(drop).map_err(Broken::from);
        let asked = |answered| Asked::Clone { snapshot: snapshot.clone(), clone: clone.clone(), answered };
        self.note(cloned, || asked(false))?;
        self.done.clones += 1;
        // It shows what the snapshot does, also if nobody has read that one yet.
        let seen = blocks::read(&gateway.export(&clone));
        let seen = self.note(seen, || asked(true))?;
        let shown = self.judge(&snapshot, seen)?;
        let disk = Arc::new(Disk::holding(&clone, &shown, 1));
        self.clones.insert(clone, Arc::clone(&disk));
        disk.change(gateway, &mut self.random, clock).map_err(Broken::Unanswered)
    }

    pub(crate) fn delete_clone(&mut self) -> Step {
        let count = self.clones.len();
        if count == 0 {
            return Ok(());
        }
        let clone = self.clones.keys().nth(self.random.index(count)).expect("it is there").clone();
        let deleted = self.delete(&format!("/v1/volumes/{clone}?force=true"));
        self.note(deleted, || Asked::DeleteClone { clone: clone.clone() })?;
        self.forget_clone(&clone);
        self.done.deletions += 1;
        Ok(())
    }

    fn forget_clone(&mut self, clone: &str) {
        self.clones.remove(clone);
        self.snapshots.retain(|snapshot, _| volume_of(snapshot).0 != clone);
    }

    /// Reverts a disk, under clients that have it open and send nothing, to a snapshot of it.
    pub(crate) fn revert(&mut self, gateway: &Gateway) -> Step {
        // Those of volumes that were deleted went with them.
        let Some(snapshot) = self.some_snapshot() else { return Ok(()) };
        let volume = volume_of(&snapshot).0;
        let mut all = self.disks.iter().chain(self.clones.values());
        let disk = Arc::clone(all.find(|disk| disk.name == volume).expect("its volume is there"));
        let after = self.shown(gateway, &snapshot)?;
        let _held = disk.hold();
        let before = disk.contents();
        let (volume, name) = volume_of(&snapshot);
        let path = format!("/v1/volumes/{volume}/snapshots/{name}/revert");
        let reverted = self.ask("POST", &path, Some(&json!({ "force": true })));
        let reverted = match reverted {
            Err(Failed::Unanswered(error)) => {
                self.asked = Some(Asked::Revert { disk: Arc::clone(&disk), before, after });
                return Err(Broken::Unanswered(error));
            }
            answered => answered?,
        };
        let safety = reverted["before"]["snapshot"].as_str().context("a snapshot of what was before");
        self.snapshots.insert(safety.map_err(Broken::Wrong)?.to_owned(), Shown::Known(before));
        disk.turn_into(&after);
        self.done.reverts += 1;
        Ok(())
    }

    /// Reads and judges a snapshot.
    pub(crate) fn look(&mut self, gateway: &Gateway) -> Step {
        let Some(snapshot) = self.some_snapshot() else { return Ok(()) };
        self.shown(gateway, &snapshot).map(drop)
    }

    /// What the snapshot shows, which is right.
    fn shown(&mut self, gateway: &Gateway, snapshot: &str) -> Step<Vec<Content>> {
        let seen = blocks::read(&gateway.export(snapshot))?;
        self.judge(snapshot, seen)
    }

    /// What was seen of the snapshot, or of a clone of it that nobody has written to, is what it must show from now on.
    fn judge(&mut self, snapshot: &str, seen: Vec<Content>) -> Step<Vec<Content>> {
        let shown = self.snapshots.get_mut(snapshot).expect("a snapshot that we know");
        shown.check(&seen).map_err(|error| Broken::Wrong(error.context(snapshot.to_owned())))?;
        *shown = Shown::Known(seen.clone());
        Ok(seen)
    }

    /// Remembers what is without an answer.
    fn note<T>(&mut self, answer: Step<T>, asked: impl FnOnce() -> Asked) -> Step<T> {
        if let Err(Broken::Unanswered(_)) = &answer {
            self.asked = Some(asked());
        }
        answer
    }

    fn names(&self, path: &str, field: &str) -> Result<BTreeSet<String>> {
        let listed = self.ask("GET", path, None)?;
        let named = |row: &Value| Some(row[field].as_str()?.to_owned());
        listed.as_array().context("a list")?.iter().map(named).collect::<Option<_>>().context("names")
    }

    /// After a start volumes are served a moment before the admin API answers.
    fn wait_for_answers(&self) -> Result<()> {
        for _ in 1..ATTEMPTS {
            match self.ask("GET", "/v1/health", None) {
                Err(Failed::Unanswered(_)) => std::thread::sleep(PAUSE),
                answered => return Ok(answered.map(drop)?),
            }
        }
        Ok(self.ask("GET", "/v1/health", None).map(drop)?)
    }

    /// After a start that follows a kill: finds out what became of the last request.
    pub(crate) fn settle(&mut self, gateway: &Gateway) -> Result<()> {
        self.wait_for_answers()?;
        let snapshots = self.names("/v1/snapshots", "snapshot")?;
        let volumes = self.names("/v1/volumes", "name")?;
        let Some(asked) = self.asked.take() else { return Ok(()) };
        self.done.unanswered += 1;
        let was_done = match asked {
            Asked::Take { disk, snapshot, mut cut } => {
                disk.end_cut(&mut cut);
                let is_there = snapshots.contains(&snapshot);
                if is_there {
                    self.snapshots.insert(snapshot, Shown::Cut(cut));
                }
                is_there
            }
            Asked::DeleteSnapshot { snapshot } => {
                let is_gone = !snapshots.contains(&snapshot);
                if is_gone {
                    self.snapshots.remove(&snapshot);
                }
                is_gone
            }
            Asked::Clone { snapshot, clone, answered } => {
                let is_there = volumes.contains(&clone);
                ensure!(is_there || !answered, "{clone} was made and is not there");
                if is_there {
                    let shown = self.shown(gateway, &snapshot)?;
                    self.clones.insert(clone.clone(), Arc::new(Disk::holding(&clone, &shown, 1)));
                }
                is_there
            }
            Asked::DeleteClone { clone } => {
                let is_gone = !volumes.contains(&clone);
                if is_gone {
                    self.forget_clone(&clone);
                }
                is_gone
            }
            Asked::Revert { disk, before, after } => {
                let safety = snapshots.iter().find(|name| {
                    name.starts_with(&format!("{}@before-revert-", disk.name))
                        && !self.snapshots.contains_key(*name)
                });
                let seen = blocks::read(&gateway.export(&disk.name))?;
                let is_reverted = safety.is_some() && seen == after;
                if let Some(safety) = safety {
                    self.snapshots.insert(safety.clone(), Shown::Known(before));
                }
                if is_reverted {
                    disk.turn_into(&after);
                }
                is_reverted
            }
        };
        self.done.carried_out += u64::from(was_done);
        Ok(())
    }

    /// Everything is there and as it must be, and nothing else is. While nothing writes.
    pub(crate) fn verify(&mut self, gateway: &Gateway) -> Result<()> {
        self.wait_for_answers()?;
        let snapshots = self.names("/v1/snapshots", "snapshot")?;
        let expected: BTreeSet<String> = self.snapshots.keys().cloned().collect();
        same(&snapshots, &expected).context("snapshots")?;
        let disks: Vec<Arc<Disk>> = self.disks.iter().chain(self.clones.values()).cloned().collect();
        let expected = disks.iter().map(|disk| disk.name.clone()).collect();
        same(&self.names("/v1/volumes", "name")?, &expected).context("volumes")?;
        for disk in disks {
            disk.verify(gateway)?;
        }
        for snapshot in snapshots {
            self.shown(gateway, &snapshot)?;
        }
        Ok(())
    }

    /// Unless it is gone already.
    pub(crate) fn delete_if_there(&mut self, snapshot: &str) -> Result<()> {
        if self.snapshots.contains_key(snapshot) {
            self.delete_this_snapshot(snapshot)?;
        }
        Ok(())
    }

    /// Deletes every second snapshot.
    pub(crate) fn thin_out(&mut self) -> Result<()> {
        let every_second: Vec<String> = self.snapshots.keys().step_by(2).cloned().collect();
        every_second.into_iter().try_for_each(|snapshot| Ok(self.delete_this_snapshot(&snapshot)?))
    }

    /// Deletes all of it.
    pub(crate) fn clear(&mut self) -> Result<()> {
        for disk in self.disks.iter().chain(self.clones.values()) {
            self.delete(&format!("/v1/volumes/{}?force=true", disk.name))?;
        }
        (self.disks, self.clones, self.snapshots) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        same(&self.names("/v1/snapshots", "snapshot")?, &BTreeSet::new())
    }
}

fn same(found: &BTreeSet<String>, expected: &BTreeSet<String>) -> Result<()> {
    let lost: Vec<_> = expected.difference(found).collect();
    let unknown: Vec<_> = found.difference(expected).collect();
    if lost.is_empty() && unknown.is_empty() {
        return Ok(());
    }
    bail!("{lost:?} are missing, {unknown:?} are there")
}
