//! Who acknowledges commits: a list of Cfgs that grows by wish and shrinks by evidence.
//!
//! The one rule: a Cfg leaves the record only when a later one of this epoch is proven to be in
//! force. A change that cannot finish is left behind by appending another, never by taking one
//! away.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use proto::cfg::Cfg;
use proto::report::{Server, Stream};
use proto::spec::{Durability, SynchronousMode};
use proto::state::Floor;
use proto::{CfgId, ClusterState, MemberName, MemberReport, Moment, Phase};

use super::{Inputs, Step, streams_as_voter};
use crate::observe::Condition;
use crate::plan::{WaitingOn, list};
use crate::record;

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
    let cfg = successor(&next, newest, wish.voters, wish.k);
    let voters = list(&Vec::from_iter(&cfg.voters));
    let (k, before, wanted) = (cfg.k, newest.k, inputs.spec.synchronous.count);
    let why = match k {
        0 => format!("REDUCED DURABILITY, no voter is left: {}", wish.reason),
        k if k < wanted => {
            format!("REDUCED DURABILITY, the voters become {voters}: {}", wish.reason)
        }
        _ => format!("the voters become {voters}: {}", wish.reason),
    };
    next.last_cfg = cfg.id;
    next.cfgs.push(cfg);
    // A first Cfg with voters is the ordinary course after the founding.
    let tells = k < wanted || (before < wanted && newest.id > CfgId(1));
    let history = if tells { record::note(inputs, why.clone()) } else { Vec::new() };
    Some(Step::change(next, history, why))
}

/// Appends a Cfg of those who stream, where the primary waits in vain for the voters of its own before it may open:
/// one may never come back, and nobody else would be asked.
pub(crate) fn relieve(inputs: &Inputs) -> Option<Step> {
    let newest = inputs.state.newest_cfg()?;
    let condition = unmet(inputs, newest)?;
    if inputs.patience_left(&condition, inputs.spec.settle).is_some() {
        return None;
    }
    let mut next = inputs.next();
    let desired = desired(inputs);
    let k = wanted(inputs, &desired);
    let cfg = successor(&next, newest, desired, k);
    let voters = list(&Vec::from_iter(&cfg.voters));
    let why = format!("the voters become {voters}: {} waits to open", inputs.primary());
    let tells = k < inputs.spec.synchronous.count;
    let history = if tells { record::note(inputs, why.clone()) } else { Vec::new() };
    next.last_cfg = cfg.id;
    next.cfgs.push(cfg);
    Some(Step::change(next, history, why))
}

/// Returns when `relieve` will do something, if so.
pub(crate) fn relief(inputs: &Inputs) -> Option<Moment> {
    let newest = inputs.state.newest_cfg()?;
    inputs.patience_left(&unmet(inputs, newest)?, inputs.spec.settle)
}

/// Returns the condition under which a primary waits for voters that do not come, though it need not.
fn unmet(inputs: &Inputs, newest: &Cfg) -> Option<Condition> {
    if is_stalled(inputs, newest) {
        return Some(stalled(newest));
    }
    let available = inputs.spec.durability == Durability::Available;
    (available && is_short(inputs, newest)).then(|| short(newest))
}

fn stalled(newest: &Cfg) -> Condition {
    Condition::Stalled { newest: newest.id }
}

fn short(newest: &Cfg) -> Condition {
    Condition::Short { newest: newest.id }
}

/// Whether others could acknowledge commits for which too few voters stream.
fn is_stalled(inputs: &Inputs, newest: &Cfg) -> bool {
    let desired = desired(inputs);
    let k = wanted(inputs, &desired);
    k > 0 && desired.len() >= k && desired.intersection(&newest.voters).count() < newest.k
}

/// Whether fewer members could vote than acknowledge commits.
fn is_short(inputs: &Inputs, newest: &Cfg) -> bool {
    desired(inputs).len() < newest.k
}

/// Returns how many must acknowledge where `desired` may vote. By `durability: available` nobody is waited for who is
/// not there.
fn wanted(inputs: &Inputs, desired: &BTreeSet<MemberName>) -> usize {
    let count = inputs.spec.synchronous.count;
    match inputs.spec.durability {
        Durability::Strict => count,
        Durability::Available => count.min(desired.len()),
    }
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
    let wanted = wanted(inputs, &desired(inputs));
    let streaming = present.iter().filter(|m| newest.voters.contains(*m)).count();
    if present.len() < wanted || streaming < newest.k {
        return Step::wait(WaitingOn::Voters { present, wanted });
    }
    if state.cfgs.len() > 1 {
        return Step::wait(WaitingOn::Confirmation { cfg: newest.clone() });
    }
    let missing = missing(inputs);
    let count = inputs.spec.synchronous.count;
    if newest.k < count {
        return Step::wait(WaitingOn::Reduced { primary, k: newest.k, wanted: count });
    }
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
                && (!inputs.may_vote(name)
                    || inputs.spec.synchronous.mode == SynchronousMode::Priority
                    || newest.is_some_and(|c| c.voters.contains(name)))
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
    if is_short(inputs, newest) {
        holding.insert(short(newest));
    }
    holding
}

/// Returns the members that should acknowledge commits now.
fn desired(inputs: &Inputs) -> BTreeSet<MemberName> {
    chosen(inputs, candidates(inputs), inputs.primary())
}

/// Returns the members that may acknowledge commits now: complete, allowed, and connected as
/// voters. Whoever is to be taken out stays among them while too few others are there.
fn candidates(inputs: &Inputs) -> BTreeSet<MemberName> {
    let connected: BTreeSet<MemberName> = inputs
        .complete_others()
        .into_iter()
        .filter(|(name, report)| {
            inputs.votes_by_spec(name)
                && matches!(report.server, Server::Standby { .. })
                && streams_as_voter(inputs.state, report)
        })
        .map(|(name, _)| name.clone())
        .collect();
    let leaving = &inputs.state.orders.leaving;
    let staying: BTreeSet<MemberName> =
        connected.iter().filter(|m| !leaving.contains_key(*m)).cloned().collect();
    match staying.len() < inputs.spec.synchronous.count {
        true => {
            let waits = |m: &MemberName| leaving.get(m).is_none_or(|l| !l.below_count);
            connected.into_iter().filter(|m| waits(m)).collect()
        }
        false => staying,
    }
}

/// Returns the voters among `pool`: all of them in quorum mode, the best in priority mode.
pub(crate) fn chosen(
    inputs: &Inputs,
    pool: BTreeSet<MemberName>,
    primary: &MemberName,
) -> BTreeSet<MemberName> {
    if inputs.spec.synchronous.mode == SynchronousMode::Quorum {
        return pool;
    }
    let zone = inputs.report(primary).and_then(|r| r.zone.as_ref());
    let rank = |name: &MemberName| {
        let report = inputs.report(name);
        let ails = report.is_none_or(|r| !r.problems.is_empty());
        let shares_zone = zone.is_some() && report.and_then(|r| r.zone.as_ref()) == zone;
        (ails, shares_zone, Reverse(inputs.spec.member(name).priority), name.clone())
    };
    let mut ranked: Vec<MemberName> = pool.into_iter().collect();
    ranked.sort_by_key(rank);
    ranked.into_iter().take(inputs.spec.synchronous.count).collect()
}

/// Returns who would be left to acknowledge commits without `member`, where it has a part in that at all.
pub(crate) fn voters_without(inputs: &Inputs, member: &MemberName) -> Option<BTreeSet<MemberName>> {
    let mut left = candidates(inputs);
    let votes = left.remove(member);
    let listed = inputs.state.cfgs.iter().any(|c| c.voters.contains(member));
    (votes || listed).then_some(left)
}

/// The voters that the next Cfg should have.
struct Wish {
    voters: BTreeSet<MemberName>,
    k: usize,
    reason: String,
    wait: Settling,
}

/// How long a wish has to stay the same before it is followed.
enum Settling {
    AtOnce,
    /// Until the voters-to-be have been the same for `settle`.
    Settle,
    /// Until too few have been there for this long.
    Short(Duration),
}

impl Wish {
    /// Returns when the wish will have been the same for `settle`, if it must and has not.
    fn settled_by(&self, inputs: &Inputs, newest: &Cfg) -> Option<Moment> {
        match self.wait {
            Settling::AtOnce => return None,
            Settling::Short(patience) => return inputs.patience_left(&short(newest), patience),
            Settling::Settle => {}
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
    if desired.len() < count
        && let Some(wish) = fewer(inputs, newest, &desired)
    {
        return Some(wish);
    }
    let k = wanted(inputs, &desired);
    let goes = |v: &&MemberName| is_dead(inputs, v) && !desired.contains(*v);
    let dead: BTreeSet<MemberName> = newest.voters.iter().filter(goes).cloned().collect();
    if !dead.is_empty() && k > 0 {
        let left: BTreeSet<MemberName> = newest.voters.difference(&dead).cloned().collect();
        let reason = format!("{} are gone", list(&Vec::from_iter(&dead)));
        // Only the dead go at once; who comes in their place is settled later, unless commits need
        // it now.
        let wait = Settling::AtOnce;
        if left.intersection(&desired).count() >= k {
            return Some(Wish { voters: left, k, reason, wait });
        }
        return (desired.len() >= k).then_some(Wish { voters: desired, k, reason, wait });
    }
    if k == 0 || desired.len() < k || (desired == newest.voters && newest.k == k) {
        return None;
    }
    // While a proof is awaited nothing is added that only grows the list of voters to be proven.
    let unproven = inputs.state.cfgs.len() > 1;
    if unproven && newest.k == k && newest.voters.is_subset(&desired) {
        return None;
    }
    let reason = match newest.voters.is_subset(&desired) {
        true => "more members stream".to_owned(),
        false => "a voter does not stream any more".to_owned(),
    };
    let wait = if newest.k == 0 { Settling::AtOnce } else { Settling::Settle };
    Some(Wish { voters: desired, k, reason, wait })
}

/// How long a voter may be without a report before the primary goes on with fewer: after a stall of etcd, in which all
/// leases lapse together, keepers need some tries to come back.
const RETURN_GRACE: Duration = Duration::from_millis(400);

/// Fewer members could vote than the spec asks for. Commits wait for them, unless the spec wants it otherwise, or an
/// operator who takes one out.
fn fewer(inputs: &Inputs, newest: &Cfg, desired: &BTreeSet<MemberName>) -> Option<Wish> {
    let leaves =
        |v: &&MemberName| inputs.state.orders.leaving.get(*v).is_some_and(|l| l.below_count);
    let (voters, k) = match inputs.spec.durability {
        Durability::Available => (desired.clone(), desired.len()),
        // The last voters are taken out: nobody acknowledges until enough have joined, and commits wait for them.
        Durability::Strict if newest.voters.iter().any(|v| leaves(&v)) => (BTreeSet::new(), 0),
        Durability::Strict => return None,
    };
    if k >= newest.k {
        // More than before, or others: as ever.
        return None;
    }
    let lost: Vec<&MemberName> = newest.voters.difference(&voters).collect();
    let reason = format!("{} do not vote any more", list(&lost));
    let mut patience = Duration::ZERO;
    for voter in lost.iter().filter(|v| !inputs.state.orders.leaving.contains_key(**v)) {
        patience = patience.max(match inputs.report(voter) {
            Some(report) if matches!(report.server, Server::Dead { .. } | Server::Stopped) => {
                Duration::ZERO
            }
            // A standby that receives nothing may be without its stream because the primary was lost a moment ago, and a
            // primary that could have gone on alone is replaced by nobody. If the right is held a lease later, it lives.
            Some(report) if matches!(report.server, Server::Standby { .. }) => {
                inputs.spec.lease_ttl
            }
            Some(_) => inputs.spec.settle,
            None => RETURN_GRACE,
        });
    }
    let wait = if patience.is_zero() { Settling::AtOnce } else { Settling::Short(patience) };
    Some(Wish { voters, k, reason, wait })
}

/// Whether a voter is known to be gone or has no live report. Not streaming for a moment is no
/// death.
fn is_dead(inputs: &Inputs, voter: &MemberName) -> bool {
    inputs.state.orders.leaving.contains_key(voter)
        || inputs
            .report(voter)
            .is_none_or(|r| matches!(r.server, Server::Dead { .. } | Server::Stopped))
}

/// Returns the first of the changes that lead to `k` of `voters`.
///
/// While walsenders take up new names one by one, one that has them counts beside one that still has a place by the old ones.
/// With k = 1 whoever is alone stands in one of the two Cfgs; three of four who are each in one may be no set of either. So
/// voters leave only where k stays, and nobody comes in with the same change.
fn in_one_change(
    newest: &Cfg,
    voters: BTreeSet<MemberName>,
    k: usize,
) -> (BTreeSet<MemberName>, usize) {
    let nobody_leaves = newest.voters.is_subset(&voters);
    if nobody_leaves || k == 0 || newest.k.max(k) < 2 {
        (voters, k)
    } else if k < newest.k {
        (newest.voters.clone(), k)
    } else if !voters.is_subset(&newest.voters) {
        (newest.voters.union(&voters).cloned().collect(), newest.k)
    } else {
        (voters, k)
    }
}

/// Returns the next Cfg on the way from `newest` to `k` of `voters`.
fn successor(next: &ClusterState, newest: &Cfg, voters: BTreeSet<MemberName>, k: usize) -> Cfg {
    let (voters, k) = in_one_change(newest, voters, k);
    // A name on the wire is an entry of Cfgs with one k: when it rises, walsenders of the old k
    // must not count.
    // Where there was none for a while, nobody knows any more how small the k before was.
    let forgotten = newest.k == 0 && newest.id > CfgId(1) && k > 1;
    let rises = newest.k > 0 && k > newest.k || forgotten;
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

#[cfg(test)]
mod tests {
    use proto::Epoch;

    use super::*;

    #[test]
    fn with_more_than_one_needed_nobody_leaves_while_somebody_comes_in() {
        let set = |names: &str| -> BTreeSet<MemberName> {
            names.chars().map(|name| name.to_string().parse().unwrap()).collect()
        };
        let next = |voters: &str, k, wanted: &str, wanted_k| {
            let leader = "z".parse().unwrap();
            let (id, epoch) = (CfgId(2), Epoch(1));
            let newest = Cfg { id, epoch, leader, voters: set(voters), k, round: 0 };
            in_one_change(&newest, set(wanted), wanted_k)
        };
        assert_eq!(next("bde", 3, "ade", 3), (set("abde"), 3), "{{a, b, d}} is a set of this one");
        assert_eq!(next("abde", 3, "ade", 3), (set("ade"), 3));
        assert_eq!(next("bc", 2, "b", 1), (set("bc"), 1), "c alone is a set of this one");
        assert_eq!(next("bc", 2, "", 0), (set(""), 0));
        assert_eq!(next("bc", 2, "bcd", 2), (set("bcd"), 2));
        assert_eq!(next("b", 1, "cd", 2), (set("bcd"), 1));
        assert_eq!(next("b", 1, "c", 1), (set("c"), 1), "one who is alone is of one of the two");
    }
}
