//! Random trees of snapshots, clones and reverts against a model that keeps every state whole.

use super::histories::Dice;
use super::{CatalogStore, Held, World, blocks};
use crate::{CatalogError, FoldPlan, LEAF_BLOCKS, LEAVES_MAX, LeafIndex, MapLeaf, MapPoint, NewVolume};
use cairn_model::{
    ChunkId, ChunkIndex, ChunkRef, CommitSeq, ContainerId, Lba, LbaRange, LineageId, MapDelta, MapOp,
    MapTarget, SnapshotId, VolumeId,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

mod checks;
mod space;

/// Trees of one run.
const SEEDS: u64 = 12;
const LEAVES: usize = 5;
const SLOTS: usize = 3;
const SLOT_BLOCKS: u64 = 4;

/// What the container was that wrote each of a few places of each of a few leaves; `None` is a hole.
type State = [[Option<ContainerId>; SLOTS]; LEAVES];

fn index(number: usize) -> LeafIndex {
    LeafIndex::new(u32::try_from(number).unwrap()).unwrap()
}

fn slot(number: usize, slot: usize) -> LbaRange {
    blocks(index(number).range().start().get() + slot as u64 * 100, SLOT_BLOCKS)
}

fn write(range: LbaRange, container: ContainerId, slot: usize) -> MapOp {
    let chunk = ChunkId { container, index: ChunkIndex::new(u32::try_from(slot).unwrap()) };
    MapOp { range, target: MapTarget::Chunk(ChunkRef { chunk, block: 0 }) }
}

fn leaf_of(state: &State, number: usize) -> MapLeaf {
    let slots = state[number].iter().enumerate();
    let ops = slots.filter_map(|(at, held)| Some(write(slot(number, at), (*held)?, at)));
    MapLeaf::from_ops(index(number), ops)
}

fn bytes_of(state: &State) -> u64 {
    state.iter().flatten().flatten().count() as u64 * SLOT_BLOCKS * 4096
}

struct Branch {
    parent: Option<MapPoint>,
    /// By commit, beginning with what it inherited.
    states: Vec<State>,
}

/// A fold that is under way: the leaves that still miss something through `goal`.
struct Fold {
    goal: usize,
    missing: Vec<usize>,
}

struct Disk {
    held: Held,
    folded: usize,
    /// The newest version that a step wrote.
    newest: usize,
    fold: Option<Fold>,
    last_step: Option<FoldPlan>,
}

struct Taken {
    id: SnapshotId,
    volume: VolumeId,
    at: MapPoint,
    state: State,
    is_settled: bool,
}

struct Model {
    world: World,
    dice: Dice,
    branches: BTreeMap<LineageId, Branch>,
    disks: Vec<Disk>,
    snapshots: Vec<Taken>,
}

impl Model {
    async fn new(store: &dyn CatalogStore, world: World, seed: u64) -> Self {
        let (branches, disks, snapshots) = (BTreeMap::new(), Vec::new(), Vec::new());
        let world = world.reopened(store).await;
        Self { world, dice: Dice::new(seed), branches, disks, snapshots }
    }

    fn below(&self, end: usize) -> usize {
        usize::try_from(self.dice.below(end as u64)).unwrap()
    }

    fn is(&self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    fn any_disk(&self) -> Option<usize> {
        (!self.disks.is_empty()).then(|| self.below(self.disks.len()))
    }

    fn new_volume(&self) -> NewVolume {
        let volume = self.world.new_volume("x");
        NewVolume { name: crate::VolumeName::new(volume.id.to_string()).unwrap(), ..volume }
    }

    fn add(&mut self, held: Held, parent: Option<MapPoint>, state: State) {
        self.branches.insert(held.lineage, Branch { parent, states: vec![state] });
        self.disks.push(Disk { held, folded: 0, newest: 0, fold: None, last_step: None });
    }

    async fn create(&mut self) {
        let volume = self.new_volume();
        self.world.catalog.create_volume(&volume).await.unwrap();
        let held = self.world.hold(&volume).await;
        self.add(held, None, State::default());
    }

    async fn commit(&mut self) {
        let Some(at) = self.any_disk() else { return };
        let held = &self.disks[at].held;
        let mut batch = self.world.batch(&[(held, blocks(0, 1))]);
        let container = batch.containers[0].id;
        let states = &self.branches[&held.lineage].states;
        let mut state = states[states.len() - 1];
        let mut ops = Vec::new();
        for (number, leaf) in state.iter_mut().enumerate() {
            let hole = |range| MapOp { range, target: MapTarget::Hole };
            match self.below(8) {
                0 => {
                    *leaf = [None; SLOTS];
                    ops.push(hole(index(number).range()));
                }
                1 | 2 => {
                    for (at, held) in leaf.iter_mut().enumerate() {
                        match self.below(3) {
                            0 => {
                                *held = None;
                                ops.push(hole(slot(number, at)));
                            }
                            1 => {
                                *held = Some(container);
                                ops.push(write(slot(number, at), container, at));
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        batch.volumes[0].delta = MapDelta { ops };
        let snapshots = [0, 0, 0, 1, 1, 2][self.below(6)];
        batch.volumes[0].snapshots = (0..snapshots).map(|_| self.world.new_snapshot("snapshot")).collect();
        self.world.commit_batch(&mut self.disks[at].held, &batch).await;
        let Held { lineage, volume, commit, .. } = self.disks[at].held;
        self.branches.get_mut(&lineage).unwrap().states.push(state);
        let point = MapPoint { lineage, commit };
        let taken = batch.volumes[0].snapshots.iter();
        let taken = taken.map(|new| Taken { id: new.id, volume, at: point, state, is_settled: false });
        self.snapshots.extend(taken);
    }

    /// How far the disk may be folded now.
    fn fold_limit(&self, disk: &Disk) -> usize {
        let unsettled = self.snapshots.iter().filter(|taken| taken.at.lineage == disk.held.lineage);
        let unsettled = unsettled.filter(|taken| !taken.is_settled).map(|taken| taken.at.commit.get());
        usize::try_from(unsettled.min().unwrap_or(u64::MAX).min(disk.held.commit.get())).unwrap()
    }

    fn begin_fold(&mut self, at: usize) {
        let (disk, limit) = (&self.disks[at], self.fold_limit(&self.disks[at]));
        if disk.fold.is_some() || limit == disk.folded {
            return;
        }
        let goal = disk.folded + 1 + self.below(limit - disk.folded);
        let states = &self.branches[&disk.held.lineage].states[disk.folded..=goal];
        let changed = |number: &usize| states.windows(2).any(|pair| pair[0][*number] != pair[1][*number]);
        let missing = (0..LEAVES).filter(changed).collect();
        self.disks[at].fold = Some(Fold { goal, missing });
    }

    /// A few leaves of a fold, perhaps all, perhaps of a later commit than it is about.
    async fn fold_step(&mut self, at: usize) {
        self.begin_fold(at);
        let (disk, limit) = (&self.disks[at], self.fold_limit(&self.disks[at]));
        let Some(fold) = &disk.fold else { return };
        let from = fold.goal.max(disk.newest);
        let through = from + self.below(limit - from + 1);
        let state = &self.branches[&disk.held.lineage].states[through];
        let (now, later): (Vec<_>, Vec<_>) = fold.missing.iter().copied().partition(|_| !self.is(3));
        let mut plan = FoldPlan {
            through: CommitSeq::new(through as u64),
            ..self.world.fold_plan(&disk.held, Vec::new())
        };
        for number in now {
            let leaf = leaf_of(state, number);
            if leaf.is_empty() && self.is(2) {
                plan.emptied.push(index(number).range());
            } else {
                plan.leaves.push((index(number), Arc::new(leaf)));
            }
        }
        // All that is empty behind the last leaf, to the end.
        let used = state.iter().rposition(|leaf| leaf.iter().any(Option::is_some)).map_or(0, |last| last + 1);
        let last_written = plan.leaves.iter().map(|(index, _)| index.get() as usize + 1).max().unwrap_or(0);
        if self.is(4) {
            let from = index(used.max(last_written)).range().start();
            plan.emptied = vec![LbaRange::between(from, Lba::new(u64::from(LEAVES_MAX) * LEAF_BLOCKS))];
            let written: Vec<usize> = plan.leaves.iter().map(|(index, _)| index.get() as usize).collect();
            let from = used.max(last_written);
            let late = fold.missing.iter().filter(|number| !written.contains(number) && **number < from);
            let missing: Vec<usize> = late.copied().collect();
            self.finish_step(at, plan, missing).await;
        } else {
            self.finish_step(at, plan, later).await;
        }
    }

    async fn finish_step(&mut self, at: usize, mut plan: FoldPlan, missing: Vec<usize>) {
        let goal = self.disks[at].fold.as_ref().unwrap().goal;
        let is_last = missing.is_empty() && !self.is(3);
        plan.forget = is_last.then_some(CommitSeq::new(goal as u64));
        self.world.catalog.fold(&plan).await.unwrap();
        let disk = &mut self.disks[at];
        disk.newest = disk.newest.max(usize::try_from(plan.through.get()).unwrap());
        disk.last_step = Some(plan);
        disk.fold = (!is_last).then_some(Fold { goal, missing });
        if is_last {
            disk.folded = goal;
            let lineage = disk.held.lineage;
            for taken in self.snapshots.iter_mut().filter(|taken| taken.at.lineage == lineage) {
                taken.is_settled |= taken.at.commit.get() <= goal as u64;
            }
        }
    }

    async fn fold_all(&mut self, at: usize) {
        while self.disks[at].folded < usize::try_from(self.disks[at].held.commit.get()).unwrap() {
            self.fold_step(at).await;
        }
    }

    async fn clone(&mut self) {
        if self.snapshots.is_empty() || self.disks.len() > 7 {
            return;
        }
        let taken = &self.snapshots[self.below(self.snapshots.len())];
        let volume = self.new_volume();
        let cloned = self.world.catalog.create_clone(&volume, taken.id).await;
        if !taken.is_settled {
            assert!(matches!(cloned, Err(CatalogError::NotSettled { .. })), "{cloned:?}");
            return;
        }
        cloned.unwrap();
        let held = self.world.hold(&volume).await;
        let (parent, state) = (Some(taken.at), taken.state);
        self.add(held, parent, state);
    }

    async fn revert(&mut self) {
        let Some(at) = self.any_disk() else { return };
        let volume = self.disks[at].held.volume;
        let own: Vec<usize> =
            (0..self.snapshots.len()).filter(|taken| self.snapshots[*taken].volume == volume).collect();
        if own.is_empty() {
            return;
        }
        self.fold_all(at).await;
        let taken = &self.snapshots[own[self.below(own.len())]];
        let held = self.world.reverted(self.disks[at].held.clone(), taken.id).await;
        self.branches.insert(held.lineage, Branch { parent: Some(taken.at), states: vec![taken.state] });
        self.disks[at] = Disk { held, folded: 0, newest: 0, fold: None, last_step: None };
    }

    async fn delete_snapshot(&mut self) {
        if !self.snapshots.is_empty() {
            let taken = self.snapshots.swap_remove(self.below(self.snapshots.len()));
            self.world.delete_snapshot(taken.id).await.unwrap();
        }
    }

    async fn delete_volume(&mut self) {
        let Some(at) = self.any_disk() else { return };
        let volume = self.disks[at].held.volume;
        if self.snapshots.iter().any(|taken| taken.volume == volume) {
            let refused = self.world.catalog.delete_volume(volume, false, super::at(5000)).await;
            assert!(matches!(refused, Err(CatalogError::HasSnapshots { .. })), "{refused:?}");
        }
        self.world.catalog.delete_volume(volume, true, super::at(5000)).await.unwrap();
        self.disks.swap_remove(at);
        self.snapshots.retain(|taken| taken.volume != volume);
    }

    async fn step(&mut self) {
        match self.below(24) {
            0 => self.create().await,
            1..8 => self.commit().await,
            8..14 => {
                if let Some(at) = self.any_disk() {
                    self.fold_step(at).await;
                }
            }
            14 => {
                if let Some(at) = self.any_disk() {
                    self.fold_all(at).await;
                }
            }
            // A reply was lost.
            15 => {
                if let Some(step) = self.any_disk().and_then(|at| self.disks[at].last_step.clone()) {
                    self.world.catalog.fold(&step).await.unwrap();
                }
            }
            16 | 17 => self.clone().await,
            18 => self.revert().await,
            19 => self.delete_snapshot().await,
            20 if self.disks.len() > 2 => self.delete_volume().await,
            21 => self.check_space().await,
            _ => {
                for _ in 0..=self.below(6) {
                    let rows_max = u32::try_from(1 + self.below(4)).unwrap();
                    self.world.catalog.purge_deleted(rows_max).await.unwrap();
                }
            }
        }
    }

    /// Everything goes, in any order: then nothing is left, and the identities are free.
    async fn delete_everything(mut self) -> World {
        while !self.disks.is_empty() {
            match self.below(3) {
                0 => self.delete_snapshot().await,
                1 => self.delete_volume().await,
                _ => drop(self.world.catalog.purge_deleted(3).await.unwrap()),
            }
            self.check().await;
        }
        self.check_purged().await;
        for lineage in self.branches.keys() {
            assert_eq!(self.world.catalog.unfolded_deltas(*lineage).await.unwrap(), []);
            let again = NewVolume { lineage: *lineage, ..self.new_volume() };
            self.world.catalog.create_volume(&again).await.unwrap();
            self.world.catalog.delete_volume(again.id, false, super::at(5000)).await.unwrap();
        }
        self.world.purge().await;
        self.world
    }
}

pub async fn any_tree_of_snapshots_clones_and_reverts_shows_what_was_written(store: &dyn CatalogStore) {
    grow_and_delete(store, 0..SEEDS).await;
}

/// A tree for each seed, which leaves nothing behind but containers.
pub async fn grow_and_delete(store: &dyn CatalogStore, seeds: Range<u64>) {
    let mut world = World::new(store).await;
    for seed in seeds {
        let mut model = Model::new(store, world, seed).await;
        model.create().await;
        for _ in 0..60 {
            model.step().await;
            model.check().await;
        }
        model.check_purged().await;
        model.check_space().await;
        world = model.delete_everything().await;
    }
    let totals = world.catalog.totals().await.unwrap();
    assert_eq!((totals.volumes, totals.snapshots, totals.logical_bytes), (0, 0, 0));
}
