//! Identities: 128 bits, never reused, unique across sites.
//!
//! An id is 48 bits of wall time in milliseconds (big-endian, so that ids sort roughly by age) followed by 80
//! random bits, as UUIDv7 does (RFC 9562 section 5.7) but without its version bits. Uniqueness rests on the random bits alone.

use crate::{Clock, Entropy};
use std::fmt;
use std::str::FromStr;

/// Text that is not 32 hexadecimal digits was given for an id.
#[derive(Debug, thiserror::Error)]
#[error("an id has 32 hexadecimal digits")]
pub struct ParseIdError;

fn fresh_bytes(clock: &dyn Clock, entropy: &dyn Entropy) -> [u8; 16] {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes[6..]);
    bytes[..6].copy_from_slice(&clock.wall().unix_millis().to_be_bytes()[2..]);
    bytes
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// An id that nothing else has or will have.
            pub fn fresh(clock: &dyn Clock, entropy: &dyn Entropy) -> Self {
                Self(fresh_bytes(clock, entropy))
            }

            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// When it was made, by the maker's wall clock: an estimate, in milliseconds since 1970.
            pub const fn created_at_ms(&self) -> u64 {
                let [a, b, c, d, e, f, ..] = self.0;
                u64::from_be_bytes([0, 0, a, b, c, d, e, f])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), ":{}"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; 16];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseIdError)?;
                Ok(Self(bytes))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// One catalog, one pool and its gateways.
    SiteId
);
id!(
    /// One gateway; lives as long as its local directory.
    GatewayId
);
id!(
    /// A virtual disk.
    VolumeId
);
id!(
    /// A copy-on-write tree of map versions.
    LineageId
);
id!(
    /// A point-in-time view of a volume.
    SnapshotId
);
id!(
    /// The identity of chunks sealed together. Fresh at every attempt: keys are derived from it.
    ContainerId
);
id!(
    /// An immutable object of the pool. Fresh at every attempt: object keys are made of it.
    SegmentId
);
id!(
    /// An object-store endpoint and bucket, or a directory.
    NodeId
);
id!(
    /// One destaged batch: the unit of commit.
    BatchId
);
id!(
    /// One pass of reclaim.
    PassId
);
id!(
    /// A protection group: volumes that are snapshotted together.
    GroupId
);
id!(
    /// One run of a protection group.
    GroupRunId
);
id!(
    /// A dedupe domain: what is sealed under one key, and where equal blocks are stored once.
    DomainId
);

impl DomainId {
    /// The domain that every site has, and that a volume is in unless it says otherwise.
    pub const DEFAULT: Self = Self([0; 16]);
}
