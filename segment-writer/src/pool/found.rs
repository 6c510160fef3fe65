//! Segments as the nodes' listings tell of them: for whoever has no catalog.
//!
//! A shard's key tells its segment, and of erasure coding its profile and number; copies are called like the segment. All shards of a segment are of the same bytes,
//! whoever made them. So a node may show more than the catalog named (what a late put, a repair or a conversion left), and any set that suffices is the segment: its
//! place is made of what is there.

use super::Pool;
use super::marker::MARKER_KEY;
use super::node::DataNode;
use super::shard::{ShardTrailer, trailer_bytes};
use crate::error::PoolError;
use crate::segment::{SEGMENTS_PREFIX, segment_key};
use cairn_model::{
    NodeId, ObjectPlace, Placement, Profile, SegmentId, ShardPlace, UploadReceipt, boxed, shard_key,
};
use futures::future::{join_all, try_join_all};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// No trailer is longer.
const TAIL_BYTES_MAX: u64 = 1 << 20;

/// Which shard of erasure coding an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Coded {
    pub(super) profile: Profile,
    pub(super) index: usize,
}

/// An object of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Object {
    node: NodeId,
    /// `None`: a copy.
    coded: Option<Coded>,
    tag: u32,
    length_bytes: u64,
}

/// A segment of which nodes have objects, as their names tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundSegment {
    pub id: SegmentId,
    objects: Vec<Object>,
}

/// Which objects of segments a node has, in a few bytes: their number, and all their keyless BLAKE3 combined by exclusive or, so that the order is nothing. It shows that something
/// came or went; it authenticates nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ObjectTally {
    objects: u64,
    hashes: u128,
}

impl ObjectTally {
    fn add(&mut self, key: &str, length_bytes: u64) {
        let hash = blake3::hash(format!("{length_bytes} {key}").as_bytes());
        self.objects += 1;
        self.hashes ^= u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("it has twice as many"));
    }

    /// What [`fmt::Display`] writes: the number, and 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let (objects, hashes) = text.split_once(' ')?;
        let tally = Self { objects: objects.parse().ok()?, hashes: u128::from_str_radix(hashes, 16).ok()? };
        (tally.to_string() == text).then_some(tally)
    }
}

impl fmt::Display for ObjectTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:032x}", self.objects, self.hashes)
    }
}

/// Whether shards of the profile have trailers, and how long their objects are.
fn object_bytes(profile: Profile, segment_bytes: u64) -> (bool, u64) {
    match profile {
        Profile::Single | Profile::Replica { .. } => (false, segment_bytes),
        Profile::Ec { .. } => {
            let shard = profile.shard_bytes(segment_bytes);
            (true, shard + trailer_bytes(shard))
        }
    }
}

/// What a key says, if it is that of a shard.
pub(super) fn parse(key: &str) -> Option<(SegmentId, Option<Coded>, u32)> {
    let mut parts = key.rsplit_once('/')?.1.split('.');
    let id: SegmentId = parts.next()?.parse().ok()?;
    let rest: Vec<&str> = parts.collect();
    let (coded, tag) = match rest[..] {
        [] => (None, None),
        [tag] => (None, Some(tag)),
        [shards, index] => (Some((shards, index)), None),
        [shards, index, tag] => (Some((shards, index)), Some(tag)),
        _ => return None,
    };
    let tag = tag.map_or(Some(0), |tag| u32::from_str_radix(tag, 16).ok())?;
    let coded = match coded {
        None => None,
        Some((shards, index)) => {
            let (data, parity) = shards.strip_prefix("ec")?.split_once('-')?;
            let profile = Profile::ec(data.parse().ok()?, parity.parse().ok()?)?;
            Some(Coded { profile, index: index.parse().ok().filter(|index| *index < profile.shards())? })
        }
    };
    // Numbers can be written in many ways, keys in one.
    let (profile, index) = coded.map_or((Profile::Single, 0), |coded| (coded.profile, coded.index));
    (shard_key(&segment_key(id), profile, index, tag) == key).then_some((id, coded, tag))
}

impl FoundSegment {
    /// Of these objects of a segment: their nodes, keys and lengths. Those that are called otherwise are left out.
    pub fn of<'a>(id: SegmentId, objects: impl IntoIterator<Item = (NodeId, &'a str, u64)>) -> Self {
        let object = |(node, key, length_bytes)| match parse(key) {
            Some((of, coded, tag)) if of == id => Some(Object { node, coded, tag, length_bytes }),
            _ => None,
        };
        Self { id, objects: objects.into_iter().filter_map(object).collect() }
    }

    /// Of all its objects.
    pub fn length_bytes(&self) -> u64 {
        // As nodes tell, which may lie.
        self.objects.iter().fold(0, |sum: u64, object| sum.saturating_add(object.length_bytes))
    }

    /// Adds its objects to what their nodes have.
    pub fn tally(&self, tallies: &mut BTreeMap<NodeId, ObjectTally>) {
        for object in &self.objects {
            let (profile, index) =
                object.coded.map_or((Profile::Single, 0), |coded| (coded.profile, coded.index));
            let key = shard_key(&segment_key(self.id), profile, index, object.tag);
            tallies.entry(object.node).or_default().add(&key, object.length_bytes);
        }
    }

    /// How many shards of a placement of the segment are there, as long as they should be.
    pub fn count(&self, placement: &Placement, segment_bytes: u64) -> usize {
        let is_there = |(index, place): &(usize, ShardPlace)| {
            self.has(placement.profile(), *index, *place, segment_bytes)
        };
        placement.present().filter(is_there).count()
    }

    fn has(&self, profile: Profile, index: usize, place: ShardPlace, segment_bytes: u64) -> bool {
        let (is_coded, length_bytes) = object_bytes(profile, segment_bytes);
        let coded = is_coded.then_some(Coded { profile, index });
        self.objects.contains(&Object { node: place.node, coded, tag: place.tag, length_bytes })
    }

    /// What there is, for messages.
    pub fn told(&self) -> String {
        let mut counts: BTreeMap<Option<Profile>, BTreeSet<Option<usize>>> = BTreeMap::new();
        for object in &self.objects {
            let profile = object.coded.map(|coded| coded.profile);
            counts.entry(profile).or_default().insert(object.coded.map(|coded| coded.index));
        }
        let told = counts.iter().map(|(profile, shards)| match profile {
            Some(profile) => {
                format!("{} of the {} shards that {profile} needs", shards.len(), profile.needed())
            }
            None => "copies that are not whole".to_owned(),
        });
        told.collect::<Vec<_>>().join(", ")
    }
}

impl Pool {
    /// The segments of which any node has an object and whose keys have `prefix`: all of them are those of all 256. In the order of their identities. An error when a
    /// node does not answer.
    #[boxed]
    pub async fn list_segments(&self, prefix: u8) -> Result<Vec<FoundSegment>, PoolError> {
        let folder = format!("{SEGMENTS_PREFIX}/{prefix:02x}");
        let (nodes, folder) = (self.nodes(), &folder);
        let lists = nodes.iter().map(|node| async move { Ok((node.id(), node.list(folder).await?)) });
        let mut found: BTreeMap<SegmentId, Vec<Object>> = BTreeMap::new();
        for (node, list) in try_join_all(lists).await? {
            for (key, length_bytes) in list {
                if let Some((id, coded, tag)) = parse(&key) {
                    found.entry(id).or_default().push(Object { node, coded, tag, length_bytes });
                }
            }
        }
        Ok(found.into_iter().map(|(id, objects)| FoundSegment { id, objects }).collect())
    }

    /// The places that a found segment can be read from as far as its objects tell, the best first; `wanted` is what it likely was put with. Of coded shards their
    /// trailers are read, of copies nothing. Empty: there is not enough of it. A shard that cannot be read, or whose trailer is damaged, counts as unknown: an error when there may be enough
    /// with it.
    #[boxed]
    pub async fn places_of(
        &self,
        found: &FoundSegment,
        wanted: Profile,
    ) -> Result<Vec<ObjectPlace>, PoolError> {
        let mut whole: BTreeMap<u64, BTreeMap<NodeId, u32>> = BTreeMap::new();
        for object in found.objects.iter().filter(|object| object.coded.is_none()) {
            let tag = whole.entry(object.length_bytes).or_default().entry(object.node).or_insert(object.tag);
            *tag = object.tag.min(*tag);
        }
        let coded = found.objects.iter().filter_map(|object| Some((object, object.coded?)));
        let reads = coded.map(|(object, coded)| async move {
            (object, coded, self.bytes_told(found.id, object, coded).await)
        });
        let mut unread = None;
        let mut shards: BTreeMap<(Profile, u64), Vec<Vec<ShardPlace>>> = BTreeMap::new();
        for (object, coded, told) in join_all(reads).await {
            let segment_bytes = match told {
                Ok(Some(segment_bytes)) => segment_bytes,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, segment = %found.id, "a shard cannot be read, and is counted as unknown");
                    unread = Some(error);
                    continue;
                }
            };
            let of = shards.entry((coded.profile, segment_bytes)).or_default();
            of.resize(coded.profile.shards(), Vec::new());
            of[coded.index].push(ShardPlace { node: object.node, tag: object.tag });
        }
        let whole =
            whole.into_iter().filter_map(|(length, nodes)| Some((length, of_copies(&nodes, wanted)?)));
        let coded = shards.into_iter().filter_map(|((profile, length), candidates)| {
            Some((length, Placement::new(profile, apart(&candidates))?))
        });
        let key = segment_key(found.id);
        let place = |(length_bytes, placement)| ObjectPlace { key: key.clone(), length_bytes, placement };
        let mut places: Vec<ObjectPlace> = whole.chain(coded).map(place).collect();
        if let Some(error) = unread.filter(|_| places.is_empty()) {
            return Err(error);
        }
        places.sort_by_key(|place| {
            let profile = place.placement.profile();
            (profile != wanted, std::cmp::Reverse(place.placement.present().count() - profile.needed()))
        });
        Ok(places)
    }

    /// Another place for a segment of which shards are not where `place` has them: with what is there of it, what may be on nodes that are not in this pool, and objects that hold the others. Those
    /// were made anew since somebody wrote `place` down. Objects that `is_doomed` are left out: they will be deleted. `None`: there are none.
    #[boxed]
    pub async fn mended(
        &self,
        found: &FoundSegment,
        place: &ObjectPlace,
        is_doomed: &(dyn Fn(NodeId, &str) -> bool + Send + Sync),
    ) -> Result<Option<ObjectPlace>, PoolError> {
        let profile = place.placement.profile();
        let (is_coded, length_bytes) = object_bytes(profile, place.length_bytes);
        let mut shards: Vec<Option<ShardPlace>> = vec![None; profile.shards()];
        for (index, shard) in place.placement.present() {
            let is_there = found.has(profile, index, shard, place.length_bytes);
            shards[index] = (is_there || self.node(shard.node).is_err()).then_some(shard);
        }
        let kept = shards.clone();
        for object in found.objects.iter().filter(|object| object.length_bytes == length_bytes) {
            let index = match object.coded {
                Some(coded) if is_coded && coded.profile == profile => coded.index,
                // Copies are the same under every number.
                None if !is_coded => shards.iter().position(Option::is_none).unwrap_or(0),
                _ => continue,
            };
            let key = shard_key(&place.key, profile, index, object.tag);
            let is_taken = shards.iter().flatten().any(|shard| shard.node == object.node);
            if shards[index].is_some() || is_taken || is_doomed(object.node, &key) {
                continue;
            }
            if let Some(coded) = object.coded {
                // One that cannot be read is none that anything is mended with.
                let told = self.bytes_told(found.id, object, coded).await.inspect_err(|error| {
                    tracing::warn!(%error, segment = %found.id, "a shard cannot be read, and is counted as unknown");
                });
                if !matches!(told, Ok(Some(length)) if length == place.length_bytes) {
                    continue;
                }
            }
            shards[index] = Some(ShardPlace { node: object.node, tag: object.tag });
        }
        if shards == kept {
            return Ok(None);
        }
        let placement = Placement::new(profile, shards);
        Ok(placement.map(|placement| ObjectPlace { placement, ..place.clone() }))
    }

    /// The first node that does not answer when it is asked who it is. An object that cannot be read is one thing, a node that is silent another: that says nothing of what it has.
    #[boxed]
    pub async fn silent_node(&self) -> Option<Arc<DataNode>> {
        let asked = self.nodes().into_iter().map(|node| async move {
            let asked = node.get_range(MARKER_KEY, 0..1).await;
            let answers = matches!(asked, Ok(_) | Err(PoolError::NotFound { .. }));
            (!answers).then_some(node)
        });
        join_all(asked).await.into_iter().flatten().next()
    }

    /// The length of the segment as a shard tells it. `None`: it is another one, or gone.
    async fn bytes_told(
        &self,
        segment: SegmentId,
        object: &Object,
        coded: Coded,
    ) -> Result<Option<u64>, PoolError> {
        let node = self.node(object.node)?;
        let key = shard_key(&segment_key(segment), coded.profile, coded.index, object.tag);
        let trailer = match trailer_of(&node, &key, object.length_bytes).await {
            Ok(Some(trailer)) => trailer,
            Ok(None) => {
                return Err(PoolError::Corrupt {
                    node: Arc::clone(node.name()),
                    key,
                    part: "the trailer of a shard".to_owned(),
                    reason: "it has none that makes sense".to_owned(),
                });
            }
            // It was listed, and is gone.
            Err(PoolError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let identity = trailer.identity;
        let is_it = identity.segment == segment
            && Profile::ec(identity.data, identity.parity) == Some(coded.profile)
            && usize::from(identity.index) == coded.index;
        Ok(is_it.then_some(identity.segment_bytes))
    }

    /// Says that a segment is durable: its place is made of what the nodes show, and its footer was read there.
    pub fn attest_found(&self, segment: SegmentId, place: ObjectPlace) -> UploadReceipt {
        #[expect(clippy::disallowed_methods, reason = "this is the pool, and its nodes have the objects")]
        UploadReceipt::attest(segment, place)
    }
}

impl DataNode {
    /// What the node has of segments now, by its lists.
    #[boxed]
    pub async fn tally_segments(&self) -> Result<ObjectTally, PoolError> {
        let mut tally = ObjectTally::default();
        for prefix in 0..=u8::MAX {
            let objects = self.list(&format!("{SEGMENTS_PREFIX}/{prefix:02x}")).await?;
            for (key, length_bytes) in objects.iter().filter(|(key, _)| parse(key).is_some()) {
                tally.add(key, *length_bytes);
            }
        }
        Ok(tally)
    }
}

/// What a shard says of itself, if it is one.
pub(super) async fn trailer_of(
    node: &DataNode,
    key: &str,
    length_bytes: u64,
) -> Result<Option<ShardTrailer>, PoolError> {
    // As much as the trailer could take if all of the object were the shard's bytes.
    let (tail, size) = node.get_suffix(key, trailer_bytes(length_bytes).min(TAIL_BYTES_MAX)).await?;
    Ok(ShardTrailer::find(&tail, size))
}

/// Copies as a placement: of the profile that is wanted, as far as that fits.
fn of_copies(nodes: &BTreeMap<NodeId, u32>, wanted: Profile) -> Option<Placement> {
    let places = nodes.iter().map(|(node, tag)| ShardPlace { node: *node, tag: *tag });
    let profile = match (wanted, nodes.len()) {
        (Profile::Replica { .. }, _) => wanted,
        (_, 1) => Profile::Single,
        (_, count) => Profile::replica(u8::try_from(count).ok()?)?,
    };
    let mut shards: Vec<Option<ShardPlace>> = places.map(Some).collect();
    shards.resize(profile.shards(), None);
    Placement::new(profile, shards)
}

/// For each shard one of its places, so that none are on one node and as many as possible have one: augmenting paths (Kuhn, 1955).
fn apart(candidates: &[Vec<ShardPlace>]) -> Vec<Option<ShardPlace>> {
    fn settle(
        shard: usize,
        candidates: &[Vec<ShardPlace>],
        held: &mut BTreeMap<NodeId, (usize, ShardPlace)>,
        seen: &mut BTreeSet<NodeId>,
    ) -> bool {
        for place in &candidates[shard] {
            if !seen.insert(place.node) {
                continue;
            }
            let holder = held.get(&place.node).map(|(holder, _)| *holder);
            if holder.is_none_or(|holder| settle(holder, candidates, held, seen)) {
                held.insert(place.node, (shard, *place));
                return true;
            }
        }
        false
    }
    let mut held = BTreeMap::new();
    for shard in 0..candidates.len() {
        settle(shard, candidates, &mut held, &mut BTreeSet::new());
    }
    let mut shards = vec![None; candidates.len()];
    for (shard, place) in held.into_values() {
        shards[shard] = Some(place);
    }
    shards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_otherwise_is_none_of_a_segment() {
        let (id, node) = (SegmentId::from_bytes([1; 16]), NodeId::from_bytes([2; 16]));
        let (key, other) = (segment_key(id), segment_key(SegmentId::from_bytes([3; 16])));
        let moved = format!("{key}.0000002a");
        let found = FoundSegment::of(
            id,
            [(node, &*key, 5), (node, &*other, 7), (node, "notes", 9), (node, &*moved, 11)],
        );
        assert_eq!((found.objects.len(), found.length_bytes()), (2, 16));
    }

    #[test]
    fn lengths_that_a_listing_makes_up_do_not_overflow() {
        let object = |number: u8| Object {
            node: NodeId::from_bytes([number; 16]),
            coded: None,
            tag: 0,
            length_bytes: u64::MAX - 1,
        };
        let id = SegmentId::from_bytes([1; 16]);
        assert_eq!(FoundSegment { id, objects: vec![object(1), object(2)] }.length_bytes(), u64::MAX);
    }
}
