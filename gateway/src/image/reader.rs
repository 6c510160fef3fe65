//! Reading an image as pieces of data and of zeros.

use super::qcow2::{HEADER_BYTES, MAGIC, Qcow2Reader};
use super::raw::RawReader;
use super::{ImageError, ImageFormat, PIECE_BYTES, zero};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::ControlFlow;
use std::path::Path;

/// Zeros inside data are only told apart in runs of this length: shorter ones cost more as requests than as bytes.
const ZERO_RUN_MIN: usize = 64 << 10;

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// At most [`PIECE_BYTES`] bytes.
    Data { offset: u64, bytes: Bytes },
    /// Any length.
    Zero { offset: u64, length: u64 },
}

impl Piece {
    pub fn len(&self) -> u64 {
        match self {
            Self::Data { bytes, .. } => bytes.len() as u64,
            Self::Zero { length, .. } => *length,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An image that is being read.
pub struct ImageReader {
    source: Source,
}

enum Source {
    Raw(RawReader),
    Qcow2(Qcow2Reader),
}

impl std::fmt::Debug for ImageReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageReader")
            .field("format", &self.format())
            .field("size_bytes", &self.size_bytes())
            .finish()
    }
}

impl ImageReader {
    /// Opens the image at `path`. Without `format`, a file that begins as a qcow2 image is one, and anything else is raw.
    pub fn open(path: &Path, format: Option<ImageFormat>) -> Result<Self, ImageError> {
        let io = |source: io::Error| ImageError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.is_dir() {
            return Err(ImageError::NotAnImage { path: path.to_owned() });
        }
        let mut header = Vec::with_capacity(HEADER_BYTES);
        Read::by_ref(&mut file).take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(io)?;
        let is_qcow2 = header.starts_with(&MAGIC);
        let source = match format {
            Some(ImageFormat::Qcow2) if !is_qcow2 => {
                let problem = "it does not begin as one".to_owned();
                return Err(ImageError::Damaged { path: path.to_owned(), problem });
            }
            Some(ImageFormat::Qcow2) => Source::Qcow2(Qcow2Reader::new(file, &header, path)?),
            None if is_qcow2 => Source::Qcow2(Qcow2Reader::new(file, &header, path)?),
            None | Some(ImageFormat::Raw) => {
                file.rewind().map_err(io)?;
                Source::Raw(RawReader::new(file, path)?)
            }
        };
        let reader = Self { source };
        if reader.size_bytes() == 0 {
            return Err(ImageError::Empty { path: path.to_owned() });
        }
        Ok(reader)
    }

    pub fn format(&self) -> ImageFormat {
        match self.source {
            Source::Raw(_) => ImageFormat::Raw,
            Source::Qcow2(_) => ImageFormat::Qcow2,
        }
    }

    /// Size of the disk in the image.
    pub fn size_bytes(&self) -> u64 {
        match &self.source {
            Source::Raw(raw) => raw.size_bytes(),
            Source::Qcow2(qcow2) => qcow2.size_bytes(),
        }
    }

    fn extent(&self, offset: u64) -> Result<(u64, bool), ImageError> {
        match &self.source {
            Source::Raw(raw) => raw.extent(offset),
            Source::Qcow2(qcow2) => qcow2.extent(offset),
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        match &self.source {
            Source::Raw(raw) => raw.read(offset, buffer),
            Source::Qcow2(qcow2) => qcow2.read(offset, buffer),
        }
    }

    /// Gives every byte of the disk to `take`, in order and without gaps, until it breaks. Holes are not read, and
    /// runs of zeros inside data are found.
    pub fn read_pieces(self, mut take: impl FnMut(Piece) -> ControlFlow<()>) -> Result<(), ImageError> {
        let size = self.size_bytes();
        let mut offset = 0;
        // An extent that was looked at while the one before it was lengthened.
        let mut known = None;
        while offset < size {
            let (length, data) = match known.take() {
                Some(extent) => extent,
                None => self.extent(offset)?,
            };
            if !data {
                if take(Piece::Zero { offset, length }).is_break() {
                    return Ok(());
                }
                offset += length;
                continue;
            }
            // Compressed clusters are extents of their own: read neighbours together.
            let mut length = length;
            while length < PIECE_BYTES as u64 && offset + length < size {
                match self.extent(offset + length)? {
                    (more, true) => length += more,
                    hole => {
                        known = Some(hole);
                        break;
                    }
                }
            }
            if length > PIECE_BYTES as u64 {
                known = Some((length - PIECE_BYTES as u64, true));
                length = PIECE_BYTES as u64;
            }
            if self.take_data(offset, length, &mut take)?.is_break() {
                return Ok(());
            }
            offset += length;
        }
        Ok(())
    }

    fn take_data(
        &self,
        offset: u64,
        length: u64,
        take: &mut impl FnMut(Piece) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ImageError> {
        let mut buffer = vec![0; usize::try_from(length).expect("a piece fits in memory")];
        self.read(offset, &mut buffer)?;
        let bytes = Bytes::from(buffer);
        for (range, zero) in zero::runs(&bytes, cairn_model::BLOCK_SIZE as usize, ZERO_RUN_MIN) {
            let (offset, length) = (offset + range.start as u64, range.len() as u64);
            let piece = if zero {
                Piece::Zero { offset, length }
            } else {
                Piece::Data { offset, bytes: bytes.slice(range) }
            };
            if take(piece).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
