//! Runs the model checker: `model` as every commit does, `model --long`, `model --mutants`, or `model --mutant NAME`.

use std::process::ExitCode;
use std::time::Duration;

use system_tests::model::Bounds;
use system_tests::model::run::{CHANGE, LIVES, LONG, Outcome, SHORT, check};
use system_tests::mutants::{MUTANTS, Mutant};

const USAGE: &str = "usage: model [--long] [--mutants] [--mutant NAME] [--minutes N] [--bounds FAILOVERS,CHANGES,RESTARTS,COMMITS,CRASHES,LAPSES,LATE,SILENCES[,late-reports]]";

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            ExitCode::from(64)
        }
    }
}

/// Returns whether all is as it should be.
fn run(mut words: impl Iterator<Item = String>) -> Result<bool, String> {
    let (mut bounds, mut minutes, mut mutant, mut all) =
        (vec![SHORT, LIVES, CHANGE], 10, None, false);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--long" => bounds = vec![LONG],
            "--bounds" => {
                let text = value()?;
                let parsed = Bounds::parse(&text);
                bounds = vec![parsed.ok_or_else(|| format!("{text:?} are no bounds"))?];
            }
            "--mutants" => all = true,
            "--mutant" => mutant = Some(value()?),
            "--minutes" => {
                minutes = value()?.parse::<u64>().map_err(|e| format!("--minutes: {e}"))?;
            }
            other => return Err(format!("{other:?} is not known")),
        }
    }
    let patience = Duration::from_secs(60 * minutes);
    if all {
        return Ok(mutants(patience));
    }
    let Some(name) = mutant else {
        return Ok(exhaust(&bounds, patience));
    };
    let known = modelled().find(|(m, _)| m.name == name);
    let (known, bounds) = known.ok_or_else(|| {
        let names: Vec<&str> = modelled().map(|(m, _)| m.name).collect();
        format!("mutants are {}", names.join(", "))
    })?;
    let outcome = check(bounds, Some(known.name), patience);
    tell(&outcome);
    println!("{outcome}");
    Ok(!outcome.violations.is_empty())
}

/// Returns whether all is exhausted and kept. Goes on behind a bound that is not.
fn exhaust(bounds: &[Bounds], patience: Duration) -> bool {
    let mut exhausted = true;
    for bounds in bounds {
        let outcome = check(*bounds, None, patience);
        tell(&outcome);
        println!("{outcome}");
        exhausted &= outcome.exhausted;
    }
    exhausted
}

fn tell(outcome: &Outcome) {
    for (promise, steps) in &outcome.violations {
        println!("{promise}:");
        steps.iter().for_each(|step| println!("  {step}"));
    }
    for witness in &outcome.missing {
        println!("never reached: {witness}");
    }
    println!(
        "{} decisions of the product in {:.1} s",
        outcome.decisions,
        outcome.took.as_secs_f64()
    );
}

fn modelled() -> impl Iterator<Item = (&'static Mutant, Bounds)> {
    MUTANTS.iter().filter_map(|m| Some((m, m.model.as_ref()?.bounds)))
}

fn mutants(patience: Duration) -> bool {
    let mut killed = 0;
    for (mutant, bounds) in modelled() {
        let outcome = check(bounds, Some(mutant.name), patience);
        match outcome.violations.first() {
            Some((promise, steps)) => {
                killed += 1;
                let (steps, took) = (steps.len(), outcome.took.as_secs_f64());
                println!("{}: {promise}, {steps} steps, {took:.1} s", mutant.name);
            }
            None => println!("{}: NOT FOUND in {} states", mutant.name, outcome.states),
        }
    }
    let total = modelled().count();
    println!("mutants: killed={killed} total={total}");
    killed == total
}
