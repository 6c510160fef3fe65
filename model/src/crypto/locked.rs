//! The memory that secret keys live in: slots of pages that are neither swapped out nor written into core dumps.
//!
//! Invariants:
//! 1. A slot belongs to one [`Slot`] at a time, holds zeros while it belongs to none, and never moves: moving a key moves a pointer.
//! 2. Pages are never given back, so a lock once taken holds. There are as many as the most keys that ever lived at once needed.
//!
//! A page that the system will not lock (`RLIMIT_MEMLOCK`) is used all the same: keys that may be swapped out are no reason not
//! to serve. It is told once, at level debug, and by [`locked_pages`].

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use zeroize::Zeroize;

const KEY_BYTES: usize = 32;
const PAGE_BYTES: usize = 4096;
const KEYS_PER_PAGE: usize = PAGE_BYTES / KEY_BYTES;

#[repr(C, align(4096))]
struct Page([[u8; KEY_BYTES]; KEYS_PER_PAGE]);

const _: () = assert!(size_of::<Page>() == PAGE_BYTES, "a page holds keys and nothing else");

static FREE: Mutex<Vec<&'static mut [u8; KEY_BYTES]>> = Mutex::new(Vec::new());
static LOCKED: AtomicU64 = AtomicU64::new(0);
static UNLOCKED: AtomicU64 = AtomicU64::new(0);

/// Pages for keys that the system locked in memory, and those that it did not.
pub fn locked_pages() -> (u64, u64) {
    (LOCKED.load(Ordering::Relaxed), UNLOCKED.load(Ordering::Relaxed))
}

/// The bytes of one key. Zeroised and given back when dropped.
pub(super) struct Slot(
    /// `None` only while it is being dropped.
    Option<&'static mut [u8; KEY_BYTES]>,
);

impl Slot {
    /// A slot of zeros.
    pub(super) fn new() -> Self {
        let free = FREE.lock().pop();
        Self(Some(free.unwrap_or_else(from_a_new_page)))
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        self.0.as_deref().expect("a slot has its bytes until it is dropped")
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8; KEY_BYTES] {
        self.0.as_deref_mut().expect("a slot has its bytes until it is dropped")
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(bytes) = self.0.take() {
            bytes.zeroize();
            FREE.lock().push(bytes);
        }
    }
}

/// Makes a page, keeps one slot of it and frees the others.
fn from_a_new_page() -> &'static mut [u8; KEY_BYTES] {
    let page: &'static mut Page = Box::leak(Box::new(Page([[0; KEY_BYTES]; KEYS_PER_PAGE])));
    protect(page);
    let mut slots = page.0.iter_mut();
    let first = slots.next().expect("a page has slots");
    FREE.lock().extend(slots);
    first
}

fn protect(page: &mut Page) {
    let address = std::ptr::from_mut(page).cast();
    // SAFETY: the range is one whole page that this process owns and never gives back. Neither call reads, writes or unmaps it.
    let (hidden, locked) = unsafe {
        let hidden = rustix::mm::madvise(address, PAGE_BYTES, rustix::mm::Advice::LinuxDontDump);
        (hidden, rustix::mm::mlock(address, PAGE_BYTES))
    };
    if let Err(error) = hidden {
        tracing::debug!(%error, "a page of keys may be part of core dumps");
    }
    match locked {
        Ok(()) => {
            LOCKED.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => {
            if UNLOCKED.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::debug!(%error, "a page of keys cannot be locked in memory and may be swapped out; raise RLIMIT_MEMLOCK");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_zero_when_it_is_taken_whatever_was_in_it() {
        let addresses: Vec<usize> = (0..300)
            .map(|_| {
                let mut slot = Slot::new();
                assert_eq!(slot.bytes(), &[0; KEY_BYTES]);
                slot.bytes_mut().fill(0xa5);
                slot.bytes().as_ptr().addr()
            })
            .collect();
        assert!(addresses.iter().all(|address| address.is_multiple_of(KEY_BYTES)));
    }

    #[test]
    fn slots_that_live_at_once_do_not_overlap() {
        let mut slots: Vec<Slot> = (0..500).map(|_| Slot::new()).collect();
        for (number, slot) in slots.iter_mut().enumerate() {
            slot.bytes_mut()[..8].copy_from_slice(&number.to_le_bytes());
        }
        for (number, slot) in slots.iter().enumerate() {
            assert_eq!(slot.bytes()[..8], number.to_le_bytes());
        }
        let (locked, unlocked) = locked_pages();
        assert!(locked + unlocked >= 3, "500 keys take four pages");
    }

    #[test]
    fn a_page_of_keys_is_locked_where_the_system_allows_it() {
        let slot = Slot::new();
        let address = slot.bytes().as_ptr().addr();
        let (_, unlocked) = locked_pages();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut flags = None;
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split_whitespace().next().and_then(|word| word.split_once('-'));
            let ends = range.and_then(|(begin, end)| {
                Some((usize::from_str_radix(begin, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
            });
            if let Some((begin, end)) = ends {
                inside = (begin..end).contains(&address);
            } else if inside && let Some(list) = line.strip_prefix("VmFlags:") {
                flags = Some(list.to_owned());
            }
        }
        let flags = flags.expect("the page is mapped");
        assert!(flags.contains(" dd"), "not left out of core dumps: {flags}");
        assert!(unlocked > 0 || flags.contains(" lo"), "not locked: {flags}");
    }
}
