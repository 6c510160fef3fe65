//! The real S3 client against a real HTTP server that misbehaves: what `object_store` makes of statuses, broken
//! connections and cut bodies is what the pool expects.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;
mod s3_server;

use bytes::Bytes;
use cairn_model::{ErrorKind, Kinded, Lba, Ports};
use cairn_segment_writer::{
    Credentials, DataNode, NodeAccess, NodeUrl, PackConfig, Pool, PoolError, S3Admin, SealedSegment,
    Versioning,
};
use common::*;
use s3_server::{Answer, Server};

fn segment() -> SealedSegment {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), packing());
    packer.run(Lba::ZERO, &[random(64, 2)]);
    finish(packer).segments.remove(0)
}

fn bytes(segment: &SealedSegment) -> Bytes {
    segment.pieces().concat().into()
}

fn access(server: &Server) -> NodeAccess {
    let url = format!("s3://bucket/some/prefix?endpoint={}&region=test-1", server.endpoint());
    NodeAccess {
        url: NodeUrl::parse(&url).unwrap(),
        credentials: Some(Credentials::new("access".into(), "secret-secret".into(), None)),
        policy: policy(),
    }
}

async fn pool(server: &Server) -> Pool {
    Pool::single(DataNode::attach(&access(server), site(), Ports::system()).await.unwrap())
}

fn key(segment: &SealedSegment) -> String {
    format!("/bucket/some/prefix/{}", segment.key())
}

#[tokio::test]
async fn segments_go_to_the_bucket_and_come_back() {
    let server = Server::start().await;
    let pool = pool(&server).await;
    let segment = segment();
    let receipt = pool.put(&segment).await.unwrap();
    assert_eq!(server.object(&key(&segment)).unwrap(), bytes(&segment));
    assert_eq!(pool.get_range(receipt.place(), 5..5000).await.unwrap(), bytes(&segment).slice(5..5000));
    let footer = pool.nodes()[0].read_footer(receipt.key(), &domain()).await.unwrap();
    assert_eq!(footer.segment, segment.id());
    let node = node_id(&pool);
    assert_eq!(DataNode::open(&access(&server), site(), node, Ports::system()).await.unwrap().id(), node);
}

#[tokio::test]
async fn a_segment_is_one_request() {
    let server = Server::start().await;
    let pool = pool(&server).await;
    let before = server.requests();
    let _receipt = pool.put(&segment()).await.unwrap();
    assert_eq!(server.requests() - before, 1);
}

#[tokio::test]
async fn passing_errors_of_puts_are_ridden_out_with_the_same_key_and_bytes() {
    for answer in [
        Answer::error(500, "InternalError"),
        Answer::error(503, "SlowDown"),
        Answer::error(429, "TooManyRequests"),
        Answer::Status(502, String::new()),
        Answer::error(400, "RequestTimeout"),
        Answer::Close,
        Answer::CloseAfterEffect,
        Answer::Hang,
    ] {
        let server = Server::start().await;
        let pool = pool(&server).await;
        let segment = segment();
        server.answer_next([answer.clone(), answer.clone()]);
        let receipt = pool.put(&segment).await.unwrap();
        assert_eq!(receipt.segment(), segment.id());
        assert_eq!(server.object(&key(&segment)).unwrap(), bytes(&segment), "{answer:?}");
        assert_eq!(server.objects_below("/bucket/some/prefix/segments/"), 1, "{answer:?}");
        assert_eq!(pool.nodes()[0].health().snapshot().retries, 2, "{answer:?}");
    }
}

#[tokio::test]
async fn lasting_errors_of_puts_are_told_apart_at_once() {
    for (answer, kind, text) in [
        (Answer::error(403, "AccessDenied"), ErrorKind::Unavailable, "refuses access"),
        (Answer::error(403, "RequestTimeTooSkewed"), ErrorKind::Unavailable, "RequestTimeTooSkewed"),
        (Answer::error(401, "InvalidAccessKeyId"), ErrorKind::Unavailable, "refuses access"),
        (Answer::error(404, "NoSuchBucket"), ErrorKind::Unavailable, "does not exist"),
        (Answer::Status(404, String::new()), ErrorKind::Unavailable, "does not exist"),
        (Answer::error(403, "QuotaExceeded"), ErrorKind::OutOfSpace, "is full"),
        (Answer::error(507, "XMinioStorageFull"), ErrorKind::OutOfSpace, "is full"),
        (Answer::error(400, "MalformedXML"), ErrorKind::Internal, "MalformedXML"),
    ] {
        let server = Server::start().await;
        let pool = pool(&server).await;
        server.answer_next([answer.clone()]);
        let error = pool.put(&segment()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{answer:?}: {error}");
        assert!(error.to_string().contains(text), "{answer:?}: {error}");
        assert!(!error.to_string().contains("<Error>"), "no XML for people: {error}");
        assert_eq!(pool.nodes()[0].health().snapshot().put_requests, 1, "{answer:?}");
    }
}

#[tokio::test]
async fn passing_errors_of_gets_are_ridden_out() {
    for answer in [
        Answer::error(500, "InternalError"),
        Answer::error(503, "SlowDown"),
        Answer::error(429, "TooManyRequests"),
        Answer::Close,
        Answer::Hang,
        Answer::CutBody(0),
        Answer::CutBody(100),
        Answer::IgnoreRange,
    ] {
        let server = Server::start().await;
        let pool = pool(&server).await;
        let segment = segment();
        let receipt = pool.put(&segment).await.unwrap();
        server.answer_next([answer.clone(), answer.clone()]);
        let read = pool.get_range(receipt.place(), 1000..60_000).await.unwrap();
        assert_eq!(read, bytes(&segment).slice(1000..60_000), "{answer:?}");
        assert_eq!(pool.nodes()[0].health().snapshot().retries, 2, "{answer:?}");
    }
}

#[tokio::test]
async fn a_lost_object_and_a_lost_bucket_are_told_apart() {
    let server = Server::start().await;
    let pool = pool(&server).await;
    let error = pool.get_range(&place_of(&pool, "segments/00/lost", 10), 0..10).await.unwrap_err();
    assert!(matches!(error, PoolError::NotFound { .. }), "{error}");
    server.answer_next([Answer::error(404, "NoSuchBucket")]);
    let error = pool.get_range(&place_of(&pool, "segments/00/lost", 10), 0..10).await.unwrap_err();
    assert!(matches!(error, PoolError::NoSuchBucket { .. }) && error.retryable(), "{error}");
}

#[tokio::test]
async fn a_truncated_object_is_damaged_and_not_asked_for_again() {
    let server = Server::start().await;
    let pool = pool(&server).await;
    let segment = segment();
    let receipt = pool.put(&segment).await.unwrap();
    server.truncate(&key(&segment), 2000);
    for range in [1000..3000, 2000..3000, 5000..6000] {
        let before = server.requests();
        let error = pool.get_range(receipt.place(), range.clone()).await.unwrap_err();
        assert!(matches!(error, PoolError::Corrupt { .. }), "{range:?}: {error}");
        assert_eq!(server.requests() - before, 1, "{range:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_down_is_unavailable_and_used_again_when_it_is_back() {
    let server = Server::start().await;
    let pool = pool(&server).await;
    let segment = segment();
    let marker = "/bucket/some/prefix/cairn-node.json";
    let content = server.object(marker).unwrap();
    let address = server.stop().await;
    let error = pool.put(&segment).await.unwrap_err();
    assert!(matches!(error, PoolError::Unavailable { .. }) && error.retryable(), "{error}");
    let server = Server::start_at(address).await;
    let error = pool.put(&segment).await.unwrap_err();
    assert!(error.retryable() && error.to_string().contains("its marker"), "back, but empty: {error}");
    assert_eq!(server.object(&key(&segment)), None);
    server.insert(marker, content);
    let _receipt = pool.put(&segment).await.unwrap();
    assert_eq!(server.object(&key(&segment)).unwrap(), bytes(&segment));
}

#[tokio::test]
async fn the_probe_tells_servers_that_honour_the_condition_from_those_that_ignore_it() {
    let server = Server::start().await;
    let admin = S3Admin::new(&access(&server)).unwrap().unwrap();
    let entropy = cairn_model::SeededEntropy::new(1);
    assert!(admin.capabilities(&entropy).await.unwrap().conditional_create);
    server.ignore_conditions();
    let found = admin.capabilities(&entropy).await.unwrap();
    assert!(!found.conditional_create);
    assert_eq!(found.versioning, Versioning::Off);
    assert_eq!(server.objects_below("/bucket/"), 0, "the probe cleans up");
}

#[tokio::test]
async fn a_bucket_is_made_once_and_only_when_asked() {
    let server = Server::start().await;
    server.remove_bucket();
    let error = DataNode::attach(&access(&server), site(), Ports::system()).await.unwrap_err();
    assert!(matches!(error, PoolError::NoSuchBucket { .. }), "{error}");
    let admin = S3Admin::new(&access(&server)).unwrap().unwrap();
    assert!(admin.create_bucket().await.unwrap());
    assert!(!admin.create_bucket().await.unwrap());
    DataNode::attach(&access(&server), site(), Ports::system()).await.unwrap();
}

#[tokio::test]
async fn administration_tells_wrong_credentials() {
    let server = Server::start().await;
    let admin = S3Admin::new(&access(&server)).unwrap().unwrap();
    server.answer_next([Answer::error(403, "AccessDenied")]);
    let error = admin.versioning().await.unwrap_err();
    assert!(matches!(error, PoolError::AccessDenied { .. }), "{error}");
    server.answer_next([Answer::Status(403, String::new())]);
    let error = admin.create_bucket().await.unwrap_err();
    assert!(matches!(error, PoolError::AccessDenied { .. }), "{error}");
}

#[test]
fn only_s3_nodes_are_administered() {
    let access = NodeAccess::new(NodeUrl::parse("file:///somewhere").unwrap());
    assert!(S3Admin::new(&access).unwrap().is_none());
}
