//! Where an object of the pool is: a profile says how many shards it has, a placement on which node each of them is.
//!
//! - `single`: one shard, the object itself.
//! - `replica:N`: N shards, each the object itself, any one of which is enough.
//! - `ec:K+M`: K data shards, the parts of the object one behind the other, and M parity shards; any K are enough.
//!
//! Shards of one object are on different nodes.

use crate::NodeId;
use std::fmt::{self, Write};
use std::str::FromStr;

/// Most shards that an object can have.
pub const SHARDS_MAX: usize = 32;

/// How an object is protected against the loss of nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Profile {
    #[default]
    Single,
    /// Whole copies: 2 to [`SHARDS_MAX`].
    Replica { copies: u8 },
    /// Reed-Solomon, systematic: at least 2 data shards and 1 of parity, at most [`SHARDS_MAX`] together.
    Ec { data: u8, parity: u8 },
}

/// Text that is not `single`, `replica:N` or `ec:K+M`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0} is no protection profile: use single, replica:N (2 to 32 copies) or ec:K+M (2 data shards or more, 1 of parity or more, 32 together at most)"
)]
pub struct ParseProfileError(String);

impl Profile {
    /// A profile within the limits that the variants state.
    pub fn replica(copies: u8) -> Option<Self> {
        (2..=SHARDS_MAX).contains(&usize::from(copies)).then_some(Self::Replica { copies })
    }

    /// A profile within the limits that the variants state.
    pub fn ec(data: u8, parity: u8) -> Option<Self> {
        let is_sound = data >= 2 && parity >= 1 && usize::from(data) + usize::from(parity) <= SHARDS_MAX;
        is_sound.then_some(Self::Ec { data, parity })
    }

    /// Shards of an object.
    pub const fn shards(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Replica { copies } => copies as usize,
            Self::Ec { data, parity } => data as usize + parity as usize,
        }
    }

    /// Shards that it takes to read an object.
    pub const fn needed(self) -> usize {
        match self {
            Self::Single | Self::Replica { .. } => 1,
            Self::Ec { data, .. } => data as usize,
        }
    }

    /// Shards that may be lost.
    pub const fn tolerates(self) -> usize {
        self.shards() - self.needed()
    }

    /// Bytes of the object that one of its shards holds, or as many of parity. A data shard is a multiple of 64 bytes; the last ones end with zeros.
    pub const fn shard_bytes(self, object_bytes: u64) -> u64 {
        match self {
            Self::Single | Self::Replica { .. } => object_bytes,
            Self::Ec { data, .. } => object_bytes.div_ceil(data as u64).next_multiple_of(64),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single => f.write_str("single"),
            Self::Replica { copies } => write!(f, "replica:{copies}"),
            Self::Ec { data, parity } => write!(f, "ec:{data}+{parity}"),
        }
    }
}

impl FromStr for Profile {
    type Err = ParseProfileError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
            digits.parse::<u8>().ok().filter(|_| is_plain)
        };
        let profile = match text.split_once(':') {
            None if text == "single" => Some(Self::Single),
            Some(("replica", copies)) => number(copies).and_then(Self::replica),
            Some(("ec", shards)) => shards
                .split_once('+')
                .and_then(|(data, parity)| Some((number(data)?, number(parity)?)))
                .and_then(|(data, parity)| Self::ec(data, parity)),
            _ => None,
        };
        profile.ok_or_else(|| ParseProfileError(text.to_owned()))
    }
}

/// Where a shard is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardPlace {
    pub node: NodeId,
    /// Zero for a shard that was put with its segment. One that was made later has a fresh number, which is part of its key: a key is never
    /// used again, so a delete that comes late hits nothing else.
    pub tag: u32,
}

/// Where all shards of an object are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Placement {
    profile: Profile,
    /// One for each shard of the profile, in their order; `None` is one that is not anywhere.
    shards: Vec<Option<ShardPlace>>,
}

impl Placement {
    /// `None` when there are not as many as the profile says, fewer than it takes to read, or two on one node.
    pub fn new(profile: Profile, shards: Vec<Option<ShardPlace>>) -> Option<Self> {
        let there: Vec<NodeId> = shards.iter().flatten().map(|shard| shard.node).collect();
        let is_apart = there.iter().enumerate().all(|(at, node)| !there[..at].contains(node));
        let is_sound = shards.len() == profile.shards() && there.len() >= profile.needed() && is_apart;
        is_sound.then_some(Self { profile, shards })
    }

    /// One copy, on one node, put with its segment.
    pub fn single(node: NodeId) -> Self {
        Self { profile: Profile::Single, shards: vec![Some(ShardPlace { node, tag: 0 })] }
    }

    pub const fn profile(&self) -> Profile {
        self.profile
    }

    /// One for each shard of the profile, in their order.
    pub fn shards(&self) -> &[Option<ShardPlace>] {
        &self.shards
    }

    /// Those that are somewhere, with their numbers.
    pub fn present(&self) -> impl Iterator<Item = (usize, ShardPlace)> {
        self.shards.iter().enumerate().filter_map(|(index, shard)| Some((index, (*shard)?)))
    }

    pub fn missing(&self) -> usize {
        self.shards.iter().filter(|shard| shard.is_none()).count()
    }
}

/// A segment in the pool.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectPlace {
    /// Of the segment, inside a node's prefix. Keys of shards are made of it.
    pub key: String,
    /// Of the segment.
    pub length_bytes: u64,
    pub placement: Placement,
}

impl ObjectPlace {
    /// The key of a shard inside the prefix of its node. `None` when the shard is not anywhere.
    pub fn shard_key(&self, index: usize) -> Option<String> {
        let shard = (*self.placement.shards.get(index)?)?;
        Some(shard_key(&self.key, self.placement.profile, index, shard.tag))
    }

    /// Node, key and length of every shard that is somewhere. The length is without what the shard says of itself.
    pub fn objects(&self) -> impl Iterator<Item = (NodeId, String, u64)> {
        let profile = self.placement.profile;
        let length = profile.shard_bytes(self.length_bytes);
        let object = move |(index, shard): (usize, ShardPlace)| {
            (shard.node, shard_key(&self.key, profile, index, shard.tag), length)
        };
        self.placement.present().map(object)
    }
}

/// The key of a shard: whole copies are called like the segment.
pub fn shard_key(segment_key: &str, profile: Profile, index: usize, tag: u32) -> String {
    let mut key = segment_key.to_owned();
    if let Profile::Ec { data, parity } = profile {
        write!(key, ".ec{data}-{parity}.{index}").expect("a string takes everything");
    }
    if tag != 0 {
        write!(key, ".{tag:08x}").expect("a string takes everything");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_read_as_they_are_written() {
        for text in ["single", "replica:2", "replica:32", "ec:2+1", "ec:4+2", "ec:31+1"] {
            assert_eq!(text.parse::<Profile>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "Single",
            "single:1",
            "replica",
            "replica:1",
            "replica:0",
            "replica:33",
            "replica:+3",
            "replica:03",
            "ec:4",
            "ec:1+1",
            "ec:4+0",
            "ec:30+3",
            "ec:4+2+1",
            "ec:4 + 2",
            "raid6",
        ] {
            assert!(text.parse::<Profile>().is_err(), "{text}");
        }
    }

    #[test]
    fn shards_cover_the_object() {
        let profile = Profile::ec(4, 2).unwrap();
        assert_eq!([0, 1, 256, 257, 1024].map(|bytes| profile.shard_bytes(bytes)), [0, 64, 64, 128, 256]);
        assert_eq!((profile.shards(), profile.needed(), profile.tolerates()), (6, 4, 2));
    }

    #[test]
    fn a_placement_has_enough_shards_each_on_its_own_node() {
        let place = |number: u8| Some(ShardPlace { node: NodeId::from_bytes([number; 16]), tag: 0 });
        let profile = Profile::ec(2, 1).unwrap();
        assert!(Placement::new(profile, vec![place(1), None, place(3)]).is_some());
        assert!(Placement::new(profile, vec![place(1), None, None]).is_none(), "too few to read");
        assert!(
            Placement::new(profile, vec![place(1), place(2)]).is_none(),
            "not as many as the profile says"
        );
        assert!(Placement::new(profile, vec![place(1), place(2), place(1)]).is_none(), "two on one node");
    }

    #[test]
    fn keys_of_shards_differ_by_profile_number_and_tag() {
        let ec = Profile::ec(4, 2).unwrap();
        assert_eq!(shard_key("segments/ab/cd", Profile::Single, 0, 0), "segments/ab/cd");
        assert_eq!(shard_key("segments/ab/cd", Profile::Single, 0, 0x1f), "segments/ab/cd.0000001f");
        assert_eq!(shard_key("segments/ab/cd", ec, 5, 0), "segments/ab/cd.ec4-2.5");
        assert_eq!(shard_key("segments/ab/cd", ec, 5, u32::MAX), "segments/ab/cd.ec4-2.5.ffffffff");
    }
}
