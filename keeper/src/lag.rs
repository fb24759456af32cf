//! How far this standby is behind its primary. In time it is the age of the oldest WAL that was heard of and is not
//! replayed, on this member's own clock: an idle primary makes no lag, and no clock of another machine matters.

use std::collections::VecDeque;
use std::time::Duration;

use proto::{Lsn, Moment};

use crate::postgres::probe::SqlFacts;

/// More than a minute of looks at the steady pace. Beyond it every second one is forgotten: the longer the lag, the
/// coarser it need be known.
const MOST_LOOKS: usize = 1024;

/// A first guess of an age that is longer than this says nothing more.
const LONGEST_GUESS: Duration = Duration::from_secs(24 * 3600);

/// How far a standby is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// WAL that is known to exist and is not replayed.
    pub bytes: u64,
    /// Since when something is missing here; none: all is replayed, and the stream lives.
    pub since: Option<Moment>,
}

impl Behind {
    /// Returns for how long something is missing at `now`.
    pub fn time(&self, now: Moment) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.since(since))
    }
}

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub struct Lag {
    /// Ends of WAL that are not replayed, and when each was first seen; oldest first.
    ends: VecDeque<(Moment, Lsn)>,
    /// When the stream was last known to live.
    heard: Option<Moment>,
    looked: bool,
}

impl Lag {
    /// Takes in what the server has answered; returns how far it is behind, if that can be known.
    pub fn look(&mut self, sql: &SqlFacts) -> Option<Behind> {
        if !sql.in_recovery {
            *self = Self::default();
            return None;
        }
        let replayed = sql.replay_lsn?;
        let receiver = sql.receiver.as_ref().filter(|r| r.streaming);
        let end = [sql.flush_lsn, receiver.and_then(|r| r.primary_end)].into_iter().flatten().max();
        let end = end.unwrap_or(replayed).max(replayed);
        self.remember(sql, end);
        while self.ends.front().is_some_and(|(_, lsn)| *lsn <= replayed) {
            self.ends.pop_front();
        }
        if let Some(receiver) = receiver {
            // A receiver that hears nothing for `wal_receiver_timeout` ends: until then the stream lives.
            self.heard = Some(sql.asked - receiver.silent_for);
        }
        let missing = self.ends.front().map(|(since, _)| *since);
        let since = match receiver {
            Some(_) => missing,
            // Of what has come to be since then nothing can be known here.
            None => {
                let heard = self.heard?;
                Some(missing.map_or(heard, |missing| missing.min(heard)))
            }
        };
        Some(Behind { bytes: end.bytes_ahead_of(replayed), since })
    }

    fn remember(&mut self, sql: &SqlFacts, end: Lsn) {
        let first = !std::mem::replace(&mut self.looked, true);
        if self.ends.back().is_some_and(|(_, known)| *known >= end) {
            return;
        }
        // This keeper has not seen it come. The last commit that was replayed is older than all that is missing, so
        // its age is no less.
        let guess =
            sql.replayed_commit_age.filter(|_| first).unwrap_or_default().min(LONGEST_GUESS);
        self.ends.push_back((sql.asked - guess, end));
        if self.ends.len() > MOST_LOOKS {
            let mut look = 0;
            self.ends.retain(|_| {
                look += 1;
                look % 2 == 1
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::probe::Receiver;
    use proto::Timeline;

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(1000 + seconds))
    }

    /// A standby at `seconds` that has received up to `end` and replayed up to `replayed`.
    fn sql(seconds: u64, end: u64, replayed: u64) -> SqlFacts {
        let receiver = Receiver {
            streaming: true,
            timeline: Timeline(1),
            silent_for: Duration::ZERO,
            name: None,
            primary_end: Some(Lsn(end)),
        };
        SqlFacts {
            asked: at(seconds),
            in_recovery: true,
            timeline: Timeline(1),
            flush_lsn: Some(Lsn(end)),
            replay_lsn: Some(Lsn(replayed)),
            replayed_commit_age: Some(Duration::from_secs(500)),
            standby_names: String::new(),
            receiver: Some(receiver),
            walsenders: Vec::new(),
        }
    }

    fn time(behind: Option<Behind>, seconds: u64) -> u64 {
        behind.unwrap().time(at(seconds)).as_secs()
    }

    #[test]
    fn an_idle_primary_makes_no_lag_however_old_its_last_commit_is() {
        let mut lag = Lag::default();
        for seconds in [0, 3600] {
            let behind = lag.look(&sql(seconds, 100, 100)).unwrap();
            assert_eq!(behind, Behind { bytes: 0, since: None });
        }
    }

    #[test]
    fn the_age_is_that_of_the_oldest_wal_that_is_missing_and_shrinks_as_replay_goes_on() {
        let mut lag = Lag::default();
        lag.look(&sql(0, 100, 100));
        assert_eq!(time(lag.look(&sql(1, 200, 100)), 1), 0);
        assert_eq!(time(lag.look(&sql(5, 300, 100)), 5), 4);
        let behind = lag.look(&sql(6, 400, 200));
        assert_eq!((time(behind, 6), behind.unwrap().bytes), (1, 200));
        assert_eq!(lag.look(&sql(7, 400, 400)), Some(Behind { bytes: 0, since: None }));
    }

    #[test]
    fn it_grows_between_two_looks_and_after_the_stream_has_ended() {
        let mut lag = Lag::default();
        let behind = lag.look(&sql(0, 100, 100));
        assert_eq!(time(behind, 60), 0);
        let cut = |seconds| SqlFacts { receiver: None, ..sql(seconds, 100, 100) };
        assert_eq!(time(lag.look(&cut(2)), 9), 9, "since it was last heard");
    }

    #[test]
    fn a_keeper_that_starts_beside_a_standby_that_lags_takes_the_age_of_its_last_commit() {
        let mut lag = Lag::default();
        assert_eq!(time(lag.look(&sql(0, 200, 100)), 0), 500);
        assert_eq!(time(lag.look(&sql(1, 300, 200)), 1), 0, "the rest was seen to come");
    }

    #[test]
    fn what_cannot_be_known_is_not_known() {
        let mut lag = Lag::default();
        assert_eq!(lag.look(&SqlFacts { receiver: None, ..sql(0, 100, 100) }), None, "never heard");
        assert_eq!(lag.look(&SqlFacts { replay_lsn: None, ..sql(0, 100, 100) }), None);
        assert_eq!(lag.look(&SqlFacts { in_recovery: false, ..sql(0, 100, 100) }), None);
    }

    #[test]
    fn a_long_lag_is_remembered_in_bounded_space() {
        let mut lag = Lag::default();
        lag.look(&sql(0, 100, 100));
        for seconds in 1..10_000 {
            lag.look(&sql(seconds, 100 + seconds, 100));
        }
        assert!(lag.ends.len() <= MOST_LOOKS + 1, "{}", lag.ends.len());
        assert_eq!(time(lag.look(&sql(10_000, 20_000, 100)), 10_000), 9_999);
        let near = time(lag.look(&sql(10_000, 20_000, 9_000)), 10_000);
        assert!((1_000..1_100).contains(&near), "{near}");
    }
}
