//! A catalog that may have forgotten something: what nothing names stays, and everything else is mended.

use super::orphans::plant;
use super::{check_alone, damage, kinds, mend, site_with_data};
use crate::heal::cluster::{Cluster, filled, noise};
use crate::support::{Checked, MIB, Site};
use cairn_engine::{FsckReport, ProblemKind, Remedy};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;
use std::time::Duration;

const FIRST_CONTAINER: &str = "DELETE FROM containers WHERE id = (SELECT min(id) FROM containers)";

#[track_caller]
fn assert_kept(report: &FsckReport, why: &str) {
    let orphans: Vec<_> =
        report.problems.iter().filter(|problem| problem.kind == ProblemKind::Orphan).collect();
    assert!(!orphans.is_empty() && report.orphans == 0, "{report:#?}");
    for orphan in orphans {
        assert!(orphan.remedy.is_none() && orphan.text.contains(why), "{orphan:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_points_at_nothing_keeps_what_nothing_names_and_no_sum_from_being_set() {
    let (cluster, engine, _disk) = site_with_data().await;
    let mut other =
        Checked::fresh(engine.create_volume(&cluster.site.new_volume("other", 16 * MIB)).await.unwrap());
    other.write(0, noise(7, MIB)).await;
    engine.destage().await.unwrap();
    super::fold(&engine).await;
    let store = Arc::clone(&cluster.nodes[0].inner) as Arc<dyn ObjectStore>;
    let named = cluster.places().await.pop().unwrap().place.key;
    plant(&store, &named, 1).await;
    // The first map points at what is not there, and a sum of a later one is wrong.
    assert_eq!(damage(&cluster.site, FIRST_CONTAINER).await, 1);
    let sql = "UPDATE leaves SET blocks = blocks + 1 WHERE rowid = (SELECT max(rowid) FROM leaves)";
    assert_eq!(damage(&cluster.site, sql).await, 1);
    let (report, repaired) = mend(&engine).await;
    assert_kept(&report, "it lacks something");
    let leaves = report.problems.iter().filter(|problem| problem.subject.starts_with("leaf"));
    let sums: Vec<_> = leaves.filter(|problem| problem.kind == ProblemKind::Sum).collect();
    assert_eq!(sums.len(), 1, "{report:#?}");
    assert_eq!(sums[0].remedy, Some(Remedy::Recount), "{report:#?}");
    assert!(repaired.sums > 0 && repaired.orphans == 0, "{repaired:?}");
    engine.abandon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_points_at_nothing_keeps_no_checkpoint_from_being_taken() {
    let mut site = Site::with_volume(16 * MIB).await;
    site.config.checkpoint_interval = Some(Duration::from_hours(1));
    site.config.reclaim_interval = None;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, MIB)).await;
    engine.destage().await.unwrap();
    engine.checkpoint().await.unwrap();
    let store = Arc::clone(&site.nodes[0].store);
    let pieces: Vec<_> = store.list(Some(&"record/pieces".into())).try_collect().await.unwrap();
    for piece in pieces {
        store.delete(&piece.location).await.unwrap();
    }
    assert_eq!(damage(&site, FIRST_CONTAINER).await, 1);
    let (report, repaired) = mend(&engine).await;
    let found = kinds(&report);
    assert!(found.contains(&(ProblemKind::Map, None)), "{report:#?}");
    assert!(found.contains(&(ProblemKind::Record, Some(Remedy::Checkpoint))), "{report:#?}");
    assert!(repaired.checkpoint, "{repaired:?}");
    engine.abandon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_cannot_be_read_keeps_what_nothing_names() {
    for sql in ["UPDATE leaves SET data = x'6c00'", "UPDATE deltas SET delta = x'00'"] {
        let cluster = Cluster::new(1, "single").await;
        let (engine, mut disk) = filled(&cluster, MIB).await;
        super::fold(&engine).await;
        let named = cluster.places().await.remove(0).place.key;
        plant(&(Arc::clone(&cluster.nodes[0].inner) as _), &named, 1).await;
        disk.write(0, noise(2, 4096)).await;
        engine.destage().await.unwrap();
        engine.abandon().await;
        assert_eq!(damage(&cluster.site, sql).await, 1, "{sql}");
        assert_kept(&check_alone(&cluster.site).await, "a map that cannot be read");
    }
}
