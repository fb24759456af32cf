//! Reads the time of `--at`: exact, or the next time at which the clocks of a zone show it.

use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::{Offset, TimeZone};
use proto::WallTime;

/// Further ahead nobody remembers it.
const FURTHEST_DAYS: i64 = 366;

const FORMS: &str = "use 2026-11-28T03:00:00+01:00, 03:00Z, 03:00+01:00 or \"03:00 Europe/Berlin\"";

/// Returns the time that `given` names after `now`.
pub fn parse(given: &str, now: WallTime) -> Result<WallTime, String> {
    let at = match given.parse::<Timestamp>() {
        Ok(exact) => WallTime(exact.as_millisecond()),
        Err(_) => next(given, now)?,
    };
    if at <= now {
        return Err(format!("--at {given}: {at} is past"));
    }
    if at.ms_since(now) > FURTHEST_DAYS * 86_400_000 {
        return Err(format!("--at {given}: that is more than {FURTHEST_DAYS} days ahead"));
    }
    Ok(at)
}

/// Returns the next time at which the clocks of the zone show `HH:MM`.
fn next(given: &str, now: WallTime) -> Result<WallTime, String> {
    let error = |problem: String| format!("--at {given:?}: {problem}; {FORMS}");
    let is_zone = |c: char| !c.is_ascii_digit() && c != ':';
    let (clock, zone) = given.split_at(given.find(is_zone).unwrap_or(given.len()));
    let time: Time = clock.parse().map_err(|_| error("not a time".into()))?;
    let zone = zone_of(zone.trim()).map_err(error)?;
    let now = Timestamp::from_millisecond(now.0).map_err(|e| error(e.to_string()))?;
    let today = now.to_zoned(zone.clone()).date();
    // A time that a change of the clocks leaves out is the one that follows it.
    for date in [Ok(today), today.tomorrow()] {
        let at = date.and_then(|d| d.to_datetime(time).to_zoned(zone.clone()));
        let at = at.map_err(|e| error(e.to_string()))?.timestamp();
        if at > now {
            return Ok(WallTime(at.as_millisecond()));
        }
    }
    Err(error("it has no next time".into()))
}

fn zone_of(zone: &str) -> Result<TimeZone, String> {
    if zone.is_empty() {
        return Err("it names no zone".into());
    }
    if zone.eq_ignore_ascii_case("z") || zone.eq_ignore_ascii_case("utc") {
        return Ok(TimeZone::UTC);
    }
    let Some(sign) = zone.chars().next().filter(|c| ['+', '-'].contains(c)) else {
        return TimeZone::get(zone).map_err(|e| e.to_string());
    };
    let ahead: Time = zone[1..].parse().map_err(|_| format!("{zone} is no offset"))?;
    let seconds = i32::from(ahead.hour()) * 3600 + i32::from(ahead.minute()) * 60;
    let offset = Offset::from_seconds(if sign == '-' { -seconds } else { seconds });
    offset.map(TimeZone::fixed).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(given: &str, now: &str) -> Result<String, String> {
        let now = WallTime::try_from(now.to_owned()).unwrap();
        parse(given, now).map(|at| at.to_string())
    }

    #[test]
    fn a_time_is_exact_or_the_next_of_its_zone() {
        let noon = "2026-11-27T12:00:00Z";
        for (given, expected) in [
            ("2026-11-28T03:00:00+01:00", "2026-11-28T02:00:00.000Z"),
            ("03:00Z", "2026-11-28T03:00:00.000Z"),
            ("12:30Z", "2026-11-27T12:30:00.000Z"),
            ("12:00 UTC", "2026-11-28T12:00:00.000Z"),
            ("03:00+01:00", "2026-11-28T02:00:00.000Z"),
            ("13:30+01:00", "2026-11-27T12:30:00.000Z"),
            ("10:00 -05:30", "2026-11-27T15:30:00.000Z"),
        ] {
            assert_eq!(at(given, noon).as_deref(), Ok(expected), "{given}");
        }
    }

    #[test]
    fn a_time_without_a_zone_or_in_the_past_is_refused() {
        for (given, reason) in [
            ("03:00", "names no zone"),
            ("2026-11-27T11:00:00Z", "is past"),
            ("2028-01-01T00:00:00Z", "more than 366 days"),
            ("25:00Z", "not a time"),
            ("tomorrow", "not a time"),
            ("", "not a time"),
            ("03:00 Atlantis/City", "Atlantis"),
            ("03:00+26:00", "no offset"),
        ] {
            let said = at(given, "2026-11-27T12:00:00Z").unwrap_err();
            assert!(said.contains(reason), "{given}: {said}");
        }
    }
}
