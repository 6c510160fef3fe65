//! A site that is sound is not complained of, whatever goes on meanwhile.

use super::{assert_clean, check};
use crate::heal::cluster::{Cluster, filled, noise};
use crate::support::{Dice, MIB};
use cairn_engine::{EngineError, Fsck};
use cairn_metadata::{NodeChange, NodeState, SnapshotName};
use cairn_model::{ErrorKind, Kinded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_site_and_one_with_snapshots_and_clones_are_clean() {
    let cluster = Cluster::new(3, "ec:2+1").await;
    let engine = cluster.site.start().await;
    assert_clean(&check(&engine).await);
    engine.shutdown().await.unwrap();
    drop(engine);
    let (engine, mut disk) = filled(&cluster, 2 * MIB).await;
    let name: SnapshotName = "one".parse().unwrap();
    engine.create_snapshot("disk", &name).await.unwrap();
    disk.write(MIB / 2, noise(3, MIB)).await;
    disk.zero(0, MIB / 4).await;
    engine.destage().await.unwrap();
    let report = check(&engine).await;
    assert_clean(&report);
    assert!(
        report.segments > 3 && report.shards == 3 * report.segments && report.containers > 3,
        "{report:?}"
    );
    assert!(report.map_rows > 0 && report.objects == report.shards, "{report:?}");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_wrong_while_guests_write_and_reclaim_and_healing_work() {
    let mut cluster = Cluster::new(5, "ec:2+1").await;
    cluster.site.config.reclaim_dead_percent_max = 5;
    cluster.site.config.checkpoint_interval = Some(Duration::from_secs(1));
    let (engine, mut disk) = filled(&cluster, 4 * MIB).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let background = tokio::spawn({
        let (engine, is_over) = (Arc::clone(&engine), Arc::clone(&is_over));
        async move {
            while !is_over.load(Ordering::Relaxed) {
                // Fails now and then for what healing moves; that is no matter here.
                let _ = engine.reclaim(false).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    let dice = Dice::new(5);
    let fsck = Fsck::default();
    for round in 0..6 {
        let catalog = cluster.site.catalog().await;
        let state = if round % 2 == 0 { NodeState::Draining } else { NodeState::Active };
        let change = NodeChange { state: Some(state), ..NodeChange::default() };
        catalog.update_node(cluster.site.nodes[round % 5 / 2].id, &change).await.unwrap();
        catalog.close().await;
        engine.pool_changed();
        let writing = async {
            for number in 0..12u64 {
                let at = dice.below(15 * MIB) / 4096 * 4096;
                disk.write(at, noise(1000 + number + 100 * round as u64, 64 << 10)).await;
                if number % 4 == 0 {
                    engine.destage().await.unwrap();
                }
                if number == 6 {
                    let name: SnapshotName = format!("s{round}").parse().unwrap();
                    engine.create_snapshot("disk", &name).await.unwrap();
                }
            }
        };
        let (report, ()) = tokio::join!(fsck.check(&engine), writing);
        let report = report.unwrap();
        assert_eq!((report.lost_count, report.problem_count), (0, 0), "round {round}: {report:#?}");
    }
    is_over.store(true, Ordering::Relaxed);
    background.await.unwrap();
    disk.check_all().await;
    assert_eq!(check(&engine).await.problem_count, 0);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_check_at_a_time_and_one_that_nobody_waits_for_ends() {
    let cluster = Cluster::new(1, "single").await;
    let (engine, _disk) = filled(&cluster, MIB).await;
    let fsck = Fsck::default();
    let (one, other) = tokio::join!(fsck.check(&engine), fsck.check(&engine));
    assert!(one.is_ok());
    let refused = other.unwrap_err();
    assert!(matches!(refused, EngineError::FsckUnderWay) && refused.kind() == ErrorKind::Conflict);
    // Dropped in the middle: the next one is not refused for it.
    let dropped = tokio::time::timeout(Duration::from_millis(1), fsck.check(&engine)).await;
    assert!(dropped.is_err(), "it was over at once");
    assert_eq!(fsck.progress(), None);
    assert_clean(&fsck.check(&engine).await.unwrap());
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_has_just_started_is_not_told_to_lack_its_first_checkpoint() {
    let mut cluster = Cluster::new(1, "single").await;
    let (engine, disk) = filled(&cluster, MIB).await;
    drop(disk);
    engine.shutdown().await.unwrap();
    drop(engine);
    cluster.site.config.checkpoint_interval = Some(Duration::from_hours(1));
    let engine = cluster.site.start().await;
    let report = check(&engine).await;
    assert_clean(&report);
    assert!(engine.status().record.taken > 0, "it would be told that the pool has none");
    engine.shutdown().await.unwrap();
}
