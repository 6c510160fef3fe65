//! What the admin API does to take space back.

use super::Service;
use super::types::{AskReclaim, LastLook, Reclaim, Reclaimed, ReclaimedAmount};
use crate::error::GatewayError;
use cairn_engine::{Engine, PoolUse, ReclaimReport, ReclaimStatus};
use std::time::Duration;

/// How long a pass waits for what was acknowledged to reach the pool.
const DESTAGE_LIMIT: Duration = Duration::from_secs(30);

impl Service {
    pub async fn reclaim(&self, asked: AskReclaim) -> Result<Reclaimed, GatewayError> {
        let engine = self.engine()?;
        self.destage_first(engine).await;
        let amount = amount(engine.reclaim(asked.dry_run).await?);
        tracing::info!(
            dry_run = asked.dry_run,
            containers = amount.containers,
            objects = amount.objects,
            object_bytes = amount.object_bytes,
            "reclaim on request"
        );
        Ok(Reclaimed { dry_run: asked.dry_run, amount })
    }

    /// So that what was just overwritten or discarded counts. A pool that is full or does not answer is no reason against a pass: it may be what helps.
    async fn destage_first(&self, engine: &Engine) {
        if engine.status().destage.pool_full {
            return;
        }
        let clock = &*self.site.ports.clock;
        match cairn_model::timeout(clock, DESTAGE_LIMIT, engine.destage()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "reclaim without what is not in the pool yet"),
            Err(cairn_model::Elapsed) => tracing::warn!("reclaim without what is not in the pool yet"),
        }
    }
}

pub(super) fn reclaim(status: &ReclaimStatus) -> Reclaim {
    let last_look =
        status.last_look.map(|PoolUse { object_bytes, live_bytes }| LastLook { object_bytes, live_bytes });
    Reclaim { passes: status.passes, total: amount(status.total), last_at_ms: status.last_at_ms, last_look }
}

const fn amount(report: ReclaimReport) -> ReclaimedAmount {
    ReclaimedAmount {
        containers: report.containers,
        container_bytes: report.container_bytes,
        moved_containers: report.moved_containers,
        moved_bytes: report.moved_bytes,
        objects: report.objects,
        object_bytes: report.object_bytes,
    }
}
