//! Bugs that the simulation must find: a check that cannot fail proves nothing.

use cairn_model::planted::{Bug, plant};
use std::iter;

/// Seeds that a bug may take.
const SEEDS: u64 = 2000;

/// `first` is tried first: it found the bug when it was looked for last, and spares the search for as long as it does.
fn is_found(bug: Bug, first: u64) {
    let planted = plant(bug);
    let mut seeds = iter::once(first).chain((0..SEEDS).filter(|seed| *seed != first));
    let found = seeds.find_map(|seed| Some((seed, cairn_sim::run(seed).err()?)));
    drop(planted);
    let (seed, finding) = found.unwrap_or_else(|| panic!("{bug:?} is not found in {SEEDS} seeds"));
    let finding = finding.split("\nthe last events").next().unwrap_or_default();
    println!("{bug:?} is found by seed {seed}, and {first} was tried first: {finding}");
}

#[test]
fn where_no_bug_is_switched_on_none_is_found() {
    for seed in 0..60 {
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
    ($($name:ident: $bug:ident by $seed:literal,)*) => {
        $(#[test]
        fn $name() {
            is_found(Bug::$bug, $seed);
        })*

        #[test]
        fn every_bug_has_a_test() {
            assert_eq!(Bug::ALL, [$(Bug::$bug),*]);
        }
    };
}

found! {
    a_write_acknowledged_before_it_is_written_is_found: AcknowledgeUnwritten by 0,
    a_flush_without_a_sync_is_found: FlushWithoutSync by 4,
    a_failed_sync_taken_for_success_is_found: IgnoreFailedSync by 3,
    a_log_freed_before_the_commit_is_found: FreeBeforeCommit by 2,
    an_object_named_before_it_is_stored_is_found: PublishUnstored by 4,
    a_run_left_out_of_a_batch_is_found: DropLastRun by 0,
    discards_left_out_of_a_batch_is_found: DropDiscards by 0,
    a_buffer_retired_before_the_commit_is_found: RetireBeforeCommit by 3,
    a_fold_that_drops_a_change_is_found: FoldDropsAChange by 0,
    a_patch_of_a_stale_block_is_found: PatchStaleBlock by 2,
    a_tail_that_comes_back_is_found: KeepCutOffTail by 0,
    a_record_skipped_by_replay_is_found: SkipReplayedRecord by 3,
    a_replay_over_a_newer_term_is_found: ReplayStaleTerm by 1,
    a_log_that_ends_at_damage_is_found: EndAtDamage by 2,
    a_lost_log_that_nobody_notices_is_found: ForgetDirtyLog by 41,
    a_lease_that_ends_by_the_wall_clock_is_found: LeaseEndsByWallClock by 6,
    an_answer_without_a_lease_is_found: AnswerWithoutLease by 146,
    a_commit_without_a_lease_is_found: CommitWithoutLease by 84,
    a_cache_that_returns_the_neighbour_is_found: ReturnNeighbour by 0,
    a_batch_that_shares_what_is_not_there_is_found: ShareUnchecked by 2,
    a_block_shared_with_the_neighbour_is_found: ShareNeighbour by 0,
    a_snapshot_cut_late_is_found: SnapshotCutsLate by 0,
    a_snapshot_forgotten_by_replay_is_found: ForgetMarkAtReplay by 3,
    a_fold_past_a_snapshot_is_found: FoldPastSnapshot by 0,
    a_leaf_purged_under_a_snapshot_is_found: PurgeNeededLeaf by 0,
    a_leaf_purged_under_a_clone_is_found: PurgeUnderClone by 26,
    a_clone_that_reads_its_parents_head_is_found: CloneReadsHead by 7,
    a_revert_that_keeps_the_old_leaves_is_found: RevertKeepsOldLeaves by 0,
    a_container_removed_while_a_batch_may_share_it_is_found: ReclaimWithoutClosing by 6,
    a_container_removed_on_a_hint_is_found: ReclaimWithoutLookingAgain by 323,
    a_read_that_gives_up_on_what_was_taken_back_is_found: GiveUpOnMissingChunk by 305,
    a_reclaim_that_overlooks_deltas_is_found: ReclaimOverlooksDeltas by 3,
    an_object_deleted_under_a_live_container_is_found: ReclaimSharedSegment by 2,
    a_chunk_left_out_on_a_hint_is_found: LeaveOutWithoutLookingAgain by 67,
    a_batch_that_shares_what_was_left_out_is_found: ShareWhatWasLeftOut by 83,
    a_read_that_gives_up_on_what_moved_is_found: GiveUpOnMovedContainer by 2,
    a_shard_placed_without_being_stored_is_found: PlaceUnstored by 179,
    a_shard_deleted_before_its_successor_is_placed_is_found: DeleteBeforePlaced by 6,
    a_place_given_over_another_change_is_found: PlaceOverChange by 323,
}
