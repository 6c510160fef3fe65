//! Every committed input through its target, without a fuzzer; and the proof that each target can fail.
#![allow(clippy::unwrap_used, reason = "this is a test")]

use cairn_fuzz::{SELF_CHECK, TARGETS, Target, lie};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// Names and bytes, in the order of names.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder(target)).expect("the target has a corpus");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no corpus", target.name);
    let read = |path: PathBuf| (path.display().to_string(), std::fs::read(&path).unwrap());
    paths.into_iter().map(read).collect()
}

fn replay(name: &str) {
    cairn_fuzz::let_expected_panics_pass();
    let target = cairn_fuzz::find(name).unwrap();
    for (name, bytes) in corpus(target) {
        assert!(bytes.len() <= target.bytes_max, "{name} is longer than inputs of its target");
        let passed = catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes)));
        assert!(passed.is_ok(), "{name} fails");
    }
    let caught = corpus(target).into_iter().chain((target.seeds)()).any(|(_, bytes)| {
        lie::while_lying(|| catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes)))).is_err()
    });
    cairn_fuzz::end();
    assert!(caught, "{name} is lied to and passes");
}

macro_rules! replayed {
    ($($name:ident)+) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )+

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),+];
            assert_eq!(TARGETS.map(|target| target.name), replayed);
        }
    };
}

replayed! {
    nbd_handshake nbd_transmission wal_bytes wal_recovery segment_bytes segment_object segment_shard node_marker record_bytes map_delta
    map_leaf fingerprint_records qcow2_image raw_image config key_file sealed_key_file published_keys admin_api
}

/// Seeds are committed; this tells when a target changed and they were not written again.
#[test]
fn every_seed_is_accepted_by_its_target() {
    cairn_fuzz::let_expected_panics_pass();
    for target in &TARGETS {
        for (name, bytes) in (target.seeds)() {
            assert!(bytes.len() <= target.bytes_max, "{}: seed {name} is too long", target.name);
            let passed = catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes)));
            assert!(passed.is_ok(), "{}: seed {name} fails", target.name);
        }
    }
    cairn_fuzz::end();
}

#[test]
fn the_planted_failure_is_a_failure() {
    let planted = b"riacfuz!";
    assert!(catch_unwind(|| (SELF_CHECK.run)(planted)).is_err());
    assert!(catch_unwind(|| (SELF_CHECK.run)(b"riacfux!")).is_ok());
}
