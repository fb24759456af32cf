//! Whatever the Cfgs, seals and gaps: who is promoted holds all that could have been acknowledged.

use std::time::Duration;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proto::cfg::Cfg;
use proto::report::{Seal, Server};
use proto::spec::{MemberSpec, Permission};
use proto::{CfgId, Epoch, Lsn, MemberName, Timeline, WalPosition};
use sentinel::invariant;
use sentinel::plan::Verdict;

use crate::scene::{Scene, name};

const MEMBERS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// What is drawn of one member.
#[derive(Debug, Clone)]
struct Draw {
    /// What it truly holds: nothing that it lost may have been needed elsewhere.
    held: u64,
    live: bool,
    complete: bool,
    sealed: bool,
    sealed_for_this: bool,
    may_be_promoted: bool,
}

fn draw() -> impl Strategy<Value = Draw> {
    (1..6u64, 0..8u8, 0..8u8, 0..4u8, 0..8u8, 0..6u8).prop_map(
        |(held, live, complete, sealed, number, promote)| Draw {
            held,
            live: live > 0,
            complete: complete > 0,
            sealed: sealed > 0,
            sealed_for_this: number > 0,
            may_be_promoted: promote > 0,
        },
    )
}

/// Subsets of the others as voters, with k; one to three Cfgs of a's epoch.
fn cfgs() -> impl Strategy<Value = Vec<Cfg>> {
    prop::collection::vec((1..16u8, 0..4usize), 1..4).prop_map(|drawn| {
        let cfg = |(index, (bits, k)): (usize, (u8, usize))| {
            let voters: BTreeSet<MemberName> =
                (0..4).filter(|i| bits >> i & 1 == 1).map(|i| name(MEMBERS[i + 1])).collect();
            let k = 1 + k % voters.len();
            let id = CfgId(100 + index as u64);
            Cfg { id, epoch: Epoch(1), leader: name("a"), voters, k, round: index as u32 }
        };
        drawn.into_iter().enumerate().map(cfg).collect()
    })
}

fn position(lsn: u64) -> WalPosition {
    WalPosition { epoch: Epoch(1), lsn: Lsn(0x900_0000 + lsn), timeline: Timeline(1) }
}

/// a is being replaced, and the members have said what was drawn.
fn scene(cfgs: &[Cfg], draws: &[Draw]) -> Scene {
    let mut scene = Scene::serving("a", &MEMBERS[1..]);
    let state = scene.state.as_mut().unwrap();
    state.cfgs = cfgs.to_vec();
    state.last_cfg = cfgs.last().unwrap().id;
    state.sealing = Some(Epoch(2));
    for (member, draw) in MEMBERS.iter().zip(draws) {
        let promote = if draw.may_be_promoted { Permission::Allowed } else { Permission::Never };
        scene.spec.members.insert(name(member), MemberSpec { promote, ..MemberSpec::default() });
        let report = scene.report(member);
        report.complete = draw.complete;
        report.promise = Epoch(2);
        report.server = Server::Standby { timeline: Timeline(1) };
        report.seal = draw.sealed.then(|| Seal {
            sealing: if draw.sealed_for_this { Epoch(2) } else { Epoch(1) },
            position: position(draw.held),
            replayed: Lsn(0),
            clean: true,
        });
        if !draw.live {
            scene.vanishes(member);
        }
    }
    // Longer than any patience with members that have not sealed.
    scene.pass(Duration::from_secs(1));
    scene
}

/// The most that could have been acknowledged: by the leader and any k of the voters of one Cfg,
/// who all hold it.
fn most_acknowledged(cfgs: &[Cfg], held: &BTreeMap<MemberName, u64>) -> u64 {
    let of = |cfg: &Cfg| {
        let mut voters: Vec<u64> = cfg.voters.iter().map(|v| held[v]).collect();
        voters.sort_unstable_by(|a, b| b.cmp(a));
        // The k best voters together hold what the k-th of them holds.
        held[&cfg.leader].min(voters[cfg.k - 1])
    };
    cfgs.iter().map(of).max().unwrap_or(0)
}

/// Whether those who count leave, of every Cfg, too few to acknowledge anything behind their back.
fn is_base(cfgs: &[Cfg], counted: &BTreeSet<MemberName>) -> bool {
    cfgs.iter().all(|cfg| {
        let left_out = cfg.voters.iter().filter(|v| !counted.contains(*v)).count();
        counted.contains(&cfg.leader) || left_out < cfg.k
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn who_is_promoted_holds_all_that_any_acknowledging_set_held(
        cfgs in cfgs(),
        draws in prop::collection::vec(draw(), 5),
    ) {
        let mut scene = scene(&cfgs, &draws);
        let held: BTreeMap<MemberName, u64> =
            MEMBERS.iter().zip(&draws).map(|(m, d)| (name(m), d.held)).collect();
        let counts = |d: &Draw| d.live && d.complete && d.sealed && d.sealed_for_this;
        let counted: BTreeSet<MemberName> =
            MEMBERS.iter().zip(&draws).filter(|(_, d)| counts(d)).map(|(m, _)| name(m)).collect();
        match scene.decide().verdict {
            Verdict::Change { next, .. } => {
                let chosen = next.primary.clone().unwrap();
                prop_assert!(counted.contains(&chosen));
                prop_assert_eq!(scene.spec.member(&chosen).promote, Permission::Allowed);
                prop_assert!(held[&chosen] >= most_acknowledged(&cfgs, &held), "{chosen} of {held:?}");
                prop_assert_eq!(invariant::check(scene.state.as_ref(), &next, &scene.seen), vec![]);
                prop_assert!(next.cfgs.starts_with(&cfgs), "old Cfgs stay");
            }
            Verdict::Wait(waiting) => {
                // Patience is over: only the lack of a base, or of somebody allowed who holds the
                // most, may wait.
                let allowed = MEMBERS.iter().zip(&draws).any(|(m, d)| {
                    let most = counted.iter().map(|c| held[c]).max();
                    counted.contains(&name(m)) && d.may_be_promoted && Some(d.held) == most
                });
                prop_assert!(!(is_base(&cfgs, &counted) && allowed), "waits on {waiting}");
            }
            Verdict::Record { .. } => prop_assert!(false, "no record while sealing"),
        }
    }

    #[test]
    fn the_checker_refuses_exactly_the_promotions_that_could_lose_something(
        cfgs in cfgs(),
        draws in prop::collection::vec(draw(), 5),
        chosen in 0..5usize,
    ) {
        let scene = scene(&cfgs, &draws);
        let old = scene.state();
        let mut next = old.clone();
        let member = name(MEMBERS[chosen]);
        next.number = next.number.next();
        next.epoch = Epoch(2);
        next.sealing = None;
        next.phase = proto::Phase::Promoting;
        next.primary = Some(member.clone());
        (next.timeline, next.highest_timeline) = (Timeline(2), Timeline(2));
        next.chosen = Some(position(draws[chosen].held));
        next.last_cfg = next.last_cfg.next();
        let voter = name(MEMBERS[(chosen + 1) % 5]);
        let first = Cfg { id: next.last_cfg, epoch: Epoch(2), leader: member.clone(), voters: [voter].into(), k: 1, round: 0 };
        next.cfgs.push(first);
        next.epochs.push(proto::state::EpochRecord {
            epoch: Epoch(2), timeline: Timeline(2), primary: member, parent: Some(Timeline(1)), start_lsn: None, with_loss: false,
        });
        let counts = |d: &Draw| d.live && d.complete && d.sealed && d.sealed_for_this;
        let not_beyond: BTreeSet<MemberName> = MEMBERS.iter().zip(&draws)
            .filter(|(_, d)| counts(d) && d.held <= draws[chosen].held)
            .map(|(m, _)| name(m)).collect();
        let safe = counts(&draws[chosen]) && is_base(&cfgs, &not_beyond);
        let refused = invariant::check(Some(old), &next, &scene.seen);
        prop_assert_eq!(refused.is_empty(), safe, "{:?}", refused);
    }
}
