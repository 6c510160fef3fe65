//! What a gateway keeps beside its log on local flash: the cache and the index. Both only help: without them the gateway serves, and its
//! status says why they are missing.

use super::Site;
use crate::error::GatewayError;
use cairn_fingerprints::{FingerprintIndex, IndexConfig, Opened};
use cairn_flash::{CAPACITY_BYTES_MIN, FlashCache, FlashConfig, SealedCache};
use cairn_model::crypto::SecretKey;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const INDEX_KEY_CONTEXT: &str = "cairn 2026-11 fingerprint index of a gateway";

/// Disk that the index takes for a container, with what is not compacted away yet.
const INDEX_BYTES_PER_CONTAINER: u64 = 100_000;

/// How long a start waits for each of them.
const OPENING_LIMIT: Duration = Duration::from_secs(30);

/// The flash cache's size is a multiple of this, so that what else comes and goes on the disk does not change it at every start.
const FLASH_STEP_BYTES: u64 = 64 << 20;

impl Site {
    /// Opens the index of what is stored already, or what is left of it without its directory.
    pub(super) async fn open_index(&self) -> Result<Arc<FingerprintIndex>, GatewayError> {
        let section = &self.config.dedupe;
        let key: SecretKey = self.keyring()?.data_key().derive(INDEX_KEY_CONTEXT, self.gateway.as_bytes());
        let config = IndexConfig {
            path: section.path.clone(),
            cache_bytes: section.memory_bytes,
            containers_max: (section.index_bytes / INDEX_BYTES_PER_CONTAINER).max(1),
        };
        let site = self.row.id;
        let opening = tokio::task::spawn_blocking(move || FingerprintIndex::open(&config, site, &key));
        let without = |reason: String| {
            tracing::warn!(reason, "the index of fingerprints cannot be used; it is kept in memory");
            FingerprintIndex::without_disk(section.memory_bytes, reason)
        };
        let opened = match cairn_model::timeout(&*self.ports.clock, OPENING_LIMIT, opening).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(died)) => return Ok(Arc::new(without(format!("opening it died: {died}")))),
            Err(cairn_model::Elapsed) => return Ok(Arc::new(without("its disk does not answer".to_owned()))),
        };
        Ok(Arc::new(match opened {
            Ok((index, Opened::Wiped { reason })) => {
                tracing::warn!(%reason, "the index of fingerprints begins empty; it is rebuilt in the background");
                index
            }
            Ok((index, _)) => index,
            Err(error) => without(error.to_string()),
        }))
    }

    /// Opens the flash cache, if there is to be one.
    pub(super) async fn open_flash(&self) -> Option<Arc<dyn SealedCache>> {
        let section = &self.config.flash;
        if section.size_bytes == 0 {
            return None;
        }
        let capacity = capacity(section.size_bytes, &section.path);
        let config = FlashConfig::new(&section.path, capacity);
        let opening = FlashCache::open(config, self.row.id, self.ports.clone());
        let Ok(flash) = cairn_model::timeout(&*self.ports.clock, OPENING_LIMIT, opening).await else {
            tracing::warn!("the disk of the flash cache does not answer; the cache is not used");
            return None;
        };
        if let Some(reason) = flash.status().retired {
            tracing::warn!(reason, "the flash cache is not used");
        }
        Some(Arc::new(flash))
    }
}

/// What was asked for, but at most half of what the disk has for it.
fn capacity(asked: u64, path: &Path) -> u64 {
    let Some(existing) = path.ancestors().find(|ancestor| ancestor.exists()) else { return asked };
    let Ok(disk) = rustix::fs::statvfs(existing) else { return asked };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let half = free.midpoint(taken(path));
    let whole = if half < FLASH_STEP_BYTES { half } else { half - half % FLASH_STEP_BYTES };
    asked.min(whole).max(CAPACITY_BYTES_MIN)
}

/// What the cache's files take already.
fn taken(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_takes_what_was_asked_for_but_never_half_of_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flash");
        assert_eq!(capacity(CAPACITY_BYTES_MIN, &path), CAPACITY_BYTES_MIN);
        let disk = rustix::fs::statvfs(folder.path()).unwrap();
        let most = capacity(u64::MAX, &path);
        assert!(most <= disk.f_blocks * disk.f_frsize / 2, "{most}");
    }
}
