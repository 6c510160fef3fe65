//! Test doubles: a cache in memory that lies, a device that fails, a clock that is set by hand.

use crate::config::{FlashConfig, PAYLOAD_BYTES_MAX};
use crate::device::Device;
use crate::status::{Counters, add};
use crate::{FlashCache, FlashStatus, SealedCache, Source};
use bytes::Bytes;
use cairn_model::{ChunkId, Clock, Entropy, Monotonic, Ports, SiteId, WallTime};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

/// What becomes of a chunk that is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fault {
    #[default]
    None,
    /// The chunk is lost.
    Lost,
    /// This bit is flipped; counted round and round the chunk.
    FlippedBit(u64),
    /// Only so many bytes are there, at most what there were.
    Truncated(usize),
}

type Faults = Box<dyn FnMut(ChunkId) -> Fault + Send>;

/// A cache in memory, for the simulation: no threads, no clock, the oldest goes first, and [`Fault`]s as the test wants them.
pub struct MemoryFlash {
    capacity_bytes: u64,
    damage_max: u64,
    state: Mutex<MemoryState>,
    counters: Counters,
}

#[derive(Default)]
struct MemoryState {
    chunks: BTreeMap<ChunkId, Bytes>,
    oldest: VecDeque<ChunkId>,
    used_bytes: u64,
    faults: Option<Faults>,
    closed: bool,
    retired: Option<String>,
}

impl std::fmt::Debug for MemoryFlash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryFlash").field("status", &self.status()).finish()
    }
}

impl MemoryFlash {
    pub fn new(capacity_bytes: u64) -> Self {
        Self { capacity_bytes, damage_max: 64, state: Mutex::default(), counters: Counters::default() }
    }

    /// Retires after so many damaged chunks, however long that takes.
    pub fn with_damage_max(self, damage_max: u64) -> Self {
        Self { damage_max, ..self }
    }

    /// Asks `faults` at every `get` of a chunk that is there.
    pub fn with_faults(self, faults: impl FnMut(ChunkId) -> Fault + Send + 'static) -> Self {
        self.state.lock().faults = Some(Box::new(faults));
        self
    }

    /// Faults of all kinds in `percent` of a hundred reads, as the seed says.
    pub fn with_seeded_faults(self, entropy: Arc<dyn Entropy>, percent: u8) -> Self {
        self.with_faults(move |_| {
            let mut dice = [0; 10];
            entropy.fill(&mut dice);
            let number = u64::from_le_bytes(dice[2..].try_into().expect("eight bytes"));
            match dice[1] % 4 {
                _ if dice[0] % 100 >= percent => Fault::None,
                0 => Fault::Lost,
                1 => Fault::Truncated(usize::try_from(number % 4096).expect("small")),
                _ => Fault::FlippedBit(number),
            }
        })
    }

    /// Makes every later read of the chunk find nothing.
    pub fn lose(&self, chunk: ChunkId) {
        self.state.lock().remove(chunk);
    }

    /// Everything is lost, as with a new disk.
    pub fn lose_all(&self) {
        let mut state = self.state.lock();
        state.chunks.clear();
        state.oldest.clear();
        state.used_bytes = 0;
    }
}

impl MemoryState {
    fn remove(&mut self, chunk: ChunkId) {
        if let Some(stored) = self.chunks.remove(&chunk) {
            self.used_bytes -= stored.len() as u64;
            self.oldest.retain(|&other| other != chunk);
        }
    }

    fn is_usable(&self) -> bool {
        !self.closed && self.retired.is_none()
    }
}

/// The chunk as a faulty device gives it back.
fn spoiled(stored: &Bytes, fault: Fault) -> Option<Bytes> {
    match fault {
        Fault::None => Some(stored.clone()),
        Fault::Lost => None,
        Fault::Truncated(length) => Some(stored.slice(..length.min(stored.len()))),
        Fault::FlippedBit(bit) => {
            let mut bytes = stored.to_vec();
            let bit = usize::try_from(bit % (bytes.len() as u64 * 8)).expect("an index");
            bytes[bit / 8] ^= 1 << (bit % 8);
            Some(bytes.into())
        }
    }
}

#[async_trait::async_trait]
impl SealedCache for MemoryFlash {
    async fn get(&self, chunk: ChunkId) -> Option<Bytes> {
        let mut state = self.state.lock();
        if !state.is_usable() {
            return None;
        }
        let stored = state.chunks.get(&chunk).cloned();
        let found = stored.and_then(|stored| {
            let fault = state.faults.as_mut().map_or(Fault::None, |faults| faults(chunk));
            if fault == Fault::Lost {
                state.remove(chunk);
            }
            spoiled(&stored, fault)
        });
        add(if found.is_some() { &self.counters.hits } else { &self.counters.misses }, 1);
        found
    }

    fn insert(&self, chunk: ChunkId, stored: Bytes, _: Source) {
        let mut state = self.state.lock();
        let bytes = stored.len() as u64;
        let fits = !stored.is_empty() && stored.len() <= PAYLOAD_BYTES_MAX && bytes <= self.capacity_bytes;
        if !state.is_usable() || !fits || state.chunks.contains_key(&chunk) {
            return;
        }
        while state.used_bytes + bytes > self.capacity_bytes {
            let Some(&oldest) = state.oldest.front() else { break };
            state.remove(oldest);
        }
        state.used_bytes += bytes;
        state.chunks.insert(chunk, Bytes::copy_from_slice(&stored));
        state.oldest.push_back(chunk);
        add(&self.counters.inserted, 1);
        add(&self.counters.inserted_bytes, bytes);
    }

    fn damaged(&self, chunk: ChunkId) {
        let mut state = self.state.lock();
        if !state.is_usable() {
            return;
        }
        state.remove(chunk);
        add(&self.counters.damaged, 1);
        if self.counters.damaged.load(Ordering::Relaxed) >= self.damage_max {
            state.retired = Some(format!("{} damaged chunks in memory", self.damage_max));
        }
    }

    fn status(&self) -> FlashStatus {
        let state = self.state.lock();
        FlashStatus {
            capacity_bytes: self.capacity_bytes,
            used_bytes: state.used_bytes,
            chunks: state.chunks.len() as u64,
            retired: state.retired.clone(),
            ..self.counters.status()
        }
    }

    async fn close(&self) {
        self.state.lock().closed = true;
    }
}

/// A flash that outlives the process that uses it: the end of one does not close it.
#[derive(Clone, Debug)]
pub struct Outliving(pub Arc<MemoryFlash>);

#[async_trait::async_trait]
impl SealedCache for Outliving {
    async fn get(&self, chunk: ChunkId) -> Option<Bytes> {
        self.0.get(chunk).await
    }

    fn insert(&self, chunk: ChunkId, stored: Bytes, source: Source) {
        self.0.insert(chunk, stored, source);
    }

    fn damaged(&self, chunk: ChunkId) {
        self.0.damaged(chunk);
    }

    fn status(&self) -> FlashStatus {
        self.0.status()
    }

    async fn close(&self) {}
}

/// A clock that moves when it is told to. Sleeps end at once, so that what waits for it gives up.
#[derive(Debug, Default)]
pub struct ManualClock(Mutex<Duration>);

impl ManualClock {
    pub fn advance(&self, duration: Duration) {
        *self.0.lock() += duration;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Monotonic {
        Monotonic::from_origin(*self.0.lock())
    }

    fn wall(&self) -> WallTime {
        WallTime::default()
    }

    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
}

/// The failures of a [`FlashCache`]'s device, switched on and off while it runs.
#[derive(Debug, Default)]
pub struct DeviceFaults {
    reads: AtomicI32,
    writes: AtomicI32,
    space: AtomicI32,
    panics: AtomicBool,
    /// The page cache has nothing.
    cold: AtomicI32,
    /// Reads that waited for the device.
    device_reads: AtomicU64,
    hangs: Mutex<bool>,
    hangs_no_more: Condvar,
}

impl DeviceFaults {
    /// Every read fails with this error of the operating system, or none with 0.
    pub fn fail_reads(&self, errno: i32) {
        self.reads.store(errno, Ordering::SeqCst);
    }

    pub fn fail_writes(&self, errno: i32) {
        self.writes.store(errno, Ordering::SeqCst);
    }

    /// The next write panics: as a bug of the writer would.
    pub fn panic_in_writes(&self) {
        self.panics.store(true, Ordering::SeqCst);
    }

    /// No more space is to be had.
    pub fn fail_allocations(&self, errno: i32) {
        self.space.store(errno, Ordering::SeqCst);
    }

    /// Nothing is in the page cache: every read waits for the device.
    pub fn forget_the_page_cache(&self) {
        self.cold.store(1, Ordering::SeqCst);
    }

    pub fn device_reads(&self) -> u64 {
        self.device_reads.load(Ordering::SeqCst)
    }

    /// Reads that wait for the device hang until this is false again.
    pub fn hang_reads(&self, hang: bool) {
        *self.hangs.lock() = hang;
        self.hangs_no_more.notify_all();
    }

    fn check(errno: &AtomicI32) -> io::Result<()> {
        match errno.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Opens a cache whose device has these faults.
pub async fn open_faulty(
    config: FlashConfig,
    site: SiteId,
    ports: Ports,
    faults: Arc<DeviceFaults>,
) -> FlashCache {
    let decorate = Box::new(|inner| Arc::new(FaultyDevice { inner, faults }) as Arc<dyn Device>);
    FlashCache::open_on(config, site, ports, decorate).await
}

#[derive(Debug)]
struct FaultyDevice {
    inner: Arc<dyn Device>,
    faults: Arc<DeviceFaults>,
}

impl Device for FaultyDevice {
    fn read_now(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        DeviceFaults::check(&self.faults.reads)?;
        if self.faults.cold.load(Ordering::SeqCst) != 0 { Ok(0) } else { self.inner.read_now(offset, into) }
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.faults.hangs_no_more.wait_while(&mut self.faults.hangs.lock(), |hangs| *hangs);
        DeviceFaults::check(&self.faults.reads)?;
        self.faults.device_reads.fetch_add(1, Ordering::SeqCst);
        self.inner.read(offset, into)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(!self.faults.panics.load(Ordering::SeqCst), "as the test wants it");
        DeviceFaults::check(&self.faults.writes)?;
        self.inner.write(offset, bytes)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        DeviceFaults::check(&self.faults.space)?;
        self.inner.allocate(offset, length)
    }

    fn start_write_back(&self, offset: u64, length: u64) {
        self.inner.start_write_back(offset, length);
    }

    fn sync(&self) -> io::Result<()> {
        DeviceFaults::check(&self.faults.writes)?;
        self.inner.sync()
    }

    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.inner.truncate(length)
    }
}
