//! The gateway's configuration: `cairn.toml`, read raw, then validated into what the code imports.
//!
//! Two stages: [`raw`] is the file as written, every key optional and every unknown key an error; [`Config`] is
//! what holds after defaults, ranges and cross-checks. Nothing else in the crate sees the raw form.

mod address;
mod raw;
mod template;
#[cfg(test)]
mod tests;
mod validate;

pub use address::{ListenAddress, UNIX_PATH_BYTES_MAX};
pub use raw::Secret;
pub use template::template;
pub(crate) use validate::catalog;

use cairn_engine::CpuBudget;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest `cairn.toml` that is read: a thousand times a real one.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} has {bytes} bytes; at most {CONFIG_BYTES_MAX} are read")]
    TooLong { path: PathBuf, bytes: u64 },
    #[error("{path}, line {line}: {message}")]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{path}: `{key}` {problem}")]
    Value { path: PathBuf, key: &'static str, problem: String },
}

/// A validated configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub gateway: GatewayConfig,
    pub catalog: CatalogUrl,
    pub key: KeyConfig,
    pub wal: WalSection,
    pub memory: MemoryConfig,
    pub flash: FlashSection,
    pub dedupe: DedupeSection,
    pub destage: DestageConfig,
    pub reclaim: ReclaimConfig,
    pub heal: HealConfig,
    pub cpu: CpuConfig,
    pub pool: PoolConfig,
    pub log: LogConfig,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Where NBD is served; never empty.
    pub nbd: Vec<ListenAddress>,
    pub tls: Option<TlsConfig>,
    /// The admin API on TCP, beside `admin.sock`. Always a loopback address.
    pub admin: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM certificate chain of this gateway.
    pub cert: PathBuf,
    /// PEM private key of the certificate.
    pub key: PathBuf,
    /// PEM certificates that clients' certificates must come from.
    pub client_ca: Option<PathBuf>,
    /// Clients that do not ask for TLS are refused.
    pub required: bool,
}

/// Where the catalog lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogUrl {
    Sqlite(PathBuf),
}

/// Where the master key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyConfig {
    File {
        path: PathBuf,
        /// Holds the passphrase of a key file that needs one.
        passphrase_file: Option<PathBuf>,
    },
    /// Run without a shell; prints the key.
    Command { program: String, arguments: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalSection {
    pub capacity_bytes: u64,
    pub path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    pub write_buffer_bytes: u64,
    pub block_cache_bytes: u64,
    pub map_cache_bytes: u64,
}

/// The cache on local flash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlashSection {
    /// 0: none.
    pub size_bytes: u64,
    pub path: PathBuf,
}

/// The index of what is stored already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DedupeSection {
    pub path: PathBuf,
    /// Fingerprints kept in memory.
    pub memory_bytes: u64,
    /// Disk that the index may take.
    pub index_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestageConfig {
    pub batch_bytes: u64,
    pub batch_age: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReclaimConfig {
    /// How often the gateway looks for what nothing points at any more; `None`: only when it is asked to.
    pub interval: Option<Duration>,
    /// Where more of the pool than this is dead, what is left of sparse segments is written together anew. 100: never.
    pub dead_percent: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealConfig {
    /// What healing and scrub read and write at most, while no segment is at risk; `None`: as fast as it goes.
    pub bytes_per_second: Option<u64>,
    /// A node that has not answered for so long is declared failed; `None`: never.
    pub node_failed_after: Option<Duration>,
    /// A node whose place has been empty for so long is used again, without what it held, where the pool cannot be whole without it.
    pub reuse_wiped_nodes: bool,
    /// How long reading everything in the pool once may take; `None`: only when asked to.
    pub scrub_period: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuConfig {
    /// The share of the cores that hashes, compresses and seals.
    pub budget: CpuBudget,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// `None`: the data node that the catalog names.
    pub url: Option<String>,
    /// How often the catalog is recorded in the pool while data is written.
    pub checkpoint_interval: Duration,
    /// `None`: from the environment.
    pub credentials: Option<PoolCredentials>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolCredentials {
    pub access_key_id: String,
    pub secret_access_key: Secret,
    pub session_token: Option<Secret>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    pub format: LogFormat,
    /// A `tracing` filter: `info`, or `info,cairn_engine=debug`.
    pub level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Human,
    Json,
}

impl Config {
    /// Reads and validates `path`; relative paths in it are relative to `directory`. A missing file is an error:
    /// initialisation wrote one.
    pub fn load(path: &Path, directory: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Read { path: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLong { path: path.to_owned(), bytes });
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text, path, directory)
    }

    /// Validates `text`. `path` is only named in errors.
    pub fn parse(text: &str, path: &Path, directory: &Path) -> Result<Self, ConfigError> {
        let raw: raw::RawConfig = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count()),
            // The error's own rendering quotes the line, which may hold a secret.
            message: error.message().trim().replace('\n', " "),
        })?;
        validate::validate(raw, directory).map_err(|(key, problem)| ConfigError::Value {
            path: path.to_owned(),
            key,
            problem,
        })
    }

    /// What holds when the file sets nothing.
    pub fn defaults(directory: &Path) -> Self {
        validate::validate(raw::RawConfig::default(), directory).expect("the defaults are valid")
    }
}

#[doc(hidden)]
pub mod fuzzing {
    use super::Config;
    use std::path::Path;

    /// Parses and validates arbitrary bytes as `cairn.toml`; an error as the user is told of it.
    pub fn config(data: &[u8]) -> Result<Config, String> {
        let text = std::str::from_utf8(data).map_err(|error| error.to_string())?;
        Config::parse(text, Path::new("cairn.toml"), Path::new("/cairn")).map_err(|error| error.to_string())
    }
}
