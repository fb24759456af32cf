//! Claims about the keeper's decisions, one fact at a time.

mod rejoin;
mod switchover;

use std::time::Duration;

use proto::report::{DataDirectory, MemberReport, Opened, Seal, Server, Stream};
use proto::spec::PostgresSpec;
use proto::state::{Admitted, EpochRecord, RestartOrder};
use proto::*;

use super::reconcile;
use crate::action::{Action, ActionKind, FenceReason, Hold, Proof};
use crate::facts::{ClusterView, Facts, Failure, Local, Names, Process};
use crate::member_files::{MemberFiles, RejoinMarker, RejoinPhase, Role};
use crate::postgres::probe::{Receiver, SqlFacts};
use crate::postgres::settings::{Settings, StreamName, Upstream};

const NOW: Moment = Moment::since_boot(Duration::from_secs(1000));

fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

fn at(epoch: u64, lsn: u64) -> WalPosition {
    WalPosition { epoch: Epoch(epoch), lsn: Lsn(lsn), timeline: Timeline(epoch as u32) }
}

fn cfg(id: u64, epoch: u64, leader: &str, voters: &[&str], k: usize) -> Cfg {
    let voters = voters.iter().map(|v| name(v)).collect();
    Cfg { id: CfgId(id), epoch: Epoch(epoch), leader: name(leader), voters, k, round: 0 }
}

/// The report of an open primary of epoch 2.
pub(crate) fn report(member: &str) -> MemberReport {
    MemberReport {
        member: name(member),
        incarnation: Incarnation(member.into()),
        understands_format: 1,
        pgdeputy_version: "0".into(),
        postgres_version: 150018,
        postgres_address: "127.0.0.1:5432".into(),
        http_address: "127.0.0.1:8008".into(),
        zone: None,
        promise: Epoch(2),
        data: DataDirectory::Present,
        system_identifier: Some(SystemIdentifier(1)),
        complete: true,
        server: Server::Primary { timeline: Timeline(2) },
        opened: Some(Opened {
            epoch: Epoch(2),
            timeline: Timeline(2),
            start_lsn: Lsn(100),
            restart: 0,
        }),
        confirmed: None,
        stream: Stream::None,
        seal: None,
        handover: None,
        leaving: false,
        rejoin: None,
        unresponsive: None,
        ended: None,
        never_received: false,
        silence: None,
        standstill: None,
        hears: Default::default(),
        frozen: None,
        problems: Default::default(),
    }
}

/// Epoch 2, led by b since 100 (chosen with 100), open; a was the primary of epoch 1.
pub(crate) fn view() -> ClusterView {
    let epochs = [(1, "a", None, 0), (2, "b", Some(1), 100)].map(
        |(n, primary, parent, start): (u64, _, Option<u32>, _)| EpochRecord {
            epoch: Epoch(n),
            timeline: Timeline(n as u32),
            primary: name(primary),
            parent: parent.map(Timeline),
            start_lsn: Some(Lsn(start)),
            with_loss: false,
        },
    );
    let member = |m: &str| (name(m), Admitted { incarnation: Incarnation(m.into()), floor: None });
    let state = ClusterState {
        number: StateNumber(9),
        etcd_cluster_id: "e".into(),
        system_identifier: Some(SystemIdentifier(1)),
        epoch: Epoch(2),
        phase: Phase::Open,
        primary: Some(name("b")),
        sealing: None,
        cfgs: vec![cfg(3, 2, "b", &["c"], 1)],
        last_cfg: CfgId(3),
        timeline: Timeline(2),
        highest_timeline: Timeline(2),
        chosen: Some(at(1, 100)),
        open_at_once: true,
        epochs: epochs.into(),
        members: ["a", "b", "c"].iter().map(|m| member(m)).collect(),
        restart: None,
        answered: None,
        adopted: None,
        requests: Vec::new(),
        orders: Default::default(),
    };
    ClusterView {
        spec: Some(ClusterSpec::default()),
        state: Some(state),
        state_revision: 1,
        reports: [(name("b"), report("b"))].into(),
        primary_key: None,
        etcd_cluster_id: "e".into(),
        frozen: None,
        newer_format: false,
        reads: 1,
    }
}

pub(crate) fn sql(in_recovery: bool, timeline: u32) -> SqlFacts {
    SqlFacts {
        asked: NOW,
        in_recovery,
        timeline: Timeline(timeline),
        flush_lsn: Some(Lsn(100)),
        replay_lsn: in_recovery.then_some(Lsn(100)),
        replayed_commit_age: None,
        standby_names: String::new(),
        receiver: None,
        walsenders: vec![],
    }
}

pub(crate) fn facts(member: &str, epoch: u64, role: Role) -> Facts {
    Facts {
        member: name(member),
        files: MemberFiles {
            member: name(member),
            incarnation: Incarnation(member.into()),
            promise: Epoch(epoch),
            epoch: Epoch(epoch),
            role,
            complete: true,
            state_number: StateNumber(1),
            etcd_cluster_id: Some("e".into()),
            system_identifier: Some(SystemIdentifier(1)),
            confirmed: None,
            lease_id: None,
            restarted: 0,
            rejoin: None,
            acted_on: None,
            frozen: false,
        },
        data: DataDirectory::Present,
        sql: None,
        known: None,
        local: Local { accepted: Some(PostgresSpec::default()), ..Local::default() },
        lease: None,
    }
}

pub(crate) fn running(mut facts: Facts, sql: SqlFacts) -> Facts {
    facts.local.process = Process::Running { pid: 1 };
    facts.sql = Some(sql);
    facts
}

fn decide(view: &ClusterView, facts: &Facts) -> Action {
    reconcile(view, facts, NOW)
}

#[test]
fn a_running_primary_that_is_asked_to_seal_is_fenced_first() {
    let mut view = view();
    view.state.as_mut().unwrap().sealing = Some(Epoch(3));
    let facts = running(facts("b", 2, Role::Primary), sql(false, 2));
    assert_eq!(decide(&view, &facts), Action::Fence(FenceReason::Sealing(Epoch(3))));
}

#[test]
fn a_primary_that_does_not_answer_is_fenced_before_it_seals() {
    let mut view = view();
    view.state.as_mut().unwrap().sealing = Some(Epoch(3));
    let mut facts = facts("b", 2, Role::Primary);
    facts.local.process = Process::Running { pid: 1 };
    assert_eq!(decide(&view, &facts), Action::Fence(FenceReason::Sealing(Epoch(3))));
}

#[test]
fn a_seal_of_another_number_does_not_count() {
    let mut view = view();
    view.state.as_mut().unwrap().sealing = Some(Epoch(3));
    let mut facts = running(facts("c", 2, Role::Standby), sql(true, 2));
    facts.local.seal =
        Some(Seal { sealing: Epoch(2), position: at(1, 100), replayed: Lsn(100), clean: true });
    assert_eq!(decide(&view, &facts), Action::Seal { sealing: Epoch(3) });
    facts.local.seal =
        Some(Seal { sealing: Epoch(3), position: at(2, 200), replayed: Lsn(200), clean: true });
    facts.files.promise = Epoch(3);
    assert_eq!(decide(&view, &facts), Action::Hold(Hold::Sealed(Epoch(3))));
}

#[test]
fn an_incomplete_member_does_not_seal() {
    let mut view = view();
    view.state.as_mut().unwrap().sealing = Some(Epoch(3));
    let mut facts = running(facts("c", 2, Role::Standby), sql(true, 2));
    facts.files.complete = false;
    assert_eq!(decide(&view, &facts), Action::Hold(Hold::Incomplete));
}

#[test]
fn nothing_starts_while_old_processes_live() {
    let mut facts = facts("a", 1, Role::Primary);
    facts.local.process = Process::Exited { noticed: WallTime(0), gone: false };
    assert_eq!(decide(&view(), &facts), Action::Hold(Hold::WaitingForProcesses));
}

#[test]
fn a_stopped_former_primary_is_scanned_and_follows_only_if_it_ends_before_the_fork() {
    let mut facts = facts("a", 1, Role::Primary);
    assert_eq!(decide(&view(), &facts), Action::Scan);
    facts.local.end_of_wal = Some(at(1, 100));
    assert!(matches!(
        decide(&view(), &facts),
        Action::StartStandby { name: StreamName::Voter { round: 0 }, .. }
    ));
    facts.local.end_of_wal = Some(at(1, 101));
    assert!(matches!(decide(&view(), &facts), Action::Rewind { .. }));
}

/// A former primary past the fork, while an older Cfg is recorded that the present primary alone does not seal.
fn needed_still() -> (ClusterView, Facts) {
    let mut view = view();
    view.state.as_mut().unwrap().cfgs.insert(0, cfg(1, 1, "a", &["b", "c"], 1));
    let standby = Server::Standby { timeline: Timeline(1) };
    view.reports.insert(name("c"), MemberReport { server: standby, ..report("c") });
    let mut facts = facts("a", 1, Role::Primary);
    facts.local.end_of_wal = Some(at(1, 101));
    (view, facts)
}

#[test]
fn wal_is_not_discarded_while_an_older_cfg_may_need_it() {
    let (view, facts) = needed_still();
    assert_eq!(decide(&view, &facts), Action::Hold(Hold::WaitingForReplacement));
}

#[test]
fn a_member_that_its_primary_waits_for_is_copied_beside_the_data_that_is_needed_still() {
    let (view, facts) = needed_still();
    let copies = |view: &ClusterView| matches!(decide(view, &facts), Action::Copy { .. });
    let with_c = |change: &dyn Fn(&mut MemberReport)| {
        let mut view = view.clone();
        // It is out of recovery and not open: it waits for a voter.
        let b = view.reports.get_mut(&name("b")).unwrap();
        b.opened = None;
        change(view.reports.get_mut(&name("c")).unwrap());
        view
    };
    assert!(!copies(&with_c(&|_| {})), "c will follow");
    let position = at(1, 120);
    let seal = Seal { sealing: Epoch(2), position, replayed: Lsn(90), clean: true };
    assert!(copies(&with_c(&|c| c.seal = Some(seal))), "c is past the fork as well");
    assert!(copies(&with_c(&|c| c.server = Server::Dead { noticed: WallTime(0), gone: true })));
    let mut gone = with_c(&|_| {});
    gone.reports.remove(&name("c"));
    assert!(copies(&gone), "nobody knows when c comes back");
    let b = gone.reports.get_mut(&name("b")).unwrap();
    b.server = Server::Standby { timeline: Timeline(1) };
    assert!(!copies(&gone), "b may not be the primary yet");
}

#[test]
fn a_copy_gives_way_to_the_rewind_that_has_become_possible_and_to_a_seal() {
    let (mut view, facts) = needed_still();
    view.reports.remove(&name("c"));
    let copy = decide(&view, &facts);
    view.state.as_mut().unwrap().cfgs.remove(0);
    let rewind = decide(&view, &facts);
    assert!(matches!((&copy, &rewind), (Action::Copy { .. }, Action::Rewind { .. })));
    assert!(copy.yields_to(&rewind) && copy.yields_to(&Action::Seal { sealing: Epoch(3) }));
    assert!(!rewind.yields_to(&copy) && !copy.yields_to(&Action::Scan));
}

#[test]
fn a_standby_past_the_fork_is_copied_and_not_rewound() {
    let mut facts = facts("c", 1, Role::Standby);
    facts.files.promise = Epoch(2);
    facts.local.end_of_wal = Some(at(1, 101));
    assert!(matches!(decide(&view(), &facts), Action::Copy { .. }));
}

#[test]
fn a_running_standby_follows_a_new_epoch_only_after_it_has_sealed_for_it() {
    let mut facts = running(facts("c", 1, Role::Standby), sql(true, 1));
    assert_eq!(decide(&view(), &facts), Action::Seal { sealing: Epoch(2) });
    facts.files.promise = Epoch(2);
    facts.local.seal =
        Some(Seal { sealing: Epoch(2), position: at(1, 90), replayed: Lsn(90), clean: true });
    assert!(matches!(decide(&view(), &facts), Action::Repoint { .. }));
    facts.local.seal =
        Some(Seal { sealing: Epoch(2), position: at(1, 120), replayed: Lsn(90), clean: true });
    assert_eq!(decide(&view(), &facts), Action::Fence(FenceReason::PastTheFork));
}

#[test]
fn nobody_follows_a_new_primary_that_is_still_in_recovery() {
    let mut view = view();
    view.reports.get_mut(&name("b")).unwrap().server = Server::Standby { timeline: Timeline(1) };
    let mut standby = running(facts("c", 1, Role::Standby), sql(true, 1));
    standby.files.promise = Epoch(2);
    standby.local.seal =
        Some(Seal { sealing: Epoch(2), position: at(1, 100), replayed: Lsn(90), clean: true });
    let mut former = facts("a", 1, Role::Primary);
    former.local.end_of_wal = Some(at(1, 100));
    for facts in [&standby, &former] {
        assert_eq!(decide(&view, facts), Action::Hold(Hold::WaitingForPrimary));
    }
    view.reports.get_mut(&name("b")).unwrap().server = Server::Primary { timeline: Timeline(2) };
    assert!(matches!(decide(&view, &standby), Action::Repoint { .. }));
    assert!(matches!(decide(&view, &former), Action::StartStandby { .. }));
}

#[test]
fn a_half_rewound_directory_is_never_started() {
    let mut facts = facts("a", 2, Role::Standby);
    facts.files.complete = false;
    let marker = marker();
    facts.files.rejoin = Some(marker.clone());
    assert!(
        matches!(decide(&view(), &facts), Action::Rewind { .. }),
        "again against the same timeline"
    );
    facts.files.rejoin = Some(RejoinMarker { source_timeline: Timeline(1), ..marker.clone() });
    assert!(
        matches!(decide(&view(), &facts), Action::Copy { .. }),
        "blocks of another timeline are mixed in"
    );
    facts.files.rejoin = Some(RejoinMarker { attempt: 2, ..marker });
    assert!(matches!(decide(&view(), &facts), Action::Copy { .. }), "attempts are exhausted");
}

/// A rewind that was cut.
fn marker() -> RejoinMarker {
    RejoinMarker {
        by: report::RejoinBy::Rewind,
        epoch: Epoch(2),
        source: name("b"),
        source_timeline: Timeline(2),
        attempt: 1,
        phase: RejoinPhase::Modifying,
        until: None,
        fork: None,
        boot: None,
        started: WallTime(0),
    }
}

#[test]
fn an_incomplete_member_becomes_complete_only_past_what_its_source_had_written() {
    let mut facts = running(facts("c", 2, Role::Standby), sql(true, 2));
    facts.files.complete = false;
    facts.files.rejoin = Some(RejoinMarker {
        by: report::RejoinBy::Copy,
        epoch: Epoch(2),
        source: name("b"),
        source_timeline: Timeline(2),
        attempt: 1,
        phase: RejoinPhase::CatchingUp,
        until: Some(Lsn(150)),
        fork: None,
        boot: None,
        started: WallTime(0),
    });
    let upstream = Upstream {
        epoch: Epoch(2),
        host: "127.0.0.1".into(),
        port: 5432,
        name: StreamName::Joining,
    };
    facts.local.settings = Some(Settings { upstream: Some(upstream), ..Settings::cut_off() });
    let stream = |facts: &mut Facts, flush: u64| {
        let sql = facts.sql.as_mut().unwrap();
        sql.flush_lsn = Some(Lsn(flush));
        sql.receiver = Some(Receiver {
            streaming: true,
            timeline: Timeline(2),
            name: None,
            silent_for: Duration::ZERO,
            primary_end: None,
        });
    };
    stream(&mut facts, 149);
    assert!(!matches!(decide(&view(), &facts), Action::MarkComplete { .. }));
    stream(&mut facts, 150);
    assert_eq!(decide(&view(), &facts), Action::MarkComplete { epoch: Epoch(2) });

    // Its primary may wait for it before it opens, and the state does not say yet where the epoch begins.
    let mut promoting = view();
    let state = promoting.state.as_mut().unwrap();
    state.phase = Phase::Promoting;
    state.epochs[1].start_lsn = None;
    promoting.reports.get_mut(&name("b")).unwrap().opened = None;
    assert!(!matches!(decide(&promoting, &facts), Action::MarkComplete { .. }));
    facts.local.begins = Some((Timeline(2), Lsn(151)));
    assert!(!matches!(decide(&promoting, &facts), Action::MarkComplete { .. }));
    facts.local.begins = Some((Timeline(2), Lsn(100)));
    assert_eq!(decide(&promoting, &facts), Action::MarkComplete { epoch: Epoch(2) });
}

#[test]
fn a_second_death_needs_a_second_order() {
    let mut view = view();
    let state = view.state.as_mut().unwrap();
    state.restart = Some(RestartOrder { member: name("b"), epoch: Epoch(2), number: 4 });
    let mut facts = facts("b", 2, Role::Primary);
    assert!(matches!(decide(&view, &facts), Action::StartPrimary { restart: 4, .. }));
    facts.files.restarted = 4;
    assert_eq!(decide(&view, &facts), Action::Hold(Hold::WaitingForRestartOrder));
}

#[test]
fn a_primary_that_is_found_down_with_less_than_it_once_held_is_not_started_by_order() {
    let mut view = view();
    let state = view.state.as_mut().unwrap();
    state.restart = Some(RestartOrder { member: name("b"), epoch: Epoch(2), number: 4 });
    state.members.get_mut(&name("b")).unwrap().floor =
        Some(state::Floor { epoch: Epoch(2), lsn: Lsn(151) });
    let mut facts = facts("b", 2, Role::Primary);
    assert_eq!(decide(&view, &facts), Action::Scan, "it may have another disk than before");
    facts.local.end_of_wal = Some(at(2, 150));
    assert!(matches!(decide(&view, &facts), Action::Hold(Hold::Refused(_))));
    facts.local.end_of_wal = Some(at(2, 151));
    assert!(matches!(decide(&view, &facts), Action::StartPrimary { restart: 4, .. }));
    facts.local.end_of_wal = None;
    facts.local.process = Process::Exited { noticed: WallTime(1), gone: true };
    assert!(matches!(decide(&view, &facts), Action::StartPrimary { .. }), "its end was seen");
}

#[test]
fn a_promotion_that_was_cut_is_not_repeated_in_its_epoch() {
    let facts = running(facts("b", 2, Role::Primary), sql(true, 1));
    assert_eq!(decide(&view(), &facts), Action::Hold(Hold::PromotionWasCut));
}

#[test]
fn a_primary_that_writes_another_timeline_than_named_is_fenced() {
    let facts = running(facts("b", 2, Role::Primary), sql(false, 3));
    assert_eq!(decide(&view(), &facts), Action::Fence(FenceReason::NotOurEpoch));
}

#[test]
fn the_way_of_proof_follows_from_the_names_in_force() {
    let mut facts = running(facts("b", 2, Role::Primary), sql(false, 2));
    facts.local.opened = report("b").opened;
    let proof = |facts: &Facts| match decide(&view(), facts) {
        Action::Confirm { proof, .. } => proof,
        other => panic!("{other:?}"),
    };
    facts.local.names = Names::Proven(CfgId(3));
    assert_eq!(proof(&facts), Proof::Given);
    facts.local.names = Names::Proven(CfgId(2));
    assert_eq!(proof(&facts), Proof::Priorities);
    facts.local.names = Names::Impossible;
    assert_eq!(proof(&facts), Proof::Canary);
}

#[test]
fn a_store_that_was_set_back_freezes_the_member() {
    let view = ClusterView { frozen: Some("it was set back".into()), ..view() };
    for (member, role) in [("a", Role::Primary), ("b", Role::Primary), ("c", Role::Standby)] {
        let action = decide(&view, &facts(member, 1, role));
        assert!(matches!(action, Action::Hold(Hold::Frozen(_))), "{action:?}");
    }
}

#[test]
fn a_frozen_primary_whose_keeper_was_restarted_serves_on_by_signs() {
    let view = ClusterView { frozen: Some("it was set back".into()), ..view() };
    let mut facts = facts("b", 2, Role::Primary);
    facts.local.process = Process::Running { pid: 1 };
    facts.sql = Some(sql(false, 2));
    assert!(matches!(decide(&view, &facts), Action::OpenBySigns(_)));
    facts.local.opened =
        Some(Opened { epoch: Epoch(2), timeline: Timeline(2), start_lsn: Lsn(100), restart: 0 });
    assert!(matches!(decide(&view, &facts), Action::Hold(Hold::Frozen(_))));
}

#[test]
fn a_new_specs_settings_are_taken_over_and_refused_ones_stop_no_start() {
    let mut view = view();
    let spec = view.spec.as_mut().unwrap();
    spec.postgres.parameters.insert("wrok_mem".into(), "8MB".into());
    let wanted = spec.postgres.clone();
    let mut facts = facts("a", 1, Role::Primary);
    facts.local.end_of_wal = Some(at(1, 100));
    assert_eq!(decide(&view, &facts), Action::TakeSettings(wanted.clone()));
    let refused = Failure { problem: "unrecognized".into(), times: 1, at: NOW };
    facts.local.failures.insert(ActionKind::TakeSettings, refused);
    assert!(matches!(decide(&view, &facts), Action::StartStandby { .. }), "by the settings before");
    facts.local.failures.clear();
    facts.local.accepted = Some(wanted);
    assert!(matches!(decide(&view, &facts), Action::StartStandby { .. }));
    view.state.as_mut().unwrap().sealing = Some(Epoch(3));
    facts.local.accepted = None;
    assert_eq!(decide(&view, &facts), Action::Seal { sealing: Epoch(3) }, "nothing waits for it");
}

#[test]
fn what_failed_is_left_alone_for_a_while_but_a_fence_never_is() {
    let failure = Failure { problem: "x".into(), times: 1, at: NOW };
    let mut facts = facts("a", 1, Role::Primary);
    facts.local.failures.insert(ActionKind::Scan, failure.clone());
    assert_eq!(decide(&view(), &facts), Action::Hold(Hold::BackingOff(ActionKind::Scan)));
    assert_eq!(reconcile(&view(), &facts, NOW + Duration::from_secs(6)), Action::Scan);
    let mut facts = running(facts, sql(false, 1));
    facts.local.failures.insert(ActionKind::Fence, failure);
    assert!(matches!(decide(&view(), &facts), Action::Fence(_)));
}

#[test]
fn a_standby_whose_promotion_may_be_under_way_is_fenced_before_it_seals() {
    let mut view = view();
    view.state.as_mut().unwrap().sealing = Some(Epoch(3));
    // It has been told to promote itself and has not answered as a primary yet.
    let facts = running(facts("b", 2, Role::Primary), sql(true, 1));
    assert_eq!(decide(&view, &facts), Action::Fence(FenceReason::Sealing(Epoch(3))));
}

#[test]
fn a_former_primary_that_was_started_to_be_promoted_seals_without_a_fence() {
    let mut view = view();
    view.state.as_mut().unwrap().sealing = Some(Epoch(3));
    let mut facts = running(facts("b", 1, Role::Primary), sql(true, 1));
    facts.files.promise = Epoch(2);
    assert_eq!(decide(&view, &facts), Action::Seal { sealing: Epoch(3) });
}

#[test]
fn a_seal_does_not_excuse_a_server_that_runs_as_a_primary() {
    let mut view = view();
    view.state.as_mut().unwrap().sealing = Some(Epoch(3));
    let mut facts = running(facts("c", 2, Role::Standby), sql(false, 3));
    facts.files.promise = Epoch(3);
    facts.local.seal =
        Some(Seal { sealing: Epoch(3), position: at(2, 200), replayed: Lsn(200), clean: true });
    assert_eq!(decide(&view, &facts), Action::Fence(FenceReason::Sealing(Epoch(3))));
}

#[test]
fn who_holds_less_than_it_was_chosen_with_is_not_promoted() {
    let mut facts = running(facts("b", 1, Role::Standby), sql(true, 1));
    facts.files.promise = Epoch(2);
    let seal = |lsn| {
        Some(Seal { sealing: Epoch(2), position: at(1, lsn), replayed: Lsn(lsn), clean: true })
    };
    facts.local.seal = seal(100);
    assert!(matches!(decide(&promoting(), &facts), Action::Promote(_)));
    facts.local.seal = seal(99);
    assert!(matches!(decide(&promoting(), &facts), Action::Hold(Hold::Refused(_))));
    facts.local.process = Process::None;
    facts.sql = None;
    assert!(matches!(decide(&promoting(), &facts), Action::Hold(Hold::Refused(_))));
}

#[test]
fn a_proof_that_waits_for_voters_gives_way_to_the_slot_of_a_new_member() {
    let mut facts = running(facts("b", 2, Role::Primary), sql(false, 2));
    facts.local.opened = report("b").opened;
    facts.local.slots_for = Some((vec![name("c")], true));
    let confirm = decide(&view(), &facts);
    assert_eq!(
        confirm.kind(),
        ActionKind::Confirm,
        "voters that follow at once need no slots first"
    );
    facts.local.voters_late = true;
    let slots = decide(&view(), &facts);
    assert_eq!(slots.kind(), ActionKind::KeepSlots, "a was admitted meanwhile");
    assert!(confirm.yields_to(&slots));
    let failure = Failure { problem: "x".into(), times: 1, at: NOW };
    facts.local.failures.insert(ActionKind::KeepSlots, failure);
    assert_eq!(decide(&view(), &facts).kind(), ActionKind::Confirm);
}

#[test]
fn a_rewind_that_waits_for_its_source_does_not_keep_the_member_from_sealing() {
    let mut facts = facts("a", 1, Role::Primary);
    facts.local.end_of_wal = Some(at(1, 101));
    let rewind = decide(&view(), &facts);
    assert_eq!(rewind.kind(), ActionKind::Rewind);
    assert!(rewind.yields_to(&Action::Seal { sealing: Epoch(3) }));
    // Once its data changes the member is incomplete, and is not asked to seal.
    let mut view = view();
    view.state.as_mut().unwrap().sealing = Some(Epoch(3));
    facts.files.complete = false;
    assert!(!rewind.yields_to(&decide(&view, &facts)));
}

/// Epoch 2 before b leads it.
fn promoting() -> ClusterView {
    let mut view = view();
    let state = view.state.as_mut().unwrap();
    state.phase = Phase::Promoting;
    state.epochs[1].start_lsn = None;
    view
}

#[test]
fn an_epoch_that_has_begun_is_begun_by_nobody_again() {
    assert!(matches!(decide(&promoting(), &chosen()), Action::Promote(_)));
    // It led the epoch, and its disk came back as it was before: the leader only knows that it does not serve.
    let mut again = view();
    let state = again.state.as_mut().unwrap();
    state.phase = Phase::Restarting;
    state.restart = Some(RestartOrder { member: name("b"), epoch: Epoch(2), number: 4 });
    assert!(matches!(decide(&again, &chosen()), Action::Hold(Hold::Refused(_))));
    let mut down = chosen();
    (down.local.process, down.sql) = (Process::None, None);
    assert!(matches!(decide(&again, &down), Action::Hold(Hold::Refused(_))));
}

/// b as it was chosen to lead epoch 2: a standby that has sealed for it.
fn chosen() -> Facts {
    let mut facts = running(facts("b", 1, Role::Standby), sql(true, 1));
    facts.files.promise = Epoch(2);
    facts.local.seal =
        Some(Seal { sealing: Epoch(2), position: at(1, 100), replayed: Lsn(100), clean: true });
    facts
}

#[test]
fn a_member_on_its_way_to_a_timeline_that_it_never_reached_is_restarted_before_it_is_promoted() {
    let mut facts = chosen();
    facts.local.unreached = [Timeline(2)].into();
    assert_eq!(decide(&promoting(), &facts), Action::Fence(FenceReason::Unreached(Timeline(2))));
    facts.local.unreached.clear();
    assert!(matches!(decide(&promoting(), &facts), Action::Promote(_)));
}

#[test]
fn a_promotion_that_waits_for_the_voters_of_a_cfg_that_has_a_successor_ends() {
    let promote = decide(&promoting(), &chosen());
    // It has got as far as the new timeline, and its voters do not come.
    let facts = running(facts("b", 2, Role::Primary), sql(false, 2));
    let opens = decide(&view(), &facts);
    assert_eq!((promote.kind(), opens.kind()), (ActionKind::Promote, ActionKind::Open));
    assert!(!promote.yields_to(&opens), "it opens by itself");
    let mut view = view();
    let cfgs = &mut view.state.as_mut().unwrap().cfgs;
    let relieved = Cfg { id: CfgId(99), ..cfgs.last().unwrap().clone() };
    cfgs.push(relieved);
    assert!(promote.yields_to(&decide(&view, &facts)));
}

#[test]
fn a_standby_does_not_follow_past_the_history_of_a_dead_epoch() {
    let mut facts = running(facts("c", 1, Role::Standby), sql(true, 1));
    facts.files.promise = Epoch(2);
    facts.local.seal =
        Some(Seal { sealing: Epoch(2), position: at(1, 90), replayed: Lsn(90), clean: true });
    // Of a promotion that nobody followed: the present timeline does not descend from it.
    facts.local.unreached = [Timeline(3)].into();
    let mut view = view();
    let state = view.state.as_mut().unwrap();
    (state.timeline, state.epochs[1].timeline) = (Timeline(4), Timeline(4));
    view.reports.get_mut(&name("b")).unwrap().server = Server::Primary { timeline: Timeline(4) };
    assert_eq!(decide(&view, &facts), Action::Fence(FenceReason::Unreached(Timeline(3))));
    facts.local.unreached = [Timeline(4)].into();
    assert!(matches!(decide(&view, &facts), Action::Repoint { .. }), "it is only not there yet");
}

/// The primary of epoch 2 as its keeper finds it while etcd is away.
fn primary_without_etcd() -> Facts {
    let mut facts = facts("b", 2, Role::Primary);
    facts.local.etcd_away = true;
    facts
}

#[test]
fn with_etcd_away_a_dead_primary_is_started_alone_unless_it_has_promised_another_epoch() {
    let mut facts = primary_without_etcd();
    assert_eq!(decide(&view(), &facts), Action::Scan);
    facts.local.end_of_wal = Some(at(2, 150));
    assert!(matches!(decide(&view(), &facts), Action::StartAlone(_)));
    let mut cut = view();
    let state = cut.state.as_mut().unwrap();
    (state.phase, state.epochs[1].start_lsn) = (Phase::Promoting, None);
    assert!(
        !matches!(decide(&cut, &facts), Action::StartAlone(_)),
        "its promotion was cut: it is not on the epoch's timeline"
    );
    let mut restored = view();
    restored.state.as_mut().unwrap().members.get_mut(&name("b")).unwrap().floor =
        Some(state::Floor { epoch: Epoch(2), lsn: Lsn(151) });
    assert!(
        matches!(decide(&restored, &facts), Action::Hold(Hold::Refused(_))),
        "a disk that lost data"
    );
    facts.local.etcd_away = false;
    assert_eq!(decide(&view(), &facts), Action::Hold(Hold::WaitingForRestartOrder));
    let mut sealed = primary_without_etcd();
    sealed.files.promise = Epoch(3);
    assert_eq!(decide(&view(), &sealed), Action::Hold(Hold::StaleEpoch));
    let mut replaced = primary_without_etcd();
    replaced.member = name("a");
    replaced.files.epoch = Epoch(1);
    replaced.files.promise = Epoch(1);
    assert_eq!(decide(&view(), &replaced), Action::Scan, "the former primary of an older epoch");
}

#[test]
fn with_etcd_away_a_running_primary_opens_by_signs_and_an_order_does_not_close_it() {
    let mut view = view();
    let mut facts = running(primary_without_etcd(), sql(false, 2));
    assert!(matches!(decide(&view, &facts), Action::OpenBySigns(_)));
    facts.local.etcd_away = false;
    assert!(matches!(decide(&view, &facts), Action::Open(_)));
    // A keeper that has only its copy proves its right at once: the fencer waits for no lease_ttl.
    view.state_revision = 0;
    assert!(matches!(decide(&view, &facts), Action::OpenBySigns(_)));
    facts.local.opened =
        Some(Opened { epoch: Epoch(2), timeline: Timeline(2), start_lsn: Lsn(100), restart: 0 });
    let order = RestartOrder { member: name("b"), epoch: Epoch(2), number: 4 };
    view.state.as_mut().unwrap().restart = Some(order);
    assert_eq!(decide(&view, &facts), Action::Hold(Hold::Leading));
}

#[test]
fn by_a_copy_of_the_state_nobody_is_promoted_no_data_is_touched_and_no_names_are_changed() {
    let mut view = view();
    view.state_revision = 0;
    let waits = Action::Hold(Hold::WaitingForEtcd);
    let mut former = facts("a", 1, Role::Primary);
    former.local.end_of_wal = Some(at(1, 101));
    assert_eq!(decide(&view, &former), waits, "rewind");
    former.files.role = Role::Standby;
    assert_eq!(decide(&view, &former), waits, "copy");
    let mut named = promoting();
    named.state_revision = 0;
    assert_eq!(decide(&named, &chosen()), waits, "promotion");
    let mut open = running(primary_without_etcd(), sql(false, 2));
    open.local.opened =
        Some(Opened { epoch: Epoch(2), timeline: Timeline(2), start_lsn: Lsn(100), restart: 0 });
    assert_eq!(
        decide(&view, &open),
        Action::Hold(Hold::Leading),
        "the Cfg may have left the record"
    );
}

#[test]
fn without_etcd_a_stopped_standby_follows_as_its_settings_on_disk_say() {
    let mut view = view();
    view.state_revision = 0;
    let mut facts = facts("c", 2, Role::Standby);
    facts.local.end_of_wal = Some(at(2, 150));
    let upstream = Upstream {
        epoch: Epoch(2),
        host: "127.0.0.1".into(),
        port: 5432,
        name: StreamName::Voter { round: 0 },
    };
    facts.local.settings = Some(Settings { upstream: Some(upstream), ..Settings::cut_off() });
    view.reports.clear();
    assert!(matches!(decide(&view, &facts), Action::StartStandby { .. }));
}
