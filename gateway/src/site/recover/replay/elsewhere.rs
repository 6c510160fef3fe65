//! What segments held that are missing, in others.
//!
//! Reclaim moves what lives in a sparse segment into a new one, and the old one goes when a checkpoint knows that. Where the newest checkpoint cannot be used, or a pool that was full deleted without one, the catalog names the old segment,
//! and the pool has what it held in the new one; where an older copy of a node is in use, it may be the other way round. So what a missing segment held is looked for in the
//! footers of all segments that the catalog does not have, and named there.
//!
//! What was dead when it moved was left out. So this comes after the batches that join: they may share what the checkpoint's maps do not point at, and only all maps together say what is needed. Of several copies of a container the one is
//! taken that has most of that, and where it lacks something the recovery is not whole. (Changes that are not folded yet count as
//! they were made: what a later one overwrites counts as needed, too. So this errs on the side of telling.) As long as the missing segment may come back, its containers stay where they are unless all that is needed is elsewhere; and while
//! batches are left out that may need more of it, they stay in any case.

use super::look::read_footer;
use crate::error::GatewayError;
use cairn_metadata::{
    Catalog, CatalogError, CheckSource, ContainerMove, ContainerRow, MovedContainer, SegmentRow,
    SqliteCatalog,
};
use cairn_model::{ChunkSet, ContainerId, DomainId, GatewayId, ObjectPlace, PassId, SegmentId};
use cairn_segment_writer::{Domain, Footer, Pool};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Segments of one question to the catalog.
const SEGMENTS_AT_ONCE: usize = 64;
/// Containers of one question to the catalog, which reads all maps for each.
const CONTAINERS_AT_ONCE: usize = 10_000;

/// A segment of which too few shards are there.
#[derive(Debug)]
pub(super) struct Lacking {
    pub(super) id: SegmentId,
    /// What there is of it, if the nodes that were not given may have enough.
    pub(super) unreachable: Option<String>,
}

/// What is looked for, and where it was found.
#[derive(Default)]
pub(super) struct Elsewhere {
    lacking: Vec<Lacking>,
    /// What those hold: each container's domain and segment.
    wanted: HashMap<ContainerId, (DomainId, SegmentId)>,
    /// Where it is as well, with the chunks that are there.
    found: BTreeMap<ContainerId, BTreeMap<SegmentId, ChunkSet>>,
    /// The segments in which something was found.
    sources: BTreeMap<SegmentId, Source>,
}

struct Source {
    place: ObjectPlace,
    /// Of all its objects in the pool.
    length_bytes: u64,
}

/// What may still change what is needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    /// Nodes of the site were not given.
    pub(super) nodes: bool,
    /// Batches or parts of batches do not join: what may come back stays where it is.
    pub(super) batches: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Rehomed {
    /// Segments that the catalog has now, and bytes of their objects.
    pub(super) segments: BTreeMap<SegmentId, u64>,
    /// Containers without all that maps point at.
    pub(super) partial: u64,
    /// The segments that were looked for. The catalog has those yet that hold something.
    pub(super) lacking: Vec<Lacking>,
}

impl Elsewhere {
    /// What these segments held.
    pub(super) async fn of(catalog: &SqliteCatalog, lacking: Vec<Lacking>) -> Result<Self, GatewayError> {
        let mut wanted = HashMap::new();
        for some in lacking.chunks(SEGMENTS_AT_ONCE) {
            let ids: Vec<SegmentId> = some.iter().map(|segment| segment.id).collect();
            let held = catalog.containers_in(&ids).await?;
            wanted.extend(held.into_iter().map(|held| (held.id, (held.domain, held.segment))));
        }
        Ok(Self { lacking, wanted, ..Self::default() })
    }

    /// A segment that the catalog does not have.
    pub(super) fn look_into(&mut self, footer: &Footer, place: &ObjectPlace, length_bytes: u64) {
        for container in &footer.containers {
            if self.wanted.get(&container.id).is_some_and(|(domain, _)| *domain == container.domain) {
                let found = self.found.entry(container.id).or_default();
                found.insert(footer.segment, container.directory.present());
                let source = || Source { place: place.clone(), length_bytes };
                self.sources.entry(footer.segment).or_insert_with(source);
            }
        }
    }

    /// Names in the catalog what was found where it is.
    pub(super) async fn rehome(
        mut self,
        catalog: &SqliteCatalog,
        (pool, domains): (&Pool, &[Domain]),
        gateway: GatewayId,
        left: Left,
    ) -> Result<Rehomed, GatewayError> {
        self.leave_out_recorded(catalog).await?;
        let mut rehomed = Rehomed { lacking: std::mem::take(&mut self.lacking), ..Rehomed::default() };
        if self.found.is_empty() {
            return Ok(rehomed);
        }
        let (chosen, unused) = self.choose(catalog, &rehomed.lacking, left).await?;
        // One that nobody else has.
        let pass = PassId::from_bytes(*gateway.as_bytes());
        for (id, source) in self.sources {
            let Some(chosen) = chosen.get(&id) else { continue };
            let footer = match read_footer(pool, domains, id, &source.place).await {
                Ok(footer) => footer,
                Err(error) if pool.silent_node().await.is_some() => return Err(error.into()),
                // It could be read before: it is as one that is not there.
                Err(_) => continue,
            };
            let (mut containers, mut partial) = (Vec::new(), 0);
            for container in footer.containers {
                let Some(is_complete) = chosen.get(&container.id) else { continue };
                partial += u64::from(!is_complete);
                let row = ContainerRow {
                    id: container.id,
                    segment: id,
                    offset: container.offset,
                    length: container.directory.stored_bytes(),
                    raw_bytes: container.directory.raw_bytes(),
                    domain: container.domain,
                    directory: container.directory.encode(),
                };
                containers.push(MovedContainer { row, present: container.directory.present() });
            }
            let ids: Vec<ContainerId> = containers.iter().map(|container| container.row.id).collect();
            catalog.close_containers(pass, &ids).await?;
            let segment = SegmentRow { receipt: pool.attest_found(id, source.place) };
            match catalog.move_containers(&ContainerMove { pass, segment, containers }).await {
                Ok(()) => {}
                // It was not needed any more when the checkpoint was taken, and may be gone soon.
                Err(CatalogError::ObjectDoomed { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
            rehomed.segments.insert(id, source.length_bytes);
            rehomed.partial += partial;
        }
        for unused in unused.chunks(CONTAINERS_AT_ONCE) {
            catalog.close_containers(pass, unused).await?;
            catalog.remove_containers(pass, unused).await?;
        }
        catalog.open_containers(Some(pass)).await?;
        Ok(rehomed)
    }

    /// What batches have brought into the catalog is where that says.
    async fn leave_out_recorded(&mut self, catalog: &SqliteCatalog) -> Result<(), GatewayError> {
        let ids: Vec<SegmentId> = self.sources.keys().copied().collect();
        for some in ids.chunks(SEGMENTS_AT_ONCE) {
            for recorded in CheckSource::segments(catalog, some).await? {
                self.sources.remove(&recorded.id);
            }
        }
        let sources = &self.sources;
        self.found.retain(|_, found| {
            found.retain(|segment, _| sources.contains_key(segment));
            !found.is_empty()
        });
        Ok(())
    }

    /// The containers that each source is to have, and whether it has all that is needed of them; and those of the same segments that nothing needs.
    async fn choose(
        &self,
        catalog: &SqliteCatalog,
        lacking: &[Lacking],
        left: Left,
    ) -> Result<(BTreeMap<SegmentId, BTreeMap<ContainerId, bool>>, Vec<ContainerId>), GatewayError> {
        let may_return = |segment: &&Lacking| segment.unreachable.is_some();
        let returning: BTreeSet<SegmentId> =
            lacking.iter().filter(may_return).map(|segment| segment.id).collect();
        let touched: BTreeSet<SegmentId> = self.found.keys().map(|id| self.wanted[id].1).collect();
        let is_open =
            |segment: &SegmentId| touched.contains(segment) && !(left.batches && returning.contains(segment));
        let ids: BTreeSet<ContainerId> =
            self.wanted.iter().filter(|(_, (_, segment))| is_open(segment)).map(|(id, _)| *id).collect();
        let ids: Vec<ContainerId> = ids.into_iter().collect();
        let may_come_back = |id: &ContainerId| left.nodes || returning.contains(&self.wanted[id].1);
        let (mut chosen, mut unused) = (BTreeMap::<_, BTreeMap<_, _>>::new(), Vec::new());
        for some in ids.chunks(CONTAINERS_AT_ONCE) {
            for used in catalog.container_uses(some).await? {
                if used.live.is_empty() {
                    if !may_come_back(&used.id) {
                        unused.push(used.id);
                    }
                    continue;
                }
                let mut best: Option<(SegmentId, usize)> = None;
                for (segment, present) in self.found.get(&used.id).into_iter().flatten() {
                    let count = used.live.iter().filter(|chunk| present.contains(*chunk)).count();
                    if count > best.map_or(0, |(_, most)| most) {
                        best = Some((*segment, count));
                    }
                }
                let Some((segment, count)) = best else { continue };
                let is_complete = count == used.live.len();
                if is_complete || !may_come_back(&used.id) {
                    chosen.entry(segment).or_default().insert(used.id, is_complete);
                }
            }
        }
        Ok((chosen, unused))
    }
}
