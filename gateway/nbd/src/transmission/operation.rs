//! What the device is asked to do, and what comes of it.

use crate::negotiation::{ContextSet, Contexts};
use crate::protocol::errno::{Errno, errno_of, message_of};
use crate::protocol::request::Command;
use bytes::Bytes;
use cairn_model::{AllocationExtent, BlockDevice, ChangeExtent, ErrorKind, Kinded, ReadBuffer, WriteFlags};

/// A checked request with all of its data.
#[derive(Debug)]
pub(super) enum Operation {
    Read {
        offset: u64,
        length: u32,
        fragment: bool,
    },
    Write {
        offset: u64,
        data: Bytes,
        fua: bool,
    },
    Flush,
    Discard {
        offset: u64,
        length: u64,
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        length: u64,
        fua: bool,
    },
    Prefetch {
        offset: u64,
        length: u64,
    },
    /// `extents_max` is for each of the contexts.
    Status {
        offset: u64,
        length: u64,
        extents_max: usize,
        contexts: ContextSet,
    },
}

impl Operation {
    pub(super) const fn command(&self) -> Command {
        match self {
            Self::Read { .. } => Command::Read,
            Self::Write { .. } => Command::Write,
            Self::Flush => Command::Flush,
            Self::Discard { .. } => Command::Trim,
            Self::WriteZeroes { .. } => Command::WriteZeroes,
            Self::Prefetch { .. } => Command::Cache,
            Self::Status { .. } => Command::BlockStatus,
        }
    }

    /// Bytes it may make the session hold until it is answered.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Read { length, .. } => *length as usize,
            Self::Write { data, .. } => data.len(),
            Self::Status { extents_max, contexts, .. } => {
                let compares = contexts.ids().any(|id| id != ContextSet::ALLOCATION);
                let working = if compares { COMPARED_BYTES } else { 0 };
                extents_max * contexts.len() * size_of::<Extent>() + working
            }
            Self::Flush | Self::Discard { .. } | Self::WriteZeroes { .. } | Self::Prefetch { .. } => 0,
        }
    }
}

/// What a device may hold while it compares itself with an earlier moment, one context after the other, however few extents are asked for.
const COMPARED_BYTES: usize = 4 << 20;

/// A run of bytes as a context describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    pub(super) length_bytes: u64,
    pub(super) flags: u32,
}

/// Flags of `base:allocation`: nothing stored, reads as zeros.
const STATE_HOLE_AND_ZERO: u32 = 0b11;
/// Flag of `qemu:dirty-bitmap:`.
const STATE_DIRTY: u32 = 0b1;

impl Extent {
    const fn of_allocation(extent: &AllocationExtent) -> Self {
        let flags = if extent.allocated { 0 } else { STATE_HOLE_AND_ZERO };
        Self { length_bytes: extent.length_bytes, flags }
    }

    const fn of_change(extent: &ChangeExtent) -> Self {
        let flags = if extent.changed { STATE_DIRTY } else { 0 };
        Self { length_bytes: extent.length_bytes, flags }
    }
}

/// What one context says of a range from its start on.
#[derive(Debug)]
pub(super) struct Status {
    /// The identifier of the context.
    pub(super) context: u32,
    pub(super) extents: Vec<Extent>,
}

/// What a request is answered with.
#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    Data { buffer: ReadBuffer, fragment: bool },
    Statuses(Vec<Status>),
    Failed { errno: Errno, message: &'static str },
}

/// An answer and the request it belongs to.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) outcome: Outcome,
}

/// Runs `operation`. `cookie` and `offset` are those of the request.
pub(super) async fn run<D: BlockDevice>(
    device: &D,
    contexts: &Contexts<D>,
    cookie: u64,
    offset: u64,
    operation: Operation,
) -> Completion {
    let command = operation.command();
    let outcome = match perform(device, contexts, operation).await {
        Ok(outcome) => outcome,
        Err(error) => failure(&error, command, offset),
    };
    Completion { cookie, offset, outcome }
}

async fn perform<D: BlockDevice>(
    device: &D,
    selected: &Contexts<D>,
    operation: Operation,
) -> Result<Outcome, D::Error> {
    let flags = |fua| WriteFlags { fua };
    match operation {
        Operation::Read { length: 0, fragment, .. } => {
            return Ok(Outcome::Data { buffer: ReadBuffer::default(), fragment });
        }
        Operation::Read { offset, length, fragment } => {
            let buffer = device.read(offset, length).await?;
            return Ok(whole_read(buffer, length, fragment));
        }
        Operation::Status { offset, length, extents_max, contexts } => {
            let mut statuses = Vec::with_capacity(contexts.len());
            for context in contexts.ids() {
                // Boxed: one that compares is much larger than a read, and every slot would be as large as the largest.
                let extents: Vec<Extent> = match selected.earlier(context) {
                    None => {
                        let found = device.allocation(offset, length, extents_max).await?;
                        found.iter().map(Extent::of_allocation).collect()
                    }
                    Some(since) => {
                        let found = Box::pin(device.changes(since, offset, length, extents_max)).await?;
                        found.iter().map(Extent::of_change).collect()
                    }
                };
                match sound_extents(extents, length, extents_max) {
                    Some(extents) => statuses.push(Status { context, extents }),
                    None => return Ok(BROKEN_DEVICE),
                }
            }
            return Ok(Outcome::Statuses(statuses));
        }
        Operation::Write { offset, data, fua } if !data.is_empty() => {
            device.write(offset, data, flags(fua)).await?;
        }
        Operation::Discard { offset, length, fua } if length > 0 => {
            device.discard(offset, length, flags(fua)).await?;
        }
        Operation::WriteZeroes { offset, length, fua } if length > 0 => {
            device.write_zeroes(offset, length, flags(fua)).await?;
        }
        Operation::Prefetch { offset, length } if length > 0 => device.prefetch(offset, length).await?,
        Operation::Flush => device.flush().await?,
        // Nothing to do, and successfully so: the document only asks not to disconnect.
        Operation::Write { .. }
        | Operation::Discard { .. }
        | Operation::WriteZeroes { .. }
        | Operation::Prefetch { .. } => {}
    }
    Ok(Outcome::Done)
}

const BROKEN_DEVICE: Outcome = Outcome::Failed { errno: Errno::Io, message: message_of(ErrorKind::Internal) };

/// A read of the wrong length would shift every later byte of the connection; it becomes an error instead.
fn whole_read(buffer: ReadBuffer, length: u32, fragment: bool) -> Outcome {
    if buffer.len() != length as usize {
        tracing::error!(
            wanted = length,
            got = buffer.len(),
            "the device read another length than it was asked for"
        );
        return BROKEN_DEVICE;
    }
    Outcome::Data { buffer, fragment }
}

/// At least one extent, none empty, not more than asked for, neighbours different: what a client is entitled to.
fn sound_extents(mut extents: Vec<Extent>, length: u64, extents_max: usize) -> Option<Vec<Extent>> {
    let total = extents.iter().try_fold(0_u64, |sum, extent| sum.checked_add(extent.length_bytes));
    let empty = extents.is_empty() || extents.iter().any(|extent| extent.length_bytes == 0);
    if empty || extents.len() > extents_max || total.is_none_or(|total| total > length) {
        tracing::error!(
            length,
            extents = extents.len(),
            "the device described another range than it was asked for"
        );
        return None;
    }
    extents.dedup_by(|next, before| {
        let same = next.flags == before.flags;
        before.length_bytes += if same { next.length_bytes } else { 0 };
        same
    });
    Some(extents)
}

fn failure<E: Kinded>(error: &E, command: Command, offset: u64) -> Outcome {
    let kind = error.kind();
    match kind {
        ErrorKind::OutOfRange | ErrorKind::ReadOnly | ErrorKind::Unsupported => {
            tracing::debug!(?command, offset, kind = kind.name(), %error, "request refused");
        }
        ErrorKind::Fenced
        | ErrorKind::Unavailable
        | ErrorKind::OutOfSpace
        | ErrorKind::Corrupt
        | ErrorKind::NotFound
        | ErrorKind::Conflict
        | ErrorKind::Internal => {
            tracing::warn!(?command, offset, kind = kind.name(), %error, "request failed");
        }
    }
    Outcome::Failed { errno: errno_of(kind, command), message: message_of(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_is_charged_however_few_extents_are_asked_for() {
        let allocation = ContextSet::default().with(ContextSet::ALLOCATION).expect("it is not there yet");
        let both = allocation.with(ContextSet::ALLOCATION + 1).expect("it is not there yet");
        let cost = |contexts| Operation::Status { offset: 0, length: 1, extents_max: 1, contexts }.cost();
        assert!(cost(allocation) < 100);
        assert!(cost(both) >= COMPARED_BYTES);
    }
}
