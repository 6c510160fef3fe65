//! Pieces: consecutive rows, cut where content says so.

use super::{HEADER_BYTES, Kind, NAME_CONTEXT, PIECE_CONTEXT, RecordError, RecordKey};
use crate::error::Damaged;
use bytes::Bytes;
use cairn_model::{GatewayId, varint};
use std::fmt;

/// Plaintext of a piece on average.
const PIECE_BYTES: u64 = 1 << 20;
/// A piece ends when it has as much, whatever its content.
const PIECE_BYTES_CUT: usize = 4 << 20;
/// Longest row.
const ROW_BYTES_MAX: usize = 16 << 20;
/// Longest plaintext of a piece that is read.
const PIECE_BYTES_MAX: usize = 64 << 20;
const _: () = assert!(PIECE_BYTES_CUT + ROW_BYTES_MAX + (1 << 20) < PIECE_BYTES_MAX);

const ZSTD_LEVEL: i32 = 1;

/// What a piece is called: a function of its content, of the site, of the incarnation of its catalog, and of the gateway.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceName([u8; 32]);

impl PieceName {
    pub const BYTES: usize = 32;

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The name of 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 64
            || !text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for PieceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PieceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "piece:{self}")
    }
}

/// A piece that can be put.
#[derive(Clone, Debug)]
pub struct SealedPiece {
    pub name: PieceName,
    pub rows: u64,
    pub(super) object: Bytes,
}

impl SealedPiece {
    pub fn length_bytes(&self) -> u64 {
        self.object.len() as u64
    }

    pub(crate) fn object(&self) -> &[u8] {
        &self.object
    }
}

/// A piece that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    pub head: Vec<u8>,
    pub rows: Vec<Vec<u8>>,
}

impl Piece {
    fn encode(head: &[u8], rows: u64, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(head.len() + body.len() + 20);
        varint::put(&mut out, head.len() as u64);
        out.extend_from_slice(head);
        varint::put(&mut out, rows);
        out.extend_from_slice(body);
        out
    }

    pub(crate) fn decode(plain: &[u8]) -> Option<Self> {
        fn take<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
            let length = usize::try_from(varint::take(input)?).ok()?;
            let (bytes, rest) = input.split_at_checked(length)?;
            *input = rest;
            Some(bytes)
        }
        let mut input = plain;
        let head = take(&mut input)?.to_vec();
        let count = varint::take(&mut input)?;
        // Each takes a byte at least.
        if count > input.len() as u64 {
            return None;
        }
        let rows: Option<Vec<Vec<u8>>> = (0..count).map(|_| take(&mut input).map(<[u8]>::to_vec)).collect();
        rows.filter(|_| input.is_empty()).map(|rows| Self { head, rows })
    }
}

/// Cuts rows into pieces.
#[derive(Debug)]
pub struct PieceCutter {
    key: RecordKey,
    incarnation: u64,
    gateway: GatewayId,
    head: Vec<u8>,
    body: Vec<u8>,
    rows: u64,
}

impl PieceCutter {
    /// For a catalog of that incarnation, which the gateway works on.
    pub fn new(key: RecordKey, incarnation: u64, gateway: GatewayId) -> Self {
        Self { key, incarnation, gateway, head: Vec::new(), body: Vec::new(), rows: 0 }
    }

    /// Adds rows behind those before, and returns the pieces that are complete. CPU work.
    pub fn push(&mut self, head: &[u8], rows: &[Vec<u8>]) -> Vec<SealedPiece> {
        let mut complete = Vec::new();
        if self.head != head {
            complete.extend(self.finish());
            head.clone_into(&mut self.head);
        }
        for row in rows {
            assert!(row.len() <= ROW_BYTES_MAX, "a catalog has no such rows");
            let before = self.body.len();
            varint::put(&mut self.body, row.len() as u64);
            self.body.extend_from_slice(row);
            self.rows += 1;
            let length = (self.body.len() - before) as u64;
            if is_end(row, length) || self.body.len() >= PIECE_BYTES_CUT {
                complete.extend(self.finish());
            }
        }
        complete
    }

    /// The last piece, if there is one.
    pub fn finish(&mut self) -> Option<SealedPiece> {
        if self.rows == 0 {
            return None;
        }
        let plain = Piece::encode(&self.head, self.rows, &self.body);
        self.body.clear();
        let rows = std::mem::take(&mut self.rows);
        Some(self.key.seal_piece(self.incarnation, self.gateway, &plain, rows))
    }
}

/// Whether a piece ends behind a row: by chance, which the row alone decides, in proportion to its length.
fn is_end(row: &[u8], length: u64) -> bool {
    let hash = blake3::hash(row);
    let number = u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash is longer"));
    number < u64::MAX / PIECE_BYTES * length.min(PIECE_BYTES)
}

impl RecordKey {
    fn seal_piece(&self, incarnation: u64, gateway: GatewayId, plain: &[u8], rows: u64) -> SealedPiece {
        let frame = zstd::bulk::compress(plain, ZSTD_LEVEL).expect("memory is compressed into memory");
        let naming =
            self.key.derive(NAME_CONTEXT, &[&incarnation.to_le_bytes()[..], gateway.as_bytes()].concat());
        let name = PieceName(*blake3::keyed_hash(naming.expose(), &frame).as_bytes());
        let header = self.header(Kind::Piece);
        let mut object = header.to_vec();
        object.extend_from_slice(&self.seal(PIECE_CONTEXT, name.as_bytes(), &header, frame));
        SealedPiece { name, rows, object: object.into() }
    }

    /// Opens the object that is stored under `name`.
    pub(crate) fn open_piece(&self, name: PieceName, object: &[u8]) -> Result<Piece, RecordError> {
        self.check_header(object, Kind::Piece)?;
        let (header, body) = object.split_at(HEADER_BYTES);
        let mut body = body.to_vec();
        let frame = self.open(PIECE_CONTEXT, name.as_bytes(), header, &mut body)?;
        let plain = zstd::bulk::decompress(frame, PIECE_BYTES_MAX.min(bound(frame)))
            .map_err(|_| Damaged("it does not decompress"))?;
        Piece::decode(&plain).ok_or_else(|| Damaged("its rows make no sense").into())
    }
}

/// How much a frame says that it holds; it is not believed beyond what a piece may hold.
fn bound(frame: &[u8]) -> usize {
    match zstd::zstd_safe::get_frame_content_size(frame) {
        Ok(Some(bytes)) => usize::try_from(bytes).unwrap_or(usize::MAX),
        _ => PIECE_BYTES_MAX,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::Domain;
    use cairn_model::crypto::{Encryption, SecretKey};
    use cairn_model::{DomainId, Entropy, SeededEntropy, SiteId};
    use std::collections::HashSet;

    pub(in crate::record) fn key() -> RecordKey {
        let domain = Domain::new(DomainId::DEFAULT, SecretKey::from_bytes([7; 32]), Encryption::Aes256Gcm);
        RecordKey::new(&domain, SiteId::from_bytes([1; 16]))
    }

    fn rows(count: u32, length: usize) -> Vec<Vec<u8>> {
        let entropy = SeededEntropy::new(5);
        let row = |number: u32| {
            let mut row = vec![0; length];
            entropy.fill(&mut row);
            row[..4].copy_from_slice(&number.to_le_bytes());
            row
        };
        (0..count).map(row).collect()
    }

    pub(in crate::record) const GATEWAY: GatewayId = GatewayId::from_bytes([2; 16]);

    fn cut(incarnation: u64, rows: &[Vec<u8>]) -> Vec<SealedPiece> {
        cut_by(incarnation, GATEWAY, rows)
    }

    fn cut_by(incarnation: u64, gateway: GatewayId, rows: &[Vec<u8>]) -> Vec<SealedPiece> {
        let mut cutter = PieceCutter::new(key(), incarnation, gateway);
        let mut pieces = cutter.push(b"head", rows);
        pieces.extend(cutter.finish());
        pieces
    }

    #[test]
    fn pieces_give_the_rows_back_in_order() {
        let rows = rows(40_000, 200);
        let pieces = cut(1, &rows);
        assert!((4..40).contains(&pieces.len()), "{}", pieces.len());
        let mut read = Vec::new();
        for piece in &pieces {
            let opened = key().open_piece(piece.name, &piece.object).unwrap();
            assert_eq!((&opened.head[..], opened.rows.len() as u64), (&b"head"[..], piece.rows));
            read.extend(opened.rows);
        }
        assert_eq!(read, rows);
    }

    #[test]
    fn a_change_changes_the_pieces_around_it_only() {
        let before = rows(40_000, 200);
        let mut after = before.clone();
        after.remove(20_000);
        after.insert(30_000, vec![1; 250]);
        let names: HashSet<_> = cut(1, &before).iter().map(|piece| piece.name).collect();
        let fresh = cut(1, &after).iter().filter(|piece| !names.contains(&piece.name)).count();
        assert!((1..=4).contains(&fresh), "{fresh} of {}", names.len());
    }

    #[test]
    fn each_incarnation_and_each_gateway_have_names_of_their_own() {
        let rows = rows(10, 200);
        assert_eq!(cut(1, &rows)[0].name, cut(1, &rows)[0].name);
        assert_ne!(cut(1, &rows)[0].name, cut(2, &rows)[0].name);
        let other = cut_by(1, GatewayId::from_bytes([3; 16]), &rows);
        assert_ne!(cut(1, &rows)[0].name, other[0].name);
    }

    #[test]
    fn tables_do_not_share_pieces() {
        let mut cutter = PieceCutter::new(key(), 1, GATEWAY);
        assert!(cutter.push(b"one", &rows(2, 50)).is_empty());
        let one = cutter.push(b"two", &rows(3, 50));
        assert_eq!(one.iter().map(|piece| piece.rows).collect::<Vec<_>>(), [2]);
        assert_eq!(cutter.finish().unwrap().rows, 3);
        assert!(cutter.finish().is_none());
    }

    #[test]
    fn every_change_and_every_cut_is_noticed() {
        let piece = &cut(1, &rows(3, 50))[0];
        for at in 0..piece.object.len() {
            let mut changed = piece.object.to_vec();
            changed[at] ^= 4;
            assert!(key().open_piece(piece.name, &changed).is_err(), "byte {at}");
            assert!(key().open_piece(piece.name, &piece.object[..at]).is_err(), "cut at {at}");
        }
        let other = PieceName([0; 32]);
        assert!(key().open_piece(other, &piece.object).is_err());
    }

    #[test]
    fn names_are_read_back() {
        let name = cut(1, &rows(3, 50))[0].name;
        assert_eq!(PieceName::parse(&name.to_string()), Some(name));
        for text in ["", "00", &"g".repeat(64), &"A".repeat(64), &"0".repeat(66)] {
            assert_eq!(PieceName::parse(text), None, "{text}");
        }
    }
}
