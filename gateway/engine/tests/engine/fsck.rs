//! The catalog, its maps and the pool held against each other: what is damaged is found, what can be mended is, and nothing else is ever touched.

#![expect(clippy::disallowed_methods, reason = "tests wait for real time, and spawn what they join")]

mod damage;
mod orphans;
mod quiet;
mod withheld;

use crate::heal::cluster::{Cluster, filled};
use crate::support::{Checked, DOMAIN_KEY, Site};
use cairn_engine::{Engine, Fsck, FsckParts, FsckReport, ProblemKind, Remedy, Repaired, members};
use cairn_model::DomainId;
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_segment_writer::{Domain, Pool, PoolSettings};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
use std::sync::Arc;

/// Changes the catalog behind everybody's back.
async fn damage(site: &Site, sql: &str) -> u64 {
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(site.directory.path().join("catalog.db"))
        .foreign_keys(false);
    let mut file = SqliteConnection::connect_with(&options).await.unwrap();
    let done = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut file).await.unwrap();
    file.close().await.unwrap();
    done.rows_affected()
}

async fn check(engine: &Engine) -> FsckReport {
    Fsck::default().check(engine).await.unwrap()
}

/// A check of a site on which no engine runs.
async fn check_alone(site: &Site) -> FsckReport {
    let catalog = site.catalog().await;
    let rows = catalog.nodes().await.unwrap();
    let nodes: Vec<_> = site.nodes.iter().map(|node| Arc::new(site.open_node(node))).collect();
    let settings = PoolSettings { profile: catalog.pool_settings().await.unwrap().profile, ..site.pool };
    let key = SecretKey::from_bytes(DOMAIN_KEY);
    let parts = FsckParts {
        site: site.id,
        catalog: Arc::clone(&catalog),
        pool: Arc::new(Pool::new(members(&rows, &nodes), settings, site.ports.clone())),
        domains: vec![Domain::new(DomainId::DEFAULT, key, Encryption::Aes256Gcm)],
        ports: site.ports.clone(),
    };
    let report = Fsck::default().check_alone(&parts).await.unwrap();
    catalog.close().await;
    report
}

/// A check, and what its plan did.
async fn mend(engine: &Engine) -> (FsckReport, Repaired) {
    let fsck = Fsck::default();
    let report = fsck.check(engine).await.unwrap();
    let plan = report.plan.unwrap_or_else(|| panic!("there is something to mend: {report:?}"));
    let repaired = fsck.repair(engine, plan.id).await.unwrap();
    (report, repaired)
}

fn kinds(report: &FsckReport) -> Vec<(ProblemKind, Option<Remedy>)> {
    report.problems.iter().map(|problem| (problem.kind, problem.remedy)).collect()
}

#[track_caller]
fn assert_clean(report: &FsckReport) {
    assert!(report.is_clean() && report.plan.is_none(), "{report:#?}");
}

async fn bytes(store: &Arc<dyn ObjectStore>, key: &str) -> Vec<u8> {
    store.get(&Path::from(key)).await.unwrap().bytes().await.unwrap().to_vec()
}

async fn put(store: &Arc<dyn ObjectStore>, key: &str, bytes: Vec<u8>) {
    store.put(&Path::from(key), bytes.into()).await.unwrap();
}

/// A site on one node with a volume of some data, nothing of which changes by itself.
async fn site_with_data() -> (Cluster, Arc<Engine>, Checked) {
    let cluster = Cluster::new(1, "single").await;
    let (engine, disk) = filled(&cluster, 3 << 20).await;
    fold(&engine).await;
    (cluster, engine, disk)
}

/// Everything is in leaves then.
async fn fold(engine: &Engine) {
    engine.reclaim(true).await.unwrap();
}
