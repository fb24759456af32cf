//! Who acknowledges commits: a list of Cfgs that grows by wish and shrinks by evidence.
//!
//! The one rule: a Cfg leaves the record only when a later one of this epoch is proven to be in
//! force. A change that cannot finish is left behind by appending another, never by taking one
//! away.

use std::collections::BTreeSet;

use proto::cfg::Cfg;
use proto::report::{Server, Stream};
use proto::state::Floor;
use proto::{ClusterState, MemberName, MemberReport, Moment, Phase};

use super::{Inputs, Step, streams_as_voter};
use crate::observe::Condition;
use crate::plan::{WaitingOn, list};

/// Takes the primary's proof in: earlier Cfgs go, and floors rise to what was seen.
pub(crate) fn confirm(inputs: &Inputs) -> Option<Step> {
    let state = inputs.state;
    let confirmed = inputs.report(inputs.primary())?.confirmed.as_ref()?;
    let cfg = state.cfgs.iter().find(|c| c.id == confirmed.cfg && c.epoch == state.epoch)?;
    let voters: BTreeSet<&MemberName> = confirmed.voters.intersection(&cfg.voters).collect();
    if voters.len() < cfg.k {
        return None;
    }
    let mut next = inputs.next();
    next.cfgs.retain(|c| c.id >= cfg.id);
    let floor = Floor { epoch: state.epoch, lsn: confirmed.lsn };
    for name in voters.into_iter().chain([&cfg.leader]) {
        if let Some(admitted) = next.members.get_mut(name) {
            admitted.floor = admitted.floor.max(Some(floor));
        }
    }
    if next.cfgs == state.cfgs && next.members == state.members {
        return None;
    }
    let why = format!("Cfg {cfg} is proven to be in force at {}", confirmed.lsn);
    Some(Step::change(next, Vec::new(), why))
}

/// Appends the Cfg that the spec wants of the members that are there.
pub(crate) fn append(inputs: &Inputs) -> Option<Step> {
    let newest = inputs.state.newest_cfg()?;
    let wish = wish(inputs, newest).filter(|w| w.settled_by(inputs, newest).is_none())?;
    let mut next = inputs.next();
    let cfg = successor(&next, newest, wish.voters, inputs.spec.synchronous.count);
    let why = format!("the voters become {}: {}", list(&Vec::from_iter(&cfg.voters)), wish.reason);
    next.last_cfg = cfg.id;
    next.cfgs.push(cfg);
    Some(Step::change(next, Vec::new(), why))
}

/// Appends a Cfg of those who stream, where the primary waits in vain for the voters of its own before it may open:
/// one may never come back, and nobody else would be asked.
pub(crate) fn relieve(inputs: &Inputs) -> Option<Step> {
    let newest = inputs.state.newest_cfg()?;
    if !is_stalled(inputs, newest)
        || inputs.patience_left(&stalled(newest), inputs.spec.settle).is_some()
    {
        return None;
    }
    let mut next = inputs.next();
    let cfg = successor(&next, newest, desired(inputs), inputs.spec.synchronous.count);
    let voters = list(&Vec::from_iter(&cfg.voters));
    let why = format!("the voters become {voters}: {} waits to open", inputs.primary());
    next.last_cfg = cfg.id;
    next.cfgs.push(cfg);
    Some(Step::change(next, Vec::new(), why))
}

fn stalled(newest: &Cfg) -> Condition {
    Condition::Stalled { newest: newest.id }
}

/// Whether others could acknowledge commits for which too few voters stream.
fn is_stalled(inputs: &Inputs, newest: &Cfg) -> bool {
    let desired = desired(inputs);
    desired.len() >= inputs.spec.synchronous.count
        && desired.intersection(&newest.voters).count() < newest.k
}

/// Returns when `relieve` will do something, if so.
pub(crate) fn relief(inputs: &Inputs) -> Option<Moment> {
    let newest = inputs.state.newest_cfg().filter(|c| is_stalled(inputs, c))?;
    inputs.patience_left(&stalled(newest), inputs.spec.settle)
}

/// Returns what is waited for when nothing has to be done.
pub(crate) fn waiting(inputs: &Inputs) -> Step {
    let state = inputs.state;
    let primary = inputs.primary().clone();
    let Some(newest) = state.newest_cfg() else {
        return Step::wait(WaitingOn::Nothing { primary });
    };
    if let Some(wish) = wish(inputs, newest)
        && let Some(settled) = wish.settled_by(inputs, newest)
    {
        let voters = wish.voters.into_iter().collect();
        return Step::wait_until(WaitingOn::Settle { voters }, settled);
    }
    let present: Vec<MemberName> = desired(inputs).into_iter().collect();
    let wanted = inputs.spec.synchronous.count;
    let streaming = present.iter().filter(|m| newest.voters.contains(*m)).count();
    if present.len() < wanted || streaming < newest.k {
        return Step::wait(WaitingOn::Voters { present, wanted });
    }
    if state.cfgs.len() > 1 {
        return Step::wait(WaitingOn::Confirmation { cfg: newest.clone() });
    }
    let missing = missing(inputs);
    Step::wait(match missing.is_empty() {
        true => WaitingOn::Nothing { primary },
        false => WaitingOn::Redundancy { missing },
    })
}

/// Returns the admitted members that do not stream from the primary, or do not vote though they
/// may.
pub(crate) fn missing(inputs: &Inputs) -> Vec<MemberName> {
    let state = inputs.state;
    let in_place = |name: &MemberName| {
        let newest = state.newest_cfg();
        inputs.report(name).filter(|r| r.complete).is_some_and(|r| {
            streams(state, r)
                && (!inputs.may_vote(name) || newest.is_some_and(|c| c.voters.contains(name)))
        })
    };
    state
        .members
        .keys()
        .filter(|name| *name != inputs.primary() && !in_place(name))
        .cloned()
        .collect()
}

/// Returns whether the cluster is as redundant as the spec wants it.
pub(crate) fn is_redundant(inputs: &Inputs) -> bool {
    let state = inputs.state;
    let newest_is_whole = state.newest_cfg().is_some_and(|c| c.k == inputs.spec.synchronous.count);
    state.phase == Phase::Open
        && state.cfgs.len() == 1
        && newest_is_whole
        && missing(inputs).is_empty()
}

/// Returns the condition of this file, if it holds.
pub(crate) fn conditions(inputs: &Inputs) -> BTreeSet<Condition> {
    let state = inputs.state;
    let mut holding = BTreeSet::new();
    let Some(newest) = state.newest_cfg().filter(|_| state.sealing.is_none()) else {
        return holding;
    };
    if state.phase == Phase::Open {
        holding.insert(Condition::Voters { newest: newest.id, voters: desired(inputs) });
    }
    if is_stalled(inputs, newest) {
        holding.insert(stalled(newest));
    }
    holding
}

/// Returns the members that may acknowledge commits now: complete, allowed, and connected as
/// voters.
fn desired(inputs: &Inputs) -> BTreeSet<MemberName> {
    inputs
        .complete_others()
        .into_iter()
        .filter(|(name, report)| {
            inputs.may_vote(name)
                && matches!(report.server, Server::Standby { .. })
                && streams_as_voter(inputs.state, report)
        })
        .map(|(name, _)| name.clone())
        .collect()
}

/// The voters that the next Cfg should have.
struct Wish {
    voters: BTreeSet<MemberName>,
    reason: String,
    at_once: bool,
}

impl Wish {
    /// Returns when the wish will have been the same for `settle`, if it must and has not.
    fn settled_by(&self, inputs: &Inputs, newest: &Cfg) -> Option<Moment> {
        if self.at_once {
            return None;
        }
        let condition = Condition::Voters { newest: newest.id, voters: desired(inputs) };
        let settled = inputs.patience_left(&condition, inputs.spec.settle)?;
        // While commits wait, a member that flaps must not keep the others out.
        match is_stalled(inputs, newest) {
            true => Some(inputs.patience_left(&stalled(newest), inputs.spec.settle)?.min(settled)),
            false => Some(settled),
        }
    }
}

fn wish(inputs: &Inputs, newest: &Cfg) -> Option<Wish> {
    let count = inputs.spec.synchronous.count;
    let desired = desired(inputs);
    let dead: BTreeSet<MemberName> =
        newest.voters.iter().filter(|v| is_dead(inputs, v)).cloned().collect();
    if !dead.is_empty() {
        let left: BTreeSet<MemberName> = newest.voters.difference(&dead).cloned().collect();
        let reason = format!("{} are gone", list(&Vec::from_iter(&dead)));
        // Only the dead go at once; who comes in their place is settled later, unless commits need
        // it now.
        if left.intersection(&desired).count() >= count {
            return Some(Wish { voters: left, reason, at_once: true });
        }
        return (desired.len() >= count).then_some(Wish { voters: desired, reason, at_once: true });
    }
    if desired.len() < count || (desired == newest.voters && newest.k == count) {
        return None;
    }
    // While a proof is awaited nothing is added that only grows the list of voters to be proven.
    let unproven = inputs.state.cfgs.len() > 1;
    if unproven && newest.k == count && newest.voters.is_subset(&desired) {
        return None;
    }
    let reason = match newest.voters.is_subset(&desired) {
        true => "more members stream".to_owned(),
        false => "a voter does not stream any more".to_owned(),
    };
    Some(Wish { voters: desired, reason, at_once: newest.k == 0 })
}

/// Whether a voter is known to be gone or has no live report. Not streaming for a moment is no
/// death.
fn is_dead(inputs: &Inputs, voter: &MemberName) -> bool {
    inputs.report(voter).is_none_or(|r| matches!(r.server, Server::Dead { .. } | Server::Stopped))
}

fn successor(next: &ClusterState, newest: &Cfg, voters: BTreeSet<MemberName>, k: usize) -> Cfg {
    // A name on the wire is an entry of Cfgs with one k: when it rises, walsenders of the old k
    // must not count.
    let rises = newest.k > 0 && k > newest.k;
    Cfg {
        id: next.last_cfg.next(),
        epoch: newest.epoch,
        leader: newest.leader.clone(),
        voters,
        k,
        round: newest.round + u32::from(rises),
    }
}

/// Returns whether this standby receives from the primary of the present epoch, under whatever
/// name.
fn streams(state: &ClusterState, report: &MemberReport) -> bool {
    matches!(report.stream, Stream::Live { epoch, timeline, .. }
        if epoch == state.epoch && timeline == state.timeline)
}
