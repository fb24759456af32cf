//! Which etcd endpoint is asked, and the move to another one when it does not answer.
//!
//! The one rule: one endpoint at a time, each on a connection of its own. A balancer over all of
//! them would send every third request to a dead one, and nobody could say whether it was sent.

use std::fmt;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, KvClient, LeaseClient, WatchClient};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::failure::{self, Failure};
use crate::types::StoreError;

/// A TCP connection that takes longer goes to a host that is not there; leaves a call time to ask another.
const TCP_DEADLINE: Duration = Duration::from_millis(600);

/// Time for one leader election (1 s by default) and more, and below the 5 s promised to operators.
const PROBE_DEADLINE: Duration = Duration::from_secs(4);

/// How often a refused connection is tried again at start: etcd may be starting beside us.
const PROBE_PAUSE: Duration = Duration::from_millis(200);

/// etcd cuts connections that ping more often than each 5 s (`--grpc-keepalive-min-time`) while it
/// has nothing to say. Watches find a dead connection sooner by asking for progress.
const PING_INTERVAL: Duration = Duration::from_secs(6);

/// A ping that is not answered within this: the connection is dead.
const PING_DEADLINE: Duration = Duration::from_secs(2);

/// The largest answer taken. tonic's own 4 MB is less than one watch answer can hold: etcd packs up to
/// 1000 revisions into one, and a request may have 1.5 MB.
const LARGEST_ANSWER: usize = 256 << 20;

/// A connection to one endpoint. It connects when first used, and again whenever it broke.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) url: String,
    /// Counts the connections made; two calls with one turn share one.
    pub(super) turn: u64,
    pub(super) kv: KvClient,
    pub(super) lease: LeaseClient,
    pub(super) watch: WatchClient,
}

/// The endpoints, and the one that is asked now.
pub(super) struct Members {
    urls: Vec<String>,
    current: Mutex<Member>,
}

impl Members {
    /// Asks all endpoints at once and stays with the first that answers.
    pub(super) async fn connect(urls: &[String]) -> Result<Self, StoreError> {
        let members = open_all(urls).await?;
        let deadline = Instant::now() + PROBE_DEADLINE;
        let mut probes = JoinSet::new();
        for member in members {
            probes.spawn(probe(member, deadline));
        }
        let mut failures = Vec::new();
        while let Some(ended) = probes.join_next().await {
            match ended {
                Ok(Ok(member)) => {
                    return Ok(Self { urls: urls.to_vec(), current: Mutex::new(member) });
                }
                Ok(Err(why)) => failures.push(why),
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures.sort();
        Err(StoreError::Unavailable(format!(
            "no etcd endpoint answers ({}); check that etcd runs, that a majority of its members is \
             up and that --etcd names them",
            failures.join("; ")
        )))
    }

    /// Returns the number of endpoints.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.urls.len()).unwrap_or(u32::MAX)
    }

    /// Returns the connection to use.
    pub(super) async fn current(&self) -> Member {
        self.current.lock().await.clone()
    }

    /// Leaves the connection of `turn`, which did not answer, for a new one to the next endpoint. Does
    /// nothing if another call has left it already.
    pub(super) async fn leave(&self, turn: u64) {
        let mut current = self.current.lock().await;
        if current.turn != turn {
            return;
        }
        let place = self.urls.iter().position(|url| *url == current.url).unwrap_or(0);
        let next = &self.urls[(place + 1) % self.urls.len()];
        match Member::open(next, turn + 1).await {
            Ok(member) => {
                if *next != current.url {
                    tracing::info!(from = %current.url, to = %next, "etcd endpoint changed");
                }
                *current = member;
            }
            // The same URLs were opened at start, so this says something odd about this process.
            Err(error) => tracing::warn!(url = %next, %error, "etcd connection not renewed"),
        }
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.urls).finish()
    }
}

impl Member {
    async fn open(url: &str, turn: u64) -> Result<Self, Error> {
        let options = ConnectOptions::new()
            .with_connect_timeout(TCP_DEADLINE)
            .with_keep_alive(PING_INTERVAL, PING_DEADLINE)
            .with_keep_alive_while_idle(false)
            // A member cut off from its majority says so at once, and ends its watches.
            .with_require_leader(true);
        let client = Client::connect([url], Some(options)).await?;
        Ok(Self {
            url: url.to_owned(),
            turn,
            kv: client.kv_client().max_decoding_message_size(LARGEST_ANSWER),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(LARGEST_ANSWER),
        })
    }
}

async fn open_all(urls: &[String]) -> Result<Vec<Member>, StoreError> {
    if urls.is_empty() {
        return Err(StoreError::Refused("no etcd endpoint given; name at least one".to_owned()));
    }
    let mut members = Vec::new();
    for url in urls {
        if !url.starts_with("http://") {
            return Err(not_a_url(url, "it does not begin with http://"));
        }
        let member =
            Member::open(url, 0).await.map_err(|error| not_a_url(url, &error.to_string()))?;
        members.push(member);
    }
    Ok(members)
}

fn not_a_url(url: &str, why: &str) -> StoreError {
    StoreError::Refused(format!(
        "etcd endpoint {url:?} is not a URL such as http://127.0.0.1:2379: {why}"
    ))
}

/// Reads linearizably until it is answered: only an endpoint that reaches a majority can.
async fn probe(member: Member, deadline: Instant) -> Result<Member, String> {
    let mut last = "no answer".to_owned();
    loop {
        let mut kv = member.kv.clone();
        match timeout_at(deadline, kv.get(crate::keys::ROOT, None)).await {
            Ok(Ok(_)) => return Ok(member),
            Ok(Err(error)) => match failure::classify(error) {
                Failure::Unreachable(why) | Failure::NotApplied(why) | Failure::Unanswered(why) => {
                    last = why
                }
                Failure::Answer(error) => return Err(format!("{}: {error}", member.url)),
            },
            Err(_) => return Err(format!("{}: {last}", member.url)),
        }
        if Instant::now() + PROBE_PAUSE >= deadline {
            return Err(format!("{}: {last}", member.url));
        }
        sleep(PROBE_PAUSE).await;
    }
}
