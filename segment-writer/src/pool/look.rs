//! Objects as their nodes show them, without reading them: what there is, and what each says it is. For a check of the pool.
//!
//! Nothing here is verified but what tells one object from another: a shard's trailer has a checksum of its own; of a copy the header and the trailer are looked at, whose checksum needs
//! the footer. What is damaged inside is for [`Pool::verify_shard`](super::Pool::verify_shard).

use super::Pool;
use super::found::{parse, trailer_of};
use super::node::DataNode;
use crate::error::{Damaged, PoolError};
use crate::segment::{HEADER_BYTES, Header, HeaderError, SEGMENTS_PREFIX, TRAILER_BYTES, Trailer, VERSION};
use cairn_model::{NodeId, ObjectPlace, Profile, SegmentId, SiteId, boxed};
use std::sync::Arc;

/// An object in the folder of segments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedObject {
    pub key: String,
    pub length_bytes: u64,
    /// That the key is of; `None`: it is no key of this program's.
    pub segment: Option<SegmentId>,
}

/// What an object says it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ObjectIdentity {
    Of {
        site: SiteId,
        segment: SegmentId,
    },
    /// It is gone.
    Missing,
    /// It does not say, and why.
    Unknown(String),
}

/// What is where a shard should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShardLook {
    /// It says that it is the shard.
    Right,
    Missing,
    /// Something else, and what is wrong with it.
    Other(String),
}

impl Pool {
    /// The objects of a node below one of the 256 folders of segments.
    #[boxed]
    pub async fn list_objects(&self, node: NodeId, folder: u8) -> Result<Vec<ListedObject>, PoolError> {
        let listed = self.node(node)?.list(&format!("{SEGMENTS_PREFIX}/{folder:02x}")).await?;
        let object = |(key, length_bytes): (String, u64)| {
            let segment = parse(&key).map(|(segment, ..)| segment);
            ListedObject { key, length_bytes, segment }
        };
        Ok(listed.into_iter().map(object).collect())
    }

    /// What is beside the 256 folders of segments on a node: keys of objects, and folders, which end with a slash.
    #[boxed]
    pub async fn list_strangers(&self, node: NodeId) -> Result<Vec<String>, PoolError> {
        let (folders, objects) = self.node(node)?.list_in(SEGMENTS_PREFIX).await?;
        let is_own = |folder: &String| {
            let name = folder.rsplit('/').next().unwrap_or_default();
            u8::from_str_radix(name, 16).is_ok_and(|number| format!("{number:02x}") == name)
        };
        let others = folders.into_iter().filter(|folder| !is_own(folder)).map(|folder| format!("{folder}/"));
        Ok(others.chain(objects).collect())
    }

    /// Asks a node who it is, whatever was found before: a bucket or directory may be another one by now. An error: it does not answer, or another one does.
    #[boxed]
    pub async fn look_who(&self, node: NodeId) -> Result<(), PoolError> {
        self.node(node)?.look_who().await
    }

    /// What an object says it is, whatever it is called.
    #[boxed]
    pub async fn identify(&self, node: NodeId, key: &str) -> Result<ObjectIdentity, PoolError> {
        let node = self.node(node)?;
        let is_coded = parse(key).is_some_and(|(_, coded, _)| coded.is_some());
        let identity =
            if is_coded { identify_shard(&node, key).await } else { identify_copy(&node, key).await };
        match identity {
            Ok(identity) => Ok(identity),
            Err(PoolError::NotFound { .. }) => Ok(ObjectIdentity::Missing),
            Err(error @ PoolError::Corrupt { .. }) if error.is_of_object() => {
                Ok(ObjectIdentity::Unknown(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// What is where a shard of a segment of `site` should be. An error: it cannot be told now.
    #[boxed]
    pub async fn look_at_shard(
        &self,
        place: &ObjectPlace,
        index: usize,
        site: SiteId,
    ) -> Result<ShardLook, PoolError> {
        let (Some(Some(shard)), Some(key)) =
            (place.placement.shards().get(index).copied(), place.shard_key(index))
        else {
            return Ok(ShardLook::Missing);
        };
        let node = self.node(shard.node)?;
        let looked = match place.placement.profile() {
            Profile::Ec { .. } => {
                let roster = self.roster();
                self.trailer(&roster, place, index).await.map(|trailer| trailer.identity.site)
            }
            Profile::Single | Profile::Replica { .. } => copy_site(&node, &key, place).await,
        };
        match looked {
            Ok(found) if found == site => Ok(ShardLook::Right),
            Ok(found) => Ok(ShardLook::Other(format!("it is of another site, {found}"))),
            Err(PoolError::NotFound { .. }) => Ok(ShardLook::Missing),
            Err(PoolError::Corrupt { reason, key: of, .. }) if of == key => Ok(ShardLook::Other(reason)),
            Err(error) => Err(error),
        }
    }
}

async fn identify_shard(node: &DataNode, key: &str) -> Result<ObjectIdentity, PoolError> {
    // The end of the object tells its size, and that how long its trailer may be.
    let (_, size) = node.get_suffix(key, 1).await?;
    Ok(match trailer_of(node, key, size).await? {
        Some(trailer) => {
            ObjectIdentity::Of { site: trailer.identity.site, segment: trailer.identity.segment }
        }
        None => ObjectIdentity::Unknown("it does not end as a shard does".to_owned()),
    })
}

async fn identify_copy(node: &DataNode, key: &str) -> Result<ObjectIdentity, PoolError> {
    let (_, size) = node.get_suffix(key, 1).await?;
    if size < HEADER_BYTES as u64 {
        return Ok(ObjectIdentity::Unknown("it is too short for a segment".to_owned()));
    }
    let bytes = node.get_range(key, 0..HEADER_BYTES as u64).await?;
    let header = bytes.first_chunk().expect("it returns what was asked for");
    Ok(match Header::decode(header) {
        Ok(header) => ObjectIdentity::Of { site: header.site, segment: header.segment },
        Err(HeaderError::Damaged(Damaged(reason))) => ObjectIdentity::Unknown(reason.to_owned()),
        Err(HeaderError::Newer(version)) => {
            ObjectIdentity::Unknown(format!("it is of a newer version ({version})"))
        }
    })
}

/// Whose copy it is, if it is one of the segment.
async fn copy_site(node: &DataNode, key: &str, place: &ObjectPlace) -> Result<SiteId, PoolError> {
    let corrupt = |reason: &str| PoolError::Corrupt {
        node: Arc::clone(node.name()),
        key: key.to_owned(),
        part: "the segment".to_owned(),
        reason: reason.to_owned(),
    };
    let (tail, size) = node.get_suffix(key, TRAILER_BYTES as u64).await?;
    if size != place.length_bytes {
        return Err(corrupt(&format!("it has {size} bytes, the catalog says {}", place.length_bytes)));
    }
    let Some(trailer) = tail.first_chunk::<TRAILER_BYTES>().filter(|_| size >= HEADER_BYTES as u64) else {
        return Err(corrupt("it is too short for a segment"));
    };
    Trailer::decode(trailer, size).map_err(|Damaged(reason)| corrupt(reason))?;
    let bytes = node.get_range(key, 0..HEADER_BYTES as u64).await?;
    let header = bytes.first_chunk().expect("it returns what was asked for");
    let header = Header::decode(header).map_err(|error| match error {
        HeaderError::Damaged(Damaged(reason)) => corrupt(reason),
        HeaderError::Newer(version) => PoolError::NewerFormat {
            node: Arc::clone(node.name()),
            key: key.to_owned(),
            found: u64::from(version),
            known: u64::from(VERSION),
        },
    })?;
    if place.key.ends_with(&header.segment.to_string()) {
        Ok(header.site)
    } else {
        Err(corrupt("it is another segment"))
    }
}
