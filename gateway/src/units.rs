//! Sizes and durations as people write and read them.
//!
//! A size is a number with an optional binary unit: `10GiB`, `512M`, `1.5T`, `4096`. `K`, `KB` and `KiB` all
//! mean 1024: disks are addressed in powers of two, and one meaning per letter is safer than two.
//! A duration is a number with a unit: `250ms`, `5s`, `10m`, `1h`.

use cairn_model::{WallTime, utc};
use std::time::Duration;

/// Text that is no size or duration. The message completes a sentence that begins with what was being set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error(
        "`{0}` is not a size: write a number and a unit, such as 10GiB, 512M or 1.5T, or a number of bytes"
    )]
    NotASize(String),
    #[error("`{0}` is not a whole number of bytes")]
    FractionOfAByte(String),
    #[error("`{0}` is larger than any size Cairn can address")]
    TooLarge(String),
    #[error("`{0}` is not a duration: write a number and a unit, such as 250ms, 5s, 10m or 1h")]
    NotADuration(String),
}

/// Splits `1.5TiB` into (`1`, `5`, `TiB`). `None` when it does not begin with a digit.
fn split_number(text: &str) -> Option<(&str, &str, &str)> {
    let text = text.trim();
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str, max: usize| {
        !part.is_empty() && part.len() <= max && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    (digits(whole, 20) && digits(fraction, 15)).then_some((whole, fraction, unit.trim()))
}

fn binary_shift(unit: &str) -> Option<u32> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return None,
    })
}

/// `number * scale`, exactly. The parts were checked by [`split_number`].
fn scale(whole: &str, fraction: &str, scale: u128) -> Result<u64, bool> {
    let whole: u128 = whole.parse().map_err(|_| false)?;
    let numerator: u128 = fraction.parse().map_err(|_| false)?;
    let denominator = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| false)?);
    let scaled_fraction = numerator * scale;
    if !scaled_fraction.is_multiple_of(denominator) {
        return Err(true);
    }
    u64::try_from(whole * scale + scaled_fraction / denominator).map_err(|_| false)
}

/// Bytes of a size such as `10GiB`, `512M`, `1.5T` or `4096`.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let not_a_size = || UnitError::NotASize(text.to_owned());
    let (whole, fraction, unit) = split_number(text).ok_or_else(not_a_size)?;
    let shift = binary_shift(unit).ok_or_else(not_a_size)?;
    scale(whole, fraction, 1 << shift).map_err(|fractional| {
        if fractional {
            UnitError::FractionOfAByte(text.to_owned())
        } else {
            UnitError::TooLarge(text.to_owned())
        }
    })
}

/// The time of a duration such as `250ms`, `5s`, `10m` or `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let not_a_duration = || UnitError::NotADuration(text.to_owned());
    let (whole, fraction, unit) = split_number(text).ok_or_else(not_a_duration)?;
    let nanoseconds: u128 = match unit.to_ascii_lowercase().as_str() {
        "ms" => 1_000_000,
        "s" | "sec" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(not_a_duration()),
    };
    scale(whole, fraction, nanoseconds).map(Duration::from_nanos).map_err(|_| not_a_duration())
}

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A size for people: `10 GiB`, `1.5 TiB`, `733 MiB`, `512 B`. At most one decimal, and it may round.
pub fn format_size(bytes: u64) -> String {
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let shift = 10 * unit;
    let tenths = (u128::from(bytes) * 10 + (1 << (shift - 1))) >> shift;
    let (whole, tenth) = (tenths / 10, tenths % 10);
    if tenth == 0 { format!("{whole} {}", UNITS[unit]) } else { format!("{whole}.{tenth} {}", UNITS[unit]) }
}

/// A size that parses back to itself, in the largest unit that divides it: `10GiB`, `1536MiB`, `1000B`.
pub fn format_size_exact(bytes: u64) -> String {
    let mut unit = 0;
    while bytes != 0 && unit + 1 < UNITS.len() - 1 && bytes.is_multiple_of(1 << (10 * (unit + 1))) {
        unit += 1;
    }
    format!("{}{}", bytes >> (10 * unit), UNITS[unit])
}

/// A duration for people: `0 s`, `250 ms`, `5 s`, `3 min`, `2 h`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.subsec_millis() > 0 => format!("{} ms", duration.as_millis()),
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A moment for people: `2026-11-28 15:30:00Z`.
pub fn format_time(at: WallTime) -> String {
    utc(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_take_every_spelling_of_a_binary_unit() {
        for text in ["10GiB", "10G", "10gb", "10 GiB", " 10g ", "10240M", "10737418240", "10737418240B"] {
            assert_eq!(parse_size(text), Ok(10 << 30), "{text}");
        }
        assert_eq!(parse_size("1.5T"), Ok(3 << 39));
        assert_eq!(parse_size("0.5K"), Ok(512));
        assert_eq!(parse_size("0"), Ok(0));
    }

    #[test]
    fn text_that_is_no_size_is_refused() {
        for text in [
            "", "GiB", "-1", "1.2.3G", "1,5T", "ten", "10X", "10 G i B", ".", "1.", ".5G", "0x10", "1e9",
            "+5",
        ] {
            assert_eq!(parse_size(text), Err(UnitError::NotASize(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_size_that_is_no_whole_number_of_bytes_is_refused() {
        assert_eq!(parse_size("1.5"), Err(UnitError::FractionOfAByte("1.5".to_owned())));
        assert_eq!(parse_size("0.3K"), Err(UnitError::FractionOfAByte("0.3K".to_owned())));
    }

    #[test]
    fn a_size_past_64_bits_is_refused() {
        assert_eq!(parse_size("16383P"), Ok(16383 << 50));
        assert_eq!(parse_size("16384P"), Err(UnitError::TooLarge("16384P".to_owned())));
        assert_eq!(parse_size("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(
            parse_size("18446744073709551616"),
            Err(UnitError::TooLarge("18446744073709551616".to_owned()))
        );
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_mins(10)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_hours(1)));
        for text in ["5", "", "s", "5 parsecs", "-5s", "1.2.3s"] {
            assert_eq!(parse_duration(text), Err(UnitError::NotADuration(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn sizes_for_people_have_at_most_one_decimal() {
        assert_eq!(format_size(0), "0 B");
        assert_eq!(format_size(1023), "1023 B");
        assert_eq!(format_size(10 << 30), "10 GiB");
        assert_eq!(format_size(3 << 39), "1.5 TiB");
        assert_eq!(format_size((10 << 30) + 1), "10 GiB");
        assert_eq!(format_size(u64::MAX), "16 EiB");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, time) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (951_868_800, "2000-03-01 00:00:00Z"),
            (1_795_879_800, "2026-11-28 15:30:00Z"),
            (4_107_542_399, "2100-02-28 23:59:59Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(format_time(WallTime::from_unix_millis(seconds * 1000)), time);
        }
        assert!(!format_time(WallTime::from_unix_millis(u64::MAX)).is_empty());
    }

    proptest! {
        #[test]
        fn an_exact_size_parses_back_to_itself(bytes in 0..=u64::MAX / 10) {
            prop_assert_eq!(parse_size(&format_size_exact(bytes)), Ok(bytes));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,40}") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }
    }
}
