//! What is left in the tables when everything that was in them is deleted.

use super::FileStore;
use crate::conformance::trees;

#[tokio::test]
async fn a_tree_that_was_deleted_leaves_no_row() {
    let store = FileStore::new().await;
    trees::grow_and_delete(&store, 100..103).await;
    let catalog = store.open_file().await;
    let left: (i64, i64, i64, i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM volumes), (SELECT count(*) FROM leases), (SELECT count(*) FROM snapshots), \
         (SELECT count(*) FROM lineages), (SELECT count(*) FROM deltas), (SELECT count(*) FROM leaves)",
    )
    .fetch_one(&catalog.writer)
    .await
    .unwrap();
    assert_eq!(left, (0, 0, 0, 0, 0, 0));
    let dangling = sqlx::query("PRAGMA foreign_key_check").fetch_all(&catalog.writer).await.unwrap();
    assert!(dangling.is_empty());
    let integrity: String =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&catalog.writer).await.unwrap();
    assert_eq!(integrity, "ok");
}
