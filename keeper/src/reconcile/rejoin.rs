//! How a stopped member comes back: follow where it has provably not diverged, else rewind, else a fresh copy.
//! Decided from the end of its WAL and the recorded switch points; never by starting it and seeing.
//!
//! A rewind discards WAL, so it waits until that is needed by no Cfg (I14). A copy discards nothing: what is in its place
//! counts until the copy replaces it in one step, and holds all that the primary was chosen with.

use proto::assignment::Follow;
use proto::report::{RejoinBy, Server};
use proto::spec::Permission;
use proto::{ClusterState, Epoch, MemberName, MemberReport, Phase, WalPosition};

use super::standby::{is_out_of_recovery, is_prefix, may_take_up, primary_is_open, stream_name};
use crate::action::{Action, Hold};
use crate::facts::{ClusterView, Facts};
use crate::member_files::Role;

/// How often a rewind is tried against one source timeline before the data is copied instead.
const REWIND_ATTEMPTS: u32 = 2;

/// How a stopped member may come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejoin {
    /// Its WAL is a prefix of the primary's.
    Follow,
    Rewind {
        reason: String,
    },
    FreshCopy {
        reason: String,
    },
}

/// Returns what a stopped member with data does to follow.
pub fn start(view: &ClusterView, state: &ClusterState, facts: &Facts, follow: Follow) -> Action {
    if let Some(unfinished) = &facts.files.rejoin
        && !unfinished.may_start()
    {
        return resume(view, state, facts, follow);
    }
    if !facts.files.complete && facts.files.rejoin.is_none() {
        // Its data directory was missing when a keeper started, and is back: nobody knows what it lacks.
        let reason = "its data was missing once".to_owned();
        return copy(view, follow, reason);
    }
    if !facts.files.complete {
        // Copied or rewound before, and stopped on its way: it goes on from where it was, under no voter's name.
        return start_standby(view, facts, follow);
    }
    let Some(end) = facts.local.end_of_wal else { return Action::Scan };
    match decide(state, facts.files.role, end) {
        Rejoin::Follow => start_standby(view, facts, follow),
        Rejoin::Rewind { reason } => rewind(view, state, facts, follow, reason),
        Rejoin::FreshCopy { reason } => copy(view, follow, reason),
    }
}

/// Returns how a complete, stopped member whose WAL ends at `end` may come back.
pub fn decide(state: &ClusterState, role: Role, end: WalPosition) -> Rejoin {
    if is_prefix(state, end) {
        return Rejoin::Follow;
    }
    let fork = match state.shared_until(end.timeline) {
        Some(until) => format!(
            "its WAL ends at {} of timeline {}, past the fork at {until}",
            end.lsn, end.timeline
        ),
        None => format!(
            "its timeline {} is not in the history of timeline {}",
            end.timeline, state.timeline
        ),
    };
    match role {
        Role::Primary => Rejoin::Rewind { reason: fork },
        // pg_rewind judges a standby by what it has replayed, not by what it has received, and would call a standby
        // clean that then replays its way past the fork.
        Role::Standby | Role::None => {
            Rejoin::FreshCopy { reason: format!("{fork}, and it was a standby") }
        }
    }
}

fn start_standby(view: &ClusterView, facts: &Facts, follow: Follow) -> Action {
    if !may_take_up(view, facts, &follow) {
        return Action::Hold(Hold::WaitingForPrimary);
    }
    let name = stream_name(view, facts, &follow);
    Action::StartStandby { follow, name }
}

/// A rewind or copy was cut: again, against the same source timeline only, otherwise a fresh copy.
fn resume(view: &ClusterView, state: &ClusterState, facts: &Facts, follow: Follow) -> Action {
    let Some(marker) = &facts.files.rejoin else { return Action::Hold(Hold::WaitingForPrimary) };
    let same_source = marker.source_timeline == follow.timeline && marker.source == follow.primary;
    match marker.by {
        RejoinBy::Rewind if same_source && marker.attempt < REWIND_ATTEMPTS => {
            rewind(view, state, facts, follow, "an earlier rewind was cut short".into())
        }
        RejoinBy::Rewind | RejoinBy::Copy | RejoinBy::Follow => {
            copy(view, follow, format!("an earlier {:?} did not finish", marker.by))
        }
    }
}

fn rewind(
    view: &ClusterView,
    state: &ClusterState,
    facts: &Facts,
    follow: Follow,
    reason: String,
) -> Action {
    if !may_discard(state, &facts.member) {
        // Its own WAL stays needed for as long as no Cfg of this epoch is proven, and that may wait for this member.
        return match is_the_last_hope(view, state, facts, &follow) {
            true => copy(view, follow, format!("{reason}, and no other voter can follow")),
            false => Action::Hold(Hold::WaitingForReplacement),
        };
    }
    match is_a_source(view, &follow) {
        true => Action::Rewind { follow, reason },
        false => Action::Hold(Hold::WaitingForPrimary),
    }
}

/// Returns the action that copies the primary, once that can be.
pub fn copy(view: &ClusterView, follow: Follow, reason: String) -> Action {
    match is_a_source(view, &follow) {
        true => Action::Copy { follow, reason },
        false => Action::Hold(Hold::WaitingForPrimary),
    }
}

/// Returns whether the primary can be copied or rewound onto. It need not be open: it may wait for this very member.
fn is_a_source(view: &ClusterView, follow: &Follow) -> bool {
    match follow.epoch > Epoch(1) {
        true => is_out_of_recovery(view, follow),
        // The roles by which members connect are made by the first opening.
        false => primary_is_open(view, follow),
    }
}

/// Returns whether this member's WAL is needed no more: it stands in no Cfg, or the present primary alone is a seal
/// set of every Cfg (I14). Otherwise the loss of the new primary meanwhile would leave nobody to promote.
fn may_discard(state: &ClusterState, member: &MemberName) -> bool {
    let Some(primary) = &state.primary else { return false };
    let alone = [primary.clone()].into();
    let stands_nowhere =
        state.cfgs.iter().all(|c| c.leader != *member && !c.voters.contains(member));
    state.phase == Phase::Open
        && (stands_nowhere || state.cfgs.iter().all(|c| c.is_sealed_by(&alone)))
}

/// Returns whether too few other members could vote for this primary as they are: then it has to wait for this one, and
/// this one would wait for its Cfg.
fn is_the_last_hope(
    view: &ClusterView,
    state: &ClusterState,
    facts: &Facts,
    follow: &Follow,
) -> bool {
    let may_vote = |member: &MemberName| {
        view.spec.as_ref().is_none_or(|s| s.member(member).vote == Permission::Allowed)
    };
    let Some(newest) = state.newest_cfg().filter(|c| c.epoch == state.epoch) else { return false };
    let able = view.reports.iter().filter(|(member, report)| {
        **member != facts.member
            && **member != follow.primary
            && may_vote(member)
            && can_follow(state, report)
    });
    may_vote(&facts.member) && able.count() < newest.k
}

/// Returns whether a member follows the present primary, or may yet: one that can and is down is started at once, so
/// whoever stays down without a seal that shows otherwise has diverged.
fn can_follow(state: &ClusterState, report: &MemberReport) -> bool {
    let runs = match report.server {
        Server::Standby { .. } | Server::Starting | Server::Unknown => true,
        Server::Stopped | Server::Dead { .. } | Server::Primary { .. } => false,
    };
    let shares = report.sealed_for(state.epoch).map(|seal| is_prefix(state, seal.position));
    report.complete && shares.unwrap_or(runs)
}
