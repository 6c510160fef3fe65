//! Nodes are what they were attached as, or refused.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use cairn_model::{ErrorKind, Kinded, NodeId, Ports, SiteId};
use cairn_segment_writer::testing::{Fault, FaultStore};
use cairn_segment_writer::{DataNode, MARKER_KEY, NodeAccess, NodeUrl, PoolError};
use common::*;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;

async fn attach(store: &Arc<dyn ObjectStore>, site: SiteId) -> Result<DataNode, PoolError> {
    DataNode::attach_store(Arc::clone(store), "mem://node", site, policy(), Ports::system()).await
}

async fn open(store: &Arc<dyn ObjectStore>, site: SiteId, id: NodeId) -> Result<DataNode, PoolError> {
    DataNode::open_store(Arc::clone(store), "mem://node", site, id, policy(), Ports::system()).await
}

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

#[tokio::test]
async fn an_empty_place_becomes_a_node_that_opens_by_its_id() {
    let store = memory();
    let node = attach(&store, site()).await.unwrap();
    assert_eq!(open(&store, site(), node.id()).await.unwrap().id(), node.id());
}

#[tokio::test]
async fn attaching_again_finds_the_same_node() {
    let store = memory();
    let first = attach(&store, site()).await.unwrap();
    assert_eq!(attach(&store, site()).await.unwrap().id(), first.id());
}

#[tokio::test]
async fn the_node_of_another_site_is_refused() {
    let store = memory();
    let node = attach(&store, site()).await.unwrap();
    let other = SiteId::from_bytes([99; 16]);
    for refused in [attach(&store, other).await, open(&store, other, node.id()).await] {
        let error = refused.unwrap_err();
        assert!(matches!(error, PoolError::OtherSite { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
}

#[tokio::test]
async fn another_node_of_the_site_is_refused() {
    let store = memory();
    attach(&store, site()).await.unwrap();
    let error = open(&store, site(), NodeId::from_bytes([5; 16])).await.unwrap_err();
    assert!(matches!(error, PoolError::OtherNode { .. }), "{error}");
}

#[tokio::test]
async fn opening_a_place_without_a_marker_is_an_error_and_leaves_it_untouched() {
    let store = memory();
    let error = open(&store, site(), NodeId::from_bytes([5; 16])).await.unwrap_err();
    assert!(matches!(error, PoolError::MarkerMissing { .. }) && !error.retryable(), "{error}");
    assert!(store.head(&Path::from(MARKER_KEY)).await.is_err());
}

#[tokio::test]
async fn a_place_with_other_content_is_not_attached() {
    for key in ["holiday.jpg", "photos/holiday.jpg"] {
        let store = memory();
        store.put(&Path::from(key), "x".into()).await.unwrap();
        let error = attach(&store, site()).await.unwrap_err();
        assert!(matches!(error, PoolError::NotEmpty { .. }), "{error}");
        assert!(store.head(&Path::from(MARKER_KEY)).await.is_err());
    }
}

#[tokio::test]
async fn a_marker_of_a_newer_version_is_refused_as_such() {
    let store = memory();
    let marker = r#"{"format":"cairn-node","version":2,"realm":"unheard of"}"#;
    store.put(&Path::from(MARKER_KEY), marker.into()).await.unwrap();
    for refused in [attach(&store, site()).await, open(&store, site(), NodeId::from_bytes([5; 16])).await] {
        let error = refused.unwrap_err();
        assert!(matches!(error, PoolError::NewerFormat { found: 2, known: 1, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_damaged_marker_is_never_taken_for_a_missing_one() {
    for marker in
        ["", "{", "{}", r#"{"format":"other","version":1}"#, r#"{"format":"cairn-node","version":1}"#]
    {
        let store = memory();
        store.put(&Path::from(MARKER_KEY), marker.into()).await.unwrap();
        let error = attach(&store, site()).await.unwrap_err();
        assert!(matches!(error, PoolError::Corrupt { .. }), "{marker}: {error}");
        assert_eq!(store.get(&Path::from(MARKER_KEY)).await.unwrap().bytes().await.unwrap(), marker);
    }
}

#[tokio::test]
async fn an_unreadable_marker_is_never_taken_for_a_missing_one() {
    let inner = memory();
    let store: Arc<dyn ObjectStore> = Arc::new(FaultStore::script(Arc::clone(&inner), [Fault::Status(403)]));
    let error = attach(&store, site()).await.unwrap_err();
    assert!(matches!(error, PoolError::AccessDenied { .. }), "{error}");
    assert!(inner.head(&Path::from(MARKER_KEY)).await.is_err());
}

#[tokio::test]
async fn attaching_survives_a_lost_reply() {
    let store: Arc<dyn ObjectStore> =
        Arc::new(FaultStore::new(memory(), |request| (request.number == 2).then_some(Fault::ReplyLost)));
    let node = attach(&store, site()).await.unwrap();
    assert_eq!(open(&store, site(), node.id()).await.unwrap().id(), node.id());
}

fn directory_access(path: &std::path::Path) -> NodeAccess {
    NodeAccess { policy: policy(), ..NodeAccess::new(NodeUrl::Directory(path.to_owned())) }
}

#[tokio::test]
async fn a_directory_is_made_when_attached_and_never_when_opened() {
    let folder = tempfile::tempdir().unwrap();
    let access = directory_access(&folder.path().join("deep/pool"));
    let error =
        DataNode::open(&access, site(), NodeId::from_bytes([5; 16]), Ports::system()).await.unwrap_err();
    assert!(matches!(error, PoolError::NoSuchBucket { .. }), "{error}");
    assert!(!folder.path().join("deep").exists());
    let node = DataNode::attach(&access, site(), Ports::system()).await.unwrap();
    DataNode::open(&access, site(), node.id(), Ports::system()).await.unwrap();
    let names: Vec<_> = std::fs::read_dir(folder.path().join("deep/pool"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(names.contains(&MARKER_KEY.into()), "{names:?}");
}

#[tokio::test]
async fn what_an_interrupted_attach_or_a_fresh_file_system_leaves_is_no_content() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["staging", "lost+found"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    DataNode::attach(&directory_access(folder.path()), site(), Ports::system()).await.unwrap();
}

#[tokio::test]
async fn a_directory_with_a_name_that_is_no_text_is_not_empty() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(std::ffi::OsStr::from_bytes(b"\xff"))).unwrap();
    let attached = DataNode::attach(&directory_access(folder.path()), site(), Ports::system()).await;
    let error = attached.unwrap_err();
    assert!(matches!(error, PoolError::NotEmpty { .. }), "{error}");
}

#[tokio::test]
async fn a_directory_that_was_replaced_under_a_running_node_is_neither_filled_nor_believed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let node = DataNode::attach(&directory_access(&path), site(), Ports::system()).await.unwrap();
    let pool = cairn_segment_writer::Pool::single(node);
    let mut packer = packer(cairn_segment_writer::PackConfig::default());
    packer.volume(volume(1), packing());
    packer.run(cairn_model::Lba::ZERO, &[text(1, 1)]);
    let segment = finish(packer).segments.remove(0);
    let receipt = pool.put(&segment).await.unwrap();
    // As when its file system is unmounted.
    std::fs::rename(&path, folder.path().join("away")).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = pool.put(&segment).await.unwrap_err();
    assert!(matches!(error, PoolError::NoSuchBucket { .. }) && error.retryable(), "{error}");
    let error = pool.get_range(receipt.place(), 0..10).await.unwrap_err();
    assert!(matches!(error, PoolError::NoSuchBucket { .. }) && error.retryable(), "{error}");
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(folder.path().join("away"), &path).unwrap();
    assert_eq!(pool.get_range(receipt.place(), 0..8).await.unwrap(), "CAIRNSEG");
}

#[tokio::test]
async fn a_bucket_without_credentials_is_an_error_at_once() {
    // The test runner gives each test a process of its own, and none has AWS variables.
    assert!(std::env::var("AWS_ACCESS_KEY_ID").is_err(), "unset AWS_ACCESS_KEY_ID to run the tests");
    let access = NodeAccess::new(NodeUrl::parse("s3://bucket/prefix").unwrap());
    let error =
        DataNode::open(&access, site(), NodeId::from_bytes([5; 16]), Ports::system()).await.unwrap_err();
    assert!(matches!(error, PoolError::NoCredentials { .. }), "{error}");
    assert!(error.to_string().contains("AWS_SECRET_ACCESS_KEY"), "{error}");
}
