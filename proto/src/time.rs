//! Two kinds of time, never mixed: a member's own boot clock for every deadline, the wall clock for people.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point on this machine's own CLOCK_BOOTTIME. Means nothing on another machine and is never stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(Duration);

impl Moment {
    /// Makes a moment from the time since boot.
    pub const fn since_boot(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// Returns the time since boot.
    pub fn boot_time(self) -> Duration {
        self.0
    }

    /// Returns how long before this moment `earlier` was, zero where it was not.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, more: Duration) -> Moment {
        Moment(self.0.saturating_add(more))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;
    fn sub(self, less: Duration) -> Moment {
        Moment(self.0.saturating_sub(less))
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot+{:.3}s", self.0.as_secs_f64())
    }
}

/// A wall-clock time in milliseconds, for people and records. No decision rests on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WallTime(pub i64);

impl WallTime {
    /// Returns the time `later` after this one.
    pub fn plus(self, later: std::time::Duration) -> WallTime {
        WallTime(self.0.saturating_add(i64::try_from(later.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Returns the milliseconds from `earlier` to this time; negative where it was later.
    pub fn ms_since(self, earlier: WallTime) -> i64 {
        self.0 - earlier.0
    }
}

impl TryFrom<String> for WallTime {
    type Error = jiff::Error;
    fn try_from(given: String) -> Result<Self, jiff::Error> {
        Ok(Self(given.parse::<jiff::Timestamp>()?.as_millisecond()))
    }
}

impl From<WallTime> for String {
    fn from(time: WallTime) -> String {
        time.to_string()
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(timestamp) => write!(f, "{timestamp:.3}"),
            Err(_) => write!(f, "{} ms since 1970", self.0),
        }
    }
}

impl fmt::Debug for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads a duration such as `10s`, `500ms` or `1m30s`.
pub fn parse_duration(given: &str) -> Result<Duration, String> {
    humantime::parse_duration(given)
        .map_err(|e| format!("{given:?} is not a duration such as 10s or 500ms: {e}"))
}

/// Returns a duration as one word that `parse_duration` reads.
pub fn show(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

/// Durations that may be absent, written as `duration` writes them.
pub mod optional_duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes a duration as text, and none as null.
    pub fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.collect_str(&humantime::format_duration(*value)),
            None => to.serialize_none(),
        }
    }

    /// Reads a duration from text, and none from null.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| super::parse_duration(&text)).transpose().map_err(serde::de::Error::custom)
    }
}

/// Durations in documents, written `10s` or `500ms`. Use with `#[serde(with = "proto::time::duration")]`.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes a duration as text.
    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*value))
    }

    /// Reads a duration from text.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        super::parse_duration(&text).map_err(serde::de::Error::custom)
    }
}
