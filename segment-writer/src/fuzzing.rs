//! Entry points for fuzzers: everything here that parses bytes from outside. They panic on a bug, never on input.

use crate::compress::Codec;
use crate::container::ContainerDirectory;
use crate::domain::Domain;
use crate::error::Damaged;
use crate::pool::erasure;
use crate::pool::recipe::Recipes;
use crate::pool::shard::ShardTrailer;
use crate::record::{Manifest, ManifestId, Piece, PieceCutter, PieceName, RecordKey};
use crate::seal::ContainerCipher;
use crate::segment::{Footer, HEADER_BYTES, Header, TRAILER_BYTES, Trailer, VERSION, VERSION_1, seal_footer};
use bytes::Bytes;
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{ChunkIndex, ContainerId, DomainId, GatewayId, SegmentId, SiteId};

fn domain(encryption: Encryption) -> Domain {
    Domain::new(DomainId::from_bytes([3; 16]), SecretKey::from_bytes([7; 32]), encryption)
}

fn header(domain: &Domain) -> Header {
    Header::new(domain, SiteId::from_bytes([1; 16]), SegmentId::from_bytes([2; 16]))
}

/// A container directory, as from the catalog or a footer.
pub fn directory(bytes: &[u8]) {
    if let Ok(directory) = ContainerDirectory::decode(bytes) {
        let again = ContainerDirectory::decode(&directory.encode());
        assert_eq!(again.as_ref(), Ok(&directory), "a directory reads back as it was written");
        let total: u64 = directory.iter().map(|(_, entry)| u64::from(entry.stored_bytes)).sum();
        assert_eq!(total, u64::from(directory.stored_bytes()));
    }
}

/// The plaintext of a footer, of every version; the first 8 bytes are where it begins.
pub fn footer(bytes: &[u8]) {
    let Some((offset, plaintext)) = bytes.split_first_chunk() else { return };
    let offset = u64::from_le_bytes(*offset);
    let domain = domain(Encryption::Aes256Gcm);
    let header = header(&domain);
    for version in VERSION_1..=VERSION {
        let decoded = Footer::decode(plaintext, &Header { version, ..header }, domain.id(), offset);
        if let Ok(footer) = decoded {
            let again = Footer::decode(&footer.encode(), &header, domain.id(), offset);
            assert_eq!(again.as_ref(), Ok(&footer), "a footer reads back as it was written");
        }
    }
}

/// Header and trailer of an object of that size; the first 8 bytes are the size.
pub fn frame(bytes: &[u8]) {
    let Some((size, rest)) = bytes.split_first_chunk() else { return };
    if let Some(header) = rest.first_chunk::<HEADER_BYTES>()
        && let Ok(parsed) = Header::decode(header)
    {
        assert_eq!(parsed.encode(), *header, "a header reads back as it was written");
    }
    let size = u64::from_le_bytes(*size);
    if let Some(trailer) = rest.last_chunk::<TRAILER_BYTES>()
        && let Ok(parsed) = Trailer::decode(trailer, size)
    {
        assert!(parsed.footer.offset + u64::from(parsed.footer.length) + TRAILER_BYTES as u64 == size);
    }
}

/// A chunk whose sealed plaintext is `bytes`: what the decompressor makes of bytes that authenticate. The first byte is
/// the shape, as in a directory.
pub fn chunk(bytes: &[u8]) -> Option<Bytes> {
    let (&shape, plaintext) = bytes.split_first()?;
    let codec = Codec::from_byte((shape >> 4) & 1).expect("there are two codecs");
    let cipher = ContainerCipher::new(&domain(Encryption::Aes256Gcm), ContainerId::from_bytes([5; 16]));
    let mut directory = ContainerDirectory::new();
    let stored_bytes = u32::try_from(plaintext.len() + 16).ok()?;
    directory.push(stored_bytes, (shape & 0xf) + 1, codec).ok()?;
    let entry = directory.get(ChunkIndex::new(0)).expect("just pushed");
    let mut stored = plaintext.to_vec();
    let tag = cipher.seal(ChunkIndex::new(0), entry.raw_bytes(), codec, &mut stored);
    stored.extend_from_slice(&tag);
    let opened = cipher.open_chunk(ChunkIndex::new(0), entry, &mut stored).ok()?;
    assert_eq!(opened.len(), entry.raw_bytes() as usize, "a chunk has the length that its directory says");
    Some(opened)
}

/// A segment object with these bytes as its containers and as the plaintext of its footer: authentic, whatever they are.
pub fn sealed_object(domain: &Domain, containers: &[u8], footer: &[u8]) -> Vec<u8> {
    let header = header(domain);
    let encoded = header.encode();
    let offset = (HEADER_BYTES + containers.len()) as u64;
    let tail = seal_footer(domain, header.segment, &encoded, footer.to_vec(), offset);
    [&encoded[..], containers, &tail].concat()
}

/// Makes the trailer's checksum right again after damage, so that the seals are what is left to notice it.
pub fn mend_checksum(object: &mut [u8]) {
    let size = object.len() as u64;
    let Some((rest, trailer)) = object.split_last_chunk::<TRAILER_BYTES>() else { return };
    let (Ok(read), Some(header)) = (Trailer::decode(trailer, size), rest.first_chunk::<HEADER_BYTES>())
    else {
        return;
    };
    let start = usize::try_from(read.footer.offset).expect("inside the object");
    let mended = Trailer::encode(header, &rest[start..], read.footer.offset);
    let at = object.len() - TRAILER_BYTES;
    object[at..].copy_from_slice(&mended);
}

/// Reads the end of a shard object of so many bytes as `tail`, and checks that it would be written the same.
pub fn shard_trailer(tail: &[u8], object_bytes: u64) -> bool {
    let Ok(trailer) = ShardTrailer::decode(tail, object_bytes) else { return false };
    assert_eq!(trailer.encode(), tail, "a trailer is not written as it was read");
    true
}

/// Makes the checksums of a shard object right again.
pub fn mend_shard(object: &mut Vec<u8>) {
    let size = object.len() as u64;
    let Some(end) = object.last_chunk::<24>() else { return };
    let Ok(shard_bytes) = usize::try_from(u64::from_le_bytes(*end.first_chunk().expect("24 bytes"))) else {
        return;
    };
    let Some(tail) = object.get(shard_bytes..) else { return };
    let Ok(trailer) = ShardTrailer::decode(tail, size) else { return };
    object.truncate(shard_bytes);
    let mended = ShardTrailer::of(trailer.identity, object).encode();
    object.extend_from_slice(&mended);
}

/// The two ways to decode, to compare them.
#[derive(Debug, Default)]
pub struct Decoders {
    recipes: Recipes,
}

impl Decoders {
    pub fn by_recipe(
        &self,
        data: u8,
        parity: u8,
        wanted: usize,
        sources: &[(usize, &[u8])],
    ) -> Result<Bytes, Damaged> {
        self.recipes.decode(data, parity, wanted, sources)
    }

    pub fn by_library(
        &self,
        data: u8,
        parity: u8,
        wanted: usize,
        sources: &[(usize, &[u8])],
    ) -> Result<Bytes, Damaged> {
        erasure::decode(data, parity, &[wanted], sources).map(|mut shards| shards.remove(0))
    }
}

/// The key of the records that [`record_piece`] and [`record_manifest`] open.
fn record_key() -> RecordKey {
    RecordKey::new(&domain(Encryption::Aes256Gcm), SiteId::from_bytes([1; 16]))
}

/// A piece of a record of the catalog: bytes as they may be in a pool, then as plaintext under the right seal. Whether the plaintext is
/// one.
pub fn record_piece(bytes: &[u8]) -> bool {
    let key = record_key();
    assert!(key.open_piece(PieceName::from_bytes([3; 32]), bytes).is_err(), "nobody can make up a piece");
    let Some(piece) = Piece::decode(bytes) else { return false };
    let mut cutter = PieceCutter::new(key.clone(), 1, GatewayId::from_bytes([4; 16]));
    let mut cut = cutter.push(&piece.head, &piece.rows);
    cut.extend(cutter.finish());
    let read =
        cut.iter().flat_map(|cut| key.open_piece(cut.name, cut.object()).expect("it was just made").rows);
    assert!(read.eq(piece.rows), "rows are read back as they were written");
    true
}

/// A manifest of a record of the catalog: bytes as they may be in a pool, then as plaintext under the right seal. Whether the plaintext
/// is one.
pub fn record_manifest(bytes: &[u8]) -> bool {
    let gateway = GatewayId::from_bytes([4; 16]);
    let (key, id) = (record_key(), ManifestId { incarnation: 1, number: 2, gateway });
    assert!(key.open_manifest(id, bytes).is_err(), "nobody can make up a manifest");
    let Ok(manifest) = Manifest::decode(id, bytes) else { return false };
    assert_eq!(
        Manifest::decode(id, &manifest.encode()),
        Ok(manifest),
        "a manifest is read back as it was written"
    );
    true
}
