//! The bytes of the protocol: constants, decoders and encoders, without any I/O. All integers are big-endian.

pub(crate) mod errno;
pub(crate) mod handshake;
pub(crate) mod options;
pub(crate) mod reply;
pub(crate) mod request;

/// Largest payload of one READ or WRITE that clients are told of, if they ask: 32 MiB.
pub(crate) const PAYLOAD_ANNOUNCED: u32 = 32 << 20;

/// Largest payload that is served: clients that negotiate no block size send more, as the NBD project's own tester does.
pub(crate) const PAYLOAD_MAX: u32 = 64 << 20;

/// A WRITE up to this length is read to its end and refused, so that the connection lives on; one beyond it is hung up on.
pub(crate) const DISCARD_MAX: u64 = 2 * PAYLOAD_MAX as u64;

/// Smallest request announced: any alignment is served.
pub(crate) const BLOCK_SIZE_MIN: u32 = 1;

/// Requests aligned to this need no read-modify-write.
pub(crate) const BLOCK_SIZE_PREFERRED: u32 = 4096;

/// Longest string of the protocol (names, queries, messages).
pub(crate) const STRING_MAX: usize = 4096;

/// The metadata context of allocation.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";

/// Before the name of an earlier moment: the metadata context of what changed since. QEMU's name for it, which backup programs know.
/// Source: <https://www.qemu.org/docs/master/interop/nbd.html>
pub(crate) const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

/// Earlier moments that one client compares with at a time: each is held open.
pub(crate) const EARLIER_MAX: usize = 16;

/// Contexts that can be selected at once: those, and allocation.
pub(crate) const CONTEXTS_MAX: usize = 1 + EARLIER_MAX;

/// Earlier moments that a listing of contexts tells of, the latest ones: some 300 bytes each.
pub(crate) const EARLIER_LISTED_MAX: usize = 4096;

/// Most extents in one BLOCK_STATUS reply, all contexts together: 1 MiB of descriptors. The document allows 2^20.
pub(crate) const EXTENTS_MAX: usize = 1 << 16;

const _: () = assert!(
    PAYLOAD_ANNOUNCED >= 1 << 25 && PAYLOAD_MAX >= PAYLOAD_ANNOUNCED,
    "the document calls smaller limits unportable"
);
const _: () = assert!(EXTENTS_MAX <= 1 << 20, "the document's limit of descriptors in a chunk");

/// Which message forms the client negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Style {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests; READ and BLOCK_STATUS are answered in chunks, and errors carry a message.
    Structured,
    /// 32-byte headers with 64-bit lengths both ways.
    Extended,
}

/// What the server announces in the transmission flags.
pub(crate) mod transmission_flag {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
    pub(crate) const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// The transmission flags of an export for a client that negotiated `style` and, maybe, metadata contexts.
///
/// CAN_MULTI_CONN is always true of a `BlockDevice`: its flush covers what any session was told is written.
pub(crate) fn transmission_flags(read_only: bool, style: Style, contexts: bool) -> u16 {
    use transmission_flag::{
        BLOCK_STATUS_PAYLOAD, CAN_MULTI_CONN, HAS_FLAGS, READ_ONLY, SEND_CACHE, SEND_DF, SEND_FAST_ZERO,
        SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES,
    };
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_CACHE | CAN_MULTI_CONN;
    flags |= if read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO };
    if style != Style::Simple {
        flags |= SEND_DF;
    }
    if style == Style::Extended && contexts {
        flags |= BLOCK_STATUS_PAYLOAD;
    }
    flags
}
