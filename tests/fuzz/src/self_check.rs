//! A failure that random bytes do not reach: each step is a branch of its own or a compared number.

use crate::Seeds;

pub(crate) fn run(bytes: &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else { return };
    if u32::from_le_bytes(*head) != 0x6361_6972 {
        return;
    }
    let found = rest.first() == Some(&b'f') && rest.get(1) == Some(&b'u') && rest.get(2) == Some(&b'z');
    assert!(!found, "the planted failure was found");
}

pub(crate) fn seeds() -> Seeds {
    vec![("nothing".to_owned(), vec![0; 8])]
}
