//! Who may write a volume.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, failed};
use crate::{CatalogError, HeldLease, Lease, LeaseStamp, VolumeName};
use cairn_model::{GatewayId, Generation, VolumeId, WallTime};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use std::time::Duration;

/// The lease row of a volume.
pub(super) struct LeaseState {
    gateway: GatewayId,
    generation: Generation,
    held_since: Generation,
    released: bool,
    expires_at: WallTime,
}

impl LeaseState {
    fn stamp(&self) -> LeaseStamp {
        LeaseStamp { generation: self.generation, expires_at: self.expires_at }
    }

    /// From columns `gateway`, `generation`, `held_since`, `released`, `expires_at`; `None` when they are null.
    pub(super) fn of(row: &SqliteRow) -> Result<Option<Self>> {
        let columns = Columns::new(row, "lease");
        let Some(gateway) = columns.optional_identity("gateway", GatewayId::from_bytes)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            gateway,
            generation: Generation::new(columns.number("generation")?),
            held_since: Generation::new(columns.number("held_since")?),
            released: columns.get("released")?,
            expires_at: WallTime::from_unix_millis(columns.number("expires_at")?),
        }))
    }

    /// Fails unless `gateway` is in term `generation` and has not ended it.
    pub(super) fn check(
        state: Option<&Self>,
        volume: VolumeId,
        gateway: GatewayId,
        generation: Generation,
    ) -> Result<()> {
        match state {
            Some(lease) if lease.gateway == gateway && lease.generation == generation && !lease.released => {
                Ok(())
            }
            _ => Err(CatalogError::Fenced {
                volume,
                presented: generation,
                current: state.map_or(Generation::ZERO, |lease| lease.generation),
            }),
        }
    }
}

async fn state_of(
    change: &mut SqliteConnection,
    volume: VolumeId,
) -> Result<(VolumeName, Option<LeaseState>)> {
    let sql = "SELECT v.name, l.gateway, l.generation, l.held_since, l.released, l.expires_at FROM volumes v \
               LEFT JOIN leases l ON l.volume = v.id WHERE v.id = $1 AND v.deleted = 0";
    let row = sqlx::query(sql)
        .bind(&volume.as_bytes()[..])
        .fetch_optional(change)
        .await
        .map_err(failed("reading a lease"))?
        .ok_or_else(|| CatalogError::not_found("volume", &volume))?;
    let name: &str = Columns::new(&row, "volume").get("name")?;
    let name = VolumeName::new(name).map_err(|error| CatalogError::corrupt("volume", &error))?;
    Ok((name, LeaseState::of(&row)?))
}

async fn gateway_name(change: &mut SqliteConnection, gateway: GatewayId) -> Result<Option<String>> {
    sqlx::query_scalar("SELECT name FROM gateways WHERE id = $1")
        .bind(&gateway.as_bytes()[..])
        .fetch_optional(change)
        .await
        .map_err(failed("reading a gateway"))
}

/// Fails unless `gateway` is in the term of `held`, or with `NotFound` when there is no such volume.
pub(super) async fn check_held(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    held: HeldLease,
) -> Result<()> {
    let (_, state) = state_of(change, held.volume).await?;
    LeaseState::check(state.as_ref(), held.volume, gateway, held.generation)
}

fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}

fn end_of(now: WallTime, ttl: Duration) -> WallTime {
    WallTime::from_unix_millis(now.unix_millis().saturating_add(millis(ttl)))
}

/// Why another gateway cannot have the volume.
async fn refuse(
    change: &mut SqliteConnection,
    id: VolumeId,
    volume: VolumeName,
    lease: &LeaseState,
) -> Result<CatalogError> {
    let holder = gateway_name(change, lease.gateway).await?.unwrap_or_else(|| lease.gateway.to_string());
    let row = sqlx::query("SELECT term_ms FROM leases WHERE volume = $1")
        .bind(&id.as_bytes()[..])
        .fetch_one(change)
        .await
        .map_err(failed("reading a lease"))?;
    let term = Duration::from_millis(Columns::new(&row, "lease").number("term_ms")?);
    Ok(CatalogError::LeaseHeld { volume, holder, stamp: lease.stamp(), term })
}

pub(super) async fn acquire(
    catalog: &SqliteCatalog,
    volume: VolumeId,
    gateway: GatewayId,
    now: WallTime,
    ttl: Duration,
    unrenewed: Option<LeaseStamp>,
) -> Result<Lease> {
    let doing = "acquiring a lease";
    let mut change = catalog.begin().await?;
    let (name, before) = state_of(&mut change, volume).await?;
    if gateway_name(&mut change, gateway).await?.is_none() {
        return Err(CatalogError::not_found("gateway", &gateway));
    }
    if let Some(lease) = &before
        && lease.gateway != gateway
        && !lease.released
        && unrenewed != Some(lease.stamp())
    {
        return Err(refuse(&mut change, volume, name, lease).await?);
    }
    let generation = before.as_ref().map_or(Generation::ZERO, |lease| lease.generation).next();
    let unbroken = before.as_ref().filter(|lease| lease.gateway == gateway);
    let held_since = unbroken.map_or(generation, |lease| lease.held_since);
    let expires_at = end_of(now, ttl);
    let sql = "INSERT INTO leases (volume, gateway, generation, held_since, released, expires_at, term_ms) \
               VALUES ($1, $2, $3, $4, 0, $5, $6) ON CONFLICT (volume) DO UPDATE SET \
               gateway = excluded.gateway, generation = excluded.generation, held_since = excluded.held_since, \
               released = 0, expires_at = excluded.expires_at, term_ms = excluded.term_ms";
    sqlx::query(sql)
        .bind(&volume.as_bytes()[..])
        .bind(&gateway.as_bytes()[..])
        .bind(int(generation.get())?)
        .bind(int(held_since.get())?)
        .bind(int(expires_at.unix_millis())?)
        .bind(int(millis(ttl))?)
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    change.commit().await.map_err(failed(doing))?;
    let previous = before.map(|lease| (lease.gateway, lease.generation));
    Ok(Lease { generation, held_since, previous, expires_at })
}

pub(super) async fn renew(
    catalog: &SqliteCatalog,
    gateway: GatewayId,
    held: &[HeldLease],
    now: WallTime,
    ttl: Duration,
) -> Result<Vec<Result<WallTime>>> {
    let doing = "renewing leases";
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let mut change = catalog.begin().await?;
    let mut renewals = Vec::with_capacity(held.len());
    for HeldLease { volume, generation } in held {
        let state = match state_of(&mut change, *volume).await {
            Ok((_, state)) => state,
            Err(error @ CatalogError::NotFound { .. }) => {
                renewals.push(Err(error));
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Err(error) = LeaseState::check(state.as_ref(), *volume, gateway, *generation) {
            renewals.push(Err(error));
            continue;
        }
        let granted = state.map_or(WallTime::default(), |lease| lease.expires_at);
        // Another state each time, whatever this clock says: that is what the others watch.
        let expires_at = end_of(now, ttl).max(WallTime::from_unix_millis(granted.unix_millis() + 1));
        sqlx::query("UPDATE leases SET expires_at = $1 WHERE volume = $2")
            .bind(int(expires_at.unix_millis())?)
            .bind(&volume.as_bytes()[..])
            .execute(&mut *change)
            .await
            .map_err(failed(doing))?;
        renewals.push(Ok(expires_at));
    }
    change.commit().await.map_err(failed(doing))?;
    Ok(renewals)
}

/// Raises the term of a lease to `term`, which is above all that anybody may have had.
pub(super) async fn raise(
    catalog: &SqliteCatalog,
    volume: VolumeId,
    gateway: GatewayId,
    generation: Generation,
    term: Generation,
) -> Result<()> {
    let doing = "raising the term of a lease";
    let mut change = catalog.begin().await?;
    let (_, state) = state_of(&mut change, volume).await?;
    LeaseState::check(state.as_ref(), volume, gateway, generation)?;
    if term < generation {
        return Err(CatalogError::Invalid("terms never fall".to_owned()));
    }
    sqlx::query("UPDATE leases SET generation = $1, held_since = $1 WHERE volume = $2")
        .bind(int(term.get())?)
        .bind(&volume.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    change.commit().await.map_err(failed(doing))
}

pub(super) async fn release(
    catalog: &SqliteCatalog,
    volume: VolumeId,
    gateway: GatewayId,
    generation: Generation,
) -> Result<()> {
    let doing = "releasing a lease";
    let mut change = catalog.begin().await?;
    let (_, state) = state_of(&mut change, volume).await?;
    if let Some(lease) = &state
        && lease.released
        && (lease.gateway, lease.generation) == (gateway, generation)
    {
        return Ok(());
    }
    LeaseState::check(state.as_ref(), volume, gateway, generation)?;
    sqlx::query("UPDATE leases SET released = 1 WHERE volume = $1")
        .bind(&volume.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    change.commit().await.map_err(failed(doing))
}
