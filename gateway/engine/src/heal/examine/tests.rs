use super::*;
use crate::testing::TestSite;
use cairn_model::ShardPlace;
use cairn_segment_writer::MARKER_KEY;
use cairn_segment_writer::testing::{Fault, Verb};
use std::collections::BTreeSet;

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
