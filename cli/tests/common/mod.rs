//! A real pgdeputy and a real etcd on loopback, both ended with the test.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use store::Store;
use store::etcd::EtcdStore;
use tempfile::TempDir;

/// Long enough for a machine under load; nothing waits for it to pass.
pub const BOUND: Duration = Duration::from_secs(30);

/// Returns the program, with nothing of the caller's own settings in its environment.
pub fn pgdeputy(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgdeputy"));
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PGDEPUTY_") {
            command.env_remove(name);
        }
    }
    command
}

/// What a run has ended with.
pub struct Ended {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            status: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Ended {
    /// Returns the one complaint of a run that refused with `status` and did not say anything else.
    pub fn complaint(&self, status: i32) -> &str {
        assert_eq!(self.status, Some(status), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        assert!(self.stderr.starts_with("pgdeputy: "), "{}", self.stderr);
        self.stderr.trim_end()
    }

    /// Returns what a run that succeeded has said.
    pub fn answer(&self) -> &str {
        assert_eq!(self.status, Some(0), "{}{}", self.stdout, self.stderr);
        &self.stdout
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.answer()).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

/// Runs a command that ends by itself. Its own deadlines bound it.
pub async fn run(mut command: Command) -> Ended {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    tokio::time::timeout(BOUND, output).await.expect("it ends in time").unwrap().into()
}

/// An etcd of one member; ended by drop, and by the kernel if the test dies without one.
pub struct Etcd {
    process: Child,
    pub url: String,
    pub store: Arc<EtcdStore>,
    _directory: TempDir,
}

impl Etcd {
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("pgdeputy-cli-").tempdir().unwrap();
        let (client, peer) = (free_url(), free_url());
        let mut command = Command::new("etcd");
        command
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--data-dir"])
            .arg(directory.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut process = command.spawn().expect("etcd is installed: run `make deps`");
        let store = tokio::time::timeout(BOUND, async {
            loop {
                if let Ok(store) = EtcdStore::connect(std::slice::from_ref(&client)).await {
                    return store;
                }
                assert!(process.try_wait().unwrap().is_none(), "etcd has ended");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let store = Arc::new(store.await.expect("etcd answers in time"));
        Self { process, url: client, store, _directory: directory }
    }

    /// Returns `pgdeputy COMMAND --cluster CLUSTER --etcd ... MORE` for this etcd.
    pub fn ask(&self, command: &str, cluster: &str, more: &[&str]) -> Command {
        let mut asked = pgdeputy(&[command, "--cluster", cluster, "--etcd", &self.url]);
        asked.args(more);
        asked
    }

    /// Returns keys and values of everything below `prefix`, with their revisions.
    pub async fn all(&self, prefix: &str) -> Vec<(String, String, i64)> {
        let snapshot = self.store.read(prefix).await.unwrap();
        let text = |value| String::from_utf8(value).unwrap();
        snapshot.entries.into_iter().map(|(k, e)| (k, text(e.value), e.mod_revision)).collect()
    }

    /// Writes one key.
    pub async fn put(&self, key: String, value: String) {
        let put = store::Operation::Put { key, value: value.into_bytes(), lease: None };
        let outcome =
            self.store.commit(store::Txn { when: Vec::new(), then: vec![put] }).await.unwrap();
        assert!(matches!(outcome, store::TxnOutcome::Committed { .. }));
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // Both can only fail where it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns an address that was free just now. The kernel hands out others before it repeats one.
pub fn free_url() -> String {
    format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}
