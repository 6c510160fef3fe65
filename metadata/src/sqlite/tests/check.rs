//! What a check of the catalog is told, of one that is sound and of one that is damaged.

use super::FileStore;
use super::record::lived_in;
use crate::check::{CheckSource, CheckedContainer, MapKind, MapRow, UnnamedObject};
use crate::conformance::{World, blocks};
use crate::sqlite::check::sums;
use crate::{CatalogError, LeafIndex, MapLeaf, PlacementChange, SqliteCatalog};
use cairn_model::{
    ChunkId, ChunkIndex, ChunkRef, ContainerId, Lba, LbaRange, MapOp, MapTarget, NodeId, ObjectPlace,
    Placement, SegmentId, ShardPlace,
};
use sqlx::AssertSqlSafe;
use std::collections::BTreeSet;

async fn execute(catalog: &SqliteCatalog, sql: &str) -> u64 {
    let mut connection = catalog.writer.acquire().await.unwrap();
    sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut *connection).await.unwrap();
    let done = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut *connection).await.unwrap();
    sqlx::query("PRAGMA foreign_keys = ON").execute(&mut *connection).await.unwrap();
    done.rows_affected()
}

/// All rows of maps, and containers that they point at and that were not there.
async fn maps(catalog: &SqliteCatalog) -> (Vec<MapRow>, BTreeSet<ContainerId>) {
    let (mut rows, mut known, mut wanted) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for kind in [MapKind::Leaves, MapKind::Deltas] {
        let (through, mut after) = (catalog.last_map_row(kind).await.unwrap(), 0);
        loop {
            let mut fresh = Vec::new();
            let mut take = |containers: Vec<CheckedContainer>| fresh.extend(containers);
            let page =
                catalog.map_rows(kind, after, through, &|id| known.contains(&id), &mut take).await.unwrap();
            let Some(last) = page.last else { break };
            known.extend(fresh.iter().map(|container| container.id));
            for op in page.rows.iter().flat_map(|row| row.content.iter().flatten()) {
                if let MapTarget::Chunk(target) = op.target {
                    wanted.insert(target.chunk.container);
                }
            }
            rows.extend(page.rows);
            after = last;
        }
    }
    let missing = wanted.difference(&known).copied().collect();
    (rows, missing)
}

#[tokio::test]
async fn a_catalog_that_was_lived_in_is_sound() {
    let store = FileStore::new().await;
    let (world, points) = lived_in(&store).await;
    let catalog = store.open_file().await;
    assert_eq!(catalog.check_file().await.unwrap(), [""; 0]);
    assert_eq!(catalog.wrong_sums().await.unwrap(), []);
    let (rows, missing) = maps(&catalog).await;
    assert!(rows.iter().any(|row| row.leaf.is_some()) && rows.iter().any(|row| row.leaf.is_none()));
    assert!(missing.is_empty() && rows.iter().all(|row| row.content.is_ok()), "{missing:?}");
    let domains = catalog.lineage_domains().await.unwrap();
    assert!(points.iter().all(|point| domains.contains_key(&point.lineage)));
    let mut segments = Vec::new();
    while let Some(last) = {
        let after = segments.last().map(|segment: &crate::CheckedSegment| segment.id);
        let page = catalog.segment_rows(after, 3).await.unwrap();
        segments.extend(page.clone());
        page.last().cloned()
    } {
        assert!(last.place.is_ok());
    }
    let places = world.catalog.segment_places(None, 1000).await.unwrap();
    assert_eq!(segments.len(), places.len());
    let ids: Vec<SegmentId> = places.iter().map(|place| place.id).collect();
    assert_eq!(catalog.segments(&ids).await.unwrap().len(), ids.len());
    let held = catalog.containers_in(&ids).await.unwrap();
    assert_eq!(held.len() as u64, world.catalog.totals().await.unwrap().containers);
    assert_eq!(catalog.recount(&[]).await.unwrap(), [], "nothing to set");
}

#[tokio::test]
async fn every_sum_that_is_wrong_is_told_and_set() {
    let store = FileStore::new().await;
    let (world, _) = lived_in(&store).await;
    let catalog = store.open_file().await;
    let (totals, usage) = (world.catalog.totals().await.unwrap(), world.catalog.node_usage().await.unwrap());
    for (sql, told) in [
        ("UPDATE totals SET volumes = volumes + 1", 1),
        ("UPDATE totals SET snapshots = snapshots + 2", 1),
        ("UPDATE totals SET segments = segments - 1, segment_bytes = segment_bytes + 5", 2),
        ("UPDATE totals SET containers = 0, container_bytes = 1, container_raw_bytes = 2", 3),
        ("UPDATE totals SET logical_bytes = logical_bytes + 4096", 1),
        ("UPDATE totals SET degraded_segments = 9, at_risk_segments = 8", 2),
        ("UPDATE nodes SET shards = shards + 1, shard_bytes = shard_bytes + 1 WHERE name = 'disk'", 2),
        ("UPDATE segments SET missing = missing + 1 WHERE id = (SELECT min(id) FROM segments)", 1),
        ("UPDATE segments SET spare = spare + 1 WHERE id = (SELECT max(id) FROM segments)", 1),
        ("UPDATE volumes SET logical_bytes = logical_bytes - 4096 WHERE name = 'a'", 1),
        ("UPDATE snapshots SET logical_bytes = logical_bytes - 4096 WHERE name = 'one'", 1),
    ] {
        assert_eq!(execute(&catalog, sql).await, 1, "{sql}");
        let wrong = catalog.wrong_sums().await.unwrap();
        assert_eq!(wrong.len(), told, "{sql}: {wrong:?}");
        assert!(wrong.iter().all(|sum| sum.recorded != sum.counted && !sum.what.is_empty()));
        assert_eq!(catalog.recount(&[]).await.unwrap(), wrong, "{sql}");
        assert_eq!(catalog.wrong_sums().await.unwrap(), [], "{sql}");
    }
    assert_eq!(world.catalog.totals().await.unwrap(), totals);
    assert_eq!(world.catalog.node_usage().await.unwrap(), usage);
}

#[tokio::test]
async fn sums_are_right_whatever_changed_between_counting_and_setting() {
    let store = FileStore::new().await;
    let (world, _) = lived_in(&store).await;
    let mut held = world.held_volume("busy").await;
    let (mut calm, mut reverted) = (world.held_volume("calm").await, world.held_volume("reverted").await);
    let snapshot = world.settled_snapshot(&mut reverted, blocks(0, 50), "at").await;
    world.commit(&mut held, blocks(0, 9)).await;
    let catalog = store.open_file().await;
    for sql in [
        "UPDATE totals SET volumes = 1, snapshots = 2, segments = 3, segment_bytes = 4, degraded_segments = 5, at_risk_segments = 6",
        "UPDATE totals SET containers = 0, container_bytes = 1, container_raw_bytes = 2, logical_bytes = 3",
        "UPDATE nodes SET shards = shards + 7, shard_bytes = shard_bytes - 1",
        "UPDATE segments SET missing = missing + 2, spare = spare + 3",
        "UPDATE volumes SET logical_bytes = logical_bytes + 40960 WHERE name IN ('b', 'busy', 'reverted')",
        "UPDATE snapshots SET logical_bytes = logical_bytes + 8192 WHERE name = 'one'",
    ] {
        assert!(execute(&catalog, sql).await > 0, "{sql}");
    }
    let found = sums::find(&catalog).await.unwrap();
    assert!(found.told.len() > 15, "{:?}", found.told);
    // A batch, a fold with a snapshot, a deleted volume, a revert, a moved shard.
    world.settled_snapshot(&mut calm, blocks(100, 30), "later").await;
    world.commit(&mut held, blocks(20, 9)).await;
    world.reverted(reverted, snapshot.id).await;
    let gone = world.catalog.volume_by_name(&"b".parse().unwrap()).await.unwrap();
    world.catalog.delete_volume(gone.id, true, crate::conformance::at(9)).await.unwrap();
    let degraded = world.catalog.segment_places(None, 1000).await.unwrap();
    let degraded = degraded.into_iter().find(|segment| segment.place.placement.missing() > 0).unwrap();
    let nodes = world.catalog.nodes().await.unwrap();
    let mut shards = degraded.place.placement.shards().to_vec();
    let free = nodes.iter().find(|row| shards.iter().flatten().all(|shard| shard.node != row.id)).unwrap();
    *shards.iter_mut().find(|shard| shard.is_none()).unwrap() = Some(ShardPlace { node: free.id, tag: 1 });
    let placement = Placement::new(degraded.place.placement.profile(), shards).unwrap();
    let to = ObjectPlace { placement, ..degraded.place.clone() };
    let change = PlacementChange { segment: degraded.id, from: degraded.place, to };
    world.catalog.place_shards(&change).await.unwrap();
    sums::set(&catalog, &found).await.unwrap();
    assert_eq!(catalog.wrong_sums().await.unwrap(), []);
}

#[tokio::test]
async fn a_sum_over_maps_that_says_more_than_is_there_is_kept() {
    let store = FileStore::new().await;
    let (world, points) = lived_in(&store).await;
    let catalog = store.open_file().await;
    // A leaf that is gone: what was added up of it is the only trace.
    let head = points[0].lineage;
    let sql = format!("DELETE FROM leaves WHERE hex(lineage) = '{}'", hex(&head.as_bytes()[..]));
    assert!(execute(&catalog, &sql).await > 0);
    execute(&catalog, "UPDATE totals SET segments = segments + 1").await;
    execute(&catalog, "UPDATE volumes SET logical_bytes = logical_bytes - 4096 WHERE name = 'spread'").await;
    execute(&catalog, "UPDATE totals SET logical_bytes = logical_bytes - 4096").await;
    let wrong = catalog.wrong_sums().await.unwrap();
    let says_more = |wrong: &[crate::WrongSum]| wrong.iter().filter(|sum| sum.says_more).count();
    assert!(says_more(&wrong) >= 2 && wrong.len() > says_more(&wrong), "{wrong:?}");
    assert!(catalog.recount(&[]).await.unwrap().iter().all(|sum| !sum.says_more));
    let wrong = catalog.wrong_sums().await.unwrap();
    assert!(says_more(&wrong) >= 2 && wrong.len() == says_more(&wrong), "{wrong:?}");
    let volumes = world.catalog.volumes().await.unwrap();
    let sum: u64 = volumes.iter().map(|volume| volume.usage.logical_bytes).sum();
    assert_eq!(world.catalog.totals().await.unwrap().logical_bytes, sum, "the total is of what is recorded");
}

#[tokio::test]
async fn numbers_that_make_no_sense_are_wrong_sums_or_damage_and_no_more() {
    for (column, rows) in [
        ("segments SET length_bytes", 2),
        ("containers SET raw_bytes", 4),
        ("containers SET length_bytes", 4),
        ("volumes SET logical_bytes", 2),
        ("snapshots SET logical_bytes", 2),
        ("totals SET segment_bytes", 1),
        ("nodes SET shard_bytes", 2),
    ] {
        for number in [1_i64 << 62, -(1 << 62)] {
            let store = FileStore::new().await;
            lived_in(&store).await;
            let catalog = store.open_file().await;
            assert!(execute(&catalog, &format!("UPDATE {column} = {number}")).await >= rows, "{column}");
            let wrong = catalog.wrong_sums().await.unwrap();
            assert!(!wrong.is_empty() || !catalog.check_file().await.unwrap().is_empty(), "{column}");
            let segments = catalog.segment_rows(None, 1000).await.unwrap();
            assert_eq!(segments.iter().all(|segment| segment.place.is_err()), column.starts_with("segments"));
            catalog.recount(&[]).await.unwrap();
            let left = catalog.wrong_sums().await.unwrap();
            let is_kept = number > 0 && (column.starts_with("volumes") || column.starts_with("snapshots"));
            assert_eq!(left.is_empty(), !is_kept, "{column} = {number}: {left:?}");
        }
    }
}

#[tokio::test]
async fn a_leaf_that_says_an_impossible_number_is_counted_by_what_is_in_it() {
    let store = FileStore::new().await;
    let (world, _) = lived_in(&store).await;
    let catalog = store.open_file().await;
    let totals = world.catalog.totals().await.unwrap();
    for number in [i64::MAX, 1 << 62, 16_385] {
        let sql = format!("UPDATE leaves SET blocks = {number} WHERE blocks > 0");
        assert!(execute(&catalog, &sql).await > 1);
        assert_eq!(catalog.wrong_sums().await.unwrap(), [], "{number}");
    }
    let (rows, _) = maps(&catalog).await;
    let leaves: Vec<_> = rows.iter().filter_map(|row| Some((row.lineage, row.leaf?, row.commit))).collect();
    assert!(!catalog.recount(&leaves).await.unwrap().is_empty());
    let told: Vec<_> = maps(&catalog).await.0.into_iter().filter_map(|row| row.blocks).collect();
    assert!(told.iter().all(|blocks| *blocks <= crate::LEAF_BLOCKS) && !told.is_empty(), "{told:?}");
    assert_eq!(world.catalog.totals().await.unwrap(), totals);
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02X}").unwrap();
        text
    })
}

#[tokio::test]
async fn rows_without_an_identity_are_counted_and_left_out() {
    let store = FileStore::new().await;
    lived_in(&store).await;
    let catalog = store.open_file().await;
    let (rows, segments) = (maps(&catalog).await.0.len(), catalog.segment_rows(None, 1000).await.unwrap());
    for (sql, table) in [
        ("UPDATE segments SET id = x'01' WHERE id = (SELECT min(id) FROM segments)", "segments"),
        (
            "UPDATE shards SET node = x'02' WHERE segment = (SELECT max(segment) FROM shards) AND shard = 0",
            "shards",
        ),
        (
            "UPDATE containers SET segment_offset = -1 WHERE id = (SELECT max(id) FROM containers)",
            "containers",
        ),
        ("UPDATE leaves SET leaf = 1048576 WHERE rowid = (SELECT min(rowid) FROM leaves)", "leaves"),
        ("UPDATE deltas SET lineage = x'03' WHERE rowid = (SELECT min(rowid) FROM deltas)", "deltas"),
        ("UPDATE snapshots SET commit_seq = -1 WHERE name = 'one'", "snapshots"),
    ] {
        assert_eq!(execute(&catalog, sql).await, 1, "{sql}");
        let told = catalog.check_file().await.unwrap();
        let told = told.iter().any(|text| text.starts_with(&format!("1 rows of table {table} ")));
        assert!(told, "{table}");
    }
    assert_eq!(catalog.segment_rows(None, 1000).await.unwrap().len(), segments.len() - 1);
    let ids: Vec<SegmentId> = segments.iter().map(|segment| segment.id).collect();
    catalog.containers_in(&ids).await.unwrap();
    assert_eq!(maps(&catalog).await.0.len(), rows - 2);
    catalog.lineage_domains().await.unwrap();
}

#[tokio::test]
async fn a_page_of_maps_ends_when_it_points_at_many_containers() {
    let store = FileStore::new().await;
    let (_, points) = lived_in(&store).await;
    let catalog = store.open_file().await;
    for leaf in 500..503 {
        let index = LeafIndex::new(leaf).unwrap();
        let op = |number: u32| {
            let mut id = [9; 16];
            id[..4].copy_from_slice(&number.to_le_bytes());
            let start = Lba::new(index.range().start().get() + u64::from(number));
            let chunk = ChunkId { container: ContainerId::from_bytes(id), index: ChunkIndex::new(0) };
            MapOp {
                range: LbaRange::new(start, 1).unwrap(),
                target: MapTarget::Chunk(ChunkRef { chunk, block: 0 }),
            }
        };
        let mut content = MapLeaf::default();
        content.apply(index, (0..1500).map(op).collect::<Vec<_>>());
        let sql = "INSERT INTO leaves (lineage, leaf, commit_seq, data, blocks) VALUES ($1, $2, 1, $3, 1500)";
        let query = sqlx::query(sql).bind(points[0].lineage.as_bytes().to_vec()).bind(i64::from(leaf));
        query.bind(content.encode(index)).execute(&catalog.writer).await.unwrap();
    }
    let through = catalog.last_map_row(MapKind::Leaves).await.unwrap();
    let page = catalog.map_rows(MapKind::Leaves, through - 3, through, &|_| false, &mut drop).await.unwrap();
    assert_eq!((page.rows.len(), page.last), (1, Some(through - 2)));
    let page = catalog.map_rows(MapKind::Leaves, through - 3, through, &|_| true, &mut drop).await.unwrap();
    assert_eq!(page.rows.len(), 3, "what is known takes no room");
}

#[tokio::test]
async fn changes_that_are_nowhere_are_told() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    let mut held = world.held_volume("a").await;
    world.settled_snapshot(&mut held, blocks(0, 10), "one").await;
    for number in 0..3 {
        world.commit(&mut held, blocks(number * 8, 8)).await;
    }
    let catalog = store.open_file().await;
    assert_eq!(catalog.missing_changes().await.unwrap(), []);
    assert_eq!(
        execute(&catalog, "DELETE FROM deltas WHERE rowid = (SELECT max(rowid) FROM deltas)").await,
        1
    );
    let missing = catalog.missing_changes().await.unwrap();
    assert_eq!(missing.len(), 1);
    assert_eq!(
        (missing[0].volume.as_str(), missing[0].lineage, missing[0].count),
        ("a", held.head().lineage, 1)
    );
}

#[tokio::test]
async fn what_a_leaf_maps_is_counted_anew_with_the_sums_over_it() {
    let store = FileStore::new().await;
    let (world, _) = lived_in(&store).await;
    let catalog = store.open_file().await;
    let totals = world.catalog.totals().await.unwrap();
    let changed = "UPDATE leaves SET blocks = blocks + 3 WHERE rowid = (SELECT max(rowid) FROM leaves WHERE blocks > 0)";
    assert_eq!(execute(&catalog, changed).await, 1);
    let (rows, _) = maps(&catalog).await;
    let is_wrong = |row: &&MapRow| {
        let mapped: u64 = row.content.iter().flatten().map(|op| op.range.blocks()).sum();
        row.blocks.is_some_and(|blocks| blocks != mapped)
    };
    let wrong: Vec<_> = rows.iter().filter(is_wrong).collect();
    assert_eq!(wrong.len(), 1);
    let key = (wrong[0].lineage, wrong[0].leaf.unwrap(), wrong[0].commit);
    assert!(!catalog.recount(&[key]).await.unwrap().is_empty());
    assert_eq!(maps(&catalog).await.0.iter().filter(is_wrong).count(), 0);
    assert_eq!(catalog.wrong_sums().await.unwrap(), []);
    assert_eq!(world.catalog.totals().await.unwrap(), totals);
}

#[tokio::test]
async fn rows_that_cannot_be_read_are_told_and_the_others_are_read() {
    let store = FileStore::new().await;
    lived_in(&store).await;
    let catalog = store.open_file().await;
    let before = maps(&catalog).await.0.len();
    execute(&catalog, "UPDATE leaves SET data = x'00' WHERE rowid = (SELECT min(rowid) FROM leaves)").await;
    execute(&catalog, "UPDATE deltas SET delta = x'' WHERE rowid = (SELECT min(rowid) FROM deltas)").await;
    execute(&catalog, "DELETE FROM shards WHERE segment = (SELECT min(id) FROM segments)").await;
    let rows = maps(&catalog).await.0;
    assert_eq!((rows.len(), rows.iter().filter(|row| row.content.is_err()).count()), (before, 2));
    let segments = catalog.segment_rows(None, 1000).await.unwrap();
    assert_eq!(segments.iter().filter(|segment| segment.place.is_err()).count(), 1);
    assert!(segments[0].place.is_err());
    // One bad row makes no other sum wrong.
    let wrong = catalog.wrong_sums().await.unwrap();
    assert_eq!(wrong, [], "{wrong:?}");
}

#[tokio::test]
async fn references_that_lead_nowhere_and_dangling_maps_are_told() {
    let store = FileStore::new().await;
    lived_in(&store).await;
    let catalog = store.open_file().await;
    execute(&catalog, "DELETE FROM segments WHERE id = (SELECT min(segment) FROM containers)").await;
    let told = catalog.check_file().await.unwrap();
    assert!(told.iter().any(|text| text.contains("containers") && text.contains("segments")), "{told:?}");
    execute(&catalog, "DELETE FROM containers").await;
    assert!(!maps(&catalog).await.1.is_empty());
}

fn object(node: NodeId, key: &str, segment: SegmentId) -> UnnamedObject {
    UnnamedObject { node, key: key.to_owned(), segment, length_bytes: 4096 }
}

#[tokio::test]
async fn only_what_nothing_names_is_doomed_and_nothing_can_be_placed_on_it_then() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    let mut held = world.held_volume("a").await;
    let batch = world.commit(&mut held, blocks(0, 8)).await;
    let next = world.batch(&[(&held, blocks(8, 8))]);
    let of = |batch: &crate::BatchCommit| {
        let receipt = &batch.segments[0].receipt;
        let (node, key, _) = receipt.place().objects().next().unwrap();
        object(node, &key, receipt.segment())
    };
    let (named, put) = (of(&batch), of(&next));
    let moved = object(named.node, &format!("{}.0000002a", named.key), named.segment);
    let elsewhere = object(NodeId::from_bytes([77; 16]), &put.key, put.segment);
    let all = [named.clone(), put.clone(), moved.clone(), elsewhere.clone()];
    let catalog = store.open_file().await;
    assert_eq!(catalog.unnamed(&all).await.unwrap(), [put.clone(), moved.clone(), elsewhere]);
    let twice = [&all[..], &all[..]].concat();
    assert_eq!(
        catalog.doom_unnamed(&twice).await.unwrap(),
        (2, 8192),
        "each once, and on nodes that are there"
    );
    let doomed = world.catalog.doomed_objects(None, 10).await.unwrap();
    assert_eq!(doomed.len(), 2);
    assert_eq!((&doomed[0].key, doomed[0].segment, doomed[0].node), (&put.key, put.segment, put.node));
    assert_eq!(catalog.doom_unnamed(&all[..3]).await.unwrap(), (0, 0), "they are doomed already");
    // Whoever put it is refused, and nothing of the batch happens.
    let before = world.progress(&held).await;
    let refused = world.catalog.commit_batch(&next).await.unwrap_err();
    assert!(matches!(&refused, CatalogError::ObjectDoomed { key, .. } if *key == put.key), "{refused}");
    assert_eq!(world.progress(&held).await, before);
    assert_eq!(catalog.wrong_sums().await.unwrap(), []);
    // The batch is put again, elsewhere.
    world.commit(&mut held, blocks(8, 8)).await;
}

#[tokio::test]
async fn what_a_segment_names_and_is_doomed_is_told_and_kept() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    let mut held = world.held_volume("a").await;
    let batch = world.commit(&mut held, blocks(0, 8)).await;
    let receipt = &batch.segments[0].receipt;
    let (node, key, _) = receipt.place().objects().next().unwrap();
    let named = object(node, &key, receipt.segment());
    let other = object(node, &format!("{key}.0000002a"), receipt.segment());
    let catalog = store.open_file().await;
    let all = [named.clone(), other.clone()];
    assert_eq!(catalog.named(&all).await.unwrap(), std::slice::from_ref(&named));
    catalog.doom_unnamed(&[other]).await.unwrap();
    let sql = format!(
        "INSERT INTO doomed (segment, node, object_key, length_bytes) SELECT segment, node, '{key}', 1 FROM doomed"
    );
    assert_eq!(execute(&catalog, &sql).await, 1);
    assert_eq!(catalog.keep_named(&all).await.unwrap(), 1);
    let doomed = world.catalog.doomed_objects(None, 10).await.unwrap();
    assert!(doomed.len() == 1 && doomed[0].key != key, "what nothing names stays doomed");
}
