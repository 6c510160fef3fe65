//! The marker that makes a place a data node of one site.
//!
//! `cairn-node.json` at the node's root, JSON so that a person who looks into a bucket sees what it is:
//!
//! ```json
//! {"format": "cairn-node", "version": 1, "site": "32 hex digits", "node": "32 hex digits"}
//! ```
//!
//! Nothing authenticates it: it guards against mistakes, not against attackers, who gain nothing by it (everything a node
//! returns is verified). It is written when the node is attached and never changed; a place without it is no
//! data node, whatever else is or is not there.

use crate::error::PoolError;
use cairn_model::{NodeId, SiteId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub const MARKER_KEY: &str = "cairn-node.json";

/// Longest marker that is read.
pub(crate) const MARKER_BYTES_MAX: u64 = 4096;

const FORMAT: &str = "cairn-node";
const VERSION: u64 = 1;

/// What a marker says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Marker {
    pub(crate) site: SiteId,
    pub(crate) node: NodeId,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    format: String,
    version: u64,
    site: SiteId,
    node: NodeId,
}

/// Read before the rest, which another version may shape differently.
#[derive(Deserialize)]
struct Version {
    format: String,
    version: u64,
}

impl Marker {
    pub(crate) fn encode(self) -> Vec<u8> {
        let json = Json { format: FORMAT.to_owned(), version: VERSION, site: self.site, node: self.node };
        let mut text = serde_json::to_vec(&json).expect("strings and numbers always become JSON");
        text.push(b'\n');
        text
    }

    pub(crate) fn decode(bytes: &[u8], node: &Arc<str>) -> Result<Self, PoolError> {
        let damaged = |reason: String| PoolError::Corrupt {
            node: Arc::clone(node),
            key: MARKER_KEY.to_owned(),
            part: "the node's marker".to_owned(),
            reason,
        };
        let Version { format, version } =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if format != FORMAT {
            return Err(damaged(format!("its format is {format:?}")));
        }
        if version > VERSION {
            return Err(PoolError::NewerFormat {
                node: Arc::clone(node),
                key: MARKER_KEY.to_owned(),
                found: version,
                known: VERSION,
            });
        }
        let Json { site, node, .. } =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        Ok(Self { site, node })
    }

    /// Refuses another node.
    pub(crate) fn check(self, site: SiteId, id: NodeId, node: &Arc<str>) -> Result<(), PoolError> {
        self.check_site(site, node)?;
        if self.node == id {
            Ok(())
        } else {
            Err(PoolError::OtherNode { node: Arc::clone(node), found: self.node, expected: id })
        }
    }

    /// Refuses a node of another site.
    pub(crate) fn check_site(self, expected: SiteId, node: &Arc<str>) -> Result<(), PoolError> {
        if self.site == expected {
            Ok(())
        } else {
            Err(PoolError::OtherSite { node: Arc::clone(node), found: self.site, expected })
        }
    }
}
