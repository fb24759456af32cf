//! Tells what changed between two looks at the cluster, in a line for each change. A pure function.

use proto::report::{RejoinBy, RejoinOutcome, Server, Stream};
use proto::state::SwitchoverStep;
use proto::{ClusterState, MemberName, MemberReport, Phase};

use crate::lab::Cluster;

/// Returns a line for each change that a person watching would want to know.
pub fn changes(before: &Cluster, after: &Cluster) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, report) in &after.reports {
        let old = before.reports.get(name);
        lines.extend(server_line(name, old, report));
        lines.extend(seal_line(name, old, report));
        lines.extend(rejoin_line(name, old, report));
        lines.extend(stream_line(name, old, report));
    }
    let silent = before.reports.keys().filter(|name| !after.reports.contains_key(*name));
    lines.extend(silent.map(|name| format!("the lease of {name} has lapsed")));
    if let Some(state) = &after.state {
        lines.extend(state_lines(before.state.as_ref(), state));
    }
    lines
}

fn server_line(
    name: &MemberName,
    old: Option<&MemberReport>,
    new: &MemberReport,
) -> Option<String> {
    let old = old.map(|r| r.server);
    match new.server {
        server if old == Some(server) => None,
        Server::Dead { .. } if matches!(old, Some(Server::Dead { .. })) => None,
        Server::Dead { .. } => Some(format!("keeper {name}: PostgreSQL has died")),
        Server::Primary { timeline } => {
            Some(format!("keeper {name}: PostgreSQL is primary in timeline {timeline}"))
        }
        Server::Unknown | Server::Stopped | Server::Starting | Server::Standby { .. } => None,
    }
}

fn seal_line(name: &MemberName, old: Option<&MemberReport>, new: &MemberReport) -> Option<String> {
    let seal = new.seal.as_ref()?;
    let known = old.and_then(|r| r.seal.as_ref()).is_some_and(|s| s.sealing >= seal.sealing);
    (!known).then(|| {
        format!("keeper {name}: sealed for epoch {} at {}", seal.sealing, seal.position.lsn)
    })
}

fn rejoin_line(
    name: &MemberName,
    old: Option<&MemberReport>,
    new: &MemberReport,
) -> Option<String> {
    let rejoin = new.rejoin.as_ref()?;
    if old.and_then(|r| r.rejoin.as_ref()) == Some(rejoin) {
        return None;
    }
    let way = rejoin_word(rejoin.by);
    match &rejoin.outcome {
        RejoinOutcome::Running { progress: Some(progress) } => {
            Some(format!("keeper {name}: {way}, {progress}"))
        }
        RejoinOutcome::Running { progress: None } => {
            Some(format!("keeper {name}: comes back by {way}: {}", rejoin.reason))
        }
        RejoinOutcome::Done { .. } => Some(format!("keeper {name}: is back by {way}")),
        RejoinOutcome::Failed { problem, .. } => {
            Some(format!("keeper {name}: {way} failed: {problem}"))
        }
    }
}

/// The word for a way back in lines and documents.
pub fn rejoin_word(by: RejoinBy) -> &'static str {
    match by {
        RejoinBy::Follow => "follow",
        RejoinBy::Rewind => "rewind",
        RejoinBy::Copy => "copy",
    }
}

fn stream_line(
    name: &MemberName,
    old: Option<&MemberReport>,
    new: &MemberReport,
) -> Option<String> {
    let Stream::Live { epoch, voter, .. } = new.stream else { return None };
    let known = old.map(|r| r.stream);
    if matches!(known, Some(Stream::Live { epoch: e, voter: v, .. }) if e == epoch && v == voter) {
        return None;
    }
    let as_what =
        if voter { "streams, and may acknowledge commits" } else { "streams, not yet as a voter" };
    Some(format!("keeper {name}: {as_what} (epoch {epoch})"))
}

fn state_lines(old: Option<&ClusterState>, new: &ClusterState) -> Vec<String> {
    let mut lines = Vec::new();
    let old_sealing = old.and_then(|s| s.sealing);
    if let Some(sealing) = new.sealing.filter(|sealing| old_sealing != Some(*sealing)) {
        lines.push(format!("sentinel: sealing for epoch {sealing} begins"));
    }
    let known = old.map(|s| (s.epoch, &s.phase));
    let primary = new.primary.as_ref().map_or("nobody", MemberName::as_str);
    if known != Some((new.epoch, &new.phase)) {
        lines.push(match &new.phase {
            Phase::Founding { founder } => format!("sentinel: {founder} is to create the cluster"),
            Phase::Promoting => {
                format!("sentinel: {primary} is chosen as primary of epoch {}", new.epoch)
            }
            Phase::Restarting => format!(
                "sentinel: PostgreSQL of {primary} is to be started again in epoch {}",
                new.epoch
            ),
            Phase::Open => format!("sentinel: {primary} serves epoch {}", new.epoch),
            Phase::Switchover(s) => match s.step {
                SwitchoverStep::Checkpoint => format!(
                    "sentinel: {primary} is to hand over to {}, and writes a checkpoint first",
                    s.target
                ),
                SwitchoverStep::Hold { .. } => {
                    format!(
                        "sentinel: proxies hold their clients for the switchover to {}",
                        s.target
                    )
                }
                SwitchoverStep::Stop => {
                    format!("sentinel: {primary} is to stop and to hand over to {}", s.target)
                }
                SwitchoverStep::Sealed { position } => {
                    format!("sentinel: {primary} has stopped at {}", position.lsn)
                }
            },
        });
    }
    let cfgs =
        |s: &ClusterState| s.cfgs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    if new.phase == Phase::Open && old.map(cfgs).is_none_or(|before| before != cfgs(new)) {
        lines.push(format!("sentinel: commits are acknowledged by {}", cfgs(new)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use proto::Epoch;

    use super::*;
    use crate::lab::view::scene;

    #[test]
    fn each_step_of_a_failover_is_told_once() {
        let open = scene();
        let mut sealing = open.clone();
        sealing.state.as_mut().unwrap().sealing = Some(Epoch(3));
        assert_eq!(changes(&open, &sealing), ["sentinel: sealing for epoch 3 begins"]);
        assert!(changes(&sealing, &sealing).is_empty());
        let mut promoting = open.clone();
        let state = promoting.state.as_mut().unwrap();
        (state.epoch, state.phase, state.primary) = (Epoch(3), Phase::Promoting, "b".parse().ok());
        assert_eq!(changes(&sealing, &promoting), ["sentinel: b is chosen as primary of epoch 3"]);
    }
}
