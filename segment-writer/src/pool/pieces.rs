//! The parts of a range that single shards have, and how they are made of others and joined.

use super::Pool;
use super::get::name_of_holder;
use super::roster::Roster;
use crate::error::PoolError;
use bytes::{Bytes, BytesMut};
use cairn_model::{ObjectPlace, Profile};
use std::ops::Range;

/// Bytes from which on CPU work leaves the thread to others if it can: some 300 µs of decoding.
const WORK_IN_PLACE_BYTES: usize = 1 << 20;

/// A part of the range that one shard has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) shard: usize,
    /// Of the shard.
    pub(super) bytes: Range<u64>,
}

impl Piece {
    pub(super) fn length(&self) -> usize {
        usize::try_from(self.bytes.end - self.bytes.start).expect("at most GET_BYTES_MAX")
    }
}

/// Which shards of an erasure-coded segment have a range of it.
pub(super) fn pieces_of(range: &Range<u64>, shard_bytes: u64) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(2);
    let mut at = range.start;
    while at < range.end {
        let shard = at / shard_bytes;
        let end = range.end.min((shard + 1) * shard_bytes);
        let start = shard * shard_bytes;
        let shard = usize::try_from(shard).expect("a segment has few shards");
        pieces.push(Piece { shard, bytes: at - start..end - start });
        at = end;
    }
    pieces
}

pub(super) fn join(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    for part in &parts {
        whole.extend_from_slice(part);
    }
    whole.freeze()
}

impl Pool {
    /// CPU work on so many bytes: what takes long leaves the thread to others if it can.
    pub(super) fn work<T>(&self, bytes: usize, work: impl FnOnce() -> T) -> T {
        let mut work = Some(work);
        let mut done = None;
        let mut run = || done = work.take().map(|work| work());
        if bytes < WORK_IN_PLACE_BYTES || !self.ports.spawn.in_place(&mut run) {
            run();
        }
        done.expect("it ran, there or here")
    }

    /// The bytes of a piece from whole columns of other shards.
    pub(super) fn decode_piece(
        &self,
        place: &ObjectPlace,
        roster: &Roster,
        piece: &Piece,
        extents: &[(usize, Bytes)],
    ) -> Result<Bytes, PoolError> {
        let Profile::Ec { data, parity } = place.placement.profile() else {
            let (_, bytes) = extents.first().expect("a copy is one");
            return Ok(bytes.clone());
        };
        let sources: Vec<_> = extents.iter().map(|(index, bytes)| (*index, &bytes[..])).collect();
        let length = extents.first().map_or(0, |(_, bytes)| bytes.len());
        let decoded =
            self.work(length * sources.len(), || self.recipes.decode(data, parity, piece.shard, &sources));
        let decoded = decoded.map_err(|damaged| PoolError::Corrupt {
            node: name_of_holder(place, roster),
            key: place.key.clone(),
            part: format!("shard {}", piece.shard),
            reason: damaged.to_string(),
        })?;
        let skipped = usize::try_from(piece.bytes.start % super::erasure::COLUMN_BYTES).expect("below 64");
        Ok(decoded.slice(skipped..skipped + piece.length()))
    }
}
