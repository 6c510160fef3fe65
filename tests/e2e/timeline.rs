//! Volumes whose past is known, block by block: writers, and snapshots, clones, reverts and deletions between their writes.
//!
//! Every block holds zeroes or what one number stands for, so a state is a list of numbers, and a block that holds anything else is damage whatever was expected.
//!
//! - Each part of a disk has one connection, with one request on its way. Of what that wrote, a snapshot shows all that was answered before it was asked for and the first ones, none to all,
//!   of those sent before it was answered: of each part one of a few states, which the first reading of the snapshot tells, for ever.
//! - Between parts there is an order too: a snapshot that shows a write shows all that were answered before that one was sent.
//! - A revert finds no request on its way: what is before and after it is known exactly.
//! - What a kill left without an answer was done or not. The next start shows which, and that is final.

mod blocks;
mod disk;
mod past;

pub(crate) use disk::{Clock, Disk};
pub(crate) use past::{Done, Past};

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{Scope, ScopedJoinHandle};
use system_tests::admin::Failed;
use system_tests::gateway::Gateway;
use system_tests::random::Random;

/// Why an action did not come to its end.
#[derive(Debug)]
pub(crate) enum Broken {
    /// No answer: a kill may be why.
    Unanswered(anyhow::Error),
    /// Nothing excuses it.
    Wrong(anyhow::Error),
}

impl From<Failed> for Broken {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Refused { .. } => Self::Wrong(failed.into()),
            Failed::Unanswered(error) => Self::Unanswered(error),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered(error) => write!(f, "no answer: {error:#}"),
            Self::Wrong(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for Broken {}

/// Starts a writer for each connection of the disks. They end when it is over.
pub(crate) fn start_writers<'scope>(
    scope: &'scope Scope<'scope, '_>,
    gateway: &'scope Gateway,
    disks: &[Arc<Disk>],
    random: &mut Random,
    clock: &'scope Clock,
    over: &'scope AtomicBool,
) -> Vec<ScopedJoinHandle<'scope, anyhow::Result<()>>> {
    let mut writers = Vec::new();
    for disk in disks {
        for connection in 0..disk.connections() {
            let (disk, seed) = (Arc::clone(disk), random.word());
            writers.push(scope.spawn(move || disk.write_on(gateway, connection, seed, clock, over)));
        }
    }
    writers
}
