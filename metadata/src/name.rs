//! Names of volumes.

use cairn_model::{ErrorKind, Kinded};
use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes.
const LENGTH_MAX: usize = 255;

/// The name of a volume: 1 to 255 ASCII letters, digits, `.`, `_` and `-`, beginning with a letter, a digit or `_`. `@` and `/` stay free
/// for the names of snapshots and groups.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

/// Why a text is no name of a volume.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidVolumeName {
    #[error("a volume's name cannot be empty")]
    Empty,
    #[error("a volume's name has at most {LENGTH_MAX} bytes, this one has {length}")]
    TooLong { length: usize },
    #[error("the volume name {name:?} begins with {first:?}: begin with a letter, a digit or '_'")]
    Beginning { name: String, first: char },
    #[error("the volume name {name:?} contains {character:?}: use letters, digits, '.', '_' and '-'")]
    Character { name: String, character: char },
}

impl Kinded for InvalidVolumeName {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unsupported
    }
}

impl VolumeName {
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidVolumeName> {
        let name = name.into();
        if name.len() > LENGTH_MAX {
            return Err(InvalidVolumeName::TooLong { length: name.len() });
        }
        let first = name.chars().next().ok_or(InvalidVolumeName::Empty)?;
        if let Some(character) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c)) {
            return Err(InvalidVolumeName::Character { name, character });
        }
        if ".-".contains(first) {
            return Err(InvalidVolumeName::Beginning { name, first });
        }
        Ok(Self(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = InvalidVolumeName;

    fn from_str(name: &str) -> Result<Self, InvalidVolumeName> {
        Self::new(name)
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume:{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_names_are_taken_as_they_are() {
        for name in ["a", "db-1.data", "_scratch", "0", "VM_42", &"x".repeat(255)] {
            assert_eq!(VolumeName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_refusal_names_what_is_wrong() {
        for (name, reason) in [
            ("", "a volume's name cannot be empty"),
            ("-x", "the volume name \"-x\" begins with '-': begin with a letter, a digit or '_'"),
            (".x", "the volume name \".x\" begins with '.': begin with a letter, a digit or '_'"),
            ("a@b", "the volume name \"a@b\" contains '@': use letters, digits, '.', '_' and '-'"),
            ("a/b", "the volume name \"a/b\" contains '/': use letters, digits, '.', '_' and '-'"),
            ("ä", "the volume name \"ä\" contains 'ä': use letters, digits, '.', '_' and '-'"),
            ("a\n", "the volume name \"a\\n\" contains '\\n': use letters, digits, '.', '_' and '-'"),
            (&"x".repeat(256), "a volume's name has at most 255 bytes, this one has 256"),
        ] {
            let error = name.parse::<VolumeName>().unwrap_err();
            assert_eq!(error.to_string(), reason);
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
    }
}
