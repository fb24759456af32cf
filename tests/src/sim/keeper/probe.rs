//! The keeper's question to PostgreSQL, answered by the model.

use std::time::Duration;

use keeper::postgres::probe::{Receiver, SqlFacts};
use proto::Moment;

use super::worker::Worker;
use crate::sim::postgres::{Pg, Phase, shown};

/// Asks; `None` where PostgreSQL does not answer.
pub async fn probe(worker: &Worker) -> Option<SqlFacts> {
    let asked = worker.host.now();
    let session = worker.admin().ok()?;
    session.sql(move |pg| facts(pg, asked)).await.ok()
}

/// The same in a calm time, when a few tenths of a millisecond tell nothing: the answer of a server that runs is there
/// at once.
pub async fn probe_calmly(worker: &Worker) -> Option<SqlFacts> {
    let session = worker.admin().ok()?;
    match session.answers_at_once() {
        true => facts(&session, worker.host.now()),
        false => probe(worker).await,
    }
}

fn facts(pg: &Pg, asked: Moment) -> Option<SqlFacts> {
    let walsenders = shown(&pg.sim, pg.member);
    let now = pg.sim.now();
    pg.with_world(|w| {
        let at = w.flushed(pg.member)?;
        let end = w.members[pg.member].disk.data.as_ref()?.end(&w.wal);
        let own = w.wal.branch(end.branch).tli;
        let branch_tli = |b| w.wal.branch(b).tli;
        let written = w.members[pg.member].server.as_ref().map(|s| branch_tli(s.branch))?;
        let server = w.server(pg.member)?;
        let in_recovery = server.phase != Phase::Primary;
        let receiver = server.receiver.as_ref().map(|r| Receiver {
            streaming: r.streaming,
            timeline: r.timeline,
            silent_for: Duration::from_micros(now.saturating_sub(r.last_heard)),
            name: Some(r.name.clone()),
            primary_end: None,
        });
        let streaming = receiver.as_ref().filter(|r| r.streaming).map(|r| r.timeline);
        Some(SqlFacts {
            asked,
            in_recovery,
            timeline: if in_recovery { streaming.unwrap_or(own) } else { written },
            flush_lsn: if in_recovery { server.received } else { Some(at.lsn) },
            replay_lsn: in_recovery.then_some(server.replay),
            replayed_commit_age: None,
            standby_names: server.session_names.clone(),
            receiver: receiver.filter(|_| in_recovery),
            walsenders,
        })
    })
    .flatten()
}
