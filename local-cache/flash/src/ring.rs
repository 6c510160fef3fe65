//! What the writer and the readers share: the regions, and where in them each chunk is.
//!
//! A chunk is read without a lock on its region. What makes that safe is the order in which the writer reuses one: first the index
//! forgets its entries, then [`Ring::begin`] changes its sequence, then it is overwritten. So a reader that finds the entry's own sequence
//! to be the region's *after* it read, read an entry that was whole. If it is not, either the index has meanwhile
//! forgotten the entry, which is a miss, or the bytes are damaged.

use crate::config::{FlashConfig, REGIONS_MAX};
use crate::device::Device;
use crate::format::{ENTRY_HEADER_BYTES, EntryHeader};
use crate::health::Health;
use crate::index::{Index, Location};
use crate::key::Key;
use crate::queue::Queue;
use crate::reader::{Declined, Pending, Readers};
use crate::status::{Counters, add};
use bytes::Bytes;
use cairn_model::{Clock, timeout};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// A chunk that was found.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    pub(crate) stored: Bytes,
    /// Its region will be overwritten soon.
    pub(crate) old: bool,
}

/// What a look without waiting gives.
#[derive(Debug)]
pub(crate) enum Found {
    Entry(Entry),
    Nothing,
    /// It is on the device, but not in the page cache.
    OnDevice(Location, Vec<u8>),
}

#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) region_bytes: u64,
    pub(crate) index: Index,
    pub(crate) queue: Queue,
    pub(crate) readers: Arc<Readers>,
    pub(crate) health: Arc<Health>,
    pub(crate) counters: Arc<Counters>,
    clock: Arc<dyn Clock>,
    read_timeout: Duration,
    /// The sequence of what each region holds; zero for nothing.
    sequences: Vec<AtomicU64>,
    newest: AtomicU64,
    /// Regions with a lower sequence are the quarter that is overwritten next.
    old_before: AtomicU64,
    /// Regions that may be used: fewer than there are numbers for when the disk is full.
    usable: AtomicU32,
    used_bytes: AtomicU64,
    /// Entries in these bytes, with those that have moved since.
    held: AtomicU64,
    full: AtomicBool,
}

impl Ring {
    pub(crate) fn new(
        config: &FlashConfig,
        region_bytes: u64,
        device: Arc<dyn Device>,
        clock: Arc<dyn Clock>,
        health: Arc<Health>,
        counters: Arc<Counters>,
    ) -> Self {
        let regions = config.capacity_bytes / region_bytes;
        assert!(regions <= REGIONS_MAX, "a location has 20 bits for the region: see `FlashConfig::keeps`");
        let sequences = std::iter::repeat_with(AtomicU64::default);
        Self {
            device,
            region_bytes,
            index: Index::new(),
            queue: Queue::new(health.wake.clone()),
            readers: Arc::default(),
            health,
            counters,
            clock,
            read_timeout: config.read_timeout,
            sequences: sequences.take(usize::try_from(regions).expect("checked by validate")).collect(),
            newest: AtomicU64::new(0),
            old_before: AtomicU64::new(0),
            usable: AtomicU32::new(u32::try_from(regions).expect("checked by validate")),
            used_bytes: AtomicU64::new(0),
            held: AtomicU64::new(0),
            full: AtomicBool::new(false),
        }
    }

    pub(crate) fn usable(&self) -> u32 {
        self.usable.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self, regions: u32) {
        self.usable.store(regions, Ordering::Relaxed);
    }

    pub(crate) fn capacity_bytes(&self) -> u64 {
        u64::from(self.usable()) * self.region_bytes
    }

    pub(crate) fn start_of(&self, region: u32) -> u64 {
        u64::from(region) * self.region_bytes
    }

    fn sequence(&self, region: u32) -> &AtomicU64 {
        &self.sequences[usize::try_from(region).expect("an index")]
    }

    /// From now on the region holds what has this sequence. The index has forgotten what it held.
    pub(crate) fn begin(&self, region: u32, sequence: u64) {
        self.sequence(region).store(sequence, Ordering::SeqCst);
        self.newest.fetch_max(sequence, Ordering::SeqCst);
        // Before the first byte of it is overwritten.
        fence(Ordering::SeqCst);
    }

    pub(crate) fn newest(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn add_used(&self, bytes: u64, entries: usize) {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.held.fetch_add(entries as u64, Ordering::Relaxed);
    }

    pub(crate) fn free_used(&self, bytes: u64, entries: usize) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.held.fetch_sub(entries as u64, Ordering::Relaxed);
    }

    /// What an entry takes on average.
    pub(crate) fn average_bytes(&self) -> Option<u64> {
        self.used_bytes().checked_div(self.held.load(Ordering::Relaxed))
    }

    /// Something must go for what comes. Stays so.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    pub(crate) fn set_full(&self) {
        self.full.store(true, Ordering::Relaxed);
    }

    /// Whether the region is among the quarter that is overwritten next.
    pub(crate) fn is_old(&self, region: u32) -> bool {
        let sequence = self.sequence(region).load(Ordering::Relaxed);
        self.is_full() && sequence < self.old_before.load(Ordering::Relaxed)
    }

    pub(crate) fn set_old_before(&self, sequence: u64) {
        self.old_before.store(sequence, Ordering::Relaxed);
    }

    /// Looks for a chunk, without waiting for the device.
    pub(crate) fn find(&self, hash: u64) -> Found {
        let Some(location) = self.index.get(hash) else { return Found::Nothing };
        let mut buffer = vec![0; ENTRY_HEADER_BYTES + location.length()];
        match self.device.read_now(self.place_of(location), &mut buffer) {
            Ok(read) if read == buffer.len() => match self.checked(hash, location, buffer, read) {
                Some(entry) => Found::Entry(entry),
                None => Found::Nothing,
            },
            // A short read may also be the end of the file: the reader finds out.
            Ok(_) => Found::OnDevice(location, buffer),
            Err(error) => {
                self.failed(hash, location, &error);
                Found::Nothing
            }
        }
    }

    /// Reads what [`Ring::find`] found on the device.
    pub(crate) async fn fetch(&self, hash: u64, location: Location, buffer: Vec<u8>) -> Option<Entry> {
        let Pending { began, answer } = match self.readers.read(self.place_of(location), buffer) {
            Ok(pending) => pending,
            Err(Declined::Busy) => return None,
            Err(Declined::Hanging) => {
                self.health.stalled();
                return None;
            }
        };
        // The wait for a thread says nothing of the device. The entry stays where it is, whatever time it takes to read it.
        let number = timeout(&*self.clock, self.read_timeout, began).await.ok()?.ok()?;
        let Ok(answer) = timeout(&*self.clock, self.read_timeout, answer).await else {
            self.readers.overdue(number);
            self.health.stalled();
            return None;
        };
        match answer.ok()? {
            (buffer, Ok(read)) => {
                add(&self.counters.device_reads, 1);
                self.checked(hash, location, buffer, read)
            }
            (_, Err(error)) => {
                self.failed(hash, location, &error);
                None
            }
        }
    }

    fn place_of(&self, location: Location) -> u64 {
        self.start_of(location.region()) + location.offset()
    }

    fn checked(&self, hash: u64, location: Location, buffer: Vec<u8>, read: usize) -> Option<Entry> {
        // After the bytes were read.
        fence(Ordering::SeqCst);
        let sequence = self.sequence(location.region()).load(Ordering::SeqCst);
        let header = EntryHeader::parse(&buffer[..read]).filter(|header| {
            let whole = read == buffer.len() && header.length == location.length();
            whole && header.sequence == sequence && Key(header.chunk).hash64() == hash
        });
        let Some(header) = header else {
            if self.index.remove_if(hash, |present| present == location) {
                self.health.damage("the header of a chunk is not what was written");
            }
            return None;
        };
        let stored = Bytes::from(buffer).split_off(ENTRY_HEADER_BYTES);
        Some(Entry { key: Key(header.chunk), stored, old: self.is_old(location.region()) })
    }

    /// Lets go of a chunk whose bytes are not what was offered, on the device and on the way there. Whether there was anything.
    pub(crate) fn forget(&self, hash: u64) -> bool {
        // In this order: what the writer finishes in between is in the index afterwards.
        let waiting = self.queue.forget(hash);
        self.index.remove(hash) || waiting
    }

    fn failed(&self, hash: u64, location: Location, error: &io::Error) {
        self.index.remove_if(hash, |present| present == location);
        self.health.failed("read a chunk", error);
    }
}
