//! One member of a status: what was agreed of it, what its keeper reports, what it answered just now.

use proto::report::{DataDirectory, RejoinBy, RejoinOutcome, Server, Stream};
use proto::{ClusterState, Lsn, MemberName, MemberReport, Timeline};

use super::{Answers, Member};

/// Returns the member `name`.
pub fn member(
    name: &MemberName,
    state: Option<&ClusterState>,
    report: Option<&MemberReport>,
    answers: &Answers,
) -> Member {
    let answer = answers.get(name);
    let lsn = answer.and_then(|a| a.positions).map(|p| p.flush_lsn);
    let role = role(name, state);
    let word = report.map_or("no-report", |r| word(r, state, role));
    let sound =
        report.is_some_and(|r| r.complete && state.is_none_or(|s| is_its_incarnation(s, r)));
    Member {
        name: name.clone(),
        role,
        state: word,
        healthy: sound && ["running", "streaming"].contains(&word),
        timeline: report
            .and_then(timeline)
            .or(answer.and_then(|a| a.positions).map(|p| p.timeline)),
        lsn,
        lag_bytes: lag(name, lsn, state, answers),
        synchronous: state.zip(report).is_some_and(|(s, r)| is_synchronous(s, r)),
        complete: report.is_some_and(|r| r.complete),
        zone: report.and_then(|r| r.zone.clone()),
        postgres_address: report.map(|r| r.postgres_address.clone()),
        http_address: report.map(|r| r.http_address.clone()),
        serve_for_ms: answer.and_then(|a| a.serve_for_ms),
        fenced_by: answer.and_then(|a| a.fenced_by.clone()),
        rejoin: report.and_then(|r| r.rejoin.clone()),
        rejoin_progress: answer.and_then(|a| a.rejoin_progress),
        problems: report.iter().flat_map(|r| r.problems.iter().cloned()).collect(),
    }
}

fn role(name: &MemberName, state: Option<&ClusterState>) -> &'static str {
    match state {
        Some(state) if state.primary.as_ref() == Some(name) => "primary",
        Some(state) if state.members.contains_key(name) => "standby",
        Some(_) | None => "none",
    }
}

/// Two keepers under one name: only the one that was admitted counts.
fn is_its_incarnation(state: &ClusterState, report: &MemberReport) -> bool {
    state
        .members
        .get(&report.member)
        .is_none_or(|admitted| admitted.incarnation == report.incarnation)
}

/// Returns what the member does. `running` and `streaming` are what they should do; all others are on the way,
/// or in trouble.
fn word(report: &MemberReport, state: Option<&ClusterState>, role: &'static str) -> &'static str {
    if state.is_some_and(|s| was_removed(s, report)) {
        return "removed";
    }
    if let Some(rejoin) = &report.rejoin
        && matches!(rejoin.outcome, RejoinOutcome::Running { .. })
    {
        return match rejoin.by {
            RejoinBy::Follow => "following",
            RejoinBy::Rewind => "rewinding",
            RejoinBy::Copy => "copying",
        };
    }
    if let Some(sealing) = state.and_then(|s| s.sealing)
        && report.sealed_for(sealing).is_some()
    {
        return "sealed";
    }
    match report.server {
        Server::Primary { .. } => primary_word(report, state, role),
        Server::Standby { .. } => standby_word(report, state),
        Server::Dead { .. } => "dead",
        Server::Starting => "starting",
        Server::Unknown => "unknown",
        Server::Stopped => match report.data {
            DataDirectory::Empty => "empty",
            DataDirectory::Building => "building",
            DataDirectory::Present => "stopped",
        },
    }
}

fn was_removed(state: &ClusterState, report: &MemberReport) -> bool {
    let removed = state.orders.removed.get(&report.member);
    removed.is_some_and(|r| r.incarnation == report.incarnation)
        && !state.members.contains_key(&report.member)
}

fn primary_word(
    report: &MemberReport,
    state: Option<&ClusterState>,
    role: &'static str,
) -> &'static str {
    let is_named = role == "primary" || state.is_none();
    match report.opened {
        Some(opened) if is_named && state.is_none_or(|s| s.epoch == opened.epoch) => "running",
        Some(_) => "not-agreed",
        None => "closed",
    }
}

fn standby_word(report: &MemberReport, state: Option<&ClusterState>) -> &'static str {
    match report.stream {
        Stream::Live { epoch, .. } if state.is_some_and(|s| s.epoch != epoch) => "old-epoch",
        Stream::Live { .. } if !report.complete => "joining",
        Stream::Live { .. } => "streaming",
        Stream::Silent { .. } | Stream::None => "silent",
    }
}

fn timeline(report: &MemberReport) -> Option<Timeline> {
    match report.server {
        Server::Primary { timeline } | Server::Standby { timeline } => Some(timeline),
        Server::Unknown | Server::Stopped | Server::Starting | Server::Dead { .. } => None,
    }
}

/// Returns whether the member stands in the names in force and streams under its name in them.
fn is_synchronous(state: &ClusterState, report: &MemberReport) -> bool {
    let listed = state.newest_cfg().is_some_and(|c| c.voters.contains(&report.member));
    let streams =
        matches!(report.stream, Stream::Live { epoch, voter: true, .. } if epoch == state.epoch);
    listed && streams && is_its_incarnation(state, report)
}

fn lag(
    name: &MemberName,
    lsn: Option<Lsn>,
    state: Option<&ClusterState>,
    answers: &Answers,
) -> Option<u64> {
    let primary = state?.primary.as_ref().filter(|p| *p != name)?;
    let ahead = answers.get(primary)?.positions?.flush_lsn;
    Some(ahead.bytes_ahead_of(lsn?))
}
