//! The port between protocols (NBD, iSCSI) and volumes.

use crate::Kinded;
use bytes::Bytes;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

/// When a write is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// A write survives the gateway's death at once, and a power cut once a flush or FUA completed.
    #[default]
    Flush,
    /// Every acknowledged write survives a power cut.
    Always,
}

/// What a protocol announces about a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    pub size_bytes: u64,
    pub read_only: bool,
}

/// How a write must be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteFlags {
    /// Durable before it is acknowledged (force unit access).
    pub fua: bool,
}

/// Whether a run of bytes has data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocationExtent {
    pub length_bytes: u64,
    /// `false`: nothing is stored and it reads as zeros.
    pub allocated: bool,
}

/// Whether a run of bytes may read otherwise than at an earlier moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangeExtent {
    pub length_bytes: u64,
    /// `false`: it reads as it did then. `true`: it may not.
    pub changed: bool,
}

/// Bytes of a read, in order, in as many pieces as they came from: sent without being joined.
#[derive(Clone, Debug, Default)]
pub struct ReadBuffer {
    pieces: Vec<Bytes>,
    length: usize,
}

impl ReadBuffer {
    pub fn push(&mut self, piece: Bytes) {
        self.length += piece.len();
        if !piece.is_empty() {
            self.pieces.push(piece);
        }
    }

    /// Appends `length` zero bytes without allocating them.
    pub fn push_zeros(&mut self, mut length: usize) {
        while length > 0 {
            let piece = length.min(ZEROS.len());
            self.push(Bytes::from_static(&ZEROS[..piece]));
            length -= piece;
        }
    }

    /// Whether `piece` came from [`ReadBuffer::push_zeros`]: a protocol may describe such bytes instead of sending them.
    pub fn is_zero_piece(piece: &Bytes) -> bool {
        ZEROS.as_ptr_range().contains(&piece.as_ptr())
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    pub fn into_pieces(self) -> Vec<Bytes> {
        self.pieces
    }

    /// One contiguous copy.
    pub fn to_vec(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

impl From<Bytes> for ReadBuffer {
    fn from(piece: Bytes) -> Self {
        let mut buffer = Self::default();
        buffer.push(piece);
        buffer
    }
}

/// A virtual disk as a protocol session uses it. Offsets and lengths are bytes, of any alignment. Every method
/// checks its range against the present size and fails with `OutOfRange`. Calls run concurrently; a write that was
/// acknowledged before another began is ordered before it. Dropping a returned future before it completes leaves the effect undecided.
pub trait BlockDevice: Send + Sync + 'static {
    type Error: Kinded + Send + Sync + 'static;

    /// What the device was at an earlier moment, kept for as long as this exists.
    type Earlier: Debug + Send + Sync + 'static;

    fn info(&self) -> DeviceInfo;

    /// `length_bytes` bytes from `offset`.
    fn read(
        &self,
        offset: u64,
        length_bytes: u32,
    ) -> impl Future<Output = Result<ReadBuffer, Self::Error>> + Send;

    fn write(
        &self,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Everything acknowledged on any session before this call is durable when it returns.
    fn flush(&self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Makes the range read as zeros and frees what it can.
    fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Frees the whole blocks inside the range; they read as zeros after. Bytes of partly covered blocks stay.
    fn discard(
        &self,
        offset: u64,
        length_bytes: u64,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Brings the range into the cache.
    fn prefetch(
        &self,
        offset: u64,
        length_bytes: u64,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Allocation of the range from `offset`: at least one and at most `extents_max` extents, in order, without gaps, which may
    /// end before `length_bytes` but not after it.
    fn allocation(
        &self,
        offset: u64,
        length_bytes: u64,
        extents_max: usize,
    ) -> impl Future<Output = Result<Vec<AllocationExtent>, Self::Error>> + Send;

    /// Names of the earlier moments that the device can be compared with, the oldest first.
    fn earlier(&self) -> impl Future<Output = Result<Vec<String>, Self::Error>> + Send {
        async { Ok(Vec::new()) }
    }

    /// The device at the earlier moment of that name, or `None`.
    fn open_earlier(
        &self,
        name: &str,
    ) -> impl Future<Output = Result<Option<Self::Earlier>, Self::Error>> + Send {
        let _ = name;
        async { Ok(None) }
    }

    /// Where the range from `offset` may read otherwise than at an earlier moment of this very device. Whatever was acknowledged before the
    /// call is taken into account; what did not change may be called changed, and never the other way round. Extents as of
    /// [`BlockDevice::allocation`]; a long range is answered in part.
    fn changes(
        &self,
        since: &Self::Earlier,
        offset: u64,
        length_bytes: u64,
        extents_max: usize,
    ) -> impl Future<Output = Result<Vec<ChangeExtent>, Self::Error>> + Send;
}

/// The devices a server offers, by name.
pub trait Exports: Send + Sync + 'static {
    type Device: BlockDevice;

    /// Names in the order they are listed.
    fn names(&self) -> Vec<String>;

    /// The device of that name, or `None`. An empty name asks for the default export, if there is one.
    fn open(&self, name: &str) -> impl Future<Output = Option<Arc<Self::Device>>> + Send;
}
