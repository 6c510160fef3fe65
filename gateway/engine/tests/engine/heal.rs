//! The pool becomes what it should be, by itself, whatever happens meanwhile; and nobody reads a wrong byte for it.

#![expect(clippy::disallowed_methods, reason = "tests wait for real time, and spawn what they join")]

pub(crate) mod cluster;
mod conversion;
mod damage;
mod kills;
mod nodes;
mod record;
