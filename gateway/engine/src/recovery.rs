//! Starting: leases first, then the log.
//!
//! Order: (1) read what the catalog says of the log; (2) open the log, which refuses to be made anew where one is
//! expected; (3) take every volume's lease; (4) replay; (5) open the log for writing. A crash anywhere here leaves the log as it was.
//!
//! A record is replayed when the catalog does not have it (`seq > destaged_through`) and this gateway has owned the
//! volume without a break since it was written (`generation >= held_since`): otherwise another gateway has written
//! since, and the record belongs to a history that ended. A record of a volume that is gone is dropped. A gap in a
//! volume's order is an error, never skipped. So is a record of a volume that could not be opened for a reason that may pass.

use crate::config::EngineConfig;
use crate::dedupe::{Dedupe, Lessons};
use crate::destage::{Cut, Destage, Request};
use crate::domains::Domains;
use crate::engine::{EngineParts, Opened, Shared, assemble};
use crate::error::EngineError;
use crate::lease::LeaseTerm;
use crate::options::packing;
use crate::pressure::RECORD_COST;
use crate::snapshot::decode_note;
use crate::status::NotServed;
use crate::tasks::Tasks;
use crate::volume::Volume;
use crate::volume::buffer::{Buffered, Layer, WriteBuffer};
use crate::volume::map::{ExtentMap, MapTerm};
use crate::wal_state::WalStateFlag;
use cairn_metadata::{Catalog, LeaseStamp, VolumeRow, WalState};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{
    BLOCK_SIZE, CommitSeq, ErrorKind, GatewayId, Generation, Kinded, Lba, LbaRange, Lsn, Ports, VolumeId,
};
use cairn_segment_writer::VolumePacking;
use cairn_wal::{Record, RecordBody, Recovery, Wal, WalError, WalIdentity};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// An engine that has recovered and runs nothing yet.
pub(crate) struct Recovered {
    pub(crate) shared: Arc<Shared>,
    pub(crate) destage_requests: mpsc::Receiver<Request>,
    pub(crate) lessons: Lessons,
    pub(crate) not_served: Vec<NotServed>,
}

/// A volume whose lease is ours and whose map is in memory.
pub(crate) struct OpenVolume {
    pub(crate) row: VolumeRow,
    pub(crate) packing: VolumePacking,
    pub(crate) lease: LeaseTerm,
    /// The term in which this gateway's unbroken ownership began.
    held_since: Generation,
    pub(crate) map: ExtentMap,
    pub(crate) buffer: WriteBuffer,
}

/// Takes the lease of a volume and loads what its map needs. `unrenewed` is the state of another gateway's lease that was watched
/// for its whole term.
pub(crate) async fn open_volume(
    catalog: &dyn Catalog,
    domains: &Domains,
    ports: &Ports,
    gateway: GatewayId,
    ttl: Duration,
    id: VolumeId,
    unrenewed: Option<LeaseStamp>,
) -> Result<OpenVolume, EngineError> {
    // Before the lease: a volume that cannot be served here is left to whoever can.
    packing(&catalog.volume(id).await?, domains)?;
    let asked = ports.clock.now();
    let lease = catalog.acquire_lease(id, gateway, ports.clock.wall(), ttl, unrenewed).await?;
    // Read only now: another owner may have committed until the lease was ours.
    let row = catalog.volume(id).await?;
    let packing = packing(&row, domains)?;
    let mut map = ExtentMap::new(MapTerm::head(row.lineage, lease.generation), row.folded_through);
    let snapshots = catalog.snapshots(id).await?;
    let own = snapshots.iter().filter(|snapshot| snapshot.at.lineage == row.lineage);
    let pinned: BTreeSet<CommitSeq> = own.map(|snapshot| snapshot.at.commit).collect();
    for (commit, delta) in catalog.unfolded_deltas(row.lineage).await? {
        map.apply(commit, &delta);
        if pinned.contains(&commit) {
            map.pin();
        }
    }
    let buffer = WriteBuffer::after(row.destaged_through);
    let lease_term = LeaseTerm::new(lease.generation, asked, ttl);
    Ok(OpenVolume { row, packing, lease: lease_term, held_since: lease.held_since, map, buffer })
}

pub(crate) async fn recover(
    mut config: EngineConfig,
    mut parts: EngineParts,
    tasks: Tasks,
) -> Result<Recovered, EngineError> {
    let catalog = &*parts.catalog;
    let wal_state = catalog.gateway(parts.gateway).await?.wal_state;
    config.wal.create = wal_state == WalState::Clean || config.accept_lost_wal;
    let identity = WalIdentity { site: parts.site, gateway: parts.gateway };
    let disk = Arc::clone(&parts.wal_disk);
    let opened = Wal::open(config.wal.clone(), identity, &parts.wal_key, disk, parts.ports.clone());
    let recovery = match opened.await {
        Ok(recovery) => recovery,
        Err(WalError::NotFound { location }) => return Err(EngineError::LostWal(location)),
        Err(error) => return Err(error.into()),
    };
    let domains = Domains::new(std::mem::take(&mut parts.domains));
    let mut replay = Replay::new(&config);
    let mut not_served = Vec::new();
    for row in catalog.volumes().await? {
        let opened =
            open_volume(catalog, &domains, &parts.ports, parts.gateway, config.lease_ttl, row.id, None);
        match opened.await {
            Ok(volume) => {
                replay.volumes.insert(row.id, volume);
            }
            Err(error) => {
                tracing::error!(volume = %row.name, %error, "the volume is not served");
                not_served.push(NotServed { name: row.name.to_string(), reason: error.to_string() });
                replay.refused.insert(row.id, error);
            }
        }
    }
    let wal = replay.run(recovery).await?;
    let (destage, destage_requests) = Destage::new();
    let flag = Arc::new(WalStateFlag::new(parts.gateway, wal_state));
    let (dedupe, lessons) = Dedupe::new(Arc::clone(&parts.fingerprints), Arc::clone(&parts.ports.spawn))?;
    let opened = Opened { wal, wal_state: flag, destage, dedupe, domains };
    let shared = assemble(config, parts, tasks, opened)?;
    replay.hand_over(&shared);
    Ok(Recovered { shared, destage_requests, lessons, not_served })
}

/// Batches cut during replay, by volume.
type RecoveredCut = (Lsn, Vec<(VolumeId, Arc<Layer>)>);

/// The replay of a log into write buffers.
struct Replay {
    volumes: BTreeMap<VolumeId, OpenVolume>,
    /// Volumes that could not be opened.
    refused: BTreeMap<VolumeId, EngineError>,
    cuts: Vec<RecoveredCut>,
    batch_bytes: u64,
    memory_bytes_max: u64,
    /// Bytes since the last cut.
    since_cut: u64,
    /// The last record was a snapshot's.
    marked: bool,
    /// Bytes that frozen layers keep in memory.
    resident: u64,
    last: Lsn,
    replayed: u64,
    already: u64,
    stale: u64,
}

impl Replay {
    fn new(config: &EngineConfig) -> Self {
        Self {
            volumes: BTreeMap::new(),
            refused: BTreeMap::new(),
            cuts: Vec::new(),
            batch_bytes: config.batch_bytes,
            memory_bytes_max: config.write_buffer_bytes,
            since_cut: 0,
            marked: false,
            resident: 0,
            last: Lsn::ZERO,
            replayed: 0,
            already: 0,
            stale: 0,
        }
    }

    async fn run(&mut self, mut recovery: Recovery) -> Result<Wal, EngineError> {
        while let Some(frame) = recovery.next().await? {
            for (lsn, record) in frame {
                self.take(lsn, record)?;
            }
            if self.since_cut >= self.batch_bytes {
                self.cut();
            }
        }
        let Self { replayed, already, stale, .. } = *self;
        tracing::info!(replayed, already, stale, "replayed the write-ahead log");
        if stale > 0 {
            tracing::warn!(
                stale,
                "log records of volumes that were deleted or have changed hands were left out"
            );
        }
        Ok(recovery.finish().await?)
    }

    fn take(&mut self, lsn: Lsn, record: Record) -> Result<(), EngineError> {
        if self.marked && !matches!(record.body, RecordBody::Mark { .. }) {
            // What follows is in none of the snapshots, which were taken at one moment.
            self.cut();
        }
        self.last = lsn;
        let Some(volume) = self.volumes.get_mut(&record.volume) else {
            return self.take_unopened(&record);
        };
        if record.generation < volume.held_since && !is_planted(Bug::ReplayStaleTerm) {
            self.stale += 1;
            return Ok(());
        }
        let expected = volume.buffer.last_seq().next();
        if record.seq < expected {
            self.already += 1;
            return Ok(());
        }
        if record.seq > expected {
            return Err(EngineError::LogGap {
                volume: volume.row.name.to_string(),
                expected: expected.get(),
                found: record.seq.get(),
            });
        }
        let data_bytes = match &record.body {
            RecordBody::Write { data, .. } => data.len() as u64,
            RecordBody::Discard { .. } | RecordBody::Mark { .. } => 0,
        };
        let skipped = is_planted(Bug::SkipReplayedRecord) && record.seq.get().is_multiple_of(8);
        let (range, what) = match record.body {
            RecordBody::Write { start, data } => {
                let range = LbaRange::new(start, data.len() as u64 / u64::from(BLOCK_SIZE));
                let range = range.expect("the log checks its records");
                (range, Buffered::Data { lsn, skip_blocks: 0, bytes: Some(data) })
            }
            RecordBody::Discard { range } => (range, Buffered::Hole { lsn }),
            RecordBody::Mark { .. } if is_planted(Bug::ForgetMarkAtReplay) => {
                (LbaRange::between(Lba::ZERO, Lba::ZERO), Buffered::Hole { lsn })
            }
            RecordBody::Mark { note } => {
                volume.buffer.mark(record.seq, decode_note(&note)?);
                self.since_cut += RECORD_COST;
                self.replayed += 1;
                self.marked = true;
                return Ok(());
            }
        };
        let range = if skipped { LbaRange::between(range.start(), range.start()) } else { range };
        volume.buffer.apply(record.seq, range, what);
        self.since_cut += data_bytes + RECORD_COST;
        self.replayed += 1;
        Ok(())
    }

    /// A record of a volume that was deleted or that another gateway owns belongs to nobody. Any other reason not to open
    /// its volume may pass, and the log must not forget the record until it has.
    fn take_unopened(&mut self, record: &Record) -> Result<(), EngineError> {
        match self.refused.get(&record.volume) {
            Some(error) if !matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Fenced) => {
                Err(error.clone())
            }
            _ => {
                self.stale += 1;
                Ok(())
            }
        }
    }

    /// Cuts batches as small as those of a running gateway; what memory cannot hold stays in the log alone.
    fn cut(&mut self) {
        let strip = self.resident + self.since_cut > self.memory_bytes_max;
        let mut layers = Vec::new();
        for (id, volume) in &mut self.volumes {
            if let Some(layer) = volume.buffer.freeze(strip) {
                self.resident += layer.resident_bytes();
                layers.push((*id, layer));
            }
        }
        self.cuts.push((self.last, layers));
        self.since_cut = 0;
        self.marked = false;
    }

    /// Puts the volumes into service and their batches before destage.
    fn hand_over(mut self, shared: &Arc<Shared>) {
        self.cut();
        let mut volumes = BTreeMap::new();
        for (id, open) in self.volumes {
            let name = open.row.name.to_string();
            let volume = Arc::new(Volume::new(open, Arc::clone(shared)));
            shared.registry.insert(name, Arc::clone(&volume)).expect("the catalog's names differ");
            volumes.insert(id, volume);
        }
        shared.pressure.adopted(self.resident);
        for (through, layers) in self.cuts {
            let parts = layers.into_iter().map(|(id, layer)| (Arc::clone(&volumes[&id]), layer)).collect();
            shared.destage.recovered(Cut { through, parts });
        }
    }
}
