//! What segments held that are missing, in others that have some of it.

use super::super::*;
use super::catalog::{LOST, SITE, TERM, THROUGH, World, domain};
use cairn_metadata::{NodeRow, NodeState};
use cairn_model::{ChunkIndex, ChunkSet, Entropy, Lba, SeededEntropy};
use cairn_segment_writer::{
    BatchHeader, PackConfig, Packer, Regrouped, SealedSegment, SegmentContainer, VolumePacking,
};

/// A node of the site that was not given.
const AWAY: NodeId = NodeId::from_bytes([88; 16]);

fn header(world: &World) -> BatchHeader {
    let batch = BatchId::fresh(&*world.ports.clock, &*world.ports.entropy);
    BatchHeader { site: SITE, gateway: LOST, batch, attempt: 1, previous: None }
}

/// A segment that the catalog has and the pool has not. `may_return`: it is on a node that was not given.
async fn missing(world: &World, may_return: bool) -> SealedSegment {
    let mut packer = Packer::new(PackConfig::default(), header(world), world.ports.clone());
    let volume = VolumeHeader {
        volume: VolumeId::from_bytes([99; 16]),
        lineage: LineageId::from_bytes([99; 16]),
        generation: Generation::new(TERM),
        base: WriteSeq::ZERO,
        through: WriteSeq::new(1),
    };
    packer.volume(volume, VolumePacking::new(domain()));
    let mut bytes = vec![0; 64 * 4096];
    SeededEntropy::new(5).fill(&mut bytes);
    packer.run(Lba::ZERO, &[bytes.into()]);
    let segment = packer.finish().segments.remove(0);
    if may_return {
        let row = NodeRow {
            id: AWAY,
            name: "away".to_owned(),
            url: "file:///away".to_owned(),
            domain: None,
            state: NodeState::Active,
            created_at: world.ports.clock.wall(),
            options: "{}".to_owned(),
            capacity_bytes: None,
        };
        world.catalog.add_node(&row).await.unwrap();
    }
    let node = if may_return { AWAY } else { world.pool.nodes()[0].id() };
    let (key, length_bytes) = (segment.key().to_owned(), segment.length_bytes());
    let place = ObjectPlace { key, length_bytes, placement: Placement::single(node) };
    let receipt = world.pool.attest_found(segment.id(), place);
    let container = held(&segment);
    assert!(container.directory.present().len() > 2, "it has some chunks");
    let row = ContainerRow {
        id: container.id,
        segment: segment.id(),
        offset: container.offset,
        length: container.directory.stored_bytes(),
        raw_bytes: container.directory.raw_bytes(),
        domain: container.domain,
        directory: container.directory.encode(),
    };
    world.commit(vec![SegmentRow { receipt }], vec![row], Vec::new()).await;
    segment
}

fn held(segment: &SealedSegment) -> &SegmentContainer {
    &segment.containers()[0]
}

/// Puts a segment to which these chunks were moved; the catalog is of before.
async fn put_some(world: &World, of: &SealedSegment, chunks: &[u32]) -> SegmentId {
    let container = held(of);
    let kept: ChunkSet = chunks.iter().copied().map(ChunkIndex::new).collect();
    let mut moved = Regrouped::new(&domain(), header(world), 1 << 20, &world.ports);
    // Nobody reads what is in them.
    let stored: Vec<(ChunkIndex, Vec<u8>)> = kept
        .iter()
        .map(|index| (index, vec![0; container.directory.get(index).unwrap().stored_bytes as usize]))
        .collect();
    let stored = stored.iter().map(|(index, bytes)| (*index, &**bytes));
    moved.add(container.id, &container.directory, &kept, None, stored);
    let segment = moved.seal();
    let _receipt = world.pool.put(&segment).await.unwrap();
    segment.id()
}

/// Where the catalog has the container, if it does.
async fn home(world: &World, of: &SealedSegment) -> Option<SegmentId> {
    let located = world.catalog.containers(&[held(of).id]).await.unwrap();
    located.first().map(|location| location.segment)
}

fn tells_of_partial(report: &RecoveryReport) -> bool {
    report.warnings.iter().any(|warning| warning.contains("1 containers") && warning.contains("lack chunks"))
}

#[tokio::test]
async fn of_several_copies_the_one_is_taken_that_has_most_of_what_is_needed() {
    // What each copy has, and which has the most; whether that is all.
    for (copies, best, is_all) in [
        (&[&[0][..], &[0, 1], &[1]][..], 1, true),
        (&[&[0, 1], &[1, 2], &[0]], 0, true),
        (&[&[0], &[2]], 0, false),
        // What nothing points at counts for nothing.
        (&[&[2, 3], &[1]], 1, false),
    ] {
        let world = World::new("single", 1).await;
        let one = world.volume("one").await;
        let gone = missing(&world, false).await;
        world.share(&one, held(&gone).id, &[0, 1]).await;
        let mut segments = Vec::new();
        for chunks in copies {
            segments.push(put_some(&world, &gone, chunks).await);
        }
        let report = world.recover().await;
        assert_eq!(home(&world, &gone).await, Some(segments[best]), "{copies:?}: {report:?}");
        assert_eq!(tells_of_partial(&report), !is_all, "{copies:?}: {report:?}");
        assert_eq!(report.rehomed_segments, 1, "{copies:?}: {report:?}");
        assert_eq!(report.unused_segments, copies.len() as u64 - 1, "{copies:?}: {report:?}");
        assert_eq!(report.missing_segments, Vec::<String>::new(), "{copies:?}: {report:?}");
    }
}

#[tokio::test]
async fn a_copy_without_anything_that_is_needed_is_not_taken() {
    let world = World::new("single", 1).await;
    let one = world.volume("one").await;
    let gone = missing(&world, false).await;
    world.share(&one, held(&gone).id, &[0, 1]).await;
    put_some(&world, &gone, &[2]).await;
    let report = world.recover().await;
    assert_eq!(home(&world, &gone).await, Some(gone.id()), "{report:?}");
    assert_eq!(report.missing_segments, [gone.id().to_string()], "{report:?}");
    assert_eq!((report.rehomed_segments, report.unused_segments), (0, 1), "{report:?}");
}

#[tokio::test]
async fn what_may_come_back_stays_named_there_unless_all_that_is_needed_is_elsewhere() {
    for (chunks, moves) in [(&[0, 1][..], true), (&[0], false)] {
        let world = World::new("single", 1).await;
        let one = world.volume("one").await;
        let gone = missing(&world, true).await;
        world.share(&one, held(&gone).id, &[0, 1]).await;
        let copy = put_some(&world, &gone, chunks).await;
        let report = world.recover().await;
        assert_eq!(home(&world, &gone).await, Some(if moves { copy } else { gone.id() }), "{report:?}");
        assert_eq!(report.unreachable_segments.len(), usize::from(!moves), "{report:?}");
        assert_eq!(report.rehomed_segments, u64::from(moves), "{report:?}");
        assert!(!tells_of_partial(&report), "{report:?}");
    }
}

#[tokio::test]
async fn what_may_come_back_stays_named_there_while_batches_are_left_out_that_may_need_it() {
    let world = World::new("single", 1).await;
    let one = world.volume("one").await;
    let gone = missing(&world, true).await;
    world.share(&one, held(&gone).id, &[0, 1]).await;
    put_some(&world, &gone, &[0, 1]).await;
    // The batch before it is not there.
    let _late = world.put(9, 8, &[(&one, TERM + 5, THROUGH + 10, THROUGH + 20)]).await;
    let report = world.recover().await;
    assert!(report.problems_of.contains_key(&one.id), "{report:?}");
    assert_eq!(home(&world, &gone).await, Some(gone.id()), "{report:?}");
    assert_eq!(report.unreachable_segments.len(), 1, "{report:?}");
    assert_eq!(report.rehomed_segments, 0, "{report:?}");
}

#[tokio::test]
async fn what_nothing_needs_is_forgotten_only_where_it_cannot_come_back() {
    for may_return in [true, false] {
        let world = World::new("single", 1).await;
        let _one = world.volume("one").await;
        let gone = missing(&world, may_return).await;
        put_some(&world, &gone, &[0, 1]).await;
        let report = world.recover().await;
        assert_eq!(home(&world, &gone).await, Some(gone.id()).filter(|_| may_return), "{report:?}");
        assert_eq!(report.unreachable_segments.len(), usize::from(may_return), "{report:?}");
        assert_eq!((report.rehomed_segments, report.unused_segments), (0, 1), "{report:?}");
    }
}
