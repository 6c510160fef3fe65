//! How a volume's data is packed, as its row in the catalog says.

use crate::domains::Domains;
use crate::error::EngineError;
use cairn_metadata::VolumeRow;
use cairn_segment_writer::{ChunkShape, Compression, Dedupe, VolumePacking};
use serde::{Deserialize, Serialize};

/// The JSON object in [`VolumeRow::options`]. What is absent is the default of this version; keys of other versions are left alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeOptions {
    /// Blocks of a chunk on average, 1 to 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_target_blocks: Option<u8>,
    /// Blocks of the largest chunk, the target to 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_max_blocks: Option<u8>,
    /// zstd level, -7 to 19.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression_level: Option<i8>,
    /// Blocks of equal fingerprints are compared before one is stored for both.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub verify_dedupe: bool,
}

impl VolumeOptions {
    /// The form of the catalog.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("numbers and flags are JSON")
    }

    /// Reads the form of the catalog.
    pub fn decode(text: &str) -> Result<Self, EngineError> {
        serde_json::from_str(text).map_err(|error| EngineError::BadOptions(error.to_string()))
    }

    /// The shape of chunks; an error says what no chunk can be.
    pub fn shape(&self) -> Result<ChunkShape, EngineError> {
        let target = self.chunk_target_blocks.unwrap_or(ChunkShape::DEFAULT.target());
        let max = self.chunk_max_blocks.unwrap_or(ChunkShape::DEFAULT.max().max(target));
        ChunkShape::new(target, max).ok_or_else(|| {
            EngineError::BadOptions(format!(
                "chunks of {target} blocks on average and {max} at most: write 1 <= average <= most <= 16"
            ))
        })
    }

    /// The level; an error names one that zstd does not have.
    pub fn level(&self) -> Result<Compression, EngineError> {
        match self.compression_level {
            None => Ok(Compression::DEFAULT),
            Some(level @ -7..=19) => Ok(Compression::Zstd(level)),
            Some(level) => Err(EngineError::BadOptions(format!(
                "compression level {level}: there are -7 (fastest) to 19 (smallest)"
            ))),
        }
    }
}

/// Everything packing needs to know of a volume. Fails when its domain's key is not open.
pub(crate) fn packing(row: &VolumeRow, domains: &Domains) -> Result<VolumePacking, EngineError> {
    let options = VolumeOptions::decode(&row.options)?;
    Ok(VolumePacking {
        domain: domains.get(row.domain)?,
        shape: options.shape()?,
        compression: if row.compress { options.level()? } else { Compression::Off },
        dedupe: match (row.dedupe, options.verify_dedupe) {
            (false, _) => Dedupe::Off,
            (true, false) => Dedupe::On,
            (true, true) => Dedupe::Verify,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_the_catalog_and_absent_ones_are_defaults() {
        let options =
            VolumeOptions { chunk_target_blocks: Some(2), verify_dedupe: true, ..VolumeOptions::default() };
        assert_eq!(VolumeOptions::decode(&options.encode()).unwrap(), options);
        let none = VolumeOptions::decode("{}").unwrap();
        assert_eq!(
            (none.shape().unwrap(), none.level().unwrap()),
            (ChunkShape::DEFAULT, Compression::DEFAULT)
        );
        assert_eq!(none.encode(), "{}");
    }

    #[test]
    fn what_no_chunk_or_level_can_be_is_refused() {
        let shape = |target, max| {
            let options = VolumeOptions {
                chunk_target_blocks: target,
                chunk_max_blocks: max,
                ..VolumeOptions::default()
            };
            options.shape().map(|shape| (shape.target(), shape.max()))
        };
        assert_eq!(shape(Some(8), Some(8)).unwrap(), (8, 8));
        for (target, max) in
            [(Some(0), None), (Some(17), None), (Some(8), Some(4)), (None, Some(1)), (None, Some(17))]
        {
            assert!(shape(target, max).is_err(), "{target:?} {max:?}");
        }
        let level =
            |level| VolumeOptions { compression_level: Some(level), ..VolumeOptions::default() }.level();
        assert!(level(-8).is_err() && level(20).is_err());
        assert_eq!(level(-7).unwrap(), Compression::Zstd(-7));
    }
}
