//! A small blocking NBD client of our own, so that the harness decides what is sent, when, and how far.
//!
//! It follows the protocol document of the NBD project: fixed newstyle, `NBD_OPT_GO`, simple replies. The other
//! replies are the business of libnbd and QEMU, which [`crate::checks`] runs.

mod client;
mod refused;
pub mod wire;

pub use client::{Client, Command, Reply};
pub use refused::Refused;
