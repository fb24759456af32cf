//! The rules of what was asked for: switchovers and the answers to requests.

use proto::proxy::Clients;
use proto::report::Readiness;
use proto::request::{RequestOutcome, Unheld};
use proto::state::SwitchoverStep;
use proto::{ClusterState, Phase};

use super::{Found, Rule, Step, trusted};

/// How far a switchover is: 0 for none.
fn progress(state: &ClusterState) -> u8 {
    let Phase::Switchover(switchover) = &state.phase else { return 0 };
    match switchover.step {
        SwitchoverStep::Checkpoint => 1,
        SwitchoverStep::Hold { .. } => 2,
        SwitchoverStep::Stop => 3,
        SwitchoverStep::Sealed { .. } => 4,
    }
}

pub(super) fn handover(step: &Step, found: &mut Found) {
    let Step { old, next, seen } = step;
    let (was, is) = (progress(old), progress(next));
    let mut rule = |holds: bool, detail: &str| {
        found.unless(holds, Rule::Switchover, || detail.to_owned());
    };
    if old.epoch == next.epoch {
        rule(was < 3 || is >= was, "a primary that was told to stop for good is to go on");
        rule((was, is) != (2, 1), "a hold goes back to the checkpoint");
        // Where no proxy can hold there is nothing to hold for.
        rule(is <= was + 1 || (was, is) == (1, 3), "a switchover skips a step");
        rule(is < 3 || next.restart == old.restart, "a primary that hands over is started again");
    } else {
        rule(is == 0, "a switchover goes on in another epoch");
    }
    let primary = old.primary.as_ref().and_then(|p| trusted(old, seen, p));
    let seal = primary.and_then(|r| r.seal).filter(|s| s.sealing.0 == old.epoch.0 + 1);
    if let Phase::Switchover(now) = &next.phase {
        let other =
            next.members.contains_key(&now.target) && next.primary.as_ref() != Some(&now.target);
        rule(other, "the target of a switchover is no other member");
        rule(was > 0 || old.phase == Phase::Open, "a switchover begins while no primary serves");
        rule((is == 4) <= next.sealing.is_some(), "a seal is awaited that is not asked for");
        if let SwitchoverStep::Sealed { position } = now.step
            && was != 4
        {
            let said = seal.is_some_and(|s| s.position == position);
            rule(said, "the stopped primary has not said that it ends there");
        }
        if was < 3 && is == 3 {
            let (request, all) = (Some(&now.request), seen.proxies.values());
            let cut =
                all.filter(|p| p.clients == Clients::Held && p.held.as_ref() != request).count();
            let agreed = was == 2 && now.unheld == Unheld::Cut;
            rule(
                cut == 0 || agreed,
                "the primary is stopped while a proxy does not hold its clients",
            );
            let told = primary.and_then(|r| r.handover.as_ref());
            let ready = told.is_some_and(|h| {
                h.request == now.request && matches!(h.readiness, Readiness::Ready { .. })
            });
            rule(ready, "the primary is stopped before it said that it is ready");
            let target = trusted(old, seen, &now.target).is_some_and(|r| r.complete);
            rule(target, "the primary is stopped for a target that is not there");
        }
    }
    // While the stopped one still says what it held, nobody who holds less may come after it (I12).
    if was >= 3
        && next.epoch > old.epoch
        && let Some(seal) = seal.filter(|_| primary.is_some_and(|r| r.complete))
    {
        let floor = old.primary.as_ref().and_then(|p| old.members.get(p)).and_then(|a| a.floor);
        let counts =
            floor.is_none_or(|f| (seal.position.epoch, seal.position.lsn) >= (f.epoch, f.lsn));
        let holds = next.chosen.is_some_and(|chosen| chosen >= seal.position);
        rule(!counts || holds, "the next primary lacks what the stopped one held");
    }
}

pub(super) fn requests(step: &Step, found: &mut Found) {
    let Step { old, next, seen } = step;
    for (n, answered) in next.requests.iter().enumerate() {
        let twice = next.requests.iter().skip(n + 1).any(|r| r.id == answered.id);
        let before = old.requests.iter().find(|r| r.id == answered.id);
        let scheduled = seen.scheduled.values().find(|s| s.id == answered.id);
        let asked = || scheduled.is_some() || seen.requests.values().any(|r| r.id == answered.id);
        let begun = before.is_none() && !matches!(answered.outcome, RequestOutcome::Refused { .. });
        let in_time = scheduled.is_none_or(|s| {
            let late_by = answered.at.0 - s.at.0;
            late_by >= 0 && u128::try_from(late_by).is_ok_and(|ms| ms < s.window.as_millis())
        });
        found.unless(!begun || in_time, Rule::Requests, || {
            format!(
                "the switchover {} is begun at another time than it is scheduled for",
                answered.id
            )
        });
        let stays = before.is_none_or(|b| !b.outcome.is_final() || b == answered);
        found.unless(!twice && stays && (before.is_some() || asked()), Rule::Requests, || {
            format!("the answer to request {} is given twice, changed, or to nobody", answered.id)
        });
    }
    let under_way = |id| next.requests.iter().any(|r| r.id == id);
    let forgotten = old.requests.iter().find(|r| !r.outcome.is_final() && !under_way(r.id.clone()));
    found.unless(forgotten.is_none(), Rule::Requests, || {
        "a request is forgotten while it is under way".into()
    });
}
