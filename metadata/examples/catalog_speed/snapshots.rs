//! Snapshots and clones of large maps.

use crate::{Bench, GATEWAY, Volume, summary};
use cairn_metadata::{
    BatchCommit, Catalog, FoldPlan, HeldLease, LEAF_BLOCKS, LeafIndex, MapLeaf, MapPoint, NewSnapshot,
    SnapshotName, SpaceOf, space,
};
use cairn_model::{
    ChunkId, ChunkIndex, ChunkRef, ContainerId, Lba, LbaRange, MapDelta, MapOp, MapTarget, SnapshotId,
    WallTime,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Leaves of 10 TiB.
const MANY_LEAVES: u32 = 163_840;
const SNAPSHOTS: usize = 1000;

/// A leaf of eight blocks.
fn small_leaf(number: u32, container: ContainerId) -> (LeafIndex, Arc<MapLeaf>) {
    let index = LeafIndex::new(number).unwrap();
    let chunk = ChunkId { container, index: ChunkIndex::new(number) };
    let range = LbaRange::new(index.range().start(), 8).unwrap();
    let target = MapTarget::Chunk(ChunkRef { chunk, block: 0 });
    (index, Arc::new(MapLeaf::from_ops(index, [MapOp { range, target }])))
}

impl Bench {
    /// A batch of one random op with a snapshot of what it leaves.
    fn snapshot_batch(&self, volume: &Volume) -> (BatchCommit, SnapshotId) {
        let mut batch = self.random_batch(volume, 1, u64::from(MANY_LEAVES) * LEAF_BLOCKS);
        let id = SnapshotId::fresh(&self.clock, &self.entropy);
        let created_at = WallTime::from_unix_millis(volume.commit.get());
        let name = SnapshotName::new(id.to_string()).unwrap();
        batch.volumes[0].snapshots = vec![NewSnapshot { id, name, size_bytes: 10 << 40, created_at }];
        (batch, id)
    }

    async fn clone_of(&self, from: SnapshotId) -> Duration {
        let clone = self.new_volume(&from.to_string());
        let began = Instant::now();
        self.catalog.create_clone(&clone, from).await.unwrap();
        began.elapsed()
    }

    /// Discards everything, in one step of one fold.
    async fn empty(&self, what: &str, volume: &mut Volume) {
        let everything = LbaRange::new(Lba::ZERO, u64::from(MANY_LEAVES) * LEAF_BLOCKS).unwrap();
        let delta = MapDelta { ops: vec![MapOp { range: everything, target: MapTarget::Hole }] };
        let batch = self.batch(volume, &[], delta);
        self.commit(volume, &batch).await;
        let plan = FoldPlan { emptied: vec![everything], ..volume.step(Vec::new(), Some(volume.commit)) };
        let began = Instant::now();
        self.catalog.fold(&plan).await.unwrap();
        println!(
            "    empty all leaves of the {what} in one step: {:.0} ms",
            began.elapsed().as_secs_f64() * 1e3
        );
    }
}

/// A full map of 10 TiB, folded.
async fn full_volume(bench: &Bench) -> Volume {
    let mut volume = bench.volume("snapshots").await;
    let batch = bench.random_batch(&volume, 1, LEAF_BLOCKS);
    let container = batch.containers[0].id;
    bench.commit(&mut volume, &batch).await;
    let numbers: Vec<u32> = (0..MANY_LEAVES).collect();
    for numbers in numbers.chunks(4096) {
        let leaves = numbers.iter().map(|number| small_leaf(*number, container)).collect();
        bench.catalog.fold(&volume.step(leaves, None)).await.unwrap();
    }
    bench.catalog.fold(&volume.step(Vec::new(), Some(volume.commit))).await.unwrap();
    volume
}

/// A full map of 10 TiB with a thousand snapshots, each with some leaves of its own.
pub(crate) async fn snapshots(bench: &Bench) {
    let mut volume = full_volume(bench).await;
    let mut settled = Vec::new();
    let mut times = Vec::new();
    for _ in 0..SNAPSHOTS {
        let (batch, id) = bench.snapshot_batch(&volume);
        times.push(bench.commit(&mut volume, &batch).await);
        let number = |_| u32::try_from(bench.below(u64::from(MANY_LEAVES))).unwrap();
        // Some leaves change all the time, others now and then.
        let mut numbers: Vec<u32> = (0..8).chain((0..8).map(number)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let own = batch.containers[0].id;
        let leaves = numbers.into_iter().map(|number| small_leaf(number, own)).collect();
        bench.catalog.fold(&volume.step(leaves, Some(volume.commit))).await.unwrap();
        settled.push(id);
    }
    println!("on a map of {MANY_LEAVES} leaves with up to {SNAPSHOTS} snapshots:");
    println!("    commit with a snapshot, the first 100: {}", summary(times[..100].to_vec()));
    println!("    commit with a snapshot, the last 100: {}", summary(times[SNAPSHOTS - 100..].to_vec()));
    spaces(bench, &volume, &settled).await;
    let mut times = Vec::new();
    for from in settled.iter().step_by(10) {
        times.push(bench.clone_of(*from).await);
    }
    println!("    create a clone: {}", summary(times));
    lists(bench, &volume, settled[0]).await;
    let clone = bench.new_volume("emptied-clone");
    bench.catalog.create_clone(&clone, settled[SNAPSHOTS - 1]).await.unwrap();
    let mut clone = bench.held(&clone).await;
    bench.empty("clone", &mut clone).await;
    let mut times = Vec::new();
    for id in settled.iter().skip(5).step_by(10) {
        let began = Instant::now();
        let held = HeldLease { volume: volume.id, generation: volume.generation };
        bench.catalog.delete_snapshot(GATEWAY, held, *id, WallTime::from_unix_millis(1)).await.unwrap();
        times.push(began.elapsed());
    }
    println!("    delete a snapshot: {}", summary(times));
    let (took, longest) = bench.purge().await;
    println!(
        "    purge what 100 deleted snapshots leave: {:.2} s, longest step of 4,096 rows {:.0} ms",
        took.as_secs_f64(),
        longest.as_secs_f64() * 1e3
    );
    bench.empty("volume", &mut volume).await;
    let began = Instant::now();
    bench.catalog.delete_volume(volume.id, true, WallTime::from_unix_millis(1)).await.unwrap();
    println!("    delete the volume with 900 snapshots: {:.2} ms", began.elapsed().as_secs_f64() * 1e3);
    let (took, longest) = bench.purge().await;
    println!(
        "    purge what its clones do not show: {:.2} s, longest step of 4,096 rows {:.0} ms",
        took.as_secs_f64(),
        longest.as_secs_f64() * 1e3
    );
}

async fn lists(bench: &Bench, volume: &Volume, first: SnapshotId) {
    let began = Instant::now();
    let listed = bench.catalog.snapshots(volume.id).await.unwrap().len();
    println!("    list {listed} snapshots: {:.2} ms", began.elapsed().as_secs_f64() * 1e3);
    let at = bench.catalog.snapshot(first).await.unwrap().at;
    for (what, at) in [("head", MapPoint::head(volume.lineage)), ("first snapshot", at)] {
        let began = Instant::now();
        let everything = LbaRange::new(Lba::ZERO, u64::from(MANY_LEAVES) * LEAF_BLOCKS).unwrap();
        let found = bench.catalog.leaf_versions(at, everything, u32::MAX).await.unwrap().len();
        let took = began.elapsed().as_secs_f64() * 1e3;
        println!("    list the {found} leaves of the {what}: {took:.0} ms");
    }
}

/// Whose space it is: each snapshot, the volume as it is, the volume with all of its snapshots.
async fn spaces(bench: &Bench, volume: &Volume, settled: &[SnapshotId]) {
    let all = Instant::now();
    let (mut times, mut unique_bytes) = (Vec::new(), 0);
    for id in settled {
        let began = Instant::now();
        unique_bytes += space(&bench.catalog, SpaceOf::Snapshot(*id)).await.unwrap().unique_bytes;
        times.push(began.elapsed());
    }
    let took = all.elapsed().as_secs_f64();
    println!("    whose space, of one snapshot: {}", summary(times));
    println!("    whose space, of all {}: {took:.2} s; {unique_bytes} bytes are unique", settled.len());
    for (what, of) in [
        ("volume as it is", SpaceOf::Head(volume.id)),
        ("volume with its snapshots", SpaceOf::Volume(volume.id)),
    ] {
        let began = Instant::now();
        space(&bench.catalog, of).await.unwrap();
        println!("    whose space, of the {what}: {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
    }
}

/// Clones of clones, a leaf each.
pub(crate) async fn chain(bench: &Bench) {
    let mut last = bench.volume("chain").await;
    for depth in 0..=SNAPSHOTS {
        let (batch, id) = bench.snapshot_batch(&last);
        bench.commit(&mut last, &batch).await;
        let container = batch.containers[0].id;
        let leaves = vec![small_leaf(u32::try_from(depth).unwrap(), container)];
        bench.catalog.fold(&last.step(leaves, Some(last.commit))).await.unwrap();
        if [0, 10, 100, SNAPSHOTS].contains(&depth) {
            let mut times = Vec::new();
            for _ in 0..100 {
                let began = Instant::now();
                let first = LeafIndex::new(0).unwrap();
                bench.catalog.leaf(MapPoint::head(last.lineage), first).await.unwrap().unwrap();
                times.push(began.elapsed());
            }
            println!("read one leaf that is inherited through {depth} clones: {}", summary(times));
        }
        let clone = bench.new_volume(&format!("chain-{depth}"));
        bench.catalog.create_clone(&clone, id).await.unwrap();
        last = bench.held(&clone).await;
    }
}
