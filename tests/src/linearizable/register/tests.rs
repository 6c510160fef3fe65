use super::oracles::{Shape, change_a_read, some_order_explains, true_history, zones_fit};
use super::violation;
use crate::linearizable::history::{Action, Operation, Origin};
use crate::oracle::journal::Moment;
use crate::oracle::stamp::Seen;
use crate::random::Random;
use std::time::{Duration, Instant};

fn value(number: u64) -> Seen {
    if number == 0 { Seen::Zero } else { Seen::Write(number) }
}

fn operation(action: Action, start: Moment, end: Moment) -> Operation {
    Operation { action, start, end, answered: true, origin: Origin::default() }
}

fn write(number: u64, start: Moment, end: Moment) -> Operation {
    operation(Action::Write(value(number)), start, end)
}

fn read(number: u64, start: Moment, end: Moment) -> Operation {
    operation(Action::Read(value(number)), start, end)
}

/// A write that was never answered and cannot take effect after `end`.
fn unanswered(number: u64, start: Moment, end: Moment) -> Operation {
    Operation { answered: false, ..write(number, start, end) }
}

fn assert_accepted(operations: &[Operation]) {
    assert_eq!(violation(operations).unwrap(), None);
    assert!(some_order_explains(operations));
}

fn assert_refused(operations: &[Operation]) {
    assert!(violation(operations).unwrap().is_some());
    assert!(!some_order_explains(operations));
}

#[test]
fn a_register_that_nobody_wrote_holds_zeroes() {
    assert_accepted(&[]);
    assert_accepted(&[read(0, 1, 2)]);
    assert_refused(&[read(7, 1, 2)]);
}

#[test]
fn a_read_sees_the_last_write_that_was_answered() {
    assert_accepted(&[write(1, 1, 2), read(1, 3, 4)]);
    assert_refused(&[write(1, 1, 2), read(0, 3, 4)]);
    assert_refused(&[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)]);
}

#[test]
fn a_read_beside_a_write_sees_either_value() {
    assert_accepted(&[write(1, 1, 4), read(0, 2, 3)]);
    assert_accepted(&[write(1, 1, 4), read(1, 2, 3)]);
}

#[test]
fn once_a_read_has_seen_a_write_no_later_read_sees_what_was_before() {
    assert_refused(&[write(1, 1, 8), read(1, 2, 3), read(0, 4, 5)]);
    assert_accepted(&[write(1, 1, 8), read(1, 2, 5), read(0, 3, 4)]);
}

#[test]
fn a_read_does_not_see_a_write_that_was_sent_after_its_answer() {
    assert_refused(&[read(1, 1, 2), write(1, 3, 4)]);
}

#[test]
fn two_writes_side_by_side_may_end_in_either_order_but_everybody_sees_the_same() {
    let writes = [write(1, 1, 10), write(2, 1, 10)];
    assert_accepted(&[&writes[..], &[read(1, 11, 12)]].concat());
    assert_accepted(&[&writes[..], &[read(2, 11, 12)]].concat());
    assert_refused(&[&writes[..], &[read(1, 11, 12), read(2, 13, 14)]].concat());
    assert_refused(&[&writes[..], &[read(1, 2, 3), read(2, 4, 5), read(1, 6, 7)]].concat());
}

#[test]
fn writes_may_take_effect_in_the_reverse_order_of_their_starts() {
    let writes = [write(1, 1, 20), write(2, 2, 20), write(3, 3, 20)];
    assert_accepted(&[&writes[..], &[read(3, 4, 5), read(2, 6, 7), read(1, 8, 9)]].concat());
}

#[test]
fn two_readers_that_see_two_writes_in_different_orders_are_refused() {
    let writes = [write(1, 1, 2), write(2, 1, 2)];
    assert_refused(&[&writes[..], &[read(1, 3, 4), read(2, 5, 6), read(2, 3, 4), read(1, 5, 6)]].concat());
}

#[test]
fn a_zeroing_can_be_seen_again_after_another_write() {
    assert_accepted(&[
        write(1, 1, 2),
        write(0, 3, 4),
        read(0, 5, 6),
        write(2, 7, 8),
        write(0, 9, 10),
        read(0, 11, 12),
    ]);
    assert_refused(&[write(1, 1, 2), write(0, 3, 4), read(0, 5, 6), write(2, 7, 8), read(0, 9, 10)]);
}

#[test]
fn a_zeroing_between_two_reads_of_one_write_is_refused() {
    assert_refused(&[write(1, 1, 2), read(1, 3, 4), write(0, 5, 6), read(1, 7, 8)]);
    assert_accepted(&[write(1, 1, 2), read(1, 3, 4), write(0, 5, 9), read(1, 7, 8)]);
}

#[test]
fn a_write_without_an_answer_may_have_taken_effect_or_not() {
    assert_accepted(&[unanswered(1, 1, 10), read(1, 2, 3), read(1, 11, 12)]);
    assert_accepted(&[unanswered(1, 1, 10), read(0, 2, 3), read(0, 11, 12)]);
    assert_accepted(&[unanswered(1, 1, 10), read(0, 2, 3), read(1, 11, 12)]);
    assert_refused(&[unanswered(1, 1, 10), read(1, 2, 3), read(0, 11, 12)]);
}

#[test]
fn a_write_without_an_answer_does_not_take_effect_after_the_next_start() {
    assert_refused(&[unanswered(1, 1, 10), read(0, 11, 12), read(1, 13, 14)]);
    assert_refused(&[unanswered(1, 1, 10), write(2, 11, 12), read(1, 13, 14)]);
    assert_accepted(&[unanswered(1, 1, 20), read(0, 11, 12), read(1, 13, 14)]);
}

#[test]
fn a_zeroing_without_an_answer_may_have_taken_effect_or_not() {
    assert_accepted(&[write(1, 1, 2), unanswered(0, 3, 10), read(0, 11, 12)]);
    assert_accepted(&[write(1, 1, 2), unanswered(0, 3, 10), read(1, 11, 12)]);
    assert_refused(&[write(1, 1, 2), unanswered(0, 3, 10), read(1, 11, 12), read(0, 13, 14)]);
}

#[test]
fn of_two_writes_without_an_answer_either_may_be_there_after_the_crash_but_only_one() {
    let crash = [write(1, 1, 2), unanswered(2, 3, 10), unanswered(3, 3, 10)];
    for left in [1, 2, 3] {
        assert_accepted(&[&crash[..], &[read(left, 11, 12), read(left, 13, 14)]].concat());
    }
    assert_refused(&[&crash[..], &[read(2, 11, 12), read(3, 13, 14)]].concat());
}

#[test]
fn an_acknowledged_write_that_is_gone_after_the_crash_is_refused() {
    assert_refused(&[write(1, 1, 2), write(2, 3, 4), unanswered(3, 5, 10), read(1, 11, 12)]);
}

#[test]
fn the_operation_at_whose_end_no_order_is_left_is_named() {
    let operations = [write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(1, 7, 8), read(2, 9, 10)];
    // The read of 1 that is still to start forbids the second write to end.
    assert_eq!(violation(&operations).unwrap(), Some(2));
}

#[test]
fn touching_intervals_are_concurrent() {
    assert_accepted(&[write(1, 1, 2), read(0, 2, 3)]);
}

#[test]
fn more_operations_in_doubt_than_can_be_counted_are_an_error_not_a_verdict() {
    let many: Vec<Operation> = (1..=129).map(|number| unanswered(number, number, 1000)).collect();
    assert!(violation(&many[..128]).is_ok());
    assert!(violation(&many).is_err());
}

/// Compares with an oracle on histories of which about half are linearizable; both verdicts must be common.
fn assert_agrees(rounds: u64, shape: Shape, oracle: impl Fn(&[Operation]) -> bool) {
    let mut accepted = 0;
    for seed in 0..rounds {
        let mut random = Random::seeded(seed);
        let size = 1 + random.below(shape.operations as u64);
        let shape = Shape {
            operations: usize::try_from(size).unwrap(),
            concurrency: 1 + random.below(shape.concurrency),
            ..shape
        };
        let mut operations = true_history(&mut random, shape);
        assert_eq!(violation(&operations).unwrap(), None, "seed {seed}, a true history: {operations:#?}");
        for _ in 0..=random.below(3) {
            change_a_read(&mut random, &mut operations);
        }
        let expected = oracle(&operations);
        assert_eq!(violation(&operations).unwrap().is_none(), expected, "seed {seed}: {operations:#?}");
        accepted += u64::from(expected);
    }
    println!("{accepted} of {rounds} linearizable");
    assert!(accepted > rounds / 10 && accepted < rounds * 9 / 10, "{accepted} of {rounds} are linearizable");
}

#[test]
fn it_agrees_with_trying_every_order() {
    let shape = Shape { operations: 8, concurrency: 3, zeroing_one_in: 0, unanswered_one_in: 3 };
    assert_agrees(100_000, shape, some_order_explains);
}

#[test]
fn it_agrees_with_trying_every_order_where_zeroings_repeat_a_value() {
    let shape = Shape { operations: 8, concurrency: 2, zeroing_one_in: 2, unanswered_one_in: 3 };
    assert_agrees(100_000, shape, some_order_explains);
}

#[test]
fn it_agrees_with_the_zones_of_gibbons_and_korach() {
    let shape = Shape { operations: 60, concurrency: 20, zeroing_one_in: 0, unanswered_one_in: 4 };
    assert_agrees(20_000, shape, zones_fit);
}

#[test]
fn a_hundred_thousand_operations_on_64_blocks_take_seconds_at_most() {
    let mut random = Random::seeded(7);
    // What 8 connections with 16 requests each do to 64 blocks, and much more than that.
    for (concurrency, zeroing_one_in) in [(2, 10), (8, 10), (16, 10), (16, 0)] {
        let shape = Shape { operations: 1600, concurrency, zeroing_one_in, unanswered_one_in: 50 };
        let histories: Vec<_> = (0..64).map(|_| true_history(&mut random, shape)).collect();
        let began = Instant::now();
        assert!(histories.iter().all(|operations| violation(operations).unwrap().is_none()));
        let took = began.elapsed();
        println!("concurrency about {concurrency}, zeroing one in {zeroing_one_in}: {took:?}");
        assert!(took < Duration::from_secs(20), "{shape:?} took {took:?}");
    }
}
