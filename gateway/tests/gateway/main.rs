//! The program and the site behind it. One program: it is linked once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin_api;
mod command_line;
mod fsck;
mod gateway;
mod groups;
mod images;
mod incremental;
mod initialisation;
mod keys;
mod pool;
mod reclaim;
mod recover;
mod replacement;
mod snapshots;
mod support;
