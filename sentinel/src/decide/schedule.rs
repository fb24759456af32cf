//! Switchovers for a later time: begun when their time has come, reported as missed when it has passed.
//!
//! The one rule: never late. Both times are the leader's wall clock, because they were agreed on among people; what
//! is begun is a switchover like any other, so no safety rests on that clock.

use std::time::Duration;

use proto::request::RequestOutcome;
use proto::schedule::Scheduled;
use proto::{Moment, WallTime};

use super::requests::{self, Answer};
use super::{Inputs, Step};
use crate::record;

/// Begins the first one that can be begun now, or tells that one was missed.
pub(crate) fn due(inputs: &Inputs) -> Option<Step> {
    let mut waiting = waiting(inputs);
    waiting.sort_by_key(|s| (s.at, s.id.clone()));
    waiting.into_iter().find_map(|scheduled| step(inputs, scheduled))
}

fn waiting<'a>(inputs: &Inputs<'a>) -> Vec<&'a Scheduled> {
    let all = inputs.seen.scheduled.values();
    all.filter(|s| inputs.state.request(&s.id).is_none()).collect()
}

fn step(inputs: &Inputs, scheduled: &Scheduled) -> Option<Step> {
    if inputs.wall < scheduled.at {
        return None;
    }
    let request = scheduled.request();
    let answer = requests::judge(inputs, &request);
    if scheduled.may_begin(inputs.wall) {
        return match answer {
            Answer::Started { .. } | Answer::Done { .. } => {
                requests::committed(inputs, &request, answer)
            }
            // What is in the way may be gone before the window closes.
            Answer::Refused(_) | Answer::Later => None,
        };
    }
    let why = match answer {
        Answer::Refused(reason) => format!("it could not be begun: {reason}"),
        Answer::Later => "something else was under way".into(),
        Answer::Started { .. } | Answer::Done { .. } => "no sentinel led then".into(),
    };
    let reason = format!(
        "missed: it was to begin between {} and {}, and is not begun late; {why}",
        scheduled.at,
        scheduled.until()
    );
    let mut next = inputs.next();
    requests::note(
        &mut next,
        &request,
        RequestOutcome::Refused { reason: reason.clone() },
        inputs.wall,
    );
    let why = format!("the switchover that {} asked for is {reason}", request.by);
    Some(Step::change(next, record::note(inputs, why.clone()), why))
}

/// Returns when the next of these times comes, on the leader's own clock.
pub(crate) fn wake_at(inputs: &Inputs) -> Option<Moment> {
    let times = waiting(inputs).into_iter().flat_map(|s| [s.at, s.until()]);
    let ahead =
        |time: WallTime| u64::try_from(time.ms_since(inputs.wall)).ok().filter(|ms| *ms > 0);
    times.filter_map(ahead).min().map(|ms| inputs.now + Duration::from_millis(ms))
}
