//! What real clients must see, one module per client, one function per behaviour.

pub mod fio;
pub mod libnbd;
pub mod nbd_tester;
pub mod on_filesystem;
pub mod qemu;

use crate::random::Random;
use anyhow::Result;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A file of `size` bytes, part data of all compressibilities and part holes.
pub fn make_source(file: &Path, size: u64, seed: u64) -> Result<()> {
    const EXTENT: u64 = 1 << 20;
    let mut random = Random::seeded(seed);
    let output = File::create(file)?;
    output.set_len(size)?;
    let mut bytes = vec![0; usize::try_from(EXTENT)?];
    for offset in (0..size).step_by(usize::try_from(EXTENT)?) {
        let length = usize::try_from(EXTENT.min(size - offset))?;
        match random.below(4) {
            0 => continue,
            1 => bytes.fill(u8::try_from(random.below(256))?),
            2 => random.fill(&mut bytes),
            _ => {
                bytes.fill(0);
                random.fill(&mut bytes[..usize::try_from(EXTENT / 2)?]);
            }
        }
        output.write_all_at(&bytes[..length], offset)?;
    }
    Ok(())
}

/// Compares two files byte by byte.
pub fn compare_files(left: &Path, right: &Path) -> Result<()> {
    crate::tool::Tool::new("cmp").arg(left).arg(right).run().map(drop)
}
