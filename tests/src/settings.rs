//! What the environment may say: where the program is, and how long the long versions take.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lives in the workspace").to_owned()
}

/// The program under test: `CAIRN_BIN`, or the workspace's release build.
pub fn cairn_binary() -> Result<PathBuf> {
    let path = match std::env::var_os("CAIRN_BIN") {
        Some(path) => PathBuf::from(path),
        None => target_folder().join("release/cairn"),
    };
    if !path.is_file() {
        bail!(
            "the program under test is missing: {} does not exist; run `cargo build --release -p cairn-gateway`, \
             or name it in CAIRN_BIN",
            path.display()
        );
    }
    Ok(path)
}

/// Where cargo builds.
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// A tool that `tests/install-tools.sh` builds, or one of its data files.
pub fn built_tool(name: &str) -> Result<PathBuf> {
    let path = workspace().join("tests/.tools").join(name);
    if !path.is_file() {
        bail!("{name} is missing; run tests/install-tools.sh");
    }
    Ok(path)
}

/// A number from the environment, or the default when the variable is not set. A value that is no number fails.
pub fn number<T: FromStr>(variable: &str, default: T) -> Result<T> {
    match std::env::var(variable) {
        Ok(text) => match text.parse() {
            Ok(value) => Ok(value),
            Err(_) => bail!("{variable} is {text:?}, which is not a number"),
        },
        Err(std::env::VarError::NotPresent) => Ok(default),
        Err(error) => Err(error).with_context(|| format!("reading {variable}")),
    }
}

/// How many rounds of SIGKILL: `CAIRN_E2E_ROUNDS`.
pub fn crash_rounds() -> Result<u32> {
    number("CAIRN_E2E_ROUNDS", 5)
}

/// How many snapshots of a volume under load: `CAIRN_E2E_SNAPSHOTS`.
pub fn snapshots_under_load() -> Result<u32> {
    number("CAIRN_E2E_SNAPSHOTS", 30)
}

/// How many rounds of mixed crashes: `CAIRN_E2E_CRASHES`. Six are one of each kind.
pub fn mixed_crash_rounds() -> Result<u32> {
    number("CAIRN_E2E_CRASHES", 6)
}

/// By how much the sizes and durations of the long checks grow: `CAIRN_E2E_SCALE`.
pub fn scale() -> Result<u64> {
    number("CAIRN_E2E_SCALE", 1)
}
