use super::*;
use crate::testing::TestSite;
use cairn_model::SegmentId;

fn made_at(unix_millis: u64) -> SegmentId {
    let mut id = [7; 16];
    id[..6].copy_from_slice(&unix_millis.to_be_bytes()[2..]);
    SegmentId::from_bytes(id)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_newest_checkpoint_may_not_have_was_on_its_way_or_being_made() {
    let site = TestSite::new(1, "single").await;
    let (shared, minute) = (site.engine.shared(), 60_000);
    let now = || shared.ports.clock.wall().unix_millis();
    assert_eq!(newest_covers(shared).await.unwrap(), None, "there is none");
    let before = now();
    checkpoint(shared).await.unwrap();
    let covers = newest_covers(shared).await.unwrap().unwrap();
    assert!((before - 10 * minute..=now() - 10 * minute).contains(&covers), "{covers}");
    // However long ago it was made.
    let old = before - 300 * minute;
    let on_its_way = shared.in_flight.enter(made_at(old));
    checkpoint(shared).await.unwrap();
    assert_eq!(newest_covers(shared).await.unwrap(), Some(old - 10 * minute));
    drop(on_its_way);
    assert_eq!(newest_covers(shared).await.unwrap(), Some(old - 10 * minute), "it was committed since");
    let before = now();
    checkpoint(shared).await.unwrap();
    let covers = newest_covers(shared).await.unwrap().unwrap();
    assert!(covers >= before - 10 * minute, "{covers}");
    // Of one of an earlier run nobody knows what was on its way.
    let (taken, _) = shared.record.covers.lock().take().unwrap();
    let taken_at = store(shared).unwrap().read_manifest(taken).await.unwrap().taken_at.unix_millis();
    let day = Some(taken_at - 24 * 60 * minute);
    assert_eq!(newest_covers(shared).await.unwrap(), day);
    // Nor is what is known of another one known of it.
    let other = ManifestId { number: taken.number + 1, ..taken };
    *shared.record.covers.lock() = Some((other, before));
    assert_eq!(newest_covers(shared).await.unwrap(), day);
    site.engine.abandon().await;
}
