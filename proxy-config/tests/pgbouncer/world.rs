//! A store in memory, servers that say their names, and real PgBouncers.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::proxy::ProxyReport;
use proto::{ClusterName, ClusterSpec, ClusterState, Document, MemberReport, document};
use proxy_config::pgbouncer::render::Wishes;
use proxy_config::{Config, PgbouncerConfig};
use store::keys::Keys;
use store::memory::MemoryStore;
use store::{Operation, Store, Txn};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::sync::CancellationToken;

use crate::scene;
use crate::server::Server;
use crate::waiting::{bounded, eventually};

/// A PgBouncer; killed when dropped.
pub struct Pgbouncer {
    ini: PathBuf,
    pub port: u16,
    process: Option<Child>,
}

impl Pgbouncer {
    /// Prepares one that includes `files`.
    pub async fn new(directory: &Path, files: &[&Path], settings: &str) -> Pgbouncer {
        let port = free_port().await;
        let ini = directory.join(format!("pgbouncer-{port}.ini"));
        let users = directory.join("users.txt");
        std::fs::write(&users, "\"app\" \"secret\"\n\"admin\" \"secret\"\n").unwrap();
        let includes: String =
            files.iter().map(|f| format!("%include {}\n", f.display())).collect();
        let text = format!(
            "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n\
             auth_file = {}\nadmin_users = admin\npool_mode = transaction\nserver_login_retry = 0.05\n{settings}\n\
             {includes}",
            users.display()
        );
        std::fs::write(&ini, text).unwrap();
        Pgbouncer { ini, port, process: None }
    }

    /// Starts it and waits until it answers.
    pub async fn start(&mut self) {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .expect("pgbouncer is installed: run make deps");
        let mut command = Command::new(program);
        if nix::unistd::geteuid().is_root() {
            command.args(["-u", "postgres"]);
        }
        command.arg(&self.ini).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(self.ini.with_extension("log")).unwrap());
        self.process = Some(command.spawn().unwrap());
        eventually("PgBouncer listens", || async {
            tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
        })
        .await;
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.ini.with_extension("log")).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().unwrap();
        kill(Pid::from_raw(process.id().cast_signed()), signal).unwrap();
    }

    pub fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub fn console(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .user("admin")
            .password("secret")
            .dbname("pgbouncer");
        config
    }

    /// Opens a client's session; none where PgBouncer refuses it.
    pub async fn client(&self, database: &str) -> Option<Session> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("app").password("secret").dbname(database);
        let (client, connection) = config.connect(NoTls).await.ok()?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        Some(Session { client, _driver: driver })
    }

    /// Waits until a new session of `database` leads to `server`.
    pub async fn expect(&self, database: &str, server: &str) {
        eventually(&format!("{database} leads to {server}"), || async {
            let Some(client) = self.client(database).await else { return false };
            client.ask("who").await.is_ok_and(|name| name == server)
        })
        .await;
    }

    /// Runs a command on the console, and returns the first column.
    pub async fn command(&self, command: &str) -> Vec<String> {
        let rows = self.rows(command).await;
        rows.iter().filter_map(|row| row.get(0).map(str::to_owned)).collect()
    }

    /// Runs a command on the console.
    pub async fn rows(&self, command: &str) -> Vec<SimpleQueryRow> {
        let (client, connection) = self.console().connect(NoTls).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        let messages = client.simple_query(command).await.unwrap();
        let row = |m: SimpleQueryMessage| match m {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        };
        messages.into_iter().filter_map(row).collect()
    }
}

impl Drop for Pgbouncer {
    fn drop(&mut self) {
        self.end();
    }
}

/// A client's session with a PgBouncer.
pub struct Session {
    client: Client,
    _driver: JoinHandle<()>,
}

impl Session {
    /// Returns the name that the server gives; nothing for `BEGIN` and `COMMIT`.
    pub async fn ask(&self, statement: &str) -> Result<String, String> {
        let rows = bounded("an answer or an end", self.client.simple_query(statement)).await;
        let rows = rows.map_err(|e| e.to_string())?;
        let name = rows.iter().find_map(|m| match m {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(name.unwrap_or_default())
    }
}

/// The store of a cluster, a proxy-config's settings, and a directory for its files.
pub struct World {
    pub store: MemoryStore,
    pub config: Config,
    keys: Keys,
    pub directory: TempDir,
}

/// A proxy-config that runs; told to stop when dropped.
pub struct Proxy {
    ended: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Proxy {
    pub async fn stop(mut self) {
        self.stop.cancel();
        bounded("proxy-config ends", &mut self.ended).await.unwrap().unwrap();
    }

    /// Ends it as SIGKILL would: nothing of it runs any more.
    pub async fn kill(mut self) {
        self.ended.abort();
        assert!((&mut self.ended).await.unwrap_err().is_cancelled());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    /// For cluster `name`, with the database `shop` of that cluster.
    pub fn new(name: &str) -> World {
        use std::os::unix::fs::PermissionsExt;
        let directory = TempDir::new().unwrap();
        // PgBouncer refuses to be root, and is somebody else when the tests are.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let cluster: ClusterName = name.parse().unwrap();
        let wishes = Wishes {
            cluster: cluster.clone(),
            databases: vec![format!("{name} pool_size=5").parse().unwrap()],
            users: Vec::new(),
        };
        let file = directory.path().join(format!("{name}.ini"));
        let config = Config {
            cluster: cluster.clone(),
            etcd: Vec::new().into(),
            id: "proxy-1".into(),
            haproxy: None,
            pgbouncer: Some(PgbouncerConfig { file, consoles: Vec::new(), wishes }),
            drills: proxy_config::Drills::default(),
        };
        World { store: MemoryStore::new(), config, keys: Keys::of(&cluster), directory }
    }

    pub fn pgbouncer(&mut self) -> &mut PgbouncerConfig {
        self.config.pgbouncer.as_mut().unwrap()
    }

    pub fn file(&self) -> PathBuf {
        self.config.pgbouncer.as_ref().unwrap().file.clone()
    }

    /// Prepares a PgBouncer that is kept in line.
    pub async fn add_pgbouncer(&mut self, settings: &str) -> Pgbouncer {
        let file = self.file();
        let pgbouncer = Pgbouncer::new(self.directory.path(), &[&file], settings).await;
        self.pgbouncer().consoles.push(pgbouncer.console());
        pgbouncer
    }

    /// Starts proxy-config and waits until its file is there, and then PgBouncer.
    pub async fn start(&self, pgbouncer: &mut Pgbouncer) -> Proxy {
        let proxy = self.proxy();
        self.installed("; pgdeputy epoch").await;
        pgbouncer.start().await;
        proxy
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

    pub async fn specify(&self, spec: &ClusterSpec) {
        self.put(self.keys.spec(), spec).await;
    }

    /// Reports each server as it stands in `epoch`, the first as the primary, and agrees that it is open.
    pub async fn open(&self, epoch: u64, servers: &[(&str, &Server)]) {
        for (name, server) in servers {
            let report = report(name, server, (*name != servers[0].0).then_some(epoch));
            self.put(self.keys.member(&report.member), &report).await;
        }
        self.agree(&scene::open(epoch, &servers.iter().map(|(name, _)| *name).collect::<Vec<_>>()))
            .await;
    }

    async fn put(&self, key: String, document: &impl Document) {
        let value = document::encode(document).into_bytes();
        let put = Operation::Put { key, value, lease: None };
        self.store.commit(Txn { when: Vec::new(), then: vec![put] }).await.unwrap();
    }

    pub async fn told(&self) -> Option<ProxyReport> {
        let key = self.keys.proxy("proxy-1");
        let snapshot = self.store.read(&key).await.unwrap();
        snapshot.entries.get(&key).map(|e| document::decode(&e.value).unwrap())
    }

    /// Waits until proxy-config reports of itself what `holds` looks for.
    pub async fn reports(&self, what: &str, holds: impl Fn(&ProxyReport) -> bool) {
        eventually(what, || async { self.told().await.is_some_and(|r| holds(&r)) }).await;
    }

    pub async fn installed(&self, text: &str) {
        let path = self.file();
        eventually(&format!("the file has {text:?}"), || async {
            std::fs::read_to_string(&path).is_ok_and(|file| file.contains(text))
        })
        .await;
    }
}

/// Returns the report of a server as the primary, or as a standby that streams in an epoch.
fn report(name: &str, server: &Server, streams_in: Option<u64>) -> MemberReport {
    let address = format!("{}:{}", server.host, server.port);
    // Nobody listens there: no keeper answers, so nothing is known of any lag.
    let (postgres_address, http_address) = (address, format!("{}:1", server.host));
    let report =
        streams_in.map_or_else(|| scene::primary(name), |epoch| scene::standby(name, epoch));
    MemberReport { postgres_address, http_address, ..report }
}

/// Three servers on one port, as on three hosts.
pub async fn three() -> [Server; 3] {
    let port = free_port().await;
    let at = |last| (Ipv4Addr::new(127, 0, 0, last), port);
    [
        Server::start("a", at(1)).await,
        Server::start("b", at(2)).await,
        Server::start("c", at(3)).await,
    ]
}

/// Returns a port below the range from which the kernel takes the ports of clients, free on all loopback addresses.
pub async fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::SeqCst);
        let port = 11_000 + (std::process::id() as u16 % 200) * 40 + step % 40;
        if TcpListener::bind(("0.0.0.0", port)).await.is_ok() {
            return port;
        }
    }
}
