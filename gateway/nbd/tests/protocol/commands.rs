//! Commands with compact headers, answered by simple and structured replies.

use crate::client::*;
use crate::device::{Call, Lie, TestDevice};
use crate::server::{MIB, TestServer, pattern};

#[tokio::test]
async fn what_was_written_is_read_at_any_alignment_and_length() {
    let server = TestServer::start().await;
    let mut simple = Client::simple(&server.path, "disk").await;
    let mut structured = Client::structured(&server.path, "disk").await;
    let mut offset = 1;
    for length in [1, 511, 512, 4096, 4097, 16_384, 16_385, 100_000, 300_000, 5_000_001] {
        let data = pattern(length, usize::try_from(length).unwrap());
        assert_eq!(simple.write(0, offset, &data).await, 0);
        assert_eq!(simple.read_simple(offset, length).await.unwrap(), data, "{length} bytes, simple");
        assert_eq!(
            structured.read_chunks(0, offset, length).await.unwrap(),
            data,
            "{length} bytes, structured"
        );
        offset += length + 3;
    }
}

#[tokio::test]
async fn a_device_that_drops_writes_is_found_out() {
    let server = TestServer::with_device(TestDevice::lying(MIB, Lie::DropsWrites)).await;
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.write(0, 0, b"lost").await, 0);
    assert_ne!(client.read_simple(0, 4).await.unwrap(), b"lost");
}

#[tokio::test]
async fn payloads_of_32_mib_go_both_ways() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    let data = pattern(3, 32 << 20);
    assert_eq!(client.write(0, MIB, &data).await, 0);
    assert!(client.read_simple(MIB, 32 << 20).await.unwrap() == data);
    let calls = server.device.calls();
    assert_eq!(calls[0], Call::Write { offset: MIB, length: 32 << 20, fua: false });
}

#[tokio::test]
async fn a_flush_covers_what_another_connection_wrote() {
    let server = TestServer::start().await;
    let mut writer = Client::simple(&server.path, "disk").await;
    let mut flusher = Client::simple(&server.path, "disk").await;
    assert_eq!(writer.write(0, 8192, b"data").await, 0);
    assert!(!server.device.is_durable(8192));
    assert_eq!(flusher.command(0, FLUSH, 0, 0).await, 0);
    assert!(server.device.is_durable(8192));
}

#[tokio::test]
async fn a_device_that_ignores_flushes_is_found_out() {
    let server = TestServer::with_device(TestDevice::lying(MIB, Lie::IgnoresFlushes)).await;
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.write(0, 8192, b"data").await, 0);
    assert_eq!(client.command(0, FLUSH, 0, 0).await, 0);
    assert!(!server.device.is_durable(8192));
}

#[tokio::test]
async fn fua_reaches_the_device_with_every_writing_command() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.write(FLAG_FUA, 0, b"data").await, 0);
    assert_eq!(client.command(FLAG_FUA, TRIM, 4096, 4096).await, 0);
    assert_eq!(client.command(FLAG_FUA, WRITE_ZEROES, 8192, 4096).await, 0);
    assert_eq!(
        server.device.calls(),
        [
            Call::Write { offset: 0, length: 4, fua: true },
            Call::Discard { offset: 4096, length: 4096, fua: true },
            Call::WriteZeroes { offset: 8192, length: 4096, fua: true },
        ]
    );
    assert!(server.device.is_durable(0) && server.device.is_durable(8192));
}

#[tokio::test]
async fn fua_is_accepted_with_commands_that_write_nothing() {
    let server = TestServer::start().await;
    let mut client = Client::structured(&server.path, "disk").await;
    assert_eq!(client.command(FLAG_FUA, FLUSH, 0, 0).await, 0);
    assert_eq!(client.command(FLAG_FUA, CACHE, 0, 4096).await, 0);
    assert_eq!(client.read_chunks(FLAG_FUA, 0, 16).await.unwrap(), [0; 16]);
    client.request(FLAG_FUA | FLAG_REQ_ONE, BLOCK_STATUS, 1, 0, 4096).await;
    assert_eq!(client.chunk().await.kind, CHUNK_STATUS);
}

#[tokio::test]
async fn trim_and_cache_reach_the_device() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.write(0, 0, &pattern(1, 12_288)).await, 0);
    assert_eq!(client.command(0, TRIM, 4096, 4096).await, 0);
    assert_eq!(client.command(0, CACHE, 0, 8192).await, 0);
    assert_eq!(client.read_simple(4096, 4096).await.unwrap(), [0; 4096]);
    assert_eq!(client.read_simple(8192, 4096).await.unwrap(), pattern(1, 12_288)[8192..]);
    assert_eq!(server.device.calls()[2], Call::Prefetch { offset: 0, length: 8192 });
}

#[tokio::test]
async fn write_zeroes_takes_its_flags_and_nearly_four_gib() {
    let server = TestServer::with_device(TestDevice::new(1 << 40)).await;
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.write(0, 5000, &[0xff; 3000]).await, 0);
    for flags in [0, FLAG_NO_HOLE, FLAG_FAST_ZERO, FLAG_NO_HOLE | FLAG_FAST_ZERO | FLAG_FUA] {
        assert_eq!(client.command(flags, WRITE_ZEROES, 6000, 1000).await, 0, "flags {flags}");
    }
    let expected = [vec![0xff; 1000], vec![0; 1000], vec![0xff; 1000]].concat();
    assert_eq!(client.read_simple(5000, 3000).await.unwrap(), expected);
    assert_eq!(client.command(0, WRITE_ZEROES, 1, 0xffff_fffe).await, 0);
    assert_eq!(client.command(0, TRIM, 1, 0xffff_fffe).await, 0);
    assert_eq!(client.read_simple(5000, 3000).await.unwrap(), vec![0; 3000]);
}

#[tokio::test]
async fn requests_of_nothing_succeed_but_a_status_of_nothing_is_invalid() {
    let server = TestServer::start().await;
    let mut client = Client::structured(&server.path, "disk").await;
    for command in [WRITE, TRIM, WRITE_ZEROES, CACHE] {
        assert_eq!(client.command(0, command, 64 * MIB, 0).await, 0, "command {command}");
    }
    client.request(0, READ, 9, 0, 0).await;
    let expected = Chunk { done: true, kind: CHUNK_NONE, cookie: 9, offset: None, payload: vec![] };
    assert_eq!(client.chunk().await, expected);
    client.request(0, BLOCK_STATUS, 9, 0, 0).await;
    assert_eq!(client.chunk().await.errno(), Some(EINVAL));
    assert_eq!(server.device.calls(), []);

    let mut simple = Client::simple(&server.path, "disk").await;
    assert_eq!(simple.read_simple(0, 0).await.unwrap(), b"");
}

#[tokio::test]
async fn holes_are_described_and_not_sent_unless_the_client_forbids_fragments() {
    let server = TestServer::start().await;
    let mut client = Client::structured(&server.path, "disk").await;
    assert_eq!(client.write(0, 1 << 20, &[7; 8192]).await, 0);

    client.request(0, READ, 1, (1 << 20) - 65_536, 65_536 + 8192 + 4096).await;
    let chunks = client.chunks().await;
    assert_eq!(
        chunks.iter().map(|chunk| chunk.kind).collect::<Vec<_>>(),
        [CHUNK_HOLE, CHUNK_DATA, CHUNK_HOLE]
    );
    assert_eq!(
        chunks[0].payload,
        [&((1_u64 << 20) - 65_536).to_be_bytes()[..], &65_536_u32.to_be_bytes()].concat()
    );
    assert_eq!(chunks[1].payload.len(), 8 + 8192);
    assert_eq!(
        chunks[2].payload,
        [&((1_u64 << 20) + 8192).to_be_bytes()[..], &4096_u32.to_be_bytes()].concat()
    );

    client.request(FLAG_DF, READ, 2, (1 << 20) - 65_536, 131_072).await;
    let chunks = client.chunks().await;
    assert_eq!((chunks.len(), chunks[0].kind, chunks[0].payload.len()), (1, CHUNK_DATA, 8 + 131_072));
    assert_eq!(
        client.read_chunks(0, (1 << 20) - 65_536, 131_072).await,
        client.read_chunks(FLAG_DF, (1 << 20) - 65_536, 131_072).await
    );
}

#[tokio::test]
async fn short_runs_of_zeros_are_sent_with_the_data_around_them() {
    let server = TestServer::start().await;
    let mut client = Client::structured(&server.path, "disk").await;
    assert_eq!(client.write(0, 4096, &[7; 4096]).await, 0);
    client.request(0, READ, 1, 4000, 4096 + 192).await;
    let chunks = client.chunks().await;
    assert_eq!((chunks.len(), chunks[0].kind), (1, CHUNK_DATA));
    assert_eq!(chunks[0].payload[8..], [&[0; 96][..], &[7; 4096], &[0; 96]].concat());
}

#[tokio::test]
async fn block_status_describes_data_and_holes() {
    let server = TestServer::start().await;
    let mut client = Client::structured(&server.path, "disk").await;
    assert_eq!(client.write(0, 8192, &[7; 4096]).await, 0);
    client.request(0, BLOCK_STATUS, 3, 0, 65_536).await;
    let chunk = client.chunk().await;
    let words: Vec<u32> =
        chunk.payload.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect();
    assert_eq!((chunk.done, chunk.kind, chunk.cookie), (true, CHUNK_STATUS, 3));
    assert_eq!(words, [1, 8192, 3, 4096, 0, 65_536 - 12_288, 3]);

    client.request(FLAG_REQ_ONE, BLOCK_STATUS, 4, 100, 65_536).await;
    let chunk = client.chunk().await;
    assert_eq!(chunk.payload, [1_u32, 8092, 3].map(u32::to_be_bytes).concat());
}

#[tokio::test]
async fn the_present_size_counts() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.write(0, 64 * MIB, b"x").await, ENOSPC);
    server.device.resize(65 * MIB);
    assert_eq!(client.write(0, 64 * MIB, b"x").await, 0);
    server.device.resize(MIB);
    assert_eq!(client.read_simple(64 * MIB, 1).await, Err(EINVAL));
    let mut other = Client::greeted(&server.path).await;
    assert_eq!(other.go("disk").await.0, MIB);
}

#[tokio::test]
async fn disconnect_answers_what_is_in_flight_and_closes() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    server.device.hold([4096]);
    client.send_write(0, 1, 4096, b"last words").await;
    client.request(0, DISC, 0, 0, 0).await;
    crate::server::eventually("the write", || server.device.running() == 1).await;
    server.device.release_all();
    assert_eq!(client.simple_reply().await, (0, 1));
    client.assert_closed().await;
}

#[tokio::test]
async fn counters_tell_what_happened() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    client.write(0, 0, &[1; 1000]).await;
    client.read_simple(0, 300).await.unwrap();
    client.read_simple(64 * MIB, 300).await.unwrap_err();
    let counters = server.counters();
    assert_eq!((counters.requests, counters.requests_failed), (3, 1));
    assert_eq!((counters.bytes_written, counters.bytes_read), (1000, 300));
    assert_eq!((counters.connections_open, counters.connections_total), (1, 1));
    drop(client);
    crate::server::eventually("closing", || server.counters().connections_open == 0).await;
}
