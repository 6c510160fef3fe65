//! The key file that needs a passphrase.
//!
//! What must hold: what is accepted is five lines that print as they were read, and asks for bounded work; one changed character of a file
//! is noticed before any passphrase is tried.

use crate::input::Input;
use crate::{Seeds, lie};
use cairn_gateway::fuzzing::sealed_key_file;

const MEMORY_KIB_MAX: u64 = 1 << 20;
const WORK_KIB_MAX: u64 = 8 << 20;

pub(crate) fn run(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => check(rest),
        1 => {
            // A right checksum over any lines.
            let Ok(text) = std::str::from_utf8(rest) else { return };
            check(format!("{text}\n{}\n", checksum(&format!("{text}\n"))).as_bytes());
        }
        _ => {
            let mut input = Input::new(rest);
            let mut text = own().into_bytes();
            let (at, value) = (usize::from(input.byte()) * 2 % text.len(), input.byte());
            let before = std::mem::replace(&mut text[at], value);
            let same = before.eq_ignore_ascii_case(&value)
                && at > "cairn-key-2\nargon2id m=8192 t=1 p=1 salt=".len();
            let last_end = at + 1 == text.len() && value == b'\r';
            if sealed_key_file(&text).is_ok() {
                assert!((same || before == value || last_end) && !lie::told(), "byte {at} as {value}");
            }
        }
    }
}

fn check(bytes: &[u8]) {
    let Ok(sealed) = sealed_key_file(bytes) else { return };
    let text = std::str::from_utf8(bytes).expect("what is accepted is text").replace("\r\n", "\n");
    let printed = sealed.to_string();
    assert!(text.trim_end_matches('\n').eq_ignore_ascii_case(printed.trim_end_matches('\n')), "{text:?}");
    let number = |name: &str| -> u64 {
        let word = printed.split_whitespace().find_map(|word| word.strip_prefix(name));
        word.and_then(|digits| digits.parse().ok()).expect("an accepted file says what it costs")
    };
    let (memory, passes) = (number("m="), number("t="));
    assert!(memory <= MEMORY_KIB_MAX && memory * passes <= WORK_KIB_MAX && passes > 0, "{printed}");
}

fn lines() -> String {
    let (salt, wrapped, id) = ("5c".repeat(16), "a7".repeat(80), "0123456789abcdef");
    format!("cairn-key-2\nargon2id m=8192 t=1 p=1 salt={salt}\n{wrapped}\n{id}\n")
}

fn own() -> String {
    lines() + &checksum(&lines()) + "\n"
}

fn checksum(lines: &str) -> String {
    hex::encode(&blake3::hash(lines.as_bytes()).as_bytes()[..8])
}

pub(crate) fn seeds() -> Seeds {
    let mended = |text: &str| [b"\x01", text.trim_end().as_bytes()].concat();
    vec![
        ("own".to_owned(), [b"\0", own().as_bytes()].concat()),
        ("mended".to_owned(), mended(&lines())),
        ("mended-costly".to_owned(), mended(&lines().replace("m=8192 t=1", "m=4294967295 t=4294967295"))),
        ("mended-long-numbers".to_owned(), mended(&lines().replace("m=8192", "m=0000000000008192"))),
        ("changed".to_owned(), vec![2, 40, b'x']),
        ("same".to_owned(), vec![2, 0, b'c']),
    ]
}
