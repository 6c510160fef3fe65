//! What clients remember of the registers: every operation, its interval and whether it was answered.

use crate::oracle::journal::Moment;
use crate::oracle::stamp::Seen;

/// What an operation did to one block. A zeroing writes [`Seen::Zero`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Write(Seen),
    Read(Seen),
}

impl Action {
    pub fn value(self) -> Seen {
        match self {
            Action::Write(value) | Action::Read(value) => value,
        }
    }

    pub fn is_read(self) -> bool {
        matches!(self, Action::Read(_))
    }
}

/// One operation on one block. If it takes effect, it does so at one point from `start` to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub action: Action,
    pub start: Moment,
    /// When the answer was read, or from when on an operation that was never answered can no longer take effect.
    pub end: Moment,
    /// An operation without an answer may have taken effect or not. A read without one says nothing and is left out.
    pub answered: bool,
    pub origin: Origin,
}

/// Who asked, for people who read a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Which process served it: 0, 1, 2 …
    pub life: u32,
    pub connection: u32,
}

/// The operations on each block of the hot set.
#[derive(Clone, Debug)]
pub struct History {
    blocks: Vec<Vec<Operation>>,
}

impl History {
    pub fn of_blocks(count: usize) -> Self {
        Self { blocks: vec![Vec::new(); count] }
    }

    pub fn push(&mut self, block: usize, operation: Operation) {
        self.blocks[block].push(operation);
    }

    pub fn blocks(&self) -> impl Iterator<Item = (usize, &[Operation])> {
        self.blocks.iter().map(Vec::as_slice).enumerate()
    }

    pub fn operations(&self) -> usize {
        self.blocks.iter().map(Vec::len).sum()
    }

    /// The largest number of operations that were under way on one block at the same time.
    pub fn concurrency_max(&self) -> usize {
        self.blocks.iter().map(|operations| concurrency(operations)).max().unwrap_or(0)
    }
}

fn concurrency(operations: &[Operation]) -> usize {
    let mut events: Vec<(Moment, bool)> =
        operations.iter().flat_map(|operation| [(operation.start, false), (operation.end, true)]).collect();
    events.sort_unstable();
    let mut open = 0_usize;
    let mut most = 0;
    for (_, is_end) in events {
        if is_end {
            open -= 1;
        } else {
            open += 1;
            most = most.max(open);
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(start: Moment, end: Moment) -> Operation {
        Operation { action: Action::Read(Seen::Zero), start, end, answered: true, origin: Origin::default() }
    }

    #[test]
    fn concurrency_counts_what_overlaps_on_one_block() {
        let mut history = History::of_blocks(2);
        for (start, end) in [(1, 4), (2, 3), (3, 9), (5, 6)] {
            history.push(0, read(start, end));
        }
        history.push(1, read(1, 9));
        assert_eq!((history.operations(), history.concurrency_max()), (5, 3));
    }
}
