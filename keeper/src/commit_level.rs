//! Asks the running PostgreSQL whether commits wait until they are replayed: by its settings, and by those of roles and
//! databases. Asked only where the spec wants it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::facts::Process;
use crate::postgres::session::Session;
use crate::worker::Worker;

/// Settings change when a person changes them.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// On a session without options, so that the answer is what a client gets that asks for nothing.
const QUESTION: &str =
    "SELECT current_setting('synchronous_commit') = 'remote_apply' AND NOT EXISTS (
    SELECT FROM pg_db_role_setting s, unnest(s.setconfig) c
     WHERE c LIKE 'synchronous_commit=%' AND c <> 'synchronous_commit=remote_apply')";

/// Asks until `stop`.
pub async fn follow(worker: Arc<Worker>, stop: CancellationToken) {
    let mut session = None;
    loop {
        let answer = ask(&worker, &mut session).await;
        if worker.local().remote_apply != answer {
            tracing::info!(?answer, "whether commits wait until they are replayed");
            worker.note_quietly(|local| local.remote_apply = answer);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}

async fn ask(worker: &Worker, session: &mut Option<Session>) -> Option<bool> {
    let runs = matches!(worker.local().process, Process::Running { .. });
    if !runs || !worker.spec().waits_for_replay() {
        *session = None;
        return None;
    }
    if session.as_ref().is_none_or(Session::is_closed) {
        *session = worker.door.open_as_a_client().await.ok();
    }
    let answer = session.as_ref()?.value::<bool>(QUESTION).await.ok();
    if answer.is_none() {
        *session = None;
    }
    answer
}
