//! `route`, case by case.

use std::collections::{BTreeMap, BTreeSet};

use proto::{ClusterState, Epoch, MemberName, Phase};
use proxy_config::route::Routes;

use crate::scene::{
    self, Reports, name, open, primary, promoting, report, reports, sealing, silent, standby,
};

/// Returns where clients are led; what is remembered of those who get nothing is told elsewhere.
fn routed(state: &ClusterState, reports: &Reports, previous: &Routes) -> Routes {
    plain(Some(state), reports, Some(previous))
}

fn plain(state: Option<&ClusterState>, reports: &Reports, previous: Option<&Routes>) -> Routes {
    Routes { aside: BTreeMap::new(), ..scene::routed(state, reports, previous) }
}

fn healthy(epoch: u64) -> Reports {
    reports([primary("a"), standby("b", epoch), standby("c", epoch)])
}

fn usual() -> Routes {
    plain(Some(&open(7, &["a", "b", "c"])), &healthy(7), None)
}

fn names(list: &[&str]) -> BTreeSet<MemberName> {
    list.iter().map(|n| name(n)).collect()
}

#[test]
fn writes_go_to_the_open_primary_and_reads_to_standbys_that_stream() {
    let routes = usual();
    assert_eq!(routes.epoch, Epoch(7));
    assert_eq!(routes.write, Some(name("a")));
    assert_eq!(routes.read, names(&["b", "c"]));
    assert_eq!(routes.members[&name("b")].postgres.to_string(), "10.0.0.98:5432");
}

#[test]
fn nobody_gets_writes_while_sealing_promoting_or_restarting() {
    let state = open(7, &["a", "b", "c"]);
    let restarting = ClusterState { phase: Phase::Restarting, ..state.clone() };
    for closed in [sealing(state.clone()), promoting(state), restarting] {
        let routes = routed(&closed, &healthy(7), &usual());
        assert_eq!(routes.write, None);
        assert_eq!(routes.read, names(&["b", "c"]));
    }
}

#[test]
fn a_state_of_a_lower_epoch_changes_nothing() {
    assert_eq!(routed(&open(6, &["b", "a", "c"]), &healthy(6), &usual()), usual());
}

#[test]
fn no_state_changes_nothing() {
    assert_eq!(plain(None, &Reports::new(), Some(&usual())), usual());
    assert_eq!(plain(None, &healthy(7), None), Routes::default());
}

#[test]
fn a_lapsed_report_keeps_the_members_addresses() {
    let state = open(7, &["a", "b", "c"]);
    let lapsed = routed(&state, &reports([primary("a"), standby("b", 7)]), &usual());
    assert_eq!(lapsed.members, usual().members);
    assert_eq!(lapsed.read, names(&["b"]));
    let all_lapsed = routed(&state, &Reports::new(), &usual());
    assert_eq!(all_lapsed, usual());
}

#[test]
fn a_member_that_left_the_cluster_leaves_the_routes_and_a_stranger_never_enters() {
    let mut seen = healthy(7);
    seen.insert(name("x"), standby("x", 7));
    let routes = routed(&open(7, &["a", "b"]), &seen, &usual());
    assert_eq!(routes.members.keys().cloned().collect::<BTreeSet<_>>(), names(&["a", "b"]));
    assert_eq!(routes.read, names(&["b"]));
}

#[test]
fn a_moved_member_gets_its_new_address() {
    let mut moved = healthy(7);
    moved.get_mut(&name("b")).unwrap().postgres_address = "10.9.9.9:6000".into();
    let routes = routed(&open(7, &["a", "b", "c"]), &moved, &usual());
    assert_eq!(routes.members[&name("b")].postgres.to_string(), "10.9.9.9:6000");
}

#[test]
fn a_member_whose_address_cannot_be_used_is_left_out_and_never_written_to() {
    let mut odd = healthy(7);
    odd.get_mut(&name("a")).unwrap().postgres_address = "10.0.0.1:5432 backup\n".into();
    let routes = plain(Some(&open(7, &["a", "b", "c"])), &odd, None);
    assert_eq!(routes.write, None);
    assert!(!routes.members.contains_key(&name("a")));
}

#[test]
fn a_standby_without_a_live_stream_of_this_epoch_gets_no_reads() {
    let state = open(7, &["a", "b", "c"]);
    for other in [silent("c", 7), standby("c", 6), report("c")] {
        let routes = routed(&state, &reports([primary("a"), standby("b", 7), other]), &usual());
        assert_eq!(routes.read, names(&["b"]));
    }
}

#[test]
fn the_open_primary_serves_reads_when_no_standby_streams() {
    let state = open(7, &["a", "b", "c"]);
    let routes = routed(&state, &reports([primary("a"), silent("b", 7), silent("c", 7)]), &usual());
    assert_eq!(routes.read, names(&["a"]));
}

#[test]
fn between_two_primaries_the_readers_keep_their_standbys_but_not_dead_ones() {
    let streams_cut = reports([silent("b", 7), silent("c", 7)]);
    let during = routed(&sealing(open(7, &["a", "b", "c"])), &streams_cut, &usual());
    assert_eq!(during.read, names(&["b", "c"]));
    let c_down = reports([silent("b", 7), report("c")]);
    let during = routed(&sealing(open(7, &["a", "b", "c"])), &c_down, &usual());
    assert_eq!(during.read, names(&["b"]));
    let both_down = reports([report("b"), report("c")]);
    let during = routed(&sealing(open(7, &["a", "b", "c"])), &both_down, &usual());
    assert_eq!(during.read, names(&["b", "c"]), "a pool is never emptied for want of news");
}

#[test]
fn the_read_pool_is_never_empty_once_it_was_filled() {
    let mut routes = usual();
    let pictures = [healthy(7), Reports::new(), reports([report("a")]), reports([silent("b", 7)])];
    let state = open(7, &["a", "b", "c"]);
    for state in [state.clone(), sealing(state.clone()), promoting(state.clone()), state] {
        for seen in &pictures {
            routes = routed(&state, seen, &routes);
            assert!(!routes.read.is_empty(), "{state:?} {seen:?}");
        }
    }
}
