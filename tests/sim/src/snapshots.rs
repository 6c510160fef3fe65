//! The snapshots of a volume as the oracle knows them: which must be there, which may be, and what each shows.
//!
//! A snapshot shows a prefix of the write order that holds every write answered before it was asked for and none sent after it was answered.
//! The first read of it is judged by that; every later one, whatever happened meanwhile, must give the same bytes.

use crate::history::Explained;
use crate::volume::{SimVolume, violations_shown};
use cairn_engine::{SnapshotPhase, SnapshotStatus};
use cairn_model::GatewayId;
use std::collections::HashSet;
use std::iter::Sum;
use std::sync::Arc;
use system_tests::oracle::journal::{Flush, Journal, Moment};
use system_tests::oracle::stamp::Seen;
use system_tests::oracle::verdict::{Promise, judge};

/// What is known of a snapshot's being there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Asked for, without a good answer yet.
    Asked,
    /// There or not: the next list tells, for good.
    Undecided,
    There,
    /// This gateway was asked to delete it and has not answered.
    Deleting(GatewayId),
    /// It was to be deleted; the next list tells.
    Deleted,
    Gone,
}

/// What a snapshot showed when it was read for the first time.
#[derive(Clone, Debug)]
pub(crate) struct Pinned {
    digest: blake3::Hash,
    /// Of all sectors that the volume may have.
    pub(crate) seen: Arc<Vec<Seen>>,
}

#[derive(Debug)]
struct Known {
    name: String,
    standing: Standing,
    /// In the catalog for sure: no lost log takes it away.
    is_committed: bool,
    /// Of a revert whose outcome is not known: made before it.
    is_safety: bool,
    sent: Moment,
    /// Since when it is known to be there.
    there: Moment,
    /// What was asked of the volume until it was answered, or until its time was over.
    journal: Option<Journal>,
    /// How its time ended.
    era: Option<Arc<Era>>,
    is_of_this_era: bool,
    pinned: Option<Pinned>,
    phase: Option<SnapshotPhase>,
    size_bytes: Option<u64>,
    logical_bytes: Option<u64>,
}

/// A time between two checks: what was asked of the volume, and what was there in the end.
#[derive(Debug)]
struct Era {
    journal: Journal,
    seen: Vec<Seen>,
}

impl Era {
    /// Fails when the volume does not hold everything that a snapshot of this time shows: the one is a prefix of the other.
    fn check_holds(&self, snapshot: &[Seen]) -> Result<(), String> {
        let shown: HashSet<u64> = snapshot
            .iter()
            .filter_map(|seen| match seen {
                Seen::Write(number) => Some(*number),
                Seen::Zero => None,
            })
            .collect();
        let mut journal = bounded(&self.journal, 0);
        for write in journal.writes.iter_mut().filter(|write| shown.contains(&write.number)) {
            write.fua = true;
            write.answered.get_or_insert(Moment::MAX);
        }
        let violations = judge(&journal, &self.seen, Promise::Flushed);
        if violations.is_empty() { Ok(()) } else { Err(violations_shown(&violations)) }
    }
}

/// How often what was done with snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCounts {
    pub taken: u64,
    pub read: u64,
    pub deleted: u64,
    /// Times that a volume was made what one shows.
    pub reverted: u64,
}

impl Sum for SnapshotCounts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            taken: sum.taken + one.taken,
            read: sum.read + one.read,
            deleted: sum.deleted + one.deleted,
            reverted: sum.reverted + one.reverted,
        })
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    all: Vec<Known>,
    counts: SnapshotCounts,
}

/// The bounds of a snapshot that was asked for at `sent`, as a journal: it shows no write that is not in it, and all that were answered
/// before.
fn bounded(journal: &Journal, sent: Moment) -> Journal {
    let mut writes = journal.writes.clone();
    for write in &mut writes {
        write.fua = false;
    }
    let flushes = vec![Flush { connection: 0, sent }];
    Journal { writes, flushes, ..Journal::new(journal.base.clone(), true) }
}

fn depth(phase: SnapshotPhase) -> u8 {
    match phase {
        SnapshotPhase::Logged => 0,
        SnapshotPhase::Committed => 1,
        SnapshotPhase::Settled => 2,
    }
}

impl Known {
    /// Looks at what a list says of it.
    fn compare(&mut self, status: &SnapshotStatus) -> Result<(), String> {
        let &SnapshotStatus { phase, size_bytes, logical_bytes, .. } = status;
        if self.phase.is_some_and(|before| depth(before) > depth(phase)) {
            return Err(format!("was {:?} and is {phase:?}", self.phase));
        }
        if self.size_bytes.is_some_and(|known| known != size_bytes) {
            return Err(format!("had {:?} bytes and has {size_bytes}", self.size_bytes));
        }
        if self.logical_bytes.is_some() && self.logical_bytes != logical_bytes {
            return Err(format!("mapped {:?} bytes and maps {logical_bytes:?}", self.logical_bytes));
        }
        if logical_bytes.is_some_and(|logical| logical > size_bytes.next_multiple_of(4096)) {
            return Err(format!("maps {logical_bytes:?} of {size_bytes} bytes"));
        }
        self.phase = Some(phase);
        self.size_bytes = Some(size_bytes);
        self.logical_bytes = logical_bytes;
        self.is_committed |= phase != SnapshotPhase::Logged;
        Ok(())
    }
}

impl Snapshots {
    pub(crate) fn counts(&self) -> SnapshotCounts {
        self.counts
    }

    fn known(&mut self, name: &str) -> &mut Known {
        self.all.iter_mut().find(|known| known.name == name).expect("a snapshot that was asked for")
    }

    pub(crate) fn standing(&mut self, name: &str) -> Standing {
        self.known(name).standing
    }

    /// The names of those that are known to be there.
    pub(crate) fn there(&self) -> Vec<String> {
        let there = self.all.iter().filter(|known| known.standing == Standing::There);
        there.map(|known| known.name.clone()).collect()
    }

    /// Those of them that were read, and what they showed.
    pub(crate) fn known_there(&self) -> Vec<(String, Pinned)> {
        let there = self.all.iter().filter(|known| known.standing == Standing::There);
        there.filter_map(|known| Some((known.name.clone(), known.pinned.clone()?))).collect()
    }

    /// A check of the volume found out how things went since the one before, and saw the volume. The promise is what is left of that time.
    pub(crate) fn era_ends(
        &mut self,
        journal: &Journal,
        seen: &[Seen],
        promise: Promise,
        explained: Explained,
    ) {
        let is_reverted = explained == Explained::Revert;
        let is_any = self.all.iter().any(|known| known.is_of_this_era);
        let era = (is_any && explained == Explained::Journal)
            .then(|| Arc::new(Era { journal: journal.clone(), seen: seen.to_vec() }));
        for known in &mut self.all {
            if std::mem::take(&mut known.is_of_this_era) {
                known.era.clone_from(&era);
                known.journal.get_or_insert_with(|| bounded(journal, known.sent));
            }
            let is_safety = std::mem::take(&mut known.is_safety);
            if known.standing == Standing::Asked {
                known.standing = Standing::Undecided;
            }
            // Everything was destaged before.
            if is_reverted && is_safety {
                known.standing = Standing::There;
            }
            known.is_committed |= is_reverted && known.standing == Standing::There;
            if known.standing == Standing::There && !known.is_committed && promise == Promise::Destaged {
                known.standing = Standing::Undecided;
            }
        }
    }

    /// Everything that was there before `sent` is destaged.
    pub(crate) fn destaged(&mut self, sent: Moment) {
        let before =
            self.all.iter_mut().filter(|known| known.standing == Standing::There && known.there < sent);
        before.for_each(|known| known.is_committed = true);
    }

    /// The process of a gateway has ended: what it was doing is over, one way or the other.
    pub(crate) fn process_ended(&mut self, gateway: GatewayId) {
        for known in &mut self.all {
            if known.standing == Standing::Deleting(gateway) {
                known.standing = Standing::Deleted;
            }
        }
    }

    /// The revert that this one was to precede did not happen.
    pub(crate) fn is_no_safety(&mut self, name: &str) {
        self.known(name).is_safety = false;
    }

    pub(crate) fn deletion_begins(&mut self, name: &str, by: GatewayId) {
        self.known(name).standing = Standing::Deleting(by);
    }

    /// With an answer, or without one that tells.
    pub(crate) fn deletion_ends(&mut self, name: &str, done: bool) {
        self.counts.deleted += u64::from(done);
        let known = self.known(name);
        if done {
            known.standing = Standing::Gone;
        } else if matches!(known.standing, Standing::Deleting(_)) {
            known.standing = Standing::Deleted;
        }
    }

    /// What is known before a list is asked for.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        self.all.iter().map(|known| known.standing).collect()
    }

    /// Compares a list with what was known before it was asked for, and with what happened meanwhile.
    pub(crate) fn listed(
        &mut self,
        before: &[Standing],
        list: &[SnapshotStatus],
        now: Moment,
    ) -> Result<(), String> {
        if let Some(stray) =
            list.iter().find(|one| self.all.iter().all(|known| known.name != one.name.as_str()))
        {
            return Err(format!("snapshot {} was never asked for", stray.name));
        }
        for (known, before) in self.all.iter_mut().zip(before) {
            let mut found = list.iter().filter(|one| one.name.as_str() == known.name);
            let Some(status) = found.next() else {
                match known.standing {
                    Standing::There => return Err(format!("snapshot {} is lost", known.name)),
                    Standing::Undecided | Standing::Deleted | Standing::Deleting(_) => {
                        known.standing = Standing::Gone;
                    }
                    Standing::Asked | Standing::Gone => {}
                }
                continue;
            };
            if found.next().is_some() {
                return Err(format!("snapshot {} is there twice", known.name));
            }
            if *before == Standing::Gone {
                return Err(format!("snapshot {} was gone and is back", known.name));
            }
            known.compare(status).map_err(|wrong| format!("snapshot {} {wrong}", known.name))?;
            match known.standing {
                Standing::Asked if status.phase == SnapshotPhase::Logged => {}
                Standing::Asked | Standing::Undecided | Standing::Deleted => {
                    known.standing = Standing::There;
                    known.there = now;
                }
                Standing::There | Standing::Deleting(_) | Standing::Gone => {}
            }
        }
        Ok(())
    }
}

impl SimVolume {
    /// A snapshot is about to be asked for: its name. One for `safety` precedes a revert.
    pub(crate) fn snapshot_begins(&self, is_safety: bool) -> String {
        let sent = self.now();
        let mut snapshots = self.snapshots.lock();
        let name = format!("s{}", snapshots.all.len() + 1);
        snapshots.all.push(Known {
            name: name.clone(),
            standing: Standing::Asked,
            is_committed: false,
            is_safety,
            sent,
            there: sent,
            journal: None,
            era: None,
            is_of_this_era: true,
            pinned: None,
            phase: None,
            size_bytes: None,
            logical_bytes: None,
        });
        name
    }

    /// The answer came; with the size that the volume had all the time, if it had one.
    pub(crate) fn snapshot_taken(&self, name: &str, size_bytes: Option<u64>) {
        let now = self.now();
        let history = self.history.lock();
        let mut snapshots = self.snapshots.lock();
        snapshots.counts.taken += 1;
        let known = snapshots.known(name);
        known.journal = Some(bounded(&history.journal, known.sent));
        known.standing = Standing::There;
        known.there = now;
        known.size_bytes = known.size_bytes.or(size_bytes);
    }

    /// The snapshot was read whole. Returns something of it for the trace.
    pub(crate) fn snapshot_read(&self, name: &str, bytes: &[u8]) -> Result<u64, String> {
        let which = format!("snapshot {name} of {}", self.name());
        let digest = blake3::hash(bytes);
        let history = self.history.lock();
        let mut snapshots = self.snapshots.lock();
        snapshots.counts.read += 1;
        let known = snapshots.known(name);
        known.is_committed = true;
        let expected = *known.size_bytes.get_or_insert(bytes.len() as u64);
        if expected != bytes.len() as u64 {
            return Err(format!("{which} has {} bytes, not {expected}", bytes.len()));
        }
        let told = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("8 bytes"));
        match &known.pinned {
            Some(pinned) if pinned.digest == digest => return Ok(told),
            Some(pinned) => {
                let changed = match self.family.decode(0, bytes) {
                    Ok(seen) => {
                        let mut pairs = (0..).zip(seen.iter().zip(&*pinned.seen));
                        let (sector, (now, before)) =
                            pairs.find(|(_, (now, before))| now != before).expect("the bytes differ");
                        format!("sector {sector} was {before:?} and is {now:?}")
                    }
                    Err(wrong) => wrong,
                };
                return Err(format!("{which} has changed: {changed}"));
            }
            None => {}
        }
        let mut seen = self.family.decode(0, bytes).map_err(|wrong| format!("{which}: {wrong}"))?;
        seen.resize(usize::try_from(self.sectors).expect("a small volume"), Seen::Zero);
        let sent = known.sent;
        let journal = known.journal.take().unwrap_or_else(|| bounded(&history.journal, sent));
        let violations = judge(&journal, &seen, Promise::Flushed);
        if !violations.is_empty() {
            return Err(format!(
                "{which} is no state of the volume between {sent} and its answer, {}",
                violations_shown(&violations)
            ));
        }
        if let Some(era) = known.era.take() {
            era.check_holds(&seen)
                .map_err(|wrong| format!("{} has lost what {which} shows, {wrong}", self.name()))?;
        }
        known.pinned = Some(Pinned { digest, seen: Arc::new(seen) });
        Ok(told)
    }

    /// The volume was reverted.
    pub(crate) fn was_reverted(&self, to: &Pinned) {
        let now = self.now();
        let mut history = self.history.lock();
        self.count(&history.journal);
        let mut snapshots = self.snapshots.lock();
        snapshots.counts.reverted += 1;
        snapshots.era_ends(&history.journal, &to.seen, Promise::Acknowledged, Explained::Revert);
        history.reverted(now);
    }
}
