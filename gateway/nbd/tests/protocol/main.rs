//! The server against a client written by hand from the protocol document: every option, every command, and what
//! happens to clients that break the rules. The client shares no code with the server.

#![expect(clippy::unwrap_used, reason = "a test fails where something is not as it says")]

mod client;
mod commands;
mod concurrency;
mod device;
mod earlier;
mod errors;
mod extended;
mod handshake;
mod hostile;
mod listeners;
mod server;
mod tls;
