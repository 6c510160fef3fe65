//! One look at the gateway: what the kernel says about its process, what it says about itself, what lies on the disk.

use crate::metric::Metric;
use crate::site::Site;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The values of all metrics at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    /// Which process: how often the gateway had been killed.
    pub(crate) kills: u64,
    values: [f64; Metric::ALL.len()],
}

impl Sample {
    pub(crate) fn new(seconds: f64, kills: u64, of: impl Fn(Metric) -> f64) -> Self {
        Self { seconds, kills, values: Metric::ALL.map(of) }
    }

    pub(crate) fn value(&self, metric: Metric) -> f64 {
        self.values[metric as usize]
    }
}

/// Less than this on the disk would end the run as a failure of the machine, not of the gateway.
const FREE_BYTES_MIN: u64 = 3 << 30;

pub(crate) fn take(site: &Site, after: Duration) -> Result<Sample> {
    let gateway = site.calm();
    let status = gateway.status()?;
    let process = gateway.process()?;
    let memory = Memory::of(process.id())?;
    let cpu = process.cpu_seconds()?;
    let catalog = ["catalog.db", "catalog.db-wal", "catalog.db-shm"].map(|name| gateway.dir().join(name));
    let catalog = catalog.iter().map(|file| length(file)).sum::<f64>();
    let log = length(&gateway.log());
    let number = |path: &str| {
        status.pointer(path).and_then(Value::as_f64).with_context(|| format!("no number {path} in {status}"))
    };
    let (wal, backlog) = (number("/wal/used_bytes")?, number("/destage/backlog_bytes")?);
    let (pool, connections) = (number("/pool/segment_bytes")?, number("/gateway/nbd_connections")?);
    let caches = number("/memory/block_cache_bytes")? + number("/memory/map_cache_bytes")?;
    let disk = rustix::fs::statvfs(gateway.dir())?;
    if disk.f_bavail * disk.f_frsize < FREE_BYTES_MIN {
        site.stop();
        bail!("the disk under {} is nearly full; the run ends here", gateway.dir().display());
    }
    Ok(Sample::new(after.as_secs_f64(), site.kills().load(Ordering::SeqCst), |metric| match metric {
        Metric::Anonymous => memory.anonymous,
        Metric::Resident => memory.resident,
        Metric::Proportional => memory.proportional,
        Metric::Caches => caches,
        Metric::Threads => memory.threads,
        Metric::Descriptors => memory.descriptors - memory.tcp,
        Metric::Store => memory.tcp,
        Metric::Connections => connections,
        Metric::Wal => wal,
        Metric::Backlog => backlog,
        Metric::Catalog => catalog,
        Metric::Pool => pool,
        Metric::Log => log,
        Metric::Cpu => cpu,
    }))
}

/// What `/proc` says about a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) anonymous: f64,
    pub(crate) resident: f64,
    pub(crate) proportional: f64,
    pub(crate) threads: f64,
    pub(crate) descriptors: f64,
    /// Those of them that are TCP connections: only the object store is reached by TCP here.
    pub(crate) tcp: f64,
}

impl Memory {
    pub(crate) fn of(process: u32) -> Result<Self> {
        let folder = Path::new("/proc").join(process.to_string());
        let status = std::fs::read_to_string(folder.join("status"))?;
        let rollup = std::fs::read_to_string(folder.join("smaps_rollup"))?;
        let (descriptors, tcp) = descriptors(&folder)?;
        Ok(Self {
            anonymous: field(&status, "RssAnon:")? * 1024.0,
            resident: field(&status, "VmRSS:")? * 1024.0,
            proportional: field(&rollup, "Pss:")? * 1024.0,
            threads: field(&status, "Threads:")?,
            descriptors,
            tcp,
        })
    }
}

/// How many descriptors are open, and how many of them are TCP sockets.
fn descriptors(process: &Path) -> Result<(f64, f64)> {
    let mut sockets = HashSet::new();
    for table in ["net/tcp", "net/tcp6"] {
        let table = std::fs::read_to_string(process.join(table))?;
        let inodes = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(9));
        sockets.extend(inodes.map(|inode| format!("socket:[{inode}]")));
    }
    let (mut open, mut tcp) = (0.0, 0.0);
    for descriptor in std::fs::read_dir(process.join("fd"))? {
        open += 1.0;
        // One that was closed meanwhile names nothing.
        let name = std::fs::read_link(descriptor?.path()).unwrap_or_default();
        if sockets.contains(&*name.to_string_lossy()) {
            tcp += 1.0;
        }
    }
    Ok((open, tcp))
}

fn field(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {name}"))?;
    Ok(value.parse()?)
}

/// The length of a file; one that is not there has none.
#[expect(clippy::cast_precision_loss, reason = "files are shorter than 2^53 bytes")]
fn length(file: &Path) -> f64 {
    std::fs::metadata(file).map_or(0.0, |file| file.len() as f64)
}

/// The samples as a table on disk, complete at every moment.
pub(crate) struct Csv {
    file: File,
    trouble: Result<()>,
}

impl Csv {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let mut file = File::create(path).with_context(|| format!("making {}", path.display()))?;
        let columns = Metric::ALL.map(Metric::column).join(",");
        writeln!(file, "seconds,kills,{columns}")?;
        Ok(Self { file, trouble: Ok(()) })
    }

    pub(crate) fn add(&mut self, sample: &Sample) {
        let values = sample.values.map(|value| format!("{value}")).join(",");
        let line = format!("{:.1},{},{values}\n", sample.seconds, sample.kills);
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            self.trouble = Err(error).context("writing samples.csv");
        }
    }

    pub(crate) fn finish(self) -> Result<()> {
        self.trouble
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_taken_and_files_that_are_opened_are_seen() -> Result<()> {
        const TAKEN: u32 = 64 << 20;
        let before = Memory::of(std::process::id())?;
        let taken = vec![1_u8; usize::try_from(TAKEN)?];
        let opened: Vec<File> = (0..10).map(|_| File::open("/dev/null")).collect::<Result<_, _>>()?;
        let after = Memory::of(std::process::id())?;
        assert!(after.anonymous - before.anonymous > f64::from(TAKEN) * 0.9, "{before:?} {after:?}");
        assert!(after.resident >= after.anonymous && after.proportional > 0.0, "{after:?}");
        assert!(after.descriptors - before.descriptors >= 10.0, "{before:?} {after:?}");
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let connected = std::net::TcpStream::connect(listener.local_addr()?)?;
        let tcp = Memory::of(std::process::id())?.tcp;
        assert!(tcp - after.tcp >= 2.0, "a listener and a connection: {tcp} after {}", after.tcp);
        drop((taken, opened, connected));
        Ok(())
    }
}
