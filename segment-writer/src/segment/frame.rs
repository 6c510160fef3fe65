//! Header and trailer of a segment, and the seal of its footer.

use super::Footer;
use crate::domain::Domain;
use crate::error::Damaged;
use crate::seal::{FOOTER, Protection};
use cairn_model::crypto::{Encryption, KeyId};
use cairn_model::{SegmentId, SiteId};

const HEADER_MAGIC: [u8; 8] = *b"CAIRNSEG";
const TRAILER_MAGIC: [u8; 8] = *b"CAIRNEND";

/// The version this program writes, and the highest it reads.
pub(crate) const VERSION: u16 = 2;

/// The first version: always encrypted, and its footers have no fingerprints.
pub(crate) const VERSION_1: u16 = 1;

pub const HEADER_BYTES: usize = 64;
pub const TRAILER_BYTES: usize = 32;

/// A footer is a few bytes per chunk; what claims to be larger is damaged.
pub(crate) const FOOTER_BYTES_MAX: u32 = 16 << 20;

/// What a segment says about itself in the clear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) version: u16,
    pub(crate) encryption: Encryption,
    pub(crate) key: KeyId,
    pub(crate) site: SiteId,
    pub(crate) segment: SegmentId,
}

/// Why a header is refused, or the trailer of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeaderError {
    Damaged(Damaged),
    Newer(u16),
}

impl Header {
    /// Of a segment as this program writes it.
    pub(crate) fn new(domain: &Domain, site: SiteId, segment: SegmentId) -> Self {
        Self { version: VERSION, encryption: domain.encryption(), key: domain.key_id(), site, segment }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&HEADER_MAGIC);
        out[8..10].copy_from_slice(&self.version.to_le_bytes());
        out[10] = match self.encryption {
            Encryption::Aes256Gcm => 0,
            Encryption::Off => 1,
        };
        out[16..24].copy_from_slice(self.key.as_bytes());
        out[32..48].copy_from_slice(self.site.as_bytes());
        out[48..].copy_from_slice(self.segment.as_bytes());
        out
    }

    /// Its checksum is in the trailer: see [`check_frame`].
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        if bytes[..8] != HEADER_MAGIC {
            return Err(HeaderError::Damaged(Damaged("it does not begin as a segment does")));
        }
        let version = u16::from_le_bytes(array(&bytes[8..10]));
        if version > VERSION {
            return Err(HeaderError::Newer(version));
        }
        let encryption = match bytes[10] {
            0 => Some(Encryption::Aes256Gcm),
            1 if version > VERSION_1 => Some(Encryption::Off),
            _ => None,
        };
        let written = version != 0 && bytes[11..16] == [0; 5] && bytes[24..32] == [0; 8];
        let Some(encryption) = encryption.filter(|_| written) else {
            return Err(HeaderError::Damaged(Damaged("its header has values that no version writes")));
        };
        Ok(Self {
            version,
            encryption,
            key: KeyId::from_bytes(array(&bytes[16..24])),
            site: SiteId::from_bytes(array(&bytes[32..48])),
            segment: SegmentId::from_bytes(array(&bytes[48..])),
        })
    }
}

/// Where the footer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FooterPlace {
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

/// The end of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Trailer {
    pub(crate) footer: FooterPlace,
    checksum: [u8; 8],
}

impl Trailer {
    /// For a footer that begins at `offset` and ends the object but for the trailer.
    pub(crate) fn encode(header: &[u8], footer: &[u8], offset: u64) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        out[..8].copy_from_slice(&offset.to_le_bytes());
        let length = u32::try_from(footer.len()).expect("a footer is far below 4 GiB");
        out[8..12].copy_from_slice(&length.to_le_bytes());
        let sum = checksum(header, footer, &out[..16]);
        out[16..24].copy_from_slice(&sum);
        out[24..].copy_from_slice(&TRAILER_MAGIC);
        out
    }

    /// Reads the trailer of an object of `object_bytes`.
    pub(crate) fn decode(bytes: &[u8; TRAILER_BYTES], object_bytes: u64) -> Result<Self, Damaged> {
        if bytes[24..] != TRAILER_MAGIC {
            return Err(Damaged("it does not end as a segment does: it is cut short or no segment"));
        }
        let offset = u64::from_le_bytes(array(&bytes[..8]));
        let length = u32::from_le_bytes(array(&bytes[8..12]));
        let end = offset.checked_add(u64::from(length) + TRAILER_BYTES as u64);
        if bytes[12..16] != [0; 4]
            || length > FOOTER_BYTES_MAX
            || offset < HEADER_BYTES as u64
            || end != Some(object_bytes)
        {
            return Err(Damaged("its trailer does not fit its size: it is cut short or damaged"));
        }
        Ok(Self { footer: FooterPlace { offset, length }, checksum: array(&bytes[16..24]) })
    }

    fn first_half(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.footer.offset.to_le_bytes());
        out[8..12].copy_from_slice(&self.footer.length.to_le_bytes());
        out
    }
}

fn checksum(header: &[u8], footer: &[u8], trailer: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header).update(footer).update(trailer);
    array(&hasher.finalize().as_bytes()[..8])
}

/// Footer and trailer of a segment whose containers end at `offset`: the bytes behind them.
pub(crate) fn seal_tail(
    domain: &Domain,
    segment: SegmentId,
    header: &[u8],
    footer: &Footer,
    offset: u64,
) -> Vec<u8> {
    seal_footer(domain, segment, header, footer.encode(), offset)
}

/// The same for the plaintext of a footer.
pub(crate) fn seal_footer(
    domain: &Domain,
    segment: SegmentId,
    header: &[u8],
    plaintext: Vec<u8>,
    offset: u64,
) -> Vec<u8> {
    let mut tail = plaintext;
    let tag = Protection::new(domain, &FOOTER, segment.as_bytes()).seal_in_place(0, header, &mut tail);
    tail.extend_from_slice(&tag);
    let trailer = Trailer::encode(header, &tail, offset);
    tail.extend_from_slice(&trailer);
    tail
}

/// Checks header and footer as far as that takes no key: `sealed` are the bytes that the trailer points at.
pub(crate) fn check_frame(
    header: &[u8; HEADER_BYTES],
    trailer: &Trailer,
    sealed: &[u8],
) -> Result<Header, HeaderError> {
    // First: a version that is not known says something only when it is what was written.
    if sealed.len() != trailer.footer.length as usize
        || checksum(header, sealed, &trailer.first_half()) != trailer.checksum
    {
        return Err(HeaderError::Damaged(Damaged("its header or footer fails its checksum")));
    }
    Header::decode(header)
}

/// Checks and opens a footer: `sealed` are the bytes that the trailer points at, `domains` knows a domain by the name
/// of its key.
pub(crate) fn open_footer(
    domains: impl FnOnce(KeyId) -> Option<Domain>,
    header: &[u8; HEADER_BYTES],
    trailer: &Trailer,
    sealed: &mut [u8],
) -> Result<Footer, HeaderError> {
    let damaged = |reason| Err(HeaderError::Damaged(Damaged(reason)));
    let parsed = check_frame(header, trailer, sealed)?;
    let Some(domain) = domains(parsed.key) else {
        return damaged("it is sealed with another domain key");
    };
    // What a domain's segments are is for the domain to say: else whoever can write to the pool could say it.
    if parsed.encryption != domain.encryption() {
        return damaged("it is encrypted and its domain is not, or the other way round");
    }
    let Ok(opened) =
        Protection::new(&domain, &FOOTER, parsed.segment.as_bytes()).open_in_place(0, header, sealed)
    else {
        return damaged("its footer fails authentication");
    };
    Footer::decode(opened, &parsed, domain.id(), trailer.footer.offset).map_err(HeaderError::Damaged)
}

pub(super) fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the slice was cut to the array's length")
}
