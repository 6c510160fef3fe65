//! Survivors of sparse segments move to new ones.
//!
//! ```text
//! plan: units ─► close, look again (pass) ─► per unit: fetch, verify ─► put ─► move ─► open ─► tell the index
//! ```
//!
//! - A container keeps its identity and its chunks their names: no map, snapshot or clone is touched. What moves are stored bytes, verified on the way.
//! - What is left out of a container is what the second look found dead while it was closed: dead for good, because pointers are only made from
//!   pointers, and the catalog refuses batches that point anew at a chunk that is not there any more.
//! - A container moves in one transaction, after the new object was acknowledged. Until then, and after a failure, it is where it was.
//! - Readers that located a container before find its old object gone, and locate it again (`read`).
//! - One container is in memory beside the segment that is being filled.
//!
//! Crash cases: before the move an object is left that the catalog does not know, as by a batch that was not committed; after it, the old
//! objects are doomed and the next pass deletes them. A move whose answer is lost is repeated; one whose outcome stays unknown leaves its object
//! where it is.

use super::victims::Segment;
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use cairn_metadata::{
    CatalogError, ContainerLocation as Located, ContainerMove, ContainerRow, ContainerUse, MovedContainer,
    SegmentRow,
};
use cairn_model::{
    BatchId, CHUNKS_PER_CONTAINER_MAX, ChunkSet, ContainerFingerprints, ContainerId, DomainId, ErrorKind,
    Kinded, NodeId, PassId, UploadReceipt,
};
use cairn_segment_writer::{
    BatchHeader, ContainerCipher, ContainerDirectory, ContainerLocation, Damaged, Domain, FetchedChunks,
    PoolError, Regrouped, SealedSegment, SegmentContainer,
};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// Containers asked for in one go.
const CONTAINERS_AT_ONCE: usize = 256;
/// Bytes between survivors that are fetched with them, rather than by another request; never more than the survivors before them.
const GAP_BYTES_MAX: u32 = 64 << 10;

/// Containers that go into one new segment, all of one domain.
#[derive(Debug)]
pub(super) struct Unit {
    /// Who closes them: each unit is opened by itself.
    pub(super) pass: PassId,
    pub(super) containers: Vec<ContainerId>,
}

/// A container with something live, as a look found it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: ContainerId,
    pub(super) domain: DomainId,
    /// What it takes in a segment without what is dead.
    pub(super) bytes: u64,
    /// Of that, its chunks.
    pub(super) stored_bytes: u64,
    pub(super) chunks: usize,
}

/// Directories of containers, and what of them is live. Containers that are gone, whose directory cannot be read, or whose domain's key is not at hand are left
/// out: they stay as they are.
pub(super) async fn weigh(shared: &Shared, uses: &[&ContainerUse]) -> Result<Vec<Held>, EngineError> {
    let mut held = Vec::with_capacity(uses.len());
    for some in uses.chunks(CONTAINERS_AT_ONCE) {
        let ids: Vec<_> = some.iter().map(|container| container.id).collect();
        let live: HashMap<_, _> = some.iter().map(|container| (container.id, &container.live)).collect();
        for located in until_known(shared, || shared.catalog.containers(&ids)).await? {
            let live = live[&located.id];
            if shared.domains.get(located.domain).is_err() {
                continue;
            }
            if let Some(directory) = directory_of(&located, live) {
                held.push(Held {
                    id: located.id,
                    domain: located.domain,
                    bytes: Regrouped::bytes_of(&directory, live),
                    stored_bytes: directory.stored_bytes_of(live),
                    chunks: live.len(),
                });
            }
        }
    }
    Ok(held)
}

/// The directory, if it has every chunk that something points at. One that has not was thinned by another pass since, or is damage, which must not be
/// made worse.
fn directory_of(located: &Located, live: &ChunkSet) -> Option<ContainerDirectory> {
    let directory = ContainerDirectory::decode(&located.directory).ok();
    let sound = directory.filter(|directory| live.iter().all(|index| directory.get(index).is_some()));
    if sound.is_none() {
        tracing::warn!(
            container = %located.id,
            "a container's directory does not have all that maps pointed at a moment ago: it stays where it is"
        );
    }
    sound
}

/// Groups the containers of the segments: those of one domain, in the order of their age, as many as make a segment. What was written together stays
/// together, and what is old is kept from what is young.
pub(super) fn group(shared: &Shared, victims: &[&Segment], held: &HashMap<ContainerId, Held>) -> Vec<Unit> {
    let mut containers: Vec<&Held> =
        victims.iter().flat_map(|victim| &victim.containers).filter_map(|id| held.get(id)).collect();
    containers.sort_unstable_by_key(|container| (container.domain, container.id));
    let bytes_max = u64::from(shared.config.pack.container_bytes_max);
    let (mut units, mut domain, mut bytes, mut chunks) = (Vec::<Unit>::new(), None, 0, 0);
    for container in containers {
        let fits = domain == Some(container.domain)
            && bytes + container.stored_bytes <= bytes_max
            && chunks + container.chunks <= CHUNKS_PER_CONTAINER_MAX
            && units.last().is_some_and(|unit| unit.containers.len() < Regrouped::CONTAINERS_MAX);
        if !fits {
            let pass = PassId::fresh(&*shared.ports.clock, &*shared.ports.entropy);
            units.push(Unit { pass, containers: Vec::new() });
            (domain, bytes, chunks) = (Some(container.domain), 0, 0);
        }
        bytes += container.stored_bytes;
        chunks += container.chunks;
        units.last_mut().expect("just pushed").containers.push(container.id);
    }
    units
}

/// What became of a unit.
#[derive(Default)]
pub(super) struct Rewritten {
    /// Containers in their new place: what the index is to learn once they are open.
    pub(super) moved: Vec<SegmentContainer>,
    /// Bytes put in the pool.
    pub(super) put_bytes: u64,
    /// Stored bytes that were left behind.
    pub(super) left_out_bytes: u64,
    /// Containers that cannot be read, or not all of it. They stay where they are.
    pub(super) stuck: Vec<ContainerId>,
}

/// The new segment and what is in it.
struct Filling {
    regrouped: Regrouped,
    present: BTreeMap<ContainerId, ChunkSet>,
    left_out_bytes: u64,
}

/// Moves the containers of a unit; `uses` is what the look found after they were closed. Containers that have more in them than before, so that they find no
/// room, stay.
pub(super) async fn rewrite(
    shared: &Shared,
    unit: &Unit,
    uses: &HashMap<ContainerId, ContainerUse>,
) -> Result<Rewritten, EngineError> {
    let mut rewritten = Rewritten::default();
    let Some(filling) = fill(shared, unit, uses, &mut rewritten).await? else { return Ok(rewritten) };
    let Filling { regrouped, present, left_out_bytes } = filling;
    let segment = shared.compute.run(move || regrouped.seal()).await?;
    let receipt = match shared.pool.put(&segment).await {
        Ok(receipt) => receipt,
        Err(error) => {
            // It may have come through all the same; nothing names it and nothing will.
            let node = shared.pool.nodes()[0].id();
            drop_object(shared, node, segment.key()).await;
            return Err(error.into());
        }
    };
    rewritten.put_bytes = receipt.length_bytes();
    move_to(shared, unit.pass, &segment, receipt, &present).await?;
    rewritten.left_out_bytes = left_out_bytes;
    rewritten.moved = segment.containers().to_vec();
    Ok(rewritten)
}

/// Fetches and verifies what is to survive, container by container, into a new segment. `None` when that is nothing.
async fn fill(
    shared: &Shared,
    unit: &Unit,
    uses: &HashMap<ContainerId, ContainerUse>,
    rewritten: &mut Rewritten,
) -> Result<Option<Filling>, EngineError> {
    let mut located = until_known(shared, || shared.catalog.containers(&unit.containers)).await?;
    // Those of one object follow each other.
    located.sort_unstable_by(|one, other| (&one.key, one.id).cmp(&(&other.key, other.id)));
    let bytes_max = shared.config.pack.container_bytes_max;
    let mut filling: Option<Filling> = None;
    let mut footer: Option<(String, HashMap<ContainerId, Arc<ContainerFingerprints>>)> = None;
    for located in located {
        let live = uses.get(&located.id).map(|container| &container.live).filter(|live| !live.is_empty());
        let Some(live) = live.cloned() else { continue };
        let Some(directory) = directory_of(&located, &live) else { continue };
        let domain = shared.domains.get(located.domain)?;
        let mut into = filling.take().unwrap_or_else(|| Filling {
            regrouped: Regrouped::new(&domain, batch(shared), bytes_max as usize, &shared.ports),
            present: BTreeMap::new(),
            left_out_bytes: 0,
        });
        if !into.regrouped.has_room(live.len(), directory.stored_bytes_of(&live), bytes_max) {
            filling = Some(into);
            continue;
        }
        if footer.as_ref().is_none_or(|(key, _)| *key != located.key) {
            footer = Some((located.key.clone(), fingerprints(shared, &located, &domain).await));
        }
        let fingerprints = footer.as_ref().and_then(|(_, containers)| containers.get(&located.id)).cloned();
        let fetched = match fetch(shared, &located, &directory, &live).await {
            Ok(fetched) => fetched,
            // Lost or damaged: whoever reads it is told. The others must not stay for it.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                tracing::warn!(%error, container = %located.id, "a container cannot be read and is not moved");
                rewritten.stuck.push(located.id);
                filling = Some(into);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let id = located.id;
        let added = shared.compute.run(move || {
            let cipher = ContainerCipher::new(&domain, id);
            let added = add(&mut into, &cipher, &directory, live, fingerprints.as_deref(), &fetched);
            (into, added)
        });
        let (into, added) = added.await?;
        if let Err(damaged) = added {
            tracing::warn!(%damaged, container = %id, key = located.key, "a container fails verification and is not moved");
            rewritten.stuck.push(id);
        }
        filling = Some(into);
    }
    Ok(filling.filter(|filling| !filling.regrouped.is_empty()))
}

/// A batch that changes no volume.
fn batch(shared: &Shared) -> BatchHeader {
    let batch = BatchId::fresh(&*shared.ports.clock, &*shared.ports.entropy);
    BatchHeader { site: shared.site, gateway: shared.gateway, batch, attempt: 1, previous: None }
}

/// Adds what lives in a container, if all of it is what it was. CPU work.
fn add(
    into: &mut Filling,
    cipher: &ContainerCipher,
    directory: &ContainerDirectory,
    live: ChunkSet,
    fingerprints: Option<&ContainerFingerprints>,
    fetched: &[FetchedChunks],
) -> Result<(), Damaged> {
    let (mut verified, mut scratch) = (Vec::with_capacity(live.len()), Vec::new());
    let mut runs = fetched.iter().peekable();
    for index in live.iter() {
        while runs.peek().is_some_and(|run| !run.holds(index)) {
            runs.next();
        }
        let run: &FetchedChunks = runs.peek().copied().ok_or(Damaged("a chunk was not fetched"))?;
        verified.push((index, run.verified(directory, cipher, index, &mut scratch)?));
    }
    into.regrouped.add(cipher.container(), directory, &live, fingerprints, verified);
    into.left_out_bytes += u64::from(directory.stored_bytes()) - directory.stored_bytes_of(&live);
    into.present.insert(cipher.container(), live);
    Ok(())
}

async fn fetch(
    shared: &Shared,
    located: &Located,
    directory: &ContainerDirectory,
    live: &ChunkSet,
) -> Result<Vec<FetchedChunks>, PoolError> {
    let place = ContainerLocation { node: located.node, key: located.key.clone(), offset: located.offset };
    let mut fetched = Vec::new();
    for run in runs(directory, live) {
        fetched.push(shared.pool.fetch_chunks(&place, directory, run).await?);
    }
    Ok(fetched)
}

/// Ranges of chunks to fetch, each with one request: at most twice the bytes of the survivors.
fn runs(directory: &ContainerDirectory, live: &ChunkSet) -> Vec<Range<u32>> {
    struct Run {
        chunks: Range<u32>,
        end: u32,
        live_bytes: u32,
    }
    let mut runs: Vec<Run> = Vec::new();
    for (index, entry) in live.iter().filter_map(|index| Some((index.get(), directory.get(index)?))) {
        let end = entry.offset + entry.stored_bytes;
        match runs.last_mut() {
            Some(run) if entry.offset - run.end <= GAP_BYTES_MAX.min(run.live_bytes) => {
                // Each survivor pays for one gap.
                run.live_bytes = entry.stored_bytes + run.live_bytes - (entry.offset - run.end);
                (run.chunks.end, run.end) = (index + 1, end);
            }
            _ => runs.push(Run { chunks: index..index + 1, end, live_bytes: entry.stored_bytes }),
        }
    }
    runs.into_iter().map(|run| run.chunks).collect()
}

/// Fingerprints of all that the segment holds. Without them the survivors are not shared any more: that is no reason to keep what is dead.
async fn fingerprints(
    shared: &Shared,
    located: &Located,
    domain: &Domain,
) -> HashMap<ContainerId, Arc<ContainerFingerprints>> {
    let footer = match shared.pool.node(located.node) {
        Ok(node) => node.read_footer(&located.key, domain).await,
        Err(error) => Err(error),
    };
    match footer {
        Ok(footer) => {
            let containers = footer.containers.into_iter();
            containers.filter_map(|container| Some((container.id, container.fingerprints?))).collect()
        }
        Err(error) => {
            tracing::debug!(%error, key = located.key, "what moves from a segment without its footer is not shared");
            HashMap::new()
        }
    }
}

/// Gives the containers their new place in the catalog.
async fn move_to(
    shared: &Shared,
    pass: PassId,
    segment: &SealedSegment,
    receipt: UploadReceipt,
    present: &BTreeMap<ContainerId, ChunkSet>,
) -> Result<(), EngineError> {
    let containers = segment.containers().iter().map(|container| MovedContainer {
        row: ContainerRow {
            id: container.id,
            segment: receipt.segment(),
            domain: container.domain,
            offset: container.offset,
            length: container.directory.stored_bytes(),
            raw_bytes: container.directory.raw_bytes(),
            directory: container.directory.encode(),
        },
        present: present[&container.id].clone(),
    });
    let ids: Vec<_> = segment.containers().iter().map(|container| container.id).collect();
    let (node, containers) = (receipt.node(), containers.collect());
    let moved = ContainerMove { pass, segment: SegmentRow { receipt }, containers };
    match until_known(shared, || shared.catalog.move_containers(&moved)).await {
        Ok(()) => {
            shared.chunks.forget(&ids);
            Ok(())
        }
        Err(error) => {
            // Refused for good: the catalog does not know the object and never will. Of any other error nobody knows what happened.
            if is_refused(&error) {
                drop_object(shared, node, segment.key()).await;
            }
            Err(error)
        }
    }
}

/// Whether the catalog did not move anything and never will: another pass took the containers over, say.
pub(super) fn is_refused(error: &EngineError) -> bool {
    let EngineError::Catalog(refusal) = error else { return false };
    matches!(**refusal, CatalogError::ContainerOpen { .. } | CatalogError::Invalid(_))
}

async fn drop_object(shared: &Shared, node: NodeId, key: &str) {
    if let Err(error) = shared.pool.delete(node, key).await {
        tracing::debug!(%error, key, "an object of survivors that did not move is left in the pool");
    }
}
