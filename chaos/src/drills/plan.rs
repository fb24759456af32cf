//! Which faults a run strikes, in which order.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::fault::{ALL, Class, Fault};

/// At least one fault of every class, those first whose loss is likeliest: what every change is drilled with.
pub const USUAL: [Fault; 24] = [
    Fault::Crash,
    Fault::Member,
    Fault::Freeze,
    Fault::Standby,
    Fault::StandbyFreeze,
    Fault::CutPeers,
    Fault::Backend,
    Fault::Walreceiver,
    Fault::Keeper,
    Fault::Fencer,
    Fault::EtcdLeader,
    Fault::EtcdFreeze,
    Fault::EtcdFull,
    Fault::Sentinel,
    Fault::SentinelAndMember,
    Fault::CrashTwice,
    Fault::Haproxy,
    Fault::ProxyConfig,
    Fault::Connections,
    Fault::Stranger,
    Fault::DiskFull,
    Fault::Processor,
    Fault::Switchover,
    Fault::Stop,
];

/// Returns as many faults as asked for in an order that hangs on the seed alone. None comes a second time before all
/// others have come as often.
pub fn random(seed: u64, count: usize) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut plan = Vec::with_capacity(count);
    while plan.len() < count {
        let mut round = ALL.map(|entry| entry.fault);
        round.shuffle(&mut random);
        plan.extend(round.into_iter().take(count - plan.len()));
    }
    plan
}

/// Returns the classes that these faults are of.
pub fn classes(plan: impl IntoIterator<Item = Fault>) -> BTreeSet<Class> {
    plan.into_iter().map(|fault| fault.entry().class).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_plan_has_every_class_that_the_catalogue_has() {
        let all = classes(ALL.map(|entry| entry.fault));
        assert_eq!(classes(USUAL), all);
        assert!(all.len() >= 12);
    }

    #[test]
    fn a_random_plan_hangs_on_its_seed_and_leaves_nothing_out() {
        assert_eq!(random(7, 100), random(7, 100));
        assert_ne!(random(7, 100), random(8, 100));
        let plan = random(7, 2 * ALL.len() + 3);
        for entry in &ALL {
            let times = plan.iter().filter(|fault| **fault == entry.fault).count();
            assert!((2..=3).contains(&times), "{} comes {times} times", entry.name);
        }
    }
}
