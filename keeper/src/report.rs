//! Builds the member's report out of facts. Pure: it changes only when something that matters did, so that an idle
//! cluster writes nothing.

use std::collections::BTreeSet;

use proto::report::{DataDirectory, Frozen, MemberReport, Server, Stream, Unresponsive};
use proto::spec::UNRESPONSIVE_AFTER;
use proto::{ClusterState, Epoch, WallTime};

use crate::facts::{ClusterView, Facts, Process};
use crate::member_files::Role;
use crate::postgres::probe::SqlFacts;

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
        stream: stream(view, facts),
        never_received: local.streamed.is_none(),
        silence: silence(view.state.as_ref(), facts),
        // PostgreSQL that does not answer here has seen nothing of the primary's.
        standstill: facts.sql.as_ref().and_then(|_| local.standstill.told()),
        hears: local.hears.clone(),
        unresponsive: unresponsive(view, facts),
        ended: local.ended.filter(|_| !matches!(local.process, Process::Running { .. })),
        seal: local.seal,
        handover: local.handover.clone().filter(|h| {
            let under_way = view.state.as_ref().and_then(ClusterState::switchover);
            under_way.is_some_and(|s| s.request == h.request)
        }),
        leaving: local.leaving,
        rejoin: local.rejoin.clone(),
        frozen: frozen(view),
        problems,
    }
}

fn frozen(view: &ClusterView) -> Option<Frozen> {
    let why = view.frozen.clone()?;
    Some(Frozen { why, acted_on: Box::new(view.state.clone()?) })
}

fn server(identity: &Identity, state: Option<&ClusterState>, facts: &Facts) -> Server {
    match (facts.local.process, &facts.sql) {
        (Process::Exited { noticed, gone }, _) => Server::Dead { noticed, gone },
        (Process::Running { .. }, None) => facts.known.unwrap_or(Server::Starting),
        (Process::Running { .. }, Some(sql)) => match facts.local.promoted {
            Some(timeline) => Server::Primary { timeline },
            None => kind(sql),
        },
        // Found down at the keeper's start: to the leader the same as a death just noticed.
        (Process::None, _) if leads(state, facts) => {
            Server::Dead { noticed: identity.started, gone: true }
        }
        (Process::None, _) => Server::Stopped,
    }
}

/// Returns what a server that answers is.
pub fn kind(sql: &SqlFacts) -> Server {
    match sql.in_recovery {
        true => Server::Standby { timeline: sql.timeline },
        false => Server::Primary { timeline: sql.timeline },
    }
}

/// Returns whether this member should be running as the primary, and no order to start it is left to carry out.
fn leads(state: Option<&ClusterState>, facts: &Facts) -> bool {
    let Some(state) = state else { return false };
    let ordered = state.restart.as_ref().filter(|r| r.epoch == state.epoch).map_or(0, |r| r.number);
    state.primary.as_ref() == Some(&facts.member)
        && state.epoch == facts.files.epoch
        && facts.files.role == Role::Primary
        && facts.data == DataDirectory::Present
        && facts.files.restarted >= ordered
}

/// Silence counts only from a member whose last WAL is of the epoch: who never heard this primary cannot miss it.
fn silence(state: Option<&ClusterState>, facts: &Facts) -> Option<Epoch> {
    let last = state?.epoch_of(facts.local.streamed?);
    facts.local.silence.filter(|epoch| Some(*epoch) == last)
}

fn unresponsive(view: &ClusterView, facts: &Facts) -> Option<Unresponsive> {
    let epoch = facts.local.opened?.epoch;
    let after = view.spec.as_ref().map_or(UNRESPONSIVE_AFTER, |spec| spec.unresponsive_after);
    Some(Unresponsive { epoch, problem: facts.local.pulse.unresponsive(after)? })
}

/// A receiver that runs ends by itself once it has heard nothing for `wal_receiver_timeout`, one and a half times
/// `silent_after`. One that has not by twice that time is stopped, or waits for a disk that hangs: it receives nothing.
fn stream(view: &ClusterView, facts: &Facts) -> Stream {
    let (Some(state), Some(sql)) = (&view.state, &facts.sql) else { return Stream::None };
    if !sql.in_recovery {
        return Stream::None;
    }
    let too_long = view.spec.as_ref().map(|spec| spec.silent_after * 3);
    match &sql.receiver {
        Some(receiver) if receiver.streaming => match state.epoch_of(receiver.timeline) {
            Some(_) if too_long.is_some_and(|limit| receiver.silent_for > limit) => Stream::None,
            Some(epoch) => Stream::Live {
                epoch,
                timeline: receiver.timeline,
                voter: is_voter_name(receiver.name.as_deref(), facts, epoch),
            },
            None => Stream::None,
        },
        // Epoch of its last WAL: silence about an older epoch says nothing of this one's primary.
        _ => {
            let last = facts.local.streamed.unwrap_or(sql.timeline);
            Stream::Silent { epoch: state.epoch_of(last).unwrap_or(Epoch(0)) }
        }
    }
}

fn is_voter_name(name: Option<&str>, facts: &Facts, epoch: Epoch) -> bool {
    let prefix = format!("{}.e{epoch}", facts.member);
    name.and_then(|n| n.strip_prefix(&prefix))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(".r"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::Timeline;

    use super::*;
    use crate::postgres::probe::Receiver;
    use crate::reconcile::tests::{facts, running, sql, view};

    #[test]
    fn a_receiver_that_should_have_ended_itself_receives_nothing() {
        let shown = |seconds| {
            let mut sql = sql(true, 2);
            sql.receiver = Some(Receiver {
                streaming: true,
                timeline: Timeline(2),
                name: Some("c.e2".into()),
                silent_for: Duration::from_secs(seconds),
                primary_end: None,
            });
            stream(&view(), &running(facts("c", 2, Role::Standby), sql))
        };
        let live = Stream::Live { epoch: Epoch(2), timeline: Timeline(2), voter: true };
        assert_eq!((shown(0), shown(3), shown(4)), (live, live, Stream::None));
    }
}
