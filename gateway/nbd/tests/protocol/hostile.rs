//! Clients that misbehave or die.

use crate::client::*;
use crate::device::TestDevice;
use crate::server::{MIB, TestServer, eventually, settle, soon};
use cairn_nbd::{Limits, ServerConfig};

#[tokio::test]
async fn a_wrong_request_magic_ends_the_connection_after_what_was_in_flight() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    server.device.hold([0]);
    client.send_write(0, 1, 0, b"good").await;
    client.send(&[0x5a; 28]).await;
    eventually("the write", || server.device.running() == 1).await;
    server.device.release_all();
    assert_eq!(client.simple_reply().await, (0, 1));
    client.assert_closed().await;
}

#[tokio::test]
async fn half_a_header_and_half_a_payload_write_nothing() {
    let server = TestServer::start().await;
    let mut header = Client::simple(&server.path, "disk").await;
    let bytes = header.request_bytes(0, WRITE, 1, 0, 4096);
    header.send(&bytes[..20]).await;
    for length in [4096, 1 << 20] {
        let mut payload = Client::simple(&server.path, "disk").await;
        let mut bytes = payload.request_bytes(0, WRITE, 1, 0, length);
        bytes.extend(vec![1; usize::try_from(length / 2).unwrap()]);
        payload.send(&bytes).await;
        settle().await;
        drop(payload);
    }
    drop(header);
    eventually("closing", || server.counters().connections_open == 0).await;
    assert_eq!(server.device.calls(), []);
}

#[tokio::test]
async fn announcing_payloads_and_falling_silent_pins_little_memory() {
    let server = TestServer::start().await;
    let before = resident_bytes();
    let mut silent = Vec::new();
    for _ in 0..40 {
        let mut client = Client::simple(&server.path, "disk").await;
        client.request(0, WRITE, 1, 0, 32 << 20).await;
        silent.push(client);
    }
    settle().await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 40 << 20, "40 announcements of 32 MiB took {grown} bytes");
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.write(0, 0, b"others are served").await, 0);
    drop(silent);
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn two_hundred_idle_connections_are_no_burden() {
    let server = TestServer::start().await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(Client::simple(&server.path, "disk").await);
    }
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.write(0, 0, b"busy").await, 0);
    assert_eq!(server.counters().connections_open, 201);
    assert_eq!(idle[117].read_simple(0, 4).await.unwrap(), b"busy");
    drop(idle);
    eventually("closing", || server.counters().connections_open == 1).await;
}

#[tokio::test]
async fn the_connection_beyond_the_limit_is_closed_and_the_others_live() {
    let limits = Limits { connections_max: 2, ..Limits::default() };
    let config = ServerConfig { limits, ..ServerConfig::default() };
    let server = TestServer::with(TestDevice::new(MIB), config).await;
    let mut first = Client::simple(&server.path, "disk").await;
    let second = Client::simple(&server.path, "disk").await;
    soon(Client::connect(&server.path).await.assert_closed()).await;
    assert_eq!(first.command(0, FLUSH, 0, 0).await, 0);
    assert_eq!(server.counters().connections_refused, 1);
    drop(second);
    eventually("closing", || server.counters().connections_open == 1).await;
    Client::simple(&server.path, "disk").await;
}

#[tokio::test]
async fn requests_of_a_client_that_died_complete_and_free_its_connection() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    server.device.hold((0..64).map(|index| index * 4096));
    for index in 0..64 {
        client.send_write(0, index, index * 4096, &[3; 512]).await;
    }
    eventually("64 writes", || server.device.running() == 64).await;
    drop(client);
    settle().await;
    assert_eq!(server.device.running(), 64, "a write that was received is not cut short");
    server.device.release_all();
    eventually("closing", || server.counters().connections_open == 0).await;
    let mut other = Client::simple(&server.path, "disk").await;
    assert_eq!(other.read_simple(63 * 4096, 512).await.unwrap(), [3; 512]);
}

#[tokio::test]
async fn a_client_that_died_with_replies_unsent_is_let_go() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    for index in 0..20 {
        client.request(0, READ, index, index * MIB, MIB).await;
    }
    settle().await;
    drop(client);
    eventually("closing", || server.counters().connections_open == 0).await;
}

#[tokio::test]
async fn a_client_that_closes_only_its_sending_side_still_gets_its_replies() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    server.device.hold([0]);
    client.request(0, READ, 1, 0, 512).await;
    tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.unwrap();
    settle().await;
    server.device.release_all();
    assert_eq!(soon(client.simple_reply()).await, (0, 1));
    client.payload(512).await;
    client.assert_closed().await;
}

#[tokio::test]
async fn fifty_abrupt_disconnects_leave_nothing_behind() {
    let server = TestServer::start().await;
    for round in 0..50 {
        let mut client = Client::structured(&server.path, "disk").await;
        for index in 0..16 {
            client.send_write(0, index, index * 4096, &vec![round; 4096]).await;
            client.request(0, READ, index, index * 4096, 4096).await;
        }
    }
    eventually("closing", || server.counters().connections_open == 0).await;
    eventually("the last request", || server.device.running() == 0).await;
    assert_eq!(server.counters().connections_total, 50);
}

#[test]
fn fuzz_entry_points_take_anything() {
    use cairn_nbd::fuzzing::{handshake, transmission};
    assert!(handshake(b"") > 0, "the greeting was sent");
    handshake(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04disk\0\0garbage");
    for choice in [0_u8, 1, 2, 0x41, 0x42] {
        let flush = [&[choice][..], b"\x25\x60\x95\x13\0\0\0\x03\0\0\0\0\0\0\0\x01", &[0; 12]].concat();
        let answered = transmission(&flush) > 0;
        assert_eq!(answered, choice % 3 != 2, "only compact styles understand a compact header");
    }
    transmission(&[0x42; 4096]);
}
