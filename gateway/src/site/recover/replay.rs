//! Batches that are in the pool and not in the checkpoint.
//!
//! - A segment counts when enough of its shards are on the nodes that were given, wherever they are, and its footer can be read from them.
//! - A batch counts when all segments of an attempt at it are there. Of several such attempts the highest is tried first: what the commit refuses points at what is not there.
//! - Its part of a volume continues the volume when it is of its lineage and begins where the volume ends. Parts of volumes that are not there, and of maps that the catalog does not know as
//!   the volume's, are left out, as a commit leaves out what it cannot take; what was left out is told.
//! - A part is void when its term is older than the lease's in the checkpoint, or when there is a part of a later term that begins before it ends: whoever had that
//!   term began with a catalog that did not have the former, and none of the former's term was committed after that.
//! - A later term than the checkpoint's began with a catalog that had at least what the checkpoint has. A part of one that begins before that was put with an older copy of the catalog, which somebody started:
//!   its batch, and those that follow it, are left out as if they were not there, and told (`forks`).
//! - A container that the catalog has stays where it has it: a segment that was deleted since it moved, and is back with an older copy of its node, adds nothing.
//! - A segment of the checkpoint of which shards are gone gets those that were made in their place since (`mend`), if they are there; of which too few are
//!   left, another place if the whole of it was put there (a conversion). What a segment held that is missing is named where else it is (`elsewhere`).
//! - A batch is committed by the call that a gateway uses, or left where it is. When none can be committed with all parts that may join, parts are left out whose volumes lack something before
//!   them: a gap of one volume costs no other one anything. When that is at its end too, batches of which no part joins are committed without any: volumes share what is in them, and what
//!   nothing shares is reclaimed.

mod elsewhere;
mod forks;
mod look;

use super::{RecoveryProgress, RecoveryReport};
use crate::error::GatewayError;
use cairn_metadata::{
    BatchCommit, Catalog, CatalogError, CheckSource, ContainerRow, HeldLease, PlacementChange, SegmentRow,
    SqliteCatalog, VolumeCommit, VolumeRow,
};
use cairn_model::{
    BLOCK_SIZE, BatchId, ContainerId, GatewayId, Generation, LineageId, MapDelta, NodeId, ObjectPlace,
    Placement, Profile, Reduction, SegmentId, VolumeId, WriteSeq,
};
use cairn_segment_writer::{Domain, Footer, FoundSegment, Pool, PoolError, VolumeHeader};
use elsewhere::{Elsewhere, Lacking, Left};
use futures::StreamExt;
use look::{doomed, read_footer, read_found, recorded};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Segments of one question to the catalog.
const ROWS_AT_ONCE: usize = 500;
/// Footers read at once.
const FOOTERS_AT_ONCE: usize = 16;

/// A segment of an attempt.
struct Told {
    id: SegmentId,
    place: ObjectPlace,
    /// Of all its objects in the pool.
    length_bytes: u64,
    parts: Vec<VolumeHeader>,
}

/// An attempt at a batch, by the places of its segments.
#[derive(Default)]
struct Attempt {
    segments: BTreeMap<u32, Told>,
    /// How many segments it has, when its last one is there.
    count: Option<u32>,
    /// The batch that the same process cut before.
    previous: Option<BatchId>,
}

impl Attempt {
    fn is_complete(&self) -> bool {
        // Places are below the count, each once.
        self.count.is_some_and(|count| self.segments.len() as u64 == u64::from(count))
    }

    fn parts(&self) -> BTreeMap<VolumeId, VolumeHeader> {
        let parts = self.segments.values().flat_map(|told| &told.parts);
        parts.map(|part| (part.volume, *part)).collect()
    }
}

/// How far a volume has come.
struct Volume {
    name: String,
    lineage: LineageId,
    through: WriteSeq,
    /// The lease's term in the checkpoint.
    term: Generation,
    size_bytes: u64,
}

/// What to do with a part of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fit {
    Continues,
    /// It may continue the volume when others have.
    Later,
    /// It is in the checkpoint, or void.
    Never,
    /// It is of a volume that the catalog does not have.
    Stranger,
    /// It is of a map that the catalog does not know as the volume's.
    OtherLineage,
    /// It would continue the volume, and shares what is not there.
    Refused,
}

/// What is committed of a batch, in the order in which it is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Round {
    /// All parts that join, or may yet.
    Whole,
    /// Those that join now.
    Joining,
    /// What others may share of it.
    Containers,
}

/// The parts that a round commits. `None`: the batch is not for it.
fn to_commit(fits: &[(VolumeHeader, Fit)], round: Round) -> Option<Vec<VolumeHeader>> {
    let joining = fits.iter().filter(|(_, fit)| *fit == Fit::Continues).map(|(part, _)| *part);
    let joining: Vec<VolumeHeader> = joining.collect();
    let all = |of: &[Fit]| !fits.is_empty() && fits.iter().all(|(_, fit)| of.contains(fit));
    let is_for_it = match round {
        Round::Whole => {
            let is_later = fits.iter().any(|(_, fit)| *fit == Fit::Later);
            // Nothing that comes later makes a part of it join.
            (!is_later && !joining.is_empty()) || all(&[Fit::Stranger, Fit::OtherLineage])
        }
        Round::Joining => !joining.is_empty(),
        // What is void was never committed, and nothing shares it.
        Round::Containers => all(&[Fit::Stranger, Fit::OtherLineage, Fit::Later]),
    };
    is_for_it.then_some(joining)
}

/// See the module.
pub(super) struct Replay<'a> {
    pool: &'a Pool,
    domains: &'a [Domain],
    progress: &'a RecoveryProgress,
    /// Of the pool.
    profile: Profile,
    ends: Ends,
    batches: BTreeMap<BatchId, BTreeMap<u32, Attempt>>,
    /// Volumes that the catalog does not have and the pool has writes of.
    strangers: BTreeSet<VolumeId>,
    /// Batches that share what is not there.
    refused: BTreeSet<BatchId>,
    order: Order,
    elsewhere: Elsewhere,
}

/// What follows what.
#[derive(Default)]
struct Order {
    /// Parts that may join, by their batches.
    parts: BTreeSet<(BatchId, VolumeId)>,
    /// Those that did.
    joined: BTreeSet<(BatchId, VolumeId)>,
}

impl Order {
    /// Whether a part of a batch goes on where the batch before it left the volume. Where two catalogs wrote a volume in one term, either has a part that begins there: what followed the one does not
    /// join the other.
    fn allows(&self, attempt: &Attempt, volume: VolumeId) -> bool {
        attempt.previous.is_none_or(|previous| {
            let before = (previous, volume);
            !self.parts.contains(&before) || self.joined.contains(&before)
        })
    }
}

/// Where the volumes end, and what the pool shows of their terms.
#[derive(Default)]
struct Ends {
    volumes: BTreeMap<VolumeId, Volume>,
    /// Of each volume, its terms and where the first part of each begins.
    terms: HashMap<VolumeId, BTreeMap<Generation, WriteSeq>>,
    /// Its highest term, of whatever catalog.
    highest: HashMap<VolumeId, Generation>,
}

impl Ends {
    fn note(&mut self, part: &VolumeHeader) {
        let terms = self.terms.entry(part.volume).or_default();
        let first = terms.entry(part.generation).or_insert(part.base);
        *first = part.base.min(*first);
    }

    /// Whether a part was put with an older copy of the catalog than the checkpoint.
    fn is_of_older_copy(&self, part: &VolumeHeader) -> bool {
        let of = self.volumes.get(&part.volume);
        of.is_some_and(|volume| part.generation > volume.term && part.base < volume.through)
    }

    fn fit(&self, part: &VolumeHeader) -> Fit {
        let Some(volume) = self.volumes.get(&part.volume) else { return Fit::Stranger };
        if part.generation < volume.term || part.base < volume.through {
            return Fit::Never;
        }
        let later = self.terms.get(&part.volume).into_iter().flatten();
        let mut later = later.filter(|(term, _)| **term > part.generation);
        if later.any(|(_, base)| *base < part.through) {
            return Fit::Never;
        }
        match part.lineage == volume.lineage {
            false => Fit::OtherLineage,
            true if part.base == volume.through => Fit::Continues,
            true => Fit::Later,
        }
    }
}

impl Ends {
    /// Tells of a part that was left out, if it lacks something then.
    fn tell(
        &self,
        part: &VolumeHeader,
        fit: Fit,
        strangers: &mut BTreeSet<VolumeId>,
        report: &mut RecoveryReport,
    ) {
        let problem = match fit {
            Fit::Never | Fit::Continues => return,
            Fit::Stranger => {
                strangers.insert(part.volume);
                return;
            }
            Fit::OtherLineage => {
                "it was reverted or made anew after the checkpoint, and what was written since is not joined"
            }
            Fit::Later => {
                "a batch is missing or not complete, and neither it nor what came after it is joined"
            }
            Fit::Refused => {
                "a batch shares data that is not in the pool any more, and neither it nor what came after it is joined"
            }
        };
        let told = format!("{problem} (writes {} to {})", part.base.get(), part.through.get());
        let volume = self.volumes.get(&part.volume).map(|volume| &*volume.name);
        tracing::debug!(volume, problem = told, "a part of a batch is left out");
        report.problems_of.entry(part.volume).or_insert(told);
    }
}

impl<'a> Replay<'a> {
    /// Lists the pool and reads the footers that the catalog does not have.
    pub(super) async fn read(
        catalog: &SqliteCatalog,
        pool: &'a Pool,
        domains: &'a [Domain],
        (volumes, progress): (&[VolumeRow], &'a RecoveryProgress),
        report: &mut RecoveryReport,
    ) -> Result<Self, GatewayError> {
        let volume = |row: &VolumeRow| {
            let (name, lineage, through) = (row.name.to_string(), row.lineage, row.destaged_through);
            (row.id, Volume { name, lineage, through, term: row.generation, size_bytes: row.size_bytes })
        };
        let ends = Ends { volumes: volumes.iter().map(volume).collect(), ..Ends::default() };
        let profile = catalog.pool_settings().await?.profile;
        let (batches, strangers) = (BTreeMap::new(), BTreeSet::new());
        let refused = BTreeSet::new();
        let order = Order::default();
        let elsewhere = Elsewhere::default();
        let mut replay =
            Self { pool, domains, progress, profile, ends, batches, strangers, refused, order, elsewhere };
        let (unknown, lacking) = replay.list(catalog, report).await?;
        replay.elsewhere = Elsewhere::of(catalog, lacking).await?;
        replay.read_footers(unknown, report).await?;
        replay.settle(report);
        Ok(replay)
    }

    /// Names what missing segments held where it is. After the batches, which may share what the maps of the checkpoint do not point at.
    async fn look_elsewhere(
        &mut self,
        catalog: &SqliteCatalog,
        gateway: GatewayId,
        report: &mut RecoveryReport,
    ) -> Result<(), GatewayError> {
        let elsewhere = std::mem::take(&mut self.elsewhere);
        let left = Left {
            nodes: !report.nodes_not_given.is_empty(),
            batches: !report.problems_of.is_empty() || !self.refused.is_empty(),
        };
        let rehomed = elsewhere.rehome(catalog, (self.pool, self.domains), gateway, left).await?;
        report.rehomed_segments = rehomed.segments.len() as u64;
        report.unused_segments = report.unused_segments.saturating_sub(report.rehomed_segments);
        report.unused_bytes = report.unused_bytes.saturating_sub(rehomed.segments.values().sum());
        if rehomed.partial > 0 {
            report.warnings.push(format!(
                "{} containers of segments that are gone were found in others, and lack chunks there that maps or changes point at, which may be overwritten since: `cairn fsck` tells what cannot be read",
                rehomed.partial
            ));
        }
        for some in rehomed.lacking.chunks(ROWS_AT_ONCE) {
            let ids: Vec<SegmentId> = some.iter().map(|segment| segment.id).collect();
            let rows = CheckSource::segments(catalog, &ids).await?;
            let left: BTreeSet<SegmentId> = rows.into_iter().map(|row| row.id).collect();
            for segment in some.iter().filter(|segment| left.contains(&segment.id)) {
                match &segment.unreachable {
                    Some(told) => report.unreachable_segments.push(format!("{} ({told})", segment.id)),
                    None => report.missing_segments.push(segment.id.to_string()),
                }
            }
        }
        report.missing_segments.sort();
        report.unreachable_segments.sort();
        Ok(())
    }

    /// The segments of the pool that the catalog does not have, and those that it has and too little of which is in the pool.
    async fn list(
        &self,
        catalog: &SqliteCatalog,
        report: &mut RecoveryReport,
    ) -> Result<(Vec<FoundSegment>, Vec<Lacking>), GatewayError> {
        let mut recorded = recorded(catalog).await?;
        let (doomed, objects) = doomed(catalog).await?;
        let is_doomed = |node: NodeId, key: &str| objects.contains(&(node, key.to_owned()));
        let (mut unknown, mut lacking) = (Vec::new(), Vec::new());
        for prefix in 0..=u8::MAX {
            self.progress.prefix();
            for found in self.pool.list_segments(prefix).await? {
                report.segments += 1;
                found.tally(&mut report.tallies);
                match recorded.remove(&found.id) {
                    Some(place) => {
                        let mut place = self.mend(catalog, &found, place, &is_doomed, report).await?;
                        let mut count = found.count(&place.placement, place.length_bytes);
                        if count < place.placement.profile().needed()
                            && let Some(to) = self.converted(&found, &place, &is_doomed).await?
                        {
                            let change = PlacementChange { segment: found.id, from: place, to };
                            catalog.place_shards(&change).await?;
                            report.mended_segments += 1;
                            place = change.to;
                            count = found.count(&place.placement, place.length_bytes);
                        }
                        lacking.extend(self.judge(found.id, &place.placement, count, report));
                    }
                    None if doomed.contains(&found.id) => {}
                    None => unknown.push(found),
                }
            }
        }
        for (id, place) in recorded {
            lacking.extend(self.judge(id, &place.placement, 0, report));
        }
        Ok((unknown, lacking))
    }

    /// Where a segment is that the catalog has. Healing may have made shards of it since the checkpoint, in the place of some that were lost: without them it could lose no more
    /// than it could before. What the checkpoint has stays where it is there.
    async fn mend(
        &self,
        catalog: &SqliteCatalog,
        found: &FoundSegment,
        place: ObjectPlace,
        is_doomed: &(dyn Fn(NodeId, &str) -> bool + Send + Sync),
        report: &mut RecoveryReport,
    ) -> Result<ObjectPlace, GatewayError> {
        let placement = &place.placement;
        let away = placement.present().filter(|(_, shard)| self.pool.node(shard.node).is_err()).count();
        if found.count(placement, place.length_bytes) + away == placement.profile().shards() {
            return Ok(place);
        }
        let Some(to) = self.pool.mended(found, &place, is_doomed).await? else { return Ok(place) };
        let change = PlacementChange { segment: found.id, from: place, to };
        catalog.place_shards(&change).await?;
        report.mended_segments += 1;
        Ok(change.to)
    }

    /// Another place of a segment of which too few shards are left: it was converted to another profile since the checkpoint, and the old shards are gone already.
    async fn converted(
        &self,
        found: &FoundSegment,
        place: &ObjectPlace,
        is_doomed: &(dyn Fn(NodeId, &str) -> bool + Send + Sync),
    ) -> Result<Option<ObjectPlace>, GatewayError> {
        let places = match self.pool.places_of(found, self.profile).await {
            Ok(places) => places,
            Err(error) if self.pool.silent_node().await.is_some() => return Err(error.into()),
            // There is none that can be read.
            Err(_) => return Ok(None),
        };
        for to in places {
            let is_kept = |(node, key, _): (NodeId, String, u64)| !is_doomed(node, &key);
            if (&to.key, to.length_bytes) == (&place.key, place.length_bytes)
                && to.objects().all(is_kept)
                && read_footer(self.pool, self.domains, found.id, &to).await.is_ok()
            {
                return Ok(Some(to));
            }
        }
        Ok(None)
    }

    /// Counts a segment that the catalog has, of which so many shards are where it says. What is to be told of it when these are too few.
    fn judge(
        &self,
        id: SegmentId,
        placement: &Placement,
        count: usize,
        report: &mut RecoveryReport,
    ) -> Option<Lacking> {
        let needed = placement.profile().needed();
        let away = placement.present().filter(|(_, shard)| self.pool.node(shard.node).is_err()).count();
        let lost = placement.present().count() - away - count;
        if lost > 0 && count + away >= needed {
            report.degraded_segments += 1;
        }
        if count >= needed {
            return None;
        }
        let profile = placement.profile();
        let unreachable = (count + away >= needed).then(|| {
            format!("{count} of the {needed} shards that {profile} needs are there, {away} are on nodes that were not given")
        });
        Some(Lacking { id, unreachable })
    }

    async fn read_footers(
        &mut self,
        unknown: Vec<FoundSegment>,
        report: &mut RecoveryReport,
    ) -> Result<(), GatewayError> {
        let (pool, domains, profile) = (self.pool, self.domains, self.profile);
        self.progress.unknown(unknown.len());
        let reads = unknown.into_iter().map(|found| async move {
            let read = read_found(pool, domains, profile, &found).await;
            (found, read)
        });
        let (progress, mut reads) =
            (self.progress, futures::stream::iter(reads).buffer_unordered(FOOTERS_AT_ONCE));
        while let Some((found, read)) = reads.next().await {
            progress.footer();
            let length_bytes = found.length_bytes();
            report.unused_segments += 1;
            report.unused_bytes = report.unused_bytes.saturating_add(length_bytes);
            match read {
                Ok(Some((place, footer))) => {
                    self.elsewhere.look_into(&footer, &place, length_bytes);
                    self.note(found.id, place, length_bytes, &footer);
                }
                // Without a node that is not given: what a put left that did not come to its end.
                Ok(None) if report.nodes_not_given.is_empty() => {}
                Ok(None) => report.unreachable_segments.push(format!(
                    "{} ({}; not in the checkpoint: it may never have been complete)",
                    found.id,
                    found.told()
                )),
                Err(
                    error @ (PoolError::Corrupt { .. }
                    | PoolError::NotFound { .. }
                    | PoolError::NewerFormat { .. }
                    | PoolError::OtherSite { .. }),
                ) => report.unreadable_segments.push(error.to_string()),
                Err(error) => match pool.silent_node().await {
                    None => report.unreadable_segments.push(error.to_string()),
                    // A node that does not answer says nothing of what it has.
                    Some(_) => return Err(error.into()),
                },
            }
        }
        report.unreadable_segments.sort();
        report.unreachable_segments.sort();
        Ok(())
    }

    fn note(&mut self, id: SegmentId, place: ObjectPlace, length_bytes: u64, footer: &Footer) {
        let parts: Vec<VolumeHeader> = footer.volumes.iter().map(|volume| volume.header).collect();
        for part in &parts {
            let highest = self.ends.highest.entry(part.volume).or_default();
            *highest = part.generation.max(*highest);
        }
        let attempt =
            self.batches.entry(footer.batch.batch).or_default().entry(footer.batch.attempt).or_default();
        attempt.previous = footer.batch.previous;
        if footer.last {
            attempt.count = Some(footer.index + 1);
        }
        attempt.segments.insert(footer.index, Told { id, place, length_bytes, parts });
    }

    /// The highest term that the pool shows of a volume.
    pub(super) fn highest_term(&self, volume: VolumeId) -> Generation {
        self.ends.highest.get(&volume).copied().unwrap_or_default()
    }

    /// Commits what continues the volumes until nothing does.
    pub(super) async fn run(
        &mut self,
        catalog: &SqliteCatalog,
        gateway: GatewayId,
        terms: &BTreeMap<VolumeId, Generation>,
        report: &mut RecoveryReport,
    ) -> Result<(), GatewayError> {
        loop {
            let mut is_stuck = true;
            for round in [Round::Whole, Round::Joining, Round::Containers] {
                if self.round(round, catalog, gateway, terms, report).await? {
                    is_stuck = false;
                    break;
                }
            }
            if is_stuck {
                break;
            }
        }
        self.tell_left(report);
        self.look_elsewhere(catalog, gateway, report).await
    }

    /// Whether a batch was committed.
    async fn round(
        &mut self,
        round: Round,
        catalog: &SqliteCatalog,
        gateway: GatewayId,
        terms: &BTreeMap<VolumeId, Generation>,
        report: &mut RecoveryReport,
    ) -> Result<bool, GatewayError> {
        let mut is_one_done = false;
        // Identities grow with time: mostly one round does.
        for id in self.batches.keys().copied().collect::<Vec<_>>() {
            if self.try_batch(id, round, catalog, gateway, terms, report).await? {
                self.batches.remove(&id);
                is_one_done = true;
                // What is left out is never joined: only as much as it takes for others to go on.
                if round != Round::Whole {
                    break;
                }
            }
        }
        Ok(is_one_done)
    }

    async fn try_batch(
        &mut self,
        id: BatchId,
        round: Round,
        catalog: &SqliteCatalog,
        gateway: GatewayId,
        terms: &BTreeMap<VolumeId, Generation>,
        report: &mut RecoveryReport,
    ) -> Result<bool, GatewayError> {
        let complete = self.batches[&id].iter().rev().filter(|(_, attempt)| attempt.is_complete());
        for (_, attempt) in complete {
            let parts = attempt.parts();
            let fit = |part: &VolumeHeader| match self.ends.fit(part) {
                Fit::Continues if !self.order.allows(attempt, part.volume) => Fit::Never,
                fit => fit,
            };
            let fits: Vec<(VolumeHeader, Fit)> = parts.values().map(|part| (*part, fit(part))).collect();
            let Some(joining) = to_commit(&fits, round) else { continue };
            let batch = match self.batch(id, attempt, &joining, catalog, gateway, terms).await {
                Ok(batch) => batch,
                Err(error) if self.pool.silent_node().await.is_some() => return Err(error),
                // It could be read before: it is told, and is as one that is not there.
                Err(error) => {
                    report.unreadable_segments.push(error.full_message());
                    continue;
                }
            };
            match catalog.commit_batch(&batch).await {
                Ok(_) => {}
                // An attempt that was refused then too, or what is not new.
                Err(CatalogError::UnknownContainer { .. } | CatalogError::AlreadyExists { .. }) => {
                    self.refused.insert(id);
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            self.refused.remove(&id);
            self.progress.batch();
            report.batches += u64::from(!joining.is_empty());
            let used: BTreeSet<SegmentId> =
                batch.segments.iter().map(|segment| segment.receipt.segment()).collect();
            for told in attempt.segments.values() {
                if !used.contains(&told.id) {
                    report.returned_segments += 1;
                    continue;
                }
                report.unused_segments -= 1;
                report.unused_bytes = report.unused_bytes.saturating_sub(told.length_bytes);
            }
            for (part, fit) in &fits {
                // As it was before the commit: that makes what joined look as if it were in the checkpoint.
                self.ends.tell(part, *fit, &mut self.strangers, report);
            }
            for part in &batch.volumes {
                self.order.joined.insert((id, part.volume));
                *report.batches_of.entry(part.volume).or_default() += 1;
                self.moved_on(catalog, gateway, part).await?;
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// The batch as it was committed, as far as it joins and the catalog does not have it.
    async fn batch(
        &self,
        id: BatchId,
        attempt: &Attempt,
        joining: &[VolumeHeader],
        catalog: &SqliteCatalog,
        gateway: GatewayId,
        terms: &BTreeMap<VolumeId, Generation>,
    ) -> Result<BatchCommit, GatewayError> {
        let (mut segments, mut containers) = (Vec::new(), Vec::new());
        let mut deltas: BTreeMap<VolumeId, MapDelta> = BTreeMap::new();
        for told in attempt.segments.values() {
            let footer = read_footer(self.pool, self.domains, told.id, &told.place).await?;
            let ids: Vec<ContainerId> = footer.containers.iter().map(|container| container.id).collect();
            let known: BTreeSet<ContainerId> =
                catalog.containers(&ids).await?.into_iter().map(|location| location.id).collect();
            if ids.is_empty() || known.len() < ids.len() {
                segments.push(SegmentRow { receipt: self.pool.attest_found(told.id, told.place.clone()) });
            }
            let fresh = footer.containers.iter().filter(|container| !known.contains(&container.id));
            containers.extend(fresh.map(|container| ContainerRow {
                id: container.id,
                segment: footer.segment,
                offset: container.offset,
                length: container.directory.stored_bytes(),
                raw_bytes: container.directory.raw_bytes(),
                domain: container.domain,
                directory: container.directory.encode(),
            }));
            for volume in footer.volumes {
                deltas.entry(volume.header.volume).or_default().ops.extend(volume.delta.ops);
            }
        }
        let volumes = joining.iter().map(|part| {
            let mut delta = deltas.remove(&part.volume).unwrap_or_default();
            delta.ops.sort_by_key(|op| op.range.start());
            VolumeCommit {
                volume: part.volume,
                lineage: part.lineage,
                generation: terms[&part.volume],
                base: part.base,
                through: part.through,
                delta,
                // Footers do not tell what packing did.
                reduction: Reduction::default(),
                snapshots: Vec::new(),
            }
        });
        Ok(BatchCommit { batch: id, gateway, segments, volumes: volumes.collect(), containers })
    }

    /// A part is committed. A volume that it goes beyond was made larger after the checkpoint.
    async fn moved_on(
        &mut self,
        catalog: &SqliteCatalog,
        gateway: GatewayId,
        part: &VolumeCommit,
    ) -> Result<(), GatewayError> {
        let volume = self.ends.volumes.get_mut(&part.volume).expect("it was continued");
        volume.through = part.through;
        let end =
            part.delta.ops.iter().map(|op| op.range.end().get()).max().unwrap_or(0) * u64::from(BLOCK_SIZE);
        if end > volume.size_bytes {
            volume.size_bytes = end;
            let held = HeldLease { volume: part.volume, generation: part.generation };
            catalog.resize_volume(gateway, held, end).await?;
        }
        Ok(())
    }

    /// What is left that looks as if it belonged to a volume.
    fn tell_left(&mut self, report: &mut RecoveryReport) {
        for (id, attempts) in std::mem::take(&mut self.batches) {
            let complete = attempts.values().filter(|attempt| attempt.is_complete());
            let parts: Vec<VolumeHeader> =
                complete.flat_map(|attempt| attempt.parts().into_values()).collect();
            self.strangers.extend(
                parts.iter().map(|part| part.volume).filter(|id| !self.ends.volumes.contains_key(id)),
            );
            let Some(last) = attempts.values().next_back() else { continue };
            for part in last.parts().values() {
                let fit = match self.ends.fit(part) {
                    // Of what is not complete nobody knows whether it ever was.
                    Fit::Stranger => continue,
                    Fit::Continues if self.refused.contains(&id) => Fit::Refused,
                    // It does, and is not complete.
                    Fit::Continues => Fit::Later,
                    fit => fit,
                };
                self.ends.tell(part, fit, &mut self.strangers, report);
            }
        }
        if !self.strangers.is_empty() {
            let count = self.strangers.len();
            report.warnings.push(format!(
                "the pool has writes of {count} volumes that the checkpoint does not know: they were made after it, or deleted before"
            ));
        }
    }
}

#[cfg(test)]
mod tests;
