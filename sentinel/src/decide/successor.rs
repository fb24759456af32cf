//! Who may follow the primary in a switchover.
//!
//! The one rule: only a member that would take over without loss and at once, and of the others it is said why not.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use proto::MemberName;
use proto::report::Server;

use super::base::{self, Reject};
use super::{Inputs, streams_as_voter};
use crate::plan::list;

/// What two standbys have left to replay is told apart in steps of this many bytes: less is replayed within milliseconds.
const EQUALLY_FAR: u64 = 1 << 20;

/// Says why there is nothing to evacuate, if so.
pub(super) fn outside(inputs: &Inputs, away_from: Option<&str>) -> Option<String> {
    let (zone, primary) = (away_from?, inputs.primary());
    match inputs.report(primary).and_then(|r| r.zone.as_deref()) {
        Some(its) if its == zone => None,
        Some(its) => Some(format!(
            "the primary {primary} is in zone {its}, so nothing has to leave zone {zone}"
        )),
        None => Some(format!(
            "{primary} is in no zone as far as its keeper says: start it with --zone, or name the target with --to"
        )),
    }
}

/// Says why `member` cannot take over without loss and at once, if so.
pub(super) fn eligible(
    inputs: &Inputs,
    member: &MemberName,
    away_from: Option<&str>,
) -> Result<(), String> {
    let state = inputs.state;
    if !state.members.contains_key(member) {
        let known: Vec<MemberName> = state.members.keys().cloned().collect();
        return Err(format!("there is no member {member}: the members are {}", list(&known)));
    }
    if member == inputs.primary() {
        return Err(format!("{member} is the primary already: name another member"));
    }
    let refuse = |reject: Reject| Err(format!("{member} cannot take over: {reject}"));
    if !inputs.may_be_promoted(member) {
        return refuse(Reject::MayNotBePromoted);
    }
    if let Some(reject) = base::unfit(inputs, member) {
        return refuse(reject);
    }
    let Some(report) = inputs.report(member) else { return refuse(Reject::NoReport) };
    if report.leaving || state.orders.leaving.contains_key(member) {
        return refuse(Reject::Leaving);
    }
    if !streams_as_voter(state, report) || !matches!(report.server, Server::Standby { .. }) {
        return refuse(Reject::NotStreaming);
    }
    match (away_from, report.zone.as_deref()) {
        (None, _) => Ok(()),
        (Some(zone), Some(its)) if its != zone => Ok(()),
        (Some(zone), Some(_)) => Err(format!("{member} is in zone {zone} itself")),
        // Not known to be elsewhere is not elsewhere.
        (Some(_), None) => Err(format!("{member} does not say in which zone it is (--zone)")),
    }
}

/// Returns the standby that should take over where nobody was named: the healthiest, then the one with the least `left`
/// to replay, then by priority and name.
pub(super) fn best(
    inputs: &Inputs,
    left: &BTreeMap<MemberName, u64>,
    away_from: Option<&str>,
) -> Result<MemberName, String> {
    let others = inputs.state.members.keys().filter(|m| *m != inputs.primary());
    let judged: Vec<_> = others.map(|m| (m, eligible(inputs, m, away_from))).collect();
    let rank = |member: &MemberName| {
        let problems = inputs.report(member).map_or(0, |r| r.problems.len());
        let left = left.get(member).map_or(0, |bytes| bytes / EQUALLY_FAR);
        (problems, left, Reverse(inputs.spec.member(member).priority))
    };
    let able = judged.iter().filter(|(_, verdict)| verdict.is_ok()).map(|(member, _)| *member);
    able.min_by_key(|m| (rank(m), *m)).cloned().ok_or_else(|| {
        let reasons: Vec<&str> =
            judged.iter().filter_map(|(_, v)| v.as_ref().err()).map(String::as_str).collect();
        match reasons.is_empty() {
            true => "there is no other member: add one first".into(),
            false => {
                let outside = away_from.map(|z| format!(" outside zone {z}")).unwrap_or_default();
                format!("no member{outside} can take over: {}", reasons.join("; "))
            }
        }
    })
}
