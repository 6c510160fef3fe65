//! The released program under real clients, from outside. `CAIRN_BIN` names the program.
//!
//! Each module is one kind of attack. The tests named `self_check` prove the checks themselves on servers that lie.
#![expect(clippy::disallowed_methods, reason = "tests from outside live on the machine's own clock")]

mod abuse;
mod clients;
mod crash;
mod filesystems;
mod flash;
mod gateway;
mod groups;
mod linearizable;
mod pool;
mod reclaim;
mod reduction;
mod secrecy;
mod snapshots;
mod timeline;
