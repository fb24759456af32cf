//! Starts, freezes, restarts and ends an etcd of a test's own, with one member or more.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// Below the range of ports that the kernel hands out, so that nobody gets them by chance. The address
/// is what tells one etcd from another: a port that is asked for, released and bound again a moment
/// later can be taken meanwhile, or be held by a child of another thread that is just being started.
const CLIENT_PORT: u16 = 23790;
const PEER_PORT: u16 = 23800;
const HEALTH_PORT: u16 = 23810;

/// A running member of etcd, by default the only one.
pub struct Etcd {
    process: Child,
    place: Place,
}

/// Where a member has its data and its ports, and what it was told.
struct Place {
    directory: TempDir,
    name: String,
    client: SocketAddr,
    peer: SocketAddr,
    /// `https` where clients are asked for TLS.
    scheme: &'static str,
    arguments: Vec<String>,
}

impl Etcd {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts etcd with more arguments.
    pub async fn start_with(more: &[&str]) -> Self {
        let mut etcds = Self::start_members(1, more).await;
        etcds.remove(0)
    }

    /// Starts an etcd of `count` members.
    pub async fn start_members(count: usize, more: &[&str]) -> Vec<Self> {
        let mut places: Vec<Place> = (0..count).map(|nth| Place::new(nth, more)).collect();
        let cluster: Vec<String> =
            places.iter().map(|place| format!("{}=http://{}", place.name, place.peer)).collect();
        for place in &mut places {
            place.arguments.extend(["--initial-cluster".to_owned(), cluster.join(",")]);
        }
        let mut etcds: Vec<Self> =
            places.into_iter().map(|place| Self { process: place.spawn(), place }).collect();
        for etcd in &mut etcds {
            etcd.wait_until_healthy().await;
        }
        etcds
    }

    /// Starts one at `address` whose `arguments` make it ask clients for TLS.
    pub async fn start_tls(address: Ipv4Addr, arguments: &[&str]) -> Self {
        let mut place = Place { scheme: "https", ..Place::at(address, 0, arguments) };
        let health = format!("http://{}", place.health());
        place.arguments.extend(["--listen-metrics-urls".to_owned(), health]);
        place.arguments.extend(["--initial-cluster".into(), format!("e0=http://{}", place.peer)]);
        let mut etcd = Self { process: place.spawn(), place };
        etcd.wait_until_healthy().await;
        etcd
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.place.scheme, self.place.client)
    }

    pub fn address(&self) -> SocketAddr {
        self.place.client
    }

    /// Stops all its threads; its connections stay open and nobody answers.
    pub async fn freeze(&self) {
        kill(self.pid(), Signal::SIGSTOP).unwrap();
        // The signal is on its way when kill returns, and a thread may still answer.
        within("etcd to stand still", async {
            while !self.stands_still() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    pub fn thaw(&self) {
        kill(self.pid(), Signal::SIGCONT).unwrap();
    }

    /// Kills it and starts it again with the same data at the same place.
    pub async fn restart(&mut self) {
        self.end();
        self.process = self.place.spawn();
        self.wait_until_healthy().await;
    }

    /// Compacts and waits until it is done: etcd removes in the background what it has promised to forget.
    pub async fn compact(&self, revision: i64) {
        let mut client = etcd_client::Client::connect([self.url()], None).await.unwrap();
        let finished = etcd_client::CompactionOptions::new().with_physical();
        client.compact(revision, Some(finished)).await.unwrap();
    }

    /// Waits until every watch is told of what happens as it happens. One that begins in the past is told of that up to 0.1 s
    /// later, and is closed if the past is compacted before.
    pub async fn watches_are_caught_up(&self) {
        within("etcd to have told all watches of the past", async {
            let behind = "\netcd_debugging_mvcc_slow_watcher_total ";
            while !get(self.place.health(), "/metrics")
                .await
                .unwrap()
                .contains(&format!("{behind}0\n"))
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Returns whether this lease is there still, without renewing it. One that has run out is, until its keys are gone.
    pub async fn knows_lease(&self, id: i64) -> bool {
        let mut client = etcd_client::Client::connect([self.url()], None).await.unwrap();
        let known = client.leases().await.unwrap();
        known.leases().iter().any(|lease| lease.id() == id)
    }

    fn stands_still(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        threads.into_iter().all(|thread| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat"));
            // A thread that has just ended has no file any more and does not answer either.
            stat.map_or(true, |stat| {
                stat.rsplit_once(") ").is_some_and(|(_, after)| after.starts_with('T'))
            })
        })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().unwrap())
    }

    async fn wait_until_healthy(&mut self) {
        within("etcd to be healthy", async {
            while !healthy(self.place.health()).await {
                if let Some(status) = self.process.try_wait().unwrap() {
                    let (client, peer) = (self.place.client, self.place.peer);
                    panic!("etcd ended: {status}, client {client}, peer {peer}\n{}", self.log());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.directory.path().join("log")).unwrap_or_default()
    }

    fn end(&mut self) {
        // Both can only fail where it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.end();
    }
}

/// Returns a loopback address that hardly any other process uses and no other caller of this one.
pub fn own_address() -> Ipv4Addr {
    static CALLS: AtomicU8 = AtomicU8::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    // Few enough run at once for the last byte never to come round too early.
    Ipv4Addr::new(127, high, low, CALLS.fetch_add(1, Ordering::Relaxed) % 254 + 1)
}

/// Returns every address that `own_address` may return.
pub fn own_addresses() -> Vec<Ipv4Addr> {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    (1..=254).map(|last| Ipv4Addr::new(127, high, low, last)).collect()
}

/// Returns a place where nobody listens: ports below 1024 are given to nobody who asks for any port.
pub fn nobody() -> SocketAddr {
    (own_address(), 1).into()
}

impl Place {
    fn new(nth: usize, more: &[&str]) -> Self {
        Self::at(own_address(), nth, more)
    }

    fn at(address: Ipv4Addr, nth: usize, more: &[&str]) -> Self {
        Self {
            scheme: "http",
            directory: TempDir::with_prefix("pgdeputy-etcd-").unwrap(),
            name: format!("e{nth}"),
            client: (address, CLIENT_PORT).into(),
            peer: (address, PEER_PORT).into(),
            arguments: more.iter().map(|&argument| argument.to_owned()).collect(),
        }
    }

    /// Where it says whether it is healthy, always without TLS.
    fn health(&self) -> SocketAddr {
        match self.scheme {
            "https" => (self.client.ip(), HEALTH_PORT).into(),
            _ => self.client,
        }
    }

    fn spawn(&self) -> Child {
        let path = self.directory.path();
        let log =
            std::fs::File::options().create(true).append(true).open(path.join("log")).unwrap();
        let client = format!("{}://{}", self.scheme, self.client);
        let peer = format!("http://{}", self.peer);
        Command::new("etcd")
            .arg("--data-dir")
            .arg(path.join("data"))
            .args(["--name", &self.name])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("start etcd: {error}; run make deps"))
    }
}

async fn healthy(address: SocketAddr) -> bool {
    matches!(get(address, "/health").await, Ok(answer) if answer.contains("\"health\":\"true\""))
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    // By 1.0 an answer comes in one piece, without the lengths of chunks between its lines.
    let question = format!("GET {path} HTTP/1.0\r\nHost: etcd\r\n\r\n");
    connection.write_all(question.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}
