//! The store's manifests, looked at before the store looks: it believes the counts in them and allocates for as many, and an allocation that is
//! refused ends the process. What names a manifest has its checksum (`lsm-tree`, `version/persist.rs`).

use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

/// The file that names the manifest: its number (8), its checksum (16), the kind of checksum (1), little-endian.
const NAMING: &str = "current";
const NAMING_BYTES: usize = 25;
const XXH3: u8 = 0;
/// A manifest has some 30 bytes a table.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;
/// Folders below the store's in which manifests are.
const DEPTH_MAX: u32 = 4;

/// Fails when a manifest below `path` is not what its checksum says.
pub(crate) fn check(path: &Path) -> Result<()> {
    check_below(path, DEPTH_MAX)
}

fn check_below(folder: &Path, depth: u32) -> Result<()> {
    if folder.join(NAMING).is_file() {
        check_named(folder)?;
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if depth > 0 && entry.file_type()?.is_dir() {
            check_below(&entry.path(), depth - 1)?;
        }
    }
    Ok(())
}

fn check_named(folder: &Path) -> Result<()> {
    let damaged = |what: &str| Error::new(ErrorKind::InvalidData, format!("{}: {what}", folder.display()));
    let naming = fs::read(folder.join(NAMING))?;
    let naming: [u8; NAMING_BYTES] =
        naming.try_into().map_err(|_| damaged("what names the manifest has another length"))?;
    let (number, rest) = naming.split_first_chunk::<8>().expect("it has 25 bytes");
    let (checksum, kind) = rest.split_first_chunk::<16>().expect("it has 17 bytes");
    if kind != [XXH3] {
        return Err(damaged("the manifest has a checksum of another kind"));
    }
    let manifest = folder.join(format!("v{}", u64::from_le_bytes(*number)));
    if fs::metadata(&manifest)?.len() > MANIFEST_BYTES_MAX {
        return Err(damaged("the manifest is too long"));
    }
    if xxh3_128(&fs::read(manifest)?) != u128::from_le_bytes(*checksum) {
        return Err(damaged("the manifest is damaged"));
    }
    Ok(())
}
