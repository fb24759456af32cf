//! A time in which people work on the cluster by hand: nothing is promoted by suspicion, restarted or rejoined.
//!
//! The one rule: a pause ends by itself. It ends by the leader's wall clock, because its end was agreed on among people,
//! or when one leader has seen it stand for all of its length, should that clock be set back. No safety rests on either.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::WallTime;
use proto::orders::{LONGEST_PAUSE, Pause, SHORTEST_PAUSE};
use proto::request::Request;

use super::requests::Answer;
use super::{Inputs, Step};
use crate::observe::Condition;
use crate::plan::WaitingOn;
use crate::record;

/// Answers the request for a pause. A later one takes the place of one that stands.
pub(crate) fn begin(inputs: &Inputs, request: &Request, reason: &str, lasting: Duration) -> Answer {
    if reason.trim().is_empty() {
        return Answer::Refused("a pause needs a reason that others can read".into());
    }
    if !(SHORTEST_PAUSE..=LONGEST_PAUSE).contains(&lasting) {
        return Answer::Refused(format!(
            "a pause lasts from {} s to {} days, not {} s",
            SHORTEST_PAUSE.as_secs(),
            LONGEST_PAUSE.as_secs() / 86_400,
            lasting.as_secs()
        ));
    }
    if inputs.state.switchover().is_some() {
        // Its seal would be held back in the middle; it ends within moments.
        return Answer::Later;
    }
    let mut next = inputs.next();
    let until =
        WallTime(inputs.wall.0 + i64::try_from(lasting.as_millis()).unwrap_or(i64::MAX / 2));
    next.orders.pause = Some(Pause {
        id: request.id.clone(),
        by: request.by.clone(),
        reason: reason.to_owned(),
        since: inputs.wall,
        until,
        lasting,
    });
    let what = format!("paused until {until}: {reason}");
    let history = record::note(inputs, format!("{what}, by {}", request.by));
    Answer::Done { next: Box::new(next), history, what }
}

/// Answers the request to end the pause.
pub(crate) fn resume(inputs: &Inputs, request: &Request) -> Answer {
    let mut next = inputs.next();
    match next.orders.pause.take() {
        None => Answer::Refused("the cluster is not paused".into()),
        Some(pause) => {
            let what = format!("the pause of {} ({}) has ended", pause.by, pause.reason);
            let history = record::note(inputs, format!("{what}, by {}", request.by));
            Answer::Done { next: Box::new(next), history, what }
        }
    }
}

/// Ends a pause whose time is over.
pub(crate) fn over(inputs: &Inputs) -> Option<Step> {
    let pause = inputs.state.orders.pause.as_ref()?;
    let seen_whole = inputs.patience_left(&stands(pause), pause.lasting).is_none();
    if inputs.wall < pause.until && !seen_whole {
        return None;
    }
    let mut next = inputs.next();
    next.orders.pause = None;
    let why = format!("the pause of {} ({}) is over", pause.by, pause.reason);
    Some(Step::change(next, record::note(inputs, why.clone()), why))
}

/// Returns what is waited for instead of a failover, a restart or a switchover.
pub(crate) fn holds_back(inputs: &Inputs) -> Option<Step> {
    let pause = inputs.state.orders.pause.as_ref()?;
    let (by, reason) = (pause.by.clone(), pause.reason.clone());
    Some(Step::wait(WaitingOn::Resume { primary: inputs.primary().clone(), by, reason }))
}

/// Returns the condition of this file, if it holds.
pub(crate) fn conditions(inputs: &Inputs) -> BTreeSet<Condition> {
    inputs.state.orders.pause.iter().map(stands).collect()
}

fn stands(pause: &Pause) -> Condition {
    Condition::Paused { id: pause.id.clone() }
}
