//! Starts, freezes, restarts and ends one etcd of a test's own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// A running etcd with one member.
pub struct Etcd {
    process: Child,
    directory: TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    more: Vec<String>,
}

impl Etcd {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts etcd with more arguments.
    pub async fn start_with(more: &[&str]) -> Self {
        let directory = TempDir::with_prefix("pgdeputy-etcd-").unwrap();
        let address = own_address();
        let (client, peer) = (free_port(address), free_port(address));
        let more: Vec<String> = more.iter().map(|&argument| argument.to_owned()).collect();
        let process = spawn(&directory, client, peer, &more);
        let mut etcd = Self { process, directory, client, peer, more };
        etcd.wait_until_healthy().await;
        etcd
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    pub fn address(&self) -> SocketAddr {
        self.client
    }

    /// Stops all its threads; its connections stay open and nobody answers.
    pub fn freeze(&self) {
        kill(self.pid(), Signal::SIGSTOP).unwrap();
    }

    pub fn thaw(&self) {
        kill(self.pid(), Signal::SIGCONT).unwrap();
    }

    /// Kills it and starts it again with the same data at the same place.
    pub async fn restart(&mut self) {
        self.end();
        self.process = spawn(&self.directory, self.client, self.peer, &self.more);
        self.wait_until_healthy().await;
    }

    pub async fn compact(&self, revision: i64) {
        let mut client = etcd_client::Client::connect([self.url()], None).await.unwrap();
        client.compact(revision, None).await.unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().unwrap())
    }

    async fn wait_until_healthy(&mut self) {
        within("etcd to be healthy", async {
            while !healthy(self.client).await {
                if let Some(status) = self.process.try_wait().unwrap() {
                    panic!("etcd ended: {status}\n{}", self.log());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
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

/// Returns a loopback address that no other process and no other etcd of this one uses, so that a
/// port free now is free when etcd binds it.
pub fn own_address() -> Ipv4Addr {
    static USED: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id();
    let [_, _, high, low] = pid.to_be_bytes();
    let upper = 64 + u8::try_from((pid >> 16) % 64).unwrap();
    // The last byte tells the etcds of one process apart; few enough start at once to never meet.
    let last = USED.fetch_add(1, Ordering::Relaxed) % 254 + 1;
    Ipv4Addr::new(127, upper ^ high, low, last)
}

pub fn free_port(address: Ipv4Addr) -> SocketAddr {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap()
}

fn spawn(directory: &TempDir, client: SocketAddr, peer: SocketAddr, more: &[String]) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(directory.path().join("log"))
        .unwrap();
    let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
    Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .args(["--name", "only", "--initial-cluster", &format!("only={peer}")])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(more)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("start etcd: {error}; run make deps"))
}

async fn healthy(address: SocketAddr) -> bool {
    let ask = async {
        let mut connection = TcpStream::connect(address).await?;
        connection
            .write_all(b"GET /health HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    matches!(ask.await, Ok(answer) if answer.contains("\"health\":\"true\""))
}
