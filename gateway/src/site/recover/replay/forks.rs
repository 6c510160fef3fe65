//! Batches of other catalogs than the checkpoint's: somebody started an older copy of it, or two at once.

use super::{Attempt, Ends, Fit, Replay};
use crate::site::recover::RecoveryReport;
use cairn_model::{BatchId, Generation, VolumeId, WriteSeq};
use cairn_segment_writer::VolumeHeader;
use std::collections::{BTreeMap, BTreeSet};

type Batches = BTreeMap<BatchId, BTreeMap<u32, Attempt>>;

fn parts(attempts: &BTreeMap<u32, Attempt>) -> impl Iterator<Item = VolumeHeader> {
    attempts.values().flat_map(|attempt| attempt.parts().into_values())
}

/// Batches that were put with an older copy of the catalog: one of their parts shows it, or they follow such a one. A process says which batch it cut before; the first of the next one goes on where the
/// last left a volume.
pub(super) fn of_older_copies(ends: &Ends, batches: &Batches) -> BTreeSet<BatchId> {
    let shows = |attempts| parts(attempts).any(|part| ends.is_of_older_copy(&part));
    let mut older: BTreeSet<BatchId> =
        batches.iter().filter(|(_, attempts)| shows(attempts)).map(|(id, _)| *id).collect();
    loop {
        let mut reached: BTreeMap<(VolumeId, WriteSeq), Generation> = BTreeMap::new();
        for part in older.iter().flat_map(|id| parts(&batches[id])) {
            let term = reached.entry((part.volume, part.through)).or_insert(part.generation);
            *term = part.generation.min(*term);
        }
        let goes_on = |part: &VolumeHeader| {
            let is_later = ends.volumes.get(&part.volume).is_some_and(|volume| part.generation > volume.term);
            is_later && reached.get(&(part.volume, part.base)).is_some_and(|term| *term <= part.generation)
        };
        let follows = |attempts: &BTreeMap<u32, Attempt>| {
            let previous = attempts.values().find_map(|attempt| attempt.previous);
            previous
                .map_or_else(|| parts(attempts).any(|part| goes_on(&part)), |before| older.contains(&before))
        };
        let more = batches.iter().filter(|(id, attempts)| !older.contains(id) && follows(attempts));
        let more: Vec<BatchId> = more.map(|(id, _)| *id).collect();
        if more.is_empty() {
            return older;
        }
        older.extend(more);
    }
}

/// Volumes of which two batches begin at one write in one term: no process cuts two, so two of them wrote.
pub(super) fn written_twice(ends: &Ends, batches: &Batches) -> BTreeMap<VolumeId, WriteSeq> {
    let mut begun: BTreeMap<(VolumeId, Generation, WriteSeq), BatchId> = BTreeMap::new();
    let mut twice = BTreeMap::new();
    for (id, attempts) in batches {
        let complete = attempts.values().filter(|attempt| attempt.is_complete());
        for part in complete.flat_map(|attempt| attempt.parts().into_values()) {
            let may_join = matches!(ends.fit(&part), Fit::Continues | Fit::Later) && part.through > part.base;
            let begins = (part.volume, part.generation, part.base);
            if may_join && begun.insert(begins, *id).is_some_and(|other| other != *id) {
                twice.entry(part.volume).or_insert(part.base);
            }
        }
    }
    twice
}

impl Replay<'_> {
    /// Leaves out what other catalogs put, tells it, and notes where the terms of the rest begin.
    pub(super) fn settle(&mut self, report: &mut RecoveryReport) {
        let older = of_older_copies(&self.ends, &self.batches);
        let mut written = BTreeSet::new();
        for attempts in older.iter().filter_map(|id| self.batches.remove(id)) {
            written.extend(parts(&attempts).map(|part| part.volume));
        }
        if !older.is_empty() {
            let names = written.iter().filter_map(|id| self.ends.volumes.get(id));
            let names: Vec<&str> = names.map(|volume| &*volume.name).collect();
            report.warnings.push(format!(
                "an older copy of the catalog was in use after the checkpoint: {} batches that were written with it ({}) are left out",
                older.len(),
                names.join(", ")
            ));
        }
        for (id, attempts) in &self.batches {
            for part in parts(attempts) {
                self.ends.note(&part);
                if self.ends.volumes.get(&part.volume).is_some_and(|volume| part.base >= volume.through) {
                    self.order.parts.insert((*id, part.volume));
                }
            }
        }
        for (volume, base) in written_twice(&self.ends, &self.batches) {
            let told = format!(
                "two gateways wrote it in one term, and what one of them wrote is not joined (from write {})",
                base.get()
            );
            report.problems_of.entry(volume).or_insert(told);
        }
    }
}
