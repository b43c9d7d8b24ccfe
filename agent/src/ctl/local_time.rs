//! Times as the operator's machine writes them. The machine's time zone is read here and nowhere else.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use trunkline_shared::service::clock::WallTime;

fn local(at: WallTime) -> Option<Zoned> {
    let at = Timestamp::from_microsecond(at.0).ok()?;
    Some(at.to_zoned(TimeZone::system()))
}

/// `2026-11-20 10:00:00`, as patronictl writes the time above a table.
pub fn to_seconds(at: WallTime) -> String {
    let local = local(at);
    local.map_or_else(
        || at.rfc3339(),
        |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// An example of a time in an hour: `2026-11-20T11:00`.
pub fn in_an_hour(now: WallTime) -> String {
    let later = local(WallTime(now.0.saturating_add(3_600_000_000)));
    later.map_or_else(
        || "2026-11-20T11:00".to_owned(),
        |at| at.strftime("%Y-%m-%dT%H:%M").to_string(),
    )
}

/// A time that an operator wrote, with its offset. One without is of this machine's time zone, as with patronictl;
/// a time that this zone skips or has twice is not understood. `None` also for what is no time.
pub fn with_offset(text: &str) -> Option<String> {
    if WallTime::parse(text).is_some() {
        return Some(text.to_owned());
    }
    let civil: DateTime = text.trim().parse().ok()?;
    let zoned = TimeZone::system()
        .to_ambiguous_zoned(civil)
        .unambiguous()
        .ok()?;
    Some(zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_an_offset_gets_this_machines() {
        let given = "2026-11-20T10:00:00+03:00";
        assert_eq!(with_offset(given).as_deref(), Some(given));
        let local = with_offset("2026-11-20T10:00").unwrap();
        assert!(local.starts_with("2026-11-20T10:00:00"), "{local}");
        assert!(WallTime::parse(&local).is_some(), "{local}");
        for wrong in ["", "tomorrow", "10:00", "2026-13-01T10:00"] {
            assert_eq!(with_offset(wrong), None, "{wrong}");
        }
    }
}
