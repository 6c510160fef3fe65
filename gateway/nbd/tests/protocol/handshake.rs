//! The option phase.

use crate::client::*;
use crate::device::TestDevice;
use crate::server::{MIB, TestServer, soon};
use cairn_nbd::{Limits, ServerConfig};
use std::time::Duration;

const HAS_FLAGS: u16 = 1;
const READ_ONLY: u16 = 1 << 1;
const FLUSH_AND_FUA: u16 = 1 << 2 | 1 << 3;
const TRIM_ZEROES_FAST_ZERO: u16 = 1 << 5 | 1 << 6 | 1 << 11;
const DF: u16 = 1 << 7;
const MULTI_CONN_AND_CACHE: u16 = 1 << 8 | 1 << 10;
const STATUS_PAYLOAD: u16 = 1 << 12;
const ALWAYS: u16 = HAS_FLAGS | FLUSH_AND_FUA | MULTI_CONN_AND_CACHE;

#[tokio::test]
async fn list_names_every_export() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    let replies = client.option_replies(OPT_LIST, &[]).await;
    assert_eq!(replies[0], OptionReply { kind: REP_SERVER, data: string("disk") });
    assert_eq!(replies[1], OptionReply { kind: REP_SERVER, data: string("snapshot") });
    assert_eq!(replies[2].kind, REP_ACK);
}

#[tokio::test]
async fn options_without_data_refuse_data() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    for option in [OPT_LIST, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS, OPT_STARTTLS] {
        assert_eq!(client.option(option, b"x").await.kind, REP_ERR_INVALID, "option {option}");
    }
    client.go("disk").await;
    assert_eq!(client.command(0, FLUSH, 0, 0).await, 0);
}

#[tokio::test]
async fn info_tells_size_flags_name_and_block_sizes_and_stays_in_the_option_phase() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    let replies = client.option_replies(OPT_INFO, &info_data("disk", &[3, 1, 999])).await;
    let mut export = vec![0, 0];
    export.extend((64 * MIB).to_be_bytes());
    export.extend((ALWAYS | TRIM_ZEROES_FAST_ZERO).to_be_bytes());
    assert_eq!(replies[0], OptionReply { kind: REP_INFO, data: export });
    assert_eq!(replies[1], OptionReply { kind: REP_INFO, data: b"\0\x01disk".to_vec() });
    let sizes =
        [&[0, 3][..], &1_u32.to_be_bytes(), &4096_u32.to_be_bytes(), &(32_u32 << 20).to_be_bytes()].concat();
    assert_eq!(replies[2], OptionReply { kind: REP_INFO, data: sizes });
    assert_eq!(replies[3], OptionReply { kind: REP_ACK, data: vec![] });
    assert_eq!(client.go("disk").await.0, 64 * MIB);
}

#[tokio::test]
async fn the_empty_name_is_the_default_export() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    assert_eq!(client.go("").await.0, 64 * MIB);
}

#[tokio::test]
async fn flags_follow_what_was_negotiated() {
    let server = TestServer::start().await;
    let mut structured = Client::greeted(&server.path).await;
    structured.option(OPT_STRUCTURED_REPLY, &[]).await;
    assert_eq!(structured.go("disk").await.1, ALWAYS | TRIM_ZEROES_FAST_ZERO | DF);

    let mut extended = Client::greeted(&server.path).await;
    extended.option(OPT_EXTENDED_HEADERS, &[]).await;
    extended.select_allocation("disk").await;
    assert_eq!(extended.go("disk").await.1, ALWAYS | TRIM_ZEROES_FAST_ZERO | DF | STATUS_PAYLOAD);

    let mut read_only = Client::greeted(&server.path).await;
    assert_eq!(read_only.go("snapshot").await, (MIB, ALWAYS | READ_ONLY));
}

#[tokio::test]
async fn an_unknown_export_is_an_error_and_another_can_be_chosen() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    for option in [OPT_INFO, OPT_GO] {
        assert_eq!(client.option(option, &info_data("nothing", &[])).await.kind, REP_ERR_UNKNOWN);
    }
    let not_utf8 = b"\0\0\0\x02\xff\xfe\0\0";
    assert_eq!(client.option(OPT_GO, not_utf8).await.kind, REP_ERR_UNKNOWN);
    client.go("disk").await;
}

#[tokio::test]
async fn malformed_data_is_invalid_and_the_next_option_is_understood() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    client.option(OPT_STRUCTURED_REPLY, &[]).await;
    let name_beyond_data = b"\0\0\0\x09disk\0\0";
    let trailing = [info_data("disk", &[]), vec![0]].concat();
    for data in [&b""[..], b"\0\0", name_beyond_data, &trailing] {
        assert_eq!(client.option(OPT_GO, data).await.kind, REP_ERR_INVALID, "{data:?}");
    }
    let query_beyond_data = [string("disk"), vec![0, 0, 0, 1, 0, 0, 0, 9]].concat();
    for option in [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
        assert_eq!(client.option(option, &query_beyond_data).await.kind, REP_ERR_INVALID);
    }
    client.go("disk").await;
}

#[tokio::test]
async fn a_name_or_option_that_is_too_long_is_refused_and_skipped() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    let long_name = info_data(&"n".repeat(4097), &[]);
    assert_eq!(client.option(OPT_GO, &long_name).await.kind, REP_ERR_TOO_BIG);
    assert_eq!(client.option(OPT_GO, &vec![0; 200_000]).await.kind, REP_ERR_TOO_BIG);
    client.go("disk").await;
}

#[tokio::test]
async fn unknown_options_are_unsupported_with_or_without_data() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    for option in [4, 12, 0xffff_ffff] {
        assert_eq!(client.option(option, &[]).await.kind, REP_ERR_UNSUP);
        assert_eq!(client.option(option, b"some data").await.kind, REP_ERR_UNSUP);
    }
}

#[tokio::test]
async fn abort_is_acknowledged_and_the_connection_closed() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    assert_eq!(client.option(OPT_ABORT, b"ignored").await.kind, REP_ACK);
    client.assert_closed().await;
    assert_eq!(server.counters().handshakes_failed, 0);
}

#[tokio::test]
async fn export_name_answers_with_or_without_zeroes() {
    let server = TestServer::start().await;
    for (flags, zeroes) in [(3, 0), (1, 124), (0, 124), (2, 0)] {
        let mut client = Client::connect(&server.path).await;
        client.greet(flags).await;
        client.send_option(OPT_EXPORT_NAME, b"disk").await;
        let answer = client.payload(10 + zeroes).await;
        assert_eq!(answer[..8], (64 * MIB).to_be_bytes());
        assert_eq!(answer[8..10], (ALWAYS | TRIM_ZEROES_FAST_ZERO).to_be_bytes());
        assert!(answer[10..].iter().all(|byte| *byte == 0));
        assert_eq!(client.write(0, 0, b"hello").await, 0, "flags {flags}");
        assert_eq!(client.read_simple(0, 5).await.unwrap(), b"hello");
    }
}

#[tokio::test]
async fn export_name_that_cannot_be_served_ends_the_connection() {
    let server = TestServer::start().await;
    for name in [b"nothing".to_vec(), vec![b'n'; 4097]] {
        let mut client = Client::greeted(&server.path).await;
        client.send_option(OPT_EXPORT_NAME, &name).await;
        client.assert_closed().await;
    }
    let mut extended = Client::greeted(&server.path).await;
    extended.option(OPT_EXTENDED_HEADERS, &[]).await;
    extended.send_option(OPT_EXPORT_NAME, b"disk").await;
    extended.assert_closed().await;
}

#[tokio::test]
async fn a_client_without_fixed_newstyle_may_only_name_its_export() {
    let server = TestServer::start().await;
    let mut client = Client::connect(&server.path).await;
    client.greet(0).await;
    client.send_option(OPT_LIST, &[]).await;
    client.assert_closed().await;
}

#[tokio::test]
async fn contexts_are_listed_by_name_by_wildcard_and_all() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    client.option(OPT_STRUCTURED_REPLY, &[]).await;
    let listed = OptionReply { kind: REP_META_CONTEXT, data: b"\0\0\0\0base:allocation".to_vec() };
    for queries in [&[][..], &["base:"], &["base:allocation"], &["qemu:x", "base:allocation"]] {
        let replies = client.option_replies(OPT_LIST_META_CONTEXT, &context_data("disk", queries)).await;
        assert_eq!(replies[0], listed, "{queries:?}");
        assert_eq!(replies[1].kind, REP_ACK);
    }
    for queries in [&["qemu:"][..], &["base:other"], &["nonsense"]] {
        let replies = client.option_replies(OPT_LIST_META_CONTEXT, &context_data("disk", queries)).await;
        assert_eq!(replies[0].kind, REP_ACK, "{queries:?}");
    }
}

#[tokio::test]
async fn setting_contexts_ignores_wildcards_and_strangers() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    client.option(OPT_STRUCTURED_REPLY, &[]).await;
    for queries in [&[][..], &["base:"], &["x-other:thing", "base:unknown"]] {
        let reply = client.option(OPT_SET_META_CONTEXT, &context_data("disk", queries)).await;
        assert_eq!(reply.kind, REP_ACK, "{queries:?}");
    }
    client.go("disk").await;
    client.request(0, BLOCK_STATUS, 1, 0, 4096).await;
    assert_eq!(client.chunk().await.errno(), Some(EINVAL));
}

#[tokio::test]
async fn contexts_need_chunks_and_an_export() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    for option in [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
        let reply = client.option(option, &context_data("disk", &["base:allocation"])).await;
        assert_eq!(reply.kind, REP_ERR_INVALID);
    }
    client.option(OPT_STRUCTURED_REPLY, &[]).await;
    for option in [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
        let reply = client.option(option, &context_data("nothing", &["base:allocation"])).await;
        assert_eq!(reply.kind, REP_ERR_UNKNOWN);
    }
}

#[tokio::test]
async fn contexts_set_for_one_export_do_not_count_for_another() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    client.option(OPT_STRUCTURED_REPLY, &[]).await;
    client.select_allocation("snapshot").await;
    client.go("disk").await;
    client.request(0, BLOCK_STATUS, 1, 0, 4096).await;
    assert_eq!(client.chunk().await.errno(), Some(EINVAL));
}

#[tokio::test]
async fn a_failed_set_forgets_the_contexts_set_before() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    client.option(OPT_STRUCTURED_REPLY, &[]).await;
    client.select_allocation("disk").await;
    assert_eq!(client.option(OPT_SET_META_CONTEXT, b"bad").await.kind, REP_ERR_INVALID);
    client.go("disk").await;
    client.request(0, BLOCK_STATUS, 1, 0, 4096).await;
    assert_eq!(client.chunk().await.errno(), Some(EINVAL));
}

#[tokio::test]
async fn extended_headers_take_precedence_over_structured_replies() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    assert_eq!(client.option(OPT_STRUCTURED_REPLY, &[]).await.kind, REP_ACK);
    assert_eq!(client.option(OPT_EXTENDED_HEADERS, &[]).await.kind, REP_ACK);
    assert_eq!(client.option(OPT_STRUCTURED_REPLY, &[]).await.kind, REP_ERR_EXT_HEADER_REQD);
    client.go("disk").await;
    client.extended = true;
    assert_eq!(client.read_chunks(0, 0, 512).await.unwrap(), [0; 512]);
}

#[tokio::test]
async fn starttls_without_a_tls_setup_is_refused_by_policy() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    assert_eq!(client.option(OPT_STARTTLS, &[]).await.kind, REP_ERR_POLICY);
    client.go("disk").await;
}

#[tokio::test]
async fn a_wrong_option_magic_or_an_unknown_client_flag_ends_the_connection() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    client.send(b"IHAVEOPX\0\0\0\x03\0\0\0\0").await;
    client.assert_closed().await;

    let mut client = Client::connect(&server.path).await;
    client.greet(0x103).await;
    client.assert_closed().await;
    soon(async { crate::server::eventually("counting", || server.counters().handshakes_failed == 2).await })
        .await;
}

#[tokio::test]
async fn an_absurd_option_length_ends_the_connection() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    client.send(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").await;
    client.assert_closed().await;
}

#[tokio::test]
async fn a_client_that_does_not_finish_the_handshake_is_dropped() {
    let config = ServerConfig { handshake_timeout: Duration::from_millis(200), ..ServerConfig::default() };
    let server = TestServer::with(TestDevice::new(MIB), config).await;
    let mut silent = Client::greeted(&server.path).await;
    let mut halfway = Client::greeted(&server.path).await;
    halfway.send(b"IHAVEOPT\0\0\0\x07\0\0\0\x20only half").await;
    let mut entered = Client::simple(&server.path, "disk").await;
    soon(silent.assert_closed()).await;
    soon(halfway.assert_closed()).await;
    assert_eq!(entered.command(0, FLUSH, 0, 0).await, 0, "the limit is for handshakes only");
}

#[tokio::test]
async fn requests_sent_on_the_heels_of_the_last_option_are_answered() {
    let server = TestServer::start().await;
    let mut client = Client::greeted(&server.path).await;
    let mut bytes = b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk".to_vec();
    bytes.extend(client.request_bytes(0, FLUSH, 5, 0, 0));
    client.send(&bytes).await;
    client.payload(10).await;
    assert_eq!(client.simple_reply().await, (0, 5));
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let build = |limits| {
        let exports = cairn_nbd::memory::DeviceTable::<TestDevice>::new([]);
        let config = ServerConfig { limits, ..ServerConfig::default() };
        cairn_nbd::NbdServer::new(exports.into(), config, cairn_model::Ports::system()).map(drop)
    };
    let good = Limits::default();
    assert!(build(good).is_ok());
    assert!(build(Limits { connections_max: 0, ..good }).is_err());
    assert!(build(Limits { requests_in_flight_max: 0, ..good }).is_err());
    assert!(build(Limits { bytes_in_flight_max: 1 << 20, ..good }).is_err());
}
