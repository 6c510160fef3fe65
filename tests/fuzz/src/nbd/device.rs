//! A device that keeps account of all that it did, and whose mood the input decides.

use bytes::Bytes;
use cairn_model::{
    AllocationExtent, BlockDevice, ChangeExtent, DeviceInfo, ErrorKind, Kinded, ReadBuffer, WriteFlags,
};
use std::collections::VecDeque;
use std::sync::Mutex;

/// Bytes of the device: every 16-bit offset is inside.
pub(super) const SIZE: u64 = 1 << 16;
const PAGE: u64 = 4096;

/// Something that the device did, to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Read {
        offset: u64,
        data: Vec<u8>,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
        fua: bool,
    },
    Flush,
    Zeroes {
        offset: u64,
        length: u64,
        fua: bool,
    },
    Discard {
        offset: u64,
        length: u64,
        fua: bool,
    },
    Prefetch {
        offset: u64,
        length: u64,
    },
    Allocation {
        offset: u64,
        length: u64,
        extents: Vec<(u64, bool)>,
    },
    /// Since the device was made.
    Changes {
        offset: u64,
        length: u64,
        extents: Vec<(u64, bool)>,
    },
}

#[derive(Debug)]
pub(super) struct Device {
    read_only: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    moods: VecDeque<u8>,
    done: Vec<Done>,
    failed: bool,
}

/// The device was in the mood to fail.
#[derive(Debug, thiserror::Error)]
#[error("the device fails: {}", .0.name())]
pub(super) struct Trouble(ErrorKind);

impl Kinded for Trouble {
    fn kind(&self) -> ErrorKind {
        self.0
    }
}

impl Device {
    /// Each operation takes one of `moods`: the low bits are how often it has to wait, the high ones whether it fails.
    pub(super) fn new(read_only: bool, moods: &[u8]) -> Self {
        let bytes = first_bytes();
        let state = State { bytes, moods: moods.iter().copied().collect(), done: Vec::new(), failed: false };
        Self { read_only, state: Mutex::new(state) }
    }

    /// What was done, and whether anything failed.
    pub(super) fn account(&self) -> (Vec<Done>, bool) {
        let mut state = self.state.lock().unwrap();
        (std::mem::take(&mut state.done), state.failed)
    }

    /// Waits and fails as the mood is, then does `work` and notes it.
    async fn perform(
        &self,
        offset: u64,
        length: u64,
        work: impl FnOnce(&mut [u8]) -> Done,
    ) -> Result<Done, Trouble> {
        let mood = self.state.lock().unwrap().moods.pop_front().unwrap_or(0);
        for _ in 0..mood & 7 {
            tokio::task::yield_now().await;
        }
        let mut state = self.state.lock().unwrap();
        let kinds = [ErrorKind::Unavailable, ErrorKind::OutOfSpace, ErrorKind::Fenced, ErrorKind::Corrupt];
        if let Some(kind) = kinds.get(usize::from(mood >> 4).wrapping_sub(12)) {
            state.failed = true;
            return Err(Trouble(*kind));
        }
        let inside = offset.checked_add(length).is_some_and(|end| end <= SIZE);
        assert!(inside, "the server asked the device for {length} bytes at {offset} of {SIZE}");
        let done = work(&mut state.bytes);
        state.done.push(done.clone());
        Ok(done)
    }

    async fn change(&self, offset: u64, length: u64, done: Done) -> Result<(), Trouble> {
        assert!(!self.read_only, "the server changes a read-only device: {done:?}");
        let applied = |bytes: &mut [u8]| {
            match &done {
                Done::Write { data, .. } => bytes[at(offset)..][..data.len()].copy_from_slice(data),
                Done::Zeroes { .. } => bytes[at(offset)..at(offset + length)].fill(0),
                Done::Discard { .. } => {
                    let pages = offset.next_multiple_of(PAGE)..(offset + length) / PAGE * PAGE;
                    bytes[at(pages.start.min(pages.end))..at(pages.end)].fill(0);
                }
                other => unreachable!("{other:?} changes nothing"),
            }
            done
        };
        self.perform(offset, length, applied).await.map(drop)
    }
}

/// What a fresh device holds.
fn first_bytes() -> Vec<u8> {
    (0..SIZE).map(|at| if at / PAGE % 3 == 1 { 0 } else { (at / 7) as u8 }).collect()
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// Extents of pages of which the same can be said.
fn extents(
    offset: u64,
    length: u64,
    extents_max: usize,
    say: impl Fn(std::ops::Range<usize>) -> bool,
) -> Vec<(u64, bool)> {
    let (mut from, end) = (offset, offset + length);
    let mut found: Vec<(u64, bool)> = Vec::new();
    while from < end {
        let to = (from / PAGE + 1) * PAGE;
        let (part, said) = (to.min(end) - from, say(at(to - PAGE)..at(to)));
        let full = found.len() == extents_max;
        match found.last_mut() {
            Some((length, before)) if *before == said => *length += part,
            _ if full => break,
            _ => found.push((part, said)),
        }
        from = to;
    }
    found
}

impl BlockDevice for Device {
    type Error = Trouble;
    type Earlier = Vec<u8>;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { size_bytes: SIZE, read_only: self.read_only }
    }

    async fn read(&self, offset: u64, length_bytes: u32) -> Result<ReadBuffer, Trouble> {
        let length = u64::from(length_bytes);
        let work =
            |bytes: &mut [u8]| Done::Read { offset, data: bytes[at(offset)..at(offset + length)].to_vec() };
        let Done::Read { data, .. } = self.perform(offset, length, work).await? else { unreachable!() };
        let mut buffer = ReadBuffer::default();
        let mut rest = Bytes::from(data);
        while !rest.is_empty() {
            let to_page = PAGE - (offset + length - rest.len() as u64) % PAGE;
            let piece = rest.split_to(rest.len().min(at(to_page)));
            if piece.iter().all(|&byte| byte == 0) {
                buffer.push_zeros(piece.len());
            } else {
                buffer.push(piece);
            }
        }
        Ok(buffer)
    }

    async fn write(&self, offset: u64, data: Bytes, flags: WriteFlags) -> Result<(), Trouble> {
        let length = data.len() as u64;
        self.change(offset, length, Done::Write { offset, data: data.to_vec(), fua: flags.fua }).await
    }

    async fn flush(&self) -> Result<(), Trouble> {
        self.perform(0, 0, |_| Done::Flush).await.map(drop)
    }

    async fn write_zeroes(&self, offset: u64, length: u64, flags: WriteFlags) -> Result<(), Trouble> {
        self.change(offset, length, Done::Zeroes { offset, length, fua: flags.fua }).await
    }

    async fn discard(&self, offset: u64, length: u64, flags: WriteFlags) -> Result<(), Trouble> {
        self.change(offset, length, Done::Discard { offset, length, fua: flags.fua }).await
    }

    async fn prefetch(&self, offset: u64, length: u64) -> Result<(), Trouble> {
        self.perform(offset, length, |_| Done::Prefetch { offset, length }).await.map(drop)
    }

    async fn allocation(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<AllocationExtent>, Trouble> {
        let work = |bytes: &mut [u8]| Done::Allocation {
            offset,
            length,
            extents: extents(offset, length, extents_max, |page| bytes[page].iter().any(|&byte| byte != 0)),
        };
        let Done::Allocation { extents, .. } = self.perform(offset, length, work).await? else {
            unreachable!()
        };
        let extent = |(length_bytes, allocated)| AllocationExtent { length_bytes, allocated };
        Ok(extents.into_iter().map(extent).collect())
    }

    async fn earlier(&self) -> Result<Vec<String>, Trouble> {
        Ok(vec!["first".to_owned()])
    }

    async fn open_earlier(&self, name: &str) -> Result<Option<Vec<u8>>, Trouble> {
        Ok((name == "first").then(first_bytes))
    }

    async fn changes(
        &self,
        since: &Vec<u8>,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<ChangeExtent>, Trouble> {
        let work = |bytes: &mut [u8]| Done::Changes {
            offset,
            length,
            extents: extents(offset, length, extents_max, |page| bytes[page.clone()] != since[page]),
        };
        let Done::Changes { extents, .. } = self.perform(offset, length, work).await? else { unreachable!() };
        let extent = |(length_bytes, changed)| ChangeExtent { length_bytes, changed };
        Ok(extents.into_iter().map(extent).collect())
    }
}
