//! Scrub: everything in the pool is read and verified, in the course of a set period, and at once when somebody asks.
//!
//! What is missing or damaged is lost in the catalog at once, and made anew by healing. The place that a pass has come to is in memory alone: after a start, the first one begins
//! anywhere, by chance, so that restarts do not keep the same segments from being read.

use super::examine::{Flaw, Found, examine_by_chance};
use super::status::{ScrubReport, eta};
use super::step::place_of;
use crate::engine::{Shared, until_known};
use crate::error::EngineError;
use cairn_metadata::{SegmentPlace, Totals};
use cairn_model::SegmentId;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks whether there is anything to read, and after a failure.
const PAUSE: Duration = Duration::from_mins(1);
/// Segments of one question to the catalog.
const PAGE: u32 = 100;

/// Scrubs until the engine stops.
pub(crate) async fn scrub_until_stopped(shared: Arc<Shared>) {
    let clock = &*shared.ports.clock;
    let (mut after, mut wait) = (None, Duration::ZERO);
    let mut has_begun = false;
    loop {
        let is_due = shared.config.scrub_period.is_some();
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = shared.heal.scrub_wake.notified() => {}
            () = clock.sleep(wait), if is_due => {}
        }
        let askers = std::mem::take(&mut *shared.heal.askers.lock());
        if !askers.is_empty() {
            let done = pass(&shared).await;
            for asker in askers {
                // Who does not wait any more finds it in the status.
                let _ = asker.send(done.clone());
            }
            continue;
        }
        let Some(period) = shared.config.scrub_period else { continue };
        wait = match next(&shared, &mut after, &mut has_begun, period).await {
            Ok(wait) => wait,
            Err(EngineError::Stopped) => return,
            Err(error) => {
                tracing::debug!(%error, "scrub does not go on; will try again");
                shared.heal.status.lock().scrub.problem = Some(error.to_string());
                PAUSE
            }
        };
    }
}

/// Reads the next segment of the pass that goes on all the time. Returns how long until the one after it.
async fn next(
    shared: &Shared,
    after: &mut Option<SegmentId>,
    has_begun: &mut bool,
    period: Duration,
) -> Result<Duration, EngineError> {
    let began = shared.ports.clock.now();
    let totals = until_known(shared, || shared.catalog.totals()).await?;
    if !std::mem::replace(has_begun, true) {
        *after = somewhere(shared).await?;
    }
    let from = *after;
    let found = until_known(shared, || shared.catalog.segment_places(from, 1)).await?;
    let Some(segment) = found.into_iter().next() else {
        if after.take().is_some() {
            end_of_pass(shared);
            return Ok(Duration::ZERO);
        }
        return Ok(PAUSE);
    };
    *after = Some(segment.id);
    let length = segment.place.length_bytes;
    let report = scrub(shared, &segment).await?;
    tell(shared, &report, &totals, period);
    let part = u128::from(length) * period.as_millis() / u128::from(totals.segment_bytes.max(length).max(1));
    let pace = Duration::from_millis(u64::try_from(part).unwrap_or(u64::MAX));
    Ok(pace.saturating_sub(shared.ports.clock.now().since(began)))
}

/// Behind a segment that chance chooses, so that each part of the pool has its turn whenever this begins.
async fn somewhere(shared: &Shared) -> Result<Option<SegmentId>, EngineError> {
    let first = until_known(shared, || shared.catalog.segment_places(None, 1)).await?;
    let Some(first) = first.first().map(|first| first.id.created_at_ms()) else { return Ok(None) };
    let now = shared.ports.clock.wall().unix_millis();
    let mut chance = [0; 8];
    shared.ports.entropy.fill(&mut chance);
    let at = first + u64::from_le_bytes(chance) % now.saturating_sub(first).max(1);
    let mut id = [0; 16];
    id[..6].copy_from_slice(&at.to_be_bytes()[2..]);
    Ok(Some(SegmentId::from_bytes(id)))
}

/// Reads everything that is there when it begins, as fast as healing may: guests may write faster than that, and it must end all the same.
async fn pass(shared: &Shared) -> Result<ScrubReport, EngineError> {
    let clock = &*shared.ports.clock;
    let (began, mut total, mut after) = (clock.now(), ScrubReport::default(), None);
    let segments = until_known(shared, || shared.catalog.totals()).await?.segments;
    {
        let scrub = &mut shared.heal.status.lock().scrub;
        (scrub.is_asked, scrub.segments_done, scrub.segments_total) = (true, 0, segments);
    }
    let done = async {
        let Some(until) = until_known(shared, || shared.catalog.last_segment()).await? else { return Ok(()) };
        loop {
            let page = until_known(shared, || shared.catalog.segment_places(after, PAGE)).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
            for segment in &page {
                if segment.id > until {
                    return Ok(());
                }
                if shared.stop.is_cancelled() {
                    return Err(EngineError::Stopped);
                }
                let report = scrub(shared, segment).await?;
                total.add(&report);
                let scrub = &mut shared.heal.status.lock().scrub;
                scrub.total.add(&report);
                scrub.segments_done += 1;
                scrub.eta_seconds = eta(clock.now().since(began), scrub.segments_done, segments);
            }
        }
    };
    let done: Result<(), EngineError> = done.await;
    shared.heal.status.lock().scrub.is_asked = false;
    if done.is_ok() {
        end_of_pass(shared);
    }
    done.map(|()| total)
}

fn end_of_pass(shared: &Shared) {
    let scrub = &mut shared.heal.status.lock().scrub;
    scrub.passes += 1;
    scrub.last_at_ms = Some(shared.ports.clock.wall().unix_millis());
    (scrub.segments_done, scrub.eta_seconds, scrub.problem) = (0, None, None);
}

fn tell(shared: &Shared, report: &ScrubReport, totals: &Totals, period: Duration) {
    let scrub = &mut shared.heal.status.lock().scrub;
    scrub.total.add(report);
    scrub.segments_done += 1;
    scrub.segments_total = totals.segments;
    let rest = totals.segments.saturating_sub(scrub.segments_done);
    let seconds = u128::from(rest) * u128::from(period.as_secs()) / u128::from(totals.segments.max(1));
    scrub.eta_seconds = u64::try_from(seconds).ok();
    scrub.problem = None;
}

/// Reads all shards of a segment.
async fn scrub(shared: &Shared, segment: &SegmentPlace) -> Result<ScrubReport, EngineError> {
    let mut report = ScrubReport { segments: 1, ..ScrubReport::default() };
    let bytes = segment.place.placement.profile().shard_bytes(segment.place.length_bytes);
    let mut now = segment.clone();
    for index in 0..segment.place.placement.profile().shards() {
        if now.place.placement.shards().get(index).copied().flatten().is_none() {
            continue;
        }
        let found = examine_by_chance(shared, &now, index).await?;
        let flaw = match found {
            Found::Whole => {
                report.shards += 1;
                report.bytes += bytes;
                continue;
            }
            Found::Unread => {
                report.unread += 1;
                continue;
            }
            Found::Changed => return Ok(report),
            Found::BeyondRepair(flaw) => {
                report.beyond_repair += 1;
                flaw
            }
            Found::Lost(flaw) => {
                // The others are where its place is now.
                match place_of(shared, segment.id).await? {
                    Some(place) => now = place,
                    None => return Ok(report),
                }
                flaw
            }
        };
        report.shards += 1;
        match flaw {
            Flaw::Missing => report.missing += 1,
            Flaw::Damaged => report.damaged += 1,
        }
    }
    if report.missing + report.damaged > 0 {
        shared.heal.wake.notify_one();
    }
    Ok(report)
}
