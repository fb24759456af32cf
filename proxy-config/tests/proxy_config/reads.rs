//! Lag, pools and fresh reads, on values.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::spec::ReadFallback;
use proto::{Cfg, CfgId, ClusterSpec, ClusterState, Epoch, MemberName, Moment};
use proxy_config::route::{Answer, Answers, Known, Lag, Routes, route};

use crate::scene::{Reports, name, open, primary, reports, sealing, silent, standby};

const MB: u64 = 1 << 20;

fn at(seconds: u64) -> Moment {
    Moment::since_boot(Duration::from_secs(1000 + seconds))
}

fn names(list: &[&str]) -> BTreeSet<MemberName> {
    list.iter().map(|n| name(n)).collect()
}

/// A cluster of a, the primary, and its standbys, followed over time.
struct Story {
    spec: ClusterSpec,
    state: ClusterState,
    reports: Reports,
    answers: Answers,
    routes: Routes,
}

impl Story {
    fn of(members: &[&str]) -> Story {
        let standbys = members[1..].iter().map(|m| standby(m, 7));
        Story {
            spec: ClusterSpec::default(),
            state: open(7, members),
            reports: reports([primary(members[0])].into_iter().chain(standbys)),
            answers: Answers::new(),
            routes: Routes::default(),
        }
    }

    /// Keepers answer at `seconds`, each with its lag in bytes and in seconds.
    fn look(&mut self, seconds: u64, lags: &[(&str, u64, u64)]) -> BTreeSet<MemberName> {
        for (member, bytes, time) in lags {
            let lag = Some(Lag { bytes: *bytes, time: Duration::from_secs(*time) });
            let answer = Answer { asked: at(seconds), lag, fresh: false, remote_apply: false };
            self.answers.insert(name(member), answer);
        }
        self.turn(seconds).read.clone()
    }

    fn turn(&mut self, seconds: u64) -> &Routes {
        let known = Known {
            spec: &self.spec,
            state: Some(&self.state),
            reports: &self.reports,
            answers: &self.answers,
        };
        self.routes = route(&known, Some(&self.routes), at(seconds));
        &self.routes
    }
}

#[test]
fn a_standby_over_either_limit_leaves_and_one_at_it_stays() {
    let mut story = Story::of(&["a", "b", "c"]);
    assert_eq!(story.look(0, &[("b", 16 * MB, 10), ("c", 0, 0)]), names(&["b", "c"]));
    assert_eq!(story.look(1, &[("b", 16 * MB + 1, 0), ("c", 0, 0)]), names(&["c"]));
    let mut story = Story::of(&["a", "b", "c"]);
    assert_eq!(story.look(0, &[("b", 5, 11), ("c", 0, 0)]), names(&["c"]));
}

#[test]
fn it_comes_back_below_half_of_both_limits_and_only_after_a_while() {
    let mut story = Story::of(&["a", "b", "c"]);
    let c = ("c", 0, 0);
    assert_eq!(story.look(0, &[("b", 20 * MB, 0), c]), names(&["c"]));
    assert_eq!(story.look(60, &[("b", 9 * MB, 0), c]), names(&["c"]), "between the marks");
    assert_eq!(story.look(61, &[("b", 8 * MB, 5), c]), names(&["c"]), "low, but just now");
    assert_eq!(story.look(65, &[("b", MB, 0), c]), names(&["c"]));
    assert_eq!(story.look(66, &[("b", MB, 0), c]), names(&["b", "c"]));
    // A peak in between begins the wait anew.
    story.look(67, &[("b", 20 * MB, 0), c]);
    story.look(68, &[("b", MB, 0), c]);
    story.look(71, &[("b", 9 * MB, 0), c]);
    story.look(72, &[("b", MB, 0), c]);
    assert_eq!(story.look(75, &[("b", MB, 0), c]), names(&["c"]));
    assert_eq!(story.look(77, &[("b", MB, 0), c]), names(&["b", "c"]));
}

#[test]
fn a_lag_that_swings_around_the_limit_moves_nobody_twice() {
    let mut story = Story::of(&["a", "b", "c"]);
    let mut changes = 0;
    for second in 0..120 {
        let bytes = if second % 2 == 0 { 17 * MB } else { 15 * MB };
        let before = story.routes.read.clone();
        changes += u32::from(story.look(second, &[("b", bytes, 0), ("c", 0, 0)]) != before);
    }
    assert_eq!((changes, story.routes.read.clone()), (1, names(&["c"])));
}

#[test]
fn an_unknown_lag_neither_takes_a_standby_out_nor_brings_one_back() {
    let mut story = Story::of(&["a", "b", "c"]);
    assert_eq!(story.look(0, &[]), names(&["b", "c"]), "no keeper answers");
    assert_eq!(story.look(1, &[("b", 20 * MB, 0), ("c", 0, 0)]), names(&["c"]));
    assert_eq!(story.look(60, &[]), names(&["c"]), "answers of long ago are none");
    story.look(61, &[("b", 0, 0)]);
    assert_eq!(story.look(66, &[("b", 0, 0)]), names(&["b", "c"]));
}

#[test]
fn when_all_lag_the_least_lagging_one_stays_and_does_not_take_turns() {
    let mut story = Story::of(&["a", "b", "c"]);
    assert_eq!(story.look(0, &[("b", 30 * MB, 0), ("c", 40 * MB, 0)]), names(&["b"]));
    assert_eq!(story.routes.reluctant, names(&["b"]), "its own answer to HAProxy is no");
    assert_eq!(story.look(1, &[("b", 45 * MB, 0), ("c", 40 * MB, 0)]), names(&["b"]));
    assert_eq!(story.look(2, &[("b", 90 * MB, 0), ("c", 40 * MB, 0)]), names(&["c"]), "far better");
    // One that is within the limits again takes over, once it has shown it.
    story.look(3, &[("b", 0, 0), ("c", 40 * MB, 0)]);
    assert_eq!(story.look(8, &[("b", 0, 0), ("c", 40 * MB, 0)]), names(&["b"]));
    assert!(story.routes.reluctant.is_empty());
}

#[test]
fn the_pool_keeps_the_size_that_is_asked_for_and_falls_back_to_whom_is_asked_for() {
    let lags = [("b", 30 * MB, 0), ("c", 40 * MB, 0), ("d", 0, 0)];
    let mut story = Story::of(&["a", "b", "c", "d"]);
    story.spec.reads.min_members = 2;
    assert_eq!(story.look(0, &lags), names(&["b", "d"]));
    let mut story = Story::of(&["a", "b", "c", "d"]);
    story.spec.reads.min_members = 2;
    story.spec.reads.fallback = ReadFallback::Primary;
    assert_eq!(story.look(0, &lags), names(&["a", "d"]));
    assert_eq!(story.routes.reluctant, names(&["a"]));
    story.spec.reads.min_members = 1;
    let all_lag = [("b", 30 * MB, 0), ("c", 40 * MB, 0), ("d", 30 * MB, 0)];
    assert_eq!(story.look(1, &all_lag), names(&["a"]));
    assert!(story.routes.reluctant.is_empty(), "HAProxy falls back to it by itself");
    story.spec.reads.min_members = 3;
    assert_eq!(story.look(20, &lags), names(&["a", "b", "d"]));
}

#[test]
fn lag_never_empties_a_pool_whatever_is_answered() {
    for fallback in [ReadFallback::LeastLagging, ReadFallback::Primary] {
        let mut story = Story::of(&["a", "b", "c"]);
        story.spec.reads.fallback = fallback;
        for second in 0..200 {
            let (b, c) = ((second * 7919) % 60 * MB, (second * 104_729) % 60 * MB);
            assert!(!story.look(second, &[("b", b, 0), ("c", c, second % 30)]).is_empty());
        }
    }
}

#[test]
fn between_two_primaries_lag_moves_nobody() {
    let mut story = Story::of(&["a", "b", "c"]);
    story.look(0, &[("b", 0, 0), ("c", 0, 0)]);
    story.state = sealing(story.state);
    story.reports = reports([silent("b", 7), silent("c", 7)]);
    assert_eq!(story.look(20, &[("b", 0, 20), ("c", 0, 20)]), names(&["b", "c"]));
}

#[test]
fn members_of_a_pool_serve_its_reads_and_no_others_and_nobody_steps_in_for_them() {
    let mut story = Story::of(&["a", "b", "c", "d"]);
    story.spec.members.entry(name("d")).or_default().pool = "analysts".parse().ok();
    let pool = "analysts".parse().unwrap();
    assert_eq!(story.look(0, &[]), names(&["b", "c"]));
    assert_eq!(story.routes.pools, BTreeMap::from([(pool, names(&["d"]))]));
    // Lag does not empty it either, and its loss does not bring analysts to others.
    story.look(1, &[("d", 90 * MB, 50)]);
    assert_eq!(story.routes.pools.values().next(), Some(&names(&["d"])));
    story.reports.insert(name("d"), silent("d", 7));
    story.look(2, &[]);
    assert_eq!(story.routes.pools.values().next(), Some(&names(&[])));
    // Nor does it step in for the common pool: the primary does.
    story.reports = reports([primary("a"), silent("b", 7), silent("c", 7), standby("d", 7)]);
    assert_eq!(story.look(3, &[]), names(&["a"]));
}

#[test]
fn who_left_is_drained_and_a_replaced_primary_is_cut() {
    let mut story = Story::of(&["a", "b", "c"]);
    story.look(0, &[("b", 0, 0)]);
    story.look(5, &[("b", 20 * MB, 0)]);
    assert_eq!(story.routes.aside[&name("b")].left, at(5));
    story.look(9, &[("b", 20 * MB, 0)]);
    assert_eq!(story.routes.aside[&name("b")].left, at(5));
    story.state = open(8, &["c", "a", "b"]);
    story.turn(10);
    assert_eq!(story.routes.aside[&name("a")].left, Moment::default());
}

/// Epoch 7 of three members in which every commit waits for b and c, and nothing is left to know.
fn everybody_acknowledges() -> Story {
    let mut story = Story::of(&["a", "b", "c"]);
    let parameters = &mut story.spec.postgres.parameters;
    parameters.insert("synchronous_commit".into(), "remote_apply".into());
    story.state.cfgs = vec![cfg(1, &["b", "c"], 2)];
    for member in ["a", "b", "c"] {
        let answer = Answer { asked: at(0), lag: None, fresh: true, remote_apply: true };
        story.answers.insert(name(member), answer);
    }
    story
}

fn cfg(id: u64, voters: &[&str], k: usize) -> Cfg {
    let voters = names(voters);
    Cfg { id: CfgId(id), epoch: Epoch(7), leader: name("a"), voters, k, round: 0 }
}

#[test]
fn fresh_reads_go_to_the_primary_and_to_standbys_that_every_acknowledgement_needs() {
    let mut story = everybody_acknowledges();
    assert_eq!(story.turn(1).fresh, names(&["a", "b", "c"]));
    assert_eq!(story.turn(9).fresh, names(&["a"]), "their keepers have not answered for long");
}

#[test]
fn a_standby_without_which_a_commit_may_be_acknowledged_gets_no_fresh_reads() {
    type Change = fn(&mut Story);
    let cases: [(&str, Change); 7] = [
        ("one of two is enough", |s| s.state.cfgs = vec![cfg(1, &["b", "c"], 1)]),
        ("one was enough by an older Cfg", |s| s.state.cfgs.insert(0, cfg(0, &["b", "c"], 1))),
        ("a later Cfg is without them", |s| s.state.cfgs.push(cfg(2, &["d"], 1))),
        ("the spec does not wait for replay", |s| s.spec.postgres.parameters.clear()),
        ("the primary does not say that it waits", |s| {
            s.answers.get_mut(&name("a")).unwrap().remote_apply = false;
        }),
        ("their keepers do not say that they are", |s| {
            s.answers.get_mut(&name("b")).unwrap().fresh = false;
            s.answers.get_mut(&name("c")).unwrap().fresh = false;
        }),
        ("nothing is on record", |s| s.state.cfgs.clear()),
    ];
    for (why, change) in cases {
        let mut story = everybody_acknowledges();
        change(&mut story);
        assert_eq!(story.turn(1).fresh, names(&["a"]), "{why}");
    }
}

#[test]
fn nobody_is_fresh_while_a_primary_is_being_replaced() {
    let mut story = everybody_acknowledges();
    story.state = sealing(story.state);
    assert_eq!(story.turn(1).fresh, names(&[]));
}
