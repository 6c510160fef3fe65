//! Two other ways to the same verdict, and random histories to compare them on.

use crate::linearizable::history::{Action, Operation, Origin};
use crate::oracle::journal::Moment;
use crate::oracle::stamp::Seen;
use crate::random::Random;
use std::collections::HashMap;

/// Tries every order of every choice of the operations without an answer. For histories of a few operations.
pub(super) fn some_order_explains(operations: &[Operation]) -> bool {
    let answered = select(operations, |index| operations[index].answered);
    let in_doubt = select(operations, |index| !operations[index].answered);
    // All subsets of `in_doubt`, from itself down to the empty one.
    let mut chosen = in_doubt;
    loop {
        if order_exists(operations, answered | chosen, Seen::Zero) {
            return true;
        }
        if chosen == 0 {
            return false;
        }
        chosen = (chosen - 1) & in_doubt;
    }
}

fn select(operations: &[Operation], is_in: impl Fn(usize) -> bool) -> u32 {
    (0..operations.len()).filter(|index| is_in(*index)).fold(0, |set, index| set | 1 << index)
}

fn order_exists(operations: &[Operation], left: u32, holds: Seen) -> bool {
    if left == 0 {
        return true;
    }
    let left_over: Vec<usize> = (0..operations.len()).filter(|index| left & 1 << index != 0).collect();
    left_over.iter().any(|next| {
        let operation = &operations[*next];
        let is_first = left_over.iter().all(|other| operations[*other].end >= operation.start);
        let (fits, after) = match operation.action {
            Action::Write(value) => (true, value),
            Action::Read(value) => (value == holds, holds),
        };
        is_first && fits && order_exists(operations, left & !(1 << next), after)
    })
}

/// Gibbons and Korach's criterion for histories in which every value, the zeroes at the beginning too, has one writer:
/// a value must stay from the first end to the last start of what touches it. Those stays (forward zones) do not
/// overlap, and no value that lives within a moment (a backward zone) has its whole leeway inside one of them.
pub(super) fn zones_fit(operations: &[Operation]) -> bool {
    let mut zones: HashMap<u64, Zone> =
        HashMap::from([(0, Zone { writer_start: Some(0), first_end: 0, last_start: 0 })]);
    let is_read = |operation: &&Operation| operation.action.is_read();
    for operation in operations.iter().filter(|operation| !operation.action.is_read()) {
        let zone = Zone {
            writer_start: Some(operation.start),
            first_end: operation.end,
            last_start: operation.start,
        };
        assert!(zones.insert(number(operation), zone).is_none(), "a value with two writers");
    }
    let unread = |operation: &Operation| {
        !operations.iter().filter(is_read).any(|read| read.action.value() == operation.action.value())
    };
    for operation in operations.iter().filter(|operation| !operation.answered && unread(operation)) {
        zones.remove(&number(operation));
    }
    for read in operations.iter().filter(is_read) {
        let Some(zone) = zones.get_mut(&number(read)) else { return false };
        if zone.writer_start.is_none_or(|start| start > read.end) {
            return false;
        }
        zone.first_end = zone.first_end.min(read.end);
        zone.last_start = zone.last_start.max(read.start);
    }
    let (forward, backward): (Vec<&Zone>, Vec<&Zone>) =
        zones.values().partition(|zone| zone.first_end < zone.last_start);
    let apart = |a: &Zone, b: &Zone| a.last_start < b.first_end || b.last_start < a.first_end;
    let inside = |b: &Zone, f: &Zone| f.first_end < b.last_start && b.first_end < f.last_start;
    let overlap = (0..forward.len()).any(|at| forward[..at].iter().any(|other| !apart(other, forward[at])));
    !overlap && !backward.iter().any(|b| forward.iter().any(|f| inside(b, f)))
}

struct Zone {
    writer_start: Option<Moment>,
    first_end: Moment,
    last_start: Moment,
}

fn number(operation: &Operation) -> u64 {
    match operation.action.value() {
        Seen::Zero => 0,
        Seen::Write(number) => number,
    }
}

/// What random histories look like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) operations: usize,
    /// About how many are under way at one time.
    pub(super) concurrency: u64,
    /// One write in how many is a zeroing; 0 for none.
    pub(super) zeroing_one_in: u64,
    pub(super) unanswered_one_in: u64,
}

/// The history of a true register: every operation takes effect at a random moment of its interval.
pub(super) fn true_history(random: &mut Random, shape: Shape) -> Vec<Operation> {
    let count = shape.operations as u64;
    let mut effects: Vec<(Moment, Operation, bool)> = Vec::with_capacity(shape.operations);
    for number in 1..=count {
        let action = match random.below(2) {
            0 => Action::Read(Seen::Zero),
            _ if shape.zeroing_one_in > 0 && random.chance(shape.zeroing_one_in) => Action::Write(Seen::Zero),
            _ => Action::Write(Seen::Write(number)),
        };
        // No two moments of a history are the same.
        let mut moment = |from: u64, span: u64| (from + random.below(span)) * 4 * count + number * 4;
        let start = moment(1, 1000 * count);
        let end = start + 2 + moment(0, 2000 * shape.concurrency);
        let effect = start + 1 + random.below(end - start - 1);
        let answered = action.is_read() || !random.chance(shape.unanswered_one_in);
        let happens = answered || random.chance(2);
        effects.push((
            effect,
            Operation { action, start, end, answered, origin: Origin::default() },
            happens,
        ));
    }
    effects.sort_unstable_by_key(|(effect, ..)| *effect);
    let mut holds = Seen::Zero;
    let mut operations = Vec::with_capacity(effects.len());
    for (_, mut operation, happens) in effects {
        match operation.action {
            Action::Write(value) if happens => holds = value,
            Action::Write(_) => {}
            Action::Read(_) => operation.action = Action::Read(holds),
        }
        operations.push(operation);
    }
    operations
}

/// Gives some read another value of the same history. The result may still be explained by some order.
pub(super) fn change_a_read(random: &mut Random, operations: &mut [Operation]) {
    let pick = |random: &mut Random, wanted: &[usize]| wanted[random.index(wanted.len())];
    let reads: Vec<usize> =
        (0..operations.len()).filter(|index| operations[*index].action.is_read()).collect();
    let writes: Vec<usize> =
        (0..operations.len()).filter(|index| !operations[*index].action.is_read()).collect();
    if !reads.is_empty() && !writes.is_empty() {
        let value = operations[pick(random, &writes)].action.value();
        operations[pick(random, &reads)].action = Action::Read(value);
    }
}
