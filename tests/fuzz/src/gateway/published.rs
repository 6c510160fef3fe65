//! The keys on a data node.
//!
//! What must hold: what is accepted says, by another reading of its JSON, what it is taken for; one changed character is noticed, but for the
//! line that only the master key checks.

use crate::input::Input;
use crate::{Seeds, lie};
use cairn_gateway::fuzzing::published_keys;
use cairn_model::SiteId;
use serde_json::{Value, json};

const SITE: [u8; 16] = [7; 16];

/// Where the line begins that takes the master key to check, and where it ends.
const MAC: std::ops::Range<usize> = 78..142;

pub(crate) fn run(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => check(rest),
        1 => {
            // A right hash over any body.
            let Ok(body) = std::str::from_utf8(rest) else { return };
            check(&object(body));
        }
        _ => {
            let mut input = Input::new(rest);
            let mut object = object(&body());
            let at = (usize::from(input.byte()) << 8 | usize::from(input.byte())) % object.len();
            let value = input.byte();
            let before = std::mem::replace(&mut object[at], value);
            if accepted(&object).is_ok() {
                let unchecked = MAC.contains(&at) || before.eq_ignore_ascii_case(&value) && at < MAC.end;
                assert!((unchecked || before == value) && !lie::told(), "byte {at} as {value}");
            }
        }
    }
}

fn accepted(object: &[u8]) -> Result<String, String> {
    published_keys(object, SiteId::from_bytes(SITE))
}

fn check(object: &[u8]) {
    let Ok(printed) = accepted(object) else { return };
    let text = std::str::from_utf8(object).expect("what is accepted is text");
    let body = text.splitn(4, '\n').nth(3).expect("what is accepted has a body");
    let read: Value = serde_json::from_str(body).expect("what is accepted is JSON");
    let of_this_site =
        read["site"].as_str().is_some_and(|site| site.eq_ignore_ascii_case(&hex::encode(SITE)));
    assert_eq!(of_this_site, !printed.is_empty(), "{body}");
    if of_this_site {
        let printed: Value = serde_json::from_str(&printed).expect("what is printed is JSON");
        for (name, value) in printed.as_object().expect("it is an object") {
            assert!(same(value, &read[name]), "{name}: {value} for {}", read[name]);
        }
    }
}

/// Equal but for the case of letters, which in hexadecimal is none.
fn same(one: &Value, other: &Value) -> bool {
    one == other || one.to_string().eq_ignore_ascii_case(&other.to_string())
}

fn object(body: &str) -> Vec<u8> {
    let sum = blake3::hash(body.as_bytes());
    format!("cairn-keys-1\n{}\n{}\n{body}", sum.to_hex(), "3f".repeat(32)).into_bytes()
}

fn body() -> String {
    let domain = json!({
        "id": hex::encode([0; 16]), "name": "default", "encryption": "aes-256-gcm",
        "key_id": "0123456789abcdef", "wrapped": "a7".repeat(80),
    });
    let keys = json!({
        "site": hex::encode(SITE), "revision": 3, "tag": "00112233aabbccdd", "master": "fedcba9876543210",
        "domains": [domain],
    });
    keys.to_string()
}

pub(crate) fn seeds() -> Seeds {
    let mended = |body: &str| [b"\x01", body.as_bytes()].concat();
    vec![
        ("own".to_owned(), [&b"\0"[..], &object(&body())].concat()),
        ("mended".to_owned(), mended(&body())),
        ("mended-other-site".to_owned(), mended(&body().replace("0707", "0808"))),
        ("mended-capitals".to_owned(), mended(&body().replace("aabbccdd", "AABBCCDD"))),
        ("mended-off".to_owned(), mended(&body().replace("aes-256-gcm", "off"))),
        (
            "mended-key-file".to_owned(),
            mended(&body().replace("\"domains\"", "\"key_file\":\"cairn-key-1\",\"domains\"")),
        ),
        ("changed".to_owned(), vec![2, 0, 200, b'x']),
        ("same".to_owned(), vec![2, 0, 0, b'c']),
        ("mac".to_owned(), vec![2, 0, 100, b'0']),
    ]
}
