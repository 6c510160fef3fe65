//! Reading shards of erasure-coded segments that are held to their own trailers.

use super::Pool;
use super::get::name_of_holder;
use super::roster::Roster;
use super::shard::{ShardTrailer, VERSION, trailer_bytes};
use crate::error::{Damaged, PoolError};
use crate::segment::HeaderError;
use bytes::Bytes;
use cairn_model::{NodeId, ObjectPlace, Profile};
use std::ops::Range;

impl Pool {
    /// Whole regions of one shard, and the trailer that they were held to. `Corrupt` when they fail.
    pub(super) async fn verified_regions(
        &self,
        roster: &Roster,
        place: &ObjectPlace,
        index: usize,
        regions: Range<u64>,
    ) -> Result<(ShardTrailer, Bytes), PoolError> {
        let (trailer, bytes) = futures::future::try_join(
            self.trailer(roster, place, index),
            self.shard_range(roster, place, index, regions.clone()),
        )
        .await?;
        if trailer.verify(regions.start, &bytes) {
            Ok((trailer, bytes))
        } else {
            Err(corrupt_shard(roster, place, index, "a region fails its checksum"))
        }
    }

    async fn shard_range(
        &self,
        roster: &Roster,
        place: &ObjectPlace,
        index: usize,
        range: Range<u64>,
    ) -> Result<Bytes, PoolError> {
        let (node, key) = shard_at(place, index);
        roster.member(node)?.node.get_range(&key, range).await
    }

    /// What a shard says about itself, if that is what it should be.
    pub(super) async fn trailer(
        &self,
        roster: &Roster,
        place: &ObjectPlace,
        index: usize,
    ) -> Result<ShardTrailer, PoolError> {
        let (node, key) = shard_at(place, index);
        let node = &roster.member(node)?.node;
        let shard_bytes = place.placement.profile().shard_bytes(place.length_bytes);
        let (tail, size) = node.get_suffix(&key, trailer_bytes(shard_bytes)).await?;
        let trailer = ShardTrailer::decode(&tail, size).map_err(|error| match error {
            HeaderError::Damaged(Damaged(reason)) => corrupt_shard(roster, place, index, reason),
            HeaderError::Newer(version) => PoolError::NewerFormat {
                node: node.name().clone(),
                key: key.clone(),
                found: u64::from(version),
                known: u64::from(VERSION),
            },
        })?;
        let identity = &trailer.identity;
        let is_it = Profile::ec(identity.data, identity.parity) == Some(place.placement.profile())
            && usize::from(identity.index) == index
            && identity.segment_bytes == place.length_bytes
            && place.key.ends_with(&identity.segment.to_string())
            && node.site().is_none_or(|site| site == identity.site);
        if is_it {
            Ok(trailer)
        } else {
            Err(corrupt_shard(roster, place, index, "it is another shard, or of another segment or site"))
        }
    }
}

pub(super) fn shard_at(place: &ObjectPlace, index: usize) -> (NodeId, String) {
    let shard = place.placement.shards()[index].expect("it is present");
    (shard.node, place.shard_key(index).expect("it is present"))
}

pub(super) fn corrupt_shard(
    roster: &Roster,
    place: &ObjectPlace,
    index: usize,
    reason: &'static str,
) -> PoolError {
    let (node, key) = shard_at(place, index);
    let node = roster
        .member(node)
        .map_or_else(|_| name_of_holder(place, roster), |member| member.node.name().clone());
    PoolError::Corrupt { node, key, part: format!("shard {index}"), reason: reason.to_owned() }
}
