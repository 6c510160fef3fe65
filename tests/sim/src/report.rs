//! What a run did.

use crate::snapshots::SnapshotCounts;
use crate::volume::Requests;
use std::fmt;
use std::iter::Sum;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of everything that happened and when: equal for equal schedules.
    pub digest: String,
    pub events: u64,
    pub counts: Counts,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub lives: u64,
    pub power_cuts: u64,
    pub lost_disks: u64,
    pub flipped_bits: u64,
    pub pauses: u64,
    /// Volumes that came to another host, or lost their log.
    pub moves: u64,
    pub requests: Requests,
    pub snapshots: SnapshotCounts,
    pub clones: u64,
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            lives: sum.lives + one.lives,
            power_cuts: sum.power_cuts + one.power_cuts,
            lost_disks: sum.lost_disks + one.lost_disks,
            flipped_bits: sum.flipped_bits + one.flipped_bits,
            pauses: sum.pauses + one.pauses,
            moves: sum.moves + one.moves,
            requests: [sum.requests, one.requests].into_iter().sum(),
            snapshots: [sum.snapshots, one.snapshots].into_iter().sum(),
            clones: sum.clones + one.clones,
        })
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lives, power_cuts, lost_disks, flipped_bits, pauses, moves, requests, snapshots, clones } =
            self;
        let Requests { writes, flushes, reads, unanswered } = requests;
        write!(
            f,
            "{lives} lives, {power_cuts} power cuts, {lost_disks} lost disks, {flipped_bits} flipped bits, {pauses} pauses, {moves} moves, "
        )?;
        write!(f, "{writes} writes ({unanswered} unanswered), {flushes} flushes, {reads} reads, ")?;
        let SnapshotCounts { taken, read, deleted, reverted } = snapshots;
        write!(
            f,
            "{taken} snapshots ({deleted} deleted) read {read} times, {clones} clones, {reverted} reverts"
        )
    }
}
