//! Committing a batch, and where its containers are.

use super::leases::check_held;
use super::{Result, Tables, countable};
use crate::{
    BatchCommit, CatalogError, CommitReceipt, ContainerLocation, ContainerRow, MapPoint, VolumeCommit,
    VolumeOutcome, VolumeReceipt,
};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{
    BatchId, ChunkRef, ChunkSet, CommitSeq, ContainerId, DomainId, GatewayId, MapTarget, ObjectPlace,
    SegmentId, SnapshotId, VolumeId, WriteSeq,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Batches remembered per gateway.
const BATCHES_REMEMBERED: u64 = 64;

/// A batch that was committed.
pub(super) struct Receipt {
    gateway: GatewayId,
    /// Position in the order of the gateway's batches, from 1.
    number: u64,
    answer: CommitReceipt,
}

/// Where the parts of a batch that were looked at leave their volumes.
type Progress = BTreeMap<VolumeId, (WriteSeq, CommitSeq)>;

/// Segments whose containers are of domains that were deleted meanwhile.
fn of_deleted_domains(batch: &BatchCommit, recorded: &[ContainerRow]) -> Vec<SegmentId> {
    let left_out = |id| recorded.iter().all(|row| row.id != id);
    batch.containers.iter().filter(|row| left_out(row.id)).map(|row| row.segment).collect()
}

impl Tables {
    pub(super) fn commit_batch(&mut self, batch: &BatchCommit) -> Result<CommitReceipt> {
        for part in &batch.volumes {
            if part.through < part.base {
                return Err(CatalogError::Invalid(format!(
                    "a batch of volume {} through {} that begins at {}",
                    part.volume, part.through, part.base
                )));
            }
            part.delta.check().map_err(|error| CatalogError::of_blob("map delta", error))?;
            let done = &part.reduction;
            for bytes in
                [done.written_bytes, done.zero_bytes, done.shared_bytes, done.unique_bytes, done.stored_bytes]
            {
                countable(bytes)?;
            }
        }
        if let Some(known) = self.receipts.get(&batch.batch) {
            return if known.gateway == batch.gateway {
                Ok(known.answer.clone())
            } else {
                Err(CatalogError::Invalid(format!("batch {} is another gateway's", batch.batch)))
            };
        }
        let mut progress = Progress::new();
        let mut volumes = Vec::with_capacity(batch.volumes.len());
        for part in &batch.volumes {
            let outcome = self.advance(batch.gateway, part, &mut progress)?;
            volumes.push(VolumeReceipt { volume: part.volume, outcome });
        }
        let receipt = CommitReceipt { batch: batch.batch, volumes };
        self.check_objects(batch)?;
        self.check_pointers(batch, &receipt)?;
        self.check_snapshots(batch, &receipt)?;
        self.gateway(batch.gateway)?;
        self.apply(batch, &receipt, progress);
        Ok(receipt)
    }

    /// Looks at one part; notes in `progress` where it would bring the volume.
    fn advance(
        &self,
        gateway: GatewayId,
        part: &VolumeCommit,
        progress: &mut Progress,
    ) -> Result<VolumeOutcome> {
        // None: deleted and purged. Its lease was acquired once, so it did exist.
        let Some(volume) = self.volumes.get(&part.volume).filter(|volume| !volume.deleted) else {
            return Ok(VolumeOutcome::Deleted);
        };
        if !is_planted(Bug::CommitWithoutLease) {
            check_held(volume.lease.as_ref(), part.volume, gateway, part.generation)?;
        }
        if volume.row.lineage != part.lineage {
            let (lineage, volume) = (part.lineage, part.volume);
            return Err(CatalogError::Invalid(format!("lineage {lineage} is not that of {volume}")));
        }
        let stored = (volume.destaged_through, self.lineages[&part.lineage].last_commit);
        let (committed, last) = progress.get(&part.volume).copied().unwrap_or(stored);
        if committed != part.base {
            return Err(CatalogError::NotNext { volume: part.volume, base: part.base, committed });
        }
        countable(part.through.get())?;
        progress.insert(part.volume, (part.through, last.next()));
        Ok(VolumeOutcome::Committed(last.next()))
    }

    /// Fails when a shard is on a node that nobody knows.
    pub(super) fn check_nodes(&self, place: &ObjectPlace) -> Result<()> {
        place.placement.present().try_for_each(|(_, shard)| self.node(shard.node).map(drop))
    }

    /// Segments and containers are new and stand on something.
    fn check_objects(&self, batch: &BatchCommit) -> Result<()> {
        let mut fresh: BTreeSet<SegmentId> = BTreeSet::new();
        for segment in &batch.segments {
            let id = segment.receipt.segment();
            if self.segments.contains_key(&id) || !fresh.insert(id) {
                return Err(CatalogError::AlreadyExists { what: "segment", id: id.to_string() });
            }
            self.check_nodes(segment.receipt.place())?;
            countable(segment.receipt.length_bytes())?;
        }
        let mut seen: BTreeSet<ContainerId> = BTreeSet::new();
        for container in self.recorded(batch) {
            if self.containers.contains_key(&container.id) || !seen.insert(container.id) {
                return Err(CatalogError::AlreadyExists { what: "container", id: container.id.to_string() });
            }
            if !self.segments.contains_key(&container.segment) && !fresh.contains(&container.segment) {
                return Err(CatalogError::not_found("segment", &container.segment));
            }
            countable(container.offset)?;
            countable(container.raw_bytes)?;
        }
        Ok(())
    }

    /// The containers of the batch that are of a domain that is there.
    fn recorded<'a>(&'a self, batch: &'a BatchCommit) -> impl Iterator<Item = &'a ContainerRow> {
        batch.containers.iter().filter(|container| self.domains.contains(container.domain))
    }

    /// Fails when a committed delta points at a container that is neither new in the batch nor known, at a chunk that was left out of one, or at one of another domain.
    fn check_pointers(&self, batch: &BatchCommit, receipt: &CommitReceipt) -> Result<()> {
        if is_planted(Bug::ShareUnchecked) {
            return Ok(());
        }
        let fresh: BTreeSet<(DomainId, ContainerId)> =
            self.recorded(batch).map(|container| (container.domain, container.id)).collect();
        let parts = batch.volumes.iter().zip(&receipt.volumes);
        for (part, _) in parts.filter(|(_, receipt)| receipt.outcome != VolumeOutcome::Deleted) {
            let domain = self.volumes[&part.volume].row.domain;
            for op in &part.delta.ops {
                let MapTarget::Chunk(ChunkRef { chunk, .. }) = op.target else { continue };
                let container = chunk.container;
                let is_there = |present: &ChunkSet| {
                    present.contains(chunk.index) || is_planted(Bug::ShareWhatWasLeftOut)
                };
                let known = self.containers.get(&container).is_some_and(|known| known.domain == domain)
                    && !self.closed.contains_key(&container)
                    && self.thinned.get(&container).is_none_or(is_there);
                if !known && !fresh.contains(&(domain, container)) {
                    return Err(CatalogError::UnknownContainer { volume: part.volume, container });
                }
            }
        }
        Ok(())
    }

    /// The snapshots of the parts that are committed are new.
    fn check_snapshots(&self, batch: &BatchCommit, receipt: &CommitReceipt) -> Result<()> {
        let mut seen: BTreeSet<SnapshotId> = BTreeSet::new();
        let parts = batch.volumes.iter().zip(&receipt.volumes);
        let committed = parts.filter(|(_, receipt)| receipt.outcome != VolumeOutcome::Deleted);
        for snapshot in committed.flat_map(|(part, _)| &part.snapshots) {
            self.check_snapshot(snapshot)?;
            if !seen.insert(snapshot.id) {
                return Err(CatalogError::AlreadyExists { what: "snapshot", id: snapshot.id.to_string() });
            }
        }
        Ok(())
    }

    /// What cannot fail any more.
    fn apply(&mut self, batch: &BatchCommit, receipt: &CommitReceipt, progress: Progress) {
        for segment in &batch.segments {
            self.segments.insert(segment.receipt.segment(), segment.receipt.place().clone());
            self.totals.segments += 1;
            self.totals.segment_bytes += segment.receipt.length_bytes();
        }
        let recorded: Vec<ContainerRow> = self.recorded(batch).cloned().collect();
        let of_gone: Vec<SegmentId> = of_deleted_domains(batch, &recorded);
        for container in recorded {
            self.totals.containers += 1;
            self.totals.container_bytes += u64::from(container.length);
            self.totals.container_raw_bytes += container.raw_bytes;
            self.containers.insert(container.id, container);
        }
        for segment in of_gone {
            self.doom_if_empty(segment);
        }
        for (part, receipt) in batch.volumes.iter().zip(&receipt.volumes) {
            if let VolumeOutcome::Committed(commit) = receipt.outcome {
                let lineage = self.lineages.get_mut(&part.lineage).expect("looked at before");
                lineage.deltas.insert(commit, part.delta.clone());
                lineage.last_commit = commit;
                let volume = self.volumes.get_mut(&part.volume).expect("looked at before");
                volume.usage.reduction += part.reduction;
                let at = MapPoint { lineage: part.lineage, commit };
                self.take_snapshots(part.volume, at, &part.snapshots);
            }
        }
        for (volume, (through, _)) in progress {
            self.volumes.get_mut(&volume).expect("looked at before").destaged_through = through;
        }
        self.remember(batch.batch, batch.gateway, receipt.clone());
    }

    /// Keeps the receipt, forgets the gateway's oldest.
    fn remember(&mut self, batch: BatchId, gateway: GatewayId, receipt: CommitReceipt) {
        let batches = &mut self.gateways.get_mut(&gateway).expect("looked at before").batches;
        *batches += 1;
        let number = *batches;
        self.receipts.insert(batch, Receipt { gateway, number, answer: receipt });
        self.receipts
            .retain(|_, known| known.gateway != gateway || known.number + BATCHES_REMEMBERED > number);
    }

    pub(super) fn locate(&self, ids: &[ContainerId]) -> Vec<ContainerLocation> {
        let wanted: BTreeSet<_> = ids.iter().collect();
        let known = wanted.into_iter().filter_map(|id| self.containers.get(id));
        known.map(|container| self.location(container)).collect()
    }

    pub(super) fn containers_before(
        &self,
        before: Option<ContainerId>,
        limit: u32,
    ) -> Vec<ContainerLocation> {
        let to = before.map_or(Bound::Unbounded, Bound::Excluded);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let page = self.containers.range((Bound::Unbounded, to)).rev().take(limit);
        page.map(|(_, container)| self.location(container)).collect()
    }

    fn location(&self, container: &ContainerRow) -> ContainerLocation {
        ContainerLocation {
            id: container.id,
            segment: container.segment,
            place: self.segments[&container.segment].clone(),
            offset: container.offset,
            length: container.length,
            raw_bytes: container.raw_bytes,
            domain: container.domain,
            directory: container.directory.clone(),
        }
    }
}
