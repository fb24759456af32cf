//! What situation the cluster is in: founding, sealing, opening, serving, or its primary lost.
//!
//! The one rule: don't know is not gone. A missing report never counts by itself; what does is a
//! keeper that says that its PostgreSQL died, or voters that say that they hear nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::report::{Ended, Opened, Server, Stream};
use proto::{Epoch, MemberName, MemberReport, Moment, Phase, WallTime};

use super::silence::{self, Stalled};
use super::{Inputs, replayed};
use crate::observe::Condition;
use crate::plan::{WaitingOn, list};

/// The cases of a decision.
pub(crate) enum Situation {
    OtherStore(String),
    /// This member has acted on a later state, for this reason.
    SetBack(MemberName, String),
    Founding(MemberName),
    Sealing(Epoch),
    Lost(Loss),
    /// The primary opened, and the state does not say so yet.
    Opened(Opened),
    Waiting(WaitingOn, Option<Moment>),
    Steady,
    /// The primary serves, and is to hand over soon.
    Preparing,
    /// The primary has stopped to hand over, and has sealed.
    HandedOver,
}

/// A primary that has to be replaced or restarted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    pub kind: LossKind,
    pub since: WallTime,
    pub evidence: Vec<String>,
}

/// How it was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossKind {
    /// Its keeper saw PostgreSQL end.
    Died { noticed: WallTime, how: Ended },
    /// It runs and does not do its work.
    Unresponsive,
    /// Its keeper runs and PostgreSQL does not.
    Stopped,
    /// Its right lapsed and everybody who counts hears nothing of it.
    Silent,
    /// All live voters hear nothing of it, by echo and by stream; its right has not lapsed yet.
    Unheard,
    /// Its voters are well and receive nothing of it, so commits wait; its right has not lapsed.
    Deserted,
    /// It holds its right and is heard; its voters see no new WAL of it, or get no session.
    Standstill,
    /// Its right lapsed, and the grace for a primary that some still hear, or of which little is
    /// known, is over.
    Isolated,
    /// It was to open, and its keeper is gone.
    Vanished,
    /// It was to open, and nothing moved.
    Stuck,
    /// It was to stop and hand over, and did not.
    KeptOn,
}

impl LossKind {
    /// Returns the cause in one sentence.
    pub fn cause(self, primary: &MemberName) -> String {
        match self {
            Self::Died { how: Ended::Died, .. } => format!("PostgreSQL of primary {primary} died"),
            Self::Died { how: Ended::Stopped, .. } => {
                format!("PostgreSQL of primary {primary} was stopped")
            }
            Self::Died { how: Ended::Expired, .. } => {
                format!("primary {primary} could not renew its right in time and was fenced")
            }
            Self::Died { how: Ended::Fenced, .. } => {
                format!("PostgreSQL of primary {primary} was fenced")
            }
            Self::Unresponsive => format!("PostgreSQL of primary {primary} does not do its work"),
            Self::Stopped => format!("PostgreSQL of primary {primary} does not run"),
            Self::Silent => format!("primary {primary} is silent and its right lapsed"),
            Self::Unheard => format!("nobody hears primary {primary} any more"),
            Self::Deserted => {
                format!("no voter receives from primary {primary} though they are well")
            }
            Self::Standstill => {
                format!("primary {primary} is heard and does not get on, its voters say")
            }
            Self::Isolated => {
                format!("primary {primary} lost its right and did not take it back in time")
            }
            Self::Vanished => format!("{primary} vanished before it opened as primary"),
            Self::KeptOn => format!("{primary} did not stop in time to hand over"),
            Self::Stuck => format!("{primary} made no progress on its way to open as primary"),
        }
    }
}

/// Returns which case this is.
pub(crate) fn situation(inputs: &Inputs) -> Situation {
    let state = inputs.state;
    if state.etcd_cluster_id != inputs.seen.etcd_cluster_id {
        return Situation::OtherStore(state.etcd_cluster_id.clone());
    }
    if let Some((member, why)) = set_back(inputs) {
        return Situation::SetBack(member, why);
    }
    if let Some(sealing) = state.sealing {
        return Situation::Sealing(sealing);
    }
    match &state.phase {
        Phase::Founding { founder } => Situation::Founding(founder.clone()),
        Phase::Promoting | Phase::Restarting => opening(inputs),
        Phase::Open => serving(inputs),
        Phase::Switchover(switchover) => match switchover.step.can_be_called_off() {
            true => match serving(inputs) {
                Situation::Steady => Situation::Preparing,
                other => other,
            },
            false => super::switchover::stopping(inputs, switchover),
        },
    }
}

/// Returns a member that distrusts the store, unless the state was adopted above what that member has acted on: it then
/// has yet to read so.
pub(crate) fn set_back(inputs: &Inputs) -> Option<(MemberName, String)> {
    let adopted = inputs.state.adopted;
    inputs.seen.members.iter().find_map(|(name, report)| {
        let frozen = report.frozen.as_ref()?;
        let beyond = adopted.is_none_or(|adopted| adopted <= frozen.acted_on.number);
        beyond.then(|| (name.clone(), frozen.why.clone()))
    })
}

/// Returns the conditions of this file that hold.
pub(crate) fn conditions(inputs: &Inputs) -> BTreeSet<Condition> {
    let state = inputs.state;
    let (epoch, restart) = (state.epoch, inputs.restart_number());
    let mut holding = BTreeSet::new();
    let Some(primary) = state.primary.as_ref().filter(|_| state.sealing.is_none()) else {
        return holding;
    };
    let report = inputs.report(primary);
    match &state.phase {
        Phase::Founding { .. } => {}
        Phase::Open | Phase::Switchover(_) => {
            if !inputs.right_is_held() {
                holding.insert(Condition::Lapsed { epoch });
                if inputs.others_can_replace() {
                    holding.insert(Condition::Replaceable { epoch });
                }
            }
            if report.and_then(|r| r.unresponsive.as_ref()).is_some_and(|u| u.epoch == epoch) {
                holding.insert(Condition::Unresponsive { epoch });
            }
            if report.is_some_and(|r| !matches!(r.server, Server::Primary { .. })) {
                holding.insert(Condition::NotServing { epoch });
            }
            holding.extend(silence::conditions(inputs));
            holding.extend(state.switchover().map(super::switchover::condition));
        }
        Phase::Promoting | Phase::Restarting => {
            holding.insert(Condition::Ordered { epoch, restart });
            holding.insert(match report {
                Some(report) => unopened(inputs, report),
                None => Condition::Absent { epoch, restart },
            });
            if state.phase == Phase::Promoting
                && report.is_some_and(|r| unanswered_death(inputs, r).is_some())
            {
                holding.insert(Condition::DiedPromoting { epoch });
            }
        }
    }
    holding
}

fn unopened(inputs: &Inputs, report: &MemberReport) -> Condition {
    Condition::Unopened {
        epoch: inputs.state.epoch,
        restart: inputs.restart_number(),
        running: matches!(report.server, Server::Primary { .. }),
        replayed: replayed(report),
    }
}

/// Phase `Open`. What voters say counts before what the primary's own keeper does, unless that tells more.
fn serving(inputs: &Inputs) -> Situation {
    if let Some(loss) = silence::unheard(inputs) {
        return Situation::Lost(loss);
    }
    let primary = inputs.primary().clone();
    match by_its_keeper(inputs) {
        Situation::Steady if silence::wants_probe(inputs) => {
            Situation::Waiting(WaitingOn::OwnProbe { primary }, None)
        }
        Situation::Steady => match silence::standstill(inputs) {
            Some(loss) => Situation::Lost(loss),
            None => deserted(inputs, primary),
        },
        other => other,
    }
}

fn deserted(inputs: &Inputs, primary: MemberName) -> Situation {
    match silence::stalled(inputs) {
        Some(Stalled::For(loss)) => Situation::Lost(loss),
        Some(Stalled::Until(until)) => {
            Situation::Waiting(WaitingOn::Stream { primary }, Some(until))
        }
        None => Situation::Steady,
    }
}

/// What the primary's report and its right say.
fn by_its_keeper(inputs: &Inputs) -> Situation {
    let primary = inputs.primary();
    let epoch = inputs.state.epoch;
    let Some(report) = inputs.report(primary) else {
        return if inputs.right_is_held() { Situation::Steady } else { lapse(inputs, None) };
    };
    if let Some(loss) = unresponsive(inputs, report).filter(|_| report.is_running()) {
        return Situation::Lost(loss);
    }
    match report.server {
        Server::Dead { noticed, gone } => died(inputs, report, (noticed, gone)),
        Server::Stopped => Situation::Lost(Loss {
            kind: LossKind::Stopped,
            since: inputs.wall_since(&Condition::NotServing { epoch }),
            evidence: vec![format!("the keeper of {primary} reports that PostgreSQL is stopped")],
        }),
        // The keeper looks or starts it; it need not be told anything, unless it takes too long.
        Server::Unknown | Server::Starting | Server::Standby { .. } => {
            let condition = Condition::NotServing { epoch };
            match inputs.patience_left(&condition, inputs.spec.promote_patience) {
                Some(until) => Situation::Waiting(
                    WaitingOn::PrimaryReport { primary: primary.clone() },
                    Some(until),
                ),
                None => Situation::Lost(Loss {
                    kind: LossKind::Stopped,
                    since: inputs.wall_since(&condition),
                    evidence: vec![format!(
                        "the keeper of {primary} does not say that PostgreSQL serves"
                    )],
                }),
            }
        }
        Server::Primary { .. } if inputs.right_is_held() => Situation::Steady,
        Server::Primary { .. } => lapse(inputs, Some(report)),
    }
}

/// The primary's right lapsed, in phase `Open`.
///
/// At once only by the word of members whose reports live now, after the lapse: together they
/// contain a seal set of every Cfg, their last WAL is of this epoch, and all call the stream
/// silent. After a stall of etcd every lease can be gone at the first look, so absence alone waits
/// for `isolation_grace`; so does a primary that those who were started again before it do not hear yet.
pub(super) fn lapse(inputs: &Inputs, report: Option<&MemberReport>) -> Situation {
    let primary = inputs.primary();
    let (heard_by, silent) = hearing(inputs);
    let condition = Condition::Lapsed { epoch: inputs.state.epoch };
    let lost = |kind| {
        let mut evidence = vec![match report {
            Some(_) => format!("the right of {primary} lapsed, its keeper reports"),
            None => format!("the right and the report of {primary} lapsed"),
        }];
        evidence.extend(silent.iter().map(|m| format!("{m} hears nothing of {primary}")));
        evidence.extend(heard_by.iter().map(|m| format!("{m} still hears {primary}")));
        Situation::Lost(Loss { kind, since: inputs.wall_since(&condition), evidence })
    };
    if heard_by.is_empty() && inputs.seal_all_cfgs(&silent) {
        return lost(LossKind::Silent);
    }
    if report.is_some() && !heard_by.is_empty() {
        let waiting = WaitingOn::PrimaryKey { primary: primary.clone(), heard_by };
        return Situation::Waiting(waiting, None);
    }
    // Who could replace it may have been away too, and come back first: the primary has the same time after that.
    let grace = match inputs.others_can_replace() {
        true => Condition::Replaceable { epoch: inputs.state.epoch },
        false => condition.clone(),
    };
    match inputs.patience_left(&grace, inputs.spec.isolation_grace) {
        None => lost(LossKind::Isolated),
        Some(until) => {
            let waiting = WaitingOn::IsolationGrace { primary: primary.clone(), heard_by };
            Situation::Waiting(waiting, Some(until))
        }
    }
}

/// Returns which complete others hear the primary of this epoch, and which say that they do not any
/// more.
fn hearing(inputs: &Inputs) -> (Vec<MemberName>, BTreeSet<MemberName>) {
    let (mut heard_by, mut silent) = (Vec::new(), BTreeSet::new());
    for (name, report) in inputs.complete_others() {
        match report.stream {
            Stream::Live { epoch, .. } if epoch == inputs.state.epoch => {
                heard_by.push(name.clone())
            }
            Stream::Silent { epoch } if epoch == inputs.state.epoch && !report.never_received => {
                silent.insert(name.clone());
            }
            // Whoever has not received from this primary yet cannot miss it.
            Stream::Live { .. } | Stream::Silent { .. } | Stream::None => {}
        }
    }
    (heard_by, silent)
}

/// Phases `Promoting` and `Restarting`.
fn opening(inputs: &Inputs) -> Situation {
    let state = inputs.state;
    let primary = inputs.primary();
    let restart = inputs.restart_number();
    let Some(report) = inputs.report(primary) else { return vanished(inputs) };
    if let Some(opened) = report.opened
        && (opened.epoch, opened.timeline, opened.restart) == (state.epoch, state.timeline, restart)
    {
        return Situation::Opened(opened);
    }
    if let Some((noticed, gone)) = unanswered_death(inputs, report) {
        return died(inputs, report, (noticed, gone));
    }
    let waiting = match (&report.server, &state.phase) {
        (Server::Primary { .. }, _) => WaitingOn::VotersHold { primary: primary.clone() },
        (_, Phase::Restarting) => WaitingOn::Restart { primary: primary.clone(), number: restart },
        (_, Phase::Promoting | Phase::Open | Phase::Switchover(_) | Phase::Founding { .. }) => {
            WaitingOn::Promotion { primary: primary.clone(), epoch: state.epoch }
        }
    };
    // Out of recovery it only waits for voters to hold its WAL: another epoch would wait for the
    // same ones.
    if matches!(report.server, Server::Primary { timeline } if timeline == state.timeline) {
        return Situation::Waiting(waiting, None);
    }
    let condition = unopened(inputs, report);
    match inputs.patience_left(&condition, inputs.spec.promote_patience) {
        Some(until) => Situation::Waiting(waiting, Some(until)),
        None => Situation::Lost(Loss {
            kind: LossKind::Stuck,
            since: inputs.wall_since(&condition),
            evidence: vec![format!("{primary} reports {:?} and no progress", report.server)],
        }),
    }
}

/// How long a member on its way to open may be without a report before that counts. Its lease has
/// lapsed already; but in a stall of etcd all leases lapse together, and keepers need some tries to
/// come back.
const RETURN_GRACE: Duration = Duration::from_secs(1);

/// The keeper of a primary that has not opened yet does not report.
fn vanished(inputs: &Inputs) -> Situation {
    let primary = inputs.primary();
    let condition =
        Condition::Absent { epoch: inputs.state.epoch, restart: inputs.restart_number() };
    let (heard_by, silent) = hearing(inputs);
    if let Some(until) = inputs.patience_left(&condition, RETURN_GRACE) {
        return Situation::Waiting(
            WaitingOn::PrimaryReport { primary: primary.clone() },
            Some(until),
        );
    }
    if !heard_by.is_empty()
        && let Some(until) = inputs.patience_left(&condition, inputs.spec.isolation_grace)
    {
        let waiting = WaitingOn::IsolationGrace { primary: primary.clone(), heard_by };
        return Situation::Waiting(waiting, Some(until));
    }
    let mut evidence = vec![format!("the report of {primary} lapsed")];
    if !silent.is_empty() {
        let silent: Vec<MemberName> = silent.into_iter().collect();
        evidence.push(format!("{} hear nothing of it", list(&silent)));
    }
    Situation::Lost(Loss {
        kind: LossKind::Vanished,
        since: inputs.wall_since(&condition),
        evidence,
    })
}

fn died(inputs: &Inputs, report: &MemberReport, (noticed, gone): (WallTime, bool)) -> Situation {
    let primary = inputs.primary();
    let how = report.ended.unwrap_or(Ended::Died);
    let saw = match how {
        Ended::Died => "saw PostgreSQL die",
        Ended::Stopped => "saw PostgreSQL stop in good order",
        Ended::Expired => "found PostgreSQL fenced at the end of its right",
        Ended::Fenced => "has fenced PostgreSQL",
    };
    let left = if gone { "no process of it is left" } else { "leftovers are being ended" };
    Situation::Lost(Loss {
        kind: LossKind::Died { noticed, how },
        since: noticed,
        evidence: vec![format!("the keeper of {primary} {saw}; {left}")],
    })
}

/// A primary that runs, holds its right, is heard by all, and commits nothing or lets nobody in. Its keeper has waited for
/// `unresponsive_after` before it said so.
fn unresponsive(inputs: &Inputs, report: &MemberReport) -> Option<Loss> {
    let epoch = inputs.state.epoch;
    let unwell = report.unresponsive.as_ref().filter(|unwell| unwell.epoch == epoch)?;
    let waited = inputs.spec.unresponsive_after.as_millis();
    let since = inputs.wall_since(&Condition::Unresponsive { epoch });
    Some(Loss {
        kind: LossKind::Unresponsive,
        since: WallTime(since.0 - i64::try_from(waited).unwrap_or(0)),
        evidence: vec![format!("the keeper of {} reports: {}", report.member, unwell.problem)],
    })
}

/// Returns a death that no commit has answered yet: the report of an old one stays until PostgreSQL
/// starts.
fn unanswered_death(inputs: &Inputs, report: &MemberReport) -> Option<(WallTime, bool)> {
    let Server::Dead { noticed, gone } = report.server else { return None };
    let answered = inputs.state.answered.as_ref();
    let same = answered.is_some_and(|d| d.member == report.member && d.noticed == noticed);
    (!same).then_some((noticed, gone))
}
