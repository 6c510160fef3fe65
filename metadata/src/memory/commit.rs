//! Committing a batch, and where its containers are.

use super::leases::check_held;
use super::{Result, Tables, countable};
use crate::{
    BatchCommit, CatalogError, CommitReceipt, ContainerLocation, VolumeCommit, VolumeOutcome, VolumeReceipt,
};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{
    BatchId, ChunkRef, CommitSeq, ContainerId, GatewayId, MapTarget, NodeId, SegmentId, VolumeId, WriteSeq,
};
use std::collections::{BTreeMap, BTreeSet};

/// Batches remembered per gateway.
const BATCHES_REMEMBERED: u64 = 64;

pub(super) struct Segment {
    pub(super) node: NodeId,
    key: String,
}

/// A batch that was committed.
pub(super) struct Receipt {
    gateway: GatewayId,
    /// Position in the order of the gateway's batches, from 1.
    number: u64,
    answer: CommitReceipt,
}

/// Where the parts of a batch that were looked at leave their volumes.
type Progress = BTreeMap<VolumeId, (WriteSeq, CommitSeq)>;

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

    /// Segments and containers are new and stand on something.
    fn check_objects(&self, batch: &BatchCommit) -> Result<()> {
        let mut fresh: BTreeSet<SegmentId> = BTreeSet::new();
        for segment in &batch.segments {
            let (id, node) = (segment.receipt.segment(), segment.receipt.node());
            if self.segments.contains_key(&id) || !fresh.insert(id) {
                return Err(CatalogError::AlreadyExists { what: "segment", id: id.to_string() });
            }
            self.node(node)?;
            countable(segment.receipt.length_bytes())?;
        }
        let mut seen: BTreeSet<ContainerId> = BTreeSet::new();
        for container in &batch.containers {
            if self.containers.contains_key(&container.id) || !seen.insert(container.id) {
                return Err(CatalogError::AlreadyExists { what: "container", id: container.id.to_string() });
            }
            if !self.segments.contains_key(&container.segment) && !fresh.contains(&container.segment) {
                return Err(CatalogError::not_found("segment", &container.segment));
            }
            countable(container.offset)?;
        }
        Ok(())
    }

    /// Fails when a committed delta points at a container that is neither new in the batch nor known.
    fn check_pointers(&self, batch: &BatchCommit, receipt: &CommitReceipt) -> Result<()> {
        let fresh: BTreeSet<ContainerId> = batch.containers.iter().map(|container| container.id).collect();
        let parts = batch.volumes.iter().zip(&receipt.volumes);
        for (part, _) in parts.filter(|(_, receipt)| receipt.outcome != VolumeOutcome::Deleted) {
            for op in &part.delta.ops {
                let MapTarget::Chunk(ChunkRef { chunk, .. }) = op.target else { continue };
                let container = chunk.container;
                if !fresh.contains(&container) && !self.containers.contains_key(&container) {
                    return Err(CatalogError::UnknownContainer { volume: part.volume, container });
                }
            }
        }
        Ok(())
    }

    /// What cannot fail any more.
    fn apply(&mut self, batch: &BatchCommit, receipt: &CommitReceipt, progress: Progress) {
        for segment in &batch.segments {
            let (node, key) = (segment.receipt.node(), segment.receipt.key().to_owned());
            self.segments.insert(segment.receipt.segment(), Segment { node, key });
            self.totals.segments += 1;
            self.totals.segment_bytes += segment.receipt.length_bytes();
        }
        for container in &batch.containers {
            self.containers.insert(container.id, container.clone());
            self.totals.containers += 1;
        }
        for (part, receipt) in batch.volumes.iter().zip(&receipt.volumes) {
            if let VolumeOutcome::Committed(commit) = receipt.outcome {
                let lineage = self.lineages.get_mut(&part.lineage).expect("looked at before");
                lineage.deltas.insert(commit, part.delta.clone());
                lineage.last_commit = commit;
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
        let location = |container: &crate::ContainerRow| {
            let segment = &self.segments[&container.segment];
            ContainerLocation {
                id: container.id,
                segment: container.segment,
                node: segment.node,
                key: segment.key.clone(),
                offset: container.offset,
                length: container.length,
                directory: container.directory.clone(),
            }
        };
        known.map(location).collect()
    }
}
