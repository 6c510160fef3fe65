//! A site as one gateway sees it: its directory, configuration, catalog, keys and pool.

mod init;
mod keys;
mod local;
mod node;
mod pool;
mod publish;
mod recover;
mod replace;

pub(crate) use init::new_volume;
pub use init::{InitOptions, Step, initialise, initialise_observed};
pub(crate) use node::NodeOptions;
pub use node::{Attached, EMBEDDED_POOL_URL, WantedNode, attached_nodes, resolved_url};
pub(crate) use pool::{active, domains};
pub use pool::{add_node, change_node, remove_node, replace_node, set_profile};
pub use publish::KeyCopy;
pub use recover::{
    CheckpointReport, RecoverOptions, RecoveryProgress, RecoveryReport, VolumeReport, recover,
};
pub use replace::{ReplaceStep, is_reserved, sealed_for_replacement};

use crate::config::{CatalogUrl, Config};
use crate::directory::{Directory, DirectoryError, Lock};
use crate::error::GatewayError;
use crate::key::{Master, source};
use cairn_engine::{CpuBudget, Engine, EngineConfig, EngineError, EngineParts};
use cairn_metadata::{Catalog, SiteRow, SqliteCatalog, WalState};
use cairn_model::crypto::SecretKey;
use cairn_model::{ErrorKind, GatewayId, Kinded, Ports};
use cairn_segment_writer::{Domain, Pool};
use cairn_wal::{FileDisk, WalConfig, WalError};
use keys::Keyring;
use std::sync::Arc;

/// Derives the key of this gateway's log from the key of the site's data.
const WAL_KEY_CONTEXT: &str = "cairn 2026-11 write-ahead log of a gateway";

/// Files of a log: few enough to list, small enough that making one is quick and freeing one does not wait long.
const WAL_FILES: u64 = 64;

/// What an engine is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve volumes; with `accept_lost_wal` also without a log that held acknowledged writes.
    Serve { accept_lost_wal: bool },
    /// For one command, without guests.
    Command,
}

/// An open site. The lock lasts as long as it does.
#[derive(Debug)]
pub struct Site {
    pub directory: Directory,
    pub config: Config,
    pub row: SiteRow,
    pub gateway: GatewayId,
    pub catalog: Arc<dyn Catalog>,
    pub ports: Ports,
    /// It was recovered from the pool, and the operator says that the gateway of before is gone.
    takes_over: bool,
    /// And that the site goes on without what the recovery did not find.
    accepts_incomplete: bool,
    /// `None`: opened to be told about only.
    keyring: Option<Keyring>,
    _lock: Lock,
}

impl Site {
    /// Opens a complete directory: its catalog, and its keys, which the master key must open. Asks for a passphrase where that takes one.
    /// Touches neither the log nor the pool.
    pub async fn open(
        directory: Directory,
        config: Config,
        lock: Lock,
        ports: Ports,
    ) -> Result<Self, GatewayError> {
        directory.require_ready()?;
        let master = source::obtain(&config.key, &ports).await?.master;
        Self::open_with(master, directory, config, lock, ports).await
    }

    /// [`Site::open`] with the master key at hand.
    pub async fn open_with(
        master: Master,
        directory: Directory,
        config: Config,
        lock: Lock,
        ports: Ports,
    ) -> Result<Self, GatewayError> {
        let mut site = Self::open_to_tell(directory, config, lock, ports).await?;
        let keyring = Keyring::open(&*site.catalog, master).await?;
        site.settle_keys(&keyring).await?;
        site.keyring = Some(keyring);
        let (locked, unlocked) = cairn_model::crypto::locked_pages();
        tracing::debug!(locked, unlocked, "pages of memory for keys");
        Ok(site)
    }

    /// Opens a complete directory without its keys: enough to tell what there is, and to find out what is wrong with the keys.
    pub async fn open_to_tell(
        directory: Directory,
        config: Config,
        lock: Lock,
        ports: Ports,
    ) -> Result<Self, GatewayError> {
        directory.require_ready()?;
        warn_of_another_owner(&directory);
        let catalog = open_catalog(&config, false).await?;
        let row = catalog.site().await?;
        let Some(gateway) = directory.gateway_id()? else {
            return Err(GatewayError::refused(
                ErrorKind::Corrupt,
                format!("the file {} is missing", directory.path().join("gateway").display()),
                "restore it from a backup",
            ));
        };
        catalog.gateway(gateway).await?;
        Ok(Self {
            directory,
            config,
            row,
            gateway,
            catalog,
            ports,
            takes_over: false,
            accepts_incomplete: false,
            keyring: None,
            _lock: lock,
        })
    }

    /// The operator says that the gateway of before is gone. Where nothing was recovered, or that was said before, it changes nothing.
    pub const fn begin_take_over(&mut self, accepts_incomplete: bool) {
        self.takes_over = true;
        self.accepts_incomplete = accepts_incomplete;
    }

    /// Makes the pool this catalog's, before anything is served: its first checkpoint says so to every other catalog of the site. The directory is as any other then.
    ///
    /// Crash case: after the checkpoint and before the mark is removed, the next `--take-over` finds that checkpoint to be its own.
    pub async fn end_take_over(&self, engine: &Engine, pool: &Arc<Pool>) -> Result<(), GatewayError> {
        if !self.takes_over || self.directory.recovered()?.is_none() {
            return Ok(());
        }
        let taken = async {
            engine.checkpoint().await?;
            // Somebody else may have taken over from the same checkpoint at the same time: each looks when its own manifest is there, so one of the two sees the other's.
            recover::check_take_over(self, pool).await
        };
        if let Err(error) = taken.await {
            // Somebody else has the site, or may have: a newer version, of which nobody can tell.
            if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Fenced | ErrorKind::Unsupported)
                && let Err(left) = recover::withdraw(self, pool).await
            {
                tracing::warn!(
                    error = left.full_message(),
                    "a checkpoint of this directory may be left in the pool, and holds up whoever took the site over: see docs/recovery.md"
                );
            }
            return Err(error);
        }
        self.directory.take_over()?;
        engine.release();
        Ok(())
    }

    /// Fails while the directory was recovered and is not told to take over, or lacks something and nobody said that it is to go on without.
    fn require_taken_over(&self) -> Result<(), GatewayError> {
        if !self.takes_over {
            return Ok(self.directory.require_taken_over()?);
        }
        let lacks = self.directory.recovered()?.map(|recovered| recovered.lacks).unwrap_or_default();
        if lacks.is_empty() || self.accepts_incomplete {
            return Ok(());
        }
        let path = self.directory.path().to_owned();
        Err(DirectoryError::RecoveredInPart { path, lacks: lacks.join("; ") }.into())
    }

    fn keyring(&self) -> Result<&Keyring, GatewayError> {
        self.keyring.as_ref().ok_or_else(|| GatewayError::Refused {
            kind: ErrorKind::Unavailable,
            what: "this needs the keys of the site, which was opened without them".to_owned(),
            next: None,
        })
    }

    /// The key of this gateway's log. Below the data key, not the master key: rotating the master key must not close the log.
    fn wal_key(&self) -> Result<SecretKey, GatewayError> {
        Ok(self.keyring()?.data_key().derive(WAL_KEY_CONTEXT, self.gateway.as_bytes()))
    }

    /// Starts the engine: replays the log, takes the volumes' leases. Every volume is usable when it returns.
    pub async fn start_engine(&self, pool: Arc<Pool>, purpose: Purpose) -> Result<Arc<Engine>, GatewayError> {
        let mut config = engine_config(&self.config);
        // Until the site is this catalog's (`end_take_over`) nothing is put, moved or deleted.
        config.held = self.directory.recovered()?.is_some();
        match purpose {
            Purpose::Serve { accept_lost_wal } => config.accept_lost_wal = accept_lost_wal,
            // Nobody waits but the user of the command: the budget that protects guests would only slow it down.
            Purpose::Command => {
                config.cpu_budget = CpuBudget::Unlimited;
                // What is due waits for a gateway that stays.
                config.run_schedules = false;
            }
        }
        // First: without it nothing else is touched.
        let wal_disk = Arc::new(self.open_wal(config.accept_lost_wal).await?);
        let flash = match purpose {
            Purpose::Serve { .. } => self.open_flash().await,
            // Nothing is read twice.
            Purpose::Command => None,
        };
        let domains = self.domains()?.into_iter().map(|(row, key)| Domain::new(row.id, key, row.encryption));
        let parts = EngineParts {
            site: self.row.id,
            gateway: self.gateway,
            catalog: Arc::clone(&self.catalog),
            pool,
            domains: domains.collect(),
            wal_key: self.wal_key()?,
            wal_disk,
            fingerprints: self.open_index().await?,
            flash,
            ports: self.ports.clone(),
        };
        Ok(Engine::start(config, parts).await?)
    }

    /// Opens the log's directory. One is made only where its absence loses nothing, or is accepted: a log that appeared in the
    /// place of one that is not mounted would look like the real one.
    async fn open_wal(&self, accept_lost_wal: bool) -> Result<FileDisk, GatewayError> {
        let path = &self.config.wal.path;
        let clean = self.catalog.gateway(self.gateway).await?.wal_state == WalState::Clean;
        let opened =
            if clean || accept_lost_wal { FileDisk::open(path) } else { FileDisk::open_existing(path) };
        opened.map_err(|error| match error {
            WalError::NotFound { location } => EngineError::LostWal(location).into(),
            other => other.into(),
        })
    }
}

/// What root makes in a directory of another user, that user's gateway cannot open.
fn warn_of_another_owner(directory: &Directory) {
    use std::os::unix::fs::MetadataExt;
    let user = rustix::process::geteuid().as_raw();
    if let Some(owner) = std::fs::metadata(directory.path()).ok().map(|metadata| metadata.uid())
        && owner != user
    {
        let path = directory.path().display();
        tracing::warn!(%path, owner, user, "the directory belongs to another user, who may be unable to use what this makes in it");
    }
}

fn engine_config(config: &Config) -> EngineConfig {
    let wal = WalConfig {
        capacity_bytes: config.wal.capacity_bytes,
        file_bytes: wal_file_bytes(config.wal.capacity_bytes),
        ..WalConfig::default()
    };
    let mut engine = EngineConfig::new(wal);
    engine.write_buffer_bytes = config.memory.write_buffer_bytes;
    engine.block_cache_bytes = config.memory.block_cache_bytes;
    engine.map_cache_bytes = config.memory.map_cache_bytes;
    engine.batch_bytes = config.destage.batch_bytes;
    engine.batch_age = config.destage.batch_age;
    engine.cpu_budget = config.cpu.budget;
    engine.checkpoint_interval = Some(config.pool.checkpoint_interval);
    engine.reclaim_interval = config.reclaim.interval;
    engine.reclaim_dead_percent_max = config.reclaim.dead_percent;
    engine.heal_bytes_per_second = config.heal.bytes_per_second;
    engine.node_failed_after = config.heal.node_failed_after;
    engine.reuse_wiped_nodes = config.heal.reuse_wiped_nodes;
    engine.scrub_period = config.heal.scrub_period;
    engine
}

/// A sixty-fourth of the capacity, in whole MiB, within what a log file may be.
const fn wal_file_bytes(capacity_bytes: u64) -> u64 {
    let whole = (capacity_bytes / WAL_FILES) >> 20 << 20;
    if whole < 4 << 20 {
        4 << 20
    } else if whole > 256 << 20 {
        256 << 20
    } else {
        whole
    }
}

/// Opens the catalog; `create` makes one where there is none.
async fn open_catalog(config: &Config, create: bool) -> Result<Arc<dyn Catalog>, GatewayError> {
    let CatalogUrl::Sqlite(path) = &config.catalog;
    let catalog = if create { SqliteCatalog::create(path).await? } else { SqliteCatalog::open(path).await? };
    Ok(Arc::new(catalog))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_allowed_capacity_makes_a_possible_log() {
        for capacity in [64u64 << 20, 65 << 20, 100 << 20, 1 << 30, 4 << 30, 4 << 40] {
            let file = wal_file_bytes(capacity);
            assert!(file.is_multiple_of(4096) && (4 << 20..=1 << 30).contains(&file), "{capacity}");
            assert!(capacity / file >= 2, "{capacity}");
        }
    }
}
