//! `cairn.toml` as it is written: every key optional, every unknown key an error that names it.

use serde::Deserialize;
use std::fmt;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConfig {
    pub(super) gateway: RawGateway,
    pub(super) catalog: RawCatalog,
    pub(super) key: RawKey,
    pub(super) wal: RawWal,
    pub(super) memory: RawMemory,
    pub(super) flash: RawFlash,
    pub(super) dedupe: RawDedupe,
    pub(super) destage: RawDestage,
    pub(super) reclaim: RawReclaim,
    pub(super) heal: RawHeal,
    pub(super) cpu: RawCpu,
    pub(super) pool: RawPool,
    pub(super) log: RawLog,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawGateway {
    pub(super) nbd: Option<Vec<String>>,
    pub(super) tls: Option<RawTls>,
    pub(super) admin: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTls {
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
    pub(super) client_ca: Option<String>,
    pub(super) required: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCatalog {
    pub(super) url: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawKey {
    pub(super) path: Option<String>,
    pub(super) command: Option<Vec<String>>,
    pub(super) passphrase_file: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawWal {
    pub(super) capacity: Option<String>,
    pub(super) path: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMemory {
    pub(super) write_buffer: Option<String>,
    pub(super) block_cache: Option<String>,
    pub(super) map_cache: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawFlash {
    pub(super) size: Option<String>,
    pub(super) path: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDedupe {
    pub(super) path: Option<String>,
    pub(super) memory: Option<String>,
    pub(super) index: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDestage {
    pub(super) batch_bytes: Option<String>,
    pub(super) batch_age: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawReclaim {
    pub(super) interval: Option<String>,
    pub(super) dead_percent: Option<u8>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHeal {
    pub(super) bandwidth: Option<String>,
    pub(super) node_failed_after: Option<String>,
    pub(super) reuse_wiped_nodes: Option<bool>,
    pub(super) scrub_period: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCpu {
    pub(super) budget: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPool {
    pub(super) url: Option<String>,
    pub(super) checkpoint_interval: Option<String>,
    pub(super) access_key_id: Option<String>,
    pub(super) secret_access_key: Option<Secret>,
    pub(super) session_token: Option<Secret>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub(super) format: Option<String>,
    pub(super) level: Option<String>,
}

/// Text that is never printed and is wiped from memory when dropped.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// For the client that authenticates with it only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}
