//! Extended headers: 64-bit lengths, and payloads announced by a flag.

use crate::client::*;
use crate::device::{Call, TestDevice};
use crate::server::{TestServer, pattern};

const TIB: u64 = 1 << 40;

#[tokio::test]
async fn writes_and_reads_go_both_ways_and_replies_repeat_the_offset() {
    let server = TestServer::start().await;
    let mut client = Client::extended(&server.path, "disk").await;
    for length in [1, 4096, 20_000, 3_000_000] {
        let data = pattern(length, usize::try_from(length).unwrap());
        client.send_write(0, 6, 12_345, &data).await;
        let expected =
            Chunk { done: true, kind: CHUNK_NONE, cookie: 6, offset: Some(12_345), payload: vec![] };
        assert_eq!(client.chunk().await, expected);
        assert_eq!(client.read_chunks(0, 12_345, length).await.unwrap(), data);
    }
    client.request(0, READ, 7, 10_000_000, 10_000).await;
    let chunk = client.chunk().await;
    assert_eq!((chunk.offset, chunk.kind), (Some(10_000_000), CHUNK_HOLE));
}

#[tokio::test]
async fn a_write_that_forgets_the_payload_flag_still_has_its_payload() {
    let server = TestServer::start().await;
    let mut client = Client::extended(&server.path, "disk").await;
    let mut bytes = client.request_bytes(FLAG_FUA, WRITE, 8, 512, 600);
    bytes.extend([5; 600]);
    client.send(&bytes).await;
    assert_eq!(client.chunk().await.kind, CHUNK_NONE);
    assert_eq!(client.read_chunks(0, 512, 600).await.unwrap(), [5; 600]);
}

#[tokio::test]
async fn ranges_of_terabytes_are_one_request() {
    let server = TestServer::with_device(TestDevice::new(4 * TIB)).await;
    let mut client = Client::extended(&server.path, "disk").await;
    for command in [TRIM, WRITE_ZEROES, CACHE] {
        client.request(0, command, 1, TIB, 3 * TIB).await;
        assert_eq!(client.chunk().await.kind, CHUNK_NONE);
    }
    assert_eq!(server.device.calls()[0], Call::Discard { offset: TIB, length: 3 * TIB, fua: false });
    client.request(0, READ, 1, 0, 3 * TIB).await;
    assert_eq!(client.chunk().await.errno(), Some(EOVERFLOW));
    client.request(0, TRIM, 1, 4096, u64::MAX).await;
    assert_eq!(client.chunk().await.errno(), Some(EINVAL));
}

fn status_words(chunk: &Chunk) -> (u32, u32, Vec<u64>) {
    assert_eq!(chunk.kind, CHUNK_STATUS_EXT);
    let word = |at: usize| u32::from_be_bytes(chunk.payload[at..at + 4].try_into().unwrap());
    let rest = chunk.payload[8..].chunks(8).map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
    (word(0), word(4), rest.collect())
}

#[tokio::test]
async fn block_status_has_64_bit_extents() {
    let server = TestServer::with_device(TestDevice::new(4 * TIB)).await;
    let mut client = Client::extended(&server.path, "disk").await;
    assert_eq!(client.write(0, 0, &[1; 4096]).await, 0);
    client.request(0, BLOCK_STATUS, 1, 0, 4 * TIB).await;
    let chunk = client.chunk().await;
    assert_eq!(status_words(&chunk), (1, 2, vec![4096, 0, 4 * TIB - 4096, 3]));
    client.request(FLAG_REQ_ONE, BLOCK_STATUS, 1, 0, 4 * TIB).await;
    assert_eq!(status_words(&client.chunk().await), (1, 1, vec![4096, 0]));
}

async fn select(client: &mut Client, effect_length: u64, identifiers: &[u32]) -> Chunk {
    let mut payload = effect_length.to_be_bytes().to_vec();
    payload.extend(identifiers.iter().flat_map(|identifier| identifier.to_be_bytes()));
    let mut bytes = client.request_bytes(FLAG_PAYLOAD_LEN, BLOCK_STATUS, 2, 0, payload.len() as u64);
    bytes.extend(payload);
    client.send(&bytes).await;
    client.chunk().await
}

#[tokio::test]
async fn block_status_can_select_contexts_by_payload() {
    let server = TestServer::with_device(TestDevice::new(4 * TIB)).await;
    let mut client = Client::extended(&server.path, "disk").await;
    assert_eq!(status_words(&select(&mut client, 2 * TIB, &[1]).await), (1, 1, vec![2 * TIB, 3]));
    for identifiers in [&[][..], &[2], &[1, 1], &[1; 100]] {
        assert_eq!(select(&mut client, 4096, identifiers).await.errno(), Some(EINVAL), "{identifiers:?}");
    }
    assert_eq!(select(&mut client, 5 * TIB, &[1]).await.errno(), Some(EINVAL));
    assert_eq!(client.write(0, 0, b"still here").await, 0);
}

#[tokio::test]
async fn a_payload_nobody_expects_is_skipped_and_refused() {
    let server = TestServer::start().await;
    let mut client = Client::extended(&server.path, "disk").await;
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, 99] {
        let mut bytes = client.request_bytes(FLAG_PAYLOAD_LEN, command, 3, 0, 70_000);
        bytes.extend(vec![0x21; 70_000]);
        client.send(&bytes).await;
        assert_eq!(client.chunk().await.errno(), Some(EINVAL), "command {command}");
    }
    assert_eq!(client.write(0, 0, b"still here").await, 0);
}

#[tokio::test]
async fn a_compact_header_after_extended_headers_were_agreed_ends_the_connection() {
    let server = TestServer::start().await;
    let mut client = Client::extended(&server.path, "disk").await;
    client.extended = false;
    client.request(0, FLUSH, 1, 0, 0).await;
    client.request(0, FLUSH, 1, 0, 0).await;
    client.assert_closed().await;
}
