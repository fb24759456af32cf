//! A modelled PostgreSQL: what of it the promise rests on, with every process of it apart.
//!
//! The one rule: each process knows the settings that it has read itself. A reload is a signal, and who is stopped or
//! slow goes on by what it knew.

mod backend;
mod receiver;
mod rule;
mod sender;
mod shutdown;
mod startup;

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::watch;
use keeper::postgres::settings::{Access, Settings, Upstream};
use proto::{Lsn, Timeline};
use tokio::sync::oneshot;

pub use backend::SqlError;
pub use rule::Rule;
pub use sender::{Sender, shown};

use super::executor::{Micros, Node, ProcId, Sim};
use super::rng::Stream;
use super::wal::{At, BranchId};
use super::world::World;

/// How far a server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Standby,
    Primary,
}

/// A commit that waits for standbys.
pub struct Waiter {
    pub lsn: Lsn,
    /// It is a client's, and not the keeper's canary.
    pub client: bool,
    /// True says that the standbys hold it, false that the wait was cancelled.
    pub release: oneshot::Sender<bool>,
}

/// The receiver of a standby.
#[derive(Debug, Clone)]
pub struct Receiver {
    pub proc: ProcId,
    pub name: String,
    pub streaming: bool,
    pub timeline: Timeline,
    pub last_heard: Micros,
}

/// All processes of one start of PostgreSQL.
pub struct Server {
    pub id: u64,
    pub pid: u32,
    pub started: Micros,
    pub postmaster: ProcId,
    pub postmaster_lives: bool,
    pub startup: ProcId,
    pub checkpointer: ProcId,
    pub backends: ProcId,
    pub phase: Phase,
    /// It accepts sessions.
    pub sessions: bool,
    /// What the postmaster has read.
    pub conf: Settings,
    /// What the startup process has read.
    pub startup_upstream: Option<Upstream>,
    pub startup_eager: bool,
    /// What the keeper's session shows.
    pub session_names: String,
    /// Whether backends wait at all, as the checkpointer says; `None` until it has looked once.
    sync_defined: Option<bool>,
    pub branch: BranchId,
    pub replay: Lsn,
    pub visible: Lsn,
    /// Ends of commits that others see though nobody waited for the standbys to the end: their clients were warned.
    pub exposed: BTreeSet<Lsn>,
    pub received: Option<Lsn>,
    pub receiver: Option<Receiver>,
    pub senders: BTreeMap<i32, Sender>,
    pub waiters: Vec<Waiter>,
    pub released: Lsn,
    pub promote: bool,
    /// Sessions of clients that began before this number are ended.
    pub session_floor: u64,
    /// Told whenever WAL, settings or a receiver changed.
    pub changed: watch::Sender<()>,
}

/// One server, as its own processes hold it.
#[derive(Clone)]
pub struct Pg {
    pub sim: Sim,
    pub member: usize,
    pub id: u64,
}

impl Pg {
    /// Looks at or changes the server; `None` when it has been replaced.
    pub fn with<R>(&self, f: impl FnOnce(&mut Server) -> R) -> Option<R> {
        self.sim.with(|w| w.server(self.member).filter(|s| s.id == self.id).map(f))
    }

    /// The same with the rest of the world.
    pub fn with_world<R>(&self, f: impl FnOnce(&mut World) -> R) -> Option<R> {
        self.sim.with(|w| w.server(self.member).is_some_and(|s| s.id == self.id).then(|| f(w)))
    }

    pub fn tell(&self) {
        self.with(|s| s.changed.send_replace(()));
    }

    pub fn node(&self) -> Node {
        Node::Member(self.member)
    }
}

impl Sim {
    /// Starts a postmaster on the data directory; returns its pid.
    pub fn server_start(&self, member: usize) -> u32 {
        let node = Node::Member(member);
        let id = self.fresh();
        let pid = 1000 + (id % 30_000) as u32;
        let procs: Vec<ProcId> = (0..4).map(|_| self.start_process(node)).collect();
        let now = self.now();
        self.with(|w| {
            let disk = &mut w.members[member].disk;
            let conf = disk.settings.clone().unwrap_or_else(Settings::cut_off);
            let branch = disk.data.as_ref().map_or(BranchId(0), |d| d.at.branch);
            w.members[member].server = Some(Server {
                id,
                pid,
                started: now,
                postmaster: procs[0],
                postmaster_lives: true,
                startup: procs[1],
                checkpointer: procs[2],
                backends: procs[3],
                phase: Phase::Starting,
                sessions: false,
                startup_upstream: conf.upstream.clone(),
                startup_eager: conf.eager,
                session_names: conf.standby_names.clone(),
                sync_defined: None,
                conf,
                branch,
                replay: Lsn(0),
                visible: Lsn(0),
                exposed: BTreeSet::new(),
                received: None,
                receiver: None,
                senders: BTreeMap::new(),
                waiters: Vec::new(),
                released: Lsn(0),
                promote: false,
                session_floor: 0,
                changed: watch::Sender::new(()),
            });
        });
        self.oracle_server_starts(member);
        let pg = Pg { sim: self.clone(), member, id };
        self.spawn(procs[1], startup::run(pg.clone()));
        // The checkpointer may look for the first time after the first session.
        let (sim, late) = (self.clone(), self.between(Stream::Postgres, 1_000, 400_000));
        self.spawn(procs[2], async move {
            sim.sleep(late).await;
            pg.with(|s| s.sync_defined = Some(!s.conf.standby_names.is_empty()));
            sim.oracle_look(pg.member);
        });
        pid
    }

    /// The postmaster ends; its children go on until somebody ends them.
    pub fn postmaster_dies(&self, member: usize) {
        let postmaster = self.with(|w| {
            let server = w.server(member)?;
            server.postmaster_lives = false;
            server.sessions = false;
            Some(server.postmaster)
        });
        if let Some(proc) = postmaster {
            self.kill(proc);
        }
    }

    /// Every process of the server ends at once.
    pub fn server_ends(&self, member: usize) {
        let procs = self.with(|w| w.server(member).map(|s| s.processes()));
        for proc in procs.unwrap_or_default() {
            self.kill(proc);
        }
        let server = self.with(|w| {
            let server = w.members[member].server.take();
            w.members[member].disk.keep_written();
            if let (Some(server), Some(data)) = (&server, &mut w.members[member].disk.data)
                && server.phase == Phase::Primary
            {
                w.wal.truncate(server.branch, data.at.lsn);
            }
            server
        });
        drop(server);
    }

    /// SIGHUP to the postmaster: each process reads the files when it gets round to it.
    pub fn server_reload(&self, pg: Pg) {
        let Some(postmaster) = pg.with(|s| s.postmaster) else { return };
        let sim = self.clone();
        self.spawn(postmaster, async move {
            sim.sleep(sim.between(Stream::Postgres, 100, 1_500)).await;
            pg.with_world(|w| {
                let settings = w.members[pg.member].disk.settings.clone();
                if let (Some(settings), Some(server)) = (settings, w.server(pg.member)) {
                    server.conf = settings;
                }
            });
            sim.oracle_look(pg.member);
            sim.signal_children(&pg);
        });
    }

    fn signal_children(&self, pg: &Pg) {
        let Some((procs, senders)) = pg.with(|s| {
            let senders: Vec<(i32, ProcId)> = s.senders.iter().map(|(p, x)| (*p, x.proc)).collect();
            ([s.checkpointer, s.backends, s.startup], senders)
        }) else {
            return;
        };
        let late = || self.between(Stream::Postgres, 50, 3_000);
        let (sim, of) = (self.clone(), pg.clone());
        let after = late();
        self.spawn(procs[0], async move {
            sim.sleep(after).await;
            let names = of.with_world(|w| w.names_on_disk(of.member));
            of.with(|s| s.wait_for_standbys(names.is_none_or(|n| !n.is_empty())));
            sim.oracle_look(of.member);
        });
        let (sim, of, after) = (self.clone(), pg.clone(), late());
        self.spawn(procs[1], async move {
            sim.sleep(after).await;
            let names = of.with_world(|w| w.names_on_disk(of.member)).unwrap_or_default();
            of.with(|s| s.session_names = names);
        });
        self.signal_startup(pg);
        for (pid, proc) in senders {
            let (sim, of, after) = (self.clone(), pg.clone(), late());
            self.spawn(proc, async move {
                sim.sleep(after).await;
                let names = of.with_world(|w| w.names_on_disk(of.member)).unwrap_or_default();
                of.with(|s| {
                    if let Some(sender) = s.senders.get_mut(&pid) {
                        sender.learn(&names);
                    }
                });
                sim.oracle_look(of.member);
            });
        }
    }

    /// SIGHUP to the startup process: a changed upstream ends the receiver.
    pub fn signal_startup(&self, pg: &Pg) {
        let Some(startup) = pg.with(|s| s.startup) else { return };
        let (sim, of) = (self.clone(), pg.clone());
        let after = self.between(Stream::Postgres, 50, 3_000);
        self.spawn(startup, async move {
            sim.sleep(after).await;
            let settings = of.with_world(|w| w.members[of.member].disk.settings.clone()).flatten();
            let Some(settings) = settings else { return };
            let receiver = of.with(|s| {
                let moved = s.startup_upstream != settings.upstream;
                s.startup_upstream = settings.upstream;
                s.startup_eager = settings.eager;
                s.receiver.as_ref().filter(|_| moved).map(|r| r.proc)
            });
            if let Some(Some(proc)) = receiver {
                of.end_receiver(proc);
            }
            of.tell();
        });
    }
}

impl Server {
    /// Returns all its processes.
    pub fn processes(&self) -> Vec<ProcId> {
        let mut procs = vec![self.postmaster, self.startup, self.checkpointer, self.backends];
        procs.extend(self.receiver.iter().map(|r| r.proc));
        procs.extend(self.senders.values().map(|s| s.proc));
        procs
    }

    /// What the checkpointer does about names that it has read (`SyncRepUpdateSyncStandbysDefined`): where there are none
    /// any more it releases whoever waits, as if the standbys held it all.
    fn wait_for_standbys(&mut self, defined: bool) {
        if self.sync_defined == Some(true) && !defined {
            for waiter in self.waiters.drain(..) {
                let _ = waiter.release.send(true);
            }
        }
        self.sync_defined = Some(defined);
    }

    /// Returns whether a commit waits for standbys. Until the checkpointer has looked backends go by the names that they
    /// have read themselves (`SYNC_STANDBY_INIT` of PostgreSQL's releases of May 2025, the oldest that are supported).
    pub fn commits_wait(&self) -> bool {
        self.sync_defined.unwrap_or(!self.conf.standby_names.is_empty())
    }

    /// Cancels every commit of a client that waits.
    pub fn cancel_clients(&mut self) {
        for waiter in self.waiters.extract_if(.., |w| w.client) {
            let _ = waiter.release.send(false);
        }
    }

    /// Ends the backends whose commits wait: others see these from now on.
    pub fn terminate_waiting(&mut self) {
        let waiting = self.waiters.drain(..).map(|waiter| waiter.lsn).max();
        self.visible = self.visible.max(waiting.unwrap_or_default());
    }

    /// Returns whether clients may connect.
    pub fn lets_clients_in(&self) -> bool {
        self.sessions && self.postmaster_lives && self.conf.access == Access::Open
    }
}

impl World {
    pub fn server(&mut self, member: usize) -> Option<&mut Server> {
        self.members[member].server.as_mut()
    }

    fn names_on_disk(&self, member: usize) -> String {
        let settings = self.members[member].disk.settings.as_ref();
        settings.map(|s| s.standby_names.clone()).unwrap_or_default()
    }

    /// Returns how far this member's WAL is on disk.
    pub fn flushed(&self, member: usize) -> Option<At> {
        self.members[member].disk.data.as_ref().map(|d| d.at)
    }
}
