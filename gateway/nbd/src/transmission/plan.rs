//! From a request header to what is done about it. Nothing is allocated here, and nothing the client said is
//! believed: flags, payload and range are checked against what was negotiated and against the present size.

use super::operation::Operation;
use crate::negotiation::ContextSet;
use crate::protocol::errno::Errno;
use crate::protocol::request::{Command, HeaderForm, RequestHeader, command_flag};
use crate::protocol::{CONTEXTS_MAX, DISCARD_MAX, EXTENTS_MAX, PAYLOAD_MAX, Style};
use cairn_model::DeviceInfo;

/// BLOCK_STATUS with a payload: the effect length, then identifiers of contexts, each once.
const SELECTION_LENGTH_MAX: u64 = 8 + 4 * CONTEXTS_MAX as u64;

/// What was negotiated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) style: Style,
    /// The contexts that were selected.
    pub(super) contexts: ContextSet,
}

impl Terms {
    pub(super) const fn header_form(self) -> HeaderForm {
        match self.style {
            Style::Simple | Style::Structured => HeaderForm::Compact,
            Style::Extended => HeaderForm::Extended,
        }
    }
}

/// Why a request is answered with an error without having been tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) message: &'static str,
}

impl Refusal {
    pub(super) const fn invalid(message: &'static str) -> Self {
        Self { errno: Errno::Invalid, message }
    }
}

/// A write whose payload is still on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WritePlan {
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) fua: bool,
}

/// What to do about a request.
#[derive(Debug)]
pub(super) enum Plan {
    Start(Operation),
    /// Receive the payload, then write it.
    ReceiveWrite(WritePlan),
    /// Receive `length` bytes that say which contexts a BLOCK_STATUS is about.
    ReceiveSelection {
        length: u32,
        one: bool,
    },
    /// Skip the payload, then answer.
    Refuse {
        payload: u64,
        refusal: Refusal,
    },
    Disconnect,
    /// The payload is too long to be skipped.
    HangUp,
}

/// Decides about `header`.
pub(super) fn plan(header: &RequestHeader, terms: Terms, info: DeviceInfo) -> Plan {
    let payload = header.payload_length(terms.header_form());
    if payload > DISCARD_MAX {
        return Plan::HangUp;
    }
    match decide(header, terms, info) {
        Ok(plan) => plan,
        Err(refusal) => Plan::Refuse { payload, refusal },
    }
}

fn decide(header: &RequestHeader, terms: Terms, info: DeviceInfo) -> Result<Plan, Refusal> {
    let command = Command::from_code(header.command_code)
        .ok_or(Refusal::invalid("this server does not know the command"))?;
    if command == Command::Disconnect {
        return Ok(Plan::Disconnect);
    }
    check_flags(command, header.flags, terms)?;
    let (offset, length) = (header.offset, header.length);
    let fua = header.flags & command_flag::FUA != 0;
    Ok(match command {
        Command::Read => {
            check_range(header, info, Errno::Invalid)?;
            let fragment = terms.style != Style::Simple && header.flags & command_flag::DF == 0;
            Plan::Start(Operation::Read { offset, length: check_read_length(length, terms)?, fragment })
        }
        Command::Write => {
            check_writable(info)?;
            let length = payload_length(length)?;
            check_range(header, info, Errno::NoSpace)?;
            Plan::ReceiveWrite(WritePlan { offset, length, fua })
        }
        Command::Trim => {
            check_writable(info)?;
            check_range(header, info, Errno::Invalid)?;
            Plan::Start(Operation::Discard { offset, length, fua })
        }
        Command::WriteZeroes => {
            check_writable(info)?;
            check_range(header, info, Errno::NoSpace)?;
            Plan::Start(Operation::WriteZeroes { offset, length, fua })
        }
        Command::Cache => {
            check_range(header, info, Errno::Invalid)?;
            Plan::Start(Operation::Prefetch { offset, length })
        }
        Command::BlockStatus => decide_block_status(header, terms, info)?,
        Command::Flush if (offset, length) != (0, 0) => {
            return Err(Refusal::invalid("a flush has no offset and no length"));
        }
        Command::Flush => Plan::Start(Operation::Flush),
        Command::Disconnect => Plan::Disconnect,
    })
}

fn decide_block_status(header: &RequestHeader, terms: Terms, info: DeviceInfo) -> Result<Plan, Refusal> {
    if terms.contexts.is_empty() {
        return Err(Refusal::invalid("no metadata context was selected in the handshake"));
    }
    let one = header.flags & command_flag::REQ_ONE != 0;
    if header.flags & command_flag::PAYLOAD_LEN != 0 {
        let length =
            u32::try_from(header.length).ok().filter(|length| u64::from(*length) <= SELECTION_LENGTH_MAX);
        let length = length.ok_or(Refusal::invalid("the payload selects more contexts than there are"))?;
        return Ok(Plan::ReceiveSelection { length, one });
    }
    block_status(header.offset, header.length, one, terms.contexts, info).map(Plan::Start)
}

/// The operation of a BLOCK_STATUS about `length` bytes.
pub(super) fn block_status(
    offset: u64,
    length: u64,
    one: bool,
    contexts: ContextSet,
    info: DeviceInfo,
) -> Result<Operation, Refusal> {
    check_extent(offset, length, info, Errno::Invalid)?;
    if length == 0 {
        return Err(Refusal::invalid("a status of nothing cannot be described"));
    }
    let extents_max = if one { 1 } else { EXTENTS_MAX / contexts.len().max(1) };
    Ok(Operation::Status { offset, length, extents_max, contexts })
}

/// FUA is legal everywhere: the document makes servers accept it with every command.
fn check_flags(command: Command, flags: u16, terms: Terms) -> Result<(), Refusal> {
    use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
    let extended = terms.style == Style::Extended;
    let allowed = match command {
        Command::Read if terms.style != Style::Simple => DF,
        Command::Write if extended => PAYLOAD_LEN,
        Command::WriteZeroes => NO_HOLE | FAST_ZERO,
        Command::BlockStatus if extended => REQ_ONE | PAYLOAD_LEN,
        Command::BlockStatus => REQ_ONE,
        Command::Read
        | Command::Write
        | Command::Disconnect
        | Command::Flush
        | Command::Trim
        | Command::Cache => 0,
    };
    if flags & !(allowed | FUA) != 0 {
        return Err(Refusal::invalid("a flag is not allowed with this command"));
    }
    Ok(())
}

fn check_writable(info: DeviceInfo) -> Result<(), Refusal> {
    if info.read_only {
        return Err(Refusal { errno: Errno::Permission, message: "the export is read-only" });
    }
    Ok(())
}

fn check_range(header: &RequestHeader, info: DeviceInfo, errno: Errno) -> Result<(), Refusal> {
    check_extent(header.offset, header.length, info, errno)
}

fn check_extent(offset: u64, length: u64, info: DeviceInfo, errno: Errno) -> Result<(), Refusal> {
    match offset.checked_add(length) {
        Some(end) if end <= info.size_bytes => Ok(()),
        _ => Err(Refusal { errno, message: "the request goes beyond the end of the export" }),
    }
}

/// The document allows EOVERFLOW only to clients that know about chunks.
fn check_read_length(length: u64, terms: Terms) -> Result<u32, Refusal> {
    let errno = if terms.style == Style::Simple { Errno::Invalid } else { Errno::Overflow };
    within_payload(length).ok_or(Refusal { errno, message: "a read may be 32 MiB long" })
}

fn payload_length(length: u64) -> Result<u32, Refusal> {
    within_payload(length).ok_or(Refusal::invalid("a write may be 32 MiB long"))
}

fn within_payload(length: u64) -> Option<u32> {
    u32::try_from(length).ok().filter(|length| *length <= PAYLOAD_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WRITE: u16 = 1;

    fn style() -> impl Strategy<Value = Style> {
        prop_oneof![Just(Style::Simple), Just(Style::Structured), Just(Style::Extended)]
    }

    #[test]
    fn a_write_to_a_read_only_export_is_refused_before_its_payload_is_received() {
        let header = RequestHeader { flags: 0, command_code: WRITE, cookie: 0, offset: 0, length: 4096 };
        let terms = Terms { style: Style::Simple, contexts: ContextSet::default() };
        let decided = plan(&header, terms, DeviceInfo { size_bytes: 1 << 20, read_only: true });
        assert!(
            matches!(&decided, Plan::Refuse { payload: 4096, refusal } if refusal.errno == Errno::Permission),
            "{decided:?}"
        );
    }

    proptest! {
        #[test]
        fn nothing_that_is_started_or_received_leaves_the_export_or_the_payload_limit(
            flags in 0..64_u16,
            command_code in 0..10_u16,
            offset in prop_oneof![0..3_000_000_u64, any::<u64>()],
            length in prop_oneof![0..3_000_000_u64, any::<u64>()],
            size_bytes in prop_oneof![0..6_000_000_u64, any::<u64>()],
            style in style(),
            contexts in proptest::collection::vec(1..=17_u32, 0..4),
        ) {
            let contexts = contexts.iter().fold(ContextSet::default(), |set, id| set.with(*id).unwrap_or(set));
            let terms = Terms { style, contexts };
            let length = if style == Style::Extended { length } else { length & u64::from(u32::MAX) };
            let header = RequestHeader { flags, command_code, cookie: 0, offset, length };
            let within = |length: u64| offset.checked_add(length).is_some_and(|end| end <= size_bytes);
            match plan(&header, terms, DeviceInfo { size_bytes, read_only: false }) {
                Plan::Start(operation) => {
                    prop_assert!(within(length));
                    prop_assert!(operation.cost() <= PAYLOAD_MAX as usize);
                }
                Plan::ReceiveWrite(write) => {
                    prop_assert!(within(u64::from(write.length)) && write.length <= PAYLOAD_MAX);
                    prop_assert_eq!(u64::from(write.length), length);
                }
                Plan::ReceiveSelection { length, .. } => prop_assert!(u64::from(length) <= SELECTION_LENGTH_MAX),
                Plan::Refuse { payload, .. } => prop_assert!(payload <= DISCARD_MAX),
                Plan::Disconnect => prop_assert_eq!(command_code, 2),
                Plan::HangUp => prop_assert!(length > DISCARD_MAX),
            }
        }
    }
}
