//! Runs the simulator: `sim --seed N`, or many seeds for `--hours H` of simulated time.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use system_tests::model::run::check;
use system_tests::mutants::{MUTANTS, Mutant};
use system_tests::sim::campaign::{Campaign, Enough, Sum};
use system_tests::sim::faults::Fault;
use system_tests::sim::run::Plan;
use system_tests::sim::{Outcome, PROFILES, Profile, cells, long, stored};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: sim [--seed N] [--seeds N | --hours H] [--profile P] [--jobs N] [--mutant M] [--trace] [--cells]
           [--mutants] [--file F] [--long F]";

struct Asked {
    campaign: Campaign,
    seeds: u64,
    trace: bool,
    cells: bool,
    mutants: bool,
    file: Option<String>,
    long: Option<String>,
    hours: f64,
}

fn main() -> ExitCode {
    match asked(std::env::args().skip(1)) {
        Ok(asked) if asked.mutants => hunt(&asked),
        Ok(asked) => match &asked.file {
            Some(file) => again(&asked, file),
            None if asked.long.is_some() => long_search(&asked),
            None => simulate(&asked),
        },
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            ExitCode::from(64)
        }
    }
}

fn asked(mut words: impl Iterator<Item = String>) -> Result<Asked, String> {
    let campaign = Campaign::new(1, Enough::Seeds(1));
    let mut asked = Asked {
        campaign,
        seeds: 1,
        trace: false,
        cells: false,
        mutants: false,
        file: None,
        long: None,
        hours: 1.0,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
        let campaign = &mut asked.campaign;
        match word.as_str() {
            "--seed" => campaign.first = number(value()?)?,
            "--seeds" => {
                asked.seeds = number(value()?)?;
                campaign.enough = Enough::Seeds(asked.seeds);
            }
            "--hours" => {
                let text = value()?;
                asked.hours = text.parse().map_err(|e| format!("{text:?}: {e}"))?;
                campaign.enough = Enough::Hours(asked.hours);
            }
            "--jobs" => campaign.jobs = number(value()?)? as usize,
            "--profile" => {
                let known = Profile::named(&value()?);
                campaign.profile =
                    Some(known.ok_or_else(|| format!("profiles are {}", PROFILES.join(", ")))?);
            }
            "--mutant" => campaign.mutant = Some(value()?),
            "--file" => asked.file = Some(value()?),
            "--long" => asked.long = Some(value()?),
            "--trace" => asked.trace = true,
            "--cells" => asked.cells = true,
            "--mutants" => asked.mutants = true,
            _ => return Err(format!("{word}: unknown")),
        }
    }
    asked.campaign.keep_trace = asked.trace;
    Ok(asked)
}

fn simulate(asked: &Asked) -> ExitCode {
    let mut broken = Vec::new();
    let sum = asked.campaign.run(|plan, outcome| {
        tell(plan, outcome, asked.trace);
        if !outcome.violations.is_empty() && !asked.trace {
            broken.push((plan.clone(), outcome.violations[0].invariant, outcome.simulated));
        }
    });
    for (plan, invariant, until) in broken.iter().take(3) {
        shrink(plan, invariant, *until);
    }
    sum_up(&sum, asked.cells)
}

/// Each cell has to be reached so often in a search of many hours.
const OFTEN: u64 = 100;

fn long_search(asked: &Asked) -> ExitCode {
    let file = PathBuf::from(asked.long.clone().unwrap_or_default());
    let searched = long::search(&asked.campaign, &file, asked.hours, |plan, outcome| {
        tell(plan, outcome, false);
    });
    let sum = match searched {
        Ok(sum) => sum,
        Err(problem) => {
            eprintln!("{}: {problem}", file.display());
            return ExitCode::FAILURE;
        }
    };
    let rare = long::rare(&sum, OFTEN);
    for (cell, count) in &rare {
        println!("{count:8}  {cell}, fewer than {OFTEN} times");
    }
    let ended = sum_up(&sum, asked.cells);
    if rare.is_empty() { ended } else { ExitCode::FAILURE }
}

/// Runs what a file holds.
fn again(asked: &Asked, file: &str) -> ExitCode {
    let read = std::fs::read_to_string(file).map_err(|e| e.to_string());
    let mut plan = match read.and_then(|text| stored::read(&text)) {
        Ok(plan) => plan,
        Err(problem) => {
            eprintln!("{file}: {problem}");
            return ExitCode::from(64);
        }
    };
    plan.keep_trace = asked.trace;
    plan.mutant.clone_from(&asked.campaign.mutant);
    let outcome = plan.run();
    tell(&plan, &outcome, asked.trace);
    let mut sum = Sum::default();
    sum.add(&outcome);
    sum_up(&sum, asked.cells)
}

fn sum_up(sum: &Sum, cells: bool) -> ExitCode {
    if cells {
        for cell in cells::all() {
            println!("{:8}  {cell}", sum.cells.get(&cell).copied().unwrap_or(0));
        }
    }
    println!("{}", sum.line());
    if sum.violations == 0 && sum.refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(plan: &Plan, outcome: &Outcome, trace: bool) {
    if trace {
        plan.faults().iter().for_each(|fault| println!("fault {fault}"));
        outcome.lines.iter().for_each(|line| println!("{line}"));
        println!("hash {:016x}, well after {:?} us", outcome.hash, outcome.healed_in);
    }
    let (seed, profile) = (plan.seed, plan.profile.name);
    for refusal in &outcome.refusals {
        println!("seed {seed} ({profile}): refused: {refusal}");
    }
    for violation in &outcome.violations {
        let at = outcome.simulated as f64 / 1e6;
        let (invariant, text) = (violation.invariant, &violation.text);
        println!("seed {seed} ({profile}): {invariant} at {at:.3} s: {text}");
        println!("  replay: make sim SEED={seed} PROFILE={profile} TRACE=1");
    }
}

/// Tries with fewer and fewer faults what still breaks the same invariant.
fn shrink(plan: &Plan, wanted: &str, until: u64) {
    let mut faults: Vec<Fault> = plan.faults().into_iter().filter(|f| f.at <= until).collect();
    let breaks = |faults: &[Fault]| {
        let plan = Plan { faults: Some(faults.to_vec()), ..plan.clone() };
        plan.run().violations.first().is_some_and(|v| v.invariant == wanted)
    };
    let mut part = faults.len().div_ceil(2).max(1);
    let mut tries = 0;
    while part >= 1 && tries < 80 {
        let mut at = 0;
        while at < faults.len() && tries < 80 {
            let mut fewer = faults.clone();
            fewer.drain(at..(at + part).min(faults.len()));
            tries += 1;
            if breaks(&fewer) {
                faults = fewer;
            } else {
                at += part;
            }
        }
        if part == 1 {
            break;
        }
        part = part.div_ceil(2);
    }
    let plan = Plan { faults: Some(faults), ..plan.clone() };
    println!("# {wanted}: {} faults are enough (sim --file)", plan.faults().len());
    print!("{}", stored::write(&plan));
}

/// How long the model checker looks for one mistake.
const MODEL_AT_MOST: Duration = Duration::from_secs(300);
/// From how many seeds, or steps of the model, on a mistake is hard to find.
const HARD_SEEDS: u64 = 1_000;
const HARD_STEPS: usize = 10;

/// Looks for each mutant until it is found or the seeds are used up, and in the model where that has it.
fn hunt(asked: &Asked) -> ExitCode {
    let wanted = &asked.campaign.mutant;
    let chosen = || MUTANTS.iter().filter(|m| wanted.as_ref().is_none_or(|n| n == m.name));
    let (mut killed, mut hard) = (0, 0);
    for mutant in chosen() {
        let began = store::clock::now();
        let found = mutant.hunt(asked.campaign.first, asked.seeds, asked.campaign.jobs);
        let modelled = modelled(mutant);
        let took = store::clock::now().since(began).as_secs_f64();
        let tried = |seed| seed + 1 - asked.campaign.first;
        let many_seeds = found.as_ref().is_some_and(|k| tried(k.seed) > HARD_SEEDS);
        let many_steps = modelled.as_ref().is_some_and(|(_, steps)| *steps > HARD_STEPS);
        hard += usize::from(many_seeds || many_steps);
        let by_seed = found.map(|k| (k.invariant, format!("{} seed {}", k.profile, k.seed)));
        let by_steps = modelled.map(|(promise, steps)| (promise, format!("model, {steps} steps")));
        let kills: Vec<_> = by_seed.into_iter().chain(by_steps).collect();
        killed += usize::from(!kills.is_empty());
        let told =
            |text: Vec<&str>| if text.is_empty() { "survives".into() } else { text.join("; ") };
        let broken = told(kills.iter().map(|(invariant, _)| *invariant).collect());
        let by = kills.iter().map(|(_, by)| by.as_str()).collect::<Vec<_>>().join("; ");
        println!("| `{}` | {} | {broken} | {by} | {took:.0} |", mutant.name, mutant.what);
    }
    let total = chosen().count();
    println!("hard (over {HARD_SEEDS} seeds, or {HARD_STEPS} steps): {hard}");
    println!("mutants: killed={killed} total={total}");
    if killed == total { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns the promise that the model shows to be broken, and after how many steps.
fn modelled(mutant: &Mutant) -> Option<(&'static str, usize)> {
    let outcome = check(mutant.model.as_ref()?.bounds, Some(mutant.name), MODEL_AT_MOST);
    let (promise, steps) = outcome.violations.first()?;
    Some((promise.split(' ').next().unwrap_or(promise), steps.len()))
}
