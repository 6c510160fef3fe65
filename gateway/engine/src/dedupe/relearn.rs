//! After a start the index may lack what was committed and hold what is gone, and after a pass of reclaim that did not come to its end what is there after all: the
//! catalog says, segment footers have the fingerprints.
//!
//! In the background, from the newest container to the oldest that the index has room for; an index without a disk has none. A container that the index knows costs one row of the
//! catalog; one that it does not, a share of one small read from the pool. Ending anywhere is harmless: the next start goes on.

use super::{FORGOTTEN_AT_ONCE, known};
use crate::engine::Shared;
use crate::error::EngineError;
use cairn_fingerprints::FingerprintIndex;
use cairn_model::{ContainerFingerprints, ContainerId, DomainId, ObjectPlace};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

const PAGE: u32 = 256;
/// Between pages, and between reads of the pool: guests come first.
const PAUSE: Duration = Duration::from_millis(20);
/// After a failure of the catalog or the pool.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Compares after the start, and whenever somebody asks for it.
pub(crate) async fn relearn_until_stopped(shared: Arc<Shared>) {
    let compared = async {
        gather(&shared).await;
        loop {
            compare(&shared).await;
            shared.dedupe.relearn.notified().await;
        }
    };
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => {}
        () = compared => {}
    }
}

/// Lets the index answer from memory for what it does not have.
async fn gather(shared: &Shared) {
    while let Ok(true) = shared.dedupe.on_disk(FingerprintIndex::gather).await {
        shared.ports.clock.sleep(PAUSE).await;
    }
}

async fn compare(shared: &Shared) {
    let Some(mut comparison) = Comparison::begin(shared).await else { return };
    let mut before = None;
    loop {
        match step(shared, &mut comparison, before).await {
            Ok(None) => break,
            Ok(next) => {
                before = next;
                shared.ports.clock.sleep(PAUSE).await;
            }
            Err(error) => {
                tracing::debug!(%error, "the index of fingerprints is compared later");
                shared.ports.clock.sleep(RETRY_PAUSE).await;
            }
        }
    }
    comparison.end(shared).await;
}

struct Comparison {
    /// What the index has and the catalog has not been seen to have.
    unconfirmed: HashSet<ContainerId>,
    left: u64,
    /// The oldest container looked at.
    oldest: Option<ContainerId>,
    learned: u64,
    /// Segments whose footer could not be read. The next start tries again.
    unread: u64,
}

impl Comparison {
    async fn begin(shared: &Shared) -> Option<Self> {
        let known = shared.dedupe.on_disk(|index| (index.containers(), index.status().containers_max));
        let (containers, left) = known.await.ok()?;
        let unconfirmed = containers.into_iter().collect();
        Some(Self { unconfirmed, left, oldest: None, learned: 0, unread: 0 })
    }

    /// Every container of the catalog from `oldest` on was seen: what is left is not there.
    async fn end(self, shared: &Shared) {
        let mut gone: Vec<_> = self.unconfirmed.into_iter().filter(|id| Some(*id) >= self.oldest).collect();
        // The same order in every process.
        gone.sort_unstable();
        for some in gone.chunks(FORGOTTEN_AT_ONCE) {
            let some = some.to_vec();
            let forget = move |index: &FingerprintIndex| some.iter().for_each(|id| index.forget(*id));
            if shared.dedupe.on_disk(forget).await.is_err() {
                return;
            }
        }
        if self.unread > 0 {
            tracing::warn!(
                segments = self.unread,
                "footers of segments cannot be read; what these hold is not shared"
            );
        }
        if self.learned > 0 || !gone.is_empty() {
            tracing::info!(
                learned = self.learned,
                forgotten = gone.len(),
                "compared the index of fingerprints with the catalog"
            );
        }
    }
}

/// Looks at the containers before one; returns where to go on.
async fn step(
    shared: &Shared,
    comparison: &mut Comparison,
    before: Option<ContainerId>,
) -> Result<Option<ContainerId>, EngineError> {
    let mut page = shared.catalog.containers_before(before, PAGE).await?;
    page.truncate(usize::try_from(comparison.left).unwrap_or(usize::MAX));
    let oldest = page.last().map(|row| row.id);
    let unknown: Vec<_> =
        page.iter().map(|row| row.id).filter(|id| !comparison.unconfirmed.contains(id)).collect();
    let wanted = shared
        .dedupe
        .on_disk(move |index| unknown.into_iter().filter(|id| index.wants(*id)).collect::<HashSet<_>>());
    let wanted = wanted.await?;
    let mut absent: BTreeMap<(ObjectPlace, DomainId), Vec<ContainerId>> = BTreeMap::new();
    for row in &page {
        comparison.unconfirmed.remove(&row.id);
        if wanted.contains(&row.id) {
            absent.entry((row.place.clone(), row.domain)).or_default().push(row.id);
        }
    }
    for ((place, domain), containers) in absent {
        while shared.dedupe.on_disk(FingerprintIndex::is_behind).await? {
            shared.ports.clock.sleep(PAUSE).await;
        }
        match learn(shared, &place, domain, &containers).await {
            Ok(learned) => comparison.learned += learned,
            // Taken back since the catalog was asked.
            Err(error) if error.is_absence() => {}
            Err(error) => {
                tracing::debug!(%error, key = place.key, "a segment's footer cannot be read");
                comparison.unread += 1;
            }
        }
        shared.ports.clock.sleep(PAUSE).await;
    }
    comparison.left -= page.len() as u64;
    comparison.oldest = oldest.or(comparison.oldest);
    Ok(if comparison.left == 0 { None } else { oldest })
}

/// Learns containers from the footer of the segment that holds them.
async fn learn(
    shared: &Shared,
    place: &ObjectPlace,
    domain: DomainId,
    wanted: &[ContainerId],
) -> Result<u64, EngineError> {
    // Without its key nothing of the domain can be written either.
    let Ok(opened) = shared.domains.get(domain) else { return Ok(0) };
    let footer = shared.pool.read_footer(place, &opened).await?;
    let held: HashMap<ContainerId, Option<Arc<ContainerFingerprints>>> =
        footer.containers.into_iter().map(|container| (container.id, container.fingerprints)).collect();
    let found: Vec<_> = wanted.iter().filter_map(|id| Some(known(*id, held.get(id)?.as_ref()))).collect();
    let learned = found.len() as u64;
    let learn =
        move |index: &FingerprintIndex| found.iter().for_each(|container| index.committed(domain, container));
    shared.dedupe.on_disk(learn).await?;
    Ok(learned)
}
