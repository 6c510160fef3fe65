//! What is SQLite's own: the file, its versions, crashes.

use super::*;
use crate::VolumeName;
use cairn_model::{Durability, SeededEntropy, SystemClock};

#[tokio::test]
async fn a_batch_is_committed_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.db");
    let catalog = SqliteCatalog::create(&path).await.unwrap();
    let clock = SystemClock::new();
    let entropy = SeededEntropy::new(1);
    let volume = NewVolume {
        id: VolumeId::fresh(&clock, &entropy),
        name: VolumeName::new("a").unwrap(),
        size_bytes: 1 << 30,
        durability: Durability::Flush,
        lineage: LineageId::fresh(&clock, &entropy),
        compress: true,
        dedupe: true,
        read_only: false,
        options: "{}".to_owned(),
        created_at: WallTime::from_unix_millis(5),
    };
    catalog.create_volume(&volume).await.unwrap();
    let gateway = GatewayId::fresh(&clock, &entropy);
    catalog.register_gateway(gateway, "g", WallTime::from_unix_millis(1)).await.unwrap();
    let lease = catalog
        .acquire_lease(volume.id, gateway, WallTime::from_unix_millis(1), Duration::from_secs(1))
        .await
        .unwrap();
    let batch = BatchCommit {
        batch: cairn_model::BatchId::fresh(&clock, &entropy),
        gateway,
        segments: vec![],
        containers: vec![],
        volumes: vec![crate::VolumeCommit {
            volume: volume.id,
            lineage: volume.lineage,
            generation: lease.generation,
            base: cairn_model::WriteSeq::ZERO,
            through: cairn_model::WriteSeq::new(4),
            delta: MapDelta::default(),
        }],
    };
    let receipt = catalog.commit_batch(&batch).await.unwrap();
    assert_eq!(catalog.commit_batch(&batch).await.unwrap(), receipt);
    assert_eq!(catalog.unfolded_deltas(volume.lineage).await.unwrap().len(), 1);
    assert_eq!(catalog.totals().await.unwrap().volumes, 1);
}
