//! Lengths of time: a whole number with a unit, `90s`, `15m`, `1h`, `7d`, `2w`.

use crate::PolicyError;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Longest length: a hundred years, which is more than anybody means and far from any overflow.
const SECONDS_MAX: u64 = 100 * 366 * 86_400;

const UNITS: [(&str, u64); 5] = [("w", 7 * 86_400), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

/// A length of time in whole seconds, not zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span {
    seconds: u64,
}

impl Span {
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    pub const fn seconds(self) -> u64 {
        self.seconds
    }

    pub const fn millis(self) -> u64 {
        self.seconds * 1000
    }
}

impl FromStr for Span {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let wrong = || PolicyError::Span(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        match number.checked_mul(*scale) {
            Some(seconds) if (1..=SECONDS_MAX).contains(&seconds) => Ok(Self { seconds }),
            _ => Err(wrong()),
        }
    }
}

/// In the largest unit that divides it; parses back to itself.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, scale): &&(&str, u64)| self.seconds.is_multiple_of(*scale);
        let (unit, scale) = UNITS.iter().find(fits).expect("a second divides all");
        write!(f, "{}{unit}", self.seconds / scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_come_back_in_their_largest_unit() {
        for (text, shown) in
            [("90s", "90s"), ("60s", "1m"), ("15m", "15m"), ("24h", "1d"), ("14d", "2w"), ("10d", "10d")]
        {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string(), shown);
            assert_eq!(shown.parse::<Span>().unwrap(), span);
        }
    }

    #[test]
    fn what_is_no_length_is_refused() {
        for text in ["", "5", "m", "0m", "-1h", "1.5h", "1 h", "1H", "1y", "99999999999w", "200000d", "1hm"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
