//! Finding again what an earlier run left.
//!
//! A footer lists what its region holds; a region without one is followed from entry to entry. What is believed:
//! - the same boot of the machine: everything that was written, for the page cache has it, whatever became of the process;
//! - another boot: only regions with a footer, because these were synced before it was written. The others are made void, so that
//!   a later start does not take them for written in its own boot.
//!
//! After another boot the numbers of regions go on far above those that are found: headers with numbers between may have been lost,
//! and entries with them be there.
//!
//! Nothing here trusts payloads: they are authenticated when they are used.

use crate::format::{
    ENTRY_HEADER_BYTES, EntryHeader, Footer, Listed, PAGE_BYTES, Parsed, REGION_HEADER_BYTES, RegionHeader,
    TRAILER_BYTES, VOID, entry_bytes, footer_bytes, footer_length, parse_footer, parse_region_header,
    region_header,
};
use crate::index::Location;
use crate::key::Key;
use crate::ring::Ring;
use crate::writer::{Current, Region, Regions};
use cairn_model::SiteId;
use std::io;

/// More regions than are begun in one boot.
const BOOT_STEP: u64 = 1 << 32;

/// A region with a sequence.
#[derive(Debug)]
struct Candidate {
    number: u32,
    header: RegionHeader,
    footer: Option<Footer>,
}

/// Fills the ring's index from the device.
pub(crate) fn recover(ring: &Ring, site: SiteId, same_boot: bool, entries_max: u64) -> io::Result<Regions> {
    let length = ring.device.length()?;
    if length > ring.capacity_bytes() {
        // Made for a larger capacity.
        ring.device.truncate(ring.capacity_bytes())?;
    }
    let mut recovery = Recovery { ring, site, same_boot, entries_max, regions: Regions::default() };
    let mut candidates = Vec::new();
    for number in 0..ring.usable() {
        if ring.start_of(number) >= length {
            recovery.regions.free.push_back(number);
            continue;
        }
        match recovery.look_at(number) {
            Ok(Some(candidate)) => candidates.push(candidate),
            Ok(None) => recovery.regions.free.push_back(number),
            Err(error) => {
                ring.health.failed("read a region", &error);
                recovery.regions.free.push_back(number);
            }
        }
    }
    if !same_boot {
        let last = &mut recovery.regions.last_sequence;
        *last = last.saturating_add(BOOT_STEP);
    }
    candidates.sort_by_key(|candidate| candidate.header.sequence);
    recovery.count_missing(&candidates);
    let newest = candidates.last().map_or(0, |candidate| candidate.header.sequence);
    for candidate in candidates {
        let is_newest = candidate.header.sequence == newest;
        recovery.take(candidate, is_newest);
    }
    if recovery.regions.free.is_empty() {
        ring.set_full();
    }
    recovery.regions.mark_old(ring);
    Ok(recovery.regions)
}

struct Recovery<'a> {
    ring: &'a Ring,
    site: SiteId,
    same_boot: bool,
    entries_max: u64,
    regions: Regions,
}

impl Recovery<'_> {
    /// What is in the region, if it ever was begun and can be told.
    fn look_at(&mut self, number: u32) -> io::Result<Option<Candidate>> {
        let (ring, start) = (self.ring, self.ring.start_of(number));
        let mut header = [0; REGION_HEADER_BYTES];
        let read = ring.device.read(start, &mut header)?;
        let parsed = match parse_region_header(&header, self.site, ring.region_bytes) {
            Parsed::Good(_) if read < header.len() => Parsed::Damaged,
            parsed => parsed,
        };
        let header = match parsed {
            Parsed::Blank => return Ok(None),
            Parsed::Good(header) => {
                self.regions.last_sequence = self.regions.last_sequence.max(header.sequence);
                Some(header)
            }
            Parsed::Damaged => None,
        };
        if header.is_some_and(|header| header.after == VOID) {
            return Ok(None);
        }
        let footer = self.footer(start)?;
        let header = match (header, &footer) {
            (Some(header), _) => header,
            (None, Some(footer)) => {
                ring.health.damage("the header of a region is not what was written");
                let header = RegionHeader { sequence: footer.sequence, after: 0 };
                self.regions.last_sequence = self.regions.last_sequence.max(footer.sequence);
                ring.device.write(start, &region_header(header, self.site, ring.region_bytes))?;
                header
            }
            (None, None) => {
                ring.health.damage("a region cannot be read");
                return Ok(None);
            }
        };
        // A footer of another sequence is from the region's earlier use.
        let footer = footer.filter(|footer| footer.sequence == header.sequence);
        Ok(Some(Candidate { number, header, footer }))
    }

    fn footer(&self, start: u64) -> io::Result<Option<Footer>> {
        let (ring, end) = (self.ring, start + self.ring.region_bytes);
        let mut trailer = [0; TRAILER_BYTES];
        let read = ring.device.read(end - TRAILER_BYTES as u64, &mut trailer)?;
        if read < trailer.len() {
            ring.health.damage("the file is shorter than it was");
            return Ok(None);
        }
        let bytes = match footer_length(&trailer, ring.region_bytes) {
            Parsed::Blank => return Ok(None),
            Parsed::Good(bytes) => bytes,
            Parsed::Damaged => {
                ring.health.damage("the end of a region is not what was written");
                return Ok(None);
            }
        };
        let mut whole = vec![0; usize::try_from(bytes).expect("less than a region")];
        let read = ring.device.read(end - bytes, &mut whole)?;
        let footer = parse_footer(&whole, ring.region_bytes).filter(|_| read == whole.len());
        if footer.is_none() {
            ring.health.damage("the footer of a region is not what was written");
        }
        Ok(footer)
    }

    /// Each region names the one before it. One that is named and is not there was lost, unless it was overwritten since.
    fn count_missing(&self, candidates: &[Candidate]) {
        let Some(oldest) = candidates.first().map(|candidate| candidate.header.sequence) else { return };
        for pair in candidates.windows(2) {
            let after = pair[1].header.after;
            if after >= oldest && after != pair[0].header.sequence {
                self.ring.health.damage("a region is missing");
            }
        }
    }

    fn take(&mut self, candidate: Candidate, is_newest: bool) {
        let Candidate { number, header: RegionHeader { sequence, .. }, footer } = candidate;
        let twice = sequence == self.ring.newest();
        if twice || sequence == 0 || (footer.is_none() && !self.same_boot) {
            self.make_void(number, sequence);
            return;
        }
        let synced = footer.is_some();
        let (mut listed, mut end) =
            footer.map_or((Vec::new(), PAGE_BYTES), |footer| (footer.entries, footer.end));
        if self.same_boot && (is_newest || !synced) {
            self.follow(number, sequence, &mut listed, &mut end);
        } else if is_newest {
            self.cut_off(number, end, listed.len() as u64);
        }
        let hashes: Vec<u64> = listed.iter().map(|entry| Key(entry.chunk).hash64()).collect();
        for (entry, &hash) in listed.iter().zip(&hashes) {
            let length = usize::try_from(entry.length).expect("a payload's length");
            self.ring.index.insert(hash, Location::new(number, u64::from(entry.offset), length));
        }
        self.ring.begin(number, sequence);
        self.ring.add_used(end, hashes.len());
        let region = Region { number, sequence, hashes, bytes: end };
        if is_newest && self.same_boot {
            self.regions.current = Some(Current { region, listed, end });
        } else {
            self.regions.closed.push_back(region);
        }
        while self.ring.index.entries() > self.entries_max && self.regions.evict_oldest(self.ring) {}
    }

    /// Adds the entries that follow, up to the first that is not there.
    fn follow(&self, number: u32, sequence: u64, listed: &mut Vec<Listed>, end: &mut u64) {
        let start = self.ring.start_of(number);
        let mut header = [0; ENTRY_HEADER_BYTES];
        while *end + entry_bytes(1) <= self.ring.region_bytes {
            let read = match self.ring.device.read(start + *end, &mut header) {
                Ok(read) => read,
                Err(error) => {
                    self.ring.health.failed("read a region", &error);
                    break;
                }
            };
            let entry = EntryHeader::parse(&header[..read]).filter(|entry| {
                entry.sequence == sequence && *end + entry_bytes(entry.length) <= self.ring.region_bytes
            });
            let Some(entry) = entry else { break };
            listed.push(Listed {
                chunk: entry.chunk,
                offset: u32::try_from(*end).expect("inside a region"),
                length: u32::try_from(entry.length).expect("a payload's length"),
            });
            *end += entry_bytes(entry.length);
        }
    }

    /// Nothing is found behind this place any more. The region's footer, which lists so many entries, stays.
    fn cut_off(&self, number: u32, end: u64, entries: u64) {
        let room = (self.ring.region_bytes - footer_bytes(entries)).saturating_sub(end);
        let length = usize::try_from(room).map_or(ENTRY_HEADER_BYTES, |room| room.min(ENTRY_HEADER_BYTES));
        self.overwrite(self.ring.start_of(number) + end, &[0; ENTRY_HEADER_BYTES][..length]);
    }

    fn make_void(&mut self, number: u32, sequence: u64) {
        let header = region_header(RegionHeader { sequence, after: VOID }, self.site, self.ring.region_bytes);
        self.overwrite(self.ring.start_of(number), &header);
        self.regions.free.push_back(number);
    }

    fn overwrite(&self, place: u64, bytes: &[u8]) {
        if let Err(error) = self.ring.device.write(place, bytes) {
            self.ring.health.failed("write to a region", &error);
        }
    }
}
