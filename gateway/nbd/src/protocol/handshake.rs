//! The fixed newstyle handshake: greeting, option headers and option replies.
//!
//! ```text
//! greeting (server)            option (client)                 option reply (server)
//! 0   "NBDMAGIC"     u64       0   "IHAVEOPT"     u64          0   magic 0x3e889045565a9   u64
//! 8   "IHAVEOPT"     u64       8   option         u32          8   option                  u32
//! 16  flags          u16       12  data length    u32          12  reply type              u32
//! then the client's            16  data                        16  data length             u32
//! flags              u32                                       20  data
//! ```

use super::request::{read_u32, read_u64};

const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
const FLAG_NO_ZEROES: u16 = 1 << 1;
const CLIENT_FIXED_NEWSTYLE: u32 = 1 << 0;
const CLIENT_NO_ZEROES: u32 = 1 << 1;

pub(crate) const OPTION_HEADER_LENGTH: usize = 16;

/// The bytes a server opens with.
pub(crate) fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    bytes
}

/// What the client answered to the greeting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ClientFlags {
    /// Without it the client knows no option but EXPORT_NAME.
    pub(crate) fixed_newstyle: bool,
    /// Leave out the 124 zero bytes after EXPORT_NAME.
    pub(crate) no_zeroes: bool,
}

impl ClientFlags {
    /// `None` when a flag is set that the server did not offer: the connection must be dropped.
    pub(crate) const fn decode(bits: u32) -> Option<Self> {
        if bits & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0 {
            return None;
        }
        Some(Self {
            fixed_newstyle: bits & CLIENT_FIXED_NEWSTYLE != 0,
            no_zeroes: bits & CLIENT_NO_ZEROES != 0,
        })
    }
}

/// Options of the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OptionCode {
    ExportName,
    Abort,
    List,
    StartTls,
    Info,
    Go,
    StructuredReply,
    ListMetaContext,
    SetMetaContext,
    ExtendedHeaders,
    Unknown,
}

/// An option as it was announced: its data is still on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OptionHeader {
    /// As the client sent it, to be repeated in replies.
    pub(crate) raw: u32,
    pub(crate) data_length: u32,
}

impl OptionHeader {
    /// `None` when the magic is wrong.
    pub(crate) fn decode(bytes: &[u8; OPTION_HEADER_LENGTH]) -> Option<Self> {
        (read_u64(bytes, 0) == OPTION_MAGIC)
            .then(|| Self { raw: read_u32(bytes, 8), data_length: read_u32(bytes, 12) })
    }

    pub(crate) const fn code(self) -> OptionCode {
        match self.raw {
            1 => OptionCode::ExportName,
            2 => OptionCode::Abort,
            3 => OptionCode::List,
            5 => OptionCode::StartTls,
            6 => OptionCode::Info,
            7 => OptionCode::Go,
            8 => OptionCode::StructuredReply,
            9 => OptionCode::ListMetaContext,
            10 => OptionCode::SetMetaContext,
            11 => OptionCode::ExtendedHeaders,
            _ => OptionCode::Unknown,
        }
    }
}

/// Types of option replies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum ReplyType {
    Ack = 1,
    Server = 2,
    Info = 3,
    MetaContext = 4,
    ErrorUnsupported = (1 << 31) + 1,
    ErrorPolicy = (1 << 31) + 2,
    ErrorInvalid = (1 << 31) + 3,
    ErrorTlsRequired = (1 << 31) + 5,
    ErrorUnknown = (1 << 31) + 6,
    ErrorTooBig = (1 << 31) + 9,
    ErrorExtendedHeadersRequired = (1 << 31) + 10,
}

/// Appends one option reply whose data is `parts`, joined.
pub(crate) fn put_option_reply(out: &mut Vec<u8>, option: u32, kind: ReplyType, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&(kind as u32).to_be_bytes());
    out.extend_from_slice(&u32::try_from(length).expect("replies are short").to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_offers_fixed_newstyle_without_zeroes() {
        assert_eq!(&greeting(), b"NBDMAGICIHAVEOPT\x00\x03");
    }

    #[test]
    fn a_client_flag_that_was_not_offered_is_refused() {
        assert_eq!(ClientFlags::decode(3), Some(ClientFlags { fixed_newstyle: true, no_zeroes: true }));
        assert_eq!(ClientFlags::decode(4), None);
        assert_eq!(ClientFlags::decode(0x8000_0001), None);
    }

    #[test]
    fn an_option_without_its_magic_is_refused() {
        assert_eq!(
            OptionHeader::decode(b"IHAVEOPT\0\0\0\x07\0\0\x01\0"),
            Some(OptionHeader { raw: 7, data_length: 256 })
        );
        assert_eq!(OptionHeader::decode(b"IHAVEOPU\0\0\0\x07\0\0\x01\0"), None);
    }

    #[test]
    fn an_option_reply_counts_all_its_parts() {
        let mut out = Vec::new();
        put_option_reply(&mut out, 3, ReplyType::Server, &[&[0, 0, 0, 2], b"ab"]);
        assert_eq!(out, b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\0\0\0\x02\0\0\0\x06\0\0\0\x02ab");
    }
}
