//! Checkpoints of the catalog in the pool, and what waits for them.

mod full;

use crate::support::{Checked, DOMAIN_KEY, MIB, Site};
use cairn_metadata::RecordWriter;
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{
    BlockDevice, Clock, DomainId, Entropy, ErrorKind, GatewayId, Kinded, Monotonic, SeededEntropy, WallTime,
    WriteFlags,
};
use cairn_segment_writer::testing::{Fault, FaultStore, Verb};
use cairn_segment_writer::{Copies, DataNode, Domain, Manifest, Pool, RecordKey, RecordStore, RequestPolicy};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The system's clock, moved on.
#[derive(Debug)]
struct Moved {
    clock: Arc<dyn Clock>,
    by_ms: AtomicU64,
}

impl Clock for Moved {
    fn now(&self) -> Monotonic {
        self.clock.now().plus(Duration::from_millis(self.by_ms.load(Ordering::Relaxed)))
    }

    fn wall(&self) -> WallTime {
        self.clock.wall()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.clock.sleep(duration)
    }
}

fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    SeededEntropy::new(seed).fill(&mut bytes);
    bytes
}

async fn keys(site: &Site, below: &str) -> BTreeSet<String> {
    let objects: Vec<_> = site.store.list(Some(&below.into())).try_collect().await.unwrap();
    objects.into_iter().map(|object| object.location.to_string()).collect()
}

/// The record as a recovery sees it.
async fn record(site: &Site) -> RecordStore {
    let opened = DataNode::attach_store(
        Arc::clone(&site.store),
        "memory",
        site.id,
        RequestPolicy::default(),
        site.ports.clone(),
    );
    let domain = Domain::new(DomainId::DEFAULT, SecretKey::from_bytes(DOMAIN_KEY), Encryption::Aes256Gcm);
    RecordStore::new(Arc::new(Pool::single(opened.await.unwrap())), RecordKey::new(&domain, site.id))
}

async fn newest(record: &RecordStore) -> Manifest {
    let (id, _) = record.manifests().await.unwrap().pop_last().unwrap();
    record.read_manifest(id).await.unwrap()
}

/// No checkpoints but those that the test asks for.
fn only_asked(site: &mut Site) {
    site.config.checkpoint_interval = Some(Duration::from_hours(1));
    site.config.reclaim_interval = None;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_checkpoints_are_kept_and_the_pieces_that_they_name() {
    let mut site = Site::with_volume(32 * MIB).await;
    only_asked(&mut site);
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    for round in 0..6 {
        disk.write(round * MIB, noise(round, MIB)).await;
        engine.destage().await.unwrap();
        engine.checkpoint().await.unwrap();
    }
    let record = record(&site).await;
    let manifests = record.manifests().await.unwrap();
    assert_eq!(manifests.len(), 3);
    let mut named = BTreeSet::new();
    for id in manifests.into_keys() {
        let manifest = record.read_manifest(id).await.unwrap();
        for piece in &manifest.pieces {
            assert_eq!(record.read_piece(piece.name).await.unwrap().rows.len() as u64, piece.rows);
            named.insert(format!("record/pieces/{}", piece.name));
        }
    }
    assert_eq!(keys(&site, "record/pieces").await, named);
    // A start finds what is there, and goes on.
    let before = newest(&record).await;
    engine.shutdown().await.unwrap();
    drop((engine, disk));
    let engine = site.start().await;
    engine.checkpoint().await.unwrap();
    assert!(newest(&record).await.id > before.id);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rare_changes_are_recorded_soon_and_an_idle_engine_records_nothing() {
    let mut site = Site::with_volume(32 * MIB).await;
    only_asked(&mut site);
    let engine = site.start().await;
    engine.checkpoint().await.unwrap();
    let record = record(&site).await;
    let before = newest(&record).await.id;
    engine.create_volume(&site.new_volume("other", MIB)).await.unwrap();
    assert!(engine.status().record.waits);
    let recorded = async {
        while engine.status().record.waits {
            site.ports.clock.sleep(Duration::from_millis(20)).await;
        }
    };
    cairn_model::timeout(&*site.ports.clock, Duration::from_mins(1), recorded).await.unwrap();
    let recorded = newest(&record).await.id;
    assert!(recorded > before, "it says so and nothing is there");
    let taken = engine.status().record.taken;
    // Nothing to wait for: some of its looks have to pass.
    site.ports.clock.sleep(Duration::from_secs(3)).await;
    assert_eq!((newest(&record).await.id, engine.status().record.taken), (recorded, taken));
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_goes_only_when_a_checkpoint_has_it_among_the_doomed() {
    let refuse = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&refuse);
    let store = FaultStore::new(Arc::new(InMemory::new()), move |request| {
        let refused = told.load(Ordering::Relaxed)
            && request.verb == Verb::Put
            && request.key.contains("record/manifests");
        refused.then_some(Fault::Status(503))
    });
    let mut site = Site::on(Arc::new(store)).await;
    site.add_volume("disk", 32 * MIB).await;
    only_asked(&mut site);
    site.policy = RequestPolicy { put_give_up: Duration::from_millis(200), ..site.policy };
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 8 * MIB)).await;
    engine.destage().await.unwrap();
    engine.checkpoint().await.unwrap();
    disk.write(0, noise(2, 8 * MIB)).await;
    engine.destage().await.unwrap();
    let before = keys(&site, "segments").await;
    refuse.store(true, Ordering::Relaxed);
    assert!(engine.reclaim(false).await.is_err());
    let catalog = site.catalog().await;
    assert!(!catalog.doomed_objects(None, 10).await.unwrap().is_empty(), "something is doomed");
    assert_eq!(keys(&site, "segments").await, before, "and nothing is deleted");
    refuse.store(false, Ordering::Relaxed);
    let report = engine.reclaim(false).await.unwrap();
    assert!(report.objects > 0);
    assert!(keys(&site, "segments").await.len() < before.len());
    catalog.close().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_piece_is_found_and_put_again() {
    let mut site = Site::with_volume(32 * MIB).await;
    only_asked(&mut site);
    let engine = site.start().await;
    engine.checkpoint().await.unwrap();
    assert_eq!(engine.check_record().await.unwrap(), 0);
    let record = record(&site).await;
    let piece = newest(&record).await.pieces[0].name;
    let key: object_store::path::Path = format!("record/pieces/{piece}").into();
    let whole = site.store.get(&key).await.unwrap().bytes().await.unwrap();
    let mut damaged = whole.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    // Nothing in the catalog changes that would put it again.
    for bad in [Some(damaged), None] {
        match bad {
            Some(damaged) => drop(site.store.put(&key, damaged.into()).await.unwrap()),
            None => site.store.delete(&key).await.unwrap(),
        }
        assert_eq!(engine.check_record().await.unwrap(), 1);
        assert!(engine.status().record.waits, "a checkpoint is due");
        engine.checkpoint().await.unwrap();
        assert_eq!(site.store.get(&key).await.unwrap().bytes().await.unwrap(), whole);
        assert_eq!(engine.check_record().await.unwrap(), 0);
    }
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_piece_is_put_again_however_late_the_next_checkpoint_is() {
    let mut site = Site::with_volume(32 * MIB).await;
    only_asked(&mut site);
    site.config.checkpoint_interval = Some(Duration::from_hours(24));
    site.config.lease_ttl = Duration::from_hours(24);
    site.policy = RequestPolicy { put_give_up: Duration::from_millis(200), ..site.policy };
    let clock = Arc::new(Moved { clock: Arc::clone(&site.ports.clock), by_ms: AtomicU64::new(0) });
    site.ports.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    let refuse = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&refuse);
    let memory = Arc::clone(&site.store);
    site.nodes[0].store = Arc::new(FaultStore::new(memory, move |request| {
        let is_refused = told.load(Ordering::Relaxed) && request.verb == Verb::Put;
        is_refused.then_some(Fault::Status(403))
    }));
    let engine = site.start().await;
    engine.checkpoint().await.unwrap();
    let record = record(&site).await;
    let piece = newest(&record).await.pieces[0].name;
    let key: object_store::path::Path = format!("record/pieces/{piece}").into();
    let whole = site.store.get(&key).await.unwrap().bytes().await.unwrap();
    let mut damaged = whole.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    refuse.store(true, Ordering::Relaxed);
    site.store.put(&key, damaged.into()).await.unwrap();
    assert_eq!(engine.check_record().await.unwrap(), 1);
    // What was known of lists is too old by then, or was lost with a checkpoint that failed: lists show a piece of the right length.
    assert!(engine.checkpoint().await.is_err());
    clock.by_ms.store(2 * 3_600_000, Ordering::Relaxed);
    refuse.store(false, Ordering::Relaxed);
    engine.checkpoint().await.unwrap();
    assert_eq!(site.store.get(&key).await.unwrap().bytes().await.unwrap(), whole);
    engine.abandon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_checkpoint_put_is_not_put_again() {
    let refuse = Arc::new(AtomicBool::new(true));
    let puts = Arc::new(AtomicU64::new(0));
    let (told, counted) = (Arc::clone(&refuse), Arc::clone(&puts));
    let store = FaultStore::new(Arc::new(InMemory::new()), move |request| {
        let is_put = request.verb == Verb::Put;
        counted.fetch_add(u64::from(is_put && request.key.contains("record/pieces")), Ordering::Relaxed);
        let refused = told.load(Ordering::Relaxed) && is_put && request.key.contains("record/manifests");
        refused.then_some(Fault::Status(503))
    });
    let mut site = Site::on(Arc::new(store)).await;
    site.add_volume("disk", 32 * MIB).await;
    only_asked(&mut site);
    site.policy = RequestPolicy { put_give_up: Duration::from_millis(200), ..site.policy };
    // Nothing but the number of checkpoints changes between the two.
    let engine = site.start().await;
    assert!(engine.checkpoint().await.is_err());
    let first = puts.load(Ordering::Relaxed);
    assert!(first > 1, "{first} pieces");
    refuse.store(false, Ordering::Relaxed);
    engine.checkpoint().await.unwrap();
    let again = puts.load(Ordering::Relaxed) - first;
    assert!(again < first, "{again} of {first} pieces are put again");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_held_does_nothing_by_itself() {
    let mut site = Site::with_volume(32 * MIB).await;
    site.config.held = true;
    let engine = site.start().await;
    // Long enough for the first checkpoint of an engine that is not.
    site.ports.clock.sleep(Duration::from_secs(3)).await;
    assert_eq!(engine.status().record.taken, 0);
    assert_eq!(engine.status().heal.settled_at_ms, None);
    assert!(keys(&site, "record").await.is_empty());
    engine.checkpoint().await.unwrap();
    engine.release();
    engine.create_volume(&site.new_volume("other", MIB)).await.unwrap();
    let recorded = async {
        while engine.status().record.waits {
            site.ports.clock.sleep(Duration::from_millis(20)).await;
        }
    };
    cairn_model::timeout(&*site.ports.clock, Duration::from_mins(1), recorded).await.unwrap();
    engine.shutdown().await.unwrap();
}

/// A catalog of the newest checkpoint, of an incarnation.
async fn copied(site: &Site, record: &RecordStore, name: &str, incarnation: u64) {
    let manifest = newest(record).await;
    let path = site.directory.path().join(name);
    let mut writer = RecordWriter::create(&path, manifest.schema).await.unwrap();
    for piece in &manifest.pieces {
        let piece = record.read_piece(piece.name).await.unwrap();
        writer.write(&piece.head, &piece.rows).await.unwrap();
    }
    writer.finish(incarnation).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_an_earlier_catalog_deletes_nothing() {
    let mut site = Site::with_volume(32 * MIB).await;
    only_asked(&mut site);
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 8 * MIB)).await;
    engine.destage().await.unwrap();
    engine.checkpoint().await.unwrap();
    // Another catalog takes over while this gateway runs.
    let record = record(&site).await;
    let mut of_another = newest(&record).await;
    of_another.id.incarnation += 1;
    record.put_manifest(&of_another, &*site.ports.entropy, &mut Copies::new()).await.unwrap();
    disk.write(0, noise(2, 8 * MIB)).await;
    engine.destage().await.unwrap();
    let before = keys(&site, "segments").await;
    assert_eq!(engine.checkpoint().await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(engine.reclaim(false).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert!(keys(&site, "segments").await.is_superset(&before));
    assert_eq!(newest(&record).await, of_another);
    // Nobody would read what is written from here on.
    let volume = engine.volumes().remove(0);
    let refused = volume.write(0, noise(3, 4096).into(), WriteFlags::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    assert_eq!(
        engine.create_volume(&site.new_volume("other", MIB)).await.unwrap_err().kind(),
        ErrorKind::Fenced
    );
    engine.abandon().await;
    drop((engine, disk, volume));
    // The one that took over goes on.
    copied(&site, &record, "taken.db", 3).await;
    std::fs::rename(site.directory.path().join("taken.db"), site.directory.path().join("catalog.db"))
        .unwrap();
    for left in ["catalog.db-wal", "catalog.db-shm"] {
        let _ = std::fs::remove_file(site.directory.path().join(left));
    }
    let engine = site.start().await;
    engine.checkpoint().await.unwrap();
    assert_eq!(newest(&record).await.id.incarnation, 3);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_writes_finds_out_in_an_interval_although_its_checkpoints_rest() {
    let is_slow = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&is_slow);
    let store = FaultStore::new(Arc::new(InMemory::new()), move |request| {
        let is_slow = told.load(Ordering::Relaxed)
            && request.verb == Verb::Put
            && request.key.contains("record/manifests");
        is_slow.then_some(Fault::Slow(Duration::from_secs(3)))
    });
    let mut site = Site::on(Arc::new(store)).await;
    site.add_volume("disk", 32 * MIB).await;
    only_asked(&mut site);
    site.config.checkpoint_interval = Some(Duration::from_secs(2));
    let engine = site.start().await;
    // The first is taken by itself; the next one rests for a minute.
    while engine.status().record.taken == 0 {
        site.ports.clock.sleep(Duration::from_millis(50)).await;
    }
    is_slow.store(false, Ordering::Relaxed);
    let taken = engine.status().record.taken;
    let record = record(&site).await;
    let mut of_another = newest(&record).await;
    of_another.id.incarnation += 1;
    record.put_manifest(&of_another, &*site.ports.entropy, &mut Copies::new()).await.unwrap();
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, MIB)).await;
    let _ = engine.destage().await;
    let volume = engine.volumes().remove(0);
    let found_out = async {
        while volume.write(0, noise(3, 4096).into(), WriteFlags::default()).await.is_ok() {
            site.ports.clock.sleep(Duration::from_millis(50)).await;
        }
    };
    cairn_model::timeout(&*site.ports.clock, Duration::from_secs(20), found_out).await.unwrap();
    assert_eq!(engine.status().record.taken, taken);
    assert_eq!(engine.checkpoint().await.unwrap_err().kind(), ErrorKind::Fenced);
    engine.abandon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_a_newer_version_may_have_superseded_deletes_nothing() {
    let mut site = Site::with_volume(32 * MIB).await;
    only_asked(&mut site);
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 8 * MIB)).await;
    engine.destage().await.unwrap();
    engine.checkpoint().await.unwrap();
    let record = record(&site).await;
    let id = newest(&record).await.id;
    let key = |id: cairn_segment_writer::ManifestId| format!("record/manifests/{id}");
    let object = site.store.get(&key(id).as_str().into()).await.unwrap().bytes().await.unwrap();
    let mut newer = object.to_vec();
    newer[8] += 1;
    let later = cairn_segment_writer::ManifestId { incarnation: id.incarnation + 1, ..id };
    let path: object_store::path::Path = key(later).into();
    site.store.put(&path, newer.into()).await.unwrap();
    disk.write(0, noise(2, 8 * MIB)).await;
    engine.destage().await.unwrap();
    let before = keys(&site, "segments").await;
    let error = engine.checkpoint().await.unwrap_err();
    assert!(error.to_string().contains("newer"), "{error}");
    engine.reclaim(false).await.unwrap_err();
    assert!(keys(&site, "segments").await.is_superset(&before));
    // It was none: all goes on.
    site.store.delete(&path).await.unwrap();
    engine.checkpoint().await.unwrap();
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_the_catalog_neither_records_nor_deletes() {
    let mut site = Site::with_volume(32 * MIB).await;
    only_asked(&mut site);
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 8 * MIB)).await;
    engine.destage().await.unwrap();
    engine.checkpoint().await.unwrap();
    let record = record(&site).await;
    // As if a copy of the same incarnation had gone on elsewhere.
    let mut later = newest(&record).await;
    later.id.number += 1000;
    record.put_manifest(&later, &*site.ports.entropy, &mut Copies::new()).await.unwrap();
    disk.write(0, noise(2, 8 * MIB)).await;
    engine.destage().await.unwrap();
    let before = keys(&site, "segments").await;
    assert_eq!(engine.checkpoint().await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(engine.reclaim(false).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert!(keys(&site, "segments").await.is_superset(&before));
    assert_eq!(newest(&record).await, later);
    engine.abandon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_catalogs_of_one_checkpoint_neither_passes_for_the_other() {
    let mut site = Site::with_volume(32 * MIB).await;
    only_asked(&mut site);
    let engine = site.start().await;
    engine.checkpoint().await.unwrap();
    engine.checkpoint().await.unwrap();
    // The other one took the site over too, and begins with the first number.
    let record = record(&site).await;
    let mut of_another = newest(&record).await;
    of_another.id.number = 1;
    of_another.id.gateway = GatewayId::from_bytes([7; 16]);
    let mut copies = Copies::new();
    let before = record.manifests().await.unwrap();
    record.put_manifest(&of_another, &*site.ports.entropy, &mut copies).await.unwrap();
    let manifests = record.manifests().await.unwrap();
    assert!(
        before.keys().chain([&of_another.id]).all(|id| manifests.contains_key(id)),
        "nothing was put over this one's"
    );
    assert_eq!(engine.checkpoint().await.unwrap_err().kind(), ErrorKind::Fenced);
    let after = record.manifests().await.unwrap();
    assert!(manifests.keys().all(|id| after.contains_key(id)), "nothing is deleted");
    // It ended, and took its manifest away.
    record.delete_manifest(of_another.id, &mut copies, &mut Copies::new()).await;
    engine.checkpoint().await.unwrap();
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bare_name_of_a_later_checkpoint_stops_nobody() {
    let mut site = Site::with_volume(32 * MIB).await;
    only_asked(&mut site);
    let engine = site.start().await;
    let lie = format!("record/manifests/7fffffffffffffff-0000000000000001-{}", "ab".repeat(16));
    for content in [Vec::new(), noise(1, 200)] {
        site.store.put(&lie.as_str().into(), content.into()).await.unwrap();
        engine.checkpoint().await.unwrap();
    }
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(2, 8 * MIB)).await;
    disk.check_all().await;
    // Nor does it keep what nobody needs.
    for round in 0..5 {
        engine.create_volume(&site.new_volume(&format!("v{round}"), MIB)).await.unwrap();
        engine.checkpoint().await.unwrap();
    }
    assert_eq!(keys(&site, "record/manifests").await.len(), 4, "three, and the lie");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_site_was_taken_over_keeps_its_log() {
    let mut site = Site::with_volume(32 * MIB).await;
    only_asked(&mut site);
    site.config.batch_age = Duration::from_hours(1);
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    engine.checkpoint().await.unwrap();
    let record = record(&site).await;
    let before = newest(&record).await;
    let mut of_another = before.clone();
    of_another.id.incarnation += 1;
    disk.write(0, noise(2, 2 * MIB)).await;
    disk.volume.flush().await.unwrap();
    let mut copies = Copies::new();
    record.put_manifest(&of_another, &*site.ports.entropy, &mut copies).await.unwrap();
    assert_eq!(engine.checkpoint().await.unwrap_err().kind(), ErrorKind::Fenced);
    // A cut of no volume, as age or a command makes one.
    let _ = cairn_model::timeout(&*site.ports.clock, Duration::from_secs(5), engine.destage()).await;
    assert_eq!(engine.shutdown().await.unwrap_err().kind(), ErrorKind::Fenced);
    let expected = disk.into_expected();
    drop(engine);
    // Had it been a mistake, nothing is lost.
    record.delete_manifest(of_another.id, &mut copies, &mut Copies::new()).await;
    let engine = site.start().await;
    let disk = Checked { volume: engine.volume("disk").unwrap(), expected };
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}
