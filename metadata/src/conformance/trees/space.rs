//! Whose space, against a model that looks at whole states and knows no versions.

use super::{Model, SLOT_BLOCKS, State};
use crate::{ContainerShare, CountedLeaves, MapPoint, SpaceOf, SpacePage};
use cairn_model::{ContainerId, LineageId};
use std::collections::{BTreeMap, BTreeSet};

/// A pin, and what it shows.
#[derive(Clone)]
struct Pin {
    at: MapPoint,
    owner: Owner,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Of(SpaceOf),
    Child(LineageId),
}

/// Slots that only the pin shows, and the blocks that would go of each container.
type Expected = (u64, BTreeMap<ContainerId, u64>);

impl Model {
    /// Everything is folded and purged: then the catalog must say of every snapshot and volume what the model says.
    pub(super) async fn check_space(&mut self) {
        for at in 0..self.disks.len() {
            self.fold_all(at).await;
        }
        self.world.purge().await;
        let snapshots = self.snapshots.iter().map(|taken| SpaceOf::Snapshot(taken.id));
        let volumes = self.disks.iter().map(|disk| disk.held.volume);
        let volumes = volumes.flat_map(|volume| [SpaceOf::Head(volume), SpaceOf::Volume(volume)]);
        for of in snapshots.chain(volumes) {
            let (slots, blocks) = self.expected_space(of);
            let (unique_blocks, containers) = self.told_space(of).await;
            let told: BTreeMap<_, _> =
                containers.iter().map(|share| (share.container, share.blocks)).collect();
            assert_eq!((unique_blocks, &told), (slots * SLOT_BLOCKS, &blocks), "{of:?}");
            let space = crate::space(&*self.world.catalog, of).await.unwrap();
            // Each container has two blocks of plaintext in 4000 bytes.
            let freed: u64 = blocks.values().map(|blocks| (*blocks).min(2) * 2000).sum();
            assert_eq!((space.unique_bytes, space.freed_bytes), (unique_blocks * 4096, freed), "{of:?}");
        }
    }

    /// All pages, of random lengths.
    async fn told_space(&self, of: SpaceOf) -> (u64, Vec<ContainerShare>) {
        let (mut blocks, mut containers) = (0, BTreeMap::<ContainerId, ContainerShare>::new());
        let (mut next, mut counted) = (None, CountedLeaves::new());
        loop {
            let limit = u32::try_from(1 + self.below(4)).unwrap();
            let SpacePage { unique_blocks, leaves, containers: found, next: behind, .. } =
                self.world.catalog.space_page(of, next, &counted, limit).await.unwrap();
            assert!(counted.is_disjoint(&leaves), "a leaf counts twice");
            counted.extend(leaves);
            blocks += unique_blocks;
            for share in found {
                let empty = ContainerShare { blocks: 0, ..share };
                containers.entry(share.container).or_insert(empty).blocks += share.blocks;
            }
            next = behind;
            if next.is_none() {
                return (blocks, containers.into_values().collect());
            }
        }
    }

    /// All pins there are. A lineage without a pin is none.
    fn all_pins(&self) -> Vec<Pin> {
        let mut pins: Vec<Pin> = Vec::new();
        for taken in &self.snapshots {
            let owner = Owner::Of(SpaceOf::Snapshot(taken.id));
            pins.push(Pin { at: taken.at, owner, state: taken.state });
        }
        for disk in &self.disks {
            let states = &self.branches[&disk.held.lineage].states;
            let (at, owner) = (MapPoint::head(disk.held.lineage), Owner::Of(SpaceOf::Head(disk.held.volume)));
            pins.push(Pin { at, owner, state: states[states.len() - 1] });
        }
        let mut lineages: Vec<LineageId> = pins.iter().map(|pin| pin.at.lineage).collect();
        let mut seen = BTreeSet::new();
        while let Some(lineage) = lineages.pop() {
            let branch = &self.branches[&lineage];
            if let Some(at) = branch.parent.filter(|_| seen.insert(lineage)) {
                pins.push(Pin { at, owner: Owner::Child(lineage), state: branch.states[0] });
                lineages.push(at.lineage);
            }
        }
        pins
    }

    fn expected_space(&self, of: SpaceOf) -> Expected {
        let mut staying = self.all_pins();
        let is_asked_for = |pin: &Pin| match (of, pin.owner) {
            (SpaceOf::Volume(volume), Owner::Of(SpaceOf::Head(of))) => of == volume,
            (SpaceOf::Volume(volume), Owner::Of(SpaceOf::Snapshot(id))) => {
                self.snapshots.iter().any(|taken| taken.id == id && taken.volume == volume)
            }
            (of, owner) => owner == Owner::Of(of),
        };
        let mut going: Vec<Pin> = staying.iter().filter(|pin| is_asked_for(pin)).cloned().collect();
        staying.retain(|pin| !is_asked_for(pin));
        // A lineage without any goes as well, and then its parent point is no pin.
        while let Some(at) = staying.iter().position(|pin| match pin.owner {
            Owner::Child(lineage) => staying.iter().all(|pin| pin.at.lineage != lineage),
            Owner::Of(_) => false,
        }) {
            going.push(staying.swap_remove(at));
        }
        let goes = |pin: &Pin| staying.iter().all(|other| other.at != pin.at);
        let asked = going.first().filter(|pin| goes(pin)).map(|pin| pin.state);
        let asked = asked.filter(|_| !matches!(of, SpaceOf::Volume(_)));
        going.retain(goes);
        let sides: Vec<State> = going.iter().flat_map(|pin| self.sides(pin, &staying)).collect();
        count(asked, &going, &sides)
    }

    /// What is shown by the pins beside one that goes.
    fn sides(&self, pin: &Pin, staying: &[Pin]) -> Vec<State> {
        let on_lineage = || staying.iter().filter(|other| other.at.lineage == pin.at.lineage);
        let before =
            on_lineage().filter(|other| other.at.commit < pin.at.commit).max_by_key(|other| other.at.commit);
        let after =
            on_lineage().filter(|other| other.at.commit > pin.at.commit).min_by_key(|other| other.at.commit);
        let branch = &self.branches[&pin.at.lineage];
        // Does the parent point stay, for this lineage's sake or for another's?
        let is_kept =
            on_lineage().next().is_some() || staying.iter().any(|other| Some(other.at) == branch.parent);
        let inherited = (before.is_none() && branch.parent.is_some() && is_kept).then_some(branch.states[0]);
        before.into_iter().chain(after).map(|pin| pin.state).chain(inherited).collect()
    }
}

fn count(asked: Option<State>, going: &[Pin], sides: &[State]) -> Expected {
    let (mut unique, mut containers) = (0, BTreeMap::new());
    for leaf in 0..super::LEAVES {
        if let Some(asked) = &asked {
            let is_unique = |slot: &usize| {
                asked[leaf][*slot].is_some()
                    && sides.iter().all(|side| side[leaf][*slot] != asked[leaf][*slot])
            };
            unique += (0..super::SLOTS).filter(is_unique).count() as u64;
        }
        let chunks = |state: &State| {
            let slots = state[leaf].iter().enumerate();
            slots.filter_map(|(slot, held)| Some(((*held)?, slot))).collect::<BTreeSet<_>>()
        };
        let mut gone: BTreeSet<_> = going.iter().flat_map(|pin| chunks(&pin.state)).collect();
        for side in sides {
            let kept = chunks(side);
            gone.retain(|chunk| !kept.contains(chunk));
        }
        for (container, _) in gone {
            *containers.entry(container).or_default() += SLOT_BLOCKS;
        }
    }
    (unique, containers)
}
