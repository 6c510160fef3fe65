//! What a recovery found and what it did not.

use cairn_metadata::VolumeRow;
use cairn_model::{NodeId, SiteId, VolumeId};
use cairn_segment_writer::{Manifest, ObjectTally};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The checkpoint that a recovery began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckpointReport {
    pub id: String,
    pub taken_at_ms: u64,
    pub rows: u64,
}

impl CheckpointReport {
    pub(super) fn new(manifest: &Manifest, rows: u64) -> Self {
        Self { id: manifest.id.to_string(), taken_at_ms: manifest.taken_at.unix_millis(), rows }
    }
}

/// A volume as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeReport {
    pub name: String,
    pub size_bytes: u64,
    pub snapshots: u64,
    /// Batches added to what the checkpoint had.
    pub batches: u64,
    /// Why it may lack something that was in the pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecoveryReport {
    pub site: SiteId,
    pub directory: PathBuf,
    /// The nodes that were given.
    pub nodes: Vec<String>,
    /// Nodes of the site that were not, as the checkpoint has them. They are in the new catalog.
    pub nodes_not_given: Vec<String>,
    /// The new gateway's name.
    pub gateway: String,
    /// Which catalog of its site it is.
    pub incarnation: u64,
    pub checkpoint: Option<CheckpointReport>,
    /// Newer ones that could not be used, and why.
    pub unusable_checkpoints: Vec<String>,
    pub volumes: Vec<VolumeReport>,
    pub snapshots: u64,
    pub clones: u64,
    pub groups: Vec<String>,
    pub domains: Vec<String>,
    /// Segments in the pool.
    pub segments: u64,
    /// Batches that the checkpoint did not have.
    pub batches: u64,
    /// Segments that the catalog names and of which too few shards are left, whatever nodes come back.
    pub missing_segments: Vec<String>,
    /// Segments of which too few shards are on the nodes that were given: with those that were not they may be whole.
    pub unreachable_segments: Vec<String>,
    /// Segments of which shards are not where the catalog names them. They are read all the same, and repaired once they are found.
    pub degraded_segments: u64,
    /// Segments of which shards were found in other places than the checkpoint names, which are gone: they are named there now.
    pub mended_segments: u64,
    /// Segments that are not in the checkpoint and hold what one held that is, and is gone: reclaim had moved it.
    pub rehomed_segments: u64,
    /// Segments that are in the pool again although what they held was moved and they were deleted: an older copy of a node is in use, or a replica of its bucket. They are left.
    pub returned_segments: u64,
    /// Objects that should be segments and cannot be read.
    pub unreadable_segments: Vec<String>,
    /// Segments of no batch that could be added: of batches that were never complete or never committed, copies that reclaim made, and
    /// what `problem` of a volume tells.
    pub unused_segments: u64,
    pub unused_bytes: u64,
    /// Gateways of the site: what their logs held and the pool does not is lost.
    pub lost_logs: Vec<String>,
    pub warnings: Vec<String>,
    /// Whether nothing of what the site had is missing, as far as the pool shows.
    pub is_whole: bool,
    /// What each of the given nodes has of segments.
    #[serde(skip)]
    pub(super) tallies: BTreeMap<NodeId, ObjectTally>,
    #[serde(skip)]
    pub(super) batches_of: BTreeMap<VolumeId, u64>,
    #[serde(skip)]
    pub(super) problems_of: BTreeMap<VolumeId, String>,
}

impl RecoveryReport {
    pub(super) fn new(site: SiteId, directory: &Path, nodes: Vec<String>) -> Self {
        Self {
            site,
            directory: directory.to_owned(),
            nodes,
            nodes_not_given: Vec::new(),
            gateway: String::new(),
            incarnation: 0,
            checkpoint: None,
            unusable_checkpoints: Vec::new(),
            volumes: Vec::new(),
            snapshots: 0,
            clones: 0,
            groups: Vec::new(),
            domains: Vec::new(),
            segments: 0,
            batches: 0,
            missing_segments: Vec::new(),
            unreachable_segments: Vec::new(),
            degraded_segments: 0,
            mended_segments: 0,
            rehomed_segments: 0,
            returned_segments: 0,
            unreadable_segments: Vec::new(),
            unused_segments: 0,
            unused_bytes: 0,
            lost_logs: Vec::new(),
            warnings: Vec::new(),
            is_whole: false,
            tallies: BTreeMap::new(),
            batches_of: BTreeMap::new(),
            problems_of: BTreeMap::new(),
        }
    }

    pub(super) fn tell_volume(&mut self, volume: &VolumeRow, snapshots: u64) {
        self.volumes.push(VolumeReport {
            name: volume.name.to_string(),
            size_bytes: volume.size_bytes,
            snapshots,
            batches: self.batches_of.get(&volume.id).copied().unwrap_or(0),
            problem: self.problems_of.get(&volume.id).cloned(),
        });
    }

    /// What the catalog lacks of what the site had, in a few words each.
    pub(super) fn lacks(&self) -> Vec<String> {
        let counted = [
            (self.problems_of.len(), "volumes that are INCOMPLETE"),
            (self.missing_segments.len(), "segments that are MISSING"),
            (self.unreachable_segments.len(), "segments that are UNREACHABLE"),
            (self.unreadable_segments.len(), "segments that are UNREADABLE"),
            (self.unusable_checkpoints.len(), "newer checkpoints that cannot be used"),
        ];
        let counted = counted.into_iter().filter(|(count, _)| *count > 0);
        let told = counted.map(|(count, what)| format!("{count} {what}"));
        told.chain(self.warnings.iter().cloned()).collect()
    }
}
