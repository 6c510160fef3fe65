//! `fuzz` runs one target, chosen by `CAIRN_FUZZ_TARGET`. In its place, `list` prints the targets and the lengths of their longest
//! inputs, and `seeds:DIR` writes the seeds of all targets, each to its folder.
//!
//! Built with the feature `libfuzzer` it is libFuzzer and takes its options. Built without, it gives the files that it is named to
//! the target: how a failure is looked at.
#![cfg_attr(feature = "libfuzzer", no_main)]
#![allow(clippy::unwrap_used, reason = "all of this is test code")]

use cairn_fuzz::{SELF_CHECK, TARGETS, Target};
use std::path::Path;

/// The target of the environment; the program ends here if it is asked for something else.
fn chosen() -> &'static Target {
    let name = std::env::var("CAIRN_FUZZ_TARGET").expect("CAIRN_FUZZ_TARGET names the target, or is `list`");
    if name == "list" {
        for target in TARGETS.iter().chain([&SELF_CHECK]) {
            println!("{} {}", target.name, target.bytes_max);
        }
    } else if let Some(corpora) = name.strip_prefix("seeds:") {
        write_seeds(Path::new(corpora));
    } else {
        return cairn_fuzz::find(&name).unwrap_or_else(|| panic!("there is no target {name}"));
    }
    std::process::exit(0);
}

fn write_seeds(corpora: &Path) {
    for target in TARGETS {
        let folder = corpora.join(target.name);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in (target.seeds)() {
            std::fs::write(folder.join(format!("seed-{name}")), bytes).unwrap();
        }
    }
}

#[cfg(feature = "libfuzzer")]
mod driver {
    use std::sync::OnceLock;

    static RUN: OnceLock<fn(&[u8])> = OnceLock::new();

    libfuzzer_sys::fuzz_target!(
        init: {
            assert!(cfg!(fuzzing), "built without coverage: use tests/fuzz/run or just fuzz");
            cairn_fuzz::let_expected_panics_pass();
            RUN.set(super::chosen().run).unwrap();
        },
        |bytes: &[u8]| {
            RUN.get().unwrap()(bytes);
        }
    );
}

#[cfg(not(feature = "libfuzzer"))]
fn main() {
    let target = chosen();
    cairn_fuzz::let_expected_panics_pass();
    for path in std::env::args().skip(1) {
        (target.run)(&std::fs::read(&path).unwrap());
        println!("{path}: passes");
    }
    cairn_fuzz::end();
}
