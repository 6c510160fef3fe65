//! What a pool of many nodes does on good days and bad ones.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use bytes::Bytes;
use cairn_model::{
    ErrorKind, Kinded, Lba, NodeId, ObjectPlace, Placement, Profile, SegmentId, ShardPlace, UploadReceipt,
};
use cairn_segment_writer::testing::{Fault, FaultStore, Request, Verb};
use cairn_segment_writer::{
    BreakerState, ChunkShape, ContainerCipher, ContainerLocation, DataNode, Dedupe, Member, NodeAccess,
    NodeState, NodeUrl, PackConfig, Pool, PoolError, PoolSettings, SealedSegment, ShardState, VolumePacking,
};
use common::*;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Time passes.
#[expect(clippy::disallowed_methods, reason = "tests pause tokio's clock")]
async fn rest(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// How a node behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Well,
    /// Every request is refused by the network.
    Down,
    /// No request is answered.
    Hung,
    /// Every answer takes five seconds.
    Slow,
    /// Every second request is answered with 503.
    Overloaded,
    /// The next request is refused by the network, no other.
    Stumbles,
    Full,
    ReadOnly,
    /// No put is answered.
    HangsOnPuts,
    /// Every body has a flipped bit.
    Flips,
    /// Every body ends early.
    Truncates,
}

struct Node {
    id: NodeId,
    memory: Arc<InMemory>,
    mood: Arc<Mutex<Mood>>,
}

impl Node {
    fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    async fn delete(&self, key: &str) {
        self.memory.delete(&Path::from(key)).await.unwrap();
    }

    async fn read(&self, key: &str) -> Option<Bytes> {
        self.memory.get(&Path::from(key)).await.ok()?.bytes().await.ok()
    }

    async fn write(&self, key: &str, bytes: Vec<u8>) {
        self.memory.put(&Path::from(key), bytes.into()).await.unwrap();
    }

    async fn objects(&self) -> usize {
        use futures::StreamExt;
        self.memory.list(None).count().await
    }
}

struct World {
    nodes: Vec<Node>,
    pool: Pool,
}

fn fault(mood: Mood, request: Request<'_>) -> Option<Fault> {
    let is_put = request.verb == Verb::Put;
    match mood {
        Mood::Well => None,
        Mood::Down | Mood::Stumbles => Some(Fault::Connection),
        Mood::Hung => Some(Fault::Hang),
        Mood::Slow => Some(Fault::Slow(Duration::from_secs(5))),
        Mood::Overloaded => request.number.is_multiple_of(2).then_some(Fault::Status(503)),
        Mood::Full => is_put.then_some(Fault::Status(507)),
        Mood::ReadOnly => is_put.then_some(Fault::Os(30)),
        Mood::HangsOnPuts => is_put.then_some(Fault::Hang),
        Mood::Flips => (!is_put).then_some(Fault::BodyFlips(7)),
        Mood::Truncates => (!is_put).then_some(Fault::BodyEnds(5)),
    }
}

fn id(number: usize) -> NodeId {
    NodeId::from_bytes([u8::try_from(number).unwrap() + 1; 16])
}

fn world(nodes: usize, profile: &str) -> World {
    let ports = seeded_ports(1);
    let nodes: Vec<_> = (0..nodes)
        .map(|number| Node {
            id: id(number),
            memory: Arc::new(InMemory::new()),
            mood: Arc::new(Mutex::new(Mood::Well)),
        })
        .collect();
    let member = |node: &Node| {
        let mood = Arc::clone(&node.mood);
        let memory = Arc::clone(&node.memory) as Arc<dyn ObjectStore>;
        let store = FaultStore::new(memory, move |request| {
            let mut mood = mood.lock();
            let fault = fault(*mood, request);
            if *mood == Mood::Stumbles {
                *mood = Mood::Well;
            }
            fault
        });
        // Patient enough for a node that takes five seconds.
        let attempt = Duration::from_secs(8);
        let policy = cairn_segment_writer::RequestPolicy {
            put_attempt_timeout: attempt,
            get_attempt_timeout: attempt,
            put_give_up: Duration::from_secs(10),
            get_give_up: Duration::from_secs(10),
            ..policy()
        };
        Member::new(DataNode::with_store(
            node.id,
            &format!("mem://{}", node.id),
            Arc::new(store),
            policy,
            ports.clone(),
        ))
    };
    let settings = PoolSettings { profile: profile.parse().unwrap(), ..PoolSettings::default() };
    let pool = Pool::new(nodes.iter().map(member).collect(), settings, ports);
    World { nodes, pool }
}

impl World {
    fn node(&self, id: NodeId) -> &Node {
        self.nodes.iter().find(|node| node.id == id).unwrap()
    }

    fn set(&self, numbers: &[usize], mood: Mood) {
        for number in numbers {
            self.nodes[*number].set(mood);
        }
    }

    /// Every shard that the receipt names is there, each on its own node.
    async fn assert_stored(&self, receipt: &UploadReceipt) {
        let place = receipt.place();
        let mut nodes = Vec::new();
        for (node, key, length) in place.objects() {
            assert!(!nodes.contains(&node), "two on one node");
            nodes.push(node);
            let stored = self.node(node).read(&key).await.expect("a shard that the receipt names is there");
            assert!(stored.len() as u64 >= length);
        }
        assert!(nodes.len() >= place.placement.profile().needed());
    }

    /// Shards that the receipt names, by number.
    fn holders(receipt: &UploadReceipt) -> Vec<(usize, ShardPlace)> {
        receipt.place().placement.present().collect()
    }
}

/// Some 130 KiB of chunks.
fn segment(seed: u64) -> SealedSegment {
    let mut packer = packer(PackConfig::default());
    let shape = ChunkShape::new(8, 8).unwrap();
    packer.volume(volume(1), VolumePacking { dedupe: Dedupe::Off, shape, ..packing() });
    packer.run(Lba::ZERO, &[random(20, seed), text(12, 2), random(10, seed + 1)]);
    finish(packer).segments.remove(0)
}

fn bytes(segment: &SealedSegment) -> Bytes {
    segment.pieces().concat().into()
}

fn part(segment: &SealedSegment, range: &Range<u64>) -> Bytes {
    bytes(segment).slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
}

/// All chunks of the segment, verified.
async fn chunks(pool: &Pool, place: &ObjectPlace, segment: &SealedSegment) -> Result<Vec<Bytes>, PoolError> {
    let container = &segment.containers()[0];
    let location = ContainerLocation { place: place.clone(), offset: container.offset };
    let cipher = ContainerCipher::new(&domain(), container.id);
    let count = u32::try_from(container.directory.len()).unwrap();
    let mut all = Vec::new();
    for chunk in 0..count {
        let read = pool.read_chunks(&location, &container.directory, &cipher, chunk..chunk + 1, None).await?;
        all.extend(read.into_iter().map(|(_, bytes)| bytes));
    }
    Ok(all)
}

/// What the chunks are, from a pool of one good node.
async fn plain(segment: &SealedSegment) -> Vec<Bytes> {
    let world = world(1, "single");
    let receipt = world.pool.put(segment).await.unwrap();
    chunks(&world.pool, receipt.place(), segment).await.unwrap()
}

const PROFILES: [&str; 6] = ["single", "replica:2", "replica:3", "ec:2+1", "ec:4+2", "ec:5+3"];

#[tokio::test(start_paused = true)]
async fn every_profile_stores_and_returns_every_byte() {
    for profile in PROFILES {
        let world = world(9, profile);
        let segment = segment(1);
        let receipt = world.pool.put(&segment).await.unwrap();
        world.assert_stored(&receipt).await;
        let place = receipt.place();
        assert_eq!(place.placement.profile(), profile.parse().unwrap());
        assert_eq!(place.placement.missing(), 0);
        let length = segment.length_bytes();
        let third = length / 3;
        for range in [0..length, 0..1, length - 1..length, third..2 * third, third..third + 1, 63..129] {
            let read = world.pool.get_range(place, range.clone()).await.unwrap();
            assert_eq!(read, part(&segment, &range), "{profile} {range:?}");
        }
        assert_eq!(chunks(&world.pool, place, &segment).await.unwrap(), plain(&segment).await);
        let footer = world.pool.read_footer(place, &domain()).await.unwrap();
        assert_eq!(footer.segment, segment.id());
        assert!(world.pool.take_damaged().is_empty() && world.pool.take_strays().is_empty());
        world.pool.discard(place).await.unwrap();
        for node in &world.nodes {
            assert_eq!(node.objects().await, 0, "{profile}");
        }
        let error = world.pool.get_range(place, 0..10).await.unwrap_err();
        assert!(matches!(error, PoolError::NotFound { .. }), "{profile}: a reader locates it again: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_healthy_read_asks_only_the_nodes_that_hold_the_range() {
    let world = world(6, "ec:4+2");
    let segment = segment(1);
    let receipt = world.pool.put(&segment).await.unwrap();
    let gets = || world.pool.nodes().iter().map(|node| node.health().snapshot().get_requests).sum::<u64>();
    let shard = receipt.place().placement.profile().shard_bytes(segment.length_bytes());
    let _ = world.pool.get_range(receipt.place(), 100..5000).await.unwrap();
    assert_eq!(gets(), 1);
    let _ = world.pool.get_range(receipt.place(), shard - 10..shard + 10).await.unwrap();
    assert_eq!(gets(), 3, "two at a border");
}

#[tokio::test(start_paused = true)]
async fn parity_costs_half_and_hardly_more() {
    let world = world(6, "ec:4+2");
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), VolumePacking { dedupe: Dedupe::Off, ..packing() });
    packer.run(Lba::ZERO, &[random(2000, 1)]);
    let segment = finish(packer).segments.remove(0);
    let _receipt = world.pool.put(&segment).await.unwrap();
    let put: u64 = world.pool.nodes().iter().map(|node| node.health().snapshot().put_bytes).sum();
    assert!(put * 100 <= segment.length_bytes() * 151, "{put} of {}", segment.length_bytes());
}

#[tokio::test(start_paused = true)]
async fn any_two_nodes_may_have_a_bad_day_while_reading() {
    let moods = [Mood::Down, Mood::Hung, Mood::Slow, Mood::Overloaded, Mood::Flips, Mood::Truncates];
    let segment = segment(3);
    let expected = plain(&segment).await;
    for mood in moods {
        for pair in [[0, 1], [2, 5], [3, 4]] {
            for profile in ["ec:4+2", "replica:3"] {
                let world = world(6, profile);
                let receipt = world.pool.put(&segment).await.unwrap();
                let holders = World::holders(&receipt);
                for number in pair {
                    let (_, holder) = holders[number % holders.len()];
                    world.node(holder.node).set(mood);
                }
                for _ in 0..3 {
                    let read = chunks(&world.pool, receipt.place(), &segment).await;
                    assert_eq!(read.unwrap(), expected, "{mood:?} {pair:?} {profile}");
                }
                let footer = world.pool.read_footer(receipt.place(), &domain()).await;
                assert_eq!(footer.unwrap().segment, segment.id(), "{mood:?} {pair:?} {profile}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn with_spares_a_bad_day_of_two_nodes_costs_no_protection() {
    for mood in [Mood::Down, Mood::Hung, Mood::Slow, Mood::Full, Mood::ReadOnly, Mood::Overloaded] {
        let world = world(9, "ec:4+2");
        world.set(&[1, 4], mood);
        for seed in 0..6 {
            let segment = segment(seed);
            let receipt = world.pool.put(&segment).await.unwrap();
            world.assert_stored(&receipt).await;
            assert_eq!(receipt.place().placement.missing(), 0, "{mood:?}");
            let expected = part(&segment, &(0..1000));
            assert_eq!(world.pool.get_range(receipt.place(), 0..1000).await.unwrap(), expected);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_goes_on_without_one_shard_and_waits_without_two() {
    for mood in [Mood::Down, Mood::Hung, Mood::Full, Mood::ReadOnly] {
        let world = world(6, "ec:4+2");
        world.set(&[2], mood);
        for seed in 0..5 {
            let receipt = world.pool.put(&segment(seed)).await.unwrap();
            world.assert_stored(&receipt).await;
            assert_eq!(receipt.place().placement.missing(), 1, "{mood:?}: the queue for repair");
        }
        world.set(&[4], mood);
        let lost = segment(9);
        let error = world.pool.put(&lost).await.unwrap_err();
        assert!(error.retryable(), "{mood:?}: {error}");
        let expected = if mood == Mood::Full { ErrorKind::OutOfSpace } else { ErrorKind::Unavailable };
        assert_eq!(error.kind(), expected, "{mood:?}: {error}");
        // What came to be meanwhile goes, all of it.
        world.set(&[2, 4], Mood::Well);
        let before: usize =
            futures::future::join_all(world.nodes.iter().map(Node::objects)).await.iter().sum();
        world.pool.abandon(&lost).await.unwrap();
        let after: usize =
            futures::future::join_all(world.nodes.iter().map(Node::objects)).await.iter().sum();
        assert!(before > after && after == 25, "{mood:?}: {before} {after}");
        rest(Duration::from_mins(2)).await;
        let receipt = world.pool.put(&segment(9)).await.unwrap();
        assert_eq!(receipt.place().placement.missing(), 0, "{mood:?}: all is well again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_hangs_on_puts_and_answers_reads_is_passed_over_by_puts_until_it_is_well() {
    // With spare nodes and without.
    for (nodes, missing) in [(8, 0), (6, 1)] {
        let world = world(nodes, "ec:4+2");
        let first = world.pool.put(&segment(0)).await.unwrap();
        let (index, holder) = World::holders(&first)[0];
        let shard = first.place().placement.profile().shard_bytes(first.place().length_bytes);
        let own = shard * index as u64..shard * index as u64 + 100;
        let node = world.node(holder.node);
        node.set(Mood::HangsOnPuts);
        let mut took = Vec::new();
        for seed in 1..30 {
            let begun = tokio::time::Instant::now();
            let receipt = world.pool.put(&segment(seed)).await.unwrap();
            took.push(begun.elapsed());
            assert_eq!(receipt.place().placement.missing(), missing);
            for _ in 0..3 {
                let _ = world.pool.get_range(first.place(), own.clone()).await.unwrap();
            }
        }
        let slow = took.iter().filter(|took| **took > Duration::from_millis(100)).count();
        assert!(slow <= 12, "{nodes} nodes: {took:?}");
        assert!(took[20..].iter().all(|took| *took < Duration::from_millis(100)), "{nodes} nodes: {took:?}");
        let gets = world.pool.node(node.id).unwrap().health().snapshot().gets;
        assert_eq!(gets, 87, "it serves reads");
        node.set(Mood::Well);
        rest(Duration::from_mins(2)).await;
        let puts = || world.pool.node(node.id).unwrap().health().snapshot().puts;
        let before = puts();
        for seed in 40..50 {
            let receipt = world.pool.put(&segment(seed)).await.unwrap();
            assert_eq!(receipt.place().placement.missing(), 0);
        }
        assert!(puts() > before, "it is tried again");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_and_not_published_is_abandoned_also_under_another_profile() {
    let world = world(6, "ec:4+2");
    let segment = segment(1);
    let _receipt = world.pool.put(&segment).await.unwrap();
    world.pool.set_profile(Profile::Single);
    world.pool.abandon(&segment).await.unwrap();
    for node in &world.nodes {
        assert_eq!(node.objects().await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn how_much_may_be_missing_is_a_setting() {
    for (profile, spare, down, stored) in [
        ("replica:2", 1, 1, false),
        ("replica:2", 0, 1, true),
        ("replica:3", 1, 1, true),
        ("replica:3", 1, 2, false),
        ("ec:2+1", 1, 1, false),
        ("ec:2+1", 0, 1, true),
        ("ec:4+2", 0, 2, true),
        ("ec:4+2", 2, 1, false),
        ("single", 0, 1, false),
    ] {
        let profile: Profile = profile.parse().unwrap();
        let world = world(profile.shards(), &profile.to_string());
        world.pool.set_settings(PoolSettings { spare_losses: spare, ..world.pool.settings() });
        (0..down).for_each(|number| world.nodes[number].set(Mood::Down));
        let result = world.pool.put(&segment(1)).await;
        assert_eq!(result.is_ok(), stored, "{profile} {spare} {down}: {result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn too_few_nodes_are_named_as_the_reason() {
    let world = world(4, "ec:4+2");
    let error = world.pool.put(&segment(1)).await.unwrap_err();
    assert!(matches!(error, PoolError::TooFewNodes { acknowledged: 4, required: 5, .. }), "{error}");
    assert!(error.to_string().contains("4 nodes take new segments"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn reads_need_no_node_that_is_late() {
    for profile in ["ec:4+2", "replica:2"] {
        let world = world(6, profile);
        let segment = segment(1);
        let receipt = world.pool.put(&segment).await.unwrap();
        world.node(World::holders(&receipt)[0].1.node).set(Mood::Slow);
        for _ in 0..20 {
            let begun = tokio::time::Instant::now();
            let read = world.pool.get_range(receipt.place(), 100..900).await.unwrap();
            assert_eq!(read, part(&segment, &(100..900)));
            assert!(begun.elapsed() < Duration::from_millis(500), "{profile}: {:?}", begun.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_failed_at_once_are_tried_again_while_another_hangs() {
    let segment = segment(1);
    for (profile, stumbling) in [("ec:4+2", &[1, 2][..]), ("ec:4+2", &[1, 5]), ("replica:2", &[1])] {
        // The one that hangs is asked first, or in the place of one that stumbled.
        for hung in [0, 3] {
            let world = world(6, profile);
            let receipt = world.pool.put(&segment).await.unwrap();
            let holders = World::holders(&receipt);
            let node = |number: usize| world.node(holders[number % holders.len()].1.node);
            for number in stumbling {
                node(*number).set(Mood::Stumbles);
            }
            if !stumbling.contains(&(hung % holders.len())) {
                node(hung).set(Mood::Hung);
            }
            let range = 0..segment.length_bytes();
            let begun = tokio::time::Instant::now();
            let read = world.pool.get_range(receipt.place(), range.clone()).await.unwrap();
            assert_eq!(read, part(&segment, &range));
            assert!(begun.elapsed() < Duration::from_secs(1), "{profile} {hung}: {:?}", begun.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_read_goes_elsewhere_once_it_may() {
    let world = world(6, "ec:4+2");
    let segment = segment(1);
    let receipt = world.pool.put(&segment).await.unwrap();
    world.node(World::holders(&receipt)[0].1.node).set(Mood::Hung);
    let hedges = |get_hedges_per_1024| {
        world.pool.set_settings(PoolSettings { get_hedges_per_1024, ..world.pool.settings() });
    };
    hedges(0);
    let begun = tokio::time::Instant::now();
    // More at once than may be sent to other nodes as well.
    let reads = (0..40).map(|_| world.pool.get_range(receipt.place(), 100..900));
    let others = async {
        rest(Duration::from_secs(1)).await;
        hedges(1024);
        for _ in 0..8 {
            let _ = world.pool.get_range(receipt.place(), 100..900).await.unwrap();
        }
    };
    let (reads, ()) = futures::future::join(futures::future::join_all(reads), others).await;
    assert!(reads.iter().all(|read| *read.as_ref().unwrap() == part(&segment, &(100..900))));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_fails_often_is_avoided_then_tried_again() {
    let world = world(6, "ec:4+2");
    let segment = segment(1);
    let receipt = world.pool.put(&segment).await.unwrap();
    let holder = World::holders(&receipt)[0].1.node;
    world.node(holder).set(Mood::Down);
    let health = || world.pool.node(holder).unwrap().health().snapshot();
    for _ in 0..10 {
        let _ = world.pool.get_range(receipt.place(), 0..100).await.unwrap();
    }
    assert_eq!(health().breaker, BreakerState::Open);
    assert!(health().get_requests <= 4, "{}", health().get_requests);
    world.node(holder).set(Mood::Well);
    rest(Duration::from_secs(3)).await;
    for _ in 0..10 {
        let _ = world.pool.get_range(receipt.place(), 0..100).await.unwrap();
    }
    assert_eq!(health().breaker, BreakerState::Closed);
    assert!(health().gets >= 9);
}

#[tokio::test(start_paused = true)]
async fn too_many_silent_nodes_are_an_outage_and_too_many_lost_shards_a_loss() {
    let world = world(6, "ec:4+2");
    let segment = segment(1);
    let receipt = world.pool.put(&segment).await.unwrap();
    let holders = World::holders(&receipt);
    for (_, shard) in &holders[..3] {
        world.node(shard.node).set(Mood::Down);
    }
    let error = world.pool.get_range(receipt.place(), 0..segment.length_bytes()).await.unwrap_err();
    assert!(error.retryable() && error.kind() == ErrorKind::Unavailable, "{error}");
    for (index, shard) in &holders[..2] {
        let node = world.node(shard.node);
        node.set(Mood::Well);
        node.delete(&receipt.place().shard_key(*index).unwrap()).await;
    }
    let error = world.pool.get_range(receipt.place(), 0..segment.length_bytes()).await.unwrap_err();
    assert!(error.retryable() && error.kind() == ErrorKind::Unavailable, "the third may come back: {error}");
    let (index, shard) = holders[2];
    world.node(shard.node).set(Mood::Well);
    let read = world.pool.get_range(receipt.place(), 0..segment.length_bytes()).await.unwrap();
    assert_eq!(read, bytes(&segment));
    world.node(shard.node).delete(&receipt.place().shard_key(index).unwrap()).await;
    let error = world.pool.get_range(receipt.place(), 0..segment.length_bytes()).await.unwrap_err();
    assert!(!error.retryable() && error.kind() == ErrorKind::Corrupt, "{error}");
    assert_eq!(world.pool.take_damaged().len(), 2, "as of the read that went well");
}

#[tokio::test(start_paused = true)]
async fn a_lying_node_is_found_out_and_named() {
    for profile in ["ec:4+2", "replica:3"] {
        let segment = segment(5);
        let expected = plain(&segment).await;
        let world = world(6, profile);
        let receipt = world.pool.put(&segment).await.unwrap();
        // One that is asked first, with rot in what it stores.
        let (index, shard) = World::holders(&receipt)[0];
        let key = receipt.place().shard_key(index).unwrap();
        let mut rotten = world.node(shard.node).read(&key).await.unwrap().to_vec();
        for at in (100..30_000).step_by(1000) {
            rotten[at] ^= 0x10;
        }
        world.node(shard.node).write(&key, rotten).await;
        for _ in 0..4 {
            let read = chunks(&world.pool, receipt.place(), &segment).await.unwrap();
            assert_eq!(read, expected, "{profile}");
            // Of copies any may be asked first.
            for (_, other) in &World::holders(&receipt)[1..] {
                let _ = world.pool.node(other.node).unwrap();
            }
        }
        let damaged = world.pool.take_damaged();
        assert!(damaged.iter().all(|one| (one.index, one.node) == (index, shard.node)), "{damaged:?}");
        if profile == "ec:4+2" {
            assert_eq!(damaged.len(), 1);
        }
    }
}

/// Another segment of the same length under a shard's identity: every checksum is right.
async fn lie(world: &World, place: &ObjectPlace, index: usize) {
    let node = world.node(place.placement.shards()[index].unwrap().node);
    let key = place.shard_key(index).unwrap();
    let mut wrong = node.read(&key).await.unwrap().to_vec();
    let length = usize::try_from(place.placement.profile().shard_bytes(place.length_bytes)).unwrap();
    wrong[..length].iter_mut().for_each(|byte| *byte ^= 0x55);
    cairn_segment_writer::fuzzing::mend_shard(&mut wrong);
    node.write(&key, wrong).await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_was_wrong_from_the_start_is_found_by_trying_others() {
    let segment = segment(5);
    let expected = plain(&segment).await;
    let world = world(6, "ec:4+2");
    let receipt = world.pool.put(&segment).await.unwrap();
    let place = receipt.place();
    let (index, _) = World::holders(&receipt)[1];
    lie(&world, place, index).await;
    assert_eq!(chunks(&world.pool, place, &segment).await.unwrap(), expected);
    let damaged = world.pool.take_damaged();
    assert_eq!(damaged.iter().map(|one| one.index).collect::<Vec<_>>(), [index], "{damaged:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_delays_no_read_that_others_can_serve_with_what_was_found_wrong() {
    let segment = segment(5);
    for profile in ["ec:4+2", "replica:3"] {
        let range = 0..segment.length_bytes();
        let expected = part(&segment, &range);
        for (rotten, hung) in [(0, 1), (1, 0), (2, 5), (5, 2)] {
            let world = world(6, profile);
            let receipt = world.pool.put(&segment).await.unwrap();
            let place = receipt.place();
            let holders = World::holders(&receipt);
            let at = |number: usize| holders[number % holders.len()];
            let key = place.shard_key(at(rotten).0).unwrap();
            let node = world.node(at(rotten).1.node);
            let mut bytes = node.read(&key).await.unwrap().to_vec();
            bytes[200] ^= 1;
            node.write(&key, bytes).await;
            world.node(at(hung).1.node).set(Mood::Hung);
            let begun = tokio::time::Instant::now();
            let check = |bytes: Bytes| (bytes == expected).then_some(bytes);
            let read = world.pool.get_checked(place, range.clone(), check).await.unwrap();
            assert_eq!(read.as_ref(), Some(&expected));
            assert!(begun.elapsed() < Duration::from_secs(1), "{profile} {hung}: {:?}", begun.elapsed());
            if profile == "ec:4+2" {
                let damaged: Vec<_> = world.pool.take_damaged().iter().map(|one| one.index).collect();
                assert_eq!(damaged, [at(rotten).0]);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_lies_is_found_although_another_one_is_silent() {
    let segment = segment(5);
    let expected = part(&segment, &(100..900));
    let world = world(6, "ec:4+2");
    let receipt = world.pool.put(&segment).await.unwrap();
    let place = receipt.place();
    let holders = World::holders(&receipt);
    let (index, shard) = holders[2];
    lie(&world, place, index).await;
    // The one that has the range.
    world.node(holders[0].1.node).set(Mood::Hung);
    let begun = tokio::time::Instant::now();
    let check = |bytes: Bytes| (bytes == expected).then_some(bytes);
    assert_eq!(world.pool.get_checked(place, 100..900, check).await.unwrap().as_ref(), Some(&expected));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let damaged = world.pool.take_damaged();
    assert_eq!(damaged.iter().map(|one| (one.index, one.node)).collect::<Vec<_>>(), [(index, shard.node)]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_not_what_it_was_is_refused_until_it_is() {
    let (site, other_site) = (site(), cairn_model::SiteId::from_bytes([99; 16]));
    let ports = seeded_ports(3);
    let memory = Arc::new(InMemory::new());
    let attach = |memory: &Arc<InMemory>, site| {
        let store = Arc::clone(memory) as Arc<dyn ObjectStore>;
        DataNode::attach_store(store, "mem://first", site, policy(), ports.clone())
    };
    let attached = attach(&memory, site).await.unwrap();
    let moods = Arc::new(Mutex::new(Mood::Down));
    let plan = {
        let moods = Arc::clone(&moods);
        move |request: Request<'_>| {
            let mood = *moods.lock();
            fault(mood, request)
        }
    };
    let store = Arc::new(FaultStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>, plan));
    // It is down when the program starts: that keeps nothing from starting.
    let node =
        DataNode::open_store_lazily(store, "mem://first", site, attached.id(), policy(), ports.clone());
    let pool = Pool::single(node);
    let segment = segment(1);
    assert_eq!(pool.put(&segment).await.unwrap_err().kind(), ErrorKind::Unavailable);
    *moods.lock() = Mood::Well;
    let receipt = pool.put(&segment).await.unwrap();
    assert_eq!(pool.get_range(receipt.place(), 0..10).await.unwrap(), part(&segment, &(0..10)));

    // Wiped: the first miss puts it in doubt, and nothing is stored there from then on.
    let marker = memory.get(&Path::from("cairn-node.json")).await.unwrap().bytes().await.unwrap();
    memory.delete(&Path::from("cairn-node.json")).await.unwrap();
    memory.delete(&Path::from(segment.key())).await.unwrap();
    assert!(pool.get_range(receipt.place(), 0..10).await.is_err());
    let error = pool.put(&segment).await.unwrap_err();
    assert!(error.retryable() && error.to_string().contains("marker"), "{error}");
    assert!(memory.get(&Path::from(segment.key())).await.is_err(), "nothing was put");

    // Another site's.
    attach(&memory, other_site).await.unwrap();
    let error = pool.put(&segment).await.unwrap_err();
    assert!(error.to_string().contains("belongs to site"), "{error}");

    // Itself again.
    memory.put(&Path::from("cairn-node.json"), marker.into()).await.unwrap();
    let _receipt = pool.put(&segment).await.unwrap();
}

#[tokio::test]
async fn a_directory_that_is_not_there_at_the_start_is_used_once_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (root, away) = (folder.path().join("pool"), folder.path().join("away"));
    let access = NodeAccess { policy: policy(), ..NodeAccess::new(NodeUrl::Directory(root.clone())) };
    let ports = cairn_model::Ports::system();
    let attached = DataNode::attach(&access, site(), ports.clone()).await.unwrap();
    std::fs::rename(&root, &away).unwrap();
    let pool = Pool::single(DataNode::open_lazily(&access, site(), attached.id(), ports));
    let segment = segment(1);
    for _ in 0..2 {
        assert!(pool.put(&segment).await.unwrap_err().retryable());
        // What an unmounted file system leaves behind must not be filled.
        let _ = std::fs::create_dir(&root);
    }
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(&away, &root).unwrap();
    let receipt = pool.put(&segment).await.unwrap();
    assert_eq!(pool.get_range(receipt.place(), 0..10).await.unwrap(), part(&segment, &(0..10)));
}

#[tokio::test]
async fn a_directory_that_is_exchanged_for_a_copy_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (root, away) = (folder.path().join("pool"), folder.path().join("away"));
    let access = NodeAccess { policy: policy(), ..NodeAccess::new(NodeUrl::Directory(root.clone())) };
    let ports = cairn_model::Ports::system();
    let attached = DataNode::attach(&access, site(), ports.clone()).await.unwrap();
    let pool = Pool::single(DataNode::open_lazily(&access, site(), attached.id(), ports));
    let first = segment(1);
    let receipt = pool.put(&first).await.unwrap();
    std::fs::rename(&root, &away).unwrap();
    std::fs::create_dir(&root).unwrap();
    std::fs::copy(away.join("cairn-node.json"), root.join("cairn-node.json")).unwrap();
    // What it does not have is missing for good: the marker is the right one.
    let read = async {
        for _ in 0..20 {
            match pool.get_range(receipt.place(), 0..10).await {
                Err(error) if error.retryable() => {}
                read => return read,
            }
        }
        panic!("it is not opened anew");
    };
    assert!(matches!(read.await, Err(PoolError::NotFound { .. })));
    let second = segment(2);
    let receipt = pool.put(&second).await.unwrap();
    assert_eq!(pool.get_range(receipt.place(), 0..10).await.unwrap(), part(&second, &(0..10)));
    assert!(root.join(second.key()).exists() && !away.join(second.key()).exists());
}

#[tokio::test(start_paused = true)]
async fn nodes_and_profile_are_exchanged_while_it_serves() {
    let world = world(6, "single");
    let segments: Vec<_> = (0..3).map(segment).collect();
    let first = world.pool.put(&segments[0]).await.unwrap();
    world.pool.set_profile("ec:2+1".parse().unwrap());
    let second = world.pool.put(&segments[1]).await.unwrap();
    let mut members = world.pool.members();
    members[0].state = NodeState::Draining;
    members[1].state = NodeState::Failed;
    world.pool.set_nodes(members);
    for seed in 10..20 {
        let receipt = world.pool.put(&segment(seed)).await.unwrap();
        assert_eq!(receipt.place().placement.missing(), 0);
        let nodes: Vec<_> = World::holders(&receipt).iter().map(|(_, shard)| shard.node).collect();
        assert!(!nodes.contains(&id(0)) && !nodes.contains(&id(1)), "{nodes:?}");
    }
    for (receipt, segment) in [(&first, &segments[0]), (&second, &segments[1])] {
        let length = segment.length_bytes();
        assert_eq!(world.pool.get_range(receipt.place(), 0..length).await.unwrap(), bytes(segment));
    }
}

#[tokio::test(start_paused = true)]
async fn domains_keep_shards_apart() {
    let world = world(8, "ec:4+2");
    let mut members = world.pool.members();
    for (number, member) in members.iter_mut().enumerate() {
        member.domain = Some(format!("rack{}", number % 6).into());
    }
    world.pool.set_nodes(members.clone());
    world.set(&[3], Mood::Down);
    for seed in 0..10 {
        let receipt = world.pool.put(&segment(seed)).await.unwrap();
        let domain = |node: NodeId| members.iter().position(|member| member.node.id() == node).unwrap() % 6;
        let mut used: Vec<_> = World::holders(&receipt).iter().map(|(_, shard)| domain(shard.node)).collect();
        used.sort_unstable();
        used.dedup();
        // The rack of the node that is down has no other: what is left is five racks.
        assert!(used.len() >= 5, "{used:?}");
    }
}

fn no_domains(_: cairn_model::crypto::KeyId) -> Option<cairn_segment_writer::Domain> {
    None
}

fn the_domain(key: cairn_model::crypto::KeyId) -> Option<cairn_segment_writer::Domain> {
    Some(domain()).filter(|domain| domain.key_id() == key)
}

/// The place with one shard somewhere else.
fn moved(place: &ObjectPlace, index: usize, to: ShardPlace) -> ObjectPlace {
    let mut shards = place.placement.shards().to_vec();
    shards[index] = Some(to);
    ObjectPlace { placement: Placement::new(place.placement.profile(), shards).unwrap(), ..place.clone() }
}

#[tokio::test(start_paused = true)]
async fn any_shard_is_made_anew_as_it_was() {
    for profile in ["ec:4+2", "ec:2+1", "replica:2"] {
        let world = world(9, profile);
        let segment = segment(1);
        let receipt = world.pool.put(&segment).await.unwrap();
        let place = receipt.place();
        let spare = world
            .nodes
            .iter()
            .find(|node| World::holders(&receipt).iter().all(|(_, shard)| shard.node != node.id));
        let spare = spare.unwrap();
        for (index, shard) in World::holders(&receipt) {
            let key = place.shard_key(index).unwrap();
            let original = world.node(shard.node).read(&key).await.unwrap();
            let mut shards = place.placement.shards().to_vec();
            shards[index] = None;
            let placement = Placement::new(place.placement.profile(), shards).unwrap();
            let lost = ObjectPlace { placement, ..place.clone() };
            // On a node that is silent, and nowhere.
            for (from, mood, tag) in [(place, Mood::Down, 77), (&lost, Mood::Well, 97)] {
                world.node(shard.node).set(mood);
                let tag = tag + u32::try_from(index).unwrap();
                world
                    .pool
                    .rebuild_shard(from, segment.id(), index, spare.id, tag, &the_domain)
                    .await
                    .unwrap();
                let place = moved(place, index, ShardPlace { node: spare.id, tag });
                let made = spare.read(&place.shard_key(index).unwrap()).await.unwrap();
                assert_eq!(made, original, "{profile} {index}");
                let state = world.pool.verify_shard(&place, index, &no_domains).await.unwrap();
                assert_eq!(state, ShardState::Whole);
            }
            world.node(shard.node).set(Mood::Well);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_segment_goes_from_any_profile_to_any_other() {
    let world = world(9, "single");
    let segment = segment(1);
    let receipt = world.pool.put(&segment).await.unwrap();
    let mut place = receipt.place().clone();
    for (tag, profile) in (1..).zip(["ec:4+2", "replica:3", "ec:2+1", "ec:5+3", "single", "replica:2"]) {
        let profile: Profile = profile.parse().unwrap();
        let nodes: Vec<_> = world.nodes[..profile.shards()].iter().map(|node| node.id).collect();
        let next = world.pool.convert(&place, segment.id(), profile, &nodes, tag, &the_domain).await.unwrap();
        assert_eq!(next.placement.profile(), profile);
        world.pool.discard(&place).await.unwrap();
        place = next;
        let read = world.pool.get_range(&place, 0..segment.length_bytes()).await.unwrap();
        assert_eq!(read, bytes(&segment), "{profile}");
        for index in 0..profile.shards() {
            let state = world.pool.verify_shard(&place, index, &the_domain).await.unwrap();
            assert_eq!(state, ShardState::Whole, "{profile}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_at_a_shard_finds_any_damage() {
    for (profile, domains) in
        [("ec:4+2", &no_domains as cairn_segment_writer::Domains<'_>), ("replica:2", &the_domain)]
    {
        let world = world(6, profile);
        let segment = segment(1);
        let receipt = world.pool.put(&segment).await.unwrap();
        let place = receipt.place();
        let (index, shard) = World::holders(&receipt)[0];
        let key = place.shard_key(index).unwrap();
        let node = world.node(shard.node);
        let whole = node.read(&key).await.unwrap();
        for at in (0..whole.len()).step_by(997).chain([whole.len() - 1]) {
            let mut damaged = whole.to_vec();
            damaged[at] ^= 4;
            node.write(&key, damaged).await;
            let state = world.pool.verify_shard(place, index, domains).await.unwrap();
            assert!(matches!(state, ShardState::Damaged(_)), "{profile} byte {at}: {state:?}");
        }
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            node.write(&key, whole[..length].to_vec()).await;
            let state = world.pool.verify_shard(place, index, domains).await;
            assert!(matches!(state, Ok(ShardState::Damaged(_))), "{profile} {length}: {state:?}");
        }
        node.delete(&key).await;
        assert_eq!(world.pool.verify_shard(place, index, domains).await.unwrap(), ShardState::Missing);
        node.set(Mood::Down);
        assert!(world.pool.verify_shard(place, index, domains).await.unwrap_err().retryable());
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_lies_goes_into_no_other_and_is_made_anew() {
    let segment = segment(1);
    // Without the domain it takes one more that agrees.
    for (profile, domains) in
        [("ec:4+3", &no_domains as cairn_segment_writer::Domains<'_>), ("ec:4+2", &the_domain)]
    {
        for (liar, made) in [(1, 0), (1, 5), (3, 1), (4, 0), (5, 4)] {
            let world = world(9, profile);
            let receipt = world.pool.put(&segment).await.unwrap();
            let place = receipt.place();
            let holders = World::holders(&receipt);
            let mut spares =
                world.nodes.iter().filter(|node| holders.iter().all(|(_, shard)| shard.node != node.id));
            let (first, second) = (spares.next().unwrap(), spares.next().unwrap());
            let original = |index: usize| {
                let node = world.node(holders[index].1.node);
                let key = place.shard_key(index).unwrap();
                async move { node.read(&key).await.unwrap() }
            };
            let (lost, honest) = (original(made).await, original(liar).await);
            lie(&world, place, liar).await;
            world.node(holders[made].1.node).delete(&place.shard_key(made).unwrap()).await;
            let stored = |node: NodeId, index: usize, tag: u32| {
                let place = moved(place, index, ShardPlace { node, tag });
                let key = place.shard_key(index).unwrap();
                let node = world.node(node);
                async move { node.read(&key).await.unwrap() }
            };
            world.pool.rebuild_shard(place, segment.id(), made, first.id, 7, domains).await.unwrap();
            assert_eq!(stored(first.id, made, 7).await, lost, "shard {made} of {liar}, which lies");
            // Whoever was asked may not have been the one that lies: a segment read with distrust asks all.
            let range = 0..segment.length_bytes();
            world.nodes.iter().for_each(|node| node.set(Mood::Well));
            let place = moved(place, made, ShardPlace { node: first.id, tag: 7 });
            world.node(holders[(liar + 1) % 4].1.node).set(Mood::Down);
            let expected = bytes(&segment);
            let check = |bytes: Bytes| (bytes == expected).then_some(());
            assert!(world.pool.get_checked(&place, range, check).await.unwrap().is_some());
            world.node(holders[(liar + 1) % 4].1.node).set(Mood::Well);
            let damaged = world.pool.take_damaged();
            assert!(damaged.iter().any(|one| one.index == liar), "{liar} {made}: {damaged:?}");
            let state = world.pool.verify_shard(&place, liar, domains).await.unwrap();
            assert!(matches!(state, ShardState::Damaged(_)), "{state:?}");
            world.pool.rebuild_shard(&place, segment.id(), liar, second.id, 8, domains).await.unwrap();
            assert_eq!(stored(second.id, liar, 8).await, honest, "the one that lied, {liar}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_of_shards_that_contradict_each_other_when_nobody_can_tell_who_lies() {
    let world = world(7, "ec:4+2");
    let segment = segment(1);
    let receipt = world.pool.put(&segment).await.unwrap();
    let place = receipt.place();
    let holders = World::holders(&receipt);
    let spare = world.nodes.iter().find(|node| holders.iter().all(|(_, shard)| shard.node != node.id));
    let spare = spare.unwrap();
    lie(&world, place, 1).await;
    world.node(holders[0].1.node).delete(&place.shard_key(0).unwrap()).await;
    let rebuilt = world.pool.rebuild_shard(place, segment.id(), 0, spare.id, 7, &no_domains).await;
    assert!(matches!(rebuilt, Err(PoolError::Corrupt { .. })), "{rebuilt:?}");
    assert_eq!(spare.objects().await, 0);
    world.pool.rebuild_shard(place, segment.id(), 0, spare.id, 7, &the_domain).await.unwrap();
    assert_eq!(spare.objects().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_flipped_version_is_damage_that_another_copy_makes_good() {
    let segment = segment(1);
    for profile in ["replica:2", "ec:4+2"] {
        let world = world(6, profile);
        let receipt = world.pool.put(&segment).await.unwrap();
        let place = receipt.place();
        for (index, shard) in World::holders(&receipt) {
            let node = world.node(shard.node);
            let key = place.shard_key(index).unwrap();
            let whole = node.read(&key).await.unwrap();
            let mut damaged = whole.to_vec();
            // The version in the segment's header: of `ec`, the first shard has it.
            damaged[8] ^= 0x40;
            node.write(&key, damaged).await;
            let footer = world.pool.read_footer(place, &domain()).await.unwrap();
            assert_eq!(footer.segment, segment.id());
            let state = world.pool.verify_shard(place, index, &the_domain).await.unwrap();
            assert!(matches!(state, ShardState::Damaged(_)), "{profile} {index}: {state:?}");
            node.write(&key, whole.to_vec()).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_of_damaged_shards() {
    let world = world(7, "ec:4+2");
    let segment = segment(1);
    let receipt = world.pool.put(&segment).await.unwrap();
    let place = receipt.place();
    for (index, shard) in &World::holders(&receipt)[..3] {
        let key = place.shard_key(*index).unwrap();
        let mut damaged = world.node(shard.node).read(&key).await.unwrap().to_vec();
        damaged[100] ^= 1;
        world.node(shard.node).write(&key, damaged).await;
    }
    let spare = world
        .nodes
        .iter()
        .find(|node| World::holders(&receipt).iter().all(|(_, shard)| shard.node != node.id));
    let spare = spare.unwrap();
    let rebuilt = world.pool.rebuild_shard(place, segment.id(), 0, spare.id, 7, &no_domains).await;
    assert!(matches!(rebuilt, Err(PoolError::Corrupt { .. })), "{rebuilt:?}");
    assert_eq!(spare.objects().await, 0);
    let converted =
        world.pool.convert(place, segment.id(), Profile::Single, &[spare.id], 8, &no_domains).await;
    assert!(matches!(converted, Err(PoolError::Corrupt { .. })), "{converted:?}");
    assert_eq!(spare.objects().await, 0);
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(future)
}

/// What becomes of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Gone,
    Silent,
    Late,
    Rotten,
}

fn fates() -> impl Strategy<Value = Fate> {
    prop_oneof![Just(Fate::Gone), Just(Fate::Silent), Just(Fate::Late), Just(Fate::Rotten)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_range_is_right_whatever_becomes_of_as_many_shards_as_may_be_lost(
        profile in prop::sample::select(&PROFILES[1..]),
        fates in prop::collection::vec(fates(), 3),
        order in Just((0usize..8).collect::<Vec<_>>()).prop_shuffle(),
        (from, to) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        seed in 0u64..1000,
    ) {
        block_on(async {
            let profile: Profile = profile.parse().unwrap();
            let world = world(9, &profile.to_string());
            let segment = segment(seed);
            let receipt = world.pool.put(&segment).await.unwrap();
            let place = receipt.place();
            let mut rotten = false;
            let struck = order.iter().filter(|index| **index < profile.shards()).take(profile.tolerates());
            for (index, fate) in struck.zip(&fates) {
                let node = world.node(place.placement.shards()[*index].unwrap().node);
                let key = place.shard_key(*index).unwrap();
                match fate {
                    Fate::Gone => node.delete(&key).await,
                    Fate::Silent => node.set(Mood::Hung),
                    Fate::Late => node.set(Mood::Slow),
                    Fate::Rotten => {
                        rotten = true;
                        let mut bytes = node.read(&key).await.unwrap().to_vec();
                        bytes.iter_mut().step_by(500).for_each(|byte| *byte ^= 1);
                        node.write(&key, bytes).await;
                    }
                }
            }
            let length = usize::try_from(segment.length_bytes()).unwrap();
            let (from, to) = (from.index(length) as u64, to.index(length) as u64);
            let range = from.min(to)..from.max(to) + 1;
            let expected = part(&segment, &range);
            if !rotten {
                let read = world.pool.get_range(place, range.clone()).await.unwrap();
                assert_eq!(read, expected);
            }
            let checked = world.pool.get_checked(place, range, |bytes| (bytes == expected).then_some(bytes)).await;
            assert_eq!(checked.unwrap(), Some(expected));
        });
    }

    #[test]
    fn a_put_ends_with_all_that_its_receipt_names_or_an_error(
        profile in prop::sample::select(&PROFILES[..]),
        extra in 0usize..3,
        moods in prop::collection::vec(
            prop_oneof![
                4 => Just(Mood::Well),
                1 => Just(Mood::Down),
                1 => Just(Mood::Hung),
                1 => Just(Mood::Slow),
                1 => Just(Mood::Overloaded),
                1 => Just(Mood::Full),
                1 => Just(Mood::ReadOnly),
            ],
            11,
        ),
        spare in 0usize..3,
        seed in 0u64..1000,
    ) {
        block_on(async {
            let profile: Profile = profile.parse().unwrap();
            let world = world(profile.shards() + extra, &profile.to_string());
            world.pool.set_settings(PoolSettings { spare_losses: spare, ..world.pool.settings() });
            for (node, mood) in world.nodes.iter().zip(&moods) {
                node.set(*mood);
            }
            let takes = |node: &&Node| !matches!(*node.mood.lock(), Mood::Down | Mood::Hung | Mood::Full | Mood::ReadOnly);
            let able = world.nodes.iter().filter(takes).count();
            let segment = segment(seed);
            let required = profile.shards() - (profile.tolerates() - spare.min(profile.tolerates()));
            match world.pool.put(&segment).await {
                Ok(receipt) => {
                    world.assert_stored(&receipt).await;
                    assert!(receipt.place().placement.present().count() >= required);
                    world.nodes.iter().for_each(|node| node.set(Mood::Well));
                    let read = world.pool.get_range(receipt.place(), 0..segment.length_bytes()).await.unwrap();
                    assert_eq!(read, bytes(&segment));
                    // What else is there is known, and nothing of it is named.
                    let strays = world.pool.take_strays();
                    for stray in &strays {
                        assert!(!receipt.place().objects().any(|(node, key, _)| (node, &key) == (stray.node, &stray.key)));
                        world.pool.delete(stray.node, &stray.key).await.unwrap();
                    }
                    let objects: usize = futures::future::join_all(world.nodes.iter().map(Node::objects)).await.iter().sum();
                    assert_eq!(objects, receipt.place().placement.present().count());
                }
                Err(error) => {
                    assert!(error.retryable(), "{error}");
                    assert!(able < profile.shards(), "{able} could have taken it: {error}");
                    world.nodes.iter().for_each(|node| node.set(Mood::Well));
                    world.pool.abandon(&segment).await.unwrap();
                    let objects: usize = futures::future::join_all(world.nodes.iter().map(Node::objects)).await.iter().sum();
                    assert_eq!(objects, 0, "abandoned");
                }
            }
        });
    }
}

#[test]
fn requests_can_be_made_from_any_thread() {
    fn assert_send<T: Send>(_: &T) {}
    let world = world(6, "ec:4+2");
    let segment = segment(1);
    let receipt = block_on(world.pool.put(&segment)).unwrap();
    let place = receipt.place();
    let id: SegmentId = segment.id();
    assert_send(&world.pool.put(&segment));
    assert_send(&world.pool.get_range(place, 0..1));
    assert_send(&world.pool.get_checked(place, 0..1, Some));
    assert_send(&chunks(&world.pool, place, &segment));
    assert_send(&world.pool.read_footer(place, &domain()));
    assert_send(&world.pool.verify_shard(place, 0, &no_domains));
    assert_send(&world.pool.rebuild_shard(
        place,
        id,
        0,
        place.placement.shards()[0].unwrap().node,
        1,
        &no_domains,
    ));
    assert_send(&world.pool.convert(place, id, Profile::Single, &[], 1, &no_domains));
    assert_send(&world.pool.abandon(&segment));
}
