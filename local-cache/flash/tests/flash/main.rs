//! The flash cache from outside.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod admission;
mod behaviour;
mod damage;
mod device;
mod memory;
mod restart;
mod support;
