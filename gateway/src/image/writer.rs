//! Writing an image.
//!
//! The image is written beside its final name, as `.NAME.partial`, synced and renamed: an export that was interrupted
//! leaves no file that looks complete, and an image that is replaced stays whole until then. What an interrupted update of that one left beside it is
//! removed last: too long it does no harm.

use super::qcow2::{CLUSTER_BYTES, Qcow2Writer};
use super::{ImageError, ImageFormat, pending, zero};
use crate::durable;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// An image that is being written. Dropped before [`finish`](Self::finish), it leaves nothing behind.
pub struct ImageWriter {
    sink: Option<Sink>,
    path: PathBuf,
    aside: PathBuf,
    /// Held until the end, so that no update of the new image begins before what was left of an older one is removed.
    _lock: File,
}

enum Sink {
    Raw(File),
    Qcow2(Qcow2Writer),
}

impl std::fmt::Debug for ImageWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ImageWriter {
    /// Begins an image of `size_bytes` zeros. A file that exists and is not empty is only replaced with `replace`.
    pub fn create(
        path: &Path,
        format: ImageFormat,
        size_bytes: u64,
        replace: bool,
    ) -> Result<Self, ImageError> {
        let io = |source: io::Error| ImageError::Io { path: path.to_owned(), source };
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() && (replace || metadata.len() == 0) => {}
            Ok(metadata) if metadata.is_file() => return Err(ImageError::Exists { path: path.to_owned() }),
            Ok(_) => return Err(ImageError::NotAnImage { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let name = path.file_name().ok_or_else(|| ImageError::NotAnImage { path: path.to_owned() })?;
        let mut aside_name = std::ffi::OsString::from(".");
        aside_name.push(name);
        aside_name.push(".partial");
        let aside = path.with_file_name(aside_name);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&aside).map_err(io)?;
        let lock = file.try_clone().map_err(io)?;
        // Without it, where a file system has no locks, it is the operator who sees to it.
        let _ = lock.try_lock();
        let mut writer = Self { sink: None, path: path.to_owned(), aside, _lock: lock };
        let sink = match format {
            ImageFormat::Raw => file.set_len(size_bytes).map(|()| Sink::Raw(file)),
            ImageFormat::Qcow2 => Qcow2Writer::new(file, size_bytes).map(Sink::Qcow2),
        };
        writer.sink = Some(sink.map_err(io)?);
        Ok(writer)
    }

    /// Writes are cheapest when they begin and end at multiples of this.
    pub fn granule_bytes(&self) -> usize {
        match self.sink {
            Some(Sink::Qcow2(_)) => CLUSTER_BYTES,
            _ => cairn_model::BLOCK_SIZE as usize,
        }
    }

    /// Writes `bytes` at `offset`, where nothing was written before; zeros stay holes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let granule = self.granule_bytes();
        for (range, zero) in zero::runs(bytes, granule, granule) {
            if zero {
                continue;
            }
            let at = offset + range.start as u64;
            let written = match self.sink.as_ref().expect("an image is written before it is finished") {
                Sink::Raw(file) => file.write_all_at(&bytes[range], at),
                Sink::Qcow2(image) => image.write(at, &bytes[range]),
            };
            written.map_err(|source| ImageError::Io { path: self.path.clone(), source })?;
        }
        Ok(())
    }

    /// Makes the image durable and gives it its name.
    pub fn finish(mut self) -> Result<(), ImageError> {
        let synced = match self.sink.take() {
            Some(Sink::Raw(file)) => file.sync_all(),
            Some(Sink::Qcow2(image)) => image.finish(),
            None => Ok(()),
        };
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        synced
            .and_then(|()| std::fs::rename(&self.aside, &self.path))
            .and_then(|()| durable::sync_directory(parent.unwrap_or(Path::new("."))))
            .map_err(|source| ImageError::Io { path: self.path.clone(), source })?;
        pending::end(&self.path)
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        // After a finished image the name is gone already.
        let _ = std::fs::remove_file(&self.aside);
    }
}
