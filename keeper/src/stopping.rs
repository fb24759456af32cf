//! The end of a keeper that was asked to stop: a primary hands over first; then PostgreSQL, then the keys. Where all are
//! asked to stop, the primary ends first and the others have all that it wrote.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use proto::request::{Request, RequestId, RequestOutcome, Terms, Unheld, Wanted};
use proto::{ClusterState, MemberName, Phase};
use store::requests::{AskError, Asked, ask};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::facts::ClusterView;
use crate::fencer::FencerEvent;
use crate::worker::Worker;

/// A fast stop waits for the walsenders' last handshake; a standby that hangs is not waited for longer.
const FAST_STOP_AT_MOST: Duration = Duration::from_secs(10);

/// Long enough for the last report to be put, and for the leader to read it before the lease is gone.
const LAST_WORD: Duration = Duration::from_millis(300);

/// Between two tries to ask while another's request waits, or the store does not answer.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Whoever stops a whole cluster asks all keepers within moments. Each says so and then looks around for this long, in which
/// its member serves on.
const LOOK_AROUND: Duration = Duration::from_millis(250);

/// Returns once this member's PostgreSQL may stop for all that the cluster needs of it: it is no primary, or handed over,
/// or nobody can take over, or `within` has passed.
pub async fn be_relieved(worker: Arc<Worker>, within: Duration) {
    if within.is_zero() {
        return;
    }
    let mut asked = None;
    match timeout(within, release(&worker, within, &mut asked)).await {
        Ok(why) => tracing::info!(why, "stops now"),
        Err(_) => tracing::warn!("nobody took over in time: stops nevertheless"),
    }
    // What is not begun by now must not begin later: the member would come back to it.
    if let Some(asked) = asked
        && let Err(error) = asked.withdraw(worker.store.as_ref()).await
    {
        tracing::warn!(%error, "withdraw the request for a switchover");
    }
}

/// Returns why this member may stop, once it may.
async fn release(worker: &Worker, within: Duration, asked: &mut Option<Asked>) -> String {
    let member = &worker.place.member;
    sleep(LOOK_AROUND).await;
    let mut view = worker.view.clone();
    loop {
        let now = view.borrow_and_update().clone();
        let Some(state) = &now.state else { return "no state is known".into() };
        if leads(state, member) {
            tracing::info!(
                ?within,
                "this member is the primary: looks for another before it stops"
            );
            return relief(worker, member, within, asked).await;
        }
        if !is_waited_for(&now, state, member) {
            return "this member is no primary".into();
        }
        if view.changed().await.is_err() {
            return "the keeper ends".into();
        }
    }
}

/// Asks, and returns why there is nothing more to wait for.
async fn relief(
    worker: &Worker,
    member: &MemberName,
    within: Duration,
    asked: &mut Option<Asked>,
) -> String {
    let mut view = worker.view.clone();
    loop {
        let now = view.borrow_and_update().clone();
        let Some(state) = now.state.as_ref().filter(|s| leads(s, member)) else {
            return "another member takes over".into();
        };
        if let Some(reason) = asked.as_ref().and_then(|asked| failed(state, &asked.id)) {
            return format!("nobody takes over: {reason}");
        }
        if asked.is_none() && state.switchover().is_none() {
            if nobody_stays(&now, state, member) {
                return "all others stop as well, or are gone".into();
            }
            match ask(worker.store.as_ref(), &worker.keys, &request(member, within)).await {
                Ok(put) => *asked = Some(put),
                Err(AskError::Waiting(other)) => {
                    tracing::info!(by = other.by, "another request for a switchover waits");
                }
                Err(error) => tracing::warn!(%error, "ask for a switchover"),
            }
        }
        let pause = if asked.is_some() { within } else { ASK_AGAIN };
        let _ = timeout(pause, view.changed()).await;
    }
}

/// Returns whether a standby is needed for a moment yet: by a primary that stops as well and whose last records it should
/// have, so that neither is rewound at the next start; or because it is itself the one that takes over.
fn is_waited_for(view: &ClusterView, state: &ClusterState, member: &MemberName) -> bool {
    let Some(primary) = &state.primary else { return false };
    if primary == member {
        return state.phase == Phase::Promoting;
    }
    let stops = view.reports.get(primary).is_some_and(|r| r.leaving && r.is_running());
    stops || state.handing_over().is_some()
}

/// Returns whether no other member is there that was not asked to stop, too.
fn nobody_stays(view: &ClusterView, state: &ClusterState, member: &MemberName) -> bool {
    let others = state.members.keys().filter(|m| *m != member);
    others.filter_map(|m| view.reports.get(m)).all(|report| report.leaving)
}

fn request(member: &MemberName, within: Duration) -> Request {
    // It stops in any case: better with a successor and some transactions cut than with all of them.
    let terms = Terms { unheld: Unheld::Cut, ..Terms::default() };
    Request {
        id: RequestId::from_random(rand::random()),
        by: format!("keeper of {member}, which was asked to stop"),
        asked: store::clock::wall(),
        valid_for: within,
        wanted: Wanted::Switchover(terms),
    }
}

/// Returns whether `member` is the primary that others depend on.
fn leads(state: &ClusterState, member: &MemberName) -> bool {
    state.primary.as_ref() == Some(member) && (state.is_open() || state.handing_over().is_some())
}

fn failed(state: &ClusterState, id: &RequestId) -> Option<String> {
    match &state.request(id)?.outcome {
        RequestOutcome::Refused { reason } | RequestOutcome::Nothing { reason } => {
            Some(reason.clone())
        }
        RequestOutcome::Started { .. } | RequestOutcome::Done { .. } => None,
    }
}

/// Stops PostgreSQL fast, and fences it where that takes too long. Returns whether no process of it lives.
pub async fn stop_postgres(
    worker: &Worker,
    events: &mut mpsc::UnboundedReceiver<FencerEvent>,
) -> bool {
    if worker.local().process.is_gone() {
        return true;
    }
    let gone = async {
        if worker.fencer.signal(Signal::SIGINT).await.is_err() {
            return;
        }
        while let Some(event) = events.recv().await {
            if matches!(event, FencerEvent::Gone | FencerEvent::Lost) {
                return;
            }
        }
    };
    if timeout(FAST_STOP_AT_MOST, gone).await.is_err() {
        tracing::warn!("the fast stop took too long");
    }
    match worker.fence("the keeper stops").await {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stop PostgreSQL");
            false
        }
    }
}

/// Ends the lease, so that nobody waits for it, and the fencer.
pub async fn give_back(worker: &Worker) {
    sleep(LAST_WORD).await;
    let lease = *worker.lease.borrow();
    if let Some(lease) = lease
        && let Err(error) = worker.store.revoke(lease.id).await
    {
        tracing::warn!(%error, "give the lease back");
    }
    if let Err(error) = worker.fencer.exit().await {
        tracing::warn!(%error, "end the fencer");
    }
}
