//! From the raw file to a [`Config`]: defaults, ranges, cross-checks.

use super::raw::{
    RawConfig, RawCpu, RawDedupe, RawDestage, RawFlash, RawGateway, RawHeal, RawKey, RawLog, RawMemory,
    RawPool, RawReclaim, RawTls, RawWal,
};
use super::{
    CatalogUrl, Config, CpuConfig, DedupeSection, DestageConfig, FlashSection, GatewayConfig, HealConfig,
    KeyConfig, ListenAddress, LogConfig, LogFormat, MemoryConfig, PoolConfig, PoolCredentials, ReclaimConfig,
    TlsConfig, WalSection,
};
use crate::units::{format_size_exact, parse_duration, parse_size};
use cairn_engine::{CpuBudget, UnknownCpuBudget};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

pub(super) const WAL_CAPACITY_DEFAULT: u64 = 4 * GIB;
pub(super) const WRITE_BUFFER_DEFAULT: u64 = 256 * MIB;
pub(super) const MAP_CACHE_DEFAULT: u64 = 128 * MIB;
pub(super) const FLASH_SIZE_DEFAULT: u64 = 8 * GIB;
pub(super) const DEDUPE_MEMORY_DEFAULT: u64 = 64 * MIB;
pub(super) const DEDUPE_INDEX_DEFAULT: u64 = 4 * GIB;
pub(super) const BATCH_BYTES_DEFAULT: u64 = 64 * MIB;
/// So that no batch of the smallest changes has more of them than one commit may.
const BATCH_BYTES_MAX: u64 = 480 * MIB;
pub(super) const BATCH_AGE_DEFAULT: Duration = Duration::from_secs(5);
pub(super) const RECLAIM_INTERVAL_DEFAULT: Duration = Duration::from_mins(10);
pub(super) const CHECKPOINT_INTERVAL_DEFAULT: Duration = Duration::from_mins(10);
pub(super) const NBD_DEFAULT: [&str; 2] = ["127.0.0.1:10809", "unix:nbd.sock"];

pub(super) const RECLAIM_DEAD_PERCENT_DEFAULT: u8 = 20;

/// Below it, what lives would be written again and again for the sake of little.
const RECLAIM_DEAD_PERCENT_MIN: u8 = 5;

/// Beyond it, "off" is what is meant.
const RECLAIM_INTERVAL_MAX: Duration = Duration::from_hours(30 * 24);

/// What healing reads and writes in a second.
pub(super) const HEAL_BANDWIDTH_DEFAULT: u64 = 64 * MIB;
pub(super) const NODE_FAILED_AFTER_DEFAULT: Duration = Duration::from_mins(10);
pub(super) const SCRUB_PERIOD_DEFAULT: Duration = Duration::from_hours(30 * 24);
const SCRUB_PERIOD_MAX: Duration = Duration::from_hours(365 * 24);

/// A batch must leave the WAL room for the writes that arrive while it is uploaded, and for the batch behind it.
const BATCHES_PER_WAL_MIN: u64 = 4;

/// An eighth of the machine's memory, 64 MiB to 4 GiB: a gateway shares its host with those it serves.
pub(super) fn block_cache_default() -> u64 {
    let system = rustix::system::sysinfo();
    let eighth = u64::from(system.mem_unit).saturating_mul(system.totalram) / 8;
    (eighth - eighth % MIB).clamp(64 * MIB, 4 * GIB)
}

/// A key and what is wrong with its value.
type Problem = (&'static str, String);

pub(super) fn validate(raw: RawConfig, directory: &Path) -> Result<Config, Problem> {
    let wal = wal(raw.wal, directory)?;
    let (flash, dedupe) = (flash(raw.flash, directory)?, dedupe(raw.dedupe, directory)?);
    apart([("wal.path", &wal.path), ("flash.path", &flash.path), ("dedupe.path", &dedupe.path)])?;
    Ok(Config {
        gateway: gateway(raw.gateway, directory)?,
        catalog: catalog("catalog.url", raw.catalog.url.as_deref(), directory)?,
        key: key(raw.key, directory)?,
        memory: memory(&raw.memory)?,
        flash,
        dedupe,
        destage: destage(&raw.destage, wal.capacity_bytes)?,
        reclaim: reclaim(&raw.reclaim)?,
        heal: heal(&raw.heal)?,
        cpu: cpu(&raw.cpu)?,
        wal,
        pool: pool(raw.pool)?,
        log: log(raw.log)?,
    })
}

fn size(
    key: &'static str,
    text: Option<&str>,
    default: u64,
    range: RangeInclusive<u64>,
) -> Result<u64, Problem> {
    let Some(text) = text else { return Ok(default) };
    let bytes = parse_size(text).map_err(|error| (key, format!("cannot be used: {error}")))?;
    if range.contains(&bytes) {
        return Ok(bytes);
    }
    let (least, most) = (format_size_exact(*range.start()), format_size_exact(*range.end()));
    Err((key, format!("is {text}: it must be at least {least} and at most {most}")))
}

fn gateway(raw: RawGateway, directory: &Path) -> Result<GatewayConfig, Problem> {
    let listed = raw.nbd.unwrap_or_else(|| nbd_defaults(directory));
    if listed.is_empty() {
        return Err(("gateway.nbd", "is empty: name at least one address, or leave the key out".to_owned()));
    }
    let mut nbd = Vec::with_capacity(listed.len());
    let mut seen = HashSet::new();
    for text in &listed {
        let address = ListenAddress::parse(text)
            .and_then(|address| address.resolve(directory))
            .map_err(|problem| ("gateway.nbd", format!("cannot be used: {problem}")))?;
        if !seen.insert(address.clone()) {
            return Err(("gateway.nbd", format!("names {address} twice: remove one")));
        }
        nbd.push(address);
    }
    let tls = raw.tls.map(|tls_section| tls(tls_section, directory)).transpose()?;
    let admin = raw.admin.map(|text| admin(&text)).transpose()?;
    Ok(GatewayConfig { nbd, tls, admin })
}

/// The default addresses; the socket only where its path is short enough to be one.
fn nbd_defaults(directory: &Path) -> Vec<String> {
    let possible =
        |text: &&str| ListenAddress::parse(text).and_then(|address| address.resolve(directory)).is_ok();
    NBD_DEFAULT.into_iter().filter(possible).map(str::to_owned).collect()
}

fn tls(raw: RawTls, directory: &Path) -> Result<TlsConfig, Problem> {
    let needs = |key, what: &str| (key, format!("is missing: `gateway.tls` needs {what}"));
    let cert =
        raw.cert.ok_or_else(|| needs("gateway.tls.cert", "the PEM file of the gateway's certificate"))?;
    let key =
        raw.key.ok_or_else(|| needs("gateway.tls.key", "the PEM file of the certificate's private key"))?;
    Ok(TlsConfig {
        cert: directory.join(cert),
        key: directory.join(key),
        client_ca: raw.client_ca.map(|path| directory.join(path)),
        required: raw.required.unwrap_or(true),
    })
}

fn admin(text: &str) -> Result<SocketAddr, Problem> {
    let key = "gateway.admin";
    let address: SocketAddr =
        text.parse().map_err(|_| (key, format!("is `{text}`: write IP:PORT, as 127.0.0.1:10810")))?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err((
        key,
        format!(
            "is {text}: the admin API has no authentication and listens on loopback addresses only, as 127.0.0.1:10810"
        ),
    ))
}

/// The catalog that `text` names; `None` is the default, `catalog.db` in the directory.
pub(crate) fn catalog(
    key: &'static str,
    text: Option<&str>,
    directory: &Path,
) -> Result<CatalogUrl, Problem> {
    let text = text.unwrap_or("sqlite:catalog.db");
    if let Some(path) = text.strip_prefix("sqlite:") {
        // sqlite://PATH and sqlite:PATH are the same place.
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || path.contains(['?', '#', '\0']) {
            return Err((key, format!("is `{text}`: write sqlite:PATH, without options")));
        }
        return Ok(CatalogUrl::Sqlite(directory.join(path)));
    }
    if text.starts_with("postgres:") || text.starts_with("postgresql:") {
        return Err((
            key,
            "asks for PostgreSQL, which this version does not have: use sqlite:PATH".to_owned(),
        ));
    }
    Err((key, format!("is `{text}`: write sqlite:PATH")))
}

fn key(raw: RawKey, directory: &Path) -> Result<KeyConfig, Problem> {
    let named = |key, path: String| {
        if path.is_empty() || path.ends_with('/') || path.contains('\0') {
            return Err((key, format!("is `{path}`: name a file")));
        }
        Ok(directory.join(path))
    };
    let Some(command) = raw.command else {
        return Ok(KeyConfig::File {
            path: named("key.path", raw.path.unwrap_or_else(|| "key".to_owned()))?,
            passphrase_file: raw
                .passphrase_file
                .map(|path| named("key.passphrase_file", path))
                .transpose()?,
        });
    };
    let beside =
        |key| Err((key, "cannot stand beside `key.command`, which says where the key is".to_owned()));
    if raw.path.is_some() {
        return beside("key.path");
    }
    if raw.passphrase_file.is_some() {
        return beside("key.passphrase_file");
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(("key.command", "has a word with a zero byte in it".to_owned()));
    }
    let mut words = command.into_iter();
    let Some(program) = words.next().filter(|program| !program.is_empty() && !program.ends_with('/')) else {
        return Err(("key.command", "names no program: write [\"PROGRAM\", \"ARGUMENT\", ...]".to_owned()));
    };
    if program.contains(char::is_whitespace) && !program.contains('/') {
        return Err((
            "key.command",
            format!("names a program `{program}`: no shell takes it apart, so write its words one by one"),
        ));
    }
    // A name without a slash is looked up in PATH; any other is a path like those of other keys.
    let program =
        if program.contains('/') { directory.join(program).to_string_lossy().into_owned() } else { program };
    Ok(KeyConfig::Command { program, arguments: words.collect() })
}

fn wal(raw: RawWal, directory: &Path) -> Result<WalSection, Problem> {
    let capacity_bytes =
        size("wal.capacity", raw.capacity.as_deref(), WAL_CAPACITY_DEFAULT, 64 * MIB..=4 * TIB)?;
    Ok(WalSection { capacity_bytes, path: folder("wal.path", raw.path, "wal", directory)? })
}

fn memory(raw: &RawMemory) -> Result<MemoryConfig, Problem> {
    let range = 16 * MIB..=TIB;
    Ok(MemoryConfig {
        write_buffer_bytes: size(
            "memory.write_buffer",
            raw.write_buffer.as_deref(),
            WRITE_BUFFER_DEFAULT,
            range.clone(),
        )?,
        block_cache_bytes: size(
            "memory.block_cache",
            raw.block_cache.as_deref(),
            block_cache_default(),
            range.clone(),
        )?,
        map_cache_bytes: size("memory.map_cache", raw.map_cache.as_deref(), MAP_CACHE_DEFAULT, range)?,
    })
}

/// None of the folders is another one, or in it: each is thrown away by rules of its own.
fn apart(folders: [(&'static str, &PathBuf); 3]) -> Result<(), Problem> {
    // Where it can be told, what a name leads to counts.
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    let folders = folders.map(|(key, path)| (key, real(path)));
    for (place, (key, path)) in folders.iter().enumerate() {
        for (other, other_path) in &folders[..place] {
            if path.starts_with(other_path) || other_path.starts_with(path) {
                return Err((
                    key,
                    format!(
                        "is {}, which is, holds or lies in `{other}`: name a folder of its own",
                        path.display()
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// A folder of the gateway's own: what is in it may be thrown away.
fn folder(
    key: &'static str,
    text: Option<String>,
    default: &str,
    directory: &Path,
) -> Result<PathBuf, Problem> {
    let path = text.unwrap_or_else(|| default.to_owned());
    if ["", ".", "..", "/"].contains(&path.as_str()) {
        return Err((key, format!("is `{path}`: name a folder of its own, as {default}")));
    }
    Ok(directory.join(path))
}

fn flash(raw: RawFlash, directory: &Path) -> Result<FlashSection, Problem> {
    let size_bytes = match raw.size.as_deref() {
        Some("0") => 0,
        text => size("flash.size", text, FLASH_SIZE_DEFAULT, 64 * MIB..=64 * TIB)
            .map_err(|(key, problem)| (key, format!("{problem}, or 0 for no flash cache")))?,
    };
    Ok(FlashSection { size_bytes, path: folder("flash.path", raw.path, "flash", directory)? })
}

fn dedupe(raw: RawDedupe, directory: &Path) -> Result<DedupeSection, Problem> {
    let memory = raw.memory.as_deref();
    let index = raw.index.as_deref();
    Ok(DedupeSection {
        path: folder("dedupe.path", raw.path, "fingerprints", directory)?,
        memory_bytes: size("dedupe.memory", memory, DEDUPE_MEMORY_DEFAULT, 4 * MIB..=64 * GIB)?,
        index_bytes: size("dedupe.index", index, DEDUPE_INDEX_DEFAULT, 64 * MIB..=4 * TIB)?,
    })
}

fn destage(raw: &RawDestage, wal_bytes: u64) -> Result<DestageConfig, Problem> {
    let batch_max = wal_bytes / BATCHES_PER_WAL_MIN;
    let default = BATCH_BYTES_DEFAULT.min(batch_max);
    let batch_bytes =
        size("destage.batch_bytes", raw.batch_bytes.as_deref(), default, MIB..=BATCH_BYTES_MAX)?;
    if batch_bytes > batch_max {
        let (batch, wal) = (format_size_exact(batch_bytes), format_size_exact(wal_bytes));
        let most = format_size_exact(batch_max);
        let problem = format!(
            "is {batch}, but the write-ahead log of {wal} has room for batches of at most {most}: lower it, or raise \
             `wal.capacity`"
        );
        return Err(("destage.batch_bytes", problem));
    }
    let key = "destage.batch_age";
    let batch_age = match raw.batch_age.as_deref() {
        None => BATCH_AGE_DEFAULT,
        Some(text) => parse_duration(text).map_err(|error| (key, format!("cannot be used: {error}")))?,
    };
    if !(Duration::from_millis(100)..=Duration::from_hours(1)).contains(&batch_age) {
        let text = raw.batch_age.as_deref().unwrap_or_default();
        return Err((key, format!("is {text}: it must be at least 100ms and at most 1h")));
    }
    Ok(DestageConfig { batch_bytes, batch_age })
}

fn reclaim(raw: &RawReclaim) -> Result<ReclaimConfig, Problem> {
    let interval = span(
        "reclaim.interval",
        raw.interval.as_deref(),
        RECLAIM_INTERVAL_DEFAULT,
        Duration::from_secs(1)..=RECLAIM_INTERVAL_MAX,
        ("1s", "720h, which is 30 days, or off for only when asked"),
    )?;
    let dead_percent = raw.dead_percent.unwrap_or(RECLAIM_DEAD_PERCENT_DEFAULT);
    if !(RECLAIM_DEAD_PERCENT_MIN..=100).contains(&dead_percent) {
        let limits = "at least 5 and at most 100, which is for never";
        return Err(("reclaim.dead_percent", format!("is {dead_percent}: it must be {limits}")));
    }
    Ok(ReclaimConfig { interval, dead_percent })
}

/// A duration, or `off`. `limits` is the range in words, the second one with what `off` means.
fn span(
    key: &'static str,
    text: Option<&str>,
    default: Duration,
    range: RangeInclusive<Duration>,
    (least, most): (&str, &str),
) -> Result<Option<Duration>, Problem> {
    match text {
        None => Ok(Some(default)),
        Some("off") => Ok(None),
        Some(text) => {
            let (_, off) = most.rsplit_once(", or ").unwrap_or(("", most));
            let span =
                parse_duration(text).map_err(|error| (key, format!("cannot be used: {error}, or {off}")))?;
            if range.contains(&span) {
                return Ok(Some(span));
            }
            Err((key, format!("is {text}: it must be at least {least} and at most {most}")))
        }
    }
}

fn heal(raw: &RawHeal) -> Result<HealConfig, Problem> {
    let bytes_per_second = match raw.bandwidth.as_deref() {
        Some("off") => None,
        text => Some(size("heal.bandwidth", text, HEAL_BANDWIDTH_DEFAULT, MIB..=1 << 40)?),
    };
    let node_failed_after = span(
        "heal.node_failed_after",
        raw.node_failed_after.as_deref(),
        NODE_FAILED_AFTER_DEFAULT,
        Duration::from_secs(10)..=RECLAIM_INTERVAL_MAX,
        ("10s", "720h, which is 30 days, or off for never"),
    )?;
    let scrub_period = span(
        "heal.scrub_period",
        raw.scrub_period.as_deref(),
        SCRUB_PERIOD_DEFAULT,
        Duration::from_hours(1)..=SCRUB_PERIOD_MAX,
        ("1h", "8760h, which is a year, or off for only when asked"),
    )?;
    let reuse_wiped_nodes = raw.reuse_wiped_nodes.unwrap_or(true);
    Ok(HealConfig { bytes_per_second, node_failed_after, reuse_wiped_nodes, scrub_period })
}

fn cpu(raw: &RawCpu) -> Result<CpuConfig, Problem> {
    let Some(name) = raw.budget.as_deref() else { return Ok(CpuConfig { budget: CpuBudget::default() }) };
    let budget =
        name.parse().map_err(|error: UnknownCpuBudget| ("cpu.budget", format!("cannot be used: {error}")))?;
    Ok(CpuConfig { budget })
}

fn pool(raw: RawPool) -> Result<PoolConfig, Problem> {
    if let Some(url) = &raw.url {
        crate::pool_url::check(url).map_err(|problem| ("pool.url", problem))?;
    }
    let credentials = match (raw.access_key_id, raw.secret_access_key) {
        (None, None) => None,
        (Some(access_key_id), Some(secret_access_key)) => {
            Some(PoolCredentials { access_key_id, secret_access_key, session_token: raw.session_token })
        }
        (Some(_), None) => {
            return Err(("pool.secret_access_key", "is missing: `pool.access_key_id` is set".to_owned()));
        }
        (None, Some(_)) => {
            return Err(("pool.access_key_id", "is missing: `pool.secret_access_key` is set".to_owned()));
        }
    };
    let key = "pool.checkpoint_interval";
    let checkpoint_interval = match raw.checkpoint_interval.as_deref() {
        None => CHECKPOINT_INTERVAL_DEFAULT,
        Some(text) => parse_duration(text).map_err(|error| (key, format!("cannot be used: {error}")))?,
    };
    if !(Duration::from_secs(1)..=Duration::from_hours(24)).contains(&checkpoint_interval) {
        let text = raw.checkpoint_interval.as_deref().unwrap_or_default();
        return Err((key, format!("is {text}: it must be at least 1s and at most 24h")));
    }
    Ok(PoolConfig { url: raw.url, checkpoint_interval, credentials })
}

fn log(raw: RawLog) -> Result<LogConfig, Problem> {
    let format = match raw.format.as_deref() {
        None | Some("human") => LogFormat::Human,
        Some("json") => LogFormat::Json,
        Some(other) => return Err(("log.format", format!("is `{other}`: write human or json"))),
    };
    let level = raw.level.unwrap_or_else(|| "info".to_owned());
    // A lone word that is no level would be taken for the name of a module, and silence everything else.
    let lone = level.split(',').map(str::trim).find(|part| !part.contains(['=', '[']) && !is_level(part));
    let refuse = |problem: String| ("log.level", format!("is `{level}`: {problem}"));
    if let Some(word) = lone {
        return Err(refuse(format!("`{word}` is no level; write error, warn, info, debug or trace")));
    }
    tracing_subscriber::EnvFilter::builder().parse(&level).map_err(|error| refuse(error.to_string()))?;
    Ok(LogConfig { format, level })
}

fn is_level(word: &str) -> bool {
    ["off", "error", "warn", "info", "debug", "trace"].iter().any(|level| word.eq_ignore_ascii_case(level))
}
