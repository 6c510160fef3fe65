//! Putting a whole erasure-coded segment together, of shards that may lie.
//!
//! As many shards as it takes are read, all of each, held to their trailers, and what they give is held to the segment's own checks. Where it fails, a shard is
//! wrong under checksums that are right: more are read one by one, and other combinations tried. Without the segment's domain only its header and footer can
//! be checked; then one more shard, if any can be read, must agree. In memory are the shards that were read, one try, and what is being made of it.

use super::Pool;
use super::candidates::{COMBINATIONS_MAX, combinations};
use super::erasure::decode;
use super::get::name_of_holder;
use super::repair::{Checked, Domains, check_segment, corrupt_segment};
use super::roster::Roster;
use super::shard::ShardTrailer;
use super::verified::shard_at;
use crate::error::{Damaged, PoolError};
use crate::segment::{HeaderError, VERSION};
use bytes::{Bytes, BytesMut};
use cairn_model::{ObjectPlace, ShardPlace};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

/// What shards give together.
enum Verdict {
    Good(Bytes),
    /// As good as can be told without its domain and with no shard to compare it to.
    Likely(Bytes),
    Bad(Damaged),
}

/// Shards of one segment that pass their checksums, and what is made of them.
struct Assembly<'a> {
    pool: &'a Pool,
    roster: &'a Roster,
    place: &'a ObjectPlace,
    domains: Domains<'a>,
    data: u8,
    parity: u8,
    held: Vec<(usize, Bytes)>,
    tries: usize,
}

impl Pool {
    /// All bytes of an erasure-coded segment, verified, without the help of the shard `but`.
    pub(super) async fn assemble(
        &self,
        roster: &Roster,
        place: &ObjectPlace,
        but: Option<usize>,
        (data, parity): (u8, u8),
        domains: Domains<'_>,
    ) -> Result<Bytes, PoolError> {
        let needed = usize::from(data);
        let mut left = self.in_order(roster, place, but).into_iter();
        let read = |(index, shard): (usize, ShardPlace)| async move {
            (index, shard.node, self.shard_itself(roster, place, index).await)
        };
        let mut running: FuturesUnordered<_> = left.by_ref().take(needed).map(read).collect();
        let mut assembly =
            Assembly { pool: self, roster, place, domains, data, parity, held: Vec::new(), tries: 0 };
        let (mut lost, mut unread, mut bad, mut likely) = (None, None, None, None);
        while let Some((index, node, result)) = running.next().await {
            match result {
                Ok((_, bytes)) => {
                    likely = None;
                    match assembly.add(index, bytes)? {
                        Some(Verdict::Good(whole)) => return Ok(whole),
                        Some(Verdict::Likely(whole)) => likely = Some(whole),
                        Some(Verdict::Bad(damaged)) => bad = Some(damaged),
                        None => continue,
                    }
                }
                Err(error) if error.is_of_object() => {
                    self.found_damaged(roster, place, index, node);
                    lost = Some(error);
                }
                Err(error) => unread = Some(error),
            }
            running.extend(left.next().map(read));
        }
        if let Some(whole) = likely {
            return Ok(whole);
        }
        let found = assembly.held.len();
        match (bad, unread, lost) {
            // Those that cannot be read now may be what it takes.
            (Some(damaged), None, _) => Err(corrupt_segment(roster, place, damaged)),
            (None, None, Some(lost)) => Err(lost),
            (bad, unread, _) => Err(PoolError::TooFewShards {
                key: place.key.clone(),
                found,
                required: needed + usize::from(bad.is_some()),
                reason: unread
                    .map_or_else(|| "the others are not anywhere".to_owned(), |error| error.to_string()),
            }),
        }
    }

    /// A shard of `ec`, all of it, verified, with its trailer.
    pub(super) async fn shard_itself(
        &self,
        roster: &Roster,
        place: &ObjectPlace,
        index: usize,
    ) -> Result<(ShardTrailer, Bytes), PoolError> {
        let length = place.placement.profile().shard_bytes(place.length_bytes);
        self.verified_regions(roster, place, index, 0..length).await
    }

    /// The shards but one, those on nodes that are avoided last.
    pub(super) fn in_order(
        &self,
        roster: &Roster,
        place: &ObjectPlace,
        but: Option<usize>,
    ) -> Vec<(usize, ShardPlace)> {
        let now = self.ports.clock.now();
        let typical = roster.typical(|node| node.health().get_p50());
        let mut order: Vec<_> = place.placement.present().filter(|(index, _)| Some(*index) != but).collect();
        order.sort_by_key(|(_, shard)| {
            roster.member(shard.node).map_or(true, |member| roster.avoids(member, typical, now))
        });
        order
    }
}

impl Assembly<'_> {
    /// Takes in one more shard, and judges what can be made of it and of those that are there. `None`: they are too few yet.
    fn add(&mut self, index: usize, bytes: Bytes) -> Result<Option<Verdict>, PoolError> {
        let others = self.held.len();
        self.held.push((index, bytes));
        let needed = usize::from(self.data);
        if others + 1 < needed {
            return Ok(None);
        }
        let mut verdict = Verdict::Bad(Damaged("its shards contradict each other"));
        for mut chosen in combinations(others, needed - 1).take(COMBINATIONS_MAX - self.tries) {
            self.tries += 1;
            chosen.push(others);
            let bytes = usize::try_from(self.place.length_bytes).unwrap_or(usize::MAX);
            let judged = self.pool.work(bytes, || self.judge(&chosen));
            match judged {
                Ok(Verdict::Bad(damaged)) | Err(HeaderError::Damaged(damaged)) => {
                    verdict = Verdict::Bad(damaged);
                }
                Ok(other) => return Ok(Some(other)),
                // It is all there, and not for this program to make anew.
                Err(HeaderError::Newer(version)) => {
                    return Err(PoolError::NewerFormat {
                        node: name_of_holder(self.place, self.roster),
                        key: self.place.key.clone(),
                        found: u64::from(version),
                        known: u64::from(VERSION),
                    });
                }
            }
        }
        Ok(Some(verdict))
    }

    /// What the chosen of those that are held give. CPU work.
    fn judge(&self, chosen: &[usize]) -> Result<Verdict, HeaderError> {
        let sources: Vec<_> = chosen.iter().map(|at| (self.held[*at].0, &self.held[*at].1[..])).collect();
        let whole = self.join(&sources).map_err(HeaderError::Damaged)?;
        let checked = check_segment(&whole, &self.place.key, self.domains)?;
        let others: Vec<_> = (0..self.held.len()).filter(|at| !chosen.contains(at)).collect();
        if others.is_empty() {
            return Ok(if checked == Checked::Whole { Verdict::Good(whole) } else { Verdict::Likely(whole) });
        }
        let numbers: Vec<_> = others.iter().map(|at| self.held[*at].0).collect();
        let expected = decode(self.data, self.parity, &numbers, &sources).map_err(HeaderError::Damaged)?;
        let (agree, differ): (Vec<_>, Vec<_>) =
            others.into_iter().zip(&expected).partition(|(at, expected)| self.held[*at].1 == **expected);
        if checked != Checked::Whole && agree.is_empty() {
            return Ok(Verdict::Bad(Damaged("its shards contradict each other")));
        }
        for (at, _) in differ {
            let index = self.held[at].0;
            let (node, _) = shard_at(self.place, index);
            self.pool.found_lying(self.roster, self.place, index, node);
        }
        Ok(Verdict::Good(whole))
    }

    /// The segment out of as many shards as it takes.
    fn join(&self, sources: &[(usize, &[u8])]) -> Result<Bytes, Damaged> {
        let of = |shard: usize| sources.iter().find(|(index, _)| *index == shard).map(|(_, bytes)| *bytes);
        let missing: Vec<_> = (0..usize::from(self.data)).filter(|shard| of(*shard).is_none()).collect();
        let mut made = decode(self.data, self.parity, &missing, sources)?.into_iter();
        let length = usize::try_from(self.place.length_bytes).unwrap_or(usize::MAX);
        let mut whole = BytesMut::with_capacity(sources.iter().map(|(_, bytes)| bytes.len()).sum());
        for shard in 0..usize::from(self.data) {
            if let Some(bytes) = of(shard) {
                whole.extend_from_slice(bytes);
            } else {
                let bytes = made.next().ok_or(Damaged("a data shard was not restored"))?;
                whole.extend_from_slice(&bytes);
            }
        }
        whole.truncate(length);
        Ok(whole.freeze())
    }
}
