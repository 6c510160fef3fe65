//! What is stored for what guests see, and how sharing and the flash cache do.

use super::types::{Dedupe, Flash, Packing, Reduction, Usage};
use crate::units::format_size;
use cairn_engine::{EngineStatus, VolumeOptions};
use cairn_flash::FlashStatus;
use cairn_metadata::{Totals, VolumeRow, VolumeUsage};
use cairn_segment_writer::Compression;

/// `above / below`; nothing where that says nothing.
fn ratio(above: u64, below: u64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a ratio of sizes")]
    (above > 0 && below > 0).then(|| above as f64 / below as f64)
}

pub(super) fn usage(usage: &VolumeUsage) -> Usage {
    let flow = usage.reduction;
    Usage {
        logical_bytes: usage.logical_bytes,
        written_bytes: flow.written_bytes,
        zero_bytes: flow.zero_bytes,
        shared_bytes: flow.shared_bytes,
        unique_bytes: flow.unique_bytes,
        stored_bytes: flow.stored_bytes,
        saved_bytes: flow.written_bytes.saturating_sub(flow.stored_bytes),
        dedupe_ratio: ratio(flow.shared_bytes + flow.unique_bytes, flow.unique_bytes),
        compression_ratio: ratio(flow.unique_bytes, flow.stored_bytes),
    }
}

pub(super) fn reduction(totals: &Totals) -> Reduction {
    let (logical, unique, stored) =
        (totals.logical_bytes, totals.container_raw_bytes, totals.container_bytes);
    Reduction {
        logical_bytes: logical,
        unique_bytes: unique,
        stored_bytes: stored,
        saved_bytes: logical.saturating_sub(stored),
        dedupe_ratio: ratio(logical, unique),
        compression_ratio: ratio(unique, stored),
    }
}

/// The settings of a volume, defaults filled in. What another version wrote and this one does not understand is told as the default: such a
/// volume is not served, and its state says so.
pub(super) fn packing(row: &VolumeRow) -> Packing {
    let options = VolumeOptions::decode(&row.options).unwrap_or_default();
    let shape = options.shape().unwrap_or_default();
    let level = match options.level().unwrap_or_default() {
        Compression::Zstd(level) if row.compress => Some(level),
        Compression::Zstd(_) | Compression::Off => None,
    };
    Packing {
        chunk_target_blocks: shape.target(),
        chunk_max_blocks: shape.max(),
        compression_level: level,
        verify_dedupe: options.verify_dedupe,
    }
}

pub(super) fn dedupe(engine: &EngineStatus) -> Dedupe {
    let index = &engine.dedupe.index;
    Dedupe {
        index_containers: index.containers,
        index_bytes: index.disk_bytes,
        memory_bytes: index.cache_bytes + index.filter_bytes,
        hits: index.hits,
        misses: index.misses,
        damaged: index.damaged,
        errors: index.errors,
        collisions: engine.dedupe.collisions,
        refused_batches: engine.dedupe.refused_batches,
        in_memory_only: index.in_memory_only.clone(),
    }
}

pub(super) fn flash(flash: &FlashStatus) -> Flash {
    Flash {
        capacity_bytes: flash.capacity_bytes,
        used_bytes: flash.used_bytes,
        chunks: flash.chunks,
        hits: flash.hits,
        misses: flash.misses,
        device_reads: flash.device_reads,
        inserted: flash.inserted,
        inserted_bytes: flash.inserted_bytes,
        dropped: flash.dropped,
        rejected: flash.rejected,
        damaged: flash.damaged,
        io_errors: flash.io_errors,
        working_set_bytes: flash.working_set_bytes,
        shortfall_bytes: flash.shortfall_bytes,
        retired: flash.retired.clone(),
    }
}

/// What of it somebody should do something about: what, and what to do.
pub(super) fn attention(engine: &EngineStatus) -> Vec<(String, String)> {
    let mut warnings = Vec::new();
    if let Some(reason) = &engine.dedupe.index.in_memory_only {
        warnings.push((
            format!("the index of fingerprints is in memory only, so less is shared: {reason}"),
            "correct `dedupe.path` in cairn.toml, or remove what is in the way; then restart the gateway"
                .to_owned(),
        ));
    }
    if engine.dedupe.collisions > 0 {
        warnings.push((
            format!("{} blocks differ from stored blocks of their fingerprint", engine.dedupe.collisions),
            "they are stored by themselves and nothing is lost; please report this, it is a bug or worse"
                .to_owned(),
        ));
    }
    let Some(flash) = &engine.flash else { return warnings };
    if let Some(reason) = &flash.retired {
        warnings.push((
            format!("the flash cache is not used, so reads come from the pool: {reason}"),
            "check its disk and `flash.path` in cairn.toml, then restart the gateway".to_owned(),
        ));
    }
    if let (Some(short), Some(wanted)) =
        (flash.shortfall_bytes.filter(|short| *short > 0), flash.working_set_bytes)
    {
        warnings.push((
            format!(
                "what is read again and again is about {}, {} more than the flash cache holds",
                format_size(wanted),
                format_size(short)
            ),
            "raise `flash.size` in cairn.toml if reads should be faster".to_owned(),
        ));
    }
    warnings
}
