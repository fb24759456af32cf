//! The families of runs: which faults, how dense, on which clusters.

use super::executor::Micros;
use super::faults::Kind;
use super::faults::Kind::*;
use super::wishes::Wishes;

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
    /// By how much a run may be drawn out, so that some faults strike what is whole and some what is not.
    pub paces: &'static [u64],
    /// By how much this run is. `None` also keeps clients and keepers busy while nothing happens.
    pub pace: Option<u64>,
    /// Each run leaves about half of the kinds out.
    pub swarm: bool,
    pub clocks_ppm: u64,
    pub wishes: Wishes,
    /// Every other fault waits for a phase of the cluster.
    pub aims: bool,
    /// How many of a hundred walsenders that cannot send all at once take up to a second for the rest.
    pub slow_senders: u64,
    /// Each fault strikes a cluster that has had time to come back from the one before.
    pub one_by_one: bool,
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
    "specs",
    "available",
    "two-of-three",
    "respec",
    "single",
    "slow-store",
    "pieces",
    "alone",
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
/// What a member is told of etcd is old when it comes, and then nothing comes any more.
const SLOW_STORE: &[Kind] = &[SlowStore, SlowStore, SlowStore, CutMachine, CutStore, PauseKeeper];
/// A primary is lost again before all have followed it across the fork.
const PIECES: &[Kind] = &[KillPostmaster, KillPostmaster, PowerOff, CutMachine];
/// A primary that commits alone gets its voters back while its checkpointer, which says whether commits wait, does not run.
const ALONE: &[Kind] =
    &[FreezeCheckpointer, FreezeCheckpointer, FreezeCheckpointer, PowerOff, CutMachine, CutMachine];
const RESPEC: &[Kind] = &[AskSpec, AskSpec, AskSpec, AskSpec, AskSwitchover];
/// What is no single failure that a cluster has to bear: clients that are cut off themselves, wishes of operators, and disks
/// and stores that come back older. A disk that hangs is one, but the probe that tells it is not modelled.
const NO_SINGLE_FAILURES: &[Kind] = &[
    CutClients,
    CancelWaits,
    AskPause,
    AskRemove,
    AskSpec,
    DiskRestored,
    StoreRestored,
    DiskStall,
];
/// How long a cluster has to be whole again after each of them.
pub(super) const RECOVERY: Micros = 60_000_000;
/// What brings the cluster out of its steady phase, so that aimed faults find theirs.
pub(super) const STARTS: &[Kind] = &[
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
        let base = Self::usual(name);
        let steady = |kinds: &[Kind]| Self {
            kinds: kinds.to_vec(),
            swarm: false,
            clocks_ppm: 1_000,
            ..base.clone()
        };
        let heavy = || [all(), ORDERS.to_vec()].concat();
        Some(match *name {
            "calm" => Self { paces: &[], ..steady(&[]) },
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
            "mixed" => Self { members: 5, wishes: Wishes::Count(2), kinds: all(), ..base },
            "aimed" => Self { aims: true, paces: &[1], ..steady(Kind::ALL) },
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
                paces: &[1],
                torment: 60_000_000,
                ..base
            },
            "long" => Self {
                kinds: heavy(),
                torment: 1_800_000_000,
                pause: 90_000_000,
                paces: &[1],
                ..base
            },
            "slow-store" => Self { pause: 1_500_000, kinds: SLOW_STORE.to_vec(), ..base },
            "pieces" => {
                Self { pause: 1_500_000, longest: 4_000_000, slow_senders: 80, ..steady(PIECES) }
            }
            "heavy" => Self { kinds: heavy(), pause: 2_500_000, paces: &[1, 2], ..base },
            _ => base.of_specs(),
        })
    }

    /// What a profile has unless it says otherwise.
    fn usual(name: &'static str) -> Self {
        Self {
            name,
            members: 3,
            kinds: Vec::new(),
            torment: 120_000_000,
            pause: 4_000_000,
            longest: 12_000_000,
            routed_clients: 2,
            stubborn_clients: 2,
            client_pause: 300_000,
            paces: &[1, 2, 4, 8],
            pace: None,
            swarm: true,
            clocks_ppm: 3_000,
            wishes: Wishes::Count(1),
            aims: false,
            slow_senders: 10,
            one_by_one: false,
        }
    }

    /// Returns it drawn out: as many faults, but so many times as far apart.
    pub fn at_pace(self, pace: Option<u64>) -> Self {
        let by = pace.unwrap_or(1);
        Self { pace, torment: self.torment * by, pause: self.pause * by, ..self }
    }

    /// The profiles whose runs have specs of their own.
    fn of_specs(self) -> Self {
        let base = Self { kinds: [all(), ORDERS.to_vec()].concat(), ..self };
        match base.name {
            "available" => Self { wishes: Wishes::Available, ..base },
            "alone" => Self {
                wishes: Wishes::Available,
                kinds: ALONE.to_vec(),
                swarm: false,
                pause: 2_000_000,
                ..base
            },
            "two-of-three" => Self { wishes: Wishes::Count(2), ..base },
            "respec" => Self {
                wishes: Wishes::Any,
                kinds: [RESPEC, CRASH, FREEZE, NETWORK].concat(),
                ..base
            },
            "single" => Self {
                wishes: Wishes::SurvivesOne,
                kinds: single(),
                swarm: false,
                clocks_ppm: 1_000,
                torment: 600_000_000,
                pause: RECOVERY,
                longest: 90_000_000,
                one_by_one: true,
                paces: &[1],
                ..base
            },
            _ => Self { wishes: Wishes::Any, ..base },
        }
    }
}

fn all() -> Vec<Kind> {
    let mut kinds: Vec<Kind> = [CRASH, FREEZE, NETWORK, STORE].concat();
    kinds.sort();
    kinds.dedup();
    kinds
}

fn single() -> Vec<Kind> {
    Kind::ALL.iter().copied().filter(|kind| !NO_SINGLE_FAILURES.contains(kind)).collect()
}
