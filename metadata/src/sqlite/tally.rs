//! Sums over segments and their shards.
//!
//! Invariant: `totals` and the sums in `nodes` are what the rows of `segments` and `shards` add up to. Whoever changes those counts the places that
//! they leave and take, and writes the tally in the same transaction: one statement for each node, however many segments change. The
//! counts of degraded segments and of those at risk are sums too, not looked up by an index: after the loss of a node they are many.

use super::columns::int;
use super::{Result, failed};
use crate::placements::is_at_risk;
use cairn_model::{NodeId, ObjectPlace};
use sqlx::SqliteConnection;
use std::collections::BTreeMap;

const DOING: &str = "counting segments";

#[derive(Default)]
#[must_use]
pub(super) struct Tally {
    pub(super) segments: i64,
    pub(super) segment_bytes: i64,
    pub(super) degraded: i64,
    pub(super) at_risk: i64,
    /// Shards and their bytes.
    pub(super) nodes: BTreeMap<NodeId, (i64, i64)>,
}

impl Tally {
    pub(super) fn add(&mut self, place: &ObjectPlace) -> Result<()> {
        self.count(place, 1)
    }

    pub(super) fn remove(&mut self, place: &ObjectPlace) -> Result<()> {
        self.count(place, -1)
    }

    fn count(&mut self, place: &ObjectPlace, sign: i64) -> Result<()> {
        self.segments += sign;
        self.segment_bytes += sign * int(place.length_bytes)?;
        self.degraded += sign * i64::from(place.placement.missing() > 0);
        self.at_risk += sign * i64::from(is_at_risk(&place.placement));
        let shard_bytes = int(place.placement.profile().shard_bytes(place.length_bytes))?;
        for (_, shard) in place.placement.present() {
            let (shards, bytes) = self.nodes.entry(shard.node).or_default();
            *shards += sign;
            *bytes += sign * shard_bytes;
        }
        Ok(())
    }

    pub(super) async fn write(self, change: &mut SqliteConnection) -> Result<()> {
        for (node, (shards, bytes)) in self.nodes.into_iter().filter(|(_, sums)| *sums != (0, 0)) {
            let sql = "UPDATE nodes SET shards = shards + $1, shard_bytes = shard_bytes + $2 WHERE id = $3";
            sqlx::query(sql)
                .bind(shards)
                .bind(bytes)
                .bind(&node.as_bytes()[..])
                .execute(&mut *change)
                .await
                .map_err(failed(DOING))?;
        }
        let sql = "UPDATE totals SET segments = segments + $1, segment_bytes = segment_bytes + $2, \
                   degraded_segments = degraded_segments + $3, at_risk_segments = at_risk_segments + $4";
        sqlx::query(sql)
            .bind(self.segments)
            .bind(self.segment_bytes)
            .bind(self.degraded)
            .bind(self.at_risk)
            .execute(change)
            .await
            .map(drop)
            .map_err(failed(DOING))
    }
}
