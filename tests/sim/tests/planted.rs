//! Bugs that the simulation must find: a check that cannot fail proves nothing.

use cairn_model::planted::{Bug, plant};

/// Seeds that a bug may take.
const SEEDS: u64 = 2000;

fn is_found(bug: Bug) {
    let planted = plant(bug);
    let found = (0..SEEDS).find_map(|seed| Some((seed, cairn_sim::run(seed).err()?)));
    drop(planted);
    let (seed, finding) = found.unwrap_or_else(|| panic!("{bug:?} is not found in {SEEDS} seeds"));
    let finding = finding.split("\nthe last events").next().unwrap_or_default();
    println!("{bug:?} is found by seed {} of {SEEDS}: {finding}", seed + 1);
}

#[test]
fn where_no_bug_is_switched_on_none_is_found() {
    for seed in 0..100 {
        cairn_sim::run(seed).unwrap_or_else(|finding| panic!("seed {seed}: {finding}"));
    }
}

#[test]
fn a_failing_schedule_is_reduced() {
    let planted = plant(Bug::DropLastRun);
    let failing = (0..SEEDS).find(|seed| cairn_sim::run(*seed).is_err()).expect("the bug is found");
    let finding = cairn_sim::run_and_reduce(failing).expect_err("a seed is one schedule");
    drop(planted);
    let reduced = finding.split("reduced to ").nth(1).expect("it says what to");
    assert!(reduced.contains("at most 1 guests") && reduced.contains("SecondHost"), "{reduced}");
    println!("{reduced}");
}

macro_rules! found {
    ($($name:ident: $bug:ident,)*) => {
        $(#[test]
        fn $name() {
            is_found(Bug::$bug);
        })*

        #[test]
        fn every_bug_has_a_test() {
            assert_eq!(Bug::ALL, [$(Bug::$bug),*]);
        }
    };
}

found! {
    a_write_acknowledged_before_it_is_written_is_found: AcknowledgeUnwritten,
    a_flush_without_a_sync_is_found: FlushWithoutSync,
    a_failed_sync_taken_for_success_is_found: IgnoreFailedSync,
    a_log_freed_before_the_commit_is_found: FreeBeforeCommit,
    an_object_named_before_it_is_stored_is_found: PublishUnstored,
    a_run_left_out_of_a_batch_is_found: DropLastRun,
    discards_left_out_of_a_batch_is_found: DropDiscards,
    a_buffer_retired_before_the_commit_is_found: RetireBeforeCommit,
    a_fold_that_drops_a_change_is_found: FoldDropsAChange,
    a_patch_of_a_stale_block_is_found: PatchStaleBlock,
    a_tail_that_comes_back_is_found: KeepCutOffTail,
    a_record_skipped_by_replay_is_found: SkipReplayedRecord,
    a_replay_over_a_newer_term_is_found: ReplayStaleTerm,
    a_log_that_ends_at_damage_is_found: EndAtDamage,
    a_lost_log_that_nobody_notices_is_found: ForgetDirtyLog,
    a_lease_that_ends_by_the_wall_clock_is_found: LeaseEndsByWallClock,
    an_answer_without_a_lease_is_found: AnswerWithoutLease,
    a_commit_without_a_lease_is_found: CommitWithoutLease,
    a_cache_that_returns_the_neighbour_is_found: ReturnNeighbour,
    a_batch_that_shares_what_is_not_there_is_found: ShareUnchecked,
    a_block_shared_with_the_neighbour_is_found: ShareNeighbour,
    a_snapshot_cut_late_is_found: SnapshotCutsLate,
    a_snapshot_forgotten_by_replay_is_found: ForgetMarkAtReplay,
    a_fold_past_a_snapshot_is_found: FoldPastSnapshot,
    a_leaf_purged_under_a_snapshot_is_found: PurgeNeededLeaf,
    a_leaf_purged_under_a_clone_is_found: PurgeUnderClone,
    a_clone_that_reads_its_parents_head_is_found: CloneReadsHead,
    a_revert_that_keeps_the_old_leaves_is_found: RevertKeepsOldLeaves,
    a_container_removed_while_a_batch_may_share_it_is_found: ReclaimWithoutClosing,
    a_container_removed_on_a_hint_is_found: ReclaimWithoutLookingAgain,
    a_read_that_gives_up_on_what_was_taken_back_is_found: GiveUpOnMissingChunk,
    a_reclaim_that_overlooks_deltas_is_found: ReclaimOverlooksDeltas,
    an_object_deleted_under_a_live_container_is_found: ReclaimSharedSegment,
    a_chunk_left_out_on_a_hint_is_found: LeaveOutWithoutLookingAgain,
    a_batch_that_shares_what_was_left_out_is_found: ShareWhatWasLeftOut,
    a_read_that_gives_up_on_what_moved_is_found: GiveUpOnMovedContainer,
    a_shard_placed_without_being_stored_is_found: PlaceUnstored,
    a_shard_deleted_before_its_successor_is_placed_is_found: DeleteBeforePlaced,
    a_place_given_over_another_change_is_found: PlaceOverChange,
}
