//! What healing does, and reading everything.

use super::service::Service;
use super::types::{Heal, HealWork, Healed, Scrub, Scrubbed};
use crate::error::GatewayError;
use cairn_engine::{EngineStatus, HealKind, HealStatus, ScrubReport};

/// What an entry is about, and what to do next.
type Entry = (String, String);

impl Service {
    /// Reads and verifies everything in the pool; the answer comes when that is done.
    pub async fn scrub(&self) -> Result<Scrubbed, GatewayError> {
        let found = scrubbed(self.engine()?.scrub().await?);
        tracing::info!(?found, "scrub on request");
        Ok(found)
    }
}

pub(super) fn heal(status: &HealStatus) -> Heal {
    let scrub = &status.scrub;
    Heal {
        work: status.work.as_ref().map(|work| HealWork {
            kind: kind_name(work.kind).to_owned(),
            since_ms: work.since_ms,
            segments_done: work.segments_done,
            segments_total: work.segments_total,
            bytes: work.bytes,
            eta_seconds: work.eta_seconds,
        }),
        total: Healed {
            segments: status.total.segments,
            shards: status.total.shards,
            bytes: status.total.bytes,
            lost: status.total.lost,
        },
        waiting_segments: status.waiting_segments,
        waits_for: status.waits_for.clone(),
        silent_nodes: status.silent_nodes.clone(),
        settled_at_ms: status.settled_at_ms,
        problem: status.problem.clone(),
        scrub: Scrub {
            segments_done: scrub.segments_done,
            segments_total: scrub.segments_total,
            eta_seconds: scrub.eta_seconds,
            passes: scrub.passes,
            last_at_ms: scrub.last_at_ms,
            total: scrubbed(scrub.total),
            problem: scrub.problem.clone(),
        },
    }
}

const fn scrubbed(report: ScrubReport) -> Scrubbed {
    Scrubbed {
        segments: report.segments,
        shards: report.shards,
        bytes: report.bytes,
        missing: report.missing,
        damaged: report.damaged,
        beyond_repair: report.beyond_repair,
        unread: report.unread,
    }
}

const fn kind_name(kind: HealKind) -> &'static str {
    match kind {
        HealKind::Check => "check",
        HealKind::Rescue => "rescue",
        HealKind::Repair => "repair",
        HealKind::Drain => "drain",
        HealKind::Conversion => "conversion",
        HealKind::Rebalance => "rebalance",
    }
}

/// What of it needs attention, as errors and as warnings.
pub(super) fn attention(engine: &EngineStatus, errors: &mut Vec<Entry>, warnings: &mut Vec<Entry>) {
    let heal = &engine.heal;
    let lost = heal.scrub.total.beyond_repair;
    if lost > 0 {
        errors.push((
            format!("scrub found {lost} shards missing or damaged without enough others to make them anew"),
            "bring missing nodes back; `cairn events` says which segments".to_owned(),
        ));
    }
    if heal.waiting_segments > 0 {
        let why = heal.waits_for.as_deref().unwrap_or("another node");
        warnings.push((
            format!("{} segments wait to be healed: {why}", heal.waiting_segments),
            "bring nodes back or add some with `cairn node add`".to_owned(),
        ));
    }
    for node in &heal.silent_nodes {
        warnings.push((
            format!("data node {node} has been silent for long, and the pool cannot be whole without it"),
            "bring it back, or add a node in its place with `cairn node add`".to_owned(),
        ));
    }
    for problem in heal.problem.iter().chain(&heal.scrub.problem) {
        warnings.push((format!("healing does not go on: {problem}"), "it is tried again".to_owned()));
    }
}
