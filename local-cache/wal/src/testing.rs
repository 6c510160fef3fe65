//! A disk in memory that loses power, and the ports to run the log on one thread under a seed.
//!
//! The disk keeps what is durable apart from what was only written. A sync makes durable what was written when it began.
//! [`MemoryDisk::lose_power`] keeps any subset of the unsynced 512-byte sectors, and tears some of the others. A failed sync leaves
//! pages that read as written and are not on the device, as Linux does; a disk may also lie about its syncs, and flip bits of what it
//! holds. Operations yield now and then, so that the seed decides how tasks interleave.

use crate::disk::{Disk, DiskFile, DiskFuture};
use cairn_model::{
    Clock, DedicatedWork, Entropy, Monotonic, Ports, SeededEntropy, Spawn, SystemClock, WallTime,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

const SECTOR: usize = 512;
/// Of a hundred sectors that a power cut does not keep.
const TORN_PERCENT: u64 = 5;
/// Writes of a file that [`MemoryDisk::flip_a_bit`] chooses from.
const RECENT_WRITES: usize = 64;

/// Numbers that a seed decides.
#[derive(Debug)]
pub struct Dice(SeededEntropy);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(SeededEntropy::new(seed))
    }

    /// A number below `limit`.
    pub fn below(&self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit
    }

    /// True `percent` times in a hundred.
    pub fn percent(&self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the log asks of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Create(String),
    Write { file: String, offset: u64, length: usize },
    Sync(String),
    Rename(String),
    Remove(String),
}

type Fault = Box<dyn FnMut(&Operation) -> Option<io::ErrorKind> + Send>;

#[derive(Debug, Default, Clone)]
struct FileState {
    /// What reads see.
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Per sector: written since the last sync.
    dirty: Vec<bool>,
    /// The last writes that no later one touched.
    recent: VecDeque<Recent>,
    writes: u64,
}

#[derive(Debug, Clone)]
struct Recent {
    number: u64,
    range: Range<usize>,
    /// Syncs that began after it, made something durable, and ended.
    followed_by: u64,
}

/// What a sync makes durable.
struct Covered {
    /// The sectors that were dirty when it began, and what they held.
    sectors: Vec<(usize, Vec<u8>)>,
    /// The recent writes of before, by number.
    writes: Vec<u64>,
}

struct State {
    files: BTreeMap<String, FileState>,
    fault: Option<Fault>,
    /// Changes until everything stops, as if the process were gone.
    changes_left: Option<u64>,
    changes: u64,
    /// Syncs succeed and make nothing durable.
    lies: bool,
    /// It did, and power has not been cut since.
    has_lied: bool,
}

/// See the module.
#[derive(Clone)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
    dice: Arc<Dice>,
    stopped: watch::Sender<bool>,
    /// Syncs that began do not end.
    held: watch::Sender<bool>,
    at_once: bool,
}

impl std::fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryDisk")
    }
}

impl MemoryDisk {
    pub fn new(seed: u64) -> Self {
        let state = State {
            files: BTreeMap::new(),
            fault: None,
            changes_left: None,
            changes: 0,
            lies: false,
            has_lied: false,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            dice: Arc::new(Dice::new(seed)),
            stopped: watch::channel(false).0,
            held: watch::channel(false).0,
            at_once: false,
        }
    }

    /// Every change completes at its first poll, as with real files; one that finds the disk stopped fails.
    #[must_use]
    pub fn at_once(mut self) -> Self {
        self.at_once = true;
        self
    }

    /// After this many more changes nothing completes any more.
    pub fn stop_after(&self, changes: u64) {
        self.state.lock().changes_left = Some(changes);
    }

    /// Resolves when the disk has stopped.
    pub async fn stopped(&self) {
        let mut stopped = self.stopped.subscribe();
        stopped.wait_for(|&stopped| stopped).await.expect("the disk is here");
    }

    /// From now on syncs begin and do not end, until [`MemoryDisk::release_syncs`].
    pub fn hold_syncs(&self) {
        self.held.send_replace(true);
    }

    pub fn release_syncs(&self) {
        self.held.send_replace(false);
    }

    fn are_syncs_held(&self) -> bool {
        *self.held.borrow()
    }

    /// Goes on after [`MemoryDisk::stop_after`], for the next process; without a power loss nothing is lost.
    pub fn restart(&self) {
        let mut state = self.state.lock();
        state.changes_left = None;
        state.fault = None;
        state.lies = false;
        self.stopped.send_replace(false);
        self.release_syncs();
    }

    /// From now on syncs succeed and make nothing durable, until [`MemoryDisk::restart`].
    pub fn lie(&self) {
        let mut state = self.state.lock();
        (state.lies, state.has_lied) = (true, true);
    }

    /// Whether a power cut may lose what was synced.
    pub fn has_lied(&self) -> bool {
        self.state.lock().has_lied
    }

    /// Removes every file.
    pub fn wipe(&self) {
        let mut state = self.state.lock();
        state.files.clear();
        state.has_lied = false;
    }

    /// Flips a bit in one of the writes that at least `syncs` syncs of the file followed, each after another write. Says where.
    pub fn flip_a_bit(&self, syncs: u64) -> Option<String> {
        let mut state = self.state.lock();
        let mut candidates = Vec::new();
        for (name, file) in &state.files {
            let old = file.recent.iter().filter(|write| write.followed_by >= syncs);
            candidates.extend(old.map(|write| (name.clone(), write.range.clone())));
        }
        let chosen = self.dice.below(candidates.len().max(1) as u64);
        let (name, range) = candidates.into_iter().nth(position(chosen))?;
        let at = range.start + position(self.dice.below(range.len() as u64));
        let bit = 1 << self.dice.below(8);
        let file = state.files.get_mut(&name)?;
        *file.durable.get_mut(at)? ^= bit;
        file.cached[at] ^= bit;
        Some(format!("bit {bit:#x} of byte {at} of {name}"))
    }

    /// Keeps `keep_percent` of the unsynced sectors, chosen by the seed.
    pub fn lose_power(&self, keep_percent: u64) {
        let mut state = self.state.lock();
        state.has_lied = false;
        for file in state.files.values_mut() {
            let dirty = file.dirty_sectors();
            file.dirty.clear();
            for (sector, bytes) in dirty {
                if self.dice.percent(keep_percent) {
                    file.persist(sector, &bytes);
                } else if self.dice.percent(TORN_PERCENT) {
                    let torn = position(self.dice.below(SECTOR as u64)).min(bytes.len());
                    file.persist(sector, &bytes[..torn]);
                }
            }
            file.recent.retain(|write| write.followed_by > 0);
            file.cached.clone_from(&file.durable);
        }
    }

    /// Fails the operations for which `fault` returns an error. The operation does nothing then.
    pub fn set_fault(&self, fault: impl FnMut(&Operation) -> Option<io::ErrorKind> + Send + 'static) {
        self.state.lock().fault = Some(Box::new(fault));
    }

    /// Number of changes so far.
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    pub fn names(&self) -> Vec<String> {
        self.state.lock().files.keys().cloned().collect()
    }

    /// The bytes of a file as they are read.
    pub fn contents(&self, name: &str) -> Vec<u8> {
        self.state.lock().files[name].cached.clone()
    }

    /// Changes a file behind everybody's back.
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        let file = state.files.get_mut(name).expect("the file exists");
        change(&mut file.cached);
        file.durable.clone_from(&file.cached);
        file.dirty.clear();
    }

    pub fn delete(&self, name: &str) {
        self.state.lock().files.remove(name);
    }

    /// Lets others run, fails, or stops for good.
    async fn change(&self, operation: &Operation) -> io::Result<()> {
        self.change_or(operation, || Ok(())).await
    }

    /// The same; `interrupted` may have an effect when this is what the end of the process interrupts.
    async fn change_or(
        &self,
        operation: &Operation,
        interrupted: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.at_once {
            for _ in 0..self.dice.below(3) {
                tokio::task::yield_now().await;
            }
        }
        let (stopped, lies) = {
            let mut state = self.state.lock();
            if let Some(kind) = state.fault.as_mut().and_then(|fault| fault(operation)) {
                return Err(kind.into());
            }
            state.changes += 1;
            let stopped = match &mut state.changes_left {
                None => false,
                Some(0) => true,
                Some(left) => {
                    *left -= 1;
                    false
                }
            };
            (stopped, state.lies)
        };
        if stopped {
            if !lies && self.dice.percent(50) {
                interrupted()?;
            }
            self.stopped.send_replace(true);
            if self.at_once {
                return Err(io::ErrorKind::Interrupted.into());
            }
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn with_file<T>(&self, name: &str, work: impl FnOnce(&mut FileState) -> T) -> io::Result<T> {
        self.state.lock().files.get_mut(name).map(work).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn file(&self, name: &str) -> Arc<dyn DiskFile> {
        Arc::new(MemoryFile { disk: self.clone(), name: name.to_owned() })
    }
}

impl FileState {
    fn dirty_sectors(&self) -> Vec<(usize, Vec<u8>)> {
        let dirty = self.dirty.iter().enumerate().filter_map(|(sector, dirty)| dirty.then_some(sector));
        dirty.map(|sector| (sector, self.sector(sector).to_vec())).collect()
    }

    fn sector(&self, sector: usize) -> &[u8] {
        &self.cached[sector * SECTOR..((sector + 1) * SECTOR).min(self.cached.len())]
    }

    /// Makes the sector's first bytes durable.
    fn persist(&mut self, sector: usize, bytes: &[u8]) {
        let range = sector * SECTOR..sector * SECTOR + bytes.len();
        if self.durable.len() < range.end {
            self.durable.resize(range.end, 0);
        }
        self.durable[range].copy_from_slice(bytes);
    }

    fn begin_sync(&mut self) -> Covered {
        let writes = self.recent.iter().map(|write| write.number).collect();
        Covered { sectors: self.dirty_sectors(), writes }
    }

    /// The sync ends. What was written meanwhile, here or elsewhere, is as it was.
    fn end_sync(&mut self, covered: &Covered) {
        for (sector, bytes) in &covered.sectors {
            self.persist(*sector, bytes);
        }
        self.clean(covered);
        if !covered.sectors.is_empty() {
            let followed = self.recent.iter_mut().filter(|write| covered.writes.contains(&write.number));
            followed.for_each(|write| write.followed_by += 1);
        }
    }

    /// The device has these sectors, or the kernel thinks so.
    fn clean(&mut self, covered: &Covered) {
        for (sector, bytes) in &covered.sectors {
            let is_as_it_was = self.sector(*sector) == bytes;
            if let (Some(dirty), true) = (self.dirty.get_mut(*sector), is_as_it_was) {
                *dirty = false;
            }
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.cached.len() < end {
            self.cached.resize(end, 0);
        }
        self.cached[offset..end].copy_from_slice(bytes);
        let sectors = offset / SECTOR..end.div_ceil(SECTOR);
        if self.dirty.len() < sectors.end {
            self.dirty.resize(sectors.end, false);
        }
        self.dirty[sectors].fill(true);
        self.recent.retain(|other| other.range.end <= offset || end <= other.range.start);
        if !bytes.is_empty() {
            self.writes += 1;
            self.recent.push_back(Recent { number: self.writes, range: offset..end, followed_by: 0 });
        }
        if self.recent.len() > RECENT_WRITES {
            self.recent.pop_front();
        }
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        let bytes = self.cached.get(offset..offset + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    /// Direct I/O sees what is on its way to the device and what the device has, no stale clean pages.
    fn read_device(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        self.read(offset, into)?;
        for (index, target) in into.chunks_mut(SECTOR).enumerate() {
            let at = offset + index * SECTOR;
            if !self.dirty.get(at / SECTOR).is_some_and(|&dirty| dirty) {
                match self.durable.get(at..at + target.len()) {
                    Some(bytes) => target.copy_from_slice(bytes),
                    None => target.fill(0),
                }
            }
        }
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn completes_at_once(&self) -> bool {
        self.at_once
    }

    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn list(&self) -> DiskFuture<'_, Vec<String>> {
        Box::pin(async { Ok(self.names()) })
    }

    fn create<'a>(&'a self, name: &'a str) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        Box::pin(async move {
            self.change(&Operation::Create(name.to_owned())).await?;
            self.state.lock().files.insert(name.to_owned(), FileState::default());
            Ok(self.file(name))
        })
    }

    fn open<'a>(&'a self, name: &'a str) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        Box::pin(async move {
            self.with_file(name, |_| ())?;
            Ok(self.file(name))
        })
    }

    fn rename<'a>(&'a self, from: &'a str, to: &'a str) -> DiskFuture<'a, ()> {
        Box::pin(async move {
            self.change(&Operation::Rename(from.to_owned())).await?;
            let mut state = self.state.lock();
            let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.files.insert(to.to_owned(), file);
            Ok(())
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> DiskFuture<'a, ()> {
        Box::pin(async move {
            self.change(&Operation::Remove(name.to_owned())).await?;
            self.state.lock().files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    name: String,
}

impl MemoryFile {
    fn name(&self) -> String {
        self.name.clone()
    }
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).expect("a file in memory")
}

impl DiskFile for MemoryFile {
    fn length(&self) -> DiskFuture<'_, u64> {
        Box::pin(async { self.disk.with_file(&self.name(), |file| file.cached.len() as u64) })
    }

    fn read<'a>(&'a self, offset: u64, into: &'a mut [u8]) -> DiskFuture<'a, ()> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.disk.with_file(&self.name(), |file| file.read(position(offset), into))?
        })
    }

    fn read_device<'a>(&'a self, offset: u64, into: &'a mut [u8]) -> DiskFuture<'a, ()> {
        Box::pin(async move {
            self.disk.with_file(&self.name(), |file| file.read_device(position(offset), into))?
        })
    }

    fn write<'a>(&'a self, offset: u64, bytes: &'a [u8]) -> DiskFuture<'a, ()> {
        Box::pin(async move {
            let operation = Operation::Write { file: self.name(), offset, length: bytes.len() };
            let interrupted = self.disk.state.lock().changes_left == Some(0);
            if interrupted && self.disk.dice.percent(50) {
                // A part of what the end of the process interrupts reaches the page cache.
                let part = position(self.disk.dice.below(bytes.len() as u64 / 512 + 1)) * 512;
                self.disk.with_file(&self.name(), |file| file.write(position(offset), &bytes[..part]))?;
            }
            self.disk.change(&operation).await?;
            self.disk.with_file(&self.name(), |file| file.write(position(offset), bytes))
        })
    }

    fn sync(&self) -> DiskFuture<'_, ()> {
        Box::pin(async {
            let covered = self.disk.with_file(&self.name(), FileState::begin_sync)?;
            if self.disk.are_syncs_held() {
                let mut held = self.disk.held.subscribe();
                held.wait_for(|&held| !held).await.expect("the disk is here");
            }
            let interrupted = || self.disk.with_file(&self.name(), |file| file.end_sync(&covered));
            let synced = self.disk.change_or(&Operation::Sync(self.name()), interrupted).await;
            let lies = self.disk.state.lock().lies;
            self.disk.with_file(&self.name(), |file| match &synced {
                Ok(()) if lies => {}
                Ok(()) => file.end_sync(&covered),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel calls the pages clean now and forgets that they are not on the device.
                Err(_) => file.clean(&covered),
            })?;
            synced
        })
    }
}

/// Runs dedicated work as tasks of the current runtime; killing it ends them wherever they are.
#[derive(Debug, Default)]
pub struct TaskSpawn(Mutex<tokio::task::JoinSet<()>>);

impl Spawn for TaskSpawn {
    fn dedicated(&self, _name: &'static str, _nice: u8, work: DedicatedWork) -> io::Result<()> {
        self.0.lock().spawn(work);
        Ok(())
    }

    /// Nothing here blocks.
    fn in_place(&self, work: &mut dyn FnMut()) -> bool {
        work();
        true
    }
}

impl TaskSpawn {
    /// Ends all the work wherever it is, as the end of a process does.
    pub async fn kill(&self) {
        let mut tasks = std::mem::take(&mut *self.0.lock());
        tasks.shutdown().await;
    }
}

/// Time passes when somebody looks, as much as the seed says: on some disks syncs are fast, on others they take long.
#[derive(Debug)]
struct SeededClock {
    dice: Dice,
    /// At most, between two looks.
    step_nanos: u64,
    nanos: AtomicU64,
    others: SystemClock,
}

impl SeededClock {
    fn new(seed: u64) -> Self {
        let dice = Dice::new(seed ^ 0xc10c);
        let step_nanos = [100_000, 1_000_000, 5_000_000][position(dice.below(3))];
        Self { dice, step_nanos, nanos: AtomicU64::new(0), others: SystemClock::new() }
    }
}

impl Clock for SeededClock {
    fn now(&self) -> Monotonic {
        let step = self.dice.below(self.step_nanos);
        Monotonic::from_origin(Duration::from_nanos(self.nanos.fetch_add(step, Ordering::Relaxed) + step))
    }

    fn wall(&self) -> WallTime {
        self.others.wall()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.others.sleep(duration)
    }
}

/// Ports for one life of a process in a single-threaded runtime.
pub fn ports(seed: u64) -> (Ports, Arc<TaskSpawn>) {
    let spawn = Arc::new(TaskSpawn::default());
    let ports = Ports {
        clock: Arc::new(SeededClock::new(seed)),
        entropy: Arc::new(SeededEntropy::new(seed)),
        spawn: Arc::clone(&spawn) as Arc<dyn Spawn>,
    };
    (ports, spawn)
}
