//! Requests of every kind, torn and in flight together, to a device in every mood.
//!
//! What must hold: every request that arrived whole is answered once, in the form that was negotiated, and nothing else is;
//! success means that the device did exactly that, and the device did nothing that was not answered with success; a valid request
//! to a device that does not fail succeeds; no request leaves the device's bounds or changes a read-only one.

use super::device::{Device, Done, SIZE};
use super::replies::{Outcome, decode};
use super::{Answer, SESSION_BYTES_MAX, pace};
use crate::input::Input;
use crate::{Seeds, lie, memory};
use cairn_nbd::fuzzing::{Form, Terms, transmission_with};
use std::sync::Arc;

pub(super) const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
pub(super) const STATUS: u16 = 7;

const FUA: u16 = 1;
const PAYLOAD: u16 = 1 << 5;

const REQUESTS_MAX: usize = 48;

/// A request that was sent whole.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) cookie: u64,
    pub(super) command: u16,
    flags: u16,
    pub(super) offset: u64,
    pub(super) length: u64,
    payload: Vec<u8>,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let setup = input.byte();
    let form = [Form::Simple, Form::Structured, Form::Extended][usize::from(setup & 3) % 3];
    let terms = Terms { form, contexts: setup & 0x10 != 0 };
    let read_only = setup & 0xe0 == 0xe0;
    let pace = pace(setup & 0x08 != 0, &mut input);
    let mood_count = usize::from(input.byte() & 31);
    let device = Arc::new(Device::new(read_only, input.bytes(mood_count)));
    let (wire, sent) = requests(&mut input, form);
    let answer = memory::bounded(SESSION_BYTES_MAX + 64 * wire.len(), || {
        transmission_with(Arc::clone(&device), terms, pace, &wire)
    });
    let outcomes = decode(&answer, form, &sent);
    let (mut done, failed) = device.account();
    if lie::told() {
        // The last thing that was answered was not done.
        done.pop();
    }
    for request in &sent {
        let outcome = outcomes.get(&request.cookie).unwrap_or_else(|| panic!("never answered: {request:?}"));
        let must_succeed = !failed && request.is_plain(terms, read_only);
        assert!(outcome.errno == 0 || !must_succeed, "refused with {}: {request:?}", outcome.errno);
        let expected = if outcome.errno == 0 { request.effects(outcome) } else { Vec::new() };
        for expected in expected {
            let found = done.iter().position(|done| *done == expected);
            done.swap_remove(found.unwrap_or_else(|| panic!("answered and not done: {request:?}")));
        }
    }
    if failed {
        // One of two contexts may have been looked at before the other failed: nothing is changed by that.
        done.retain(|done| !matches!(done, Done::Allocation { .. } | Done::Changes { .. }));
    }
    assert!(done.is_empty(), "done and not answered: {done:?}");
}

/// Bytes of requests, and those that are there to their end.
fn requests(input: &mut Input<'_>, form: Form) -> (Vec<u8>, Vec<Sent>) {
    let (mut wire, mut sent) = (Vec::new(), Vec::new());
    while !input.is_empty() && sent.len() < REQUESTS_MAX {
        let kind = input.byte();
        let command =
            [READ, WRITE, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS, READ, STATUS, ZEROES, FLUSH, WRITE]
                .get(usize::from(kind & 15))
                .copied()
                .unwrap_or_else(|| if kind & 15 == 13 { DISCONNECT } else { input.number() });
        if kind & 15 == 14 {
            // No magic begins like this: the two ends lose each other here.
            wire.push(0x80 | input.byte());
            wire.extend_from_slice(input.string());
            wire.extend_from_slice(&[0; 32]);
            break;
        }
        let flags = if kind & 0x10 == 0 { 0 } else { u16::from(input.byte()) };
        let wild = kind & 0x80 != 0;
        let (offset, length) = match command {
            FLUSH if kind & 15 == 3 => (0, 0),
            _ if wild => (input.number(), input.number::<u64>() >> (u32::from(kind >> 5 & 3) * 20)),
            _ => (u64::from(input.number::<u16>()), u64::from(input.number::<u16>() & 0x3fff)),
        };
        let length = if form == Form::Extended { length } else { length & u64::from(u32::MAX) };
        let cookie = 0x00c0_0c1e_0000_0000 + sent.len() as u64;
        let mut request = Sent { cookie, command, flags, offset, length, payload: Vec::new() };
        request.put_header(form, &mut wire);
        if command == DISCONNECT {
            break;
        }
        let payload = request.payload_length(form);
        if payload > 0x4000 {
            // Longer than anybody wants to fuzz: the client leaves in the middle of it, or is hung up on.
            wire.resize(wire.len() + 0x100, 0);
            break;
        }
        let length = usize::try_from(payload).unwrap();
        if command == STATUS {
            request.payload = input.bytes(length).to_vec();
        } else {
            let seed = input.byte();
            request.payload = (0..length).map(|at| seed.wrapping_mul((at / 5) as u8)).collect();
        }
        request.payload.resize(length, 0);
        wire.extend_from_slice(&request.payload);
        sent.push(request);
    }
    (wire, sent)
}

impl Sent {
    fn put_header(&self, form: Form, wire: &mut Vec<u8>) {
        let extended = form == Form::Extended;
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        wire.extend_from_slice(&magic.to_be_bytes());
        wire.extend_from_slice(&self.flags.to_be_bytes());
        wire.extend_from_slice(&self.command.to_be_bytes());
        wire.extend_from_slice(&self.cookie.to_be_bytes());
        wire.extend_from_slice(&self.offset.to_be_bytes());
        let length = self.length.to_be_bytes();
        wire.extend_from_slice(if extended { &length } else { &length[4..] });
    }

    fn payload_length(&self, form: Form) -> u64 {
        let flagged = form == Form::Extended && self.flags & PAYLOAD != 0;
        if self.command == WRITE || flagged { self.length } else { 0 }
    }

    /// Whether nothing about it can be refused.
    fn is_plain(&self, terms: Terms, read_only: bool) -> bool {
        let inside = self.offset.checked_add(self.length).is_some_and(|end| end <= SIZE);
        let allowed = match self.command {
            READ | CACHE => true,
            WRITE | TRIM | ZEROES => !read_only,
            FLUSH => (self.offset, self.length) == (0, 0),
            STATUS => terms.contexts && terms.form != Form::Simple && self.length > 0,
            _ => false,
        };
        inside && allowed && self.flags & !FUA == 0
    }

    /// What the device must have done if this was answered with success.
    fn effects(&self, outcome: &Outcome) -> Vec<Done> {
        let (offset, length, fua) = (self.offset, self.length, self.flags & FUA != 0);
        if self.command == FLUSH {
            return vec![Done::Flush];
        }
        if self.command == STATUS {
            let length = if self.flags & PAYLOAD == 0 { length } else { Answer(&self.payload).u64() };
            let allocation =
                outcome.allocation.clone().map(|extents| Done::Allocation { offset, length, extents });
            let changes = outcome.changes.clone().map(|extents| Done::Changes { offset, length, extents });
            return allocation.into_iter().chain(changes).collect();
        }
        if length == 0 {
            return Vec::new();
        }
        vec![match self.command {
            READ => Done::Read { offset, data: outcome.data.clone() },
            WRITE => Done::Write { offset, data: self.payload.clone(), fua },
            TRIM => Done::Discard { offset, length, fua },
            CACHE => Done::Prefetch { offset, length },
            ZEROES => Done::Zeroes { offset, length, fua },
            _ => panic!("an unknown command succeeded: {self:?}"),
        }]
    }
}

pub(crate) fn seeds() -> Seeds {
    // A write, a read of it, a flush, a trim, zeroes, a status, a prefetch: in every form, prompt and slow.
    let script: &[u8] = &[
        1, 0, 16, 0, 1, 77, 0, 0, 16, 0, 1, 3, 4, 0, 0, 0, 0x30, 6, 3, 16, 0, 16, 7, 0, 0, 0xff, 0x3f, 5, 0,
        0, 0, 1, 0x11, 1, 9, 9, 9, 0, 3, 0, 0, 0, 0, 0xff, 0x3f, 13,
    ];
    let mut seeds = Seeds::new();
    for (name, setup) in [("simple", 0x00), ("structured", 0x11), ("extended", 0x12), ("read-only", 0xf1)] {
        seeds.push((name.to_owned(), [&[setup, 0], script].concat()));
        seeds.push((format!("{name}-slow"), [&[setup, 4, 3, 1, 0xc2, 7], script].concat()));
        seeds.push((format!("{name}-torn"), [&[setup | 8, 5, 3, 0], script].concat()));
    }
    let selection: &[u8] = &[0x12, 0, 0x17, 0x20, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 1];
    seeds.push(("selection".to_owned(), selection.to_vec()));
    // A write, and then what changed: chosen alone, with the other context, twice, and one that there is not.
    let mut changes = vec![0x12, 0, 1, 0, 16, 0, 1, 77];
    for ids in [&[2][..], &[2, 1], &[2, 2], &[3]] {
        changes.extend([0x17, 0x20, 0, 0, 8 + 4 * u8::try_from(ids.len()).unwrap(), 0]);
        changes.extend([0, 0, 0, 0, 0, 0, 0x20, 0]);
        changes.extend(ids.iter().flat_map(|id| [0, 0, 0, *id]));
    }
    seeds.push(("changes".to_owned(), changes));
    seeds.push(("garbage".to_owned(), [&[0x11, 0], script, &[14, 1, 2, 3, 4]].concat()));
    seeds
}
