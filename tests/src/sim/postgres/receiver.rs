//! A walreceiver: connects with the password that lies there, writes, syncs, and tells how far it has come.

use keeper::postgres::settings::{StreamName, Upstream};
use proto::cfg::{joining_name, wire_name};
use proto::{Lsn, Timeline};
use tokio::sync::mpsc::UnboundedReceiver;

use super::sender::{self, Down, Line, Up};
use super::{Pg, Phase, Receiver};
use crate::sim::executor::{Micros, Node, ProcId, micros};
use crate::sim::net::Near;
use crate::sim::rng::Stream;
use crate::sim::wal::{At, BranchId};
use crate::sim::world::World;

/// `wal_receiver_status_interval`, as the keeper sets it: so late at most is a commit released by names that came after it.
const STATUS_INTERVAL: Micros = 1_000_000;

/// Starts a receiver, as the startup process asks the postmaster to.
pub fn start(pg: &Pg, upstream: Upstream) {
    let Some(true) = pg.with(|s| s.postmaster_lives) else { return };
    let proc = pg.sim.start_process(pg.node());
    let now = pg.sim.now();
    let Some(name) = pg.with_world(|w| {
        let member = &w.members[pg.member].name;
        match upstream.name {
            StreamName::Voter { round } => wire_name(member, upstream.epoch, round),
            StreamName::Joining => joining_name(member, upstream.epoch),
        }
    }) else {
        return;
    };
    pg.with(|s| {
        s.receiver = Some(Receiver {
            proc,
            name: name.clone(),
            streaming: false,
            timeline: Timeline(0),
            last_heard: now,
        });
    });
    let of = pg.clone();
    pg.sim.spawn(proc, async move {
        receive(&of, &upstream, name).await;
        of.forget_receiver(proc);
        of.sim.kill(proc);
    });
}

impl Pg {
    fn forget_receiver(&self, proc: ProcId) {
        self.with(|s| s.receiver.take_if(|r| r.proc == proc));
        self.tell();
    }

    /// SIGTERM to a receiver: one that is stopped hears it when it goes on.
    pub fn end_receiver(&self, proc: ProcId) {
        let of = self.clone();
        let end = move || {
            of.forget_receiver(proc);
            of.sim.kill(proc);
        };
        match self.sim.is_paused(proc) {
            true => drop(self.sim.spawn(proc, async move { end() })),
            false => end(),
        }
    }

    fn receiver<R>(&self, f: impl FnOnce(&mut Receiver) -> R) -> Option<R> {
        self.with(|s| s.receiver.as_mut().map(f)).flatten()
    }
}

/// What a receiver asks for first.
enum Ask {
    Stream(BranchId, Lsn),
    /// Its WAL is not a prefix of the upstream's.
    Diverged,
}

async fn receive(pg: &Pg, upstream: &Upstream, name: String) {
    let Some(far) = World::member_at(&upstream.host) else { return };
    let (sim, to) = (&pg.sim, Node::Member(far));
    let allowed = sim.with(|w| w.members[pg.member].disk.passfiles.contains(&upstream.epoch));
    sim.pass(pg.node(), to).await;
    let Some(server) = sim.session(far).filter(|_| allowed) else {
        sim.pass(to, pg.node()).await;
        return;
    };
    let (down, mut from_far) = sim.wire(to, pg.node());
    let (to_far, up) = sim.wire(pg.node(), to);
    let streams = sender::start(&server, pg.member, name, Line { down, up });
    sim.pass(to, pg.node()).await;
    if !streams {
        return;
    }
    let asked = sim.with(|w| ask(w, pg.member, far));
    let timeline = sim.with(|w| w.flushed(pg.member).map(|at| w.wal.branch(at.branch).tli));
    let now = sim.now();
    pg.receiver(|r| {
        r.streaming = true;
        r.timeline = timeline.unwrap_or(Timeline(0));
        r.last_heard = now;
    });
    // The first reply gives the replay position as flushed, wherever that lies.
    tell(pg, &to_far);
    match asked {
        Some(Ask::Stream(branch, from)) => {
            stage(pg, branch, from, &to_far);
            stream(pg, far, &mut from_far, &to_far).await;
        }
        Some(Ask::Diverged) => {
            sim.with(|w| {
                if let Some(s) = w.server(far) {
                    s.senders
                        .values_mut()
                        .filter(|s| s.member == pg.member)
                        .for_each(|s| s.streaming = true);
                }
            });
            tell(pg, &to_far);
            sim.sleep(1_000_000).await;
        }
        None => {}
    }
}

/// Where the stream begins: on the branch of the own position, unless that ends right there.
fn ask(w: &mut World, member: usize, far: usize) -> Option<Ask> {
    let own = w.flushed(member)?;
    let own = w.wal.whole(own);
    let theirs = upstream_at(w, far)?;
    if !w.wal.covers(theirs, own) {
        // A position beyond what the upstream has synced, on its own branch, is no divergence: it waits.
        let ahead = w.wal.limit(theirs, own.branch).is_some() && theirs.branch == own.branch;
        if !ahead {
            return Some(Ask::Diverged);
        }
    }
    if let Some(data) = w.members[member].disk.data.as_mut() {
        let tlis = w.wal.branches().filter(|(id, _)| w.wal.limit(theirs, *id).is_some());
        // What lies beyond the last whole record is received again.
        data.at = own;
        data.written = own;
        data.histories.extend(tlis.filter(|(_, b)| b.parent.is_some()).map(|(_, b)| b.tli.0));
    }
    let branch = match w.wal.next_on_path(own.branch, theirs.branch) {
        Some((next, fork)) if own.branch != theirs.branch && own.lsn >= fork => next,
        _ => own.branch,
    };
    Some(Ask::Stream(branch, sender::begin(own.lsn)))
}

fn upstream_at(w: &mut World, far: usize) -> Option<At> {
    let at = w.flushed(far)?;
    let on = w.server(far).map(|s| (s.phase, s.branch));
    Some(match on {
        Some((Phase::Primary, branch)) => At { branch, lsn: at.lsn },
        _ => at,
    })
}

fn stage(pg: &Pg, branch: BranchId, from: Lsn, up: &Near<Up>) {
    let timeline = pg.sim.with(|w| w.wal.branch(branch).tli);
    pg.receiver(|r| r.timeline = timeline);
    pg.with(|s| s.received = Some(s.received.map_or(from, |r| r.max(from))));
    let _ = up.send(Up::Stream { branch, from });
}

async fn stream(pg: &Pg, far: usize, from_far: &mut UnboundedReceiver<Down>, up: &Near<Up>) {
    let timeout = micros(pg.sim.with(|w| w.spec.silent_after)) * 3 / 2;
    let mut asked = false;
    let mut alarm = pg.sim.sleep(timeout / 2);
    let mut status = pg.sim.sleep(STATUS_INTERVAL);
    loop {
        let Some(heard) = pg.receiver(|r| r.last_heard) else { return };
        let wake = heard + if asked { timeout } else { timeout / 2 };
        let said = tokio::select! {
            biased;
            said = from_far.recv() => match said {
                Some(said) => said,
                None => return,
            },
            () = &mut status => {
                tell(pg, up);
                status = pg.sim.sleep(STATUS_INTERVAL);
                continue;
            }
            () = &mut alarm => {
                if pg.sim.now() < wake {
                    alarm = pg.sim.sleep_until(wake);
                    continue;
                }
                if asked {
                    return;
                }
                asked = true;
                let _ = up.send(Up::Ping);
                alarm = pg.sim.sleep_until(heard + timeout);
                continue;
            }
        };
        asked = false;
        let now = pg.sim.now();
        pg.receiver(|r| r.last_heard = now);
        match said {
            Down::KeepAlive => tell(pg, up),
            Down::Wal { branch, upto } => {
                write(pg, branch, upto);
                pg.sync_takes(pg.sim.between(Stream::Postgres, 150, 2_000)).await;
                sync(pg);
                tell(pg, up);
            }
            Down::EndOfTimeline => {
                pg.sim.sleep(pg.sim.between(Stream::Postgres, 500, 5_000)).await;
                let next = pg.sim.with(|w| {
                    let (own, theirs) = (w.flushed(pg.member)?, upstream_at(w, far)?);
                    let (next, fork) = w.wal.next_on_path(own.branch, theirs.branch)?;
                    (own.lsn >= fork).then_some((next, sender::begin(own.lsn)))
                });
                match next {
                    Some((branch, from)) => stage(pg, branch, from, up),
                    None => return,
                }
            }
        }
    }
}

/// Writes what arrived: up to what is there already it fills a segment of the newer timeline anew.
fn write(pg: &Pg, branch: BranchId, upto: Lsn) {
    pg.with_world(|w| {
        let tli = w.wal.branch(branch).tli;
        let arrived = w.wal.normal(At { branch, lsn: upto });
        let Some(data) = w.members[pg.member].disk.data.as_mut() else { return };
        let own = w.wal.branch(data.written.branch).tli;
        if upto <= data.written.lsn {
            data.piece = (tli > own).then_some((tli, upto));
        } else {
            data.written = arrived;
            data.piece = None;
        }
        if let Some(server) = w.server(pg.member) {
            server.received = Some(upto);
        }
    });
}

fn sync(pg: &Pg) {
    pg.with_world(|w| {
        if let Some(data) = w.members[pg.member].disk.data.as_mut() {
            data.at = data.written;
        }
    });
    pg.tell();
}

fn tell(pg: &Pg, up: &Near<Up>) {
    let position = pg.with_world(|w| {
        let at = w.flushed(pg.member)?;
        let server = w.server(pg.member)?;
        let flush = server.received.map_or(server.replay, |r| r.min(at.lsn).max(server.replay));
        Some((flush, server.replay))
    });
    if let Some(Some((flush, replay))) = position {
        let _ = up.send(Up::Position { flush, replay });
    }
}
