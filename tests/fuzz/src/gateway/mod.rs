//! Files that a gateway reads when it starts.

pub(crate) mod config;
pub(crate) mod key;
