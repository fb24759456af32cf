//! Looks for deliberate mistakes: seed after seed, until an oracle cries.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::executor::Micros;
use super::profiles::Profile;
use super::run::Plan;
use crate::mutants::Mutant;

/// The run that found a mistake.
pub struct Kill {
    pub seed: u64,
    pub profile: &'static str,
    pub invariant: &'static str,
    pub simulated: Micros,
}

impl Mutant {
    /// Looks for the first seed that finds it, in its profile, on `jobs` cores.
    pub fn hunt(&self, first: u64, seeds: u64, jobs: usize) -> Option<Kill> {
        let next = AtomicU64::new(first);
        let found: Mutex<Option<Kill>> = Mutex::new(None);
        let known = || found.lock().unwrap_or_else(PoisonError::into_inner);
        std::thread::scope(|scope| {
            for _ in 0..jobs.max(1) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let is_beaten = known().as_ref().is_some_and(|kill| kill.seed < seed);
                        if seed >= first + seeds || is_beaten {
                            return;
                        }
                        if let Some(kill) = self.tried(seed) {
                            let mut known = known();
                            if known.as_ref().is_none_or(|other| kill.seed < other.seed) {
                                *known = Some(kill);
                            }
                        }
                    }
                });
            }
        });
        found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seed that fails anyway shows nothing.
    fn tried(&self, seed: u64) -> Option<Kill> {
        let profile = self.profiles[(seed % self.profiles.len() as u64) as usize];
        let mut plan = Plan::new(seed, Profile::named(profile).expect("a profile of the list"));
        plan.mutant = Some(self.name.to_owned());
        let outcome = plan.run();
        let invariant = outcome.violations.first()?.invariant;
        plan.mutant = None;
        let sound = plan.run().violations.is_empty();
        let simulated = outcome.simulated;
        sound.then_some(Kill { seed, profile, invariant, simulated })
    }
}
