//! Asks the keepers themselves, about once a second, how far their standbys are behind: positions that move with every
//! commit are no news for etcd. No answer in time is an answer: it is not known.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use proto::MemberName;
use proto::status::MemberStatus;
use store::clock;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::route::{Addresses, Answer, Answers, Lag};

const ASK_EVERY: Duration = Duration::from_secs(1);

/// A keeper answers in a millisecond or two; a slow one must not eat the next question's time.
const DEADLINE: Duration = Duration::from_millis(800);

/// A status has a few kB; whatever else listens on that port must not fill our memory.
const LONGEST_ANSWER: usize = 1 << 20;

type Members = BTreeMap<MemberName, Addresses>;
type HttpClient = Client<HttpConnector, Empty<Bytes>>;

/// Asks the keepers of `members` until `stop`.
pub async fn ask(
    members: watch::Receiver<Members>,
    answers: watch::Sender<Answers>,
    stop: CancellationToken,
) {
    let client = client();
    let mut ticks = tokio::time::interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let members = members.borrow().clone();
        tokio::select! {
            () = stop.cancelled() => return,
            () = ask_all(&client, &members, |name, answer| {
                answers.send_modify(|known| {
                    known.insert(name, answer);
                });
            }) => {}
        }
        answers.send_modify(|known| known.retain(|name, _| members.contains_key(name)));
    }
}

/// Asks each keeper once; returns the answers that came in time.
pub async fn ask_once(members: &Members) -> Answers {
    let mut answers = Answers::new();
    let take = |name, answer| {
        answers.insert(name, answer);
    };
    ask_all(&client(), members, take).await;
    answers
}

fn client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(DEADLINE));
    Client::builder(TokioExecutor::new()).build(connector)
}

async fn ask_all(client: &HttpClient, members: &Members, mut take: impl FnMut(MemberName, Answer)) {
    let mut asked = JoinSet::new();
    for (name, at) in members {
        let (client, name, http) = (client.clone(), name.clone(), at.http.to_string());
        asked.spawn(async move {
            let answer = tokio::time::timeout(DEADLINE, one(client, &name, &http)).await;
            match answer {
                Ok(Ok(answer)) => Some((name, answer)),
                Ok(Err(error)) => {
                    tracing::debug!(member = %name, "its keeper cannot be asked: {error:#}");
                    None
                }
                Err(_) => None,
            }
        });
    }
    while let Some(ended) = asked.join_next().await {
        if let Ok(Some((name, answer))) = ended {
            take(name, answer);
        }
    }
}

async fn one(client: HttpClient, name: &MemberName, http: &str) -> anyhow::Result<Answer> {
    let asked = clock::now();
    let uri = format!("http://{http}/status").parse().context("read its address")?;
    let answer = client.get(uri).await.context("GET /status")?;
    ensure!(answer.status().is_success(), "GET /status is answered with {}", answer.status());
    let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
    let body = body.map_err(|e| anyhow::anyhow!("read the answer: {e}"))?;
    let status: MemberStatus =
        serde_json::from_slice(&body.to_bytes()).context("decode the answer")?;
    // After a change of addresses another member may answer there.
    ensure!(status.report.member == *name, "{} answers there", status.report.member);
    Ok(Answer {
        asked,
        lag: status.lag.map(|l| Lag { bytes: l.bytes, time: Duration::from_millis(l.ms) }),
        fresh: status.fresh,
        remote_apply: status.remote_apply == Some(true),
    })
}
