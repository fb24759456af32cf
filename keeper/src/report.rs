//! Builds the member's report out of facts. Pure: it changes only when something that matters did, so that an idle
//! cluster writes nothing.

use std::collections::BTreeSet;

use proto::report::{DataDirectory, MemberReport, Server, Stream};
use proto::{ClusterState, Epoch, WallTime};

use crate::facts::{ClusterView, Facts, Process};
use crate::member_files::Role;

/// What does not change while a keeper runs.
#[derive(Debug, Clone)]
pub struct Identity {
    pub postgres_version: u32,
    pub postgres_address: String,
    pub http_address: String,
    pub zone: Option<String>,
    /// When the keeper started.
    pub started: WallTime,
}

/// Returns the report.
pub fn report(
    identity: &Identity,
    view: &ClusterView,
    facts: &Facts,
    problems: BTreeSet<String>,
) -> MemberReport {
    let local = &facts.local;
    MemberReport {
        member: facts.member.clone(),
        incarnation: facts.files.incarnation.clone(),
        understands_format: proto::document::FORMAT_VERSION,
        pgdeputy_version: env!("CARGO_PKG_VERSION").to_owned(),
        postgres_version: identity.postgres_version,
        postgres_address: identity.postgres_address.clone(),
        http_address: identity.http_address.clone(),
        zone: identity.zone.clone(),
        promise: facts.files.promise,
        data: facts.data,
        system_identifier: facts
            .files
            .system_identifier
            .filter(|_| facts.data == DataDirectory::Present),
        complete: facts.files.complete,
        server: server(identity, view.state.as_ref(), facts),
        opened: local.opened,
        confirmed: local.confirmed.clone(),
        stream: stream(view.state.as_ref(), facts),
        seal: local.seal,
        rejoin: local.rejoin.clone(),
        problems,
    }
}

fn server(identity: &Identity, state: Option<&ClusterState>, facts: &Facts) -> Server {
    match (facts.local.process, &facts.sql) {
        (Process::Exited { noticed, gone }, _) => Server::Dead { noticed, gone },
        (Process::Running { .. }, None) => Server::Starting,
        (Process::Running { .. }, Some(sql)) if sql.in_recovery => {
            Server::Standby { timeline: sql.timeline }
        }
        (Process::Running { .. }, Some(sql)) => Server::Primary { timeline: sql.timeline },
        (Process::None, _) if leads(state, facts) && facts.local.started_for.is_none() => {
            // Found down at the keeper's start: to the leader the same as a death just noticed.
            Server::Dead { noticed: identity.started, gone: true }
        }
        (Process::None, _) => Server::Stopped,
    }
}

fn leads(state: Option<&ClusterState>, facts: &Facts) -> bool {
    let named = state
        .is_some_and(|s| s.primary.as_ref() == Some(&facts.member) && s.epoch == facts.files.epoch);
    named && facts.files.role == Role::Primary && facts.data == DataDirectory::Present
}

fn stream(state: Option<&ClusterState>, facts: &Facts) -> Stream {
    let (Some(state), Some(sql)) = (state, &facts.sql) else { return Stream::None };
    if !sql.in_recovery {
        return Stream::None;
    }
    match &sql.receiver {
        Some(receiver) if receiver.streaming => match state.epoch_of(receiver.timeline) {
            Some(epoch) => Stream::Live {
                epoch,
                timeline: receiver.timeline,
                voter: is_voter_name(receiver.name.as_deref(), facts, epoch),
            },
            None => Stream::None,
        },
        // Epoch of its last WAL: silence about an older epoch says nothing of this one's primary.
        _ => Stream::Silent { epoch: state.epoch_of(sql.timeline).unwrap_or(Epoch(0)) },
    }
}

fn is_voter_name(name: Option<&str>, facts: &Facts, epoch: Epoch) -> bool {
    let prefix = format!("{}.e{epoch}", facts.member);
    name.and_then(|n| n.strip_prefix(&prefix))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(".r"))
}
