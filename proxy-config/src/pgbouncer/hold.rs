//! Decides whether PgBouncer's clients are made to wait for a planned change of primary. Never longer than agreed, by
//! this host's own clock: whatever became of everybody else, clients are let go again.

use std::time::Duration;

use proto::state::Switchover;
use proto::{ClusterState, Epoch, Moment, RequestId};

/// Clients wait for the switchover of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    pub request: RequestId,
    /// The epoch in which it began.
    epoch: Epoch,
    /// Whether the primary was told to stop: from then on there is no way back to it.
    stops: Stops,
    /// When they are let go at the latest.
    pub until: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stops {
    NotYet,
    Ordered,
}

/// What was decided, and what has to be remembered for the next decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    pub holding: Option<Holding>,
    /// The switchover for which clients were let go because time was up: it is not begun with again.
    given_up: Option<RequestId>,
}

/// Returns the next decision.
pub fn decide(state: Option<&ClusterState>, previous: &Decision, now: Moment) -> Decision {
    let given_up = previous.given_up.clone();
    let let_go = || Decision { holding: None, given_up: given_up.clone() };
    let next = match (state.and_then(|s| Some((s, s.switchover()?))), &previous.holding) {
        (Some((state, switchover)), Some(holding)) if holding.request == switchover.request => {
            Decision { holding: Some(follow(state, switchover, holding, now)), given_up }
        }
        (Some((state, switchover)), _) => match begin(state, switchover, now) {
            Some(holding) if given_up.as_ref() != Some(&holding.request) => {
                Decision { holding: Some(holding), given_up }
            }
            Some(_) | None => let_go(),
        },
        (None, Some(holding)) if state.is_none_or(|s| is_between(s, holding)) => previous.clone(),
        (None, _) => let_go(),
    };
    match next.holding {
        Some(holding) if now >= holding.until => {
            Decision { holding: None, given_up: Some(holding.request) }
        }
        holding => Decision { holding, ..next },
    }
}

/// Only with the step that asks for it: past recall the old primary is gone, and whoever is not held yet was cut.
fn begin(state: &ClusterState, switchover: &Switchover, now: Moment) -> Option<Holding> {
    let at_most = switchover.hold_for().filter(|_| switchover.step.can_be_called_off())?;
    Some(Holding {
        request: switchover.request.clone(),
        epoch: state.epoch,
        stops: Stops::NotYet,
        until: now + at_most,
    })
}

fn follow(
    state: &ClusterState,
    switchover: &Switchover,
    holding: &Holding,
    now: Moment,
) -> Holding {
    let stops = match switchover.step.can_be_called_off() {
        true => Stops::NotYet,
        false => Stops::Ordered,
    };
    let until = match stops == holding.stops {
        true => holding.until,
        false => now + switchover.hold_for().unwrap_or(Duration::ZERO),
    };
    Holding {
        request: holding.request.clone(),
        epoch: state.epoch.max(holding.epoch),
        stops,
        until,
    }
}

/// Returns whether the switchover has gone over into the next epoch, whose primary does not serve yet.
fn is_between(state: &ClusterState, holding: &Holding) -> bool {
    state.epoch > holding.epoch && state.writable_primary().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the state of a switchover in this step, of epoch 7.
    fn switching(step: &str) -> ClusterState {
        let text = format!(
            r#"{{"number":1,"etcd_cluster_id":"e","epoch":7,"phase":{{"name":"switchover","target":"b","named":true,
            "request":"0000000000000009","by":"a test","started":"2026-01-01T00:00:00Z","within":"30s","step":{step}}},
            "primary":"a","cfgs":[],"last_cfg":1,"timeline":1,"highest_timeline":1,"open_at_once":true,"epochs":[],
            "members":{{}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    const HOLD: &str = r#"{"name":"hold","since":"2026-01-01T00:00:00Z","within":"5s"}"#;
    const STOP: &str = r#"{"name":"stop"}"#;

    fn at(seconds: u64) -> Moment {
        Moment::since_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn once_the_primary_is_told_to_stop_there_is_more_time_and_it_counts_from_then() {
        let held = decide(Some(&switching(HOLD)), &Decision::default(), at(100));
        assert_eq!(held.holding.as_ref().unwrap().until, at(106));
        let stops = decide(Some(&switching(STOP)), &held, at(103));
        let until = stops.holding.as_ref().unwrap().until;
        assert!(until > at(106));
        assert_eq!(decide(Some(&switching(STOP)), &stops, at(120)), stops);
        assert_eq!(decide(Some(&switching(STOP)), &stops, until).holding, None);
    }

    #[test]
    fn a_store_that_is_away_neither_ends_a_hold_nor_makes_it_longer() {
        let held = decide(Some(&switching(HOLD)), &Decision::default(), at(100));
        assert_eq!(decide(None, &held, at(105)), held);
        let let_go = decide(None, &held, at(106));
        assert_eq!(let_go.holding, None);
        assert_eq!(decide(Some(&switching(HOLD)), &let_go, at(107)).holding, None, "time was up");
    }

    #[test]
    fn a_hold_does_not_begin_when_the_primary_stops_already() {
        assert_eq!(decide(Some(&switching(STOP)), &Decision::default(), at(1)).holding, None);
    }
}
