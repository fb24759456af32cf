//! Judges what changes by an operator's order: who leaves and comes back, what is given up, what a pause forbids.

use std::collections::BTreeSet;

use proto::orders::AcceptedLoss;
use proto::{ClusterState, Epoch, MemberName};

use super::{Found, Rule, Step};

/// The members that were given up for the seal of `sealing`, and for no other.
pub(super) fn given_up(state: &ClusterState, sealing: Epoch) -> BTreeSet<MemberName> {
    let under_way = |loss: &&AcceptedLoss| loss.sealing == sealing && loss.promoted.is_none();
    let last = state.orders.losses.last().filter(under_way);
    last.map(|loss| loss.given_up.clone()).unwrap_or_default()
}

/// Whether this step promotes somebody without a base, as was accepted before it.
pub(super) fn is_promoted_with_loss(step: &Step) -> bool {
    let Step { old, next, .. } = step;
    let promoted = next.orders.losses.last().and_then(|loss| loss.promoted.as_ref());
    let says_so = promoted.is_some_and(|p| {
        Some(&p.member) == next.primary.as_ref() && Some(p.position) == next.chosen
    });
    next.epoch > old.epoch
        && old.sealing == Some(next.epoch)
        && !given_up(old, next.epoch).is_empty()
        && says_so
}

pub(super) fn losses(step: &Step, found: &mut Found) {
    let Step { old, next, .. } = step;
    for loss in next.orders.losses.iter().filter(|l| !old.orders.losses.contains(l)) {
        let was_accepted = old.orders.losses.iter().any(|before| {
            let ended = AcceptedLoss { promoted: loss.promoted.clone(), ..before.clone() };
            before.promoted.is_none() && ended == *loss
        });
        let is_under_way = loss.promoted.is_none() && next.sealing == Some(loss.sealing);
        let holds = match loss.promoted {
            Some(_) => was_accepted && is_promoted_with_loss(step),
            None => is_under_way && !loss.given_up.is_empty(),
        };
        found.unless(holds, Rule::Loss, || {
            format!("a loss of epoch {} is noted that was not accepted before", loss.sealing)
        });
    }
    if !is_promoted_with_loss(step) {
        return;
    }
    // What was given up stands in no Cfg, and who votes has sealed.
    let first = next.cfgs.first();
    let sealed = first.is_some_and(|cfg| cfg.voters.iter().all(|v| step.sealed_at(v).is_some()));
    found.unless(next.cfgs.len() == 1 && sealed, Rule::Loss, || {
        "after an accepted loss the first Cfg is the only one, of members that sealed".into()
    });
}

pub(super) fn members(step: &Step, found: &mut Found) {
    let Step { old, next, seen } = step;
    for (name, before) in &old.members {
        let Some(after) = next.members.get(name) else {
            left(step, name, found);
            continue;
        };
        found.unless(after.floor >= before.floor, Rule::Members, || {
            format!("the floor of {name} falls")
        });
        let claims_nothing = seen.members.get(name).is_some_and(|r| !r.complete);
        found.unless(
            after.incarnation == before.incarnation || claims_nothing,
            Rule::Members,
            || format!("{name} is taken for other member files that claim to be complete"),
        );
    }
    for (name, removed) in &old.orders.removed {
        let Some(after) = next.members.get(name) else { continue };
        let as_before = (&after.incarnation, after.floor) == (&removed.incarnation, removed.floor);
        let claims_nothing = seen.members.get(name).is_some_and(|r| !r.complete);
        let is_new = after.incarnation != removed.incarnation && claims_nothing;
        found.unless(as_before || is_new, Rule::Members, || {
            format!("{name} was removed and comes back as another than it was")
        });
    }
}

/// A member goes only as an operator asked, when no Cfg needs it, and is remembered.
fn left(step: &Step, name: &MemberName, found: &mut Found) {
    let Step { old, next, .. } = step;
    let was_asked = old.orders.leaving.contains_key(name);
    let is_needed =
        old.cfgs.iter().chain(&next.cfgs).any(|c| c.leader == *name || c.voters.contains(name));
    let leads = old.primary.as_ref() == Some(name) || next.primary.as_ref() == Some(name);
    let noted = next
        .orders
        .removed
        .get(name)
        .zip(old.members.get(name))
        .is_some_and(|(r, m)| (&r.incarnation, r.floor) == (&m.incarnation, m.floor));
    let quiet = old.sealing.is_none() && next.sealing.is_none();
    found.unless(was_asked && !is_needed && !leads && noted && quiet, Rule::Members, || {
        format!("{name} vanishes from the members")
    });
}

pub(super) fn paused(step: &Step, found: &mut Found) {
    let Step { old, next, .. } = step;
    if old.orders.pause.is_none() {
        return;
    }
    found.unless(old.sealing.is_some() || next.sealing.is_none(), Rule::Paused, || {
        "a seal begins while the cluster is paused".into()
    });
    found.unless(old.restart == next.restart, Rule::Paused, || {
        "a restart is ordered while the cluster is paused".into()
    });
}
