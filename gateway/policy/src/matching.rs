//! Volumes by name and by pattern.
//!
//! A pattern is a whole name in which `*` stands for any characters, `?` for one, `[a-c]` for one of some, `{one,other}` for one of the
//! alternatives. A name without any of these matches itself alone.

use crate::PolicyError;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Patterns of a group.
const PATTERNS_MAX: usize = 100;
/// Longest pattern: room for a few of the longest names.
const LENGTH_MAX: usize = 1024;

#[derive(Clone, Debug)]
pub struct Matching {
    set: GlobSet,
}

impl Matching {
    pub fn new(patterns: &[String]) -> Result<Self, PolicyError> {
        if patterns.is_empty() {
            return Err(PolicyError::NoPattern);
        }
        if patterns.len() > PATTERNS_MAX {
            return Err(PolicyError::TooManyPatterns { count: patterns.len(), most: PATTERNS_MAX });
        }
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            let wrong = |reason: String| PolicyError::Pattern { pattern: pattern.clone(), reason };
            if pattern.is_empty() || pattern.len() > LENGTH_MAX {
                return Err(wrong(format!("it has {} bytes, not 1 to {LENGTH_MAX}", pattern.len())));
            }
            // What no volume's name has is a slip: such a pattern would match nothing for ever.
            if let Some(odd) =
                pattern.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-*?[]{},!^".contains(*c))
            {
                return Err(wrong(format!("no volume's name has {odd:?}")));
            }
            let glob = GlobBuilder::new(pattern).build();
            set.add(glob.map_err(|error| wrong(error.kind().to_string()))?);
        }
        let set = set.build().map_err(|error| PolicyError::Pattern {
            pattern: patterns.join(" "),
            reason: error.kind().to_string(),
        })?;
        Ok(Self { set })
    }

    pub fn matches(&self, volume: &str) -> bool {
        self.set.is_match(volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(patterns: &[&str]) -> Result<Matching, PolicyError> {
        Matching::new(&patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn patterns_match_whole_names() {
        let matching = of(&["db-*", "web?", "log-[0-3]", "{mail,news}.data", "exact"]).unwrap();
        for name in ["db-", "db-1.x", "web1", "log-0", "mail.data", "news.data", "exact"] {
            assert!(matching.matches(name), "{name}");
        }
        for name in ["xdb-1", "web", "web12", "log-4", "mailXdata", "exact1", "Exact", ""] {
            assert!(!matching.matches(name), "{name}");
        }
        assert!(of(&["*"]).unwrap().matches("anything.at_all-1"));
    }

    #[test]
    fn what_can_match_no_name_is_refused() {
        assert!(matches!(of(&[]), Err(PolicyError::NoPattern)));
        for pattern in ["", "a/b", "a@b", "db 1", "[a", "{a", "a\\*", "ä*"] {
            let refused = of(&["fine", pattern]);
            assert!(
                matches!(&refused, Err(PolicyError::Pattern { pattern: told, .. }) if told == pattern),
                "{pattern}"
            );
        }
        let many = vec!["x"; 101];
        assert!(matches!(of(&many), Err(PolicyError::TooManyPatterns { count: 101, .. })));
    }
}
