//! Whose space.

use super::{Result, Tables};
use crate::space::{CountedLeaves, Gap, LeafSpace, Side, Thinned, gaps, leaf_space};
use crate::{
    CatalogError, ContainerShare, LeafIndex, MapLeaf, MapPoint, SpaceBasis, SpaceCursor, SpaceOf, SpacePage,
};
use cairn_model::{CommitSeq, ContainerId, LineageId};
use std::collections::{BTreeMap, BTreeSet};

impl Tables {
    pub(super) fn space_page(
        &self,
        of: SpaceOf,
        from: Option<SpaceCursor>,
        counted: &CountedLeaves,
        leaves_max: u32,
    ) -> Result<SpacePage> {
        let gaps = gaps(&self.thinned(of)?);
        let (mut page, mut containers) = (SpacePage::default(), BTreeMap::<ContainerId, u64>::new());
        let mut left = leaves_max.max(1);
        'page: for (number, gap) in gaps.iter().enumerate() {
            let mut rows: Vec<(CommitSeq, LeafIndex)> = self.lineages[&gap.lineage]
                .leaves
                .keys()
                .map(|(leaf, commit)| (*commit, *leaf))
                .filter(|(commit, _)| gap.low.is_none_or(|low| low < *commit) && *commit <= gap.last())
                .collect();
            rows.sort_unstable();
            for row in rows {
                if from.is_some_and(|from| (number, row) <= (from.gap, from.row)) {
                    continue;
                }
                if left == 0 {
                    break 'page;
                }
                left -= 1;
                page.next = Some(SpaceCursor { gap: number, side: Side::First, row });
                let leaf = row.1;
                if counted.contains(&leaf) || page.leaves.contains(&leaf) {
                    continue;
                }
                let Some(space) = self.space_of_leaf(of, &gaps, leaf) else { continue };
                page.leaves.insert(leaf);
                page.unique_blocks += space.unique_blocks;
                for (container, blocks) in space.containers {
                    *containers.entry(container).or_default() += blocks;
                }
            }
        }
        // The last row of the last gap that has any: nothing is behind it.
        if left > 0 {
            page.next = None;
        }
        page.basis = SpaceBasis(gaps);
        let known =
            containers.into_iter().filter_map(|(id, blocks)| Some((self.containers.get(&id)?, blocks)));
        let share = |(container, blocks): (&crate::ContainerRow, u64)| ContainerShare {
            container: container.id,
            blocks,
            length_bytes: u64::from(container.length),
            raw_bytes: container.raw_bytes,
        };
        page.containers = known.map(share).collect();
        Ok(page)
    }

    /// What goes of a leaf, if any version of it does.
    fn space_of_leaf(&self, of: SpaceOf, gaps: &[Gap], leaf: LeafIndex) -> Option<LeafSpace> {
        let going: Vec<(usize, CommitSeq)> = gaps
            .iter()
            .enumerate()
            .flat_map(|(number, gap)| {
                let versions = self.versions_in(gap, leaf);
                gap.going_versions(&versions).map(|version| (number, version)).collect::<Vec<_>>()
            })
            .collect();
        if going.is_empty() {
            return None;
        }
        let leaves: Vec<&MapLeaf> = going
            .iter()
            .map(|(number, version)| &*self.lineages[&gaps[*number].lineage].leaves[&(leaf, *version)])
            .collect();
        let sides = gaps.iter().flat_map(|gap| &gap.sides);
        let staying: Vec<&MapLeaf> = sides.filter_map(|side| Some(&**self.shown(*side, leaf)?.1)).collect();
        let shown = leaves.first().copied().filter(|_| !matches!(of, SpaceOf::Volume(_)));
        Some(leaf_space(leaf, shown, &leaves, &staying))
    }

    /// The versions of a leaf after the pin before the gap, through the one after.
    fn versions_in(&self, gap: &Gap, leaf: LeafIndex) -> Vec<CommitSeq> {
        let through = gap.high.unwrap_or(MapPoint::END);
        let versions = self.lineages[&gap.lineage].leaves.range((leaf, CommitSeq::ZERO)..=(leaf, through));
        let versions = versions.map(|((_, commit), _)| *commit);
        versions.filter(|commit| gap.low.is_none_or(|low| low < *commit)).collect()
    }

    /// The lineages of which pins go, that of the pin asked for first.
    fn thinned(&self, of: SpaceOf) -> Result<Vec<(LineageId, Thinned)>> {
        let mut going: Vec<(LineageId, BTreeSet<CommitSeq>)> = Vec::new();
        for pin in self.pins_asked_for(of)? {
            add(&mut going, pin);
        }
        let mut gone: BTreeSet<LineageId> = BTreeSet::new();
        loop {
            let mut orphaned = None;
            let mut thinned = Vec::with_capacity(going.len());
            for (id, pins) in &going {
                let staying = self.staying(*id, of, &gone);
                let parent = self.lineages.get(id).and_then(|lineage| lineage.parent);
                if staying.is_empty() && gone.insert(*id) {
                    orphaned = orphaned.or(parent);
                    if parent.is_some() {
                        break;
                    }
                }
                thinned.push((*id, Thinned { parent, going: pins.clone(), staying }));
            }
            match orphaned {
                Some(parent) => add(&mut going, parent),
                None => return Ok(thinned),
            }
        }
    }

    fn pins_asked_for(&self, of: SpaceOf) -> Result<Vec<MapPoint>> {
        Ok(match of {
            SpaceOf::Snapshot(id) => {
                let row = self.snapshot(id)?;
                if row.logical_bytes.is_none() {
                    return Err(CatalogError::NotSettled { name: row.name });
                }
                vec![row.at]
            }
            SpaceOf::Head(id) => vec![MapPoint::head(self.live(id)?.row.lineage)],
            SpaceOf::Volume(id) => {
                let head = MapPoint::head(self.live(id)?.row.lineage);
                let snapshots = self.snapshots.values().filter(|snapshot| snapshot.volume == id);
                std::iter::once(head).chain(snapshots.map(|snapshot| snapshot.at)).collect()
            }
        })
    }

    /// The pins of a lineage that stay.
    fn staying(&self, lineage: LineageId, of: SpaceOf, gone: &BTreeSet<LineageId>) -> BTreeSet<CommitSeq> {
        let snapshots = self.snapshots.values().filter(|snapshot| match of {
            SpaceOf::Snapshot(id) => snapshot.id != id,
            SpaceOf::Head(_) => true,
            SpaceOf::Volume(id) => snapshot.volume != id,
        });
        let children = self.lineages.iter().filter(|(id, _)| !gone.contains(*id));
        let points = snapshots
            .map(|snapshot| snapshot.at)
            .chain(children.filter_map(|(_, child)| child.parent))
            .filter(|at| at.lineage == lineage);
        let is_head_going = |id| matches!(of, SpaceOf::Head(going) | SpaceOf::Volume(going) if going == id);
        let head = self
            .volumes
            .values()
            .any(|volume| !volume.deleted && volume.row.lineage == lineage && !is_head_going(volume.row.id));
        points.map(|at| at.commit).chain(head.then_some(MapPoint::END)).collect()
    }
}

fn add(going: &mut Vec<(LineageId, BTreeSet<CommitSeq>)>, pin: MapPoint) {
    match going.iter_mut().find(|(id, _)| *id == pin.lineage) {
        Some((_, pins)) => drop(pins.insert(pin.commit)),
        None => going.push((pin.lineage, BTreeSet::from([pin.commit]))),
    }
}
