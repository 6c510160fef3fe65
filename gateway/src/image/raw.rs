//! Raw images: the file is the disk; its holes are read as zeros without being read.

use super::ImageError;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct RawReader {
    file: File,
    path: PathBuf,
    size_bytes: u64,
}

impl RawReader {
    pub(super) fn new(file: File, path: &Path) -> Result<Self, ImageError> {
        let io = |source: io::Error| ImageError::Io { path: path.to_owned(), source };
        let metadata = file.metadata().map_err(io)?;
        let size_bytes = if metadata.is_file() {
            metadata.len()
        } else if metadata.file_type().is_block_device() {
            seek(&file, SeekFrom::End(0)).map_err(|error| io(error.into()))?
        } else {
            return Err(ImageError::NotAnImage { path: path.to_owned() });
        };
        Ok(Self { file, path: path.to_owned(), size_bytes })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Length of the run that begins at `offset`, and whether it may hold data. Stays within the size.
    pub(super) fn extent(&self, offset: u64) -> Result<(u64, bool), ImageError> {
        let rest = self.size_bytes - offset;
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok(((data - offset).min(rest), false)),
            Ok(_) => match seek(&self.file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => Ok(((hole - offset).min(rest), true)),
                _ => Ok((rest, true)),
            },
            // No data from here on.
            Err(Errno::NXIO) => Ok((rest, false)),
            // The file system or the device does not tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok((rest, true)),
            Err(error) => Err(ImageError::Io { path: self.path.clone(), source: error.into() }),
        }
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|source| ImageError::Io { path: self.path.clone(), source })
    }
}
