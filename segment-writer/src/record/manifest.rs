//! Manifests: which pieces make a record.

use super::{HEADER_BYTES, Kind, MANIFEST_CONTEXT, PieceName, RecordError, RecordKey};
use crate::error::Damaged;
use cairn_model::{Entropy, GatewayId, WallTime, varint};
use std::fmt;

const CONTENT_VERSION: u8 = 1;
const SALT_BYTES: usize = 16;

/// Which record it is; the later one is greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ManifestId {
    /// Of the catalog that it is of.
    pub incarnation: u64,
    pub number: u64,
    /// Who put it. Two catalogs that were made of one record have the same incarnation, and begin with the same number: neither must put its manifest over the other's.
    pub gateway: GatewayId,
}

impl ManifestId {
    /// The id of 16, 16 and 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let (incarnation, rest) = text.split_once('-')?;
        let (number, gateway) = rest.split_once('-')?;
        let parse = |digits: &str| u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16);
        let id =
            Self { incarnation: parse(incarnation)?, number: parse(number)?, gateway: gateway.parse().ok()? };
        (id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}-{}", self.incarnation, self.number, self.gateway)
    }
}

/// A piece as a manifest names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ManifestPiece {
    pub name: PieceName,
    pub length_bytes: u64,
    pub rows: u64,
}

/// All that a record is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    pub id: ManifestId,
    /// Version of the catalog's schema.
    pub schema: u64,
    /// When it was begun, by the gateway's clock.
    pub taken_at: WallTime,
    /// In the order of the rows.
    pub pieces: Vec<ManifestPiece>,
}

impl Manifest {
    pub fn rows(&self) -> u64 {
        self.pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.rows))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![CONTENT_VERSION];
        varint::put(&mut out, self.schema);
        varint::put(&mut out, self.taken_at.unix_millis());
        varint::put(&mut out, self.pieces.len() as u64);
        for piece in &self.pieces {
            out.extend_from_slice(piece.name.as_bytes());
            varint::put(&mut out, piece.length_bytes);
            varint::put(&mut out, piece.rows);
        }
        out
    }

    pub(crate) fn decode(id: ManifestId, plain: &[u8]) -> Result<Self, RecordError> {
        match plain.split_first() {
            Some((&CONTENT_VERSION, rest)) => {
                Self::decode_content(id, rest).ok_or_else(|| Damaged("it makes no sense").into())
            }
            Some((&version, _)) if version > CONTENT_VERSION => Err(RecordError::Newer(version)),
            _ => Err(Damaged("it makes no sense").into()),
        }
    }

    fn decode_content(id: ManifestId, mut input: &[u8]) -> Option<Self> {
        fn array<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
            let (bytes, rest) = input.split_first_chunk()?;
            *input = rest;
            Some(*bytes)
        }
        let schema = varint::take(&mut input)?;
        let taken_at = WallTime::from_unix_millis(varint::take(&mut input)?);
        let count = varint::take(&mut input)?;
        if count > (input.len() / PieceName::BYTES) as u64 {
            return None;
        }
        let mut piece = || {
            Some(ManifestPiece {
                name: PieceName::from_bytes(array(&mut input)?),
                length_bytes: varint::take(&mut input)?,
                rows: varint::take(&mut input)?,
            })
        };
        let pieces: Option<Vec<ManifestPiece>> = (0..count).map(|_| piece()).collect();
        let pieces = pieces?;
        input.is_empty().then_some(Self { id, schema, taken_at, pieces })
    }
}

impl RecordKey {
    pub(super) fn seal_manifest(&self, manifest: &Manifest, entropy: &dyn Entropy) -> Vec<u8> {
        let mut salt = [0; SALT_BYTES];
        entropy.fill(&mut salt);
        let header = self.header(Kind::Manifest);
        let body = self.seal(MANIFEST_CONTEXT, &identity(manifest.id, &salt), &header, manifest.encode());
        [&header[..], &salt, &body].concat()
    }

    /// Opens the object that is stored as `id`.
    pub(crate) fn open_manifest(&self, id: ManifestId, object: &[u8]) -> Result<Manifest, RecordError> {
        self.check_header(object, Kind::Manifest)?;
        let (header, rest) = object.split_at(HEADER_BYTES);
        let (salt, body) = rest.split_at_checked(SALT_BYTES).ok_or(Damaged("it is cut short"))?;
        let mut body = body.to_vec();
        let plain = self.open(MANIFEST_CONTEXT, &identity(id, salt), header, &mut body)?;
        Manifest::decode(id, plain)
    }
}

fn identity(id: ManifestId, salt: &[u8]) -> Vec<u8> {
    [&id.incarnation.to_le_bytes()[..], &id.number.to_le_bytes(), id.gateway.as_bytes(), salt].concat()
}

#[cfg(test)]
mod tests {
    use super::super::piece::tests::key;
    use super::*;
    use cairn_model::SeededEntropy;

    fn manifest(pieces: u8) -> Manifest {
        let piece = |number: u8| ManifestPiece {
            name: PieceName::from_bytes([number; 32]),
            length_bytes: 1000 * u64::from(number),
            rows: 3,
        };
        Manifest {
            id: ManifestId { incarnation: 2, number: 300, gateway: GatewayId::from_bytes([4; 16]) },
            schema: 10,
            taken_at: WallTime::from_unix_millis(1_700_000_000_000),
            pieces: (0..pieces).map(piece).collect(),
        }
    }

    #[test]
    fn manifests_are_read_back() {
        for pieces in [0, 1, 100] {
            let manifest = manifest(pieces);
            let object = key().seal_manifest(&manifest, &SeededEntropy::new(1));
            assert_eq!(key().open_manifest(manifest.id, &object), Ok(manifest));
        }
    }

    #[test]
    fn every_change_and_every_cut_is_noticed_and_so_is_another_place() {
        let manifest = manifest(2);
        let object = key().seal_manifest(&manifest, &SeededEntropy::new(1));
        for at in 0..object.len() {
            let mut changed = object.clone();
            changed[at] ^= 4;
            assert!(key().open_manifest(manifest.id, &changed).is_err(), "byte {at}");
            assert!(key().open_manifest(manifest.id, &object[..at]).is_err(), "cut at {at}");
        }
        for other in [
            ManifestId { number: 301, ..manifest.id },
            ManifestId { gateway: GatewayId::from_bytes([5; 16]), ..manifest.id },
        ] {
            assert!(key().open_manifest(other, &object).is_err());
        }
    }

    #[test]
    fn a_newer_one_says_so() {
        let mut object = key().seal_manifest(&manifest(1), &SeededEntropy::new(1));
        object[8] = 2;
        assert_eq!(key().open_manifest(manifest(1).id, &object), Err(RecordError::Newer(2)));
    }

    #[test]
    fn ids_are_read_back_and_ordered() {
        let gateway = GatewayId::from_bytes([4; 16]);
        let id = ManifestId { incarnation: 1, number: 0xabc, gateway };
        assert_eq!(ManifestId::parse(&id.to_string()), Some(id));
        assert!(id < ManifestId { incarnation: 2, number: 1, gateway: GatewayId::from_bytes([0; 16]) });
        assert!(id < ManifestId { number: 0xabd, gateway: GatewayId::from_bytes([0; 16]), ..id });
        for numbers in ["000000000000000A-0000000000000001", "+00000000000001-0000000000000001", "1-2", ""] {
            let text = format!("{numbers}-{gateway}");
            assert_eq!(ManifestId::parse(&text), None, "{text}");
        }
        for text in ["", "0000000000000001-0000000000000abc", "0000000000000001-0000000000000abc-04"] {
            assert_eq!(ManifestId::parse(text), None, "{text}");
        }
    }
}
