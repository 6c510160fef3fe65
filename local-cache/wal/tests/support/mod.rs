//! Shared by the tests of the log.
#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

use bytes::Bytes;
use cairn_model::crypto::SecretKey;
use cairn_model::{
    Clock, GatewayId, Generation, Lba, LbaRange, Lsn, Monotonic, Ports, SiteId, VolumeId, WallTime, WriteSeq,
};
use cairn_wal::testing::{MemoryDisk, TaskSpawn, ports};
use cairn_wal::{Disk, Record, RecordBody, Recovery, Wal, WalConfig, WalError, WalIdentity};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn small() -> WalConfig {
    WalConfig { capacity_bytes: 16 << 20, file_bytes: 4 << 20, readers: 1, ..WalConfig::default() }
}

pub(crate) fn identity() -> WalIdentity {
    WalIdentity { site: SiteId::from_bytes([1; 16]), gateway: GatewayId::from_bytes([2; 16]) }
}

pub(crate) fn key() -> SecretKey {
    SecretKey::from_bytes([3; 32])
}

pub(crate) async fn recover_on(disk: Arc<dyn Disk>, ports: Ports) -> Result<Recovery, WalError> {
    Wal::open(small(), identity(), &key(), disk, ports).await
}

/// Time stands still: every sync takes none of it, however busy the machine.
#[derive(Debug)]
struct StoppedClock;

impl Clock for StoppedClock {
    fn now(&self) -> Monotonic {
        Monotonic::default()
    }

    fn wall(&self) -> WallTime {
        WallTime::default()
    }

    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

/// A log in memory and what it runs on.
pub(crate) struct Life {
    pub(crate) disk: MemoryDisk,
    pub(crate) wal: Wal,
    pub(crate) spawn: Arc<TaskSpawn>,
    pub(crate) replayed: Vec<(Lsn, Record)>,
}

impl Life {
    pub(crate) async fn start(disk: &MemoryDisk, seed: u64) -> Result<Self, WalError> {
        Self::start_with(small(), disk, seed).await
    }

    pub(crate) async fn start_with(
        config: WalConfig,
        disk: &MemoryDisk,
        seed: u64,
    ) -> Result<Self, WalError> {
        let (ports, spawn) = ports(seed);
        let mut recovery = Wal::open(config, identity(), &key(), Arc::new(disk.clone()), ports).await?;
        let replayed = replay(&mut recovery).await?;
        Ok(Self { disk: disk.clone(), wal: recovery.finish().await?, spawn, replayed })
    }

    /// Ends the process; what was written stays.
    pub(crate) async fn kill(self) -> MemoryDisk {
        self.spawn.kill().await;
        self.disk
    }
}

/// On a disk that does everything at once.
pub(crate) async fn life_at_once() -> Life {
    let disk = MemoryDisk::new(1).at_once();
    let (ports, spawn) = ports(1);
    let ports = Ports { clock: Arc::new(StoppedClock), ..ports };
    let wal = recover_on(Arc::new(disk.clone()), ports).await.unwrap().finish().await.unwrap();
    Life { disk, wal, spawn, replayed: Vec::new() }
}

/// A log that knows from its thread's twenty syncs that they are fast.
pub(crate) async fn life_with_fast_syncs() -> Life {
    let life = life_at_once().await;
    for seq in 100..120 {
        append_synced(&life.wal, seq, seq).await;
    }
    life
}

pub(crate) async fn replay(recovery: &mut Recovery) -> Result<Vec<(Lsn, Record)>, WalError> {
    let mut all = Vec::new();
    while let Some(records) = recovery.next().await? {
        all.extend(records);
    }
    Ok(all)
}

/// A write whose content is its own.
pub(crate) fn write(seq: u64, blocks: usize) -> Record {
    let mut data = vec![0; blocks * 4096];
    for block in data.chunks_mut(4096) {
        block[..8].copy_from_slice(&seq.to_le_bytes());
        block[4088..].copy_from_slice(&seq.to_le_bytes());
    }
    let start = Lba::new(seq);
    record(seq, RecordBody::Write { start, data: Bytes::from(data) })
}

pub(crate) fn discard(seq: u64, blocks: u64) -> Record {
    record(seq, RecordBody::Discard { range: LbaRange::new(Lba::new(seq), blocks).unwrap() })
}

fn record(seq: u64, body: RecordBody) -> Record {
    let volume = VolumeId::from_bytes([u8::try_from(seq % 3).unwrap(); 16]);
    Record { volume, generation: Generation::new(1), seq: WriteSeq::new(seq), body }
}

pub(crate) fn data(record: &Record) -> Bytes {
    match &record.body {
        RecordBody::Write { data, .. } => data.clone(),
        RecordBody::Discard { .. } | RecordBody::Mark { .. } => Bytes::new(),
    }
}

pub(crate) async fn append(wal: &Wal, record: Record) -> Lsn {
    let permit = wal.reserve(record.data_bytes()).await.unwrap();
    wal.append(permit, record).unwrap()
}

/// Appends writes `from..=through` of one block and makes them durable in one frame or more.
pub(crate) async fn append_synced(wal: &Wal, from: u64, through: u64) {
    let mut last = Lsn::ZERO;
    for seq in from..=through {
        last = append(wal, write(seq, 1)).await;
    }
    assert!(wal.synced(last).await.unwrap().durable_through() >= last);
}
