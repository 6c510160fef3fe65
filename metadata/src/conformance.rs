//! What every catalog must do: one suite, run on every implementation.
//!
//! An implementation's tests say `cairn_metadata::catalog_conformance!(make_store)`, where `make_store` is an async
//! function that returns a [`CatalogStore`] of its own for each test.

#![expect(clippy::unwrap_used, reason = "these are tests")]

pub mod batches;
pub mod cancellation;
pub mod domains;
pub mod histories;
pub mod leases;
pub mod maps;
pub mod site;
pub mod usage;
pub mod volumes;

use crate::{
    BatchCommit, Catalog, CatalogError, CommitReceipt, ContainerRow, DomainName, DomainRow, FoldPlan, KeyRow,
    LeafIndex, Lease, MapLeaf, NewVolume, NodeRow, NodeState, SegmentRow, Totals, VolumeCommit, VolumeName,
    VolumeOutcome,
};
use async_trait::async_trait;
use bytes::Bytes;
use cairn_model::crypto::{Encryption, KeyId};
use cairn_model::{
    BLOCK_SIZE, BatchId, ChunkId, ChunkIndex, ChunkRef, CommitSeq, ContainerId, DomainId, Durability,
    ErrorKind, GatewayId, Generation, Kinded, Lba, LbaRange, LineageId, MapDelta, MapOp, MapTarget, NodeId,
    Reduction, SegmentId, UploadReceipt, VolumeId, WallTime, WriteSeq,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// A catalog with a site's usual inhabitants.
#[derive(Debug)]
pub struct World {
    pub catalog: Arc<dyn Catalog>,
    pub node: NodeId,
    pub gateway: GatewayId,
    pub other: GatewayId,
    identities: AtomicU64,
}

/// A volume that the world's gateway holds, and how far it has come.
#[derive(Clone, Debug)]
pub struct Held {
    pub volume: VolumeId,
    pub lineage: LineageId,
    pub domain: DomainId,
    pub lease: Lease,
    pub through: WriteSeq,
    pub commit: CommitSeq,
}

impl World {
    /// One node, the gateways `first` and `second`.
    pub async fn new(store: &dyn CatalogStore) -> Self {
        let catalog = store.open().await;
        let node = NodeId::from_bytes([1; 16]);
        let (gateway, other) = (GatewayId::from_bytes([2; 16]), GatewayId::from_bytes([3; 16]));
        catalog.register_gateway(gateway, "first", at(1)).await.unwrap();
        catalog.register_gateway(other, "second", at(1)).await.unwrap();
        catalog.add_node(&node_row(node, "disk")).await.unwrap();
        Self { catalog, node, gateway, other, identities: AtomicU64::new(0) }
    }

    /// The same catalog as another process sees it.
    pub async fn reopened(self, store: &dyn CatalogStore) -> Self {
        Self { catalog: store.open().await, ..self }
    }

    /// Sixteen bytes that no other identity of this world has.
    pub fn identity(&self) -> [u8; 16] {
        let number = self.identities.fetch_add(1, Ordering::Relaxed);
        let mut bytes = [9; 16];
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    pub fn new_volume(&self, name: &str) -> NewVolume {
        NewVolume {
            id: VolumeId::from_bytes(self.identity()),
            name: VolumeName::new(name).unwrap(),
            size_bytes: 1 << 40,
            durability: Durability::Flush,
            lineage: LineageId::from_bytes(self.identity()),
            domain: DomainId::DEFAULT,
            compress: true,
            dedupe: true,
            read_only: false,
            options: "{}".to_owned(),
            created_at: at(1),
        }
    }

    /// A new volume, held by the first gateway since time 1000.
    pub async fn held_volume(&self, name: &str) -> Held {
        self.held_volume_of(DomainId::DEFAULT, name).await
    }

    pub async fn held_volume_of(&self, domain: DomainId, name: &str) -> Held {
        let volume = NewVolume { domain, ..self.new_volume(name) };
        self.catalog.create_volume(&volume).await.unwrap();
        let lease = self.catalog.acquire_lease(volume.id, self.gateway, at(1000), TTL, None).await.unwrap();
        Held {
            volume: volume.id,
            lineage: volume.lineage,
            domain,
            lease,
            through: WriteSeq::ZERO,
            commit: CommitSeq::ZERO,
        }
    }

    /// A domain with its key.
    pub async fn domain(&self, name: &str) -> DomainId {
        let (row, key) = self.new_domain(name);
        self.catalog.create_domain(&row, &key).await.unwrap();
        row.id
    }

    pub fn new_domain(&self, name: &str) -> (DomainRow, KeyRow) {
        let id = DomainId::from_bytes(self.identity());
        let name = DomainName::new(name).unwrap();
        let row = DomainRow { id, name, encryption: Encryption::Off, created_at: at(3) };
        (row, key_row(&DomainRow::key_purpose(id), 5))
    }

    /// Takes a volume for `gateway` as one that has watched the holder's lease for long enough.
    pub async fn take(&self, volume: VolumeId, gateway: GatewayId, now: u64) -> Lease {
        let acquire = |unrenewed| self.catalog.acquire_lease(volume, gateway, at(now), TTL, unrenewed);
        match acquire(None).await {
            Err(CatalogError::LeaseHeld { stamp, .. }) => acquire(Some(stamp)).await.unwrap(),
            free => free.unwrap(),
        }
    }

    /// A segment with one container of `domain`, as the pool would have acknowledged it.
    pub fn sealed(&self, domain: DomainId) -> (SegmentRow, ContainerRow) {
        let (segment, id) =
            (SegmentId::from_bytes(self.identity()), ContainerId::from_bytes(self.identity()));
        let container = ContainerRow {
            id,
            segment,
            offset: 64,
            length: 4000,
            raw_bytes: 8192,
            domain,
            directory: Bytes::from_static(b"directory"),
        };
        (segment_row(segment, self.node, 4096), container)
    }

    /// The batch that writes `blocks` of each volume, all of one domain, ten writes each, into one fresh container.
    pub fn batch(&self, volumes: &[(&Held, LbaRange)]) -> BatchCommit {
        let domain = volumes.first().map_or(DomainId::DEFAULT, |(held, _)| held.domain);
        let (segment, container) = self.sealed(domain);
        let part = |(held, blocks): &(&Held, LbaRange)| VolumeCommit {
            volume: held.volume,
            lineage: held.lineage,
            generation: held.lease.generation,
            base: held.through,
            through: WriteSeq::new(held.through.get() + 10),
            delta: written(*blocks, container.id),
            reduction: packed(blocks.blocks()),
        };
        let volumes = volumes.iter().map(part).collect();
        BatchCommit {
            batch: BatchId::from_bytes(self.identity()),
            gateway: self.gateway,
            segments: vec![segment],
            containers: vec![container],
            volumes,
        }
    }

    /// Commits a batch of one volume.
    pub async fn commit(&self, held: &mut Held, blocks: LbaRange) -> BatchCommit {
        let batch = self.batch(&[(held, blocks)]);
        let receipt = self.catalog.commit_batch(&batch).await.unwrap();
        held.commit = held.commit.next();
        held.through = batch.volumes[0].through;
        assert_eq!(outcomes(&receipt), [VolumeOutcome::Committed(held.commit)]);
        batch
    }

    /// A step that makes `leaves` what the volume has through its last commit.
    pub fn fold_plan(&self, held: &Held, leaves: Vec<(LeafIndex, Arc<MapLeaf>)>) -> FoldPlan {
        FoldPlan {
            lineage: held.lineage,
            gateway: self.gateway,
            generation: held.lease.generation,
            through: held.commit,
            leaves,
            emptied: Vec::new(),
            forget: None,
        }
    }

    /// The totals after so many commits of one fresh container each, when nothing is folded.
    pub fn totals(volumes: u64, commits: u64) -> Totals {
        Totals {
            volumes,
            segments: commits,
            segment_bytes: commits * 4096,
            containers: commits,
            logical_bytes: 0,
            container_bytes: commits * 4000,
            container_raw_bytes: commits * 8192,
        }
    }

    /// The volume as far as batches move it.
    pub async fn progress(&self, held: &Held) -> (WriteSeq, CommitSeq) {
        let row = self.catalog.volume(held.volume).await.unwrap();
        (row.destaged_through, row.commit)
    }
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

#[expect(clippy::disallowed_methods, reason = "the suite plays the pool")]
pub fn segment_row(segment: SegmentId, node: NodeId, length: u64) -> SegmentRow {
    SegmentRow { receipt: UploadReceipt::attest(segment, node, format!("segments/{segment}"), length) }
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
            cancellation {
                a_dropped_commit_leaves_nothing_or_everything
                a_dropped_fold_leaves_nothing_or_everything
                a_dropped_replacement_of_keys_leaves_nothing_or_everything
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
