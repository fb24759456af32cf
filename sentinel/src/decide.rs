//! Turns (spec, agreed state, what was seen, now) into the next agreed state, or into what is
//! waited for.
//!
//! The one rule: a function that can do nothing. Here the cases are told apart; the modules below
//! answer them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::report::Stream;
use proto::spec::Permission;
use proto::{ClusterSpec, ClusterState, Lsn, MemberName, MemberReport, Moment, WallTime};

use crate::observe::{Condition, Observations, Stored};
use crate::plan::{HistoryWrite, Plan, Verdict, WaitingOn};
use crate::{explain, record};

pub mod base;
mod bootstrap;
mod failover;
pub mod health;
pub(crate) mod loss;
pub(crate) mod membership;
mod pause;
pub mod preview;
pub(crate) mod requests;
mod schedule;
mod silence;
mod successor;
pub(crate) mod switchover;
pub(crate) mod synchronous;

pub use base::Reject;
use health::Situation;

/// Decides. `wall` goes into records only; no choice rests on it but when a pause ends and a scheduled switchover begins.
pub fn decide(
    spec: &ClusterSpec,
    state: Option<&ClusterState>,
    seen: &Observations,
    now: Moment,
    wall: WallTime,
) -> Plan {
    let Some(state) = state else {
        let step = bootstrap::create(spec, seen);
        return step.explained(explain::before_founding(seen));
    };
    let inputs = Inputs { spec, state, seen, now, wall };
    let step = match health::situation(&inputs) {
        Situation::OtherStore(made_in) => {
            Step::wait(WaitingOn::OtherStore { made_in, found: seen.etcd_cluster_id.clone() })
        }
        Situation::SetBack(member, why) => Step::wait(WaitingOn::SetBack { member, why }),
        Situation::Founding(founder) => bootstrap::found(&inputs, &founder),
        Situation::Sealing(sealing) => failover::choose(&inputs, sealing),
        Situation::Lost(loss) => failover::answer(&inputs, &loss),
        Situation::Opened(opened) => failover::open(&inputs, &opened),
        Situation::Waiting(waiting, wake_at) => meanwhile(&inputs, waiting, wake_at),
        Situation::Steady => steady(&inputs),
        Situation::Preparing => preparing(&inputs),
        Situation::HandedOver => switchover::seal(&inputs),
    };
    let step = match &step.verdict {
        Verdict::Change { .. } => step,
        Verdict::Record { .. } | Verdict::Wait(_) => later(&inputs).unwrap_or(step),
    };
    let wake_at = step.wake_at.into_iter().chain(schedule::wake_at(&inputs)).min();
    Step { wake_at, ..step }.explained(explain::of(&inputs))
}

/// What can be done when nothing more urgent is to be done.
fn later(inputs: &Inputs) -> Option<Step> {
    let restored = inputs.state.etcd_cluster_id != inputs.seen.etcd_cluster_id;
    if restored || health::set_back(inputs).is_some() {
        // Nothing is decided on a restored store.
        return None;
    }
    pause::over(inputs).or_else(|| requests::answer(inputs)).or_else(|| schedule::due(inputs))
}

/// Returns the conditions that hold in what was seen, for the timers.
pub fn conditions(
    spec: &ClusterSpec,
    state: &ClusterState,
    seen: &Observations,
) -> BTreeSet<Condition> {
    let inputs = Inputs { spec, state, seen, now: Moment::default(), wall: WallTime(0) };
    let mut holding = health::conditions(&inputs);
    holding.extend(bootstrap::conditions(&inputs));
    holding.extend(failover::conditions(&inputs));
    holding.extend(synchronous::conditions(&inputs));
    holding.extend(pause::conditions(&inputs));
    holding.extend(loss::conditions(&inputs));
    holding
}

/// The primary serves: take evidence in, admit, follow with the voters, keep the record.
fn steady(inputs: &Inputs) -> Step {
    synchronous::confirm(inputs)
        .or_else(|| membership::admit(inputs))
        .or_else(|| membership::let_go(inputs))
        .or_else(|| synchronous::append(inputs))
        .or_else(|| record::follow(inputs))
        .unwrap_or_else(|| synchronous::waiting(inputs))
}

/// The primary serves and prepares to hand over: who votes stays as it is meanwhile.
fn preparing(inputs: &Inputs) -> Step {
    synchronous::confirm(inputs)
        .or_else(|| membership::admit(inputs))
        .or_else(|| inputs.state.switchover().map(|s| switchover::advance(inputs, s)))
        .unwrap_or_else(|| synchronous::waiting(inputs))
}

/// The primary is on its way, or in doubt: members may be admitted, and voters change only where it waits for some
/// that do not come.
fn meanwhile(inputs: &Inputs, waiting: WaitingOn, wake_at: Option<Moment>) -> Step {
    let waits_for_voters = matches!(waiting, WaitingOn::VotersHold { .. });
    let relieve = || waits_for_voters.then(|| synchronous::relieve(inputs)).flatten();
    let relief = || waits_for_voters.then(|| synchronous::relief(inputs)).flatten();
    membership::admit(inputs).or_else(relieve).unwrap_or_else(|| Step {
        verdict: Verdict::Wait(waiting.clone()),
        wake_at: wake_at.or_else(relief),
    })
}

/// A verdict on its way to become a plan.
pub(crate) struct Step {
    pub verdict: Verdict,
    pub wake_at: Option<Moment>,
}

impl Step {
    pub(crate) fn wait(waiting: WaitingOn) -> Self {
        Self { verdict: Verdict::Wait(waiting), wake_at: None }
    }

    pub(crate) fn wait_until(waiting: WaitingOn, wake_at: Moment) -> Self {
        Self { verdict: Verdict::Wait(waiting), wake_at: Some(wake_at) }
    }

    pub(crate) fn change(next: ClusterState, history: Vec<HistoryWrite>, why: String) -> Self {
        Self { verdict: Verdict::Change { next: Box::new(next), history, why }, wake_at: None }
    }

    fn explained(self, mut explanation: proto::explanation::Explanation) -> Plan {
        explanation.verdict = match &self.verdict {
            Verdict::Change { why, .. } | Verdict::Record { why, .. } => why.clone(),
            Verdict::Wait(waiting) => waiting.to_string(),
        };
        Plan { verdict: self.verdict, explanation, wake_at: self.wake_at }
    }
}

/// All that a decision rests on, once there is a state.
pub(crate) struct Inputs<'a> {
    pub spec: &'a ClusterSpec,
    pub state: &'a ClusterState,
    pub seen: &'a Observations,
    pub now: Moment,
    pub wall: WallTime,
}

impl<'a> Inputs<'a> {
    /// Returns a copy of the state with the next number, to be changed and committed.
    pub(crate) fn next(&self) -> ClusterState {
        let mut next = self.state.clone();
        next.number = next.number.next();
        next
    }

    /// Returns the primary of the present epoch; it is named in every phase but founding.
    pub(crate) fn primary(&self) -> &'a MemberName {
        self.state.primary.as_ref().expect("every phase but founding names a primary")
    }

    /// Returns the live report of `member` if it is the very member that was admitted.
    pub(crate) fn report(&self, member: &MemberName) -> Option<&'a MemberReport> {
        let admitted = self.state.members.get(member)?;
        self.seen.members.get(member).filter(|r| r.incarnation == admitted.incarnation)
    }

    /// Returns the live reports of the admitted members that miss no WAL.
    pub(crate) fn complete(&self) -> BTreeMap<&'a MemberName, &'a MemberReport> {
        let fit = self.state.members.keys().filter(|name| base::unfit(self, name).is_none());
        fit.filter_map(|name| Some((name, self.report(name)?))).collect()
    }

    /// Returns the same without the primary.
    pub(crate) fn complete_others(&self) -> BTreeMap<&'a MemberName, &'a MemberReport> {
        let mut complete = self.complete();
        complete.remove(self.primary());
        complete
    }

    /// Returns whether `members` contain a seal set of every recorded Cfg.
    pub(crate) fn seal_all_cfgs(&self, members: &BTreeSet<MemberName>) -> bool {
        self.state.cfgs.iter().all(|cfg| cfg.is_sealed_by(members))
    }

    pub(crate) fn may_be_promoted(&self, member: &MemberName) -> bool {
        self.spec.member(member).promote == Permission::Allowed
    }

    /// Returns whether the spec lets `member` vote, on its way out or not.
    pub(crate) fn votes_by_spec(&self, member: &MemberName) -> bool {
        self.spec.member(member).vote == Permission::Allowed
    }

    pub(crate) fn may_vote(&self, member: &MemberName) -> bool {
        self.votes_by_spec(member) && !self.state.orders.leaving.contains_key(member)
    }

    /// Returns whether the live complete others could form a base, with one among them that may be
    /// promoted and stays.
    pub(crate) fn others_can_replace(&self) -> bool {
        let others = self.complete_others();
        let names: BTreeSet<MemberName> = others.keys().map(|m| (*m).clone()).collect();
        let stays = |(m, report): (&&MemberName, &&MemberReport)| {
            self.may_be_promoted(m) && !report.leaving
        };
        self.seal_all_cfgs(&names) && others.iter().any(stays)
    }

    /// Returns whether no live complete other has heard this primary since it started: they have come back as it has,
    /// or may, and their silence is no evidence.
    pub(crate) fn others_have_not_received(&self) -> bool {
        self.complete_others().values().all(|report| report.never_received)
    }

    /// Returns whether the present primary holds the right of the present epoch. One that cannot be
    /// read counts as held: it is not gone.
    pub(crate) fn right_is_held(&self) -> bool {
        match &self.seen.primary_key {
            Stored::Absent => false,
            Stored::Known(key) => {
                key.epoch == self.state.epoch && Some(&key.member) == self.state.primary.as_ref()
            }
            Stored::Newer(_) | Stored::Malformed(_) => true,
        }
    }

    /// Returns the number of the restart order of the present epoch, 0 if there is none.
    pub(crate) fn restart_number(&self) -> u64 {
        let order = self.state.restart.as_ref().filter(|r| r.epoch == self.state.epoch);
        order.map_or(0, |r| r.number)
    }

    /// Returns the moment until which `condition` has to hold to have held for `patience`; `None`
    /// once it has.
    pub(crate) fn patience_left(
        &self,
        condition: &Condition,
        patience: Duration,
    ) -> Option<Moment> {
        let until = self.since(condition) + patience;
        (self.now < until).then_some(until)
    }

    /// Returns the wall-clock time since which `condition` has held, for records.
    pub(crate) fn wall_since(&self, condition: &Condition) -> WallTime {
        let held = self.now.since(self.since(condition));
        WallTime(self.wall.0 - i64::try_from(held.as_millis()).unwrap_or(0))
    }

    /// A condition that is not marked has not been seen to hold before now.
    fn since(&self, condition: &Condition) -> Moment {
        self.seen.held.since(condition).unwrap_or(self.now)
    }
}

/// Returns whether this standby streams from the primary of the present epoch, and under a voter's
/// name.
pub(crate) fn streams_as_voter(state: &ClusterState, report: &MemberReport) -> bool {
    match report.stream {
        Stream::Live { epoch, timeline, voter } => {
            voter && epoch == state.epoch && timeline == state.timeline
        }
        Stream::None | Stream::Silent { .. } => false,
    }
}

/// Returns how far replay had come when the member sealed: its one sign of progress in a report.
pub(crate) fn replayed(report: &MemberReport) -> Option<Lsn> {
    report.seal.as_ref().map(|s| s.replayed)
}
