//! Deliberate mistakes, by the names that the simulator gives them: around the product's deciders here, in the modelled
//! workers where they happen. Each has to be found, or the check shows nothing.

use keeper::action::{Action, FenceReason};
use keeper::facts::{ClusterView, Facts};
use keeper::postgres::settings::StreamName;
use proto::assignment::{Assignment, assignment};
use proto::report::Seal;
use proto::state::EpochRecord;
use proto::{Cfg, ClusterState, Epoch, MemberName, Phase};
use sentinel::observe::Observations;
use sentinel::plan::{Plan, Verdict};

use super::Model;

impl Model {
    /// Returns whether this check makes the mistake `name`.
    pub fn is(&self, name: &str) -> bool {
        self.mutant == Some(name)
    }
}

/// What a leader believes.
pub fn in_observations(mutant: Option<&str>, seen: &mut Observations) {
    if mutant == Some("incomplete-member-counts") {
        seen.members.values_mut().for_each(|report| report.complete = true);
    }
}

/// What a leader decided; true where there is a mistake in it, and the product's check is left out.
pub fn in_plan(
    mutant: Option<&str>,
    state: &ClusterState,
    seen: &Observations,
    plan: &mut Plan,
) -> bool {
    match mutant {
        Some("incomplete-member-counts") => true,
        Some("promote-any-live-standby") => promote_whoever_sealed(state, seen, plan),
        Some("cfg-dropped-to-cancel") => cancel(state, plan),
        Some(name) => match &mut plan.verdict {
            Verdict::Change { next, .. } => in_next(name, state, seen, next),
            Verdict::Record { .. } | Verdict::Wait(_) => false,
        },
        None => false,
    }
}

fn in_next(name: &str, state: &ClusterState, seen: &Observations, next: &mut ClusterState) -> bool {
    let new = next.epoch > state.epoch;
    match name {
        "promote-the-least" if new => {
            let least = seals(state, seen, next.epoch).min_by_key(|(_, seal)| seal.position);
            if let Some((member, seal)) = least {
                *next = promoted(state, next.epoch, (member, &seal));
            }
            true
        }
        "new-epoch-forgets-cfgs" if new => {
            next.cfgs.retain(|cfg| cfg.epoch == next.epoch);
            true
        }
        "timeline-used-again" if new => {
            next.timeline = state.timeline;
            next.highest_timeline = state.timeline;
            next.epochs.iter_mut().rev().take(1).for_each(|r| r.timeline = state.timeline);
            true
        }
        "change-without-joint" if !new && next.cfgs.len() > state.cfgs.len() => {
            next.cfgs.drain(..next.cfgs.len() - 1);
            true
        }
        _ => false,
    }
}

/// The standbys that sealed for `sealing`.
fn seals<'a>(
    state: &'a ClusterState,
    seen: &'a Observations,
    sealing: Epoch,
) -> impl Iterator<Item = (&'a MemberName, Seal)> {
    let standbys = seen.members.iter().filter(|(name, _)| Some(*name) != state.primary.as_ref());
    standbys.filter_map(move |(name, report)| Some((name, *report.sealed_for(sealing)?)))
}

/// While a base is waited for, the first member that sealed is taken.
fn promote_whoever_sealed(state: &ClusterState, seen: &Observations, plan: &mut Plan) -> bool {
    let (Some(sealing), Verdict::Wait(_)) = (state.sealing, &plan.verdict) else { return false };
    let Some((member, seal)) = seals(state, seen, sealing).next() else { return false };
    let next = Box::new(promoted(state, sealing, (member, &seal)));
    let why = format!("promote {member}: it sealed");
    plan.verdict = Verdict::Change { next, history: Vec::new(), why };
    true
}

fn promoted(
    state: &ClusterState,
    epoch: Epoch,
    (member, seal): (&MemberName, &Seal),
) -> ClusterState {
    let mut next = state.clone();
    let voters = state.members.keys().filter(|m| *m != member).cloned().collect();
    next.epoch = epoch;
    next.sealing = None;
    next.phase = Phase::Promoting;
    next.primary = Some(member.clone());
    next.timeline = state.highest_timeline.next();
    next.highest_timeline = next.timeline;
    next.chosen = Some(seal.position);
    next.open_at_once = true;
    next.last_cfg = state.last_cfg.next();
    let leader = member.clone();
    next.cfgs.push(Cfg { id: next.last_cfg, epoch, leader, voters, k: 1, round: 0 });
    next.epochs.push(EpochRecord {
        epoch,
        timeline: next.timeline,
        primary: member.clone(),
        parent: Some(seal.position.timeline),
        start_lsn: None,
        with_loss: false,
    });
    next
}

/// A change that hangs is cancelled by taking the new Cfg away.
fn cancel(state: &ClusterState, plan: &mut Plan) -> bool {
    let joint = state.cfgs.len() > 1 && state.cfgs.iter().all(|c| c.epoch == state.epoch);
    if !matches!(plan.verdict, Verdict::Wait(_)) || !joint || state.sealing.is_some() {
        return false;
    }
    let mut next = state.clone();
    next.cfgs.pop();
    let why = "cancel the change".to_owned();
    plan.verdict = Verdict::Change { next: Box::new(next), history: Vec::new(), why };
    true
}

/// What a keeper decided.
pub fn in_action(
    mutant: Option<&str>,
    view: &ClusterView,
    facts: &Facts,
    action: Action,
) -> Action {
    match (mutant, action) {
        (Some("late-member-follows-at-once"), action) => follow_at_once(view, facts, action),
        (_, action) => action,
    }
}

/// Neither a seal nor a look at the fork before a member takes up a new primary.
fn follow_at_once(view: &ClusterView, facts: &Facts, action: Action) -> Action {
    let asked = view.state.as_ref().map(|state| assignment(state, &facts.member));
    let Some(Assignment::Follow(follow)) = asked else { return action };
    let name = StreamName::Voter { round: follow.round };
    match action {
        Action::Seal { .. } | Action::Fence(FenceReason::PastTheFork) => {
            Action::Repoint { follow, name }
        }
        Action::Rewind { .. } | Action::Copy { .. } if facts.files.complete => {
            Action::StartStandby { follow, name }
        }
        other => other,
    }
}
