//! The smallest part of a violating history that still violates, drawn so that people can follow it.
//!
//! Only what leaves every linearizable history linearizable is taken away: reads, writes whose value no remaining read
//! returns, and zeroings that no remaining read of zeroes can mean, because it was over before or something else was written
//! in between. So a violation of the rest is a violation of the whole. What is taken away is found by halving (Zeller and
//! Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002).

use super::history::{Action, Operation};
use super::register;
use crate::oracle::journal::Moment;
use crate::oracle::stamp::Seen;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::ops::Range;

/// A violating history without whatever it violates without. Nothing more can be taken from it.
pub fn minimal(operations: &[Operation]) -> Vec<Operation> {
    let mut kept = operations.to_vec();
    let mut step = kept.len().div_ceil(2);
    loop {
        let smaller = take_away(&mut kept, step);
        if step > 1 {
            step = step.div_ceil(2);
        } else if !smaller {
            return kept;
        }
    }
}

/// One pass in steps of this length; whether anything could go.
fn take_away(kept: &mut Vec<Operation>, step: usize) -> bool {
    let before = kept.len();
    let mut first = 0;
    while first < kept.len() {
        let rest = without(kept, first..kept.len().min(first + step));
        if rest.len() < kept.len() && violates(&rest) {
            *kept = rest;
        } else {
            first += step;
        }
    }
    kept.len() < before
}

fn violates(operations: &[Operation]) -> bool {
    matches!(register::violation(operations), Ok(Some(_)))
}

/// Leaves out what may go of this range: its reads, then zeroings that no remaining read can mean, then writes whose
/// value no remaining read returns.
fn without(operations: &[Operation], range: Range<usize>) -> Vec<Operation> {
    let is_kept_read = |index: usize| !range.contains(&index) && operations[index].action.is_read();
    let reads: Vec<&Operation> =
        (0..operations.len()).filter(|index| is_kept_read(*index)).map(|index| &operations[index]).collect();
    let read_values: HashSet<Seen> = reads.iter().map(|read| read.action.value()).collect();
    let overwritten = Overwritten::new(operations, &reads);
    let may_go = |operation: &Operation| match operation.action {
        Action::Read(_) => true,
        Action::Write(Seen::Zero) => overwritten.before_every_read(operation),
        Action::Write(value) => !read_values.contains(&value),
    };
    let all = operations.iter().enumerate();
    let rest = all.filter(|(index, operation)| !range.contains(index) || !may_go(operation));
    rest.map(|(_, operation)| *operation).collect()
}

/// Tells of a zeroing whether something else was written, and answered, between it and every read of zeroes that is
/// not over before it.
struct Overwritten {
    /// Starts of the other writes, and the first end of those from there on.
    others: Vec<(Moment, Moment)>,
    /// Ends of the reads of zeroes, and the first start of those from there on.
    reads: Vec<(Moment, Moment)>,
}

impl Overwritten {
    fn new(operations: &[Operation], reads: &[&Operation]) -> Self {
        let is_other = |operation: &&Operation| {
            operation.answered && !operation.action.is_read() && operation.action.value() != Seen::Zero
        };
        let others = operations.iter().filter(is_other).map(|other| (other.start, other.end));
        let reads = reads.iter().filter(|read| read.action.value() == Seen::Zero);
        Self {
            others: with_least_from_there_on(others.collect()),
            reads: with_least_from_there_on(reads.map(|read| (read.end, read.start)).collect()),
        }
    }

    fn before_every_read(&self, zeroing: &Operation) -> bool {
        let overwritten_at = least_from(&self.others, zeroing.end + 1);
        match (overwritten_at, least_from(&self.reads, zeroing.start)) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(overwritten), Some(read)) => overwritten < read,
        }
    }
}

/// Sorts by the first of each pair and replaces the second by the least of those from there on.
fn with_least_from_there_on(mut pairs: Vec<(Moment, Moment)>) -> Vec<(Moment, Moment)> {
    pairs.sort_unstable();
    let mut least = Moment::MAX;
    for (_, second) in pairs.iter_mut().rev() {
        least = least.min(*second);
        *second = least;
    }
    pairs
}

fn least_from(pairs: &[(Moment, Moment)], from: Moment) -> Option<Moment> {
    pairs.get(pairs.partition_point(|(first, _)| *first < from)).map(|(_, least)| *least)
}

/// One line for each operation, with a bar from its start to its end. Of the moments only the order is kept.
pub fn draw(operations: &[Operation]) -> String {
    let mut sorted = operations.to_vec();
    sorted.sort_by_key(|operation| (operation.start, operation.end));
    let mut moments: Vec<Moment> =
        sorted.iter().flat_map(|operation| [operation.start, operation.end]).collect();
    moments.sort_unstable();
    moments.dedup();
    let column: HashMap<Moment, usize> =
        moments.iter().enumerate().map(|(rank, moment)| (*moment, rank * 2)).collect();
    let width = moments.len() * 2;
    let mut drawing = String::new();
    for operation in &sorted {
        let (from, to) = (column[&operation.start], column[&operation.end]);
        let last = if operation.answered { '|' } else { '?' };
        let bar = format!("{}|{}{last}", " ".repeat(from), "-".repeat((to - from).saturating_sub(1)));
        let _ = writeln!(drawing, "  {bar:width$} {}", describe(operation));
    }
    drawing
}

fn describe(operation: &Operation) -> String {
    let what = match operation.action {
        Action::Write(Seen::Zero) => "zeroing".to_owned(),
        Action::Write(Seen::Write(number)) => format!("write {number}"),
        Action::Read(Seen::Zero) => "read of zeroes".to_owned(),
        Action::Read(Seen::Write(number)) => format!("read of write {number}"),
    };
    let (life, connection) = (operation.origin.life, operation.origin.connection);
    let (start, end) = (operation.start, operation.end);
    let how = if operation.answered { "answered at" } else { "never answered, over by" };
    format!("{what} (life {life}, connection {connection}, sent at {start}, {how} {end})")
}

#[cfg(test)]
mod tests {
    use super::super::history::Origin;
    use super::*;
    use crate::random::Random;

    fn operation(action: Action, start: Moment, end: Moment) -> Operation {
        Operation { action, start, end, answered: true, origin: Origin { life: 1, connection: 2 } }
    }

    /// Writes one after the other with reads that are right, and zeroings between them.
    fn long_true_history(pairs: u64) -> Vec<Operation> {
        let mut operations = Vec::new();
        for number in 1..=pairs {
            let at = number * 10;
            let value = if number % 7 == 0 { Seen::Zero } else { Seen::Write(number) };
            operations.push(operation(Action::Write(value), at, at + 3));
            operations.push(operation(Action::Read(value), at + 4, at + 6));
        }
        operations
    }

    #[test]
    fn of_a_long_history_only_the_stale_read_and_what_it_missed_is_left() {
        let mut operations = long_true_history(1000);
        operations.push(operation(Action::Read(Seen::Write(500)), 5017, 5018));
        let left = minimal(&operations);
        assert_eq!(left.len(), 3, "{}", draw(&left));
        assert!(left.contains(&operation(Action::Read(Seen::Write(500)), 5017, 5018)));
        assert!(left.contains(&operation(Action::Write(Seen::Write(500)), 5000, 5003)));
        assert!(violates(&left));
    }

    #[test]
    fn of_many_zeroings_those_that_a_read_of_zeroes_cannot_mean_are_taken_away() {
        let mut operations = long_true_history(1000);
        operations.push(operation(Action::Read(Seen::Zero), 5017, 5018));
        let left = minimal(&operations);
        assert_eq!(left.len(), 2, "{}", draw(&left));
    }

    #[test]
    fn what_is_left_violates_whatever_the_history() {
        let mut random = Random::seeded(3);
        for _ in 0..300 {
            let mut operations = long_true_history(40);
            for _ in 0..=random.below(3) {
                let from = 10 + random.below(400);
                let value = if random.chance(2) { Seen::Zero } else { Seen::Write(1 + random.below(40)) };
                operations.push(operation(Action::Read(value), from, from + 1 + random.below(30)));
            }
            if violates(&operations) {
                let left = minimal(&operations);
                assert!(violates(&left) && left.len() <= 6, "{}", draw(&left));
            }
        }
    }

    #[test]
    fn the_drawing_shows_who_overlaps_whom() {
        let operations = [
            operation(Action::Write(Seen::Write(7)), 100, 400),
            Operation { answered: false, ..operation(Action::Write(Seen::Zero), 200, 900) },
            operation(Action::Read(Seen::Zero), 500, 600),
        ];
        let expected = "  \
  |---|        write 7 (life 1, connection 2, sent at 100, answered at 400)
    |-------?  zeroing (life 1, connection 2, sent at 200, never answered, over by 900)
        |-|    read of zeroes (life 1, connection 2, sent at 500, answered at 600)
";
        assert_eq!(draw(&operations), expected);
    }
}
