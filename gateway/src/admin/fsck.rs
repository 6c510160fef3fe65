//! Checking the site, and mending it.

use super::service::Service;
use super::types::{AskRepair, CheckProgress, Checked, LostRange, Plan, Problem, Repaired};
use crate::error::GatewayError;
use cairn_engine::{FsckParts, FsckPhase, FsckReport, PlanCounts, ProblemKind, Remedy};
use cairn_model::ErrorKind;
use cairn_segment_writer::Domain;
use std::sync::Arc;

impl Service {
    /// Checks the site; the answer comes when that is done. Ends if nobody waits for it any more.
    pub async fn fsck(&self) -> Result<Checked, GatewayError> {
        let report = if let Some((engine, _)) = &self.engine {
            self.fsck.check(engine).await?
        } else {
            self.fsck.check_alone(&self.parts()?).await?
        };
        tracing::info!(
            problems = report.problem_count,
            lost_ranges = report.lost_count,
            unchecked = report.unchecked_count,
            "check on request"
        );
        Ok(checked(report))
    }

    /// What is looked at where no engine runs.
    fn parts(&self) -> Result<FsckParts, GatewayError> {
        let pool = self.looked_at.as_ref().ok_or_else(|| GatewayError::Refused {
            kind: ErrorKind::Unavailable,
            what: "this needs the pool, which is not open".to_owned(),
            next: None,
        })?;
        let domains = self.site.domains()?;
        let domains = domains.into_iter().map(|(row, key)| Domain::new(row.id, key, row.encryption));
        Ok(FsckParts {
            site: self.site.row.id,
            catalog: Arc::clone(&self.site.catalog),
            pool: Arc::clone(pool),
            domains: domains.collect(),
            ports: self.site.ports.clone(),
        })
    }

    /// How far the check under way is.
    pub fn fsck_progress(&self) -> Option<CheckProgress> {
        let progress = self.fsck.progress()?;
        Some(CheckProgress {
            phase: phase_name(progress.phase).to_owned(),
            done: progress.done,
            total: progress.total,
            problems: progress.problems,
        })
    }

    /// Carries out the plan of the last check.
    pub async fn repair(&self, asked: AskRepair) -> Result<Repaired, GatewayError> {
        let done = self.fsck.repair(self.engine()?, asked.plan).await?;
        tracing::info!(?done, "repair on request");
        Ok(Repaired {
            orphans: done.orphans,
            orphan_bytes: done.orphan_bytes,
            deleted: done.deleted,
            shards: done.shards,
            shards_right: done.shards_right,
            sums: done.sums,
            kept: done.kept,
            checkpoint: done.checkpoint,
            left: done.left,
            left_count: done.left_count,
        })
    }
}

fn checked(report: FsckReport) -> Checked {
    let problem = |problem: cairn_engine::Problem| Problem {
        kind: kind_name(problem.kind).to_owned(),
        subject: problem.subject,
        text: problem.text,
        remedy: problem.remedy.map(|remedy| remedy_name(remedy).to_owned()),
    };
    let lost = |range: cairn_engine::LostRange| LostRange {
        volume: range.volume,
        snapshot: range.snapshot,
        offset: range.offset,
        length: range.length,
        reason: range.reason,
    };
    Checked {
        objects: report.objects,
        object_bytes: report.object_bytes,
        segments: report.segments,
        shards: report.shards,
        containers: report.containers,
        map_rows: report.map_rows,
        problems: report.problems.into_iter().map(problem).collect(),
        problem_count: report.problem_count,
        lost: report.lost.into_iter().map(lost).collect(),
        lost_count: report.lost_count,
        lost_bytes: report.lost_bytes,
        unchecked: report.unchecked,
        unchecked_count: report.unchecked_count,
        orphans: report.orphans,
        orphan_bytes: report.orphan_bytes,
        repairable: report.repairable,
        plan: report.plan.map(plan),
        repaired: None,
    }
}

const fn plan(counts: PlanCounts) -> Plan {
    let PlanCounts { id, delete, delete_bytes, heal, recount, checkpoint, keep } = counts;
    Plan { id, delete, delete_bytes, heal, recount, checkpoint, keep }
}

const fn kind_name(kind: ProblemKind) -> &'static str {
    match kind {
        ProblemKind::CatalogFile => "catalog-file",
        ProblemKind::Sum => "sum",
        ProblemKind::Orphan => "orphan",
        ProblemKind::ForeignObject => "foreign-object",
        ProblemKind::MissingShard => "missing-shard",
        ProblemKind::WrongShard => "wrong-shard",
        ProblemKind::Doomed => "doomed",
        ProblemKind::Segment => "segment",
        ProblemKind::Container => "container",
        ProblemKind::Footer => "footer",
        ProblemKind::Map => "map",
        ProblemKind::Record => "record",
    }
}

const fn remedy_name(remedy: Remedy) -> &'static str {
    match remedy {
        Remedy::Delete => "delete",
        Remedy::Heal => "heal",
        Remedy::Recount => "recount",
        Remedy::Checkpoint => "checkpoint",
        Remedy::Keep => "keep",
    }
}

const fn phase_name(phase: FsckPhase) -> &'static str {
    match phase {
        FsckPhase::Catalog => "catalog",
        FsckPhase::Objects => "objects",
        FsckPhase::Segments => "segments",
        FsckPhase::Maps => "maps",
        FsckPhase::Record => "record",
        FsckPhase::Confirming => "confirming",
    }
}
