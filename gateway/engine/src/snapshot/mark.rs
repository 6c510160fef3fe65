//! What the log remembers a snapshot by: a JSON object, so that a newer version may add to it.

use crate::error::EngineError;
use bytes::Bytes;
use cairn_metadata::{NewSnapshot, SnapshotName};
use cairn_model::{SnapshotId, WallTime};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Note {
    Snapshot { id: SnapshotId, name: String, size_bytes: u64, created_at: u64 },
}

/// The note of a mark of the log. At most some 400 bytes.
pub(crate) fn encode_note(snapshot: &NewSnapshot) -> Bytes {
    let note = Note::Snapshot {
        id: snapshot.id,
        name: snapshot.name.to_string(),
        size_bytes: snapshot.size_bytes,
        created_at: snapshot.created_at.unix_millis(),
    };
    serde_json::to_vec(&note).expect("names and numbers are JSON").into()
}

/// Fails on a note that a newer version wrote: what it asks for must not be left out.
pub(crate) fn decode_note(note: &[u8]) -> Result<NewSnapshot, EngineError> {
    let unknown = |reason: &dyn std::fmt::Display| EngineError::UnknownMark(reason.to_string());
    let Note::Snapshot { id, name, size_bytes, created_at } =
        serde_json::from_slice(note).map_err(|error| unknown(&error))?;
    let name = SnapshotName::new(name).map_err(|error| unknown(&error))?;
    Ok(NewSnapshot { id, name, size_bytes, created_at: WallTime::from_unix_millis(created_at) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_and_fits_a_mark() {
        let snapshot = NewSnapshot {
            id: SnapshotId::from_bytes([7; 16]),
            name: SnapshotName::new("x".repeat(255)).unwrap(),
            size_bytes: u64::MAX,
            created_at: WallTime::from_unix_millis(u64::MAX),
        };
        let note = encode_note(&snapshot);
        assert!(note.len() <= 512, "{}", note.len());
        assert_eq!(decode_note(&note).unwrap(), snapshot);
    }

    #[test]
    fn what_this_version_does_not_know_is_refused() {
        for note in ["", "{}", "{\"revert\":{}}", "{\"snapshot\":{\"id\":\"0\"}}"] {
            assert!(matches!(decode_note(note.as_bytes()), Err(EngineError::UnknownMark(_))), "{note}");
        }
    }
}
