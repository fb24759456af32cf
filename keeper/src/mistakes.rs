//! What a keeper does wrong in the test-only build, by the mistake's name in the list of simulator and model
//! (`tests/src/mutants.rs`).

use proto::Assignment;
use store::mistake;

use crate::action::{Action, FenceReason};
use crate::facts::{ClusterView, Facts};
use crate::postgres::settings::{Settings, StreamName};
use crate::worker::Worker;

/// Returns whether this process is to make the mistake `name` where it is now, and says so in the log.
pub fn makes(name: &'static str) -> bool {
    let is_chosen = mistake::is_chosen(name);
    if is_chosen {
        mistake::made(name);
    }
    is_chosen
}

/// What a seal puts in force: nobody to receive from, but for the mistake `upstream-stays`.
pub fn sealed(worker: &Worker, settings: Settings) -> Settings {
    match makes("upstream-stays") {
        true => Settings { upstream: worker.settings().upstream, ..settings },
        false => settings,
    }
}

/// What a keeper makes of its decision.
pub fn mistaken(view: &ClusterView, facts: &Facts, action: Action) -> Action {
    if mistake::is_chosen("late-member-follows-at-once") {
        return follow_at_once(view, facts, action);
    }
    action
}

/// Neither a seal nor a look at the fork before a member takes up a new primary.
fn follow_at_once(view: &ClusterView, facts: &Facts, action: Action) -> Action {
    let Some(state) = &view.state else { return action };
    let Assignment::Follow(follow) = proto::assignment::assignment(state, &facts.member) else {
        return action;
    };
    let name = StreamName::Voter { round: follow.round };
    match action {
        Action::Seal { .. } | Action::Fence(FenceReason::PastTheFork) => {
            mistake::made("late-member-follows-at-once");
            Action::Repoint { follow, name }
        }
        Action::Rewind { .. } | Action::Copy { .. } if facts.files.complete => {
            mistake::made("late-member-follows-at-once");
            Action::StartStandby { follow, name }
        }
        other => other,
    }
}
