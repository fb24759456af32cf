//! Deliberate mistakes, to show that the oracles have teeth. They are made around the product's deciders and in the
//! modelled shell, by name and for one run: nothing of them is in the product.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::executor::Micros;
use super::faults::Profile;
use super::run::Plan;

/// A mistake, what it is, and the profile that is to find it.
pub struct Mutant {
    pub name: &'static str,
    pub what: &'static str,
    pub profile: &'static str,
}

const fn mutant(name: &'static str, what: &'static str, profile: &'static str) -> Mutant {
    Mutant { name, what, profile }
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    mutant("promise-not-durable", "a seal is reported and its promise is not on disk", "heavy"),
    mutant("upstream-stays", "the seal leaves the upstream and the epoch's password", "heavy"),
    mutant("receiver-not-ended", "the seal does not end the receiver", "freeze"),
    mutant("position-before-cut", "the position is read before the receiver is ended", "heavy"),
    mutant(
        "incomplete-member-counts",
        "incomplete members seal, and the leader counts them",
        "heavy",
    ),
    mutant("complete-after-rewind", "a rewound member counts at once", "heavy"),
    mutant("rewind-without-mark", "the mark is not set before a rewind", "heavy"),
    mutant("names-empty-on-standbys", "a standby's list is empty", "heavy"),
    mutant("no-placeholders", "named timelines are not reserved", "heavy"),
    mutant(
        "open-without-voters",
        "a primary opens though no voter holds what it recovered",
        "heavy",
    ),
    mutant("restart-opens-at-once", "a primary is started open", "heavy"),
    mutant("confirm-without-evidence", "a Cfg is confirmed and nobody has flushed", "heavy"),
    mutant("walsenders-not-proven", "a Cfg is confirmed by one reload", "freeze"),
    mutant("walsenders-word-counts", "a walsender's flush position counts alone", "heavy"),
    mutant("canary-not-looked-at", "backends are not seen to wait", "heavy"),
    mutant("piece-not-seen", "a seal trusts the receiver's position over a piece", "heavy"),
    mutant("piece-stays", "pieces are not set aside", "heavy"),
    mutant("renewal-counts-from-receipt", "a renewal counts from its answer", "network"),
    mutant("keepalive-alone-renews", "a keepalive renews the right", "network"),
    mutant("sign-without-causality", "an old flush position is a sign", "network"),
    mutant("stale-sentinel-without-guard", "the leader's write has no guards", "sentinels"),
    mutant("router-takes-a-lower-epoch", "the router follows any state", "restore"),
    mutant("promote-any-live-standby", "whoever has sealed first is promoted", "heavy"),
    mutant("promote-the-least", "of a base the one that holds the least is promoted", "heavy"),
    mutant("new-epoch-forgets-cfgs", "a promotion drops the Cfgs before it", "heavy"),
    mutant(
        "cfg-dropped-to-cancel",
        "a change that hangs is cancelled by dropping the Cfg",
        "heavy",
    ),
    mutant("change-without-joint", "a new Cfg takes the old one's place at once", "heavy"),
    mutant(
        "late-member-follows-at-once",
        "a member past the fork follows under its voter's name",
        "heavy",
    ),
    mutant(
        "sealed-primary-serves-on",
        "a seal neither fences the primary nor ends its renewals",
        "network",
    ),
    mutant("missing-report-is-silence", "an absent report reads as a lost primary", "etcd"),
    mutant("seal-number-not-compared", "a seal for an earlier epoch counts for this one", "heavy"),
    mutant("floors-are-forgotten", "the leader knows of no floor", "disks"),
    mutant("switchover-does-not-wait", "the target is promoted before it has sealed", "orders"),
    mutant(
        "request-is-forgotten",
        "the answer to a request is not remembered, nor its key deleted",
        "switchover",
    ),
    mutant(
        "handover-fences",
        "a primary that hands over is killed, and nobody compares",
        "switchover",
    ),
    mutant("names-wider-than-recorded", "names in force list a member of no Cfg", "heavy"),
    mutant("names-empty-at-promotion", "a standby is promoted with an empty list", "heavy"),
    mutant(
        "fence-terminates-backends",
        "a fence ends waiting backends, and others see their commits",
        "heavy",
    ),
    mutant(
        "streaming-counts-as-holding",
        "a voter that streams counts as one that has flushed",
        "freeze",
    ),
    mutant(
        "only-holder-is-rewound",
        "data of a member that stands in a Cfg is overwritten",
        "heavy",
    ),
    mutant("copy-resets-the-promise", "a fresh copy begins with new member files", "heavy"),
    mutant(
        "hello-clears-the-limit",
        "a keeper that comes back clears the fencer's limit",
        "network",
    ),
    mutant("no-signs", "voters' signs count for nothing while etcd is away", "etcd"),
    mutant("set-back-store-renews", "a store that was set back renews the right", "backup"),
    mutant(
        "frozen-reports-are-ignored",
        "the leader decides on a store that was set back",
        "restore",
    ),
    mutant(
        "adopted-store-keeps-the-right",
        "the right is not taken again after an adoption",
        "restore",
    ),
    mutant("opens-for-an-older-order", "a primary opens though its epoch is being sealed", "heavy"),
    mutant("timeline-used-again", "an epoch gets the timeline of the one before", "heavy"),
];

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
        let profile = Profile::named(self.profile).expect("a profile of the list");
        let mut plan = Plan::new(seed, profile);
        plan.mutant = Some(self.name.to_owned());
        let outcome = plan.run();
        let invariant = outcome.violations.first()?.invariant;
        plan.mutant = None;
        let sound = plan.run().violations.is_empty();
        let simulated = outcome.simulated;
        sound.then_some(Kill { seed, profile: self.profile, invariant, simulated })
    }
}
