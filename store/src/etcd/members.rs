//! Which etcd endpoint is asked, and the move to another one when it does not answer.
//!
//! The one rule: one endpoint at a time, each on a connection of its own. A balancer over all of
//! them would send every third request to a dead one, and nobody could say whether it was sent. A login
//! is part of the first call on a connection, and shares its deadline.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use etcd_client::{Client, KvClient, LeaseClient, WatchClient};
use tokio::sync::{Mutex, OnceCell, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::access::EtcdAccess;
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
    /// The turn of the connection in use: a later one than this connection's shows that it was left.
    pub(super) in_use: watch::Receiver<u64>,
    /// A login was given, and etcd did not ask for one then.
    pub(super) unasked: bool,
    pub(super) kv: KvClient,
    pub(super) lease: LeaseClient,
    pub(super) watch: WatchClient,
}

/// The place of a connection that may still have to log in.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) url: String,
    pub(super) turn: u64,
    in_use: watch::Receiver<u64>,
    access: Arc<EtcdAccess>,
    opened: Arc<OnceCell<Member>>,
}

/// The endpoints, and the one that is asked now.
pub(super) struct Members {
    access: Arc<EtcdAccess>,
    current: Mutex<Connection>,
    /// Tells watches when their connection is left.
    in_use: watch::Sender<u64>,
    /// The endpoint that answered last, for people.
    answered: std::sync::Mutex<String>,
}

impl Members {
    /// Asks all endpoints at once and stays with the first that answers.
    pub(super) async fn connect(access: EtcdAccess) -> Result<Self, StoreError> {
        access.check()?;
        for url in &access.endpoints {
            check_url(url)?;
        }
        let access = Arc::new(access);
        let in_use = watch::Sender::new(0);
        let deadline = Instant::now() + PROBE_DEADLINE;
        let mut probes = JoinSet::new();
        for url in &access.endpoints {
            probes.spawn(probe(Connection::to(url, &in_use, &access), deadline));
        }
        let mut failures = Vec::new();
        while let Some(ended) = probes.join_next().await {
            match ended {
                Ok(Ok(connection)) => {
                    let answered = connection.url.clone().into();
                    return Ok(Self { access, current: Mutex::new(connection), in_use, answered });
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
        u32::try_from(self.access.endpoints.len()).unwrap_or(u32::MAX)
    }

    /// Returns how etcd is reached.
    pub(super) fn access(&self) -> &EtcdAccess {
        &self.access
    }

    /// Returns the connection to use.
    pub(super) async fn current(&self) -> Connection {
        self.current.lock().await.clone()
    }

    /// Leaves the connection of `turn`, which did not answer, for a new one to the next endpoint. Does
    /// nothing if another call has left it already.
    pub(super) async fn leave(&self, turn: u64) {
        let mut current = self.current.lock().await;
        if current.turn != turn {
            return;
        }
        let urls = &self.access.endpoints;
        let place = urls.iter().position(|url| *url == current.url).unwrap_or(0);
        let next = &urls[(place + 1) % urls.len()];
        self.in_use.send_replace(turn + 1);
        *current = Connection::to(next, &self.in_use, &self.access);
    }

    /// Notes which endpoint has answered. Those that are only tried, over and over while etcd has no leader, are not told.
    pub(super) fn answered(&self, url: &str) {
        // The text is whole after a panic too.
        let mut last = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != url {
            tracing::info!(from = %last, to = %url, "etcd endpoint changed");
            url.clone_into(&mut last);
        }
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.access.endpoints).finish()
    }
}

impl Connection {
    fn to(url: &str, in_use: &watch::Sender<u64>, access: &Arc<EtcdAccess>) -> Self {
        let (access, in_use) = (Arc::clone(access), in_use.subscribe());
        let turn = *in_use.borrow();
        Self { url: url.to_owned(), turn, in_use, access, opened: Arc::default() }
    }

    /// Logs in, unless a call before has, and returns what to ask. When it fails, nothing was asked of etcd yet.
    pub(super) async fn open(&self, deadline: Instant) -> Result<Member, Failure> {
        let opening = self.opened.get_or_try_init(|| self.make());
        match timeout_at(deadline, opening).await {
            Ok(Ok(member)) => Ok(member.clone()),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::NotApplied("no answer to the login in time".to_owned())),
        }
    }

    async fn make(&self) -> Result<Member, Failure> {
        match self.client(&self.access).await {
            Ok(client) => Ok(self.member(&client, false)),
            // So that users can be given to every process before `etcdctl auth enable`.
            Err(Failure::AuthenticationIsOff) => {
                tracing::warn!(url = %self.url, "etcd does not ask for users: not logged in");
                Ok(self.member(&self.client(&self.access.without_login()).await?, true))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Without a login nothing is sent yet.
    async fn client(&self, access: &EtcdAccess) -> Result<Client, Failure> {
        let options = access
            .options()
            .map_err(Failure::Unreachable)?
            .with_connect_timeout(TCP_DEADLINE)
            .with_keep_alive(PING_INTERVAL, PING_DEADLINE)
            .with_keep_alive_while_idle(false)
            // A member cut off from its majority says so at once, and ends its watches.
            .with_require_leader(true);
        Client::connect([&self.url], Some(options))
            .await
            .map_err(|error| failure::classify(error).before_the_request(access))
    }

    fn member(&self, client: &Client, unasked: bool) -> Member {
        Member {
            url: self.url.clone(),
            turn: self.turn,
            in_use: self.in_use.clone(),
            unasked,
            kv: client.kv_client().max_decoding_message_size(LARGEST_ANSWER),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(LARGEST_ANSWER),
        }
    }
}

fn check_url(url: &str) -> Result<(), StoreError> {
    let why = if url.starts_with("http://") || url.starts_with("https://") {
        let parsed = tonic::transport::Endpoint::from_shared(url.to_owned());
        parsed.err().map(|error| error.to_string())
    } else {
        Some("it does not begin with http:// or https://".to_owned())
    };
    match why {
        None => Ok(()),
        Some(why) => Err(StoreError::Refused(format!(
            "etcd endpoint {url:?} is not a URL such as http://127.0.0.1:2379: {why}"
        ))),
    }
}

/// Reads linearizably until it is answered: only an endpoint that reaches a majority can.
async fn probe(connection: Connection, deadline: Instant) -> Result<Connection, String> {
    let mut last = "no answer".to_owned();
    loop {
        match look(&connection, deadline).await {
            // A refusal is an answer, given after etcd has asked its majority. Which key it is about, the first
            // call says.
            Ok(()) | Err(Failure::Denied) => return Ok(connection),
            Err(Failure::Answer(error)) => return Err(format!("{}: {error}", connection.url)),
            Err(failure) => {
                let said = failure.text();
                // What was learnt before says more than that time was up.
                if last == "no answer" || Instant::now() < deadline {
                    last = said;
                }
            }
        }
        if Instant::now() + PROBE_PAUSE >= deadline {
            return Err(format!("{}: {last}", connection.url));
        }
        sleep(PROBE_PAUSE).await;
    }
}

async fn look(connection: &Connection, deadline: Instant) -> Result<(), Failure> {
    let access = &connection.access;
    let read = async {
        let mut member = connection.open(deadline).await?;
        match timeout_at(deadline, member.kv.get(crate::keys::ROOT, None)).await {
            Ok(answer) => answer.map(drop).map_err(failure::classify),
            Err(_) => Err(Failure::Unanswered("no answer in time".to_owned())),
        }
    };
    read.await.map_err(|failure| failure.unless_logged_in(access).advised_at_start(access))
}
