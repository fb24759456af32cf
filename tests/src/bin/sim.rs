//! Runs the simulator: `sim --seed N`, or many seeds for `--hours H` of simulated time.

use std::collections::BTreeMap;
use std::process::ExitCode;

use system_tests::sim::faults::Fault;
use system_tests::sim::mutants::MUTANTS;
use system_tests::sim::run::Plan;
use system_tests::sim::{Outcome, PROFILES, Profile};

const USAGE: &str = "usage: sim [--seed N] [--seeds N | --hours H] [--profile P] [--mutant M] [--trace] [--cells] [--mutants]";

struct Asked {
    seed: u64,
    seeds: u64,
    hours: Option<f64>,
    profile: Option<Profile>,
    mutant: Option<String>,
    trace: bool,
    cells: bool,
    mutants: bool,
}

fn main() -> ExitCode {
    match asked(std::env::args().skip(1)) {
        Ok(asked) if asked.mutants => hunt(&asked),
        Ok(asked) => simulate(&asked),
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            ExitCode::from(64)
        }
    }
}

fn asked(mut words: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut asked = Asked {
        seed: 1,
        seeds: 1,
        hours: None,
        profile: None,
        mutant: None,
        trace: false,
        cells: false,
        mutants: false,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
        match word.as_str() {
            "--seed" => asked.seed = number(value()?)?,
            "--seeds" => asked.seeds = number(value()?)?,
            "--hours" => {
                let text = value()?;
                asked.hours = Some(text.parse().map_err(|e| format!("{text:?}: {e}"))?);
            }
            "--profile" => {
                let name = value()?;
                let known = Profile::named(&name);
                asked.profile =
                    Some(known.ok_or_else(|| format!("profiles are {}", PROFILES.join(", ")))?);
            }
            "--mutant" => asked.mutant = Some(value()?),
            "--trace" => asked.trace = true,
            "--cells" => asked.cells = true,
            "--mutants" => asked.mutants = true,
            _ => return Err(format!("{word}: unknown")),
        }
    }
    Ok(asked)
}

#[derive(Default)]
struct Sum {
    simulated: u64,
    failovers: u64,
    faults: u64,
    commits: u64,
    violations: u64,
    refused: u64,
    events: u64,
    cells: BTreeMap<(String, String), u64>,
    branches: BTreeMap<String, u64>,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.simulated += outcome.simulated;
        self.failovers += outcome.counts.failovers;
        self.faults += outcome.counts.faults;
        self.commits += outcome.counts.commits;
        self.refused += outcome.counts.refused;
        self.violations += u64::from(!outcome.violations.is_empty());
        self.events += outcome.events;
        for (cell, count) in &outcome.counts.cells {
            *self.cells.entry(cell.clone()).or_default() += count;
        }
        for (branch, count) in &outcome.counts.branches {
            *self.branches.entry(branch.clone()).or_default() += count;
        }
    }

    fn hours(&self) -> f64 {
        self.simulated as f64 / 3.6e9
    }

    /// The profile of a seed that asks for none: each in turn.
    fn tell(&self, cells: bool) {
        if cells {
            for ((fault, phase), count) in &self.cells {
                println!("{count:8}  {fault} x {phase}");
            }
            for (branch, count) in &self.branches {
                println!("{count:8}  {branch}");
            }
        }
        println!(
            "sim: hours={:.2} failovers={} faults={} commits={} events={} refused={} violations={} cells={}",
            self.hours(),
            self.failovers,
            self.faults,
            self.commits,
            self.events,
            self.refused,
            self.violations,
            self.cells.len()
        );
    }
}

fn profile_of(asked: &Asked, seed: u64) -> Profile {
    let tormenting = &PROFILES[1..];
    let name = tormenting[(seed % tormenting.len() as u64) as usize];
    asked.profile.clone().unwrap_or_else(|| Profile::named(name).expect("a name of the list"))
}

fn simulate(asked: &Asked) -> ExitCode {
    let mut sum = Sum::default();
    let mut seed = asked.seed;
    loop {
        let mut plan = Plan::new(seed, profile_of(asked, seed));
        plan.mutant = asked.mutant.clone();
        plan.keep_trace = asked.trace;
        let outcome = plan.run();
        if asked.trace {
            plan.faults().iter().for_each(|fault| println!("fault {fault}"));
            outcome.lines.iter().for_each(|line| println!("{line}"));
        }
        sum.add(&outcome);
        if asked.trace {
            println!("hash {:016x}, well after {:?} us", outcome.hash, outcome.healed_in);
        }
        tell(&plan, &outcome);
        if !outcome.violations.is_empty() && !asked.trace {
            shrink(&plan, &outcome);
        }
        seed += 1;
        let enough = match asked.hours {
            Some(hours) => sum.hours() >= hours,
            None => seed >= asked.seed + asked.seeds,
        };
        if enough {
            break;
        }
    }
    sum.tell(asked.cells);
    if sum.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(plan: &Plan, outcome: &Outcome) {
    for refusal in &outcome.refusals {
        println!("seed {} ({}): refused: {refusal}", plan.seed, plan.profile.name);
    }
    for violation in &outcome.violations {
        println!(
            "seed {} ({}): {} at {:.3} s: {}",
            plan.seed,
            plan.profile.name,
            violation.invariant,
            outcome.simulated as f64 / 1e6,
            violation.text
        );
        println!("  replay: make sim SEED={} PROFILE={} TRACE=1", plan.seed, plan.profile.name);
    }
}

/// Tries with fewer and fewer faults what still breaks the same invariant.
fn shrink(plan: &Plan, broken: &Outcome) {
    let wanted = broken.violations[0].invariant;
    let mut faults: Vec<Fault> =
        plan.faults().into_iter().filter(|f| f.at <= broken.simulated).collect();
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
    println!("  {} faults are enough:", faults.len());
    faults.iter().for_each(|fault| println!("    {fault}"));
}

/// Looks for each mutant until it is found or the seeds are used up.
fn hunt(asked: &Asked) -> ExitCode {
    let mut killed = 0;
    for mutant in MUTANTS.iter().filter(|m| asked.mutant.as_ref().is_none_or(|n| n == m.name)) {
        let profile = Profile::named(mutant.profile).expect("a profile of the list");
        let found = (asked.seed..asked.seed + asked.seeds).find_map(|seed| {
            let mut plan = Plan::new(seed, profile.clone());
            plan.mutant = Some(mutant.name.to_owned());
            let outcome = plan.run();
            let violation = outcome.violations.first()?.clone();
            // A seed that fails anyway shows nothing.
            let sound = Plan::new(seed, profile.clone()).run().violations.is_empty();
            sound.then_some((seed, violation, outcome.simulated))
        });
        match found {
            Some((seed, violation, at)) => {
                killed += 1;
                println!(
                    "| {} | {} | {} | {} seed {seed}, {:.1} s |",
                    mutant.name,
                    mutant.what,
                    violation.invariant,
                    mutant.profile,
                    at as f64 / 1e6
                );
            }
            None => {
                println!("| {} | {} | survives | {} |", mutant.name, mutant.what, mutant.profile)
            }
        }
    }
    println!("mutants: killed={killed} total={}", MUTANTS.len());
    ExitCode::SUCCESS
}
