use super::*;
use crate::testing::TestSite;
use cairn_model::ShardPlace;
use cairn_segment_writer::MARKER_KEY;
use cairn_segment_writer::testing::{Fault, Verb};
use std::collections::BTreeSet;
use std::time::Duration;

/// The node does not say whether it has this object, or any of a segment; it answers otherwise.
fn refuse(site: &TestSite, node: NodeId, key: &str) {
    let key = key.to_owned();
    site.node(node).set_plan(move |request| {
        (request.verb == Verb::Get && request.key.starts_with(&key)).then_some(Fault::Status(503))
    });
}

fn shard(segment: &SegmentPlace, index: usize) -> (ShardPlace, String) {
    let at = segment.place.placement.shards()[index].unwrap();
    (at, segment.place.shard_key(index).unwrap())
}

fn remembered(shared: &Shared) -> BTreeSet<(SegmentId, usize)> {
    shared.heal.unreadable.lock().keys().copied().collect()
}

/// Longer than between two tries.
fn wait(site: &TestSite) {
    site.clock.advance(site.engine.shared().config.heal_interval * (LOOKS_BETWEEN_TRIES + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_read_again_is_remembered_until_it_is_known_what_becomes_of_it() {
    let site = TestSite::new(3, "replica:2").await;
    let segment = site.fill(1).await.remove(0);
    let (shared, which) = (site.engine.shared(), (segment.id, 0));
    let (at, key) = shard(&segment, 0);
    refuse(&site, at.node, &key);
    assert_eq!(examine(shared, &segment, 0).await.unwrap(), Found::Unread);
    wait(&site);
    assert_eq!(examine(shared, &segment, 0).await.unwrap(), Found::Unread);
    assert_eq!(shared.heal.unreadable.lock()[&which].tries, 2);
    // The node says that the shard is not there, and from then on does not say who it is: its place may not be mounted any more.
    let (missing, mut asked) = (key.clone(), 0);
    site.node(at.node).set_plan(move |request| {
        asked += u32::from(request.verb == Verb::Get && request.key == missing);
        (asked >= 2 && request.key == MARKER_KEY).then_some(Fault::Status(503))
    });
    let object = site.node(at.node).take(&key).await;
    assert_eq!(examine(shared, &segment, 0).await.unwrap(), Found::Unread);
    assert_eq!(remembered(shared), [which].into(), "a check may have passed it by for that");
    assert_eq!(shared.heal.unreadable.lock()[&which].tries, 0, "and no sector of its disk is bad");
    site.node(at.node).set_plan(|_| None);
    shared.heal.unreadable.lock().get_mut(&which).unwrap().tries = 2;
    // Somebody else changed the segment: what was looked for may be elsewhere.
    let mut before = segment.clone();
    let mut shards = before.place.placement.shards().to_vec();
    shards[0] = Some(ShardPlace { tag: 7, ..at });
    let profile = before.place.placement.profile();
    before.place.placement = cairn_model::Placement::new(profile, shards).unwrap();
    assert_eq!(examine(shared, &before, 0).await.unwrap(), Found::Changed);
    assert_eq!(shared.heal.unreadable.lock()[&which].tries, 0);
    // And when it is known, it is forgotten.
    site.node(at.node).put(&key, object).await;
    assert_eq!(examine(shared, &segment, 0).await.unwrap(), Found::Whole);
    assert_eq!(remembered(shared), BTreeSet::new());
    remember_unread(shared, which, None, 1);
    site.node(at.node).take(&key).await;
    let (other, other_key) = shard(&segment, 1);
    let copy = site.node(other.node).take(&other_key).await;
    assert_eq!(examine(shared, &segment, 0).await.unwrap(), Found::BeyondRepair(Flaw::Missing));
    assert_eq!(remembered(shared), BTreeSet::new());
    remember_unread(shared, which, None, 1);
    site.node(other.node).put(&other_key, copy).await;
    assert_eq!(examine(shared, &segment, 0).await.unwrap(), Found::Lost(Flaw::Missing));
    assert_eq!(remembered(shared), BTreeSet::new());
    site.engine.abandon().await;
}

/// Shards on two nodes, `failing` of the first and one of the second, which is the last that was tried; and the nodes.
async fn on_two_nodes(
    site: &TestSite,
    failing: usize,
    knows_holders: bool,
) -> (Vec<(SegmentId, usize)>, [NodeId; 2]) {
    let shared = site.engine.shared();
    let segments = site.fill(failing as u64 + 1).await;
    let nodes = [site.nodes[0].id, site.nodes[1].id];
    let mut which = Vec::new();
    for (number, segment) in segments.iter().take(failing + 1).enumerate() {
        let node = nodes[usize::from(number == failing)];
        let (index, _) = segment.place.placement.present().find(|(_, at)| at.node == node).unwrap();
        site.clock.advance(Duration::from_secs(1));
        remember_unread(shared, (segment.id, index), knows_holders.then_some(node), 1);
        which.push((segment.id, index));
    }
    wait(site);
    (which, nodes)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_cannot_read_holds_up_nothing_on_others() {
    for knows_holders in [true, false] {
        let site = TestSite::new(2, "replica:2").await;
        let (which, [failing, _]) = on_two_nodes(&site, 6, knows_holders).await;
        refuse(&site, failing, "segments");
        examine_unreadable(site.engine.shared()).await.unwrap();
        let left: BTreeSet<_> = which[..6].iter().copied().collect();
        assert_eq!(remembered(site.engine.shared()), left, "that of the other node could be read");
        site.engine.abandon().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_a_node_cannot_read_each_has_its_turn() {
    for knows_holders in [true, false] {
        let site = TestSite::new(2, "replica:2").await;
        let (which, [failing, other]) = on_two_nodes(&site, 3, knows_holders).await;
        let shared = site.engine.shared();
        refuse(&site, other, "segments");
        let asked = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
        let (told, bad) = (std::sync::Arc::clone(&asked), shard_keys(shared, &which[..3]).await);
        site.node(failing).set_plan(move |request| {
            let number = bad.iter().position(|key| key == request.key)?;
            let mut asked = told.lock();
            if asked.last() != Some(&number) {
                asked.push(number);
            }
            // No answer that says something of the node.
            Some(Fault::Status(400))
        });
        for _ in 0..3 {
            examine_unreadable(shared).await.unwrap();
        }
        assert_eq!(*asked.lock(), [0, 1, 2], "one of them each time, the longest ago first");
        let holders: Vec<_> =
            which.iter().map(|which| shared.heal.unreadable.lock()[which].holder.unwrap()).collect();
        assert_eq!(holders, [failing, failing, failing, other], "where they are now");
        site.engine.abandon().await;
    }
}

#[test]
fn tries_on_one_node_say_nothing_of_another() {
    let [one, other] = [1, 2].map(|number| NodeId::from_bytes([number; 16]));
    let last = cairn_model::Clock::now(&cairn_model::SystemClock::new());
    let mut seen = Unreadable { holder: None, tries: 2, last };
    let mut tries_after = |holder| {
        seen.is_on(holder);
        (seen.holder, seen.tries)
    };
    assert_eq!(tries_after(Some(one)), (Some(one), 2), "nobody knew where it was");
    assert_eq!(tries_after(None), (Some(one), 2));
    assert_eq!(tries_after(Some(one)), (Some(one), 2));
    assert_eq!(tries_after(Some(other)), (Some(other), 0));
}

async fn shard_keys(shared: &Shared, which: &[(SegmentId, usize)]) -> Vec<String> {
    let mut keys = Vec::new();
    for (id, index) in which {
        let segment = place_of(shared, *id).await.unwrap().unwrap();
        keys.push(segment.place.shard_key(*index).unwrap());
    }
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn where_an_unreadable_shard_is_now_counts() {
    let site = TestSite::new(2, "replica:2").await;
    let (which, [failing, other]) = on_two_nodes(&site, 5, false).await;
    refuse(&site, failing, "segments");
    examine_unreadable(site.engine.shared()).await.unwrap();
    let holders: Vec<_> =
        which[..5].iter().map(|which| site.engine.shared().heal.unreadable.lock()[which].holder).collect();
    assert_eq!(holders, [Some(failing); 5], "not on {other}");
    site.engine.abandon().await;
}
