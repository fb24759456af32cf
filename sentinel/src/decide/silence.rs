//! Whether the primary of an open epoch is unheard or of no use to its voters, though its right has not lapsed.
//!
//! The one rule: no single observer is believed. Its own link may be the one that is cut.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::report::{Server, Stream};
use proto::{MemberName, MemberReport, Moment, WallTime};

use super::Inputs;
use super::health::{Loss, LossKind};
use crate::observe::Condition;

/// How long what came of a question to the primary's keeper counts. Then it is asked again, at the next look.
const PROBE_COUNTS: Duration = Duration::from_secs(1);

/// The primary has not been heard for `silent_after`, by the word of all live voters, who together contain a seal set of
/// every Cfg. They are two at least, or the leader has asked the primary's keeper itself and got no answer.
pub(crate) fn unheard(inputs: &Inputs) -> Option<Loss> {
    let silent = agreed_silence(inputs)?;
    let probe = own_probe(inputs);
    if silent.len() < 2 && probe != Some(Answer::None) {
        return None;
    }
    let primary = inputs.primary();
    let since =
        WallTime(inputs.wall.0 - i64::try_from(inputs.spec.silent_after.as_millis()).unwrap_or(0));
    let mut evidence: Vec<String> = silent
        .iter()
        .map(|m| format!("{m} has heard neither echo nor stream of {primary} for silent_after"))
        .collect();
    if probe == Some(Answer::None) {
        evidence.push(format!("the keeper of {primary} does not answer the leader either"));
    }
    Some(Loss { kind: LossKind::Unheard, since, evidence })
}

/// The primary is heard and does not get on: all live voters say so, or that they hear nothing at all. As many as acknowledge commits say the former, so that its keeper has committed records of its own; and they are
/// believed like those who hear nothing. Only where somebody could take over: elsewhere it goes on as it can.
pub(crate) fn standstill(inputs: &Inputs) -> Option<Loss> {
    let watching = agreed_standstill(inputs).filter(|_| inputs.others_can_replace())?;
    let probe = own_probe(inputs);
    if watching.len() < 2 && probe != Some(Answer::None) {
        return None;
    }
    let (primary, after) = (inputs.primary(), inputs.spec.unresponsive_after);
    let since = WallTime(inputs.wall.0 - i64::try_from(after.as_millis()).unwrap_or(0));
    let mut evidence: Vec<String> = watching
        .iter()
        .map(|m| {
            format!("{m} has for unresponsive_after seen no new WAL of {primary} or got no session")
        })
        .collect();
    if probe == Some(Answer::None) {
        evidence.push(format!("the keeper of {primary} does not answer the leader"));
    }
    Some(Loss { kind: LossKind::Standstill, since, evidence })
}

/// Returns whether the leader has to ask the primary's keeper itself: the only voter misses it, something can come of it,
/// and what was asked last does not count any more.
pub(crate) fn wants_probe(inputs: &Inputs) -> bool {
    let missed_by = agreed_silence(inputs).or_else(|| agreed_standstill(inputs));
    let single = missed_by.is_some_and(|members| members.len() == 1);
    single && own_probe(inputs).is_none() && inputs.others_can_replace()
}

/// Returns who calls the primary silent, where no live voter disagrees and they contain a seal set of every Cfg.
fn agreed_silence(inputs: &Inputs) -> Option<BTreeSet<MemberName>> {
    let epoch = inputs.state.epoch;
    agreed(inputs, |report| report.silence == Some(epoch))
}

/// Returns who says that the primary does not get on, or is not heard at all, in the same way.
fn agreed_standstill(inputs: &Inputs) -> Option<BTreeSet<MemberName>> {
    let epoch = inputs.state.epoch;
    let newest = inputs.state.newest_cfg()?;
    let is_still = |report: &MemberReport| report.standstill == Some(epoch);
    let missing = agreed(inputs, |report| is_still(report) || report.silence == Some(epoch))?;
    let voters = newest.voters.iter().filter_map(|voter| inputs.report(voter));
    let watching = voters.filter(|report| is_still(report)).count();
    (watching >= newest.k.max(1)).then_some(missing)
}

/// Returns the complete others that say `so`, where no live voter disagrees and they contain a seal set of every Cfg.
fn agreed(inputs: &Inputs, so: impl Fn(&MemberReport) -> bool) -> Option<BTreeSet<MemberName>> {
    let others = inputs.complete_others();
    let voters = &inputs.state.newest_cfg()?.voters;
    let all_agree = others.iter().filter(|(name, _)| voters.contains(**name)).all(|(_, r)| so(r));
    let members: BTreeSet<MemberName> =
        others.iter().filter(|(_, r)| so(r)).map(|(name, _)| (*name).clone()).collect();
    (all_agree && inputs.seal_all_cfgs(&members)).then_some(members)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Given,
    None,
}

/// What the leader's last question to this epoch's primary brought, while it counts.
fn own_probe(inputs: &Inputs) -> Option<Answer> {
    let probe = inputs.seen.probe.as_ref().filter(|probe| {
        probe.epoch == inputs.state.epoch && inputs.now.since(probe.at) < PROBE_COUNTS
    })?;
    Some(if probe.answered { Answer::Given } else { Answer::None })
}

/// Whether commits wait and will go on waiting. `Some(None)` once that has lasted for `isolation_grace`.
pub(crate) fn stalled(inputs: &Inputs) -> Option<Stalled> {
    let silent = deserted_by(inputs)?;
    let condition = Condition::Deserted { epoch: inputs.state.epoch };
    if let Some(until) = inputs.patience_left(&condition, inputs.spec.isolation_grace) {
        return Some(Stalled::Until(until));
    }
    let primary = inputs.primary();
    let mut evidence = vec![format!("the keeper of {primary} reports, and commits wait")];
    evidence
        .extend(silent.iter().map(|m| format!("{m} is well and receives nothing of {primary}")));
    let since = inputs.wall_since(&condition);
    Some(Stalled::For(Loss { kind: LossKind::Deserted, since, evidence }))
}

/// A primary whose commits wait.
pub(crate) enum Stalled {
    /// It has time until then.
    Until(Moment),
    For(Loss),
}

/// Returns the condition of this file, if it holds.
pub(crate) fn conditions(inputs: &Inputs) -> BTreeSet<Condition> {
    let deserted = deserted_by(inputs).map(|_| Condition::Deserted { epoch: inputs.state.epoch });
    deserted.into_iter().collect()
}

/// Returns the standbys that receive nothing though they are well: no live voter receives, they contain a seal set of
/// every Cfg, and one of them that may be promoted hears as many others as must acknowledge. Who never received from
/// this primary is not counted, so that one replacement that changes nothing is not followed by another.
fn deserted_by(inputs: &Inputs) -> Option<BTreeSet<MemberName>> {
    let epoch = inputs.state.epoch;
    let newest = inputs.state.newest_cfg().filter(|cfg| cfg.k > 0)?;
    let others = inputs.complete_others();
    let is_deaf = |report: &MemberReport| {
        matches!(report.server, Server::Standby { .. }) && report.stream == Stream::Silent { epoch }
    };
    if others.iter().any(|(name, r)| newest.voters.contains(*name) && !is_deaf(r)) {
        return None;
    }
    let deaf: BTreeSet<MemberName> =
        others.iter().filter(|(_, r)| is_deaf(r)).map(|(name, _)| (*name).clone()).collect();
    let helps = |name: &MemberName| {
        let heard = others[name].hears.intersection(&deaf).filter(|m| inputs.may_vote(m));
        inputs.may_be_promoted(name) && heard.count() >= newest.k
    };
    (inputs.seal_all_cfgs(&deaf) && deaf.iter().any(helps)).then_some(deaf)
}
