//! Whether objects that nothing names hold writes that the catalog does not have.
//!
//! A catalog that was put back from a copy does not name what was destaged since, and as long as no checkpoint was taken since, nothing else in the pool says so: its numbers are those that the copy
//! knows. But the footer of each segment says which writes its batch has. A batch that ends behind what the catalog has of a volume was put by a gateway whose log may still bring it, or was committed, and
//! the catalog forgot it: `cairn recover` takes it up from the newest checkpoint. Until one of both has happened no object that nothing names is deleted, also none that says nothing of writes: it may be of the
//! same batch, or be shared by it.
//!
//! A segment of which the catalog has a row says nothing new: its batch was committed. One of which too few shards are anywhere, or that is damaged, is taken up by nobody.
//!
//! And one may hold what the catalog has in another segment: that was moved, and the catalog is of before or after. As long as not all of the other one is there, it may be the last good copy.

use super::NotWhole;
use crate::domains::Domains;
use crate::engine::Shared;
use crate::error::EngineError;
use crate::heal::wait_for_turn;
use cairn_metadata::{Catalog, CheckSource, CheckedSegment, UnnamedObject, VolumeName};
use cairn_model::{ContainerId, SegmentId, SiteId, VolumeId, WriteSeq};
use cairn_segment_writer::{Domain, Footer, FoundSegment, Pool};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

/// Segments of one question to the catalog.
const ASKED_AT_ONCE: usize = 64;
/// What it takes to read a footer, about.
const FOOTER_BYTES: u64 = 64 << 10;

/// Why objects that nothing names are to stay.
pub(super) enum Later {
    /// They hold writes that the catalog does not have.
    Writes(String),
    /// Nobody knows.
    Unknown(String),
}

/// What is asked.
pub(super) struct Asked<'a> {
    pub(super) site: SiteId,
    pub(super) catalog: &'a dyn Catalog,
    pub(super) source: &'a dyn CheckSource,
    pub(super) pool: &'a Pool,
    pub(super) domains: &'a Domains,
    pub(super) beside: Option<&'a Shared>,
    /// What the engine has acknowledged counts too: it is in its log.
    pub(super) counts_log: bool,
    /// Every node was listed.
    pub(super) is_all_there: bool,
    /// Segments that were not seen whole by the check that asks. `None`: the catalog's rows say it.
    pub(super) not_whole: Option<&'a NotWhole>,
}

/// What objects that nothing names hold.
#[derive(Default)]
pub(super) struct Held {
    /// Why none of them is to be deleted, if so.
    pub(super) later: Option<Later>,
    /// Segments of theirs that are not to be deleted: what they hold, the catalog has in segments that are not whole.
    pub(super) needed: BTreeSet<SegmentId>,
}

/// How far a volume has come.
struct Head {
    name: VolumeName,
    through: WriteSeq,
}

impl Asked<'_> {
    /// Without anything in it, whatever is in these objects is in the catalog too, or was given up.
    pub(super) async fn held(&self, objects: &[UnnamedObject]) -> Result<Held, EngineError> {
        let mut held = Held::default();
        let mut found: BTreeMap<SegmentId, Vec<&UnnamedObject>> = BTreeMap::new();
        for object in objects {
            found.entry(object.segment).or_default().push(object);
        }
        let heads = self.heads().await?;
        let profile = self.catalog.pool_settings().await?.profile;
        let ids: Vec<SegmentId> = found.keys().copied().collect();
        for some in ids.chunks(ASKED_AT_ONCE) {
            let recorded: BTreeSet<SegmentId> =
                self.source.segments(some).await?.into_iter().map(|segment| segment.id).collect();
            for id in some.iter().filter(|id| !recorded.contains(id)) {
                if let Some(shared) = self.beside {
                    wait_for_turn(shared, FOOTER_BYTES).await;
                    if shared.stop.is_cancelled() {
                        return Err(EngineError::Stopped);
                    }
                }
                let objects = found[id].iter().map(|object| (object.node, &*object.key, object.length_bytes));
                match self.footer(FoundSegment::of(*id, objects), profile).await {
                    Ok(Some(footer)) => {
                        if let Some(text) = later_part(&heads, &footer) {
                            held.later = Some(Later::Writes(text));
                            return Ok(held);
                        }
                        if self.is_needed(&footer).await? {
                            held.needed.insert(*id);
                        }
                    }
                    Ok(None) => {}
                    Err(text) => held.later = Some(Later::Unknown(text)),
                }
            }
        }
        Ok(held)
    }

    /// Whether the catalog has something of a segment in another one that is not whole.
    async fn is_needed(&self, footer: &Footer) -> Result<bool, EngineError> {
        let ids: Vec<ContainerId> = footer.containers.iter().map(|container| container.id).collect();
        let located = self.catalog.containers(&ids).await?;
        let others: BTreeSet<SegmentId> = located.into_iter().map(|location| location.segment).collect();
        Ok(match self.not_whole {
            Some(not_whole) => others.iter().any(|other| not_whole.may_have(*other)),
            None => !lacking(self.source, others).await?.is_empty(),
        })
    }

    async fn heads(&self) -> Result<BTreeMap<VolumeId, Head>, EngineError> {
        let mut heads: BTreeMap<VolumeId, Head> = BTreeMap::new();
        for row in self.catalog.volumes().await? {
            heads.insert(row.id, Head { name: row.name, through: row.destaged_through });
        }
        for volume in self.beside.iter().filter(|_| self.counts_log).flat_map(|shared| shared.registry.all())
        {
            if let Some(head) = heads.get_mut(&volume.id()) {
                head.through = head.through.max(volume.state().lock().buffer.last_seq());
            }
        }
        Ok(heads)
    }

    /// What a segment says. `None`: it is none that anybody could read. An error says why nobody knows.
    async fn footer(
        &self,
        found: FoundSegment,
        profile: cairn_model::Profile,
    ) -> Result<Option<Footer>, String> {
        let is_closed = AtomicBool::new(false);
        let by_key = |key| -> Option<Domain> {
            let domain = self.domains.by_key(key);
            is_closed.fetch_or(domain.is_none(), Ordering::Relaxed);
            domain
        };
        let places = match self.pool.places_of(&found, profile).await {
            Ok(places) => places,
            Err(error) => return Err(error.to_string()),
        };
        for place in places {
            match self.pool.read_footer_of(&place, &by_key).await {
                Ok(footer) if footer.segment == found.id && footer.batch.site == self.site => {
                    return Ok(Some(footer));
                }
                Ok(_) => {}
                Err(_) if is_closed.load(Ordering::Relaxed) => {
                    return Err(format!("segment {} is of a domain whose key is not open", found.id));
                }
                Err(error) if error.is_of_object() => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        if self.is_all_there {
            Ok(None)
        } else {
            Err(format!("of segment {} there may be more on nodes that were not looked at", found.id))
        }
    }
}

/// Those of these segments of which the catalog says that something is missing, or says what makes no sense.
pub(super) async fn lacking(
    source: &dyn CheckSource,
    segments: BTreeSet<SegmentId>,
) -> Result<BTreeSet<SegmentId>, EngineError> {
    let rows = source.segments(&segments.into_iter().collect::<Vec<_>>()).await?;
    let is_whole =
        |row: &CheckedSegment| row.place.as_ref().is_ok_and(|place| place.placement.missing() == 0);
    Ok(rows.into_iter().filter(|row| !is_whole(row)).map(|row| row.id).collect())
}

/// A part of a batch that the catalog does not have. One of a volume that is not there says nothing: that was deleted, or its making is in a later checkpoint.
fn later_part(heads: &BTreeMap<VolumeId, Head>, footer: &Footer) -> Option<String> {
    footer.volumes.iter().find_map(|volume| {
        let (part, head) = (&volume.header, heads.get(&volume.header.volume)?);
        (part.through > head.through).then(|| {
            format!(
                "the pool has writes of volume {} through {}, and this catalog has them through {} (segment {}): a gateway was killed, whose log has them and brings them when it starts; or this \
                 catalog is an older copy, and `cairn recover` makes the newest one",
                head.name,
                part.through.get(),
                head.through.get(),
                footer.segment
            )
        })
    })
}
