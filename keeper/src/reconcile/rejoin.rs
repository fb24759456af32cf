//! How a stopped member comes back: follow where it has provably not diverged, else rewind, else a fresh copy.
//! Decided from the end of its WAL and the recorded switch points; never by starting it and seeing.
//!
//! A rewind discards WAL, so it waits until that is needed by no Cfg (I14). A copy discards nothing: what is in its place
//! counts until the copy replaces it in one step, and holds all that the primary was chosen with.

use proto::assignment::Follow;
use proto::report::{DataDirectory, RejoinBy, Server};
use proto::spec::Permission;
use proto::{ClusterState, Epoch, MemberName, MemberReport, Phase};

use super::copy_source;
use super::standby::{
    held_by_its_source, is_out_of_recovery, is_prefix, leaves, may_take_up, primary_is_open,
    stream_name,
};
use super::way::{self, Case, Refusal, Way};
use crate::action::{Action, ActionKind, Dropping, Hold};
use crate::facts::{ClusterView, Facts};

/// How often a rewind is tried against one source timeline before the data is copied instead.
pub const REWIND_ATTEMPTS: u32 = 2;

/// How often an incomplete member's scan fails before its data counts for nothing: once may be a disk's mood.
const SCANS: u32 = 3;

/// Returns what a stopped member with data does to follow.
pub fn start(view: &ClusterView, state: &ClusterState, facts: &Facts, follow: Follow) -> Action {
    match (&facts.files.rejoin, facts.files.complete) {
        (Some(unfinished), _) if !unfinished.may_start() => resume(view, state, facts, follow),
        // Its pages may hold what is in nobody's WAL any more: no rewind could find that.
        (Some(begun), false)
            if held_by_its_source(facts).is_some_and(|end| leaves(state, &follow, end)) =>
        {
            let source = &begun.source;
            let reason =
                format!("{source}, which it was to follow, had WAL that this primary lacks");
            copy(view, facts, follow, reason)
        }
        // Copied or rewound before, and stopped on its way: it goes on from where it was, under no voter's name.
        (Some(begun), false) if begun.source_timeline == follow.timeline => {
            start_standby(view, facts, follow)
        }
        // Its data directory was missing when a keeper started, and is back: nobody knows what it lacks.
        (None, false) => copy(view, facts, follow, "its data was missing once".to_owned()),
        (Some(_), false) | (Some(_) | None, true) => by_its_wal(view, state, facts, follow),
    }
}

/// Decides by where its WAL ends, what else its disk shows and, where they can be had, by the primary's own words.
fn by_its_wal(view: &ClusterView, state: &ClusterState, facts: &Facts, follow: Follow) -> Action {
    let Some(end) = facts.local.end_of_wal else {
        return match unreadable(facts) {
            Some(reason) => copy(view, facts, follow, reason),
            None => Action::Scan,
        };
    };
    let compared = facts.local.compared.as_ref().filter(|c| c.epoch == follow.epoch);
    let disk = facts.local.stopped.as_ref();
    let case = Case {
        state,
        role: facts.files.role,
        complete: facts.files.complete,
        end,
        disk,
        source: compared.and_then(|c| c.says.as_ref()),
        room: compared.and_then(|c| c.room),
        copy: view.spec.as_ref().map_or(Permission::Allowed, |s| s.rejoin.copy),
    };
    let asked = compared.is_some() || disk.is_none();
    match way::choose(&case) {
        Way::Follow if !may_take_up(view, facts, &follow) => Action::Hold(Hold::WaitingForPrimary),
        // One that says nothing is followed by what was agreed: it may be about to be replaced.
        Way::Follow if asked || !is_out_of_recovery(view, &follow) => {
            start_standby(view, facts, follow)
        }
        Way::Follow => Action::Compare { follow },
        Way::Refuse(refusal) => Action::Hold(Hold::Refused(refusal.to_string())),
        Way::DropUnreplayed { .. } | Way::Rewind { .. } | Way::FreshCopy { .. }
            if disk.is_some() && case.source.is_none() =>
        {
            match is_out_of_recovery(view, &follow) {
                true => Action::Compare { follow },
                false => Action::Hold(Hold::WaitingForPrimary),
            }
        }
        Way::DropUnreplayed { fork, reason } => {
            drop_unreplayed(view, state, facts, Dropping { follow, fork, reason })
        }
        Way::Rewind { reason } => rewind(view, state, facts, follow, reason),
        Way::FreshCopy { reason } => copy(view, facts, follow, reason),
    }
}

/// Returns why an incomplete member's WAL has no end that could be found: what it was rewound or copied from has ended
/// before it had all that it needs.
fn unreadable(facts: &Facts) -> Option<String> {
    let failed = facts.local.failures.get(&ActionKind::Scan)?;
    let is_lost = !facts.files.complete && failed.times >= SCANS;
    is_lost.then(|| format!("it was not yet whole, and {}", failed.problem))
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
        RejoinBy::Follow if same_source && let Some(fork) = marker.fork => {
            let reason = "setting its WAL aside was cut short".to_owned();
            drop_unreplayed(view, state, facts, Dropping { follow, fork, reason })
        }
        RejoinBy::Rewind | RejoinBy::Copy | RejoinBy::Follow => {
            copy(view, facts, follow, format!("an earlier {:?} did not finish", marker.by))
        }
    }
}

fn drop_unreplayed(
    view: &ClusterView,
    state: &ClusterState,
    facts: &Facts,
    dropping: Dropping,
) -> Action {
    let Dropping { follow, fork, reason } = dropping;
    discarding(view, state, facts, (follow, reason), |follow, reason| {
        Action::DropUnreplayed(Dropping { follow, fork, reason })
    })
}

fn rewind(
    view: &ClusterView,
    state: &ClusterState,
    facts: &Facts,
    follow: Follow,
    reason: String,
) -> Action {
    discarding(view, state, facts, (follow, reason), |follow, reason| Action::Rewind {
        follow,
        reason,
    })
}

/// Returns the action that discards WAL, once that is needed no more and the primary can be had.
fn discarding(
    view: &ClusterView,
    state: &ClusterState,
    facts: &Facts,
    (follow, reason): (Follow, String),
    action: impl FnOnce(Follow, String) -> Action,
) -> Action {
    match not_yet(view, state, facts, &follow) {
        None => action(follow, reason),
        // Its own WAL stays needed for as long as no Cfg of this epoch is proven, and that may wait for this member.
        Some(Hold::WaitingForReplacement) if is_the_last_hope(view, state, facts, &follow) => {
            copy(view, facts, follow, format!("{reason}, and no other voter can follow"))
        }
        Some(hold) => Action::Hold(hold),
    }
}

/// Returns what WAL waits for before it may be discarded.
fn not_yet(
    view: &ClusterView,
    state: &ClusterState,
    facts: &Facts,
    follow: &Follow,
) -> Option<Hold> {
    match (may_discard(state, &facts.member), is_a_source(view, follow)) {
        (false, _) => Some(Hold::WaitingForReplacement),
        (true, false) => Some(Hold::WaitingForPrimary),
        (true, true) => None,
    }
}

/// Returns the action that copies the primary, once that can be.
pub fn copy(view: &ClusterView, facts: &Facts, follow: Follow, reason: String) -> Action {
    let may_copy = view.spec.as_ref().is_none_or(|s| s.rejoin.copy == Permission::Allowed);
    if facts.data == DataDirectory::Present && !may_copy {
        let refusal = Refusal::of_a_copy(reason);
        return Action::Hold(Hold::Refused(refusal.to_string()));
    }
    match is_a_source(view, &follow) {
        true => {
            let from = copy_source::spare(view, facts, &follow);
            Action::Copy { follow, from, reason }
        }
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
