//! Looks at the primary that this standby follows, and asks it for a session once it leaves echoes unanswered. What that
//! means is decided in `standstill`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::{Lsn, MemberName};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::health::{Answer, Vital};
use crate::postgres::probe::SqlFacts;
use crate::postgres::settings::REPLICATION_ROLE;
use crate::postgres::source::Source;
use crate::pulse::pause;
use crate::standstill::Watched;
use crate::worker::Worker;

/// Looks at each answer of PostgreSQL until `stop`, and wakes whoever decides when that changes what is to be said.
pub async fn watch(
    worker: Arc<Worker>,
    mut sql: watch::Receiver<Option<SqlFacts>>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            changed = sql.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        let watched = followed(&worker).map(|(_, watched)| watched);
        let silent_after = worker.spec().silent_after;
        let end = sql.borrow_and_update().as_ref().and_then(|sql| end(sql, silent_after));
        let (mut before, mut after) = (None, None);
        worker.note_quietly(|local| {
            before = local.standstill.told();
            local.standstill.look(store::clock::now(), watched, end);
            after = local.standstill.told();
        });
        if before != after {
            tracing::info!(standstill = ?after, "whether the primary gets on changed");
            worker.update(|_| {});
        }
    }
}

/// Returns where the WAL of the streaming primary ends, while it is heard: a receiver asks for a sign after three quarters of
/// `silent_after`. One that hears nothing may hang itself, as on a disk that does not answer.
fn end(sql: &SqlFacts, silent_after: Duration) -> Option<Lsn> {
    let receiver = sql.receiver.as_ref().filter(|r| r.streaming && sql.in_recovery)?;
    let is_heard = receiver.silent_for <= silent_after;
    receiver.primary_end.max(sql.flush_lsn).filter(|_| is_heard)
}

/// Asks a suspected primary for a session, over and over, until `stop`.
pub async fn visit(worker: Arc<Worker>, stop: CancellationToken) {
    let visiting = async {
        loop {
            let after = worker.spec().unresponsive_after;
            sleep(pause(after)).await;
            let now = store::clock::now();
            let missed = worker.local().missed_echo.filter(|at| now.since(*at) < after);
            let Some(source) = missed.and_then(|_| source(&worker)) else {
                worker.note_quietly(|local| local.standstill.sessions = Vital::default());
                continue;
            };
            worker.note_quietly(|local| local.standstill.sessions.asks(now));
            let answer = match timeout(after, source.session(&worker.secrets.replication)).await {
                Ok(Ok(_)) => Answer::Well,
                // A refusal, or a link that broke: that it cannot be reached is for others to judge.
                Ok(Err(_)) => Answer::Unknown,
                Err(_) => Answer::Unwell(format!("no answer within {after:?}")),
            };
            worker.note_quietly(|local| local.standstill.sessions.hears(answer));
        }
    };
    tokio::select! {
        () = visiting => {}
        () = stop.cancelled() => {}
    }
}

/// Returns the open primary that this member follows.
fn followed(worker: &Worker) -> Option<(MemberName, Watched)> {
    // Before the view is held: whoever holds it twice waits for a writer that waits for the first.
    let unresponsive_after = worker.spec().unresponsive_after;
    let view = worker.view.borrow();
    let state = view.state.as_ref().filter(|state| state.is_open())?;
    let primary = state.primary.clone().filter(|primary| *primary != worker.place.member)?;
    let restart = state.restart.as_ref().filter(|r| r.epoch == state.epoch).map_or(0, |r| r.number);
    Some((primary, Watched { epoch: state.epoch, restart, unresponsive_after }))
}

/// Returns the primary as this member would log in to it.
fn source(worker: &Worker) -> Option<Source> {
    let (host, port) = worker.address_of(&followed(worker)?.0).ok()?;
    Some(Source {
        host,
        port,
        user: REPLICATION_ROLE.to_owned(),
        // For libpq's programs, of which none is asked.
        passfile: PathBuf::new(),
        application_name: "pgdeputy-keeper".to_owned(),
        tls: worker.place.tls.clone(),
    })
}
