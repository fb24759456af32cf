//! Sealing, and founding: the two assignments that every kind of member can get.

use proto::Epoch;
use proto::report::DataDirectory;

use crate::action::{Action, FenceReason, Hold};
use crate::facts::{Facts, Process};

/// Returns what a member does that is asked to seal. An old primary seals like everybody, once it is fenced.
pub fn next(facts: &Facts, sealing: Epoch) -> Action {
    match facts.local.process {
        Process::Exited { gone: false, .. } => return Action::Hold(Hold::WaitingForProcesses),
        // What runs as a primary, or may, is fenced before anything else, also where a seal was given: only without it
        // is a position final.
        Process::Running { .. } if may_be_primary(facts) || may_be_promoting(facts) => {
            return Action::Fence(FenceReason::Sealing(sealing));
        }
        Process::Running { .. } | Process::None | Process::Exited { gone: true, .. } => {}
    }
    if facts.local.seal.is_some_and(|s| s.sealing == sealing) && facts.files.promise >= sealing {
        return Action::Hold(Hold::Sealed(sealing));
    }
    if !facts.files.complete || facts.data != DataDirectory::Present {
        return Action::Hold(Hold::Incomplete);
    }
    Action::Seal { sealing }
}

/// Returns what the founder does.
pub fn found(facts: &Facts) -> Action {
    match facts.data {
        DataDirectory::Empty => Action::Found,
        DataDirectory::Building | DataDirectory::Present => Action::Hold(Hold::WaitingForPrimary),
    }
}

/// Returns whether the running server is, or could be, out of recovery. No answer counts as yes when the member
/// files say that it was started or promoted as a primary.
pub fn may_be_primary(facts: &Facts) -> bool {
    match &facts.sql {
        Some(sql) => !sql.in_recovery,
        None => facts.files.role == crate::member_files::Role::Primary,
    }
}

/// Returns whether a promotion may be under way: PostgreSQL answers as a standby until the moment at which it does not
/// any more, and nothing takes `pg_promote` back. A former primary that was only started to be promoted has promised
/// more than its epoch.
fn may_be_promoting(facts: &Facts) -> bool {
    facts.files.role == crate::member_files::Role::Primary
        && facts.files.epoch == facts.files.promise
}
