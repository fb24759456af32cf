//! Asks every keeper for its positions at once. No answer in time is an answer: the positions are not known.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use proto::status::MemberStatus;
use proto::{MemberName, MemberReport};
use tokio::task::JoinSet;

use super::Answers;

/// A keeper answers in a millisecond or two; a person waits for the slowest.
const DEADLINE: Duration = Duration::from_millis(300);

/// A status has a few kB; whatever else listens on that port must not fill our memory.
const LONGEST_ANSWER: usize = 1 << 20;

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

/// Returns the answers of those keepers of `reports` that answered in time.
pub async fn all(reports: &BTreeMap<MemberName, MemberReport>) -> Answers {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(DEADLINE));
    let client: HttpClient = Client::builder(TokioExecutor::new()).build(connector);
    let mut asked = JoinSet::new();
    for report in reports.values() {
        asked.spawn(in_time(client.clone(), report.clone()));
    }
    asked.join_all().await.into_iter().flatten().map(|s| (s.report.member.clone(), s)).collect()
}

async fn in_time(client: HttpClient, report: MemberReport) -> Option<MemberStatus> {
    match tokio::time::timeout(DEADLINE, one(client, &report)).await {
        Ok(Ok(status)) => Some(status),
        Ok(Err(error)) => {
            tracing::info!(member = %report.member, "its keeper cannot be asked: {error:#}");
            None
        }
        Err(_) => {
            tracing::info!(member = %report.member, "its keeper did not answer within {DEADLINE:?}");
            None
        }
    }
}

async fn one(client: HttpClient, report: &MemberReport) -> anyhow::Result<MemberStatus> {
    let uri =
        format!("http://{}/status", report.http_address).parse().context("read its address")?;
    let answer = client.get(uri).await.context("GET /status")?;
    ensure!(answer.status().is_success(), "GET /status is answered with {}", answer.status());
    let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
    let body = body.map_err(|e| anyhow::anyhow!("read the answer: {e}"))?;
    let status: MemberStatus =
        serde_json::from_slice(&body.to_bytes()).context("decode the answer")?;
    // After a change of addresses another member may answer there.
    let same =
        status.report.member == report.member && status.report.incarnation == report.incarnation;
    ensure!(same, "{} answers there", status.report.member);
    Ok(status)
}
