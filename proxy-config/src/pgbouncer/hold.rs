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
