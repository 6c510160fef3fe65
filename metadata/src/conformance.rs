//! What every catalog must do: one suite, run on every implementation.
//!
//! An implementation's tests say `cairn_metadata::catalog_conformance!(make_store)`, where `make_store` is an async
//! function that returns a [`CatalogStore`] of its own for each test.

#![expect(clippy::unwrap_used, reason = "these are tests")]

pub mod batches;
pub mod cancellation;
pub mod clones;
pub mod domains;
pub mod groups;
pub mod histories;
pub mod leases;
pub mod locks;
pub mod maps;
pub mod placements;
pub mod purging;
pub mod reclaim;
pub mod reverts;
pub mod site;
pub mod snapshots;
pub mod trees;
pub mod usage;
pub mod volumes;
mod world;

pub use world::{Held, World};

use crate::{
    Catalog, CatalogError, CommitReceipt, KeyRow, Lease, NodeRow, NodeState, SegmentRow, VolumeOutcome,
};
use async_trait::async_trait;
use cairn_model::crypto::KeyId;
use cairn_model::{
    BLOCK_SIZE, ChunkId, ChunkIndex, ChunkRef, ContainerId, ErrorKind, Generation, Kinded, Lba, LbaRange,
    MapDelta, MapOp, MapTarget, NodeId, ObjectPlace, Placement, Reduction, SegmentId, UploadReceipt,
    WallTime,
};
use std::sync::Arc;
use std::time::Duration;

/// An empty catalog that can be opened several times, as several processes would.
#[async_trait]
pub trait CatalogStore: Send + Sync {
    async fn open(&self) -> Arc<dyn Catalog>;
}

/// The time to live of the suite's leases.
pub const TTL: Duration = Duration::from_secs(30);

pub const fn at(millis: u64) -> WallTime {
    WallTime::from_unix_millis(millis)
}

pub fn node_row(id: NodeId, name: &str) -> NodeRow {
    NodeRow {
        id,
        name: name.to_owned(),
        url: "file:///pool".to_owned(),
        domain: Some("rack-1".to_owned()),
        state: NodeState::Active,
        created_at: at(7),
        options: "{\"weight\":2}".to_owned(),
        capacity_bytes: Some(1 << 40),
    }
}

/// A key wrapped by the key named `wrapped_by` repeated.
pub fn key_row(purpose: &str, wrapped_by: u8) -> KeyRow {
    KeyRow {
        purpose: purpose.to_owned(),
        key_id: KeyId::from_bytes([1; 8]),
        wrapped_by: KeyId::from_bytes([wrapped_by; 8]),
        wrapped: vec![wrapped_by; 60],
        created_at: at(20),
    }
}

/// What packing `blocks` blocks, of which the first was known, would report.
pub fn packed(blocks: u64) -> Reduction {
    let block = u64::from(BLOCK_SIZE);
    let shared = blocks.min(1);
    Reduction {
        written_bytes: (blocks + 2) * block,
        zero_bytes: 2 * block,
        shared_bytes: shared * block,
        unique_bytes: (blocks - shared) * block,
        stored_bytes: (blocks - shared) * 1000,
    }
}

pub fn segment_row(segment: SegmentId, node: NodeId, length: u64) -> SegmentRow {
    placed_segment(segment, Placement::single(node), length)
}

#[expect(clippy::disallowed_methods, reason = "the suite plays the pool")]
pub fn placed_segment(segment: SegmentId, placement: Placement, length_bytes: u64) -> SegmentRow {
    let place = ObjectPlace { key: format!("segments/{segment}"), length_bytes, placement };
    SegmentRow { receipt: UploadReceipt::attest(segment, place) }
}

pub fn blocks(start: u64, length: u64) -> LbaRange {
    LbaRange::new(Lba::new(start), length).unwrap()
}

/// `range` as chunks 0, 1, ... of four blocks each of `container`.
pub fn written(range: LbaRange, container: ContainerId) -> MapDelta {
    let mut ops = Vec::new();
    let mut at = range.start();
    while at < range.end() {
        let part = LbaRange::between(at, at.plus(4).min(range.end()));
        let index = ChunkIndex::new(u32::try_from(ops.len()).unwrap());
        let target = ChunkRef { chunk: ChunkId { container, index }, block: 0 };
        ops.push(MapOp { range: part, target: MapTarget::Chunk(target) });
        at = part.end();
    }
    MapDelta { ops }
}

pub fn hole(range: LbaRange) -> MapDelta {
    MapDelta { ops: vec![MapOp { range, target: MapTarget::Hole }] }
}

pub fn outcomes(receipt: &CommitReceipt) -> Vec<VolumeOutcome> {
    receipt.volumes.iter().map(|part| part.outcome).collect()
}

/// The kind and the text of an error that must be one.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, CatalogError>) -> (ErrorKind, String) {
    let error = result.unwrap_err();
    (error.kind(), error.to_string())
}

/// Generations read better without their type.
pub fn terms(lease: &Lease) -> (u64, u64) {
    (lease.generation.get(), lease.held_since.get())
}

pub const fn generation(number: u64) -> Generation {
    Generation::new(number)
}

/// Makes one test per behaviour of the suite.
#[macro_export]
macro_rules! catalog_conformance {
    ($make_store:expr) => {
        $crate::catalog_conformance! { $make_store;
            site {
                a_site_is_created_once
                a_key_is_kept_per_wrapping
                replacing_keys_leaves_what_the_kept_key_wraps
                replacing_keys_loses_none
                replacing_keys_takes_no_stray
                a_gateway_begins_clean_and_keeps_what_its_log_is
                gateways_have_names_of_their_own
                an_unknown_gateway_is_not_found
                a_node_lives_from_adding_to_removal
                nodes_have_names_of_their_own
                a_node_that_holds_segments_stays
                totals_follow_every_change
            }
            domains {
                the_default_domain_is_always_there
                a_domain_comes_with_its_key
                domains_have_names_and_identities_of_their_own
                a_volume_is_of_a_domain_that_exists
                a_domain_that_is_used_stays
                a_deleted_domain_is_gone_with_its_keys
                a_pointer_into_another_domain_commits_nothing
                domains_of_one_batch_do_not_mix
                containers_of_a_deleted_domain_are_left_out
            }
            reclaim {
                what_a_delta_or_a_leaf_points_at_is_referenced
                what_snapshots_clones_and_deleted_volumes_show_is_referenced
                a_closed_container_is_shared_no_more
                a_batch_done_again_is_recognised_whatever_was_closed_since
                only_what_the_pass_itself_closed_is_removed
                what_is_removed_is_counted_no_more_and_its_object_doomed
                a_segment_with_a_live_container_stays
                a_node_with_a_doomed_object_stays
                the_part_of_a_deleted_volume_is_unreferenced_from_the_start
                a_segment_of_a_deleted_domain_is_doomed_from_the_start
                uses_are_told_chunk_by_chunk
                a_moved_container_is_in_its_new_place_and_the_old_object_doomed
                only_what_the_pass_itself_closed_is_moved
                what_was_left_out_of_a_container_is_shared_no_more
            }
            placements {
                a_segment_is_where_its_receipt_says
                a_shard_on_an_unknown_node_commits_nothing
                nodes_in_any_state_may_be_named
                the_pool_keeps_its_settings
                a_changed_place_dooms_what_it_left
                a_change_from_another_place_changes_nothing
                a_change_done_again_is_no_error
                a_change_that_cannot_be_is_refused
                a_segment_is_converted_to_another_profile
                a_lost_shard_is_missing_and_the_last_ones_stay
                pages_tell_segments_of_each_kind
                a_node_is_removed_by_force_unless_data_would_be_lost
                every_object_of_a_removed_segment_is_doomed
                doomed_objects_have_numbers_of_their_own
                a_move_may_have_any_placement
                one_of_two_changes_at_once_happens
                a_change_and_a_removal_at_once_leave_no_object_behind
                sums_add_up_after_any_history
            }
            usage {
                commits_add_what_packing_did
                the_same_batch_again_counts_once
                a_refused_batch_counts_nothing
                the_part_of_a_deleted_volume_counts_nothing
                containers_count_as_stored_and_as_plaintext
                folds_count_what_the_leaves_map
                a_fold_done_again_counts_once
                a_leaf_behind_a_newer_one_counts_nothing
                many_leaves_of_one_step_count
                a_deleted_volume_takes_its_bytes_out_of_the_totals
            }
            volumes {
                a_volume_comes_back_with_every_setting
                volumes_have_names_of_their_own
                an_identity_is_used_once
                a_volume_is_resized_renamed_and_made_read_only
                only_the_owner_of_a_volume_resizes_it
                an_unknown_volume_is_not_found
                a_deleted_volume_is_gone_at_once_and_its_name_free
                purging_takes_bounded_steps_and_nothing_of_others
            }
            leases {
                the_first_lease_is_term_one
                a_gateway_takes_its_own_again_at_once
                a_lease_of_another_is_refused_and_its_holder_named
                a_lease_in_another_state_than_the_one_watched_is_refused
                a_lease_that_was_watched_can_be_taken_and_its_owner_is_fenced
                a_released_lease_is_free_at_once_and_void
                ownership_is_unbroken_through_a_release_without_another_owner
                ownership_that_came_back_began_anew
                renewing_always_extends
                an_expired_lease_that_nobody_took_is_renewed
                renewing_many_answers_for_each
                leases_need_a_volume_and_a_gateway
                the_holder_is_shown_with_the_volume
            }
            batches {
                a_batch_publishes_everything_at_once
                a_batch_of_many_volumes_answers_for_each
                the_same_batch_again_gets_the_first_receipt
                a_batch_is_recognised_after_its_lease_moved_on
                a_batch_too_old_to_be_remembered_is_refused_by_its_base
                the_same_batch_twice_at_once_is_committed_once
                a_stale_term_commits_nothing
                a_batch_that_does_not_follow_commits_nothing
                a_pointer_to_an_unknown_container_commits_nothing
                a_container_of_an_earlier_batch_may_be_pointed_at
                a_deleted_volume_is_left_out
                a_nonsensical_batch_is_refused
                segments_and_containers_are_new_and_stand_on_something
                containers_are_located_in_any_number
                containers_are_listed_page_by_page
                two_handles_commit_side_by_side
            }
            maps {
                deltas_come_back_in_commit_order
                folding_moves_deltas_into_leaves
                between_the_steps_of_a_fold_the_deltas_stay
                a_step_done_again_changes_nothing
                emptied_ranges_go_whatever_their_length
                a_leaf_of_holes_is_no_leaf
                leaves_are_read_in_any_number
                present_leaves_are_listed_in_order_up_to_a_limit
                only_the_owner_folds
                a_fold_that_does_not_fit_is_refused
                lineages_do_not_mix
            }
            histories {
                any_history_of_batches_and_folds_gives_the_map_of_its_writes
            }
            snapshots {
                a_snapshot_is_of_the_commit_that_it_came_with
                only_the_owner_of_its_volume_deletes_a_snapshot
                an_unknown_snapshot_is_not_found
                a_snapshot_whose_name_is_taken_is_taken_under_another
                the_same_batch_again_takes_no_second_snapshot
                a_refused_batch_takes_no_snapshot
                snapshots_are_listed_oldest_first
                a_snapshot_is_settled_when_all_of_it_is_folded
                a_fold_does_not_pass_a_snapshot
                versions_stay_for_snapshots_and_go_with_them
                what_was_emptied_stays_visible_in_snapshots
                a_volume_with_snapshots_is_deleted_only_with_them
                what_is_folded_is_never_written_again
            }
            groups {
                a_group_comes_back_and_changes
                a_run_is_an_intent_until_it_ends
                runs_of_a_group_do_not_overlap
                a_group_counts_on_its_own_snapshots_until_they_are_gone
                what_is_deleted_while_its_run_ends_stays_deleted
                old_runs_are_forgotten_unless_something_of_them_is_left
                events_are_remembered_up_to_a_number_of_each_kind
            }
            locks {
                a_locked_snapshot_is_not_deleted_before_its_time
                a_lock_outlives_its_group_and_goes_with_the_volume
                a_snapshot_in_the_log_alone_is_locked_too
                a_revert_keeps_locked_snapshots
            }
            clones {
                a_clone_shows_its_snapshot_and_is_its_own
                a_clone_that_cannot_be_is_refused
                what_a_clone_empties_is_hidden_from_it_alone
                emptied_ranges_of_a_clone_hide_what_it_inherited
                clones_survive_their_parents_in_any_order
                a_clone_needs_no_more_of_its_parent_than_it_shows
                a_clone_writes_and_commits_as_any_volume
                a_chain_of_a_thousand_clones_shows_all_that_was_written
            }
            purging {
                a_leaf_that_moves_between_pages_counts_once
                a_pass_goes_on_where_it_stopped
                what_is_let_go_of_during_a_pass_goes_too
                holes_stay_over_what_was_inherited_whatever_became_of_the_parent
                a_volume_that_is_reverted_again_and_again_keeps_what_it_shows
            }
            reverts {
                a_reverted_volume_shows_its_snapshot_in_a_fresh_lineage
                reverting_again_with_the_same_lineage_changes_nothing
                a_revert_that_would_lose_something_is_refused
                batches_and_folds_of_the_old_lineage_are_refused_after_a_revert
            }
            trees {
                any_tree_of_snapshots_clones_and_reverts_shows_what_was_written
            }
            cancellation {
                a_dropped_commit_leaves_nothing_or_everything
                a_dropped_fold_leaves_nothing_or_everything
                a_dropped_clone_revert_or_deletion_leaves_nothing_or_everything
                a_dropped_replacement_of_keys_leaves_nothing_or_everything
                a_dropped_run_of_a_group_leaves_nothing_or_everything
                a_dropped_change_of_a_place_leaves_nothing_or_everything
                a_dropped_change_does_not_hinder_the_next
            }
        }
    };
    ($make_store:expr; $($module:ident { $($behaviour:ident)* })*) => {
        $(mod $module {
            $(#[tokio::test]
            async fn $behaviour() {
                let store = ($make_store)().await;
                $crate::conformance::$module::$behaviour(&store).await;
            })*
        })*
    };
}
