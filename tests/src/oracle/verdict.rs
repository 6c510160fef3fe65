//! The verdict over one round.

use super::journal::{Effect, Journal, Moment, Write};
use super::prefix;
use super::stamp::{Damage, Seen};
use std::collections::HashMap;
use std::fmt;

/// What the crash left no excuse for losing.
///
/// In order: each excuses everything that the one before it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// Only the process died: the kernel has every acknowledged write.
    Acknowledged,
    /// Power was cut: what was flushed must be there.
    Flushed,
    /// The host is gone with its log: what was destaged must be there.
    Destaged,
}

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    Damaged {
        block: u64,
        damage: Damage,
    },
    /// The block holds a write that was never sent, or not to it.
    Impossible {
        block: u64,
        write: u64,
    },
    LostFlushed {
        block: u64,
        seen: Seen,
        lost: u64,
    },
    LostAcknowledged {
        block: u64,
        seen: Seen,
        lost: u64,
    },
    LostDestaged {
        block: u64,
        seen: Seen,
        lost: u64,
    },
    /// A read before the crash saw something older than what was acknowledged before the read was sent.
    StaleRead {
        block: u64,
        seen: Seen,
        missed: u64,
    },
    /// No order of the writes has a prefix that gives this volume.
    NoPrefix {
        reason: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Damaged { block, damage } => write!(formatter, "block {block} {damage}"),
            Violation::Impossible { block, write } => {
                write!(formatter, "block {block} holds write {write}, which nobody sent there")
            }
            Violation::LostFlushed { block, seen, lost } => {
                write!(formatter, "block {block} holds {seen:?}: the flushed write {lost} is lost")
            }
            Violation::LostAcknowledged { block, seen, lost } => {
                write!(formatter, "block {block} holds {seen:?}: the acknowledged write {lost} is lost")
            }
            Violation::LostDestaged { block, seen, lost } => {
                write!(formatter, "block {block} holds {seen:?}: the destaged write {lost} is lost")
            }
            Violation::StaleRead { block, seen, missed } => {
                write!(
                    formatter,
                    "a read of block {block} saw {seen:?}, missing the acknowledged write {missed}"
                )
            }
            Violation::NoPrefix { reason } => {
                write!(formatter, "no prefix of the write order gives this volume: {reason}")
            }
        }
    }
}

/// Judges what the volume holds after the crash, and what the reads saw before it.
pub fn judge(journal: &Journal, seen: &[Seen], promise: Promise) -> Vec<Violation> {
    let judge = Judge::new(journal);
    let mut violations = Vec::new();
    for (block, seen) in seen.iter().enumerate() {
        violations.extend(judge.block(block, *seen, promise));
    }
    for read in &journal.reads {
        for (offset, seen) in read.seen.iter().enumerate() {
            let block = usize::try_from(read.first_block).expect("a block of the volume") + offset;
            violations.extend(judge.read(block, *seen, read.sent, read.answered));
        }
    }
    if violations.is_empty() {
        violations.extend(prefix::check(journal, &judge.touching, seen, |write| {
            judge.must_be_there(write, promise)
        }));
    }
    violations
}

struct Judge<'a> {
    journal: &'a Journal,
    touching: Vec<Vec<usize>>,
    by_number: HashMap<u64, usize>,
    flushed_before: HashMap<usize, Moment>,
    destaged_before: Moment,
}

impl<'a> Judge<'a> {
    fn new(journal: &'a Journal) -> Self {
        let by_number =
            journal.writes.iter().enumerate().map(|(index, write)| (write.number, index)).collect();
        let mut flushed_before = HashMap::new();
        for write in &journal.writes {
            flushed_before
                .entry(write.connection)
                .or_insert_with(|| journal.flushed_before(write.connection));
        }
        let (touching, destaged_before) = (journal.writes_by_block(), journal.destaged_before());
        Self { journal, touching, by_number, flushed_before, destaged_before }
    }

    fn is_flushed(&self, write: &Write) -> bool {
        let before = self.flushed_before[&write.connection];
        write.answered.is_some_and(|answered| write.fua || answered < before)
    }

    fn is_destaged(&self, write: &Write) -> bool {
        write.answered.is_some_and(|answered| answered < self.destaged_before)
    }

    fn must_be_there(&self, write: &Write, promise: Promise) -> bool {
        match promise {
            Promise::Destaged => self.is_destaged(write),
            Promise::Flushed => self.is_destaged(write) || self.is_flushed(write),
            Promise::Acknowledged => write.answered.is_some(),
        }
    }

    /// The writes that may have left what is seen in a block; `None` stands for what it held before the round.
    fn sources(&self, block: usize, seen: Seen) -> Vec<Option<&'a Write>> {
        let mut sources = Vec::new();
        if self.journal.base[block] == seen {
            sources.push(None);
        }
        match seen {
            Seen::Write(number) => {
                let write = self.by_number.get(&number).map(|index| &self.journal.writes[*index]);
                sources.extend(write.filter(|write| touches(write, block)).map(Some));
            }
            Seen::Zero => {
                let touching = self.touching[block].iter().map(|index| &self.journal.writes[*index]);
                sources.extend(touching.filter(|write| write.effect == Effect::Zeroes).map(Some));
            }
        }
        sources
    }

    fn block(&self, block: usize, seen: Seen, promise: Promise) -> Option<Violation> {
        let sources = self.sources(block, seen);
        let at = block as u64;
        if sources.is_empty() {
            return Some(self.impossible(at, seen));
        }
        if let Some(lost) = self.missed(block, &sources, |write| self.is_destaged(write)) {
            return Some(Violation::LostDestaged { block: at, seen, lost });
        }
        if promise <= Promise::Flushed
            && let Some(lost) = self.missed(block, &sources, |write| self.is_flushed(write))
        {
            return Some(Violation::LostFlushed { block: at, seen, lost });
        }
        let lost = self.missed(block, &sources, |write| self.must_be_there(write, promise))?;
        Some(Violation::LostAcknowledged { block: at, seen, lost })
    }

    fn impossible(&self, block: u64, seen: Seen) -> Violation {
        match seen {
            Seen::Write(write) => Violation::Impossible { block, write },
            // Zeroes that nobody wrote: the block has lost what it held before the round.
            Seen::Zero => match self.journal.base[usize::try_from(block).expect("a block of the volume")] {
                Seen::Write(lost) => Violation::LostFlushed { block, seen, lost },
                Seen::Zero => unreachable!("a base of zeroes is a source of zeroes"),
            },
        }
    }

    fn read(&self, block: usize, seen: Seen, sent: Moment, answered: Moment) -> Option<Violation> {
        let mut sources = self.sources(block, seen);
        sources.retain(|source| source.is_none_or(|write| write.sent < answered));
        let at = block as u64;
        if sources.is_empty() {
            return Some(self.impossible(at, seen));
        }
        let over = |write: &Write| write.answered.is_some_and(|answered| answered < sent);
        let missed = self.missed(block, &sources, over)?;
        Some(Violation::StaleRead { block: at, seen, missed })
    }

    /// A write among those required that every source of the block's value is older than.
    fn missed(
        &self,
        block: usize,
        sources: &[Option<&Write>],
        required: impl Fn(&Write) -> bool,
    ) -> Option<u64> {
        let touching = self.touching[block].iter().map(|index| &self.journal.writes[*index]);
        let latest = touching.filter(|write| required(write)).max_by_key(|write| write.sent)?;
        let mut sources = sources.iter().copied();
        let misses = |source: Option<&Write>| source.is_none_or(|write| write.is_before(latest));
        sources.all(misses).then_some(latest.number)
    }
}

fn touches(write: &Write, block: usize) -> bool {
    (write.first_block..write.first_block + write.blocks).contains(&(block as u64))
}

#[cfg(test)]
mod tests {
    use super::super::journal::Flush;
    use super::*;

    fn journal(writes: &[(u64, u64, Moment, Option<Moment>)]) -> Journal {
        let mut journal = Journal::new(vec![Seen::Zero; 4], true);
        for (number, (first_block, blocks, sent, answered)) in (1..).zip(writes) {
            journal.writes.push(Write {
                number,
                connection: 0,
                first_block: *first_block,
                blocks: *blocks,
                effect: Effect::Stamps,
                fua: false,
                sent: *sent,
                answered: *answered,
            });
        }
        journal
    }

    fn volume(numbers: [u64; 4]) -> Vec<Seen> {
        numbers.map(|number| if number == 0 { Seen::Zero } else { Seen::Write(number) }).to_vec()
    }

    #[test]
    fn the_last_acknowledged_values_are_right() {
        let journal = journal(&[(0, 2, 1, Some(2)), (1, 2, 3, Some(4))]);
        assert_eq!(judge(&journal, &volume([1, 2, 2, 0]), Promise::Acknowledged), []);
    }

    #[test]
    fn a_lost_acknowledged_write_counts_only_when_the_process_died() {
        let journal = journal(&[(0, 1, 1, Some(2)), (1, 1, 3, Some(4))]);
        let seen = volume([1, 0, 0, 0]);
        assert_eq!(judge(&journal, &seen, Promise::Flushed), []);
        assert!(matches!(
            judge(&journal, &seen, Promise::Acknowledged)[..],
            [Violation::LostAcknowledged { lost: 2, .. }]
        ));
    }

    #[test]
    fn a_lost_flushed_write_is_always_a_violation() {
        let mut journal = journal(&[(0, 1, 1, Some(2))]);
        journal.flushes.push(Flush { connection: 0, sent: 3 });
        assert!(matches!(
            judge(&journal, &volume([0; 4]), Promise::Flushed)[..],
            [Violation::LostFlushed { lost: 1, .. }]
        ));
    }

    #[test]
    fn without_its_log_a_volume_has_what_was_destaged_and_perhaps_more() {
        let mut journal = journal(&[(0, 1, 1, Some(2)), (1, 1, 4, Some(5)), (2, 1, 6, Some(7))]);
        journal.destages.push(3);
        journal.flushes.push(Flush { connection: 0, sent: 8 });
        for seen in [[1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 0]] {
            assert_eq!(judge(&journal, &volume(seen), Promise::Destaged), [], "{seen:?}");
        }
        assert!(matches!(
            judge(&journal, &volume([0; 4]), Promise::Destaged)[..],
            [Violation::LostDestaged { lost: 1, .. }]
        ));
        assert!(matches!(
            judge(&journal, &volume([1, 0, 3, 0]), Promise::Destaged)[..],
            [Violation::NoPrefix { .. }]
        ));
        assert!(matches!(
            judge(&journal, &volume([1, 2, 0, 0]), Promise::Flushed)[..],
            [Violation::LostFlushed { lost: 3, .. }]
        ));
    }

    #[test]
    fn a_flush_that_was_sent_before_the_answer_covers_nothing() {
        let mut journal = journal(&[(0, 1, 1, Some(3))]);
        journal.flushes.push(Flush { connection: 0, sent: 2 });
        assert_eq!(judge(&journal, &volume([0; 4]), Promise::Flushed), []);
    }

    #[test]
    fn without_multi_conn_a_flush_covers_its_own_connection() {
        let mut journal = journal(&[(0, 1, 1, Some(2))]);
        journal.flush_covers_all = false;
        journal.flushes.push(Flush { connection: 1, sent: 3 });
        assert_eq!(judge(&journal, &volume([0; 4]), Promise::Flushed), []);
    }

    #[test]
    fn a_later_write_without_an_earlier_one_is_no_prefix() {
        let journal = journal(&[(0, 1, 1, Some(2)), (1, 1, 3, None)]);
        assert!(matches!(
            judge(&journal, &volume([0, 2, 0, 0]), Promise::Flushed)[..],
            [Violation::NoPrefix { .. }]
        ));
    }

    #[test]
    fn concurrent_writes_may_be_there_in_any_combination() {
        let journal = journal(&[(0, 1, 1, None), (1, 1, 2, None)]);
        for seen in [[0, 0, 0, 0], [1, 0, 0, 0], [0, 2, 0, 0], [1, 2, 0, 0]] {
            assert_eq!(judge(&journal, &volume(seen), Promise::Acknowledged), [], "{seen:?}");
        }
    }

    #[test]
    fn a_write_is_there_whole_or_not_at_all() {
        let journal = journal(&[(0, 2, 1, None)]);
        assert!(matches!(
            judge(&journal, &volume([1, 0, 0, 0]), Promise::Flushed)[..],
            [Violation::NoPrefix { .. }]
        ));
    }

    #[test]
    fn two_concurrent_writes_do_not_interleave() {
        let journal = journal(&[(0, 2, 1, None), (0, 2, 2, None)]);
        assert!(matches!(
            judge(&journal, &volume([1, 2, 0, 0]), Promise::Flushed)[..],
            [Violation::NoPrefix { .. }]
        ));
        assert_eq!(judge(&journal, &volume([1, 1, 0, 0]), Promise::Flushed), []);
    }

    #[test]
    fn a_value_from_before_the_round_may_not_come_back() {
        let mut journal = journal(&[(0, 1, 1, Some(2))]);
        journal.base[0] = Seen::Write(77);
        assert!(!judge(&journal, &volume([77, 0, 0, 0]), Promise::Acknowledged).is_empty());
        assert_eq!(judge(&journal, &volume([77, 0, 0, 0]), Promise::Flushed), []);
    }

    #[test]
    fn a_value_from_before_the_round_may_not_vanish() {
        let mut journal = journal(&[]);
        journal.base[0] = Seen::Write(77);
        assert!(matches!(
            judge(&journal, &volume([0; 4]), Promise::Flushed)[..],
            [Violation::LostFlushed { .. }]
        ));
    }

    #[test]
    fn a_write_that_was_never_sent_there_is_impossible() {
        let journal = journal(&[(0, 1, 1, Some(2))]);
        assert!(matches!(
            judge(&journal, &volume([1, 1, 0, 0]), Promise::Flushed)[..],
            [Violation::Impossible { .. }]
        ));
    }

    #[test]
    fn zeroes_satisfy_a_zeroing_that_may_be_the_last() {
        let mut journal = journal(&[(0, 1, 1, Some(2)), (0, 1, 3, Some(4))]);
        journal.writes[1].effect = Effect::Zeroes;
        assert_eq!(judge(&journal, &volume([0; 4]), Promise::Acknowledged), []);
        assert!(!judge(&journal, &volume([1, 0, 0, 0]), Promise::Acknowledged).is_empty());
    }

    #[test]
    fn a_read_that_misses_an_acknowledged_write_is_stale() {
        let mut journal = journal(&[(0, 1, 1, Some(2))]);
        let read =
            |seen, sent| super::super::journal::Read { first_block: 0, sent, answered: 9, seen: vec![seen] };
        journal.reads.push(read(Seen::Zero, 1));
        assert_eq!(judge(&journal, &volume([1, 0, 0, 0]), Promise::Acknowledged), []);
        journal.reads.push(read(Seen::Zero, 3));
        assert!(matches!(
            judge(&journal, &volume([1, 0, 0, 0]), Promise::Acknowledged)[..],
            [Violation::StaleRead { missed: 1, .. }]
        ));
    }
}
