//! Each oracle is shown a broken promise in an otherwise healthy cluster.

use std::rc::Rc;

use proto::document::encode;
use proto::{ClusterState, Epoch};
use proxy_config::route::Routes;
use store::{Operation, Txn};

use super::members;
use crate::sim::executor::Sim;
use crate::sim::postgres::Phase;
use crate::sim::profiles::Profile;
use crate::sim::run::Plan;
use crate::sim::wal::At;

fn founded(profile: &str) -> (Sim, usize) {
    let plan = Plan::new(1, Profile::named(profile).expect("a profile of the list"));
    let sim = plan.founded();
    assert!(sim.with(|w| w.oracle.violations.is_empty()), "healthy before anything is planted");
    let primary = sim.with(|w| {
        let serves = |m: &crate::sim::world::Member| {
            m.server.as_ref().is_some_and(|s| s.phase == Phase::Primary)
        };
        w.members.iter().position(serves)
    });
    (sim, primary.expect("a founded cluster has a primary"))
}

#[track_caller]
fn flags(sim: &Sim, invariant: &str) {
    let found = sim.with(|w| w.oracle.violations.clone());
    assert!(found.iter().any(|v| v.invariant == invariant), "{invariant} is not among {found:?}");
    sim.tear_down();
}

fn write_state(sim: &Sim, change: impl FnOnce(&mut ClusterState)) {
    let mut next = sim.with(|w| ClusterState::clone(&w.oracle.state().expect("a state")));
    next.number = next.number.next();
    change(&mut next);
    let key = sim.with(|w| w.keys.state());
    let put = Operation::Put { key, value: encode(&next).into_bytes(), lease: None };
    let _ = sim.with_etcd(|core| core.commit(Txn { when: vec![], then: vec![put] }));
}

/// A position that nobody holds: on a branch of its own past the primary's.
fn nowhere(sim: &Sim, primary: usize) -> At {
    sim.with(|w| {
        let at = w.flushed(primary).expect("a primary has data");
        let parent = w.wal.whole(At { lsn: proto::Lsn(at.lsn.0 - 2_000), ..at });
        let tli = w.wal.branch(at.branch).tli;
        let branch = w.wal.fork(tli, Some(parent), 1);
        At { branch, lsn: w.wal.append(branch, 500) }
    })
}

#[test]
fn i1_and_i16_an_opening_without_what_was_acknowledged_or_read() {
    for invariant in ["I1", "I16"] {
        let (sim, primary) = founded("heavy");
        let at = nowhere(&sim, primary);
        match invariant {
            "I1" => sim.oracle_acknowledged(primary, 1, at),
            _ => sim.oracle_read(primary, at),
        }
        let branch = sim.with(|w| w.members[primary].server.as_ref().expect("it runs").branch);
        sim.judge_opening(primary, branch);
        flags(&sim, invariant);
    }
}

#[test]
fn i2_an_epoch_that_nobody_has_sealed_for() {
    let (sim, _) = founded("heavy");
    write_state(&sim, |next| next.epoch = next.epoch.next());
    flags(&sim, "I2");
}

#[test]
fn i3_an_acknowledgement_that_no_voter_holds() {
    let (sim, primary) = founded("heavy");
    let at = sim.with(|w| {
        let branch = w.members[primary].server.as_ref().expect("it runs").branch;
        At { branch, lsn: w.wal.append(branch, 500) }
    });
    sim.oracle_acknowledged(primary, 1, at);
    flags(&sim, "I3");
}

#[test]
fn i4_a_cfg_that_leaves_while_no_later_one_holds_everything() {
    let (sim, primary) = founded("heavy");
    let at = nowhere(&sim, primary);
    sim.oracle_acknowledged(primary, 1, at);
    write_state(&sim, |next| {
        next.last_cfg = next.last_cfg.next();
        next.cfgs[0].id = next.last_cfg;
    });
    flags(&sim, "I4");
}

#[test]
fn i5_a_promise_that_falls() {
    let (sim, primary) = founded("heavy");
    let mut files = sim.with(|w| w.members[primary].disk.files.clone()).expect("files");
    files.promise = Epoch(0);
    sim.put_files(primary, files);
    flags(&sim, "I5");
}

#[test]
fn i7_a_state_written_over_one_that_its_writer_did_not_see() {
    let (sim, _) = founded("heavy");
    write_state(&sim, |next| next.number = next.number.next());
    flags(&sim, "I7");
}

#[test]
fn i8_an_empty_list_and_a_name_of_another_epoch() {
    for names in ["", "*", "ANY 1 (\"b.e9\")"] {
        let (sim, primary) = founded("heavy");
        sim.with(|w| {
            let server = w.server(primary).expect("it runs");
            server.conf.standby_names = names.to_owned();
        });
        sim.oracle_look(primary);
        flags(&sim, "I8");
    }
}

#[test]
fn i9_a_timeline_that_is_begun_twice() {
    let (sim, primary) = founded("heavy");
    let at = nowhere(&sim, primary);
    sim.oracle_branch(primary, at.branch);
    flags(&sim, "I9");
}

#[test]
fn i10_a_primary_that_opens_below_its_promise() {
    let (sim, primary) = founded("heavy");
    sim.with(|w| {
        let id = w.members[primary].server.as_ref().expect("it runs").id;
        w.oracle.opened.remove(&id);
        w.members[primary].disk.files.as_mut().expect("files").promise = Epoch(9);
    });
    sim.oracle_look(primary);
    flags(&sim, "I10");
}

#[test]
fn i11_the_seals_of_members_below_their_floors() {
    let (sim, _) = founded("heavy");
    sim.with(|w| {
        for member in &mut w.members {
            member.disk.files.as_mut().expect("files").promise = Epoch(2);
            member.server = None;
        }
        let mut state = ClusterState::clone(&w.oracle.state().expect("a state"));
        for admitted in state.members.values_mut() {
            admitted.floor = Some(proto::state::Floor { epoch: Epoch(7), lsn: proto::Lsn(1) });
        }
        w.oracle.states.push((0, Rc::new(state)));
    });
    write_state(&sim, |next| next.epoch = next.epoch.next());
    flags(&sim, "I2");
}

#[test]
fn i12_a_rewind_after_a_switchover_and_an_epoch_that_nobody_asked_for() {
    let (sim, primary) = founded("switchover");
    sim.run_until(15_500_000, |_| false);
    sim.oracle_rewinds(primary);
    flags(&sim, "I12");
    let (sim, _) = founded("switchover");
    write_state(&sim, |next| next.epoch = next.epoch.next());
    flags(&sim, "I12");
}

#[test]
fn i14_data_that_goes_while_its_member_counts() {
    let (sim, primary) = founded("heavy");
    sim.oracle_destroys((primary + 1) % 3);
    flags(&sim, "I14");
}

#[test]
fn i15_a_seal_without_a_fault() {
    let (sim, _) = founded("calm");
    write_state(&sim, |next| next.sealing = Some(next.epoch.next()));
    flags(&sim, "I15");
}

#[test]
fn i17_a_primary_that_serves_without_a_right() {
    let (sim, primary) = founded("heavy");
    sim.with(|w| {
        w.oracle.evidence.insert(primary, 0);
        w.members[primary].server.as_mut().expect("it runs").started = 0;
        let problem = members::isolated(w, primary, 14_000_000);
        assert_eq!(problem.map(|p| p.0), Some("I17"));
    });
    sim.tear_down();
}

#[test]
fn i18_nobody_serves_while_only_etcd_is_in_trouble() {
    let (sim, primary) = founded("etcd");
    sim.server_ends(primary);
    sim.run_until(15_150_000, |_| false);
    flags(&sim, "I18");
}

#[test]
fn i19_routes_of_a_lower_epoch() {
    let (sim, primary) = founded("heavy");
    let write = sim.with(|w| w.members[primary].name.clone());
    let routes =
        |epoch| Routes { epoch: Epoch(epoch), write: Some(write.clone()), ..Routes::default() };
    sim.oracle_routes(None, &routes(7));
    sim.oracle_routes(Some(&routes(7)), &routes(6));
    flags(&sim, "I19");
}
