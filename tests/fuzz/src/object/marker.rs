//! The marker that makes a place a data node.
//!
//! What must hold: a node opens only if its marker says so, of this version, this site and this node, as another JSON parser reads it.

use super::{block_on, node_id, policy, site, store_with};
use crate::{Seeds, lie, memory};
use cairn_model::Ports;
use cairn_segment_writer::{DataNode, MARKER_KEY};
use serde_json::{Value, json};

pub(crate) fn run(bytes: &[u8]) {
    let store = store_with(MARKER_KEY, bytes);
    let open = || {
        block_on(DataNode::open_store(store, "mem://node", site(), node_id(), policy(), Ports::system()))
            .is_ok()
    };
    if memory::bounded(64 * bytes.len() + (256 << 10), open) || lie::told() {
        let mut value: Value = serde_json::from_slice(bytes).expect("an accepted marker is JSON");
        // Capital digits are digits.
        for id in ["site", "node"] {
            value[id] = json!(value[id].as_str().expect("an id is text").to_ascii_lowercase());
        }
        let expected = marker(value["version"].clone());
        assert!(value["version"].as_u64().is_some_and(|version| version <= 1), "{value}");
        assert_eq!(value, expected, "a marker of something else is accepted");
    }
}

#[expect(clippy::needless_pass_by_value, reason = "json! takes it")]
fn marker(version: Value) -> Value {
    let (site, node) = (site().to_string(), node_id().to_string());
    json!({"format": "cairn-node", "version": version, "site": site, "node": node})
}

pub(crate) fn seeds() -> Seeds {
    let text = marker(json!(1)).to_string();
    let other = text.replace(&node_id().to_string(), &site().to_string());
    [
        ("own", text.clone()),
        ("newer", text.replace(":1,", ":2,")),
        ("other", other),
        ("cut", text[..40].to_owned()),
    ]
    .map(|(name, text)| (name.to_owned(), text.into_bytes()))
    .into()
}
