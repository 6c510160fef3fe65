//! What the gateway tells about itself, and what of it needs attention.

use super::groups;
use super::heal;
use super::metrics::{Metrics, metrics};
use super::reclaim;
use super::reduction;
use super::service::Service;
use super::types::{
    Attention, Destage, Gateway, Health, Memory, NodeHealth, PoolTotals, Record, Site, Status, Volume, Wal,
};
use crate::error::GatewayError;
use crate::key::KeyError;
use crate::site::Site as OpenSite;
use cairn_engine::{EngineStatus, RecordStatus};
use cairn_metadata::WalState;
use cairn_model::crypto::Encryption;
use cairn_wal::FileDisk;
use std::path::Path;

/// Share of the log, in percent, from which it is worth a word.
const WAL_FILL_WARNING_PERCENT: u64 = 75;
/// How full a data node is, of the capacity that it was said to have, when that is told.
const NODE_FILL_WARNING_PERCENT: u128 = 85;

impl Service {
    pub async fn status(&self) -> Result<Status, GatewayError> {
        self.status_with(self.engine_status().as_ref()).await
    }

    pub async fn metrics(&self) -> Result<Metrics, GatewayError> {
        let engine = self.engine_status();
        Ok(metrics(&self.status_with(engine.as_ref()).await?, engine.as_ref()))
    }

    fn engine_status(&self) -> Option<EngineStatus> {
        self.engine.as_ref().map(|(engine, _)| engine.status())
    }

    async fn status_with(&self, engine: Option<&EngineStatus>) -> Result<Status, GatewayError> {
        let site = &self.site;
        let nodes = self.nodes().await?;
        let totals = site.catalog.totals().await?;
        let volumes = self.volumes().await?;
        let wal = match engine {
            Some(engine) => Wal {
                capacity_bytes: engine.wal.capacity_bytes,
                used_bytes: Some(engine.wal.used_bytes),
                dirty: engine.wal.dirty,
                poisoned: engine.wal.poisoned.clone(),
            },
            None => Wal {
                capacity_bytes: site.config.wal.capacity_bytes,
                used_bytes: None,
                dirty: site.catalog.gateway(site.gateway).await?.wal_state == WalState::Dirty,
                poisoned: None,
            },
        };
        let mut pool = PoolTotals {
            segments: totals.segments,
            segment_bytes: totals.segment_bytes,
            profile: site.catalog.pool_settings().await?.profile.to_string(),
            degraded_segments: totals.degraded_segments,
            at_risk_segments: totals.at_risk_segments,
            ..PoolTotals::default()
        };
        for health in nodes.iter().filter_map(|node| node.health.as_ref()) {
            add(&mut pool, health);
        }
        pool.nodes = nodes;
        let mut attention = attention(&wal, engine, &pool, &volumes, &site.config.wal.path);
        attention.extend(attention_of_keys(site));
        let groups = self.groups().await?;
        attention.extend(groups::attention(&groups));
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: if self.serving.is_some() { "serving" } else { "stopped" }.to_owned(),
            health: summary(&attention),
            attention,
            site: Site { id: site.row.id.to_string(), name: site.row.name.clone() },
            gateway: self.gateway(),
            wal,
            destage: engine.map(destage).unwrap_or_default(),
            cpu: self.cpu(),
            pool,
            reduction: reduction::reduction(&totals),
            heal: engine.map(|engine| heal::heal(&engine.heal)).unwrap_or_default(),
            record: engine.map(|engine| record(&engine.record)).unwrap_or_default(),
            reclaim: engine.map(|engine| reclaim::reclaim(&engine.reclaim)).unwrap_or_default(),
            dedupe: engine.map(reduction::dedupe),
            flash: engine.and_then(|engine| engine.flash.as_ref()).map(reduction::flash),
            memory: engine.map_or_else(Memory::default, |engine| Memory {
                block_cache_bytes: engine.block_cache_bytes,
                map_cache_bytes: engine.map_cache_bytes,
            }),
            snapshots: volumes.iter().map(|volume| volume.snapshots).sum(),
            groups: groups.len() as u64,
            volumes,
        })
    }

    pub async fn health(&self) -> Result<Health, GatewayError> {
        let status = self.status().await?;
        Ok(Health { health: status.health, attention: status.attention })
    }

    fn gateway(&self) -> Gateway {
        let site = &self.site;
        let configured = || site.config.gateway.nbd.iter().map(ToString::to_string).collect();
        let serving = self.serving.as_ref();
        let uptime = |serving: &super::Serving| site.ports.clock.now().since(serving.started).as_secs();
        Gateway {
            id: site.gateway.to_string(),
            directory: site.directory.path().display().to_string(),
            process: serving.map(|_| std::process::id()),
            uptime_seconds: serving.map(uptime),
            nbd: serving.map_or_else(configured, |serving| serving.nbd.clone()),
            nbd_connections: serving.map(|serving| serving.sessions.total()),
        }
    }
}

fn add(pool: &mut PoolTotals, health: &NodeHealth) {
    pool.puts += health.puts;
    pool.put_requests += health.put_requests;
    pool.put_bytes += health.put_bytes;
    pool.gets += health.gets;
    pool.get_requests += health.get_requests;
    pool.get_bytes += health.get_bytes;
    pool.deletes += health.deletes;
    pool.delete_requests += health.delete_requests;
}

fn record(status: &RecordStatus) -> Record {
    Record {
        taken: status.taken,
        last_at_ms: status.last_at_ms,
        took_ms: status.took_ms,
        waits: status.waits,
        problem: status.problem.clone(),
    }
}

fn destage(engine: &EngineStatus) -> Destage {
    Destage {
        backlog_bytes: engine.destage.backlog_bytes,
        batches_committed: engine.destage.batches_committed,
        batches_in_flight: engine.destage.batches_in_flight,
        destaged_bytes: engine.destage.reduction.written_bytes,
        problem: engine.destage.problem.clone(),
        pool_full: engine.destage.pool_full,
    }
}

fn summary(attention: &[Attention]) -> String {
    if attention.is_empty() { "ok" } else { "attention" }.to_owned()
}

/// What of the keys needs attention: none of it stops what is served.
fn attention_of_keys(site: &OpenSite) -> Vec<Attention> {
    let warning =
        |what, next: &str| Attention { severity: "warning".to_owned(), what, next: next.to_owned() };
    let domain = |(row, reason): (cairn_metadata::DomainRow, String)| {
        warning(format!("domain {} cannot be used: {reason}", row.name), "restore the catalog from a copy")
    };
    let copy = |copy: crate::site::KeyCopy| {
        let problem = copy.problem?;
        let what = format!("the copy of the keys on data node {} is not up to date: {problem}", copy.node);
        Some(warning(what, "when the cause is gone, run `cairn key publish`"))
    };
    let file = |problem: KeyError| {
        let next = problem.hint().unwrap_or_else(|| "put the key back from its copy".to_owned());
        warning(format!("the gateway would not start again: {problem}"), &next)
    };
    let domains = site.unavailable_domains().into_iter().map(domain);
    let file = site.key_file_problem().map(file);
    file.into_iter().chain(domains).chain(site.key_copies().into_iter().filter_map(copy)).collect()
}

type Entries = Vec<(String, String)>;

fn attention_of_engine(engine: &EngineStatus, errors: &mut Entries, warnings: &mut Entries) {
    if engine.destage.pool_full {
        errors.push((
            "the pool is full: writes fail with no space left".to_owned(),
            "free space in the pool".to_owned(),
        ));
    } else if let Some(problem) = &engine.destage.problem {
        warnings.push((
            format!("writes are not reaching the pool: {problem}"),
            "nothing is lost; they wait in the write-ahead log until the pool answers".to_owned(),
        ));
    }
    warnings.extend(reduction::attention(engine));
    heal::attention(engine, errors, warnings);
    if let Some(problem) = &engine.record.problem {
        warnings.push((
            format!("the catalog is not recorded in the pool: {problem}"),
            "it is tried again; until it is, `cairn recover` would make an older one, and nothing is deleted from the pool".to_owned(),
        ));
    }
}

fn attention_of_encryption(volumes: &[Volume]) -> Option<(String, String)> {
    let is_open = |volume: &&Volume| volume.encryption == Encryption::Off.name();
    let open: Vec<_> = volumes.iter().filter(is_open).map(|volume| &*volume.name).collect();
    (!open.is_empty()).then(|| {
        let what = format!("not encrypted in the pool and on flash: {}", open.join(", "));
        (what, "their domain says so; copy them to volumes of another domain if it is not meant".to_owned())
    })
}

fn attention_of_pool(
    pool: &PoolTotals,
    errors: &mut Vec<(String, String)>,
    warnings: &mut Vec<(String, String)>,
) {
    for node in &pool.nodes {
        if let Some(health) = node.health.as_ref().filter(|health| health.failing) {
            let cause = health.last_error.as_deref().unwrap_or("no cause was given");
            warnings.push((
                format!("data node {} is failing: {cause}", node.name),
                format!("check {}", node.url),
            ));
        }
    }
    for node in &pool.nodes {
        let Some(capacity) = node.capacity_bytes.filter(|capacity| *capacity > 0) else { continue };
        let percent = u128::from(node.used_bytes) * 100 / u128::from(capacity);
        if percent >= NODE_FILL_WARNING_PERCENT {
            warnings.push((
                format!("data node {} is {percent} % full", node.name),
                "add nodes with `cairn node add`, delete snapshots, or correct it with `cairn node edit --capacity`".to_owned(),
            ));
        }
    }
    if pool.at_risk_segments > 0 {
        errors.push((
            format!("{} segments would be lost with the next node", pool.at_risk_segments),
            "bring missing nodes back; the rest is being healed".to_owned(),
        ));
    }
    if pool.degraded_segments > pool.at_risk_segments {
        warnings.push((
            format!("{} segments have a shard missing", pool.degraded_segments),
            "they are healed in the background, if there are nodes for it".to_owned(),
        ));
    }
    if pool.nodes.is_empty() {
        errors.push((
            "this site has no data node".to_owned(),
            "add one with `cairn node add NAME URL`".to_owned(),
        ));
    }
}

/// One entry per thing that somebody should do something about, the worst first.
fn attention(
    wal: &Wal,
    engine: Option<&EngineStatus>,
    pool: &PoolTotals,
    volumes: &[Volume],
    wal_path: &Path,
) -> Vec<Attention> {
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    if let Some(cause) = &wal.poisoned {
        errors.push((
            format!("the write-ahead log takes no more writes: {cause}"),
            "check the disk it is on, then restart the gateway".to_owned(),
        ));
    }
    for volume in volumes.iter().filter(|volume| !["serving", "stopped"].contains(&volume.state.as_str())) {
        let reason = volume.reason.as_deref().unwrap_or(&volume.state);
        errors.push((
            format!("volume {} is not served: {reason}", volume.name),
            "see the gateway's log; restart the gateway once the cause is gone".to_owned(),
        ));
    }
    if let Some(engine) = engine {
        attention_of_engine(engine, &mut errors, &mut warnings);
    }
    warnings.extend(attention_of_encryption(volumes));
    attention_of_pool(pool, &mut errors, &mut warnings);
    let used = wal.used_bytes.unwrap_or(0);
    if used >= wal.capacity_bytes / 100 * WAL_FILL_WARNING_PERCENT && used > 0 {
        warnings.push((
            format!("the write-ahead log is {} % full", used * 100 / wal.capacity_bytes.max(1)),
            "when it is full, writes wait for the pool; raise `wal.capacity` if this is usual".to_owned(),
        ));
    }
    if engine.is_none() && wal.dirty {
        // A directory that cannot be listed is not known to be without a log.
        if FileDisk::holds_log(wal_path).unwrap_or(true) {
            warnings.push((
                "the write-ahead log holds writes that are not in the pool".to_owned(),
                "start the gateway with `cairn serve`: it brings them there".to_owned(),
            ));
        } else {
            let path = wal_path.display();
            errors.push((
                format!("the write-ahead log {path} is missing, and it held writes that are not in the pool"),
                "put it back or mount its disk; without it, `cairn serve --accept-lost-wal` goes on"
                    .to_owned(),
            ));
        }
    }
    let entry =
        |severity: &'static str| move |(what, next)| Attention { severity: severity.to_owned(), what, next };
    errors.into_iter().map(entry("error")).chain(warnings.into_iter().map(entry("warning"))).collect()
}
