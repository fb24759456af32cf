//! Claims about ways back that depend on more than where the WAL ends.

use proto::spec::{CopyFrom, Permission};

use super::*;
use crate::facts::Compared;
use crate::member_files::Fork;
use crate::postgres::compare::{Proof as WalProof, SourceSays};
use crate::postgres::stopped::{Pages, Stopped};

/// What a member's disk shows that ended as a standby of timeline 1, having replayed up to `replayed`.
fn stopped(replayed: u64) -> Stopped {
    Stopped {
        system_identifier: SystemIdentifier(1),
        history: TimelineHistory::first(Timeline(1)),
        pages: Pages::Replayed { lsn: Lsn(replayed), timeline: Timeline(1) },
        cannot_rewind: None,
    }
}

fn says(proof: WalProof) -> Option<Compared> {
    let history = TimelineHistory::parse(Timeline(2), "1\t0/64\tx\n").unwrap();
    let (system_identifier, flushed) = (SystemIdentifier(1), Lsn(100));
    let says = SourceSays { system_identifier, history, flushed, proof };
    Some(Compared { epoch: Epoch(2), says: Some(says), room: None })
}

#[test]
fn wal_that_was_never_replayed_is_set_aside_once_the_primary_was_asked_and_a_cut_goes_on() {
    let mut facts = facts("c", 1, Role::Standby);
    facts.local.end_of_wal = Some(at(1, 101));
    facts.local.stopped = Some(stopped(90));
    assert!(matches!(decide(&view(), &facts), Action::Compare { .. }));
    facts.local.compared = Some(Compared { epoch: Epoch(2), says: None, room: None });
    assert!(matches!(decide(&view(), &facts), Action::Compare { .. }), "it needs an answer");
    facts.local.compared = says(WalProof::Same { from: Lsn(50), to: Lsn(100) });
    let Action::DropUnreplayed(dropping) = decide(&view(), &facts) else { panic!() };
    assert_eq!(dropping.fork, Fork { timeline: Timeline(1), lsn: Lsn(100) });
    facts.files.complete = false;
    facts.files.rejoin =
        Some(RejoinMarker { by: report::RejoinBy::Follow, fork: Some(dropping.fork), ..marker() });
    assert!(matches!(decide(&view(), &facts), Action::DropUnreplayed(_)), "cut");
    let other = RejoinMarker { source_timeline: Timeline(1), ..facts.files.rejoin.unwrap() };
    facts.files.rejoin = Some(other);
    assert!(matches!(decide(&view(), &facts), Action::Copy { .. }), "another source");
}

#[test]
fn without_etcd_a_member_asks_its_primary_and_follows_and_gives_up_nothing() {
    let mut view = view();
    view.state_revision = 0;
    let mut facts = facts("c", 1, Role::Standby);
    facts.local.end_of_wal = Some(at(1, 90));
    facts.local.stopped = Some(stopped(80));
    assert!(matches!(decide(&view, &facts), Action::Compare { .. }));
    facts.local.compared = says(WalProof::Same { from: Lsn(50), to: Lsn(90) });
    assert!(matches!(decide(&view, &facts), Action::StartStandby { .. }));
    facts.local.end_of_wal = Some(at(1, 101));
    assert_eq!(decide(&view, &facts), Action::Hold(Hold::WaitingForEtcd));
}

#[test]
fn a_member_follows_without_an_answer_but_never_against_one() {
    let mut facts = facts("c", 1, Role::Standby);
    facts.local.end_of_wal = Some(at(1, 90));
    facts.local.stopped = Some(stopped(80));
    assert!(matches!(decide(&view(), &facts), Action::Compare { .. }));
    facts.local.compared = Some(Compared { epoch: Epoch(2), says: None, room: None });
    assert!(matches!(decide(&view(), &facts), Action::StartStandby { .. }));
    facts.local.compared = says(WalProof::Differs { at: Lsn(89), timeline: Timeline(1) });
    let Action::Hold(Hold::Refused(why)) = decide(&view(), &facts) else { panic!() };
    assert!(why.contains("differ at 0/59 of timeline 1"), "{why}");
    // Nobody is asked who is not there.
    facts.local.compared = None;
    let upstream = Upstream {
        epoch: Epoch(2),
        host: "127.0.0.1".into(),
        port: 5432,
        name: StreamName::Voter { round: 0 },
    };
    facts.local.settings = Some(Settings { upstream: Some(upstream), ..Settings::cut_off() });
    let away = ClusterView { reports: Default::default(), ..view() };
    assert!(matches!(decide(&away, &facts), Action::StartStandby { .. }));
}

#[test]
fn a_rewound_member_that_lets_nobody_in_waits_only_for_the_present_primary() {
    let mut facts = running(facts("c", 1, Role::Standby), sql(true, 1));
    facts.sql = None;
    facts.files.complete = false;
    let upstream = |epoch| Upstream {
        epoch: Epoch(epoch),
        host: "127.0.0.1".into(),
        port: 5432,
        name: StreamName::Joining,
    };
    let waiting_for = |facts: &mut Facts, epoch| {
        let settings = Settings { upstream: Some(upstream(epoch)), ..Settings::cut_off() };
        facts.local.settings = Some(settings);
    };
    waiting_for(&mut facts, 2);
    assert_eq!(decide(&view(), &facts), Action::Hold(Hold::WaitingForServer));
    waiting_for(&mut facts, 1);
    assert_eq!(decide(&view(), &facts), Action::Fence(FenceReason::LeftBehind));
    // One that counts replays what it holds itself, and the present primary has to be there first.
    let away = ClusterView { reports: Default::default(), ..view() };
    assert_eq!(decide(&away, &facts), Action::Hold(Hold::WaitingForServer));
    facts.files.complete = true;
    assert_eq!(decide(&view(), &facts), Action::Hold(Hold::WaitingForServer));
}

#[test]
fn an_incomplete_member_past_the_fork_of_the_next_primary_is_stopped_and_judged_by_its_wal() {
    let mut facts = running(facts("c", 1, Role::Standby), sql(true, 1));
    facts.files.complete = false;
    let catching_up =
        RejoinMarker { source_timeline: Timeline(1), phase: RejoinPhase::CatchingUp, ..marker() };
    facts.files.rejoin = Some(catching_up);
    facts.local.streamed = Some(Timeline(1));
    facts.sql.as_mut().unwrap().flush_lsn = Some(Lsn(100));
    assert!(matches!(decide(&view(), &facts), Action::Repoint { .. }));
    facts.sql.as_mut().unwrap().flush_lsn = Some(Lsn(101));
    assert_eq!(decide(&view(), &facts), Action::Fence(FenceReason::PastTheFork));

    // Rewound onto a source that was lost before anything was streamed from it.
    facts.local.streamed = None;
    facts.sql.as_mut().unwrap().flush_lsn = None;
    assert!(matches!(decide(&view(), &facts), Action::Repoint { .. }));
    facts.files.rejoin.as_mut().unwrap().until = Some(Lsn(100));
    assert!(matches!(decide(&view(), &facts), Action::Repoint { .. }));
    facts.files.rejoin.as_mut().unwrap().until = Some(Lsn(101));
    assert_eq!(decide(&view(), &facts), Action::Fence(FenceReason::PastTheFork));
    let begun = facts.files.rejoin.as_mut().unwrap();
    (begun.source_timeline, begun.until) = (Timeline(7), Some(Lsn(50)));
    assert_eq!(decide(&view(), &facts), Action::Fence(FenceReason::PastTheFork), "nobody's now");
    // Whatever its WAL says: no rewind would find what its pages came with.
    let mut stopped = facts.clone();
    stopped.sql = None;
    stopped.local.process = Process::Exited { noticed: WallTime(0), gone: true };
    assert!(matches!(decide(&view(), &stopped), Action::Copy { .. }));
    let begun = facts.files.rejoin.as_mut().unwrap();
    (begun.source_timeline, begun.until) = (Timeline(1), None);

    facts.sql = None;
    facts.local.process = Process::Exited { noticed: WallTime(0), gone: true };
    assert_eq!(decide(&view(), &facts), Action::Scan);
    facts.local.end_of_wal = Some(at(1, 101));
    assert!(matches!(decide(&view(), &facts), Action::Copy { .. }));
    facts.local.end_of_wal = None;
    let failure = Failure { problem: "no checkpoint".into(), times: 3, at: Moment::default() };
    facts.local.failures.insert(ActionKind::Scan, failure);
    assert!(matches!(decide(&view(), &facts), Action::Copy { .. }), "its WAL cannot be read");
}

#[test]
fn data_is_not_replaced_where_the_spec_says_never() {
    let mut view = view();
    view.spec.as_mut().unwrap().rejoin.copy = Permission::Never;
    let mut facts = facts("c", 1, Role::Standby);
    facts.local.end_of_wal = Some(at(1, 101));
    let Action::Hold(Hold::Refused(why)) = decide(&view, &facts) else { panic!() };
    assert!(why.contains("rejoin.copy is never"), "{why}");
    facts.data = DataDirectory::Empty;
    assert!(matches!(decide(&view, &facts), Action::Copy { .. }), "there is nothing to lose");
}

/// a has no data; b leads epoch 2, c and d vote for it, one of them is enough; e does not vote.
fn five() -> (ClusterView, Facts) {
    let mut view = view();
    let state = view.state.as_mut().unwrap();
    state.cfgs = vec![cfg(3, 2, "b", &["c", "d"], 1)];
    for member in ["d", "e"] {
        let admitted = Admitted { incarnation: Incarnation(member.into()), floor: None };
        state.members.insert(name(member), admitted);
    }
    for (member, voter) in [("c", true), ("d", true), ("e", false)] {
        let (epoch, timeline) = (Epoch(2), Timeline(2));
        let standby = MemberReport {
            server: Server::Standby { timeline },
            stream: Stream::Live { epoch, timeline, voter },
            opened: None,
            ..report(member)
        };
        view.reports.insert(name(member), standby);
    }
    let mut facts = facts("a", 1, Role::Standby);
    facts.data = DataDirectory::Empty;
    (view, facts)
}

#[test]
fn a_fresh_copy_is_taken_from_a_standby_that_commits_do_not_wait_for() {
    let (view, facts) = five();
    let source = |change: &dyn Fn(&mut ClusterView, &mut Facts)| {
        let (mut view, mut facts) = (view.clone(), facts.clone());
        change(&mut view, &mut facts);
        let Action::Copy { from, .. } = decide(&view, &facts) else { panic!("it is not copied") };
        from
    };
    let of = |view: &mut ClusterView, member: &str, change: &dyn Fn(&mut MemberReport)| {
        change(view.reports.get_mut(&name(member)).unwrap());
    };
    assert_eq!(source(&|_, _| {}), Some(name("e")), "e votes for nothing");
    let without_e = |view: &mut ClusterView| of(view, "e", &|e| e.complete = false);
    assert_eq!(source(&|v, _| without_e(v)), Some(name("c")), "d alone is enough");
    let lone = |view: &mut ClusterView| {
        without_e(view);
        of(view, "d", &|d| d.stream = Stream::Silent { epoch: Epoch(2) });
    };
    assert_eq!(source(&|v, _| lone(v)), None, "every commit waits for c");
    let near_d = |view: &mut ClusterView| {
        without_e(view);
        of(view, "d", &|d| d.zone = Some("west".into()));
        view.reports.insert(name("a"), MemberReport { zone: Some("west".into()), ..report("a") });
    };
    assert_eq!(source(&|v, _| near_d(v)), Some(name("d")), "d is in the same zone");
    let (epoch, timeline) = (Epoch(1), Timeline(1));
    let old = Stream::Live { epoch, timeline, voter: false };
    assert_ne!(source(&|v, _| of(v, "e", &|e| e.stream = old)), Some(name("e")), "it lags behind");
    assert_ne!(source(&|v, _| of(v, "e", &|e| e.leaving = true)), Some(name("e")));
}

#[test]
fn a_fresh_copy_is_of_the_primary_where_that_is_wanted_or_a_copy_has_failed() {
    let (mut view, mut facts) = five();
    let from = |view: &ClusterView, facts: &Facts| match decide(view, facts) {
        Action::Copy { from, .. } => from,
        other => panic!("{other:?}"),
    };
    let failure = Failure { problem: "promoted".into(), times: 1, at: Moment::default() };
    facts.local.failures.insert(ActionKind::Copy, failure);
    assert_eq!(from(&view, &facts), None);
    facts.local.failures.clear();
    assert!(from(&view, &facts).is_some());
    view.spec.as_mut().unwrap().rejoin.copy_from = CopyFrom::Primary;
    assert_eq!(from(&view, &facts), None);
}
