//! Options of every kind, to a server without TLS, with it, and with it required.
//!
//! What must hold: every option is answered by the document, with its own code, until the server hangs up; a client enters only
//! an export that exists, and is told its size first; where TLS is required nothing is told and nobody enters in the clear.

use super::{Answer, SESSION_BYTES_MAX, pace};
use crate::input::Input;
use crate::{Seeds, lie, memory};
use cairn_nbd::fuzzing::handshake_with;
use cairn_nbd::memory::{DeviceTable, MemoryDevice};
use cairn_nbd::{TlsConfig, TlsFiles, TlsMode};
use std::sync::{Arc, OnceLock};

const SIZE: u64 = 1 << 16;
const NAMES: [&[u8]; 6] = [b"disk", b"", b"second", b"nowhere", b"\xff\xfe", &[b'x'; 5000]];
/// Earlier moments of every export.
const EARLIER: [&str; 2] = ["monday", "tuesday"];
const EXISTING: [&[u8]; 3] = [b"disk", b"", b"second"];

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const START_TLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const CODES: [u32; 12] = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 4, 77];

const ACK: u32 = 1;
const ERROR: u32 = 1 << 31;

/// An option that was sent.
#[derive(Debug)]
struct Sent {
    code: u32,
    data: Vec<u8>,
    /// Its header lies about the length of its data: what follows may be taken for anything.
    lies: bool,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let setup = input.byte();
    let mode = [None, None, Some(TlsMode::Optional), Some(TlsMode::Required)][usize::from(setup & 3)];
    let pace = pace(setup & 0x08 != 0, &mut input);
    if setup & 0x80 != 0 {
        // What a client may send that knows nothing of the protocol.
        let answer = serve(mode, pace, input.rest());
        check_greeting(&mut Answer(&answer));
        return;
    }
    let flags = input.byte();
    let mut wire = u32::from(flags).to_be_bytes().to_vec();
    let sent = options(&mut input, &mut wire);
    let mut answer = serve(mode, pace, &wire);
    if lie::told() {
        answer.pop();
    }
    check(&answer, &sent, flags & 2 != 0, mode == Some(TlsMode::Required));
}

fn serve(mode: Option<TlsMode>, pace: cairn_nbd::fuzzing::Pace, wire: &[u8]) -> Vec<u8> {
    let device = || {
        let device = MemoryDevice::new(SIZE);
        for name in EARLIER {
            device.remember(name);
        }
        Arc::new(device)
    };
    let exports = DeviceTable::new([("disk".to_owned(), device()), ("second".to_owned(), device())]);
    let tls = mode.map(tls);
    memory::bounded(SESSION_BYTES_MAX + 64 * wire.len(), || handshake_with(exports, tls, pace, wire))
}

fn tls(mode: TlsMode) -> TlsConfig {
    static OPTIONAL: OnceLock<TlsConfig> = OnceLock::new();
    static REQUIRED: OnceLock<TlsConfig> = OnceLock::new();
    let configuration = match mode {
        TlsMode::Optional => &OPTIONAL,
        TlsMode::Required => &REQUIRED,
    };
    configuration.get_or_init(|| fresh_tls(mode)).clone()
}

fn fresh_tls(mode: TlsMode) -> TlsConfig {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&certificate, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    TlsConfig::from_files(&TlsFiles { certificate, key, client_authority: None }, mode).unwrap()
}

fn options(input: &mut Input<'_>, wire: &mut Vec<u8>) -> Vec<Sent> {
    let mut sent = Vec::new();
    while !input.is_empty() && sent.len() < 64 {
        let code = input.one_of(&CODES);
        let form = input.below(8);
        let data = match form {
            0 => Vec::new(),
            1 => input.string().to_vec(),
            2 | 3 => info(input),
            4 | 5 => selection(input),
            6 => input.one_of(&NAMES).to_vec(),
            _ => {
                // A header that lies about what follows, then anything.
                wire.extend_from_slice(b"IHAVEOPT");
                wire.extend_from_slice(&code.to_be_bytes());
                wire.extend_from_slice(&input.number::<u32>().to_be_bytes());
                wire.extend_from_slice(input.string());
                sent.push(Sent { code, data: Vec::new(), lies: true });
                break;
            }
        };
        wire.extend_from_slice(b"IHAVEOPT");
        wire.extend_from_slice(&code.to_be_bytes());
        wire.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        wire.extend_from_slice(&data);
        sent.push(Sent { code, data, lies: false });
    }
    sent
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn info(input: &mut Input<'_>) -> Vec<u8> {
    let mut data = string(input.one_of(&NAMES));
    let kinds = input.below(4);
    data.extend_from_slice(&u16::from(kinds).to_be_bytes());
    for _ in 0..kinds {
        data.extend_from_slice(&u16::from(input.below(5)).to_be_bytes());
    }
    data
}

fn selection(input: &mut Input<'_>) -> Vec<u8> {
    let mut data = string(input.one_of(&NAMES));
    let queries = input.below(24);
    data.extend_from_slice(&u32::from(queries).to_be_bytes());
    for _ in 0..queries {
        data.extend_from_slice(&string(input.one_of(&[
            &b"base:allocation"[..],
            b"base:",
            b"qemu:dirty",
            b"",
            b"qemu:",
            b"qemu:dirty-bitmap:",
            b"qemu:dirty-bitmap:monday",
            b"qemu:dirty-bitmap:tuesday",
            b"qemu:dirty-bitmap:never",
            b"qemu:dirty-bitmap:\xff",
        ])));
    }
    data
}

fn check_greeting(answer: &mut Answer<'_>) {
    assert_eq!(answer.take(18), b"NBDMAGICIHAVEOPT\x00\x03");
}

fn check(answer: &[u8], sent: &[Sent], no_zeroes: bool, tls_required: bool) {
    let mut answer = Answer(answer);
    check_greeting(&mut answer);
    for option in sent {
        if answer.is_empty() {
            return;
        }
        if option.code == EXPORT_NAME {
            assert!(!tls_required, "an export was entered without the TLS that is required");
            assert!(EXISTING.contains(&&option.data[..]), "an export was entered that does not exist");
            assert_eq!(answer.u64(), SIZE);
            answer.u16();
            let padding = answer.take(if no_zeroes { 0 } else { 124 });
            assert!(padding.iter().all(|&byte| byte == 0));
            return;
        }
        let (last, told_size) = replies(&mut answer, option, tls_required);
        if option.lies {
            return;
        }
        let left_open = match (option.code, last) {
            (ABORT, ACK) => false,
            // What follows is TLS.
            (START_TLS, ACK) => return,
            (GO, ACK) => {
                assert!(told_size, "a client entered without having been told the size");
                return;
            }
            _ => true,
        };
        assert!(left_open || answer.is_empty(), "the server spoke on after an abort");
    }
    assert!(answer.is_empty(), "the server answered what nobody asked");
}

/// The replies to one option: the last one's type, and whether the export's size was told.
fn replies(answer: &mut Answer<'_>, option: &Sent, tls_required: bool) -> (u32, bool) {
    let mut told_size = false;
    let mut contexts = Vec::new();
    loop {
        assert_eq!(answer.u64(), 0x0003_e889_0455_65a9, "the magic of option replies");
        assert_eq!(answer.u32(), option.code, "a reply to another option");
        let (kind, length) = (answer.u32(), answer.u32());
        let mut data = Answer(answer.take(usize::try_from(length).unwrap()));
        match kind {
            ACK => assert!(data.is_empty()),
            // An export of LIST, a context of LIST_META_CONTEXT and SET_META_CONTEXT.
            2 => assert_eq!((option.code, data.u32() as usize), (3, data.0.len())),
            4 => {
                assert!([9, 10].contains(&option.code));
                // Listed without an identifier, selected with one of its own.
                assert_eq!(data.u32() == 0, option.code == 9);
                let name = std::str::from_utf8(data.0).expect("contexts have names");
                let earlier = name.strip_prefix("qemu:dirty-bitmap:");
                assert!(name == "base:allocation" || earlier.is_some_and(|name| EARLIER.contains(&name)));
                assert!(!contexts.contains(&name), "a context was told twice");
                contexts.push(name);
            }
            3 => {
                assert!([INFO, GO].contains(&option.code), "information that nobody asked for");
                if data.u16() == 0 {
                    assert_eq!(data.u64(), SIZE);
                    told_size = true;
                }
            }
            error => {
                assert!(error & ERROR != 0, "unknown reply type {error:#x}");
                std::str::from_utf8(data.0).expect("a message is text");
            }
        }
        let allowed = [ABORT, START_TLS].contains(&option.code) || kind & ERROR != 0;
        assert!(!tls_required || allowed, "{option:?} was answered without the TLS that is required");
        if kind == ACK || kind & ERROR != 0 {
            return (kind, told_size);
        }
    }
}

pub(crate) fn seeds() -> Seeds {
    // Positions in CODES and the forms of `options`.
    let list = [2, 0];
    let structured = [6, 0];
    let extended = [9, 0];
    let contexts = [8, 4, 0, 1, 0];
    let go = [5, 2, 0, 2, 1, 3];
    let script = [&list[..], &structured, &contexts, &[7, 4, 0, 2, 1, 2], &[4, 2, 3, 0], &go].concat();
    let mut seeds = Seeds::new();
    for (name, setup) in [("plain", 0), ("tls-offered", 2), ("tls-required", 3)] {
        seeds.push((name.to_owned(), [&[setup, 3], &script[..]].concat()));
        seeds.push((format!("{name}-torn"), [&[setup | 8, 2, 0, 3], &script[..]].concat()));
        seeds.push((format!("{name}-start"), [&[setup, 1, 3, 0], &script[..]].concat()));
    }
    seeds.push(("extended".to_owned(), [&[0, 3], &extended[..], &contexts, &go].concat()));
    // Queries 4 to 9 are about earlier moments: listed by both wildcards and by name, selected with and without allocation.
    let list = [7, 4, 0, 3, 4, 5, 7];
    let select = [8, 4, 0, 5, 0, 6, 7, 8, 6];
    seeds.push(("earlier".to_owned(), [&[0, 3], &structured[..], &list, &select, &go].concat()));
    seeds.push(("earlier-extended".to_owned(), [&[0, 3], &extended[..], &list, &select, &go].concat()));
    seeds.push(("by-name".to_owned(), vec![0, 3, 0, 6, 0]));
    seeds.push(("by-name-padded".to_owned(), vec![0, 1, 0, 6, 2]));
    seeds.push(("abort".to_owned(), vec![0, 3, 1, 0, 2, 0]));
    seeds.push(("too-long".to_owned(), vec![0, 3, 4, 7, 0, 0, 2, 0, 4, 1, 2, 3, 4]));
    seeds.push(("raw".to_owned(), b"\x80\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04disk\0\0".to_vec()));
    seeds
}
