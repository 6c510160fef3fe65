//! Writes the format fixtures of this version; run once when a format version is made, never to mend a failing test.
//!
//! `cargo run -p cairn-segment-writer --example write_fixtures -- segment-writer/tests/fixtures`

#![allow(clippy::unwrap_used, reason = "this is a tool of the tests")]

#[path = "../tests/common/mod.rs"]
mod common;

fn main() {
    let folder = std::env::args().nth(1).expect("the folder to write to is the first argument");
    let folder = std::path::Path::new(&folder);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for (name, domain) in [("segment-v2", common::domain()), ("segment-v2-open", common::open_domain())] {
        let segments = runtime.block_on(async { common::fixture_segments(&domain) });
        for segment in segments {
            let path = folder.join(format!("{name}-{}.bin", segment.index()));
            assert!(!path.exists(), "{} exists: released bytes are not rewritten", path.display());
            std::fs::write(path, segment.pieces().concat()).unwrap();
        }
    }
}
