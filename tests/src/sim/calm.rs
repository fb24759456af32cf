//! Calm: no fault is in force, and the record has not changed for a while. Most of the time of most runs is calm, and all that is
//! done then is to look again and again at what is the same: whoever does that rests longer then.
//!
//! The one rule: as soon as something happens everybody is as quick again as in the product, and not all at one moment.

use std::time::Duration;

use super::executor::{Micros, Sim, micros};
use super::net::Host;
use super::rng::Stream;
use super::world::World;

/// Nothing has happened for so long before it is calm: longer than a lease, so that what follows from a lost one is none.
const CALM_AFTER: Micros = 5_000_000;

/// Between two looks of whoever looks again and again, while it is calm.
pub const LOOK: Duration = Duration::from_secs(1);

/// How much has happened.
#[derive(Debug, Default)]
pub struct Stir {
    /// Faults that are in force.
    faults: u32,
    /// When a fault began or ended last, or the record changed.
    last: Micros,
}

impl World {
    /// Notes that something has just happened, for whoever rests.
    pub fn stir(&mut self, now: Micros) {
        self.stir.last = now;
        self.moves.notify_waiters();
    }

    pub fn fault_begins(&mut self, now: Micros) {
        self.stir.faults += 1;
        self.stir(now);
    }

    pub fn fault_ends(&mut self, now: Micros) {
        self.stir.faults = self.stir.faults.saturating_sub(1);
        self.stir(now);
    }

    fn is_calm(&self, now: Micros) -> bool {
        self.profile.pace.is_some() && self.stir.faults == 0 && now > self.stir.last + CALM_AFTER
    }
}

impl Sim {
    /// Sleeps for `pause`; while it is calm for `calm`, or until that ends.
    pub async fn rest(&self, pause: Micros, calm: Micros) {
        if !self.rested(pause, calm).await {
            self.sleep(pause).await;
        }
    }

    async fn rested(&self, pause: Micros, calm: Micros) -> bool {
        let now = self.now();
        let moves = self.with(|w| w.is_calm(now).then(|| w.moves.clone()));
        let Some(moves) = moves else { return false };
        if self.within(calm, moves.notified()).await.is_some() {
            self.sleep(self.between(Stream::Pace, 0, pause)).await;
        }
        true
    }
}

impl Host {
    /// The same, where `pause` is of this clock.
    pub async fn rest(&self, pause: Duration, calm: Duration) {
        if !self.sim.rested(micros(pause), micros(calm)).await {
            self.sleep(pause).await;
        }
    }
}
