//! `GET /metrics`: the view in Prometheus's text format. A value that is not known has no line.

use std::fmt::Write;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use proto::Moment;
use proto::report::RejoinOutcome;

use super::Shared;
use crate::view::{Serving, View};

pub(super) async fn metrics(State(view): State<Shared>) -> Response {
    let text = render(&view.borrow(), store::clock::now());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Returns the metrics of `view` at `now`.
pub(super) fn render(view: &View, now: Moment) -> String {
    let report = &view.status.report;
    let serving = view.serving_at(now);
    let mut page = Page::default();
    page.info(
        "pgdeputy_info",
        &[
            ("member", report.member.as_str()),
            ("version", &report.pgdeputy_version),
            ("postgres_version", &report.postgres_version.to_string()),
        ],
    );
    page.flag("pgdeputy_postgres_running", "PostgreSQL runs.", report.is_running());
    page.flag("pgdeputy_primary", "Serves writes.", serving == Serving::Primary);
    page.flag("pgdeputy_standby", "Serves reads as a standby.", serving == Serving::Standby);
    page.flag("pgdeputy_synchronous", "Acknowledges commits as a standby.", view.synchronous);
    page.flag("pgdeputy_complete", "No WAL or data can be missing.", report.complete);
    page.number(
        "pgdeputy_problems",
        "Problems that the keeper reports.",
        Some(report.problems.len() as u64),
    );
    page.number(
        "pgdeputy_promise",
        "Epoch below which this member serves nobody.",
        Some(report.promise.0),
    );
    page.number(
        "pgdeputy_epoch",
        "Epoch in which this member serves or streams.",
        Some(view.epoch().0),
    );
    page.number("pgdeputy_timeline", "Timeline.", view.timeline().map(|t| u64::from(t.0)));
    page.number(
        "pgdeputy_lag_bytes",
        "WAL that is known to exist and is not replayed here.",
        view.lag.map(|lag| lag.bytes),
    );
    page.seconds(
        "pgdeputy_lag_seconds",
        "Age of the oldest WAL that is not replayed here; 0 while all is and the stream lives.",
        view.lag.map(|lag| lag.time(now)),
    );
    page.flag("pgdeputy_fresh", "Reads here see every commit acknowledged before.", view.fresh);
    let positions = view.status.positions;
    page.number(
        "pgdeputy_flush_lsn_bytes",
        "WAL position held durably.",
        positions.map(|p| p.flush_lsn.0),
    );
    let replay = positions.and_then(|p| p.replay_lsn);
    page.number("pgdeputy_replay_lsn_bytes", "WAL position replayed.", replay.map(|l| l.0));
    rejoin(&mut page, view);
    let walsenders = (serving == Serving::Primary).then_some(view.status.standbys.len() as u64);
    page.number("pgdeputy_walsenders", "Standbys connected to this primary.", walsenders);
    let left = view.serve_until.map(|until| until.since(now));
    page.seconds("pgdeputy_serve_for_seconds", "Time left to serve without renewal.", left);
    let cluster = view.cluster.as_ref();
    page.number("pgdeputy_cluster_epoch", "Epoch agreed on.", cluster.map(|c| c.epoch.0));
    page.number(
        "pgdeputy_cluster_state_number",
        "Number of the agreed state.",
        cluster.map(|c| c.number.0),
    );
    page.number(
        "pgdeputy_cluster_sealing",
        "1 while a new primary is chosen.",
        cluster.map(|c| u64::from(c.sealing.is_some())),
    );
    page.text
}

fn rejoin(page: &mut Page, view: &View) {
    let rejoin = view.status.rejoin_progress;
    page.number(
        "pgdeputy_rejoin_copied_bytes",
        "Copied so far by the rejoin that is under way.",
        rejoin.map(|r| r.copied_bytes),
    );
    page.number(
        "pgdeputy_rejoin_total_bytes",
        "What the rejoin that is under way has to copy.",
        rejoin.map(|r| r.total_bytes),
    );
    let told = view.status.report.rejoin.as_ref();
    page.flag(
        "pgdeputy_rejoin_failed",
        "1 after a rejoin has failed, until the next one begins.",
        told.is_some_and(|r| matches!(r.outcome, RejoinOutcome::Failed { .. })),
    );
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn flag(&mut self, name: &str, help: &str, value: bool) {
        self.number(name, help, Some(u64::from(value)));
    }

    fn number(&mut self, name: &str, help: &str, value: Option<u64>) {
        self.line(name, help, value.map(|v| v.to_string()));
    }

    fn seconds(&mut self, name: &str, help: &str, value: Option<Duration>) {
        self.line(name, help, value.map(|v| format!("{:.3}", v.as_secs_f64())));
    }

    fn line(&mut self, name: &str, help: &str, value: Option<String>) {
        let Some(value) = value else { return };
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    }

    fn info(&mut self, name: &str, labels: &[(&str, &str)]) {
        let escape = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
        let labels = labels.join(",");
        let _ = write!(
            self.text,
            "# HELP {name} Who answers.\n# TYPE {name} gauge\n{name}{{{labels}}} 1\n"
        );
    }
}
