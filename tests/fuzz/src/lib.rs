//! Fuzz targets: everything of Cairn that reads bytes from outside, and what must hold whatever the bytes are.
//!
//! A target is a function from bytes to nothing that panics when a promise is broken. "It does not crash" is the least of
//! them: each target checks what the product made of the bytes against an account of its own. `fuzz` drives a target with
//! libFuzzer, `tests/replay.rs` gives every committed input to its target, and each target is shown to fail when it is
//! [lied](lie) to.
#![allow(clippy::unwrap_used, reason = "all of this is test code")]
#![allow(clippy::cast_possible_truncation, reason = "patterns of bytes are made of the low bits of numbers")]

mod admin;
mod catalog;
mod expected_panic;
mod fingerprints;
mod gateway;
mod image;
mod input;
pub mod lie;
mod memory;
mod nbd;
mod object;
mod self_check;
mod wal;

pub use expected_panic::let_expected_panics_pass;

/// Ends what targets keep running between inputs, and removes its files.
pub fn end() {
    admin::end();
}

/// Names and bytes of inputs to begin with.
pub type Seeds = Vec<(String, Vec<u8>)>;

/// One thing to fuzz.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Seeds,
    /// Longest input: longer ones are slower and say nothing new.
    pub bytes_max: usize,
}

/// All targets, in the order in which they are run.
pub const TARGETS: [Target; 19] = [
    Target { name: "nbd_handshake", run: nbd::handshake::run, seeds: nbd::handshake::seeds, bytes_max: 2048 },
    Target {
        name: "nbd_transmission",
        run: nbd::transmission::run,
        seeds: nbd::transmission::seeds,
        bytes_max: 1024,
    },
    Target { name: "wal_bytes", run: wal::bytes::run, seeds: wal::bytes::seeds, bytes_max: 12 << 10 },
    Target { name: "wal_recovery", run: wal::recovery::run, seeds: wal::recovery::seeds, bytes_max: 512 },
    Target { name: "segment_bytes", run: object::bytes::run, seeds: object::bytes::seeds, bytes_max: 8192 },
    Target { name: "segment_object", run: object::whole::run, seeds: object::whole::seeds, bytes_max: 2048 },
    Target { name: "segment_shard", run: object::shard::run, seeds: object::shard::seeds, bytes_max: 1024 },
    Target { name: "node_marker", run: object::marker::run, seeds: object::marker::seeds, bytes_max: 512 },
    Target { name: "record_bytes", run: object::record::run, seeds: object::record::seeds, bytes_max: 2048 },
    Target { name: "map_delta", run: catalog::delta::run, seeds: catalog::delta::seeds, bytes_max: 4096 },
    Target { name: "map_leaf", run: catalog::leaf::run, seeds: catalog::leaf::seeds, bytes_max: 4096 },
    Target {
        name: "fingerprint_records",
        run: fingerprints::run,
        seeds: fingerprints::seeds,
        bytes_max: 1024,
    },
    Target { name: "qcow2_image", run: image::qcow2::run, seeds: image::qcow2::seeds, bytes_max: 64 << 10 },
    Target { name: "raw_image", run: image::raw::run, seeds: image::raw::seeds, bytes_max: 512 },
    Target { name: "config", run: gateway::config::run, seeds: gateway::config::seeds, bytes_max: 8192 },
    Target { name: "key_file", run: gateway::key::run, seeds: gateway::key::seeds, bytes_max: 256 },
    Target {
        name: "sealed_key_file",
        run: gateway::sealed_key::run,
        seeds: gateway::sealed_key::seeds,
        bytes_max: 512,
    },
    Target {
        name: "published_keys",
        run: gateway::published::run,
        seeds: gateway::published::seeds,
        bytes_max: 2048,
    },
    Target { name: "admin_api", run: admin::run, seeds: admin::seeds, bytes_max: 2048 },
];

/// Fails on one input that nothing but coverage and compared values lead to: shows that the fuzzer sees the code, and
/// that a failure is reported. Not among [`TARGETS`], which must not fail.
pub const SELF_CHECK: Target =
    Target { name: "self_check", run: self_check::run, seeds: self_check::seeds, bytes_max: 64 };

/// The target of that name.
pub fn find(name: &str) -> Option<&'static Target> {
    const ALL: &[Target] = &TARGETS;
    ALL.iter().chain([&SELF_CHECK]).find(|target| target.name == name)
}
