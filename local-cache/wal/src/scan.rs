//! Reading the frames of one file in order, in large sequential reads, and judging where its log ends.

use crate::WalError;
use crate::format::{
    FRAME_MAX, FileHeader, FrameError, FrameHeader, PAGE, PAGE_BYTES, is_frame_but_for_epoch, open_frame,
};
use crate::ring::Slot;
use cairn_model::crypto::Cipher;
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{AlignedBuffer, Lsn};
use std::sync::Arc;

/// Bytes per read; at least two frames of the largest size.
const WINDOW: usize = 4 << 20;
const _: () = assert!(WINDOW >= 2 * FRAME_MAX && WINDOW.is_multiple_of(PAGE), "a frame fits the window");

/// What is wrong where frames are found whose header is gone.
pub(crate) const HEADER_LOST: &str = "the header of the file's latest frames is lost";

/// A file of the log that takes part in recovery.
#[derive(Clone, Debug)]
pub(crate) struct FoundFile {
    pub(crate) slot: Slot,
    pub(crate) header: FileHeader,
    pub(crate) cipher: Arc<Cipher>,
}

/// A window that moves forward over a file.
#[derive(Debug)]
pub(crate) struct Scanner {
    slot: Slot,
    buffer: AlignedBuffer,
    /// Where the window starts in the file, and how much of it is filled.
    start: u64,
    filled: usize,
}

impl Scanner {
    pub(crate) fn new(slot: Slot) -> Self {
        Self { slot, buffer: AlignedBuffer::zeroed(WINDOW), start: PAGE_BYTES, filled: 0 }
    }

    /// Reuses the memory for another file.
    pub(crate) fn restart(&mut self, slot: Slot) {
        self.slot = slot;
        (self.start, self.filled) = (PAGE_BYTES, 0);
    }

    fn failed(&self) -> impl Fn(std::io::Error) -> WalError + use<> {
        let name = self.slot.name();
        move |error| WalError::io("read", &name, error)
    }

    /// The file's bytes from `offset`, `length` of them or up to the end of the file.
    async fn bytes(&mut self, offset: u64, length: usize) -> Result<&mut [u8], WalError> {
        let available = usize::try_from(self.slot.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = length.min(available);
        let window_end = self.start + self.filled as u64;
        if offset < self.start || offset + length as u64 > window_end {
            let kept = if (self.start..window_end).contains(&offset) { window_end - offset } else { 0 };
            let kept = usize::try_from(kept).expect("within the window");
            self.buffer.copy_within(self.filled - kept..self.filled, 0);
            let fill = (WINDOW - kept).min(available - kept);
            let failed = self.failed();
            let target = &mut self.buffer[kept..kept + fill];
            self.slot.file.read_device(offset + kept as u64, target).await.map_err(failed)?;
            (self.start, self.filled) = (offset, kept + fill);
        }
        let at = usize::try_from(offset - self.start).expect("within the window");
        Ok(&mut self.buffer[at..at + length])
    }

    /// What looks like a frame header at `offset`.
    pub(crate) async fn peek(&mut self, offset: u64) -> Result<Option<FrameHeader>, WalError> {
        if offset + PAGE_BYTES > self.slot.bytes {
            return Ok(None);
        }
        Ok(FrameHeader::peek(self.bytes(offset, PAGE).await?))
    }

    /// The authentic frame of `file` at `offset` and its payload; `None` when there is none.
    pub(crate) async fn frame(
        &mut self,
        file: &FoundFile,
        offset: u64,
    ) -> Result<Option<(FrameHeader, &[u8])>, WalError> {
        let Some(expected) = self.peek(offset).await? else { return Ok(None) };
        if expected.epoch != file.header.epoch {
            return Ok(None);
        }
        let frame = self.bytes(offset, expected.frame_bytes()).await?;
        let opened = open_frame(file.header.epoch, &file.cipher, frame)
            .map(|(header, payload)| (header, payload.len()));
        match opened {
            Ok((header, payload_bytes)) => {
                let bytes = self.bytes(offset, expected.frame_bytes()).await?;
                let payload = &bytes[crate::format::FRAME_HEADER_BYTES..][..payload_bytes];
                Ok(Some((header, payload)))
            }
            Err(FrameError::NotAFrame) => {
                // Decryption spoiled the window; what follows may matter.
                self.filled = 0;
                Ok(None)
            }
            Err(FrameError::Newer(detail)) => Err(WalError::NewerVersion { file: self.slot.name(), detail }),
            Err(FrameError::Malformed(detail)) => Err(WalError::corrupt(&self.slot.name(), offset, detail)),
        }
    }
}

impl Scanner {
    /// The first authentic frame of `file` at or behind `offset`, and where it is.
    pub(crate) async fn frame_from(
        &mut self,
        file: &FoundFile,
        mut offset: u64,
    ) -> Result<Option<(u64, FrameHeader)>, WalError> {
        while offset < file.slot.bytes {
            if let Some((header, _)) = self.frame(file, offset).await? {
                // It is decrypted where it is, once: whoever wants it reads it again.
                self.filled = 0;
                return Ok(Some((offset, header)));
            }
            offset += PAGE_BYTES;
        }
        Ok(None)
    }
}

impl Scanner {
    /// Whether at `offset` of `file` is a frame of a later use than the one its header is of. It cannot be authenticated without its
    /// own header; one of this use whose epoch is damaged is told apart.
    pub(crate) async fn has_later_frame(&mut self, file: &FoundFile, offset: u64) -> Result<bool, WalError> {
        let epoch = file.header.epoch;
        let Some(found) = self.peek(offset).await?.filter(|frame| frame.epoch > epoch) else {
            return Ok(false);
        };
        let frame = self.bytes(offset, found.frame_bytes()).await?;
        let is_own = is_frame_but_for_epoch(epoch, &file.cipher, frame);
        self.filled = 0;
        Ok(!is_own)
    }
}

/// What the newest file of the log holds.
#[derive(Debug)]
pub(crate) struct Tail {
    /// First lsn that was not found; where its frame would be.
    pub(crate) next_lsn: Lsn,
    pub(crate) end_offset: u64,
    /// The highest claims of the authentic frames, also of those behind a gap.
    pub(crate) freed_through: Lsn,
    synced_through: Lsn,
    /// The file holds nothing of this use but its header.
    pub(crate) untouched: bool,
}

/// Finds the end of the newest file, which alone may have a torn tail.
///
/// The frames up to the first that is missing or damaged are the log, except that a gap among the freed ends nothing: what is
/// behind it may be needed. An authentic frame behind the end proves which lsns were durable when it was sealed: when
/// the missing one is among them (and not freed since), it was lost to damage, not to a crash. A frame of a later use, whose header
/// should be in the place of this one, shows that the header is not that of the newest frames.
pub(crate) async fn scan_newest(file: &FoundFile, scanner: &mut Scanner) -> Result<Tail, WalError> {
    scanner.restart(file.slot.clone());
    let mut tail = Tail {
        next_lsn: file.header.first_lsn,
        end_offset: PAGE_BYTES,
        freed_through: file.header.freed_through,
        synced_through: file.header.synced_through,
        untouched: true,
    };
    let mut frames = Vec::new();
    let mut offset = PAGE_BYTES;
    while offset < file.slot.bytes {
        if scanner.has_later_frame(file, offset).await? {
            return Err(WalError::corrupt(&file.slot.name(), 0, HEADER_LOST));
        }
        let looks_like_one =
            scanner.peek(offset).await?.is_some_and(|frame| frame.epoch == file.header.epoch);
        let frame = if looks_like_one { scanner.frame(file, offset).await? } else { None };
        tail.untouched &= !looks_like_one;
        let Some((header, _)) = frame else {
            offset += PAGE_BYTES;
            continue;
        };
        tail.accept_claims(&header);
        frames.push((offset, header));
        offset += header.frame_bytes() as u64;
        if header.last {
            break;
        }
    }
    let mut counter = 1;
    for (offset, header) in frames {
        if offset != tail.end_offset {
            if !begins_behind_freed(&header, tail.next_lsn, tail.freed_through) {
                break;
            }
        } else if header.counter != counter || header.first_lsn != tail.next_lsn {
            return Err(WalError::corrupt(&file.slot.name(), tail.end_offset, "a frame is not in its place"));
        }
        tail.next_lsn = header.next_lsn();
        tail.end_offset = offset + header.frame_bytes() as u64;
        counter = header.counter + 1;
        if header.last {
            return Ok(tail);
        }
    }
    let is_damaged = tail.next_lsn <= tail.synced_through && tail.freed_through < tail.synced_through;
    if is_damaged && !is_planted(Bug::EndAtDamage) {
        let detail = format!("record {} was durable and is gone, later ones are there", tail.next_lsn);
        return Err(WalError::corrupt(&file.slot.name(), tail.end_offset, detail));
    }
    Ok(tail)
}

/// Whether everything is freed between `next_lsn`, whose frame cannot be read, and a frame behind the gap.
pub(crate) fn begins_behind_freed(frame: &FrameHeader, next_lsn: Lsn, freed_through: Lsn) -> bool {
    next_lsn < frame.first_lsn && frame.first_lsn <= freed_through.next()
}

impl Tail {
    fn accept_claims(&mut self, header: &FrameHeader) {
        self.freed_through = self.freed_through.max(header.freed_through);
        self.synced_through = self.synced_through.max(header.synced_through);
    }
}

/// Whether a file without a header of its own has frames of the use `epoch` or of a later one. Their header was durable before
/// any of them was written, so then it was lost. `epoch` is that of the newest header there is: no other file has frames of
/// that use, so where there are some, it is from here that the header was taken, or it is the newest file that lacks them.
pub(crate) async fn has_frames_since(
    slot: &Slot,
    epoch: u64,
    scanner: &mut Scanner,
) -> Result<bool, WalError> {
    scanner.restart(slot.clone());
    let mut offset = PAGE_BYTES;
    while offset < slot.bytes {
        if scanner.peek(offset).await?.is_some_and(|frame| frame.epoch >= epoch) {
            return Ok(true);
        }
        offset += PAGE_BYTES;
    }
    Ok(false)
}
