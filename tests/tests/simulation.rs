//! The deciders on a modelled cluster: fixed seeds, each a run of some minutes that takes less than a second or two.
//! More of them, and a failing one step by step: `make sim`, see docs/simulator.md.

use std::path::Path;

use system_tests::sim::campaign::{Campaign, Enough};
use system_tests::sim::{Plan, Profile, stored};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn profile(name: &str) -> Profile {
    Profile::named(name).expect("a profile of the list")
}

/// Runs one seed and demands that no promise is broken, and that everything comes back.
fn keeps_every_promise(name: &str, seed: u64) {
    let outcome = Plan::new(seed, profile(name)).run();
    assert!(
        outcome.violations.is_empty(),
        "{:?}: make sim SEED={seed} PROFILE={name} TRACE=1",
        outcome.violations
    );
    assert!(outcome.refusals.is_empty(), "seed {seed} ({name}): {:?}", outcome.refusals);
}

/// How many runs each commit makes: a fourth of them aim, and of every profile there are 37 more.
const SEEDS: u64 = 1200;

/// What these runs reach of the pairs of fault and phase and of the deciders' branches; more is welcome, fewer is a hole.
const CELLS: usize = 342;

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let torment = 40_000_000;
        let outcome = Plan::new(seed, Profile { torment, ..profile("heavy") }).run();
        (outcome.hash, outcome.events)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn without_a_fault_nothing_happens_but_commits() {
    let outcome = Plan::new(1, profile("calm")).run();
    assert!(outcome.violations.is_empty(), "{:?}", outcome.violations);
    assert_eq!((outcome.counts.failovers, outcome.counts.restarts), (0, 0));
    assert!(outcome.counts.commits > 500, "{} commits", outcome.counts.commits);
}

/// Every profile in turn, on every core. More of it: `make sim HOURS=`, and `make sim-long`.
#[test]
fn no_promise_is_broken_whatever_goes_wrong() {
    let mut broken = Vec::new();
    let sum = Campaign::new(1, Enough::Seeds(SEEDS)).run(|plan, outcome| {
        let (seed, name) = (plan.seed, plan.profile.name);
        let problems = outcome.violations.iter().map(|v| format!("{}: {}", v.invariant, v.text));
        for problem in problems.chain(outcome.refusals.iter().cloned()) {
            broken.push(format!("{problem}\n  make sim SEED={seed} PROFILE={name} TRACE=1"));
        }
    });
    println!("{}", sum.line());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let reached = sum.reached(1);
    assert!(reached >= CELLS, "{reached} cells are reached, {CELLS} were before");
}

/// What once broke a promise, with the few faults that were enough.
#[test]
fn runs_that_once_failed_keep_every_promise() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let mut runs = 0;
    // Those of open holes lie in a directory beside them.
    let stored = std::fs::read_dir(seeds).expect("the stored runs").flatten();
    for file in stored.filter(|file| file.path().is_file()) {
        let text = std::fs::read_to_string(file.path()).expect("a stored run");
        let plan = stored::read(&text).unwrap_or_else(|e| panic!("{}: {e}", file.path().display()));
        let outcome = plan.run();
        assert!(
            outcome.violations.is_empty(),
            "{}: {:?}",
            file.path().display(),
            outcome.violations
        );
        runs += 1;
    }
    assert!(runs > 0, "the stored runs are gone");
}

/// Seeds after which members waited for one another for ever, each for a reason of its own: all voters past the fork and
/// needed still by older Cfgs; a primary that was started closed, and voters that had to be rewound from an open one; a
/// member that counted as dead because its last report had been put without its knowing.
#[test]
fn members_that_waited_for_one_another_come_back() {
    for (name, seed) in [("network", 3), ("network", 314), ("heavy", 304)] {
        keeps_every_promise(name, seed);
    }
}

/// Which seed finds a mistake changes with every change of the product; that one of a few does, does not.
#[test]
fn the_oracles_find_mistakes() {
    for (mutant, name, invariants) in [
        ("restart-opens-at-once", "heavy", &["I10"][..]),
        ("names-empty-on-standbys", "heavy", &["I8"]),
        ("cfg-dropped-to-cancel", "heavy", &["I3"]),
        ("keepalive-alone-renews", "network", &["I17"]),
        ("promote-the-least", "heavy", &["I1", "I2", "I12"]),
        ("promote-any-live-standby", "heavy", &["I1", "I2", "I12"]),
    ] {
        let found = (1..=12).find_map(|seed| {
            let mut plan = Plan::new(seed, profile(name));
            plan.mutant = Some(mutant.to_owned());
            plan.run().violations.first().map(|v| v.invariant)
        });
        assert!(found.is_some_and(|i| invariants.contains(&i)), "{mutant}: {found:?}");
    }
}
