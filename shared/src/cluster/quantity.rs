//! Durations, sizes and booleans as Patroni and PostgreSQL write them. Pure.

use std::time::Duration;

/// What a duration may look like; for error texts.
pub const DURATION_FORMS: &str =
    "a number of seconds, or a number with us, ms, s, min, h or d, such as 10, 500ms or 30min";

/// What a size may look like; for error texts.
pub const SIZE_FORMS: &str = "a number of bytes, or a number with B, kB, MB, GB or TB, such as 1MB";

/// What a boolean may look like; for error texts.
pub const BOOLEAN_FORMS: &str = "on, off, true, false, yes, no, 1 or 0";

/// Reads a duration with PostgreSQL's units; a bare number is seconds. `None` if it is neither, negative,
/// or longer than a hundred years.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "" | "s" => number,
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "min" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return None,
    };
    self::seconds(seconds)
}

/// A number of seconds. `None` if it is negative, or longer than a hundred years.
pub fn seconds(number: f64) -> Option<Duration> {
    let most = 100.0 * 366.0 * 86_400.0;
    (0.0..=most)
        .contains(&number)
        .then(|| Duration::from_secs_f64(number))
}

/// Reads a size with PostgreSQL's units (powers of 1024); a bare number is bytes.
pub fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let shift = match unit {
        "" | "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    let bytes =
        number * f64::from(1u32 << (shift % 30)) * if shift >= 30 { 1073741824.0 } else { 1.0 };
    (bytes <= 9.0e18).then_some(bytes.round() as u64)
}

/// Reads a boolean in any of Patroni's spellings, whatever the case.
pub fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text.get(..end)?.parse().ok()?;
    Some((number, text.get(end..)?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_postgresqls_units_and_default_to_seconds() {
        for (text, millis) in [
            ("10", 10_000),
            ("0", 0),
            ("1.5", 1500),
            ("500ms", 500),
            ("10 s", 10_000),
            ("30min", 1_800_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("1500us", 1),
        ] {
            assert_eq!(duration(text).unwrap().as_millis(), millis, "{text}");
        }
        for text in [
            "",
            "s",
            "-1",
            "10 parsecs",
            "1m",
            "1e9d",
            "99999999d",
            "NaN",
            "1.2.3",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, expected) in [
            ("1048576", 1 << 20),
            ("1MB", 1 << 20),
            ("16kB", 1 << 14),
            ("2 GB", 2 << 30),
            ("1TB", 1 << 40),
            ("7B", 7),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in ["", "-1", "1mb", "1PB", "99999999TB"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn booleans_come_in_eight_spellings() {
        assert_eq!(boolean("On"), Some(true));
        assert_eq!(boolean(" no "), Some(false));
        assert_eq!(boolean("maybe"), None);
    }
}
