//! What the pool does when its store misbehaves.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use bytes::Bytes;
use cairn_model::{ErrorKind, Kinded, Lba};
use cairn_segment_writer::testing::{Fault, FaultStore, Verb};
use cairn_segment_writer::{
    ChunkShape, ContainerCipher, ContainerLocation, Dedupe, PackConfig, Pool, PoolError, SealedSegment,
    VolumePacking,
};
use common::*;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn segment() -> SealedSegment {
    let mut packer = packer(PackConfig::default());
    let shape = ChunkShape::new(8, 8).unwrap();
    packer.volume(volume(1), VolumePacking { dedupe: Dedupe::Off, shape, ..packing() });
    packer.run(Lba::ZERO, &[text(20, 1), random(12, 2)]);
    finish(packer).segments.remove(0)
}

async fn stored(store: &Arc<InMemory>, segment: &SealedSegment) -> Option<Bytes> {
    store.get(&Path::from(segment.key())).await.ok()?.bytes().await.ok()
}

fn bytes(segment: &SealedSegment) -> Bytes {
    segment.pieces().concat().into()
}

/// A pool whose first requests fail like this, and the store below it.
fn failing_pool(faults: &[Fault]) -> (Pool, Arc<InMemory>) {
    let memory = Arc::new(InMemory::new());
    let store = FaultStore::script(Arc::clone(&memory) as Arc<dyn ObjectStore>, faults.iter().copied());
    (store_pool(Arc::new(store)), memory)
}

#[tokio::test(start_paused = true)]
async fn a_put_rides_out_what_passes_by_itself() {
    for fault in [
        Fault::Status(408),
        Fault::Status(429),
        Fault::Status(500),
        Fault::Status(502),
        Fault::Status(503),
        Fault::Status(504),
        Fault::Connection,
        Fault::Hang,
        Fault::ReplyLost,
        Fault::ReplyHangs,
    ] {
        let segment = segment();
        let (pool, store) = failing_pool(&[fault, fault]);
        let receipt = pool.put(&segment).await.unwrap();
        assert_eq!((receipt.segment(), receipt.key()), (segment.id(), segment.key()), "{fault:?}");
        assert_eq!(stored(&store, &segment).await.unwrap(), bytes(&segment), "{fault:?}");
        let health = pool.nodes()[0].health().snapshot();
        assert_eq!(
            (health.put_requests, health.puts, health.retries, health.errors),
            (3, 1, 2, 2),
            "{fault:?}"
        );
        assert_eq!(health.put_bytes, segment.length_bytes());
        assert!(!health.failing && health.last_error.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_that_cannot_succeed_fails_at_once_and_says_why() {
    let cases: [(Fault, ErrorKind, &str); 8] = [
        (Fault::Status(401), ErrorKind::Unavailable, "refuses access"),
        (Fault::Status(403), ErrorKind::Unavailable, "refuses access"),
        (Fault::Status(404), ErrorKind::Unavailable, "does not exist"),
        (Fault::Status(507), ErrorKind::OutOfSpace, "is full"),
        (Fault::Os(28), ErrorKind::OutOfSpace, "is full (put segments/"),
        (Fault::Os(122), ErrorKind::OutOfSpace, "is full"),
        (Fault::Os(30), ErrorKind::ReadOnly, "takes no writes"),
        (Fault::Os(13), ErrorKind::Unavailable, "refuses access"),
    ];
    for (fault, kind, text) in cases {
        let segment = segment();
        let (pool, store) = failing_pool(&[fault]);
        let error = pool.put(&segment).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{fault:?}");
        assert!(
            error.to_string().contains(text) && error.to_string().contains("mem://node"),
            "{fault:?}: {error}"
        );
        assert!(error.retryable(), "{fault:?}: the operator can mend it, then the same segment goes");
        assert!(stored(&store, &segment).await.is_none());
        assert!(pool.nodes()[0].health().snapshot().failing);
        let receipt = pool.put(&segment).await.unwrap();
        assert_eq!(receipt.segment(), segment.id());
        assert!(!pool.nodes()[0].health().snapshot().failing);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_the_store_rejects_is_not_repeated() {
    let (pool, _) = failing_pool(&[Fault::Status(400)]);
    let error = pool.put(&segment()).await.unwrap_err();
    assert!(matches!(error, PoolError::Rejected { .. }) && !error.retryable(), "{error}");
    assert_eq!(pool.nodes()[0].health().snapshot().put_requests, 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_down_is_given_up_in_time_and_serves_again_when_back() {
    let memory = Arc::new(InMemory::new());
    let down = Arc::new(AtomicBool::new(true));
    let plan = {
        let down = Arc::clone(&down);
        move |_: cairn_segment_writer::testing::Request<'_>| {
            down.load(Ordering::Relaxed).then_some(Fault::Connection)
        }
    };
    let pool = store_pool(Arc::new(FaultStore::new(memory, plan)));
    let segment = segment();
    let begun = tokio::time::Instant::now();
    let error = pool.put(&segment).await.unwrap_err();
    assert!(begun.elapsed() <= policy().put_give_up, "{:?}", begun.elapsed());
    assert!(matches!(error, PoolError::Unavailable { .. }) && error.retryable(), "{error}");
    let tried = pool.nodes()[0].health().snapshot().put_requests;
    assert!((5..200).contains(&tried), "{tried} attempts");
    down.store(false, Ordering::Relaxed);
    let _receipt = pool.put(&segment).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_endless_hang_ends_in_an_error() {
    let memory = Arc::new(InMemory::new());
    let pool = store_pool(Arc::new(FaultStore::new(memory, |_| Some(Fault::Hang))));
    let error = pool.put(&segment()).await.unwrap_err();
    assert!(error.to_string().contains("no answer within 0.5 s"), "{error}");
    let error = pool.get_range(&place_of(&pool, "some", 10), 0..10).await.unwrap_err();
    assert!(matches!(error, PoolError::Unavailable { .. }), "{error}");
}

/// Stores a segment, then reads all its chunks through a store with faults.
async fn read_all(faults: Vec<Fault>) -> (Result<Vec<Bytes>, PoolError>, Pool, SealedSegment) {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let segment = segment();
    let _receipt = store_pool(Arc::clone(&memory)).put(&segment).await.unwrap();
    let pool = store_pool(Arc::new(FaultStore::script(memory, faults)));
    let read = read_chunks(&pool, &segment).await;
    (read, pool, segment)
}

async fn read_chunks(pool: &Pool, segment: &SealedSegment) -> Result<Vec<Bytes>, PoolError> {
    let container = &segment.containers()[0];
    let location = ContainerLocation {
        place: place_of(pool, segment.key(), segment.length_bytes()),
        offset: container.offset,
    };
    let cipher = ContainerCipher::new(&domain(), container.id);
    let count = u32::try_from(container.directory.len()).unwrap();
    let chunks = pool.read_chunks(&location, &container.directory, &cipher, 0..count, None).await?;
    Ok(chunks.into_iter().map(|(_, bytes)| bytes).collect())
}

#[tokio::test(start_paused = true)]
async fn a_read_rides_out_what_passes_by_itself() {
    let (expected, ..) = read_all(vec![]).await;
    let expected = expected.unwrap();
    assert_eq!(expected.concat(), [text(20, 1), random(12, 2)].concat());
    for fault in [
        Fault::Status(429),
        Fault::Status(500),
        Fault::Status(503),
        Fault::Connection,
        Fault::Hang,
        Fault::ReplyLost,
        Fault::BodyBreaks(0),
        Fault::BodyBreaks(1000),
        Fault::BodyEnds(0),
        Fault::BodyEnds(1000),
    ] {
        let (read, pool, _) = read_all(vec![fault, fault]).await;
        assert_eq!(read.unwrap(), expected, "{fault:?}");
        assert_eq!(pool.nodes()[0].health().snapshot().retries, 2, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_chunk_damaged_on_the_way_is_fetched_again() {
    let (expected, ..) = read_all(vec![]).await;
    for byte in [0, 1000, 30_000] {
        let (read, pool, _) = read_all(vec![Fault::BodyFlips(byte)]).await;
        assert_eq!(read.unwrap(), *expected.as_ref().unwrap());
        let health = pool.nodes()[0].health().snapshot();
        assert_eq!((health.get_requests, health.damaged_chunks), (2, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_chunk_damaged_in_the_store_is_an_error_that_names_it() {
    let (read, _, segment) = read_all(vec![Fault::BodyFlips(0), Fault::BodyFlips(0)]).await;
    let error = read.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let text = error.to_string();
    let container = segment.containers()[0].id;
    assert!(
        text.contains(segment.key()) && text.contains(&format!("chunk 0 of container {container}")),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_object_is_an_error_and_never_zeros() {
    let pool = store_pool(Arc::new(InMemory::new()));
    let error = read_chunks(&pool, &segment()).await.unwrap_err();
    assert!(matches!(error, PoolError::NotFound { .. }) && !error.retryable(), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "a guest must see an I/O error, not a missing file");
    assert_eq!(pool.nodes()[0].health().snapshot().get_requests, 1);
}

#[tokio::test(start_paused = true)]
async fn an_object_of_any_shorter_length_is_refused() {
    let memory = Arc::new(InMemory::new());
    let pool = store_pool(Arc::clone(&memory) as Arc<dyn ObjectStore>);
    let segment = segment();
    let whole = bytes(&segment);
    let container_end =
        usize::try_from(segment.containers()[0].offset + segment.containers()[0].length_bytes()).unwrap();
    for length in (0..whole.len()).step_by(97).chain(whole.len() - 40..whole.len()) {
        memory.put(&Path::from(segment.key()), whole.slice(..length).into()).await.unwrap();
        let footer = pool.nodes()[0].read_footer(segment.key(), &domain()).await;
        assert!(matches!(footer, Err(PoolError::Corrupt { .. })), "{length}: {footer:?}");
        let read = read_chunks(&pool, &segment).await;
        if length < container_end {
            assert!(matches!(read, Err(PoolError::Corrupt { .. })), "{length}: {read:?}");
        } else {
            assert!(read.is_ok());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reads_outside_a_container_are_refused() {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let pool = store_pool(memory);
    let segment = segment();
    let _receipt = pool.put(&segment).await.unwrap();
    let container = &segment.containers()[0];
    let location = ContainerLocation {
        place: place_of(&pool, segment.key(), segment.length_bytes()),
        offset: container.offset,
    };
    let cipher = ContainerCipher::new(&domain(), container.id);
    let count = u32::try_from(container.directory.len()).unwrap();
    for range in [0..0, count..count + 1, 0..count + 1, 0..u32::MAX] {
        assert!(pool.read_chunks(&location, &container.directory, &cipher, range, None).await.is_err());
    }
    let beyond = ContainerLocation { offset: u64::MAX - 5, ..location };
    assert!(pool.read_chunks(&beyond, &container.directory, &cipher, 0..1, None).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_single_chunk_is_read_with_its_own_bytes_only() {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let segment = segment();
    let _receipt = store_pool(Arc::clone(&memory)).put(&segment).await.unwrap();
    let pool = store_pool(memory);
    let container = &segment.containers()[0];
    let location = ContainerLocation {
        place: place_of(&pool, segment.key(), segment.length_bytes()),
        offset: container.offset,
    };
    let cipher = ContainerCipher::new(&domain(), container.id);
    let read = pool.read_chunks(&location, &container.directory, &cipher, 1..2, None).await.unwrap();
    assert_eq!(read[0].1, text(20, 1).slice(8 * BLOCK..16 * BLOCK));
    let stored = container.directory.get(read[0].0).unwrap().stored_bytes;
    assert_eq!(pool.nodes()[0].health().snapshot().get_bytes, u64::from(stored));
}

#[test]
fn requests_can_be_made_from_any_thread() {
    fn assert_send<T: Send>(_: &T) {}
    let pool = store_pool(Arc::new(InMemory::new()));
    let segment = segment();
    assert_send(&pool.put(&segment));
    assert_send(&pool.get_range(&place_of(&pool, "key", 1), 0..1));
    assert_send(&read_chunks(&pool, &segment));
    assert_send(&pool.nodes()[0].read_footer("key", &domain()));
    assert_send(&packer(PackConfig::default()));
}

#[test]
fn the_verbs_of_a_plan_tell_puts_from_gets() {
    let memory = Arc::new(InMemory::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store =
            FaultStore::new(memory, |request| (request.verb == Verb::Put).then_some(Fault::Status(400)));
        assert!(store.put(&Path::from("a"), "x".into()).await.is_err());
        assert!(matches!(store.get(&Path::from("a")).await, Err(object_store::Error::NotFound { .. })));
        assert_eq!(store.requests(), 2);
    });
}
