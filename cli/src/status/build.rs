//! Puts the documents and the keepers' answers together into a status.

use std::collections::BTreeSet;

use proto::{ClusterName, ClusterState, MemberName, Phase, StateNumber};

use super::{Answers, Status, member};
use crate::history::Change;
use crate::read::Documents;

/// Returns the status of `cluster`.
pub fn status(cluster: ClusterName, documents: Documents, answers: &Answers) -> Status {
    let state = documents.state.as_ref();
    let (promotable, promotable_reason) = promotable(&documents);
    let names: BTreeSet<&MemberName> =
        state.iter().flat_map(|s| s.members.keys()).chain(documents.reports.keys()).collect();
    let members = names
        .into_iter()
        .map(|name| member::member(name, state, documents.reports.get(name), answers))
        .collect();
    let mut warnings = documents.unreadable.clone();
    if documents.leader.is_none() {
        warnings.push(
            "no sentinel leads: nobody would replace a lost primary; start `pgdeputy sentinel`"
                .into(),
        );
    }
    warnings.extend(documents.explanation.iter().flat_map(|e| e.warnings.clone()));
    Status {
        cluster,
        epoch: state.map(|s| s.epoch).unwrap_or_default(),
        phase: phase(state),
        primary: state.and_then(|s| s.primary.clone()),
        writable: state.is_some_and(|s| s.writable_primary().is_some()),
        members,
        promotable,
        promotable_reason,
        sealing: state.and_then(|s| s.sealing),
        timeline: state.filter(|s| s.primary.is_some()).map(|s| s.timeline),
        state_number: state.map(|s| s.number).unwrap_or_default(),
        durability: documents.spec.as_ref().map(|s| s.durability),
        cfgs: state.map(|s| s.cfgs.clone()).unwrap_or_default(),
        verdict: documents.explanation.as_ref().map(|e| e.verdict.clone()),
        leader: documents.leader.map(|l| l.id),
        sentinels: documents.sentinels,
        proxies: documents.proxies,
        scheduled: documents.scheduled,
        warnings,
        last_change: documents.history.last().map(Change::of),
    }
}

fn phase(state: Option<&ClusterState>) -> &'static str {
    match state {
        None => "waiting",
        Some(state) if state.sealing.is_some() => "sealing",
        Some(state) => match state.phase {
            Phase::Founding { .. } => "founding",
            Phase::Promoting => "promoting",
            Phase::Restarting => "restarting",
            Phase::Open => "open",
            Phase::Switchover(_) => "switching over",
        },
    }
}

/// Returns the leader's word on who could take over, if it is about the present state. The same question is
/// never answered twice in two places: that is how answers come to differ.
fn promotable(documents: &Documents) -> (Vec<MemberName>, String) {
    let now = documents.state.as_ref().map_or(StateNumber(0), |s| s.number);
    match (&documents.explanation, &documents.leader) {
        (Some(e), _) if e.state == now => (e.promotable.clone(), e.promotable_reason.clone()),
        (Some(e), _) => {
            let reason = format!(
                "not known: sentinel {} has not explained state {now} yet, ask again",
                e.leader
            );
            (Vec::new(), reason)
        }
        (None, Some(leader)) => {
            (Vec::new(), format!("not known: sentinel {} has not explained itself yet", leader.id))
        }
        (None, None) => (Vec::new(), "no sentinel leads, so nobody would be chosen".into()),
    }
}
