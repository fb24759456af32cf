//! A planned change of primary: check the target, have the primary write a checkpoint, have proxies hold their clients,
//! have the primary stop and seal, and then seal the next epoch with what it held as the measure.
//!
//! The one rule (I12): until the stop everything can be called off and nothing has changed; from the stop on every
//! outcome is a new epoch, whose primary holds all that the stopped one held, as long as that one still says so.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::proxy::ProxyReport;
use proto::report::{Handover, Readiness, Seal, Server};
use proto::request::{Request, RequestKind, RequestOutcome, Terms, Unheld};
use proto::state::{Switchover, SwitchoverStep};
use proto::{ClusterState, MemberName, Phase};

use super::base;
use super::health::{self, Loss, LossKind, Situation};
use super::requests::{self, Answer};
use super::successor::{best, eligible, outside};
use super::{Inputs, Step};
use crate::observe::{Condition, Part};
use crate::plan::{WaitingOn, list};
use crate::record;

/// The keeper bounds its stop by 10 s and fences then; after this long it is not going to say anything.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// Answers the request for a switchover.
pub(crate) fn begin(inputs: &Inputs, request: &Request, terms: &Terms) -> Answer {
    let state = inputs.state;
    if let Some(reason) = busy(inputs) {
        return Answer::Refused(reason);
    }
    if state.cfgs.iter().any(|cfg| cfg.epoch != state.epoch) {
        // The last change of primary is proven within moments, or commits wait and nothing is to be stopped.
        return Answer::Later;
    }
    if let Some(reason) = outside(inputs, terms.away_from.as_deref()) {
        return Answer::Refused(reason);
    }
    let target = match &terms.to {
        Some(named) => eligible(inputs, named, terms.away_from.as_deref()).map(|()| named.clone()),
        None => best(inputs, &BTreeMap::new(), terms.away_from.as_deref()),
    };
    let target = match target {
        Ok(target) => target,
        Err(reason) => return Answer::Refused(reason),
    };
    let what = format!("switchover from {} to {target}", inputs.primary());
    let mut next = inputs.next();
    next.phase = Phase::Switchover(Switchover {
        target,
        named: terms.to.is_some(),
        away_from: terms.away_from.clone(),
        request: request.id.clone(),
        by: request.by.clone(),
        started: inputs.wall,
        within: request.valid_for,
        hold: terms.hold,
        unheld: terms.unheld,
        step: SwitchoverStep::Checkpoint,
    });
    Answer::Started { next: Box::new(next), history: Vec::new(), what }
}

/// Returns why no switchover can begin now, if so.
fn busy(inputs: &Inputs) -> Option<String> {
    let state = inputs.state;
    let Some(primary) = &state.primary else {
        return Some("the cluster is being founded: wait until it serves".into());
    };
    if let Some(under_way) = state.switchover() {
        let (to, by) = (&under_way.target, &under_way.by);
        return Some(format!(
            "a switchover to {to}, asked for by {by}, is under way: wait for its end"
        ));
    }
    if state.phase != Phase::Open || state.sealing.is_some() {
        return Some(
            "the primary is being replaced or started again: wait until it serves (pgdeputy status)".into(),
        );
    }
    let serves = inputs.report(primary).is_some_and(|r| matches!(r.server, Server::Primary { .. }));
    (!serves || !inputs.right_is_held()).then(|| {
        format!("{primary} does not serve just now, and only a healthy primary hands over: see pgdeputy status")
    })
}

/// The steps while the primary serves.
pub(crate) fn advance(inputs: &Inputs, switchover: &Switchover) -> Step {
    let (target, away_from) = (&switchover.target, switchover.away_from.as_deref());
    if switchover.named
        && let Err(reason) = eligible(inputs, target, away_from)
    {
        return call_off(inputs, reason);
    }
    let handover = inputs.report(inputs.primary()).and_then(|r| r.handover.as_ref());
    let left = match handover.filter(|h| h.request == switchover.request) {
        Some(Handover { readiness: Readiness::Ready { left }, .. }) => left,
        Some(Handover { readiness: Readiness::Impossible { reason }, .. }) => {
            return call_off(inputs, reason.clone());
        }
        None => return unready(inputs, switchover),
    };
    let chosen = match switchover.named {
        true => Ok(target.clone()),
        false => best(inputs, left, away_from),
    };
    match chosen {
        Ok(target) => held_or_stop(inputs, &Switchover { target, ..switchover.clone() }, left),
        Err(reason) => call_off(inputs, reason),
    }
}

/// The primary has not said that its checkpoint is written.
fn unready(inputs: &Inputs, switchover: &Switchover) -> Step {
    let primary = inputs.primary().clone();
    let condition = condition(switchover);
    let held = matches!(switchover.step, SwitchoverStep::Hold { .. });
    match inputs.patience_left(&condition, switchover.within).filter(|_| !held) {
        Some(until) => {
            let target = switchover.target.clone();
            Step::wait_until(WaitingOn::Checkpoint { primary, target }, until)
        }
        // It had said so: clients are not held while another one is written.
        None if held => call_off(inputs, format!("the keeper of {primary} has begun anew")),
        None => call_off(
            inputs,
            format!(
                "{primary} did not get its checkpoint written within {} s: ask again with a longer --deadline",
                switchover.within.as_secs()
            ),
        ),
    }
}

/// The primary is ready, and `switchover` names the target that stands.
fn held_or_stop(
    inputs: &Inputs,
    switchover: &Switchover,
    left: &BTreeMap<MemberName, u64>,
) -> Step {
    let holds = |p: &&ProxyReport| p.holds_for(&switchover.request);
    let unheld_by: Vec<&ProxyReport> = holders(inputs).into_iter().filter(|p| !holds(p)).collect();
    let missing: Vec<String> = unheld_by.iter().map(|p| p.id.clone()).collect();
    if missing.is_empty() {
        return stop(inputs, switchover, left);
    }
    let condition = condition(switchover);
    let within = match switchover.step {
        SwitchoverStep::Hold { within, .. } => within,
        SwitchoverStep::Checkpoint | SwitchoverStep::Stop | SwitchoverStep::Sealed { .. } => {
            let whole = inputs.patience_left(&condition, switchover.within);
            let rest = whole.map_or(Duration::ZERO, |until| until.since(inputs.now));
            return hold(inputs, switchover, switchover.hold.min(rest), &missing);
        }
    };
    let target = switchover.target.clone();
    match (inputs.patience_left(&condition, within), switchover.unheld) {
        (Some(until), _) => Step::wait_until(WaitingOn::Held { target, proxies: missing }, until),
        (None, Unheld::Cut) => stop(inputs, switchover, left),
        (None, Unheld::CallOff) => call_off(inputs, unheld(&unheld_by, within)),
    }
}

fn unheld(by: &[&ProxyReport], within: Duration) -> String {
    let names: Vec<String> = by.iter().map(|p| p.id.clone()).collect();
    let refusing: Vec<String> = by.iter().flat_map(|p| p.cut()).collect();
    let why = match refusing.is_empty() {
        true => "because transactions ran on: end those that are long or idle (pg_stat_activity), or ask again with a \
                 longer --hold"
            .to_owned(),
        false => refusing.join("; "),
    };
    format!(
        "{} did not get hold of all clients within {} s, {why}",
        list(&names),
        within.as_secs_f32()
    )
}

/// Returns the live proxies that can make their clients wait.
pub(crate) fn holders<'a>(inputs: &Inputs<'a>) -> Vec<&'a ProxyReport> {
    inputs.seen.proxies.values().filter(|p| p.can_hold()).collect()
}

/// Has proxies make their clients wait. Nothing else changes.
fn hold(inputs: &Inputs, switchover: &Switchover, within: Duration, missing: &[String]) -> Step {
    let mut next = inputs.next();
    let why = format!(
        "{} is ready to hand over to {}: {} are to hold their clients",
        inputs.primary(),
        switchover.target,
        list(missing)
    );
    let step = SwitchoverStep::Hold { since: inputs.wall, within };
    next.phase = Phase::Switchover(Switchover { step, ..switchover.clone() });
    Step::change(next, Vec::new(), why)
}

/// From here on there is no way back to this epoch.
fn stop(inputs: &Inputs, switchover: &Switchover, left: &BTreeMap<MemberName, u64>) -> Step {
    let mut next = inputs.next();
    let why = format!("{} stops and hands over to {}", inputs.primary(), switchover.target);
    let stopping = Switchover { step: SwitchoverStep::Stop, ..switchover.clone() };
    let history = record::begin_switchover(inputs, &stopping, left);
    next.phase = Phase::Switchover(stopping);
    Step::change(next, history, why)
}

/// Nothing has been done that would have to be undone.
fn call_off(inputs: &Inputs, reason: String) -> Step {
    let mut next = inputs.next();
    let why = format!("the switchover is called off: {reason}");
    let history = inputs.state.switchover().map(|s| {
        let note = format!(
            "the switchover to {} that {} asked for is called off: {reason}",
            s.target, s.by
        );
        record::note(inputs, note)
    });
    broken_off(inputs, &mut next, &reason);
    Step::change(next, history.unwrap_or_default(), why)
}

/// Takes a switchover that can still be called off out of `next`.
pub(crate) fn broken_off(inputs: &Inputs, next: &mut ClusterState, reason: &str) {
    let Some(switchover) = inputs.state.switchover() else { return };
    if switchover.step.can_be_called_off() {
        next.phase = Phase::Open;
        let outcome = RequestOutcome::Nothing { reason: reason.to_owned() };
        requests::ended(next, &switchover.request, outcome, inputs.wall);
    }
}

/// Returns how things are in step `Stop`: a PostgreSQL that ends is what was asked for, and no death.
pub(crate) fn stopping(inputs: &Inputs, switchover: &Switchover) -> Situation {
    let report = inputs.report(inputs.primary());
    if handed_over(inputs).is_some() {
        return Situation::HandedOver;
    }
    if !inputs.right_is_held() {
        return health::lapse(inputs, report);
    }
    let condition = condition(switchover);
    match inputs.patience_left(&condition, STOP_PATIENCE) {
        Some(until) => {
            let waiting = WaitingOn::HandOver {
                primary: inputs.primary().clone(),
                target: switchover.target.clone(),
            };
            Situation::Waiting(waiting, Some(until))
        }
        None => Situation::Lost(Loss {
            kind: LossKind::KeptOn,
            since: inputs.wall_since(&condition),
            evidence: vec![format!("{} was to stop and has not sealed", inputs.primary())],
        }),
    }
}

/// Returns the stopped primary's seal for the next epoch, if it counts.
pub(crate) fn handed_over(inputs: &Inputs) -> Option<Seal> {
    inputs.state.handing_over()?;
    base::standing(inputs, inputs.primary(), inputs.state.epoch.next()).ok()
}

/// The primary has stopped and sealed: the others do the same.
pub(crate) fn seal(inputs: &Inputs) -> Step {
    let (Some(switchover), Some(seal)) = (inputs.state.switchover(), handed_over(inputs)) else {
        return Step::wait(WaitingOn::Nothing { primary: inputs.primary().clone() });
    };
    let sealing = inputs.state.epoch.next();
    let mut next = inputs.next();
    next.sealing = Some(sealing);
    let step = SwitchoverStep::Sealed { position: seal.position };
    next.phase = Phase::Switchover(Switchover { step, ..switchover.clone() });
    let why = format!(
        "seal epoch {sealing}: {} has stopped at {} to hand over to {}",
        inputs.primary(),
        seal.position,
        switchover.target
    );
    Step::change(next, record::advance(inputs, "seal", Vec::new()), why)
}

/// Ends the requests for a switchover in `next`, whose primary serves.
pub(crate) fn completed(inputs: &Inputs, next: &mut ClusterState) {
    let epochs = next.epochs.iter().rev().map(|r| &r.primary);
    let mut last_two = epochs.take(2);
    let (Some(now), Some(before)) = (last_two.next().cloned(), last_two.next().cloned()) else {
        return;
    };
    let outcome = match now == before {
        false => RequestOutcome::Done {
            what: format!("{now} is the primary of epoch {}, before it was {before}", next.epoch),
        },
        true => RequestOutcome::Nothing {
            reason: format!(
                "no standby held all that {now} held when it had stopped: it is the primary again, of epoch {}",
                next.epoch
            ),
        },
    };
    for answered in &mut next.requests {
        if answered.kind == RequestKind::Switchover && !answered.outcome.is_final() {
            answered.outcome = outcome.clone();
            answered.at = inputs.wall;
        }
    }
}

/// Returns the condition of this file that holds.
pub(crate) fn condition(switchover: &Switchover) -> Condition {
    let part = match switchover.step {
        SwitchoverStep::Checkpoint => Part::Checkpoint,
        SwitchoverStep::Hold { .. } => Part::Hold,
        SwitchoverStep::Stop | SwitchoverStep::Sealed { .. } => Part::Stop,
    };
    Condition::Switchover { request: switchover.request.clone(), part }
}
