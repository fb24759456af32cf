//! The deciders under the model checker: every order of events within the bounds. See docs/model.md.

use std::time::Duration;

use system_tests::model::run::{CHANGE, LIVES, SHORT, check};
use system_tests::mutants::{MUTANTS, Modelled};

/// Far above what it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(400);

/// One failover; what a change of the voters would show is left to the next test.
#[test]
fn no_order_of_events_around_a_failover_breaks_a_promise() {
    let outcome = check(SHORT, None, PATIENCE);
    println!("{outcome}");
    assert!(outcome.violations.is_empty(), "{:?}", outcome.violations);
    assert!(outcome.exhausted, "not exhausted within {PATIENCE:?}");
    assert_eq!(outcome.missing, ["a Cfg is replaced within an epoch"], "never reached");
}

/// One failover of a primary that is not dead: cut off, or frozen and thawed at any time.
#[test]
fn no_order_of_events_around_a_failover_of_a_primary_that_lives_breaks_a_promise() {
    let outcome = check(LIVES, None, PATIENCE);
    println!("{outcome}");
    assert!(outcome.violations.is_empty(), "{:?}", outcome.violations);
    assert!(outcome.exhausted, "not exhausted within {PATIENCE:?}");
    assert_eq!(outcome.missing, ["a Cfg is replaced within an epoch"], "never reached");
}

#[test]
#[ignore = "part of make test-long"]
fn no_order_of_events_around_a_change_of_the_voters_breaks_a_promise() {
    let outcome = check(CHANGE, None, PATIENCE);
    println!("{outcome}");
    assert!(outcome.violations.is_empty(), "{:?}", outcome.violations);
    assert!(outcome.exhausted, "not exhausted within {PATIENCE:?}");
    assert!(!outcome.missing.contains(&"a Cfg is replaced within an epoch"), "never reached");
}

#[test]
#[ignore = "minutes: part of make test-long"]
fn deliberate_mistakes_are_found() {
    let (mut missed, mut total) = (Vec::new(), 0);
    let modelled = MUTANTS.iter().filter_map(|m| Some((m.name, m.model.as_ref()?)));
    for (name, Modelled { bounds, breaks }) in modelled {
        total += 1;
        let outcome = check(*bounds, Some(name), PATIENCE);
        let found: Vec<String> = outcome
            .violations
            .iter()
            .map(|(promise, steps)| format!("{promise} ({} steps)", steps.len()))
            .collect();
        println!("{name}: {} after {} states", found.join(", "), outcome.states);
        let mut numbers =
            outcome.violations.iter().filter_map(|(promise, _)| promise.split(' ').next());
        if !numbers.any(|number| breaks.contains(&number)) {
            missed.push(name);
        }
    }
    println!("mutants: killed={} total={total}", total - missed.len());
    assert_eq!(missed, Vec::<&str>::new());
}
