//! Random histories against an array of blocks.

use super::{CatalogStore, Held, TTL, World, at, blocks};
use crate::{FoldPlan, LEAF_BLOCKS, LeafIndex, MapLeaf};
use cairn_model::{
    BLOCK_SIZE, ChunkId, ChunkIndex, ChunkRef, ContainerId, Entropy, Lba, LbaRange, MapDelta, MapOp,
    MapTarget, RangeMap, RangeValue, SeededEntropy, WriteSeq,
};
use std::collections::BTreeMap;
use std::sync::Arc;

const LEAVES: u64 = 4;
const BLOCKS: u64 = LEAVES * LEAF_BLOCKS;

pub(super) struct Dice(SeededEntropy);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(SeededEntropy::new(seed))
    }

    pub(super) fn below(&self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end
    }
}

/// What the volume holds, block by block, beside the commits that are not folded yet.
struct Oracle {
    blocks: Vec<MapTarget>,
}

impl Oracle {
    fn apply(&mut self, delta: &MapDelta) {
        for op in &delta.ops {
            for offset in 0..op.range.blocks() {
                let block = usize::try_from(op.range.start().get() + offset).unwrap();
                self.blocks[block] = op.target.advanced(offset);
            }
        }
    }

    /// The catalog's leaves under its deltas give the same blocks.
    async fn compare(&self, world: &World, held: &Held) {
        let mut overlay = RangeMap::new();
        for (_, delta) in world.catalog.unfolded_deltas(held.lineage).await.unwrap() {
            delta.ops.iter().for_each(|op| overlay.insert(op.range, op.target));
        }
        let present = world.catalog.leaf_versions(held.head(), blocks(0, BLOCKS), 100).await.unwrap();
        let present: Vec<LeafIndex> = present.into_iter().map(|version| version.index).collect();
        let leaves: BTreeMap<_, _> =
            world.catalog.leaves(held.head(), &present).await.unwrap().into_iter().collect();
        let usage = world.catalog.volume(held.volume).await.unwrap().usage;
        let mapped: u64 = leaves.values().map(MapLeaf::blocks).sum();
        assert_eq!(usage.logical_bytes, mapped * u64::from(BLOCK_SIZE));
        for number in 0..u32::try_from(LEAVES).unwrap() {
            let index = LeafIndex::new(number).unwrap();
            let none = MapLeaf::default();
            let leaf = leaves.get(&index).unwrap_or(&none);
            let mut at = index.range().start();
            let mut check = |part: LbaRange, target: MapTarget| {
                assert_eq!(part.start(), at);
                at = part.end();
                for offset in 0..part.blocks() {
                    let block = usize::try_from(part.start().get() + offset).unwrap();
                    assert_eq!(target.advanced(offset), self.blocks[block], "block {block}");
                }
            };
            overlay.lookup(index.range(), |part, target| match target {
                Some(target) => check(part, target),
                None => leaf.lookup(part, &mut check),
            });
        }
    }
}

fn random_delta(dice: &Dice, container: ContainerId) -> MapDelta {
    let mut map: RangeMap<MapTarget> = RangeMap::new();
    for number in 0..=dice.below(40) {
        let start = dice.below(BLOCKS);
        if dice.below(4) == 0 {
            let length = [1, 100, LEAF_BLOCKS, BLOCKS][usize::try_from(dice.below(4)).unwrap()];
            let end = (start + length).min(BLOCKS);
            map.insert(LbaRange::between(Lba::new(start), Lba::new(end)), MapTarget::Hole);
        } else {
            let end = (start + 1 + dice.below(16)).min(BLOCKS);
            let chunk = ChunkId { container, index: ChunkIndex::new(u32::try_from(number).unwrap()) };
            let target = MapTarget::Chunk(ChunkRef { chunk, block: 0 });
            map.insert(LbaRange::between(Lba::new(start), Lba::new(end)), target);
        }
    }
    MapDelta { ops: map.iter().map(|(range, target)| MapOp { range, target: *target }).collect() }
}

async fn commit(world: &World, held: &mut Held, oracle: &mut Oracle, dice: &Dice) {
    let mut batch = world.batch(&[(held, blocks(0, 1))]);
    batch.volumes[0].delta = random_delta(dice, batch.containers[0].id);
    batch.volumes[0].through = WriteSeq::new(held.through.get() + dice.below(5));
    world.catalog.commit_batch(&batch).await.unwrap();
    oracle.apply(&batch.volumes[0].delta);
    held.through = batch.volumes[0].through;
    held.commit = held.commit.next();
}

/// Folds leaf by leaf, as an engine does, and stops half-way now and then.
async fn fold(world: &World, held: &Held, dice: &Dice) {
    let deltas = world.catalog.unfolded_deltas(held.lineage).await.unwrap();
    let Some((through, _)) = deltas.last() else { return };
    let stop_after = dice.below(LEAVES + 2);
    let mut plan = FoldPlan { through: *through, ..world.fold_plan(held, Vec::new()) };
    for number in 0..LEAVES.min(stop_after) {
        let index = LeafIndex::new(u32::try_from(number).unwrap()).unwrap();
        let mut leaf = world.catalog.leaf(held.head(), index).await.unwrap().unwrap_or_default();
        for (_, delta) in &deltas {
            leaf.apply(index, delta.overlapping(index.range()).iter().copied());
        }
        if leaf.is_empty() && dice.below(2) == 0 {
            plan.emptied.push(index.range());
        } else {
            plan.leaves.push((index, Arc::new(leaf)));
        }
        if dice.below(2) == 0 {
            world.catalog.fold(&plan).await.unwrap();
            (plan.leaves, plan.emptied) = (Vec::new(), Vec::new());
        }
    }
    if stop_after >= LEAVES {
        plan.forget = Some(*through);
    }
    world.catalog.fold(&plan).await.unwrap();
}

pub async fn any_history_of_batches_and_folds_gives_the_map_of_its_writes(store: &dyn CatalogStore) {
    let mut world = World::new(store).await;
    for seed in 0..12 {
        let dice = Dice::new(seed);
        let mut held = world.held_volume(&format!("volume-{seed}")).await;
        let holes = vec![MapTarget::Hole; usize::try_from(BLOCKS).unwrap()];
        let mut oracle = Oracle { blocks: holes };
        for _ in 0..25 {
            match dice.below(5) {
                0 => fold(&world, &held, &dice).await,
                1 if dice.below(2) == 0 => {
                    world = world.reopened(store).await;
                    let again =
                        world.catalog.acquire_lease(held.volume, world.gateway, at(1), TTL, None).await;
                    held.lease = again.unwrap();
                }
                _ => commit(&world, &mut held, &mut oracle, &dice).await,
            }
        }
        oracle.compare(&world, &held).await;
        fold(&world, &held, &dice).await;
        oracle.compare(&world, &held).await;
    }
    let volumes = world.catalog.volumes().await.unwrap();
    let logical: u64 = volumes.iter().map(|volume| volume.usage.logical_bytes).sum();
    assert_eq!(world.catalog.totals().await.unwrap().logical_bytes, logical);
}
