//! Full disks, locks and damage.

use super::FileStore;
use crate::conformance::{Held, World, blocks, refusal};
use crate::{Catalog, FoldPlan, LeafIndex, MapLeaf, SqliteCatalog};
use cairn_model::{ErrorKind, MapDelta, MapOp, MapTarget};
use std::sync::Arc;

/// The world's catalog with its connections at hand.
async fn opened(store: &FileStore) -> (World, Arc<SqliteCatalog>) {
    let catalog = store.open_file().await;
    let mut world = World::new(store).await;
    world.catalog = Arc::clone(&catalog) as Arc<dyn Catalog>;
    (world, catalog)
}

fn big_delta() -> MapDelta {
    let hole = |number: u64| MapOp { range: blocks(number * 3, 1), target: MapTarget::Hole };
    MapDelta { ops: (0..100_000).map(hole).collect() }
}

#[tokio::test]
async fn a_full_disk_refuses_the_batch_and_the_next_one_goes_through() {
    let store = FileStore::new().await;
    let (world, catalog) = opened(&store).await;
    let mut held = world.held_volume("a").await;
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&catalog.writer).await.unwrap();
    for _ in 0..3 {
        let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + 4));
        sqlx::query(limit).fetch_one(&catalog.writer).await.unwrap();
        let mut batch = world.batch(&[(&held, blocks(0, 4))]);
        batch.volumes[0].delta = big_delta();
        let refused = refusal(catalog.commit_batch(&batch).await);
        assert_eq!(refused.0, ErrorKind::OutOfSpace, "{}", refused.1);
        assert_eq!(world.progress(&held).await, (held.through, held.commit));

        sqlx::query("PRAGMA max_page_count = 1000000").fetch_one(&catalog.writer).await.unwrap();
        world.commit(&mut held, blocks(0, 4)).await;
    }
    assert_eq!(catalog.totals().await.unwrap().segments, 3);
}

#[tokio::test]
async fn a_connection_left_inside_a_transaction_is_not_used_again() {
    let store = FileStore::new().await;
    let (world, catalog) = opened(&store).await;
    let mut change = catalog.begin().await.unwrap();
    // As SQLite itself does on some errors: the transaction ends behind the driver's back.
    sqlx::query("ROLLBACK").execute(&mut *change).await.unwrap();
    drop(change);
    let mut held = world.held_volume("a").await;
    world.commit(&mut held, blocks(0, 4)).await;
}

#[tokio::test]
async fn a_catalog_locked_by_another_process_is_unavailable_and_readable() {
    let store = FileStore::new().await;
    let (world, catalog) = opened(&store).await;
    let held = world.held_volume("a").await;
    let other = store.open_file().await;
    sqlx::query("PRAGMA busy_timeout = 20").fetch_one(&catalog.writer).await.unwrap();

    let lock = other.begin().await.unwrap();
    let batch = world.batch(&[(&held, blocks(0, 4))]);
    let refused = refusal(catalog.commit_batch(&batch).await);
    assert_eq!(refused.0, ErrorKind::Unavailable, "{}", refused.1);
    assert!(catalog.volume(held.volume).await.is_ok());
    lock.rollback().await.unwrap();
    catalog.commit_batch(&batch).await.unwrap();
}

async fn folded(world: &World) -> Held {
    let mut held = world.held_volume("a").await;
    let batch = world.commit(&mut held, blocks(0, 4)).await;
    let index = LeafIndex::new(0).unwrap();
    let leaf = MapLeaf::from_ops(index, batch.volumes[0].delta.ops.clone());
    let plan = FoldPlan {
        lineage: held.lineage,
        gateway: world.gateway,
        generation: held.lease.generation,
        through: held.commit,
        leaves: vec![(index, Arc::new(leaf))],
        emptied: Vec::new(),
        forget: None,
    };
    world.catalog.fold(&plan).await.unwrap();
    held
}

#[tokio::test]
async fn damaged_blobs_are_corrupt_and_never_read_as_something_else() {
    let store = FileStore::new().await;
    let (world, catalog) = opened(&store).await;
    let held = folded(&world).await;
    let index = LeafIndex::new(0).unwrap();
    for sql in [
        "UPDATE leaves SET data = substr(data, 1, length(data) - 1)",
        "UPDATE leaves SET data = x''",
        "UPDATE leaves SET data = (SELECT delta FROM deltas)",
    ] {
        sqlx::query(sql).execute(&catalog.writer).await.unwrap();
        let refused = refusal(catalog.leaf(held.head(), index).await);
        assert_eq!(refused.0, ErrorKind::Corrupt, "{}", refused.1);
        assert_eq!(refusal(catalog.leaves(held.head(), &[index]).await).0, ErrorKind::Corrupt);
    }
    sqlx::query("UPDATE deltas SET delta = CAST(delta || x'00' AS BLOB)")
        .execute(&catalog.writer)
        .await
        .unwrap();
    let refused = refusal(catalog.unfolded_deltas(held.lineage).await);
    assert_eq!(refused.0, ErrorKind::Corrupt, "{}", refused.1);
    sqlx::query("UPDATE deltas SET delta = CAST(x'64ff000000' || zeroblob(8) AS BLOB)")
        .execute(&catalog.writer)
        .await
        .unwrap();
    assert_eq!(refusal(catalog.unfolded_deltas(held.lineage).await).0, ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_leaf_moved_to_another_place_is_corrupt() {
    let store = FileStore::new().await;
    let (world, catalog) = opened(&store).await;
    let held = folded(&world).await;
    sqlx::query("UPDATE leaves SET leaf = 5").execute(&catalog.writer).await.unwrap();
    let refused = refusal(catalog.leaf(held.head(), LeafIndex::new(5).unwrap()).await);
    assert_eq!(refused.0, ErrorKind::Corrupt, "{}", refused.1);
    sqlx::query("UPDATE leaves SET leaf = 5000000").execute(&catalog.writer).await.unwrap();
    let everything = blocks(0, u64::MAX);
    assert_eq!(refusal(catalog.leaf_versions(held.head(), everything, 1).await).0, ErrorKind::Corrupt);
}

#[tokio::test]
async fn columns_that_make_no_sense_are_corrupt() {
    let store = FileStore::new().await;
    let (world, catalog) = opened(&store).await;
    let held = folded(&world).await;
    for (sql, undo) in [
        ("UPDATE volumes SET name = '-/-'", "UPDATE volumes SET name = 'a'"),
        ("UPDATE volumes SET size_bytes = -1", "UPDATE volumes SET size_bytes = 4096"),
        ("UPDATE leases SET generation = -1", "UPDATE leases SET generation = 1"),
        ("UPDATE volumes SET destaged_through = -5", "UPDATE volumes SET destaged_through = 10"),
    ] {
        sqlx::query(sql).execute(&catalog.writer).await.unwrap();
        let refused = refusal(catalog.volume(held.volume).await);
        assert_eq!(refused.0, ErrorKind::Corrupt, "{}", refused.1);
        sqlx::query(undo).execute(&catalog.writer).await.unwrap();
        catalog.volume(held.volume).await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_file_is_corrupt() {
    let store = FileStore::new().await;
    let (world, catalog) = opened(&store).await;
    let mut held = world.held_volume("a").await;
    for number in 0..500 {
        world.commit(&mut held, blocks(number, 40)).await;
    }
    world.catalog.close().await;
    catalog.close().await;
    let mut bytes = std::fs::read(store.path()).unwrap();
    // Every page but the first ones, which say what the file is, and the schema's.
    let damage_from = bytes.len() / 4 * 3;
    bytes[damage_from..].fill(0x5a);
    std::fs::write(store.path(), bytes).unwrap();
    let catalog = store.open_file().await;
    let refused = refusal(catalog.unfolded_deltas(held.lineage).await);
    assert_eq!(refused.0, ErrorKind::Corrupt, "{}", refused.1);
}
