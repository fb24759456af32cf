//! What goes wrong: a list made from the seed before anything runs, so that a run that fails can be tried again with
//! fewer of them.

use std::fmt;

use super::executor::{Micros, Node, ProcId, Sim};
use super::rng::{Rng, Stream};

/// One kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
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
    StoreAway,
    StoreLeader,
    StoreFlaky,
    StoreFull,
    WatchesBreak,
    Compaction,
    KillSentinel,
    PauseSentinel,
    CutSentinel,
    KillRouter,
    StoreRestored,
}

use Kind::{
    Compaction, CutClients, CutMachine, CutOneWay, CutPair, CutSentinel, CutStore, DiskSlow,
    DiskStall, FreezeBackends, FreezeCheckpointer, FreezePostgres, FreezeReceiver, FreezeSender,
    FreezeStartup, KillFencer, KillKeeper, KillPostmaster, KillRouter, KillSentinel, PauseFencer,
    PauseKeeper, PauseMachine, PauseSentinel, PowerOff, SlowLink, StoreAway, StoreFlaky, StoreFull,
    StoreLeader, StoreRestored, WatchesBreak,
};

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
    pub kind: Kind,
    pub who: Who,
    /// Something else to choose by: the other end of a link, which process.
    pub other: u64,
    pub lasts: Micros,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at as f64 / 1e6, self.lasts as f64 / 1e6);
        write!(f, "{at:8.3}  {:?} {:?} for {lasts:.3} s ({})", self.kind, self.who, self.other % 97)
    }
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
}

/// The names of all profiles.
pub const PROFILES: &[&str] =
    &["calm", "heavy", "crash", "network", "freeze", "store", "etcd", "restore", "mixed"];

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
    &[CutMachine, CutPair, CutOneWay, CutStore, CutClients, SlowLink, CutSentinel];
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
        };
        Some(match *name {
            "calm" => Self { swarm: false, clocks_ppm: 1_000, ..base },
            "crash" => Self { kinds: CRASH.to_vec(), ..base },
            "freeze" => Self { kinds: FREEZE.to_vec(), ..base },
            "network" => Self { kinds: NETWORK.to_vec(), ..base },
            "store" => Self { kinds: STORE.to_vec(), ..base },
            "etcd" => Self {
                kinds: vec![StoreAway, StoreLeader],
                swarm: false,
                longest: 30_000_000,
                pause: 15_000_000,
                clocks_ppm: 1_000,
                ..base
            },
            "restore" => Self {
                kinds: vec![StoreRestored, KillPostmaster, KillRouter],
                swarm: false,
                ..base
            },
            "mixed" => Self { members: 5, synchronous_count: 2, kinds: all(), ..base },
            _ => Self { kinds: all(), pause: 2_500_000, ..base },
        })
    }

    /// Makes the list of faults of one run.
    pub fn faults(&self, seed: u64, from: Micros) -> Vec<Fault> {
        let mut rng = Rng::of(seed, Stream::Faults);
        let mut kinds: Vec<Kind> =
            self.kinds.iter().copied().filter(|_| !self.swarm || rng.percent(55)).collect();
        if kinds.is_empty() {
            kinds = self.kinds.clone();
        }
        let mut faults = Vec::new();
        let mut at = from;
        while at < from + self.torment && !kinds.is_empty() {
            let kind = rng.pick(&kinds);
            let who = match rng.between(0, 9) {
                0..=4 => Who::Primary,
                5..=7 => Who::Standby(rng.between(0, 7) as usize),
                _ => Who::Member(rng.between(0, self.members as u64 - 1) as usize),
            };
            let lasts = match rng.percent(60) {
                true => rng.between(1_000, 2_500_000),
                false => rng.between(1_000_000, self.longest),
            };
            faults.push(Fault { at, kind, who, other: rng.next(), lasts });
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

impl Sim {
    /// Puts the faults on the clock. All of them are over by `until`.
    pub fn schedule(&self, faults: &[Fault], until: Micros) {
        for fault in faults.iter().copied() {
            self.at(fault.at, move |sim| sim.strike(fault, until));
        }
    }

    fn strike(&self, fault: Fault, until: Micros) {
        let member = self.find(fault.who);
        let phase = self.with(|w| w.phase_name());
        self.trace(|| format!("FAULT {:?} on {member} for {} ms", fault.kind, fault.lasts / 1000));
        self.with(|w| {
            w.counts.faults += 1;
            *w.counts.cells.entry((format!("{:?}", fault.kind), phase)).or_default() += 1;
        });
        let ends = (self.now() + fault.lasts).min(until);
        let undo = self.begin(fault, member);
        self.at(ends, move |sim| {
            sim.trace(|| format!("over: {:?} on {member}", fault.kind));
            undo(sim);
        });
    }

    fn find(&self, who: Who) -> usize {
        self.with(|w| {
            let state = w.oracle.state();
            let primary = state.as_ref().and_then(|s| w.index_of(s.primary.as_ref()?)).unwrap_or(0);
            match who {
                Who::Member(number) => number % w.members.len(),
                Who::Primary => primary,
                Who::Standby(number) => {
                    let others: Vec<usize> =
                        (0..w.members.len()).filter(|m| *m != primary).collect();
                    others[number % others.len()]
                }
            }
        })
    }

    fn begin(&self, fault: Fault, member: usize) -> Box<dyn FnOnce(&Sim)> {
        let node = Node::Member(member);
        let sentinel = (fault.other % 3) as usize;
        match fault.kind {
            KillPostmaster => self.kill_postmaster(member),
            KillKeeper => {
                self.keeper_dies(member);
                nothing()
            }
            KillFencer => {
                self.fencer_dies(member);
                nothing()
            }
            PowerOff => self.power_off(member),
            PauseKeeper => self.pausing(self.with(|w| w.members[member].keeper_proc)),
            PauseFencer => {
                self.pausing(self.with(|w| w.members[member].fencer.as_ref().map(|f| f.proc)))
            }
            PauseMachine => {
                self.pause_node(node, 1);
                Box::new(move |sim| sim.pause_node(node, -1))
            }
            FreezePostgres | FreezeReceiver | FreezeSender | FreezeCheckpointer | FreezeStartup
            | FreezeBackends => self.freeze(fault.kind, member, fault.other),
            CutMachine => self.cutting(node, None, fault.other),
            CutPair => self.cutting(node, Some(Node::Member(self.another(member, fault.other))), 3),
            CutOneWay => {
                let far = Node::Member(self.another(member, fault.other));
                self.cutting(node, Some(far), 1 + (fault.other >> 8) % 2)
            }
            CutStore => self.cutting(node, Some(Node::Etcd), 1 + (fault.other >> 8) % 3),
            CutClients => self.cutting(node, Some(Node::Client), 3),
            CutSentinel => self.cutting(Node::Sentinel(sentinel), Some(Node::Etcd), 3),
            SlowLink => self.slowing(member, fault.other),
            DiskStall => {
                let until = self.now() + fault.lasts;
                self.with(|w| w.members[member].disk.stalled_until = until);
                Box::new(move |sim| sim.with(|w| w.members[member].disk.stalled_until = 0))
            }
            DiskSlow => {
                self.with(|w| w.members[member].disk.slow_sync = 5_000 + fault.other % 200_000);
                Box::new(move |sim| sim.with(|w| w.members[member].disk.slow_sync = 0))
            }
            KillSentinel => {
                self.sentinel_dies(sentinel);
                Box::new(move |sim| sim.sentinel_again(sentinel))
            }
            PauseSentinel => self.pausing(self.with(|w| w.sentinels[sentinel])),
            StoreAway | StoreLeader | StoreFlaky | StoreFull | WatchesBreak | Compaction
            | StoreRestored | KillRouter => self.store_trouble(fault),
        }
    }

    fn store_trouble(&self, fault: Fault) -> Box<dyn FnOnce(&Sim)> {
        match fault.kind {
            StoreAway | StoreLeader => {
                self.with(|w| w.etcd.away += 1);
                let elects = fault.kind == StoreLeader;
                Box::new(move |sim| sim.etcd_returns(elects))
            }
            StoreFlaky => {
                self.with(|w| w.etcd.flaky_percent = 5 + fault.other % 40);
                Box::new(|sim| sim.with(|w| w.etcd.flaky_percent = 0))
            }
            StoreFull => {
                self.with(|w| w.etcd.full = true);
                Box::new(|sim| sim.with(|w| w.etcd.full = false))
            }
            WatchesBreak => {
                self.with(|w| w.etcd.cancel_watches());
                nothing()
            }
            Compaction => {
                self.with(|w| w.etcd.compact());
                nothing()
            }
            KillRouter => {
                if let Some(proc) = self.with(|w| w.router.take()) {
                    self.kill(proc);
                }
                Box::new(|sim| {
                    if sim.with(|w| w.router.is_none()) {
                        sim.router_start();
                    }
                })
            }
            _ => nothing(),
        }
    }

    fn sentinel_again(&self, number: usize) {
        if self.with(|w| w.sentinels[number].is_none()) {
            self.sentinel_start(number);
        }
    }

    fn another(&self, member: usize, by: u64) -> usize {
        let count = self.with(|w| w.members.len());
        (member + 1 + (by % (count as u64 - 1)) as usize) % count
    }

    fn kill_postmaster(&self, member: usize) -> Box<dyn FnOnce(&Sim)> {
        if self.with(|w| w.server(member).is_some_and(|s| s.postmaster_lives)) {
            self.postmaster_dies(member);
            let noticed = self.now() + self.between(Stream::Postgres, 200, 5_000);
            self.at(noticed, move |sim| sim.child_ended(member));
        }
        nothing()
    }

    fn pausing(&self, proc: Option<ProcId>) -> Box<dyn FnOnce(&Sim)> {
        let Some(proc) = proc else { return nothing() };
        self.pause(proc);
        Box::new(move |sim| sim.resume(proc))
    }

    fn freeze(&self, kind: Kind, member: usize, by: u64) -> Box<dyn FnOnce(&Sim)> {
        let procs = self.with(|w| {
            let Some(server) = w.server(member) else { return Vec::new() };
            match kind {
                FreezeReceiver => server.receiver.iter().map(|r| r.proc).collect(),
                FreezeSender => {
                    let all: Vec<ProcId> = server.senders.values().map(|s| s.proc).collect();
                    let one = all.get((by as usize) % all.len().max(1)).copied();
                    one.into_iter().collect()
                }
                FreezeCheckpointer => vec![server.checkpointer],
                FreezeStartup => vec![server.startup],
                FreezeBackends => vec![server.backends],
                _ => server.processes(),
            }
        });
        for proc in &procs {
            self.pause(*proc);
        }
        Box::new(move |sim| procs.iter().for_each(|proc| sim.resume(*proc)))
    }

    /// Cuts links of `node`: to one other or to all, `ways` being 1 for out, 2 for in, 3 for both.
    fn cutting(&self, node: Node, other: Option<Node>, ways: u64) -> Box<dyn FnOnce(&Sim)> {
        let ways = if other.is_none() { [3, 3, 1, 2][(ways % 4) as usize] } else { ways };
        let others: Vec<Node> = match other {
            Some(other) => vec![other],
            None => self.all_nodes(),
        };
        let mut links = Vec::new();
        for other in others.into_iter().filter(|o| *o != node) {
            links.extend((ways & 1 != 0).then_some((node, other)));
            links.extend((ways & 2 != 0).then_some((other, node)));
        }
        self.with(|w| links.iter().for_each(|(from, to)| w.net.cut(*from, *to)));
        Box::new(move |sim| {
            sim.with(|w| links.iter().for_each(|(from, to)| w.net.heal(*from, *to)))
        })
    }

    fn all_nodes(&self) -> Vec<Node> {
        let members = self.with(|w| w.members.len());
        let mut nodes = vec![Node::Etcd, Node::Router, Node::Client];
        nodes.extend((0..members).map(Node::Member));
        nodes.extend((0..3).map(Node::Sentinel));
        nodes
    }

    fn slowing(&self, member: usize, by: u64) -> Box<dyn FnOnce(&Sim)> {
        let node = Node::Member(member);
        let far = match by % 4 {
            0 => Node::Etcd,
            _ => Node::Member(self.another(member, by >> 4)),
        };
        let extra = 20_000 + (by >> 16) % 3_000_000;
        self.with(|w| {
            w.net.slow_down(node, far, extra);
            w.net.slow_down(far, node, extra);
        });
        Box::new(move |sim| {
            sim.with(|w| {
                w.net.slow_down(node, far, 0);
                w.net.slow_down(far, node, 0);
            });
        })
    }

    /// The machine loses its power, and comes back.
    fn power_off(&self, member: usize) -> Box<dyn FnOnce(&Sim)> {
        if !self.with(|w| std::mem::replace(&mut w.members[member].up, false)) {
            return nothing();
        }
        self.with(|w| w.members[member].disk.lose_unsynced());
        self.server_ends(member);
        if let Some(fencer) = self.with(|w| w.members[member].fencer.take()) {
            self.kill(fencer.proc);
        }
        self.keeper_dies(member);
        let heal = self.cutting(Node::Member(member), None, 0);
        Box::new(move |sim| {
            heal(sim);
            sim.with(|w| w.members[member].up = true);
            let boots = sim.now() + sim.between(Stream::Postgres, 500_000, 4_000_000);
            sim.at(boots, move |sim| {
                let due =
                    sim.with(|w| w.members[member].up && w.members[member].keeper_proc.is_none());
                if due {
                    sim.keeper_start(member);
                }
            });
        })
    }
}

fn nothing() -> Box<dyn FnOnce(&Sim)> {
    Box::new(|_| {})
}
