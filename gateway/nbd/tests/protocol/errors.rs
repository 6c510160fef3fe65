//! What requests that cannot be served are answered with; the connection lives on.

use crate::client::*;
use crate::device::{Lie, TestDevice};
use crate::server::{MIB, TestServer};
use cairn_model::ErrorKind;

const END: u64 = 64 * MIB;

#[tokio::test]
async fn ranges_beyond_the_end_fail_and_the_connection_lives_on() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    for (offset, length) in [(END, 1_u64), (END - 1, 2), (u64::MAX, 1), (u64::MAX - 4095, 4096), (END + 5, 0)]
    {
        let data = vec![1; usize::try_from(length).unwrap()];
        assert_eq!(client.write(0, offset, &data).await, ENOSPC, "write {offset}+{length}");
        assert_eq!(client.command(0, WRITE_ZEROES, offset, length).await, ENOSPC);
        assert_eq!(client.command(0, TRIM, offset, length).await, EINVAL);
        assert_eq!(client.command(0, CACHE, offset, length).await, EINVAL);
        assert_eq!(client.read_simple(offset, length).await, Err(EINVAL));
    }
    assert_eq!(server.device.calls(), []);
    assert_eq!(client.write(0, END - 1, b"x").await, 0);
}

#[tokio::test]
async fn a_read_only_export_permits_no_writes() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "snapshot").await;
    assert_eq!(client.write(0, 0, &vec![1; 100_000]).await, EPERM);
    assert_eq!(client.command(0, TRIM, 0, 4096).await, EPERM);
    assert_eq!(client.command(0, WRITE_ZEROES, 0, 4096).await, EPERM);
    assert_eq!(client.command(0, FLUSH, 0, 0).await, 0);
    assert_eq!(client.read_simple(0, 3).await.unwrap(), [0; 3]);
}

#[tokio::test]
async fn unknown_commands_and_misplaced_flags_are_invalid() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    for command in [8, 9, 1000, u16::MAX] {
        assert_eq!(client.command(0, command, 0, 0).await, EINVAL, "command {command}");
    }
    let misplaced = [
        (READ, FLAG_DF),
        (READ, FLAG_REQ_ONE),
        (FLUSH, FLAG_NO_HOLE),
        (TRIM, FLAG_FAST_ZERO),
        (CACHE, FLAG_DF),
        (WRITE_ZEROES, FLAG_DF),
        (WRITE_ZEROES, FLAG_PAYLOAD_LEN),
        (READ, 1 << 15),
    ];
    for (command, flags) in misplaced {
        assert_eq!(client.command(flags, command, 0, 0).await, EINVAL, "command {command} flags {flags}");
    }
    assert_eq!(client.write(FLAG_NO_HOLE, 0, &vec![1; 50_000]).await, EINVAL);
    assert_eq!(client.command(0, FLUSH, 0, 0).await, 0);
}

#[tokio::test]
async fn a_flush_with_a_range_is_invalid() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.command(0, FLUSH, 4096, 0).await, EINVAL);
    assert_eq!(client.command(0, FLUSH, 0, 1).await, EINVAL);
}

#[tokio::test]
async fn reads_longer_than_the_limit_are_refused_without_a_payload() {
    let server = TestServer::with_device(TestDevice::new(1 << 40)).await;
    let mut simple = Client::simple(&server.path, "disk").await;
    for length in [(64 << 20) + 1, 0xffff_ffff] {
        assert_eq!(simple.read_simple(0, length).await, Err(EINVAL));
    }
    let mut structured = Client::structured(&server.path, "disk").await;
    structured.request(0, READ, 5, 0, (64 << 20) + 1).await;
    assert_eq!(structured.chunk().await.errno(), Some(EOVERFLOW));
    assert_eq!(server.device.calls(), []);
}

#[tokio::test]
async fn a_write_longer_than_the_limit_is_skipped_and_refused() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.write(0, 0, &vec![1; (64 << 20) + 1]).await, EINVAL);
    assert_eq!(client.write(0, 0, b"fits").await, 0);
    assert_eq!(client.read_simple(0, 4).await.unwrap(), b"fits");
}

#[tokio::test]
async fn a_write_of_absurd_length_ends_the_connection() {
    let server = TestServer::start().await;
    let mut client = Client::simple(&server.path, "disk").await;
    client.request(0, WRITE, 1, 0, 0xffff_ffff).await;
    client.assert_closed().await;
}

#[tokio::test]
async fn errors_of_the_device_become_the_error_numbers_of_the_protocol() {
    let expected = [
        (ErrorKind::Fenced, ESHUTDOWN, ESHUTDOWN),
        (ErrorKind::Unavailable, EIO, EIO),
        (ErrorKind::OutOfSpace, ENOSPC, ENOSPC),
        (ErrorKind::OutOfRange, EINVAL, ENOSPC),
        (ErrorKind::ReadOnly, EPERM, EPERM),
        (ErrorKind::Corrupt, EIO, EIO),
        (ErrorKind::NotFound, EIO, EIO),
        (ErrorKind::Conflict, EIO, EIO),
        (ErrorKind::Unsupported, EINVAL, EINVAL),
        (ErrorKind::Internal, EIO, EIO),
    ];
    let server = TestServer::start().await;
    let mut simple = Client::simple(&server.path, "disk").await;
    let mut structured = Client::structured(&server.path, "disk").await;
    let mut extended = Client::extended(&server.path, "disk").await;
    for (kind, read, write) in expected {
        server.device.fail_with(Some(kind));
        assert_eq!(simple.read_simple(0, 512).await, Err(read), "{kind:?}");
        assert_eq!(structured.read_chunks(0, 0, 512).await, Err(read), "{kind:?}");
        assert_eq!(extended.read_chunks(0, 0, 512).await, Err(read), "{kind:?}");
        assert_eq!(simple.write(0, 0, b"data").await, write, "{kind:?}");
        assert_eq!(extended.write(0, 0, b"data").await, write, "{kind:?}");
    }
    server.device.fail_with(None);
    assert_eq!(simple.read_simple(0, 4).await.unwrap(), [0; 4]);
}

#[tokio::test]
async fn an_error_chunk_has_a_message_without_internals() {
    let server = TestServer::start().await;
    let mut client = Client::structured(&server.path, "disk").await;
    server.device.fail_with(Some(ErrorKind::OutOfSpace));
    client.send_write(0, 4, 0, b"data").await;
    let chunk = client.chunk().await;
    assert_eq!((chunk.errno(), chunk.cookie, chunk.done), (Some(ENOSPC), 4, true));
    let length = usize::from(u16::from_be_bytes(chunk.payload[4..6].try_into().unwrap()));
    let message = std::str::from_utf8(&chunk.payload[6..]).unwrap();
    assert_eq!(message.len(), length);
    assert_eq!(message, "the pool has no space left");
}

#[tokio::test]
async fn a_device_that_reads_short_costs_an_error_and_not_the_connection() {
    let server = TestServer::with_device(TestDevice::lying(MIB, Lie::ReadsShort)).await;
    let mut client = Client::simple(&server.path, "disk").await;
    assert_eq!(client.read_simple(0, 512).await, Err(EIO));
    assert_eq!(client.write(0, 0, b"x").await, 0);
}

#[tokio::test]
async fn block_status_is_refused_where_it_makes_no_sense() {
    let server = TestServer::start().await;
    let mut client = Client::structured(&server.path, "disk").await;
    for (flags, offset, length) in
        [(0, END, 1), (0, END - 1, 2), (FLAG_DF, 0, 512), (FLAG_PAYLOAD_LEN, 0, 512)]
    {
        client.request(flags, BLOCK_STATUS, 1, offset, length).await;
        assert_eq!(client.chunk().await.errno(), Some(EINVAL));
    }
    let mut simple = Client::simple(&server.path, "disk").await;
    assert_eq!(simple.command(0, BLOCK_STATUS, 0, 512).await, EINVAL);
}
