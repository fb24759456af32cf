//! The keeper's HTTP endpoints for load balancers, monitoring and people; gRPC on the same port.
//!
//! Read-only. The paths and their meanings are those that Patroni users have in their configurations: 200 is
//! yes, 503 is no, and what is not known is no.

mod agent;
mod asked;
mod metrics;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Json, Router};
use proto::Moment;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use agent::{Agents, Word};
use asked::Asked;

use crate::service;
use crate::view::{Serving, View};

/// A client that is still reading its answer when the keeper ends gets this long and no more.
const CLOSING_TIME: Duration = Duration::from_millis(500);

type Shared = Arc<watch::Receiver<View>>;

/// A query in which a key may come twice.
type Pairs = Vec<(String, String)>;

/// Answers on `listener` from the newest view, and by the routes of `more`, until `stop`.
pub async fn serve(
    listener: TcpListener,
    view: watch::Receiver<View>,
    agents: Arc<Agents>,
    more: Router,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = agent::sort(listener, view.clone(), agents, stop.clone())?;
    let serving = axum::serve(listener, router(view).merge(more))
        .with_graceful_shutdown(stop.clone().cancelled_owned());
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(CLOSING_TIME).await;
    };
    tokio::select! {
        ended = serving.into_future() => Ok(ended?),
        () = overdue => Ok(()),
    }
}

/// Returns the routes of the member itself.
pub fn router(view: watch::Receiver<View>) -> Router {
    let shared: Shared = Arc::new(view.clone());
    let mut router = Router::new();
    for path in ["/", "/primary", "/master", "/leader", "/read-write"] {
        router = router.route(path, check(|view, asked, now| asked.primary(view, now)));
    }
    for path in ["/synchronous", "/sync", "/quorum"] {
        let holds = |v: &View, asked: &Asked, now| asked.standby(v, now) && v.synchronous;
        router = router.route(path, check(holds));
    }
    for path in ["/asynchronous", "/async"] {
        let holds = |v: &View, asked: &Asked, now| asked.standby(v, now) && !v.synchronous;
        router = router.route(path, check(holds));
    }
    for path in ["/read-only-sync", "/read-only-quorum"] {
        router = router.route(
            path,
            check(|v, asked, now| {
                asked.primary(v, now) || (asked.standby(v, now) && v.synchronous)
            }),
        );
    }
    for path in ["/read-only", "/readiness"] {
        let holds = |v: &View, asked: &Asked, now| asked.primary(v, now) || asked.standby(v, now);
        router = router.route(path, check(holds));
    }
    let fresh =
        |v: &View, asked: &Asked, now| asked.primary(v, now) || (asked.standby(v, now) && v.fresh);
    router
        .route("/replica", check(|view, asked, now| asked.standby(view, now)))
        .route("/fresh", check(fresh))
        .route("/health", check(|view, _, _| view.status.report.is_running()))
        .route("/liveness", check(|_, _, _| true))
        .route("/cluster", get_or_options(cluster))
        .route("/status", get_or_options(status))
        .route("/metrics", get_or_options(metrics::metrics))
        .with_state(shared)
        .merge(service::routes(view))
}

/// The body of every check; load balancers look at the status code only.
#[derive(Serialize)]
struct Answer {
    role: Serving,
    state: &'static str,
    timeline: Option<proto::Timeline>,
    epoch: proto::Epoch,
}

fn check(holds: fn(&View, &Asked, Moment) -> bool) -> MethodRouter<Shared> {
    get_or_options(async move |State(view): State<Shared>, Query(query): Query<Pairs>| {
        let asked = match Asked::parse(&query) {
            Ok(asked) => asked,
            Err(problem) => return (StatusCode::BAD_REQUEST, problem).into_response(),
        };
        let view = view.borrow();
        let code = match holds(&view, &asked, store::clock::now()) {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        (code, Json(answer(&view))).into_response()
    })
}

fn answer(view: &View) -> Answer {
    let role = view.serving_at(store::clock::now());
    Answer { role, state: state_word(view), timeline: view.timeline(), epoch: view.epoch() }
}

fn state_word(view: &View) -> &'static str {
    use proto::report::Server;
    match view.status.report.server {
        Server::Unknown => "unknown",
        Server::Stopped => "stopped",
        Server::Starting => "starting",
        Server::Standby { .. } | Server::Primary { .. } => "running",
        Server::Dead { .. } => "dead",
    }
}

/// HEAD is answered by GET's handler without its body; HAProxy's older configurations ask by OPTIONS.
fn get_or_options<H, T>(handler: H) -> MethodRouter<Shared>
where
    H: axum::handler::Handler<T, Shared>,
    T: 'static,
{
    on(MethodFilter::GET.or(MethodFilter::OPTIONS), handler)
}

async fn cluster(State(view): State<Shared>) -> Response {
    match &view.borrow().cluster {
        Some(state) => json(proto::document::encode(state)),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the cluster's state is not known yet\n")
            .into_response(),
    }
}

async fn status(State(view): State<Shared>) -> Response {
    Json(view.borrow().status_at(store::clock::now(), store::clock::wall())).into_response()
}

fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

#[cfg(test)]
mod tests;
