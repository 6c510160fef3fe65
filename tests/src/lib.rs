//! The harness of the system tests: it starts the released program, or a peer, as a child process and attacks it
//! from outside with real clients.
//!
//! A check is a function in [`checks`] or [`crash`] that takes an [`Export`](export::Export) or a
//! [`Server`](server::Server) and fails with what it saw. The same function runs on the gateway, where it must pass, on
//! an honest peer, where it must pass, and on a [lying](peer::Lie) one, where it must fail: a check that cannot fail
//! proves nothing.
#![expect(
    clippy::disallowed_methods,
    reason = "tests from outside live on the machine's own clock, threads and randomness"
)]

pub mod admin;
pub mod checks;
pub mod crash;
pub mod export;
pub mod filesystem;
pub mod gateway;
pub mod guest;
pub mod image;
pub mod linearizable;
pub mod loop_disk;
pub mod nbd;
pub mod object_store;
pub mod oracle;
pub mod peer;
pub mod pool;
pub mod process;
pub mod random;
pub mod server;
pub mod settings;
pub mod tool;
