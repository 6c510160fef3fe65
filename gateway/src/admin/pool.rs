//! Data nodes, and how the pool protects what it holds.

use super::service::{Service, to_its_end};
use super::types::{AddNode, AddedNode, ChangeNode, ChangePool, Node, NodeHealth, PoolState};
use crate::error::GatewayError;
use crate::site::{self, NodeOptions, Site, WantedNode};
use cairn_metadata::{NodeChange, NodeRow, NodeState, NodeUsage};
use cairn_model::{ErrorKind, Profile};
use cairn_segment_writer::{BreakerState, Refusal};
use std::sync::Arc;
use std::time::Duration;

type Result<T> = std::result::Result<T, GatewayError>;

/// How long removing a drained node takes for what is still to be deleted on it.
const EMPTY_PATIENCE: Duration = Duration::from_secs(30);

impl Service {
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        let rows = site::attached_nodes(&self.site).await?;
        let usage = self.site.catalog.node_usage().await?;
        let used = |row: &NodeRow| usage.iter().find(|used| used.node == row.id);
        Ok(rows.iter().map(|row| self.describe_node(row, used(row))).collect())
    }

    pub async fn node(&self, name: &str) -> Result<Node> {
        self.nodes().await?.into_iter().find(|node| node.name == name).ok_or_else(|| no_such_node(name))
    }

    /// Adds a node; a pool that is in use takes it in at once.
    pub async fn add_node(&self, asked: &AddNode) -> Result<AddedNode> {
        let wanted = WantedNode {
            name: asked.name.clone(),
            url: asked.url.clone(),
            domain: asked.domain.clone(),
            capacity_bytes: asked.capacity_bytes,
            create_bucket: asked.create,
        };
        let old = asked.in_place_of.clone();
        let adding = |site: Arc<Site>| async move {
            match old {
                Some(old) => site::replace_node(&site, &wanted, &old).await,
                None => site::add_node(&site, &wanted).await,
            }
        };
        let added = self.change_of_pool(adding).await?;
        tracing::info!(node = asked.name, url = %added.node.url, "data node added");
        Ok(AddedNode { node: self.node(&added.node.name).await?, replaced: added.replaced })
    }

    pub async fn change_node(&self, name: &str, asked: &ChangeNode) -> Result<Node> {
        let state = asked.state.as_deref().map(state_of).transpose()?;
        let change = NodeChange {
            url: asked.url.clone(),
            domain: asked.domain.clone().map(|domain| Some(domain).filter(|domain| !domain.is_empty())),
            state,
            options: None,
            capacity_bytes: asked.capacity_bytes.map(|bytes| Some(bytes).filter(|bytes| *bytes > 0)),
        };
        let node = name.to_owned();
        self.change_of_pool(|site| async move { site::change_node(&site, &node, change).await }).await?;
        tracing::info!(node = name, ?asked, "data node changed");
        self.node(name).await
    }

    pub async fn remove_node(&self, name: &str, force: bool) -> Result<()> {
        if !force {
            self.empty_drained(name).await?;
        }
        let node = name.to_owned();
        self.change_of_pool(|site| async move { site::remove_node(&site, &node, force).await }).await?;
        tracing::info!(node = name, force, "data node removed");
        Ok(())
    }

    /// Deletes what a drained node still has of shards that are elsewhere by now: that waits for a checkpoint, which may be minutes away.
    async fn empty_drained(&self, name: &str) -> Result<()> {
        let Some((engine, _)) = &self.engine else { return Ok(()) };
        let catalog = &self.site.catalog;
        let Some(row) = catalog.nodes().await?.into_iter().find(|row| row.name == name) else {
            return Ok(());
        };
        let usage = catalog.node_usage().await?;
        let holds_shards = usage.iter().any(|usage| usage.node == row.id && usage.shards > 0);
        if row.state != NodeState::Draining || holds_shards {
            return Ok(());
        }
        // If something is left, removing the node says so.
        if let Err(error) = engine.delete_left_over(EMPTY_PATIENCE).await {
            tracing::warn!(%error, node = name, "not all that is to be deleted could be");
        }
        Ok(())
    }

    pub async fn pool(&self) -> Result<PoolState> {
        let catalog = &self.site.catalog;
        let profile = catalog.pool_settings().await?.profile;
        let totals = catalog.totals().await?;
        let nodes = catalog.nodes().await?;
        Ok(PoolState {
            profile: profile.to_string(),
            shards: profile.shards() as u64,
            tolerates: profile.tolerates() as u64,
            active_nodes: site::active(&nodes).count() as u64,
            domains: site::domains(&nodes) as u64,
            segments: totals.segments,
            degraded_segments: totals.degraded_segments,
            at_risk_segments: totals.at_risk_segments,
        })
    }

    pub async fn change_pool(&self, asked: &ChangePool) -> Result<PoolState> {
        let parsed = asked.profile.parse::<Profile>();
        let profile = parsed.map_err(|error| GatewayError::Usage { what: error.to_string(), next: None })?;
        self.change_of_pool(|site| async move { site::set_profile(&site, profile).await }).await?;
        tracing::info!(%profile, "the pool's profile changed");
        self.pool().await
    }

    /// Makes a change and tells a pool that is in use of it, also of one that failed halfway. One after the other, each to its end.
    async fn change_of_pool<T, F>(&self, change: impl FnOnce(Arc<Site>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (site, engine) = (Arc::clone(&self.site), self.engine.clone());
        let (turn, change) = (Arc::clone(&self.pool_change), Box::pin(change(Arc::clone(&site))));
        let all = async move {
            let _turn = turn.lock().await;
            let changed = change.await;
            let Some((engine, pool)) = engine else { return changed };
            let told = site.refresh_pool(&pool).await;
            engine.pool_changed();
            changed.and_then(|changed| told.map(|()| changed))
        };
        to_its_end("the change of the pool", Box::pin(all)).await
    }

    fn describe_node(&self, row: &NodeRow, used: Option<&NodeUsage>) -> Node {
        let health = self.engine.as_ref().and_then(|(_, pool)| pool.node(row.id).ok()).map(|node| {
            let seen = node.health().snapshot();
            NodeHealth {
                failing: seen.failing,
                puts: seen.puts,
                put_requests: seen.put_requests,
                put_bytes: seen.put_bytes,
                gets: seen.gets,
                get_requests: seen.get_requests,
                get_bytes: seen.get_bytes,
                deletes: seen.deletes,
                delete_requests: seen.delete_requests,
                retries: seen.retries,
                errors: seen.errors,
                damaged: seen.damaged_chunks,
                breaker: breaker_name(seen.breaker).to_owned(),
                refuses_puts: seen.refuses_puts.map(|refusal| refusal_name(refusal).to_owned()),
                put_p50_us: micros(seen.put_p50),
                put_p95_us: micros(seen.put_p95),
                get_p50_us: micros(seen.get_p50),
                get_p95_us: micros(seen.get_p95),
                last_error: seen.last_error.map(|error| error.text),
            }
        });
        Node {
            name: row.name.clone(),
            id: row.id.to_string(),
            url: row.url.clone(),
            domain: row.domain.clone(),
            state: state_name(row.state).to_owned(),
            created_at_ms: row.created_at.unix_millis(),
            capacity_bytes: row.capacity_bytes,
            shards: used.map_or(0, |used| used.shards),
            used_bytes: used.map_or(0, |used| used.bytes),
            conditional_writes: NodeOptions::of(row).conditional_create,
            health,
        }
    }
}

fn micros(time: Option<Duration>) -> Option<u64> {
    time.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

const fn breaker_name(breaker: BreakerState) -> &'static str {
    match breaker {
        BreakerState::Closed => "closed",
        BreakerState::Open => "open",
        BreakerState::HalfOpen => "half-open",
    }
}

const fn refusal_name(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Full => "full",
        Refusal::ReadOnly => "read-only",
    }
}

const fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Failed => "failed",
    }
}

fn state_of(name: &str) -> Result<NodeState> {
    let states = [NodeState::Active, NodeState::Draining, NodeState::Failed];
    states.into_iter().find(|state| state_name(*state) == name).ok_or_else(|| {
        GatewayError::refused(
            ErrorKind::Unsupported,
            format!("a node cannot be {name}"),
            "give active, draining or failed",
        )
    })
}

pub(super) fn no_such_node(name: &str) -> GatewayError {
    GatewayError::refused(
        ErrorKind::NotFound,
        format!("there is no data node named {name}"),
        "`cairn node list` shows those there are",
    )
}
