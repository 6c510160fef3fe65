//! Disk images in files: raw and qcow2, read and written sparsely.
//!
//! Everything here blocks and belongs on a thread of its own. An image is untrusted: its header is checked
//! before anything is allocated or followed, and a reference to another file (backing file, external data file) is
//! refused, because an image from elsewhere must not choose which files of this host are read.

mod patch;
mod pending;
mod qcow2;
mod raw;
mod reader;
mod writer;
mod zero;

pub use patch::ImagePatch;
pub use pending::{Held, Pending};
pub use reader::{ImageReader, Piece};
pub use writer::ImageWriter;
pub use zero::is_zero;

use std::io;
use std::path::PathBuf;

/// Bytes that are read, sent and written at once.
pub const PIECE_BYTES: usize = 4 << 20;

/// A format of image files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ImageFormat {
    /// The disk's bytes, one after the other.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// What went wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot use the image {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is neither a regular file nor a block device")]
    NotAnImage { path: PathBuf },
    #[error("{path} exists already")]
    Exists { path: PathBuf },
    #[error("the qcow2 image {path} {problem}")]
    Unsupported { path: PathBuf, problem: String },
    #[error("the qcow2 image {path} is damaged: {problem}")]
    Damaged { path: PathBuf, problem: String },
    #[error("{path} is a qcow2 image; only raw images are brought up to date in place")]
    NotRaw { path: PathBuf },
    #[error("another command is writing {path}")]
    Busy { path: PathBuf },
    #[error(
        "bringing {path} from {} to {} was interrupted, and it holds a part of the changes: differences to anything else are not enough",
        .update.since.name, .update.to.name
    )]
    Unfinished { path: PathBuf, update: Box<Pending> },
    #[error("{note} says that a change of {path} was interrupted, and this version cannot read of which one")]
    UnknownUpdate { path: PathBuf, note: PathBuf },
    #[error("the image {path} is empty")]
    Empty { path: PathBuf },
}

impl ImageError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exists { path } => {
                Some(format!("choose another name, or replace {} with --force", path.display()))
            }
            Self::Unsupported { path, .. } => Some(format!(
                "convert it first: qemu-img convert -O raw '{}' image.raw, then import image.raw",
                path.display()
            )),
            Self::Damaged { path, .. } => Some(format!("try: qemu-img check '{}'", path.display())),
            Self::NotRaw { path } => Some(format!(
                "make a raw one with `cairn volume export`; if {} is the raw image of a disk that begins like this, say --format raw",
                path.display()
            )),
            Self::Unfinished { path, update } => {
                let since = update.since.name.rsplit('@').next().unwrap_or_default();
                let (to, path) = (&update.to.name, path.display());
                Some(format!(
                    "finish it first: cairn volume export {to} '{path}' --since {since}; if that cannot be, export a whole snapshot over it with --force"
                ))
            }
            Self::UnknownUpdate { .. } => Some("export a whole snapshot over it with --force".to_owned()),
            Self::Busy { .. } => Some("wait until it has ended".to_owned()),
            Self::NotAnImage { .. } | Self::Empty { .. } | Self::Io { .. } => None,
        }
    }
}

#[doc(hidden)]
pub mod fuzzing {
    /// Whether arbitrary bytes are a qcow2 header that this version reads.
    pub fn qcow2_header(data: &[u8]) -> bool {
        super::qcow2::check_header(data).is_ok()
    }
}
