//! The primary's part in a switchover.

use proto::report::{Confirmed, Handover, Readiness};
use proto::request::Unheld;
use proto::state::{Switchover, SwitchoverStep};
use store::LeaseId;

use super::*;

/// The primary b of epoch 2, which has nothing to do.
fn serving() -> Facts {
    let mut facts = facts("b", 2, Role::Primary);
    facts.lease = Some(LeaseId(7));
    facts.sql = Some(sql(false, 2));
    facts.local.process = Process::Running { pid: 1 };
    facts.local.accepted = Some(PostgresSpec::default());
    facts.local.opened = report("b").opened;
    facts.local.right = Some((Epoch(2), LeaseId(7)));
    facts.local.confirmed =
        Some(Confirmed { cfg: CfgId(3), lsn: Lsn(100), voters: [name("c")].into() });
    facts.local.slots_for = Some((vec![name("a"), name("c")], true));
    facts
}

/// The primary b of epoch 2 is to hand over to c.
fn switching(step: SwitchoverStep) -> ClusterView {
    let mut view = view();
    let switchover = Switchover {
        target: name("c"),
        named: true,
        away_from: None,
        request: RequestId::from_random(1),
        by: "ann".into(),
        started: WallTime(0),
        within: Duration::from_secs(30),
        hold: Duration::from_secs(5),
        unheld: Unheld::CallOff,
        step,
    };
    view.state.as_mut().unwrap().phase = Phase::Switchover(switchover);
    view
}

#[test]
fn a_primary_prepares_its_handover_once_and_when_nothing_else_is_to_be_done() {
    let view = switching(SwitchoverStep::Checkpoint);
    let mut facts = serving();
    match reconcile(&view, &facts, NOW) {
        Action::PrepareHandOver { target, .. } => assert_eq!(target.as_deref(), Some("c.e2")),
        other => panic!("{other:?}"),
    }
    let request = RequestId::from_random(1);
    let readiness = Readiness::Ready { left: [].into() };
    facts.local.handover = Some(Handover { request, readiness });
    assert_eq!(reconcile(&view, &facts, NOW), Action::Hold(Hold::Leading));
    facts.local.right = None;
    assert_eq!(reconcile(&view, &facts, NOW).kind(), ActionKind::TakeRight);
}

#[test]
fn a_primary_that_is_to_stop_goes_on_with_it_after_every_cut() {
    let view = switching(SwitchoverStep::Stop);
    let mut facts = serving();
    assert_eq!(reconcile(&view, &facts, NOW).kind(), ActionKind::HandOver);
    // Stopped, then promised, then restarted as a keeper: the seal is still to be given.
    facts.local.process = Process::None;
    facts.sql = None;
    facts.files.promise = Epoch(3);
    assert_eq!(reconcile(&view, &facts, NOW).kind(), ActionKind::HandOver);
    let position = at(2, 200);
    let replayed = position.lsn;
    facts.local.seal = Some(Seal { sealing: Epoch(3), position, replayed, clean: true });
    assert_eq!(reconcile(&view, &facts, NOW), Action::Hold(Hold::Sealed(Epoch(3))));
}

#[test]
fn what_is_under_way_is_cut_for_the_stop_and_a_checkpoint_for_anything() {
    let stop = reconcile(&switching(SwitchoverStep::Stop), &serving(), NOW);
    let confirm = Action::Confirm { cfg: cfg(3, 2, "b", &["c"], 1), proof: Proof::Given };
    assert!(confirm.yields_to(&stop));
    let checkpoint = reconcile(&switching(SwitchoverStep::Checkpoint), &serving(), NOW);
    assert!(checkpoint.yields_to(&confirm) && !checkpoint.yields_to(&checkpoint.clone()));
    assert!(!stop.yields_to(&stop.clone()));
    assert!(stop.yields_to(&Action::Seal { sealing: Epoch(3) }));
}
