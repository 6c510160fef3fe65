//! The key file.
//!
//! What must hold: what is accepted is three lines that say one key; one changed character of a key file is noticed; no message
//! repeats the key.

use crate::input::Input;
use crate::{Seeds, lie};
use cairn_gateway::fuzzing::key_file;
use cairn_model::crypto::SecretKey;

pub(crate) fn run(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    if kind & 1 == 0 {
        if let Ok(key) = key_file(rest) {
            let text = std::str::from_utf8(rest).expect("an accepted key is text").replace("\r\n", "\n");
            let (_, digits) = text.split_once('\n').expect("an accepted key has lines");
            let expected = written(&key);
            let same = text.trim_end_matches('\n').eq_ignore_ascii_case(expected.trim_end_matches('\n'));
            assert!(same && !digits.is_empty(), "{text:?} is taken for a key");
        }
        return;
    }
    let mut input = Input::new(rest);
    let mut bytes = [0; 32];
    bytes.fill_with(|| input.byte());
    let key = SecretKey::from_bytes(bytes);
    let mut text = written(&key).into_bytes();
    let own = key_file(&text).expect("an own key file is read");
    assert_eq!(own.expose(), key.expose());
    let (at, value) = (usize::from(input.byte()) % text.len(), input.byte());
    let before = std::mem::replace(&mut text[at], value);
    // The same digit in capitals is the same digit, and the last line need not end.
    let same = before.eq_ignore_ascii_case(&value) && text.starts_with(b"cairn-key-1\n");
    let last_end = at + 1 == text.len() && value == b'\r';
    match key_file(&text) {
        Ok(read) => assert!(
            (same || last_end) && read.expose() == key.expose() && !lie::told(),
            "byte {at} as {value}"
        ),
        Err(message) => {
            let digits = hex::encode(bytes);
            assert!(!message.contains(&digits[..8]) && !message.contains(&digits[56..]), "{message}");
        }
    }
}

fn written(key: &SecretKey) -> String {
    format!("cairn-key-1\n{}\n{}\n", hex::encode(key.expose()), key.id())
}

pub(crate) fn seeds() -> Seeds {
    let text = written(&SecretKey::from_bytes([0x5c; 32]));
    let own = |text: &str| [b"\0", text.as_bytes()].concat();
    vec![
        ("own".to_owned(), own(&text)),
        ("own-windows".to_owned(), own(&text.replace('\n', "\r\n"))),
        ("own-newer".to_owned(), own(&text.replace("key-1", "key-3"))),
        ("own-longer".to_owned(), own(&(text + "more"))),
        ("changed".to_owned(), [&[1], &[7; 32][..], &[20, b'x']].concat()),
        ("capital".to_owned(), [&[1], &[0xab; 32][..], &[20, b'A']].concat()),
        ("same".to_owned(), [&[1], &[0x11; 32][..], &[20, b'1']].concat()),
    ]
}
