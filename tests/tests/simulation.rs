//! The deciders on a modelled cluster: fixed seeds, each a run of some minutes that takes less than a second or two.
//! More of them, and a failing one step by step: `make sim`, see docs/simulator.md.

use system_tests::sim::{Plan, Profile};

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

#[test]
fn no_promise_is_broken_whatever_goes_wrong() {
    for (name, seeds) in [
        ("heavy", 1..=4),
        ("crash", 1..=2),
        ("network", 1..=2),
        ("freeze", 1..=2),
        ("store", 1..=2),
    ] {
        for seed in seeds {
            keeps_every_promise(name, seed);
        }
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
        ("promote-the-least", "heavy", &["I1", "I2"]),
        ("promote-any-live-standby", "heavy", &["I1", "I2"]),
    ] {
        let found = (1..=12).find_map(|seed| {
            let mut plan = Plan::new(seed, profile(name));
            plan.mutant = Some(mutant.to_owned());
            plan.run().violations.first().map(|v| v.invariant)
        });
        assert!(found.is_some_and(|i| invariants.contains(&i)), "{mutant}: {found:?}");
    }
}
