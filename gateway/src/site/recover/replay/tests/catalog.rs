//! Batches in a pool of directories, joined with a catalog.

use super::super::*;
use crate::key::published::{PublishedDomain, PublishedKeys, Revision};
use crate::key::{Master, Origin, Protection};
use crate::site::keys::make_data_key;
use crate::site::new_volume;
use crate::site::publish::{Revisions, is_revision};
use crate::site::recover::{Found, bring_keys, replay};
use cairn_metadata::{NodeRow, NodeState, PoolSettings as CatalogPool, SiteRow, VolumeName};
use cairn_model::crypto::{Encryption, KeyId, SecretKey};
use cairn_model::{
    ChunkId, ChunkIndex, ChunkRef, DomainId, Entropy, Lba, LbaRange, MapOp, MapTarget, Ports, SeededEntropy,
    SiteId,
};
use cairn_segment_writer::{
    BatchHeader, DataNode, Member, NodeAccess, NodeUrl, PackConfig, Packer, PoolSettings, SealedSegment,
    VolumePacking,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(super) const SITE: SiteId = SiteId::from_bytes([1; 16]);
pub(super) const LOST: GatewayId = GatewayId::from_bytes([2; 16]);
const NEW: GatewayId = GatewayId::from_bytes([3; 16]);
/// What each volume has in the catalog, and its term there.
pub(super) const THROUGH: u64 = 100;
pub(super) const TERM: u64 = 9;

pub(super) fn domain() -> Domain {
    Domain::new(DomainId::DEFAULT, SecretKey::from_bytes([7; 32]), Encryption::Aes256Gcm)
}

pub(super) struct World {
    folder: tempfile::TempDir,
    pub(super) catalog: SqliteCatalog,
    pub(super) pool: Arc<Pool>,
    pub(super) ports: Ports,
}

/// A part of a batch: of which volume, in which term, from and to which write.
pub(super) type Part<'a> = (&'a VolumeRow, u64, u64, u64);

impl World {
    pub(super) async fn new(profile: &str, nodes: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = Ports::system();
        let catalog = SqliteCatalog::create(&folder.path().join("catalog.db")).await.unwrap();
        let created_at = ports.clock.wall();
        let site = SiteRow { id: SITE, name: "site".to_owned(), created_at, format_version: 1 };
        catalog.create_site(&site).await.unwrap();
        for (gateway, name) in [(LOST, "lost"), (NEW, "new")] {
            catalog.register_gateway(gateway, name, created_at).await.unwrap();
        }
        let profile: Profile = profile.parse().unwrap();
        catalog.set_pool_settings(&CatalogPool { profile }).await.unwrap();
        let mut members = Vec::new();
        for number in 0..nodes {
            let path = folder.path().join(format!("n{number}"));
            let access = NodeAccess::new(NodeUrl::Directory(path));
            let node = DataNode::attach(&access, SITE, ports.clone()).await.unwrap();
            let row = NodeRow {
                id: node.id(),
                name: format!("n{number}"),
                url: node.name().to_string(),
                domain: None,
                state: NodeState::Active,
                created_at,
                options: "{}".to_owned(),
                capacity_bytes: None,
            };
            catalog.add_node(&row).await.unwrap();
            members.push(Member::new(node));
        }
        let settings = PoolSettings { profile, ..PoolSettings::default() };
        let pool = Arc::new(Pool::new(members, settings, ports.clone()));
        Self { folder, catalog, pool, ports }
    }

    pub(super) async fn volume(&self, name: &str) -> VolumeRow {
        let volume = new_volume(VolumeName::new(name).unwrap(), 1 << 30, &self.ports);
        self.catalog.create_volume(&volume).await.unwrap();
        let (now, hour) = (self.ports.clock.wall(), Duration::from_hours(1));
        let lease = self.catalog.acquire_lease(volume.id, LOST, now, hour, None).await.unwrap();
        let term = Generation::new(TERM);
        self.catalog.raise_term(volume.id, LOST, lease.generation, term).await.unwrap();
        let part = VolumeCommit {
            volume: volume.id,
            lineage: volume.lineage,
            generation: term,
            base: WriteSeq::ZERO,
            through: WriteSeq::new(THROUGH),
            delta: MapDelta::default(),
            reduction: Reduction::default(),
            snapshots: Vec::new(),
        };
        self.commit(Vec::new(), Vec::new(), vec![part]).await;
        self.catalog.release_lease(volume.id, LOST, term).await.unwrap();
        self.row(volume.id).await
    }

    pub(super) async fn commit(
        &self,
        segments: Vec<SegmentRow>,
        containers: Vec<ContainerRow>,
        volumes: Vec<VolumeCommit>,
    ) {
        let batch = BatchId::fresh(&*self.ports.clock, &*self.ports.entropy);
        let batch = BatchCommit { batch, gateway: LOST, segments, volumes, containers };
        self.catalog.commit_batch(&batch).await.unwrap();
    }

    async fn row(&self, id: VolumeId) -> VolumeRow {
        self.catalog.volumes().await.unwrap().into_iter().find(|row| row.id == id).unwrap()
    }

    pub(super) async fn through(&self, volume: &VolumeRow) -> u64 {
        self.row(volume.id).await.destaged_through.get()
    }

    /// Puts a batch of one segment. Before it its process cut the batch `previous`; 0: none.
    pub(super) async fn put(&self, number: u8, previous: u8, parts: &[Part<'_>]) -> SealedSegment {
        let id = |number: u8| BatchId::from_bytes([number; 16]);
        let previous = Some(previous).filter(|previous| *previous > 0).map(id);
        let header = BatchHeader { site: SITE, gateway: LOST, batch: id(number), attempt: 1, previous };
        let mut packer = Packer::new(PackConfig::default(), header, self.ports.clone());
        for (volume, term, base, through) in parts {
            let header = VolumeHeader {
                volume: volume.id,
                lineage: volume.lineage,
                generation: Generation::new(*term),
                base: WriteSeq::new(*base),
                through: WriteSeq::new(*through),
            };
            packer.volume(header, VolumePacking::new(domain()));
            let mut bytes = vec![0; 3 * 4096];
            SeededEntropy::new(u64::from(number)).fill(&mut bytes);
            packer.run(Lba::new(*base), &[bytes.into()]);
        }
        let mut batch = packer.finish();
        assert_eq!(batch.segments.len(), 1);
        let segment = batch.segments.remove(0);
        let _receipt = self.pool.put(&segment).await.unwrap();
        segment
    }

    pub(super) async fn recover(&self) -> RecoveryReport {
        let keys = PublishedKeys {
            site: SITE,
            revision: Revision { number: 1, tag: [0; 8] },
            master: KeyId::from_bytes([0; 8]),
            key_file: None,
            domains: Vec::new(),
        };
        let (pool, domains) = (Arc::clone(&self.pool), vec![domain()]);
        let found = Found { site: SITE, pool, keys, domains, warnings: Vec::new() };
        let mut report = RecoveryReport::new(SITE, Path::new("/"), Vec::new());
        report.incarnation = 2;
        let progress = RecoveryProgress::default();
        replay(&self.catalog, &found, NEW, (&self.ports, &progress), &mut report).await.unwrap();
        report
    }

    /// The volume shows these chunks of a container.
    pub(super) async fn share(&self, volume: &VolumeRow, container: ContainerId, chunks: &[u32]) {
        let (now, hour) = (self.ports.clock.wall(), Duration::from_hours(1));
        let lease = self.catalog.acquire_lease(volume.id, LOST, now, hour, None).await.unwrap();
        let op = |(at, index): (u64, &u32)| {
            let chunk = ChunkId { container, index: ChunkIndex::new(*index) };
            let target = MapTarget::Chunk(ChunkRef { chunk, block: 0 });
            MapOp { range: LbaRange::new(Lba::new(at), 1).unwrap(), target }
        };
        let part = VolumeCommit {
            volume: volume.id,
            lineage: volume.lineage,
            generation: lease.generation,
            base: WriteSeq::new(THROUGH),
            through: WriteSeq::new(THROUGH + 1),
            delta: MapDelta { ops: (0..).zip(chunks).map(op).collect() },
            reduction: Reduction::default(),
            snapshots: Vec::new(),
        };
        self.commit(Vec::new(), Vec::new(), vec![part]).await;
        self.catalog.release_lease(volume.id, LOST, lease.generation).await.unwrap();
    }

    async fn has(&self, segment: &SealedSegment) -> bool {
        let ids: Vec<ContainerId> = segment.containers().iter().map(|container| container.id).collect();
        !ids.is_empty() && self.catalog.containers(&ids).await.unwrap().len() == ids.len()
    }
}

#[tokio::test]
async fn gaps_void_terms_and_strangers_cost_no_other_volume_anything() {
    let world = World::new("single", 1).await;
    let (one, two, three) =
        (world.volume("one").await, world.volume("two").await, world.volume("three").await);
    let stranger = VolumeRow { id: VolumeId::from_bytes([99; 16]), ..one.clone() };
    let _first = world.put(1, 0, &[(&one, TERM, 100, 110), (&two, TERM, 100, 110)]).await;
    // The one between has writes of the second alone, and is not there.
    let _third = world.put(3, 2, &[(&one, TERM, 110, 120), (&two, TERM, 120, 130)]).await;
    let late = world.put(4, 3, &[(&two, TERM, 130, 140)]).await;
    let strange = world.put(5, 4, &[(&stranger, TERM, 0, 10)]).await;
    // Put by a gateway that died before it could commit it; the next one cut its log otherwise.
    let void = world.put(6, 5, &[(&three, TERM, 100, 120)]).await;
    let _next = world.put(7, 0, &[(&three, TERM + 1, 100, 115)]).await;
    let report = world.recover().await;
    assert_eq!(world.through(&one).await, 120);
    assert_eq!(world.through(&two).await, 110);
    assert_eq!(world.through(&three).await, 115);
    let told: Vec<&VolumeId> = report.problems_of.keys().collect();
    assert_eq!(told, [&two.id], "{report:?}");
    assert!(report.problems_of[&two.id].contains("120 to 130"), "{report:?}");
    assert!(report.warnings.iter().any(|warning| warning.contains("writes of 1 volumes")), "{report:?}");
    // Others may share what is in them.
    assert!(world.has(&late).await && world.has(&strange).await);
    assert!(!world.has(&void).await);
    assert_eq!((report.batches, report.unused_segments), (3, 1));
}

#[tokio::test]
async fn an_older_copy_of_the_catalog_voids_nothing() {
    let world = World::new("single", 1).await;
    let (one, two) = (world.volume("one").await, world.volume("two").await);
    let _real = world.put(2, 1, &[(&one, TERM, 100, 120)]).await;
    // A copy that has it through 60 was started again and again, until its term is higher. The second volume was not written since.
    let _older = world.put(3, 0, &[(&one, TERM + 1, 60, 80), (&two, TERM + 1, 100, 105)]).await;
    let _same = world.put(4, 3, &[(&one, TERM + 1, 80, 110)]).await;
    let _restarted = world.put(5, 0, &[(&one, TERM + 2, 110, 130)]).await;
    let report = world.recover().await;
    assert_eq!((world.through(&one).await, world.through(&two).await), (120, 100), "{report:?}");
    assert_eq!(report.batches, 1);
    assert!(
        report.warnings[0].contains("3 batches") && report.warnings[0].contains("older copy"),
        "{report:?}"
    );
    assert!(report.warnings[0].contains("one, two"), "{report:?}");
    // The new terms are above all of them.
    assert!(world.row(one.id).await.generation > Generation::new(TERM + 2));
}

#[tokio::test]
async fn of_two_histories_in_one_term_one_is_joined_and_none_is_mixed() {
    let world = World::new("single", 1).await;
    let one = world.volume("one").await;
    let _first = world.put(10, 1, &[(&one, TERM, 100, 110)]).await;
    let _other = world.put(11, 2, &[(&one, TERM, 100, 110)]).await;
    let _after_other = world.put(12, 11, &[(&one, TERM, 110, 125)]).await;
    let _after_first = world.put(13, 10, &[(&one, TERM, 110, 120)]).await;
    let report = world.recover().await;
    assert_eq!(world.through(&one).await, 120, "{report:?}");
    assert!(report.problems_of[&one.id].contains("two gateways"), "{report:?}");
}

/// A segment of a volume that is not there, and the one in which the catalog has what it holds.
async fn moved(world: &World, one: &VolumeRow) -> (SealedSegment, SegmentId) {
    let stranger = VolumeRow { id: VolumeId::from_bytes([99; 16]), ..one.clone() };
    let back = world.put(1, 0, &[(&stranger, TERM, 0, 10)]).await;
    let elsewhere = SegmentId::from_bytes([77; 16]);
    let placement = Placement::single(world.pool.nodes()[0].id());
    let place = ObjectPlace { key: format!("segments/4d/{elsewhere}"), length_bytes: 4096, placement };
    let receipt = world.pool.attest_found(elsewhere, place);
    let containers = back.containers().iter().map(|container| ContainerRow {
        id: container.id,
        segment: elsewhere,
        offset: container.offset,
        length: container.directory.stored_bytes(),
        raw_bytes: container.directory.raw_bytes(),
        domain: container.domain,
        directory: container.directory.encode(),
    });
    world.commit(vec![SegmentRow { receipt }], containers.collect(), Vec::new()).await;
    (back, elsewhere)
}

#[tokio::test]
async fn a_segment_that_is_back_after_its_containers_moved_ends_no_recovery() {
    let world = World::new("single", 1).await;
    let one = world.volume("one").await;
    let (back, elsewhere) = moved(&world, &one).await;
    let object = world.folder.path().join(format!("n0/segments/4d/{elsewhere}"));
    std::fs::create_dir_all(object.parent().unwrap()).unwrap();
    std::fs::write(object, [0; 4096]).unwrap();
    let _next = world.put(2, 1, &[(&one, TERM, 100, 110)]).await;
    let report = world.recover().await;
    assert_eq!(world.through(&one).await, 110);
    assert_eq!((report.returned_segments, report.unused_segments), (1, 1), "{report:?}");
    assert_eq!((report.rehomed_segments, &report.missing_segments[..]), (0, &[][..]), "{report:?}");
    let ids = [back.containers()[0].id];
    assert_eq!(world.catalog.containers(&ids).await.unwrap()[0].segment, elsewhere);
}

#[tokio::test]
async fn what_is_missing_is_named_where_it_is_if_something_needs_it() {
    for is_needed in [true, false] {
        let world = World::new("single", 1).await;
        let one = world.volume("one").await;
        let (back, _elsewhere) = moved(&world, &one).await;
        let container = back.containers()[0].id;
        if is_needed {
            // A batch that shares what is in there.
            world.share(&one, container, &[0]).await;
        }
        let report = world.recover().await;
        assert_eq!(report.missing_segments, Vec::<String>::new(), "{report:?}");
        assert_eq!(report.rehomed_segments, u64::from(is_needed), "{report:?}");
        assert_eq!(report.warnings.len(), 1, "of the volume that is not there: {report:?}");
        let located = world.catalog.containers(&[container]).await.unwrap();
        let segments: Vec<SegmentId> = located.iter().map(|location| location.segment).collect();
        assert_eq!(segments, if is_needed { vec![back.id()] } else { Vec::new() }, "{report:?}");
    }
}

#[tokio::test]
async fn a_segment_that_was_converted_since_is_found_in_its_new_shards() {
    let world = World::new("ec:2+1", 3).await;
    let one = world.volume("one").await;
    let segment = world.put(1, 0, &[(&one, TERM, 0, 100)]).await;
    // The checkpoint has it as one object, which is gone.
    let placement = Placement::single(world.pool.nodes()[0].id());
    let place =
        ObjectPlace { key: segment.key().to_owned(), length_bytes: segment.length_bytes(), placement };
    let receipt = world.pool.attest_found(segment.id(), place.clone());
    world.commit(vec![SegmentRow { receipt }], Vec::new(), Vec::new()).await;
    let report = world.recover().await;
    assert_eq!((report.mended_segments, &report.missing_segments[..]), (1, &[][..]), "{report:?}");
    let rows = world.catalog.segment_places(None, 10).await.unwrap();
    assert_eq!(rows[0].place.placement.profile(), "ec:2+1".parse().unwrap());
    assert_eq!(rows[0].place.placement.present().count(), 3);
    assert!(world.folder.path().join("n0").exists());
}

fn master(number: u8) -> Master {
    let origin = Origin::File("key".into());
    Master { key: SecretKey::from_bytes([number; 32]), protection: Protection::Plain, origin }
}

#[tokio::test]
async fn keys_that_were_published_join_the_checkpoints_and_never_take_the_place_of_later_ones() {
    let world = World::new("single", 1).await;
    let (old, new) = (master(31), master(32));
    make_data_key(&world.catalog, &old, &world.ports).await.unwrap();
    let rows = world.catalog.keys().await.unwrap();
    let first = Revisions::of(&rows, old.id());
    let data = rows.into_iter().find(|row| !is_revision(row)).unwrap();
    let published = |revisions: &Revisions, master: &Master| PublishedKeys {
        site: SITE,
        revision: revisions.current(),
        master: master.id(),
        key_file: None,
        domains: vec![PublishedDomain {
            id: DomainId::DEFAULT,
            name: "default".to_owned(),
            encryption: Encryption::Aes256Gcm,
            key_id: data.key_id,
            wrapped: data.wrapped.clone(),
        }],
    };
    let bring = async |revisions: &Revisions, master: &Master| {
        bring_keys(&world.catalog, &published(revisions, master), master, &world.ports).await
    };
    let present = async |master: &Master| Revisions::of(&world.catalog.keys().await.unwrap(), master.id());
    // The master key was changed after the checkpoint: what it remembers stays its past.
    let second = first.next(&*world.ports.entropy);
    bring(&second, &new).await.unwrap();
    assert_eq!(present(&new).await, second);
    // Published keys from before the checkpoint, of a node that was away.
    bring(&first, &new).await.unwrap();
    assert_eq!(present(&new).await, second);
    let error = bring(&first, &old).await.unwrap_err();
    assert!(error.to_string().contains("another master key"), "{error}");
    assert_eq!(present(&new).await, second);
}
