//! From an outcome to the bytes that tell the client.

use super::operation::{Completion, Outcome, Status};
use super::output::Output;
use crate::protocol::Style;
use crate::protocol::errno::Errno;
use crate::protocol::reply::{ChunkHead, ChunkType, ReplyTo, simple_head};
use bytes::Bytes;
use cairn_model::ReadBuffer;

/// A run of zeros this long is described, not sent: the description takes up to 80 bytes and splits the data around it.
const HOLE_MIN: usize = 4096;

/// Queues the reply to one request.
pub(super) fn queue(output: &mut Output, style: Style, completion: Completion) {
    let to = ReplyTo { cookie: completion.cookie, offset: completion.offset };
    match completion.outcome {
        Outcome::Done => queue_success(output, style, to),
        Outcome::Failed { errno, message } => queue_error(output, style, to, errno, message),
        Outcome::Data { buffer, .. } if style == Style::Simple => {
            output.put_head(&simple_head(0, to.cookie));
            queue_pieces(output, buffer);
        }
        Outcome::Data { buffer, .. } if buffer.is_empty() => put_none(output, style, to),
        Outcome::Data { buffer, fragment } => {
            if fragment && buffer.pieces().iter().any(ReadBuffer::is_zero_piece) {
                queue_sparse(output, style, to, buffer);
            } else {
                put_data_head(output, style, to, to.offset, buffer.len(), true);
                queue_pieces(output, buffer);
            }
        }
        Outcome::Statuses(statuses) => {
            let last = statuses.len() - 1;
            for (index, status) in statuses.iter().enumerate() {
                queue_status(output, style, to, status, index == last);
            }
        }
    }
}

/// Where structured replies were negotiated a success without data may still be a simple reply, which is shorter.
fn queue_success(output: &mut Output, style: Style, to: ReplyTo) {
    match style {
        Style::Simple | Style::Structured => output.put_head(&simple_head(0, to.cookie)),
        Style::Extended => put_none(output, style, to),
    }
}

fn put_none(output: &mut Output, style: Style, to: ReplyTo) {
    output.put_head(ChunkHead::new(style, to, ChunkType::None, 0, true).as_bytes());
}

fn queue_error(output: &mut Output, style: Style, to: ReplyTo, errno: Errno, message: &str) {
    if style == Style::Simple {
        output.put_head(&simple_head(errno as u32, to.cookie));
        return;
    }
    let length = u16::try_from(message.len()).expect("messages are short");
    let head = ChunkHead::new(style, to, ChunkType::Error, 6 + u32::from(length), true);
    output.put_head(head.as_bytes());
    output.put_head(&(errno as u32).to_be_bytes());
    output.put_head(&length.to_be_bytes());
    output.put_head(message.as_bytes());
}

fn queue_pieces(output: &mut Output, buffer: ReadBuffer) {
    for piece in buffer.into_pieces() {
        output.put_payload(piece);
    }
}

fn put_data_head(output: &mut Output, style: Style, to: ReplyTo, offset: u64, length: usize, done: bool) {
    let length = u32::try_from(8 + length).expect("a read is at most 32 MiB");
    output.put_head(ChunkHead::new(style, to, ChunkType::OffsetData, length, done).as_bytes());
    output.put_head(&offset.to_be_bytes());
}

/// Bytes of a read that go into one chunk.
#[derive(Debug)]
struct Run {
    pieces: Vec<Bytes>,
    length: usize,
    zero: bool,
}

/// Describes the holes of a read and sends the rest.
fn queue_sparse(output: &mut Output, style: Style, to: ReplyTo, buffer: ReadBuffer) {
    let runs = runs_of(buffer);
    let mut offset = to.offset;
    let last = runs.len() - 1;
    for (index, run) in runs.into_iter().enumerate() {
        let done = index == last;
        if run.zero {
            let length = u32::try_from(run.length).expect("a read is at most 32 MiB");
            output.put_head(ChunkHead::new(style, to, ChunkType::OffsetHole, 12, done).as_bytes());
            output.put_head(&offset.to_be_bytes());
            output.put_head(&length.to_be_bytes());
        } else {
            put_data_head(output, style, to, offset, run.length, done);
            for piece in run.pieces {
                output.put_payload(piece);
            }
        }
        offset += run.length as u64;
    }
}

/// Splits a read into holes worth describing and everything else.
fn runs_of(buffer: ReadBuffer) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for piece in buffer.into_pieces() {
        let zero = ReadBuffer::is_zero_piece(&piece);
        let length = piece.len();
        match runs.last_mut() {
            Some(run) if run.zero == zero => {
                run.length += length;
                run.pieces.push(piece);
            }
            _ => runs.push(Run { pieces: vec![piece], length, zero }),
        }
    }
    let mut merged: Vec<Run> = Vec::with_capacity(runs.len());
    for mut run in runs {
        run.zero = run.zero && run.length >= HOLE_MIN;
        match merged.last_mut() {
            Some(before) if !before.zero && !run.zero => {
                before.length += run.length;
                before.pieces.append(&mut run.pieces);
            }
            _ => merged.push(run),
        }
    }
    merged
}

/// One chunk for each context.
fn queue_status(output: &mut Output, style: Style, to: ReplyTo, status: &Status, done: bool) {
    let count = u32::try_from(status.extents.len()).expect("extents are bounded");
    let extended = style == Style::Extended;
    let (kind, length) = if extended {
        (ChunkType::BlockStatusExtended, 8 + 16 * count)
    } else {
        (ChunkType::BlockStatus, 4 + 8 * count)
    };
    output.put_head(ChunkHead::new(style, to, kind, length, done).as_bytes());
    let mut payload = Vec::with_capacity(length as usize);
    payload.extend_from_slice(&status.context.to_be_bytes());
    if extended {
        payload.extend_from_slice(&count.to_be_bytes());
    }
    for extent in &status.extents {
        if extended {
            payload.extend_from_slice(&extent.length_bytes.to_be_bytes());
            payload.extend_from_slice(&u64::from(extent.flags).to_be_bytes());
        } else {
            // A compact request is shorter than 4 GiB, and extents do not go beyond their request.
            let length = u32::try_from(extent.length_bytes).expect("extents lie within a 32-bit request");
            payload.extend_from_slice(&length.to_be_bytes());
            payload.extend_from_slice(&extent.flags.to_be_bytes());
        }
    }
    output.put_payload(payload.into());
}
