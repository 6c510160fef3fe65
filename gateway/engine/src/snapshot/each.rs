//! Snapshots of as many of several volumes as can have one, at one moment.
//!
//! A volume that cannot (not in service, name taken, too many on their way) is left out before the mark, and the others are marked together: one
//! moment, one frame of the log. What goes wrong before the marks are handed to destage, which writes the frame, leaves no snapshot; what goes
//! wrong after may leave one, and then nobody says there is none.

use super::{CROWDED_LIMIT, PAUSE, check_free, encode_note, is_crowded};
use crate::destage::Mark;
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use crate::volume::Volume;
use cairn_metadata::NewSnapshot;
use cairn_model::Lsn;
use parking_lot::Mutex;
use std::sync::Arc;

/// What became of one snapshot.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is durable.
    Yes,
    /// There is none.
    No(EngineError),
    /// There may be one.
    Unsure(EngineError),
}

/// What marks wait for.
#[derive(Clone, Copy, Debug)]
enum WaitsFor {
    Catalog,
    /// Room in the log.
    Room,
    /// Destage was asked and has not answered: whoever stops waiting does not know what becomes of them.
    Answer,
}

/// Takes snapshots of different volumes at one moment; says of each what became of it. The caller has the turn of administration: nobody else
/// takes the names.
pub(crate) async fn take_each(shared: &Shared, wanted: &[(Arc<Volume>, NewSnapshot)]) -> Vec<Taken> {
    let mut taken: Vec<Option<Taken>> = Vec::with_capacity(wanted.len());
    for (volume, snapshot) in wanted {
        let is_free = check_free(shared, volume, &snapshot.name).await;
        taken.push(is_free.err().map(Taken::No));
    }
    all_uncrowded(shared, wanted, &mut taken).await;
    let limit = shared.config.read_deadline;
    let waits_for = Mutex::new(WaitsFor::Catalog);
    let marking = mark(shared, wanted, &mut taken, &waits_for);
    let marked = cairn_model::timeout(&*shared.ports.clock, limit, marking).await;
    let rest = match marked {
        Ok(Ok(lsn)) => synced(shared, lsn).await,
        Ok(Err(error)) => Err(error),
        Err(cairn_model::Elapsed) => {
            let waits_for = *waits_for.lock();
            match waits_for {
                WaitsFor::Catalog => left_out(&mut taken, &EngineError::CatalogSilent),
                WaitsFor::Room => left_out(&mut taken, &EngineError::PoolSilent(limit.as_secs())),
                // It comes late, or never.
                WaitsFor::Answer => {}
            }
            Err(EngineError::SnapshotLate)
        }
    };
    let mut all = Vec::with_capacity(wanted.len());
    for ((volume, _), taken) in wanted.iter().zip(taken) {
        all.push(match (taken, &rest) {
            (Some(taken), _) => taken,
            (None, Err(error)) => Taken::Unsure(error.clone()),
            // Another owner's history may have begun without it.
            (None, Ok(())) => volume.owned().await.map_or_else(Taken::Unsure, |()| Taken::Yes),
        });
    }
    all
}

/// Waits a little until those that are still in it may have another snapshot on its way; leaves out who may not.
async fn all_uncrowded(shared: &Shared, wanted: &[(Arc<Volume>, NewSnapshot)], taken: &mut [Option<Taken>]) {
    let crowded = |(volume, _): &(Arc<Volume>, NewSnapshot)| is_crowded(volume);
    // In time or not: who is crowded then is looked at next.
    let _ = cairn_model::timeout(&*shared.ports.clock, CROWDED_LIMIT, async {
        while wanted.iter().zip(&*taken).any(|(one, taken)| taken.is_none() && crowded(one)) {
            shared.fold_wake.notify_one();
            shared.ports.clock.sleep(PAUSE).await;
        }
    })
    .await;
    for ((volume, _), taken) in wanted.iter().zip(taken) {
        if taken.is_none() && is_crowded(volume) {
            *taken = Some(Taken::No(EngineError::TooManySnapshots(volume.name())));
        }
    }
}

/// Marks those that are still in it. Who goes out of service meanwhile is left out, and the others are tried again without it. An error says
/// that there may be snapshots.
async fn mark(
    shared: &Shared,
    wanted: &[(Arc<Volume>, NewSnapshot)],
    taken: &mut [Option<Taken>],
    waits_for: &Mutex<WaitsFor>,
) -> Result<Lsn, EngineError> {
    loop {
        for ((volume, _), taken) in wanted.iter().zip(&mut *taken) {
            if taken.is_none() {
                let is_serving = volume.state().lock().check_serving();
                *taken = is_serving.err().map(Taken::No);
            }
        }
        let left: Vec<_> = wanted
            .iter()
            .zip(&*taken)
            .filter(|(_, taken)| taken.is_none())
            .map(|(one, _)| one.clone())
            .collect();
        if left.is_empty() {
            return Ok(Lsn::ZERO);
        }
        let error = match append(shared, &left, waits_for).await {
            Ok(lsn) => return Ok(lsn),
            // The end of the engine, perhaps with the request on its way.
            Err(error @ EngineError::Stopped) => return Err(error),
            Err(error) => error,
        };
        if left.iter().all(|(volume, _)| volume.state().lock().check_serving().is_ok()) {
            // Refused before the frame, and not for one of the volumes: all of them.
            left_out(taken, &error);
            return Ok(Lsn::ZERO);
        }
    }
}

/// Those that are still in it have no snapshot.
fn left_out(taken: &mut [Option<Taken>], error: &EngineError) {
    for taken in taken.iter_mut().filter(|taken| taken.is_none()) {
        *taken = Some(Taken::No(error.clone()));
    }
}

/// Brings the marks into the log at one moment; returns where it must be synced through.
async fn append(
    shared: &Shared,
    snapshots: &[(Arc<Volume>, NewSnapshot)],
    waits_for: &Mutex<WaitsFor>,
) -> Result<Lsn, EngineError> {
    *waits_for.lock() = WaitsFor::Catalog;
    let dirty = until_known(shared, || shared.wal_state.pin_dirty(&*shared.catalog)).await?;
    *waits_for.lock() = WaitsFor::Room;
    let mut marks = Vec::with_capacity(snapshots.len());
    for (volume, snapshot) in snapshots {
        let permit = shared.wal.reserve(encode_note(snapshot).len()).await?;
        marks.push(Mark { volume: Arc::clone(volume), snapshot: snapshot.clone(), permit });
    }
    *waits_for.lock() = WaitsFor::Answer;
    shared.destage.snapshot(marks, dirty).await
}

async fn synced(shared: &Shared, lsn: Lsn) -> Result<(), EngineError> {
    if lsn == Lsn::ZERO {
        return Ok(());
    }
    let receipt = shared.wal.synced(lsn).await?;
    debug_assert!(receipt.durable_through() >= lsn, "a receipt covers what was asked");
    Ok(())
}
