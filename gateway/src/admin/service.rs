//! What the admin API does: the same operations for a running gateway and for a command that stands in for one.

use super::reduction;
use super::types::{
    ChangeCpu, Cpu, CreateVolume, DurabilityChoice, Extent, RangeQuery, UpdateVolume, Volume,
};
use crate::error::GatewayError;
use crate::names::SEPARATOR;
use crate::site::{Site, new_volume};
use bytes::Bytes;
use cairn_engine::{Engine, Fsck, Volume as EngineVolume, VolumeOptions};
use cairn_metadata::{DomainName, DomainRow, VolumeName, VolumeRow};
use cairn_model::{
    BLOCK_SIZE, BlockDevice, Durability, ErrorKind, Monotonic, ReadBuffer, VOLUME_BLOCKS_MAX, WriteFlags,
};
use cairn_segment_writer::Pool;
use std::sync::Arc;

/// Largest piece of a volume that one request reads or writes.
pub const PIECE_BYTES_MAX: u64 = 8 << 20;

/// Extents that one answer lists.
const EXTENTS_MAX: usize = 4096;

/// Smallest unit of a volume's size.
const SECTOR_BYTES: u64 = 512;

const VOLUME_BYTES_MAX: u64 = VOLUME_BLOCKS_MAX * BLOCK_SIZE as u64;

type Result<T> = std::result::Result<T, GatewayError>;

/// Facts of a gateway that serves.
#[derive(Debug)]
pub struct Serving {
    pub started: Monotonic,
    /// Addresses as they are listened on.
    pub nbd: Vec<String>,
    pub sessions: crate::sessions::Sessions,
}

/// The site and what of it is open.
#[derive(Debug)]
pub struct Service {
    pub(super) site: Arc<Site>,
    pub(super) engine: Option<(Arc<Engine>, Arc<Pool>)>,
    pub(super) serving: Option<Serving>,
    /// Where no engine runs: to be looked at only.
    pub(super) looked_at: Option<Arc<Pool>>,
    pub(super) fsck: Arc<Fsck>,
    /// Held during a change of nodes or of the pool: each begins with what the one before left.
    pub(super) pool_change: Arc<tokio::sync::Mutex<()>>,
}

impl Service {
    /// Over the catalog alone: tells, but changes nothing but nodes.
    pub fn of_catalog(site: Arc<Site>) -> Self {
        Self::new(site, None, None)
    }

    /// Over the catalog and the pool: tells, and looks.
    pub fn of_pool(site: Arc<Site>, pool: Arc<Pool>) -> Self {
        Self { looked_at: Some(pool), ..Self::new(site, None, None) }
    }

    /// Over an engine that serves nobody.
    pub fn of_engine(site: Arc<Site>, engine: Arc<Engine>, pool: Arc<Pool>) -> Self {
        Self::new(site, Some((engine, pool)), None)
    }

    /// Of a running gateway.
    pub fn of_gateway(site: Arc<Site>, engine: Arc<Engine>, pool: Arc<Pool>, serving: Serving) -> Self {
        Self::new(site, Some((engine, pool)), Some(serving))
    }

    fn new(site: Arc<Site>, engine: Option<(Arc<Engine>, Arc<Pool>)>, serving: Option<Serving>) -> Self {
        Self { site, engine, serving, looked_at: None, fsck: Arc::default(), pool_change: Arc::default() }
    }

    pub(super) fn engine(&self) -> Result<&Arc<Engine>> {
        self.engine.as_ref().map(|(engine, _)| engine).ok_or_else(|| GatewayError::Refused {
            kind: ErrorKind::Unavailable,
            what: "this needs an engine, and none runs".to_owned(),
            next: None,
        })
    }

    pub(super) fn open_volume(&self, name: &str) -> Result<Arc<EngineVolume>> {
        refuse_snapshot(name)?;
        self.engine()?.volume(name).ok_or_else(|| no_such_volume(name))
    }

    pub(super) async fn row(&self, name: &str) -> Result<VolumeRow> {
        refuse_snapshot(name)?;
        let valid = VolumeName::new(name)?;
        let rows = self.site.catalog.volumes().await?;
        rows.into_iter().find(|row| row.name == valid).ok_or_else(|| no_such_volume(name))
    }

    fn describe(&self, row: &VolumeRow, domains: &[DomainRow], snapshots: u64) -> Volume {
        let name = row.name.as_str();
        let domain = domains.iter().find(|domain| domain.id == row.domain);
        let mut volume = Volume {
            name: name.to_owned(),
            id: row.id.to_string(),
            size_bytes: row.size_bytes,
            durability: durability_name(row.durability).to_owned(),
            compress: row.compress,
            dedupe: row.dedupe,
            packing: reduction::packing(row),
            domain: domain.map_or_else(|| row.domain.to_string(), |domain| domain.name.to_string()),
            // Not what is usual: nobody shall take for sealed what may not be.
            encryption: domain.map_or("unknown", |domain| domain.encryption.name()).to_owned(),
            usage: reduction::usage(&row.usage),
            read_only: row.read_only,
            created_at_ms: row.created_at.unix_millis(),
            state: "stopped".to_owned(),
            reason: None,
            attachments: None,
            snapshots,
            space: None,
        };
        let (Some((engine, _)), Some(serving)) = (&self.engine, &self.serving) else { return volume };
        volume.attachments = Some(serving.sessions.of(row.id));
        if let Some(open) = engine.volume(name) {
            open.status().condition.clone_into(&mut volume.state);
        } else {
            "not served".clone_into(&mut volume.state);
            let reason = engine.not_served().find(|refused| refused.name == name);
            volume.reason = reason.map(|refused| refused.reason.clone());
        }
        volume
    }

    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        let domains = self.site.catalog.domains().await?;
        let mut volumes = Vec::new();
        for row in self.site.catalog.volumes().await? {
            volumes.push(self.describe(&row, &domains, self.snapshots_of(&row).await?));
        }
        Ok(volumes)
    }

    pub async fn volume(&self, name: &str) -> Result<Volume> {
        let domains = self.site.catalog.domains().await?;
        let row = self.row(name).await?;
        Ok(self.describe(&row, &domains, self.snapshots_of(&row).await?))
    }

    pub async fn create_volume(&self, asked: &CreateVolume) -> Result<Volume> {
        let name = VolumeName::new(asked.name.as_str())?;
        check_size(asked.size_bytes)?;
        let mut new = new_volume(name, asked.size_bytes, &self.site.ports);
        new.durability = match asked.durability {
            DurabilityChoice::Flush => Durability::Flush,
            DurabilityChoice::Always => Durability::Always,
        };
        new.compress = asked.compress;
        new.dedupe = asked.dedupe;
        let options = VolumeOptions {
            chunk_target_blocks: asked.chunk_target_blocks,
            chunk_max_blocks: asked.chunk_max_blocks,
            compression_level: asked.compression_level,
            verify_dedupe: asked.verify_dedupe,
        };
        options.shape()?;
        options.level()?;
        new.options = options.encode();
        if let Some(domain) = &asked.domain {
            new.domain = self.site.catalog.domain_by_name(&DomainName::new(domain.as_str())?).await?.id;
        }
        new.read_only = asked.read_only;
        self.engine()?.create_volume(&new).await?;
        tracing::info!(volume = asked.name, size_bytes = asked.size_bytes, "volume created");
        self.volume(&asked.name).await
    }

    pub async fn update_volume(&self, name: &str, change: &UpdateVolume) -> Result<Volume> {
        let open = self.open_volume(name)?;
        if let Some(size_bytes) = change.size_bytes {
            check_size(size_bytes)?;
            if size_bytes < open.size_bytes() && !change.force {
                return Err(GatewayError::refused(
                    ErrorKind::Conflict,
                    format!(
                        "{size_bytes} bytes is less than volume {name} has; what is cut off is destroyed"
                    ),
                    "shrink the file system in it first, then repeat with --force",
                ));
            }
            self.engine()?.resize_volume(name, size_bytes).await?;
            tracing::info!(volume = name, size_bytes, "volume resized");
        }
        let Some(to) = change.name.as_deref().filter(|to| *to != name) else {
            return self.volume(name).await;
        };
        self.engine()?.rename_volume(name, &VolumeName::new(to)?).await?;
        tracing::info!(volume = name, to, "volume renamed");
        self.volume(to).await
    }

    pub async fn delete_volume(&self, name: &str, force: bool) -> Result<()> {
        let volume = self.open_volume(name)?;
        let attachments = self.serving.as_ref().map_or(0, |serving| serving.sessions.of(volume.id()));
        if attachments > 0 && !force {
            return Err(GatewayError::refused(
                ErrorKind::Conflict,
                format!(
                    "volume {name} is in use by {}",
                    crate::human::counted(attachments, "client connection")
                ),
                "disconnect them first, or delete it all the same with --force",
            ));
        }
        self.engine()?.delete_volume(name, force).await?;
        tracing::info!(volume = name, "volume deleted");
        Ok(())
    }

    pub async fn read(&self, name: &str, range: RangeQuery) -> Result<ReadBuffer> {
        let length = u32::try_from(range.length).ok().filter(|length| u64::from(*length) <= PIECE_BYTES_MAX);
        let Some(length) = length else { return Err(piece_too_long(range.length)) };
        Ok(self.open_device(name).await?.read(range.offset, length).await?)
    }

    pub async fn write(&self, name: &str, offset: u64, bytes: Bytes) -> Result<()> {
        Ok(self.open_device(name).await?.write(offset, bytes, WriteFlags::default()).await?)
    }

    pub async fn write_zeroes(&self, name: &str, range: RangeQuery) -> Result<()> {
        Ok(self
            .open_device(name)
            .await?
            .write_zeroes(range.offset, range.length, WriteFlags::default())
            .await?)
    }

    pub async fn allocation(&self, name: &str, range: RangeQuery) -> Result<Vec<Extent>> {
        let found = self.open_device(name).await?.allocation(range.offset, range.length, EXTENTS_MAX).await?;
        let mut offset = range.offset;
        let place = |extent: &cairn_model::AllocationExtent| {
            let placed = Extent { offset, length: extent.length_bytes, allocated: extent.allocated };
            offset += extent.length_bytes;
            placed
        };
        Ok(found.iter().map(place).collect())
    }

    pub async fn flush(&self, name: &str) -> Result<()> {
        Ok(self.open_device(name).await?.flush().await?)
    }

    pub async fn destage(&self) -> Result<()> {
        Ok(self.engine()?.destage().await?)
    }

    pub fn cpu(&self) -> Cpu {
        let Some((engine, _)) = &self.engine else {
            return Cpu { budget: self.site.config.cpu.budget, ..Cpu::default() };
        };
        let cpu = engine.status().cpu;
        Cpu { budget: cpu.budget, threads: Some(cpu.threads), cores: Some(cpu.cores), raised: cpu.raised }
    }

    /// Changes the budget until the gateway ends.
    pub fn change_cpu(&self, change: ChangeCpu) -> Result<Cpu> {
        let Some((engine, _)) = &self.engine else {
            return Err(GatewayError::refused(
                ErrorKind::Unavailable,
                "no gateway runs here whose CPU budget could be changed",
                format!("write budget = \"{}\" under [cpu] in cairn.toml", change.budget.name()),
            ));
        };
        engine.set_cpu_budget(change.budget)?;
        tracing::info!(budget = change.budget.name(), "CPU budget changed");
        Ok(self.cpu())
    }
}

/// Runs a change to its end even if the client stops waiting.
pub(super) async fn to_its_end<T: Send + 'static>(
    what: &str,
    change: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    #[expect(clippy::disallowed_methods, reason = "a client that goes away does not end it")]
    let task = tokio::spawn(change);
    task.await.unwrap_or_else(|_| {
        Err(GatewayError::Refused {
            kind: ErrorKind::Internal,
            what: format!("{what} ended unexpectedly"),
            next: Some("restart the gateway, which settles it".to_owned()),
        })
    })
}

pub(super) const fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Flush => "flush",
        Durability::Always => "always",
    }
}

/// Fails when the name is that of a snapshot, where a volume is meant.
fn refuse_snapshot(name: &str) -> Result<()> {
    if !name.contains(SEPARATOR) {
        return Ok(());
    }
    Err(GatewayError::refused(
        ErrorKind::Unsupported,
        format!("{name} is no volume: VOLUME@NAME names a snapshot"),
        "name the volume alone; `cairn snapshot --help` says what can be done with a snapshot",
    ))
}

fn no_such_volume(name: &str) -> GatewayError {
    GatewayError::refused(
        ErrorKind::NotFound,
        format!("there is no volume named {name}"),
        "`cairn volume list` shows those there are",
    )
}

fn piece_too_long(length: u64) -> GatewayError {
    GatewayError::refused(
        ErrorKind::Unsupported,
        format!("{length} bytes were asked for at once"),
        format!("ask for at most {PIECE_BYTES_MAX}"),
    )
}

/// A volume's size is a positive number of sectors, up to the largest volume.
pub fn check_size(size_bytes: u64) -> Result<()> {
    let problem = if size_bytes == 0 {
        "a volume cannot be empty".to_owned()
    } else if !size_bytes.is_multiple_of(SECTOR_BYTES) {
        format!("{size_bytes} bytes is not a multiple of {SECTOR_BYTES}")
    } else if size_bytes > VOLUME_BYTES_MAX {
        format!("{size_bytes} bytes is more than the largest volume has")
    } else {
        return Ok(());
    };
    Err(GatewayError::refused(
        ErrorKind::Unsupported,
        problem,
        format!("choose a multiple of {SECTOR_BYTES} bytes up to 64TiB, such as 10GiB"),
    ))
}
