//! The write-ahead log: its parsers one by one, and recovery of whole logs that something damaged.

pub(crate) mod bytes;
pub(crate) mod recovery;
