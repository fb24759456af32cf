//! Whether the primary that this standby follows gets on. Pure: `onlooker` asks. A primary starved of its processor renews its right and is heard
//! now and then, and its keeper, as starved, does not get round to telling that nothing works: its voters see it.
//!
//! The one rule: they judge by what its keeper would. It commits a record of its own `QUESTIONS` times within
//! `unresponsive_after`, so that the WAL of an idle primary moves too; and once it leaves echoes unanswered a standby asks
//! for a session itself, for as long as that one would wait. A refusal is an answer. It has no safety weight.

use std::time::Duration;

use proto::{Epoch, Lsn, Moment};

use crate::health::{QUESTIONS, Vital};

/// A keeper that has not looked for longer than this was paused itself, and has seen nothing meanwhile.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// So often it must have been seen to move first: as often as its keeper alone makes it within `unresponsive_after`.
/// Where those records do not come for some reason of its own, an idle primary is not replaced by another one like it.
const SEEN_TO_MOVE: u32 = QUESTIONS;

/// Whom a standby watches: another epoch, another start of PostgreSQL and another pace of its keeper begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    pub epoch: Epoch,
    /// The number of the last order to start it again, 0 for none.
    pub restart: u64,
    pub unresponsive_after: Duration,
}

impl Watched {
    /// How long its keeper can leave it without WAL and still take it to be well: a question may wait for all of
    /// `unresponsive_after`, and the next one is asked a pause later.
    fn patience(self) -> Duration {
        self.unresponsive_after + self.unresponsive_after / QUESTIONS
    }
}

/// What has been seen of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standstill {
    watched: Option<Watched>,
    /// The end of its WAL, as far as is known here.
    end: Lsn,
    moves: u32,
    /// For how long it has not moved over a stream that was heard all the time, as far as this keeper has looked.
    still_for: Duration,
    /// Whether it lets this member in, asked while it is suspected.
    pub sessions: Vital,
    looked: Moment,
}

impl Standstill {
    /// Takes in what is seen at `now` of the end of the primary's WAL; `None`: nothing is heard of it, which is for others
    /// to judge, and so is a link that lets nothing but small packets through: its stream breaks off again and again.
    pub fn look(&mut self, now: Moment, watched: Option<Watched>, end: Option<Lsn>) {
        if self.watched != watched {
            *self = Self { watched, looked: now, ..Self::default() };
        }
        let passed = now.since(self.looked).min(LONGEST_LOOK);
        self.looked = now;
        self.sessions.look(now, passed);
        let Some(end) = end else {
            self.still_for = Duration::ZERO;
            return;
        };
        if end > self.end {
            self.end = end;
            self.moves = self.moves.saturating_add(1);
            self.still_for = Duration::ZERO;
        } else {
            self.still_for += passed;
        }
    }

    /// Returns the epoch whose primary does not get on, once that has lasted.
    pub fn told(&self) -> Option<Epoch> {
        let watched = self.watched?;
        let is_still = self.still_for >= watched.patience() && self.moves >= SEEN_TO_MOVE;
        let is_shut = self.sessions.unwell_for() >= watched.unresponsive_after;
        (is_still || is_shut).then_some(watched.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Answer;

    const AFTER: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(1000) + Duration::from_millis(millis))
    }

    fn watched(epoch: u64) -> Option<Watched> {
        Some(Watched { epoch: Epoch(epoch), restart: 0, unresponsive_after: AFTER })
    }

    /// Looks ten times a second from `from` to `to`, in seconds, at WAL that ends where `end` says, by the tenth.
    fn looks(
        standstill: &mut Standstill,
        (from, to): (u64, u64),
        end: impl Fn(u64) -> Option<u64>,
    ) {
        for tenth in from * 10..to * 10 {
            standstill.look(at(tenth * 100), watched(1), end(tenth).map(Lsn));
        }
    }

    /// A primary that has moved once a second for twenty seconds.
    fn lively() -> Standstill {
        let mut standstill = Standstill::default();
        looks(&mut standstill, (0, 20), |tenth| Some(1 + tenth / 10));
        standstill
    }

    #[test]
    fn a_primary_that_stops_moving_is_told_once_its_keeper_would_have_and_until_it_moves() {
        let mut standstill = lively();
        assert_eq!(standstill.told(), None);
        looks(&mut standstill, (20, 31), |_| Some(20));
        assert_eq!(
            standstill.told(),
            None,
            "its keeper may wait for a question that it asked late"
        );
        looks(&mut standstill, (31, 33), |_| Some(20));
        assert_eq!(standstill.told(), Some(Epoch(1)));
        looks(&mut standstill, (33, 34), |_| Some(21));
        assert_eq!(standstill.told(), None);
    }

    #[test]
    fn an_idle_primary_whose_keeper_commits_its_records_is_never_told() {
        let mut standstill = Standstill::default();
        for hour in 0..2 {
            looks(&mut standstill, (hour * 3600, (hour + 1) * 3600), |tenth| Some(1 + tenth / 20));
            assert_eq!(standstill.told(), None);
        }
    }

    #[test]
    fn what_is_not_heard_and_time_without_a_look_count_for_nothing() {
        let mut standstill = lively();
        looks(&mut standstill, (20, 600), |_| None);
        assert_eq!(standstill.told(), None, "that the stream is away is told by others");
        let mut standstill = lively();
        standstill.look(at(3_600_000), watched(1), Some(Lsn(20)));
        assert_eq!(standstill.told(), None, "the keeper was paused itself");
    }

    #[test]
    fn a_stream_that_breaks_off_again_and_again_shows_no_standstill() {
        let mut standstill = lively();
        looks(&mut standstill, (20, 600), |tenth| (tenth % 20 < 15).then_some(20));
        assert_eq!(standstill.told(), None);
    }

    #[test]
    fn a_primary_that_grants_no_session_is_told_though_it_moves_and_until_it_answers() {
        let mut standstill = lively();
        standstill.sessions.asks(at(20_000));
        looks(&mut standstill, (20, 30), |tenth| Some(1 + tenth / 10));
        assert_eq!(standstill.told(), None);
        looks(&mut standstill, (30, 31), |tenth| Some(1 + tenth / 10));
        assert_eq!(standstill.told(), Some(Epoch(1)));
        standstill.sessions.hears(Answer::Well);
        assert_eq!(standstill.told(), None);
    }

    #[test]
    fn who_was_not_seen_to_move_is_not_told() {
        let mut standstill = Standstill::default();
        looks(&mut standstill, (0, 600), |tenth| Some(1 + (tenth / 10).min(3)));
        assert_eq!(standstill.told(), None);
    }

    #[test]
    fn another_epoch_another_start_and_another_setting_begin_anew() {
        for change in [
            |w: &mut Watched| w.epoch = Epoch(2),
            |w: &mut Watched| w.restart = 1,
            |w: &mut Watched| w.unresponsive_after = Duration::from_secs(5),
        ] {
            let mut standstill = lively();
            looks(&mut standstill, (20, 40), |_| Some(20));
            let mut other = watched(1).unwrap();
            change(&mut other);
            standstill.look(at(40_000), Some(other), Some(Lsn(20)));
            assert_eq!(standstill.told(), None, "{other:?}");
        }
    }
}
