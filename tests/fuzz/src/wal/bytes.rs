//! Headers, frames and payloads. Bytes behind a checksum or a seal are given one that is right, so that the parser behind it is
//! reached.
//!
//! What must hold: what is accepted is written back as the same; a frame that was not sealed under the file's key is never
//! accepted; no length is believed before there are as many bytes.

use crate::{Seeds, lie, memory};
use cairn_model::{Generation, Lba, LbaRange, VolumeId, WriteSeq};
use cairn_wal::fuzzing::{
    BuiltFile, FilePlan, FramePlan, build_file, parse_first_page, parse_frame, parse_payload,
    parse_sealed_page,
};
use cairn_wal::{Record, RecordBody};

pub(crate) fn run(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    memory::bounded(64 * bytes.len() + (64 << 10), || match kind % 4 {
        0 => parse_first_page(rest),
        1 => parse_sealed_page(rest),
        2 if lie::told() => parse_frame(sealed_file().frame()),
        2 => parse_frame(rest),
        _ => {
            let records = rest.first().copied().unwrap_or(0);
            parse_payload(u32::from(records), rest.get(1..).unwrap_or_default());
        }
    });
}

/// Every third without blocks is a mark, the others are discards; or a write of so many blocks.
pub(super) fn record(seq: u64, blocks: usize) -> Record {
    let body = if blocks == 0 && seq.is_multiple_of(3) {
        RecordBody::Mark { note: vec![seq as u8; 100].into() }
    } else if blocks == 0 {
        RecordBody::Discard { range: LbaRange::new(Lba::new(seq * 8), 8).unwrap() }
    } else {
        let data: Vec<u8> = (0..blocks * 4096).map(|at| (at as u64 / 512 + seq) as u8).collect();
        RecordBody::Write { start: Lba::new(seq * 8), data: data.into() }
    };
    Record {
        volume: VolumeId::from_bytes([(seq % 3) as u8; 16]),
        generation: Generation::new(1),
        seq: WriteSeq::new(seq),
        body,
    }
}

/// A file with one frame.
struct Sealed(BuiltFile);

impl Sealed {
    fn frame(&self) -> &[u8] {
        &self.0.bytes[self.0.frames[0].clone()]
    }
}

fn sealed_file() -> Sealed {
    let frame = FramePlan {
        records: vec![record(1, 0), record(2, 0)],
        synced_through: 0,
        freed_through: 0,
        last: false,
    };
    let plan = FilePlan {
        number: 0,
        says_number: true,
        epoch: 1,
        previous_epoch: 0,
        first_lsn: 1,
        synced_through: 0,
        freed_through: 0,
        frames: vec![frame],
        pages_free: 0,
    };
    Sealed(build_file(&plan))
}

pub(crate) fn seeds() -> Seeds {
    let file = sealed_file();
    let mut damaged = file.frame()[..256].to_vec();
    damaged[100] ^= 1;
    let discard: &[u8] = &[
        &[2, 0, 0, 0, 16, 0, 0, 0][..],
        &[7; 16],
        &[1, 0, 0, 0, 0, 0, 0, 0],
        &[9, 0, 0, 0, 0, 0, 0, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0],
        &[8, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let write = [&[1, 0, 0, 0, 8, 16, 0, 0][..], &[7; 16], &[1; 16], &[2; 8], &[0xab; 4096]].concat();
    vec![
        ("header".to_owned(), [&[0], &file.0.bytes[..512]].concat()),
        ("header-unsealed".to_owned(), [&[1], &file.0.bytes[..136]].concat()),
        ("frame".to_owned(), [&[2], &damaged[..]].concat()),
        ("discards".to_owned(), [&[3, 2], discard, discard].concat()),
        ("write".to_owned(), [&[3, 1], &write[..]].concat()),
        ("write-cut".to_owned(), [&[3, 1], &write[..200]].concat()),
    ]
}
