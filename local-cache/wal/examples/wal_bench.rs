//! Measures the log on a real directory, beside the bare system calls under it.
//!
//! `cargo run --release -p cairn-wal --example wal_bench -- DIRECTORY` (an empty directory on the disk to measure; it takes
//! about 2.5 GiB there and removes what it made).
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on fails where it stands")]

use bytes::Bytes;
use cairn_model::crypto::SecretKey;
use cairn_model::{Clock, GatewayId, Generation, Lba, Lsn, Ports, SiteId, SystemClock, VolumeId, WriteSeq};
use cairn_wal::{Disk, FileDisk, Record, RecordBody, Recovery, Wal, WalConfig, WalIdentity};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const FILE_BYTES: u64 = 64 << 20;

async fn recover(directory: &Path) -> Recovery {
    let config = WalConfig { capacity_bytes: 2 << 30, file_bytes: FILE_BYTES, ..WalConfig::default() };
    let identity = WalIdentity { site: SiteId::from_bytes([1; 16]), gateway: GatewayId::from_bytes([2; 16]) };
    let disk = Arc::new(FileDisk::open(directory).unwrap());
    Wal::open(config, identity, &SecretKey::from_bytes([3; 32]), disk, Ports::system()).await.unwrap()
}

fn record(seq: u64, data: &Bytes) -> Record {
    Record {
        volume: VolumeId::from_bytes([4; 16]),
        generation: Generation::new(1),
        seq: WriteSeq::new(seq),
        body: RecordBody::Write { start: Lba::new(seq), data: data.clone() },
    }
}

async fn append(wal: &Wal, data: &Bytes) -> Lsn {
    let permit = wal.reserve(data.len()).await.unwrap();
    wal.append(permit, record(1, data)).unwrap()
}

#[expect(clippy::cast_precision_loss, reason = "sizes here are small")]
fn show(name: &str, mut samples: Vec<Duration>, operations: u32, bytes: u64, total: Duration) {
    samples.sort();
    let at = |percent: usize| samples[(samples.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let per_second = f64::from(operations) / total.as_secs_f64();
    println!(
        "{name:44} p50 {:8.1} us  p99 {:8.1} us  {per_second:9.0} op/s  {:8.1} MB/s",
        at(50),
        at(99),
        per_second * bytes as f64 / 1e6
    );
}

#[derive(Clone, Copy)]
enum Wait {
    Written,
    Synced,
    SyncedByCaller,
}

/// `depth` tasks, each appending and waiting, `operations` in all.
async fn run(name: &str, wal: &Wal, wait: Wait, depth: u32, operations: u32, bytes: usize) {
    let clock = Arc::new(SystemClock::new());
    let mut tasks = tokio::task::JoinSet::new();
    let start = clock.now();
    for _ in 0..depth {
        let (wal, clock, data) = (wal.clone(), Arc::clone(&clock), Bytes::from(vec![0x5a; bytes]));
        tasks.spawn(async move {
            let mut samples = Vec::new();
            for index in 0..operations / depth {
                let before = clock.now();
                let lsn = append(&wal, &data).await;
                match wait {
                    Wait::Written => wal.written(lsn).await.unwrap(),
                    Wait::Synced => drop(wal.synced(lsn).await.unwrap()),
                    Wait::SyncedByCaller => drop(wal.synced_by_caller(lsn).await.unwrap()),
                }
                samples.push(clock.now().since(before));
                if index % 64 == 0 {
                    wal.free_through(wal.written_through());
                }
            }
            samples
        });
    }
    let samples = tasks.join_all().await.concat();
    show(name, samples, operations, bytes as u64, clock.now().since(start));
}

/// The same bytes with nothing but the disk port: one thread, no hand-over, no sealing.
async fn run_bare(name: &str, disk: &dyn Disk, sync: bool, operations: u32, bytes: usize) {
    let file = disk.create("bare").await.unwrap();
    let buffer = vec![0x5a; bytes + 4096];
    let bytes_aligned = &buffer[buffer.as_ptr().align_offset(4096)..][..bytes];
    for offset in (0..FILE_BYTES).step_by(bytes) {
        file.write(offset, bytes_aligned).await.unwrap();
    }
    file.sync().await.unwrap();
    let clock = SystemClock::new();
    let (mut samples, start) = (Vec::new(), clock.now());
    for index in 0..operations {
        let before = clock.now();
        let offset = u64::from(index) * bytes as u64 % FILE_BYTES;
        file.write(offset, bytes_aligned).await.unwrap();
        if sync {
            file.sync().await.unwrap();
        }
        samples.push(clock.now().since(before));
    }
    show(name, samples, operations, bytes as u64, clock.now().since(start));
    disk.remove("bare").await.unwrap();
}

async fn replay(directory: &Path, bytes: usize) {
    let clock = SystemClock::new();
    let wal = recover(directory).await.finish().await.unwrap();
    wal.free_through(Lsn::new(wal.usage().next_lsn.get() - 1));
    let data = Bytes::from(vec![0x5a; bytes]);
    let mut last = Lsn::ZERO;
    for index in 0..(1usize << 30) / bytes {
        last = append(&wal, &data).await;
        if index % 64 == 63 {
            wal.written(last).await.unwrap();
        }
    }
    assert!(wal.synced(last).await.unwrap().durable_through() >= last);
    wal.close().await.unwrap();
    drop(wal);
    let start = clock.now();
    let mut recovery = recover(directory).await;
    let (opened, mut replayed) = (clock.now(), 0);
    while let Some(records) = recovery.next().await.unwrap() {
        replayed += records.iter().map(|(_, record)| record.data_bytes()).sum::<usize>();
    }
    let read = clock.now();
    let wal = recovery.finish().await.unwrap();
    println!(
        "replay of {} MiB in records of {bytes} bytes: open {:.3} s, read {:.3} s, finish {:.3} s",
        replayed >> 20,
        opened.since(start).as_secs_f64(),
        read.since(opened).as_secs_f64(),
        clock.now().since(read).as_secs_f64()
    );
    wal.free_through(last);
    wal.close().await.unwrap();
}

async fn measure(directory: &Path) {
    let bare = FileDisk::open(&directory.join("bare")).unwrap();
    let wal = recover(&directory.join("wal")).await.finish().await.unwrap();
    run("warm-up: make the ring's files", &wal, Wait::Written, 4, 2200, 1 << 20).await;
    for round in 0..3 {
        println!("round {round}");
        run_bare("bare write 8 KiB", &bare, false, 5000, 8192).await;
        run("wal 4 KiB written, depth 1", &wal, Wait::Written, 1, 20_000, 4096).await;
        run("wal 4 KiB written, depth 32", &wal, Wait::Written, 32, 200_000, 4096).await;
        run_bare("bare write 8 KiB + fdatasync", &bare, true, 2000, 8192).await;
        run("wal 4 KiB synced, depth 1", &wal, Wait::Synced, 1, 3000, 4096).await;
        run("wal 4 KiB synced by the caller, depth 1", &wal, Wait::SyncedByCaller, 1, 3000, 4096).await;
        run("wal 4 KiB synced, depth 32", &wal, Wait::Synced, 32, 50_000, 4096).await;
        run_bare("bare write 1 MiB", &bare, false, 1000, 1 << 20).await;
        run("wal 1 MiB written, depth 4", &wal, Wait::Written, 4, 2000, 1 << 20).await;
        run("wal 1 MiB synced, depth 4", &wal, Wait::Synced, 4, 1000, 1 << 20).await;
    }
    wal.close().await.unwrap();
    drop(wal);
    for bytes in [1 << 20, 65_536, 4096] {
        replay(&directory.join("wal"), bytes).await;
    }
}

fn main() {
    let directory = std::env::args().nth(1).expect("name a directory on the disk to measure");
    let directory = Path::new(&directory);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(measure(directory));
    for name in ["wal", "bare"] {
        std::fs::remove_dir_all(directory.join(name)).unwrap();
    }
}
