//! The leader's reason, complete also when nothing is done: why this primary, why not the others,
//! what is missing.
//!
//! The one rule: no times in it, so that it changes only when the reason does.

use std::collections::BTreeSet;

use proto::explanation::{Explanation, Rejection};
use proto::spec::Durability;
use proto::{Epoch, MemberName, StateNumber};

use crate::decide::Inputs;
use crate::decide::base::{self, Outcome, Reject};
use crate::decide::membership::{self, Standing};
use crate::observe::{Observations, Stored};
use crate::plan::list;

/// The explanation while there is no state. The verdict is filled in by the decider.
pub(crate) fn before_founding(seen: &Observations) -> Explanation {
    Explanation {
        leader: seen.leader.clone(),
        state: StateNumber(0),
        epoch: Epoch(0),
        verdict: String::new(),
        primary: "there is no primary yet: the cluster is to be founded".into(),
        promotable: Vec::new(),
        promotable_reason: "there is no primary yet".into(),
        rejected: Vec::new(),
        warnings: unreadable(seen),
    }
}

/// The explanation of a decision on `inputs`. The verdict is filled in by the decider.
pub(crate) fn of(inputs: &Inputs) -> Explanation {
    let (promotable, promotable_reason) = promotable(inputs);
    Explanation {
        leader: inputs.seen.leader.clone(),
        state: inputs.state.number,
        epoch: inputs.state.epoch,
        verdict: String::new(),
        primary: primary(inputs),
        promotable,
        promotable_reason,
        rejected: rejected(inputs),
        warnings: warnings(inputs),
    }
}

fn primary(inputs: &Inputs) -> String {
    let state = inputs.state;
    let Some(primary) = &state.primary else {
        return "there is no primary yet: the cluster is being founded".into();
    };
    let why = match &state.chosen {
        None => format!("{primary} founded the cluster"),
        Some(position) => {
            format!(
                "{primary} was chosen for epoch {} because it held {position}, the most of a base",
                state.epoch
            )
        }
    };
    match (state.sealing, &inputs.seen.history) {
        (Some(sealing), _) => {
            format!("{why}; it is being replaced: epoch {sealing} is being sealed")
        }
        (None, Some(record)) if state.chosen.is_some() => {
            format!("{why}; before that: {}", record.cause)
        }
        (None, Some(_) | None) => why,
    }
}

/// The live complete voters, if together they contain a seal set of every recorded Cfg.
fn promotable(inputs: &Inputs) -> (Vec<MemberName>, String) {
    let state = inputs.state;
    let Some(newest) = state.newest_cfg() else {
        return (Vec::new(), "there is no primary yet".into());
    };
    let mut voters: BTreeSet<MemberName> = inputs.complete_others().into_keys().cloned().collect();
    voters.retain(|name| newest.voters.contains(name) && base::unfit(inputs, name).is_none());
    if let Some(unmet) = state.cfgs.iter().find(|cfg| !cfg.is_sealed_by(&voters)) {
        let live = list(&Vec::from_iter(&voters));
        return (
            Vec::new(),
            format!("the live complete voters ({live}) could lack commits of Cfg {unmet}"),
        );
    }
    let promotable: Vec<MemberName> =
        voters.into_iter().filter(|m| inputs.may_be_promoted(m)).collect();
    let reason = match promotable.is_empty() {
        true => "the spec says promote = never of every live complete voter".into(),
        false => "together the live complete voters hold every acknowledged commit".into(),
    };
    (promotable, reason)
}

/// Why each other member could not be chosen, or was not.
fn rejected(inputs: &Inputs) -> Vec<Rejection> {
    let mut rejected: Vec<(MemberName, Reject)> = match inputs.state.sealing {
        Some(sealing) => match base::choose(inputs, sealing) {
            Outcome::Chosen(choice) => choice.rejected.into_iter().collect(),
            Outcome::NoBase | Outcome::NoCandidate { .. } => {
                base::sealed(inputs, sealing).rejected.into_iter().collect()
            }
        },
        None => standbys(inputs),
    };
    for (name, reject) in refused(inputs) {
        if !rejected.iter().any(|(other, _)| other == name) {
            rejected.push((name.clone(), reject));
        }
    }
    rejected
        .into_iter()
        .map(|(member, reject)| Rejection { member, reason: reject.to_string() })
        .collect()
}

fn standbys(inputs: &Inputs) -> Vec<(MemberName, Reject)> {
    let state = inputs.state;
    let is_voter = |name: &MemberName| state.newest_cfg().is_some_and(|c| c.voters.contains(name));
    let reject = |name: &MemberName| {
        let unfit = base::unfit(inputs, name);
        unfit
            .or_else(|| (!inputs.may_be_promoted(name)).then_some(Reject::MayNotBePromoted))
            .or_else(|| (!is_voter(name)).then_some(Reject::NotVoter))
    };
    let others = state.members.keys().filter(|name| Some(*name) != state.primary.as_ref());
    others.filter_map(|name| Some((name.clone(), reject(name)?))).collect()
}

fn warnings(inputs: &Inputs) -> Vec<String> {
    let mut warnings = orders(inputs);
    warnings.extend(unreadable(inputs.seen));
    warnings.extend(refused(inputs).map(|(name, reject)| format!("{name} is refused: {reject}")));
    if let Some(sealing) = inputs.state.sealing {
        for (name, reject) in base::sealed(inputs, sealing).rejected {
            if matches!(reject, Reject::BelowFloor { .. }) {
                warnings.push(format!("{name} {reject}"));
            }
        }
    }
    warnings
}

/// What operators have ordered or accepted, and what durability costs now.
fn orders(inputs: &Inputs) -> Vec<String> {
    let orders = &inputs.state.orders;
    let mut said = Vec::new();
    if let Some(pause) = &orders.pause {
        said.push(format!(
            "PAUSED by {} until {}: {}. Nothing is promoted, restarted or rejoined; `pgdeputy resume` ends it",
            pause.by, pause.until, pause.reason
        ));
    }
    for loss in &orders.losses {
        let given_up = list(&Vec::from_iter(&loss.given_up));
        said.push(match &loss.promoted {
            Some(promoted) => format!(
                "LOSS ACCEPTED by {} at {}: {} was promoted to epoch {} at {}, without {given_up}; acknowledged \
                 commits beyond that may be lost. `pgdeputy failover --acknowledge-loss` takes this line away",
                loss.by, promoted.at, promoted.member, loss.sealing, promoted.position
            ),
            None => format!("{} has accepted the loss of what only {given_up} hold", loss.by),
        });
    }
    let newest = inputs.state.newest_cfg();
    let available = inputs.spec.durability == Durability::Available;
    if let Some(cfg) = newest.filter(|c| c.k == 0 && available) {
        said.push(format!(
            "DURABILITY: {} acknowledges commits alone (durability = available): if it is lost, nobody can take over",
            cfg.leader
        ));
    }
    for (name, leaving) in &orders.leaving {
        said.push(format!("{name} is on its way out of the cluster, as {} asked", leaving.by));
    }
    said
}

/// Returns the live members that may not come in. Before the founding nobody's place is known.
fn refused<'a>(inputs: &'a Inputs) -> impl Iterator<Item = (&'a MemberName, Reject)> {
    let founded = inputs.state.system_identifier.is_some();
    inputs.seen.members.iter().filter(move |_| founded).filter_map(|(name, report)| {
        match membership::judge(inputs, name, report) {
            Standing::Refused(reject) => Some((name, reject)),
            Standing::Member | Standing::New | Standing::Renewed => None,
        }
    })
}

fn unreadable(seen: &Observations) -> Vec<String> {
    let mut warnings: Vec<String> =
        seen.unreadable.iter().map(|(name, problem)| format!("{name}: {problem}")).collect();
    for (name, problem) in &seen.unreadable_requests {
        warnings.push(format!(
            "the request under requests/{name} cannot be read, nobody answers it: {problem}"
        ));
    }
    if let Stored::Newer(problem) | Stored::Malformed(problem) = &seen.primary_key {
        warnings.push(format!("the right to serve cannot be read and counts as held: {problem}"));
    }
    warnings
}
