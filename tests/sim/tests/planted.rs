//! Bugs that the simulation must find: a check that cannot fail proves nothing.

use cairn_model::planted::{Bug, plant};

/// Seeds that a bug may take.
const SEEDS: u64 = 60;

fn is_found(bug: Bug) {
    let planted = plant(bug);
    let found = (0..SEEDS).find_map(|seed| Some((seed, cairn_sim::run(seed).err()?)));
    drop(planted);
    let (seed, finding) = found.unwrap_or_else(|| panic!("{bug:?} is not found in {SEEDS} seeds"));
    let finding = finding.split("\nthe last events").next().unwrap_or_default();
    println!("{bug:?} is found by seed {} of 60: {finding}", seed + 1);
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
    a_run_left_out_of_a_batch_is_found: DropLastRun,
    discards_left_out_of_a_batch_are_found: DropDiscards,
    a_patch_of_a_stale_block_is_found: PatchStaleBlock,
    a_record_skipped_by_replay_is_found: SkipReplayedRecord,
}
