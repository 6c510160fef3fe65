//! Whether the history of one block is that of an atomic register (Herlihy and Wing, "Linearizability: A Correctness
//! Condition for Concurrent Objects", 1990).
//!
//! The search is Lowe's just-in-time linearization in its graph form ("Testing for Linearizability", 2017), a refinement
//! of Wing and Gong's ("Testing and Verifying Concurrent Objects", 1993). It goes through the starts and ends of the
//! operations in order of time and keeps every [`Configuration`] that is possible so far: which operations that are under
//! way have taken effect, and what the register holds. An operation is made to take effect when its end comes, and
//! others before it where that is possible. The history is linearizable when a configuration is left at the end.
//! What has ended needs no memory, so the cost grows with the operations under way, not with the history.
//!
//! An operation without an answer is in doubt until its `end`: then it has taken effect, or never will.
//!
//! Four shortcuts keep the configurations few. Each is exact: it drops only what cannot help, or what another
//! configuration does as well.
//! 1. A read of what the register holds takes effect at once: it changes nothing.
//! 2. What nobody will read any more is all the same: the register holds [`None`].
//! 3. While it holds that, a write whose only readers have all started takes effect at once, and they with it: such
//!    an episode can be cut from any order and put here.
//! 4. A value that has one writer and reads still to start is not overwritten: those reads could never take effect.
//!
//! When every value has one writer, what is left to try is only which write with later readers comes first (Gibbons
//! and Korach, "Testing Shared Memories", 1997: that case is never hard). Zeroings are what makes it a search.

#[cfg(test)]
mod oracles;
#[cfg(test)]
mod tests;

use super::history::{Action, Operation};
use crate::oracle::journal::Moment;
use crate::oracle::stamp::Seen;
use anyhow::{Result, bail};
use std::collections::{HashMap, HashSet};

/// Operations under way at one time, as a set.
type Slots = u128;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Configuration {
    /// Operations under way that have taken effect.
    done: Slots,
    /// What the register holds, as an index into the values; `None` when nobody will read it.
    holds: Option<usize>,
}

/// What the history knows about one value.
#[derive(Clone, Copy, Debug, Default)]
struct Value {
    writers: usize,
    reads_to_start: usize,
    /// The reads of it that are under way.
    reads: Slots,
}

/// The index of the operation at whose end no order is left that explains the history, or `None` when it is linearizable.
/// Every register holds zeroes at first. More than 128 operations in doubt at one time are an error.
pub fn violation(operations: &[Operation]) -> Result<Option<usize>> {
    let mut search = Search::new(operations);
    for (_, is_end, index) in events(operations) {
        if !is_end {
            search.start(index)?;
        } else if !search.end(index) {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// The starts and ends in order of time; of those at the same moment the starts come first, so that what touches is concurrent.
fn events(operations: &[Operation]) -> Vec<(Moment, bool, usize)> {
    let both = |(index, operation): (usize, &Operation)| {
        [(operation.start, false, index), (operation.end, true, index)]
    };
    let mut events: Vec<_> = operations.iter().enumerate().flat_map(both).collect();
    events.sort_unstable();
    events
}

struct Search<'a> {
    operations: &'a [Operation],
    /// The value of each operation.
    value_of: Vec<usize>,
    values: Vec<Value>,
    /// The operation in each slot, and the slot of each operation.
    under_way: Vec<Option<usize>>,
    slot_of: HashMap<usize, usize>,
    writes: Slots,
    configurations: HashSet<Configuration>,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation]) -> Self {
        let mut numbers = HashMap::from([(Seen::Zero, 0)]);
        let mut values = vec![Value { writers: 1, ..Value::default() }];
        let mut value_of = Vec::with_capacity(operations.len());
        for operation in operations {
            let number = *numbers.entry(operation.action.value()).or_insert(values.len());
            if number == values.len() {
                values.push(Value::default());
            }
            match operation.action {
                Action::Write(_) => values[number].writers += 1,
                Action::Read(_) => values[number].reads_to_start += 1,
            }
            value_of.push(number);
        }
        let mut search = Self {
            operations,
            value_of,
            values,
            under_way: Vec::new(),
            slot_of: HashMap::new(),
            writes: 0,
            configurations: HashSet::new(),
        };
        let first = search.settled(Configuration { done: 0, holds: Some(0) });
        search.configurations.insert(first);
        search
    }

    fn start(&mut self, index: usize) -> Result<()> {
        let free = self.under_way.iter().position(Option::is_none).unwrap_or(self.under_way.len());
        if free == Slots::BITS as usize {
            bail!("more than {} operations on one block are in doubt at one time", Slots::BITS);
        }
        if free == self.under_way.len() {
            self.under_way.push(None);
        }
        self.under_way[free] = Some(index);
        self.slot_of.insert(index, free);
        let value = &mut self.values[self.value_of[index]];
        if self.operations[index].action.is_read() {
            value.reads_to_start -= 1;
            value.reads |= 1 << free;
        } else {
            self.writes |= 1 << free;
        }
        let before = std::mem::take(&mut self.configurations);
        self.configurations = before.into_iter().map(|configuration| self.settled(configuration)).collect();
        Ok(())
    }

    /// Keeps the configurations in which the operation has taken effect, or never will. False when there are none.
    fn end(&mut self, index: usize) -> bool {
        let slot = self.slot_of.remove(&index).expect("an operation ends after it starts");
        let mark: Slots = 1 << slot;
        let mut kept = HashSet::new();
        let mut tried = HashSet::new();
        let mut to_try = Vec::new();
        for configuration in std::mem::take(&mut self.configurations) {
            if configuration.done & mark != 0 {
                kept.insert(Configuration { done: configuration.done & !mark, ..configuration });
                continue;
            }
            if !self.operations[index].answered {
                kept.insert(configuration);
            }
            to_try.push(configuration);
        }
        while let Some(configuration) = to_try.pop() {
            for next in self.successors(configuration) {
                if next.done & mark != 0 {
                    kept.insert(Configuration { done: next.done & !mark, ..next });
                } else if tried.insert(next) {
                    to_try.push(next);
                }
            }
        }
        self.under_way[slot] = None;
        self.writes &= !mark;
        self.values[self.value_of[index]].reads &= !mark;
        self.configurations = kept;
        !self.configurations.is_empty()
    }

    /// Every write under way that may take effect next.
    fn successors(&self, from: Configuration) -> impl Iterator<Item = Configuration> {
        let held = from.holds.map(|value| &self.values[value]);
        let must_stay = held.is_some_and(|value| value.writers == 1 && value.reads_to_start > 0);
        let writes = if must_stay { 0 } else { self.writes & !from.done };
        members(writes).map(move |slot| self.written(from, slot))
    }

    fn written(&self, from: Configuration, slot: usize) -> Configuration {
        let done = from.done | 1 << slot;
        self.settled(Configuration { done, holds: Some(self.value_in(slot)) })
    }

    fn value_in(&self, slot: usize) -> usize {
        self.value_of[self.under_way[slot].expect("the slot is taken")]
    }

    /// Lets everything take effect that may as well do so now: shortcuts 1 to 3.
    fn settled(&self, mut configuration: Configuration) -> Configuration {
        if let Some(held) = configuration.holds {
            configuration.done |= self.values[held].reads;
            if self.values[held].reads_to_start > 0 {
                return configuration;
            }
            configuration.holds = None;
        }
        for slot in members(self.writes & !configuration.done) {
            let value = &self.values[self.value_in(slot)];
            if value.writers == 1 && value.reads_to_start == 0 {
                configuration.done |= 1 << slot | value.reads;
            }
        }
        configuration
    }
}

fn members(mut slots: Slots) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let slot = slots.trailing_zeros();
        slots &= slots.wrapping_sub(1);
        (slot < Slots::BITS).then_some(slot as usize)
    })
}
