//! A standby's part: get data, start, follow the right primary under the right name, become complete.

use proto::assignment::Follow;
use proto::report::{DataDirectory, Opened, Server};
use proto::spec::Permission;
use proto::{ClusterState, Lsn, Timeline, WalPosition};

use super::{primary, rejoin, seal};
use crate::action::{Action, FenceReason, Hold};
use crate::facts::{ClusterView, Facts, Process};
use crate::member_files::Role;
use crate::postgres::probe::SqlFacts;
use crate::postgres::settings::StreamName;

/// Returns what the member does that the state asks to follow.
pub fn next(view: &ClusterView, state: &ClusterState, facts: &Facts, follow: Follow) -> Action {
    // A PostgreSQL that a person stops stays down, and nothing of its data is touched.
    if state.orders.pause.is_some() && facts.local.process.is_gone() {
        return Action::Hold(Hold::Paused);
    }
    if facts.data != DataDirectory::Present {
        return match facts.data {
            DataDirectory::Empty => {
                rejoin::copy(view, facts, follow, "this member has no data yet".into())
            }
            DataDirectory::Building | DataDirectory::Present => {
                Action::Hold(Hold::WaitingForPrimary)
            }
        };
    }
    match facts.local.process {
        Process::Exited { gone: false, .. } => Action::Hold(Hold::WaitingForProcesses),
        Process::None | Process::Exited { gone: true, .. } => {
            rejoin::start(view, state, facts, follow)
        }
        Process::Running { .. } if seal::may_be_primary(facts) => {
            Action::Fence(FenceReason::Replaced { by: follow.primary, epoch: follow.epoch })
        }
        Process::Running { .. } => match &facts.sql {
            None => unanswered(view, facts, &follow),
            Some(sql) => running(view, state, facts, follow, sql),
        },
    }
}

/// A server that lets nobody in yet. One that was rewound or copied is not consistent before it has all that its source
/// had written by then. Where that source was replaced it is stopped, and judged by its WAL: nobody can tell it of another.
fn unanswered(view: &ClusterView, facts: &Facts, follow: &Follow) -> Action {
    let upstream = facts.local.settings.as_ref().and_then(|s| s.upstream.as_ref());
    let of_another = upstream.is_some_and(|u| u.epoch < follow.epoch);
    match of_another && !facts.files.complete && is_out_of_recovery(view, follow) {
        true => Action::Fence(FenceReason::LeftBehind),
        false => Action::Hold(Hold::WaitingForServer),
    }
}

fn running(
    view: &ClusterView,
    state: &ClusterState,
    facts: &Facts,
    follow: Follow,
    sql: &SqlFacts,
) -> Action {
    if facts.files.role == Role::Primary {
        // It was to be promoted and is not out of recovery: what it holds is what it sealed with.
        return Action::Fence(FenceReason::NotOurEpoch);
    }
    let name = stream_name(view, facts, &follow);
    let upstream = facts.local.settings.as_ref().and_then(|s| s.upstream.as_ref());
    let points_there = upstream.is_some_and(|u| {
        u.epoch == follow.epoch
            && u.name == name
            && view
                .reports
                .get(&follow.primary)
                .is_none_or(|r| r.postgres_address == format!("{}:{}", u.host, u.port))
    });
    if points_there && facts.files.promise >= follow.epoch {
        return following(state, facts, &follow, sql);
    }
    let repoint = match may_take_up(view, facts, &follow) {
        true => Action::Repoint { follow: follow.clone(), name },
        false => Action::Hold(Hold::WaitingForPrimary),
    };
    if !facts.files.complete && is_past_the_fork(state, facts, &follow, sql) {
        return Action::Fence(FenceReason::PastTheFork);
    }
    if !facts.files.complete || upstream.is_some_and(|u| u.epoch == follow.epoch) {
        // Its WAL is not counted yet, or was judged for this epoch before: only the name or address changes.
        return repoint;
    }
    match facts.local.seal.filter(|s| s.sealing == follow.epoch) {
        // Whoever follows a new epoch under a voter's name has promised it and shown where its WAL ends.
        None => Action::Seal { sealing: follow.epoch },
        Some(seal) if is_prefix(state, seal.position) => match stray(state, facts) {
            // Its server would never leave that timeline for the present one.
            Some(timeline) => Action::Fence(FenceReason::Unreached(timeline)),
            None => repoint,
        },
        Some(_) => Action::Fence(FenceReason::PastTheFork),
    }
}

/// Returns whether an incomplete member has received more of an older timeline than the present one took from it, or was
/// copied or rewound from a source that had written more of it by then: its server would wait for ever for WAL that
/// continues its own. What was rewound and never streamed tells only by the latter.
fn is_past_the_fork(state: &ClusterState, facts: &Facts, follow: &Follow, sql: &SqlFacts) -> bool {
    let streamed = facts.local.streamed.zip(sql.flush_lsn);
    streamed.into_iter().chain(held_by_its_source(facts)).any(|end| leaves(state, follow, end))
}

/// Returns where the WAL ended that this member's pages may hold: its source's when the copy or rewind was done.
pub fn held_by_its_source(facts: &Facts) -> Option<(Timeline, Lsn)> {
    let begun = facts.files.rejoin.as_ref()?;
    Some((begun.source_timeline, begun.until?))
}

/// Returns whether WAL up to `lsn` of `timeline` goes beyond what the primary of `follow` has of it.
pub fn leaves(state: &ClusterState, follow: &Follow, (timeline, lsn): (Timeline, Lsn)) -> bool {
    timeline != follow.timeline && state.shared_until(timeline).is_none_or(|until| lsn > until)
}

/// Returns a timeline that this member was on its way to and that the present one does not descend from.
fn stray(state: &ClusterState, facts: &Facts) -> Option<Timeline> {
    facts.local.unreached.iter().copied().find(|t| state.shared_until(*t).is_none())
}

fn following(state: &ClusterState, facts: &Facts, follow: &Follow, sql: &SqlFacts) -> Action {
    if !facts.files.complete && holds_the_beginning(facts, follow, sql) {
        return Action::MarkComplete { epoch: follow.epoch };
    }
    let streams =
        sql.receiver.as_ref().is_some_and(|r| r.streaming && r.timeline == follow.timeline);
    if streams { primary::keep_slots(state, facts, false) } else { Action::Hold(Hold::Following) }
}

/// Returns whether an incomplete member has become whole: it streams on the epoch's timeline, and has flushed past
/// the epoch's start and past what the source had written when the copy or rewind ended. That it answers queries
/// shows that it is consistent.
fn holds_the_beginning(facts: &Facts, follow: &Follow, sql: &SqlFacts) -> bool {
    let Some(needed) = facts.files.rejoin.as_ref().and_then(|r| r.until) else { return false };
    let streams =
        sql.receiver.as_ref().is_some_and(|r| r.streaming && r.timeline == follow.timeline);
    // The state names the place once the primary is open; it may be this member that it waits for.
    let begins = facts.local.begins.filter(|(timeline, _)| *timeline == follow.timeline);
    let Some(start) = follow.start_lsn.or(begins.map(|b| b.1)) else { return false };
    let flushed = sql.flush_lsn.unwrap_or(Lsn(0));
    streams && flushed >= needed && flushed >= start
}

/// Returns whether this member may receive from the primary of `follow`: that one is out of recovery on the epoch's
/// timeline, or was when this member took it up.
///
/// A primary that is still in recovery streams all that it received, also beyond the end of its last whole record, and
/// what a standby then acknowledges would count for commits of the new timeline.
pub fn may_take_up(view: &ClusterView, facts: &Facts, follow: &Follow) -> bool {
    let settings = facts.local.settings.as_ref();
    let taken_up =
        settings.and_then(|s| s.upstream.as_ref()).is_some_and(|u| u.epoch == follow.epoch);
    taken_up || is_out_of_recovery(view, follow)
}

/// Returns whether the primary of `follow` runs as one on the epoch's timeline, open or not.
pub fn is_out_of_recovery(view: &ClusterView, follow: &Follow) -> bool {
    view.reports.get(&follow.primary).is_some_and(
        |r| matches!(r.server, Server::Primary { timeline } if timeline == follow.timeline),
    )
}

/// Returns the name under which this member streams: a voter's once it is complete, unless it may not vote.
pub fn stream_name(view: &ClusterView, facts: &Facts, follow: &Follow) -> StreamName {
    let may_vote =
        view.spec.as_ref().is_none_or(|s| s.member(&facts.member).vote == Permission::Allowed);
    if facts.files.complete && may_vote {
        StreamName::Voter { round: follow.round }
    } else {
        StreamName::Joining
    }
}

/// Returns whether WAL that ends at `position` is a prefix of what the present primary has.
pub fn is_prefix(state: &ClusterState, position: WalPosition) -> bool {
    state.shared_until(position.timeline).is_some_and(|until| position.lsn <= until)
}

/// Returns whether the primary of `follow` serves, by its own report and the state.
pub fn primary_is_open(view: &ClusterView, follow: &Follow) -> bool {
    view.reports.get(&follow.primary).is_some_and(|report| {
        matches!(report.server, Server::Primary { .. })
            && matches!(report.opened, Some(Opened { epoch, .. }) if epoch == follow.epoch)
    })
}
