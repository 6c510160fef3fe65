//! The engine on real SQLite, real log files and real stores. One program: it is linked once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod changes;
mod faults;
mod fsck;
mod groups;
mod heal;
mod ownership;
mod reclaim;
mod record;
mod recovery;
mod sharing;
mod snapshots;
mod support;
mod volume;
