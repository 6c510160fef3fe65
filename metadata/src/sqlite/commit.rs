//! Committing a batch: one transaction whose cost depends on the batch alone.
//!
//! Order inside the transaction: recognise the batch, check every volume (term, then base), record segments and
//! containers, check that no delta points at a container that its volume's domain does not have, append the deltas, take the
//! snapshots, remember the receipt.

use super::columns::{Columns, KEYS_AT_ONCE, KeyListQuery, filled_up, int};
use super::leases::LeaseState;
use super::tally::Tally;
use super::{Result, SqliteCatalog, domains, failed, placements, snapshots};
use crate::{BatchCommit, CatalogError, CommitReceipt, MapPoint, VolumeCommit, VolumeOutcome, VolumeReceipt};
use cairn_model::{
    BatchId, ChunkRef, ChunkSet, CommitSeq, ContainerId, DomainId, GatewayId, LineageId, MapTarget, VolumeId,
    WriteSeq,
};
use sqlx::SqliteConnection;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Display;
use std::sync::LazyLock;

/// Batches remembered per gateway: more than ever wait for their reply at once.
const BATCHES_REMEMBERED: i64 = 64;
const RECEIPT_VERSION: u8 = 1;
const RECEIPT_ENTRY_BYTES: usize = 24;
const DOING: &str = "committing a batch";

pub(super) async fn commit(catalog: &SqliteCatalog, batch: &BatchCommit) -> Result<CommitReceipt> {
    let mut deltas = Vec::with_capacity(batch.volumes.len());
    for volume in &batch.volumes {
        if volume.through < volume.base {
            return Err(CatalogError::Invalid(format!(
                "a batch of volume {} through {} that begins at {}",
                volume.volume, volume.through, volume.base
            )));
        }
        deltas.push(volume.delta.encode().map_err(|error| CatalogError::of_blob("map delta", error))?);
    }
    let mut change = catalog.begin().await?;
    if let Some(receipt) = recognise(&mut change, batch).await? {
        return Ok(receipt);
    }
    let mut receipt = CommitReceipt { batch: batch.batch, volumes: Vec::with_capacity(batch.volumes.len()) };
    let mut domains = Vec::with_capacity(batch.volumes.len());
    for volume in &batch.volumes {
        let advanced = advance(&mut change, batch.gateway, volume).await?;
        let outcome = advanced.map_or(VolumeOutcome::Deleted, |(commit, _)| VolumeOutcome::Committed(commit));
        receipt.volumes.push(VolumeReceipt { volume: volume.volume, outcome });
        domains.push(advanced.map(|(_, domain)| domain));
    }
    insert_segments(&mut change, batch).await?;
    let fresh = insert_containers(&mut change, batch).await?;
    check_containers(&mut change, batch, &domains, &fresh).await?;
    for ((volume, delta), part) in batch.volumes.iter().zip(deltas).zip(&receipt.volumes) {
        if let VolumeOutcome::Committed(commit) = part.outcome {
            sqlx::query("INSERT INTO deltas (lineage, commit_seq, delta) VALUES ($1, $2, $3)")
                .bind(&volume.lineage.as_bytes()[..])
                .bind(int(commit.get())?)
                .bind(delta)
                .execute(&mut *change)
                .await
                .map_err(failed(DOING))?;
            let at = MapPoint { lineage: volume.lineage, commit };
            snapshots::take(&mut change, volume.volume, at, &volume.snapshots).await?;
        }
    }
    remember(&mut change, batch.gateway, &receipt).await?;
    change.commit().await.map_err(failed(DOING))?;
    Ok(receipt)
}

/// The receipt of a batch that is committed already.
async fn recognise(change: &mut SqliteConnection, batch: &BatchCommit) -> Result<Option<CommitReceipt>> {
    let row = sqlx::query("SELECT gateway, receipt FROM batches WHERE id = $1")
        .bind(&batch.batch.as_bytes()[..])
        .fetch_optional(change)
        .await
        .map_err(failed(DOING))?;
    let Some(row) = row else { return Ok(None) };
    let columns = Columns::new(&row, "batch");
    if columns.identity("gateway", GatewayId::from_bytes)? != batch.gateway {
        return Err(CatalogError::Invalid(format!("batch {} is another gateway's", batch.batch)));
    }
    decode_receipt(batch.batch, columns.get("receipt")?).map(Some)
}

/// Moves the volume and its lineage on by one commit. `None`: the volume is deleted.
async fn advance(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    part: &VolumeCommit,
) -> Result<Option<(CommitSeq, DomainId)>> {
    let sql = "SELECT v.lineage, v.domain, v.destaged_through, v.deleted, n.last_commit, l.gateway, l.generation, \
               l.held_since, l.released, l.expires_at FROM volumes v JOIN lineages n ON n.id = v.lineage \
               LEFT JOIN leases l ON l.volume = v.id WHERE v.id = $1";
    let row = sqlx::query(sql)
        .bind(&part.volume.as_bytes()[..])
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(DOING))?;
    // No row: deleted and purged. Its lease was acquired once, so it did exist.
    let Some(row) = row else { return Ok(None) };
    let columns = Columns::new(&row, "volume");
    if columns.get("deleted")? {
        return Ok(None);
    }
    LeaseState::check(LeaseState::of(&row)?.as_ref(), part.volume, gateway, part.generation)?;
    if columns.identity("lineage", LineageId::from_bytes)? != part.lineage {
        return Err(CatalogError::Invalid(format!(
            "lineage {} is not that of {}",
            part.lineage, part.volume
        )));
    }
    let committed = WriteSeq::new(columns.number("destaged_through")?);
    if committed != part.base {
        return Err(CatalogError::NotNext { volume: part.volume, base: part.base, committed });
    }
    let commit = CommitSeq::new(columns.number("last_commit")?).next();
    move_on(change, part).await?;
    sqlx::query("UPDATE lineages SET last_commit = $1 WHERE id = $2")
        .bind(int(commit.get())?)
        .bind(&part.lineage.as_bytes()[..])
        .execute(change)
        .await
        .map_err(failed(DOING))?;
    Ok(Some((commit, columns.identity("domain", DomainId::from_bytes)?)))
}

async fn move_on(change: &mut SqliteConnection, part: &VolumeCommit) -> Result<()> {
    let sql = "UPDATE volumes SET destaged_through = $1, written_bytes = written_bytes + $2, \
               zero_bytes = zero_bytes + $3, shared_bytes = shared_bytes + $4, unique_bytes = unique_bytes + $5, \
               stored_bytes = stored_bytes + $6 WHERE id = $7";
    let done = &part.reduction;
    sqlx::query(sql)
        .bind(int(part.through.get())?)
        .bind(int(done.written_bytes)?)
        .bind(int(done.zero_bytes)?)
        .bind(int(done.shared_bytes)?)
        .bind(int(done.unique_bytes)?)
        .bind(int(done.stored_bytes)?)
        .bind(&part.volume.as_bytes()[..])
        .execute(change)
        .await
        .map(drop)
        .map_err(failed(DOING))
}

async fn insert_segments(change: &mut SqliteConnection, batch: &BatchCommit) -> Result<()> {
    let mut tally = Tally::default();
    for segment in &batch.segments {
        let receipt = &segment.receipt;
        placements::insert(change, receipt.segment(), receipt.place(), &mut tally).await?;
        placements::refuse_doomed(change, receipt.segment(), receipt.place()).await?;
    }
    tally.write(change).await
}

/// Returns those that are recorded: of domains that are there.
async fn insert_containers(
    change: &mut SqliteConnection,
    batch: &BatchCommit,
) -> Result<HashSet<(DomainId, ContainerId)>> {
    let mut live = BTreeMap::new();
    let mut fresh = HashSet::with_capacity(batch.containers.len());
    // Segments whose containers are of domains that were deleted meanwhile.
    let mut of_gone = BTreeSet::new();
    let (mut stored, mut raw) = (0, 0);
    for container in &batch.containers {
        let domain = container.domain;
        if let Entry::Vacant(unknown) = live.entry(domain) {
            unknown.insert(domains::exists(change, domain).await?);
        }
        if !live[&domain] {
            of_gone.insert(container.segment);
            continue;
        }
        let sql = "INSERT INTO containers (id, segment, segment_offset, length_bytes, raw_bytes, domain, directory) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7)";
        sqlx::query(sql)
            .bind(&container.id.as_bytes()[..])
            .bind(&container.segment.as_bytes()[..])
            .bind(int(container.offset)?)
            .bind(i64::from(container.length))
            .bind(int(container.raw_bytes)?)
            .bind(&domain.as_bytes()[..])
            .bind(&container.directory[..])
            .execute(&mut *change)
            .await
            .map_err(|error| refused(error, ("container", &container.id), ("segment", &container.segment)))?;
        fresh.insert((domain, container.id));
        stored += u64::from(container.length);
        raw = container.raw_bytes.saturating_add(raw);
    }
    let sql = "UPDATE totals SET containers = containers + $1, container_bytes = container_bytes + $2, \
               container_raw_bytes = container_raw_bytes + $3";
    sqlx::query(sql)
        .bind(int(fresh.len() as u64)?)
        .bind(int(stored)?)
        .bind(int(raw)?)
        .execute(&mut *change)
        .await
        .map_err(failed(DOING))?;
    if !of_gone.is_empty() {
        let mut tally = Tally::default();
        for segment in of_gone {
            placements::doom_if_empty(change, segment, &mut tally).await?;
        }
        tally.write(change).await?;
    }
    Ok(fresh)
}

/// The error of an insertion: `new` may exist already, `base`, which it refers to, may not exist.
fn refused(
    error: sqlx::Error,
    new: (&'static str, &dyn Display),
    base: (&'static str, &dyn Display),
) -> CatalogError {
    match error.as_database_error().map(sqlx::error::DatabaseError::kind) {
        Some(sqlx::error::ErrorKind::UniqueViolation) => {
            CatalogError::AlreadyExists { what: new.0, id: new.1.to_string() }
        }
        Some(sqlx::error::ErrorKind::ForeignKeyViolation) => CatalogError::not_found(base.0, &base.1),
        _ => failed(DOING)(error),
    }
}

/// A container that a delta points at: the domain of the delta's volume, the container, the volume.
type Needed = (DomainId, ContainerId, VolumeId);

/// Fails when a committed delta points at a container that is neither new in the batch nor known, at a chunk that was left out of one, or at one of
/// another domain. `domains` has the domain of each part that is committed.
async fn check_containers(
    change: &mut SqliteConnection,
    batch: &BatchCommit,
    domains: &[Option<DomainId>],
    fresh: &HashSet<(DomainId, ContainerId)>,
) -> Result<()> {
    let mut needed: Vec<Needed> = Vec::new();
    for (part, domain) in batch.volumes.iter().zip(domains) {
        let Some(domain) = *domain else { continue };
        let mut latest = None;
        for op in &part.delta.ops {
            let MapTarget::Chunk(ChunkRef { chunk, .. }) = op.target else { continue };
            let container = chunk.container;
            if latest.replace(container) != Some(container) && !fresh.contains(&(domain, container)) {
                needed.push((domain, container, part.volume));
            }
        }
    }
    needed.sort_unstable();
    needed.dedup_by_key(|(domain, container, _)| (*domain, *container));
    let of_one_domain = needed.chunk_by(|one, next| one.0 == next.0);
    let mut thinned = HashMap::new();
    for keys in of_one_domain.flat_map(|keys| keys.chunks(KEYS_AT_ONCE)) {
        let known = known_containers(change, keys).await?;
        if let Some((_, container, volume)) =
            keys.iter().find(|(_, container, _)| !known.contains_key(container))
        {
            return Err(CatalogError::UnknownContainer { volume: *volume, container: *container });
        }
        thinned.extend(known.into_iter().filter_map(|(id, present)| Some((id, present?))));
    }
    if thinned.is_empty() {
        return Ok(());
    }
    for part in &batch.volumes {
        for op in &part.delta.ops {
            let MapTarget::Chunk(ChunkRef { chunk, .. }) = op.target else { continue };
            if thinned.get(&chunk.container).is_some_and(|present| !present.contains(chunk.index)) {
                return Err(CatalogError::UnknownContainer {
                    volume: part.volume,
                    container: chunk.container,
                });
            }
        }
    }
    Ok(())
}

/// Which of `keys`, all of one domain, are there, and which chunks of those that some were left out of.
async fn known_containers(
    change: &mut SqliteConnection,
    keys: &[Needed],
) -> Result<HashMap<ContainerId, Option<ChunkSet>>> {
    static KNOWN: LazyLock<KeyListQuery> = LazyLock::new(|| {
        KeyListQuery::new(
            "SELECT c.id, t.present FROM containers c LEFT JOIN thinned t ON t.container = c.id WHERE c.domain = $1 AND c.id IN ({keys}) \
             AND NOT EXISTS (SELECT 1 FROM closed WHERE container = c.id)",
            2,
        )
    });
    let Some((domain, _, _)) = keys.first() else { return Ok(HashMap::new()) };
    let (sql, length) = KeyListQuery::for_length(&KNOWN, keys.len());
    let mut query = sqlx::query(sql).bind(domain.as_bytes().to_vec());
    for (_, container, _) in filled_up(keys, length) {
        query = query.bind(container.as_bytes().to_vec());
    }
    let rows = query.fetch_all(change).await.map_err(failed(DOING))?;
    rows.iter()
        .map(|row| {
            let columns = Columns::new(row, "container");
            let present = columns.get::<Option<&[u8]>>("present")?.map(|bytes| {
                ChunkSet::from_bytes(bytes).ok_or_else(|| columns.bad("present", "what is no set of chunks"))
            });
            Ok((columns.identity("id", ContainerId::from_bytes)?, present.transpose()?))
        })
        .collect()
}

/// Keeps the receipt, forgets the gateway's oldest.
async fn remember(change: &mut SqliteConnection, gateway: GatewayId, receipt: &CommitReceipt) -> Result<()> {
    let number: Option<i64> =
        sqlx::query_scalar("UPDATE gateways SET batches = batches + 1 WHERE id = $1 RETURNING batches")
            .bind(&gateway.as_bytes()[..])
            .fetch_optional(&mut *change)
            .await
            .map_err(failed(DOING))?;
    let number = number.ok_or_else(|| CatalogError::not_found("gateway", &gateway))?;
    sqlx::query("INSERT INTO batches (id, gateway, number, receipt) VALUES ($1, $2, $3, $4)")
        .bind(&receipt.batch.as_bytes()[..])
        .bind(&gateway.as_bytes()[..])
        .bind(number)
        .bind(encode_receipt(receipt))
        .execute(&mut *change)
        .await
        .map_err(failed(DOING))?;
    sqlx::query("DELETE FROM batches WHERE gateway = $1 AND number <= $2")
        .bind(&gateway.as_bytes()[..])
        .bind(number - BATCHES_REMEMBERED)
        .execute(change)
        .await
        .map(drop)
        .map_err(failed(DOING))
}

fn encode_receipt(receipt: &CommitReceipt) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + receipt.volumes.len() * RECEIPT_ENTRY_BYTES);
    bytes.push(RECEIPT_VERSION);
    for part in &receipt.volumes {
        bytes.extend_from_slice(part.volume.as_bytes());
        let commit = match part.outcome {
            VolumeOutcome::Committed(commit) => commit,
            VolumeOutcome::Deleted => CommitSeq::ZERO,
        };
        bytes.extend_from_slice(&commit.get().to_be_bytes());
    }
    bytes
}

fn decode_receipt(batch: BatchId, bytes: &[u8]) -> Result<CommitReceipt> {
    let damaged = || CatalogError::corrupt("batch receipt", &format!("{} bytes", bytes.len()));
    let (version, entries) = bytes.split_first().ok_or_else(damaged)?;
    if *version != RECEIPT_VERSION {
        return Err(CatalogError::NewerBlob { what: "batch receipt", detail: format!("version {version}") });
    }
    let (entries, rest) = entries.as_chunks::<RECEIPT_ENTRY_BYTES>();
    if !rest.is_empty() {
        return Err(damaged());
    }
    let volume = |entry: &[u8; RECEIPT_ENTRY_BYTES]| {
        let (volume, commit) = entry.split_first_chunk::<16>().expect("an entry is longer");
        let commit = u64::from_be_bytes(*commit.first_chunk().expect("an entry has 24 bytes"));
        let outcome = match commit {
            0 => VolumeOutcome::Deleted,
            commit => VolumeOutcome::Committed(CommitSeq::new(commit)),
        };
        VolumeReceipt { volume: VolumeId::from_bytes(*volume), outcome }
    };
    Ok(CommitReceipt { batch, volumes: entries.iter().map(volume).collect() })
}
