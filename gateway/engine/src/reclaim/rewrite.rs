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
//! - Beside the segment that is being filled, what fills it is in memory at most, with its gaps.
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
    BatchId, CHUNKS_PER_CONTAINER_MAX, ChunkSet, ContainerFingerprints, ContainerId, DomainId, ObjectPlace,
    PassId, SegmentId, UploadReceipt,
};
use cairn_segment_writer::{
    BatchHeader, ContainerCipher, ContainerDirectory, ContainerLocation, Damaged, Domain, FetchedChunks,
    PoolError, Regrouped, SealedSegment, SegmentContainer,
};
use futures::{StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// Containers, or footers, fetched at the same time: the pool may be far, and what is left of an old container is little.
const REQUESTS_AT_ONCE: usize = 8;
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

/// Groups the containers of the segments: those of one domain, segment by segment in the order of their age, as many as make a segment. What was written
/// together stays together, what is old is kept from what is young, and an old object is empty, and goes, soon after the first of it moved.
pub(super) fn group(shared: &Shared, victims: &[&Segment], held: &HashMap<ContainerId, Held>) -> Vec<Unit> {
    let mut containers = Vec::new();
    for victim in victims {
        let age = (victim.containers.iter().max(), victim.id);
        let of_victim = victim.containers.iter().filter_map(|id| held.get(id));
        containers.extend(of_victim.map(|container| (container.domain, age, container)));
    }
    containers.sort_unstable_by_key(|(domain, age, container)| (*domain, *age, container.id));
    let bytes_max = u64::from(shared.config.pack.container_bytes_max);
    let (mut units, mut domain, mut bytes, mut chunks) = (Vec::<Unit>::new(), None, 0, 0);
    for (_, _, container) in containers {
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
    pub(super) stuck: Vec<(ContainerId, SegmentId)>,
}

/// Fingerprints of the containers of an object.
type Fingerprints = HashMap<ContainerId, Arc<ContainerFingerprints>>;

/// What is to move of a container.
struct Survivors {
    located: Located,
    directory: ContainerDirectory,
    live: ChunkSet,
}

/// The new segment and what is in it so far.
struct Filling {
    regrouped: Regrouped,
    filled: Filled,
}

/// What is in a new segment.
#[derive(Default)]
struct Filled {
    present: BTreeMap<ContainerId, ChunkSet>,
    /// Stored bytes that are left behind.
    left_out_bytes: u64,
    /// Containers that fail verification and are not in it.
    damaged: Vec<(ContainerId, SegmentId)>,
}

/// Moves the containers of a unit; `uses` is what the look found after they were closed. Containers that have more in them than before, so that they find no
/// room, stay.
pub(super) async fn rewrite(
    shared: &Shared,
    unit: &Unit,
    uses: &HashMap<ContainerId, ContainerUse>,
) -> Result<Rewritten, EngineError> {
    let mut rewritten = Rewritten::default();
    let fetched = fetch_all(shared, unit, uses, &mut rewritten.stuck).await?;
    // All of a unit is of one domain.
    let Some((first, _)) = fetched.first() else { return Ok(rewritten) };
    let domain = shared.domains.get(first.located.domain)?;
    let footers = footers(shared, &fetched, &domain).await;
    let bytes_max = shared.config.pack.container_bytes_max;
    let regrouped = Regrouped::new(&domain, batch(shared), bytes_max as usize, &shared.ports);
    let filling = Filling { regrouped, filled: Filled::default() };
    // In one go: between two pieces of work others have their turn, and all of a segment is less work than one slice of a batch.
    let fill = move || filling.fill(&domain, fetched, &footers, bytes_max);
    let (sealed, Filled { present, left_out_bytes, damaged }) = shared.compute.run(fill).await?;
    for (container, segment) in damaged {
        // A copy may be bad where others are good: then it is mended, and this is tried again.
        shared.heal.suspect(segment);
        rewritten.stuck.push((container, segment));
    }
    let Some(segment) = sealed else { return Ok(rewritten) };
    let on_its_way = shared.in_flight.enter(segment.id());
    let receipt = match shared.pool.put(&segment).await {
        Ok(receipt) => receipt,
        Err(error) => {
            // It may have come through all the same; nothing names it and nothing will.
            abandon(shared, &segment).await;
            return Err(error.into());
        }
    };
    rewritten.put_bytes = receipt.length_bytes();
    if let Err(error) = move_to(shared, unit.pass, &segment, receipt, &present).await {
        if !is_refused(&error) {
            on_its_way.stay();
        }
        return Err(error);
    }
    drop(on_its_way);
    rewritten.left_out_bytes = left_out_bytes;
    rewritten.moved = segment.containers().to_vec();
    Ok(rewritten)
}

/// Fetches what is to survive, those of one object after each other.
async fn fetch_all(
    shared: &Shared,
    unit: &Unit,
    uses: &HashMap<ContainerId, ContainerUse>,
    stuck: &mut Vec<(ContainerId, SegmentId)>,
) -> Result<Vec<(Survivors, Vec<FetchedChunks>)>, EngineError> {
    let mut located = until_known(shared, || shared.catalog.containers(&unit.containers)).await?;
    // Those of one object follow each other.
    located.sort_unstable_by(|one, other| (&one.place.key, one.id).cmp(&(&other.place.key, other.id)));
    let survivors = located.into_iter().filter_map(|located| {
        let live = &uses.get(&located.id)?.live;
        let directory = if live.is_empty() { None } else { directory_of(&located, live) }?;
        Some(Survivors { located, directory, live: live.clone() })
    });
    let mut incoming = stream::iter(survivors)
        .map(|survivors| async {
            let fetched = fetch(shared, &survivors).await;
            (survivors, fetched)
        })
        .buffered(REQUESTS_AT_ONCE);
    let mut all = Vec::new();
    while let Some((survivors, fetched)) = incoming.next().await {
        match fetched {
            Ok(fetched) => all.push((survivors, fetched)),
            // Lost or damaged: whoever reads it is told. The others must not stay for it.
            Err(error) if error.is_of_object() => {
                let id = survivors.located.id;
                let ids = [id];
                let now = until_known(shared, || shared.catalog.containers(&ids)).await?;
                if now.iter().any(|now| now.place != survivors.located.place) {
                    // Healing was first. It is found again by the next pass.
                    continue;
                }
                tracing::warn!(%error, container = %id, "a container cannot be read and is not moved");
                let segment = survivors.located.segment;
                shared.heal.suspect(segment);
                stuck.push((id, segment));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

impl Filling {
    /// Verifies what was fetched and takes in what has room. CPU work.
    fn fill(
        mut self,
        domain: &Domain,
        fetched: Vec<(Survivors, Vec<FetchedChunks>)>,
        footers: &HashMap<String, Fingerprints>,
        bytes_max: u32,
    ) -> (Option<SealedSegment>, Filled) {
        for (survivors, fetched) in fetched {
            let Survivors { located, directory, live } = survivors;
            if !self.regrouped.has_room(live.len(), directory.stored_bytes_of(&live), bytes_max) {
                continue;
            }
            let cipher = ContainerCipher::new(domain, located.id);
            // Of this object: an older one of the same container had other chunks.
            let fingerprints =
                footers.get(&located.place.key).and_then(|of_object| of_object.get(&located.id));
            let fingerprints = fingerprints.map(|fingerprints| &**fingerprints);
            if let Err(damaged) = self.add(&cipher, &directory, live, fingerprints, &fetched) {
                let key = located.place.key;
                tracing::warn!(%damaged, container = %located.id, key, "a container fails verification and is not moved");
                self.filled.damaged.push((located.id, located.segment));
            }
        }
        let Self { regrouped, filled } = self;
        ((!regrouped.is_empty()).then(|| regrouped.seal()), filled)
    }

    /// Adds what lives in a container, if all of it is what it was.
    fn add(
        &mut self,
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
        self.regrouped.add(cipher.container(), directory, &live, fingerprints, verified);
        self.filled.left_out_bytes += u64::from(directory.stored_bytes()) - directory.stored_bytes_of(&live);
        self.filled.present.insert(cipher.container(), live);
        Ok(())
    }
}

/// A batch that changes no volume.
fn batch(shared: &Shared) -> BatchHeader {
    let batch = BatchId::fresh(&*shared.ports.clock, &*shared.ports.entropy);
    BatchHeader { site: shared.site, gateway: shared.gateway, batch, attempt: 1, previous: None }
}

async fn fetch(shared: &Shared, survivors: &Survivors) -> Result<Vec<FetchedChunks>, PoolError> {
    let Survivors { located, directory, live } = survivors;
    let place = ContainerLocation { place: located.place.clone(), offset: located.offset };
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

/// What the footers of the objects say of containers, by key. Without them the survivors are not shared any more: that is no reason to keep what is dead.
async fn footers(
    shared: &Shared,
    fetched: &[(Survivors, Vec<FetchedChunks>)],
    domain: &Domain,
) -> HashMap<String, Fingerprints> {
    let places: BTreeSet<ObjectPlace> =
        fetched.iter().map(|(survivors, _)| survivors.located.place.clone()).collect();
    let mut incoming = stream::iter(places)
        .map(|place| async move {
            let fingerprints = fingerprints(shared, &place, domain).await;
            (place.key, fingerprints)
        })
        .buffered(REQUESTS_AT_ONCE);
    let mut footers = HashMap::new();
    while let Some((key, fingerprints)) = incoming.next().await {
        footers.insert(key, fingerprints);
    }
    footers
}

async fn fingerprints(shared: &Shared, place: &ObjectPlace, domain: &Domain) -> Fingerprints {
    match shared.pool.read_footer(place, domain).await {
        Ok(footer) => {
            let containers = footer.containers.into_iter();
            containers.filter_map(|container| Some((container.id, container.fingerprints?))).collect()
        }
        Err(error) => {
            tracing::debug!(%error, key = place.key, "what moves from a segment without its footer is not shared");
            Fingerprints::new()
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
    let moved = ContainerMove {
        pass,
        containers: containers.collect(),
        segment: SegmentRow { receipt: receipt.clone() },
    };
    match until_known(shared, || shared.catalog.move_containers(&moved)).await {
        Ok(()) => {
            shared.chunks.forget(&ids);
            Ok(())
        }
        Err(error) => {
            // Refused for good: the catalog does not know the object and never will. Of any other error nobody knows what happened.
            if is_refused(&error) {
                abandon(shared, segment).await;
            }
            Err(error)
        }
    }
}

/// Whether the catalog did not move anything and never will: another pass took the containers over, say.
pub(super) fn is_refused(error: &EngineError) -> bool {
    let EngineError::Catalog(refusal) = error else { return false };
    matches!(
        **refusal,
        CatalogError::ContainerOpen { .. }
            | CatalogError::Invalid(_)
            | CatalogError::ObjectDoomed { .. }
            | CatalogError::NotFound { what: "node", .. }
    )
}

async fn abandon(shared: &Shared, segment: &SealedSegment) {
    if let Err(error) = shared.pool.abandon(segment).await {
        tracing::debug!(%error, key = segment.key(), "an object of survivors that did not move is left in the pool");
    }
}
