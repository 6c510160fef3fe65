//! Many requests at once: order, bounds and shutdown.

use crate::client::*;
use crate::device::TestDevice;
use crate::server::{MIB, TestServer, eventually, pattern, settle, soon};
use cairn_nbd::{Limits, ServerConfig};
use std::collections::BTreeSet;
use std::time::Duration;

fn limited(requests: usize, bytes: usize) -> ServerConfig {
    let limits = Limits { requests_in_flight_max: requests, bytes_in_flight_max: bytes, ..Limits::default() };
    ServerConfig { limits, ..ServerConfig::default() }
}

#[tokio::test]
async fn replies_come_in_the_order_of_completion() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    server.device.hold((0..64).map(|index| index * 4096));
    for index in 0..64 {
        client.request(0, READ, 100 + index, index * 4096, 512).await;
    }
    eventually("64 requests", || server.device.running() == 64).await;
    client.request(0, FLUSH, 999, 0, 0).await;
    assert_eq!(client.simple_reply().await, (0, 999));
    for index in [63, 0, 31, 32, 5] {
        server.device.release(index * 4096);
        assert_eq!(soon(client.simple_reply()).await, (0, 100 + index));
        client.payload(512).await;
    }
    server.device.release_all();
    let mut rest = BTreeSet::new();
    for _ in 0..59 {
        let (errno, cookie) = soon(client.simple_reply()).await;
        assert_eq!(errno, 0);
        client.payload(512).await;
        rest.insert(cookie);
    }
    assert_eq!(rest.len(), 59);
}

#[tokio::test]
async fn no_more_requests_than_the_limit_are_with_the_device() {
    let server = TestServer::with(TestDevice::new(64 * MIB), limited(8, 64 << 20)).await;
    let mut client = Client::simple(&server.path, "disk").await;
    server.device.hold((0..100).map(|index| index * 4096));
    for index in 0..100 {
        client.request(0, READ, index, index * 4096, 512).await;
    }
    eventually("8 requests", || server.device.running() == 8).await;
    settle().await;
    assert_eq!(server.device.running(), 8);
    server.device.release_all();
    for _ in 0..100 {
        assert_eq!(soon(client.simple_reply()).await.0, 0);
        client.payload(512).await;
    }
}

#[tokio::test]
async fn no_more_payload_than_the_limit_is_held_for_a_connection() {
    let server = TestServer::with(TestDevice::new(64 * MIB), limited(256, 32 << 20)).await;
    let mut client = Client::simple(&server.path, "disk").await;
    server.device.hold((0..64).map(|index| index * MIB));
    for index in 0..60 {
        client.request(0, READ, index, index * MIB, MIB).await;
    }
    eventually("32 reads", || server.device.running() == 32).await;
    settle().await;
    assert_eq!(server.device.running(), 32);
    server.device.release_all();
    for _ in 0..60 {
        assert_eq!(soon(client.simple_reply()).await.0, 0);
        client.payload(1 << 20).await;
    }
    assert_eq!(server.device.running_bytes_most(), 32 * MIB);
}

#[tokio::test]
async fn a_client_that_only_sends_is_served_up_to_the_bound_and_goes_on_when_it_receives() {
    let server = TestServer::with(TestDevice::new(64 * MIB), limited(256, 32 << 20)).await;
    let client = Client::simple(&server.path, "disk").await;
    let mut requests = Vec::new();
    for index in 0..200 {
        requests.extend(client.request_bytes(0, READ, index, (index % 60) * MIB, MIB));
    }
    let (reading, mut writing) = tokio::io::split(client.stream);
    tokio::io::AsyncWriteExt::write_all(&mut writing, &requests).await.unwrap();
    settle().await;
    assert!(server.counters().requests < 60, "the server read ahead without bound");
    let mut client = Client::new(tokio::io::join(reading, writing));
    for _ in 0..200 {
        assert_eq!(soon(client.simple_reply()).await.0, 0);
        soon(client.payload(1 << 20)).await;
    }
}

#[tokio::test]
async fn writes_are_taken_while_replies_wait_for_the_client() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    for index in 0..8 {
        client.request(0, READ, index, index * MIB, MIB).await;
    }
    soon(client.send_write(0, 50, 20 * MIB, &pattern(1, 4 << 20))).await;
    eventually("the write", || server.counters().bytes_written == 4 * MIB).await;
    for index in 0..8 {
        assert_eq!(client.simple_reply().await, (0, index));
        client.payload(1 << 20).await;
    }
    assert_eq!(client.simple_reply().await, (0, 50));
}

#[tokio::test]
async fn mixed_requests_of_many_sizes_keep_their_bytes_apart() {
    let server = TestServer::start().await;
    let client = Client::extended(&server.path, "disk").await;
    let sizes = [512, 4096, 16_384, 16_385, 70_000, 5, 262_144, 1 << 20, 4096, 3];
    let mut bytes = Vec::new();
    for (index, size) in (0_u64..).zip(sizes.iter().cycle().take(60)) {
        bytes.extend(client.request_bytes(FLAG_PAYLOAD_LEN, WRITE, index, index * MIB, *size));
        bytes.extend(pattern(index, usize::try_from(*size).unwrap()));
    }
    let (reading, mut writing) = tokio::io::split(client.stream);
    let sending = async {
        for piece in bytes.chunks(99_991) {
            tokio::io::AsyncWriteExt::write_all(&mut writing, piece).await.unwrap();
        }
        writing
    };
    let mut receiving = Client::new(tokio::io::join(reading, tokio::io::sink()));
    receiving.extended = true;
    let answers = async {
        for _ in 0..60 {
            assert_eq!(receiving.chunk().await.kind, CHUNK_NONE);
        }
    };
    let (writing, ()) = soon(async { tokio::join!(sending, answers) }).await;
    let mut check = Client::structured(&server.path, "disk").await;
    for (index, size) in (0_u64..).zip(sizes.iter().cycle().take(60)) {
        let read = check.read_chunks(0, index * MIB, *size).await.unwrap();
        assert!(read == pattern(index, read.len()), "write {index} of {size} bytes");
    }
    drop(writing);
}

#[tokio::test]
async fn shutdown_finishes_what_is_in_flight_and_reads_no_more() {
    let mut server = TestServer::start().await;
    let mut busy = Client::simple(&server.path, "disk").await;
    let mut idle = Client::simple(&server.path, "disk").await;
    let mut shaking = Client::greeted(&server.path).await;
    server.device.hold([0]);
    busy.send_write(0, 1, 0, b"in flight").await;
    eventually("the write", || server.device.running() == 1).await;
    server.shutdown.cancel();
    soon(idle.assert_closed()).await;
    soon(shaking.assert_closed()).await;
    busy.request(0, FLUSH, 2, 0, 0).await;
    settle().await;
    server.device.release_all();
    assert_eq!(soon(busy.simple_reply()).await, (0, 1));
    soon(busy.assert_closed()).await;
    soon(server.stop()).await;
    assert_eq!(server.counters().connections_open, 0);
    assert!(!server.path.exists());
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_device_beyond_the_grace_period() {
    let config = ServerConfig { shutdown_grace: Duration::from_millis(200), ..ServerConfig::default() };
    let mut server = TestServer::with(TestDevice::new(MIB), config).await;
    let mut client = Client::simple(&server.path, "disk").await;
    server.device.hold([0]);
    client.send_write(0, 1, 0, b"stuck").await;
    eventually("the write", || server.device.running() == 1).await;
    soon(server.stop()).await;
    client.assert_closed().await;
    assert_eq!(server.device.running(), 0);
}
