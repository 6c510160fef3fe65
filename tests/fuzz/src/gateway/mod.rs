//! What a gateway reads when it starts.

pub(crate) mod config;
pub(crate) mod key;
pub(crate) mod published;
pub(crate) mod sealed_key;
