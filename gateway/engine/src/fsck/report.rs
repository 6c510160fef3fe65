//! What a check tells. Field names and the names of kinds are stable: they are the admin API's.

use serde::Serialize;
use std::collections::BTreeMap;

/// Things of one kind that are told one by one where there may be many.
const OF_KIND_MAX: usize = 20;
/// Problems that are told one by one.
const PROBLEMS_MAX: usize = 10_000;
/// Ranges that are told one by one.
const LOST_MAX: usize = 10_000;

/// What a check is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FsckPhase {
    /// The catalog's file and sums.
    #[default]
    Catalog,
    /// What nodes have.
    Objects,
    /// What the catalog has of segments.
    Segments,
    Maps,
    /// The newest checkpoint.
    Record,
    /// What was found is looked at again.
    Confirming,
}

/// How far a check is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct FsckProgress {
    pub phase: FsckPhase,
    /// Of the phase: folders of objects, segments, rows of maps.
    pub done: u64,
    /// Of so many; 0: nobody knows.
    pub total: u64,
    pub problems: u64,
}

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The database says that its file is damaged, or a row refers to one that is not there.
    CatalogFile,
    /// A sum is not what the rows add up to.
    Sum,
    /// An object that nothing names.
    Orphan,
    /// An object among the segments that is not of this site, or does not say whose it is.
    ForeignObject,
    /// A shard is not where the catalog says.
    MissingShard,
    /// Something else is where a shard should be.
    WrongShard,
    /// An object that a segment names is to be deleted.
    Doomed,
    /// The catalog's rows of a segment make no sense.
    Segment,
    /// The catalog's row of a container makes no sense.
    Container,
    /// A segment's footer cannot be read, or says something else than the catalog.
    Footer,
    /// A map points at what is not there, or cannot be read.
    Map,
    /// The newest checkpoint of the catalog in the pool is not whole.
    Record,
}

/// What `--repair` does about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// The object is deleted.
    Delete,
    /// The shard is given up, and healing makes it anew.
    Heal,
    /// The sum is set to what was counted.
    Recount,
    /// A checkpoint is taken.
    Checkpoint,
    /// The object, which a segment names, is not to be deleted any more.
    Keep,
}

/// How much a repair would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct PlanCounts {
    /// Names the plan, for a repair.
    pub id: u64,
    /// Objects that are deleted, and their bytes.
    pub delete: u64,
    pub delete_bytes: u64,
    /// Shards that are read, and made anew.
    pub heal: u64,
    /// Sums that are set.
    pub recount: u64,
    /// Checkpoints that are taken: one, or none.
    pub checkpoint: u64,
    /// Objects that are not to be deleted any more.
    pub keep: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    pub kind: ProblemKind,
    /// What it is about: an object, a segment, a container, a map, a sum.
    pub subject: String,
    pub text: String,
    /// `None`: it cannot be mended.
    pub remedy: Option<Remedy>,
}

/// Bytes of a volume or snapshot that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LostRange {
    pub volume: String,
    /// `None`: the volume as it is now.
    pub snapshot: Option<String>,
    pub offset: u64,
    pub length: u64,
    pub reason: String,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct FsckReport {
    pub objects: u64,
    pub object_bytes: u64,
    pub segments: u64,
    pub shards: u64,
    pub containers: u64,
    /// Leaves and deltas.
    pub map_rows: u64,
    /// The first of them; `problem_count` are all.
    pub problems: Vec<Problem>,
    pub problem_count: u64,
    /// The first of them, by volume; `lost_count` are all.
    pub lost: Vec<LostRange>,
    pub lost_count: u64,
    pub lost_bytes: u64,
    /// What could not be checked, and why: the first of each kind, and how many more there are. `unchecked_count` are all.
    pub unchecked: Vec<String>,
    pub unchecked_count: u64,
    /// Objects that nothing names and nothing will, and their bytes.
    pub orphans: u64,
    pub orphan_bytes: u64,
    /// Problems that a repair would deal with.
    pub repairable: u64,
    /// What a repair would do. `None`: nothing.
    pub plan: Option<PlanCounts>,
}

impl FsckReport {
    /// Whether everything was checked and is right.
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0 && self.lost_count == 0 && self.unchecked_count == 0
    }
}

/// Things of a few kinds, of which there may be many: all are counted, and the first of each kind told.
#[derive(Debug, Default)]
pub(super) struct Many {
    kinds: BTreeMap<&'static str, (u64, Vec<String>)>,
}

impl Many {
    /// `kind` says in the plural what it is.
    pub(super) fn add(&mut self, kind: &'static str, what: String) {
        let (count, told) = self.kinds.entry(kind).or_default();
        *count += 1;
        if told.len() < OF_KIND_MAX {
            told.push(what);
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.kinds.values().map(|(count, _)| count).sum()
    }

    pub(super) fn into_lines(self) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, (count, told)) in self.kinds {
            let more = count - told.len() as u64;
            lines.extend(told);
            if more > 0 {
                lines.push(format!("and {more} more {kind}"));
            }
        }
        lines
    }
}

/// A report in the making.
#[derive(Debug, Default)]
pub(super) struct Findings {
    report: FsckReport,
    plan: PlanCounts,
    unchecked: Many,
}

impl Findings {
    pub(super) fn problem(
        &mut self,
        kind: ProblemKind,
        subject: String,
        text: String,
        remedy: Option<Remedy>,
    ) {
        self.report.problem_count += 1;
        self.report.repairable += u64::from(remedy.is_some());
        match remedy {
            Some(Remedy::Delete) => self.plan.delete += 1,
            Some(Remedy::Heal) => self.plan.heal += 1,
            Some(Remedy::Recount) => self.plan.recount += 1,
            Some(Remedy::Checkpoint) => self.plan.checkpoint += 1,
            Some(Remedy::Keep) => self.plan.keep += 1,
            None => {}
        }
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(Problem { kind, subject, text, remedy });
        }
    }

    /// An object that nothing names and nothing will.
    pub(super) fn orphan(&mut self, subject: String, length_bytes: u64) {
        self.report.orphans += 1;
        self.report.orphan_bytes += length_bytes;
        self.plan.delete_bytes += length_bytes;
        let text = format!("nothing names it, and nothing will: {length_bytes} bytes");
        self.problem(ProblemKind::Orphan, subject, text, Some(Remedy::Delete));
    }

    pub(super) fn lost(&mut self, range: LostRange) {
        self.report.lost_count += 1;
        self.report.lost_bytes += range.length;
        if self.report.lost.len() < LOST_MAX {
            self.report.lost.push(range);
        }
    }

    /// `kind` says in the plural what it is.
    pub(super) fn unchecked(&mut self, kind: &'static str, what: String) {
        self.unchecked.add(kind, what);
    }

    pub(super) const fn counts(&mut self) -> &mut FsckReport {
        &mut self.report
    }

    pub(super) const fn count(&self) -> u64 {
        self.report.problem_count
    }

    /// `plan`: that there is one, and what it is called.
    pub(super) fn into_report(self, plan: Option<u64>) -> FsckReport {
        let Self { mut report, plan: counts, unchecked } = self;
        report.plan = plan.map(|id| PlanCounts { id, ..counts });
        report.unchecked_count = unchecked.count();
        report.unchecked = unchecked.into_lines();
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_things_the_first_of_each_kind_are_told_and_all_are_counted() {
        let mut findings = Findings::default();
        for number in 0..100_000 {
            findings.unchecked("segments", format!("segment {number}"));
        }
        findings.unchecked("data nodes", "node n1".to_owned());
        let report = findings.into_report(None);
        assert_eq!((report.unchecked_count, report.unchecked.len()), (100_001, 22));
        assert_eq!(report.unchecked[0], "node n1");
        assert_eq!(report.unchecked[21], "and 99980 more segments");
    }

    #[test]
    fn a_plan_counts_also_what_is_not_told() {
        let mut findings = Findings::default();
        for number in 0..PROBLEMS_MAX + 5 {
            findings.orphan(format!("object {number}"), 10);
        }
        findings.problem(ProblemKind::Orphan, "object".to_owned(), "it is left alone".to_owned(), None);
        let report = findings.into_report(Some(7));
        let plan = report.plan.unwrap();
        assert_eq!((plan.id, plan.delete, plan.delete_bytes), (7, 10_005, 100_050));
        assert_eq!((report.problems.len(), report.problem_count, report.orphans), (10_000, 10_006, 10_005));
    }
}
