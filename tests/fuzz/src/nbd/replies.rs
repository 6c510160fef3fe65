//! A client that reads the replies of the transmission phase by the protocol document, and takes nothing on trust.

use super::Answer;
use super::transmission::{READ, STATUS, Sent};
use cairn_nbd::fuzzing::Form;
use std::collections::HashMap;

const ERRNOS: [u32; 6] = [1, 5, 22, 28, 75, 108];

/// What a request came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    /// 0 is success.
    pub(super) errno: u32,
    pub(super) data: Vec<u8>,
    /// Of the context of allocation, if it was told.
    pub(super) allocation: Option<Vec<(u64, bool)>>,
    /// Of the context of what changed.
    pub(super) changes: Option<Vec<(u64, bool)>>,
}

/// A reply that is arriving in chunks.
#[derive(Debug, Default)]
struct Partial {
    outcome: Outcome,
    /// Bytes of a read that are there.
    covered: Vec<bool>,
    chunks: usize,
}

/// All outcomes by cookie. Fails on whatever the document does not allow.
pub(super) fn decode(answer: &[u8], form: Form, sent: &[Sent]) -> HashMap<u64, Outcome> {
    let mut answer = Answer(answer);
    let mut arriving: HashMap<u64, Partial> = HashMap::new();
    let mut outcomes = HashMap::new();
    let find = |cookie: u64| {
        sent.iter()
            .find(|request| request.cookie == cookie)
            .unwrap_or_else(|| panic!("a reply to nobody: {cookie:#x}"))
    };
    while !answer.is_empty() {
        let magic = answer.u32();
        let (cookie, outcome) = match (magic, form) {
            (0x6744_6698, Form::Simple | Form::Structured) => {
                let (errno, cookie) = (answer.u32(), answer.u64());
                let request = find(cookie);
                let chunked = form == Form::Structured && [READ, STATUS].contains(&request.command);
                assert!(!chunked, "a simple reply where chunks were negotiated: {request:?}");
                let has_data = errno == 0 && request.command == READ;
                let length = if has_data { usize::try_from(request.length).unwrap() } else { 0 };
                (cookie, Outcome { errno, data: answer.take(length).to_vec(), ..Outcome::default() })
            }
            (0x668e_33ef, Form::Structured) | (0x6e8a_278c, Form::Extended) => {
                let (flags, kind, cookie) = (answer.u16(), answer.u16(), answer.u64());
                let request = find(cookie);
                let length = if form == Form::Extended {
                    assert_eq!(answer.u64(), request.offset, "an extended reply repeats the offset");
                    answer.u64()
                } else {
                    u64::from(answer.u32())
                };
                assert!(flags <= 1, "unknown reply flags {flags:#x}");
                let mut payload = Answer(answer.take(usize::try_from(length).unwrap()));
                let partial = arriving.entry(cookie).or_default();
                partial.take(kind, request, form, &mut payload);
                assert!(payload.is_empty(), "a chunk of kind {kind} is longer than its fields");
                if flags & 1 == 0 {
                    continue;
                }
                (cookie, arriving.remove(&cookie).unwrap().finish(request))
            }
            _ => panic!("a reply began with {magic:#x}"),
        };
        assert!(outcome.errno == 0 || ERRNOS.contains(&outcome.errno), "unknown error {}", outcome.errno);
        assert!(outcomes.insert(cookie, outcome).is_none(), "two replies to one request");
    }
    assert!(arriving.is_empty(), "a reply was never finished");
    outcomes
}

impl Partial {
    fn take(&mut self, kind: u16, request: &Sent, form: Form, payload: &mut Answer<'_>) {
        self.chunks += 1;
        match kind {
            0 => assert_eq!(self.chunks, 1, "an empty chunk belongs to no other"),
            1 => {
                let offset = payload.u64();
                let data = payload.take(payload.0.len());
                self.cover(request, offset, data);
            }
            2 => {
                let (offset, length) = (payload.u64(), payload.u32());
                self.cover(request, offset, &vec![0; usize::try_from(length).unwrap()]);
            }
            5 | 6 => {
                assert_eq!((request.command, kind == 6), (STATUS, form == Form::Extended));
                let context = payload.u32();
                let mut extents = Vec::new();
                let count = if kind == 6 { Some(payload.u32()) } else { None };
                while !payload.is_empty() {
                    let (length, flags) = if kind == 6 {
                        (payload.u64(), payload.u64())
                    } else {
                        (u64::from(payload.u32()), u64::from(payload.u32()))
                    };
                    let set = if context == 1 { 3 } else { 1 };
                    assert!(flags == 0 || flags == set, "unknown extent flags {flags} of context {context}");
                    extents.push((length, (flags == 0) == (context == 1)));
                }
                assert!(count.is_none_or(|count| count as usize == extents.len()));
                let told = match context {
                    1 => &mut self.outcome.allocation,
                    2 => &mut self.outcome.changes,
                    other => panic!("nobody selected context {other}"),
                };
                assert!(told.replace(extents).is_none(), "a context was told twice");
            }
            0x8001 => {
                self.outcome.errno = payload.u32();
                assert_ne!(self.outcome.errno, 0, "an error without an error");
                let length = payload.u16();
                std::str::from_utf8(payload.take(length.into())).expect("a message is text");
            }
            other => panic!("unknown chunk type {other}"),
        }
    }

    fn cover(&mut self, request: &Sent, offset: u64, data: &[u8]) {
        assert_eq!(request.command, READ, "data that nobody asked for");
        assert!(!data.is_empty(), "an empty piece of data");
        let length = usize::try_from(request.length).unwrap();
        self.outcome.data.resize(length, 0);
        self.covered.resize(length, false);
        let start =
            usize::try_from(offset.checked_sub(request.offset).expect("data before the request")).unwrap();
        let covered = self.covered.get_mut(start..start + data.len()).expect("data behind the request");
        assert!(!covered.contains(&true), "data came twice");
        covered.fill(true);
        self.outcome.data[start..start + data.len()].copy_from_slice(data);
    }

    fn finish(self, request: &Sent) -> Outcome {
        if self.outcome.errno == 0 && request.command == READ {
            assert_eq!(self.covered.len() as u64, request.length, "a read came short");
            assert!(!self.covered.contains(&false), "a read has a gap");
        }
        let is_told = self.outcome.allocation.is_some() || self.outcome.changes.is_some();
        assert!(self.outcome.errno != 0 || request.command != STATUS || is_told, "a status tells nothing");
        self.outcome
    }
}
