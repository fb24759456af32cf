//! Clients: some are led by the router, some hold on to whatever member they once found. Each commits, and reads.
//!
//! The one rule: what a client was told is told to the oracle, and nothing else is.

use super::executor::{Micros, Node, Sim};
use super::postgres::{Pg, Phase};
use super::rng::Stream;
use super::router::write_target;

/// After this long a client gives up and does not know what became of its commit.
const PATIENCE: Micros = 4_000_000;
/// So many times as long a client pauses while it is calm.
const CALM: u64 = 8;
/// How many of a hundred transactions only read.
const READS: u64 = 20;

struct Session {
    pg: Pg,
    begun: u64,
}

impl Sim {
    /// Starts the clients.
    pub fn clients_start(&self) {
        let (routed, stubborn, pause) = self.with(|w| {
            (w.profile.routed_clients, w.profile.stubborn_clients, w.profile.client_pause)
        });
        for number in 0..routed + stubborn {
            let proc = self.start_process(Node::Client);
            self.spawn(proc, client(self.clone(), number < routed, pause));
        }
    }
}

async fn client(sim: Sim, routed: bool, pause: Micros) {
    let mut session: Option<Session> = None;
    loop {
        let pause = sim.between(Stream::Clients, pause / 2, pause * 3 / 2);
        sim.rest(pause, pause * CALM).await;
        if session.as_ref().is_none_or(|s| !is_alive(s)) {
            session = connect(&sim, routed).await;
        }
        let Some(open) = &session else { continue };
        let done = sim.within(PATIENCE, transaction(&sim, &open.pg)).await;
        if done != Some(true) {
            session = None;
        }
    }
}

fn is_alive(session: &Session) -> bool {
    session.pg.with(|s| s.session_floor < session.begun).unwrap_or(false)
}

async fn connect(sim: &Sim, routed: bool) -> Option<Session> {
    let member = sim.with(|w| {
        let names: Vec<_> = w.members.iter().map(|m| m.name.clone()).collect();
        write_target(w.routes.as_ref(), &names)
    });
    let count = sim.with(|w| w.members.len() as u64);
    let member = match routed {
        true => member?,
        false => sim.chance(Stream::Clients, |r| r.between(0, count - 1)) as usize,
    };
    sim.within(1_000_000, sim.pass(Node::Client, Node::Member(member))).await?;
    let pg = sim.session(member)?;
    pg.with(|s| s.lets_clients_in()).filter(|open| *open)?;
    sim.within(1_000_000, sim.pass(Node::Member(member), Node::Client)).await?;
    Some(Session { pg, begun: sim.fresh() })
}

/// One commit and one read, or a read alone, as of a primary whose commits all wait; false ends the session.
async fn transaction(sim: &Sim, pg: &Pg) -> bool {
    let there = Node::Member(pg.member);
    sim.pass(Node::Client, there).await;
    if pg.with(|s| s.phase == Phase::Primary) != Some(true) {
        return pg.with(|_| ()).is_some() && sim.chance(Stream::Clients, |r| r.percent(70));
    }
    if sim.chance(Stream::Clients, |r| r.percent(READS)) {
        return read(sim, pg).await;
    }
    let (tx, size) = (sim.fresh(), sim.between(Stream::Clients, 80, 9_000));
    sim.with(|w| w.counts.tried += 1);
    let answered = pg.commit(tx, size).await;
    sim.pass(there, Node::Client).await;
    match answered {
        Ok(Ok(at)) => {
            sim.oracle_told(pg.member, tx, at);
            read(sim, pg).await
        }
        Ok(Err(_)) | Err(_) => false,
    }
}

async fn read(sim: &Sim, pg: &Pg) -> bool {
    let there = Node::Member(pg.member);
    sim.pass(Node::Client, there).await;
    let seen = pg.with(|s| (s.branch, s.visible, s.phase));
    sim.pass(there, Node::Client).await;
    match seen {
        Some((branch, lsn, Phase::Primary)) => {
            sim.oracle_read(pg.member, super::wal::At { branch, lsn });
            true
        }
        Some(_) | None => false,
    }
}
