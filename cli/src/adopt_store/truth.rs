//! Which state a restored store should hold, by what the members have acted on. Pure.
//!
//! The one rule: a state is taken for the last one only where those who report could not all have missed a later one;
//! otherwise it is refused, with the members that are missing.

use std::collections::{BTreeMap, BTreeSet};

use proto::assignment::{Assignment, assignment};
use proto::{Cfg, ClusterState, Epoch, MemberName, MemberReport, StateNumber};

/// Far more than the commits that a member which is down now can have seen and those that report cannot: the adopted
/// state must be above its as well. Numbers cost nothing.
const LEAP: u64 = 1000;

/// What would be written, and what it is known by.
#[derive(Debug)]
pub struct Truth {
    pub next: ClusterState,
    /// The number of the last state that a member acted on.
    pub acted_on: StateNumber,
    pub by: MemberName,
    /// Those whose words it rests on.
    pub vouched_by: BTreeSet<MemberName>,
}

/// Returns what the store should hold. `found`: what it holds; `etcd`: the id of the etcd cluster. The error says what
/// is missing.
pub fn truth(
    found: Option<&ClusterState>,
    reports: &BTreeMap<MemberName, MemberReport>,
    etcd: &str,
) -> Result<Truth, String> {
    let (by, last) = last_acted_on(reports, found)?;
    if found.is_some_and(|found| found.adopted > Some(last.number) && found.etcd_cluster_id == etcd)
    {
        return Err(
            "this store was adopted a moment ago, and the members are about to read so: look with \
                    `pgdeputy status`"
                .into(),
        );
    }
    contradictions(last, reports)?;
    let vouched_by = vouchers(last, reports)?;
    let highest = found.map_or(0, |found| found.number.0).max(last.number.0);
    let mut next = last.clone();
    next.number = StateNumber(highest + LEAP);
    next.adopted = Some(next.number);
    next.etcd_cluster_id = etcd.to_owned();
    Ok(Truth { next, acted_on: last.number, by, vouched_by })
}

/// Returns the last state that any member has acted on, and that member.
fn last_acted_on<'a>(
    reports: &'a BTreeMap<MemberName, MemberReport>,
    found: Option<&ClusterState>,
) -> Result<(MemberName, &'a ClusterState), String> {
    let frozen = reports.iter().filter_map(|(m, r)| Some((m, &*r.frozen.as_ref()?.acted_on)));
    let mut last: Option<(&MemberName, &ClusterState)> = None;
    for (member, state) in frozen {
        match last {
            Some((other, known)) if state.number == known.number && state != known => {
                return Err(format!(
                    "{member} and {other} have acted on different states with number {}: this was restored and changed \
                     before; nothing can be vouched for without looking at both members' data",
                    state.number
                ));
            }
            Some((_, known)) if state.number <= known.number => {}
            _ => last = Some((member, state)),
        }
    }
    match last {
        Some((member, state)) => Ok((member.clone(), state)),
        None if reports.is_empty() => {
            Err("no member reports, so nobody can say what was agreed last: start the \
                                           keepers, their PostgreSQL may stay as it is"
                .into())
        }
        None => Err(format!(
            "no member is frozen: there is nothing to adopt{}",
            found.map_or(String::new(), |f| format!(", state {} is believed", f.number))
        )),
    }
}

/// A later state than `last` is known by what somebody has promised or serves.
fn contradictions(
    last: &ClusterState,
    reports: &BTreeMap<MemberName, MemberReport>,
) -> Result<(), String> {
    for (member, report) in reports {
        if report.promise > asked_to_promise(last, member) {
            return Err(format!(
                "{member} has promised epoch {} and the last state that a member remembers is of epoch {}: a member that \
                 knows more does not report; start the keepers of all members",
                report.promise, last.epoch
            ));
        }
        let serves = report.opened.is_some_and(|opened| opened.epoch == last.epoch);
        if report.opened.is_some() && (!serves || last.primary.as_ref() != Some(member)) {
            return Err(format!(
                "{member} serves as primary and the last state that a member remembers names {}: stop the keeper of the \
                 one whose commits are not acknowledged, and look again",
                last.primary.as_ref().map_or("nobody".to_owned(), ToString::to_string)
            ));
        }
    }
    Ok(())
}

/// The epoch that `last` itself asks a member to promise. A primary that hands over promises the next one before anybody
/// else is asked to.
fn asked_to_promise(last: &ClusterState, member: &MemberName) -> Epoch {
    match assignment(last, member) {
        Assignment::HandOver(hand_over) => hand_over.sealing,
        _ => last.sealing.unwrap_or(last.epoch),
    }
}

/// Returns who vouches that no later state was acted on by anybody.
///
/// A later epoch needs a seal set of the newest Cfg, and a later Cfg its leader. Leader and k voters that have promised
/// nothing later meet each such set. Otherwise all members are needed: whoever was promoted would remember.
fn vouchers(
    last: &ClusterState,
    reports: &BTreeMap<MemberName, MemberReport>,
) -> Result<BTreeSet<MemberName>, String> {
    let ours = |name: &&MemberName| {
        let known = last.members.get(*name).map(|admitted| &admitted.incarnation);
        // Without the mark it may be a report that the backup brought along.
        reports.get(*name).is_some_and(|r| r.frozen.is_some() && Some(&r.incarnation) == known)
    };
    let reporting: BTreeSet<MemberName> = last.members.keys().filter(ours).cloned().collect();
    let unpromised =
        |name: &MemberName| reporting.contains(name) && reports[name].promise <= last.epoch;
    if let Some(cfg) = last.newest_cfg().filter(|cfg| unpromised(&cfg.leader)) {
        let voters: BTreeSet<MemberName> =
            cfg.voters.iter().filter(|v| unpromised(v)).cloned().collect();
        if voters.len() >= cfg.k {
            return Ok(voters.into_iter().chain([cfg.leader.clone()]).collect());
        }
    }
    if reporting.len() == last.members.len() {
        return Ok(reporting);
    }
    let missing: Vec<String> =
        last.members.keys().filter(|m| !reporting.contains(*m)).map(ToString::to_string).collect();
    let fewer = last.newest_cfg().map_or(String::new(), needed);
    Err(format!(
        "nothing is known of {}: each may have acted on a later state, in which another member is primary. Start {} \
         (PostgreSQL may stay down){fewer}",
        missing.join(" and "),
        if missing.len() == 1 { "its keeper" } else { "their keepers" },
    ))
}

fn needed(cfg: &Cfg) -> String {
    let voters: Vec<String> = cfg.voters.iter().map(ToString::to_string).collect();
    match cfg.k {
        0 => format!("; {} is enough", cfg.leader),
        k => format!("; {} and {k} of {} are enough", cfg.leader, voters.join(", ")),
    }
}

#[cfg(test)]
mod tests;
