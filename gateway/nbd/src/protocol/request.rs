//! Requests of the transmission phase.
//!
//! ```text
//! compact, 28 bytes                     extended, 32 bytes
//! 0   magic 0x25609513      u32         0   magic 0x21e41c71              u32
//! 4   command flags         u16         4   command flags                 u16
//! 6   command               u16         6   command                       u16
//! 8   cookie                u64         8   cookie                        u64
//! 16  offset                u64         16  offset                        u64
//! 24  length                u32         24  payload or effect length      u64
//! 28  payload of a WRITE                32  payload of a WRITE, and if PAYLOAD_LEN is set
//! ```
//!
//! Nothing authenticates a request but the TLS session around it.

const COMPACT_MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

pub(crate) mod command_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
    pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Commands this server knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
}

impl Command {
    pub(crate) const fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => return None,
        })
    }
}

/// Which header the client sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeaderForm {
    Compact,
    Extended,
}

impl HeaderForm {
    pub(crate) const fn length(self) -> usize {
        match self {
            Self::Compact => 28,
            Self::Extended => 32,
        }
    }
}

/// A request header as it arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RequestHeader {
    pub(crate) flags: u16,
    pub(crate) command_code: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl RequestHeader {
    /// Decodes a header from the first [`HeaderForm::length`] bytes; `None` when the magic is wrong, which means
    /// that the two ends do not agree any more where messages begin.
    pub(crate) fn decode(form: HeaderForm, bytes: &[u8]) -> Option<Self> {
        let (magic, length) = match form {
            HeaderForm::Compact => (COMPACT_MAGIC, u64::from(read_u32(bytes, 24))),
            HeaderForm::Extended => (EXTENDED_MAGIC, read_u64(bytes, 24)),
        };
        if read_u32(bytes, 0) != magic {
            return None;
        }
        Some(Self {
            flags: read_u16(bytes, 4),
            command_code: read_u16(bytes, 6),
            cookie: read_u64(bytes, 8),
            offset: read_u64(bytes, 16),
            length,
        })
    }

    /// Bytes that follow the header on the wire. A WRITE always has them: QEMU (10.0) forgets to set PAYLOAD_LEN in
    /// extended headers, and its own server overlooks it too.
    pub(crate) fn payload_length(&self, form: HeaderForm) -> u64 {
        let write = Command::from_code(self.command_code) == Some(Command::Write);
        let flagged = form == HeaderForm::Extended && self.flags & command_flag::PAYLOAD_LEN != 0;
        if write || flagged { self.length } else { 0 }
    }
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(form: HeaderForm, header: &RequestHeader) -> Vec<u8> {
        let mut bytes = Vec::new();
        let magic = if form == HeaderForm::Compact { COMPACT_MAGIC } else { EXTENDED_MAGIC };
        bytes.extend(magic.to_be_bytes());
        bytes.extend(header.flags.to_be_bytes());
        bytes.extend(header.command_code.to_be_bytes());
        bytes.extend(header.cookie.to_be_bytes());
        bytes.extend(header.offset.to_be_bytes());
        match form {
            HeaderForm::Compact => bytes.extend(u32::try_from(header.length).unwrap().to_be_bytes()),
            HeaderForm::Extended => bytes.extend(header.length.to_be_bytes()),
        }
        bytes
    }

    proptest! {
        #[test]
        fn a_header_decodes_to_what_was_encoded(
            flags: u16, command_code: u16, cookie: u64, offset: u64, length: u32, high: u32, extended: bool,
        ) {
            let form = if extended { HeaderForm::Extended } else { HeaderForm::Compact };
            let length = u64::from(length) | if extended { u64::from(high) << 32 } else { 0 };
            let header = RequestHeader { flags, command_code, cookie, offset, length };
            let bytes = encode(form, &header);
            prop_assert_eq!(bytes.len(), form.length());
            prop_assert_eq!(RequestHeader::decode(form, &bytes), Some(header));
        }

        #[test]
        fn another_magic_is_no_header(bytes in proptest::collection::vec(any::<u8>(), 32)) {
            let magic = read_u32(&bytes, 0);
            prop_assume!(magic != COMPACT_MAGIC && magic != EXTENDED_MAGIC);
            prop_assert_eq!(RequestHeader::decode(HeaderForm::Compact, &bytes), None);
            prop_assert_eq!(RequestHeader::decode(HeaderForm::Extended, &bytes), None);
        }
    }

    #[test]
    fn a_write_or_an_extended_flag_brings_a_payload() {
        let header =
            |command_code, flags| RequestHeader { flags, command_code, cookie: 0, offset: 0, length: 512 };
        assert_eq!(header(1, 0).payload_length(HeaderForm::Compact), 512);
        assert_eq!(header(0, command_flag::PAYLOAD_LEN).payload_length(HeaderForm::Compact), 0);
        assert_eq!(header(1, 0).payload_length(HeaderForm::Extended), 512);
        assert_eq!(header(0, 0).payload_length(HeaderForm::Extended), 0);
        assert_eq!(header(99, command_flag::PAYLOAD_LEN).payload_length(HeaderForm::Extended), 512);
    }
}
