//! Callers that write and sync for themselves: see `src/self_service.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod support;

use cairn_model::Lsn;
use cairn_wal::testing::{MemoryDisk, Operation};
use cairn_wal::{Wal, WalConfig, WalError};
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use support::{Life, small, write};

async fn append(wal: &Wal, seq: u64) -> Lsn {
    let permit = wal.reserve(4096).await.unwrap();
    wal.append(permit, write(seq, 1)).unwrap()
}

/// Polls without letting the log's thread, a task of this test's single thread, have a turn.
fn poll<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

async fn life() -> Life {
    Life::start(&MemoryDisk::new(1).at_once(), 1).await.unwrap()
}

#[tokio::test]
async fn a_caller_writes_and_syncs_its_record_without_the_thread() {
    let life = life().await;
    let lsn = append(&life.wal, 1).await;
    let mut written = pin!(life.wal.written(lsn));
    assert!(poll(&mut written).is_pending(), "the task's other requests come first");
    assert!(matches!(poll(&mut written), Poll::Ready(Ok(()))));

    let mut synced = pin!(life.wal.synced(lsn));
    assert!(poll(&mut synced).is_pending());
    assert!(matches!(poll(&mut synced), Poll::Ready(Ok(receipt)) if receipt.durable_through() == lsn));
}

#[tokio::test]
async fn records_at_hand_share_a_frame() {
    let life = life().await;
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
    let life = life().await;
    append(&life.wal, 1).await;
    let last = append(&life.wal, 2).await;
    let mut synced = pin!(life.wal.synced(last));
    assert!(poll(&mut synced).is_pending());
    assert!(poll(&mut synced).is_pending(), "two records in a frame: others would wait for this sync");
    let _ = synced.await.unwrap();
}

#[tokio::test]
async fn a_caller_that_leaves_takes_nothing_with_it() {
    let life = life().await;
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
    let life = life().await;
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

#[tokio::test]
async fn a_failure_in_a_callers_hands_poisons_the_log() {
    for failing in ["write", "sync"] {
        let life = life().await;
        let kept = append(&life.wal, 1).await;
        let _ = life.wal.synced(kept).await.unwrap();
        life.disk.set_fault(move |operation| {
            let fails = match operation {
                Operation::Write { .. } => failing == "write",
                Operation::Sync(_) => failing == "sync",
                _ => false,
            };
            fails.then_some(std::io::ErrorKind::StorageFull)
        });
        let lsn = append(&life.wal, 2).await;
        let mut synced = pin!(life.wal.synced(lsn));
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
