//! When checkpoints are taken, and what is looked at between them.

use super::known::Known;
use super::{Last, REST_FACTOR, RETRY_PAUSE, checkpoint, is_on, look_for_owner, source, store};
use crate::engine::Shared;
use crate::error::EngineError;
use cairn_metadata::RecordChanges;
use cairn_model::{ErrorKind, Kinded, Monotonic};
use cairn_segment_writer::{Copies, PieceName};
use std::sync::Arc;
use std::time::Duration;

/// How often somebody looks whether anything changed, and how long rare changes are gathered.
const LOOK: Duration = Duration::from_secs(1);
/// Looks after which rare changes that do not end are recorded all the same.
const LOOKS_MAX: u32 = 5;
/// How long after the start, and how often then, somebody looks whether every node has the reserve. A command makes none.
const RESERVE_FIRST: Duration = Duration::from_mins(1);
const RESERVE_INTERVAL: Duration = Duration::from_hours(1);
/// When the newest checkpoint is read, and how long between two of its pieces.
const LOOK_OVER_FIRST: Duration = Duration::from_mins(5);
const LOOK_OVER_INTERVAL: Duration = Duration::from_hours(24);
const LOOK_OVER_PAUSE: Duration = Duration::from_millis(10);
/// How long the end of an engine waits for the last one.
const LAST_LIMIT: Duration = Duration::from_secs(10);

/// Reads what the newest checkpoint is made of, as many copies as it takes. All checkpoints share the pieces that did not change, so one that was damaged or lost would be missed by each
/// of them, and by nobody before the day on which it is needed. What is not good is put again by the next checkpoint, which is due then. Returns how many copies were not.
pub(crate) async fn look_over(shared: &Shared) -> Result<u64, EngineError> {
    let store = store(shared)?;
    let newest = shared.record.turn.lock().await.as_ref().and_then(|known| known.newest_pieces(&store));
    let Some((id, pieces)) = newest else { return Ok(0) };
    let mut bad: Vec<(PieceName, Copies)> = Vec::new();
    let mut turn = [0; 2];
    shared.ports.entropy.fill(&mut turn);
    let turn = usize::from(u16::from_le_bytes(turn));
    for (name, copies) in pieces {
        let mut of_piece = Copies::new();
        // A node that does not answer is for the next time.
        let _ = store.check_piece(name, &copies, turn, &mut of_piece).await;
        if !of_piece.is_empty() {
            bad.push((name, of_piece));
        }
        shared.ports.clock.sleep(LOOK_OVER_PAUSE).await;
    }
    let manifest = store.read_manifest(id).await;
    let is_lost =
        manifest.is_err_and(|error| matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound));
    let found = bad.iter().map(|(_, copies)| copies.len() as u64).sum::<u64>() + u64::from(is_lost);
    // While it was read, it may have been tidied away.
    let mut known = shared.record.turn.lock().await;
    let is_newest = |known: &Known| known.newest_pieces(&store).is_some_and(|(newest, _)| newest == id);
    let Some(known) = known.as_mut().filter(|known| found > 0 && is_newest(known)) else { return Ok(0) };
    tracing::warn!(checkpoint = %id, copies = found, "the newest checkpoint of the catalog has damaged or missing objects, which are put again");
    for (name, copies) in &bad {
        known.lack(*name, copies);
        shared.record.bad.lock().entry(*name).or_default().extend(copies);
    }
    if is_lost {
        known.lose(id);
    }
    shared.record.lacks_something();
    Ok(found)
}

/// Looks the newest checkpoint over after the start and every day, until the engine stops.
pub(crate) async fn look_over_until_stopped(shared: Arc<Shared>) {
    if !is_on(&shared) {
        return;
    }
    let looking = async {
        let mut pause = LOOK_OVER_FIRST;
        loop {
            shared.ports.clock.sleep(pause).await;
            pause = LOOK_OVER_INTERVAL;
            if let Err(error) = look_over(&shared).await {
                tracing::debug!(%error, "the newest checkpoint was not looked over");
            }
        }
    };
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => {}
        () = looking => {}
    }
}

/// Takes checkpoints when something changed, until the engine stops.
pub(crate) async fn record_until_stopped(shared: Arc<Shared>) {
    let Some(interval) = shared.config.checkpoint_interval else { return };
    let Some(source) = source(&shared) else { return };
    let clock = &*shared.ports.clock;
    let (mut pause, mut seen, mut looks) = (LOOK, source.changes(), 0);
    let mut reserve_at = clock.now().plus(RESERVE_FIRST);
    // After one that failed late, until then, unless somebody needs one.
    let mut rests_until = clock.now();
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = clock.sleep(pause) => pause = LOOK,
        }
        if clock.now() >= reserve_at {
            reserve_at = clock.now().plus(RESERVE_INTERVAL);
            if let Err(error) = keep_reserve(&shared).await {
                tracing::debug!(%error, "which nodes have the reserve is not known");
            }
        }
        let changes = source.changes();
        let is_quiet = changes.rare == seen.rare;
        seen = changes;
        // The lock is not held by what follows, which takes it too.
        let now = clock.now();
        let is_changed = is_due(changes, &shared.record.last.lock(), now, interval);
        let may_begin = now >= rests_until && (is_changed || is_to_be_completed(&shared, interval));
        let is_due = may_begin || shared.record.is_wanted(now);
        if !is_due {
            looks = 0;
            continue;
        }
        looks += 1;
        if !is_quiet && looks < LOOKS_MAX {
            continue;
        }
        looks = 0;
        let began = clock.now();
        match checkpoint(&shared).await {
            Ok(()) => tracing::debug!("a checkpoint of the catalog is in the pool"),
            Err(error @ (EngineError::Superseded(_) | EngineError::OlderCatalog(_))) => {
                tracing::error!(%error, "stop this gateway");
                pause = RETRY_PAUSE;
            }
            Err(error) => {
                tracing::warn!(%error, "a checkpoint of the catalog failed; will try again");
                pause = RETRY_PAUSE;
                // A large one that fails late is work, too.
                let now = clock.now();
                rests_until = now.plus(now.since(began).saturating_mul(REST_FACTOR).min(interval));
            }
        }
    }
}

/// Looks whether the site was taken over, every `checkpoint_interval` in which something was written, until the engine stops: a checkpoint looks too, and may rest or take for many times as long. Whoever
/// writes where nobody will read it finds out so much the sooner.
pub(crate) async fn watch_owner_until_stopped(shared: Arc<Shared>) {
    let Some(interval) = shared.config.checkpoint_interval else { return };
    let Some(source) = source(&shared) else { return };
    let mut seen = source.changes();
    let watching = async {
        let mut pause = interval;
        loop {
            shared.ports.clock.sleep(pause).await;
            pause = interval;
            let changes = source.changes();
            if changes == seen {
                continue;
            }
            match look_for_owner(&shared).await {
                Ok(()) => seen = changes,
                Err(error) if error.is_of_another_catalog() => {
                    tracing::error!(%error, "stop this gateway");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "whether another catalog took the site over is not known");
                    pause = interval.min(RETRY_PAUSE);
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => {}
        () = watching => {}
    }
}

/// Puts what makes way for a checkpoint when the pool is full, where it is not.
async fn keep_reserve(shared: &Shared) -> Result<(), EngineError> {
    let store = store(shared)?;
    let mut copies = store.reserves().await?;
    store.put_reserve(&*shared.ports.entropy, &mut copies).await;
    Ok(())
}

/// Whether a checkpoint is due: after a start whatever changed, since an earlier run may have left something out.
fn is_due(changes: RecordChanges, last: &Last, now: Monotonic, interval: Duration) -> bool {
    let Some((began, ended)) = last.times else { return true };
    if now.since(ended) < ended.since(began) * REST_FACTOR {
        return false;
    }
    // What the last one has does not count any more: a node may have lost it.
    let Some(covers) = last.covers else { return true };
    changes.rare != covers.rare || (changes.batches != covers.batches && now.since(began) >= interval)
}

/// Whether the last checkpoint lacks a node that takes puts again.
fn is_to_be_completed(shared: &Shared, interval: Duration) -> bool {
    let rest = shared.record.last.lock().times.map(|(began, ended)| {
        (ended.since(began) * REST_FACTOR).max(interval).saturating_sub(shared.ports.clock.now().since(ended))
    });
    let partial = shared.record.partial.lock();
    let (Some(partial), Some(Duration::ZERO), Ok(store)) = (&*partial, rest, store(shared)) else {
        return false;
    };
    store.is_one_well(&store.lacking(&partial.on))
}

/// The last checkpoint of an engine that stops, if anything changed since the one before.
pub(crate) async fn checkpoint_last(shared: &Shared) {
    let Some(source) = source(shared) else { return };
    {
        let last = shared.record.last.lock();
        // Before the first one since the start, what an earlier run recorded counts; what was doubted since does not.
        let counts_earlier = last.times.is_none() && !shared.record.is_doubted();
        let covers = last.covers.or_else(|| counts_earlier.then(RecordChanges::default));
        if covers == Some(source.changes()) {
            return;
        }
    }
    let done = cairn_model::timeout(&*shared.ports.clock, LAST_LIMIT, checkpoint(shared)).await;
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "the last changes of the catalog are not recorded in the pool");
        }
        Err(_) => {
            tracing::warn!("the last changes of the catalog are not recorded in the pool: it takes too long");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::{Clock, SystemClock};

    #[test]
    fn a_checkpoint_is_due_for_rare_changes_soon_and_for_batches_later() {
        let interval = Duration::from_mins(10);
        let began = SystemClock::new().now();
        let ended = began.plus(Duration::from_secs(1));
        let covers = RecordChanges { rare: 4, batches: 7 };
        let last = Last { covers: Some(covers), times: Some((began, ended)), ..Last::default() };
        let is_due_after =
            |changes, seconds| is_due(changes, &last, began.plus(Duration::from_secs(seconds)), interval);
        let rare = RecordChanges { rare: 5, ..covers };
        let batches = RecordChanges { batches: 8, ..covers };
        assert!(!is_due_after(covers, 10_000), "nothing changed");
        assert!(!is_due_after(rare, 20) && is_due_after(rare, 21), "rest is twenty times as long");
        assert!(!is_due_after(batches, 599) && is_due_after(batches, 600));
        assert!(is_due(covers, &Last::default(), began, interval), "after a start");
        let doubted = Last { covers: None, ..last.clone() };
        let is_due_then =
            |seconds| is_due(covers, &doubted, began.plus(Duration::from_secs(seconds)), interval);
        assert!(!is_due_then(20) && is_due_then(21), "soon, and not all the time");
    }
}
