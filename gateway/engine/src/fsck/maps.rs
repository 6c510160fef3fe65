//! What maps point at.
//!
//! A page of rows and the containers that they point at are of one state of the catalog: what a row points at is there then, or the map is damaged. Containers that were seen are remembered for
//! the next pages; what a container holds only gets less, and nothing that points at it is left then, so that at worst less is noticed, and nothing is that is not so.

use super::{Checker, FsckPhase, PAGE_BYTES, PLANNED_MAX, ProblemKind, Remedy};
use crate::error::EngineError;
use cairn_metadata::{CheckedContainer, MapKind, MapRow};
use cairn_model::{BLOCK_SIZE, ChunkId, ContainerId, DomainId, LineageId, MapTarget};
use cairn_segment_writer::ContainerDirectory;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Containers that are remembered, of a byte for each chunk.
const REMEMBERED_MAX: usize = 8192;

/// Why what the catalog does not name stays when something is not in it that it should have, and when nobody knows.
const FORGOTTEN: &str = "it lacks something that may be in there";
const UNREADABLE: &str = "a map that cannot be read may point at it";

/// What a map may point at in a container.
struct Known {
    domain: DomainId,
    /// Blocks of each chunk, 0 for those that are left out. `None`: its directory cannot be read, which was told already.
    chunks: Option<Vec<u8>>,
}

impl Known {
    fn of(container: &CheckedContainer) -> Self {
        let directory = ContainerDirectory::decode(&container.directory).ok();
        let chunks = directory.map(|directory| directory.chunk_blocks().collect());
        Self { domain: container.domain, chunks }
    }
}

impl Checker<'_> {
    pub(super) async fn maps(&mut self) -> Result<(), EngineError> {
        for missing in self.source.missing_changes().await? {
            let text = format!(
                "{} changes of volume {} are neither in its leaves nor beside them: where they were it shows what was there before",
                missing.count, missing.volume
            );
            self.findings.problem(ProblemKind::Map, format!("map {}", missing.lineage), text, None);
            self.forgets.get_or_insert(FORGOTTEN);
        }
        let mut known: HashMap<ContainerId, Known> = HashMap::new();
        for kind in [MapKind::Leaves, MapKind::Deltas] {
            let through = self.source.last_map_row(kind).await?;
            self.begin(FsckPhase::Maps, u64::try_from(through).unwrap_or(0));
            // Lineages that are made later have rows that are behind.
            let domains = self.source.lineage_domains().await?;
            let mut after = 0;
            loop {
                if known.len() > REMEMBERED_MAX {
                    known.clear();
                }
                let is_known = |id: ContainerId| known.contains_key(&id);
                let mut fresh = Vec::new();
                let mut take = |some: Vec<CheckedContainer>| {
                    fresh.extend(some.iter().map(|container| (container.id, Known::of(container))));
                };
                let page = self.source.map_rows(kind, after, through, &is_known, &mut take).await?;
                let Some(last) = page.last else { break };
                known.extend(fresh);
                for row in &page.rows {
                    self.map_row(row, &known, &domains);
                }
                self.findings.counts().map_rows += page.rows.len() as u64;
                self.advance(u64::try_from(last - after).unwrap_or(0));
                after = last;
                self.rest(PAGE_BYTES).await?;
            }
        }
        Ok(())
    }

    fn map_row(
        &mut self,
        row: &MapRow,
        known: &HashMap<ContainerId, Known>,
        domains: &BTreeMap<LineageId, DomainId>,
    ) {
        let ops = match &row.content {
            Ok(ops) => ops,
            Err(reason) => {
                let text = format!("it cannot be read: {reason}");
                self.findings.problem(ProblemKind::Map, name(row), text.clone(), None);
                self.forgets.get_or_insert(UNREADABLE);
                if let Some(leaf) = row.leaf {
                    self.lost.leaf(leaf, &text);
                } else {
                    self.lost.delta(row.lineage, row.commit, &text);
                }
                return;
            }
        };
        let mapped: u64 = ops.iter().map(|op| op.range.blocks()).sum();
        if let (Some(leaf), Some(blocks)) = (row.leaf, row.blocks.filter(|blocks| *blocks != mapped)) {
            let text = format!("the catalog says that it maps {blocks} blocks, and it is {mapped}");
            let is_planned = self.stays.is_none() && self.plan.sums.leaves.len() < PLANNED_MAX;
            self.findings.problem(ProblemKind::Sum, name(row), text, is_planned.then_some(Remedy::Recount));
            if is_planned {
                self.plan.sums.leaves.push((row.lineage, leaf, row.commit));
            }
            self.understated_bytes += mapped.saturating_sub(blocks) * u64::from(BLOCK_SIZE);
        }
        let own = domains.get(&row.lineage).copied();
        // Of each container and reason once.
        let mut told: HashSet<(ContainerId, &'static str)> = HashSet::new();
        for op in ops {
            let MapTarget::Chunk(target) = op.target else { continue };
            let ChunkId { container, index } = target.chunk;
            let last = usize::from(target.block) + usize::try_from(op.range.blocks()).unwrap_or(usize::MAX);
            let found = known.get(&container);
            let reason = match found {
                None => "which is not in the catalog",
                Some(known) if own.is_some_and(|own| own != known.domain) => "which is of another domain",
                Some(Known { chunks: None, .. }) => continue,
                Some(Known { chunks: Some(chunks), .. }) => {
                    match usize::try_from(index.get()).ok().and_then(|at| chunks.get(at)) {
                        None => "at a chunk that it has not",
                        Some(0) => "at a chunk that was left out of it",
                        Some(blocks) if last > usize::from(*blocks) => "beyond the end of a chunk",
                        Some(_) => continue,
                    }
                }
            };
            match found {
                None => drop(self.forgets.get_or_insert(FORGOTTEN)),
                // Another segment may have more of it.
                Some(_) => self.not_whole.are_many = true,
            }
            if reason == "which is of another domain" || reason == "which is not in the catalog" {
                self.lost.container(container, &format!("its map points at container {container}, {reason}"));
            } else {
                self.lost.chunk(target.chunk, &format!("its map points at container {container}, {reason}"));
            }
            if told.insert((container, reason)) {
                let at = op.range.start().get() * u64::from(BLOCK_SIZE);
                let text = format!("at byte {at} it points at container {container}, {reason}");
                self.findings.problem(ProblemKind::Map, name(row), text, None);
            }
        }
    }
}

fn name(row: &MapRow) -> String {
    let MapRow { lineage, commit, .. } = row;
    match row.leaf {
        Some(leaf) => format!("leaf {} of map {lineage} at commit {commit}", leaf.get()),
        None => format!("delta of map {lineage} at commit {commit}"),
    }
}
