//! Seeded lives of a log with crashes, against an oracle that knows what was appended, acknowledged and freed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod support;

use cairn_model::Lsn;
use cairn_wal::testing::{Dice, MemoryDisk};
use cairn_wal::{Record, RecordBody, Wal, WalError};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::sync::{Arc, Mutex};
use support::{Life, data, discard, write};

/// What must be true after a crash.
#[derive(Debug, Default)]
struct Oracle {
    /// Record with lsn n at index n - 1.
    history: Vec<Record>,
    written: u64,
    synced: u64,
    freed: u64,
    next_content: u64,
}

impl Oracle {
    /// `floor`: every kept record up to here must be there.
    fn check_and_adopt(&mut self, life: &Life, floor: u64) {
        for (lsn, record) in &life.replayed {
            assert_eq!(record, &self.history[usize::try_from(lsn.get()).unwrap() - 1], "content of {lsn}");
        }
        let usage = life.wal.usage();
        let next = usage.next_lsn.get();
        assert!(usage.freed_through.get() <= self.freed, "freed by nobody");
        assert!(next > floor, "acknowledged through {floor}, recovered up to {next}");
        assert!(usize::try_from(next).unwrap() <= self.history.len() + 1, "more than was ever appended");
        let replayed: Vec<_> = life.replayed.iter().map(|(lsn, _)| lsn.get()).collect();
        assert_eq!(replayed, (usage.freed_through.get() + 1..next).collect::<Vec<_>>());
        self.history.truncate(usize::try_from(next).unwrap() - 1);
        self.freed = self.freed.min(next - 1);
        (self.written, self.synced) = (next - 1, next - 1);
    }

    fn next_record(&mut self, dice: &Dice) -> Record {
        self.next_content += 1;
        match dice.below(20) {
            0 => discard(self.next_content, dice.below(1 << 20) + 1),
            1 => write(self.next_content, 256),
            2..5 => write(self.next_content, usize::try_from(dice.below(64)).unwrap() + 1),
            _ => write(self.next_content, 1),
        }
    }
}

type Acknowledgements = FuturesUnordered<BoxFuture<'static, (bool, Lsn, Result<(), WalError>)>>;

/// Uses the log until something stops it.
async fn use_log(wal: &Wal, oracle: &Mutex<Oracle>, dice: &Dice) {
    let mut pending: Acknowledgements = FuturesUnordered::new();
    loop {
        match dice.below(10) {
            0..6 => append_some(wal, oracle, dice, &mut pending).await,
            6 => {
                let mut oracle = oracle.lock().unwrap();
                let through = oracle.freed + dice.below(oracle.written - oracle.freed + 1);
                oracle.freed = through;
                wal.free_through(Lsn::new(through));
            }
            7 => read_one(wal, oracle, dice).await,
            _ => {
                if let Some((synced, lsn, result)) = pending.next().await {
                    unless_stopped(result).await;
                    acknowledge(&mut oracle.lock().unwrap(), synced, lsn);
                }
            }
        }
        while let Some(Some((synced, lsn, result))) = pending.next().now_or_never() {
            unless_stopped(result).await;
            acknowledge(&mut oracle.lock().unwrap(), synced, lsn);
        }
    }
}

/// The value. The end of a process is not an error: an operation that it interrupts never returns.
async fn unless_stopped<T>(result: Result<T, WalError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) if error.to_string().contains("interrupted") => std::future::pending().await,
        Err(error) => panic!("{error}"),
    }
}

fn acknowledge(oracle: &mut Oracle, synced: bool, lsn: Lsn) {
    oracle.written = oracle.written.max(lsn.get());
    if synced {
        oracle.synced = oracle.synced.max(lsn.get());
    }
}

async fn append_some(wal: &Wal, oracle: &Mutex<Oracle>, dice: &Dice, pending: &mut Acknowledgements) {
    for _ in 0..=dice.below(8) {
        let record = oracle.lock().unwrap().next_record(dice);
        let permit = loop {
            tokio::select! {
                biased;
                permit = wal.reserve(record.data_bytes()) => break unless_stopped(permit).await,
                () = tokio::task::yield_now() => {}
            }
            // Full: what is written may be destaged.
            let written = wal.written_through();
            let mut oracle = oracle.lock().unwrap();
            oracle.written = oracle.written.max(written.get());
            oracle.freed = oracle.freed.max(written.get());
            wal.free_through(written);
        };
        let lsn = unless_stopped(wal.append(permit, record.clone())).await;
        {
            let mut oracle = oracle.lock().unwrap();
            assert_eq!(lsn.get(), oracle.history.len() as u64 + 1);
            oracle.history.push(record);
        }
        let wal = wal.clone();
        match dice.below(8) {
            0 if dice.percent(50) => {
                pending.push(async move { (true, lsn, wal.synced_by_caller(lsn).await.map(|_| ())) }.boxed());
            }
            0 => pending.push(async move { (true, lsn, wal.synced(lsn).await.map(|_| ())) }.boxed()),
            1..4 => pending.push(async move { (false, lsn, wal.written(lsn).await) }.boxed()),
            _ => {}
        }
    }
}

async fn read_one(wal: &Wal, oracle: &Mutex<Oracle>, dice: &Dice) {
    let (lsn, expected) = {
        let oracle = oracle.lock().unwrap();
        if oracle.freed == oracle.written {
            return;
        }
        let lsn = oracle.freed + 1 + dice.below(oracle.written - oracle.freed);
        (Lsn::new(lsn), oracle.history[usize::try_from(lsn).unwrap() - 1].clone())
    };
    let read = match wal.read(lsn).await {
        Err(error @ WalError::NoData { .. }) => Err(error),
        other => Ok(unless_stopped(other).await),
    };
    match (read, &expected.body) {
        (Ok(read), RecordBody::Write { .. }) => assert_eq!(read, data(&expected)),
        (Err(WalError::NoData { .. }), RecordBody::Discard { .. } | RecordBody::Mark { .. }) => {}
        (other, _) => panic!("reading {lsn}: {other:?}"),
    }
}

async fn live_and_crash(seed: u64) {
    let dice = Dice::new(seed);
    // Where changes complete at once callers serve themselves; elsewhere the log's thread does everything.
    let disk = MemoryDisk::new(seed ^ 0xd15c);
    let disk = if seed.is_multiple_of(2) { disk } else { disk.at_once() };
    let oracle = Mutex::new(Oracle::default());
    let mut powerless = false;
    for life_number in 0..8 {
        // Some lives end in the middle of recovery, most while the log is used.
        let changes = if dice.percent(30) { dice.below(12) } else { dice.below(1500) };
        disk.stop_after(changes);
        let spawn = Arc::new(Mutex::new(None));
        let life = async {
            let floor = {
                let oracle = oracle.lock().unwrap();
                if powerless { oracle.synced } else { oracle.written.max(oracle.synced) }
            };
            let (ports, tasks) = cairn_wal::testing::ports(seed * 1000 + life_number);
            *spawn.lock().unwrap() = Some(Arc::clone(&tasks));
            let mut recovery = unless_stopped(support::recover_on(Arc::new(disk.clone()), ports).await).await;
            let replayed = unless_stopped(support::replay(&mut recovery).await).await;
            let wal = unless_stopped(recovery.finish().await).await;
            let life = Life { disk: disk.clone(), wal, spawn: tasks, replayed };
            oracle.lock().unwrap().check_and_adopt(&life, floor);
            powerless = false;
            use_log(&life.wal, &oracle, &dice).await;
        };
        tokio::select! {
            biased;
            () = disk.stopped() => {}
            () = life => {}
        }
        let tasks = spawn.lock().unwrap().take();
        if let Some(tasks) = tasks {
            tasks.kill().await;
        }
        if dice.percent(60) {
            powerless = true;
            disk.lose_power([0, 20, 50, 90, 100][usize::try_from(dice.below(5)).unwrap()]);
        }
        disk.restart();
    }
    let floor = if powerless { oracle.lock().unwrap().synced } else { oracle.lock().unwrap().written };
    let life = Life::start(&disk, seed).await.unwrap();
    oracle.lock().unwrap().check_and_adopt(&life, floor);
    life.wal.close().await.unwrap();
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("CAIRN_WAL_FIRST_SEED").unwrap_or(0);
    first..first + number("CAIRN_WAL_SEEDS").unwrap_or(12)
}

#[test]
fn after_any_crash_the_log_is_a_prefix_that_holds_everything_acknowledged() {
    for seed in seeds() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(live_and_crash(seed));
        }));
        assert!(result.is_ok(), "CAIRN_WAL_FIRST_SEED={seed} CAIRN_WAL_SEEDS=1");
    }
}
