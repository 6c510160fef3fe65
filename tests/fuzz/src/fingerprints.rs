//! Records of the fingerprint index: its owner, anchors, and lists with and without their tag.
//!
//! What must hold: only what the index wrote is accepted; a list says what its bytes say, as a second reader has them; nothing allocates more
//! than its length justifies.

use crate::input::Input;
use crate::{Seeds, lie, memory};
use cairn_fingerprints::fuzzing;
use cairn_model::{ContainerFingerprints, ContainerId, DomainId, Fingerprint};

pub(crate) fn run(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    memory::bounded(16 * bytes.len() + 16384, || match kind % 4 {
        0 => {
            let accepted = fuzzing::parse_owner(rest);
            assert_eq!(accepted, rest == fuzzing::owner(), "another owner's index is accepted");
        }
        1 => anchor(rest),
        2 => {
            if let Some((domain, prints)) = fuzzing::parse_list(rest) {
                check_list(&rest[..rest.len() - 16], domain, &prints);
            }
        }
        _ => match fuzzing::parse_list_body(rest) {
            Some((domain, prints)) => check_list(rest, domain, &prints),
            None => assert!(!is_list(rest), "a list is refused"),
        },
    });
}

fn anchor(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let domain = DomainId::from_bytes([input.byte(); 16]);
    let print = Fingerprint::from_bytes([input.byte(); 16]);
    let record = input.rest();
    if let Some(container) = fuzzing::parse_anchor(domain, &print, record) {
        assert_eq!(
            fuzzing::anchor(domain, &print, container),
            record,
            "an anchor of something else is accepted"
        );
    }
}

/// By the format's description alone.
fn is_list(body: &[u8]) -> bool {
    let Some(chunks) = body.get(16..20) else { return false };
    let chunks = u64::from(u32::from_le_bytes(chunks.try_into().unwrap()));
    let counts: Vec<u64> = body[20..].iter().take(chunks as usize).map(|count| u64::from(*count)).collect();
    let blocks: u64 = counts.iter().sum();
    counts.iter().all(|count| *count <= 16) && body.len() as u64 == 20 + chunks + 16 * blocks
}

fn check_list(body: &[u8], domain: DomainId, prints: &ContainerFingerprints) {
    assert!(is_list(body), "what is no list is accepted");
    assert_eq!(domain.as_bytes(), &body[..16]);
    let mut next = 20 + prints.chunk_blocks().len();
    assert_eq!(prints.chunk_blocks(), &body[20..next]);
    for print in prints.blocks() {
        assert_eq!(
            print.as_bytes() == &body[next..next + 16],
            !lie::told(),
            "a fingerprint is not what was stored"
        );
        next += 16;
    }
    assert_eq!(prints.container(), fuzzing::container());
}

pub(crate) fn seeds() -> Seeds {
    let domain = DomainId::from_bytes([2; 16]);
    let print = |byte| Fingerprint::from_bytes([byte; 16]);
    let prints =
        ContainerFingerprints::new(fuzzing::container(), vec![1, 3, 2], (1..=6).map(print).collect())
            .unwrap();
    let list = fuzzing::list(domain, &prints);
    let body = &list[..list.len() - 16];
    let anchor = fuzzing::anchor(domain, &print(5), ContainerId::from_bytes([7; 16]));
    let owner = fuzzing::owner();
    let mut flipped = list.clone();
    flipped[30] ^= 1;
    vec![
        ("owner".to_owned(), [&[0], &owner[..]].concat()),
        ("owner-cut".to_owned(), [&[0], &owner[..40]].concat()),
        ("anchor".to_owned(), [&[1, 2, 5], &anchor[..]].concat()),
        ("anchor-of-another".to_owned(), [&[1, 2, 6], &anchor[..]].concat()),
        ("list".to_owned(), [&[2], &list[..]].concat()),
        ("list-flipped".to_owned(), [&[2], &flipped[..]].concat()),
        ("list-body".to_owned(), [&[3], body].concat()),
        ("list-body-cut".to_owned(), [&[3], &body[..body.len() - 16]].concat()),
    ]
}
