//! When failures of the disk are too many.
//!
//! Each operation counts its own failures in a row. Most look-ups are answered by filters and by what is in memory, and so succeed on a disk that
//! nothing can be read from or written to any more: only an operation's own success ends its row.

use crate::store::{Severity, StoreError};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Failures of an operation in a row after which the disk is given up.
pub(crate) const ERRORS_MAX: u32 = 8;
/// Panics of the store, whatever succeeds between them, after which the disk is given up: its files are damaged, and each panic is told to the operator.
pub(crate) const PANICS_MAX: u32 = 3;

/// What is asked of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    ReadAnchor,
    ReadList,
    /// Which containers have a list; the lists are not read.
    ReadKeys,
    Write,
    Sync,
    /// How large the store is and how far behind.
    Measure,
}

impl Operation {
    const COUNT: usize = 6;
}

#[derive(Debug, Default)]
pub(crate) struct Failures {
    in_a_row: [AtomicU32; Operation::COUNT],
    panics: AtomicU32,
    any: AtomicBool,
}

/// What a failure means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Verdict {
    /// Nothing failed before.
    pub(crate) first: bool,
    pub(crate) give_up: bool,
}

impl Failures {
    pub(crate) fn succeeded(&self, operation: Operation) {
        let in_a_row = &self.in_a_row[operation as usize];
        if in_a_row.load(Ordering::Relaxed) != 0 {
            in_a_row.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn failed(&self, operation: Operation, error: &StoreError) -> Verdict {
        let first = !self.any.swap(true, Ordering::Relaxed);
        let in_a_row = self.in_a_row[operation as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let too_bad = match error.severity {
            Severity::Error => false,
            Severity::Panic => self.panics.fetch_add(1, Ordering::Relaxed) + 1 >= PANICS_MAX,
            Severity::Fatal => true,
        };
        Verdict { first, give_up: too_bad || in_a_row >= ERRORS_MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(severity: Severity) -> StoreError {
        StoreError { detail: "made up".to_owned(), severity }
    }

    #[test]
    fn successes_of_another_operation_do_not_hide_that_one_always_fails() {
        let failures = Failures::default();
        for number in 1..ERRORS_MAX {
            let verdict = failures.failed(Operation::ReadList, &error(Severity::Error));
            assert_eq!(verdict, Verdict { first: number == 1, give_up: false });
            for other in [Operation::ReadAnchor, Operation::ReadKeys, Operation::Measure, Operation::Write] {
                failures.succeeded(other);
            }
        }
        assert!(failures.failed(Operation::ReadList, &error(Severity::Error)).give_up);
    }

    #[test]
    fn failures_between_successes_are_borne() {
        let failures = Failures::default();
        for _ in 0..10 * ERRORS_MAX {
            assert!(!failures.failed(Operation::Write, &error(Severity::Error)).give_up);
            failures.succeeded(Operation::Write);
        }
    }

    #[test]
    fn a_few_panics_are_enough_and_so_is_one_fatal_error() {
        let failures = Failures::default();
        for number in 1..=PANICS_MAX {
            let verdict = failures.failed(Operation::ReadAnchor, &error(Severity::Panic));
            assert_eq!(verdict.give_up, number == PANICS_MAX);
            failures.succeeded(Operation::ReadAnchor);
        }
        assert!(Failures::default().failed(Operation::Sync, &error(Severity::Fatal)).give_up);
    }
}
