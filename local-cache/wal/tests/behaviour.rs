//! What the log promises, one behaviour a test, on a disk in memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod support;

use cairn_model::crypto::SecretKey;
use cairn_model::{ErrorKind, GatewayId, Kinded, Lsn};
use cairn_wal::fuzzing::{BuiltFile, FilePlan, FramePlan, build_file};
use cairn_wal::testing::{MemoryDisk, Operation, ports};
use cairn_wal::{Disk, Wal, WalConfig, WalError, WalIdentity};
use futures::FutureExt;
use std::io::ErrorKind as Io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{Life, append, append_synced, data, discard, identity, key, small, write};

const PAGE: usize = 4096;

async fn open_again(disk: &MemoryDisk) -> Result<Life, WalError> {
    Life::start(disk, 99).await
}

fn lsns(life: &Life) -> Vec<u64> {
    life.replayed.iter().map(|(lsn, _)| lsn.get()).collect()
}

/// A log with `frames` durable frames of one record each, each sealed after the one before was durable.
async fn synced_one_by_one(frames: u64) -> MemoryDisk {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    for seq in 1..=frames {
        append_synced(&life.wal, seq, seq).await;
    }
    life.kill().await
}

/// Offset of the frame with record `n` when each frame holds one record of one block.
fn frame_at(n: usize) -> usize {
    PAGE + (n - 1) * 2 * PAGE
}

/// Lets every task run until nothing more happens.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

fn count_syncs(disk: &MemoryDisk) -> Arc<AtomicUsize> {
    let syncs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&syncs);
    disk.set_fault(move |operation| {
        if let Operation::Sync(_) = operation {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        None
    });
    syncs
}

#[tokio::test]
async fn lsns_follow_the_order_of_appends_and_go_on_after_a_restart() {
    let disk = synced_one_by_one(5).await;
    let life = open_again(&disk).await.unwrap();
    assert_eq!(lsns(&life), [1, 2, 3, 4, 5]);
    assert_eq!(append(&life.wal, write(6, 1)).await, Lsn::new(6));
}

#[tokio::test]
async fn a_written_record_survives_the_end_of_the_process() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    let lsn = append(&life.wal, write(1, 3)).await;
    life.wal.written(lsn).await.unwrap();
    let life = open_again(&life.kill().await).await.unwrap();
    assert_eq!(life.replayed, [(lsn, write(1, 3))]);
}

#[tokio::test]
async fn a_discard_is_replayed_like_a_write() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    let lsn = append(&life.wal, discard(1, 1 << 34)).await;
    life.wal.written(lsn).await.unwrap();
    let life = open_again(&life.kill().await).await.unwrap();
    assert_eq!(life.replayed, [(lsn, discard(1, 1 << 34))]);
}

#[tokio::test]
async fn nothing_is_synced_while_nobody_waits_for_it() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    settle().await;
    let syncs = count_syncs(&disk);
    for seq in 1..=20 {
        let lsn = append(&life.wal, write(seq, 1)).await;
        life.wal.written(lsn).await.unwrap();
    }
    assert_eq!(syncs.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn one_sync_serves_all_who_wait() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    while life.wal.usage().allocated_bytes < small().capacity_bytes {
        settle().await;
    }
    let syncs = count_syncs(&disk);
    let mut waits = Vec::new();
    for seq in 1..=50 {
        let lsn = append(&life.wal, write(seq, 1)).await;
        let wal = life.wal.clone();
        waits.push(async move { wal.synced(lsn).await });
    }
    for receipt in futures::future::join_all(waits).await {
        assert_eq!(receipt.unwrap().durable_through(), Lsn::new(50));
    }
    assert_eq!(syncs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_wait_that_is_given_up_causes_no_sync() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    settle().await;
    let syncs = count_syncs(&disk);
    let lsn = append(&life.wal, write(1, 1)).await;
    assert!(life.wal.synced(lsn).now_or_never().is_none());
    life.wal.written(lsn).await.unwrap();
    settle().await;
    assert_eq!(syncs.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn waiting_for_a_record_that_was_never_appended_is_an_error() {
    let life = Life::start(&MemoryDisk::new(1), 1).await.unwrap();
    assert!(matches!(life.wal.synced(Lsn::new(1)).await, Err(WalError::NotAppended { .. })));
    assert!(matches!(life.wal.written(Lsn::new(7)).await, Err(WalError::NotAppended { .. })));
}

#[tokio::test]
async fn records_are_read_back_from_the_log() {
    let life = Life::start(&MemoryDisk::new(1), 1).await.unwrap();
    for seq in 1..=60 {
        append(
            &life.wal,
            if seq == 30 { discard(30, 5) } else { write(seq, 1 + usize::try_from(seq % 7).unwrap()) },
        )
        .await;
    }
    for seq in (1..=60).rev().filter(|&seq| seq != 30) {
        let expected = data(&write(seq, 1 + usize::try_from(seq % 7).unwrap()));
        assert_eq!(life.wal.read(Lsn::new(seq)).await.unwrap(), expected);
    }
    assert!(matches!(life.wal.read(Lsn::new(30)).await, Err(WalError::NoData { .. })));
    let many = life.wal.read_many(vec![Lsn::new(2), Lsn::new(1), Lsn::new(59)]).await.unwrap();
    assert_eq!(many, [data(&write(2, 3)), data(&write(1, 2)), data(&write(59, 4))]);
}

#[tokio::test]
async fn reading_a_freed_record_says_so_whatever_stands_in_its_place() {
    let life = Life::start(&MemoryDisk::new(1), 1).await.unwrap();
    append_synced(&life.wal, 1, 3).await;
    life.wal.free_through(Lsn::new(2));
    assert!(matches!(life.wal.read(Lsn::new(2)).await, Err(WalError::Freed { .. })));
    assert_eq!(life.wal.read(Lsn::new(3)).await.unwrap(), data(&write(3, 1)));
}

#[tokio::test]
async fn a_damaged_record_is_never_returned() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    append_synced(&life.wal, 1, 1).await;
    disk.tamper("000000.wal", |bytes| bytes[frame_at(1) + 100] ^= 1);
    let error = life.wal.read(Lsn::new(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn writers_wait_while_the_log_is_full_and_go_on_in_order_when_records_are_freed() {
    let life = Life::start(&MemoryDisk::new(1), 1).await.unwrap();
    let mut seq = 0;
    loop {
        settle().await;
        let Some(permit) = life.wal.reserve(1 << 20).now_or_never() else { break };
        seq += 1;
        life.wal.append(permit.unwrap(), write(seq, 256)).unwrap();
        life.wal.written(Lsn::new(seq)).await.unwrap();
    }
    assert!(seq >= 8, "only {seq} of 16 MiB were taken");
    let usage = life.wal.usage();
    assert!(usage.capacity_bytes - usage.used_bytes < 2 << 20);
    let (big, small) = (life.wal.reserve(1 << 20), life.wal.reserve(4096));
    futures::pin_mut!(big, small);
    assert!(big.as_mut().now_or_never().is_none());
    assert!(small.as_mut().now_or_never().is_none(), "overtook the one that came first");
    life.wal.free_through(Lsn::new(seq / 2));
    let (first, second) = futures::join!(big, small);
    life.wal.append(first.unwrap(), write(seq + 1, 256)).unwrap();
    life.wal.append(second.unwrap(), write(seq + 2, 1)).unwrap();
    life.wal.written(Lsn::new(seq + 2)).await.unwrap();
}

#[tokio::test]
async fn the_queue_to_the_writer_is_bounded() {
    let config = WalConfig { queue_bytes: 4 << 20, ..small() };
    let disk = MemoryDisk::new(1);
    let life = Life::start_with(config, &disk, 1).await.unwrap();
    while life.wal.usage().allocated_bytes < small().capacity_bytes {
        settle().await;
    }
    // No task runs in between, so nothing leaves the queue.
    let mut taken = 0;
    while let Some(permit) = life.wal.reserve(1 << 20).now_or_never() {
        taken += 1;
        life.wal.append(permit.unwrap(), write(taken, 256)).unwrap();
    }
    assert_eq!(taken, 3);
    assert!(life.wal.usage().queued_bytes > 3 << 20);
    drop(life.wal.reserve(1 << 20).await.unwrap());
}

#[tokio::test]
async fn room_that_was_reserved_and_not_used_comes_back() {
    let life = Life::start(&MemoryDisk::new(1), 1).await.unwrap();
    let before = life.wal.usage().used_bytes;
    let permit = life.wal.reserve(1 << 20).await.unwrap();
    assert!(life.wal.usage().used_bytes > before);
    drop(permit);
    assert_eq!(life.wal.usage().used_bytes, before);
}

#[tokio::test]
async fn a_record_larger_than_its_permit_is_refused() {
    let life = Life::start(&MemoryDisk::new(1), 1).await.unwrap();
    let permit = life.wal.reserve(4096).await.unwrap();
    assert!(matches!(life.wal.append(permit, write(1, 2)), Err(WalError::InvalidRecord { .. })));
    assert!(matches!(life.wal.reserve((1 << 20) + 1).await, Err(WalError::InvalidRecord { .. })));
    assert_eq!(append(&life.wal, write(1, 1)).await, Lsn::new(1));
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    append_synced(&life.wal, 1, 1).await;
    disk.set_fault(|operation| matches!(operation, Operation::Sync(_)).then_some(Io::Other));
    let lsn = append(&life.wal, write(2, 1)).await;
    let (unsynced, full) = (life.wal.synced(lsn).await, life.wal.reserve(4096).await);
    disk.set_fault(|_| None);
    assert!(matches!(unsynced, Err(WalError::Poisoned { .. })));
    assert!(matches!(full, Err(WalError::Poisoned { .. })));
    assert!(matches!(life.wal.synced(lsn).await, Err(WalError::Poisoned { .. })));
    assert!(matches!(life.wal.written(Lsn::new(1)).await, Err(WalError::Poisoned { .. })));
    assert!(matches!(life.wal.close().await, Err(WalError::Poisoned { .. })));
    assert!(life.wal.usage().poisoned.unwrap().contains("sync"));
}

#[tokio::test]
async fn pages_that_a_failed_sync_left_in_the_cache_are_not_recovered_as_durable() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    append_synced(&life.wal, 1, 1).await;
    disk.set_fault(|operation| matches!(operation, Operation::Sync(_)).then_some(Io::Other));
    let lsn = append(&life.wal, write(2, 1)).await;
    assert!(life.wal.synced(lsn).await.is_err());
    let disk = life.kill().await;
    disk.restart();
    let life = open_again(&disk).await.unwrap();
    assert_eq!(lsns(&life), [1]);
}

#[tokio::test]
async fn after_a_failed_write_nothing_is_acknowledged_any_more() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    append_synced(&life.wal, 1, 1).await;
    disk.set_fault(|operation| matches!(operation, Operation::Write { .. }).then_some(Io::Other));
    let lsn = append(&life.wal, write(2, 1)).await;
    assert!(matches!(life.wal.written(lsn).await, Err(WalError::Poisoned { .. })));
    let permit = life.wal.reserve(4096).await;
    assert!(matches!(permit, Err(WalError::Poisoned { .. })));
}

#[tokio::test]
async fn a_writer_that_vanishes_leaves_nobody_waiting() {
    let life = Life::start(&MemoryDisk::new(1), 1).await.unwrap();
    let lsn = append(&life.wal, write(1, 1)).await;
    life.spawn.kill().await;
    assert!(matches!(life.wal.written(lsn).await, Err(WalError::Poisoned { .. })));
}

#[tokio::test]
async fn closing_makes_everything_durable_and_refuses_more() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    for seq in 1..=30 {
        append(&life.wal, write(seq, 1)).await;
    }
    let permit = life.wal.reserve(4096).await.unwrap();
    life.wal.close().await.unwrap();
    assert!(matches!(life.wal.append(permit, write(31, 1)), Err(WalError::Closed)));
    assert!(matches!(life.wal.reserve(4096).await, Err(WalError::Closed)));
    assert_eq!(life.wal.synced(Lsn::new(30)).await.unwrap().durable_through(), Lsn::new(30));
    disk.lose_power(0);
    assert_eq!(open_again(&disk).await.unwrap().replayed.len(), 30);
}

#[tokio::test]
async fn records_freed_before_the_log_was_closed_are_not_replayed() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    append_synced(&life.wal, 1, 9).await;
    life.wal.free_through(Lsn::new(6));
    life.wal.close().await.unwrap();
    let life = open_again(&disk).await.unwrap();
    assert_eq!(lsns(&life), [7, 8, 9]);
    assert_eq!(life.wal.usage().freed_through, Lsn::new(6));
}

#[tokio::test]
async fn a_torn_tail_is_discarded_and_never_comes_back() {
    let disk = synced_one_by_one(3).await;
    let life = open_again(&disk).await.unwrap();
    for seq in 4..=6 {
        let lsn = append(&life.wal, write(seq, 1)).await;
        life.wal.written(lsn).await.unwrap();
    }
    let disk = life.kill().await;
    let newest = disk.names().into_iter().find(|name| disk.contents(name)[56] == 2).unwrap();
    let torn = disk.contents(&newest);
    // Record 4 is lost; 5 and 6, which nobody synced, are there.
    disk.tamper(&newest, |bytes| bytes[frame_at(1)..frame_at(2)].fill(0));
    let life = open_again(&disk).await.unwrap();
    assert_eq!(lsns(&life), [1, 2, 3]);
    append_synced(&life.wal, 14, 14).await;
    let disk = life.kill().await;
    // Even if the lost frame turned up again.
    disk.tamper(&newest, |bytes| *bytes = torn);
    let life = open_again(&disk).await.unwrap();
    let last = life.replayed.last().unwrap();
    assert_eq!((lsns(&life), &last.1), (vec![1, 2, 3, 4], &write(14, 1)));
}

#[tokio::test]
async fn freed_records_lost_with_the_tail_do_not_hide_new_ones() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    append_synced(&life.wal, 1, 3).await;
    for seq in 4..=6 {
        let lsn = append(&life.wal, write(seq, 1)).await;
        life.wal.written(lsn).await.unwrap();
        life.wal.free_through(Lsn::new(4));
    }
    let disk = life.kill().await;
    // The frame of records 1 to 3 may be one or more; records 4 and 5 stand two frames before the end.
    let file = disk.contents("000000.wal");
    let frames: Vec<_> = (1..20).map(|page| page * PAGE).filter(|&at| &file[at..at + 4] == b"CWFR").collect();
    let lost = frames[frames.len() - 3];
    disk.tamper("000000.wal", |bytes| bytes[lost..lost + 4 * PAGE].fill(0));
    let life = open_again(&disk).await.unwrap();
    assert!(life.replayed.is_empty());
    let lsn = append(&life.wal, write(50, 1)).await;
    life.wal.written(lsn).await.unwrap();
    let life = open_again(&life.kill().await).await.unwrap();
    assert_eq!(life.replayed, [(lsn, write(50, 1))]);
}

#[tokio::test]
async fn damage_to_freed_records_hides_nothing_behind_them() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    for seq in 1..=10 {
        append_synced(&life.wal, seq, seq).await;
        life.wal.free_through(Lsn::new(seq.min(5)));
    }
    let disk = life.kill().await;
    // The epoch is at byte 8: two of them seem to be of a later use of the file.
    for damaged in [frame_at(1) + 9, frame_at(2), frame_at(3) + 15, frame_at(4) + 100, frame_at(5) + 8] {
        disk.tamper("000000.wal", |bytes| bytes[damaged] ^= 1);
    }
    let needed: Vec<_> = (6..=10).map(|seq| (Lsn::new(seq), write(seq, 1))).collect();
    // In the newest file, and in one before it.
    for _ in 0..2 {
        let life = open_again(&disk).await.unwrap();
        assert_eq!(life.replayed, needed);
        for (lsn, record) in &needed {
            assert_eq!(life.wal.read(*lsn).await.unwrap(), data(record));
        }
        life.kill().await;
    }
    disk.tamper("000000.wal", |bytes| bytes[frame_at(6) + 100] ^= 1);
    assert!(matches!(open_again(&disk).await.err().unwrap(), WalError::Corrupt { .. }));
}

#[tokio::test]
async fn damage_before_a_later_durable_frame_stops_recovery_and_names_the_place() {
    let disk = synced_one_by_one(10).await;
    for damage in [frame_at(4), frame_at(4) + 8, frame_at(4) + 64, frame_at(4) + 4000] {
        let before = disk.contents("000000.wal");
        disk.tamper("000000.wal", |bytes| bytes[damage] ^= 0x10);
        match open_again(&disk).await.err().unwrap() {
            WalError::Corrupt { file, offset, .. } => {
                assert_eq!((file.as_str(), offset), ("000000.wal", frame_at(4) as u64));
            }
            other => panic!("{other}"),
        }
        disk.tamper("000000.wal", |bytes| *bytes = before);
    }
    assert_eq!(open_again(&disk).await.unwrap().replayed.len(), 10);
}

#[tokio::test]
async fn a_damaged_last_frame_is_taken_for_a_torn_tail() {
    let disk = synced_one_by_one(10).await;
    disk.tamper("000000.wal", |bytes| bytes[frame_at(10) + 70] ^= 1);
    assert_eq!(open_again(&disk).await.unwrap().replayed.len(), 9);
}

#[tokio::test]
async fn damage_in_a_file_before_the_newest_is_corruption() {
    let disk = synced_one_by_one(10).await;
    open_again(&disk).await.unwrap().kill().await;
    disk.tamper("000000.wal", |bytes| bytes[frame_at(10) + 70] ^= 1);
    assert!(matches!(open_again(&disk).await.err().unwrap(), WalError::Corrupt { .. }));
}

#[tokio::test]
async fn a_damaged_header_over_frames_is_corruption() {
    let disk = synced_one_by_one(2).await;
    disk.tamper("000000.wal", |bytes| bytes[60] ^= 1);
    match open_again(&disk).await.err().unwrap() {
        WalError::Corrupt { file, offset: 0, .. } => assert_eq!(file, "000000.wal"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_header_that_reads_as_zeros_over_frames_is_corruption() {
    let disk = synced_one_by_one(2).await;
    open_again(&disk).await.unwrap().kill().await;
    let life = open_again(&disk).await.unwrap();
    append_synced(&life.wal, 3, 3).await;
    let disk = life.kill().await;
    let newest = disk.names().into_iter().max_by_key(|name| disk.contents(name)[56]).unwrap();
    disk.tamper(&newest, |bytes| bytes[..PAGE].fill(0));
    match open_again(&disk).await.err().expect("a durable record would be lost in silence") {
        WalError::Corrupt { file, offset: 0, .. } => assert_eq!(file, newest),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_header_in_the_place_of_another_is_corruption() {
    let disk = synced_one_by_one(2).await;
    let life = open_again(&disk).await.unwrap();
    append_synced(&life.wal, 3, 3).await;
    let disk = life.kill().await;
    let names = disk.names();
    let of_use = |epoch: u8| names.iter().find(|name| disk.contents(name)[56] == epoch).unwrap().as_str();
    let (older, newest) = (of_use(1), of_use(2));
    let sound = [older, newest].map(|name| (name, disk.contents(name)));
    for (from, to) in [(older, newest), (newest, older)] {
        let header = disk.contents(from)[..PAGE].to_vec();
        disk.tamper(to, |bytes| bytes[..PAGE].copy_from_slice(&header));
        // Whether the header is still where it was from makes no difference, nor whether there are frames.
        for damage in
            [|_: &mut Vec<u8>| {}, |bytes: &mut Vec<u8>| bytes[60] ^= 1, |bytes: &mut Vec<u8>| bytes.fill(0)]
        {
            disk.tamper(from, damage);
            match open_again(&disk).await.err().expect("durable records would be lost in silence") {
                WalError::Corrupt { file, offset: 0, .. } => assert_eq!(file, to),
                other => panic!("{other}"),
            }
        }
        for (name, bytes) in &sound {
            disk.tamper(name, |now| now.clone_from(bytes));
        }
    }
    assert_eq!(lsns(&open_again(&disk).await.unwrap()), [1, 2, 3]);
}

/// Two files with a durable record in each frame, their headers as early versions wrote them, without the file's number.
async fn early_log() -> (MemoryDisk, [BuiltFile; 2]) {
    let frame = |lsn: u64| FramePlan {
        records: vec![write(lsn, 1)],
        synced_through: lsn - 1,
        freed_through: 0,
        last: false,
    };
    let file = |number: u32, first_lsn: u64| {
        build_file(&FilePlan {
            number,
            says_number: false,
            epoch: u64::from(number) + 1,
            previous_epoch: number.into(),
            first_lsn,
            synced_through: first_lsn - 1,
            freed_through: 0,
            frames: (first_lsn..first_lsn + 3).map(frame).collect(),
            pages_free: 2,
        })
    };
    let files = [file(0, 1), file(1, 4)];
    let disk = MemoryDisk::new(1);
    for file in &files {
        disk.create(&file.name).await.unwrap();
        disk.tamper(&file.name, |bytes| bytes.clone_from(&file.bytes));
    }
    (disk, files)
}

/// The lsns that recovery yields, without starting a new file.
async fn recover_early(disk: &MemoryDisk) -> Result<Vec<u64>, WalError> {
    let (ports, _spawn) = ports(1);
    let disk = Arc::new(disk.clone());
    let whose = cairn_wal::fuzzing::identity();
    let mut recovery = Wal::open(small(), whose, &cairn_wal::fuzzing::key(), disk, ports).await?;
    Ok(support::replay(&mut recovery).await?.into_iter().map(|(lsn, _)| lsn.get()).collect())
}

#[tokio::test]
async fn headers_that_do_not_say_their_file_are_read() {
    let (disk, _) = early_log().await;
    assert_eq!(recover_early(&disk).await.unwrap(), [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn a_header_over_the_frames_of_a_later_use_is_corruption() {
    // The frames tell, also where nothing is left of the file that the header is from.
    for (first_frame_is_there, older_is_there) in [(true, true), (false, true), (true, false), (false, false)]
    {
        let (disk, [older, newest]) = early_log().await;
        disk.tamper(&older.name, |bytes| if older_is_there { bytes[60] ^= 1 } else { bytes.fill(0) });
        disk.tamper(&newest.name, |bytes| {
            bytes[..PAGE].copy_from_slice(&older.bytes[..PAGE]);
            if !first_frame_is_there {
                bytes[newest.frames[0].clone()].fill(0);
            }
        });
        match recover_early(&disk).await.expect_err("durable records would be lost in silence") {
            WalError::Corrupt { offset: 0, .. } => {}
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn frames_of_the_newest_use_in_a_file_without_a_header_are_corruption() {
    let (disk, [older, newest]) = early_log().await;
    // The header of the older one stands over nothing, its own place is damaged, and the newest one's is lost.
    disk.tamper(&older.name, |bytes| bytes[60] ^= 1);
    disk.tamper(&newest.name, |bytes| {
        bytes.fill(0);
        bytes[..PAGE].copy_from_slice(&older.bytes[..PAGE]);
    });
    match recover_early(&disk).await.expect_err("durable records would be lost in silence") {
        WalError::Corrupt { file, offset: 0, .. } => assert_eq!(file, older.name),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_header_of_an_earlier_use_that_came_back_is_corruption() {
    let config = WalConfig { capacity_bytes: 8 << 20, ..small() };
    let disk = MemoryDisk::new(1);
    let life = Life::start_with(config.clone(), &disk, 1).await.unwrap();
    let earlier = disk.contents("000000.wal")[..PAGE].to_vec();
    let mut lsn = Lsn::ZERO;
    while disk.contents("000000.wal")[..PAGE] == earlier {
        life.wal.free_through(lsn);
        lsn = append(&life.wal, write(lsn.get() + 1, 256)).await;
        assert!(life.wal.synced(lsn).await.unwrap().durable_through() >= lsn);
    }
    let disk = life.kill().await;
    disk.tamper("000000.wal", |bytes| bytes[..PAGE].copy_from_slice(&earlier));
    let opened = Life::start_with(config, &disk, 2).await;
    match opened.err().expect("a durable record would be lost in silence") {
        WalError::Corrupt { file, offset: 0, .. } => assert_eq!(file, "000000.wal"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_file_missing_from_the_middle_is_noticed() {
    let disk = synced_one_by_one(2).await;
    for seq in 3..5 {
        let life = open_again(&disk).await.unwrap();
        append_synced(&life.wal, seq, seq).await;
        life.kill().await;
    }
    let middle = disk.names().into_iter().find(|name| disk.contents(name)[56] == 2).unwrap();
    disk.delete(&middle);
    assert!(matches!(open_again(&disk).await.err().unwrap(), WalError::MissingFile { epoch: 2, .. }));
}

#[tokio::test]
async fn a_file_that_lost_its_end_is_noticed() {
    let disk = synced_one_by_one(2).await;
    disk.tamper("000000.wal", |bytes| bytes.truncate(1 << 20));
    assert!(matches!(open_again(&disk).await.err().unwrap(), WalError::Corrupt { .. }));
}

#[tokio::test]
async fn a_torn_header_of_a_file_used_again_counts_as_free() {
    let config = WalConfig { capacity_bytes: 8 << 20, ..small() };
    let disk = MemoryDisk::new(1);
    let life = Life::start_with(config.clone(), &disk, 1).await.unwrap();
    for seq in 1..=6 {
        let lsn = append(&life.wal, write(seq, 256)).await;
        life.wal.written(lsn).await.unwrap();
        life.wal.free_through(lsn.min(Lsn::new(3)));
    }
    disk.set_fault(|operation| match operation {
        Operation::Write { file, offset: 0, .. } if file == "000000.wal" => Some(Io::Other),
        _ => None,
    });
    let lsn = append(&life.wal, write(7, 256)).await;
    assert!(life.wal.written(lsn).await.is_err(), "the log did not come round");
    let disk = life.kill().await;
    disk.restart();
    disk.lose_power(0);
    disk.tamper("000000.wal", |bytes| bytes[..512].fill(7));
    let life = Life::start_with(config, &disk, 2).await.unwrap();
    assert_eq!(lsns(&life), [4, 5, 6]);
}

#[tokio::test]
async fn a_header_is_durable_before_the_first_frame_of_its_file_is_written() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    let operations = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&operations);
    disk.set_fault(move |operation| {
        log.lock().unwrap().push(operation.clone());
        None
    });
    for seq in 1..=9 {
        let lsn = append(&life.wal, write(seq, 256)).await;
        life.wal.written(lsn).await.unwrap();
        life.wal.free_through(lsn);
    }
    let operations = operations.lock().unwrap();
    let is_header =
        |operation: &&Operation| matches!(operation, Operation::Write { offset: 0, length: PAGE, .. });
    let headers: Vec<_> = operations.iter().filter(is_header).collect();
    assert!(headers.len() >= 2, "{headers:?}");
    for header in headers {
        let Operation::Write { file: name, .. } = header else { unreachable!() };
        let after = operations.iter().skip_while(|operation| operation != &header).skip(1);
        let next = after.into_iter().find(|operation| match operation {
            Operation::Write { file, .. } | Operation::Sync(file) => file == name,
            _ => false,
        });
        assert_eq!(next, Some(&Operation::Sync(name.clone())));
    }
}

#[tokio::test]
async fn the_wrong_key_is_told_apart_from_damage() {
    let disk = synced_one_by_one(2).await;
    let other = SecretKey::from_bytes([9; 32]);
    let opened = Wal::open(small(), identity(), &other, Arc::new(disk), ports(1).0).await;
    assert!(matches!(opened.err().unwrap(), WalError::WrongKey { .. }));
}

#[tokio::test]
async fn the_log_of_another_gateway_is_refused() {
    let disk = synced_one_by_one(2).await;
    let other = WalIdentity { gateway: GatewayId::from_bytes([8; 16]), ..identity() };
    let opened = Wal::open(small(), other, &key(), Arc::new(disk), ports(1).0).await;
    assert!(matches!(opened.err().unwrap(), WalError::WrongIdentity { .. }));
}

#[tokio::test]
async fn the_log_of_a_newer_version_is_refused() {
    let disk = synced_one_by_one(2).await;
    disk.tamper("000000.wal", |bytes| {
        bytes[8] = 2;
        let checksum = blake3::hash(&bytes[..480]);
        bytes[480..512].copy_from_slice(checksum.as_bytes());
    });
    assert!(matches!(open_again(&disk).await.err().unwrap(), WalError::NewerVersion { .. }));
}

#[tokio::test]
async fn an_empty_directory_is_not_taken_for_a_log_unless_asked_to() {
    let config = WalConfig { create: false, ..small() };
    let opened = Life::start_with(config.clone(), &MemoryDisk::new(1), 1).await;
    assert!(matches!(opened.err().unwrap(), WalError::NotFound { .. }));
    let disk = synced_one_by_one(1).await;
    assert_eq!(Life::start_with(config, &disk, 2).await.unwrap().replayed.len(), 1);
}

#[tokio::test]
async fn a_disk_too_full_for_the_first_file_is_a_clear_error() {
    let disk = MemoryDisk::new(1);
    disk.set_fault(|operation| matches!(operation, Operation::Write { .. }).then_some(Io::StorageFull));
    let error = Life::start(&disk, 1).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::OutOfSpace);
    assert!(disk.names().is_empty(), "an unfinished file was left behind");
}

#[tokio::test]
async fn a_disk_that_fills_up_later_leaves_a_smaller_ring_that_works() {
    let disk = MemoryDisk::new(1);
    disk.set_fault(|operation| match operation {
        Operation::Create(name) if name.starts_with("000002") => Some(Io::StorageFull),
        _ => None,
    });
    let life = Life::start(&disk, 1).await.unwrap();
    for seq in 1..=40 {
        let lsn = append(&life.wal, write(seq, 256)).await;
        life.wal.written(lsn).await.unwrap();
        life.wal.free_through(lsn);
    }
    let usage = life.wal.usage();
    assert!(usage.growth_stopped.unwrap().contains("no space"));
    assert_eq!(usage.allocated_bytes, 8 << 20);
}

#[tokio::test]
async fn a_full_ring_can_be_recovered_again_and_again() {
    let disk = MemoryDisk::new(1);
    let mut life = Life::start(&disk, 1).await.unwrap();
    while life.wal.usage().allocated_bytes < small().capacity_bytes {
        settle().await;
    }
    let mut seq = 0;
    while let Some(permit) = life.wal.reserve(1 << 20).now_or_never() {
        seq += 1;
        let lsn = life.wal.append(permit.unwrap(), write(seq, 256)).unwrap();
        life.wal.written(lsn).await.unwrap();
    }
    for round in 0..4 {
        life.kill().await;
        life = Life::start(&disk, round).await.unwrap();
        assert_eq!(life.replayed.len() as u64, seq);
    }
    life.wal.free_through(Lsn::new(seq));
    for seq in seq + 1..seq + 20 {
        let lsn = append(&life.wal, write(seq, 256)).await;
        life.wal.written(lsn).await.unwrap();
        life.wal.free_through(lsn);
    }
    assert_eq!(life.wal.usage().allocated_bytes, small().capacity_bytes);
}

#[tokio::test]
async fn a_smaller_capacity_takes_effect_as_files_become_free() {
    let disk = MemoryDisk::new(1);
    let life = Life::start(&disk, 1).await.unwrap();
    while life.wal.usage().allocated_bytes < small().capacity_bytes {
        settle().await;
    }
    life.kill().await;
    let config = WalConfig { capacity_bytes: 8 << 20, ..small() };
    let life = Life::start_with(config, &disk, 2).await.unwrap();
    for seq in 1..=12 {
        let lsn = append(&life.wal, write(seq, 256)).await;
        life.wal.written(lsn).await.unwrap();
        life.wal.free_through(lsn);
    }
    assert_eq!(disk.names().len(), 2);
}

#[tokio::test]
async fn no_salt_is_used_twice() {
    let disk = synced_one_by_one(1).await;
    let mut salts = std::collections::BTreeSet::new();
    for round in 0..5 {
        let life = Life::start(&disk, 50 + round).await.unwrap();
        append_synced(&life.wal, 1, 1).await;
        life.kill().await;
        for name in disk.names() {
            salts.insert(disk.contents(&name)[104..136].to_vec());
        }
    }
    salts.remove(&vec![0; 32]);
    assert!(salts.len() >= 6, "{}", salts.len());
}

#[tokio::test]
async fn settings_that_make_no_log_are_refused() {
    for config in [
        WalConfig { file_bytes: 1 << 20, ..small() },
        WalConfig { file_bytes: (4 << 20) + 1, ..small() },
        WalConfig { capacity_bytes: 7 << 20, ..small() },
        WalConfig { readers: 0, ..small() },
        WalConfig { queue_bytes: 0, ..small() },
    ] {
        let opened = Life::start_with(config, &MemoryDisk::new(1), 1).await;
        assert!(matches!(opened.err().unwrap(), WalError::Config { .. }));
    }
}

#[tokio::test]
async fn records_that_belong_together_are_all_there_or_none_of_them() {
    let (mut cut, mut whole) = (0, 0);
    // About as much as a frame takes: the group ends one, begins the next, or would lie on both.
    for before in 40..60 {
        for changes in 0..6 {
            let disk = MemoryDisk::new(before);
            let life = Life::start(&disk, 1).await.unwrap();
            for seq in 1..=before {
                append(&life.wal, write(seq, 5)).await;
            }
            let mut group = Vec::new();
            for seq in before + 1..=before + 5 {
                group.push((life.wal.reserve(3 * PAGE).await.unwrap(), write(seq, 3)));
            }
            let last = life.wal.append_together(group).unwrap();
            append(&life.wal, write(before + 6, 1)).await;
            disk.stop_after(changes);
            let _ = life.wal.synced(last).now_or_never();
            settle().await;
            let disk = life.kill().await;
            disk.restart();
            let again = open_again(&disk).await.unwrap();
            let is_of_group = |seq: u64| (before + 1..=before + 5).contains(&seq);
            let there = again.replayed.iter().filter(|(_, record)| is_of_group(record.seq.get())).count();
            assert!(there == 0 || there == 5, "{there} of 5 behind {before} after {changes} changes");
            if there == 5 { whole += 1 } else { cut += 1 }
        }
    }
    assert!(cut > 0 && whole > 0, "{cut} cut, {whole} whole");
}

#[tokio::test]
async fn what_no_frame_can_hold_together_is_refused() {
    let life = Life::start(&MemoryDisk::new(1), 1).await.unwrap();
    let mut group = Vec::new();
    for seq in 1..=5 {
        group.push((life.wal.reserve(64 * PAGE).await.unwrap(), write(seq, 64)));
    }
    let refused = life.wal.append_together(group).unwrap_err();
    assert!(matches!(refused, WalError::InvalidRecord { .. }), "{refused}");
    assert!(life.wal.append_together(Vec::new()).is_err());
    append_synced(&life.wal, 1, 3).await;
}
