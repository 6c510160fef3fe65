//! Deltas, as the catalog and the footers of segments hold them.
//!
//! What must hold: what decodes is a delta by every rule for deltas, and is written back as the same; what was made as a delta
//! decodes as it was made; the runs that touch a range are those that do; nothing allocates more than its length
//! justifies.

use super::{changes, with_checksum};
use crate::input::Input;
use crate::{Seeds, lie, memory};
use cairn_model::{Lba, LbaRange, MapDelta};

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(3) {
        0 => read(input.rest()),
        1 => read(&with_checksum(&[&b"d\x01"[..], input.rest()].concat())),
        _ => {
            let delta = MapDelta { ops: changes(&mut input, 0, u64::MAX) };
            let (start, blocks) = (u64::from(input.number::<u16>()), u64::from(input.byte()));
            let range = LbaRange::new(Lba::new(start), blocks).unwrap();
            let mut decoded = MapDelta::decode(&delta.encode().unwrap()).unwrap();
            if lie::told() {
                decoded.ops.pop();
            }
            assert_eq!(decoded, delta);
            let touching: Vec<_> = delta.ops.iter().filter(|op| op.range.overlaps(range)).copied().collect();
            // An empty range touches nothing, and may be reported with the run around it.
            assert!(blocks == 0 || delta.overlapping(range) == touching, "{range:?}");
        }
    }
}

fn read(bytes: &[u8]) {
    let Ok(delta) = memory::bounded(64 * bytes.len() + 4096, || MapDelta::decode(bytes)) else { return };
    delta.check().expect("what decodes is a delta");
    let again = delta.encode().expect("what decodes can be encoded");
    assert_eq!(MapDelta::decode(&again).as_ref(), Ok(&delta), "a delta reads back as it was written");
}

pub(crate) fn seeds() -> Seeds {
    let made: &[u8] =
        &[2, 5, 0, 0x0f, 1, 1, 0, 0x0f, 1, 2, 9, 0x13, 2, 200, 1, 0x80, 3, 0, 0x07, 1, 9, 3, 0, 40];
    let ops = changes(&mut Input::new(&made[1..]), 0, u64::MAX);
    let written = MapDelta { ops }.encode().unwrap();
    vec![
        ("made".to_owned(), made.to_vec()),
        ("written".to_owned(), [&[0], &written[..]].concat()),
        ("body".to_owned(), [&[1], &written[2..written.len() - 8]].concat()),
        ("empty".to_owned(), vec![1, 0, 0, 0]),
        ("many-runs".to_owned(), vec![1, 0, 0, 0xff, 0xff, 0x3f]),
    ]
}
