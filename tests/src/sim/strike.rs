//! How each fault strikes, and how it ends.

use std::time::Duration;

use proto::request::{Terms, Wanted};

use super::cells::Phase;
use super::executor::{Micros, Node, ProcId, Sim};
use super::faults::Kind::*;
use super::faults::{Fault, Kind, Who};
use super::rng::Stream;
use super::world::World;

/// How long an aimed fault waits for its phase.
const AIMS_FOR: Micros = 20_000_000;

/// Most disks of a run are not restored: two of three that forgot are no single failure.
const RESTORED_AT_MOST: u32 = 1;

impl Sim {
    /// Puts the faults on the clock. All of them are over by `until`.
    pub fn schedule(&self, faults: &[Fault], until: Micros) {
        for fault in faults.iter().copied() {
            self.at(fault.at, move |sim| match fault.aim {
                None => sim.strike(fault, until),
                Some(phase) => sim.lie_in_wait(fault, phase, until),
            });
        }
    }

    /// Strikes a moment after the cluster has come to `phase`; not at all if it does not come there soon.
    fn lie_in_wait(&self, fault: Fault, phase: Phase, until: Micros) {
        let (sim, give_up) = (self.clone(), (self.now() + AIMS_FOR).min(until));
        self.on_the_wire(async move {
            while sim.with(|w| w.phase()) != Some(phase) {
                if sim.now() >= give_up {
                    return;
                }
                let moves = sim.with(|w| w.moves.clone());
                sim.within(give_up - sim.now(), moves.notified()).await;
            }
            // Some phases are over within two milliseconds.
            let is_soon = fault.other & 1 == 0 && sim.with(|w| w.profile.pace.is_some());
            let soon = if is_soon { 1_500 } else { 30_000 };
            sim.sleep(fault.other % soon).await;
            if sim.now() < until {
                sim.strike(fault, until);
            }
        });
    }

    fn strike(&self, fault: Fault, until: Micros) {
        let member = self.find(fault.who);
        self.trace(|| format!("FAULT {:?} on {member} for {} ms", fault.kind, fault.lasts / 1000));
        let now = self.now();
        self.with(|w| {
            w.counts.faults += 1;
            w.fault_begins(now);
        });
        self.count_fault(fault.kind);
        let ends = (now + fault.lasts).min(until);
        let undo = self.begin(fault, member);
        self.at(ends, move |sim| {
            sim.trace(|| format!("over: {:?} on {member}", fault.kind));
            sim.with(|w| w.fault_ends(ends));
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
            SlowStore => {
                self.slowing_link(node, Node::Etcd, 200_000 + (fault.other >> 16) % 1_500_000)
            }
            SlowSentinel => {
                let extra = 100_000 + (fault.other >> 16) % 3_000_000;
                self.slowing_link(Node::Sentinel(sentinel), Node::Etcd, extra)
            }
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
            DiskRestored => self.restore_disk(member),
            CancelWaits => {
                self.with(|w| w.server(member).map(|s| s.cancel_clients()));
                nothing()
            }
            AskSwitchover | AskPause | AskRemove | AskSpec => self.order(fault, member),
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
            StoreRestored if self.store_restored(fault.other) => Box::new(Sim::adopt_store),
            _ => nothing(),
        }
    }

    fn order(&self, fault: Fault, member: usize) -> Box<dyn FnOnce(&Sim)> {
        let name = self.with(|w| w.members[member].name.clone());
        match fault.kind {
            AskSwitchover => {
                let to = (!fault.other.is_multiple_of(3)).then_some(name);
                self.ask(Wanted::Switchover(Terms::to(to)), Duration::from_secs(10));
                nothing()
            }
            AskPause => {
                let lasting = Duration::from_secs(120);
                self.ask(Wanted::Pause { reason: "work".into(), lasting }, Duration::from_secs(10));
                Box::new(|sim| sim.ask(Wanted::Resume, Duration::from_secs(120)))
            }
            AskRemove => {
                let wanted = Wanted::Remove { member: name.clone(), below_count: false };
                self.ask(wanted, Duration::from_secs(10));
                Box::new(move |sim| sim.readmit(name))
            }
            AskSpec => {
                self.change_spec(fault.other);
                nothing()
            }
            _ => nothing(),
        }
    }

    /// The machine comes back with an older copy of its disk.
    fn restore_disk(&self, member: usize) -> Box<dyn FnOnce(&Sim)> {
        if self.with(|w| w.oracle.disks_restored >= RESTORED_AT_MOST) {
            return nothing();
        }
        let boots = self.power_off(member);
        if self.disk_restored(member) {
            self.trace(|| format!("the disk of {member} is set back"));
        }
        boots
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
        self.slowing_link(node, far, 20_000 + (by >> 16) % 3_000_000)
    }

    fn slowing_link(&self, one: Node, other: Node, extra: Micros) -> Box<dyn FnOnce(&Sim)> {
        let slow = move |w: &mut World, by| {
            w.net.slow_down(one, other, by);
            w.net.slow_down(other, one, by);
        };
        self.with(|w| slow(w, extra));
        Box::new(move |sim| sim.with(|w| slow(w, 0)))
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
