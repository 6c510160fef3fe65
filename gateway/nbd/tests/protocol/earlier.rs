//! Contexts of earlier moments: what changed since.

use crate::client::*;
use crate::device::{Call, TestDevice};
use crate::server::{MIB, TestServer};
use cairn_model::ErrorKind;

const TIB: u64 = 1 << 40;

/// Four pages are written, then a moment is remembered, then pages change.
async fn server() -> TestServer {
    let server = TestServer::with_device(TestDevice::new(MIB)).await;
    let mut client = Client::simple(&server.path, "disk").await;
    server.device.remember("empty");
    assert_eq!(client.write(0, 0, &[1; 16_384]).await, 0);
    server.device.remember("full");
    assert_eq!(client.write(0, 4096, &[2; 4096]).await, 0);
    assert_eq!(client.command(0, TRIM, 12_288, 4096).await, 0);
    server
}

async fn structured(server: &TestServer) -> Client {
    let mut client = Client::greeted(&server.path).await;
    assert_eq!(client.option(OPT_STRUCTURED_REPLY, &[]).await.kind, REP_ACK);
    client
}

/// Identifiers and names of the contexts in the replies to an option.
async fn contexts(client: &mut Client, option: u32, name: &str, queries: &[&str]) -> Vec<(u32, String)> {
    let mut replies = client.option_replies(option, &context_data(name, queries)).await;
    assert_eq!(replies.pop().unwrap().kind, REP_ACK);
    let context = |reply: OptionReply| {
        assert_eq!(reply.kind, REP_META_CONTEXT);
        let (id, name) = reply.data.split_first_chunk().unwrap();
        (u32::from_be_bytes(*id), String::from_utf8(name.to_vec()).unwrap())
    };
    replies.into_iter().map(context).collect()
}

async fn listed(client: &mut Client, queries: &[&str]) -> Vec<String> {
    let contexts = contexts(client, OPT_LIST_META_CONTEXT, "disk", queries).await;
    assert!(contexts.iter().all(|(id, _)| *id == 0));
    contexts.into_iter().map(|(_, name)| name).collect()
}

async fn selected(client: &mut Client, queries: &[&str]) -> Vec<(u32, String)> {
    contexts(client, OPT_SET_META_CONTEXT, "disk", queries).await
}

fn words(chunk: &Chunk) -> Vec<u32> {
    assert_eq!(chunk.kind, CHUNK_STATUS, "{chunk:?}");
    chunk.payload.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
}

#[tokio::test]
async fn they_are_listed_by_name_by_both_wildcards_and_with_all() {
    let server = server().await;
    let mut client = structured(&server).await;
    let (base, empty, full) = ("base:allocation", "qemu:dirty-bitmap:empty", "qemu:dirty-bitmap:full");
    assert_eq!(listed(&mut client, &[]).await, [base, empty, full]);
    assert_eq!(listed(&mut client, &["qemu:"]).await, [empty, full]);
    assert_eq!(listed(&mut client, &["qemu:dirty-bitmap:"]).await, [empty, full]);
    assert_eq!(listed(&mut client, &[full, "base:"]).await, [base, full]);
    for strange in ["qemu:allocation-depth", "qemu:dirty-bitmap:ful", "qemu", "qemu:dirty-bitmap"] {
        assert_eq!(listed(&mut client, &[strange]).await, [""; 0], "{strange}");
    }
}

#[tokio::test]
async fn each_that_is_selected_has_an_identifier_of_its_own_and_wildcards_select_nothing() {
    let server = server().await;
    let mut client = structured(&server).await;
    let (base, empty, full) = ("base:allocation", "qemu:dirty-bitmap:empty", "qemu:dirty-bitmap:full");
    for nothing in ["qemu:", "qemu:dirty-bitmap:", "qemu:dirty-bitmap:never"] {
        assert_eq!(selected(&mut client, &[nothing]).await, [], "{nothing}");
    }
    let all = selected(&mut client, &[full, base, empty, full]).await;
    assert_eq!(all, [(1, base.to_owned()), (2, full.to_owned()), (3, empty.to_owned())]);
    client.go("disk").await;
    client.request(0, BLOCK_STATUS, 1, 0, 32_768).await;
    let chunks = client.chunks().await;
    assert_eq!(
        chunks.iter().map(words).collect::<Vec<_>>(),
        [
            vec![1, 12_288, 0, 20_480, 3],
            vec![2, 4096, 0, 4096, 1, 4096, 0, 4096, 1, 16_384, 0],
            vec![3, 12_288, 1, 20_480, 0]
        ]
    );
    assert_eq!(chunks.iter().map(|chunk| chunk.done).collect::<Vec<_>>(), [false, false, true]);
}

#[tokio::test]
async fn one_alone_can_be_selected_and_asked_for_one_extent() {
    let server = server().await;
    let mut client = structured(&server).await;
    assert_eq!(selected(&mut client, &["qemu:dirty-bitmap:full"]).await.len(), 1);
    client.go("disk").await;
    client.request(FLAG_REQ_ONE, BLOCK_STATUS, 1, 5000, 32_768).await;
    assert_eq!(words(&client.chunk().await), [2, 8192 - 5000, 1]);
    assert_eq!(
        server.device.calls().last(),
        Some(&Call::Changes { offset: 5000, length: 32_768, extents_max: 1 })
    );
}

#[tokio::test]
async fn extended_requests_choose_among_them_and_share_the_extents_of_a_reply() {
    let device = TestDevice::new(4 * TIB);
    device.remember("before");
    let server = TestServer::with_device(device).await;
    let mut client = Client::greeted(&server.path).await;
    assert_eq!(client.option(OPT_EXTENDED_HEADERS, &[]).await.kind, REP_ACK);
    selected(&mut client, &["base:allocation", "qemu:dirty-bitmap:before"]).await;
    client.go("disk").await;
    client.extended = true;
    assert_eq!(client.write(0, 4096, &[1; 4096]).await, 0);
    let ask = |client: &Client, ids: &[u32]| {
        let mut payload = 16_384_u64.to_be_bytes().to_vec();
        payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        let mut bytes = client.request_bytes(FLAG_PAYLOAD_LEN, BLOCK_STATUS, 2, 0, payload.len() as u64);
        bytes.extend(payload);
        bytes
    };
    for (ids, expected) in [(&[2][..], &[2][..]), (&[2, 1], &[1, 2]), (&[1], &[1])] {
        let bytes = ask(&client, ids);
        client.send(&bytes).await;
        let told = client.chunks().await;
        let told: Vec<u32> = told.iter().map(|chunk| chunk.payload[3].into()).collect();
        assert_eq!(told, expected, "{ids:?}");
    }
    for ids in [&[3][..], &[2, 2], &[0], &[2, 33]] {
        let bytes = ask(&client, ids);
        client.send(&bytes).await;
        assert_eq!(client.chunk().await.errno(), Some(EINVAL), "{ids:?}");
    }
    client.request(0, BLOCK_STATUS, 3, 0, 65_536).await;
    assert_eq!(client.chunks().await.len(), 2);
    let asked = server.device.calls();
    assert!(asked.contains(&Call::Changes { offset: 0, length: 65_536, extents_max: 32_768 }), "{asked:?}");
}

#[tokio::test]
async fn more_than_sixteen_are_refused_and_none_is_selected() {
    let server = server().await;
    let mut client = structured(&server).await;
    let names: Vec<String> = (0..17).map(|name| format!("qemu:dirty-bitmap:{name}")).collect();
    let queries: Vec<&str> = names.iter().map(String::as_str).chain(["base:allocation"]).collect();
    let refused = client.option(OPT_SET_META_CONTEXT, &context_data("disk", &queries)).await;
    assert_eq!(refused.kind, REP_ERR_TOO_BIG);
    client.go("disk").await;
    client.request(0, BLOCK_STATUS, 1, 0, 4096).await;
    assert_eq!(client.chunk().await.errno(), Some(EINVAL));
}

#[tokio::test]
async fn one_that_cannot_be_opened_is_not_selected_and_one_that_fails_is_an_error() {
    let server = server().await;
    let mut client = structured(&server).await;
    server.device.fail_with(Some(ErrorKind::Unavailable));
    assert_eq!(selected(&mut client, &["qemu:dirty-bitmap:full"]).await, []);
    server.device.fail_with(None);
    assert_eq!(selected(&mut client, &["qemu:dirty-bitmap:full"]).await.len(), 1);
    client.go("disk").await;
    server.device.fail_with(Some(ErrorKind::Unavailable));
    client.request(0, BLOCK_STATUS, 1, 0, 4096).await;
    let chunks = client.chunks().await;
    assert_eq!((chunks.len(), chunks[0].errno()), (1, Some(EIO)));
}
