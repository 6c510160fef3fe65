//! How SQLite looks for segments: by an index, however many there are.

use super::FileStore;
use crate::sqlite::segments::{ALL, DEGRADED, NEXT_PROFILE, OF_PROFILE, ON_NODE};
use sqlx::Row;

#[tokio::test]
async fn pages_of_segments_are_ranges_of_an_index() {
    let store = FileStore::new().await;
    let catalog = store.open_file().await;
    for (sql, index) in [
        (ALL, "s USING INDEX sqlite_autoindex_segments_1 (id>?)"),
        (ON_NODE, "n USING COVERING INDEX shards_by_node (node=? AND segment>?)"),
        (DEGRADED, "s USING INDEX segments_degraded (id>?)"),
        (OF_PROFILE, "s USING INDEX segments_by_profile (profile=? AND id>?)"),
        (NEXT_PROFILE, "segments USING COVERING INDEX segments_by_profile (profile>?)"),
    ] {
        let explained = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let rows = sqlx::query(explained).fetch_all(&catalog.readers).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        assert_eq!(plan[0], format!("SEARCH {index}"), "{sql}: {plan:?}");
        assert!(
            plan.iter().all(|step| !step.starts_with("SCAN") && !step.contains("TEMP B-TREE")),
            "{plan:?}"
        );
    }
}
