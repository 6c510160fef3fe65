//! Attaches a data node, stores and reads segments, and prints what happened: a check of a real server by hand.
//!
//! `cargo run -p cairn-segment-writer --example try_node -- URL [SEGMENTS]`, for example
//! `s3://bucket/prefix?endpoint=http://127.0.0.1:7480` with the access key in the environment. The bucket is made if it is missing.

#![allow(clippy::unwrap_used, reason = "this is a tool: it may stop")]

#[path = "../tests/common/mod.rs"]
mod common;

use cairn_model::{Lba, Ports};
use cairn_segment_writer::{DataNode, NodeAccess, NodeUrl, PackConfig, Pool, S3Admin};
use common::{domain, finish, packer, packing, place_of, random, read_back, site, text, volume};
use std::collections::BTreeMap;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().expect("the first argument is the node's URL");
    let segments: u64 = arguments.next().map_or(4, |count| count.parse().unwrap());
    let ports = Ports::system();
    let access = NodeAccess::new(NodeUrl::parse(&url).unwrap_or_else(|error| panic!("{error}")));
    if let Some(admin) = S3Admin::new(&access).unwrap_or_else(|error| panic!("{error}")) {
        println!("bucket made: {}", admin.create_bucket().await.unwrap_or_else(|error| panic!("{error}")));
        println!("{:?}", admin.capabilities(&*ports.entropy).await.unwrap_or_else(|error| panic!("{error}")));
    }
    let node =
        DataNode::attach(&access, site(), ports.clone()).await.unwrap_or_else(|error| panic!("{error}"));
    println!("node {}", node.id());
    let again =
        DataNode::open(&access, site(), node.id(), ports).await.unwrap_or_else(|error| panic!("{error}"));
    let pool = Pool::single(again);

    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), packing());
    let mut expected = BTreeMap::new();
    for number in 0..segments {
        let data = [random(1024, number), text(4096, number)].concat();
        let start = Lba::new(number << 20);
        for (offset, block) in data.chunks(common::BLOCK).enumerate() {
            expected.insert(start.plus(offset as u64), Some(block.to_vec().into()));
        }
        packer.run(start, &[data.into()]);
    }
    let done = finish(packer);
    for segment in &done.segments {
        let receipt = pool.put(segment).await.unwrap_or_else(|error| panic!("{error}"));
        let footer = pool.nodes()[0].read_footer(receipt.key(), &domain()).await.unwrap();
        assert_eq!(footer.segment, segment.id());
    }
    assert!(
        read_back(&pool, &domain(), &done.segments, &done.batch.deltas[0].delta).await == expected,
        "other data came back"
    );
    let place = place_of(&pool, "segments/00/missing", 10);
    let missing = pool.get_range(&place, 0..10).await.unwrap_err();
    println!("as expected: {missing}");
    println!("{:#?}", pool.nodes()[0].health().snapshot());
}
