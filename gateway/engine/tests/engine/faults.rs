//! What guests see while the pool misbehaves: waiting, or a clear error; never a wrong byte, never a lost write.

use crate::support::{Checked, Dice, MIB, Site};
use bytes::Bytes;
use cairn_model::{BlockDevice, ErrorKind, Kinded, WriteFlags};
use cairn_segment_writer::RequestPolicy;
use cairn_segment_writer::testing::{Fault, FaultStore, Verb};
use object_store::memory::InMemory;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const FUA: WriteFlags = WriteFlags { fua: true };

/// Short enough that a test sees many rounds of retries.
fn impatient() -> RequestPolicy {
    RequestPolicy {
        put_attempt_timeout: Duration::from_millis(300),
        get_attempt_timeout: Duration::from_millis(300),
        put_give_up: Duration::from_secs(1),
        get_give_up: Duration::from_secs(1),
        backoff_first: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
    }
}

/// A site whose store asks `plan` about every request to a segment.
async fn site_with(plan: impl FnMut(Verb) -> Option<Fault> + Send + 'static) -> Site {
    let plan = Mutex::new(plan);
    let store = FaultStore::new(Arc::new(InMemory::new()), move |request| {
        if request.key.contains("segments") { plan.lock()(request.verb) } else { None }
    });
    let mut site = Site::on(Arc::new(store)).await;
    site.policy = impatient();
    site.add_volume("disk", 16 * MIB).await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn random_faults_of_the_store_never_show_in_the_data() {
    let dice = Dice::new(11);
    // A chunk that is damaged again when it is fetched again is an I/O error, rightly; so flips are far apart.
    let mut since_flip = 0;
    let mut site = site_with(move |verb| {
        let fault = match (verb, dice.below(14)) {
            (_, 0) => Fault::Status(503),
            (_, 1) => Fault::Status(500),
            (_, 2) => Fault::Status(429),
            (_, 3) => Fault::Connection,
            (_, 4) => Fault::Hang,
            (Verb::Put, 5) => Fault::ReplyLost,
            (Verb::Put, 6) => Fault::ReplyHangs,
            (Verb::Get, 5) => Fault::BodyBreaks(100),
            (Verb::Get, 6) => Fault::BodyEnds(100),
            (Verb::Get, 7) if since_flip > 50 => Fault::BodyFlips(77),
            _ => {
                since_flip += 1;
                return None;
            }
        };
        if matches!(fault, Fault::BodyFlips(_)) {
            since_flip = 0;
        }
        Some(fault)
    })
    .await;
    site.config.block_cache_bytes = MIB;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    let dice = Dice::new(12);
    for round in 0..100 {
        let offset = dice.below(15 * MIB);
        disk.write(offset, dice.bytes(usize::try_from(1 + dice.below(200_000)).unwrap())).await;
        disk.check(dice.below(15 * MIB), 1 + dice.below(300_000)).await;
        if round % 20 == 19 {
            engine.destage().await.unwrap();
        }
    }
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_away_holds_up_destage_and_nothing_else() {
    let away = Arc::new(AtomicBool::new(true));
    let plan = Arc::clone(&away);
    let site = site_with(move |_| plan.load(Ordering::Relaxed).then_some(Fault::Connection)).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    let dice = Dice::new(5);
    for _ in 0..20 {
        disk.write(dice.below(200) * 65536, dice.bytes(65536)).await;
    }
    disk.volume.flush().await.unwrap();
    disk.check_all().await;
    wait_for("the status tells the problem", || engine.status().destage.problem.is_some()).await;
    away.store(false, Ordering::Relaxed);
    engine.destage().await.unwrap();
    assert_eq!(engine.status().destage.problem, None);
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_written_takes_free_room_in_ram_and_nobodys_place() {
    let gets = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&gets);
    let mut site = site_with(move |verb| {
        count.fetch_add(u64::from(verb == Verb::Get), Ordering::Relaxed);
        None
    })
    .await;
    site.config.block_cache_bytes = 16 * MIB;
    // What is missing is fetched by itself, so that it counts.
    site.config.fetch_region_bytes = 4096;
    site.add_volume("backup", 64 * MIB).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    let mut backup = Checked::fresh(engine.volume("backup").unwrap());
    let dice = Dice::new(6);
    for block in 0..1024 {
        disk.write(block * 16384, dice.bytes(4096)).await;
    }
    engine.destage().await.unwrap();
    let mut offset = 0;
    while offset < 64 * MIB {
        backup.write(offset, dice.bytes(1 << 20)).await;
        offset += MIB;
        if offset.is_multiple_of(8 * MIB) {
            engine.destage().await.unwrap();
        }
    }
    let held = engine.status().block_cache_bytes;
    assert!(held > 12 * MIB, "it takes what is free: {held}");
    let before = gets.load(Ordering::Relaxed);
    for block in 0..1024 {
        disk.check(block * 16384, 4096).await;
    }
    let fetched = gets.load(Ordering::Relaxed) - before;
    assert!(fetched < 100, "{fetched} of 1024 blocks were pushed out");
    backup.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_cores_work_while_somebody_waits_for_the_pool() {
    let away = Arc::new(AtomicBool::new(true));
    let plan = Arc::clone(&away);
    let mut site = site_with(move |_| plan.load(Ordering::Relaxed).then_some(Fault::Connection)).await;
    site.config.cores = 5;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, Dice::new(5).bytes(65536)).await;
    let cpu = || engine.status().cpu;
    assert_eq!((cpu().threads, cpu().raised), (1, false));
    tokio::select! {
        destaged = engine.destage() => panic!("the pool is away: {destaged:?}"),
        () = wait_for("all cores work", || (cpu().threads, cpu().raised) == (5, true)) => {}
    }
    wait_for("nobody waits any more", || (cpu().threads, cpu().raised) == (1, false)).await;
    away.store(false, Ordering::Relaxed);
    engine.destage().await.unwrap();
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_refuses_writes_with_out_of_space_and_loses_nothing() {
    const ENOSPC: i32 = 28;
    let full = Arc::new(AtomicBool::new(true));
    let plan = Arc::clone(&full);
    let site = site_with(move |verb| {
        (verb == Verb::Put && plan.load(Ordering::Relaxed)).then_some(Fault::Os(ENOSPC))
    })
    .await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    volume.write(0, Bytes::from(vec![1; 4096]), FUA).await.unwrap();
    wait_for("the pool is known to be full", || engine.status().destage.pool_full).await;
    let refused = volume.write(4096, Bytes::from(vec![2; 4096]), FUA).await;
    assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::OutOfSpace));
    assert_eq!(volume.read(0, 8192).await.unwrap().to_vec(), [vec![1; 4096], vec![0; 4096]].concat());
    volume.discard(4096, 4096, FUA).await.unwrap();
    full.store(false, Ordering::Relaxed);
    engine.destage().await.unwrap();
    volume.write(4096, Bytes::from(vec![2; 4096]), FUA).await.unwrap();
    assert_eq!(volume.read(0, 8192).await.unwrap().to_vec(), [vec![1; 4096], vec![2; 4096]].concat());
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_full_makes_writers_wait_until_the_pool_is_back() {
    let away = Arc::new(AtomicBool::new(true));
    let plan = Arc::clone(&away);
    let mut site = site_with(move |verb| {
        (verb == Verb::Put && plan.load(Ordering::Relaxed)).then_some(Fault::Connection)
    })
    .await;
    site.config.wal.capacity_bytes = 24 * MIB;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    let mut writer = tokio::task::JoinSet::new();
    let written = Arc::clone(&volume);
    writer.spawn(async move {
        for step in 0..80u64 {
            let fill = u8::try_from(step % 251).unwrap();
            written
                .write(step % 16 * MIB, Bytes::from(vec![fill; 1 << 20]), WriteFlags::default())
                .await
                .unwrap();
        }
    });
    wait_for("the log is nearly full", || {
        let wal = engine.status().wal;
        wal.used_bytes * 10 > wal.capacity_bytes * 8
    })
    .await;
    assert!(writer.try_join_next().is_none(), "80 MiB do not fit a log of 24");
    away.store(false, Ordering::Relaxed);
    writer.join_next().await.unwrap().unwrap();
    for step in 64..80u64 {
        let read = volume.read(step % 16 * MIB, 1 << 20).await.unwrap().to_vec();
        assert!(
            read.iter().all(|byte| u64::from(*byte) == step),
            "the last write of MiB {} is there",
            step % 16
        );
    }
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_pool_is_an_error_and_never_data() {
    let damage = Arc::new(AtomicBool::new(false));
    let plan = Arc::clone(&damage);
    let site = site_with(move |verb| {
        (verb == Verb::Get && plan.load(Ordering::Relaxed)).then_some(Fault::BodyFlips(9))
    })
    .await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    volume.write(0, Bytes::from(Dice::new(1).bytes(4096)), FUA).await.unwrap();
    engine.shutdown().await.unwrap();
    drop((volume, engine));
    damage.store(true, Ordering::Relaxed);
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    assert_eq!(volume.read(0, 4096).await.err().map(|error| error.kind()), Some(ErrorKind::Corrupt));
    damage.store(false, Ordering::Relaxed);
    assert_eq!(volume.read(0, 4096).await.unwrap().to_vec(), Dice::new(1).bytes(4096));
    engine.shutdown().await.unwrap();
}

#[expect(clippy::disallowed_methods, reason = "a test waits for real time")]
async fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..400 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("waited ten seconds in vain: {what}");
}
