//! The lists of containers in memory, and where each fingerprint of them is.
//!
//! One hash table leads from a fingerprint to (container, block); the fingerprint itself is only in the container's list. A block takes 16 bytes
//! in the list, 1 in the starts of chunks and 10 to 20 in the table.
//!
//! Containers in flight stay until they are committed or forgotten. The others share what memory is left, and leave whole, by the clock
//! algorithm: one that answered since the hand last passed stays for another round. Nothing depends on time, threads or addresses, so the same calls
//! lead to the same answers.

use cairn_model::{ChunkId, ChunkIndex, ChunkRef, ContainerFingerprints, ContainerId, DomainId, Fingerprint};
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SEED: u64 = 0x6361_6972_6e66;
/// Of one fingerprint. More places of the same content are not worth the time that looking through them takes.
const COPIES_MAX: usize = 4;

/// One block of a container in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    slot: u32,
    block: u32,
}

impl Place {
    fn pack(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.block)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Packed, not committed: stays.
    InFlight,
    /// May leave.
    Committed,
}

#[derive(Debug)]
struct Slot {
    domain: DomainId,
    prints: Arc<ContainerFingerprints>,
    /// The first block of each chunk.
    starts: Box<[u32]>,
    stage: Stage,
    answered: AtomicBool,
}

impl Slot {
    fn bytes(&self) -> usize {
        size_of::<Self>() + list_bytes(&self.prints)
    }

    fn place(&self, block: u32) -> ChunkRef {
        let chunk = self.starts.partition_point(|start| *start <= block) - 1;
        let index =
            ChunkIndex::new(u32::try_from(chunk).expect("a container's chunks have indexes of 32 bits"));
        let block = u8::try_from(block - self.starts[chunk]).expect("a chunk has at most 16 blocks");
        ChunkRef { chunk: ChunkId { container: self.prints.container(), index }, block }
    }
}

fn list_bytes(prints: &ContainerFingerprints) -> usize {
    prints.blocks().len() * Fingerprint::BYTES + prints.chunk_blocks().len() * 5
}

/// The first block of each chunk; `None` when they are too many to count in 32 bits.
fn starts(prints: &ContainerFingerprints) -> Option<Box<[u32]>> {
    u32::try_from(prints.blocks().len()).ok()?;
    let starts = prints.chunk_blocks().iter().scan(0u32, |next, count| {
        let start = *next;
        *next += u32::from(*count);
        Some(start)
    });
    Some(starts.collect())
}

#[derive(Debug)]
pub(crate) struct Ram {
    table: HashTable<Place>,
    /// Entries that the table has room for, when nothing was ever removed from it.
    capacity: usize,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    numbers: HashMap<ContainerId, u32, FixedState>,
    /// Where the clock's hand is.
    hand: usize,
    lists_bytes: usize,
    bytes_max: usize,
    in_flight: usize,
    hasher: FixedState,
    /// The place of the last answer: the block after it is preferred.
    previous: AtomicU64,
}

impl Ram {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let hasher = FixedState::with_seed(SEED);
        Self {
            table: HashTable::new(),
            capacity: 0,
            slots: Vec::new(),
            free: Vec::new(),
            numbers: HashMap::with_hasher(hasher.clone()),
            hand: 0,
            lists_bytes: 0,
            bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
            in_flight: 0,
            hasher,
            previous: AtomicU64::new(u64::MAX),
        }
    }

    /// Where that content is. Of several places the one behind the last answer is taken, then one of the same container, then any.
    pub(crate) fn find(&self, domain: DomainId, print: &Fingerprint) -> Option<ChunkRef> {
        let previous = self.previous.load(Ordering::Relaxed);
        let rank = |place: &Place| match place.pack().wrapping_sub(previous) {
            1 => 2,
            _ if u64::from(place.slot) == previous >> 32 => 1,
            _ => 0,
        };
        let known = self.table.iter_hash(hash(&self.hasher, domain, print)).filter(|place| {
            let slot = self.slot(place.slot);
            slot.domain == domain && slot.prints.blocks()[place.block as usize] == *print
        });
        let place = known.max_by_key(|place| rank(place))?;
        let slot = self.slot(place.slot);
        if !slot.answered.load(Ordering::Relaxed) {
            slot.answered.store(true, Ordering::Relaxed);
        }
        self.previous.store(place.pack(), Ordering::Relaxed);
        Some(slot.place(place.block))
    }

    fn slot(&self, number: u32) -> &Slot {
        self.slots[number as usize].as_ref().expect("the table names slots that are used")
    }

    pub(crate) fn contains(&self, container: ContainerId) -> bool {
        self.numbers.contains_key(&container)
    }

    /// Containers that are here and committed, in the order of their ids.
    pub(crate) fn committed(&self) -> Vec<ContainerId> {
        let slots = self.slots.iter().flatten().filter(|slot| slot.stage == Stage::Committed);
        let mut ids: Vec<_> = slots.map(|slot| slot.prints.container()).collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn is_committed(&self, container: ContainerId) -> bool {
        self.numbers.get(&container).is_some_and(|number| self.slot(*number).stage == Stage::Committed)
    }

    pub(crate) fn in_flight_count(&self) -> usize {
        self.in_flight
    }

    pub(crate) fn committed_count(&self) -> usize {
        self.numbers.len() - self.in_flight
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lists_bytes + self.table.allocation_size()
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Takes in a container that is not yet here. One that is too large for the memory there is does not stay, unless it is in flight.
    pub(crate) fn insert(&mut self, domain: DomainId, prints: Arc<ContainerFingerprints>, stage: Stage) {
        if self.contains(prints.container()) {
            return;
        }
        let Some(starts) = starts(&prints) else { return };
        self.make_room(prints.blocks().len(), list_bytes(&prints));
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("memory does not hold that many lists")
        });
        self.numbers.insert(prints.container(), number);
        // A list that was read because one of its blocks was wanted is worth a round.
        let answered = AtomicBool::new(stage == Stage::Committed);
        let list = prints.clone();
        let slot = Slot { domain, prints, starts, stage, answered };
        self.lists_bytes += slot.bytes();
        self.in_flight += usize::from(stage == Stage::InFlight);
        self.slots[number as usize] = Some(slot);
        for (block, print) in (0u32..).zip(list.blocks()) {
            self.insert_place(domain, print, Place { slot: number, block });
        }
        self.shrink();
    }

    fn insert_place(&mut self, domain: DomainId, print: &Fingerprint, place: Place) {
        let Self { table, slots, hasher, .. } = self;
        let at = |place: &Place| {
            let slot = slots[place.slot as usize].as_ref().expect("the table names slots that are used");
            (slot.domain, &slot.prints.blocks()[place.block as usize])
        };
        let hash_of = hash(hasher, domain, print);
        let copies = table.iter_hash(hash_of).filter(|place| at(place) == (domain, print));
        if copies.take(COPIES_MAX).count() < COPIES_MAX {
            table.insert_unique(hash_of, place, |_| unreachable!("room was made for it"));
        }
    }

    /// The container is committed: it may leave from now on. Returns what it was before, if it is here.
    pub(crate) fn commit(&mut self, container: ContainerId) -> Option<Stage> {
        let number = self.numbers.get(&container)?;
        let slot = self.slots[*number as usize].as_mut().expect("the slot is used");
        let stage = std::mem::replace(&mut slot.stage, Stage::Committed);
        if stage == Stage::InFlight {
            self.in_flight -= 1;
            self.shrink();
        }
        Some(stage)
    }

    pub(crate) fn remove(&mut self, container: ContainerId) {
        let Some(number) = self.numbers.remove(&container) else { return };
        let slot = self.slots[number as usize].take().expect("the slot is used");
        self.free.push(number);
        self.lists_bytes -= slot.bytes();
        self.in_flight -= usize::from(slot.stage == Stage::InFlight);
        for (block, print) in (0u32..).zip(slot.prints.blocks()) {
            let place = Place { slot: number, block };
            if let Ok(entry) =
                self.table.find_entry(hash(&self.hasher, slot.domain, print), |found| *found == place)
            {
                entry.remove();
            }
        }
    }

    /// Makes room in the table for that many blocks. It would double by itself, which may leave little memory for the lists it leads to: it
    /// doubles only where both fit, and otherwise containers go until a quarter of it is free.
    fn make_room(&mut self, blocks: usize, list_bytes: usize) {
        if self.table.len() + blocks <= self.table.capacity() {
            return;
        }
        let grown = self.lists_bytes + list_bytes + 2 * self.table.allocation_size();
        if grown <= self.bytes_max {
            self.rebuild((2 * self.capacity).max(self.table.len() + blocks), blocks);
        } else {
            let full = self.capacity - self.capacity / 4;
            self.evict_while(|ram| ram.table.len() + blocks > full);
            self.rebuild(self.capacity.max(self.table.len() + blocks), blocks);
        }
    }

    /// Makes the table anew, with room for that many entries, `spare` of them for others: what was removed leaves marks in the old one, which take room. Of content that was
    /// there too many times other places may be known now. In the unlikely case that there is no room for these, some are not.
    fn rebuild(&mut self, capacity: usize, spare: usize) {
        self.table = HashTable::with_capacity(capacity);
        self.capacity = self.table.capacity();
        // List by list: through the old table every fingerprint would come from another place in memory.
        for number in 0..self.slots.len() {
            let Some(slot) = &self.slots[number] else { continue };
            let (domain, list) = (slot.domain, slot.prints.clone());
            let number = u32::try_from(number).expect("memory does not hold that many lists");
            for (block, print) in (0u32..).zip(list.blocks()) {
                if self.table.len() + spare >= self.capacity {
                    return;
                }
                self.insert_place(domain, print, Place { slot: number, block });
            }
        }
    }

    /// Lets containers go until the rest fits.
    fn shrink(&mut self) {
        self.evict_while(|ram| ram.bytes() > ram.bytes_max);
        if self.bytes() > self.bytes_max && self.table.len() < self.capacity / 2 {
            self.rebuild(self.table.len(), 0);
        }
    }

    /// Goes round twice at most: the first round only takes away what was answered.
    fn evict_while(&mut self, too_much: impl Fn(&Self) -> bool) {
        let mut steps = 2 * self.slots.len();
        while steps > 0 && too_much(self) {
            steps -= 1;
            self.hand = (self.hand + 1) % self.slots.len();
            let Some(slot) = &mut self.slots[self.hand] else { continue };
            if slot.stage == Stage::InFlight || std::mem::take(slot.answered.get_mut()) {
                continue;
            }
            let container = slot.prints.container();
            self.remove(container);
        }
    }
}

fn hash(hasher: &FixedState, domain: DomainId, print: &Fingerprint) -> u64 {
    hasher.hash_one((domain, print))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(number: u8, prints: impl IntoIterator<Item = u8>) -> Arc<ContainerFingerprints> {
        let blocks: Vec<_> = prints.into_iter().map(|byte| Fingerprint::from_bytes([byte; 16])).collect();
        let chunks = blocks.chunks(3).map(|chunk| u8::try_from(chunk.len()).unwrap()).collect();
        let id = ContainerId::from_bytes([number; 16]);
        Arc::new(ContainerFingerprints::new(id, chunks, blocks).unwrap())
    }

    fn find(ram: &Ram, byte: u8) -> Option<(u8, u32, u8)> {
        let place = ram.find(DomainId::DEFAULT, &Fingerprint::from_bytes([byte; 16]))?;
        Some((place.chunk.container.as_bytes()[0], place.chunk.index.get(), place.block))
    }

    #[test]
    fn of_several_places_the_one_behind_the_last_answer_is_taken() {
        let mut ram = Ram::new(1 << 20);
        for (number, prints) in [(1, [1, 2, 3, 4]), (2, [9, 2, 3, 8]), (3, [7, 2, 3, 6])] {
            ram.insert(DomainId::DEFAULT, container(number, prints), Stage::Committed);
        }
        for (first, number) in [(1, 1), (9, 2), (7, 3)] {
            assert_eq!(find(&ram, first), Some((number, 0, 0)));
            assert_eq!(find(&ram, 2), Some((number, 0, 1)));
            assert_eq!(find(&ram, 3), Some((number, 0, 2)));
        }
        assert_eq!(find(&ram, 4), Some((1, 1, 0)));
    }

    #[test]
    fn what_answered_stays_longer_and_what_is_in_flight_stays() {
        let bytes_of_one = {
            let mut ram = Ram::new(1 << 20);
            ram.insert(DomainId::DEFAULT, container(1, 0..100), Stage::Committed);
            ram.bytes()
        };
        let mut ram = Ram::new(6 * bytes_of_one as u64);
        ram.insert(DomainId::DEFAULT, container(1, 0..100), Stage::InFlight);
        for number in 2..60 {
            ram.insert(DomainId::DEFAULT, container(number, 100..200), Stage::InFlight);
            assert_eq!(ram.commit(ContainerId::from_bytes([number; 16])), Some(Stage::InFlight));
            assert!(ram.bytes() <= ram.bytes_max());
            assert_eq!(find(&ram, 5), Some((1, 1, 2)));
        }
        assert!((2..10).contains(&ram.committed_count()), "{}", ram.committed_count());
        ram.remove(ContainerId::from_bytes([1; 16]));
        assert_eq!(find(&ram, 5), None);
        assert_eq!(ram.in_flight_count(), 0);
    }

    #[test]
    fn the_same_content_many_times_over_is_known_a_few_times() {
        let mut ram = Ram::new(1 << 20);
        ram.insert(DomainId::DEFAULT, container(1, std::iter::repeat_n(7, 1000)), Stage::Committed);
        assert_eq!(ram.table.len(), COPIES_MAX);
        assert!(find(&ram, 7).is_some());
        ram.remove(ContainerId::from_bytes([1; 16]));
        assert_eq!((ram.table.len(), ram.lists_bytes), (0, 0));
    }
}
