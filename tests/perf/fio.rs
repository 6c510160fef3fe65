//! One fio job, and qemu-img's bench.

use crate::contender::Running;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::time::Duration;
use system_tests::export::Export;
use system_tests::tool::Tool;

/// One random or sequential workload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) mode: &'static str,
    pub(crate) block_bytes: u32,
    pub(crate) depth: u32,
    /// A flush after this many writes; 0 for none.
    pub(crate) flush_every: u32,
}

/// What a job did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) operations_per_second: f64,
    pub(crate) operations: f64,
    pub(crate) bytes: f64,
    pub(crate) seconds: f64,
}

impl Job {
    /// Runs over the first `area` bytes for so many seconds, or once over when `seconds` is 0.
    pub(crate) fn run(&self, target: &Running, area: u64, seconds: u32) -> Result<Done> {
        let mut tool = Tool::new("fio")
            .args(["--name=bench", "--thread", "--output-format=json", "--randrepeat=0", "--norandommap"])
            .args(target.fio_target())
            .arg(format!("--rw={}", self.mode))
            .arg(format!("--bs={}", self.block_bytes))
            .arg(format!("--iodepth={}", self.depth))
            .arg(format!("--size={area}"))
            .timeout(Duration::from_mins(10));
        if self.flush_every > 0 {
            tool = tool.arg(format!("--{}={}", target.fio_flush(), self.flush_every));
        }
        if seconds > 0 {
            tool = tool.arg("--time_based").arg(format!("--runtime={seconds}"));
        }
        let said = tool.run()?.stdout;
        // fio's nbd engine speaks before the JSON begins.
        let json = said.find('{').map(|start| &said[start..]).with_context(|| said.clone())?;
        let report: Value = serde_json::from_str(json).with_context(|| said.clone())?;
        let job = &report["jobs"][0];
        if job["error"] != 0 {
            bail!("fio failed: {said}");
        }
        let side = &job[if self.mode.ends_with("read") { "read" } else { "write" }];
        let number =
            |field: &str| side[field].as_f64().with_context(|| format!("fio reports no {field}: {said}"));
        Ok(Done {
            operations_per_second: number("iops")?,
            operations: number("total_ios")?,
            bytes: number("io_bytes")?,
            seconds: number("runtime")? / 1000.0,
        })
    }
}

/// `qemu-img bench` with 4 KiB at depth 32; returns requests a second.
pub(crate) fn qemu_img_bench(export: &Export, write: bool, requests: u32) -> Result<f64> {
    let mut tool = Tool::new("qemu-img")
        .args(["bench", "-f", "raw", "-d", "32", "-s", "4096", "-S", "4096"])
        .arg("-c")
        .arg(requests.to_string());
    if write {
        tool = tool.arg("-w");
    }
    let finished = tool.arg(export.uri()).run()?;
    let seconds: f64 = finished
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("Run completed in ")?.strip_suffix(" seconds."))
        .with_context(|| finished.describe())?
        .parse()?;
    Ok(f64::from(requests) / seconds)
}
