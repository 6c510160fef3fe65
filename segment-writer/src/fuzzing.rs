//! Entry points for fuzzers: everything here that parses bytes from outside. They panic on a bug, never on input.

use crate::container::ContainerDirectory;
use crate::segment::{Footer, HEADER_BYTES, Header, TRAILER_BYTES, Trailer};
use cairn_model::{SegmentId, SiteId};

/// A container directory, as from the catalog or a footer.
pub fn directory(bytes: &[u8]) {
    if let Ok(directory) = ContainerDirectory::decode(bytes) {
        let again = ContainerDirectory::decode(&directory.encode());
        assert_eq!(again.as_ref(), Ok(&directory), "a directory reads back as it was written");
        let total: u64 = directory.iter().map(|(_, entry)| u64::from(entry.stored_bytes)).sum();
        assert_eq!(total, u64::from(directory.stored_bytes()));
    }
}

/// The plaintext of a footer; the first 8 bytes are where it begins.
pub fn footer(bytes: &[u8]) {
    let Some((offset, plaintext)) = bytes.split_first_chunk() else { return };
    let (site, segment) = (SiteId::from_bytes([1; 16]), SegmentId::from_bytes([2; 16]));
    let offset = u64::from_le_bytes(*offset);
    if let Ok(footer) = Footer::decode(plaintext, site, segment, offset) {
        let again = Footer::decode(&footer.encode(), site, segment, offset);
        assert_eq!(again.as_ref(), Ok(&footer), "a footer reads back as it was written");
    }
}

/// Header and trailer of an object of that size; the first 8 bytes are the size.
pub fn frame(bytes: &[u8]) {
    let Some((size, rest)) = bytes.split_first_chunk() else { return };
    if let Some(header) = rest.first_chunk::<HEADER_BYTES>()
        && let Ok(parsed) = Header::decode(header)
    {
        assert_eq!(parsed.encode()[..10], header[..10]);
    }
    let size = u64::from_le_bytes(*size);
    if let Some(trailer) = rest.last_chunk::<TRAILER_BYTES>()
        && let Ok(parsed) = Trailer::decode(trailer, size)
    {
        assert!(parsed.footer.offset + u64::from(parsed.footer.length) + TRAILER_BYTES as u64 == size);
    }
}
