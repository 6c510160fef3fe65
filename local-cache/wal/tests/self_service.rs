//! Callers that write and sync for themselves: see `src/self_service.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod support;

use cairn_model::{Lsn, Ports};
use cairn_wal::testing::{Dice, MemoryDisk, Operation};
use cairn_wal::{FileDisk, Wal, WalConfig, WalError};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use support::{Life, identity, key, life_at_once, life_with_fast_syncs, small, write};

async fn append(wal: &Wal, seq: u64) -> Lsn {
    let permit = wal.reserve(4096).await.unwrap();
    wal.append(permit, write(seq, 1)).unwrap()
}

/// Polls without letting the log's thread, a task of this test's single thread, have a turn.
fn poll<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_caller_writes_and_syncs_its_record_without_the_thread() {
    let life = life_with_fast_syncs().await;
    let lsn = append(&life.wal, 1).await;
    let mut written = pin!(life.wal.written(lsn));
    assert!(poll(&mut written).is_pending(), "the task's other requests come first");
    assert!(matches!(poll(&mut written), Poll::Ready(Ok(()))));

    let mut synced = pin!(life.wal.synced_by_caller(lsn));
    assert!(poll(&mut synced).is_pending());
    assert!(matches!(poll(&mut synced), Poll::Ready(Ok(receipt)) if receipt.durable_through() == lsn));
}

#[tokio::test]
async fn the_thread_finds_out_how_long_a_sync_takes() {
    let life = life_at_once().await;
    let lsn = append(&life.wal, 1).await;
    let mut synced = pin!(life.wal.synced_by_caller(lsn));
    assert!(poll(&mut synced).is_pending());
    assert!(poll(&mut synced).is_pending());
    let _ = synced.await.unwrap();
}

#[tokio::test]
async fn what_was_synced_meanwhile_is_not_synced_again() {
    let life = life_with_fast_syncs().await;
    let lsn = append(&life.wal, 1).await;
    let mut late = pin!(life.wal.synced_by_caller(lsn));
    assert!(poll(&mut late).is_pending());
    let _ = life.wal.synced(lsn).await.unwrap();
    append(&life.wal, 2).await;
    let before = life.disk.changes();
    assert!(poll(&mut late).is_ready());
    assert_eq!(life.disk.changes(), before);
}

#[tokio::test]
async fn records_at_hand_share_a_frame() {
    let life = life_at_once().await;
    let mut last = Lsn::ZERO;
    for seq in 1..=8 {
        last = append(&life.wal, seq).await;
    }
    let before = life.disk.changes();
    let mut written = pin!(life.wal.written(last));
    assert!(poll(&mut written).is_pending());
    assert!(poll(&mut written).is_ready());
    assert_eq!(life.disk.changes(), before + 1);
}

#[tokio::test]
async fn a_sync_beside_other_requests_is_left_to_the_thread() {
    let life = life_with_fast_syncs().await;
    append(&life.wal, 1).await;
    let last = append(&life.wal, 2).await;
    let mut synced = pin!(life.wal.synced_by_caller(last));
    assert!(poll(&mut synced).is_pending());
    assert!(poll(&mut synced).is_pending(), "two records in a frame: others would wait for this sync");
    let _ = synced.await.unwrap();
}

#[tokio::test]
async fn a_caller_that_leaves_takes_nothing_with_it() {
    let life = life_at_once().await;
    let left = append(&life.wal, 1).await;
    {
        let mut written = pin!(life.wal.written(left));
        assert!(poll(&mut written).is_pending());
    }
    let next = append(&life.wal, 2).await;
    let _ = life.wal.synced(next).await.unwrap();
    assert!(life.wal.written_through() >= left);
    life.wal.close().await.unwrap();
}

#[tokio::test]
async fn closing_writes_what_nobody_waited_for() {
    let life = life_at_once().await;
    append(&life.wal, 1).await;
    life.wal.close().await.unwrap();
    let again = Life::start(&life.disk, 2).await.unwrap();
    assert_eq!(again.replayed.len(), 1);
}

#[tokio::test]
async fn whoever_waits_for_room_gets_the_queue_written() {
    let queue_bytes = 4 << 20;
    let config = WalConfig { queue_bytes, ..small() };
    for disk in [MemoryDisk::new(1), MemoryDisk::new(1).at_once()] {
        let life = Life::start_with(config.clone(), &disk, 1).await.unwrap();
        for seq in 1..=queue_bytes / 4096 {
            append(&life.wal, seq).await;
        }
        assert!(life.wal.written_through() > Lsn::ZERO);
    }
}

/// Callers on real threads and real files beside the log's thread, some of whom leave: everything acknowledged is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_and_the_thread_share_the_writer() {
    let directory = tempfile::tempdir().unwrap();
    // Room for every record in a frame of its own.
    let config = WalConfig { capacity_bytes: 64 << 20, ..small() };
    let open = async || {
        let disk = Arc::new(FileDisk::open(directory.path()).unwrap());
        Wal::open(config.clone(), identity(), &key(), disk, Ports::system()).await
    };
    let wal = open().await.unwrap().finish().await.unwrap();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..8 {
        let wal = wal.clone();
        callers.spawn(async move {
            let dice = Dice::new(caller);
            let mut acknowledged = Vec::new();
            for step in 0..400 {
                let seq = caller * 1000 + step;
                let lsn = append(&wal, seq).await;
                match dice.below(6) {
                    0 => drop(wal.synced(lsn).await.unwrap()),
                    1 => drop(wal.synced_by_caller(lsn).await.unwrap()),
                    2 => {
                        let mut left = Box::pin(wal.synced_by_caller(lsn));
                        for _ in 0..dice.below(3) {
                            let _ = poll(&mut left.as_mut());
                        }
                        continue;
                    }
                    3 => continue,
                    _ => wal.written(lsn).await.unwrap(),
                }
                acknowledged.push((lsn, seq));
            }
            acknowledged
        });
    }
    let acknowledged: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
    wal.close().await.unwrap();
    drop(wal);
    let mut recovery = open().await.unwrap();
    let replayed = support::replay(&mut recovery).await.unwrap();
    assert_eq!(replayed.len(), 3200, "closing writes the records that were abandoned as well");
    for (lsn, seq) in acknowledged {
        assert_eq!(replayed[usize::try_from(lsn.get()).unwrap() - 1].1.seq.get(), seq);
    }
}

#[tokio::test]
async fn a_failure_in_a_callers_hands_poisons_the_log() {
    for failing in ["write", "sync"] {
        let life = life_with_fast_syncs().await;
        life.disk.set_fault(move |operation| {
            let fails = match operation {
                Operation::Write { .. } => failing == "write",
                Operation::Sync(_) => failing == "sync",
                _ => false,
            };
            fails.then_some(std::io::ErrorKind::StorageFull)
        });
        let lsn = append(&life.wal, 2).await;
        let mut synced = pin!(life.wal.synced_by_caller(lsn));
        assert!(poll(&mut synced).is_pending());
        assert!(matches!(poll(&mut synced), Poll::Ready(Err(WalError::Poisoned { .. }))), "{failing}");
        assert!(life.wal.usage().poisoned.is_some());
        life.disk.set_fault(|_| None);
        // What failed once is not tried again: the kernel may call pages clean that the device does not have.
        assert!(matches!(life.wal.synced(lsn).await, Err(WalError::Poisoned { .. })), "{failing}");
        assert!(matches!(life.wal.reserve(4096).await, Err(WalError::Poisoned { .. })), "{failing}");
        assert!(matches!(life.wal.close().await, Err(WalError::Poisoned { .. })), "{failing}");
    }
}
