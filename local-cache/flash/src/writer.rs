//! The single writer: appends chunks to the current region, and overwrites the oldest when there is no other.
//!
//! Invariants
//! 1. A region's header is durable before its entries are written; it names a sequence that no other region ever had. So a footer
//!    of an earlier use, which may stay for long, is never believed over newer entries.
//! 2. A region is synced before its footer is written: a footer that is there lists only what is on the device. The same sync
//!    makes the header of the next region durable.
//! 3. The index forgets a region's entries before any of them is overwritten, and learns of an entry after it was written.
//! 4. After a failed write nothing more is appended to that region: what is behind the failure may be half there.
//!
//! Crash cases (the process ends; the page cache stays):
//! - before the header of a new region: the old one is whole and is found again. Its header may be torn, and it is lost.
//! - after the header of the next region and before the footer of this one: both are followed, the next one is empty.
//! - between header and footer: its entries are found by their headers, up to the first that is not there.
//! - in the footer: as before it.
//!
//! Power cuts (pages of the last seconds may or may not be there): only regions with a footer of the header's sequence are believed.
//! See `recovery`.
//!
//! Nothing else is synced. A cache may forget, and a sync of its own would slow the log's on the same disk.

use crate::config::REGIONS_MIN;
use crate::directory::{Directory, is_full};
use crate::format::{
    EntryHeader, Listed, PAGE_BYTES, RegionHeader, entry_bytes, footer, footer_bytes, region_header,
};
use crate::index::Location;
use crate::key::Key;
use crate::queue::Piece;
use crate::ring::Ring;
use crate::status::add;
use cairn_model::SiteId;
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes of chunks that are written at once.
const BATCH_BYTES: u64 = 1 << 20;

/// A region as the writer knows it.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) number: u32,
    pub(crate) sequence: u64,
    /// Of the keys of its entries: what the index must forget.
    pub(crate) hashes: Vec<u64>,
    /// Bytes in use.
    pub(crate) bytes: u64,
}

/// The region that is appended to.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) region: Region,
    pub(crate) listed: Vec<Listed>,
    /// Where the next entry goes.
    pub(crate) end: u64,
}

/// What recovery found, or the writer has.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    /// Oldest first.
    pub(crate) closed: VecDeque<Region>,
    pub(crate) current: Option<Current>,
    /// Never used, or of no use any more.
    pub(crate) free: VecDeque<u32>,
    /// The highest ever given to a region, also one that is not believed: its entries must not pass for another's.
    pub(crate) last_sequence: u64,
}

impl Regions {
    /// Lets the index forget the oldest region's entries. The region is free.
    pub(crate) fn evict_oldest(&mut self, ring: &Ring) -> bool {
        let Some(region) = self.closed.pop_front() else { return false };
        forget(ring, &region);
        self.free.push_back(region.number);
        ring.set_full();
        self.mark_old(ring);
        true
    }

    /// Tells the ring which regions are the oldest quarter of those that hold something: fewer than there is space for, where the
    /// memory of the index is the bound.
    pub(crate) fn mark_old(&self, ring: &Ring) {
        let live = self.closed.len() + usize::from(self.current.is_some());
        let first_young = self.closed.get(live.div_ceil(4));
        ring.set_old_before(first_young.map_or(ring.newest(), |region| region.sequence));
    }
}

fn forget(ring: &Ring, region: &Region) {
    for &hash in &region.hashes {
        ring.index.remove_if(hash, |location| location.region() == region.number);
    }
    ring.free_used(region.bytes, region.hashes.len());
}

/// Entries on their way into the current region.
#[derive(Debug, Default)]
struct Staged {
    bytes: Vec<u8>,
    listed: Vec<Listed>,
    payload_bytes: u64,
}

/// The region to come. Its header is written.
struct Claimed {
    number: u32,
    sequence: u64,
    /// Taken from the free ones, not the oldest.
    fresh: bool,
}

pub(crate) struct Writer {
    ring: Arc<Ring>,
    regions: Regions,
    /// Memory for what is staged, used again.
    buffer: Vec<u8>,
    site: SiteId,
    entries_max: u64,
    /// Locked until the writer ends.
    _directory: Directory,
}

impl Writer {
    pub(crate) fn new(
        ring: Arc<Ring>,
        regions: Regions,
        site: SiteId,
        entries_max: u64,
        directory: Directory,
    ) -> Self {
        Self { ring, regions, buffer: Vec::new(), site, entries_max, _directory: directory }
    }

    /// Works until the queue is drained or closed, or the device is retired.
    pub(crate) async fn run(mut self) {
        loop {
            let draining = self.ring.queue.is_draining();
            if self.ring.health.is_retired() || self.ring.queue.is_closed() {
                break;
            }
            let batch = self.ring.queue.take(BATCH_BYTES);
            if !batch.is_empty() {
                self.write(&batch);
            } else if draining {
                self.seal();
                break;
            } else {
                self.ring.queue.changed().await;
            }
        }
        self.ring.queue.close();
    }

    fn write(&mut self, pieces: &[Piece]) {
        let mut staged = Staged { bytes: std::mem::take(&mut self.buffer), ..Staged::default() };
        let mut written = 0;
        for (position, piece) in pieces.iter().enumerate() {
            if self.is_there(piece.key().hash64()) {
                continue;
            }
            if !self.has_room(&staged, piece.value().len()) {
                written += self.append(&mut staged);
                if !self.turn() {
                    add(&self.ring.counters.dropped, (pieces.len() - position) as u64);
                    break;
                }
            }
            self.stage(piece, &mut staged);
        }
        written += self.append(&mut staged);
        self.buffer = staged.bytes;
        let offered: u64 = pieces.iter().map(|piece| piece.value().len() as u64).sum();
        for hash in self.ring.queue.written(offered) {
            self.ring.index.remove(hash);
        }
        add(&self.ring.counters.inserted_bytes, written);
    }

    /// Whether the chunk is in the ring and stays there for a while.
    fn is_there(&self, hash: u64) -> bool {
        self.ring.index.get(hash).is_some_and(|location| !self.ring.is_old(location.region()))
    }

    fn has_room(&self, staged: &Staged, payload: usize) -> bool {
        self.regions.current.as_ref().is_some_and(|current| {
            let entries = (current.listed.len() + staged.listed.len() + 1) as u64;
            let end = current.end + staged.bytes.len() as u64 + entry_bytes(payload);
            end + footer_bytes(entries) <= self.ring.region_bytes
        })
    }

    fn stage(&self, piece: &Piece, staged: &mut Staged) {
        let current = self.regions.current.as_ref().expect("there is room in it");
        let (chunk, payload) = (piece.key().0, piece.value());
        let offset = current.end + staged.bytes.len() as u64;
        EntryHeader { sequence: current.region.sequence, chunk, length: payload.len() }
            .append_to(&mut staged.bytes);
        staged.bytes.extend_from_slice(payload);
        staged.bytes.resize(staged.bytes.len().next_multiple_of(8), 0);
        staged.payload_bytes += payload.len() as u64;
        staged.listed.push(Listed {
            chunk,
            offset: u32::try_from(offset).expect("inside a region"),
            length: u32::try_from(payload.len()).expect("checked by insert"),
        });
    }

    /// Writes what is staged; how many bytes of chunks that was.
    fn append(&mut self, staged: &mut Staged) -> u64 {
        let (listed, payload_bytes) =
            (std::mem::take(&mut staged.listed), std::mem::take(&mut staged.payload_bytes));
        let ring = &self.ring;
        let Some(current) = self.regions.current.as_mut().filter(|_| !listed.is_empty()) else { return 0 };
        let place = ring.start_of(current.region.number) + current.end;
        let length = staged.bytes.len() as u64;
        let result = ring.device.write(place, &staged.bytes);
        staged.bytes.clear();
        if let Err(error) = result {
            ring.health.failed("write chunks", &error);
            add(&ring.counters.dropped, listed.len() as u64);
            let broken = self.regions.current.take().expect("just used");
            self.regions.closed.push_back(broken.region);
            return 0;
        }
        // Whole pages only: the last one is written again.
        let (from, until) = (place & !(PAGE_BYTES - 1), (place + length) & !(PAGE_BYTES - 1));
        ring.device.start_write_back(from, until.saturating_sub(from));
        for entry in &listed {
            let hash = Key(entry.chunk).hash64();
            let length = usize::try_from(entry.length).expect("a payload's length");
            ring.index.insert(hash, Location::new(current.region.number, u64::from(entry.offset), length));
            current.region.hashes.push(hash);
        }
        current.end += length;
        current.region.bytes += length;
        ring.add_used(length, listed.len());
        add(&ring.counters.inserted, listed.len() as u64);
        current.listed.extend(listed);
        while ring.index.entries() > self.entries_max && self.regions.evict_oldest(ring) {}
        payload_bytes
    }

    /// Finishes the current region and makes another one current. Whether there is one.
    fn turn(&mut self) -> bool {
        let claimed = self.claim();
        let synced = self.seal();
        let Some(claimed) = claimed else { return false };
        if synced || self.sync() {
            self.begin(&claimed);
            return true;
        }
        if claimed.fresh {
            self.regions.free.push_front(claimed.number);
        }
        false
    }

    fn sync(&self) -> bool {
        let synced = self.ring.device.sync();
        if let Err(error) = &synced {
            self.ring.health.failed("sync", error);
        }
        synced.is_ok()
    }

    /// Finishes the current region: what is in it survives a power cut. Whether the device was synced.
    fn seal(&mut self) -> bool {
        let Some(mut current) = self.regions.current.take() else { return false };
        let bytes = footer(current.region.sequence, current.end, &current.listed);
        let ring = &self.ring;
        let place = ring.start_of(current.region.number) + ring.region_bytes - bytes.len() as u64;
        let synced = self.sync();
        if synced {
            if let Err(error) = ring.device.write(place, &bytes) {
                ring.health.failed("write a footer", &error);
            }
            ring.device.start_write_back(place, bytes.len() as u64);
        }
        current.region.hashes.shrink_to_fit();
        self.regions.closed.push_back(current.region);
        synced
    }

    /// Writes the header of the region to come: a free one, or else the oldest.
    fn claim(&mut self) -> Option<Claimed> {
        let fresh = self.regions.free.pop_front().filter(|&number| self.allocate(number));
        let number = match (fresh, self.regions.closed.front()) {
            (Some(number), _) => number,
            (None, Some(oldest)) => oldest.number,
            (None, None) => return None,
        };
        let Some(sequence) = self.regions.last_sequence.checked_add(1) else {
            self.ring
                .health
                .retire("the flash cache has used all its numbers; empty its directory".to_owned());
            return None;
        };
        self.regions.last_sequence = sequence;
        let header = RegionHeader { sequence, after: self.ring.newest() };
        let header = region_header(header, self.site, self.ring.region_bytes);
        if let Err(error) = self.ring.device.write(self.ring.start_of(number), &header) {
            self.ring.health.failed("write the header of a region", &error);
            self.regions.free.extend(fresh);
            return None;
        }
        Some(Claimed { number, sequence, fresh: fresh.is_some() })
    }

    /// Makes the claimed region, whose header is durable, the current one.
    fn begin(&mut self, &Claimed { number, sequence, fresh }: &Claimed) {
        if !fresh {
            let oldest = self.regions.closed.pop_front().expect("just looked at");
            forget(&self.ring, &oldest);
        }
        if self.regions.free.is_empty() {
            self.ring.set_full();
        }
        self.ring.begin(number, sequence);
        self.ring.add_used(PAGE_BYTES, 0);
        let region = Region { number, sequence, hashes: Vec::new(), bytes: PAGE_BYTES };
        self.regions.current = Some(Current { region, listed: Vec::new(), end: PAGE_BYTES });
        self.regions.mark_old(&self.ring);
    }

    /// Makes sure that there is space for a region. On a full disk the ring stays as large as it is.
    fn allocate(&mut self, number: u32) -> bool {
        let start = self.ring.start_of(number);
        let Err(error) = self.ring.device.allocate(start, self.ring.region_bytes) else { return true };
        self.ring.health.failed("allocate space", &error);
        let used = self.regions.closed.len() + usize::from(self.regions.current.is_some());
        if !is_full(&error) {
            self.regions.free.push_back(number);
        } else if used as u64 >= REGIONS_MIN / 2 {
            let regions = u32::try_from(used).expect("regions have 20 bits");
            self.regions.free.clear();
            self.ring.limit(regions);
            tracing::warn!(
                regions,
                bytes = self.ring.capacity_bytes(),
                "the disk is full; the flash cache stays as it is"
            );
        } else {
            self.ring.health.retire_without_space();
        }
        false
    }
}

impl Drop for Writer {
    /// Also when its thread panicked or its runtime went away: then nobody writes any more, and the cache must not look alive.
    fn drop(&mut self) {
        if !self.ring.queue.is_draining() && !self.ring.health.is_retired() {
            self.ring.health.retire(
                "the writer of the flash cache ended unasked; restart, and report what the log says"
                    .to_owned(),
            );
        }
        self.ring.queue.close();
        self.ring.readers.close();
    }
}
