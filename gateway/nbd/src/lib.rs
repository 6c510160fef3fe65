//! A Network Block Device server for anything that implements [`cairn_model::Exports`].
//!
//! It speaks the fixed newstyle handshake with every option of the protocol document, TLS included, and the
//! simple, structured and extended forms of the transmission phase.
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md> and its `extension-ext-header` branch.
//!
//! A connection is one task. It parses every request that a read of the socket brought, polls each operation
//! once where it stands (what is in memory completes there and then), keeps the rest in reusable slots, and sends
//! all replies that are ready with one vectored write. No request is spawned and no reply is joined into a buffer.

mod config;
mod connection;
mod counters;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod listener;
#[doc(hidden)]
pub mod memory;
mod negotiation;
mod protocol;
mod server;
mod tls;
mod transmission;

pub use config::{Limits, ServerConfig};
pub use counters::{Counters, CountersSnapshot};
pub use error::NbdError;
pub use listener::Listener;
pub use server::{NbdServer, Transport};
pub use tls::{TlsConfig, TlsFiles, TlsMode};
