//! The only caller of the system clocks.

use rustix::time::{ClockId, clock_gettime};

use crate::cluster::Moment;

/// Now, by CLOCK_BOOTTIME: unlike `std::time::Instant` (CLOCK_MONOTONIC) it goes on while the machine is
/// suspended, so a lease cannot outlive a nap.
pub fn now() -> Moment {
    Moment(u64::try_from(nanos(ClockId::Boottime)).unwrap_or(0))
}

/// Now, by the wall clock. It jumps: for people and records only, never for a decision about a lease.
pub fn wall_clock() -> WallTime {
    WallTime(i64::try_from(nanos(ClockId::Realtime) / 1000).unwrap_or(0))
}

fn nanos(clock: ClockId) -> i128 {
    let reading = clock_gettime(clock);
    i128::from(reading.tv_sec) * 1_000_000_000 + i128::from(reading.tv_nsec)
}

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// A time of the wall clock: microseconds since 1970 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub i64);

impl WallTime {
    /// The form of Patroni's records: `2026-11-20T10:00:00.000000+00:00`.
    pub fn rfc3339(self) -> String {
        let (year, month, day) = civil(self.0.div_euclid(MICROS_PER_DAY));
        let micros = self.0.rem_euclid(MICROS_PER_DAY);
        let seconds = micros / 1_000_000;
        format!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}+00:00",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            micros % 1_000_000
        )
    }

    /// Reads ISO 8601 as operators and Patroni write it: date, `T` or a blank, time with or without
    /// seconds and fractions, and an offset (`Z`, `+01:00`). `None` without an offset: nobody can know
    /// whose local time is meant.
    pub fn parse(text: &str) -> Option<WallTime> {
        let text = text.trim();
        let (date, rest) = text.split_once(['T', 't', ' '])?;
        let mut date = date.splitn(3, '-').map(str::parse::<i64>);
        let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
        let (time, offset_seconds) = split_offset(rest.trim())?;
        let mut time = time.splitn(3, ':');
        let (hour, minute): (i64, i64) = (time.next()?.parse().ok()?, time.next()?.parse().ok()?);
        let second: f64 = time
            .next()
            .map_or(Some(0.0), |second| second.parse().ok())?;
        let is_usable = (0..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=days_in(year, month)).contains(&day)
            && (0..24).contains(&hour)
            && (0..60).contains(&minute)
            && (0.0..61.0).contains(&second);
        let seconds: i64 = hour * 3600 + minute * 60 - offset_seconds;
        let micros = (second * 1e6).round() as i64;
        is_usable.then(|| {
            WallTime(days(year, month, day) * MICROS_PER_DAY + seconds * 1_000_000 + micros)
        })
    }
}

fn split_offset(text: &str) -> Option<(&str, i64)> {
    if let Some(time) = text.strip_suffix(['Z', 'z']) {
        return Some((time.trim(), 0));
    }
    let at = text.rfind(['+', '-'])?;
    let (time, offset) = text.split_at(at);
    let digits = offset.get(1..)?.replace(':', "");
    let number: i64 = digits.parse().ok()?;
    let seconds = match digits.len() {
        1 | 2 => number * 3600,
        4 => number / 100 * 3600 + number % 100 * 60,
        _ => return None,
    };
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    (seconds <= 18 * 3600).then_some((time.trim(), sign * seconds))
}

fn days_in(year: i64, month: i64) -> i64 {
    let (next_year, next_month) = if month == 12 {
        (year + 1, 1)
    } else {
        (year, month + 1)
    };
    days(next_year, next_month, 1) - days(year, month, 1)
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar (H. Hinnant, "chrono-compatible
/// low-level date algorithms").
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days`].
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_times_print_and_parse() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000+00:00"),
            (951_782_400_000_001, "2000-02-29T00:00:00.000001+00:00"),
            (1_795_168_800_250_000, "2026-11-20T10:00:00.250000+00:00"),
            (-1, "1969-12-31T23:59:59.999999+00:00"),
        ] {
            assert_eq!(WallTime(micros).rfc3339(), text);
            assert_eq!(WallTime::parse(text), Some(WallTime(micros)), "{text}");
        }
        for day in -1_000_000..1_000_000 {
            let (year, month, of_month) = civil(day);
            assert_eq!(days(year, month, of_month), day);
        }
    }

    #[test]
    fn operators_forms_are_read_and_a_time_without_offset_is_refused() {
        let expected = WallTime::parse("2026-11-20T10:00:00Z");
        assert!(expected.is_some());
        for text in [
            "2026-11-20 10:00+00",
            "2026-11-20T11:00:00+01:00",
            "2026-11-20 05:30:00.000 -0430",
        ] {
            assert_eq!(WallTime::parse(text), expected, "{text}");
        }
        for text in [
            "",
            "now",
            "2026-11-20T10:00:00",
            "2026-02-30T10:00:00Z",
            "2026-11-20T24:00:00Z",
            "2026-11-20T10:00:00+99:00",
        ] {
            assert_eq!(WallTime::parse(text), None, "{text}");
        }
    }

    #[test]
    fn both_clocks_go() {
        assert!(now() <= now());
        assert!(wall_clock() > WallTime(1_700_000_000_000_000));
    }
}
