//! qcow2 images, read and written by the `imago` crate behind a check of the header.
//!
//! ```text
//! header   0  magic "QFI\xfb"          4  version, 2 or 3           8  backing file: offset, 16: its length
//!         20  cluster bits, 9..=21    24  virtual size             32  encryption method
//!         36  L1 entries              40  L1 offset
//!         72  incompatible features (version 3)                   104  compression type
//! ```
//!
//! The format is specified in QEMU's `docs/interop/qcow2.rst`. Nothing authenticates it. What `imago` does not
//! handle (encryption, zstd, extended L2 entries) or what would open another file is refused here, by name.
//!
//! `imago` reads zeros beyond the end of the file, so a file that was cut short would pass for a disk with less in it.
//! Every range is therefore checked against the file's length first: the L1 table and the L2 tables when the image is
//! opened, the data when its extent is looked up.

use super::ImageError;
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping, StorageOpenOptions,
};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes of the header that [`check_header`] looks at.
pub(super) const HEADER_BYTES: usize = 112;

/// Clusters of written images, QEMU's default.
pub(super) const CLUSTER_BYTES: usize = 64 << 10;

/// 64 TiB, the largest volume; no larger image can be imported.
const VIRTUAL_BYTES_MAX: u64 = cairn_model::VOLUME_BLOCKS_MAX * cairn_model::BLOCK_SIZE as u64;

/// QEMU's limit: 32 MiB of L1 table.
const L1_ENTRIES_MAX: u64 = (32 << 20) / 8;

/// Where an L1 entry says its L2 table is.
const L1_OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// Flags of an L2 entry; the second from version 3 on.
const L2_COMPRESSED: u64 = 1 << 62;
const L2_ZEROS: u64 = 1;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

/// Why a header is not accepted. The texts complete the sentence "the qcow2 image PATH ...".
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderProblem {
    Unsupported(String),
    Damaged(&'static str),
}

fn field<const N: usize>(header: &[u8], offset: usize) -> Option<[u8; N]> {
    header.get(offset..offset + N)?.try_into().ok()
}

/// Accepts a header that this module can read; `header` holds at least [`HEADER_BYTES`] bytes of the file, or all of a
/// shorter one.
pub(super) fn check_header(header: &[u8]) -> Result<(), HeaderProblem> {
    let number = |offset| field::<4>(header, offset).map(u32::from_be_bytes);
    let long = |offset| field::<8>(header, offset).map(u64::from_be_bytes);
    let parse =
        || Some((number(4)?, long(8)?, number(20)?, long(24)?, number(32)?, number(36)?, number(68)?));
    let Some((version, backing, cluster_bits, size, encryption, l1_entries, _)) = parse() else {
        return Err(HeaderProblem::Damaged("its header is cut short"));
    };
    let unsupported = |problem: &str| Err(HeaderProblem::Unsupported(problem.to_owned()));
    if !(2..=3).contains(&version) {
        return Err(HeaderProblem::Unsupported(format!("has version {version}; versions 2 and 3 are known")));
    }
    if !(9..=21).contains(&cluster_bits) {
        return Err(HeaderProblem::Damaged("its cluster size is impossible"));
    }
    if backing != 0 {
        return unsupported("has a backing file; only images that stand alone are imported");
    }
    if encryption != 0 {
        return unsupported("is encrypted");
    }
    if size > VIRTUAL_BYTES_MAX {
        return unsupported("is larger than 64 TiB, the largest volume");
    }
    // One L2 table fills a cluster with 8-byte entries, each for one cluster.
    let bytes_per_l1_entry = 1u64 << (2 * cluster_bits - 3);
    let l1_entries_needed = size.div_ceil(bytes_per_l1_entry);
    if u64::from(l1_entries) < l1_entries_needed || u64::from(l1_entries) > L1_ENTRIES_MAX {
        return Err(HeaderProblem::Damaged("its L1 table does not fit its size"));
    }
    if version == 3 { check_features(long(72), header.get(104).copied()) } else { Ok(()) }
}

fn check_features(incompatible: Option<u64>, compression: Option<u8>) -> Result<(), HeaderProblem> {
    let Some(incompatible) = incompatible else {
        return Err(HeaderProblem::Damaged("its header is cut short"));
    };
    let problem = if incompatible & INCOMPATIBLE_CORRUPT != 0 {
        return Err(HeaderProblem::Damaged("it is marked as corrupt"));
    } else if incompatible & INCOMPATIBLE_DIRTY != 0 {
        return Err(HeaderProblem::Damaged("it was not closed cleanly, or is in use"));
    } else if incompatible & INCOMPATIBLE_EXTERNAL_DATA != 0 {
        "keeps its data in another file; only images that stand alone are imported"
    } else if incompatible & INCOMPATIBLE_COMPRESSION != 0 && compression != Some(0) {
        "is compressed with zstd; only deflate is read"
    } else if incompatible & INCOMPATIBLE_EXTENDED_L2 != 0 {
        "has extended L2 entries"
    } else if incompatible & !INCOMPATIBLE_COMPRESSION != 0 {
        "has features that this version does not know"
    } else {
        return Ok(());
    };
    Err(HeaderProblem::Unsupported(problem.to_owned()))
}

pub(super) struct Qcow2Reader {
    image: FormatAccess<ImagoFile>,
    path: PathBuf,
    file_bytes: u64,
}

impl Qcow2Reader {
    pub(super) fn new(file: File, header: &[u8], path: &Path) -> Result<Self, ImageError> {
        check_header(header).map_err(|problem| match problem {
            HeaderProblem::Unsupported(problem) => ImageError::Unsupported { path: path.to_owned(), problem },
            HeaderProblem::Damaged(problem) => {
                ImageError::Damaged { path: path.to_owned(), problem: problem.to_owned() }
            }
        })?;
        let file_bytes =
            file.metadata().map_err(|source| ImageError::Io { path: path.to_owned(), source })?.len();
        check_tables(&file, header, file_bytes, path)?;
        let damaged = |source| damaged(path, &source);
        let storage = ImagoFile::from_open_file(file, StorageOpenOptions::new()).map_err(damaged)?;
        let image = Qcow2::<ImagoFile>::builder(storage)
            .backing(None)
            .data_file(None)
            .open(DenyImplicitOpenGate::default())
            .map_err(damaged)?;
        Ok(Self { image: FormatAccess::new(image), path: path.to_owned(), file_bytes })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.image.size()
    }

    /// Length of the run that begins at `offset`, and whether it may hold data. Stays within the size.
    pub(super) fn extent(&self, offset: u64) -> Result<(u64, bool), ImageError> {
        let rest = self.image.size() - offset;
        let (mapping, length) =
            self.image.get_mapping(offset, rest).map_err(|source| damaged(&self.path, &source))?;
        let data = match mapping {
            Mapping::Raw { offset: at, .. } if !within(at, length.min(rest), self.file_bytes) => {
                return Err(cut_short(&self.path));
            }
            Mapping::Zero { .. } | Mapping::Eof { .. } => false,
            _ => true,
        };
        if length == 0 {
            let problem = format!("it has no mapping at byte {offset}");
            return Err(ImageError::Damaged { path: self.path.clone(), problem });
        }
        Ok((length.min(rest), data))
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        self.image.read(buffer, offset).map_err(|source| damaged(&self.path, &source))
    }
}

/// Refuses a file that ends before its L1 table, or an L2 table that the L1 table names, does. `header` was accepted.
fn check_tables(file: &File, header: &[u8], file_bytes: u64, path: &Path) -> Result<(), ImageError> {
    let number = |offset| field::<4>(header, offset).map_or(0, u32::from_be_bytes);
    let cluster_bytes = 1u64 << number(20);
    let l1_offset = field::<8>(header, 40).map_or(0, u64::from_be_bytes);
    let l1_bytes = u64::from(number(36)) * 8;
    if !within(l1_offset, l1_bytes, file_bytes) {
        return Err(cut_short(path));
    }
    // An accepted header has at most L1_ENTRIES_MAX entries.
    let mut l1 = vec![0; usize::try_from(l1_bytes).expect("an L1 table has at most 32 MiB")];
    file.read_exact_at(&mut l1, l1_offset)
        .map_err(|source| ImageError::Io { path: path.to_owned(), source })?;
    let (entries, _) = l1.as_chunks::<8>();
    let lost = |entry: &[u8; 8]| {
        let table = u64::from_be_bytes(*entry) & L1_OFFSET_MASK;
        table != 0 && !within(table, cluster_bytes, file_bytes)
    };
    if entries.iter().any(lost) {
        return Err(cut_short(path));
    }
    if number(4) == 2 { check_no_zero_clusters(file, header, entries, path) } else { Ok(()) }
}

/// Refuses an image of version 2 whose L2 tables say "zeros" of a cluster. That version has no such flag, so somebody who does not know
/// it would read the cluster that the entry names: the image is damaged, as QEMU says too.
fn check_no_zero_clusters(file: &File, header: &[u8], l1: &[[u8; 8]], path: &Path) -> Result<(), ImageError> {
    let cluster_bytes = 1u64 << field::<4>(header, 20).map_or(0, u32::from_be_bytes);
    let clusters = field::<8>(header, 24).map_or(0, u64::from_be_bytes).div_ceil(cluster_bytes);
    let mut table = vec![0; usize::try_from(cluster_bytes).expect("a cluster has at most 2 MiB")];
    let mut seen = BTreeSet::new();
    for (first, entry) in (0..clusters).step_by(table.len() / 8).zip(l1) {
        let offset = u64::from_be_bytes(*entry) & L1_OFFSET_MASK;
        if offset == 0 || !seen.insert(offset) {
            continue;
        }
        file.read_exact_at(&mut table, offset)
            .map_err(|source| ImageError::Io { path: path.to_owned(), source })?;
        let (entries, _) = table.as_chunks::<8>();
        let mut entries = (first..clusters).zip(entries).map(|(_, entry)| u64::from_be_bytes(*entry));
        if entries.any(|entry| entry & L2_COMPRESSED == 0 && entry & L2_ZEROS != 0) {
            let problem = "it has a cluster of zeros, which its version does not know".to_owned();
            return Err(ImageError::Damaged { path: path.to_owned(), problem });
        }
    }
    Ok(())
}

fn within(offset: u64, length: u64, file_bytes: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= file_bytes)
}

fn cut_short(path: &Path) -> ImageError {
    let problem = "it ends before its data does: the file was cut short".to_owned();
    ImageError::Damaged { path: path.to_owned(), problem }
}

fn damaged(path: &Path, source: &io::Error) -> ImageError {
    // What imago says where a table or a compressed cluster goes on beyond the end of the file.
    if source.to_string().contains("FailedCannotMakeProgress") {
        return cut_short(path);
    }
    ImageError::Damaged { path: path.to_owned(), problem: source.to_string() }
}

/// An image that is being written.
pub(super) struct Qcow2Writer {
    image: FormatAccess<ImagoFile>,
}

impl Qcow2Writer {
    /// Formats the empty `file`.
    pub(super) fn new(file: File, size_bytes: u64) -> io::Result<Self> {
        let storage = ImagoFile::from_open_file(file, StorageOpenOptions::new().write(true))?;
        let image = Qcow2::<ImagoFile>::create_builder(storage)
            .size(size_bytes)
            .cluster_size(CLUSTER_BYTES)
            .create_open(DenyImplicitOpenGate::default(), |image| {
                Ok(Qcow2::builder(image).backing(None).write(true))
            })?;
        Ok(Self { image: FormatAccess::new(image) })
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.image.write(bytes, offset)
    }

    /// Everything written is durable when this returns.
    pub(super) fn finish(self) -> io::Result<()> {
        self.image.flush()?;
        self.image.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u32) -> Vec<u8> {
        let mut header = vec![0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&version.to_be_bytes());
        header[20..24].copy_from_slice(&16u32.to_be_bytes());
        header[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        header[36..40].copy_from_slice(&2u32.to_be_bytes());
        header[100..104].copy_from_slice(&112u32.to_be_bytes());
        header
    }

    fn with(offset: usize, bytes: &[u8]) -> Result<(), HeaderProblem> {
        let mut header = header(3);
        header[offset..offset + bytes.len()].copy_from_slice(bytes);
        check_header(&header)
    }

    #[test]
    fn plain_headers_are_accepted() {
        assert_eq!(check_header(&header(2)), Ok(()));
        assert_eq!(check_header(&header(3)), Ok(()));
    }

    #[test]
    fn references_to_other_files_are_refused() {
        assert!(matches!(with(8, &4096u64.to_be_bytes()), Err(HeaderProblem::Unsupported(_))));
        assert!(matches!(with(72, &4u64.to_be_bytes()), Err(HeaderProblem::Unsupported(_))));
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        for (offset, bytes, word) in [
            (4, &4u32.to_be_bytes()[..], "version 4"),
            (32, &1u32.to_be_bytes()[..], "encrypted"),
            (24, &(65u64 << 40).to_be_bytes()[..], "64 TiB"),
            (72, &16u64.to_be_bytes()[..], "extended"),
            (72, &(1u64 << 60).to_be_bytes()[..], "does not know"),
        ] {
            match with(offset, bytes) {
                Err(HeaderProblem::Unsupported(problem)) => assert!(problem.contains(word), "{problem}"),
                other => panic!("{word}: {other:?}"),
            }
        }
        let mut zstd = header(3);
        zstd[72..80].copy_from_slice(&8u64.to_be_bytes());
        zstd[104] = 1;
        assert!(
            matches!(check_header(&zstd), Err(HeaderProblem::Unsupported(problem)) if problem.contains("zstd"))
        );
    }

    #[test]
    fn impossible_headers_are_damage() {
        for (offset, bytes) in [
            (20, &8u32.to_be_bytes()[..]),
            (20, &u32::MAX.to_be_bytes()[..]),
            (36, &1u32.to_be_bytes()[..]),
            (36, &u32::MAX.to_be_bytes()[..]),
            (72, &1u64.to_be_bytes()[..]),
            (72, &2u64.to_be_bytes()[..]),
        ] {
            assert!(matches!(with(offset, bytes), Err(HeaderProblem::Damaged(_))), "{offset} {bytes:?}");
        }
        for length in 0..72 {
            assert!(matches!(check_header(&header(3)[..length]), Err(HeaderProblem::Damaged(_))), "{length}");
        }
    }
}
