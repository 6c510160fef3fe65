//! Bytes of a log file, version 1. All integers are little-endian; everything starts on a 4096-byte page.
//!
//! ```text
//! file      page 0: header     pages 1..: frames, back to back     one page is kept for the last frame
//!
//! header    512 bytes (one sector: it is there or it is not), the rest of the page is zero
//!    0   8  "CAIRNWAL"
//!    8   4  version
//!   12   4  zero
//!   16  16  site
//!   32  16  gateway
//!   48   8  id of the log's key
//!   56   8  epoch: counts the uses of files, from 1; no two uses share one
//!   64   8  epoch of the use before this one; 0 for the first
//!   72   8  first lsn
//!   80   8  synced through: every lsn up to here was durable before this header was written
//!   88   8  freed through: every lsn up to here is no longer needed
//!   96   8  file length in bytes
//!  104  32  salt, fresh random bytes
//!  136   8  number of the file, plus one: a header belongs to one file; 0 in those of versions that did not say it
//!  144 320  zero
//!  464  16  AES-256-GCM tag over bytes 0..464 under the file key, nonce 0, no plaintext: authenticates the header
//!  480  32  BLAKE3 of bytes 0..480: tells damage from a wrong key; at this place in every version
//!
//! frame
//!    0   4  "CWFR"
//!    4   4  payload length in bytes
//!    8   8  epoch of the file
//!   16   8  counter of the frame in its file, from 1; the nonce
//!   24   8  first lsn; the records have consecutive ones
//!   32   4  number of records
//!   36   4  flags: 1 = last frame of the file; other bits belong to newer versions
//!   40   8  synced through, when the frame was sealed
//!   48   8  freed through, when the frame was sealed
//!   56   8  zero
//!   64      payload: records, sealed with AES-256-GCM under the file key, nonce = counter,
//!           additional data = bytes 0..64, which authenticates the frame header
//!    +  16  tag
//!           zeros up to the next page
//! ```
//!
//! File key = BLAKE3 derive_key of the log's key over salt, site, gateway and epoch. The salt is fresh at every use
//! of a file and a file is never appended to after a restart, so no (key, nonce) pair is used twice.

use crate::record::{DecodeError, RECORD_HEADER_BYTES, Record};
use crate::{WalError, WalIdentity};
use bytes::Bytes;
use cairn_model::crypto::{Cipher, KeyId, SecretKey, TAG_BYTES};
use cairn_model::{Entropy, GatewayId, Lsn, SiteId};

/// Granule of the log: frames start on a page and no page is ever shared by two.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// The same for indexing memory.
pub(crate) const PAGE: usize = 4096;
/// Longest frame: a record of 1 MiB fits with its headers.
pub(crate) const FRAME_BYTES_MAX: u64 = (1 << 20) + PAGE_BYTES;
pub(crate) const FRAME_MAX: usize = (1 << 20) + PAGE;
pub(crate) const FRAME_HEADER_BYTES: usize = 64;
/// Longest payload.
pub(crate) const PAYLOAD_BYTES_MAX: usize = FRAME_MAX - FRAME_HEADER_BYTES - TAG_BYTES;

const VERSION: u32 = 1;
const FILE_MAGIC: &[u8; 8] = b"CAIRNWAL";
const FRAME_MAGIC: &[u8; 4] = b"CWFR";
const HEADER_BYTES: usize = 512;
const HEADER_MAC_AT: usize = 464;
const HEADER_CHECKSUM_AT: usize = 480;
const FILE_KEY_CONTEXT: &str = "cairn 2026-11 wal file";
const FLAG_LAST: u32 = 1;

/// Bytes on disk of a frame with this payload.
pub(crate) const fn frame_bytes(payload_bytes: usize) -> usize {
    (FRAME_HEADER_BYTES + payload_bytes + TAG_BYTES).next_multiple_of(PAGE)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// One use of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) epoch: u64,
    pub(crate) previous_epoch: u64,
    pub(crate) first_lsn: Lsn,
    pub(crate) synced_through: Lsn,
    pub(crate) freed_through: Lsn,
    pub(crate) file_bytes: u64,
    pub(crate) salt: [u8; 32],
    /// Of the file; `None` in headers of versions that did not say it.
    pub(crate) number: Option<u64>,
}

/// What the first page of a file is.
#[derive(Debug)]
pub(crate) enum FirstPage {
    /// Zeros: never used.
    Blank,
    /// A header of this log.
    Header(FileHeader, Cipher),
    /// Neither; the header was torn or rotted.
    Damaged,
}

impl FileHeader {
    pub(crate) fn fresh_salt(entropy: &dyn Entropy) -> [u8; 32] {
        let mut salt = [0; 32];
        entropy.fill(&mut salt);
        salt
    }

    pub(crate) fn cipher(&self, identity: &WalIdentity, key: &SecretKey) -> Cipher {
        let mut bound = [0; 72];
        bound[..32].copy_from_slice(&self.salt);
        bound[32..48].copy_from_slice(identity.site.as_bytes());
        bound[48..64].copy_from_slice(identity.gateway.as_bytes());
        bound[64..].copy_from_slice(&self.epoch.to_le_bytes());
        Cipher::new(&key.derive(FILE_KEY_CONTEXT, &bound))
    }

    /// Fills the page and returns the cipher of the file's frames.
    pub(crate) fn encode(&self, identity: &WalIdentity, key: &SecretKey, page: &mut [u8]) -> Cipher {
        page[..PAGE].fill(0);
        page[..8].copy_from_slice(FILE_MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[16..32].copy_from_slice(identity.site.as_bytes());
        page[32..48].copy_from_slice(identity.gateway.as_bytes());
        page[48..56].copy_from_slice(key.id().as_bytes());
        let numbers = [
            self.epoch,
            self.previous_epoch,
            self.first_lsn.get(),
            self.synced_through.get(),
            self.freed_through.get(),
            self.file_bytes,
        ];
        for (field, number) in page[56..104].chunks_exact_mut(8).zip(numbers) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        page[104..136].copy_from_slice(&self.salt);
        page[136..144].copy_from_slice(&self.number.map_or(0, |number| number + 1).to_le_bytes());
        let cipher = self.cipher(identity, key);
        let mac = cipher.seal_in_place(0, &page[..HEADER_MAC_AT], &mut []);
        page[HEADER_MAC_AT..HEADER_CHECKSUM_AT].copy_from_slice(&mac);
        let checksum = blake3::hash(&page[..HEADER_CHECKSUM_AT]);
        page[HEADER_CHECKSUM_AT..HEADER_BYTES].copy_from_slice(checksum.as_bytes());
        cipher
    }

    /// Reads a file's first page. `file` names it in errors.
    pub(crate) fn decode(
        page: &[u8],
        identity: &WalIdentity,
        key: &SecretKey,
        file: &str,
    ) -> Result<FirstPage, WalError> {
        let header = &page[..HEADER_BYTES];
        if header.iter().all(|&byte| byte == 0) {
            return Ok(FirstPage::Blank);
        }
        let checksum = blake3::hash(&header[..HEADER_CHECKSUM_AT]);
        if &header[..8] != FILE_MAGIC || checksum.as_bytes()[..] != header[HEADER_CHECKSUM_AT..] {
            return Ok(FirstPage::Damaged);
        }
        check_owner(header, identity, key, file)?;
        let decoded = Self {
            epoch: u64_at(header, 56),
            previous_epoch: u64_at(header, 64),
            first_lsn: Lsn::new(u64_at(header, 72)),
            synced_through: Lsn::new(u64_at(header, 80)),
            freed_through: Lsn::new(u64_at(header, 88)),
            file_bytes: u64_at(header, 96),
            salt: header[104..136].try_into().expect("32 bytes"),
            number: u64_at(header, 136).checked_sub(1),
        };
        let cipher = decoded.cipher(identity, key);
        let mut mac: [u8; TAG_BYTES] =
            header[HEADER_MAC_AT..HEADER_CHECKSUM_AT].try_into().expect("the tag's length");
        if cipher.open_in_place(0, &header[..HEADER_MAC_AT], &mut mac).is_err() {
            return Err(WalError::corrupt(
                file,
                0,
                "the header's checksum is right but its authentication is not",
            ));
        }
        Ok(FirstPage::Header(decoded, cipher))
    }
}

/// An undamaged header may still be somebody else's.
fn check_owner(header: &[u8], identity: &WalIdentity, key: &SecretKey, file: &str) -> Result<(), WalError> {
    let version = u32_at(header, 8);
    if version != VERSION {
        return Err(WalError::NewerVersion { file: file.to_owned(), detail: format!("format {version}") });
    }
    let id = |at: usize| -> [u8; 16] { header[at..at + 16].try_into().expect("16 bytes") };
    let (site, gateway) = (SiteId::from_bytes(id(16)), GatewayId::from_bytes(id(32)));
    if (site, gateway) != (identity.site, identity.gateway) {
        return Err(WalError::WrongIdentity {
            file: file.to_owned(),
            site: identity.site,
            gateway: identity.gateway,
            found_site: site,
            found_gateway: gateway,
        });
    }
    let found = KeyId::from_bytes(header[48..56].try_into().expect("eight bytes"));
    if found != key.id() {
        return Err(WalError::WrongKey { file: file.to_owned(), expected: key.id(), found });
    }
    Ok(())
}

/// Header of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) payload_bytes: usize,
    pub(crate) epoch: u64,
    pub(crate) counter: u64,
    pub(crate) first_lsn: Lsn,
    pub(crate) records: u32,
    /// Nothing follows in this file.
    pub(crate) last: bool,
    pub(crate) synced_through: Lsn,
    pub(crate) freed_through: Lsn,
}

impl FrameHeader {
    /// Bytes on disk.
    pub(crate) const fn frame_bytes(&self) -> usize {
        frame_bytes(self.payload_bytes)
    }

    /// The lsn after the frame's records.
    pub(crate) const fn next_lsn(&self) -> Lsn {
        Lsn::new(self.first_lsn.get() + self.records as u64)
    }

    fn encode(&self, out: &mut [u8]) {
        let payload_bytes = u32::try_from(self.payload_bytes).expect("at most a frame");
        out[..4].copy_from_slice(FRAME_MAGIC);
        out[4..8].copy_from_slice(&payload_bytes.to_le_bytes());
        out[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        out[16..24].copy_from_slice(&self.counter.to_le_bytes());
        out[24..32].copy_from_slice(&self.first_lsn.get().to_le_bytes());
        out[32..36].copy_from_slice(&self.records.to_le_bytes());
        out[36..40].copy_from_slice(&(if self.last { FLAG_LAST } else { 0 }).to_le_bytes());
        out[40..48].copy_from_slice(&self.synced_through.get().to_le_bytes());
        out[48..56].copy_from_slice(&self.freed_through.get().to_le_bytes());
        out[56..64].fill(0);
    }

    /// What looks like a frame header; nothing of it is to be believed before [`open_frame`]. `None` when
    /// the bytes cannot start a frame.
    pub(crate) fn peek(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..FRAME_HEADER_BYTES)?;
        let payload_bytes = u32_at(header, 4) as usize;
        let records = u32_at(header, 32);
        let first_lsn = u64_at(header, 24);
        let plausible = &header[..4] == FRAME_MAGIC
            && payload_bytes <= PAYLOAD_BYTES_MAX
            && records as usize <= payload_bytes / RECORD_HEADER_BYTES
            && first_lsn.checked_add(records.into()).is_some();
        plausible.then(|| Self {
            payload_bytes,
            epoch: u64_at(header, 8),
            counter: u64_at(header, 16),
            first_lsn: Lsn::new(first_lsn),
            records,
            last: u32_at(header, 36) & FLAG_LAST != 0,
            synced_through: Lsn::new(u64_at(header, 40)),
            freed_through: Lsn::new(u64_at(header, 48)),
        })
    }
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// Damaged, cut short, or never a frame of this file.
    NotAFrame,
    /// Authentic, with meanings of a newer version.
    Newer(String),
    /// Authentic, but not what any version writes.
    Malformed(&'static str),
}

/// Seals the frame whose payload already stands at its place in `frame`; returns the frame's bytes, padded to whole pages.
pub(crate) fn seal_frame<'a>(header: &FrameHeader, cipher: &Cipher, frame: &'a mut [u8]) -> &'a [u8] {
    let (head, rest) = frame.split_at_mut(FRAME_HEADER_BYTES);
    header.encode(head);
    let (payload, after) = rest.split_at_mut(header.payload_bytes);
    let tag = cipher.seal_in_place(header.counter, head, payload);
    after[..TAG_BYTES].copy_from_slice(&tag);
    let length = header.frame_bytes();
    frame[FRAME_HEADER_BYTES + header.payload_bytes + TAG_BYTES..length].fill(0);
    &frame[..length]
}

/// Authenticates the frame at the start of `frame` and decrypts it in place; returns its header and payload.
pub(crate) fn open_frame<'a>(
    epoch: u64,
    cipher: &Cipher,
    frame: &'a mut [u8],
) -> Result<(FrameHeader, &'a [u8]), FrameError> {
    let header = FrameHeader::peek(frame).ok_or(FrameError::NotAFrame)?;
    let sealed_bytes = header.payload_bytes + TAG_BYTES;
    if header.epoch != epoch || frame.len() < FRAME_HEADER_BYTES + sealed_bytes {
        return Err(FrameError::NotAFrame);
    }
    let (head, rest) = frame.split_at_mut(FRAME_HEADER_BYTES);
    let payload = cipher
        .open_in_place(header.counter, head, &mut rest[..sealed_bytes])
        .map_err(|_| FrameError::NotAFrame)?;
    let flags = u32_at(head, 36);
    if flags & !FLAG_LAST != 0 {
        return Err(FrameError::Newer(format!("frame flags {flags:#x}")));
    }
    Ok((header, payload))
}

/// Whether the frame at the start of `frame` is one of the use `epoch` and its field for that alone is damaged. Spoils the bytes.
pub(crate) fn is_frame_but_for_epoch(epoch: u64, cipher: &Cipher, frame: &mut [u8]) -> bool {
    frame[8..16].copy_from_slice(&epoch.to_le_bytes());
    !matches!(open_frame(epoch, cipher, frame), Err(FrameError::NotAFrame))
}

/// The records of an authentic payload, sharing its bytes.
pub(crate) fn decode_records(
    header: &FrameHeader,
    mut payload: Bytes,
) -> Result<Vec<(Lsn, Record)>, FrameError> {
    let mut records = Vec::with_capacity(header.records as usize);
    for index in 0..u64::from(header.records) {
        let record = Record::decode(&mut payload).map_err(|error| match error {
            DecodeError::UnknownTag(_) => FrameError::Newer(error.to_string()),
            DecodeError::Malformed(detail) => FrameError::Malformed(detail),
        })?;
        records.push((Lsn::new(header.first_lsn.get() + index), record));
    }
    if payload.is_empty() { Ok(records) } else { Err(FrameError::Malformed("bytes follow the last record")) }
}
