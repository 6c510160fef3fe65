//! Bugs that the simulation plants to show that it would find them.
//!
//! Without the feature `planted-bugs`, which nothing but the simulation's own run turns on, [`is_planted`] is the constant
//! `false` and no trace of a bug is compiled. With it, a bug is there on the thread that planted it, from
//! [`plant`] until the guard is dropped.

/// One bug, named after what the code does wrongly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A write is acknowledged before its record is in the system's hands.
    AcknowledgeUnwritten,
    /// A flush is acknowledged without a sync.
    FlushWithoutSync,
    /// The log takes a sync that failed for one that succeeded.
    IgnoreFailedSync,
    /// The log forgets a batch before the catalog has it.
    FreeBeforeCommit,
    /// A put that failed is taken for one that succeeded: the catalog names an object that is not there.
    PublishUnstored,
    /// The last run of a batch is left out of its segments.
    DropLastRun,
    /// Discards are left out of a batch.
    DropDiscards,
    /// The write buffer lets go of a batch before the map has it.
    RetireBeforeCommit,
    /// A fold leaves a change out of a leaf.
    FoldDropsAChange,
    /// A part of a block is patched into what was read, whatever was written meanwhile.
    PatchStaleBlock,
    /// What a smaller size cuts off is not zeroed.
    KeepCutOffTail,
    /// Replay skips a record beyond what the catalog has.
    SkipReplayedRecord,
    /// Replay takes records of a term that another gateway's followed.
    ReplayStaleTerm,
    /// Recovery takes a damaged record for the end of the log.
    EndAtDamage,
    /// The catalog is not told that the log holds something, so that nobody notices when it is gone.
    ForgetDirtyLog,
    /// A lease ends when the wall clock of whoever wants it says so.
    LeaseEndsByWallClock,
    /// A gateway answers without a look at its lease.
    AnswerWithoutLease,
    /// The catalog takes a batch from whoever brings it.
    CommitWithoutLease,
    /// The cache returns the chunk beside the one that was asked for.
    ReturnNeighbour,
    /// A batch is committed whatever it shares: also what is not there.
    ShareUnchecked,
    /// A block is taken for the one beside the stored one that it is equal to.
    ShareNeighbour,
    /// A snapshot ends the batch after the one that it is to end.
    SnapshotCutsLate,
    /// Replay takes a snapshot for a write of nothing.
    ForgetMarkAtReplay,
    /// A fold mixes what came before a snapshot with what came after it, and the catalog lets it.
    FoldPastSnapshot,
    /// The catalog takes away what only a snapshot shows.
    PurgeNeededLeaf,
    /// The catalog takes away what only a clone shows.
    PurgeUnderClone,
    /// A clone shows what its parent's head shows where it has nothing itself.
    CloneReadsHead,
    /// After a revert the volume goes on with the map that it had.
    RevertKeepsOldLeaves,
    /// Reclaim looks again without having closed its candidates: a batch may come to share one after the look.
    ReclaimWithoutClosing,
    /// Reclaim takes what its first look found for dead.
    ReclaimWithoutLookingAgain,
    /// A read whose chunk was taken back since it was planned fails, instead of being planned again.
    GiveUpOnMissingChunk,
    /// Reclaim does not see what only a delta points at.
    ReclaimOverlooksDeltas,
    /// Reclaim deletes the object of a segment that still holds a live container.
    ReclaimSharedSegment,
    /// Reclaim leaves out of a container what its first look found dead.
    LeaveOutWithoutLookingAgain,
    /// The catalog takes a batch that points anew at a chunk that reclaim left out of its container.
    ShareWhatWasLeftOut,
    /// A read whose container was moved since it was located fails, instead of being located again.
    GiveUpOnMovedContainer,
    /// Healing takes a shard that it could not put for one that is there.
    PlaceUnstored,
    /// Healing deletes what a segment is to leave before the catalog has its new place.
    DeleteBeforePlaced,
    /// The catalog gives a segment a place that was made for where it was before.
    PlaceOverChange,
}

impl Bug {
    pub const ALL: [Self; 39] = [
        Self::AcknowledgeUnwritten,
        Self::FlushWithoutSync,
        Self::IgnoreFailedSync,
        Self::FreeBeforeCommit,
        Self::PublishUnstored,
        Self::DropLastRun,
        Self::DropDiscards,
        Self::RetireBeforeCommit,
        Self::FoldDropsAChange,
        Self::PatchStaleBlock,
        Self::KeepCutOffTail,
        Self::SkipReplayedRecord,
        Self::ReplayStaleTerm,
        Self::EndAtDamage,
        Self::ForgetDirtyLog,
        Self::LeaseEndsByWallClock,
        Self::AnswerWithoutLease,
        Self::CommitWithoutLease,
        Self::ReturnNeighbour,
        Self::ShareUnchecked,
        Self::ShareNeighbour,
        Self::SnapshotCutsLate,
        Self::ForgetMarkAtReplay,
        Self::FoldPastSnapshot,
        Self::PurgeNeededLeaf,
        Self::PurgeUnderClone,
        Self::CloneReadsHead,
        Self::RevertKeepsOldLeaves,
        Self::ReclaimWithoutClosing,
        Self::ReclaimWithoutLookingAgain,
        Self::GiveUpOnMissingChunk,
        Self::ReclaimOverlooksDeltas,
        Self::ReclaimSharedSegment,
        Self::LeaveOutWithoutLookingAgain,
        Self::ShareWhatWasLeftOut,
        Self::GiveUpOnMovedContainer,
        Self::PlaceUnstored,
        Self::DeleteBeforePlaced,
        Self::PlaceOverChange,
    ];
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Takes the bug out again when it is dropped.
    #[derive(Debug)]
    #[must_use]
    pub struct Planted(());

    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }

    /// Makes the code of this thread wrong.
    pub fn plant(bug: Bug) -> Planted {
        PLANTED.set(Some(bug));
        Planted(())
    }

    pub fn is_planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub use switch::{Planted, is_planted, plant};

/// Whether the code must be wrong here.
#[cfg(not(feature = "planted-bugs"))]
#[inline]
pub const fn is_planted(_: Bug) -> bool {
    false
}
