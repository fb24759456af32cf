//! A primary without a base, by an operator's word: when the members that may hold acknowledged commits never come back.
//!
//! The one rule: it counts for one seal and for the members that it names. Whoever of them comes back in time, or
//! whoever else is missing, makes it void: then a base is promoted as ever, or it has to be asked again.

use std::collections::BTreeSet;

use proto::orders::{AcceptedLoss, PromotedWithLoss};
use proto::request::{Request, RequestOutcome};
use proto::{ClusterState, Epoch, MemberName};

use super::base::{self, Outcome};
use super::health::{self, Loss, Situation};
use super::requests::{Answer, ended};
use super::{Inputs, Step, failover, switchover};
use crate::observe::Condition;
use crate::plan::{Verdict, WaitingOn, list};
use crate::record;

/// Answers the request to give up `give_up`.
pub(crate) fn begin(inputs: &Inputs, request: &Request, give_up: &BTreeSet<MemberName>) -> Answer {
    let loss = match situation(inputs) {
        Ok(loss) => loss,
        Err(refused) => return Answer::Refused(refused),
    };
    let live: BTreeSet<MemberName> = inputs.complete().into_keys().cloned().collect();
    let needed = needed(inputs, &live);
    if needed.is_empty() {
        return Answer::Refused(
            "the live members hold every acknowledged commit: one of them is promoted without loss"
                .into(),
        );
    }
    if needed != *give_up {
        return Answer::Refused(format!(
            "what would be given up is not what you were shown: now it is {}; look at it again",
            names(&needed)
        ));
    }
    if !live.iter().any(|m| inputs.may_be_promoted(m)) {
        return Answer::Refused(
            "no live complete member may be promoted: start one, or change promote in the spec"
                .into(),
        );
    }
    let mut next = inputs.next();
    let sealing = inputs.state.sealing.unwrap_or(inputs.state.epoch.next());
    let mut history = Vec::new();
    if let Some(mut loss) = loss {
        loss.evidence.push(format!("{} gives up {}", request.by, names(give_up)));
        history = match inputs.state.handing_over() {
            Some(_) => record::advance(inputs, "seal", loss.evidence.clone()),
            None => record::begin_failover(inputs, &loss, sealing),
        };
        next.sealing = Some(sealing);
        switchover::broken_off(inputs, &mut next, &loss.kind.cause(inputs.primary()));
    }
    forget_pending(&mut next);
    next.orders.losses.push(AcceptedLoss {
        request: request.id.clone(),
        by: request.by.clone(),
        at: inputs.wall,
        sealing,
        given_up: give_up.clone(),
        promoted: None,
    });
    let what = format!("seal epoch {sealing} and give up {}", names(give_up));
    Answer::Started { next: Box::new(next), history, what }
}

/// Returns the loss of the primary that nobody else can answer, `None` if its seal is under way already. Says what to do
/// instead where loss need not be accepted.
fn situation(inputs: &Inputs) -> Result<Option<Loss>, String> {
    if let Some(pause) = &inputs.state.orders.pause {
        return Err(format!("the cluster is paused by {}: resume it first", pause.by));
    }
    match health::situation(inputs) {
        Situation::Sealing(sealing) => match base::choose(inputs, sealing) {
            Outcome::NoBase => Ok(None),
            Outcome::NoCandidate { holders } => Err(format!(
                "{} hold every acknowledged commit and may not be promoted: change promote in the spec",
                list(&holders)
            )),
            Outcome::Chosen(choice) => {
                Err(format!("{} is about to be promoted without loss", choice.member))
            }
        },
        Situation::Lost(loss) => match inputs.complete().contains_key(inputs.primary()) {
            true => Err(format!(
                "the keeper of {} runs and starts its PostgreSQL: stop that keeper first, if it never will",
                inputs.primary()
            )),
            false => Ok(Some(loss)),
        },
        Situation::HandedOver => Err("the next epoch is about to be sealed: ask again".into()),
        Situation::Steady | Situation::Preparing | Situation::Opened(_) => Err(format!(
            "{} is the primary and nothing says that it is lost: use pgdeputy switchover",
            inputs.primary()
        )),
        Situation::Waiting(waiting, _) => Err(format!("it is too early: {waiting}")),
        Situation::Founding(_) | Situation::OtherStore(_) | Situation::SetBack(..) => {
            Err("there is no primary to be replaced: see pgdeputy explain".into())
        }
    }
}

/// The members of the Cfgs that `live` cannot seal, without the live ones.
fn needed(inputs: &Inputs, live: &BTreeSet<MemberName>) -> BTreeSet<MemberName> {
    let unmet = inputs.state.cfgs.iter().filter(|cfg| !cfg.is_sealed_by(live));
    let members = unmet.flat_map(|cfg| cfg.voters.iter().chain([&cfg.leader]));
    members.filter(|m| !live.contains(*m)).cloned().collect()
}

/// Sealing with accepted loss: waits for all that live, then promotes the best of them.
pub(crate) fn choose(inputs: &Inputs, sealing: Epoch) -> Option<Step> {
    let accepted = inputs.state.orders.loss_for(sealing)?;
    if base::choose(inputs, sealing) != Outcome::NoBase {
        return None;
    }
    let sealed = base::sealed(inputs, sealing);
    let late: Vec<MemberName> = inputs
        .complete()
        .into_keys()
        .filter(|m| !sealed.members.contains_key(*m) && !accepted.given_up.contains(*m))
        .cloned()
        .collect();
    let condition = Condition::LossAccepted { sealing };
    if !late.is_empty()
        && let Some(until) = inputs.patience_left(&condition, inputs.spec.promote_patience)
    {
        return Some(Step::wait_until(WaitingOn::Seals { sealing, missing: late }, until));
    }
    let mut counted: BTreeSet<MemberName> = sealed.members.keys().cloned().collect();
    counted.extend(accepted.given_up.iter().cloned());
    let unmet: Vec<_> =
        inputs.state.cfgs.iter().filter(|c| !c.is_sealed_by(&counted)).cloned().collect();
    if !unmet.is_empty() {
        return Some(Step::wait(WaitingOn::MoreLoss { sealing, unmet }));
    }
    let choice = base::best_of_sealed(inputs, &sealed)?;
    Some(promote(inputs, sealing, &choice))
}

/// The Cfgs before go without proof: that is what was accepted.
fn promote(inputs: &Inputs, epoch: Epoch, choice: &base::Choice) -> Step {
    let mut step = failover::promote(inputs, epoch, choice);
    if let Verdict::Change { next, history, why } = &mut step.verdict {
        let mut first = next.cfgs.pop().expect("a promotion appends the first Cfg of its epoch");
        first.voters.retain(|v| choice.sealed.contains_key(v));
        first.k = first.k.min(first.voters.len());
        next.cfgs = vec![first];
        next.open_at_once = false;
        if let Some(began) = next.epochs.last_mut() {
            began.with_loss = true;
        }
        let position = choice.seal.position;
        if let Some(loss) = next.orders.losses.last_mut() {
            let member = choice.member.clone();
            loss.promoted = Some(PromotedWithLoss { member, position, at: inputs.wall });
            let what = format!(
                "{} is promoted; commits beyond {position} that only {} held are lost",
                choice.member,
                names(&loss.given_up)
            );
            *why = format!("{what}: accepted by {}", loss.by);
            let (id, outcome) = (loss.request.clone(), RequestOutcome::Done { what });
            ended(next, &id, outcome, inputs.wall);
        }
        for write in history.iter_mut() {
            write.record.notes.push(proto::history::Note { at: inputs.wall, text: why.clone() });
        }
    }
    step
}

/// A base has come together after all: the leave to lose something is void.
pub(crate) fn not_needed(inputs: &Inputs, next: &mut ClusterState) {
    let Some(sealing) = inputs.state.sealing else { return };
    let Some(loss) = inputs.state.orders.loss_for(sealing) else { return };
    let what = "members came back in time: a primary was chosen without loss".to_owned();
    ended(next, &loss.request, RequestOutcome::Done { what }, inputs.wall);
    next.orders.losses.pop();
}

fn forget_pending(next: &mut ClusterState) {
    next.orders.losses.retain(|loss| loss.promoted.is_some());
}

/// Answers the request to take note of what was lost.
pub(crate) fn acknowledge(inputs: &Inputs, request: &Request) -> Answer {
    let mut next = inputs.next();
    let before = next.orders.losses.len();
    next.orders.losses.retain(|loss| loss.promoted.is_none());
    if next.orders.losses.len() == before {
        return Answer::Refused("no loss waits to be acknowledged".into());
    }
    let what = format!("the accepted loss is acknowledged by {}", request.by);
    Answer::Done { next: Box::new(next), history: record::note(inputs, what.clone()), what }
}

/// Returns the condition of this file, if it holds.
pub(crate) fn conditions(inputs: &Inputs) -> BTreeSet<Condition> {
    let sealing = inputs.state.sealing.filter(|s| inputs.state.orders.loss_for(*s).is_some());
    sealing.into_iter().map(|sealing| Condition::LossAccepted { sealing }).collect()
}

fn names(members: &BTreeSet<MemberName>) -> String {
    list(&Vec::from_iter(members))
}
