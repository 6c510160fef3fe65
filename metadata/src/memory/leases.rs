//! Who may write a volume.

use super::{MemoryHolder, Result, Tables};
use crate::{CatalogError, HeldLease, Lease, LeaseStamp};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{GatewayId, Generation, VolumeId, WallTime};
use std::time::Duration;

pub(super) struct LeaseState {
    pub(super) gateway: GatewayId,
    pub(super) generation: Generation,
    held_since: Generation,
    pub(super) released: bool,
    pub(super) expires_at: WallTime,
    term: Duration,
}

impl LeaseState {
    fn stamp(&self) -> LeaseStamp {
        LeaseStamp { generation: self.generation, expires_at: self.expires_at }
    }

    pub(super) fn holder(&self) -> MemoryHolder {
        let &Self { gateway, generation, held_since, released, .. } = self;
        MemoryHolder { gateway, generation, held_since, released }
    }
}

/// Fails unless `gateway` is in term `generation` and has not ended it.
pub(super) fn check_held(
    state: Option<&LeaseState>,
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

fn end_of(now: WallTime, ttl: Duration) -> WallTime {
    let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    WallTime::from_unix_millis(now.unix_millis().saturating_add(ttl))
}

impl Tables {
    pub(super) fn acquire_lease(
        &mut self,
        volume: VolumeId,
        gateway: GatewayId,
        now: WallTime,
        ttl: Duration,
        unrenewed: Option<LeaseStamp>,
    ) -> Result<Lease> {
        let held = self.live(volume)?;
        self.gateway(gateway)?;
        if let Some(lease) = &held.lease
            && lease.gateway != gateway
            && !lease.released
            && unrenewed != Some(lease.stamp())
            && (now < lease.expires_at || !is_planted(Bug::LeaseEndsByWallClock))
        {
            return Err(CatalogError::LeaseHeld {
                volume: held.row.name.clone(),
                holder: self.gateway(lease.gateway)?.row.name.clone(),
                stamp: lease.stamp(),
                term: lease.term,
            });
        }
        let held = self.live_mut(volume)?;
        let generation = held.lease.as_ref().map_or(Generation::ZERO, |lease| lease.generation).next();
        let unbroken = held.lease.as_ref().filter(|lease| lease.gateway == gateway);
        let held_since = unbroken.map_or(generation, |lease| lease.held_since);
        let expires_at = end_of(now, ttl);
        let fresh = LeaseState { gateway, generation, held_since, released: false, expires_at, term: ttl };
        let previous = held.lease.replace(fresh).map(|lease| (lease.gateway, lease.generation));
        Ok(Lease { generation, held_since, previous, expires_at })
    }

    pub(super) fn renew_leases(
        &mut self,
        gateway: GatewayId,
        leases: &[HeldLease],
        now: WallTime,
        ttl: Duration,
    ) -> Vec<Result<WallTime>> {
        let renew = |lease: &HeldLease| self.renew_lease(gateway, *lease, end_of(now, ttl));
        leases.iter().map(renew).collect()
    }

    fn renew_lease(&mut self, gateway: GatewayId, held: HeldLease, end: WallTime) -> Result<WallTime> {
        let volume = self.live_mut(held.volume)?;
        check_held(volume.lease.as_ref(), held.volume, gateway, held.generation)?;
        let lease = volume.lease.as_mut().expect("a held volume has a lease");
        // Another state each time, whatever this clock says: that is what the others watch.
        let later = WallTime::from_unix_millis(lease.expires_at.unix_millis() + 1);
        lease.expires_at = end.max(later);
        Ok(lease.expires_at)
    }

    pub(super) fn release_lease(
        &mut self,
        volume: VolumeId,
        gateway: GatewayId,
        generation: Generation,
    ) -> Result<()> {
        let held = self.live_mut(volume)?;
        if let Some(lease) = &held.lease
            && lease.released
            && (lease.gateway, lease.generation) == (gateway, generation)
        {
            return Ok(());
        }
        check_held(held.lease.as_ref(), volume, gateway, generation)?;
        held.lease.as_mut().expect("a held volume has a lease").released = true;
        Ok(())
    }
}
