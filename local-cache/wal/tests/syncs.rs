//! Syncs that take long: what goes on beside them, and what waits.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]
#![expect(clippy::disallowed_methods, reason = "tasks of a test end with its runtime")]

mod support;

use cairn_model::Lsn;
use cairn_wal::testing::{MemoryDisk, Operation};
use cairn_wal::{Wal, WalError};
use futures::FutureExt;
use std::io::ErrorKind as Io;
use std::sync::{Arc, Mutex};
use support::{Life, append, data, life_with_fast_syncs, write};
use tokio::task::JoinHandle;

const MIB_IN_BLOCKS: usize = 256;

/// Lets every task run until nothing more happens.
async fn settle() {
    for _ in 0..500 {
        tokio::task::yield_now().await;
    }
}

/// What the log asks of the disk from now on.
fn watch(disk: &MemoryDisk) -> Arc<Mutex<Vec<Operation>>> {
    watch_with(disk, 0)
}

/// The same on a disk whose next sync fails. The kernel tells of it once.
fn watch_failing_once(disk: &MemoryDisk) -> Arc<Mutex<Vec<Operation>>> {
    watch_with(disk, 1)
}

fn watch_with(disk: &MemoryDisk, mut failures: u32) -> Arc<Mutex<Vec<Operation>>> {
    let operations = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&operations);
    disk.set_fault(move |operation| {
        log.lock().unwrap().push(operation.clone());
        let fails = matches!(operation, Operation::Sync(_)) && failures > 0;
        failures -= u32::from(fails);
        fails.then_some(Io::Other)
    });
    operations
}

fn syncs(operations: &Mutex<Vec<Operation>>) -> usize {
    let operations = operations.lock().unwrap();
    operations.iter().filter(|operation| matches!(operation, Operation::Sync(_))).count()
}

/// A task that waits for the durability of a record.
fn wait_for_sync(wal: &Wal, lsn: Lsn) -> JoinHandle<Result<(), WalError>> {
    let wal = wal.clone();
    tokio::spawn(async move { wal.synced(lsn).await.map(drop) })
}

async fn is_written(wal: &Wal, lsn: Lsn) -> bool {
    tokio::select! {
        biased;
        written = wal.written(lsn) => written.is_ok(),
        () = settle() => false,
    }
}

/// A log whose first record is being synced, for as long as syncs are held, and who waits for it.
async fn in_a_sync(disk: MemoryDisk) -> (Life, JoinHandle<Result<(), WalError>>) {
    let life = Life::start(&disk, 1).await.unwrap();
    // The ring's files are made, with syncs of their own.
    settle().await;
    disk.hold_syncs();
    let lsn = append(&life.wal, write(1, 1)).await;
    let first = wait_for_sync(&life.wal, lsn);
    settle().await;
    assert!(!first.is_finished());
    (life, first)
}

#[tokio::test]
async fn writes_are_acknowledged_while_a_sync_takes_its_time() {
    for disk in [MemoryDisk::new(1), MemoryDisk::new(1).at_once()] {
        let (life, first) = in_a_sync(disk).await;
        for seq in 2..20 {
            let lsn = append(&life.wal, write(seq, 1)).await;
            assert!(is_written(&life.wal, lsn).await, "{lsn}");
            assert_eq!(life.wal.read(lsn).await.unwrap(), data(&write(seq, 1)));
        }
        assert!(!first.is_finished());
        life.disk.release_syncs();
        first.await.unwrap().unwrap();
        assert_eq!(life.wal.synced_through(), Lsn::new(1), "the sync began before the others were written");
    }
}

#[tokio::test]
async fn those_who_ask_meanwhile_share_the_next_frame_and_sync() {
    let (life, first) = in_a_sync(MemoryDisk::new(1)).await;
    let operations = watch(&life.disk);
    let mut later = Vec::new();
    for seq in 2..5 {
        let lsn = append(&life.wal, write(seq, 1)).await;
        later.push(wait_for_sync(&life.wal, lsn));
        settle().await;
    }
    assert_eq!(life.wal.written_through(), Lsn::new(1), "they gather");
    assert!(later.iter().all(|waiter| !waiter.is_finished()));
    life.disk.release_syncs();
    first.await.unwrap().unwrap();
    for waiter in later {
        waiter.await.unwrap().unwrap();
    }
    // The sync that was held is noted when it goes on.
    let is_as_expected = matches!(
        operations.lock().unwrap()[..],
        [Operation::Sync(_), Operation::Write { .. }, Operation::Sync(_)]
    );
    assert!(is_as_expected, "{operations:?}");
    let disk = life.kill().await;
    disk.lose_power(0);
    disk.restart();
    assert_eq!(Life::start(&disk, 2).await.unwrap().replayed.len(), 4);
}

#[tokio::test]
async fn what_is_written_during_a_sync_is_not_durable_by_it() {
    let (life, first) = in_a_sync(MemoryDisk::new(1)).await;
    let lsn = append(&life.wal, write(2, 1)).await;
    assert!(is_written(&life.wal, lsn).await);
    life.disk.release_syncs();
    first.await.unwrap().unwrap();
    let disk = life.kill().await;
    disk.lose_power(0);
    disk.restart();
    assert_eq!(Life::start(&disk, 2).await.unwrap().replayed.len(), 1);
}

#[tokio::test]
async fn a_sync_that_fails_beside_the_writer_ends_everything_and_is_not_tried_again() {
    for disk in [MemoryDisk::new(1), MemoryDisk::new(1).at_once()] {
        let (life, first) = in_a_sync(disk).await;
        let lsn = append(&life.wal, write(2, 1)).await;
        assert!(is_written(&life.wal, lsn).await);
        let second = wait_for_sync(&life.wal, lsn);
        settle().await;
        let operations = watch_failing_once(&life.disk);
        life.disk.release_syncs();
        for waiter in [first, second] {
            assert!(matches!(waiter.await.unwrap(), Err(WalError::Poisoned { .. })));
        }
        assert!(matches!(life.wal.written(lsn).await, Err(WalError::Poisoned { .. })));
        assert!(matches!(life.wal.synced_by_caller(lsn).await, Err(WalError::Poisoned { .. })));
        assert!(matches!(life.wal.reserve(4096).await, Err(WalError::Poisoned { .. })));
        assert!(matches!(life.wal.close().await, Err(WalError::Poisoned { .. })));
        assert_eq!(life.wal.synced_through(), Lsn::ZERO);
        assert_eq!(syncs(&operations), 1);
        assert!(life.wal.usage().poisoned.unwrap().contains("sync"));
    }
}

#[tokio::test]
async fn a_file_is_ended_after_the_sync_of_it() {
    let (life, first) = in_a_sync(MemoryDisk::new(1)).await;
    let operations = watch(&life.disk);
    // The test's files are of 4 MiB.
    let mut last = Lsn::ZERO;
    for seq in 2..=6 {
        last = append(&life.wal, write(seq, MIB_IN_BLOCKS)).await;
    }
    assert!(!is_written(&life.wal, last).await, "the next file cannot begin");
    assert_eq!(syncs(&operations), 0);
    life.disk.release_syncs();
    first.await.unwrap().unwrap();
    life.wal.written(last).await.unwrap();
    let operations = operations.lock().unwrap().clone();
    let position = |wanted: &dyn Fn(&Operation) -> bool| operations.iter().position(wanted).unwrap();
    let sync = position(&|operation| matches!(operation, Operation::Sync(_)));
    let last_frame = sync + 1;
    let header = position(&|operation| matches!(operation, Operation::Write { offset: 0, .. }));
    assert!(
        matches!(&operations[last_frame], Operation::Write { length: 4096, .. }) && last_frame < header,
        "{operations:?}"
    );
}

#[tokio::test]
async fn closing_waits_for_the_sync_and_makes_the_rest_durable() {
    let (life, first) = in_a_sync(MemoryDisk::new(1)).await;
    append(&life.wal, write(2, 1)).await;
    let wal = life.wal.clone();
    let closing = tokio::spawn(async move { wal.close().await });
    settle().await;
    assert!(!closing.is_finished());
    life.disk.release_syncs();
    closing.await.unwrap().unwrap();
    first.await.unwrap().unwrap();
    let disk = life.kill().await;
    disk.lose_power(0);
    assert_eq!(Life::start(&disk, 2).await.unwrap().replayed.len(), 2);
}

#[tokio::test]
async fn a_sync_causes_no_other_one() {
    let (life, first) = in_a_sync(MemoryDisk::new(1)).await;
    let lsn = append(&life.wal, write(2, 1)).await;
    assert!(is_written(&life.wal, lsn).await);
    life.disk.release_syncs();
    first.await.unwrap().unwrap();
    settle().await;
    let operations = watch(&life.disk);
    let lsn = append(&life.wal, write(3, 1)).await;
    assert!(is_written(&life.wal, lsn).await);
    settle().await;
    assert_eq!(syncs(&operations), 0, "nobody waits for one");
}

/// What waits for the end of a sync when that fails: a file that is full, and a log that is being closed.
#[tokio::test]
async fn a_sync_that_fails_while_the_writer_waits_for_it_is_the_last_thing_done() {
    for is_closing in [false, true] {
        let (life, first) = in_a_sync(MemoryDisk::new(1)).await;
        let operations = watch_failing_once(&life.disk);
        let mut last = Lsn::ZERO;
        for seq in 2..=6 {
            last = append(&life.wal, write(seq, if is_closing { 1 } else { MIB_IN_BLOCKS })).await;
        }
        let wal = life.wal.clone();
        let waiting = if is_closing {
            tokio::spawn(async move { wal.close().await })
        } else {
            tokio::spawn(async move { wal.written(last).await })
        };
        settle().await;
        assert!(!waiting.is_finished());
        let before = operations.lock().unwrap().len();
        life.disk.release_syncs();
        for waiter in [first, waiting] {
            assert!(matches!(waiter.await.unwrap(), Err(WalError::Poisoned { .. })));
        }
        settle().await;
        let operations = operations.lock().unwrap();
        assert!(
            matches!(operations[before..], [Operation::Sync(_)]),
            "{:?}, closing: {is_closing}",
            &operations[before..]
        );
    }
}

/// Has a sync begin that is left to the syncer, and that nobody waits for any more. Then whoever comes finds a writer that has nothing to do and thinks syncs quick.
async fn with_an_abandoned_sync() -> Life {
    let life = life_with_fast_syncs().await;
    life.disk.hold_syncs();
    // A sync of much is not thought to be quick.
    let mut last = Lsn::ZERO;
    for seq in 1..=FRAMES {
        last = append(&life.wal, write(seq, 1)).await;
        assert!(is_written(&life.wal, last).await);
    }
    let waiting = wait_for_sync(&life.wal, last);
    settle().await;
    waiting.abort();
    assert!(waiting.await.is_err());
    let lsn = append(&life.wal, write(FRAMES + 1, 1)).await;
    assert!(is_written(&life.wal, lsn).await, "the sync is on its way beside this");
    life
}

/// Of two pages each: more than a quick sync covers.
const FRAMES: u64 = 65;

#[tokio::test]
async fn a_caller_leaves_a_sync_that_is_under_way_to_those_who_do_it() {
    let life = with_an_abandoned_sync().await;
    let lsn = append(&life.wal, write(FRAMES + 2, 1)).await;
    let mut synced = std::pin::pin!(life.wal.synced_by_caller(lsn));
    for _ in 0..10 {
        assert!(synced.as_mut().now_or_never().is_none());
        settle().await;
    }
    assert_eq!(life.wal.usage().poisoned, None);
    life.disk.release_syncs();
    assert!(synced.await.unwrap().durable_through() >= lsn);
}

#[tokio::test]
async fn a_caller_does_not_sync_after_a_failure_beside_it() {
    let life = with_an_abandoned_sync().await;
    let operations = watch_failing_once(&life.disk);
    life.disk.release_syncs();
    settle().await;
    let before = operations.lock().unwrap().len();
    assert_eq!(syncs(&operations), 1);
    assert!(matches!(life.wal.synced_by_caller(Lsn::new(21)).await, Err(WalError::Poisoned { .. })));
    assert_eq!(operations.lock().unwrap().len(), before);
    assert_eq!(life.wal.synced_through(), Lsn::new(20));
}

#[tokio::test]
async fn whoever_waits_for_a_sync_learns_that_its_thread_is_gone() {
    let (life, first) = in_a_sync(MemoryDisk::new(1)).await;
    life.disk.set_fault(|operation| {
        assert!(!matches!(operation, Operation::Sync(_)), "the thread that syncs is to end here");
        None
    });
    life.disk.release_syncs();
    assert!(matches!(first.await.unwrap(), Err(WalError::Poisoned { .. })));
    assert!(life.wal.usage().poisoned.unwrap().contains("syncs ended unasked"));
    assert!(matches!(life.wal.close().await, Err(WalError::Poisoned { .. })));
}
