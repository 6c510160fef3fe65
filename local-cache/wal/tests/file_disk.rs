//! The log on a real directory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

use bytes::Bytes;
use cairn_model::crypto::SecretKey;
use cairn_model::{GatewayId, Generation, Lba, Lsn, Ports, SiteId, VolumeId, WriteSeq};
use cairn_wal::{FileDisk, Record, RecordBody, Recovery, Wal, WalConfig, WalError, WalIdentity};
use std::path::Path;
use std::sync::Arc;

fn small() -> WalConfig {
    WalConfig { capacity_bytes: 16 << 20, file_bytes: 4 << 20, ..WalConfig::default() }
}

async fn recover(directory: &Path) -> Result<Recovery, WalError> {
    let identity = WalIdentity { site: SiteId::from_bytes([1; 16]), gateway: GatewayId::from_bytes([2; 16]) };
    let key = SecretKey::from_bytes([3; 32]);
    Wal::open(small(), identity, &key, Arc::new(FileDisk::open(directory)?), Ports::system()).await
}

fn write(seq: u64, blocks: usize) -> Record {
    let data = Bytes::from(vec![u8::try_from(seq % 251).unwrap(); blocks * 4096]);
    Record {
        volume: VolumeId::from_bytes([4; 16]),
        generation: Generation::new(1),
        seq: WriteSeq::new(seq),
        body: RecordBody::Write { start: Lba::new(seq), data },
    }
}

async fn append(wal: &Wal, record: Record) -> Lsn {
    let permit = wal.reserve(record.data_bytes()).await.unwrap();
    wal.append(permit, record).unwrap()
}

async fn replay(recovery: &mut Recovery) -> Vec<(Lsn, Record)> {
    let mut all = Vec::new();
    while let Some(records) = recovery.next().await.unwrap() {
        all.extend(records);
    }
    all
}

#[tokio::test]
async fn what_was_synced_is_replayed_after_the_log_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let wal = recover(directory.path()).await.unwrap().finish().await.unwrap();
    for seq in 1..=100 {
        assert_eq!(append(&wal, write(seq, 1 + usize::try_from(seq).unwrap() % 5)).await, Lsn::new(seq));
    }
    let receipt = wal.synced(Lsn::new(100)).await.unwrap();
    assert_eq!(receipt.durable_through(), Lsn::new(100));
    assert_eq!(wal.read(Lsn::new(57)).await.unwrap(), vec![57u8; 3 * 4096]);
    wal.close().await.unwrap();
    drop(wal);

    let mut recovery = recover(directory.path()).await.unwrap();
    let replayed = replay(&mut recovery).await;
    let expected: Vec<_> =
        (1..=100u64).map(|seq| (Lsn::new(seq), write(seq, 1 + usize::try_from(seq).unwrap() % 5))).collect();
    assert_eq!(replayed, expected);
    let wal = recovery.finish().await.unwrap();
    assert_eq!(append(&wal, write(101, 1)).await, Lsn::new(101));
    assert_eq!(wal.read(Lsn::new(3)).await.unwrap(), vec![3u8; 4 * 4096]);
    wal.close().await.unwrap();
}

#[tokio::test]
async fn the_ring_wraps_many_times_when_records_are_freed() {
    let directory = tempfile::tempdir().unwrap();
    let wal = recover(directory.path()).await.unwrap().finish().await.unwrap();
    for seq in 1..=400 {
        let lsn = append(&wal, write(seq, 64)).await;
        if seq % 20 == 0 {
            wal.written(lsn).await.unwrap();
            wal.free_through(lsn);
        }
    }
    assert_eq!(wal.synced(Lsn::new(400)).await.unwrap().durable_through(), Lsn::new(400));
    let usage = wal.usage();
    assert_eq!(usage.allocated_bytes, 16 << 20);
    assert_eq!(usage.freed_through, Lsn::new(400));
    wal.close().await.unwrap();
    drop(wal);
    let mut recovery = recover(directory.path()).await.unwrap();
    assert_eq!(replay(&mut recovery).await, []);
}

#[tokio::test]
async fn two_processes_cannot_open_the_same_log() {
    let directory = tempfile::tempdir().unwrap();
    let first = FileDisk::open(directory.path()).unwrap();
    assert!(matches!(FileDisk::open(directory.path()), Err(WalError::Locked { .. })));
    drop(first);
    assert!(FileDisk::open(directory.path()).is_ok());
}

#[test]
fn a_log_that_must_exist_is_not_made() {
    let parent = tempfile::tempdir().unwrap();
    let missing = parent.path().join("wal");
    assert!(matches!(FileDisk::open_existing(&missing), Err(WalError::NotFound { .. })));
    assert!(!missing.exists());
    std::fs::create_dir(&missing).unwrap();
    assert!(matches!(FileDisk::open_existing(&missing), Err(WalError::NotFound { .. })));
    assert_eq!(std::fs::read_dir(&missing).unwrap().count(), 0);
}
