//! The keeper's HTTP endpoints for load balancers, monitoring and people; gRPC on the same port.
//!
//! Read-only. The paths and their meanings are those that Patroni users have in their configurations: 200 is
//! yes, 503 is no, and what is not known is no.

mod metrics;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::service;
use crate::view::{Serving, View};

/// A client that is still reading its answer when the keeper ends gets this long and no more.
const CLOSING_TIME: Duration = Duration::from_millis(500);

type Shared = Arc<watch::Receiver<View>>;

/// Answers on `listener` from the newest view until `stop`.
pub async fn serve(
    listener: TcpListener,
    view: watch::Receiver<View>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    // Answers are small and load balancers wait for them: Nagle's delay would only add to the outage.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let serving =
        axum::serve(listener, router(view)).with_graceful_shutdown(stop.clone().cancelled_owned());
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(CLOSING_TIME).await;
    };
    tokio::select! {
        ended = serving.into_future() => Ok(ended?),
        () = overdue => Ok(()),
    }
}

/// Returns all routes of the keeper's port.
pub fn router(view: watch::Receiver<View>) -> Router {
    let shared: Shared = Arc::new(view.clone());
    let mut router = Router::new();
    for path in ["/", "/primary", "/master", "/leader", "/read-write"] {
        router = router.route(path, check(|view, _| view.serves(Serving::Primary)));
    }
    for path in ["/synchronous", "/sync"] {
        router =
            router.route(path, check(|view, asked| view.is_standby(asked) && view.synchronous));
    }
    for path in ["/asynchronous", "/async"] {
        router =
            router.route(path, check(|view, asked| view.is_standby(asked) && !view.synchronous));
    }
    router
        .route("/replica", check(|view, asked| view.is_standby(asked)))
        .route(
            "/read-only",
            check(|view, asked| view.serves(Serving::Primary) || view.is_standby(asked)),
        )
        .route("/health", check(|view, _| view.status.report.is_running()))
        .route("/liveness", check(|_, _| true))
        .route(
            "/readiness",
            check(|view, asked| view.serves(Serving::Primary) || view.is_standby(asked)),
        )
        .route("/cluster", get_or_options(cluster))
        .route("/status", get_or_options(status))
        .route("/metrics", get_or_options(metrics::metrics))
        .with_state(shared)
        .merge(service::routes(view))
}

/// What a check may be asked besides its path.
#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    /// The lag, in bytes, above which a standby is refused.
    lag: Option<u64>,
}

#[derive(Deserialize)]
struct RawAsked {
    lag: Option<String>,
}

impl View {
    fn serves(&self, whom: Serving) -> bool {
        self.serving_at(store::clock::now()) == whom
    }

    fn is_standby(&self, asked: Asked) -> bool {
        self.serves(Serving::Standby) && self.is_within(asked.lag)
    }
}

/// The body of every check; load balancers look at the status code only.
#[derive(Serialize)]
struct Answer {
    role: Serving,
    state: &'static str,
    timeline: Option<proto::Timeline>,
    epoch: proto::Epoch,
}

fn check(holds: fn(&View, Asked) -> bool) -> MethodRouter<Shared> {
    get_or_options(async move |State(view): State<Shared>, Query(raw): Query<RawAsked>| {
        let lag = match raw.lag.as_deref().map(bytes).transpose() {
            Ok(lag) => lag,
            Err(problem) => return (StatusCode::BAD_REQUEST, problem).into_response(),
        };
        let view = view.borrow();
        let code = match holds(&view, Asked { lag }) {
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

/// Reads an amount of bytes: a plain number, or one with kB, MB, GB or TB, which are PostgreSQL's powers of 1024.
fn bytes(given: &str) -> Result<u64, String> {
    let error = || format!("lag {given:?} is not an amount such as 1048576, 512kB, 10MB or 1GB\n");
    let digits = given.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = given.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" | "k" => 1 << 10,
        "MB" | "M" => 1 << 20,
        "GB" | "G" => 1 << 30,
        "TB" | "T" => 1 << 40,
        _ => return Err(error()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(error)
}

#[cfg(test)]
mod tests;
