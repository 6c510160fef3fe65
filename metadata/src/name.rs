//! Names of volumes, snapshots, groups and domains.

use cairn_model::{ErrorKind, Kinded, SnapshotId};
use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes.
const LENGTH_MAX: usize = 255;
/// Longest name of a group: a snapshot's adds the time and perhaps a number.
const GROUP_LENGTH_MAX: usize = 200;

/// Why a text is no name. `what` says of what.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidName {
    #[error("a {what}'s name cannot be empty")]
    Empty { what: &'static str },
    #[error("a {what}'s name has at most {most} bytes, this one has {length}")]
    TooLong { what: &'static str, length: usize, most: usize },
    #[error("the {what} name {name:?} begins with {first:?}: begin with a letter, a digit or '_'")]
    Beginning { what: &'static str, name: String, first: char },
    #[error("the {what} name {name:?} contains {character:?}: use letters, digits, '.', '_' and '-'")]
    Character { what: &'static str, name: String, character: char },
}

impl Kinded for InvalidName {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unsupported
    }
}

/// `name` if it is one.
fn valid(what: &'static str, most: usize, name: String) -> Result<String, InvalidName> {
    if name.len() > most {
        return Err(InvalidName::TooLong { what, length: name.len(), most });
    }
    let first = name.chars().next().ok_or(InvalidName::Empty { what })?;
    if let Some(character) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c)) {
        return Err(InvalidName::Character { what, name, character });
    }
    if ".-".contains(first) {
        return Err(InvalidName::Beginning { what, name, first });
    }
    Ok(name)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $most:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
                valid($what, $most, name.into()).map(Self)
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($what, ":{}"), self.0)
            }
        }
    };
}

name!(
    /// The name of a volume: 1 to 255 ASCII letters, digits, `.`, `_` and `-`, beginning with a letter, a digit or `_`. `@` and `/` stay free
    /// for the names of snapshots and groups.
    VolumeName,
    "volume",
    LENGTH_MAX
);
name!(
    /// The name of a snapshot among those of its volume, by the rules of [`VolumeName`]. `VOLUME@SNAPSHOT` names it everywhere.
    SnapshotName,
    "snapshot",
    LENGTH_MAX
);
name!(
    /// The name of a dedupe domain, by the rules of [`VolumeName`].
    DomainName,
    "domain",
    LENGTH_MAX
);
name!(
    /// The name of a protection group, by the rules of [`VolumeName`] and at most 200 bytes long: the names of its snapshots are made of it.
    GroupName,
    "group",
    GROUP_LENGTH_MAX
);

impl SnapshotName {
    /// The names that snapshot `id` tries until one is free: this one first, then with more and more of the identity behind it. They have no
    /// end, so one is.
    pub(crate) fn candidates(&self, id: SnapshotId) -> impl Iterator<Item = Self> + Send + use<> {
        let (name, id) = (self.0.clone(), id.to_string());
        let suffix = move |attempt: u32| match attempt {
            0 => String::new(),
            1 => format!("-{}", &id[..8]),
            2 => format!("-{id}"),
            _ => format!("-{id}-{attempt}"),
        };
        let candidate = move |suffix: String| {
            let kept = name.len().min(LENGTH_MAX - suffix.len());
            Self(name[..kept].to_owned() + &suffix)
        };
        (0..).map(suffix).map(candidate)
    }
}

impl DomainName {
    /// The name of [`cairn_model::DomainId::DEFAULT`].
    pub fn default_domain() -> Self {
        Self("default".to_owned())
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

    #[test]
    fn a_snapshot_whose_name_is_taken_adds_its_identity() {
        let id = SnapshotId::from_bytes([0xab; 16]);
        let tried = |name: &str| -> Vec<String> {
            let candidates = SnapshotName::new(name).unwrap().candidates(id).take(4);
            candidates.map(|name| SnapshotName::new(name.as_str()).unwrap().to_string()).collect()
        };
        let hex = "ab".repeat(16);
        let short = ["daily", "daily-abababab", &format!("daily-{hex}"), &format!("daily-{hex}-3")];
        assert_eq!(tried("daily"), short);
        let long = "x".repeat(255);
        let cut = [&long, &format!("{}-abababab", &long[..246]), &format!("{}-{hex}", &long[..222])];
        assert_eq!(tried(&long)[..3], cut.map(Clone::clone));
    }

    #[test]
    fn a_group_leaves_room_for_the_time_in_the_names_of_its_snapshots() {
        let longest = "g".repeat(200);
        assert!(
            SnapshotName::new(format!("{}-20261128T150000Z-1000", GroupName::new(&*longest).unwrap()))
                .is_ok()
        );
        let refused = GroupName::new(longest + "g").unwrap_err().to_string();
        assert_eq!(refused, "a group's name has at most 200 bytes, this one has 201");
    }

    #[test]
    fn names_of_domains_follow_the_same_rules() {
        assert_eq!(DomainName::new("tenant-1").unwrap().as_str(), "tenant-1");
        let error = DomainName::new("a/b").unwrap_err();
        let reason = "the domain name \"a/b\" contains '/': use letters, digits, '.', '_' and '-'";
        assert_eq!(error.to_string(), reason);
        assert_eq!(DomainName::new("default"), Ok(DomainName::default_domain()));
    }
}
