//! Who belongs to the cluster.
//!
//! The one rule: a name that stands in the record keeps its floor. Other member files under that
//! name come in only as incomplete, and never with another cluster's data.

use std::collections::BTreeSet;

use proto::orders::{Leaving, Removed};
use proto::request::{Request, RequestOutcome};
use proto::state::Admitted;
use proto::{ClusterState, MemberName, MemberReport};

use super::base::Reject;
use super::requests::{Answer, ended};
use super::{Inputs, Step, synchronous};
use crate::plan::list;
use crate::record;

/// Admits all members that may be admitted now.
pub(crate) fn admit(inputs: &Inputs) -> Option<Step> {
    let mut next = inputs.next();
    let mut news = Vec::new();
    for (name, report) in &inputs.seen.members {
        match judge(inputs, name, report) {
            Standing::Member | Standing::Refused(_) => {}
            Standing::New => {
                let admitted = Admitted { incarnation: report.incarnation.clone(), floor: None };
                next.members.insert(name.clone(), admitted);
                next.orders.removed.remove(name);
                news.push(format!("{name} is admitted"));
            }
            Standing::Renewed => {
                let admitted = next.members.get_mut(name)?;
                // The floor stays: whatever the old files acknowledged, the new ones must hold
                // before they count.
                admitted.incarnation = report.incarnation.clone();
                news.push(format!("{name} is admitted anew with new member files, incomplete"));
            }
        }
    }
    (!news.is_empty()).then(|| Step::change(next, Vec::new(), news.join("; ")))
}

/// What a live report is to the cluster.
pub(crate) enum Standing {
    Member,
    New,
    /// Known by name, with new member files that claim nothing.
    Renewed,
    Refused(Reject),
}

/// Returns what the live report under `name` is to the cluster.
pub(crate) fn judge(inputs: &Inputs, name: &MemberName, report: &MemberReport) -> Standing {
    let foreign = |id| Some(id) != inputs.state.system_identifier;
    if report.system_identifier.is_some_and(foreign) {
        return Standing::Refused(Reject::OtherSystem);
    }
    if let Some(removed) = inputs.state.orders.removed.get(name) {
        // Another member under the name of a removed one is new; the removed one itself is not.
        return match removed.incarnation != report.incarnation && !report.complete {
            true => Standing::New,
            false => Standing::Refused(Reject::Removed),
        };
    }
    match inputs.state.members.get(name) {
        None => Standing::New,
        Some(admitted) if admitted.incarnation == report.incarnation => Standing::Member,
        // The present primary is not replaced by a namesake: it is lost first.
        Some(_) if report.complete || inputs.state.primary.as_ref() == Some(name) => {
            Standing::Refused(Reject::OtherIncarnation)
        }
        Some(_) => Standing::Renewed,
    }
}

/// Answers the request to take `member` out of the cluster.
pub(crate) fn remove(
    inputs: &Inputs,
    request: &Request,
    member: &MemberName,
    below_count: bool,
) -> Answer {
    let state = inputs.state;
    if !state.members.contains_key(member) {
        let known = match state.orders.removed.get(member) {
            Some(removed) => format!("{member} was removed already, by {}", removed.by),
            None => format!("there is no member {member}"),
        };
        let members = list(&Vec::from_iter(state.members.keys()));
        return Answer::Refused(format!("{known}: the members are {members}"));
    }
    if state.primary.as_ref() == Some(member) {
        return Answer::Refused(format!(
            "{member} is the primary: make another one the primary first, with pgdeputy switchover"
        ));
    }
    if state.sealing.is_some() {
        return Answer::Later;
    }
    let left = synchronous::voters_without(inputs, member);
    let count = inputs.spec.synchronous.count;
    if let Some(left) = left.filter(|left| left.len() < count && !below_count) {
        return Answer::Refused(format!(
            "without {member} only {} of {count} members that must acknowledge commits would be left ({}): add or \
             start another standby first, or say --below-count; then, where durability is strict, commits wait until \
             enough have joined",
            left.len(),
            list(&Vec::from_iter(&left))
        ));
    }
    let mut next = inputs.next();
    let leaving = Leaving { request: request.id.clone(), by: request.by.clone(), below_count };
    if let Some(before) = next.orders.leaving.insert(member.clone(), leaving) {
        let reason = "it was asked for once more".to_owned();
        ended(&mut next, &before.request, RequestOutcome::Nothing { reason }, inputs.wall);
    }
    let what = format!("take {member} out of the cluster");
    Answer::Started { next: Box::new(next), history: Vec::new(), what }
}

/// Takes those members out that are leaving and that no Cfg needs any more.
pub(crate) fn let_go(inputs: &Inputs) -> Option<Step> {
    let state = inputs.state;
    let needed: BTreeSet<&MemberName> =
        state.cfgs.iter().flat_map(|c| c.voters.iter().chain([&c.leader])).collect();
    let free = state.orders.leaving.iter().filter(|(name, _)| !needed.contains(name));
    let mut next = inputs.next();
    let mut gone = Vec::new();
    for (name, leaving) in free {
        next.orders.leaving.remove(name);
        let Some(admitted) = next.members.remove(name) else { continue };
        let removed = Removed {
            incarnation: admitted.incarnation,
            floor: admitted.floor,
            by: leaving.by.clone(),
            at: inputs.wall,
        };
        next.orders.removed.insert(name.clone(), removed);
        let what = format!("{name} is no member any more, nothing of its data was touched");
        ended(&mut next, &leaving.request, RequestOutcome::Done { what }, inputs.wall);
        gone.push(format!("{name} is taken out of the cluster, as {} asked", leaving.by));
    }
    let why = gone.join("; ");
    (!gone.is_empty()).then(|| Step::change(next, record::note(inputs, why.clone()), why))
}

/// A member that became primary stays.
pub(crate) fn stays(inputs: &Inputs, next: &mut ClusterState, member: &MemberName) {
    if let Some(leaving) = next.orders.leaving.remove(member) {
        let reason = format!("{member} became the primary: nobody else held as much");
        ended(next, &leaving.request, RequestOutcome::Nothing { reason }, inputs.wall);
    }
}

/// Answers the request to take a removed member back: with the files and the floor that it had. One that is on its way out
/// stays.
pub(crate) fn readmit(inputs: &Inputs, request: &Request, member: &MemberName) -> Answer {
    let mut next = inputs.next();
    if next.sealing.is_some() {
        return Answer::Later;
    }
    if let Some(leaving) = next.orders.leaving.remove(member) {
        let reason = format!("{member} was readmitted before it was out");
        ended(&mut next, &leaving.request, RequestOutcome::Nothing { reason }, inputs.wall);
        let what = format!("{member} stays a member");
        let history = record::note(inputs, format!("{what}, as {} asked", request.by));
        return Answer::Done { next: Box::new(next), history, what };
    }
    if next.members.contains_key(member) {
        return Answer::Refused(format!("{member} is a member"));
    }
    let Some(removed) = next.orders.removed.remove(member) else {
        return Answer::Refused(format!(
            "no member {member} was removed: a new one is admitted when its keeper starts"
        ));
    };
    let admitted = Admitted { incarnation: removed.incarnation, floor: removed.floor };
    next.members.insert(member.clone(), admitted);
    let what = format!("{member} is a member again, its keeper brings it back");
    let history = record::note(inputs, format!("{what}, as {} asked", request.by));
    Answer::Done { next: Box::new(next), history, what }
}
