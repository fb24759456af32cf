//! Asks the running PostgreSQL for its facts, over and over: fast while something is under way, else every 100 ms.

use std::sync::Arc;
use std::time::Duration;

use proto::{Lsn, Timeline};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::action::ActionKind;
use crate::facts::{Local, Process};
use crate::postgres::probe::{SqlFacts, probe};
use crate::postgres::session::Session;
use crate::postgres::wal_files;
use crate::report::kind;
use crate::worker::Worker;

/// How eagerly to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// A change is expected within milliseconds.
    Eager,
    Steady,
}

impl Pace {
    fn interval(self) -> Duration {
        match self {
            Pace::Eager => Duration::from_millis(10),
            // A tenth of the shortest silence that counts.
            Pace::Steady => Duration::from_millis(100),
        }
    }
}

/// Asks until `stop`. What it sends is `None` while PostgreSQL does not run or does not answer.
pub async fn gather(
    worker: Arc<Worker>,
    mut pace: watch::Receiver<Pace>,
    facts: watch::Sender<Option<SqlFacts>>,
    stop: CancellationToken,
) {
    let mut session: Option<Session> = None;
    while !stop.is_cancelled() {
        let asked_of = worker.local().process;
        let answer = ask(&worker, &mut session).await;
        if let Some(answer) = &answer {
            worker.note_quietly(|local| note_answer(local, asked_of, answer));
        }
        let streaming = answer.as_ref().and_then(|a| a.receiver.as_ref()).filter(|r| r.streaming);
        let timeline = streaming.map(|r| r.timeline);
        if timeline.is_some() && worker.local().streamed != timeline {
            let begins = timeline.and_then(|timeline| beginning(&worker, timeline));
            worker.update(|local| {
                // An answer of the PostgreSQL before says nothing of what this one has received.
                if local.process == asked_of {
                    local.streamed = timeline;
                    local.begins = begins;
                }
            });
        }
        facts.send_if_modified(|known| {
            let same = match (&*known, &answer) {
                (Some(a), Some(b)) => a.asked == b.asked,
                (None, None) => true,
                _ => false,
            };
            *known = answer;
            !same
        });
        let wait = pace.borrow_and_update().interval();
        tokio::select! {
            () = sleep(wait) => {}
            _ = pace.changed() => {}
            () = worker.ask.notified() => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Returns where a timeline begins that is streamed. A history that is not there or says nothing is no error: the agreed
/// state names the place too, once the primary is open.
fn beginning(worker: &Worker, timeline: Timeline) -> Option<(Timeline, Lsn)> {
    let history = wal_files::history(&worker.pg_wal(), timeline).ok()?;
    Some((timeline, history.ancestors.last()?.until))
}

/// The PostgreSQL that was asked has started: failures of its start are history.
fn note_answer(local: &mut Local, asked_of: Process, answer: &SqlFacts) {
    if local.process == asked_of {
        if local.last_answer.is_none() {
            local.failures.remove(&ActionKind::StartStandby);
            local.failures.remove(&ActionKind::StartPrimary);
        }
        local.last_answer = Some((kind(answer), answer.asked));
    }
}

async fn ask(worker: &Worker, session: &mut Option<Session>) -> Option<SqlFacts> {
    if !matches!(worker.local().process, Process::Running { .. }) {
        *session = None;
        return None;
    }
    if session.as_ref().is_none_or(Session::is_closed) {
        *session = worker.door.open().await.ok();
    }
    let asked = store::clock::now();
    let answer = timeout(Duration::from_secs(2), probe(session.as_ref()?, asked)).await;
    match answer {
        Ok(Ok(facts)) => Some(facts),
        Ok(Err(_)) | Err(_) => {
            *session = None;
            None
        }
    }
}
