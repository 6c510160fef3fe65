//! The `cairn.toml` that initialisation writes: every key, commented, with its default.

use super::validate::{
    BATCH_AGE_DEFAULT, BATCH_BYTES_DEFAULT, CHECKPOINT_INTERVAL_DEFAULT, DEDUPE_INDEX_DEFAULT,
    DEDUPE_MEMORY_DEFAULT, FLASH_SIZE_DEFAULT, HEAL_BANDWIDTH_DEFAULT, MAP_CACHE_DEFAULT,
    NODE_FAILED_AFTER_DEFAULT, RECLAIM_DEAD_PERCENT_DEFAULT, RECLAIM_INTERVAL_DEFAULT, SCRUB_PERIOD_DEFAULT,
    WAL_CAPACITY_DEFAULT, WRITE_BUFFER_DEFAULT, block_cache_default,
};
use crate::units::format_size_exact;
use cairn_engine::CpuBudget;

/// The text of a fresh `cairn.toml`. `catalog_url` is set in it when it was given.
pub fn template(catalog_url: Option<&str>) -> String {
    let catalog = match catalog_url {
        Some(url) => format!("url = {}", toml::Value::from(url)),
        None => "# url = \"sqlite:catalog.db\"".to_owned(),
    };
    let size = |bytes| format!("\"{}\"", format_size_exact(bytes));
    TEMPLATE
        .replace("@CATALOG@", &catalog)
        .replace("@WAL_CAPACITY@", &size(WAL_CAPACITY_DEFAULT))
        .replace("@WRITE_BUFFER@", &size(WRITE_BUFFER_DEFAULT))
        .replace("@BLOCK_CACHE@", &size(block_cache_default()))
        .replace("@MAP_CACHE@", &size(MAP_CACHE_DEFAULT))
        .replace("@FLASH_SIZE@", &size(FLASH_SIZE_DEFAULT))
        .replace("@DEDUPE_MEMORY@", &size(DEDUPE_MEMORY_DEFAULT))
        .replace("@DEDUPE_INDEX@", &size(DEDUPE_INDEX_DEFAULT))
        .replace("@BATCH_BYTES@", &size(BATCH_BYTES_DEFAULT))
        .replace("@CPU_BUDGET@", &format!("\"{}\"", CpuBudget::default().name()))
        .replace("@BATCH_AGE@", &format!("\"{}s\"", BATCH_AGE_DEFAULT.as_secs()))
        .replace("@CHECKPOINT_INTERVAL@", &format!("\"{}m\"", CHECKPOINT_INTERVAL_DEFAULT.as_secs() / 60))
        .replace("@RECLAIM_DEAD_PERCENT@", &RECLAIM_DEAD_PERCENT_DEFAULT.to_string())
        .replace("@HEAL_BANDWIDTH@", &size(HEAL_BANDWIDTH_DEFAULT))
        .replace("@NODE_FAILED_AFTER@", &format!("\"{}m\"", NODE_FAILED_AFTER_DEFAULT.as_secs() / 60))
        .replace("@SCRUB_PERIOD@", &format!("\"{}h\"", SCRUB_PERIOD_DEFAULT.as_secs() / 3600))
        .replace("@RECLAIM_INTERVAL@", &format!("\"{}m\"", RECLAIM_INTERVAL_DEFAULT.as_secs() / 60))
}

const TEMPLATE: &str = r#"# Configuration of a Cairn gateway. A commented line shows the default.
# Relative paths are relative to this directory. Changes take effect when the gateway starts.

[gateway]
# Where NBD is served: HOST:PORT or unix:PATH. Without TLS anyone who reaches an address can use every volume.
# nbd = ["127.0.0.1:10809", "unix:nbd.sock"]
# The admin API on TCP as well as on admin.sock; it has no authentication, so only loopback is accepted.
# admin = "127.0.0.1:10810"

# TLS for NBD over TCP. With client_ca clients must show a certificate from it; required refuses clients without TLS.
# [gateway.tls]
# cert = "server.pem"
# key = "server.key"
# client_ca = "clients.pem"
# required = true

[catalog]
@CATALOG@

[key]
# The file of the site's master key. It may need a passphrase (`cairn key passphrase` sets one), which is asked for on the terminal
# unless CAIRN_PASSPHRASE_FILE, passphrase_file here or the systemd credential cairn-passphrase names a file that holds it.
# path = "key"
# passphrase_file = "/run/credentials/passphrase"
# Or a program that prints the key, run without a shell: for a key that a KMS or a TPM keeps.
# command = ["/usr/local/bin/unseal-key", "cairn"]

[wal]
# Local disk kept for acknowledged writes that are not in the pool yet; preallocated.
# capacity = @WAL_CAPACITY@
# path = "wal"

[memory]
# write_buffer = @WRITE_BUFFER@
# The default is an eighth of the machine's memory, at most 4 GiB.
# block_cache = @BLOCK_CACHE@
# map_cache = @MAP_CACHE@

[flash]
# Local flash that keeps what is read, sealed as in the pool; survives restarts. Never more than half of what the disk has free
# when it is made. 0: none. The folder is Cairn's own.
# size = @FLASH_SIZE@
# path = "flash"

[dedupe]
# The index of what is stored already: a folder on local disk, rebuilt when it is lost. The folder is Cairn's own.
# path = "fingerprints"
# index = @DEDUPE_INDEX@
# memory = @DEDUPE_MEMORY@

[destage]
# Acknowledged writes go to the pool when this much has gathered, or after this time.
# batch_bytes = @BATCH_BYTES@
# batch_age = @BATCH_AGE@

[reclaim]
# How often to look for data that nothing points at any more (overwritten, discarded, deleted) and delete it from the pool.
# "off": only when `cairn reclaim` asks for it.
# interval = @RECLAIM_INTERVAL@
# Percent of the pool's bytes that may be dead, 5 to 100: before more is, what lives in the sparsest segments is written together anew and
# the old ones are deleted. Less saves space and costs writes. 100: never.
# dead_percent = @RECLAIM_DEAD_PERCENT@

[heal]
# What healing (repair, drain, conversion, rebalance, scrub) reads and writes in a second at most, while no data is at risk. "off": as fast as it goes.
# bandwidth = @HEAL_BANDWIDTH@
# A data node that has not answered for so long is declared failed, and what it held is made anew on others, if they have room. "off": never.
# node_failed_after = @NODE_FAILED_AFTER@
# Whether a node whose place has been empty for so long, its marker gone, is used again where the pool cannot be whole without it.
# reuse_wiped_nodes = true
# Everything in the pool is read and verified once in this time. "off": only when `cairn scrub` asks for it.
# scrub_period = @SCRUB_PERIOD@

[cpu]
# The share of the cores that hashes, compresses and seals, at low priority and by at least one thread: "normal" is 20 %,
# "insane" 40 %, "unlimited" all of them. `cairn cpu` changes it while the gateway runs, until it ends.
# budget = @CPU_BUDGET@

[pool]
# Where the data lives: file:///PATH or s3://BUCKET/PREFIX?endpoint=URL&region=REGION. Left out, it is the data node
# that the catalog names, at first the folder pool/ here. It can be changed until data is in the pool.
# url = "s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=us-east-1"
# How often the catalog is recorded in the pool while data is written, so that `cairn recover` has less to read. Other changes are recorded at once.
# checkpoint_interval = @CHECKPOINT_INTERVAL@
# Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or from here:
# access_key_id = ""
# secret_access_key = ""

[log]
# format = "human"    # or "json"
# level = "info"      # error, warn, info, debug, trace, or a filter such as "info,cairn_engine=debug"
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("cairn.toml"), Path::new("/cairn")).unwrap()
    }

    #[test]
    fn the_written_file_means_the_defaults() {
        assert_eq!(parse(&template(None)), Config::defaults(Path::new("/cairn")));
    }

    #[test]
    fn the_commented_values_are_the_defaults() {
        let mut uncommented = String::new();
        for line in template(None).lines() {
            let is_key = line.strip_prefix("# ").is_some_and(|rest| {
                rest.split_once(" = ")
                    .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
            });
            let optional = [
                "# admin",
                "# cert",
                "# key",
                "# passphrase_file",
                "# command",
                "# client_ca",
                "# required",
                "# access_key",
                "# secret",
                "# url = \"s3",
            ];
            if is_key && !optional.iter().any(|prefix| line.starts_with(prefix)) {
                uncommented.push_str(&line[2..]);
            } else {
                uncommented.push_str(line);
            }
            uncommented.push('\n');
        }
        assert!(uncommented.contains("\ncapacity = "));
        assert_eq!(parse(&uncommented), Config::defaults(Path::new("/cairn")));
    }

    #[test]
    fn a_catalog_that_was_given_is_set_and_quoted() {
        let config = parse(&template(Some("sqlite:/x/\"quoted\".db")));
        assert_eq!(config.catalog, crate::config::CatalogUrl::Sqlite("/x/\"quoted\".db".into()));
    }
}
