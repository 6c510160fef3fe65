//! `nbdinfo`, `nbdcopy` and `nbdsh`.

use super::{compare_files, make_source};
use crate::export::Export;
use crate::tool::Tool;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// `nbdinfo` sees the size and the abilities that a full server has.
pub fn describes_itself(export: &Export, size: u64) -> Result<()> {
    let said = Tool::new("nbdinfo").arg("--json").arg(export.uri()).run()?.stdout;
    let description: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let volume = &description["exports"][0];
    if volume["export-size"] != size {
        bail!("the export is {} bytes long, not {size}", volume["export-size"]);
    }
    for ability in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_df", "can_cache"] {
        if volume[ability] != true {
            bail!("{ability} is {}: {said}", volume[ability]);
        }
    }
    if volume["is_read_only"] != false || description["structured"] != true {
        bail!("read-only, or without structured replies: {said}");
    }
    let contexts = volume["contexts"].as_array().context("no meta contexts")?;
    if !contexts.iter().any(|context| context == "base:allocation") {
        bail!("base:allocation is not offered: {said}");
    }
    Ok(())
}

/// The listing holds the export by name.
pub fn is_listed(export: &Export) -> Result<()> {
    let uri = format!("nbd+unix:///?socket={}", export.socket()?.display());
    let said = Tool::new("nbdinfo").args(["--list", "--json"]).arg(uri).run()?.stdout;
    let listing: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let exports = listing["exports"].as_array().context("no exports")?;
    if !exports.iter().any(|listed| listed["export-name"] == export.name.as_str()) {
        bail!("{} is not listed: {said}", export.name);
    }
    Ok(())
}

/// What `nbdcopy` puts in comes out again, with `request_size` bytes to a request.
pub fn copies_both_ways(export: &Export, size: u64, request_size: u32) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("source");
    make_source(&source, size, 1)?;
    copies(export, &source, &folder.path().join("back"), request_size)
}

/// The same with a given image; `back` is where it is copied to.
pub fn copies(export: &Export, source: &Path, back: &Path, request_size: u32) -> Result<()> {
    let copy = || {
        Tool::new("nbdcopy")
            .args(["--connections=4", "--requests=64"])
            .arg(format!("--request-size={request_size}"))
            .timeout(Duration::from_mins(5))
    };
    copy().arg("--flush").arg(source).arg(export.uri()).run()?;
    copy().arg(export.uri()).arg(back).run()?;
    compare_files(source, back)
}

/// Runs a script under `nbdsh` with the export's address and size at hand.
pub fn runs_script(export: &Export, size: u64, script: &str) -> Result<()> {
    let prologue = format!(
        "import nbd, errno, random\nuri = {:?}\nname = {:?}\nsocket = {:?}\nsize = {size}\n",
        export.uri(),
        export.name,
        export.socket()?.display().to_string()
    );
    Tool::new("nbdsh")
        // nbdsh takes the first python3; libnbd's module belongs to Debian's own.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .arg("-c")
        .arg(prologue + script)
        .run()
        .map(drop)
}
