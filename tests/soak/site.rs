//! The gateway under load, and what everybody who attacks it shares.

use crate::options::Options;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};
use system_tests::gateway::Gateway;
use system_tests::object_store::Ceph;

/// Small caches, so that they are full and evict after minutes: only then is flat memory worth anything.
const CONFIG: &str = "\
[wal]
capacity = \"1GiB\"

[memory]
write_buffer = \"64MiB\"
block_cache = \"128MiB\"
map_cache = \"32MiB\"
";

/// A run that fails this often has said enough.
const FAILURES_MAX: usize = 20;

/// A check that failed, and when.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) after: Duration,
    pub(crate) who: String,
    pub(crate) what: String,
}

#[derive(Debug)]
pub(crate) struct Site {
    gateway: RwLock<Gateway>,
    kills: Arc<AtomicU64>,
    started: Instant,
    bytes_per_second: u64,
    is_stopped: Mutex<bool>,
    stopped: Condvar,
    failures: Mutex<Vec<Failure>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Site {
    /// A gateway on a fresh folder, with its pool in a fresh bucket of the store.
    pub(crate) fn start(ceph: &Ceph, options: &Options) -> Result<Self> {
        let mut gateway = Gateway::new_with(ceph.credentials())?;
        gateway.command(["init", "--create-bucket", "--pool", &ceph.node_url("soak")?]).run()?;
        std::fs::write(gateway.dir().join("cairn.toml"), CONFIG)?;
        gateway.start()?;
        Ok(Self {
            gateway: RwLock::new(gateway),
            kills: Arc::new(AtomicU64::new(0)),
            started: Instant::now(),
            bytes_per_second: options.bytes_per_second(),
            is_stopped: Mutex::new(false),
            stopped: Condvar::new(),
            failures: Mutex::new(Vec::new()),
            counts: Mutex::new(BTreeMap::new()),
        })
    }

    /// The gateway, which nobody kills while this is held.
    pub(crate) fn calm(&self) -> RwLockReadGuard<'_, Gateway> {
        self.gateway.read().expect("nobody panics with the gateway")
    }

    /// How often the gateway was killed; counted up before it happens.
    pub(crate) fn kills(&self) -> &Arc<AtomicU64> {
        &self.kills
    }

    /// SIGKILL, and a new start on what is left. Waits until everybody who holds the calm has let go.
    pub(crate) fn kill_and_start(&self) -> Result<()> {
        let mut gateway = self.gateway.write().expect("nobody panics with the gateway");
        self.kills.fetch_add(1, Ordering::SeqCst);
        gateway.kill()?;
        gateway.start()
    }

    /// SIGTERM, and a new start: everything must come from the pool.
    pub(crate) fn restart_in_order(&self) -> Result<()> {
        let mut gateway = self.gateway.write().expect("nobody panics with the gateway");
        gateway.stop()?;
        gateway.start()
    }

    pub(crate) fn end(&self) -> Result<()> {
        self.gateway.write().expect("nobody panics with the gateway").stop()
    }

    /// Does what changes nothing again when the gateway was killed under it.
    pub(crate) fn despite_kills<T>(&self, mut what: impl FnMut(u64) -> Result<T>) -> Result<T> {
        loop {
            let before = self.kills.load(Ordering::SeqCst);
            drop(self.calm());
            match what(before) {
                Err(_) if self.kills.load(Ordering::SeqCst) != before => {}
                done => return done,
            }
        }
    }

    /// How many bytes a second the holder of such a share may write.
    pub(crate) fn rate(&self, percent: u64) -> u64 {
        (self.bytes_per_second * percent / 100).max(1)
    }

    pub(crate) fn stop(&self) {
        *self.is_stopped.lock().expect("no panic with the lock") = true;
        self.stopped.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.is_stopped.lock().expect("no panic with the lock")
    }

    /// Waits so long, or until the run stops.
    pub(crate) fn rest(&self, time: Duration) {
        let is_stopped = self.is_stopped.lock().expect("no panic with the lock");
        let waited = self.stopped.wait_timeout_while(is_stopped, time, |stopped| !*stopped);
        drop(waited.expect("no panic with the lock"));
    }

    pub(crate) fn count(&self, what: &'static str, number: u64) {
        *self.counts.lock().expect("no panic with the lock").entry(what).or_default() += number;
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().expect("no panic with the lock").clone()
    }

    /// Takes down what went wrong; the run goes on, because what else it shows may explain it.
    pub(crate) fn fail(&self, who: &str, error: &anyhow::Error) {
        let failure =
            Failure { after: self.started.elapsed(), who: who.to_owned(), what: format!("{error:#}") };
        eprintln!("soak: {:.0} s: {who} FAILED: {}", failure.after.as_secs_f64(), failure.what);
        let mut failures = self.failures.lock().expect("no panic with the lock");
        failures.push(failure);
        let is_enough = failures.len() >= FAILURES_MAX;
        drop(failures);
        if is_enough {
            self.stop();
        }
    }

    pub(crate) fn failures(&self) -> Vec<Failure> {
        self.failures.lock().expect("no panic with the lock").clone()
    }

    /// A thread that panicked is survived by the program and found here.
    pub(crate) fn find_panics(&self) -> Result<()> {
        let path = self.calm().log();
        let said = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let said = String::from_utf8_lossy(&said);
        match said.lines().find(|line| line.contains("panicked")) {
            Some(line) => bail!("the gateway panicked: {line}"),
            None => Ok(()),
        }
    }

    pub(crate) fn keep_log(&self, folder: &Path) -> Result<()> {
        std::fs::copy(self.calm().log(), folder.join("gateway.log")).context("keeping the gateway's log")?;
        Ok(())
    }
}
