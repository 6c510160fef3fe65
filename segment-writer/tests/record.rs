//! The record of the catalog and what lists tell, on a pool of many nodes.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use cairn_model::{
    GatewayId, Lba, NodeId, Placement, Ports, Profile, SegmentId, SiteId, WallTime, shard_key,
};
use cairn_segment_writer::testing::{Fault, FaultStore};
use cairn_segment_writer::{
    Copies, DataNode, FoundSegment, Manifest, ManifestId, Member, NodeState, ObjectTally, PackConfig,
    PieceCutter, Pool, PoolError, PoolSettings, RecordKey, RecordStore, SealedPiece, SealedSegment,
};
use common::*;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

struct Node {
    id: NodeId,
    memory: Arc<InMemory>,
    fault: Arc<Mutex<Option<Fault>>>,
    /// What keys have in them that it is for.
    at: Arc<Mutex<&'static str>>,
}

struct World {
    nodes: Vec<Node>,
    members: Vec<Member>,
    pool: Arc<Pool>,
    record: RecordStore,
    ports: Ports,
}

const GATEWAY: GatewayId = GatewayId::from_bytes([2; 16]);

fn key() -> RecordKey {
    RecordKey::new(&domain(), SiteId::from_bytes([1; 16]))
}

fn world(count: u8, profile: &str) -> World {
    let ports = seeded_ports(1);
    let node = |number| Node {
        id: NodeId::from_bytes([number + 1; 16]),
        memory: Arc::new(InMemory::new()),
        fault: Arc::default(),
        at: Arc::default(),
    };
    let nodes: Vec<Node> = (0..count).map(node).collect();
    let member = |node: &Node| {
        let (fault, at) = (Arc::clone(&node.fault), Arc::clone(&node.at));
        let memory = Arc::clone(&node.memory) as Arc<dyn ObjectStore>;
        let store = Arc::new(FaultStore::new(memory, move |request| {
            fault.lock().filter(|_| request.key.contains(*at.lock()))
        }));
        Member::new(DataNode::with_store(node.id, &node.id.to_string(), store, policy(), ports.clone()))
    };
    let members: Vec<Member> = nodes.iter().map(member).collect();
    let settings = PoolSettings { profile: profile.parse().unwrap(), ..PoolSettings::default() };
    let pool = Arc::new(Pool::new(members.clone(), settings, ports.clone()));
    let record = RecordStore::new(Arc::clone(&pool), key());
    World { nodes, members, pool, record, ports }
}

impl World {
    fn set(&self, numbers: std::ops::Range<usize>, fault: Option<Fault>) {
        for node in &self.nodes[numbers] {
            *node.fault.lock() = fault;
        }
    }

    fn ids(&self, numbers: std::ops::Range<usize>) -> Copies {
        self.nodes[numbers].iter().map(|node| node.id).collect()
    }

    /// The pool of some of the nodes alone, as a recovery has it.
    fn part(&self, numbers: std::ops::Range<usize>) -> Pool {
        Pool::new(self.members[numbers].to_vec(), PoolSettings::default(), self.ports.clone())
    }
}

fn piece(row: &[u8]) -> SealedPiece {
    let mut cutter = PieceCutter::new(key(), 1, GATEWAY);
    assert!(cutter.push(b"head", &[row.to_vec()]).is_empty());
    cutter.finish().unwrap()
}

fn manifest(number: u64) -> Manifest {
    let id = ManifestId { incarnation: 1, number, gateway: GATEWAY };
    Manifest { id, schema: 10, taken_at: WallTime::from_unix_millis(3), pieces: Vec::new() }
}

#[tokio::test(start_paused = true)]
async fn an_object_is_durable_on_one_node_more_than_may_be_lost() {
    for fault in [Fault::Connection, Fault::Hang] {
        let world = world(6, "ec:4+2");
        world.set(0..3, Some(fault));
        let mut copies = Copies::new();
        world.record.put_piece(&piece(b"row"), &mut copies).await.unwrap();
        assert_eq!(copies, world.ids(3..6));
        assert!(world.record.is_durable(&copies));
        assert!(world.record.is_everywhere(&copies));
        // On two while all others are silent, as a segment would be; not while they are not.
        world.set(3..4, Some(fault));
        let (piece, mut copies) = (piece(b"other"), Copies::new());
        world.record.put_piece(&piece, &mut copies).await.unwrap();
        assert_eq!(copies, world.ids(4..6));
        assert!(!world.record.is_everywhere(&copies));
        assert_eq!(world.record.lacking(&copies), world.ids(0..4));
        // On one it is not, and says so; what is there is known.
        world.set(4..5, Some(fault));
        let mut of_one = Copies::new();
        world.record.put_piece(&self::piece(b"third"), &mut of_one).await.unwrap_err();
        assert_eq!(of_one, world.ids(5..6));
        assert!(!world.record.is_durable(&of_one));
        // The next time only the others are asked, and those that are back get it as well.
        world.set(0..6, None);
        rest().await;
        let next = RecordStore::new(Arc::clone(&world.pool), key());
        next.put_piece(&piece, &mut copies).await.unwrap();
        assert_eq!(copies, world.ids(0..6));
    }
}

/// Time for nodes to be tried again.
#[expect(clippy::disallowed_methods, reason = "tests pause tokio's clock")]
async fn rest() {
    tokio::time::sleep(std::time::Duration::from_mins(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_counts_when_whatever_is_durable_is_in_it() {
    for fault in [Fault::Connection, Fault::Hang] {
        let world = world(6, "ec:4+2");
        let mut copies = Copies::new();
        world.set(0..3, Some(fault));
        let manifest = manifest(5);
        world.record.put_manifest(&manifest, &*world.ports.entropy, &mut copies).await.unwrap();
        world.set(0..3, None);
        rest().await;
        // Two of those that have it are silent.
        world.set(3..5, Some(fault));
        let listed = world.record.manifests().await.unwrap();
        assert_eq!(listed, [(manifest.id, world.ids(5..6))].into());
        assert_eq!(world.record.read_manifest(manifest.id).await.unwrap(), manifest);
        // With a third one it might be missed.
        world.set(3..6, Some(fault));
        world.record.manifests().await.unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_were_given_up_hold_no_copies() {
    let world = world(3, "replica:2");
    let mut members = world.members.clone();
    members[0].state = NodeState::Failed;
    world.pool.set_nodes(members);
    let mut copies = Copies::new();
    world.record.put_piece(&piece(b"row"), &mut copies).await.unwrap();
    assert_eq!(copies, world.ids(1..3));
    assert!(!world.record.is_durable(&world.ids(0..2)), "the third one answers");
    assert!(world.record.is_durable(&world.ids(0..3)));
}

#[tokio::test(start_paused = true)]
async fn a_record_goes_on_where_every_node_has_a_copy_and_one_is_lost() {
    for (count, profile) in [(2, "replica:2"), (3, "replica:3")] {
        for fault in [Fault::Connection, Fault::Hang] {
            let world = world(count, profile);
            let all = usize::from(count);
            world.set(0..1, Some(fault));
            let mut copies = Copies::new();
            world.record.put_piece(&piece(b"row"), &mut copies).await.unwrap();
            assert_eq!(copies, world.ids(1..all));
            assert!(!world.record.is_everywhere(&copies));
            let mut of_manifest = Copies::new();
            let manifest = manifest(5);
            world.record.put_manifest(&manifest, &*world.ports.entropy, &mut of_manifest).await.unwrap();
            assert_eq!(world.record.newest_above(0).await.unwrap(), Some(manifest.id));
            // A node that is full is not silent: it is told, and room is made.
            world.set(0..1, Some(Fault::Status(507)));
            rest().await;
            let next = RecordStore::new(Arc::clone(&world.pool), key());
            let error = next.put_piece(&piece(b"other"), &mut Copies::new()).await.unwrap_err();
            assert!(matches!(error, PoolError::OutOfSpace { .. }), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_node_cannot_delete_now_is_left_there_and_gone_elsewhere() {
    let world = world(3, "replica:3");
    let (piece, mut copies, mut away) = (piece(b"row"), Copies::new(), Copies::new());
    world.record.put_piece(&piece, &mut copies).await.unwrap();
    world.set(0..1, Some(Fault::Hang));
    world.record.delete_piece(piece.name, &mut copies, &mut away).await;
    assert_eq!((&copies, &away), (&world.ids(0..1), &world.ids(0..1)));
    world.set(0..1, None);
    rest().await;
    let of_nodes = world.ids(0..1).into_iter().map(|node| (node, piece.length_bytes())).collect();
    assert_eq!(world.record.listing().await.unwrap().pieces, [(piece.name, of_nodes)].into());
    world.record.delete_piece(piece.name, &mut copies, &mut Copies::new()).await;
    assert!(copies.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_manifest_is_withdrawn_from_every_node_or_those_are_named_that_may_have_it() {
    let world = world(3, "replica:3");
    let (manifest, mut copies) = (manifest(5), Copies::new());
    world.record.put_manifest(&manifest, &*world.ports.entropy, &mut copies).await.unwrap();
    // It is slower than anybody waits who only tidies up.
    world.set(0..1, Some(Fault::Hang));
    let error = world.record.withdraw_manifest(manifest.id).await.unwrap_err().to_string();
    assert!(error.contains(&world.nodes[0].id.to_string()), "{error}");
    // The second one's is the gateway's too, which is in the key.
    assert!(!error.contains(&world.nodes[2].id.to_string()), "{error}");
    // It is back, and not believed yet: it is asked all the same.
    world.set(0..1, None);
    world.record.withdraw_manifest(manifest.id).await.unwrap();
    rest().await;
    assert_eq!(world.record.manifests().await.unwrap(), [].into());
}

#[tokio::test(start_paused = true)]
async fn what_a_node_has_of_segments_is_told_in_a_few_bytes() {
    let world = world(6, "ec:4+2");
    let tallies = async || {
        let mut tallies: BTreeMap<NodeId, ObjectTally> = BTreeMap::new();
        for found in found(&world.pool).await {
            found.tally(&mut tallies);
        }
        for node in world.pool.nodes() {
            let listed = tallies.entry(node.id()).or_default();
            assert_eq!(node.tally_segments().await.unwrap(), *listed);
            assert_eq!(ObjectTally::parse(&listed.to_string()), Some(*listed));
        }
        tallies
    };
    let before = tallies().await;
    let _one = world.pool.put(&segment(1)).await.unwrap();
    let with_one = tallies().await;
    assert!(with_one.iter().all(|(node, tally)| before[node] != *tally));
    let _two = world.pool.put(&segment(2)).await.unwrap();
    assert!(tallies().await.iter().all(|(node, tally)| with_one[node] != *tally));
    assert_eq!(ObjectTally::parse("1 2"), None);
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_damaged_trailers_take_shards_from_is_not_passed_over() {
    let world = world(6, "ec:4+2");
    let receipt = world.pool.put(&segment(1)).await.unwrap();
    let place = receipt.place();
    let damage = async |index: usize| {
        let (_, shard) = place.placement.present().nth(index).unwrap();
        let memory = &world.nodes.iter().find(|node| node.id == shard.node).unwrap().memory;
        let key = Path::from(place.shard_key(index).unwrap());
        let mut bytes = memory.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        memory.put(&key, bytes.into()).await.unwrap();
    };
    let profile = place.placement.profile();
    damage(0).await;
    damage(1).await;
    let of = found(&world.pool).await.remove(0);
    assert_eq!(present(&world.pool.places_of(&of, profile).await.unwrap()[0].placement), 4);
    damage(2).await;
    let error = world.pool.places_of(&of, profile).await.unwrap_err();
    assert!(matches!(error, PoolError::Corrupt { .. }), "{error}");
}

fn segment(seed: u64) -> SealedSegment {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), packing());
    packer.run(Lba::ZERO, &[random(40, seed)]);
    finish(packer).segments.remove(0)
}

async fn found(pool: &Pool) -> Vec<FoundSegment> {
    let mut all = Vec::new();
    for prefix in 0..=u8::MAX {
        all.extend(pool.list_segments(prefix).await.unwrap());
    }
    all
}

fn present(placement: &Placement) -> usize {
    placement.present().count()
}

#[tokio::test(start_paused = true)]
async fn segments_are_found_on_whatever_nodes_suffice() {
    for profile in ["single", "replica:3", "ec:4+2"] {
        let count = if profile == "single" { 1 } else { 6 };
        let world = world(count, profile);
        let wanted: Profile = profile.parse().unwrap();
        let (one, two) = (segment(1), segment(2));
        let receipts = [world.pool.put(&one).await.unwrap(), world.pool.put(&two).await.unwrap()];
        let all = found(&world.pool).await;
        let mut ids: Vec<SegmentId> = receipts.iter().map(cairn_model::UploadReceipt::segment).collect();
        ids.sort();
        let mut listed: Vec<SegmentId> = all.iter().map(|found| found.id).collect();
        listed.sort();
        assert_eq!(listed, ids, "{profile}");
        for receipt in &receipts {
            let of = all.iter().find(|found| found.id == receipt.segment()).unwrap();
            let place = receipt.place();
            assert_eq!(of.count(&place.placement, place.length_bytes), wanted.shards());
            assert_eq!(of.count(&place.placement, place.length_bytes + 64 * 4), 0, "of another length");
            let places = world.pool.places_of(of, wanted).await.unwrap();
            assert_eq!(places.len(), 1);
            assert_eq!((places[0].length_bytes, &places[0].key), (place.length_bytes, &place.key));
            assert_eq!(present(&places[0].placement), wanted.shards());
            if wanted != (Profile::Replica { copies: 3 }) {
                assert_eq!(places[0], *place);
            }
        }
        if profile != "ec:4+2" {
            continue;
        }
        // Without two nodes, and through them alone.
        let part = world.part(2..6);
        for of in found(&part).await {
            let places = part.places_of(&of, wanted).await.unwrap();
            assert_eq!((places.len(), present(&places[0].placement)), (1, 4));
            let footer = part.read_footer(&places[0], &domain()).await.unwrap();
            assert_eq!(footer.segment, of.id);
        }
        // Without three there is not enough, which is told.
        let part = world.part(3..6);
        for of in found(&part).await {
            assert_eq!(part.places_of(&of, wanted).await.unwrap(), []);
            assert_eq!(of.told(), "3 of the 4 shards that ec:4+2 needs");
        }
        // A node that is silent says nothing.
        world.set(0..1, Some(Fault::Connection));
        assert!(matches!(world.pool.list_segments(0).await, Err(PoolError::Unavailable { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_its_node_cannot_read_is_one_that_is_missing() {
    let world = world(6, "ec:4+2");
    let _receipt = world.pool.put(&segment(1)).await.unwrap();
    let all = found(&world.pool).await;
    for node in &world.nodes[..2] {
        *node.at.lock() = "segments/";
        *node.fault.lock() = Some(Fault::Status(500));
    }
    let places = world.pool.places_of(&all[0], "ec:4+2".parse().unwrap()).await.unwrap();
    assert_eq!((places.len(), present(&places[0].placement)), (1, 4));
    assert!(world.pool.silent_node().await.is_none(), "it answers");
    // With a third one there may be enough, and nobody knows.
    *world.nodes[2].at.lock() = "segments/";
    *world.nodes[2].fault.lock() = Some(Fault::Status(500));
    world.pool.places_of(&all[0], "ec:4+2".parse().unwrap()).await.unwrap_err();
    world.set(3..4, Some(Fault::Connection));
    assert!(world.pool.silent_node().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn leftovers_are_told_from_shards_or_do_no_harm() {
    let world = world(7, "ec:4+2");
    let receipt = world.pool.put(&segment(1)).await.unwrap();
    let place = receipt.place();
    let profile = place.placement.profile();
    let shards: Vec<_> = place.placement.present().collect();
    let spare =
        world.nodes.iter().find(|node| shards.iter().all(|(_, shard)| shard.node != node.id)).unwrap();
    let memory = |id: NodeId| &world.nodes.iter().find(|node| node.id == id).unwrap().memory;
    let get = async |index: usize| {
        let key = Path::from(place.shard_key(index).unwrap());
        memory(shards[index].1.node).get(&key).await.unwrap().bytes().await.unwrap()
    };
    let first = get(0).await;
    // The first shard is gone from its node, and was made anew beside the second, and on the spare node in the place of the third.
    let key = |index: usize, tag: u32| Path::from(shard_key(&place.key, profile, index, tag));
    memory(shards[0].1.node).delete(&key(0, 0)).await.unwrap();
    memory(shards[1].1.node).put(&key(0, 7), first.clone().into()).await.unwrap();
    memory(spare.id).put(&key(2, 9), get(2).await.into()).await.unwrap();
    // Some lie: another shard under a name, a cut one, one with a name that nobody gives.
    memory(spare.id).put(&key(4, 3), first.clone().into()).await.unwrap();
    memory(shards[0].1.node).put(&key(5, 3), first.slice(..100).into()).await.unwrap();
    memory(spare.id).put(&Path::from(format!("{}.ec4-2.01", place.key)), first.into()).await.unwrap();
    let all = found(&world.pool).await;
    let [of] = &all[..] else { panic!("one segment: {all:?}") };
    assert_eq!(of.count(&place.placement, place.length_bytes), 5);
    let places = world.pool.places_of(of, profile).await.unwrap();
    let [best] = &places[..] else { panic!("one place: {places:?}") };
    // All but one have a node of their own: the first one's only node may be that of the second.
    assert_eq!(present(&best.placement), 5);
    for (node, key, _) in best.objects() {
        memory(node).get(&Path::from(key)).await.unwrap();
    }
    let footer = world.pool.read_footer(best, &domain()).await.unwrap();
    assert_eq!(footer.segment, of.id);
    assert_eq!(world.pool.attest_found(of.id, best.clone()).place(), best);
}

#[tokio::test(start_paused = true)]
async fn shards_that_were_made_since_take_the_places_of_lost_ones() {
    for profile in ["replica:3", "ec:4+2"] {
        let world = world(8, profile);
        let receipt = world.pool.put(&segment(1)).await.unwrap();
        let place = receipt.place();
        let profile = place.placement.profile();
        let shards: Vec<_> = place.placement.present().collect();
        let memory = |id: NodeId| &world.nodes.iter().find(|node| node.id == id).unwrap().memory;
        let spare: Vec<NodeId> = world
            .nodes
            .iter()
            .map(|node| node.id)
            .filter(|id| shards.iter().all(|(_, shard)| shard.node != *id))
            .collect();
        let key = |tag: u32| shard_key(&place.key, profile, 0, tag);
        let (old, node) = (Path::from(key(0)), shards[0].1.node);
        let bytes = memory(node).get(&old).await.unwrap().bytes().await.unwrap();
        let nothing = |_: NodeId, _: &str| false;
        let look = async || found(&world.pool).await.remove(0);
        assert_eq!(world.pool.mended(&look().await, place, &nothing).await.unwrap(), None, "all is there");
        memory(node).delete(&old).await.unwrap();
        assert_eq!(world.pool.mended(&look().await, place, &nothing).await.unwrap(), None, "none was made");
        // One that was cut short is none.
        memory(spare[0]).put(&Path::from(key(5)), bytes.slice(..bytes.len() - 8).into()).await.unwrap();
        assert_eq!(world.pool.mended(&look().await, place, &nothing).await.unwrap(), None);
        memory(spare[1]).put(&Path::from(key(6)), bytes.clone().into()).await.unwrap();
        let to = world.pool.mended(&look().await, place, &nothing).await.unwrap().unwrap();
        let expected = cairn_model::ShardPlace { node: spare[1], tag: 6 };
        assert_eq!(to.placement.present().next().unwrap(), (0, expected));
        assert_eq!(present(&to.placement), profile.shards());
        assert_eq!(look().await.count(&to.placement, to.length_bytes), profile.shards());
        // What will be deleted is no place.
        let doomed = |id: NodeId, of: &str| id == spare[1] && of == key(6);
        assert_eq!(world.pool.mended(&look().await, place, &doomed).await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_takes_long_is_waited_for_while_it_goes_on() {
    let world = world(1, "single");
    for number in 0..200_u8 {
        world.record.put_piece(&piece(&[number]), &mut Copies::new()).await.unwrap();
    }
    // All of it takes many times as long as an attempt may without an answer.
    world.set(0..1, Some(Fault::Slow(policy().get_attempt_timeout / 2)));
    assert_eq!(world.record.listing().await.unwrap().pieces.len(), 200);
    world.set(0..1, Some(Fault::Slow(policy().get_attempt_timeout * 2)));
    world.record.listing().await.unwrap_err();
}
