//! Decides the one next thing that brings this member closer to what was agreed. Decides and cannot do.

mod alone;
mod copy_source;
mod primary;
mod rejoin;
mod seal;
mod standby;
mod switchover;
pub mod way;

#[cfg(test)]
pub(crate) mod tests;

use proto::{Assignment, ClusterState, Moment};

pub use rejoin::REWIND_ATTEMPTS;

use crate::action::{Action, ActionKind, FenceReason, Hold, backoff};
use crate::facts::{ClusterView, Facts, Process};

/// Returns the next action. Calling it again with the same arguments gives the same answer.
pub fn reconcile(view: &ClusterView, facts: &Facts, now: Moment) -> Action {
    let wanted = take_settings_first(
        view,
        facts,
        alone::without_etcd(view, facts, choose(view, facts)),
        now,
    );
    match facts.local.failures.get(&wanted.kind()) {
        // A fence is never put off.
        Some(failure)
            if wanted.kind() != ActionKind::Fence && now < failure.at + backoff(failure.times) =>
        {
            Action::Hold(Hold::BackingOff(wanted.kind()))
        }
        _ => wanted,
    }
}

/// A new spec's settings are taken over when nothing more urgent is to be done, or before PostgreSQL is started. Refused
/// ones are tried again now and then, and what PostgreSQL took before stays in force meanwhile.
fn take_settings_first(view: &ClusterView, facts: &Facts, wanted: Action, now: Moment) -> Action {
    let fits = matches!(
        wanted,
        Action::Hold(Hold::Following | Hold::Leading)
            | Action::StartStandby { .. }
            | Action::StartPrimary { .. }
            | Action::StartAlone(_)
            | Action::StartSealed { .. }
    );
    let refused = facts.local.failures.get(&ActionKind::TakeSettings);
    let waits = refused.is_some_and(|failure| now < failure.at + backoff(failure.times));
    match &view.spec {
        Some(spec) if fits && !waits && facts.local.accepted.as_ref() != Some(&spec.postgres) => {
            Action::TakeSettings(spec.postgres.clone())
        }
        Some(_) | None => wanted,
    }
}

fn choose(view: &ClusterView, facts: &Facts) -> Action {
    if view.newer_format {
        return Action::Hold(Hold::NewerFormat);
    }
    let Some(state) = &view.state else { return Action::Hold(Hold::NoState) };
    match &view.frozen {
        Some(why) => alone::frozen(facts, assigned(view, state, facts), why),
        None => assigned(view, state, facts),
    }
}

fn assigned(view: &ClusterView, state: &ClusterState, facts: &Facts) -> Action {
    if was_removed(state, facts) {
        return removed(facts);
    }
    match proto::assignment::assignment(state, &facts.member) {
        Assignment::Wait => Action::Hold(Hold::NotAdmitted),
        Assignment::Found => seal::found(facts),
        Assignment::Seal { sealing } => seal::next(facts, sealing),
        // Its promise of the next epoch is part of it: a keeper that was restarted goes on.
        Assignment::HandOver(handover) if handover.sealing < facts.files.promise => {
            Action::Hold(Hold::StaleEpoch)
        }
        Assignment::HandOver(handover) => switchover::hand_over(facts, handover),
        Assignment::Lead(lead) if lead.epoch < facts.files.promise => {
            Action::Hold(Hold::StaleEpoch)
        }
        Assignment::Follow(follow) if follow.epoch < facts.files.promise => {
            Action::Hold(Hold::StaleEpoch)
        }
        Assignment::Lead(lead) => primary::next(view, state, facts, lead),
        Assignment::Follow(follow) => standby::next(view, state, facts, follow),
    }
}

/// Returns whether this very member was taken out of the cluster.
fn was_removed(state: &ClusterState, facts: &Facts) -> bool {
    let removed = state.orders.removed.get(&facts.member);
    removed.is_some_and(|r| r.incarnation == facts.files.incarnation)
        && !state.members.contains_key(&facts.member)
}

/// A removed member serves nobody: what it would show grows old, and its slot is gone. Its data stays where it is.
fn removed(facts: &Facts) -> Action {
    match facts.local.process {
        Process::Running { .. } => Action::Fence(FenceReason::Removed),
        Process::Exited { gone: false, .. } => Action::Hold(Hold::WaitingForProcesses),
        Process::None | Process::Exited { gone: true, .. } => Action::Hold(Hold::Removed),
    }
}
