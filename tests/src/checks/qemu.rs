//! `qemu-img` and `qemu-io`.

use super::make_source;
use crate::export::Export;
use crate::tool::Tool;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

fn qemu_img() -> Tool {
    Tool::new("qemu-img").timeout(Duration::from_mins(5))
}

/// `convert` puts an image in and takes it out; `compare` finds no difference either way.
pub fn converts_and_compares(export: &Export, size: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("source");
    make_source(&source, size, 2)?;
    converts(export, &source, &folder.path().join("back"))
}

/// The same with a given image; `back` is where it is copied to.
pub fn converts(export: &Export, source: &Path, back: &Path) -> Result<()> {
    let uri = export.uri();
    qemu_img()
        .args(["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw"])
        .arg(source)
        .arg(&uri)
        .run()?;
    compare_with(export, source)?;
    qemu_img().args(["convert", "-f", "raw", "-O", "raw"]).arg(&uri).arg(back).run()?;
    super::compare_files(source, back)
}

/// `compare` sees a difference of one block, and so would have seen one above.
pub fn compare_sees_a_difference(export: &Export, size: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("source");
    make_source(&source, size, 2)?;
    let mut client = export.connect()?;
    let mut block = client.read(size / 2, 4096)?;
    block[17] ^= 1;
    client.write(size / 2, &block)?;
    client.disconnect()?;
    let compared = qemu_img()
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(&source)
        .arg(export.uri())
        .run_refused()?;
    if !compared.stdout.contains("Content mismatch at offset") {
        bail!("{}", compared.describe());
    }
    Ok(())
}

/// `map` tells data from holes: one MiB of data in an empty export is all the data there is.
pub fn maps_data_and_holes(export: &Export, size: u64) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let mut client = export.connect()?;
    client.write(4 * MIB, &vec![7; usize::try_from(MIB)?])?;
    client.disconnect()?;
    let said = qemu_img().args(["map", "--output=json", "-f", "raw"]).arg(export.uri()).run()?.stdout;
    let map: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let (mut data, mut end) = (0, 0);
    for extent in map.as_array().context("the map is no list")? {
        let number = |field: &str| extent[field].as_u64().with_context(|| said.clone());
        if number("start")? != end {
            bail!("the map has a gap at {end}: {said}");
        }
        end += number("length")?;
        if extent["data"] == true {
            data += number("length")?;
        }
    }
    if end != size || data != MIB {
        bail!("the map covers {end} of {size} bytes and calls {data} of them data: {said}");
    }
    Ok(())
}

/// `bench` writes and reads with many requests in flight and flushes between, and no request fails.
pub fn benches(export: &Export) -> Result<()> {
    let bench =
        || qemu_img().args(["bench", "-f", "raw", "-c", "20000", "-d", "64", "-s", "4096", "-S", "4096"]);
    bench().args(["-w", "--flush-interval=64"]).arg(export.uri()).run()?;
    bench().arg(export.uri()).run().map(drop)
}

/// A qcow2 image lives on the export: it is filled, checked, changed, snapshotted and read back.
pub fn carries_qcow2(export: &Export) -> Result<()> {
    const VIRTUAL: u64 = 256 << 20;
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("source");
    make_source(&source, VIRTUAL, 3)?;
    let uri = export.uri();
    qemu_img().args(["create", "-q", "-f", "qcow2"]).arg(&uri).arg(VIRTUAL.to_string()).run()?;
    qemu_img().args(["convert", "-n", "-f", "raw", "-O", "qcow2"]).arg(&source).arg(&uri).run()?;
    check_qcow2(&uri)?;
    qemu_img().args(["compare", "-f", "raw", "-F", "qcow2"]).arg(&source).arg(&uri).run()?;
    qemu_img().args(["snapshot", "-c", "before"]).arg(&uri).run()?;
    qemu_io(&uri, &["write -P 0x5a 1M 3M", "discard 8M 4M", "write -P 0xa5 65000k 7k", "flush"])?;
    check_qcow2(&uri)?;
    qemu_io(&uri, &["read -P 0x5a 1M 3M", "read -P 0 8M 4M", "read -P 0xa5 65000k 7k"])?;
    qemu_img().args(["snapshot", "-a", "before"]).arg(&uri).run()?;
    check_qcow2(&uri)?;
    qemu_img().args(["compare", "-f", "raw", "-F", "qcow2"]).arg(&source).arg(&uri).run().map(drop)
}

fn check_qcow2(uri: &str) -> Result<()> {
    qemu_img().args(["check", "-f", "qcow2"]).arg(uri).run().map(drop)
}

fn qemu_io(uri: &str, commands: &[&str]) -> Result<()> {
    let mut tool = Tool::new("qemu-io").args(["-f", "qcow2", "-d", "unmap"]);
    for command in commands {
        tool = tool.args(["-c", command]);
    }
    let finished = tool.arg(uri).run()?;
    if finished.stdout.contains("verification failed") {
        bail!("{}", finished.describe());
    }
    Ok(())
}

/// Compares a raw file with the export.
pub fn compare_with(export: &Export, file: &Path) -> Result<()> {
    qemu_img().args(["compare", "-f", "raw", "-F", "raw"]).arg(file).arg(export.uri()).run().map(drop)
}
