//! How fast the catalog commits, folds, reads, snapshots and clones: `cargo run --release -p cairn-metadata --example catalog_speed [DIRECTORY [snapshots|locate]]`.
//!
//! The file is made in DIRECTORY (default: the system's temporary one) and removed. With `snapshots`, only the part about them runs; with `locate`,
//! those about commits and about where containers are. Beside each figure stands the floor of the same machine: writing as many bytes to a
//! file and syncing it.

#![expect(
    clippy::disallowed_methods,
    reason = "a measurement: its clock is the machine's, and it plays the pool"
)]
#![expect(clippy::unwrap_used, reason = "a measurement ends at the first error")]

mod snapshots;

use bytes::Bytes;
use cairn_metadata::{
    BatchCommit, Catalog, ContainerRow, FoldPlan, LEAF_BLOCKS, LeafIndex, MapLeaf, MapPoint, NewVolume,
    NodeRow, NodeState, SegmentRow, SqliteCatalog, VolumeCommit, VolumeName,
};
use cairn_model::{
    BatchId, ChunkId, ChunkIndex, ChunkRef, CommitSeq, ContainerId, DomainId, Durability, Entropy, GatewayId,
    Generation, Lba, LbaRange, LineageId, MapDelta, MapOp, MapTarget, NodeId, ObjectPlace, Placement,
    RangeMap, Reduction, SeededEntropy, SegmentId, SystemClock, UploadReceipt, VolumeId, WallTime, WriteSeq,
};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const GATEWAY: GatewayId = GatewayId::from_bytes([1; 16]);
const NODE: NodeId = NodeId::from_bytes([2; 16]);
const RANDOM_OPS: u64 = 16_384;
const OPS_PER_CONTAINER: u64 = 2048;

struct Bench {
    clock: SystemClock,
    entropy: SeededEntropy,
    catalog: SqliteCatalog,
}

struct Volume {
    id: VolumeId,
    lineage: LineageId,
    generation: Generation,
    through: WriteSeq,
    commit: CommitSeq,
}

impl Volume {
    fn step(&self, leaves: Vec<(LeafIndex, Arc<MapLeaf>)>, forget: Option<CommitSeq>) -> FoldPlan {
        FoldPlan {
            lineage: self.lineage,
            gateway: GATEWAY,
            generation: self.generation,
            through: self.commit,
            leaves,
            emptied: Vec::new(),
            forget,
        }
    }
}

impl Bench {
    fn below(&self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.entropy.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end
    }

    async fn volume(&self, name: &str) -> Volume {
        let volume = self.new_volume(name);
        self.catalog.create_volume(&volume).await.unwrap();
        self.held(&volume).await
    }

    fn new_volume(&self, name: &str) -> NewVolume {
        let (id, lineage) =
            (VolumeId::fresh(&self.clock, &self.entropy), LineageId::fresh(&self.clock, &self.entropy));
        NewVolume {
            id,
            name: VolumeName::new(name).unwrap(),
            size_bytes: 10 << 40,
            durability: Durability::Flush,
            lineage,
            domain: DomainId::DEFAULT,
            compress: true,
            dedupe: true,
            read_only: false,
            options: "{}".to_owned(),
            created_at: WallTime::from_unix_millis(1),
        }
    }

    async fn held(&self, volume: &NewVolume) -> Volume {
        let &NewVolume { id, lineage, .. } = volume;
        let lease = self
            .catalog
            .acquire_lease(id, GATEWAY, WallTime::from_unix_millis(1), Duration::from_mins(1), None)
            .await;
        let generation = lease.unwrap().generation;
        Volume { id, lineage, generation, through: WriteSeq::ZERO, commit: CommitSeq::ZERO }
    }

    /// `ops` one-block writes spread over `blocks`, in containers of 8 MiB, one segment each.
    fn random_batch(&self, volume: &Volume, ops: u64, blocks: u64) -> BatchCommit {
        let containers: Vec<ContainerId> = (0..ops.div_ceil(OPS_PER_CONTAINER))
            .map(|_| ContainerId::fresh(&self.clock, &self.entropy))
            .collect();
        let mut map = RangeMap::new();
        for _ in 0..ops {
            let start = self.below(blocks);
            map.insert(LbaRange::new(Lba::new(start), 1).unwrap(), ());
        }
        let op = |((range, ()), number): ((LbaRange, &()), u64)| {
            let container = containers[usize::try_from(number / OPS_PER_CONTAINER).unwrap()];
            let index = ChunkIndex::new(u32::try_from(number % OPS_PER_CONTAINER).unwrap());
            MapOp {
                range,
                target: MapTarget::Chunk(ChunkRef { chunk: ChunkId { container, index }, block: 0 }),
            }
        };
        let delta = MapDelta { ops: map.iter().zip(0..).map(op).collect() };
        self.batch(volume, &containers, delta)
    }

    fn batch(&self, volume: &Volume, containers: &[ContainerId], delta: MapDelta) -> BatchCommit {
        let mut batch = BatchCommit {
            batch: BatchId::fresh(&self.clock, &self.entropy),
            gateway: GATEWAY,
            segments: Vec::new(),
            containers: Vec::new(),
            volumes: vec![VolumeCommit {
                volume: volume.id,
                lineage: volume.lineage,
                generation: volume.generation,
                base: volume.through,
                through: volume.through.next(),
                delta,
                reduction: Reduction::default(),
                snapshots: Vec::new(),
            }],
        };
        for id in containers {
            let segment = SegmentId::fresh(&self.clock, &self.entropy);
            let place = ObjectPlace {
                key: format!("segments/{segment}"),
                length_bytes: 8 << 20,
                placement: Placement::single(NODE),
            };
            let receipt = UploadReceipt::attest(segment, place);
            batch.segments.push(SegmentRow { receipt });
            let directory = Bytes::from(vec![7; 8192]);
            batch.containers.push(ContainerRow {
                id: *id,
                segment,
                offset: 0,
                length: 8 << 20,
                raw_bytes: 12 << 20,
                domain: DomainId::DEFAULT,
                directory,
            });
        }
        batch
    }

    async fn commit(&self, volume: &mut Volume, batch: &BatchCommit) -> Duration {
        let began = Instant::now();
        self.catalog.commit_batch(batch).await.unwrap();
        let took = began.elapsed();
        volume.through = volume.through.next();
        volume.commit = volume.commit.next();
        took
    }

    async fn purge(&self) -> (Duration, Duration) {
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        loop {
            let step = Instant::now();
            let more = self.catalog.purge_deleted(4096).await.unwrap();
            longest = longest.max(step.elapsed());
            if !more {
                return (began.elapsed(), longest);
            }
        }
    }

    /// Folds everything unfolded, `leaves_max` leaves a step.
    async fn fold(&self, volume: &Volume, leaves_max: usize) -> (Duration, Duration, usize) {
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        let deltas = self.catalog.unfolded_deltas(volume.lineage).await.unwrap();
        let touched = |op: &MapOp| LeafIndex::of(op.range.start());
        let mut indices: Vec<LeafIndex> =
            deltas.iter().flat_map(|(_, delta)| delta.ops.iter().map(touched)).collect();
        indices.sort_unstable();
        indices.dedup();
        let steps = indices.chunks(leaves_max).count();
        for (step, indices) in indices.chunks(leaves_max).enumerate() {
            let mut old = self
                .catalog
                .leaves(MapPoint::head(volume.lineage), indices)
                .await
                .unwrap()
                .into_iter()
                .peekable();
            let mut leaves = Vec::new();
            for index in indices {
                let mut leaf =
                    old.next_if(|(found, _)| found == index).map(|(_, leaf)| leaf).unwrap_or_default();
                for (_, delta) in &deltas {
                    leaf.apply(*index, delta.overlapping(index.range()).iter().copied());
                }
                leaves.push((*index, Arc::new(leaf)));
            }
            let plan = volume.step(leaves, (step + 1 == steps).then_some(volume.commit));
            let transaction = Instant::now();
            self.catalog.fold(&plan).await.unwrap();
            longest = longest.max(transaction.elapsed());
        }
        (began.elapsed(), longest, indices.len())
    }
}

fn summary(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    format!("median {:.2} ms, p99 {:.2} ms, worst {:.2} ms", at(50), at(99), at(100))
}

/// Appending `bytes` to a file and syncing it: what a commit cannot beat.
fn floor(directory: &Path, bytes: usize) -> String {
    let mut file = std::fs::File::create(directory.join("floor")).unwrap();
    let block = vec![3; bytes];
    let once = || {
        let began = Instant::now();
        file.write_all(&block).unwrap();
        file.sync_data().unwrap();
        began.elapsed()
    };
    let times = std::iter::repeat_with(once).take(50).collect();
    summary(times)
}

async fn commits(bench: &Bench, directory: &Path) {
    for (what, ops, rounds) in [
        ("1 random op", 1, 300),
        ("1,024 random ops", 1024, 200),
        ("16,384 random ops over 10 TiB", RANDOM_OPS, 100),
    ] {
        let mut volume = bench.volume(&format!("commits-{ops}")).await;
        let mut times = Vec::new();
        let mut bytes = 0;
        for _ in 0..rounds {
            let batch = bench.random_batch(&volume, ops, (10 << 40) / 4096);
            bytes = batch.volumes[0].delta.encode().unwrap().len();
            times.push(bench.commit(&mut volume, &batch).await);
        }
        println!("commit, {what} ({bytes} bytes of delta): {}", summary(times));
        println!("    floor, {bytes} bytes and a sync: {}", floor(directory, bytes));
    }
}

async fn growth(bench: &Bench) {
    let mut volume = bench.volume("growth").await;
    let blocks = (10 << 40) / 4096;
    for round in 1..=3 {
        let mut times = Vec::new();
        for _ in 0..20 {
            let batch = bench.random_batch(&volume, RANDOM_OPS, blocks);
            times.push(bench.commit(&mut volume, &batch).await);
        }
        println!("commit into a map of {} commits: {}", volume.commit, summary(times));
        let (took, longest, leaves) = bench.fold(&volume, 1024).await;
        println!(
            "fold {round}: 20 deltas of 16,384 random ops over 10 TiB into {leaves} leaves: {:.2} s, longest step {:.0} ms",
            took.as_secs_f64(),
            longest.as_secs_f64() * 1e3
        );
    }
    let mut times = Vec::new();
    for _ in 0..2000 {
        let index = LeafIndex::of(Lba::new(bench.below(blocks)));
        let began = Instant::now();
        bench.catalog.leaf(MapPoint::head(volume.lineage), index).await.unwrap();
        times.push(began.elapsed());
    }
    println!("read one leaf of a scattered map: {}", summary(times));
    let began = Instant::now();
    bench.catalog.delete_volume(volume.id, false, WallTime::from_unix_millis(1)).await.unwrap();
    println!("delete that volume: {:.2} ms", began.elapsed().as_secs_f64() * 1e3);
    let (took, longest) = bench.purge().await;
    println!(
        "purge it: {:.2} s, longest step of 4,096 rows {:.0} ms",
        took.as_secs_f64(),
        longest.as_secs_f64() * 1e3
    );
}

/// 64 GiB written in order: 8-block chunks, and one leaf that was overwritten at random.
async fn dense(bench: &Bench) {
    let mut volume = bench.volume("dense").await;
    let container = ContainerId::fresh(&bench.clock, &bench.entropy);
    for leaf in 0..8 {
        let ops = (0..1 << 16).map(|chunk: u32| {
            let range = LbaRange::new(Lba::new((leaf << 19) + u64::from(chunk) * 8), 8).unwrap();
            let chunk = ChunkId { container, index: ChunkIndex::new(chunk) };
            MapOp { range, target: MapTarget::Chunk(ChunkRef { chunk, block: 0 }) }
        });
        let containers: &[ContainerId] = if leaf == 0 { &[container] } else { &[] };
        let batch = bench.batch(&volume, containers, MapDelta { ops: ops.collect() });
        bench.commit(&mut volume, &batch).await;
    }
    let (took, longest, leaves) = bench.fold(&volume, 1024).await;
    println!(
        "fold 16 GiB of sequential writes into {leaves} leaves: {:.0} ms, longest step {:.0} ms",
        took.as_secs_f64() * 1e3,
        longest.as_secs_f64() * 1e3
    );
    for _ in 0..16 {
        let batch = bench.random_batch(&volume, RANDOM_OPS, LEAF_BLOCKS);
        bench.commit(&mut volume, &batch).await;
    }
    bench.fold(&volume, 1024).await;
    for (what, number) in [("scattered", 0), ("sequential", 9)] {
        let index = LeafIndex::new(number).unwrap();
        let leaf: MapLeaf = bench.catalog.leaf(MapPoint::head(volume.lineage), index).await.unwrap().unwrap();
        let bytes = leaf.encode(index);
        let mut times = Vec::new();
        for _ in 0..300 {
            let began = Instant::now();
            MapLeaf::decode(index, &bytes).unwrap();
            times.push(began.elapsed());
        }
        println!(
            "{what} leaf: {} runs, {} bytes stored, {} in memory; decode {}",
            leaf.runs(),
            bytes.len(),
            leaf.memory_bytes(),
            summary(times)
        );
        let mut times = Vec::new();
        for _ in 0..300 {
            let began = Instant::now();
            bench.catalog.leaf(MapPoint::head(volume.lineage), index).await.unwrap();
            times.push(began.elapsed());
        }
        println!("    read from the catalog: {}", summary(times));
    }
}

/// Where containers are: of many in one go, of one, and page by page.
async fn locate(bench: &Bench) {
    let mut volume = bench.volume("locate").await;
    let mut ids = Vec::new();
    for _ in 0..250 {
        let batch = bench.random_batch(&volume, 8 * OPS_PER_CONTAINER, (10 << 40) / 4096);
        ids.extend(batch.containers.iter().map(|container| container.id));
        bench.commit(&mut volume, &batch).await;
    }
    for (what, count, rounds) in [("1,000 containers", 1000, 100), ("1 container", 1, 2000)] {
        let mut times = Vec::new();
        for _ in 0..rounds {
            let wanted: Vec<_> =
                (0..count).map(|_| ids[usize::try_from(bench.below(ids.len() as u64)).unwrap()]).collect();
            let began = Instant::now();
            bench.catalog.containers(&wanted).await.unwrap();
            times.push(began.elapsed());
        }
        println!("locate {what} of {}: {}", ids.len(), summary(times));
    }
    let mut times = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        bench.catalog.containers_before(None, 1000).await.unwrap();
        times.push(began.elapsed());
    }
    println!("list the newest 1,000 containers: {}", summary(times));
}

#[tokio::main]
async fn main() {
    let parent = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let directory = tempfile::tempdir_in(parent).unwrap();
    let path = directory.path().join("catalog.db");
    let began = Instant::now();
    let catalog = SqliteCatalog::create(&path).await.unwrap();
    println!("create: {:.2} ms", began.elapsed().as_secs_f64() * 1e3);
    let bench = Bench { clock: SystemClock::new(), entropy: SeededEntropy::new(1), catalog };
    bench.catalog.register_gateway(GATEWAY, "bench", WallTime::from_unix_millis(1)).await.unwrap();
    let node = NodeRow {
        id: NODE,
        name: "node".to_owned(),
        url: "file:///pool".to_owned(),
        domain: None,
        state: NodeState::Active,
        created_at: WallTime::from_unix_millis(1),
        options: "{}".to_owned(),
        capacity_bytes: None,
    };
    bench.catalog.add_node(&node).await.unwrap();
    let part = std::env::args().nth(2).unwrap_or_default();
    if part == "locate" {
        commits(&bench, directory.path()).await;
        locate(&bench).await;
        return;
    }
    if part != "snapshots" {
        locate(&bench).await;
        commits(&bench, directory.path()).await;
        dense(&bench).await;
        growth(&bench).await;
    }
    snapshots::snapshots(&bench).await;
    snapshots::chain(&bench).await;
    println!("file: {} MiB", std::fs::metadata(&path).unwrap().len() >> 20);
    bench.catalog.close().await;
    let began = Instant::now();
    let again = SqliteCatalog::open(&path).await.unwrap();
    again.volumes().await.unwrap();
    println!("open and list: {:.2} ms", began.elapsed().as_secs_f64() * 1e3);
}
