//! What a killed process or a power cut leaves: the database file and its log, copied while the catalog is open.

use super::FileStore;
use crate::conformance::{World, blocks};
use crate::{Catalog, PlacementChange, SqliteCatalog, Totals};
use cairn_model::{CommitSeq, ObjectPlace, Placement, Profile, ShardPlace, WriteSeq};
use std::path::{Path, PathBuf};

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The file and its log as they are now; nothing that only the process has.
fn copied(store: &FileStore, log_length: Option<u64>) -> FileStore {
    let copy = FileStore { directory: tempfile::tempdir().unwrap() };
    std::fs::copy(store.path(), copy.path()).unwrap();
    let log = with_suffix(&copy.path(), "-wal");
    std::fs::copy(with_suffix(&store.path(), "-wal"), &log).unwrap();
    if let Some(length) = log_length {
        std::fs::OpenOptions::new().write(true).open(log).unwrap().set_len(length).unwrap();
    }
    copy
}

#[tokio::test]
async fn a_committed_batch_is_there_without_a_shutdown() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    let mut held = world.held_volume("a").await;
    for number in 0..5 {
        world.commit(&mut held, blocks(number * 100, 50)).await;
        let copy = copied(&store, None);
        let catalog = SqliteCatalog::open(&copy.path()).await.unwrap();
        let row = catalog.volume(held.volume).await.unwrap();
        assert_eq!((row.destaged_through, row.commit), (held.through, held.commit));
        let deltas = catalog.unfolded_deltas(held.lineage).await.unwrap();
        assert_eq!(deltas, world.catalog.unfolded_deltas(held.lineage).await.unwrap());
    }
}

#[tokio::test]
async fn a_transaction_that_was_running_is_not_there() {
    let store = FileStore::new().await;
    let catalog = store.open_file().await;
    let mut change = catalog.begin().await.unwrap();
    // More than the page cache holds, so that some of it is in the log already.
    sqlx::query("UPDATE totals SET volumes = 77").execute(&mut *change).await.unwrap();
    sqlx::query("PRAGMA cache_size = 10").execute(&mut *change).await.unwrap();
    for number in 0..40_i64 {
        sqlx::query("INSERT INTO segments (id, object_key, length_bytes, profile, missing, spare) VALUES ($1, $2, 1, 'single', 0, 0)")
            .bind(number.to_be_bytes().to_vec())
            .bind("x".repeat(10_000))
            .execute(&mut *change)
            .await
            .unwrap();
    }
    let copy = copied(&store, None);
    let left = SqliteCatalog::open(&copy.path()).await.unwrap();
    assert_eq!(left.totals().await.unwrap(), Totals::default());
    drop(change);
    assert_eq!(catalog.totals().await.unwrap(), Totals::default());
}

#[tokio::test]
async fn a_log_cut_anywhere_gives_whole_batches_in_order() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    let mut held = world.held_volume("a").await;
    // What is there now moves into the file; the log begins with the batches.
    world.catalog.close().await;
    let world = world.reopened(&store).await;
    for number in 0..6 {
        world.commit(&mut held, blocks(number * 1000, 400)).await;
    }
    let length = std::fs::metadata(with_suffix(&store.path(), "-wal")).unwrap().len();
    let mut seen = Vec::new();
    for cut in (0..=length).rev().step_by(1777).chain([0]) {
        let copy = copied(&store, Some(cut));
        let catalog = SqliteCatalog::open(&copy.path()).await.unwrap();
        let row = catalog.volume(held.volume).await.unwrap();
        let commits = row.commit.get();
        assert_eq!(row.destaged_through, WriteSeq::new(commits * 10));
        let deltas: Vec<CommitSeq> = catalog
            .unfolded_deltas(held.lineage)
            .await
            .unwrap()
            .into_iter()
            .map(|(commit, _)| commit)
            .collect();
        assert_eq!(deltas, (1..=commits).map(CommitSeq::new).collect::<Vec<_>>());
        assert_eq!(catalog.totals().await.unwrap(), World::totals(1, commits));
        seen.push(commits);
    }
    assert!(seen.is_sorted_by(|a, b| a >= b), "{seen:?}");
    seen.dedup();
    assert_eq!(seen, [6, 5, 4, 3, 2, 1, 0]);
}

#[tokio::test]
async fn a_log_cut_anywhere_gives_whole_changes_of_places() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    let nodes = world.more_nodes(3).await;
    let mut held = world.held_volume("a").await;
    let replica =
        |shards: Vec<Option<ShardPlace>>| Placement::new(Profile::replica(2).unwrap(), shards).unwrap();
    let shard = |node: usize, tag: u32| Some(ShardPlace { node: nodes[node], tag });
    let batch = world.commit_at(&mut held, blocks(0, 8), replica(vec![shard(0, 0), shard(1, 0)])).await;
    let receipt = &batch.segments[0].receipt;
    let segment = receipt.segment();
    let mut places = vec![receipt.place().clone()];
    world.catalog.close().await;
    let world = world.reopened(&store).await;
    for tag in 1..=8 {
        let from = places.last().unwrap().clone();
        let other = if tag % 2 == 1 { None } else { shard(1 + tag as usize % 4 / 2, tag) };
        let to = ObjectPlace { placement: replica(vec![shard(0, 0), other]), ..from.clone() };
        world.catalog.place_shards(&PlacementChange { segment, from, to: to.clone() }).await.unwrap();
        places.push(to);
    }
    let length = std::fs::metadata(with_suffix(&store.path(), "-wal")).unwrap().len();
    let mut seen = Vec::new();
    for cut in (0..=length).rev().step_by(1777).chain([0]) {
        let copy = copied(&store, Some(cut));
        let catalog = SqliteCatalog::open(&copy.path()).await.unwrap();
        let place = catalog.segment_places(None, 2).await.unwrap().remove(0).place;
        // Every second change took a shard away and doomed it.
        let missing = place.placement.missing();
        let changes = 2 * catalog.doomed_objects(None, 100).await.unwrap().len() - missing;
        assert_eq!(place, places[changes]);
        assert_eq!(catalog.containers(&[batch.containers[0].id]).await.unwrap()[0].place, place);
        let (totals, missing) = (catalog.totals().await.unwrap(), missing as u64);
        assert_eq!((totals.degraded_segments, totals.at_risk_segments), (missing, missing));
        let shards: u64 = catalog.node_usage().await.unwrap().iter().map(|node| node.shards).sum();
        assert_eq!(shards, 2 - missing);
        seen.push(changes);
    }
    assert!(seen.is_sorted_by(|a, b| a >= b), "{seen:?}");
    seen.dedup();
    assert_eq!(seen, [8, 7, 6, 5, 4, 3, 2, 1, 0]);
}
