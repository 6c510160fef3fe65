//! Planted damage of each kind: each is found, and mended or told.

use super::{assert_clean, bytes, check, check_alone, damage, fold, kinds, mend, put, site_with_data};
use crate::heal::cluster::{Cluster, filled, noise};
use crate::support::{Checked, MIB};
use cairn_engine::{Engine, Fsck, FsckReport, ProblemKind, Remedy};
use cairn_metadata::SnapshotName;
use cairn_model::{ErrorKind, Kinded};
use cairn_segment_writer::testing::{Fault, FaultStore, Verb};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sqlx::{Connection, SqliteConnection};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What of a volume cannot be read, in order.
fn lost(report: &FsckReport) -> Vec<(String, u64, u64)> {
    let name = |range: &cairn_engine::LostRange| match &range.snapshot {
        Some(snapshot) => format!("{}@{snapshot}", range.volume),
        None => range.volume.clone(),
    };
    report.lost.iter().map(|range| (name(range), range.offset, range.length)).collect()
}

/// Every byte of the volume can be read, or is in a range that was told; and nothing of such a range can be.
async fn assert_exactly_lost(report: &FsckReport, disk: &Checked) {
    use cairn_model::BlockDevice;
    for block in 0..disk.volume.size_bytes() / 4096 {
        let at = block * 4096;
        let is_told = report.lost.iter().any(|range| {
            range.snapshot.is_none() && (range.offset..range.offset + range.length).contains(&at)
        });
        let read = disk.volume.read(at, 4096).await;
        assert_eq!(read.is_err(), is_told, "block at {at}: {:?}", read.err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_sums_are_told_and_set() {
    let (cluster, engine, _disk) = site_with_data().await;
    assert_clean(&check(&engine).await);
    damage(&cluster.site, "UPDATE totals SET segment_bytes = segment_bytes + 7").await;
    damage(&cluster.site, "UPDATE volumes SET logical_bytes = logical_bytes - 4096").await;
    let fsck = Fsck::default();
    let report = fsck.check(&engine).await.unwrap();
    assert_eq!(kinds(&report), [(ProblemKind::Sum, Some(Remedy::Recount)); 2]);
    assert_eq!(kinds(&check(&engine).await), kinds(&report), "a check changes nothing");
    // A plan is carried out once, and only the last one.
    assert_eq!(
        fsck.repair(&engine, report.plan.unwrap().id + 1).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    assert_eq!(fsck.repair(&engine, report.plan.unwrap().id).await.unwrap().sums, 2);
    assert_eq!(fsck.repair(&engine, report.plan.unwrap().id).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_clean(&check(&engine).await);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_leaf_says_that_it_maps_is_counted_anew() {
    let (cluster, engine, _disk) = site_with_data().await;
    assert_eq!(damage(&cluster.site, "UPDATE leaves SET blocks = blocks + 1").await, 1);
    let (report, repaired) = mend(&engine).await;
    assert!(kinds(&report).iter().all(|kind| *kind == (ProblemKind::Sum, Some(Remedy::Recount))));
    assert!(
        repaired.sums > 0 && report.problem_count >= 2,
        "the leaf, and what is added up of it: {report:?}"
    );
    assert_clean(&check(&engine).await);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_wrong_shards_are_made_anew() {
    let mut cluster = Cluster::new(4, "ec:2+1").await;
    // Healing does not find them before.
    cluster.site.config.heal_interval = Duration::from_hours(1);
    let (engine, disk) = filled(&cluster, 2 * MIB).await;
    cluster.until_whole(&engine).await;
    assert_clean(&check(&engine).await);
    let places = cluster.places().await;
    assert!(places.len() >= 4, "{}", places.len());
    let object = |segment: usize, index: usize| {
        let place = &places[segment].place;
        let node = place.placement.shards()[index].unwrap().node;
        (
            Arc::clone(&cluster.nodes[cluster.number_of(node)].inner) as Arc<dyn ObjectStore>,
            place.shard_key(index).unwrap(),
        )
    };
    // One is missing; one is cut short; one is another segment's; one is another shard's.
    let (store, key) = object(0, 1);
    store.delete(&Path::from(key)).await.unwrap();
    let (store, key) = object(1, 0);
    let whole = bytes(&store, &key).await;
    put(&store, &key, whole[..whole.len() - 5].to_vec()).await;
    let (from, of) = object(3, 2);
    let (store, key) = object(2, 2);
    put(&store, &key, bytes(&from, &of).await).await;
    let (from, of) = object(3, 0);
    let other = bytes(&from, &of).await;
    let (store, key) = object(3, 1);
    put(&store, &key, other).await;
    let (report, repaired) = mend(&engine).await;
    let mut found = kinds(&report);
    found.sort();
    let heal = Some(Remedy::Heal);
    let wrong = (ProblemKind::WrongShard, heal);
    assert_eq!(found, [(ProblemKind::MissingShard, heal), wrong, wrong, wrong], "{report:#?}");
    assert_eq!((report.lost_count, repaired.shards, repaired.left.len()), (0, 4, 0), "{repaired:?}");
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    assert_clean(&check(&engine).await);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_of_another_site_is_told_from_the_own() {
    let (cluster, engine, _disk) = site_with_data().await;
    let place = cluster.places().await.remove(0).place;
    let store = Arc::clone(&cluster.nodes[0].inner) as Arc<dyn ObjectStore>;
    let mut object = bytes(&store, &place.key).await;
    object[40] ^= 1;
    put(&store, &place.key, object).await;
    let report = check(&engine).await;
    assert_eq!(kinds(&report), [(ProblemKind::WrongShard, None)], "there is no other copy: {report:#?}");
    assert!(report.problems[0].text.contains("another site"), "{report:?}");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_told_by_volume_snapshot_and_bytes_and_stays_an_error() {
    let mut cluster = Cluster::new(3, "ec:2+1").await;
    cluster.site.config.heal_interval = Duration::from_hours(1);
    let (engine, mut disk) = filled(&cluster, 2 * MIB).await;
    let name: SnapshotName = "before".parse().unwrap();
    engine.create_snapshot("disk", &name).await.unwrap();
    // The volume has other bytes there now, the snapshot has the old ones.
    disk.write(0, noise(7, 2 * MIB)).await;
    engine.destage().await.unwrap();
    fold(&engine).await;
    cluster.until_whole(&engine).await;
    let mut segments = cluster.places().await;
    // Two shards of three of one of the oldest.
    let place = segments.remove(0).place;
    for index in [0, 2] {
        let node = place.placement.shards()[index].unwrap().node;
        let store = &cluster.nodes[cluster.number_of(node)].inner;
        store.delete(&Path::from(place.shard_key(index).unwrap())).await.unwrap();
    }
    let report = check(&engine).await;
    assert_eq!(kinds(&report), [(ProblemKind::MissingShard, None); 2], "{report:#?}");
    let told = lost(&report);
    assert!(!told.is_empty() && report.lost_bytes > 0);
    assert!(told.iter().all(|(of, ..)| of == "disk@before"), "the volume was overwritten there: {told:?}");
    assert_eq!(report.plan, None, "nothing of it can be mended: {told:?}");
    assert_exactly_lost(&report, &disk).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_copy_loses_exactly_what_is_told() {
    let (cluster, engine, disk) = site_with_data().await;
    let place = cluster.places().await.remove(1).place;
    cluster.nodes[0].inner.delete(&Path::from(place.key)).await.unwrap();
    let report = check(&engine).await;
    assert_eq!(kinds(&report), [(ProblemKind::MissingShard, None)]);
    assert!(report.lost_bytes > 0 && lost(&report).iter().all(|(of, ..)| of == "disk"), "{report:?}");
    assert_exactly_lost(&report, &disk).await;
    engine.shutdown().await.unwrap();
}

/// Damages the catalog, and says what a check finds; it mends nothing of it.
async fn found_after(sql: &str) -> (FsckReport, Arc<Engine>, Checked, Cluster) {
    let (cluster, engine, disk) = site_with_data().await;
    assert!(damage(&cluster.site, sql).await > 0, "{sql}");
    let report = check(&engine).await;
    (report, engine, disk, cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_that_point_at_nothing_are_told() {
    let sql = "DELETE FROM containers WHERE id = (SELECT min(id) FROM containers)";
    let (report, engine, ..) = found_after(sql).await;
    let found = kinds(&report);
    assert!(found.contains(&(ProblemKind::Map, None)), "{report:#?}");
    assert!(report.lost_bytes > 0 && lost(&report).iter().all(|(of, ..)| of == "disk"));
    // And what is added up of containers is not right any more.
    assert!(found.contains(&(ProblemKind::Sum, Some(Remedy::Recount))), "{report:#?}");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_into_another_domain_is_told() {
    let sql = "UPDATE containers SET domain = x'01010101010101010101010101010101' WHERE id = (SELECT min(id) FROM containers)";
    let (report, engine, ..) = found_after(sql).await;
    let map = report.problems.iter().find(|problem| problem.kind == ProblemKind::Map);
    assert!(map.is_some_and(|problem| problem.text.contains("another domain")), "{report:#?}");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_cannot_be_read_is_told_with_what_it_showed() {
    let (report, engine, ..) = found_after("UPDATE leaves SET data = x'6c00'").await;
    assert!(kinds(&report).contains(&(ProblemKind::Map, None)), "{report:#?}");
    assert_eq!(lost(&report), [("disk".to_owned(), 0, 16 * MIB)], "all of the volume is in one leaf");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_containers_that_are_not_what_the_footer_says_are_told() {
    for (sql, kind) in [
        (
            "UPDATE containers SET directory = x'ff' WHERE id = (SELECT min(id) FROM containers)",
            ProblemKind::Container,
        ),
        (
            "UPDATE containers SET length_bytes = length_bytes + 1 WHERE id = (SELECT min(id) FROM containers)",
            ProblemKind::Container,
        ),
        (
            "UPDATE containers SET segment_offset = 80 WHERE id = (SELECT min(id) FROM containers)",
            ProblemKind::Footer,
        ),
        (
            "UPDATE containers SET segment = (SELECT max(segment) FROM containers) WHERE id = (SELECT min(id) FROM containers)",
            ProblemKind::Footer,
        ),
    ] {
        let (report, engine, ..) = found_after(sql).await;
        assert!(kinds(&report).contains(&(kind, None)), "{sql}: {report:#?}");
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_make_no_sense_are_told_and_end_nothing() {
    for column in [
        "containers SET segment_offset",
        "containers SET length_bytes",
        "containers SET raw_bytes",
        "leaves SET blocks",
        "segments SET length_bytes",
        "volumes SET logical_bytes",
        "nodes SET shards",
        "totals SET container_bytes",
    ] {
        let (cluster, engine, disk) = site_with_data().await;
        assert!(damage(&cluster.site, &format!("UPDATE {column} = 1 << 62")).await > 0);
        let fsck = Fsck::default();
        let report = fsck.check(&engine).await.unwrap();
        assert!(report.problem_count > 0, "{column}: {report:#?}");
        if let Some(plan) = report.plan {
            fsck.repair(&engine, plan.id).await.unwrap();
        }
        drop(disk);
        engine.abandon().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_segment_that_make_no_sense_are_told_with_what_it_held() {
    let sql = "DELETE FROM shards WHERE segment = (SELECT min(segment) FROM containers)";
    let (report, engine, ..) = found_after(sql).await;
    let found = kinds(&report);
    assert!(found.contains(&(ProblemKind::Segment, None)), "{report:#?}");
    assert!(report.lost_bytes > 0, "{report:#?}");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_answer_is_told_as_not_checked_and_nothing_is_concluded() {
    let cluster = Cluster::new(4, "ec:2+1").await;
    let (engine, disk) = filled(&cluster, MIB).await;
    cluster.until_whole(&engine).await;
    cluster.nodes[2].set_down(true);
    let report = check(&engine).await;
    assert_eq!((report.problem_count, report.lost_count, report.plan), (0, 0, None), "{report:#?}");
    assert_eq!(report.unchecked.len(), 1, "{report:#?}");
    assert!(report.unchecked[0].contains("node-2"), "{report:#?}");
    // Nor is anything said to be lost while too many are away to read it.
    cluster.nodes[1].set_down(true);
    let report = check(&engine).await;
    assert_eq!((report.problem_count, report.lost_count, report.plan), (0, 0, None), "{report:#?}");
    for node in [1, 2] {
        cluster.nodes[node].set_down(false);
    }
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_that_fails_takes_no_node_out_of_the_check() {
    let cluster = Cluster::new(4, "ec:2+1").await;
    let (engine, disk) = filled(&cluster, 2 * MIB).await;
    cluster.until_whole(&engine).await;
    let before = check(&engine).await;
    let key = cluster.nodes[1].keys().await.into_iter().next().unwrap();
    cluster.nodes[1].set_plan({
        let key = key.clone();
        move |request| {
            (request.verb == Verb::Get && request.key.ends_with(&key)).then_some(Fault::Status(503))
        }
    });
    let report = check(&engine).await;
    assert_eq!((report.problem_count, report.lost_count), (0, 0), "{report:#?}");
    assert_eq!((report.objects, report.shards), (before.objects, before.shards - 1), "{report:#?}");
    assert_eq!(report.unchecked_count, 1, "{report:#?}");
    assert!(report.unchecked[0].contains("shard"), "{report:#?}");
    cluster.nodes[1].set_plan(|_| None);
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_is_gone_is_told_by_what_was_added_up_of_it_and_that_stays() {
    let (cluster, engine, _disk) = site_with_data().await;
    assert_eq!(damage(&cluster.site, "DELETE FROM leaves").await, 1);
    damage(&cluster.site, "UPDATE totals SET containers = containers + 1").await;
    for round in 0..2 {
        let (report, repaired) = if round == 0 {
            let (report, repaired) = mend(&engine).await;
            (report, Some(repaired))
        } else {
            (check(&engine).await, None)
        };
        let gone = report.problems.iter().filter(|problem| problem.text.contains("leaves may be missing"));
        assert_eq!(gone.filter(|problem| problem.remedy.is_none()).count(), 2, "{report:#?}");
        assert_eq!(report.problem_count, if round == 0 { 3 } else { 2 }, "{report:#?}");
        assert!(repaired.is_none_or(|repaired| repaired.sums == 1));
    }
    engine.shutdown().await.unwrap();
}

/// A volume with three changes that are not in its leaves yet, and a dead gateway.
async fn with_changes() -> Cluster {
    let cluster = Cluster::new(1, "single").await;
    let (engine, mut disk) = filled(&cluster, MIB).await;
    for round in 0..3u64 {
        disk.write(round * 4096, noise(50 + round, 4096)).await;
        engine.destage().await.unwrap();
    }
    engine.abandon().await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_cannot_be_read_lose_what_shows_them_and_nothing_else() {
    let cluster = with_changes().await;
    for (name, before) in [("early", 2), ("late", 0)] {
        let sql = format!(
            "INSERT INTO snapshots (id, volume, name, lineage, commit_seq, size_bytes, created_at) \
             SELECT randomblob(16), v.id, '{name}', v.lineage, n.last_commit - {before}, v.size_bytes, 0 \
             FROM volumes v JOIN lineages n ON n.id = v.lineage"
        );
        assert_eq!(damage(&cluster.site, &sql).await, 1);
    }
    damage(&cluster.site, "UPDATE totals SET snapshots = 2").await;
    let sql = "UPDATE deltas SET delta = x'00' WHERE commit_seq = (SELECT max(commit_seq) - 1 FROM deltas)";
    assert_eq!(damage(&cluster.site, sql).await, 1, "it is not folded yet");
    // What the early one shows is lost where its own data is.
    let place = cluster.places().await.remove(0).place;
    cluster.nodes[0].inner.delete(&Path::from(place.key)).await.unwrap();
    let report = check_alone(&cluster.site).await;
    let whole = |name: &str| (name.to_owned(), 0, 16 * MIB);
    let told = lost(&report);
    assert!(told.contains(&whole("disk")) && told.contains(&whole("disk@late")), "{report:#?}");
    let early = told.iter().filter(|(of, ..)| of == "disk@early");
    let bytes: u64 = early.map(|(.., length)| length).sum();
    assert!(bytes > 0 && bytes < MIB, "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_are_nowhere_are_told() {
    let cluster = with_changes().await;
    let sql = "DELETE FROM deltas WHERE commit_seq = (SELECT max(commit_seq) - 1 FROM deltas)";
    assert_eq!(damage(&cluster.site, sql).await, 1, "it is not folded yet");
    let report = check_alone(&cluster.site).await;
    let map = report.problems.iter().find(|problem| problem.kind == ProblemKind::Map);
    assert!(map.is_some_and(|problem| problem.text.contains("1 changes of volume disk")), "{report:#?}");
}

/// Makes the first page of a table unreadable.
async fn damage_page(site: &crate::support::Site, table: &str) {
    use std::os::unix::fs::FileExt;
    let path = site.directory.path().join("catalog.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut file = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut file).await.unwrap();
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = $1";
    let page: i64 = sqlx::query_scalar(sql).bind(table).fetch_one(&mut file).await.unwrap();
    let page_bytes: i64 = sqlx::query_scalar("PRAGMA page_size").fetch_one(&mut file).await.unwrap();
    file.close().await.unwrap();
    let at = u64::try_from((page - 1) * page_bytes).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().write_all_at(&[0xee; 64], at).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_cannot_be_read_somewhere_is_checked_everywhere_else_and_nothing_is_deleted() {
    for table in ["leaves", "containers", "shards", "deltas", "doomed"] {
        let (cluster, engine, _disk) = site_with_data().await;
        engine.shutdown().await.unwrap();
        drop(engine);
        let store = Arc::clone(&cluster.nodes[0].inner) as Arc<dyn ObjectStore>;
        let key = "segments/07/07070707070707070707070707070707";
        let mut object = bytes(&store, &cluster.places().await.remove(0).place.key).await;
        object[48..64].fill(7);
        put(&store, key, object).await;
        damage_page(&cluster.site, table).await;
        let report = check_alone(&cluster.site).await;
        let found = kinds(&report);
        assert!(found.contains(&(ProblemKind::CatalogFile, None)), "{table}: {report:#?}");
        assert!(report.objects > 0 && report.unchecked_count > 0, "{table}: {report:#?}");
        assert!(found.iter().all(|(_, remedy)| remedy.is_none()), "{table}: {report:#?}");
        assert_eq!((report.orphans, report.plan), (0, None), "{table}: {report:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_not_whole_is_made_whole() {
    for is_deleted in [false, true] {
        let mut site = crate::support::Site::with_volume(16 * MIB).await;
        site.config.checkpoint_interval = Some(Duration::from_hours(1));
        site.config.reclaim_interval = None;
        let engine = site.start().await;
        let mut disk = Checked::fresh(engine.volume("disk").unwrap());
        disk.write(0, noise(1, MIB)).await;
        engine.destage().await.unwrap();
        engine.checkpoint().await.unwrap();
        assert_clean(&check(&engine).await);
        let store = Arc::clone(&site.nodes[0].store);
        let pieces: Vec<_> = store.list(Some(&"record/pieces".into())).try_collect().await.unwrap();
        for piece in pieces {
            if is_deleted {
                store.delete(&piece.location).await.unwrap();
                continue;
            }
            let mut content = bytes(&store, piece.location.as_ref()).await;
            let middle = content.len() / 2;
            content[middle] ^= 1;
            put(&store, piece.location.as_ref(), content).await;
        }
        let (report, repaired) = mend(&engine).await;
        assert_eq!(kinds(&report), [(ProblemKind::Record, Some(Remedy::Checkpoint))], "{report:#?}");
        assert!(repaired.checkpoint && repaired.left_count == 0, "{repaired:?}");
        assert_clean(&check(&engine).await);
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_still_not_whole_is_told() {
    let refuse = Arc::new(AtomicBool::new(false));
    let inner = Arc::new(InMemory::new());
    let store = {
        let refuse = Arc::clone(&refuse);
        FaultStore::new(Arc::clone(&inner) as _, move |request| {
            let is_piece = request.verb == Verb::Put && request.key.contains("record/");
            (is_piece && refuse.load(Ordering::Relaxed)).then_some(Fault::Status(503))
        })
    };
    let mut site = crate::support::Site::on(Arc::new(store)).await;
    site.add_volume("disk", 16 * MIB).await;
    site.config.checkpoint_interval = Some(Duration::from_hours(1));
    site.policy.put_give_up = Duration::from_millis(200);
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, MIB)).await;
    engine.destage().await.unwrap();
    engine.checkpoint().await.unwrap();
    let pieces: Vec<_> = inner.list(Some(&"record/pieces".into())).try_collect().await.unwrap();
    for piece in pieces {
        inner.delete(&piece.location).await.unwrap();
    }
    refuse.store(true, Ordering::Relaxed);
    let (_, repaired) = mend(&engine).await;
    assert!(!repaired.checkpoint && repaired.left_count == 1, "{repaired:?}");
    refuse.store(false, Ordering::Relaxed);
    engine.shutdown().await.unwrap();
}
