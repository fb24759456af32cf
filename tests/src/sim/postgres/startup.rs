//! The startup process: recovery, replay, the receiver's start, and promotion.

use proto::{Lsn, Timeline};

use super::{Pg, Phase, Server, receiver};
use crate::sim::rng::Stream;
use crate::sim::wal::At;
use crate::sim::watch;
use crate::sim::world::World;

/// Recovers, then stands by or serves.
pub async fn run(pg: Pg) {
    let sim = pg.sim.clone();
    sim.sleep(sim.between(Stream::Postgres, 20_000, 120_000)).await;
    let Some(Some(found)) = pg.with_world(|w| recover(w, pg.member)) else { return };
    if found.bricked {
        sim.postmaster_dies(pg.member);
        return;
    }
    let redo = sim.between(Stream::Postgres, 5_000, 150_000);
    sim.sleep(redo).await;
    if found.standby {
        pg.with(|s| {
            s.phase = Phase::Standby;
            s.replay = found.redo;
            s.visible = found.redo;
        });
        standby(&pg).await;
    } else {
        pg.with_world(|w| {
            let Some(data) = &mut w.members[pg.member].disk.data else { return };
            data.clean = false;
            let end = w.wal.append(found.end.branch, 120);
            data.at = At { branch: found.end.branch, lsn: end };
            data.written = data.at;
            data.control = w.wal.branch(found.end.branch).tli;
        });
        primary(&pg, found.end);
    }
}

struct Found {
    end: At,
    redo: Lsn,
    standby: bool,
    bricked: bool,
}

fn recover(w: &mut World, member: usize) -> Option<Found> {
    let data = w.members[member].disk.data.as_mut()?;
    if data.mixed {
        w.oracle.violate("I14", format!("member {member} is started on half-rewound data"));
    }
    let end = data.end_for_recovery(&w.wal);
    let own = w.wal.branch(end.branch).tli;
    let bricked = data.standby_signal && data.aims_at_a_placeholder(own);
    let mut end_at = end;
    if !data.standby_signal {
        // A primary writes on in the branch that it was writing, or in one of its own if others went on from there.
        let last = data.at.branch;
        end_at = At { branch: last, lsn: end.lsn };
        if w.wal.end(last) > end.lsn {
            let (tli, epoch) = (w.wal.branch(last).tli, w.wal.branch(last).epoch);
            end_at.branch = w.wal.fork(tli, Some(end), epoch);
        }
    }
    data.at = end_at;
    data.written = end_at;
    data.piece = None;
    data.clean = false;
    let redo = Lsn(end.lsn.0.saturating_sub(if data.clean { 0 } else { 2_000 }));
    let standby = data.standby_signal;
    if let Some(server) = w.server(member) {
        server.branch = end_at.branch;
    }
    Some(Found { end: end_at, redo, standby, bricked })
}

fn primary(pg: &Pg, end: At) {
    pg.with(|s| {
        s.phase = Phase::Primary;
        s.branch = end.branch;
        s.replay = end.lsn;
        s.visible = end.lsn;
        s.sessions = true;
    });
    pg.tell();
    pg.sim.oracle_look(pg.member);
}

/// Replays and keeps a receiver until it is promoted.
async fn standby(pg: &Pg) {
    let sim = &pg.sim;
    let Some(mut changed) = pg.with(|s| s.changed.subscribe()) else { return };
    loop {
        changed.borrow_and_update();
        let Some(Some(end)) =
            pg.with_world(|w| Some(w.members[pg.member].disk.data.as_ref()?.end(&w.wal)))
        else {
            return;
        };
        let Some((replay, promote, receives, upstream, eager)) = pg.with(|s| {
            (s.replay, s.promote, s.receiver.is_some(), s.startup_upstream.clone(), s.startup_eager)
        }) else {
            return;
        };
        if replay < end.lsn {
            sim.sleep(sim.between(Stream::Postgres, 100, 2_000)).await;
            pg.with(|s| {
                s.replay = s.replay.max(end.lsn);
                s.visible = s.replay;
            });
            continue;
        }
        let consistent = pg.with_world(|w| becomes_consistent(w, pg.member));
        if consistent == Some(true) {
            pg.with(|s| s.sessions = true);
        } else if promote {
            // "WAL ends before consistent recovery point"
            return sim.postmaster_dies(pg.member);
        }
        if promote {
            return promoted(pg, &mut changed).await;
        }
        if let Some(upstream) = upstream.filter(|_| !receives) {
            receiver::start(pg, upstream);
            let pause = if eager { 20_000 } else { 100_000 };
            sim.sleep(pause).await;
            continue;
        }
        let _ = changed.changed().await;
    }
}

/// What a standby has replayed is consistent once it is all that its pages may be of; then nothing more is needed.
fn becomes_consistent(w: &mut World, member: usize) -> bool {
    let Some(data) = &w.members[member].disk.data else { return false };
    if !data.is_consistent(&w.wal) {
        return false;
    }
    if let Some(data) = &mut w.members[member].disk.data {
        data.needed = None;
    }
    true
}

async fn promoted(pg: &Pg, changed: &mut watch::Receiver<()>) {
    let sim = &pg.sim;
    // `ShutdownWalRcv` has no time-out: it waits for a receiver that is stopped.
    let receiver = |s: &mut Server| s.receiver.as_ref().map(|r| r.proc);
    if let Some(Some(proc)) = pg.with(receiver) {
        pg.end_receiver(proc);
        while pg.with(receiver).flatten() == Some(proc) {
            let _ = changed.changed().await;
        }
    }
    sim.sleep(sim.between(Stream::Postgres, 5_000, 40_000)).await;
    let known = pg.with_world(|w| {
        let data = w.members[pg.member].disk.data.as_mut()?;
        let end = data.end_for_recovery(&w.wal);
        let own = w.wal.branch(end.branch).tli;
        let tli = Timeline(data.newest_timeline(own) + 1);
        data.histories.insert(tli.0);
        data.piece = None;
        Some((end, tli))
    });
    let Some(Some((end, tli))) = known else { return };
    // The history file is there, pg_control says nothing of it yet: a crash here leaves a cut promotion.
    sim.sleep(sim.between(Stream::Postgres, 500, 8_000)).await;
    let begun = pg.with_world(|w| {
        let epoch = w.members[pg.member].disk.files.as_ref().map_or(0, |f| f.epoch.0);
        let branch = w.wal.fork(tli, Some(end), epoch);
        let lsn = w.wal.append(branch, 60);
        let at = At { branch, lsn };
        let data = w.members[pg.member].disk.data.as_mut()?;
        data.at = at;
        data.written = at;
        data.standby_signal = false;
        Some(at)
    });
    let Some(Some(at)) = begun else { return };
    sim.oracle_branch(pg.member, at.branch);
    primary(pg, at);
    pg.with(|s| s.visible = end.lsn);
}
