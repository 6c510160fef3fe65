//! The write-ahead log of a gateway, shared by all its volumes.
//!
//! A write is acknowledged when its record is *written* (it survives the end of the process), a flush when it is
//! *synced* (it survives the loss of power). The log is a ring of preallocated files; one writer gathers what is
//! pending into a frame, seals it and writes it: group commit. Records leave the log when they are freed, after the
//! catalog durably has what they said.
//!
//! [`Wal::open`] gives a [`Recovery`] that streams what an earlier run left; [`Recovery::finish`] gives the [`Wal`].
//!
//! Bytes on disk: `format`. Order of durable effects: `writer`, `recovery`. Choice of system calls:
//! `docs/decisions/0002-wal-io.md`.

mod config;
mod disk;
mod error;
mod file_disk;
mod format;
#[doc(hidden)]
pub mod fuzzing;
mod grower;
mod local_file;
mod progress;
mod reader;
mod record;
mod recovery;
mod replay;
mod ring;
mod scan;
mod self_service;
mod shared;
mod syncer;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod wal;
mod writer;

pub use config::{FILE_BYTES_MAX, FILE_BYTES_MIN, WalConfig, WalIdentity};
pub use disk::{Disk, DiskFile, DiskFuture, WRITE_BACK_BYTES};
pub use error::WalError;
pub use file_disk::FileDisk;
pub use record::{DATA_BYTES_MAX, MARK_BYTES_MAX, Record, RecordBody};
pub use recovery::Recovery;
pub use shared::Permit;
pub use wal::{Wal, WalUsage};
