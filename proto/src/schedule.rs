//! Scheduled: a switchover for a later time, stored under `scheduled/<id>` until it is begun, missed or cancelled.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::request::{Terms, Wanted};
use crate::time::duration;
use crate::{Document, Request, RequestId, WallTime};

/// A switchover that is begun once, not before `at` and not later than `window` after it, by the leader's wall clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduled {
    pub id: RequestId,
    /// Who asks, for people: `user@host`.
    pub by: String,
    pub asked: WallTime,
    pub at: WallTime,
    /// Past this it is missed, and reported as that.
    #[serde(with = "duration")]
    pub window: Duration,
    /// How long it may take from its beginning until the primary is stopped, as `Request::valid_for`.
    #[serde(with = "duration")]
    pub within: Duration,
    pub terms: Terms,
}

impl Scheduled {
    /// Returns from when on it is too late to begin.
    pub fn until(&self) -> WallTime {
        self.at.plus(self.window)
    }

    /// Returns whether it may be begun at `now`.
    pub fn may_begin(&self, now: WallTime) -> bool {
        self.at <= now && now < self.until()
    }

    /// Returns the request as which it is begun.
    pub fn request(&self) -> Request {
        Request {
            id: self.id.clone(),
            by: format!("{}, scheduled for {}", self.by, self.at),
            asked: self.asked,
            valid_for: self.within,
            wanted: Wanted::Switchover(self.terms.clone()),
        }
    }
}

impl Document for Scheduled {
    const KIND: &'static str = "scheduled switchover";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_begun_at_its_time_and_within_its_window() {
        let scheduled = Scheduled {
            id: RequestId::from_random(1),
            by: "ann@north".into(),
            asked: WallTime(0),
            at: WallTime(10_000),
            window: Duration::from_secs(5),
            within: Duration::from_secs(30),
            terms: Terms::default(),
        };
        let may = |ms| scheduled.may_begin(WallTime(ms));
        assert_eq!([may(9_999), may(10_000), may(14_999), may(15_000)], [false, true, true, false]);
    }
}
