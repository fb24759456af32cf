//! Answers requests: begins what is asked for, or refuses it with a reason that says what to do.
//!
//! The one rule: the answer stands in the state under the request's id, written by the transaction that takes the
//! request away. What stands there is never answered again.

use proto::request::{Answered, Request, RequestId, RequestOutcome, Wanted};
use proto::state::REQUESTS_KEPT;
use proto::{ClusterState, Phase, WallTime};

use super::{Inputs, Step, loss, membership, pause, switchover};
use crate::plan::HistoryWrite;

/// What becomes of one request now.
pub(crate) enum Answer {
    /// It is begun: `next` is the state that begins it.
    Started { next: Box<ClusterState>, history: Vec<HistoryWrite>, what: String },
    /// It is begun and ended by `next`.
    Done { next: Box<ClusterState>, history: Vec<HistoryWrite>, what: String },
    /// It cannot be. Says why and what to do.
    Refused(String),
    /// Something that ends by itself within moments is in the way: it is looked at again, while it is valid.
    Later,
}

/// Answers the first request that can be answered now. For moments in which nothing more urgent is to be done.
pub(crate) fn answer(inputs: &Inputs) -> Option<Step> {
    let unanswered =
        inputs.seen.requests.values().filter(|r| inputs.state.request(&r.id).is_none());
    unanswered.into_iter().find_map(|request| committed(inputs, request, judge(inputs, request)))
}

/// Returns the change that gives `answer` to `request`; none while there is no answer yet.
pub(crate) fn committed(inputs: &Inputs, request: &Request, answer: Answer) -> Option<Step> {
    let (mut next, history, outcome, why) = match answer {
        Answer::Later => return None,
        Answer::Started { next, history, what } => {
            let why = format!("{what}, asked for by {}", request.by);
            (*next, history, RequestOutcome::Started { what }, why)
        }
        Answer::Done { next, history, what } => {
            let why = format!("{what}, asked for by {}", request.by);
            (*next, history, RequestOutcome::Done { what }, why)
        }
        Answer::Refused(reason) => {
            let why = format!(
                "refuse the {} that {} asks for: {reason}",
                request.wanted.kind(),
                request.by
            );
            (inputs.next(), Vec::new(), RequestOutcome::Refused { reason }, why)
        }
    };
    note(&mut next, request, outcome, inputs.wall);
    Some(Step::change(next, history, why))
}

/// Returns what becomes of `request` now.
pub(crate) fn judge(inputs: &Inputs, request: &Request) -> Answer {
    if matches!(inputs.state.phase, Phase::Founding { .. }) {
        return Answer::Refused("the cluster is still being founded: wait until it is open".into());
    }
    match &request.wanted {
        Wanted::Switchover(_) if inputs.state.orders.pause.is_some() => {
            Answer::Refused("the cluster is paused: resume it first".into())
        }
        Wanted::Pause { reason, lasting } => pause::begin(inputs, request, reason, *lasting),
        Wanted::Resume => pause::resume(inputs, request),
        Wanted::Remove { member, below_count } => {
            membership::remove(inputs, request, member, *below_count)
        }
        Wanted::Readmit { member } => membership::readmit(inputs, request, member),
        Wanted::AcceptLoss { give_up } => loss::begin(inputs, request, give_up),
        Wanted::AcknowledgeLoss => loss::acknowledge(inputs, request),
        Wanted::Switchover(terms) => switchover::begin(inputs, request, terms),
    }
}

/// Remembers the answer to `request` in `state`, and forgets the oldest ones whose end has been told.
pub(crate) fn note(
    state: &mut ClusterState,
    request: &Request,
    outcome: RequestOutcome,
    at: WallTime,
) {
    state.requests.push(Answered {
        id: request.id.clone(),
        kind: request.wanted.kind(),
        by: request.by.clone(),
        asked: request.asked,
        at,
        outcome,
    });
    let mut surplus = state.requests.len().saturating_sub(REQUESTS_KEPT);
    state.requests.retain(|r| {
        let goes = surplus > 0 && r.outcome.is_final();
        surplus -= usize::from(goes);
        !goes
    });
}

/// Notes in `state` what has come of the request `id` that was begun.
pub(crate) fn ended(
    state: &mut ClusterState,
    id: &RequestId,
    outcome: RequestOutcome,
    at: WallTime,
) {
    if let Some(answered) = state.requests.iter_mut().find(|r| r.id == *id) {
        answered.outcome = outcome;
        answered.at = at;
    }
}
