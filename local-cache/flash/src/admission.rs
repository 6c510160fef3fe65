//! Who may enter: what somebody asks for again, and not what a backup reads once.
//!
//! While the ring has regions that were never used, whatever is fetched enters. After that a fetched chunk enters when it was asked for
//! at least twice lately, or when a chunk near it in its container was: one fetch brings a whole neighbourhood, of which only some was
//! asked for. A scan asks for each chunk once, so it overwrites nothing. This is the doorkeeper of TinyLFU (Einziger, Friedman, Manes:
//! TinyLFU, ACM ToS 2017) with a window instead of a reset.
//!
//! Destaged chunks are asked for by nobody yet; they enter as fast as their limit lets them, and only while the queue is half empty.
//! Chunks that are read when their region is near its end are written again (kept), so what is in use outlives a pass of the ring.

use crate::Source;
use crate::config::FlashConfig;
use cairn_model::Monotonic;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const WAYS: usize = 8;
const CHUNK_BYTES_GUESS: u64 = 8 << 10;
const SLOTS_MIN: u64 = 1 << 12;
/// Epochs for as many new keys as there are slots.
const EPOCHS: u64 = 16;
/// A key is remembered for this many epochs.
const WINDOW: u32 = 12;
const AGAIN: u32 = 1 << 8;
const EPOCH_MASK: u32 = 0xff;
const FINGERPRINT_MASK: u32 = !(EPOCH_MASK | AGAIN);

/// Keys asked for lately, about as many as the cache holds chunks: 4 bytes each, in sets of a half cache line. Races between threads
/// lose a key now and then, which costs an admission.
#[derive(Debug)]
pub(crate) struct Recent {
    /// 23 bits of the key's hash, whether it was asked for again, the epoch of the last time. Zero: empty.
    slots: Vec<AtomicU32>,
    sets: u64,
    added: AtomicU64,
    added_per_epoch: u64,
}

impl Recent {
    pub(crate) fn new(capacity_bytes: u64) -> Self {
        let slots = (capacity_bytes / CHUNK_BYTES_GUESS).max(SLOTS_MIN).next_multiple_of(WAYS as u64);
        let count = usize::try_from(slots).expect("an address space holds it");
        Self {
            slots: std::iter::repeat_with(AtomicU32::default).take(count).collect(),
            sets: slots / WAYS as u64,
            added: AtomicU64::new(0),
            added_per_epoch: slots / EPOCHS,
        }
    }

    fn epoch(&self) -> u32 {
        let epoch = self.added.load(Ordering::Relaxed) / self.added_per_epoch;
        u32::try_from(epoch & u64::from(EPOCH_MASK)).expect("eight bits")
    }

    fn set(&self, hash: u64) -> &[AtomicU32] {
        let first = usize::try_from(hash % self.sets).expect("an index") * WAYS;
        &self.slots[first..first + WAYS]
    }

    /// Never zero, which means empty.
    fn fingerprint(hash: u64) -> u32 {
        let bits = u32::try_from(hash >> 32).expect("32 bits") & FINGERPRINT_MASK;
        if bits == 0 { AGAIN << 1 } else { bits }
    }

    fn age(slot: u32, epoch: u32) -> u32 {
        epoch.wrapping_sub(slot) & EPOCH_MASK
    }

    /// The slot of the key, if it was asked for within the window.
    fn find(&self, hash: u64, epoch: u32) -> Option<(&AtomicU32, u32)> {
        let fingerprint = Self::fingerprint(hash);
        let slots = self.set(hash).iter().map(|slot| (slot, slot.load(Ordering::Relaxed)));
        let mut found = slots.filter(|(_, value)| value & FINGERPRINT_MASK == fingerprint);
        found.find(|&(_, value)| Self::age(value, epoch) <= WINDOW)
    }

    fn add(&self, hash: u64, epoch: u32, again: u32) {
        let set = self.set(hash);
        let oldest = set.iter().max_by_key(|slot| {
            let value = slot.load(Ordering::Relaxed);
            if value == 0 { EPOCH_MASK + 1 } else { Self::age(value, epoch) }
        });
        oldest.expect("a set has slots").store(Self::fingerprint(hash) | again | epoch, Ordering::Relaxed);
        self.added.fetch_add(1, Ordering::Relaxed);
    }

    /// Somebody asked for this key, of this neighbourhood.
    pub(crate) fn asked(&self, hash: u64, group: u64) {
        let epoch = self.epoch();
        match self.find(hash, epoch) {
            None => self.add(hash, epoch, 0),
            Some((slot, value)) => {
                slot.store(value & FINGERPRINT_MASK | AGAIN | epoch, Ordering::Relaxed);
                match self.find(group, epoch) {
                    None => self.add(group, epoch, AGAIN),
                    Some((slot, _)) => {
                        slot.store(Self::fingerprint(group) | AGAIN | epoch, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// Whether it, or something near it, was asked for more than once within the window.
    pub(crate) fn wanted(&self, hash: u64, group: u64) -> bool {
        let epoch = self.epoch();
        let again = |hash| self.find(hash, epoch).is_some_and(|(_, value)| value & AGAIN != 0);
        again(hash) || again(group)
    }
}

/// A limit in bytes a second, of which one second's worth may come at once.
#[derive(Debug)]
struct Rate {
    per_second: u64,
    state: Mutex<(u64, Monotonic)>,
}

impl Rate {
    fn new(per_second: u64, now: Monotonic) -> Self {
        Self { per_second, state: Mutex::new((per_second, now)) }
    }

    fn take(&self, bytes: u64, now: Monotonic) -> bool {
        let (available, at) = &mut *self.state.lock();
        let earned = u128::from(self.per_second) * now.since(*at).as_nanos() / 1_000_000_000;
        let earned = u64::try_from(earned).unwrap_or(u64::MAX);
        // Less than a byte is not lost: the time stands still for it.
        if earned > 0 {
            *available = available.saturating_add(earned).min(self.per_second);
            *at = now;
        }
        let enough = *available >= bytes;
        if enough {
            *available -= bytes;
        }
        enough
    }
}

/// Why a chunk may not enter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// No room in the queue, or too fast.
    Busy,
    /// Nobody asked for it before.
    Unwanted,
}

/// What a chunk at the door is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) hash: u64,
    pub(crate) group: u64,
    pub(crate) bytes: u64,
}

/// The state of the ring that admission looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) queued_bytes: u64,
    /// Something must go for what comes.
    pub(crate) full: bool,
}

/// The door.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) recent: Recent,
    queue_bytes: u64,
    writes: Rate,
    destage: Rate,
}

impl Gate {
    pub(crate) fn new(config: &FlashConfig, now: Monotonic) -> Self {
        Self {
            recent: Recent::new(config.capacity_bytes),
            queue_bytes: config.queue_bytes,
            writes: Rate::new(config.write_bytes_per_second, now),
            destage: Rate::new(config.destage_bytes_per_second, now),
        }
    }

    pub(crate) fn admit(
        &self,
        source: Source,
        candidate: Candidate,
        room: Room,
        now: Monotonic,
    ) -> Result<(), Refused> {
        let Candidate { hash, group, bytes } = candidate;
        let room_for = match source {
            Source::Fetch if room.full && !self.recent.wanted(hash, group) => return Err(Refused::Unwanted),
            Source::Fetch => self.queue_bytes,
            Source::Destage => self.queue_bytes / 2,
        };
        if room.queued_bytes + bytes > room_for {
            return Err(Refused::Busy);
        }
        if source == Source::Destage && !self.destage.take(bytes, now) {
            return Err(Refused::Busy);
        }
        if self.writes.take(bytes, now) { Ok(()) } else { Err(Refused::Busy) }
    }

    /// Whether a chunk that was read near its eviction may be written again.
    pub(crate) fn keep(&self, bytes: u64, room: Room, now: Monotonic) -> bool {
        room.queued_bytes + bytes <= self.queue_bytes / 4 * 3 && self.writes.take(bytes, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::mix;
    use std::time::Duration;

    const FULL: Room = Room { queued_bytes: 0, full: true };
    const EMPTY: Room = Room { queued_bytes: 0, full: false };

    fn gate() -> Gate {
        Gate::new(&FlashConfig::new("/flash", 64 << 20), Monotonic::default())
    }

    fn candidate(number: u64) -> Candidate {
        Candidate { hash: mix(number), group: mix(number / 64 + (1 << 40)), bytes: 4096 }
    }

    fn ask(gate: &Gate, number: u64) {
        gate.recent.asked(candidate(number).hash, candidate(number).group);
    }

    fn fetched(gate: &Gate, number: u64, room: Room) -> Result<(), Refused> {
        gate.admit(Source::Fetch, candidate(number), room, Monotonic::default())
    }

    #[test]
    fn while_there_is_room_what_is_fetched_enters() {
        assert_eq!(fetched(&gate(), 1, EMPTY), Ok(()));
    }

    #[test]
    fn in_a_full_cache_only_what_was_asked_for_again_enters_and_its_neighbours() {
        let gate = gate();
        ask(&gate, 1);
        assert_eq!(fetched(&gate, 1, FULL), Err(Refused::Unwanted));
        ask(&gate, 1);
        assert_eq!(fetched(&gate, 1, FULL), Ok(()));
        assert_eq!(fetched(&gate, 2, FULL), Ok(()));
        assert_eq!(fetched(&gate, 100, FULL), Err(Refused::Unwanted));
    }

    #[test]
    fn a_scan_of_neighbours_each_asked_for_once_does_not_enter() {
        let gate = gate();
        let entered = (0..100_000).filter(|&number| {
            ask(&gate, number);
            fetched(&gate, number, FULL).is_ok()
        });
        assert!(entered.count() < 10);
    }

    #[test]
    fn what_was_asked_for_long_ago_is_forgotten() {
        let gate = gate();
        ask(&gate, 1);
        (1000..30_000).for_each(|number| ask(&gate, number));
        ask(&gate, 1);
        assert_eq!(fetched(&gate, 1, FULL), Err(Refused::Unwanted));
    }

    #[test]
    fn destage_gives_way_first() {
        let gate = gate();
        let half_full = Room { queued_bytes: 8 << 20, full: false };
        let destaged = gate.admit(Source::Destage, candidate(1), half_full, Monotonic::default());
        assert_eq!(destaged, Err(Refused::Busy));
        assert_eq!(fetched(&gate, 1, half_full), Ok(()));
        assert!(gate.keep(4096, half_full, Monotonic::default()));
    }

    #[test]
    fn destage_and_all_writes_together_have_limits_in_bytes_a_second() {
        let config = FlashConfig {
            write_bytes_per_second: 3 * 4096,
            destage_bytes_per_second: 4096,
            ..FlashConfig::new("/flash", 64 << 20)
        };
        let gate = Gate::new(&config, Monotonic::default());
        let entered = |source, now: Monotonic| {
            (0..10).filter(|&number| gate.admit(source, candidate(number), EMPTY, now).is_ok()).count()
        };
        assert_eq!(entered(Source::Destage, Monotonic::default()), 1);
        assert_eq!(entered(Source::Fetch, Monotonic::default()), 2);
        let later = Monotonic::default().plus(Duration::from_secs(1));
        assert_eq!(entered(Source::Fetch, later), 3);
    }
}
