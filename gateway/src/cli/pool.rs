//! `cairn pool`.

use super::access::{Need, with_access};
use super::args::{Global, Pool as Command};
use super::output::answer;
use crate::admin::types::{ChangePool, PoolState};
use crate::error::GatewayError;
use crate::human::counted;

pub(super) async fn run(global: &Global, command: Command) -> Result<(), GatewayError> {
    let Command::Profile { profile } = command;
    let pool = match profile {
        None => with_access(global, Need::Tell, async |access| access.client.pool().await).await?,
        Some(profile) => {
            let change = ChangePool { profile };
            with_access(global, Need::Catalog, async |access| access.client.change_pool(&change).await)
                .await?
        }
    };
    answer(global.json, &pool, human)
}

fn human(pool: &PoolState) -> String {
    let lost = match pool.tolerates {
        0 => "no node may be lost".to_owned(),
        count => format!("{} may be lost", counted(count, "node")),
    };
    let mut lines = vec![
        format!("profile   {}: {} for each segment, {lost}", pool.profile, counted(pool.shards, "node")),
        format!("nodes     {} that take data", counted(pool.active_nodes, "node")),
    ];
    if pool.shards > 1 && pool.domains < pool.shards {
        lines.push(format!(
            "domains   {}: fewer than a segment has shards, so that losing one may cost several of them",
            pool.domains
        ));
    }
    lines.push(format!("segments  {}", pool.segments));
    lines.extend(degraded(pool).map(|degraded| format!("          {degraded}")));
    lines.join("\n") + "\n"
}

/// What is to be said of segments that are not whole, if any are not.
pub(super) fn degraded(pool: &PoolState) -> Option<String> {
    let PoolState { degraded_segments, at_risk_segments, .. } = pool;
    (*degraded_segments > 0).then(|| {
        format!("{degraded_segments} with a shard missing, {at_risk_segments} of them with none to spare")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        let mut pool = PoolState {
            profile: "ec:4+2".to_owned(),
            shards: 6,
            tolerates: 2,
            active_nodes: 6,
            domains: 6,
            segments: 40,
            degraded_segments: 0,
            at_risk_segments: 0,
        };
        assert_eq!(
            human(&pool),
            "profile   ec:4+2: 6 nodes for each segment, 2 nodes may be lost\nnodes     6 nodes that take data\nsegments  40\n"
        );
        (pool.domains, pool.degraded_segments, pool.at_risk_segments) = (3, 7, 2);
        let told = human(&pool);
        assert!(
            told.contains("domains   3: fewer") && told.contains("7 with a shard missing, 2 of them"),
            "{told}"
        );
    }
}
