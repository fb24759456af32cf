//! The primary's part: promote, or start closed by order; open; then keep names and slots in line.

use proto::assignment::Lead;
use proto::spec::Durability;
use proto::{Cfg, ClusterState, MemberName, WalPosition};

use super::switchover;
use crate::action::{Action, ActionKind, FenceReason, Hold, Proof};
use crate::facts::{ClusterView, Facts, Names, Process};
use crate::member_files::Role;

/// Returns what the member does that the state names as primary.
pub fn next(view: &ClusterView, state: &ClusterState, facts: &Facts, lead: Lead) -> Action {
    match facts.local.process {
        Process::Exited { gone: false, .. } => Action::Hold(Hold::WaitingForProcesses),
        Process::None | Process::Exited { gone: true, .. } => start(state, facts, lead),
        Process::Running { .. } => match &facts.sql {
            None => Action::Hold(Hold::WaitingForServer),
            Some(sql) if sql.in_recovery => promote(state, facts, lead),
            Some(sql) if sql.timeline != lead.timeline || facts.files.epoch != lead.epoch => {
                Action::Fence(FenceReason::NotOurEpoch)
            }
            Some(_) => serve(view, state, facts, lead),
        },
    }
}

/// PostgreSQL is down. A former primary or standby that was chosen while it was down starts as a standby, to be
/// promoted. A primary of this epoch is started only by an order that has not been carried out yet: a second death
/// needs a second order, because the leader may rather fail over.
fn start(state: &ClusterState, facts: &Facts, lead: Lead) -> Action {
    if facts.files.epoch < lead.epoch {
        if let Some(refused) = forgotten(state, &lead) {
            return Action::Hold(refused);
        }
        return match facts.local.seal {
            Some(seal) if seal.sealing == lead.epoch && facts.files.complete => {
                match shortfall(state, seal.position) {
                    Some(refused) => Action::Hold(refused),
                    None => Action::StartSealed { position: seal.position },
                }
            }
            _ if facts.files.complete => Action::Seal { sealing: lead.epoch },
            _ => Action::Hold(Hold::Incomplete),
        };
    }
    match lead.restart {
        Some(restart) if facts.files.restarted < restart && facts.files.role == Role::Primary => {
            by_order(state, facts, lead, restart)
        }
        Some(_) | None if facts.files.role == Role::Primary => {
            Action::Hold(Hold::WaitingForRestartOrder)
        }
        Some(_) | None => Action::Hold(Hold::PromotionWasCut),
    }
}

/// Who was found down may have another disk than before: it must hold what it once held (I11), for voters that hold more
/// would be counted, and would follow, as soon as it has written past them. Whose end this keeper has seen needs no look.
fn by_order(state: &ClusterState, facts: &Facts, lead: Lead, restart: u64) -> Action {
    let has_floor = state.members.get(&facts.member).is_some_and(|m| m.floor.is_some());
    match (facts.local.process, facts.local.end_of_wal) {
        (Process::None, None) if has_floor => Action::Scan,
        (_, Some(end)) => match below_floor(state, &facts.member, end) {
            Some(refused) => Action::Hold(refused),
            None => Action::StartPrimary { lead, restart },
        },
        (Process::None | Process::Running { .. } | Process::Exited { .. }, None) => {
            Action::StartPrimary { lead, restart }
        }
    }
}

/// Refuses to start a primary whose WAL ends before what it was once seen to hold.
pub(super) fn below_floor(
    state: &ClusterState,
    member: &MemberName,
    end: WalPosition,
) -> Option<Hold> {
    let floor = state.members.get(member)?.floor?;
    let is_below = (end.epoch, end.lsn) < (floor.epoch, floor.lsn);
    is_below.then(|| Hold::Refused(format!("its WAL ends at {end}, less than it once held")))
}

/// PostgreSQL runs as a standby. A promotion that was cut is never repeated in its epoch: had it got as far as
/// the new timeline, PostgreSQL would be out of recovery.
fn promote(state: &ClusterState, facts: &Facts, lead: Lead) -> Action {
    if facts.files.epoch >= lead.epoch && facts.files.role == Role::Primary {
        return Action::Hold(Hold::PromotionWasCut);
    }
    if let Some(refused) = forgotten(state, &lead) {
        return Action::Hold(refused);
    }
    match facts.local.seal.filter(|s| s.sealing == lead.epoch) {
        _ if !facts.files.complete => Action::Hold(Hold::Incomplete),
        // Chosen with a seal that this keeper does not remember: it was restarted in between. Sealing again is
        // harmless and shows whether the position still holds.
        None => Action::Seal { sealing: lead.epoch },
        Some(seal) => match (shortfall(state, seal.position), facts.local.unreached.first()) {
            (Some(refused), _) => Action::Hold(refused),
            // PostgreSQL would look for its last record in the piece, or write a history that goes through it.
            (None, Some(timeline)) => Action::Fence(FenceReason::Unreached(*timeline)),
            (None, None) => Action::Promote(lead),
        },
    }
}

/// Refuses to promote for an epoch that has begun: its primary wrote that down before it began, so this member's disk is
/// older than that, and would begin the same timeline a second time (I9).
fn forgotten(state: &ClusterState, lead: &Lead) -> Option<Hold> {
    let record = state.epochs.iter().find(|r| r.epoch == lead.epoch)?;
    let since = record.start_lsn?;
    Some(Hold::Refused(format!(
        "its disk is older than epoch {}, which it began at {since}",
        lead.epoch
    )))
}

/// Refuses to promote a member that was chosen for more than it now holds. A torn record that only the first look
/// counted is refused too: the leader then seals the next epoch and chooses by what is there.
fn shortfall(state: &ClusterState, position: WalPosition) -> Option<Hold> {
    let chosen = state.chosen?;
    let holds_it = (position.epoch, position.lsn) >= (chosen.epoch, chosen.lsn);
    (!holds_it).then(|| Hold::Refused(format!("chosen with {chosen}, it holds {position}")))
}

fn serve(view: &ClusterView, state: &ClusterState, facts: &Facts, lead: Lead) -> Action {
    let wanted = lead.restart.unwrap_or(0);
    if facts.local.opened.is_none_or(|o| o.epoch != lead.epoch || o.restart != wanted) {
        return Action::Open(lead);
    }
    if facts.lease.is_some() && facts.local.right != facts.lease.map(|lease| (lead.epoch, lease)) {
        return Action::TakeRight { epoch: lead.epoch, restart: wanted };
    }
    let slots = keep_slots(state, facts, true);
    // A member that was admitted meanwhile, and could be the voter that is waited for, cannot stream without its slot.
    // Slots that cannot be had are no reason to prove nothing.
    if facts.local.voters_late
        && slots.kind() == ActionKind::KeepSlots
        && !facts.local.failures.contains_key(&ActionKind::KeepSlots)
    {
        return slots;
    }
    let proof = lead.own_cfg().and_then(|cfg| {
        let proof = match cfg.k {
            0 => without_voters(view, facts, &lead, cfg),
            _ => with_voters(facts, &lead, cfg),
        };
        proof.map(|proof| Action::Confirm { cfg: cfg.clone(), proof })
    });
    if let Some(confirm) = proof {
        return confirm;
    }
    match slots {
        Action::Hold(Hold::Leading) => switchover::prepare(state, facts, &lead).unwrap_or(slots),
        slots => slots,
    }
}

fn is_confirmed(facts: &Facts, cfg: &Cfg) -> bool {
    facts.local.confirmed.as_ref().is_some_and(|done| done.cfg == cfg.id)
}

fn with_voters(facts: &Facts, lead: &Lead, cfg: &Cfg) -> Option<Proof> {
    if is_confirmed(facts, cfg) {
        return None;
    }
    let had_none = lead.cfgs.iter().any(|c| c.epoch == lead.epoch && c.k == 0);
    Some(match facts.local.names {
        Names::Proven(id) if id == cfg.id => Proof::Given,
        Names::Impossible => Proof::Canary,
        Names::Free | Names::Closed => Proof::FromNone,
        // Whether backends wait at all is as open as which names the walsenders know.
        Names::Proven(_) | Names::Unproven if had_none => Proof::FromNone,
        Names::Proven(_) | Names::Unproven => Proof::Priorities,
    })
}

/// A recorded k = 0: commits wait for nobody where durability is `available`, and for somebody to join where it is
/// strict. There the impossible name of the start stays in force and asks for no proof, unless older Cfgs are to go.
fn without_voters(view: &ClusterView, facts: &Facts, lead: &Lead, cfg: &Cfg) -> Option<Proof> {
    let durability = view.spec.as_ref().map_or(Durability::Strict, |s| s.durability);
    let done = is_confirmed(facts, cfg);
    match (durability, facts.local.names) {
        (Durability::Available, Names::Free) if done => None,
        (Durability::Available, _) => Some(Proof::Alone),
        (Durability::Strict, Names::Impossible | Names::Closed) if done || lead.cfgs.len() == 1 => {
            None
        }
        (Durability::Strict, _) => Some(Proof::Closed),
    }
}

/// Returns the action that brings slots in line, or the hold of a member that has nothing to do.
pub fn keep_slots(state: &ClusterState, facts: &Facts, primary: bool) -> Action {
    let members: Vec<MemberName> =
        state.members.keys().filter(|m| **m != facts.member).cloned().collect();
    if facts.local.slots_for.as_ref() == Some(&(members.clone(), primary)) {
        return Action::Hold(if primary { Hold::Leading } else { Hold::Following });
    }
    Action::KeepSlots { members, primary }
}
