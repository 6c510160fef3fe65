//! Catalogs of schemas 2 and 3, with data, opened by this program.

use super::FileStore;
use crate::conformance::{TTL, at, blocks, written};
use crate::sqlite::open::MIGRATIONS;
use crate::{
    BatchCommit, Catalog, DoomedObject, FoldPlan, LeafIndex, MapLeaf, MapPoint, NewSnapshot, NewVolume,
    NodeRow, NodeState, SegmentPlace, SnapshotName, SqliteCatalog, VolumeCommit, VolumeName, VolumeUsage,
};
use cairn_model::{
    BatchId, CommitSeq, ContainerId, DomainId, Durability, GatewayId, Generation, LbaRange, LineageId,
    MapDelta, NodeId, ObjectPlace, Placement, Profile, Reduction, SegmentId, SnapshotId, VolumeId, WriteSeq,
};
use sqlx::{Connection, SqliteConnection};
use std::sync::Arc;

const KEPT: ([u8; 16], [u8; 16]) = ([1; 16], [2; 16]);
const GONE: ([u8; 16], [u8; 16]) = ([3; 16], [4; 16]);
const GATEWAY: [u8; 16] = [5; 16];
const SEGMENT: [u8; 16] = [6; 16];
const CONTAINER: ContainerId = ContainerId::from_bytes([7; 16]);
const OTHER_CONTAINER: ContainerId = ContainerId::from_bytes([8; 16]);
/// A leaf whose bytes are damaged.
const DAMAGED: u32 = 200;

fn index(number: u32) -> LeafIndex {
    LeafIndex::new(number).unwrap()
}

fn leaf(number: u32, mapped: u64) -> MapLeaf {
    let ops = written(blocks(index(number).range().start().get(), mapped), CONTAINER).ops;
    MapLeaf::from_ops(index(number), ops)
}

async fn put_leaf(old: &mut SqliteConnection, lineage: [u8; 16], number: u32, commit: i64, data: Vec<u8>) {
    sqlx::query("INSERT INTO leaves (lineage, leaf, commit_seq, data) VALUES ($1, $2, $3, $4)")
        .bind(lineage.to_vec())
        .bind(i64::from(number))
        .bind(commit)
        .bind(data)
        .execute(old)
        .await
        .unwrap();
}

async fn put_container(old: &mut SqliteConnection, id: ContainerId, directory: &[u8]) {
    let sql = "INSERT INTO containers (id, segment, segment_offset, length_bytes, directory) VALUES ($1, $2, 0, 1000, $3)";
    sqlx::query(sql)
        .bind(id.as_bytes().to_vec())
        .bind(SEGMENT.to_vec())
        .bind(directory.to_vec())
        .execute(old)
        .await
        .unwrap();
}

/// Two volumes, one of them deleted; leaves in several versions; two containers and one damaged leaf.
async fn schema_2() -> FileStore {
    let store = FileStore::new().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(store.path()).create_if_missing(true);
    let mut old = SqliteConnection::connect_with(&options).await.unwrap();
    MIGRATIONS.run_to(2, &mut old).await.unwrap();
    for sql in [
        "INSERT INTO site VALUES (1, zeroblob(16), 'home', 77, 1)",
        "INSERT INTO gateways VALUES (x'05050505050505050505050505050505', 'first', 'dirty', 1, 0)",
        "INSERT INTO nodes VALUES (zeroblob(16), 'disk', 'file:///pool', NULL, 'active', 1, '{}')",
        "INSERT INTO segments VALUES (x'06060606060606060606060606060606', zeroblob(16), 'key', 4096)",
        "UPDATE totals SET volumes = 1, segments = 1, segment_bytes = 4096, containers = 3",
    ] {
        sqlx::query(sql).execute(&mut old).await.unwrap();
    }
    for ((volume, lineage), deleted) in [(KEPT, 0), (GONE, 1)] {
        let sql = "INSERT INTO lineages VALUES ($1, 2, 0)";
        sqlx::query(sql).bind(lineage.to_vec()).execute(&mut old).await.unwrap();
        let sql = "INSERT INTO volumes VALUES ($1, 'a', 1048576, 'flush', $2, 1, 0, 0, '{}', 1, 0, $3)";
        let volume_row = sqlx::query(sql).bind(volume.to_vec()).bind(lineage.to_vec()).bind(deleted);
        volume_row.execute(&mut old).await.unwrap();
        let sql = "INSERT INTO leases VALUES ($1, $2, 1, 1, 0, 1, 30000)";
        let lease = sqlx::query(sql).bind(volume.to_vec()).bind(GATEWAY.to_vec());
        lease.execute(&mut old).await.unwrap();
        put_leaf(&mut old, lineage, 0, 1, leaf(0, 500).encode(index(0))).await;
        put_leaf(&mut old, lineage, 0, 2, leaf(0, 40).encode(index(0))).await;
        put_leaf(&mut old, lineage, 1, 1, leaf(1, 7).encode(index(1))).await;
        // More than are read at once.
        for number in 2..152 {
            put_leaf(&mut old, lineage, number, 2, leaf(number, 3).encode(index(number))).await;
        }
        put_leaf(&mut old, lineage, DAMAGED, 2, b"damaged".to_vec()).await;
    }
    // One block as it is and eight in 300 bytes; sixteen in five bytes; a damaged one.
    put_container(&mut old, CONTAINER, &[1, 2, 0x00, 0x17, 0xac, 0x02]).await;
    put_container(&mut old, OTHER_CONTAINER, &[1, 1, 0x1f, 0x05]).await;
    put_container(&mut old, ContainerId::from_bytes([9; 16]), b"damaged").await;
    old.close().await.unwrap();
    store
}

async fn mapped(catalog: &SqliteCatalog) -> u64 {
    let bytes = catalog.volume(VolumeId::from_bytes(KEPT.0)).await.unwrap().usage.logical_bytes;
    assert_eq!(catalog.totals().await.unwrap().logical_bytes, bytes);
    bytes / 4096
}

fn fold(leaves: &[(u32, u64)], emptied: Vec<LbaRange>) -> FoldPlan {
    let leaves = leaves.iter().map(|(number, mapped)| (index(*number), Arc::new(leaf(*number, *mapped))));
    FoldPlan {
        lineage: LineageId::from_bytes(KEPT.1),
        gateway: GatewayId::from_bytes(GATEWAY),
        generation: Generation::new(1),
        through: CommitSeq::new(2),
        leaves: leaves.collect(),
        emptied,
        forget: None,
    }
}

#[tokio::test]
async fn sums_are_made_once_and_are_exact() {
    let store = schema_2().await;
    // The second opening finds them made.
    for _ in 0..2 {
        let catalog = SqliteCatalog::open(&store.path()).await.unwrap();
        let row = catalog.volume(VolumeId::from_bytes(KEPT.0)).await.unwrap();
        let usage = VolumeUsage { logical_bytes: (40 + 7 + 150 * 3) * 4096, reduction: Reduction::default() };
        assert_eq!((row.domain, row.usage), (DomainId::DEFAULT, usage));
        let totals = catalog.totals().await.unwrap();
        assert_eq!(totals.logical_bytes, usage.logical_bytes);
        assert_eq!((totals.container_bytes, totals.container_raw_bytes), (3000, 25 * 4096));
        let found = catalog.containers_before(None, 10).await.unwrap();
        let raw: Vec<_> =
            found.iter().map(|container| (container.domain, container.raw_bytes / 4096)).collect();
        assert_eq!(raw, [0, 16, 9].map(|blocks| (DomainId::DEFAULT, blocks)));
        assert_eq!(catalog.domains().await.unwrap()[0].created_at.unix_millis(), 77);
        let dangling = sqlx::query("PRAGMA foreign_key_check").fetch_all(&catalog.writer).await.unwrap();
        assert!(dangling.is_empty());
        catalog.close().await;
    }
}

#[tokio::test]
async fn an_upgrade_that_was_cut_short_before_its_sums_makes_them_later() {
    let store = schema_2().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(store.path()).foreign_keys(false);
    let mut cut_short = SqliteConnection::connect_with(&options).await.unwrap();
    MIGRATIONS.run(&mut cut_short).await.unwrap();
    cut_short.close().await.unwrap();
    let catalog = SqliteCatalog::open(&store.path()).await.unwrap();
    assert_eq!(mapped(&catalog).await, 40 + 7 + 150 * 3);
    assert_eq!(catalog.totals().await.unwrap().container_raw_bytes, 25 * 4096);
}

#[tokio::test]
async fn leaves_that_do_not_say_what_they_map_are_counted_when_they_are_replaced() {
    let store = schema_2().await;
    let catalog = SqliteCatalog::open(&store.path()).await.unwrap();
    let before = mapped(&catalog).await;
    // Leaf by leaf, in both lengths of a statement, and as a range of more than are read at once.
    catalog.fold(&fold(&[(0, 10), (1, 20)], Vec::new())).await.unwrap();
    assert_eq!(mapped(&catalog).await, before - 40 - 7 + 30);
    let sixteen: Vec<_> = (2..18).map(|number| (number, 100)).collect();
    catalog.fold(&fold(&sixteen, Vec::new())).await.unwrap();
    assert_eq!(mapped(&catalog).await, 30 + 16 * 100 + 134 * 3);
    let range = LbaRange::between(index(10).range().start(), index(151).range().start());
    catalog.fold(&fold(&[(DAMAGED, 5)], vec![range])).await.unwrap();
    assert_eq!(mapped(&catalog).await, 30 + 8 * 100 + 3 + 5);
    catalog.delete_volume(VolumeId::from_bytes(KEPT.0), false, at(5000)).await.unwrap();
    while catalog.purge_deleted(50).await.unwrap() {}
    assert_eq!(catalog.totals().await.unwrap().logical_bytes, 0);
}

#[tokio::test]
async fn containers_of_the_time_before_are_of_the_default_domain() {
    let store = schema_2().await;
    let catalog = SqliteCatalog::open(&store.path()).await.unwrap();
    catalog.commit_batch(&batch(written(blocks(0, 4), OTHER_CONTAINER), Vec::new())).await.unwrap();
}

fn batch(delta: MapDelta, snapshots: Vec<NewSnapshot>) -> BatchCommit {
    let part = VolumeCommit {
        volume: VolumeId::from_bytes(KEPT.0),
        lineage: LineageId::from_bytes(KEPT.1),
        generation: Generation::new(1),
        base: WriteSeq::ZERO,
        through: WriteSeq::new(1),
        delta,
        reduction: Reduction::default(),
        snapshots,
    };
    BatchCommit {
        batch: BatchId::from_bytes([1; 16]),
        gateway: GatewayId::from_bytes(GATEWAY),
        segments: Vec::new(),
        containers: Vec::new(),
        volumes: vec![part],
    }
}

async fn rows(catalog: &SqliteCatalog, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&catalog.writer).await.unwrap()
}

#[tokio::test]
async fn an_old_map_is_snapshotted_and_cloned_as_any_other() {
    let store = schema_2().await;
    let catalog = SqliteCatalog::open(&store.path()).await.unwrap();
    let before = mapped(&catalog).await;
    let snapshot = NewSnapshot {
        id: SnapshotId::from_bytes([1; 16]),
        name: SnapshotName::new("old").unwrap(),
        size_bytes: 1 << 20,
        created_at: at(1),
    };
    let taken = batch(written(blocks(0, 4), OTHER_CONTAINER), vec![snapshot.clone()]);
    catalog.commit_batch(&taken).await.unwrap();
    let commit = CommitSeq::new(3);
    let settle = FoldPlan { through: commit, forget: Some(commit), ..fold(&[(0, 60)], Vec::new()) };
    catalog.fold(&settle).await.unwrap();
    // Of the versions of the time before, none is needed.
    assert_eq!(
        rows(
            &catalog,
            "SELECT count(*) FROM leaves WHERE leaf = 0 AND lineage = x'02020202020202020202020202020202'"
        )
        .await,
        1
    );
    let row = catalog.snapshot(snapshot.id).await.unwrap();
    assert_eq!(row.logical_bytes, Some((before - 40 + 60) * 4096));

    // In the clone, inherited leaves that do not say what they map are replaced and emptied.
    let clone = NewVolume {
        id: VolumeId::from_bytes([20; 16]),
        name: VolumeName::new("clone").unwrap(),
        size_bytes: 1 << 20,
        durability: Durability::Flush,
        lineage: LineageId::from_bytes([21; 16]),
        domain: DomainId::DEFAULT,
        compress: true,
        dedupe: true,
        read_only: false,
        options: "{}".to_owned(),
        created_at: at(1),
    };
    catalog.create_clone(&clone, snapshot.id).await.unwrap();
    let gateway = GatewayId::from_bytes(GATEWAY);
    catalog.acquire_lease(clone.id, gateway, at(1), TTL, None).await.unwrap();
    let mut first = batch(written(blocks(0, 4), OTHER_CONTAINER), Vec::new());
    (first.batch, first.volumes[0].volume) = (BatchId::from_bytes([2; 16]), clone.id);
    first.volumes[0].lineage = clone.lineage;
    catalog.commit_batch(&first).await.unwrap();
    let sixteen: Vec<_> = (2..18).map(|number| (number, 100)).collect();
    let range = LbaRange::between(index(20).range().start(), index(DAMAGED + 1).range().start());
    let commit = CommitSeq::new(1);
    let step = FoldPlan { lineage: clone.lineage, through: commit, ..fold(&sixteen, vec![range]) };
    catalog.fold(&step).await.unwrap();
    let usage = catalog.volume(clone.id).await.unwrap().usage;
    assert_eq!(usage.logical_bytes / 4096, 60 + 7 + 16 * 100 + 2 * 3);
    assert_eq!(
        catalog.leaf(MapPoint::head(clone.lineage), index(DAMAGED)).await.unwrap(),
        Some(MapLeaf::default())
    );
    assert_eq!(catalog.leaf(row.at, index(20)).await.unwrap(), Some(leaf(20, 3)));
}

#[tokio::test]
async fn lineages_of_schema_3_are_roots_and_what_was_deleted_is_purged() {
    let store = FileStore::new().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(store.path()).create_if_missing(true);
    let mut old = SqliteConnection::connect_with(&options).await.unwrap();
    MIGRATIONS.run_to(3, &mut old).await.unwrap();
    for sql in [
        "INSERT INTO gateways VALUES (x'05050505050505050505050505050505', 'first', 'dirty', 1, 0)",
        "UPDATE totals SET volumes = 1, logical_bytes = 20480",
    ] {
        sqlx::query(sql).execute(&mut old).await.unwrap();
    }
    for ((volume, lineage), deleted) in [(KEPT, 0), (GONE, 1)] {
        let sql = "INSERT INTO lineages VALUES ($1, 2, 1)";
        sqlx::query(sql).bind(lineage.to_vec()).execute(&mut old).await.unwrap();
        let sql = "INSERT INTO volumes (id, name, size_bytes, durability, lineage, compress, dedupe, read_only, options, \
                   created_at, destaged_through, deleted, logical_bytes) \
                   VALUES ($1, 'a', 1048576, 'flush', $2, 1, 0, 0, '{}', 1, 9, $3, 20480)";
        let row = sqlx::query(sql).bind(volume.to_vec()).bind(lineage.to_vec()).bind(deleted);
        row.execute(&mut old).await.unwrap();
        let sql = "INSERT INTO leases VALUES ($1, $2, 1, 1, 0, 1, 30000)";
        let lease = sqlx::query(sql).bind(volume.to_vec()).bind(GATEWAY.to_vec());
        lease.execute(&mut old).await.unwrap();
        put_leaf(&mut old, lineage, 0, 1, leaf(0, 5).encode(index(0))).await;
        let delta = sqlx::query("INSERT INTO deltas VALUES ($1, 2, $2)").bind(lineage.to_vec());
        delta.bind(MapDelta::default().encode().unwrap()).execute(&mut old).await.unwrap();
    }
    sqlx::query("UPDATE leaves SET blocks = 5").execute(&mut old).await.unwrap();
    old.close().await.unwrap();

    let catalog = SqliteCatalog::open(&store.path()).await.unwrap();
    let volume = VolumeId::from_bytes(KEPT.0);
    assert_eq!(mapped(&catalog).await, 5);
    assert_eq!(catalog.snapshots(volume).await.unwrap(), []);
    assert_eq!(catalog.totals().await.unwrap().snapshots, 0);
    assert_eq!(
        rows(&catalog, "SELECT count(*) FROM lineages WHERE parent IS NULL AND parent_commit IS NULL").await,
        2
    );
    let head = MapPoint::head(LineageId::from_bytes(KEPT.1));
    assert_eq!(catalog.leaf(head, index(0)).await.unwrap(), Some(leaf(0, 5)));
    // The program before deleted it and did not come to the rest.
    while catalog.purge_deleted(1).await.unwrap() {}
    for sql in [
        "SELECT count(*) FROM volumes",
        "SELECT count(*) FROM lineages",
        "SELECT count(*) FROM leaves",
        "SELECT count(*) FROM deltas",
        "SELECT count(*) FROM leases",
    ] {
        assert_eq!(rows(&catalog, sql).await, 1, "{sql}");
    }
    assert_eq!(catalog.leaf(head, index(0)).await.unwrap(), Some(leaf(0, 5)));
    let dangling = sqlx::query("PRAGMA foreign_key_check").fetch_all(&catalog.writer).await.unwrap();
    assert!(dangling.is_empty());
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "everything that the upgrade carries over")]
async fn segments_of_schema_8_are_single_and_what_was_doomed_stays_so() {
    let store = FileStore::new().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(store.path()).create_if_missing(true);
    let mut old = SqliteConnection::connect_with(&options).await.unwrap();
    MIGRATIONS.run_to(8, &mut old).await.unwrap();
    for sql in [
        "INSERT INTO site VALUES (1, zeroblob(16), 'home', 77, 1)",
        "INSERT INTO nodes VALUES (zeroblob(16), 'disk', 'file:///pool', 'rack', 'draining', 9, '{\"a\":1}')",
        "INSERT INTO nodes VALUES (x'01010101010101010101010101010101', 'empty', 'file:///other', NULL, 'active', 8, '{}')",
        "INSERT INTO segments VALUES (x'06060606060606060606060606060606', zeroblob(16), 'segments/6', 4096)",
        "INSERT INTO segments VALUES (x'05050505050505050505050505050505', zeroblob(16), 'segments/5', 100)",
        "INSERT INTO doomed VALUES (x'04040404040404040404040404040404', zeroblob(16), 'segments/4', 70)",
        "INSERT INTO doomed VALUES (x'03030303030303030303030303030303', zeroblob(16), 'segments/3', 60)",
        "UPDATE totals SET segments = 2, segment_bytes = 4196, containers = 1, container_bytes = 1000, logical_bytes = 0",
    ] {
        sqlx::query(sql).execute(&mut old).await.unwrap();
    }
    put_container(&mut old, CONTAINER, &[1, 1, 0x1f, 0x05]).await;
    old.close().await.unwrap();

    let node = NodeId::from_bytes([0; 16]);
    let place = |number: u8, length_bytes: u64| SegmentPlace {
        id: SegmentId::from_bytes([number; 16]),
        place: ObjectPlace {
            key: format!("segments/{number}"),
            length_bytes,
            placement: Placement::single(node),
        },
    };
    for _ in 0..2 {
        let catalog = SqliteCatalog::open(&store.path()).await.unwrap();
        let places = [place(5, 100), place(6, 4096)];
        assert_eq!(catalog.segment_places(None, 10).await.unwrap(), places);
        assert_eq!(catalog.segments_on(node, None, 10).await.unwrap(), places);
        assert_eq!(catalog.containers(&[CONTAINER]).await.unwrap()[0].place, places[1].place);
        assert_eq!(catalog.degraded_segments(None, 10).await.unwrap(), []);
        assert_eq!(catalog.segments_of_other_profile(Profile::Single, None, 10).await.unwrap(), []);
        assert_eq!(catalog.pool_settings().await.unwrap().profile, Profile::Single);
        let doomed = |id: u64, number: u8, length_bytes: u64| DoomedObject {
            id,
            segment: SegmentId::from_bytes([number; 16]),
            node,
            key: format!("segments/{number}"),
            length_bytes,
        };
        assert_eq!(catalog.doomed_objects(None, 10).await.unwrap(), [doomed(1, 3, 60), doomed(2, 4, 70)]);
        let usage = catalog.node_usage().await.unwrap();
        let usage: Vec<_> = usage.iter().map(|node| (node.shards, node.bytes)).collect();
        assert_eq!(usage, [(2, 4196), (0, 0)]);
        let row = NodeRow {
            id: node,
            name: "disk".to_owned(),
            url: "file:///pool".to_owned(),
            domain: Some("rack".to_owned()),
            state: NodeState::Draining,
            created_at: at(9),
            options: "{\"a\":1}".to_owned(),
            capacity_bytes: None,
        };
        assert_eq!(catalog.node(node).await.unwrap(), row);
        let totals = catalog.totals().await.unwrap();
        assert_eq!((totals.segments, totals.segment_bytes, totals.degraded_segments), (2, 4196, 0));
        let dangling = sqlx::query("PRAGMA foreign_key_check").fetch_all(&catalog.writer).await.unwrap();
        assert!(dangling.is_empty());
        catalog.close().await;
    }
    // What refers to the tables that were made anew holds.
    let catalog = SqliteCatalog::open(&store.path()).await.unwrap();
    for sql in [
        "DELETE FROM nodes WHERE id = zeroblob(16)",
        "DELETE FROM segments WHERE id = x'06060606060606060606060606060606'",
        "INSERT INTO containers (id, segment, segment_offset, length_bytes, directory) VALUES (x'00', x'00', 0, 0, x'00')",
        "INSERT INTO shards VALUES (x'00', 0, zeroblob(16), 0)",
        "INSERT INTO shards VALUES (x'06060606060606060606060606060606', 1, x'02', 0)",
        "INSERT INTO doomed (segment, node, object_key, length_bytes) VALUES (x'00', x'02', 'key', 0)",
    ] {
        let error = sqlx::query(sql).execute(&catalog.writer).await.unwrap_err();
        assert!(error.as_database_error().unwrap().is_foreign_key_violation(), "{sql}: {error}");
    }
}
