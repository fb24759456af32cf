//! The primary's part in a switchover: a checkpoint while it serves, then the stop and the seal of the next epoch.

use proto::assignment::{HandOver, Lead};
use proto::report::DataDirectory;
use proto::state::{Switchover, SwitchoverStep};
use proto::{ClusterState, Phase};

use crate::action::{Action, Hold};
use crate::facts::Facts;

/// Returns how this primary prepares for the switchover that is asked of it, if that is still to be done.
pub fn prepare(state: &ClusterState, facts: &Facts, lead: &Lead) -> Option<Action> {
    let Phase::Switchover(switchover) = &lead.phase else { return None };
    if switchover.step != SwitchoverStep::Checkpoint || is_prepared(facts, switchover) {
        return None;
    }
    let in_force = state.newest_cfg().filter(|c| c.epoch == state.epoch);
    let target = in_force.filter(|_| switchover.named).map(|c| c.wire_name(&switchover.target));
    // Half of the time for the checkpoint, then the target has to be near.
    let patience = switchover.within / 2;
    Some(Action::PrepareHandOver { request: switchover.request.clone(), target, patience })
}

fn is_prepared(facts: &Facts, switchover: &Switchover) -> bool {
    facts.local.handover.as_ref().is_some_and(|h| h.request == switchover.request)
}

/// Returns what the primary does that is to stop for good. However its PostgreSQL ends, the seal comes after.
pub fn hand_over(facts: &Facts, handover: HandOver) -> Action {
    let sealing = handover.sealing;
    let sealed = facts.local.seal.is_some_and(|s| s.sealing == sealing);
    if facts.local.process.is_gone() && sealed && facts.files.promise >= sealing {
        return Action::Hold(Hold::Sealed(sealing));
    }
    if !facts.files.complete || facts.data != DataDirectory::Present {
        return Action::Hold(Hold::Incomplete);
    }
    Action::HandOver(handover)
}
