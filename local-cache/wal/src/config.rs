//! Settings of the log.

use crate::WalError;
use crate::format::{FRAME_BYTES_MAX, PAGE_BYTES};
use cairn_model::{GatewayId, SiteId};

/// Sizes of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Bytes of all files together, rounded down to whole files; at least two files.
    pub capacity_bytes: u64,
    /// Bytes of one file: a multiple of 4096, 4 MiB to 1 GiB.
    pub file_bytes: u64,
    /// Bytes of appended records that may wait for the writer.
    pub queue_bytes: u64,
    /// Threads that read records back.
    pub readers: usize,
    /// Make a log where there is none. Off, an empty directory is an error: a disk that was not mounted must not
    /// look like a gateway without unsaved writes.
    pub create: bool,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            capacity_bytes: 4 << 30,
            file_bytes: 64 << 20,
            queue_bytes: 64 << 20,
            readers: 2,
            create: true,
        }
    }
}

/// Smallest file: frames of the largest size must waste little of it.
pub const FILE_BYTES_MIN: u64 = 4 << 20;
/// Largest file: positions inside it are kept in 32 bits.
pub const FILE_BYTES_MAX: u64 = 1 << 30;
const _: () = assert!(FILE_BYTES_MIN >= 2 * PAGE_BYTES + 2 * FRAME_BYTES_MAX, "a file holds two frames");

impl WalConfig {
    /// Whole files that fit the capacity.
    pub(crate) fn files(&self) -> usize {
        usize::try_from(self.capacity_bytes / self.file_bytes).expect("checked by validate")
    }

    pub(crate) fn validate(&self) -> Result<(), WalError> {
        let refuse = |reason: String| Err(WalError::Config { reason });
        if !(FILE_BYTES_MIN..=FILE_BYTES_MAX).contains(&self.file_bytes)
            || !self.file_bytes.is_multiple_of(PAGE_BYTES)
        {
            return refuse(format!(
                "a file of {} bytes is not possible; choose a multiple of {PAGE_BYTES} from {FILE_BYTES_MIN} to \
                 {FILE_BYTES_MAX}",
                self.file_bytes
            ));
        }
        let files = self.capacity_bytes / self.file_bytes;
        if !(2..=1 << 20).contains(&files) {
            return refuse(format!(
                "a capacity of {} bytes makes {files} files of {} bytes; it must make at least two",
                self.capacity_bytes, self.file_bytes
            ));
        }
        if !(2 * FRAME_BYTES_MAX..=16 << 30).contains(&self.queue_bytes) {
            return refuse(format!("a queue of {} bytes is not between 4 MiB and 16 GiB", self.queue_bytes));
        }
        if !(1..=64).contains(&self.readers) {
            return refuse(format!("{} reader threads are not between 1 and 64", self.readers));
        }
        Ok(())
    }
}

/// Whose log it is; every file is bound to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalIdentity {
    pub site: SiteId,
    pub gateway: GatewayId,
}
