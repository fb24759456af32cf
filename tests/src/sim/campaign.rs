//! Many runs: seed after seed on every core, and what they add up to.
//!
//! The one rule: a run depends on its seed and profile alone, so that what a campaign finds is found again by one run.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::cells::{self, Cell};
use super::profiles::{PROFILES, Profile};
use super::run::{Outcome, Plan};

/// When a campaign ends.
#[derive(Debug, Clone, Copy)]
pub enum Enough {
    Seeds(u64),
    /// So many simulated hours; runs that are under way are finished.
    Hours(f64),
}

/// Which runs.
#[derive(Debug, Clone)]
pub struct Campaign {
    pub first: u64,
    pub enough: Enough,
    /// One for all seeds; else each seed has the next one.
    pub profile: Option<Profile>,
    pub mutant: Option<String>,
    pub keep_trace: bool,
    pub jobs: usize,
}

impl Campaign {
    /// Makes one from `first` on, on every core.
    pub fn new(first: u64, enough: Enough) -> Self {
        let jobs = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self { first, enough, profile: None, mutant: None, keep_trace: false, jobs }
    }

    /// Returns the run of a seed.
    pub fn plan(&self, seed: u64) -> Plan {
        // Faults that lie in wait meet phases of milliseconds: every fourth run has them.
        let tormenting = &PROFILES[1..];
        let turn = match seed % 4 {
            0 => "aimed",
            _ => tormenting[((seed - seed / 4) % tormenting.len() as u64) as usize],
        };
        let of_turn = || Profile::named(turn).expect("a name of the list");
        let mut plan = Plan::new(seed, self.profile.clone().unwrap_or_else(of_turn));
        plan.mutant.clone_from(&self.mutant);
        plan.keep_trace = self.keep_trace;
        plan
    }

    /// Runs them; `tell` hears of each as it ends, in no particular order.
    pub fn run(&self, tell: impl FnMut(&Plan, &Outcome) + Send) -> Sum {
        let next = AtomicU64::new(self.first);
        let shared = Mutex::new((Sum::default(), tell));
        let is_enough = |sum: &Sum, seed: u64| match self.enough {
            Enough::Seeds(seeds) => seed >= self.first + seeds,
            Enough::Hours(hours) => sum.hours() >= hours,
        };
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let known = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        if is_enough(&known.0, seed) {
                            return;
                        }
                        drop(known);
                        let plan = self.plan(seed);
                        let outcome = plan.run();
                        let mut known = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        let (sum, tell) = &mut *known;
                        sum.add(&outcome);
                        tell(&plan, &outcome);
                    }
                });
            }
        });
        shared.into_inner().unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What runs add up to.
#[derive(Debug, Default, Clone)]
pub struct Sum {
    pub runs: u64,
    pub simulated: u64,
    pub failovers: u64,
    pub faults: u64,
    pub commits: u64,
    pub violations: u64,
    pub refused: u64,
    pub events: u64,
    pub cells: BTreeMap<Cell, u64>,
}

impl Sum {
    /// Adds one run.
    pub fn add(&mut self, outcome: &Outcome) {
        let counts = &outcome.counts;
        self.runs += 1;
        self.simulated += outcome.simulated;
        self.failovers += counts.failovers;
        self.faults += counts.faults;
        self.commits += counts.commits;
        self.refused += counts.refused;
        self.violations += u64::from(!outcome.violations.is_empty());
        self.events += outcome.events;
        for (cell, count) in &counts.cells {
            *self.cells.entry(cell.clone()).or_default() += count;
        }
    }

    /// Adds what another campaign came to.
    pub fn merge(&mut self, other: &Sum) {
        self.runs += other.runs;
        self.simulated += other.simulated;
        self.failovers += other.failovers;
        self.faults += other.faults;
        self.commits += other.commits;
        self.refused += other.refused;
        self.violations += other.violations;
        self.events += other.events;
        for (cell, count) in &other.cells {
            *self.cells.entry(cell.clone()).or_default() += count;
        }
    }

    pub fn hours(&self) -> f64 {
        self.simulated as f64 / 3.6e9
    }

    /// Returns how many of the cells that there are were reached at least `times` times.
    pub fn reached(&self, times: u64) -> usize {
        cells::all().iter().filter(|c| self.cells.get(*c).is_some_and(|n| *n >= times)).count()
    }

    /// The line that scripts read.
    pub fn line(&self) -> String {
        format!(
            "sim: hours={:.2} failovers={} faults={} commits={} violations={} cells={}/{}",
            self.hours(),
            self.failovers,
            self.faults,
            self.commits,
            self.violations,
            self.reached(1),
            cells::all().len()
        )
    }
}
