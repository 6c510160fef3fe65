//! Changing a raw image in place.
//!
//! Crash cases: until [`ImagePatch::finish`] returns the file holds some of the changes and not others, in any order. Making the same changes again,
//! in whatever state it was left, gives the same file: a change says what a range holds afterwards, not what it held before. Which changes these
//! are is noted durably beside the file before the first one, and no others are made until all of them are.

use super::{ImageError, ImageFormat, Pending, pending, zero};
use cairn_model::BLOCK_SIZE;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What every qcow2 image begins with.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// A raw image that is brought up to date. One at a time: the file is locked until this is dropped.
#[derive(Debug)]
pub struct ImagePatch {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    /// The file system takes zeros as holes.
    can_punch: bool,
}

impl ImagePatch {
    /// Opens a file that exists. One that begins as a qcow2 image is refused, unless the caller says that it is raw.
    pub fn open(path: &Path, format: Option<ImageFormat>) -> Result<Self, ImageError> {
        let io = |source: io::Error| ImageError::Io { path: path.to_owned(), source };
        let metadata = std::fs::symlink_metadata(path).map_err(io)?;
        if !metadata.is_file() {
            return Err(ImageError::NotAnImage { path: path.to_owned() });
        }
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(ImageError::Busy { path: path.to_owned() }),
            // A file system without locks: then it is the operator who sees to it.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let size_bytes = file.metadata().map_err(io)?.len();
        if format != Some(ImageFormat::Raw) {
            let mut head = [0; QCOW2_MAGIC.len()];
            let is_long = size_bytes >= head.len() as u64;
            if is_long {
                file.read_exact_at(&mut head, 0).map_err(io)?;
            }
            if format == Some(ImageFormat::Qcow2) || head == QCOW2_MAGIC {
                return Err(ImageError::NotRaw { path: path.to_owned() });
            }
        }
        Ok(Self { file, path: path.to_owned(), size_bytes, can_punch: true })
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Before the first change: notes beside the file which update this is. Refused when another one was interrupted.
    pub fn begin(&self, update: &Pending) -> Result<(), ImageError> {
        pending::begin(&self.path, update)
    }

    /// Cuts the file off, or adds zeros.
    pub fn resize(&mut self, size_bytes: u64) -> Result<(), ImageError> {
        self.file.set_len(size_bytes).map_err(|source| self.failed(source))?;
        self.size_bytes = size_bytes;
        Ok(())
    }

    /// Writes over what is there; whole blocks of zeros become holes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let granule = BLOCK_SIZE as usize;
        for (range, is_zero) in zero::runs(bytes, granule, granule) {
            let at = offset + range.start as u64;
            if is_zero {
                self.zero(at, range.len() as u64)?;
            } else {
                self.file.write_all_at(&bytes[range], at).map_err(|source| self.failed(source))?;
            }
        }
        Ok(())
    }

    /// Makes a range zeros, and a hole where the file system can.
    pub fn zero(&mut self, offset: u64, length: u64) -> Result<(), ImageError> {
        if length == 0 {
            return Ok(());
        }
        if self.can_punch {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, flags, offset, length) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.can_punch = false,
                Err(error) => return Err(self.failed(error.into())),
            }
        }
        let mut at = offset;
        while at < offset + length {
            let piece = (offset + length - at).min(ZEROS.len() as u64);
            let zeros = &ZEROS[..usize::try_from(piece).expect("no longer than the zeros")];
            self.file.write_all_at(zeros, at).map_err(|source| self.failed(source))?;
            at += piece;
        }
        Ok(())
    }

    /// Makes what was changed durable.
    pub fn sync(&self) -> Result<(), ImageError> {
        self.file.sync_all().map_err(|source| self.failed(source))
    }

    /// Makes it durable, and then forgets that anything was being changed.
    pub fn finish(self) -> Result<(), ImageError> {
        self.sync()?;
        // Still locked: nobody begins another one in between.
        pending::end(&self.path)
    }

    fn failed(&self, source: io::Error) -> ImageError {
        ImageError::Io { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("image");
        std::fs::write(&path, bytes).expect("there is room");
        (folder, path)
    }

    #[test]
    fn ranges_are_replaced_and_zeros_become_holes() {
        let (_folder, path) = file(&vec![7; 100_000]);
        let mut image = ImagePatch::open(&path, None).expect("it is a file");
        assert_eq!(image.size_bytes(), 100_000);
        let mut data = vec![1; 3 * 4096];
        data[4096..8192].fill(0);
        image.write(8192, &data).expect("it can be written");
        image.zero(40_960, 40_960).expect("it can be written");
        image.resize(90_000).expect("it can be cut");
        image.resize(120_000).expect("it can grow");
        image.finish().expect("it can be synced");
        let mut expected = vec![7; 120_000];
        expected[8192..8192 + data.len()].copy_from_slice(&data);
        expected[40_960..81_920].fill(0);
        expected[90_000..].fill(0);
        assert_eq!(std::fs::read(&path).expect("it is there"), expected);
        let taken = std::fs::metadata(&path).expect("it is there").blocks() * 512;
        assert!(taken < 70_000, "{taken} bytes are taken");
    }

    #[test]
    fn a_file_system_without_holes_gets_zeros() {
        let (_folder, path) = file(&vec![7; 3 << 20]);
        let mut image = ImagePatch::open(&path, None).expect("it is a file");
        image.can_punch = false;
        image.zero(1000, 2 << 20).expect("it can be written");
        let mut expected = vec![7; 3 << 20];
        expected[1000..1000 + (2 << 20)].fill(0);
        assert_eq!(std::fs::read(&path).expect("it is there"), expected);
    }

    #[test]
    fn what_is_no_raw_image_is_refused() {
        let (folder, path) = file(b"QFI\xfb and more");
        let refused = ImagePatch::open(&path, None).expect_err("it begins as a qcow2 image");
        assert!(matches!(refused, ImageError::NotRaw { .. }), "{refused}");
        drop(ImagePatch::open(&path, Some(ImageFormat::Raw)).expect("it is said to be raw"));
        let refused = ImagePatch::open(folder.path(), None).expect_err("a folder is no image");
        assert!(matches!(refused, ImageError::NotAnImage { .. }), "{refused}");
        let first = ImagePatch::open(&path, Some(ImageFormat::Raw)).expect("nobody has it");
        let refused = ImagePatch::open(&path, Some(ImageFormat::Raw)).expect_err("one at a time");
        assert!(matches!(refused, ImageError::Busy { .. }), "{refused}");
        drop(first);
    }
}
