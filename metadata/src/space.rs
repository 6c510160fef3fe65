//! Whose space: what a snapshot or the head of a volume alone keeps, and what would become garbage without it.
//!
//! Pins are what keeps versions of leaves: snapshots, the points where clones and reverted volumes branched off, heads. The question takes some pins
//! away, those that *go*, and looks at what the pins that *stay* still need. A lineage whose pins all go goes with them, and its parent point
//! is a pin less too.
//!
//! ```text
//! commits of a lineage  ───o────────x───────x────────o───►      o stays, x goes
//!                          └ before └────────┘       └ after    one gap: versions that begin in it and end in it go
//! ```
//!
//! A version goes if some pin of its gap shows it and none that stays does: it begins after the pin before the gap and its successor is
//! there by the pin after it. Of the blocks in such versions those count that the pins on both sides of the gap map otherwise. So what is looked at is
//! what was written between two pins, whatever the size of the volume and the number of its snapshots.
//!
//! Invariants, while batches are folded and versions purged between the pages:
//! - Each leaf counts once, whole, as it was when it was first found: who puts the pages together remembers which have counted.
//! - No leaf that had versions that go, all along, is left out: the row that it is found by moves only forwards, as long as a gap is looked at from
//!   the same side; that is why the side is part of the cursor.
//! - Pages are of the same pins. So the answer is exact where nothing is written meanwhile, as always of a snapshot between two others; of a head, each
//!   leaf is of some moment while it was asked.

use crate::{Catalog, CatalogError, LEAF_BLOCKS, LeafIndex, MapLeaf, MapPoint};
use cairn_model::{
    BLOCK_SIZE, ChunkId, CommitSeq, ContainerId, LineageId, MapTarget, SnapshotId, VolumeId, boxed,
};
use std::collections::{BTreeMap, BTreeSet};

/// Leaves of a page of [`Catalog::space_page`].
const LEAVES_AT_ONCE: u32 = 256;
/// Pins that come and go while a question is answered; beyond it there is no answer.
const RESTARTS_MAX: u32 = 8;

/// Whose space is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpaceOf {
    Snapshot(SnapshotId),
    /// A volume as it is now, without its snapshots. Changes that are not folded yet do not count.
    Head(VolumeId),
    /// A volume with all of its snapshots.
    Volume(VolumeId),
}

/// Whose space, answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// Blocks, in bytes, that it shows and no pin beside it. Nothing for a volume with its snapshots.
    pub unique_bytes: u64,
    /// What the chunks take in the pool that only it needs, as far as the pins beside it say: each container's share by the blocks of these chunks.
    pub freed_bytes: u64,
}

/// What would go of a container.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ContainerShare {
    pub container: ContainerId,
    /// Blocks of chunks that would go. Where several leaves map the same, it may count several times.
    pub blocks: u64,
    /// What all of it takes in the pool.
    pub length_bytes: u64,
    /// Plaintext of all of it.
    pub raw_bytes: u64,
}

impl ContainerShare {
    fn freed_bytes(&self) -> u64 {
        let raw_blocks = self.raw_bytes / u64::from(BLOCK_SIZE);
        if raw_blocks == 0 {
            return 0;
        }
        let share = u128::from(self.length_bytes) * u128::from(self.blocks.min(raw_blocks));
        u64::try_from(share / u128::from(raw_blocks)).expect("no more than the whole")
    }
}

/// Where the next page begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceCursor {
    pub(crate) gap: usize,
    pub(crate) side: Side,
    /// The last row that was looked at: a version's commit and leaf.
    pub(crate) row: (CommitSeq, LeafIndex),
}

/// On which side of a gap the leaves are looked for. It may cost less on the one or the other; rows of both do not go together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// The first versions after the pin before.
    First,
    /// The successors of the versions that the only pin of the gap shows.
    Successors,
}

/// Leaves that have counted.
pub type CountedLeaves = BTreeSet<LeafIndex>;

/// The pins that an answer is about, to be compared: pages of other pins do not belong together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SpaceBasis(pub(crate) Vec<Gap>);

/// Part of an answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SpacePage {
    pub basis: SpaceBasis,
    pub unique_blocks: u64,
    /// The leaves that it is about. None of them had counted before.
    pub leaves: CountedLeaves,
    /// Each container once, by identity.
    pub containers: Vec<ContainerShare>,
    /// `None` when this is the last page.
    pub next: Option<SpaceCursor>,
}

/// Answers the question page by page, each page from one state of the catalog; again from the first when pins came or went in between.
#[boxed]
pub async fn space(catalog: &dyn Catalog, of: SpaceOf) -> Result<Space, CatalogError> {
    let mut restarts = 0;
    'again: loop {
        let (mut blocks, mut containers) = (0, BTreeMap::<ContainerId, ContainerShare>::new());
        let (mut next, mut basis, mut counted) = (None, None, CountedLeaves::new());
        loop {
            let page = catalog.space_page(of, next, &counted, LEAVES_AT_ONCE).await?;
            if basis.get_or_insert_with(|| page.basis.clone()) != &page.basis {
                if restarts == RESTARTS_MAX {
                    return Err(CatalogError::Changing);
                }
                restarts += 1;
                continue 'again;
            }
            counted.extend(page.leaves);
            blocks += page.unique_blocks;
            for share in page.containers {
                let empty = ContainerShare { blocks: 0, ..share };
                containers.entry(share.container).or_insert(empty).blocks += share.blocks;
            }
            next = page.next;
            if next.is_none() {
                let freed_bytes = containers.values().map(ContainerShare::freed_bytes).sum();
                return Ok(Space { unique_bytes: blocks * u64::from(BLOCK_SIZE), freed_bytes });
            }
        }
    }
}

/// Pins of a lineage that go, between two that stay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Gap {
    pub(crate) lineage: LineageId,
    /// The pin before; versions that begin after it may go.
    pub(crate) low: Option<CommitSeq>,
    /// In order, at least one.
    pub(crate) going: Vec<CommitSeq>,
    /// The pin after.
    pub(crate) high: Option<CommitSeq>,
    /// What is shown on both sides by pins that stay. Before the first pin of a lineage it is what its parent point shows.
    pub(crate) sides: Vec<MapPoint>,
}

impl Gap {
    /// The last pin that goes.
    pub(crate) fn last(&self) -> CommitSeq {
        *self.going.last().expect("a gap has a pin that goes")
    }

    /// Of the versions of a leaf in the lineage after the pin before, through the one after, in order: those that go.
    pub(crate) fn going_versions(&self, versions: &[CommitSeq]) -> impl Iterator<Item = CommitSeq> {
        let successor = |at: usize| versions.get(at + 1).copied();
        let goes = move |at: usize| {
            let next = successor(at);
            let outlives = self.high.is_some() && next.is_none();
            let is_shown = |pin: &CommitSeq| versions[at] <= *pin && next.is_none_or(|next| *pin < next);
            !outlives && self.going.iter().any(is_shown)
        };
        (0..versions.len()).filter(move |at| goes(*at)).map(|at| versions[at])
    }
}

/// A lineage of which pins go.
#[derive(Clone, Debug)]
pub(crate) struct Thinned {
    pub(crate) parent: Option<MapPoint>,
    pub(crate) going: BTreeSet<CommitSeq>,
    /// Those that stay: all, or at least the ones next to those that go.
    pub(crate) staying: BTreeSet<CommitSeq>,
}

/// The gaps of all lineages of which pins go. Those without a pin that stays are `gone`: their parents' points are among the pins that go.
pub(crate) fn gaps(thinned: &[(LineageId, Thinned)]) -> Vec<Gap> {
    let mut gaps: Vec<Gap> = Vec::new();
    for (lineage, Thinned { parent, going, staying }) in thinned {
        let is_gone = staying.is_empty();
        for pin in going.difference(staying).copied() {
            let low = staying.range(..pin).next_back().copied();
            let high = staying.range(pin..).next().copied();
            if let Some(last) = gaps.last_mut()
                && last.lineage == *lineage
                && (last.low, last.high) == (low, high)
            {
                last.going.push(pin);
                continue;
            }
            let at = |commit| MapPoint { lineage: *lineage, commit };
            // The parent point stays as long as the lineage does; one that goes with it is a gap of its own.
            let parent_goes = is_gone && parent.is_some_and(|parent| goes(thinned, parent));
            let before = low.map(at).or(parent.filter(|_| !parent_goes));
            let sides = before.into_iter().chain(high.map(at)).collect();
            gaps.push(Gap { lineage: *lineage, low, going: vec![pin], high, sides });
        }
    }
    gaps
}

fn goes(thinned: &[(LineageId, Thinned)], point: MapPoint) -> bool {
    thinned.iter().any(|(lineage, of)| {
        *lineage == point.lineage && of.going.contains(&point.commit) && !of.staying.contains(&point.commit)
    })
}

/// What would go of one leaf.
#[derive(Default)]
pub(crate) struct LeafSpace {
    pub(crate) unique_blocks: u64,
    pub(crate) containers: BTreeMap<ContainerId, u64>,
}

/// `shown` is what the pin shows that is asked for, when that goes; `going` are all versions that go, `staying` what the pins beside them show.
pub(crate) fn leaf_space(
    index: LeafIndex,
    shown: Option<&MapLeaf>,
    going: &[&MapLeaf],
    staying: &[&MapLeaf],
) -> LeafSpace {
    let range = index.range();
    let mut space = LeafSpace::default();
    if let Some(shown) = shown {
        let mut unique = vec![None; usize::try_from(LEAF_BLOCKS).expect("a leaf's blocks can be counted")];
        for_each_block(index, shown, |block, target| unique[block] = Some(target));
        for leaf in staying {
            for_each_block(index, leaf, |block, target| {
                if unique[block] == Some(target) {
                    unique[block] = None;
                }
            });
        }
        space.unique_blocks = unique.iter().flatten().count() as u64;
    }
    let mut chunks: BTreeMap<ChunkId, u16> = BTreeMap::new();
    for leaf in going {
        leaf.lookup(range, |part, target| {
            if let MapTarget::Chunk(first) = target {
                let blocks = (1_u32 << part.blocks()) - 1;
                *chunks.entry(first.chunk).or_default() |=
                    u16::try_from(blocks << first.block).unwrap_or(u16::MAX);
            }
        });
    }
    for leaf in staying {
        leaf.lookup(range, |_, target| {
            if let MapTarget::Chunk(first) = target {
                chunks.remove(&first.chunk);
            }
        });
    }
    for (chunk, blocks) in chunks {
        *space.containers.entry(chunk.container).or_default() += u64::from(blocks.count_ones());
    }
    space
}

/// Blocks that are no holes, by their place in the leaf.
fn for_each_block(index: LeafIndex, leaf: &MapLeaf, mut each: impl FnMut(usize, MapTarget)) {
    use cairn_model::RangeValue;
    let origin = index.range().start().get();
    leaf.lookup(index.range(), |part, target| {
        if let MapTarget::Chunk(_) = target {
            for block in 0..part.blocks() {
                let place = usize::try_from(part.start().get() + block - origin).expect("inside a leaf");
                each(place, target.advanced(block));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commits(numbers: &[u64]) -> Vec<CommitSeq> {
        numbers.iter().copied().map(CommitSeq::new).collect()
    }

    fn thinned(parent: Option<MapPoint>, going: &[u64], staying: &[u64]) -> Thinned {
        let set = |numbers: &[u64]| commits(numbers).into_iter().collect();
        Thinned { parent, going: set(going), staying: set(staying) }
    }

    const ONE: LineageId = LineageId::from_bytes([1; 16]);
    const TWO: LineageId = LineageId::from_bytes([2; 16]);

    #[test]
    fn gaps_lie_between_pins_that_stay() {
        let found = gaps(&[(ONE, thinned(None, &[3, 5, 9, 11], &[4, 9]))]);
        let found: Vec<_> = found.iter().map(|gap| (gap.low, gap.going.clone(), gap.high)).collect();
        let at = |commit| Some(CommitSeq::new(commit));
        assert_eq!(
            found,
            [(None, commits(&[3]), at(4)), (at(4), commits(&[5]), at(9)), (at(9), commits(&[11]), None)]
        );
    }

    #[test]
    fn a_parent_point_is_beside_the_first_gap_unless_it_goes_too() {
        let parent = MapPoint { lineage: ONE, commit: CommitSeq::new(7) };
        let alone = gaps(&[(TWO, thinned(Some(parent), &[1], &[]))]);
        assert_eq!(alone[0].sides, [parent]);
        let both = gaps(&[(TWO, thinned(Some(parent), &[1], &[])), (ONE, thinned(None, &[7], &[2]))]);
        assert_eq!(both[0].sides, []);
        assert_eq!(both[1].sides, [MapPoint { lineage: ONE, commit: CommitSeq::new(2) }]);
    }

    #[test]
    fn a_version_goes_when_only_pins_of_its_gap_show_it() {
        let gap = |going: &[u64], high: Option<u64>| Gap {
            lineage: ONE,
            low: None,
            going: commits(going),
            high: high.map(CommitSeq::new),
            sides: Vec::new(),
        };
        let of = |gap: Gap, versions: &[u64]| -> Vec<u64> {
            gap.going_versions(&commits(versions)).map(CommitSeq::get).collect()
        };
        assert_eq!(
            of(gap(&[5], Some(9)), &[2, 4, 8]),
            [4],
            "2 is garbage already, 8 is what the next pin shows"
        );
        assert_eq!(of(gap(&[5], Some(9)), &[4]), [0; 0], "the next pin shows it too");
        assert_eq!(of(gap(&[5], None), &[2, 4]), [4]);
        assert_eq!(of(gap(&[3, 5], None), &[2, 4]), [2, 4]);
        assert_eq!(of(gap(&[1], None), &[2]), [0; 0]);
    }
}
