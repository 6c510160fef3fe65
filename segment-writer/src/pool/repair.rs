//! What it takes to heal: shards made anew, segments under another profile, and a look at every byte.
//!
//! Nothing here deletes or names anything: a shard that was put is in the place that the caller records, or is the caller's to delete. Keys have the caller's tag, which is
//! fresh, so a put that comes late, or twice, hits nothing else.
//!
//! What is made is made of verified bytes only: of a whole segment that passes its own checks, its chunks' among them when their domain is at hand. That
//! is a copy, or what shards give all of whose regions pass their checksums (see `assemble`): a shard that lies under checksums that are right goes into no other.
//! A shard that is moved is held to its own checksums alone.

use super::get::{check_range, name_of_holder};
use super::roster::Roster;
use super::shard::encode_segment;
use super::verified::{corrupt_shard, shard_at};
use super::{DataNode, Pool};
use crate::domain::Domain;
use crate::error::{Damaged, PoolError};
use crate::seal::ContainerCipher;
use crate::segment::{HEADER_BYTES, Header, HeaderError, TRAILER_BYTES, Trailer, check_frame, open_footer};
use bytes::Bytes;
use cairn_model::crypto::KeyId;
use cairn_model::{NodeId, ObjectPlace, Placement, Profile, SegmentId, ShardPlace, SiteId, shard_key};

/// Knows domains by the names of their keys.
pub type Domains<'a> = &'a (dyn Fn(KeyId) -> Option<Domain> + Send + Sync);

/// What became of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShardState {
    /// All of it is there and passes. Of an erasure-coded segment that is every region's checksum; of a copy the checksum of its header and footer, and the
    /// tags of its footer and all its chunks when the domain is known.
    Whole,
    Missing,
    /// Why it does not pass.
    Damaged(String),
}

impl Pool {
    /// Reads all of a shard and says what became of it. An error: it cannot be read now.
    pub async fn verify_shard(
        &self,
        place: &ObjectPlace,
        index: usize,
        domains: Domains<'_>,
    ) -> Result<ShardState, PoolError> {
        let roster = self.roster();
        let read = match place.placement.shards().get(index) {
            None | Some(None) => return Ok(ShardState::Missing),
            Some(Some(_)) if self.notes.is_lying(place, index) => {
                return Ok(ShardState::Damaged(
                    "the other shards of the segment say something else".to_owned(),
                ));
            }
            Some(Some(_)) => self.whole_shard(&roster, place, index, domains).await,
        };
        match read {
            Ok(_) => Ok(ShardState::Whole),
            Err(PoolError::NotFound { .. }) => Ok(ShardState::Missing),
            // A marker that is damaged says nothing about the shards of its node.
            Err(error) if error.is_of_node() => Err(error),
            Err(PoolError::Corrupt { reason, .. }) => Ok(ShardState::Damaged(reason)),
            Err(error) => Err(error),
        }
    }

    /// Makes a shard anew, whether or not it is somewhere, and puts it on `to` under `tag`.
    pub async fn rebuild_shard(
        &self,
        place: &ObjectPlace,
        segment: SegmentId,
        index: usize,
        to: NodeId,
        tag: u32,
        domains: Domains<'_>,
    ) -> Result<(), PoolError> {
        let roster = self.roster();
        let target = &roster.member(to)?.node;
        let profile = place.placement.profile();
        let key = shard_key(&place.key, profile, index, tag);
        let Profile::Ec { data, parity } = profile else {
            let whole = self.any_copy(&roster, place, domains).await?;
            return target.put(&key, &[whole]).await;
        };
        // Where it is whole yet, as on a node that is drained, it takes nobody else. One that is known to lie is made of the others.
        if place.placement.shards().get(index).is_some_and(Option::is_some)
            && !self.notes.is_lying(place, index)
            && let Ok((trailer, bytes)) = self.shard_itself(&roster, place, index).await
        {
            return target.put(&key, &[bytes, trailer.encode().into()]).await;
        }
        let whole = self.assemble(&roster, place, Some(index), (data, parity), domains).await?;
        let made = self.work(whole.len(), || {
            if place.key.ends_with(&segment.to_string()) {
                encode_segment(std::slice::from_ref(&whole), data, parity)
            } else {
                Err(Damaged("it is another segment"))
            }
        });
        let mut made = made.map_err(|damaged| corrupt_segment(&roster, place, damaged))?;
        if index >= made.len() {
            return Err(corrupt_segment(&roster, place, Damaged("there is no such shard")));
        }
        target.put(&key, &made.swap_remove(index)).await
    }

    /// Puts the segment, read from where `place` says, under another profile, on `nodes`, and says where it is then. The old shards stay. After an error some of the new ones may be there: their
    /// keys are those of `profile` and `tag` on `nodes`, in order.
    pub async fn convert(
        &self,
        place: &ObjectPlace,
        segment: SegmentId,
        profile: Profile,
        nodes: &[NodeId],
        tag: u32,
        domains: Domains<'_>,
    ) -> Result<ObjectPlace, PoolError> {
        let roster = self.roster();
        let shards = nodes.iter().map(|node| Some(ShardPlace { node: *node, tag })).collect();
        let placement = Placement::new(profile, shards).ok_or_else(|| PoolError::TooFewNodes {
            key: place.key.clone(),
            profile,
            acknowledged: 0,
            required: profile.shards(),
            reason: format!("{} nodes were chosen, or one of them twice", nodes.len()),
        })?;
        let whole = self.whole_segment(&roster, place, domains).await?;
        if !place.key.ends_with(&segment.to_string()) {
            return Err(corrupt_segment(&roster, place, Damaged("it is another segment")));
        }
        let made = self.work(whole.len(), || match profile {
            Profile::Single | Profile::Replica { .. } => Ok(vec![vec![whole.clone()]; profile.shards()]),
            Profile::Ec { data, parity } => encode_segment(std::slice::from_ref(&whole), data, parity),
        });
        let made = made.map_err(|damaged| corrupt_segment(&roster, place, damaged))?;
        let place = ObjectPlace { placement, ..place.clone() };
        let puts = place.objects().zip(&made).map(|((node, key, _), pieces)| {
            let member = roster.member(node);
            async move { member?.node.put(&key, pieces).await }
        });
        futures::future::join_all(puts).await.into_iter().collect::<Result<(), _>>()?;
        Ok(place)
    }

    /// All of a shard's bytes, without its trailer, verified.
    async fn whole_shard(
        &self,
        roster: &Roster,
        place: &ObjectPlace,
        index: usize,
        domains: Domains<'_>,
    ) -> Result<Bytes, PoolError> {
        let profile = place.placement.profile();
        let length = profile.shard_bytes(place.length_bytes);
        if let Profile::Ec { .. } = profile {
            return self.verified_regions(roster, place, index, 0..length).await.map(|(_, bytes)| bytes);
        }
        check_range(place, roster, &(0..length))?;
        let (node, key) = shard_at(place, index);
        let node: &DataNode = &roster.member(node)?.node;
        let (bytes, size) = node.get_suffix(&key, length).await?;
        if size != length {
            return Err(corrupt_shard(roster, place, index, "it is not as long as the catalog says"));
        }
        match self.work(bytes.len(), || check_segment(&bytes, &place.key, domains)) {
            Ok(_) if !is_of_site(&bytes, node.site()) => {
                Err(corrupt_shard(roster, place, index, "it is of another site"))
            }
            Ok(_) => Ok(bytes),
            Err(HeaderError::Damaged(Damaged(reason))) => Err(corrupt_shard(roster, place, index, reason)),
            Err(HeaderError::Newer(version)) => Err(PoolError::NewerFormat {
                node: node.name().clone(),
                key,
                found: u64::from(version),
                known: u64::from(crate::segment::VERSION),
            }),
        }
    }

    /// All of the segment's bytes, verified.
    async fn whole_segment(
        &self,
        roster: &Roster,
        place: &ObjectPlace,
        domains: Domains<'_>,
    ) -> Result<Bytes, PoolError> {
        let Profile::Ec { data, parity } = place.placement.profile() else {
            return self.any_copy(roster, place, domains).await;
        };
        self.assemble(roster, place, None, (data, parity), domains).await
    }

    /// The first copy that passes, those on nodes that are avoided last.
    async fn any_copy(
        &self,
        roster: &Roster,
        place: &ObjectPlace,
        domains: Domains<'_>,
    ) -> Result<Bytes, PoolError> {
        let mut lost = None;
        let mut unread = None;
        for (index, shard) in self.in_order(roster, place, None) {
            match self.whole_shard(roster, place, index, domains).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.is_of_object() => {
                    self.found_damaged(roster, place, index, shard.node);
                    lost = Some(error);
                }
                Err(error) => unread = Some(error),
            }
        }
        Err(unread.or(lost).expect("a placement has a shard"))
    }
}

/// Whether a segment that passes its checks is of the site, where that is known.
fn is_of_site(object: &[u8], site: Option<SiteId>) -> bool {
    let header = object.first_chunk::<HEADER_BYTES>().and_then(|header| Header::decode(header).ok());
    site.is_none_or(|site| header.is_some_and(|header| header.site == site))
}

pub(super) fn corrupt_segment(roster: &Roster, place: &ObjectPlace, Damaged(reason): Damaged) -> PoolError {
    PoolError::Corrupt {
        node: name_of_holder(place, roster),
        key: place.key.clone(),
        part: "the segment".to_owned(),
        reason: reason.to_owned(),
    }
}

/// How much of a segment was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Checked {
    /// Its header and footer: its domain is not known.
    Frame,
    /// All of it.
    Whole,
}

/// Holds a whole segment to its own checks: without its domain, those that need no key. CPU work.
pub(super) fn check_segment(object: &[u8], key: &str, domains: Domains<'_>) -> Result<Checked, HeaderError> {
    let cut = || HeaderError::Damaged(Damaged("it is too short for a segment"));
    let (rest, trailer) = object.split_last_chunk::<TRAILER_BYTES>().ok_or_else(cut)?;
    let header = object.first_chunk::<HEADER_BYTES>().ok_or_else(cut)?;
    let trailer = Trailer::decode(trailer, object.len() as u64).map_err(HeaderError::Damaged)?;
    let start = rest.len().checked_sub(trailer.footer.length as usize).ok_or_else(cut)?;
    let parsed = check_frame(header, &trailer, &rest[start..])?;
    if !key.ends_with(&parsed.segment.to_string()) {
        return Err(HeaderError::Damaged(Damaged("it is another segment")));
    }
    let Some(domain) = domains(parsed.key) else { return Ok(Checked::Frame) };
    let footer = open_footer(|_| Some(domain.clone()), header, &trailer, &mut rest[start..].to_vec())?;
    let mut scratch = Vec::new();
    for container in &footer.containers {
        let cipher = ContainerCipher::new(&domain, container.id);
        for (index, entry) in container.directory.iter() {
            let range = container.offset.saturating_add(entry.range().start)
                ..container.offset.saturating_add(entry.range().end);
            let stored = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
            let stored = stored.and_then(|(start, end)| object.get(start..end)).ok_or_else(cut)?;
            cipher.verify_chunk(index, entry, stored, &mut scratch).map_err(HeaderError::Damaged)?;
        }
    }
    Ok(Checked::Whole)
}
