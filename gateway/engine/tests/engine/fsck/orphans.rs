//! Objects that nothing names: those go, and no others.

use super::{assert_clean, bytes, check, check_alone, damage, kinds, mend, put, site_with_data};
use crate::heal::cluster::{Cluster, filled, noise};
use crate::support::{Checked, DOMAIN_KEY, MIB, Site, seize};
use cairn_engine::{Fsck, FsckReport, ProblemKind, Remedy};
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{BatchId, BlockDevice, DomainId, SegmentId};
use cairn_segment_writer::testing::{Fault, FaultStore, Verb};
use cairn_segment_writer::{
    BatchHeader, ContainerDirectory, DataNode, Domain, Pool, Regrouped, RequestPolicy,
};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

fn key_of(id: SegmentId) -> String {
    let text = id.to_string();
    format!("segments/{}/{text}", &text[12..14])
}

/// A copy of a segment under an identity of its own, as a put that was never committed leaves one.
pub(super) async fn plant(store: &Arc<dyn ObjectStore>, of: &str, number: u8) -> String {
    let id = SegmentId::from_bytes([number; 16]);
    let mut object = bytes(store, of).await;
    object[48..64].copy_from_slice(id.as_bytes());
    put(store, &key_of(id), object).await;
    key_of(id)
}

async fn is_there(store: &Arc<dyn ObjectStore>, key: &str) -> bool {
    store.head(&Path::from(key)).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_names_is_deleted_and_what_is_not_the_sites_is_left_alone() {
    let (cluster, engine, disk) = site_with_data().await;
    let store = Arc::clone(&cluster.nodes[0].inner) as Arc<dyn ObjectStore>;
    let named = cluster.places().await.remove(0).place.key;
    let orphan = plant(&store, &named, 1).await;
    // A shard that healing made of a segment that is there, and did not place.
    let unplaced = format!("{named}.0000002a");
    put(&store, &unplaced, bytes(&store, &named).await).await;
    let foreign = plant(&store, &named, 2).await;
    let mut object = bytes(&store, &foreign).await;
    object[33] ^= 0xff;
    put(&store, &foreign, object).await;
    let nonsense = key_of(SegmentId::from_bytes([3; 16]));
    put(&store, &nonsense, b"no segment".to_vec()).await;
    let other = key_of(SegmentId::from_bytes([4; 16]));
    put(&store, &other, bytes(&store, &named).await).await;
    let stranger = "segments/ab/notes.txt".to_owned();
    let (beside, in_another) = ("segments/notes.txt".to_owned(), "segments/zz/notes.txt".to_owned());
    for key in [&stranger, &beside, &in_another] {
        put(&store, key, b"whatever".to_vec()).await;
    }
    let outside = "record/pieces/whatever".to_owned();
    put(&store, &outside, b"whatever".to_vec()).await;

    let (report, repaired) = mend(&engine).await;
    let mut found = kinds(&report);
    found.sort();
    let (gone, stays) = ((ProblemKind::Orphan, Some(Remedy::Delete)), (ProblemKind::ForeignObject, None));
    assert_eq!(found, [gone, gone, stays, stays, stays, stays, stays, stays], "{report:#?}");
    let plan = report.plan.unwrap();
    assert_eq!((plan.delete, plan.delete_bytes), (2, report.orphan_bytes), "{plan:?}");
    assert_eq!((report.orphans, repaired.orphans), (2, 2), "{repaired:?}");
    assert!(repaired.deleted && repaired.left.is_empty(), "{repaired:?}");
    for key in [&orphan, &unplaced] {
        assert!(!is_there(&store, key).await, "{key}");
    }
    for key in [&foreign, &nonsense, &other, &stranger, &beside, &in_another, &outside, &named] {
        assert!(is_there(&store, key).await, "{key}");
    }
    let again = check(&engine).await;
    assert_eq!((again.orphans, again.plan), (0, None), "{again:#?}");
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_alone_deletes_nothing() {
    let (cluster, engine, _disk) = site_with_data().await;
    let store = Arc::clone(&cluster.nodes[0].inner) as Arc<dyn ObjectStore>;
    let named = cluster.places().await.remove(0).place.key;
    let orphan = plant(&store, &named, 1).await;
    for _ in 0..2 {
        assert_eq!(kinds(&check(&engine).await), [(ProblemKind::Orphan, Some(Remedy::Delete))]);
    }
    assert!(is_there(&store, &orphan).await);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_and_not_committed_yet_is_not_taken_for_an_orphan() {
    // Of a batch of many segments one is not taken for a long time: the others are there, and nothing names them.
    let (is_held, held) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let inner = Arc::new(InMemory::new());
    let store = {
        let (is_held, held) = (Arc::clone(&is_held), Arc::clone(&held));
        FaultStore::new(Arc::clone(&inner) as _, move |request| {
            let is_put = request.verb == Verb::Put && request.key.contains("segments/");
            if !is_put || !is_held.load(Ordering::Relaxed) {
                return None;
            }
            (held.fetch_add(1, Ordering::Relaxed) == 2).then(|| Fault::Slow(Duration::from_secs(12)))
        })
    };
    let mut site = Site::on(Arc::new(store)).await;
    site.add_volume("disk", 32 * MIB).await;
    site.config.checkpoint_interval = None;
    site.config.reclaim_interval = None;
    site.config.scrub_period = None;
    site.config.pack.container_bytes_max = 256 << 10;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    is_held.store(true, Ordering::Relaxed);
    disk.write(0, noise(1, 4 * MIB)).await;
    let destaging = tokio::spawn({
        let engine = Arc::clone(&engine);
        async move { engine.destage().await }
    });
    let objects = || async {
        use futures::TryStreamExt;
        let listed: Vec<_> = inner.list(Some(&"segments".into())).try_collect().await.unwrap();
        listed.len()
    };
    for round in 0.. {
        if objects().await > 2 {
            break;
        }
        assert!(round < 200, "nothing is put");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let catalog = site.catalog().await;
    let fsck = Fsck::default();
    let report = fsck.check(&engine).await.unwrap();
    assert_eq!(catalog.totals().await.unwrap().segments, 0, "it was not committed yet when it was checked");
    assert!(report.objects > 2, "{report:?}");
    assert_clean(&report);
    destaging.await.unwrap().unwrap();
    assert_clean(&fsck.check(&engine).await.unwrap());
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_named_after_the_plan_was_made_is_not_deleted() {
    // The plan says that it is an orphan; by the time that it is carried out a segment is placed on it.
    let cluster = Cluster::new(3, "replica:2").await;
    let (engine, disk) = filled(&cluster, MIB).await;
    cluster.until_whole(&engine).await;
    let segment = cluster.places().await.remove(0);
    let placement = &segment.place.placement;
    let free = (0..3).find(|number| {
        let id = cluster.site.nodes[*number].id;
        placement.present().all(|(_, shard)| shard.node != id)
    });
    let free = free.unwrap();
    let holder = cluster.number_of(placement.shards()[0].unwrap().node);
    let from = Arc::clone(&cluster.nodes[holder].inner) as Arc<dyn ObjectStore>;
    let store = Arc::clone(&cluster.nodes[free].inner) as Arc<dyn ObjectStore>;
    let key = format!("{}.0000002a", segment.place.key);
    put(&store, &key, bytes(&from, &segment.place.key).await).await;
    let fsck = Fsck::default();
    let report = fsck.check(&engine).await.unwrap();
    assert_eq!(report.orphans, 1, "{report:#?}");
    let mut shards = placement.shards().to_vec();
    shards[0] = Some(cairn_model::ShardPlace { node: cluster.site.nodes[free].id, tag: 0x2a });
    let placement = cairn_model::Placement::new(placement.profile(), shards).unwrap();
    let to = cairn_model::ObjectPlace { placement, ..segment.place.clone() };
    let catalog = cluster.site.catalog().await;
    let change = cairn_metadata::PlacementChange { segment: segment.id, from: segment.place.clone(), to };
    catalog.place_shards(&change).await.unwrap();
    let repaired = fsck.repair(&engine, report.plan.unwrap().id).await.unwrap();
    assert_eq!(repaired.orphans, 0, "{repaired:?}");
    assert!(is_there(&store, &key).await);
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_before_a_checkpoint_has_it_among_the_doomed() {
    let refuse = Arc::new(AtomicBool::new(false));
    let inner = Arc::new(InMemory::new());
    let store = {
        let refuse = Arc::clone(&refuse);
        FaultStore::new(Arc::clone(&inner) as _, move |request| {
            let is_manifest = request.verb == Verb::Put && request.key.contains("record/manifests");
            (is_manifest && refuse.load(Ordering::Relaxed)).then_some(Fault::Status(503))
        })
    };
    let mut site = Site::on(Arc::new(store)).await;
    site.add_volume("disk", 32 * MIB).await;
    site.config.checkpoint_interval = Some(Duration::from_hours(1));
    site.config.reclaim_interval = None;
    site.policy.put_give_up = Duration::from_millis(200);
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, MIB)).await;
    engine.destage().await.unwrap();
    engine.checkpoint().await.unwrap();
    let store = Arc::clone(&inner) as Arc<dyn ObjectStore>;
    let catalog = site.catalog().await;
    let named = catalog.segment_places(None, 1).await.unwrap().remove(0).place.key;
    let orphan = plant(&store, &named, 1).await;
    refuse.store(true, Ordering::Relaxed);
    let (_, repaired) = mend(&engine).await;
    assert_eq!((repaired.orphans, repaired.deleted, repaired.left.len()), (1, false, 1), "{repaired:?}");
    assert!(is_there(&store, &orphan).await);
    // It is doomed, and no orphan any more: reclaim goes on with it.
    assert_eq!(check(&engine).await.orphans, 0);
    refuse.store(false, Ordering::Relaxed);
    engine.reclaim(false).await.unwrap();
    assert!(!is_there(&store, &orphan).await);
    assert_clean(&check(&engine).await);
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_while_another_gateway_holds_a_volume() {
    let (cluster, engine, _disk) = site_with_data().await;
    engine.create_volume(&cluster.site.new_volume("other", MIB)).await.unwrap();
    let store = Arc::clone(&cluster.nodes[0].inner) as Arc<dyn ObjectStore>;
    let named = cluster.places().await.remove(0).place.key;
    let orphan = plant(&store, &named, 1).await;
    let volume = engine.volume("other").unwrap().id();
    seize(&cluster.site, volume, "second").await;
    let (_, repaired) = mend(&engine).await;
    assert_eq!(repaired.orphans, 0);
    assert!(repaired.left[0].contains("other"), "{repaired:?}");
    assert!(is_there(&store, &orphan).await);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gateway_left_that_died_is_swept_and_nothing_is_lost() {
    let cluster = Cluster::new(4, "ec:2+1").await;
    let (engine, mut disk) = filled(&cluster, MIB).await;
    // It dies in the middle of what it brings to the pool: two nodes do not take what the other two have.
    for node in &cluster.nodes[..2] {
        node.set_plan(|request| {
            let is_put = request.verb == Verb::Put && request.key.contains("segments/");
            is_put.then_some(Fault::Status(503))
        });
    }
    for round in 0..3 {
        disk.write(round * MIB, noise(40 + round, 2 * MIB)).await;
    }
    disk.volume.flush().await.unwrap();
    for round in 0.. {
        if cluster.garbage().await > 0 {
            break;
        }
        assert!(round < 2000, "everything is committed at once");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let expected = disk.into_expected();
    engine.abandon().await;
    drop(engine);
    for node in &cluster.nodes {
        node.set_plan(|_| None);
    }
    let engine = cluster.site.start().await;
    let disk = Checked { volume: engine.volume("disk").unwrap(), expected };
    engine.destage().await.unwrap();
    cluster.until_whole(&engine).await;
    let left = cluster.garbage().await;
    let report = check(&engine).await;
    assert_eq!((report.orphans, report.problem_count), (left as u64, left as u64), "{report:#?}");
    assert!(left > 0);
    let (_, repaired) = mend(&engine).await;
    assert!(repaired.deleted && repaired.left.is_empty(), "{repaired:?}");
    assert_eq!(cluster.garbage().await, 0);
    assert_clean(&check(&engine).await);
    disk.check_all().await;
    let keys: BTreeSet<String> = cluster.nodes[0].keys().await;
    assert!(!keys.is_empty());
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_from_before_takes_nothing_that_was_written_since_for_an_orphan() {
    let mut site = Site::with_volume(32 * MIB).await;
    site.config.checkpoint_interval = Some(Duration::from_hours(1));
    site.config.reclaim_interval = None;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, MIB)).await;
    let expected = disk.into_expected();
    engine.shutdown().await.unwrap();
    drop(engine);
    assert_clean(&check_alone(&site).await);
    let (file, copy) = (site.directory.path().join("catalog.db"), site.directory.path().join("copy.db"));
    std::fs::copy(&file, &copy).unwrap();
    let engine = site.start().await;
    let mut disk = Checked { volume: engine.volume("disk").unwrap(), expected };
    disk.write(MIB, noise(2, MIB)).await;
    engine.shutdown().await.unwrap();
    drop((engine, disk));
    assert_clean(&check_alone(&site).await);
    std::fs::rename(&copy, &file).unwrap();
    let report = check_alone(&site).await;
    let mut found = kinds(&report);
    found.sort();
    found.dedup();
    assert_eq!(found, [(ProblemKind::Orphan, None), (ProblemKind::Record, None)], "{report:#?}");
    assert_eq!((report.orphans, report.plan), (0, None), "{report:#?}");
}

/// A copy of the catalog as of now, while it is in use.
async fn copy_catalog(site: &Site) -> std::path::PathBuf {
    let copy = site.directory.path().join("copy.db");
    damage(site, &format!("VACUUM INTO '{}'", copy.display())).await;
    copy
}

fn put_back(site: &Site, copy: &std::path::Path) {
    let file = site.directory.path().join("catalog.db");
    std::fs::rename(copy, &file).unwrap();
    for name in ["catalog.db-wal", "catalog.db-shm"] {
        let _ = std::fs::remove_file(site.directory.path().join(name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_of_between_two_checkpoints_takes_nothing_that_was_written_since_for_an_orphan() {
    let mut site = Site::with_volume(32 * MIB).await;
    site.config.checkpoint_interval = Some(Duration::from_hours(1));
    site.config.reclaim_interval = None;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, MIB)).await;
    engine.destage().await.unwrap();
    engine.checkpoint().await.unwrap();
    let store = Arc::clone(&site.nodes[0].store);
    let named = site.catalog().await.segment_places(None, 1).await.unwrap().remove(0).place.key;
    let copy = copy_catalog(&site).await;
    for round in 1..4 {
        disk.write(round * MIB, noise(10 + round, MIB)).await;
        engine.destage().await.unwrap();
    }
    drop(disk);
    engine.abandon().await;
    drop(engine);
    put_back(&site, &copy);
    // What is named by nothing for another reason is not told from that.
    let orphan = plant(&store, &named, 1).await;
    let later = |report: &FsckReport| {
        let mut found = kinds(report);
        found.sort();
        let orphan = (ProblemKind::Orphan, None);
        assert_eq!(found, [orphan, orphan, orphan, orphan, (ProblemKind::Record, None)], "{report:#?}");
        assert_eq!((report.orphans, report.plan), (0, None), "{report:#?}");
        assert!(
            report.problems.iter().any(|problem| problem.text.contains("`cairn recover`")),
            "{report:#?}"
        );
    };
    later(&check_alone(&site).await);
    // The log, which does not have it either, was lost with the host: whoever goes on all the same still deletes nothing.
    site.config.accept_lost_wal = true;
    std::fs::remove_dir_all(site.wal_directory()).unwrap();
    let engine = site.start().await;
    later(&check(&engine).await);
    assert!(is_there(&store, &orphan).await);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_on_a_node_that_is_another_one_by_now_or_went_away() {
    let cluster = Cluster::new(3, "replica:2").await;
    let (engine, disk) = filled(&cluster, MIB).await;
    cluster.until_whole(&engine).await;
    let mut orphans = Vec::new();
    for (number, node) in cluster.nodes.iter().enumerate() {
        let store = Arc::clone(&node.inner) as Arc<dyn ObjectStore>;
        let named = node.keys().await.into_iter().next().unwrap();
        orphans.push(plant(&store, &named, u8::try_from(number).unwrap() + 1).await);
    }
    let fsck = Fsck::default();
    let report = fsck.check(&engine).await.unwrap();
    assert_eq!(report.orphans, 3, "{report:#?}");
    let first = Arc::clone(&cluster.nodes[0].inner) as Arc<dyn ObjectStore>;
    let marker = bytes(&first, "cairn-node.json").await;
    let second = Arc::clone(&cluster.nodes[1].inner) as Arc<dyn ObjectStore>;
    let own = bytes(&second, "cairn-node.json").await;
    put(&second, "cairn-node.json", marker).await;
    let repaired = fsck.repair(&engine, report.plan.unwrap().id).await.unwrap();
    assert_eq!((repaired.orphans, repaired.left_count), (2, 1), "{repaired:?}");
    assert!(is_there(&second, &orphans[1]).await);
    // Nor is anything concluded of what is in the place of a node.
    let report = check(&engine).await;
    assert_eq!((report.orphans, report.problem_count, report.unchecked_count), (0, 0, 1), "{report:#?}");
    assert!(report.unchecked[0].contains("is data node"), "{report:#?}");
    put(&second, "cairn-node.json", own).await;
    let report = fsck.check(&engine).await.unwrap();
    assert_eq!(report.orphans, 1, "{report:#?}");
    cluster.nodes[1].set_down(true);
    let repaired = fsck.repair(&engine, report.plan.unwrap().id).await.unwrap();
    assert_eq!((repaired.orphans, repaired.deleted, repaired.left_count), (0, false, 1), "{repaired:?}");
    cluster.nodes[1].set_down(false);
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_segment_names_is_not_to_be_deleted_any_more() {
    let (cluster, engine, disk) = site_with_data().await;
    let sql = "INSERT INTO doomed (segment, node, object_key, length_bytes) \
               SELECT h.segment, h.node, s.object_key, s.length_bytes FROM shards h JOIN segments s ON s.id = h.segment \
               ORDER BY s.id LIMIT 1";
    assert_eq!(damage(&cluster.site, sql).await, 1);
    let (report, repaired) = mend(&engine).await;
    assert_eq!(kinds(&report), [(ProblemKind::Doomed, Some(Remedy::Keep))], "{report:#?}");
    assert_eq!((repaired.kept, repaired.left_count), (1, 0));
    engine.reclaim(false).await.unwrap();
    assert_clean(&check(&engine).await);
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

/// Everything among the segments of all nodes.
async fn objects(cluster: &Cluster) -> BTreeSet<(usize, String)> {
    let mut all = BTreeSet::new();
    for (number, node) in cluster.nodes.iter().enumerate() {
        all.extend(node.keys().await.into_iter().map(|key| (number, key)));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_a_segment_whose_rows_are_wrong_are_no_orphans() {
    const FIRST: &str = "(SELECT min(id) FROM segments)";
    for sql in [
        format!(
            "UPDATE segments SET object_key = 'segments/ab/0000000000000000000000000000ab00' WHERE id = {FIRST}"
        ),
        format!("UPDATE segments SET profile = 'ec:2+2' WHERE id = {FIRST}"),
        format!("UPDATE segments SET profile = 'single' WHERE id = {FIRST}"),
        format!("UPDATE segments SET length_bytes = 1 << 62 WHERE id = {FIRST}"),
        format!("UPDATE shards SET tag = tag + 1 WHERE segment = {FIRST}"),
        format!("UPDATE shards SET tag = tag + 1 WHERE segment = {FIRST} AND shard = 1"),
        format!("DELETE FROM shards WHERE segment = {FIRST} AND shard = 0"),
        format!("DELETE FROM shards WHERE segment = {FIRST} AND shard < 2"),
        format!("DELETE FROM shards WHERE segment = {FIRST}"),
    ] {
        let mut cluster = Cluster::new(4, "ec:2+1").await;
        // Nothing but the check and what it mends.
        cluster.site.config.heal_interval = Duration::from_hours(1);
        let (engine, _disk) = filled(&cluster, MIB).await;
        cluster.until_whole(&engine).await;
        let before = objects(&cluster).await;
        assert!(damage(&cluster.site, &sql).await > 0, "{sql}");
        let fsck = Fsck::default();
        let report = fsck.check(&engine).await.unwrap();
        assert!(report.problem_count > 0, "{sql}");
        assert_eq!(report.orphans, 0, "{sql}: {report:#?}");
        if let Some(plan) = report.plan {
            fsck.repair(&engine, plan.id).await.unwrap();
        }
        let after = objects(&cluster).await;
        assert!(after.is_superset(&before), "{sql}: {:?} are gone", before.difference(&after));
        engine.shutdown().await.unwrap();
    }
}

/// Puts a segment on a node that holds what another one has, under the same names: what was moved was in one before that, and is in one after.
async fn put_moved(cluster: &Cluster, of: SegmentId, node: usize) -> String {
    let site = &cluster.site;
    let catalog = site.catalog().await;
    let held = catalog.check().unwrap().containers_in(&[of]).await.unwrap();
    catalog.close().await;
    let domain = Domain::new(DomainId::DEFAULT, SecretKey::from_bytes(DOMAIN_KEY), Encryption::Aes256Gcm);
    let batch = BatchId::fresh(&*site.ports.clock, &*site.ports.entropy);
    let batch = BatchHeader { site: site.id, gateway: site.gateway, batch, attempt: 1, previous: None };
    let mut moved = Regrouped::new(&domain, batch, 1 << 20, &site.ports);
    for container in held {
        let directory = ContainerDirectory::decode(&container.directory).unwrap();
        // A check reads none of them.
        let chunks: Vec<_> =
            directory.iter().map(|(index, entry)| (index, vec![0; entry.stored_bytes as usize])).collect();
        let chunks = chunks.iter().map(|(index, bytes)| (*index, &**bytes));
        moved.add(container.id, &directory, &directory.present(), None, chunks);
    }
    let (segment, policy) = (moved.seal(), RequestPolicy::default());
    let store = Arc::clone(&cluster.nodes[node].inner) as Arc<dyn ObjectStore>;
    let node = DataNode::attach_store(store, "memory", site.id, policy, site.ports.clone());
    let _receipt = Pool::single(node.await.unwrap()).put(&segment).await.unwrap();
    segment.key().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_holds_what_another_segment_has_is_kept_until_that_is_whole() {
    let mut cluster = Cluster::new(3, "replica:2").await;
    // Nothing but the check and what it mends.
    cluster.site.config.heal_interval = Duration::from_hours(1);
    let (engine, disk) = filled(&cluster, MIB).await;
    cluster.until_whole(&engine).await;
    let segment = cluster.places().await.remove(0);
    let holder = cluster.number_of(segment.place.placement.shards()[0].unwrap().node);
    let before = put_moved(&cluster, segment.id, holder).await;
    let store = Arc::clone(&cluster.nodes[holder].inner) as Arc<dyn ObjectStore>;
    let fsck = Fsck::default();
    let report = fsck.check(&engine).await.unwrap();
    assert_eq!(kinds(&report), [(ProblemKind::Orphan, Some(Remedy::Delete))], "{report:#?}");
    // By the time that it is mended, a shard of the other one is lost.
    let catalog = cluster.site.catalog().await;
    catalog.lose_shard(segment.id, segment.place.clone(), 1).await.unwrap();
    catalog.close().await;
    let repaired = fsck.repair(&engine, report.plan.unwrap().id).await.unwrap();
    assert_eq!((repaired.orphans, repaired.left_count), (0, 1), "{repaired:?}");
    assert!(is_there(&store, &before).await, "it may be the last good copy");
    // Nor is it planned while that is so.
    let report = check(&engine).await;
    let orphans = report.problems.iter().filter(|problem| problem.subject.contains(&before));
    let orphans: Vec<_> = orphans.collect();
    assert_eq!(orphans.len(), 1, "{report:#?}");
    assert!(orphans[0].remedy.is_none() && orphans[0].text.contains("until that is whole"), "{report:#?}");
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}
