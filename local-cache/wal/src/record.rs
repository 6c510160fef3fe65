//! Records: what a frame carries, before sealing.
//!
//! ```text
//! record, version 1, little-endian; sealed and authenticated as part of its frame's payload
//!  0   1  tag: 1 write, 2 discard, 3 mark; anything else was written by a newer version
//!  1   3  zero
//!  4   4  body length in bytes
//!  8  16  volume
//! 24   8  generation
//! 32   8  write sequence number
//! 40      body
//!         write:   first block u64, then data, a multiple of 4096 bytes, at most 1 MiB
//!         discard: first block u64, number of blocks u64
//!         mark:    at most 4096 bytes that mean something to whoever wrote them
//! ```

use crate::WalError;
use bytes::{Buf, Bytes};
use cairn_model::{BLOCK_SIZE, Generation, Lba, LbaRange, VolumeId, WriteSeq};

/// Most data bytes in one record; the engine splits larger writes.
pub const DATA_BYTES_MAX: usize = 1 << 20;

/// Most bytes of a mark.
pub const MARK_BYTES_MAX: usize = 4096;

/// Bytes before a record's body.
pub(crate) const RECORD_HEADER_BYTES: usize = 40;
/// Bytes of a record besides its data, at most.
pub(crate) const RECORD_OVERHEAD_MAX: usize = RECORD_HEADER_BYTES + 16;

const TAG_WRITE: u8 = 1;
const TAG_DISCARD: u8 = 2;
const TAG_MARK: u8 = 3;

/// One logged operation of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub volume: VolumeId,
    pub generation: Generation,
    pub seq: WriteSeq,
    pub body: RecordBody,
}

/// What the operation does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordBody {
    /// Whole blocks, at most [`DATA_BYTES_MAX`] bytes.
    Write { start: Lba, data: Bytes },
    /// Blocks read as zeros from here on.
    Discard { range: LbaRange },
    /// A place in the write order, and what is to be done there, at most [`MARK_BYTES_MAX`] bytes. Changes no block.
    Mark { note: Bytes },
}

impl Record {
    /// Bytes of data the record carries.
    pub fn data_bytes(&self) -> usize {
        match &self.body {
            RecordBody::Write { data, .. } => data.len(),
            RecordBody::Discard { .. } => 0,
            RecordBody::Mark { note } => note.len(),
        }
    }

    pub(crate) fn encoded_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.body_bytes()
    }

    fn body_bytes(&self) -> usize {
        match &self.body {
            RecordBody::Write { data, .. } => 8 + data.len(),
            RecordBody::Discard { .. } => 16,
            RecordBody::Mark { note } => note.len(),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), WalError> {
        let reason = match &self.body {
            RecordBody::Write { data, .. } => {
                let whole_blocks = data.len().is_multiple_of(BLOCK_SIZE as usize);
                if !data.is_empty() && data.len() <= DATA_BYTES_MAX && whole_blocks {
                    return Ok(());
                }
                format!("{} data bytes are not 1 to 256 whole blocks", data.len())
            }
            RecordBody::Mark { note } if note.len() > MARK_BYTES_MAX => {
                format!("a mark of {} bytes, and it has {MARK_BYTES_MAX} at most", note.len())
            }
            RecordBody::Discard { .. } | RecordBody::Mark { .. } => return Ok(()),
        };
        Err(WalError::InvalidRecord { reason })
    }

    /// Writes the record to the front of `out` and returns its length. `out` must be long enough.
    pub(crate) fn encode(&self, out: &mut [u8]) -> usize {
        let length = self.encoded_bytes();
        let (header, body) = out[..length].split_at_mut(RECORD_HEADER_BYTES);
        let body_bytes = u32::try_from(body.len()).expect("a record is about 1 MiB at most");
        header[..4].copy_from_slice(&[self.tag(), 0, 0, 0]);
        header[4..8].copy_from_slice(&body_bytes.to_le_bytes());
        header[8..24].copy_from_slice(self.volume.as_bytes());
        header[24..32].copy_from_slice(&self.generation.get().to_le_bytes());
        header[32..40].copy_from_slice(&self.seq.get().to_le_bytes());
        match &self.body {
            RecordBody::Write { start, data } => {
                body[..8].copy_from_slice(&start.get().to_le_bytes());
                body[8..].copy_from_slice(data);
            }
            RecordBody::Discard { range } => {
                body[..8].copy_from_slice(&range.start().get().to_le_bytes());
                body[8..].copy_from_slice(&range.blocks().to_le_bytes());
            }
            RecordBody::Mark { note } => body.copy_from_slice(note),
        }
        length
    }

    fn tag(&self) -> u8 {
        match self.body {
            RecordBody::Write { .. } => TAG_WRITE,
            RecordBody::Discard { .. } => TAG_DISCARD,
            RecordBody::Mark { .. } => TAG_MARK,
        }
    }

    /// Takes one record off the front of `input`, sharing its bytes.
    pub(crate) fn decode(input: &mut Bytes) -> Result<Self, DecodeError> {
        let (tag, mut body, mut record) = Self::decode_header(input)?;
        record.body = match tag {
            TAG_WRITE => {
                let start = Lba::new(take_u64(&mut body)?);
                RecordBody::Write { start, data: body }
            }
            TAG_DISCARD => {
                let (start, blocks) = (take_u64(&mut body)?, take_u64(&mut body)?);
                if !body.is_empty() {
                    return Err(DecodeError::Malformed("a discard is longer than its fields"));
                }
                let range = LbaRange::new(Lba::new(start), blocks);
                RecordBody::Discard {
                    range: range.ok_or(DecodeError::Malformed("a discard's range overflows"))?,
                }
            }
            // A copy: kept for long, it must not keep the frame.
            TAG_MARK => RecordBody::Mark { note: Bytes::copy_from_slice(&body) },
            tag => return Err(DecodeError::UnknownTag(tag)),
        };
        record
            .validate()
            .map_err(|_| DecodeError::Malformed("a record is too long or not of whole blocks"))?;
        Ok(record)
    }

    fn decode_header(input: &mut Bytes) -> Result<(u8, Bytes, Self), DecodeError> {
        let short = DecodeError::Malformed("a record is cut short");
        if input.len() < RECORD_HEADER_BYTES {
            return Err(short);
        }
        let tag = input[0];
        input.advance(4);
        let body_bytes = input.get_u32_le() as usize;
        let mut volume = [0; 16];
        input.copy_to_slice(&mut volume);
        let (generation, seq) = (Generation::new(input.get_u64_le()), WriteSeq::new(input.get_u64_le()));
        if body_bytes > input.len() {
            return Err(short);
        }
        let body = input.split_to(body_bytes);
        let nothing = RecordBody::Discard { range: LbaRange::default() };
        Ok((tag, body, Self { volume: VolumeId::from_bytes(volume), generation, seq, body: nothing }))
    }
}

fn take_u64(body: &mut Bytes) -> Result<u64, DecodeError> {
    body.try_get_u64_le().map_err(|_| DecodeError::Malformed("a record's body is cut short"))
}

/// Authentic bytes that are not records as this version knows them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("record kind {0}")]
    UnknownTag(u8),
    #[error("{0}")]
    Malformed(&'static str),
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_record() -> impl Strategy<Value = Record> {
        let body = prop_oneof![
            (any::<u64>(), 1usize..4, any::<u8>()).prop_map(|(start, blocks, fill)| RecordBody::Write {
                start: Lba::new(start),
                data: Bytes::from(vec![fill; blocks * BLOCK_SIZE as usize]),
            }),
            (any::<u32>(), any::<u32>()).prop_map(|(start, blocks)| RecordBody::Discard {
                range: LbaRange::new(Lba::new(start.into()), blocks.into()).unwrap(),
            }),
            proptest::collection::vec(any::<u8>(), 0..MARK_BYTES_MAX)
                .prop_map(|note| RecordBody::Mark { note: note.into() }),
        ];
        (any::<[u8; 16]>(), any::<u64>(), any::<u64>(), body).prop_map(|(volume, generation, seq, body)| {
            Record {
                volume: VolumeId::from_bytes(volume),
                generation: Generation::new(generation),
                seq: WriteSeq::new(seq),
                body,
            }
        })
    }

    proptest! {
        #[test]
        fn a_record_round_trips(record in any_record()) {
            let mut bytes = vec![0; record.encoded_bytes()];
            prop_assert_eq!(record.encode(&mut bytes), bytes.len());
            let mut input = Bytes::from(bytes);
            prop_assert_eq!(Record::decode(&mut input).unwrap(), record);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(&mut Bytes::from(bytes));
        }
    }

    #[test]
    fn a_record_kind_of_a_newer_version_is_told_apart_from_damage() {
        let range = LbaRange::new(Lba::new(1), 2).unwrap();
        let record = Record {
            volume: VolumeId::from_bytes([1; 16]),
            generation: Generation::new(1),
            seq: WriteSeq::new(1),
            body: RecordBody::Discard { range },
        };
        let mut bytes = vec![0; record.encoded_bytes()];
        record.encode(&mut bytes);
        bytes[0] = 9;
        assert_eq!(Record::decode(&mut Bytes::from(bytes)), Err(DecodeError::UnknownTag(9)));
    }
}
