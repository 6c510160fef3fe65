//! Heads of replies in the transmission phase.
//!
//! ```text
//! simple, 16 bytes              structured chunk, 20 bytes        extended chunk, 32 bytes
//! 0  magic 0x67446698   u32     0   magic 0x668e33ef     u32      0   magic 0x6e8a278c        u32
//! 4  error              u32     4   reply flags          u16      4   reply flags             u16
//! 8  cookie             u64     6   chunk type           u16      6   chunk type              u16
//! 16 data of a READ             8   cookie               u64      8   cookie                  u64
//!                               16  payload length       u32      16  offset of the request   u64
//!                               20  payload                       24  payload length          u64
//!                                                                 32  payload
//! ```

use super::Style;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

const FLAG_DONE: u16 = 1;

/// What the payload of a chunk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(crate) enum ChunkType {
    None = 0,
    OffsetData = 1,
    OffsetHole = 2,
    BlockStatus = 5,
    BlockStatusExtended = 6,
    Error = (1 << 15) + 1,
}

/// The request a chunk belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ReplyTo {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
}

pub(crate) fn simple_head(errno: u32, cookie: u64) -> [u8; 16] {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&errno.to_be_bytes());
    head[8..].copy_from_slice(&cookie.to_be_bytes());
    head
}

/// A chunk's head, in a buffer long enough for either form.
#[derive(Debug)]
pub(crate) struct ChunkHead {
    bytes: [u8; 32],
    length: usize,
}

impl ChunkHead {
    /// The head of a chunk with `payload_length` bytes behind it; `done` marks the last one of its reply.
    pub(crate) fn new(style: Style, to: ReplyTo, kind: ChunkType, payload_length: u32, done: bool) -> Self {
        debug_assert_ne!(style, Style::Simple, "chunks were negotiated");
        let mut bytes = [0; 32];
        let flags = if done { FLAG_DONE } else { 0 };
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&(kind as u16).to_be_bytes());
        bytes[8..16].copy_from_slice(&to.cookie.to_be_bytes());
        let length = if style == Style::Extended {
            bytes[..4].copy_from_slice(&EXTENDED_MAGIC.to_be_bytes());
            bytes[16..24].copy_from_slice(&to.offset.to_be_bytes());
            bytes[24..32].copy_from_slice(&u64::from(payload_length).to_be_bytes());
            32
        } else {
            bytes[..4].copy_from_slice(&STRUCTURED_MAGIC.to_be_bytes());
            bytes[16..20].copy_from_slice(&payload_length.to_be_bytes());
            20
        };
        Self { bytes, length }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: ReplyTo = ReplyTo { cookie: 0x0102_0304_0506_0708, offset: 0x1112_1314_1516_1718 };

    #[test]
    fn a_simple_head_is_magic_error_and_cookie() {
        assert_eq!(simple_head(5, TO.cookie), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8],);
    }

    #[test]
    fn a_structured_head_has_twenty_bytes() {
        let head = ChunkHead::new(Style::Structured, TO, ChunkType::OffsetHole, 12, true);
        let expected = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 12];
        assert_eq!(head.as_bytes(), expected);
    }

    #[test]
    fn an_extended_head_repeats_the_offset_of_the_request() {
        let head = ChunkHead::new(Style::Extended, TO, ChunkType::Error, 6, false);
        let expected = [
            0x6e, 0x8a, 0x27, 0x8c, 0, 0, 0x80, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15,
            0x16, 0x17, 0x18, 0, 0, 0, 0, 0, 0, 0, 6,
        ];
        assert_eq!(head.as_bytes(), expected);
    }
}
