//! What a leader does wrong in the test-only build, by the mistake's name in the list of simulator and model
//! (`tests/src/mutants.rs`). Its own check of plans has been passed by then, as if it shared the mistake.

use proto::{Cfg, ClusterState, Epoch, MemberName, Phase, WalPosition};
use store::mistake;

use crate::observe::Observations;
use crate::plan::{Plan, Verdict};

/// What the leader makes of its decision.
pub fn mistaken(state: Option<&ClusterState>, seen: &Observations, plan: &mut Plan) {
    let Some(state) = state else { return };
    if mistake::is_chosen("promote-the-least") {
        promote_least(state, seen, plan);
    }
    if mistake::is_chosen("promote-any-live-standby") {
        promote_any(state, seen, plan);
    }
    let Verdict::Change { next, .. } = &mut plan.verdict else { return };
    let is_new = next.epoch > state.epoch && state.epoch.0 > 0;
    if mistake::is_chosen("timeline-used-again") && is_new {
        mistake::made("timeline-used-again");
        (next.timeline, next.highest_timeline) = (state.timeline, state.timeline);
        if let Some(record) = next.epochs.last_mut() {
            record.timeline = state.timeline;
        }
    }
}

/// Where somebody is promoted, the one that holds the least of those who sealed is taken.
fn promote_least(state: &ClusterState, seen: &Observations, plan: &mut Plan) {
    let (Some(sealing), Verdict::Change { next, .. }) = (state.sealing, &mut plan.verdict) else {
        return;
    };
    if next.epoch == state.epoch {
        return;
    }
    let least = standbys_sealed(state, seen, sealing).min_by_key(|(_, position)| *position);
    if let Some((name, position)) = least {
        mistake::made("promote-the-least");
        **next = promoted(state, sealing, name, position);
    }
}

/// While others are waited for, the first one that sealed is taken.
fn promote_any(state: &ClusterState, seen: &Observations, plan: &mut Plan) {
    let (Some(sealing), Verdict::Wait(_)) = (state.sealing, &plan.verdict) else { return };
    let first = standbys_sealed(state, seen, sealing).next();
    if let Some((name, position)) = first {
        mistake::made("promote-any-live-standby");
        let next = promoted(state, sealing, name, position);
        let why = "promote whoever sealed".to_owned();
        plan.verdict = Verdict::Change { next: Box::new(next), history: Vec::new(), why };
    }
}

fn standbys_sealed<'a>(
    state: &'a ClusterState,
    seen: &'a Observations,
    sealing: Epoch,
) -> impl Iterator<Item = (MemberName, WalPosition)> + 'a {
    let standbys = seen.members.iter().filter(|(name, _)| Some(*name) != state.primary.as_ref());
    standbys.filter_map(move |(name, report)| {
        Some((name.clone(), report.sealed_for(sealing)?.position))
    })
}

/// The state in which `name` has become the primary with what it held at `position`.
fn promoted(
    state: &ClusterState,
    epoch: Epoch,
    name: MemberName,
    position: WalPosition,
) -> ClusterState {
    let mut next = state.clone();
    next.number = next.number.next();
    next.sealing = None;
    next.epoch = epoch;
    next.phase = Phase::Promoting;
    next.timeline = state.highest_timeline.next();
    next.highest_timeline = next.timeline;
    next.chosen = Some(position);
    next.open_at_once = true;
    next.last_cfg = next.last_cfg.next();
    let voters = state.members.keys().filter(|member| **member != name).cloned().collect();
    let (id, leader) = (next.last_cfg, name.clone());
    next.cfgs.push(Cfg { id, epoch, leader, voters, k: 1, round: 0 });
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
