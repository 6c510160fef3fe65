//! What was asked of a volume since it was last seen whole, and before that.

use system_tests::oracle::journal::{Journal, Moment, Read};
use system_tests::oracle::stamp::Seen;
use system_tests::oracle::verdict::{Promise, Violation, judge};

/// See the module.
#[derive(Debug)]
pub(crate) struct History {
    /// Since the last check.
    pub(crate) journal: Journal,
    /// Those before, oldest first, back to one in which a destage ended: a volume that has lost its log may go back to any of them.
    older: Vec<Journal>,
    /// A revert of which nobody knows whether it was made.
    revert: Option<Revert>,
    /// So many writes of the journal were sent before a revert was answered: any of them may have been before it, and be gone.
    optional: usize,
    /// Reads that were sent earlier may have seen what was before a revert.
    reads_from: Moment,
}

/// A revert that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Revert {
    /// What the snapshot shows.
    pub(crate) base: Vec<Seen>,
    /// When it was asked for while guests were at work: what was not answered by then may come after it.
    pub(crate) sent: Option<Moment>,
}

impl Revert {
    /// The journal of what the volume may be after the revert, with every write in the same place.
    fn applied_to(&self, journal: &Journal) -> Journal {
        let mut writes = journal.writes.clone();
        for write in &mut writes {
            let is_before =
                self.sent.is_none_or(|sent| write.answered.is_some_and(|answered| answered < sent));
            if is_before {
                write.blocks = 0;
            }
            write.answered = None;
            write.fua = false;
        }
        Journal { writes, ..Journal::new(self.base.clone(), true) }
    }
}

/// What explains the content of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Explained {
    Journal,
    Older(usize),
    Revert,
}

impl History {
    pub(crate) fn of(base: Vec<Seen>) -> Self {
        Self {
            journal: Journal::new(base, true),
            older: Vec::new(),
            revert: None,
            optional: 0,
            reads_from: 0,
        }
    }

    /// The journal that explains what is seen.
    pub(crate) fn judge(&self, seen: &[Seen], promise: Promise) -> Result<Explained, Vec<Violation>> {
        let violations = judge(&self.journal, seen, promise);
        if violations.is_empty() {
            return Ok(Explained::Journal);
        }
        if promise == Promise::Destaged && self.journal.destages.is_empty() {
            for (index, older) in self.older.iter().enumerate().rev() {
                if judge(older, seen, promise).is_empty() {
                    return Ok(Explained::Older(index));
                }
                if !older.destages.is_empty() {
                    break;
                }
            }
        }
        let reverted = self.revert.as_ref().map(|revert| revert.applied_to(&self.journal));
        if reverted.is_some_and(|journal| judge(&journal, seen, Promise::Acknowledged).is_empty()) {
            return Ok(Explained::Revert);
        }
        Err(violations)
    }

    /// What comes after a check that found `base`.
    pub(crate) fn begin_anew(&mut self, base: Vec<Seen>, explained: Explained, without_log: bool) {
        let old = std::mem::replace(&mut self.journal, Journal::new(base, true));
        self.revert = None;
        self.optional = 0;
        match explained {
            Explained::Journal => {}
            // What came after it is lost for good.
            Explained::Older(index) => self.older.truncate(index + 1),
            Explained::Revert => self.older.clear(),
        }
        if without_log || !old.destages.is_empty() {
            self.older.clear();
        }
        // What was there without the log is in the catalog: nothing older comes back.
        if !without_log && explained == Explained::Journal {
            self.older.push(old);
        }
    }

    /// From now on, and until it is known, the volume may have been reverted.
    pub(crate) fn revert_begins(&mut self, revert: Revert) {
        self.revert = Some(revert);
    }

    /// The revert did not happen.
    pub(crate) fn revert_failed(&mut self) {
        self.revert = None;
    }

    /// Nobody knows whether the volume was reverted.
    pub(crate) fn is_unclear(&self) -> bool {
        self.revert.is_some()
    }

    /// The revert was answered at `now`.
    pub(crate) fn reverted(&mut self, now: Moment) {
        let revert = self.revert.take().expect("a revert that was asked for");
        self.journal = revert.applied_to(&self.journal);
        self.older.clear();
        self.optional = self.journal.writes.len();
        self.reads_from = now;
    }

    /// A write at this place of the journal was answered.
    pub(crate) fn answered(&mut self, place: usize, now: Moment) {
        if place >= self.optional {
            self.journal.writes[place].answered = Some(now);
        }
    }

    pub(crate) fn was_read(&mut self, read: Read) {
        if read.sent >= self.reads_from {
            self.journal.reads.push(read);
        }
    }
}
