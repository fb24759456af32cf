//! Until when PostgreSQL may serve. Takes no moment that is further ahead than the keeper's lease can reach.

use std::time::Duration;

use proto::Moment;

use super::protocol::{LONGEST_LEASE, Refusal};

#[derive(Clone, Copy)]
pub struct Limit {
    until: Option<Moment>,
    at_most: Duration,
}

impl Limit {
    /// Returns the limit of a standby: none.
    pub fn none() -> Self {
        Self { until: None, at_most: LONGEST_LEASE }
    }

    pub fn until(&self) -> Option<Moment> {
        self.until
    }

    /// Sets the limit, or takes it away for a standby. Refuses a moment too far ahead, and then the old one holds.
    pub fn set(&mut self, until: Option<Moment>, now: Moment) -> Result<(), Refusal> {
        let ahead = until.map_or(Duration::ZERO, |until| until.since(now));
        if ahead > self.at_most {
            return Err(Refusal::TooFar { ahead_ms: ms(ahead), at_most_ms: ms(self.at_most) });
        }
        self.until = until;
        Ok(())
    }

    /// Sets how far ahead a moment may lie, never further than the longest lease of all.
    pub fn at_most(&mut self, at_most: Duration) {
        self.at_most = at_most.min(LONGEST_LEASE);
    }

    /// Returns whether the time is over.
    pub fn has_passed(&self, now: Moment) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    pub fn clear(&mut self) {
        self.until = None;
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn a_moment_too_far_ahead_is_refused_and_the_old_one_holds() {
        let mut limit = Limit::none();
        limit.set(Some(at(160)), at(100)).unwrap();
        let refused = limit.set(Some(at(161)), at(100));
        assert_eq!(refused, Err(Refusal::TooFar { ahead_ms: 61_000, at_most_ms: 60_000 }));
        assert_eq!(limit.until(), Some(at(160)));
    }

    #[test]
    fn no_lease_allows_more_than_the_longest() {
        let mut limit = Limit::none();
        limit.at_most(Duration::from_secs(3600));
        assert!(limit.set(Some(at(161)), at(100)).is_err());
        limit.at_most(Duration::from_secs(4));
        assert!(limit.set(Some(at(105)), at(100)).is_err());
        limit.set(Some(at(104)), at(100)).unwrap();
    }

    #[test]
    fn a_moment_passes_when_it_is_reached_and_none_never_does() {
        let mut limit = Limit::none();
        assert!(!limit.has_passed(at(1_000_000)));
        limit.set(Some(at(104)), at(100)).unwrap();
        assert!(!limit.has_passed(at(103)));
        assert!(limit.has_passed(at(104)));
        // One in the past is taken: it means stop now.
        limit.set(Some(at(50)), at(100)).unwrap();
        assert!(limit.has_passed(at(100)));
    }
}
