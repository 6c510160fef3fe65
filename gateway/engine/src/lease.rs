//! Ownership of volumes, in time.
//!
//! The catalog decides who owns a volume; this module knows until when it has decided for us. A term is counted from *before* the
//! renewal was asked for, on the monotonic clock, less a margin, so it ends here before the catalog can give the volume to
//! another gateway. After that nothing is acknowledged and nothing read until a renewal succeeds.
//!
//! The other gateway, for its part, takes a volume only when it has watched the lease unrenewed for the whole term on its own monotonic
//! clock ([`LeaseWatch`]), so no wall clock has a say, and clocks may drift apart by the margin.

use crate::engine::Shared;
use crate::error::EngineError;
use crate::volume::{Condition, Volume};
use cairn_metadata::{CatalogError, HeldLease, LeaseStamp};
use cairn_model::{Clock, ErrorKind, Generation, Kinded, Monotonic};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Part of the term that is not used: clocks drift, threads are late.
const MARGIN_DIVISOR: u32 = 5;
/// Renewals per term.
const RENEWALS_PER_TERM: u32 = 3;

/// One volume's ownership as this gateway may count on it.
#[derive(Debug)]
pub(crate) struct LeaseTerm {
    generation: Generation,
    /// End of the term, nanoseconds of the monotonic clock.
    until: AtomicU64,
    lost: AtomicBool,
    changed: Notify,
}

impl LeaseTerm {
    /// A term of `ttl` from `asked`, the moment before the catalog was asked.
    pub(crate) fn new(generation: Generation, asked: Monotonic, ttl: Duration) -> Self {
        let term = Self {
            generation,
            until: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            changed: Notify::new(),
        };
        term.extend(asked, ttl);
        term
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    pub(crate) fn is_current(&self, now: Monotonic) -> bool {
        !self.lost.load(Ordering::Acquire) && nanos(now) < self.until.load(Ordering::Acquire)
    }

    fn extend(&self, asked: Monotonic, ttl: Duration) {
        self.until.store(nanos(asked.plus(ttl.saturating_sub(ttl / MARGIN_DIVISOR))), Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Ends the ownership for good.
    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.until.store(0, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Waits until the term is current again (`true`) or lost (`false`).
    pub(crate) async fn renewed(&self, clock: &dyn Clock) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lost.load(Ordering::Acquire) {
                return false;
            }
            if self.is_current(clock.now()) {
                return true;
            }
            changed.await;
        }
    }
}

fn nanos(at: Monotonic) -> u64 {
    u64::try_from(at.since_origin().as_nanos()).unwrap_or(u64::MAX)
}

/// What a gateway that wants a volume sees of the holder's lease.
#[derive(Debug, Default)]
pub(crate) struct LeaseWatch(Option<Watched>);

#[derive(Debug)]
struct Watched {
    stamp: LeaseStamp,
    term: Duration,
    /// After the answer that showed this state for the first time: the state is older.
    since: Monotonic,
}

impl LeaseWatch {
    /// The state that has been there for the whole term, if it has.
    pub(crate) fn unrenewed(&self, now: Monotonic) -> Option<LeaseStamp> {
        let watched = self.0.as_ref()?;
        (now.since(watched.since) >= watched.term).then_some(watched.stamp)
    }

    /// Looks at the answer to an attempt. How long to wait before the next one, if there is a reason for one.
    pub(crate) fn look<T>(&mut self, answer: &Result<T, EngineError>, now: Monotonic) -> Option<Duration> {
        let Err(EngineError::Catalog(error)) = answer else { return None };
        let CatalogError::LeaseHeld { stamp, term, .. } = &**error else { return None };
        if self.0.as_ref().is_none_or(|watched| watched.stamp != *stamp) {
            self.0 = Some(Watched { stamp: *stamp, term: *term, since: now });
        }
        Some(*term / RENEWALS_PER_TERM)
    }
}

/// Renews every volume's lease until the engine stops.
pub(crate) async fn renew_leases(shared: Arc<Shared>) {
    let pause = shared.config.lease_ttl / RENEWALS_PER_TERM;
    loop {
        // At once: replaying the log may have used up much of the first term.
        renew_all(&shared).await;
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = shared.ports.clock.sleep(pause) => {}
        }
    }
}

/// One catalog transaction for all volumes. A renewal that fails as a whole is tried again at the next turn, of which a term has several.
async fn renew_all(shared: &Shared) {
    let volumes = shared.registry.all();
    let held: Vec<_> = volumes
        .iter()
        .map(|volume| HeldLease { volume: volume.id(), generation: volume.generation() })
        .collect();
    if held.is_empty() {
        return;
    }
    let ttl = shared.config.lease_ttl;
    let asked = shared.ports.clock.now();
    let renewals =
        match shared.catalog.renew_leases(shared.gateway, &held, shared.ports.clock.wall(), ttl).await {
            Ok(renewals) => renewals,
            Err(error) => {
                tracing::warn!(%error, "cannot renew leases; will try again");
                return;
            }
        };
    for (volume, renewal) in volumes.iter().zip(renewals) {
        match renewal {
            Ok(_) => volume.lease().extend(asked, ttl),
            Err(error) if matches!(error.kind(), ErrorKind::Fenced) => {
                fence(shared, volume, &error.into());
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound) => gone(shared, volume),
            Err(error) => tracing::warn!(volume = volume.name(), %error, "cannot renew the lease"),
        }
    }
}

/// Stops serving a volume that another gateway owns now. What this gateway had buffered for it is not ours to write any more.
pub(crate) fn fence(shared: &Shared, volume: &Volume, error: &EngineError) {
    if let Some(name) = end_service(shared, volume, Condition::Fenced) {
        tracing::error!(volume = name, %error, "the volume is another gateway's; serving it ends here");
    }
}

/// Stops serving a volume that the catalog has deleted.
pub(crate) fn gone(shared: &Shared, volume: &Volume) {
    if let Some(name) = end_service(shared, volume, Condition::Deleted) {
        tracing::info!(volume = name, "the volume is deleted");
    }
}

/// Stops serving a volume of which the catalog may say this or that, until it is opened again: nothing may be written to either. It has
/// nothing that is not destaged.
pub(crate) fn stop_serving(shared: &Shared, volume: &Volume, error: &EngineError) {
    if let Some(name) = end_service(shared, volume, Condition::Unsure) {
        tracing::error!(
            volume = name,
            %error,
            "what the catalog has of the volume is not known; serving it ends here until it is taken again"
        );
    }
}

/// The volume's name, if it was served until now.
fn end_service(shared: &Shared, volume: &Volume, condition: Condition) -> Option<String> {
    volume.lease().lose();
    let mut state = volume.state().lock();
    if state.condition != Condition::Serving {
        return None;
    }
    state.condition = condition;
    shared.pressure.released(state.buffer.clear());
    state.map.clear();
    let name = state.name.clone();
    drop(state);
    // Whoever owns the volume now may delete its snapshots.
    for view in shared.views.take(volume.id()) {
        end_service(shared, &view, condition);
    }
    Some(name)
}
