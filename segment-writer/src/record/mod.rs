//! The record of the catalog in the pool: what the site knows, for the day on which the catalog is lost.
//!
//! A record is a *manifest* and the *pieces* that it names. A piece holds consecutive rows of one table, which mean nothing here. Objects have this form, version 1;
//! integers are little-endian, `varint` is LEB128:
//!
//! ```text
//! header, 32 bytes
//!    0   8  magic "CAIRNREC"
//!    8   1  version, 1
//!    9   1  kind: 0 piece, 1 manifest
//!   10   6  zeros
//!   16  16  site id
//! manifests only: 16 random bytes
//! body       ciphertext | tag (16)
//!
//! piece plaintext, as a zstd frame (RFC 8878)
//!   varint length of head | head | varint rows | per row: varint length | row
//!
//! manifest plaintext
//!   version (u8: 1) | varint schema | varint milliseconds since the Unix epoch | varint pieces
//!   per piece: name (32) | varint length of the object | varint rows
//! ```
//!
//! | key | object |
//! |---|---|
//! | `record/pieces/NAME` | a piece; its name is the keyed BLAKE3 of the zstd frame, in hexadecimal |
//! | `record/manifests/INCARNATION-NUMBER-GATEWAY` | a manifest; both numbers in 16 hexadecimal digits, the id of the gateway that put it in 32 |
//! | `record/reserve/1` | random bytes, which make way for a record where a node is full |
//!
//! What authenticates what: all keys are derived from the key of the site's own domain and the site ("cairn 2026-11 record"). A piece is AES-256-GCM under a key derived
//! with its name, nonce 0, AAD the header: the name is a function of the plaintext, so one key seals one plaintext however often it is put. A manifest is AES-256-GCM under a
//! key derived with its numbers, its gateway and its random bytes, nonce 0, AAD the header. Encryption does not depend on the domain's: a record tells of all domains.
//!
//! Names of pieces depend on the incarnation of the catalog that wrote them, and on the gateway: one gateway's tidying never deletes what another one's manifest names. Both are in the
//! keys of manifests too: two catalogs made of one record have the same incarnation, and each sees that the other one is there.
//!
//! Invariants: a manifest is put when all its pieces are durable (`store`), and deleted from a node before any piece there that it alone names. So the newest manifest that is
//! durable has all its pieces, whatever crashed, and whichever nodes are lost that the profile of the pool allows to be.

mod manifest;
mod piece;
mod put;
mod store;

pub use manifest::{Manifest, ManifestId, ManifestPiece};
pub use piece::{Piece, PieceCutter, PieceName, SealedPiece};
pub use store::{Copies, RecordListing, RecordStore};

use crate::domain::Domain;
use crate::error::Damaged;
use cairn_model::SiteId;
use cairn_model::crypto::{Cipher, SecretKey};

const MAGIC: [u8; 8] = *b"CAIRNREC";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 32;

const RECORD_CONTEXT: &str = "cairn 2026-11 record";
const NAME_CONTEXT: &str = "cairn 2026-11 record name of a piece";
const PIECE_CONTEXT: &str = "cairn 2026-11 record piece";
const MANIFEST_CONTEXT: &str = "cairn 2026-11 record manifest";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Piece = 0,
    Manifest = 1,
}

/// Why an object of the record is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RecordError {
    Damaged(Damaged),
    Newer(u8),
}

impl From<Damaged> for RecordError {
    fn from(damaged: Damaged) -> Self {
        Self::Damaged(damaged)
    }
}

/// What seals and opens the record of a site.
#[derive(Clone, Debug)]
pub struct RecordKey {
    key: SecretKey,
    site: SiteId,
}

impl RecordKey {
    /// `domain` is the site's own.
    pub fn new(domain: &Domain, site: SiteId) -> Self {
        Self { key: domain.key().derive(RECORD_CONTEXT, site.as_bytes()), site }
    }

    fn header(&self, kind: Kind) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        (header[8], header[9]) = (VERSION, kind as u8);
        header[16..].copy_from_slice(self.site.as_bytes());
        header
    }

    /// Whether an object begins as one of this site and kind does.
    fn check_header(&self, object: &[u8], kind: Kind) -> Result<(), RecordError> {
        let header = object.get(..HEADER_BYTES).ok_or(Damaged("it is cut short"))?;
        if header[..8] != MAGIC {
            return Err(Damaged("it is no object of a record").into());
        }
        if header[8] > VERSION {
            return Err(RecordError::Newer(header[8]));
        }
        if header == self.header(kind) {
            Ok(())
        } else {
            Err(Damaged("its header makes no sense here").into())
        }
    }

    fn seal(&self, context: &'static str, identity: &[u8], header: &[u8], mut body: Vec<u8>) -> Vec<u8> {
        let tag = Cipher::new(&self.key.derive(context, identity)).seal_in_place(0, header, &mut body);
        body.extend_from_slice(&tag);
        body
    }

    fn open<'a>(
        &self,
        context: &'static str,
        identity: &[u8],
        header: &[u8],
        body: &'a mut [u8],
    ) -> Result<&'a [u8], RecordError> {
        let opened = Cipher::new(&self.key.derive(context, identity)).open_in_place(0, header, body);
        opened.map(|plain| &*plain).map_err(|_| Damaged("it fails authentication").into())
    }
}
