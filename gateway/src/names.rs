//! Names of snapshots: `VOLUME@SNAPSHOT`, and names that tell the time.

use cairn_metadata::{InvalidName, SnapshotName, VolumeName};
use cairn_model::{WallTime, utc};
use std::fmt;
use std::str::FromStr;

/// What stands between a volume's name and a snapshot's: neither has it.
pub const SEPARATOR: char = '@';

/// A snapshot by its volume's name and its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotOf {
    pub volume: VolumeName,
    pub snapshot: SnapshotName,
}

/// Why a text is no `VOLUME@SNAPSHOT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSnapshot {
    #[error("it names no snapshot: write VOLUME@SNAPSHOT, such as disk0@monday")]
    NoSnapshot,
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl FromStr for SnapshotOf {
    type Err = InvalidSnapshot;

    fn from_str(text: &str) -> Result<Self, InvalidSnapshot> {
        let (volume, snapshot) = text.split_once(SEPARATOR).ok_or(InvalidSnapshot::NoSnapshot)?;
        Ok(Self { volume: volume.parse()?, snapshot: snapshot.parse()? })
    }
}

impl fmt::Display for SnapshotOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SEPARATOR}{}", self.volume, self.snapshot)
    }
}

/// A volume, or a snapshot of it: `VOLUME[@SNAPSHOT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOrSnapshot {
    pub volume: VolumeName,
    pub snapshot: Option<SnapshotName>,
}

impl FromStr for VolumeOrSnapshot {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let Some((volume, snapshot)) = text.split_once(SEPARATOR) else {
            return Ok(Self { volume: text.parse()?, snapshot: None });
        };
        Ok(Self { volume: volume.parse()?, snapshot: Some(snapshot.parse()?) })
    }
}

/// A name that begins with `stem` and tells the time, as `auto-20261128T153000Z`; from the second attempt on with the attempt's number,
/// for when it is taken.
pub fn stamped(stem: &str, at: WallTime, attempt: u32) -> Result<SnapshotName, InvalidName> {
    let name = format!("{stem}-{}", utc(at).stamp());
    if attempt <= 1 { name.parse() } else { format!("{name}-{attempt}").parse() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_by_its_volume_and_its_own_name() {
        let named: SnapshotOf = "disk0@monday".parse().unwrap();
        assert_eq!((named.volume.as_str(), named.snapshot.as_str()), ("disk0", "monday"));
        assert_eq!(named.to_string(), "disk0@monday");
        assert_eq!("disk0".parse::<VolumeOrSnapshot>().unwrap().snapshot, None);
        let both: VolumeOrSnapshot = "disk0@monday".parse().unwrap();
        assert_eq!((both.volume, both.snapshot), (named.volume, Some(named.snapshot)));
    }

    #[test]
    fn what_is_missing_or_too_much_is_refused() {
        for (text, reason) in [
            ("disk0", "names no snapshot"),
            ("disk0@", "a snapshot's name cannot be empty"),
            ("@monday", "a volume's name cannot be empty"),
            ("@", "a volume's name cannot be empty"),
            ("", "names no snapshot"),
            ("a@b@c", "the snapshot name \"b@c\" contains '@'"),
            ("a/b@c", "the volume name \"a/b\" contains '/'"),
            ("a@-c", "begins with '-'"),
        ] {
            let error = text.parse::<SnapshotOf>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        for text in ["", "a@", "@b", "a@b@c", "@"] {
            assert!(text.parse::<VolumeOrSnapshot>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_by_the_time_is_told_apart_by_the_attempt() {
        let at = WallTime::from_unix_millis(1_795_879_800_999);
        assert_eq!(stamped("auto", at, 1).unwrap().as_str(), "auto-20261128T153000Z");
        assert_eq!(stamped("auto", at, 2).unwrap().as_str(), "auto-20261128T153000Z-2");
        assert!(stamped("auto", WallTime::from_unix_millis(u64::MAX), u32::MAX).is_ok());
    }
}
