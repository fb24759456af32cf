//! What goes wrong: a list made from the seed before anything runs, so that a run that fails can be tried again with
//! fewer of them.

use super::cells::Phase;
use super::executor::Micros;
use super::profiles::{Profile, RECOVERY, STARTS};
use super::rng::{Rng, Stream};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident,)*) => {
        /// One kind of trouble.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];
        }
    };
}

kinds! {
    KillPostmaster,
    KillKeeper,
    KillFencer,
    PauseKeeper,
    PauseFencer,
    PauseMachine,
    PowerOff,
    FreezePostgres,
    FreezeReceiver,
    FreezeSender,
    FreezeCheckpointer,
    FreezeStartup,
    FreezeBackends,
    CutMachine,
    CutPair,
    CutOneWay,
    CutStore,
    CutClients,
    SlowLink,
    DiskStall,
    DiskSlow,
    /// A member's whole disk is set back to an older copy.
    DiskRestored,
    StoreAway,
    StoreLeader,
    StoreFlaky,
    StoreFull,
    /// etcd is set back to a backup; at the end an operator adopts it.
    StoreRestored,
    WatchesBreak,
    Compaction,
    KillSentinel,
    PauseSentinel,
    CutSentinel,
    /// What a sentinel writes arrives late, perhaps when another one leads.
    SlowSentinel,
    KillRouter,
    /// Commits that wait are cancelled: their clients get a warning.
    CancelWaits,
    /// An operator asks for another primary.
    AskSwitchover,
    /// An operator pauses the cluster, and resumes at the end.
    AskPause,
    /// An operator takes a member out, and readmits it at the end.
    AskRemove,
    /// An operator changes the spec, for good.
    AskSpec,
    /// A member's way to etcd takes long.
    SlowStore,
}

/// Whom it hits, found out when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Primary,
    /// The standby with this number among the standbys.
    Standby(usize),
    Member(usize),
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub at: Micros,
    /// It waits for this phase of the cluster, for a while, and strikes then.
    pub aim: Option<Phase>,
    pub kind: Kind,
    pub who: Who,
    /// Something else to choose by: the other end of a link, which process.
    pub other: u64,
    pub lasts: Micros,
}

impl Profile {
    /// Makes the list of faults of one run.
    pub fn faults(&self, seed: u64, from: Micros) -> Vec<Fault> {
        let mut rng = Rng::of(seed, Stream::Faults);
        let mut aims = Rng::of(seed, Stream::Aims);
        let mut kinds: Vec<Kind> =
            self.kinds.iter().copied().filter(|_| !self.swarm || rng.percent(55)).collect();
        if kinds.is_empty() {
            kinds = self.kinds.clone();
        }
        let mut faults = Vec::new();
        let mut at = from;
        while at < from + self.torment && !kinds.is_empty() {
            let mut kind = rng.pick(&kinds);
            let aim = match self.aims && aims.percent(50) {
                true => Some(aims.pick(Phase::ALL)),
                false => None,
            };
            if self.aims && aim.is_none() {
                kind = aims.pick(STARTS);
            }
            let who = match rng.between(0, 9) {
                0..=4 => Who::Primary,
                5..=7 => Who::Standby(rng.between(0, 7) as usize),
                _ => Who::Member(rng.between(0, self.members as u64 - 1) as usize),
            };
            let lasts = match rng.percent(60) {
                true => rng.between(1_000, 2_500_000),
                false => rng.between(1_000_000, self.longest),
            };
            faults.push(Fault { at, aim, kind, who, other: rng.next(), lasts });
            // Some come right after one another: the second hits in the middle of the answer to the first.
            let pause = match rng.percent(35) && !self.one_by_one {
                true => rng.between(1_000, 600_000),
                false => rng.between(self.pause / 4, self.pause * 2),
            };
            at += if self.one_by_one { lasts + RECOVERY } else { pause };
        }
        faults
    }
}
