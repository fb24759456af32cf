//! A store in memory, members that answer like PostgreSQL and its keeper, and a real HAProxy.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use proto::{ClusterState, Document, MemberReport, document};
use proxy_config::{Config, HaproxyConfig};
use store::etcd::EtcdStore;
use store::keys::Keys;
use store::memory::MemoryStore;
use store::{Operation, Store, Txn, clock};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::waiting::{bounded, eventually};

/// A member of which the test decides whether it answers as primary.
pub struct Member {
    postgres: String,
    http: String,
    answers_as_primary: Arc<AtomicBool>,
    _serving: DropGuard,
}

impl Member {
    pub async fn start(name: &'static str) -> Member {
        let postgres = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = CancellationToken::new();
        let answers_as_primary = Arc::new(AtomicBool::new(false));
        let member = Member {
            postgres: postgres.local_addr().unwrap().to_string(),
            http: http.local_addr().unwrap().to_string(),
            answers_as_primary: answers_as_primary.clone(),
            _serving: stop.clone().drop_guard(),
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(greet(postgres, name)));
        tokio::spawn(stop.run_until_cancelled_owned(answer(http, answers_as_primary)));
        member
    }

    pub fn answers_as_primary(&self, yes: bool) {
        self.answers_as_primary.store(yes, Ordering::SeqCst);
    }

    /// Returns `report` at this member's addresses.
    pub fn at(&self, report: MemberReport) -> MemberReport {
        let (postgres_address, http_address) = (self.postgres.clone(), self.http.clone());
        MemberReport { postgres_address, http_address, ..report }
    }
}

/// Says its name to each session and keeps it open.
async fn greet(listener: TcpListener, name: &'static str) {
    loop {
        let (mut session, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let _ = session.write_all(format!("{name}\n").as_bytes()).await;
            let _ = session.read(&mut [0; 64]).await;
        });
    }
}

async fn answer(listener: TcpListener, primary: Arc<AtomicBool>) {
    loop {
        let (mut request, _) = listener.accept().await.unwrap();
        let mut text = [0; 1024];
        let length = request.read(&mut text).await.unwrap_or(0);
        let asks_primary = text[..length].starts_with(b"GET /primary");
        let status = match asks_primary == primary.load(Ordering::SeqCst) {
            true => "200 OK",
            false => "503 Service Unavailable",
        };
        let reply = format!("HTTP/1.0 {status}\r\ncontent-length: 0\r\n\r\n");
        let _ = request.write_all(reply.as_bytes()).await;
    }
}

/// HAProxy as master and worker; killed when dropped.
pub struct Haproxy {
    master: Child,
}

impl Haproxy {
    pub fn start(config: &Config) -> Haproxy {
        let mut command = std::process::Command::new("haproxy");
        command.arg("-W").arg("-f").arg(&config.haproxy.as_ref().unwrap().file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Haproxy { master: command.spawn().unwrap() }
    }

    pub fn pid(&self) -> u32 {
        self.master.id()
    }
}

impl Drop for Haproxy {
    /// Lets the master end and reap its workers; whoever is left after that is killed.
    fn drop(&mut self) {
        let pid = self.master.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        signal(pid, Signal::SIGTERM);
        let deadline = clock::now() + Duration::from_secs(3);
        while clock::now() < deadline && matches!(self.master.try_wait(), Ok(None)) {
            #[expect(clippy::disallowed_methods, reason = "drop cannot await")]
            std::thread::sleep(Duration::from_millis(5));
        }
        if matches!(self.master.try_wait(), Ok(None)) {
            let _ = self.master.kill();
            let _ = self.master.wait();
            for worker in children.unwrap_or_default().split_whitespace() {
                signal(worker.parse().unwrap(), Signal::SIGKILL);
            }
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
}

/// A real etcd with one member; killed when dropped.
pub struct Etcd {
    process: Child,
    pub url: String,
}

impl Etcd {
    pub async fn start(directory: &Path) -> Etcd {
        let url = format!("http://127.0.0.1:{}", free_port().await);
        let peer = format!("http://127.0.0.1:{}", free_port().await);
        let mut command = std::process::Command::new("etcd");
        command.arg("--data-dir").arg(directory.join("etcd"));
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            command.arg(flag).arg(&url);
        }
        for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
            command.arg(flag).arg(&peer);
        }
        command.arg("--initial-cluster").arg(format!("default={peer}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Etcd { process: command.spawn().unwrap(), url }
    }

    pub async fn store(&self) -> EtcdStore {
        let urls = [self.url.clone()];
        bounded("etcd answers", async {
            loop {
                match EtcdStore::connect(&urls).await {
                    Ok(store) => return store,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
        .await
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One cluster's store and one proxy-config.
pub struct World {
    pub store: MemoryStore,
    pub config: Config,
    keys: Keys,
    pub directory: TempDir,
}

/// A proxy-config that runs; stopped when dropped.
pub struct Proxy {
    pub ended: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Proxy {
    pub async fn stop(mut self) {
        self.stop.cancel();
        bounded("proxy-config ends", &mut self.ended).await.unwrap().unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    pub async fn new() -> World {
        let directory = TempDir::new().unwrap();
        let cluster: proto::ClusterName = "main".parse().unwrap();
        let config = Config {
            cluster: cluster.clone(),
            etcd: vec!["http://127.0.0.1:1".into()].into(),
            id: "proxy-1".into(),
            pgbouncer: None,
            drills: proxy_config::Drills::default(),
            haproxy: Some(HaproxyConfig {
                file: directory.path().join("haproxy.cfg"),
                socket: directory.path().join("haproxy.sock"),
                write_port: free_port().await,
                read_port: free_port().await,
                fresh_port: None,
                pool_ports: Default::default(),
                bind: "127.0.0.1".into(),
                reload: None,
            }),
        };
        World { store: MemoryStore::new(), config, keys: Keys::of(&cluster), directory }
    }

    /// Starts proxy-config, and HAProxy as soon as there is a file for it.
    pub async fn start(&self) -> (Proxy, Haproxy) {
        let proxy = self.proxy();
        self.installed("# pgdeputy epoch").await;
        (proxy, Haproxy::start(&self.config))
    }

    pub fn haproxy(&self) -> &HaproxyConfig {
        self.config.haproxy.as_ref().unwrap()
    }

    pub fn proxy(&self) -> Proxy {
        let stop = CancellationToken::new();
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let run = proxy_config::run_on(store, self.config.clone(), stop.clone());
        Proxy { ended: tokio::spawn(run), stop }
    }

    pub async fn agree(&self, state: &ClusterState) {
        self.put(self.keys.state(), state).await;
    }

    pub async fn report(&self, report: &MemberReport) {
        self.put(self.keys.member(&report.member), report).await;
    }

    pub async fn put(&self, key: String, document: &impl Document) {
        self.put_text(key, document::encode(document)).await;
    }

    pub async fn put_text(&self, key: String, text: String) {
        let put = Operation::Put { key, value: text.into_bytes(), lease: None };
        self.store.commit(Txn { when: Vec::new(), then: vec![put] }).await.unwrap();
    }

    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Waits until the installed file has `text`.
    pub async fn installed(&self, text: &str) {
        let path = self.haproxy().file.clone();
        eventually(&format!("the file has {text:?}"), || async {
            std::fs::read_to_string(&path).is_ok_and(|file| file.contains(text))
        })
        .await;
    }

    pub async fn expect_writes_at(&self, member: &str) {
        self.expect(self.haproxy().write_port, member).await;
    }

    pub async fn expect_reads_at(&self, member: &str) {
        self.expect(self.haproxy().read_port, member).await;
    }

    async fn expect(&self, port: u16, member: &str) {
        eventually(&format!("port {port} leads to {member}"), || async {
            Session::open(port).await.is_some_and(|s| s.member == member)
        })
        .await;
    }

    pub async fn write_session(&self) -> Option<Session> {
        Session::open(self.haproxy().write_port).await
    }

    pub async fn read_session(&self) -> Option<Session> {
        Session::open(self.haproxy().read_port).await
    }
}

/// A client's session with the member that greeted it.
pub struct Session {
    pub member: String,
    stream: TcpStream,
}

impl Session {
    /// Opens one; none if HAProxy refuses or closes it.
    pub async fn open(port: u16) -> Option<Session> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut greeting = [0; 8];
        let length = bounded("a greeting or an end", stream.read(&mut greeting)).await.ok()?;
        let member = String::from_utf8_lossy(&greeting[..length]).trim().to_owned();
        (length > 0).then_some(Session { member, stream })
    }

    /// Waits until the other side has closed it.
    pub async fn expect_cut(mut self) {
        let read = bounded("the session is cut", self.stream.read(&mut [0; 8])).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }

    pub fn is_open(&self) -> bool {
        let answer = self.stream.try_read(&mut [0; 8]);
        matches!(answer, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// Returns a port below the range from which the kernel takes the ports of clients: one of that range may be taken
/// for a session of another test just before HAProxy listens on it.
async fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::SeqCst);
        let port = 20_000 + (std::process::id() as u16 % 300) * 40 + step % 40;
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return port;
        }
    }
}
