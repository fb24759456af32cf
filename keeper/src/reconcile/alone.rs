//! What becomes of an action while etcd is away, or has not answered since the keeper's start, so that the view is this
//! member's own copy. A copy can be old: what it names was agreed once, and what it does not name may be agreed by now.
//!
//! So nothing is done on its word that takes data or power from anybody. A primary may serve, because the flush of its
//! voters, and not the state, proves that it was not replaced (I2, I18).

use proto::assignment::Assignment;

use super::primary;
use crate::action::{Action, Hold};
use crate::facts::{ClusterView, Facts};

/// Returns what is done instead of `wanted` while etcd does not answer.
pub fn without_etcd(view: &ClusterView, facts: &Facts, wanted: Action) -> Action {
    let copy = view.is_copy();
    if !copy && !facts.local.etcd_away {
        return wanted;
    }
    match wanted {
        // It is open already, and only the order that the state holds is another one.
        Action::Open(lead) if facts.local.opened.is_some_and(|o| o.epoch == lead.epoch) => {
            Action::Hold(Hold::Leading)
        }
        Action::Open(lead) => Action::OpenBySigns(lead),
        Action::Hold(Hold::WaitingForRestartOrder) | Action::StartPrimary { .. }
            if facts.local.etcd_away =>
        {
            start_alone(view, facts).unwrap_or(wanted)
        }
        // The Cfg may have left the record since: other names than those in force are not put in force (I3).
        Action::Confirm { .. } if copy => Action::Hold(Hold::Leading),
        Action::StartPrimary { .. }
        | Action::Found
        | Action::StartSealed { .. }
        | Action::MarkComplete { .. }
        | Action::Promote(_)
        | Action::TakeRight { .. }
        | Action::DropUnreplayed(_)
        | Action::Rewind { .. }
        | Action::Copy { .. }
            if copy =>
        {
            Action::Hold(Hold::WaitingForEtcd)
        }
        wanted => wanted,
    }
}

/// Returns what is done instead of `wanted` by a member that distrusts the store: a primary that serves serves on, by its
/// voters' signs, also when its keeper was restarted.
pub fn frozen(facts: &Facts, wanted: Action, why: &str) -> Action {
    match wanted {
        Action::Open(lead) if facts.local.opened.is_none() => Action::OpenBySigns(lead),
        _ => Action::Hold(Hold::Frozen(why.to_owned())),
    }
}

/// A primary of its own epoch that has promised no other, and whose PostgreSQL is down. It must have been open: one whose
/// promotion was cut is not on the epoch's timeline, and would write on the one before, beside others (I9). It must hold
/// what it once held (I11): voters that hold more would be counted as soon as it has written past them.
fn start_alone(view: &ClusterView, facts: &Facts) -> Option<Action> {
    let state = view.state.as_ref()?;
    match proto::assignment::assignment(state, &facts.member) {
        Assignment::Lead(lead)
            if lead.start_lsn.is_some()
                && lead.epoch == facts.files.epoch
                && lead.epoch == facts.files.promise =>
        {
            let Some(end) = facts.local.end_of_wal else { return Some(Action::Scan) };
            Some(match primary::below_floor(state, &facts.member, end) {
                Some(refused) => Action::Hold(refused),
                None => Action::StartAlone(lead),
            })
        }
        Assignment::Lead(_)
        | Assignment::Wait
        | Assignment::Found
        | Assignment::Seal { .. }
        | Assignment::HandOver(_)
        | Assignment::Follow(_) => None,
    }
}
