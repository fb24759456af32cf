//! What goes wrong: a list made from the seed before anything runs, so that a run that fails can be tried again with
//! fewer of them.

use super::cells::Phase;
use super::executor::Micros;
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
}

use Kind::*;

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

/// A family of runs.
#[derive(Debug, Clone)]
pub struct Profile {
    pub name: &'static str,
    pub members: usize,
    pub kinds: Vec<Kind>,
    /// How long things go wrong, and the mean pause between two faults.
    pub torment: Micros,
    pub pause: Micros,
    pub longest: Micros,
    pub routed_clients: usize,
    pub stubborn_clients: usize,
    pub client_pause: Micros,
    /// Each run leaves about half of the kinds out.
    pub swarm: bool,
    pub clocks_ppm: u64,
    pub synchronous_count: usize,
    /// Every other fault waits for a phase of the cluster.
    pub aims: bool,
}

/// The names of all profiles.
pub const PROFILES: &[&str] = &[
    "calm",
    "heavy",
    "crash",
    "network",
    "freeze",
    "store",
    "etcd",
    "restore",
    "mixed",
    "aimed",
    "switchover",
    "orders",
    "disks",
    "backup",
    "sentinels",
    "busy",
    "long",
];

const CRASH: &[Kind] =
    &[KillPostmaster, KillKeeper, KillFencer, PowerOff, KillSentinel, DiskSlow, DiskStall];
const FREEZE: &[Kind] = &[
    FreezePostgres,
    FreezeReceiver,
    FreezeSender,
    FreezeCheckpointer,
    FreezeStartup,
    FreezeBackends,
    PauseKeeper,
    PauseFencer,
    PauseMachine,
    PauseSentinel,
    KillPostmaster,
];
const NETWORK: &[Kind] =
    &[CutMachine, CutPair, CutOneWay, CutStore, CutClients, SlowLink, CutSentinel, SlowSentinel];
const STORE: &[Kind] = &[
    StoreAway,
    StoreLeader,
    StoreFlaky,
    StoreFull,
    WatchesBreak,
    Compaction,
    CutStore,
    KillSentinel,
];

/// PostgreSQL goes on while its keeper, its voters or its links do not.
const BUSY: &[Kind] =
    &[PauseKeeper, PauseKeeper, CutStore, CutPair, FreezeReceiver, FreezeSender, SlowLink];
const SENTINELS: &[Kind] =
    &[CutSentinel, CutSentinel, PauseSentinel, KillSentinel, SlowSentinel, KillPostmaster];
const ORDERS: &[Kind] = &[AskSwitchover, AskPause, AskRemove, CancelWaits];
/// What brings the cluster out of its steady phase, so that aimed faults find theirs.
const STARTS: &[Kind] = &[
    KillPostmaster,
    PowerOff,
    AskSwitchover,
    FreezePostgres,
    CutMachine,
    FreezeReceiver,
    KillFencer,
];

impl Profile {
    /// Returns the profile with this name.
    pub fn named(name: &str) -> Option<Self> {
        let name = PROFILES.iter().find(|n| **n == name)?;
        let base = Self {
            name,
            members: 3,
            kinds: Vec::new(),
            torment: 120_000_000,
            pause: 4_000_000,
            longest: 12_000_000,
            routed_clients: 2,
            stubborn_clients: 2,
            client_pause: 300_000,
            swarm: true,
            clocks_ppm: 3_000,
            synchronous_count: 1,
            aims: false,
        };
        let steady = |kinds: &[Kind]| Self {
            kinds: kinds.to_vec(),
            swarm: false,
            clocks_ppm: 1_000,
            ..base.clone()
        };
        let heavy = || [all(), ORDERS.to_vec()].concat();
        Some(match *name {
            "calm" => steady(&[]),
            "crash" => Self { kinds: CRASH.to_vec(), ..base },
            "freeze" => Self { kinds: FREEZE.to_vec(), ..base },
            "network" => Self { kinds: NETWORK.to_vec(), ..base },
            "store" => Self { kinds: STORE.to_vec(), ..base },
            "etcd" => {
                Self { longest: 30_000_000, pause: 15_000_000, ..steady(&[StoreAway, StoreLeader]) }
            }
            "restore" => steady(&[StoreRestored, KillPostmaster, KillRouter]),
            "backup" => Self { pause: 25_000_000, ..steady(&[StoreRestored, KillRouter]) },
            "sentinels" => Self { pause: 700_000, longest: 6_000_000, ..steady(SENTINELS) },
            "mixed" => Self { members: 5, synchronous_count: 2, kinds: all(), ..base },
            "aimed" => Self { aims: true, ..steady(Kind::ALL) },
            "switchover" => {
                Self { longest: 1_000_000, pause: 8_000_000, ..steady(&[AskSwitchover]) }
            }
            "orders" => Self { kinds: [ORDERS, ORDERS, CRASH, FREEZE, NETWORK].concat(), ..base },
            "disks" => {
                let own = &[DiskRestored, DiskRestored, AskSwitchover, KillPostmaster];
                Self { kinds: [own, CRASH].concat(), pause: 8_000_000, ..base }
            }
            "busy" => Self {
                kinds: BUSY.to_vec(),
                swarm: false,
                routed_clients: 6,
                client_pause: 20_000,
                torment: 60_000_000,
                ..base
            },
            "long" => Self {
                kinds: heavy(),
                torment: 1_800_000_000,
                pause: 90_000_000,
                client_pause: 3_000_000,
                ..base
            },
            _ => Self { kinds: heavy(), pause: 2_500_000, ..base },
        })
    }

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
            let pause = match rng.percent(35) {
                true => rng.between(1_000, 600_000),
                false => rng.between(self.pause / 4, self.pause * 2),
            };
            at += pause;
        }
        faults
    }
}

fn all() -> Vec<Kind> {
    let mut kinds: Vec<Kind> = [CRASH, FREEZE, NETWORK, STORE].concat();
    kinds.sort();
    kinds.dedup();
    kinds
}
