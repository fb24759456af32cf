//! Replaces a lost primary, or orders it to be started again: seal, choose, promote, open.
//!
//! The one rule: sealing begins only when a base can come of it, and once begun it is only
//! completed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::cfg::Cfg;
use proto::report::{Opened, Seal, Server};
use proto::state::{Death, EpochRecord, RestartOrder};
use proto::{ClusterState, Epoch, MemberName, Phase, WalPosition};

use super::base::{self, Choice, Outcome};
use super::health::{Loss, LossKind};
use super::{Inputs, Step, loss, membership, pause, switchover, synchronous};
use crate::observe::Condition;
use crate::plan::{Verdict, WaitingOn};
use crate::record;

/// The primary is lost: seal the next epoch if the others can take over, else start it again if
/// that can help.
pub(crate) fn answer(inputs: &Inputs, loss: &Loss) -> Step {
    if let Some(paused) = pause::holds_back(inputs) {
        return paused;
    }
    if let Some(pause) = patience(inputs) {
        return pause;
    }
    if inputs.others_can_replace() && !starts_with_the_others(inputs, loss) {
        return seal(inputs, loss);
    }
    if inputs.state.handing_over().is_some() {
        // It may have promised the next epoch already, so that nothing starts it again in this one.
        return seal_with_it(inputs, loss);
    }
    match (loss.kind, &inputs.state.phase) {
        (LossKind::Died { .. } | LossKind::Stuck | LossKind::Stopped, Phase::Promoting) => {
            seal_with_it(inputs, loss)
        }
        // It stops with all others, and what is ordered now would be carried out when nobody expects it.
        (LossKind::Died { .. } | LossKind::Stopped, _)
            if inputs.report(inputs.primary()).is_some_and(|r| r.leaving) =>
        {
            without_base(inputs)
        }
        (LossKind::Died { .. } | LossKind::Stopped, _) => restart(inputs, loss),
        (LossKind::Stuck, _) => match inputs.report(inputs.primary()).map(|r| r.server) {
            Some(Server::Stopped | Server::Dead { .. }) => restart(inputs, loss),
            // Redo takes as long as it takes: starting again would only begin it anew.
            Some(
                Server::Unknown
                | Server::Starting
                | Server::Standby { .. }
                | Server::Primary { .. },
            )
            | None => Step::wait(WaitingOn::Restart {
                primary: inputs.primary().clone(),
                number: inputs.restart_number(),
            }),
        },
        // A PostgreSQL that still runs is not replaced by itself.
        (
            LossKind::Silent
            | LossKind::Unheard
            | LossKind::Deserted
            | LossKind::Standstill
            | LossKind::Isolated
            | LossKind::Vanished
            | LossKind::Unresponsive
            | LossKind::KeptOn,
            _,
        ) => without_base(inputs),
    }
}

/// Returns whether all come back from a stop of the whole cluster: the primary's keeper is there to start it, and nobody
/// else has heard it since. Then it goes on where it was, and nobody has to be rewound. A second death is answered as ever.
fn starts_with_the_others(inputs: &Inputs, loss: &Loss) -> bool {
    let is_down = matches!(loss.kind, LossKind::Died { .. } | LossKind::Stopped);
    is_down && inputs.state.phase == Phase::Open && inputs.others_have_not_received()
}

/// The longest pause between two promotions, when one after the other comes to nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Where every member had its try and none opened, the next one waits, each time twice as long. Each try leaves an
/// epoch, a timeline and a Cfg on record; what breaks every promotion (a bad setting, full disks) would else fill
/// the state up to what etcd takes, within minutes.
fn patience(inputs: &Inputs) -> Option<Step> {
    let state = inputs.state;
    if state.phase != Phase::Promoting {
        return None;
    }
    let failed = state.epochs.iter().rev().take_while(|r| r.start_lsn.is_none()).count();
    let beyond = u32::try_from(failed.checked_sub(state.members.len() + 1)?).unwrap_or(u32::MAX);
    let patience = inputs.spec.promote_patience.saturating_mul(1 << beyond.min(16));
    let ordered = Condition::Ordered { epoch: state.epoch, restart: inputs.restart_number() };
    let until = inputs.patience_left(&ordered, patience.min(LONGEST_PAUSE))?;
    Some(Step::wait_until(WaitingOn::PromotionPause { failed }, until))
}

/// Returns the condition of this file, if it holds.
pub(crate) fn conditions(inputs: &Inputs) -> BTreeSet<Condition> {
    let sealing = inputs.state.sealing.filter(|s| base::choose(inputs, *s) != Outcome::NoBase);
    sealing.into_iter().map(|sealing| Condition::Base { sealing }).collect()
}

fn seal(inputs: &Inputs, loss: &Loss) -> Step {
    let sealing = inputs.state.epoch.next();
    let mut next = inputs.next();
    next.sealing = Some(sealing);
    switchover::broken_off(inputs, &mut next, &loss.kind.cause(inputs.primary()));
    if let LossKind::Died { noticed, .. } = loss.kind {
        next.answered = Some(Death { member: inputs.primary().clone(), noticed });
    }
    let history = match inputs.state.handing_over() {
        Some(_) => record::advance(inputs, "seal", loss.evidence.clone()),
        None => record::begin_failover(inputs, loss, sealing),
    };
    let why = format!("seal epoch {sealing}: {}", loss.kind.cause(inputs.primary()));
    Step::change(next, history, why)
}

/// A promotion failed and the others form no base without the promoted member, whose keeper lives:
/// the next epoch may have to promote the very same one, so it is not tried more often than
/// `promote_patience` allows.
fn seal_with_it(inputs: &Inputs, loss: &Loss) -> Step {
    let live: BTreeSet<MemberName> = inputs.complete().into_keys().cloned().collect();
    if !inputs.seal_all_cfgs(&live) || !live.iter().any(|m| inputs.may_be_promoted(m)) {
        return without_base(inputs);
    }
    let epoch = inputs.state.epoch;
    let condition = Condition::DiedPromoting { epoch };
    if matches!(loss.kind, LossKind::Died { .. })
        && let Some(until) = inputs.patience_left(&condition, inputs.spec.promote_patience)
    {
        let waiting = WaitingOn::NextPromotion { primary: inputs.primary().clone() };
        return Step::wait_until(waiting, until);
    }
    seal(inputs, loss)
}

/// Never seal for nothing: it would stop a primary that may work, and nobody could be chosen.
fn without_base(inputs: &Inputs) -> Step {
    let others: BTreeSet<MemberName> = inputs.complete_others().into_keys().cloned().collect();
    let unmet: Vec<Cfg> =
        inputs.state.cfgs.iter().filter(|c| !c.is_sealed_by(&others)).cloned().collect();
    let primary = inputs.primary().clone();
    Step::wait(match unmet.is_empty() {
        true => WaitingOn::Candidate { primary },
        false => WaitingOn::SealSet { primary, unmet },
    })
}

/// The leave to start the primary's PostgreSQL again in its own epoch.
fn restart(inputs: &Inputs, loss: &Loss) -> Step {
    let state = inputs.state;
    let primary = inputs.primary();
    let condition = Condition::Ordered { epoch: state.epoch, restart: inputs.restart_number() };
    if state.phase == Phase::Restarting
        && let Some(until) = inputs.patience_left(&condition, inputs.spec.promote_patience)
    {
        let waiting =
            WaitingOn::NextRestart { primary: primary.clone(), number: inputs.restart_number() };
        return Step::wait_until(waiting, until);
    }
    let number = state.restart.as_ref().map_or(0, |r| r.number) + 1;
    let mut next = inputs.next();
    switchover::broken_off(inputs, &mut next, &loss.kind.cause(primary));
    next.phase = Phase::Restarting;
    next.restart = Some(RestartOrder { member: primary.clone(), epoch: state.epoch, number });
    // What it recovers was perhaps never acknowledged: readers see it only once k voters hold it
    // (I16).
    next.open_at_once = state.newest_cfg().is_some_and(|c| c.k == 0);
    if let Some(Server::Dead { noticed, .. }) = inputs.report(primary).map(|r| r.server) {
        next.answered = Some(Death { member: primary.clone(), noticed });
    }
    let history = record::begin_restart(inputs, loss, number);
    let others = match inputs.others_can_replace() {
        true => "have only been started, too",
        false => "form no base",
    };
    let why = format!("restart {number}: {}, and the others {others}", loss.kind.cause(primary));
    Step::change(next, history, why)
}

/// How long live standbys are waited for that would form a base without the primary before. Its own seal alone is one,
/// and it may be there first; but starting a crashed machine again takes longer than the slowest seal of a healthy
/// standby (measured: 1.5 s against 0.1 s on two busy cores).
const PATIENCE_FOR_OTHERS: Duration = Duration::from_millis(500);

/// Whether this is the member to which the primary hands over: with it nobody else need be waited for.
fn is_target(inputs: &Inputs, member: &MemberName) -> bool {
    inputs.state.handing_over().is_some_and(|s| s.target == *member)
}

/// Sealing: wait for a base, then name the primary of the sealed epoch.
pub(crate) fn choose(inputs: &Inputs, sealing: Epoch) -> Step {
    if let Some(step) = loss::choose(inputs, sealing) {
        return step;
    }
    match base::choose(inputs, sealing) {
        Outcome::NoBase => {
            let missing = base::sealed(inputs, sealing).rejected.into_keys().collect();
            Step::wait(WaitingOn::Seals { sealing, missing })
        }
        Outcome::NoCandidate { holders } => {
            Step::wait(WaitingOn::PromotableHolder { sealing, holders })
        }
        Outcome::Chosen(choice) => {
            // Never for the old primary: it would always hold the most, and it just failed.
            let others = inputs.complete_others().into_iter();
            let missing: Vec<MemberName> = others
                .filter(|(_, report)| report.sealed_for(sealing).is_none())
                .map(|(name, _)| name.clone())
                .collect();
            let condition = Condition::Base { sealing };
            let patience = match choice.needs_old_primary && !is_target(inputs, &choice.member) {
                true => inputs.spec.seal_patience.max(PATIENCE_FOR_OTHERS),
                false => inputs.spec.seal_patience,
            };
            match inputs.patience_left(&condition, patience) {
                Some(until) if !missing.is_empty() => {
                    Step::wait_until(WaitingOn::SealPatience { sealing, missing }, until)
                }
                Some(_) | None => {
                    let mut step = promote(inputs, sealing, &choice);
                    if let Verdict::Change { next, .. } = &mut step.verdict {
                        loss::not_needed(inputs, next);
                    }
                    step
                }
            }
        }
    }
}

/// The choice becomes the primary of `epoch`.
pub(crate) fn promote(inputs: &Inputs, epoch: Epoch, choice: &Choice) -> Step {
    let state = inputs.state;
    let mut next = inputs.next();
    // Named before the promotion, one above all that were ever named: a promotion that dies
    // unreported would otherwise leave two epochs with one timeline.
    let timeline = state.highest_timeline.next();
    let cfg = first_cfg(inputs, epoch, choice);
    next.epoch = epoch;
    next.phase = Phase::Promoting;
    next.sealing = None;
    next.primary = Some(choice.member.clone());
    next.timeline = timeline;
    next.highest_timeline = timeline;
    next.chosen = Some(choice.seal.position);
    next.open_at_once = may_open_at_once(state, choice);
    next.last_cfg = cfg.id;
    next.cfgs.push(cfg);
    forget_epochs(&mut next);
    next.epochs.push(EpochRecord {
        epoch,
        timeline,
        primary: choice.member.clone(),
        parent: Some(choice.seal.position.timeline),
        start_lsn: None,
        with_loss: false,
    });
    if let Some(Server::Dead { noticed, .. }) = inputs.report(&choice.member).map(|r| r.server) {
        next.answered = Some(Death { member: choice.member.clone(), noticed });
    }
    membership::stays(inputs, &mut next, &choice.member);
    let history = record::promote(inputs, epoch, choice);
    let why = format!(
        "promote {} to epoch {epoch}, timeline {timeline}: it holds {}, the most of a base",
        choice.member, choice.seal.position
    );
    Step::change(next, history, why)
}

/// How many epochs stay on record at least. A member that was away for longer comes back by a copy.
const EPOCHS_KEPT: usize = 100;

/// Drops the oldest epochs, but none to which a recorded Cfg may lead back.
fn forget_epochs(state: &mut ClusterState) {
    let oldest = state.cfgs.iter().map(|c| c.epoch).min().unwrap_or(state.epoch);
    let surplus = state.epochs.len().saturating_sub(EPOCHS_KEPT);
    let old = state.epochs.iter().take(surplus).take_while(|r| r.epoch < oldest).count();
    state.epochs.drain(..old);
}

/// The first Cfg of a new primary: those who sealed, hold no more than it does and can follow at
/// once. Fewer than must acknowledge: all others, so that commits wait for whoever comes.
fn first_cfg(inputs: &Inputs, epoch: Epoch, choice: &Choice) -> Cfg {
    let count = inputs.spec.synchronous.count;
    let ready: BTreeSet<MemberName> = others(&choice.sealed, &choice.member)
        .filter(|(name, seal)| {
            inputs.may_vote(name) && seal.clean && seal.position <= choice.seal.position
        })
        .map(|(name, _)| name.clone())
        .collect();
    // The primary before is down: it is a voter like any other, and none that follows at once.
    let quick = ready.iter().filter(|m| *m != inputs.primary()).count();
    let voters: BTreeSet<MemberName> = match quick >= count {
        true => synchronous::chosen(inputs, ready, &choice.member),
        false => {
            let all = inputs.state.members.keys();
            all.filter(|m| **m != choice.member && inputs.may_vote(m)).cloned().collect()
        }
    };
    Cfg {
        id: inputs.state.last_cfg.next(),
        epoch,
        leader: choice.member.clone(),
        k: count.min(voters.len()),
        voters,
        round: 0,
    }
}

fn others<'a>(
    sealed: &'a BTreeMap<MemberName, Seal>,
    member: &'a MemberName,
) -> impl Iterator<Item = (&'a MemberName, &'a Seal)> {
    sealed.iter().filter(move |(name, _)| *name != member)
}

/// Whether all that the chosen member holds is held by k voters of one recorded Cfg under which its
/// last WAL was written: then nothing that its readers see can vanish with it (I16). WAL of a later epoch,
/// which may have left that of the chosen member before its end, says nothing of it.
fn may_open_at_once(state: &ClusterState, choice: &Choice) -> bool {
    let position = choice.seal.position;
    state.cfgs.iter().filter(|cfg| cfg.epoch == position.epoch).any(|cfg| {
        let holds = |held: WalPosition| held.epoch == position.epoch && held.lsn >= position.lsn;
        let voters = choice.sealed.iter().filter(|(name, _)| cfg.voters.contains(*name));
        let holders = voters.filter(|(_, seal)| holds(seal.position));
        match cfg.k {
            0 => cfg.leader == choice.member,
            k => holders.count() >= k,
        }
    })
}

/// The primary says that it serves.
pub(crate) fn open(inputs: &Inputs, opened: &Opened) -> Step {
    let mut next = inputs.next();
    next.phase = Phase::Open;
    if let Some(epoch) = next.epochs.last_mut()
        && epoch.start_lsn.is_none()
    {
        epoch.start_lsn = Some(opened.start_lsn);
    }
    switchover::completed(inputs, &mut next);
    let why =
        format!("{} serves epoch {}, timeline {}", inputs.primary(), next.epoch, next.timeline);
    Step::change(next, record::opened(inputs), why)
}
