//! What each deliberate mistake does around the product's deciders; those of the modelled shell are where they happen.

use keeper::action::{Action, Hold};
use keeper::facts::{ClusterView, Facts};
use keeper::reconcile::reconcile;
use proto::state::SwitchoverStep;
use proto::{ClusterState, Moment};
use sentinel::observe::{Observations, Stored, World as Seen};
use sentinel::plan::{Plan as Decided, Verdict, WaitingOn};

use super::executor::Sim;

impl Sim {
    /// Returns whether this run makes the mistake `name`.
    pub fn mutant(&self, name: &str) -> bool {
        self.with(|w| w.mutant.as_deref() == Some(name))
    }

    /// What the leader believes, with a mistake in it.
    pub fn mutate_seen(&self, seen: &mut Seen) {
        if self.mutant("incomplete-member-counts") {
            for report in seen.seen.members.values_mut() {
                report.complete = true;
            }
        }
        if self.mutant("seal-number-not-compared") {
            let sealing = known(seen).and_then(|state| state.sealing);
            for report in seen.seen.members.values_mut() {
                if let (Some(seal), Some(sealing)) = (&mut report.seal, sealing) {
                    seal.sealing = sealing;
                    report.promise = report.promise.max(sealing);
                }
            }
        }
        if self.mutant("frozen-reports-are-ignored") {
            let made_in = known(seen).map(|state| state.etcd_cluster_id.clone());
            seen.seen.etcd_cluster_id = made_in.unwrap_or_default();
            seen.seen.members.values_mut().for_each(|report| report.frozen = None);
        }
        if let (true, Stored::Known(state)) = (self.mutant("floors-are-forgotten"), &mut seen.state)
        {
            state.members.values_mut().for_each(|admitted| admitted.floor = None);
        }
        if let (true, Stored::Known(state)) = (self.mutant("handover-fences"), &mut seen.state)
            && state.switchover().is_some_and(|s| matches!(s.step, SwitchoverStep::Sealed { .. }))
        {
            // Without the step there is no measure: an ordinary failover.
            state.phase = proto::Phase::Open;
        }
        if self.mutant("missing-report-is-silence") {
            let primary = known(seen).and_then(|state| state.primary.clone());
            let epoch = known(seen).map(|state| state.epoch);
            let gone = primary.is_some_and(|p| !seen.seen.members.contains_key(&p));
            if gone {
                for report in seen.seen.members.values_mut() {
                    report.silence = epoch;
                }
            }
        }
    }

    /// What the leader decided, with a mistake in it; true where there is one, and the check is skipped.
    pub fn mutate_plan(
        &self,
        state: Option<&ClusterState>,
        seen: &Observations,
        plan: &mut Decided,
    ) -> bool {
        let Some(mutant) = self.with(|w| w.mutant.clone()) else { return false };
        let Some(state) = state else { return false };
        match mutant.as_str() {
            "promote-any-live-standby" => promote_any(state, seen, plan),
            "promote-the-least" => promote_least(state, seen, plan),
            "new-epoch-forgets-cfgs" => change(plan, |next| {
                let new = next.epoch > state.epoch;
                next.cfgs.retain(|c| !new || c.epoch == next.epoch);
                new
            }),
            "change-without-joint" => change(plan, |next| {
                let grown = next.epoch == state.epoch && next.cfgs.len() > state.cfgs.len();
                if grown {
                    next.cfgs.drain(..next.cfgs.len() - 1);
                }
                grown
            }),
            "cfg-dropped-to-cancel" => cancel(state, plan),
            "voters-given-up-at-once" => give_up(state, plan),
            "timeline-used-again" => change(plan, |next| {
                let new = next.epoch > state.epoch && state.epoch.0 > 0;
                if new {
                    next.timeline = state.timeline;
                    next.highest_timeline = state.timeline;
                    if let Some(record) = next.epochs.last_mut() {
                        record.timeline = state.timeline;
                    }
                }
                new
            }),
            "switchover-does-not-wait" => promote_target(state, seen, plan),
            "request-is-forgotten" => change(plan, |next| {
                let forgets = !next.requests.is_empty();
                next.requests.clear();
                forgets
            }),
            "incomplete-member-counts"
            | "missing-report-is-silence"
            | "seal-number-not-compared"
            | "floors-are-forgotten"
            | "handover-fences"
            | "frozen-reports-are-ignored" => true,
            _ => false,
        }
    }

    /// What a keeper decided, with a mistake in it.
    pub fn mutated_action(
        &self,
        view: &ClusterView,
        facts: &Facts,
        now: Moment,
        action: Action,
    ) -> Action {
        match self.with(|w| w.mutant.clone()).as_deref() {
            Some("late-member-follows-at-once") => follow_at_once(view, facts, action),
            Some("sealed-primary-serves-on") => match action {
                Action::Fence(keeper::action::FenceReason::Sealing(sealing)) => {
                    Action::Seal { sealing }
                }
                other => other,
            },
            Some("incomplete-member-counts") => {
                let sealing = view.state.as_ref().and_then(|s| s.sealing).is_some();
                let whole =
                    keeper::member_files::MemberFiles { complete: true, ..facts.files.clone() };
                match sealing && !facts.files.complete {
                    true => reconcile(view, &Facts { files: whole, ..facts.clone() }, now),
                    false => action,
                }
            }
            Some("only-holder-is-rewound") => match (action, &view.state) {
                (Action::Hold(Hold::WaitingForReplacement), Some(state)) => {
                    match proto::assignment::assignment(state, &facts.member) {
                        proto::Assignment::Follow(follow) => {
                            Action::Rewind { follow, reason: "at once".into() }
                        }
                        _ => Action::Hold(Hold::WaitingForReplacement),
                    }
                }
                (other, _) => other,
            },
            _ => action,
        }
    }
}

fn known(seen: &Seen) -> Option<&ClusterState> {
    match &seen.state {
        Stored::Known(state) => Some(state),
        Stored::Absent | Stored::Newer(_) | Stored::Malformed(_) => None,
    }
}

/// The target of a switchover is promoted once the old primary has sealed, whatever it holds itself.
fn promote_target(state: &ClusterState, seen: &Observations, plan: &mut Decided) -> bool {
    let (Some(sealing), Some(switchover)) = (state.sealing, state.switchover()) else {
        return false;
    };
    let waits =
        matches!(plan.verdict, Verdict::Wait(_)) && seen.members.contains_key(&switchover.target);
    let SwitchoverStep::Sealed { position } = switchover.step else { return false };
    if waits {
        let next = promoted(state, sealing, switchover.target.clone(), position);
        let why = "promote the target".to_owned();
        plan.verdict = Verdict::Change { next: Box::new(next), history: Vec::new(), why };
    }
    waits
}

fn change(plan: &mut Decided, f: impl FnOnce(&mut ClusterState) -> bool) -> bool {
    match &mut plan.verdict {
        Verdict::Change { next, .. } => f(next),
        Verdict::Record { .. } | Verdict::Wait(_) => false,
    }
}

/// While a base is waited for, the first member that sealed is taken.
fn promote_any(state: &ClusterState, seen: &Observations, plan: &mut Decided) -> bool {
    let (Some(sealing), Verdict::Wait(_)) = (state.sealing, &plan.verdict) else { return false };
    let sealed = seen.members.iter().find_map(|(name, report)| {
        let seal = report.sealed_for(sealing)?;
        (Some(name) != state.primary.as_ref()).then_some((name.clone(), *seal))
    });
    let Some((name, seal)) = sealed else { return false };
    let next = promoted(state, sealing, name, seal.position);
    let why = "promote whoever sealed".to_owned();
    plan.verdict = Verdict::Change { next: Box::new(next), history: Vec::new(), why };
    true
}

fn promoted(
    state: &ClusterState,
    epoch: proto::Epoch,
    name: proto::MemberName,
    position: proto::WalPosition,
) -> ClusterState {
    let mut next = state.clone();
    next.number = next.number.next();
    next.sealing = None;
    next.epoch = epoch;
    next.phase = proto::Phase::Promoting;
    next.timeline = state.highest_timeline.next();
    next.highest_timeline = next.timeline;
    next.chosen = Some(position);
    next.open_at_once = true;
    next.last_cfg = next.last_cfg.next();
    let voters = state.members.keys().filter(|m| **m != name).cloned().collect();
    next.cfgs.push(proto::Cfg {
        id: next.last_cfg,
        epoch,
        leader: name.clone(),
        voters,
        k: 1,
        round: 0,
    });
    next.epochs.push(proto::state::EpochRecord {
        epoch,
        timeline: next.timeline,
        primary: name.clone(),
        parent: Some(position.timeline),
        start_lsn: None,
        with_loss: false,
    });
    next.primary = Some(name);
    next
}

/// Where the decider promotes, the one that holds the least of those who sealed is taken.
fn promote_least(state: &ClusterState, seen: &Observations, plan: &mut Decided) -> bool {
    let (Some(sealing), Verdict::Change { next, .. }) = (state.sealing, &mut plan.verdict) else {
        return false;
    };
    if next.epoch == state.epoch {
        return false;
    }
    let sealed = seen.members.iter().filter_map(|(n, r)| Some((n, *r.sealed_for(sealing)?)));
    let live = sealed.filter(|(n, _)| Some(*n) != state.primary.as_ref());
    let Some((name, seal)) = live.min_by_key(|(_, s)| s.position) else { return false };
    **next = promoted(state, sealing, name.clone(), seal.position);
    true
}

/// Where the primary is to go on alone once its voters have been away for a while, it does so at once.
fn give_up(state: &ClusterState, plan: &mut Decided) -> bool {
    let Verdict::Wait(WaitingOn::Settle { voters }) = &plan.verdict else { return false };
    let Some(newest) = state.cfgs.last().filter(|_| voters.is_empty() && state.sealing.is_none())
    else {
        return false;
    };
    let mut next = state.clone();
    next.number = next.number.next();
    next.last_cfg = next.last_cfg.next();
    let alone = proto::Cfg { id: next.last_cfg, voters: [].into(), k: 0, ..newest.clone() };
    next.cfgs.push(alone);
    let why = "go on alone".to_owned();
    plan.verdict = Verdict::Change { next: Box::new(next), history: Vec::new(), why };
    true
}

fn cancel(state: &ClusterState, plan: &mut Decided) -> bool {
    let waits = matches!(plan.verdict, Verdict::Wait(_));
    let joint = state.cfgs.len() > 1 && state.cfgs.iter().all(|c| c.epoch == state.epoch);
    if !waits || !joint || state.sealing.is_some() {
        return false;
    }
    let mut next = state.clone();
    next.number = next.number.next();
    next.cfgs.pop();
    let why = "cancel the change".to_owned();
    plan.verdict = Verdict::Change { next: Box::new(next), history: Vec::new(), why };
    true
}

/// Neither a seal nor a look at the fork before a member takes up a new primary.
fn follow_at_once(view: &ClusterView, facts: &Facts, action: Action) -> Action {
    let Some(state) = &view.state else { return action };
    let proto::Assignment::Follow(follow) = proto::assignment::assignment(state, &facts.member)
    else {
        return action;
    };
    let voter = keeper::postgres::settings::StreamName::Voter { round: follow.round };
    match action {
        Action::Seal { .. } | Action::Fence(keeper::action::FenceReason::PastTheFork) => {
            Action::Repoint { follow, name: voter }
        }
        Action::Rewind { .. } | Action::Copy { .. } if facts.files.complete => {
            Action::StartStandby { follow, name: voter }
        }
        other => other,
    }
}
