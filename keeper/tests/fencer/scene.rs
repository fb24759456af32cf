//! One small cluster for all claims, a fencer of its own for each, and the clean-up after it, whatever happened.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keeper::fencer::{
    Fencer, FencerCommand, FencerEvent, Process, StartPostgres, Watched, of_data_directory,
};
use nix::sys::signal::Signal;
use nix::unistd::User;
use proto::Moment;
use store::clock::now;
use tokio::sync::mpsc::UnboundedReceiver;

pub const POSTGRES_USER: &str = "postgres";
const PASSWORD: &str = "of this test only";

/// How long anything may take that is not itself under test.
const PATIENCE: Duration = Duration::from_secs(15);

pub type Claim = (&'static str, fn(Cluster) -> Pin<Box<dyn Future<Output = ()>>>);

/// Runs every claim whose name contains one of `filters`, or all.
pub fn run_all(filters: &[String]) -> ExitCode {
    let filters: Vec<&String> = filters.iter().filter(|f| !f.starts_with('-')).collect();
    let dir = tempfile::Builder::new()
        .prefix("pgd-fencer-")
        .tempdir_in("/tmp")
        .expect("make a directory");
    let cluster = Cluster::init(dir.path());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("make a runtime");
    let mut failed = 0;
    for (name, claim) in super::claims::ALL {
        if !filters.is_empty() && !filters.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        let started = now();
        let local = tokio::task::LocalSet::new();
        let ran = local
            .block_on(&runtime, async { tokio::task::spawn_local(claim(cluster.clone())).await });
        let left = runtime.block_on(cluster.clean_up());
        let ok = ran.is_ok() && left;
        failed += usize::from(!ok);
        println!(
            "{} {name} ({} ms)",
            if ok { "ok    " } else { "FAILED" },
            now().since(started).as_millis()
        );
    }
    println!("{failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

/// A data directory that all claims share, one after the other.
#[derive(Clone)]
pub struct Cluster {
    pub dir: PathBuf,
    pub data_dir: PathBuf,
    programs: PathBuf,
}

impl Cluster {
    fn init(dir: &Path) -> Self {
        let dir = dir.canonicalize().expect("resolve the directory");
        if nix::unistd::geteuid().is_root() {
            let user = postgres_user();
            nix::unistd::chown(&dir, Some(user.uid), Some(user.gid))
                .expect("give the directory away");
        }
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))
            .expect("open the directory");
        let cluster = Self { data_dir: dir.join("data"), programs: programs(), dir };
        let password_file = cluster.dir.join("password");
        std::fs::write(&password_file, PASSWORD).expect("write the password");
        std::fs::set_permissions(&password_file, PermissionsExt::from_mode(0o644))
            .expect("share the password");
        let made = as_postgres(&cluster.programs.join("initdb"))
            .args(["--no-sync", "--username=pgdeputy", "--auth=scram-sha-256"])
            .arg(format!("--pwfile={}", password_file.display()))
            .arg(format!("--pgdata={}", cluster.data_dir.display()))
            .output()
            .expect("run initdb");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        cluster
    }

    /// Returns the living processes of the data directory.
    pub fn processes(&self) -> Vec<Process> {
        of_data_directory(&self.data_dir, None)
    }

    /// Ends the fencers and PostgreSQL that a claim left; returns whether that worked.
    async fn clean_up(&self) -> bool {
        for entry in std::fs::read_dir(&self.dir).expect("list the directory").flatten() {
            let Ok(pid) = std::fs::read_to_string(keeper::fencer::lock_path(&entry.path())) else {
                continue;
            };
            let cmdline =
                std::fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
            let is_it =
                String::from_utf8_lossy(&cmdline).contains(&*entry.path().to_string_lossy());
            if let Some(fencer) =
                pid.trim().parse().ok().and_then(Process::with_pid).filter(|_| is_it)
            {
                let _ = fencer.signal(Signal::SIGKILL);
            }
        }
        let until = now() + PATIENCE;
        while !self.processes().is_empty() && now() < until {
            for process in self.processes() {
                let _ = process.signal(Signal::SIGKILL);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.processes().is_empty()
    }

    /// Returns a command that runs as PostgreSQL's user.
    pub fn command(&self, program: &str) -> Command {
        as_postgres(Path::new(program))
    }

    /// Returns how to start PostgreSQL with this right to serve.
    pub fn start(&self, deadline: Option<Moment>) -> StartPostgres {
        let dir = self.dir.display();
        let data_dir = self.data_dir.display().to_string();
        let settings = [format!("unix_socket_directories={dir}"), "listen_addresses=".into()];
        let speed = ["fsync=off", "shared_buffers=16MB"].map(String::from);
        let settings = settings.into_iter().chain(speed).flat_map(|s| ["-c".to_string(), s]);
        StartPostgres {
            program: self.programs.join("postgres"),
            args: ["-D".to_string(), data_dir].into_iter().chain(settings).collect(),
            env: BTreeMap::from([("LC_ALL".into(), "C".into())]),
            log_file: self.dir.join("postgresql.log"),
            deadline,
        }
    }
}

/// One fencer as its keeper sees it.
pub struct Scene {
    pub cluster: Cluster,
    pub state_dir: PathBuf,
    pub fencer: Fencer,
    pub events: UnboundedReceiver<FencerEvent>,
    pub watched: Watched,
}

impl Scene {
    /// Starts a fencer in a state directory of its own.
    pub async fn fresh(cluster: &Cluster) -> Self {
        Self::attached(cluster, &Self::state_dir(cluster)).await
    }

    fn state_dir(cluster: &Cluster) -> PathBuf {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let state_dir =
            cluster.dir.join(format!("state-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        keeper::privileges::prepare_directories(POSTGRES_USER, &cluster.data_dir, &state_dir)
            .unwrap();
        std::fs::create_dir_all(&state_dir).unwrap();
        state_dir
    }

    /// Attaches one more keeper to the fencer of `state_dir`.
    pub async fn attached(cluster: &Cluster, state_dir: &Path) -> Self {
        Self::attached_by(&command(), cluster, state_dir).await
    }

    /// Starts a fencer in a state directory of its own, and in `cgroup`, below which it may make others.
    pub async fn caged(cluster: &Cluster, cgroup: &Path) -> Self {
        let mut command = command();
        command.args.extend(["--cgroup".to_owned(), cgroup.to_string_lossy().into_owned()]);
        Self::attached_by(&command, cluster, &Self::state_dir(cluster)).await
    }

    async fn attached_by(command: &FencerCommand, cluster: &Cluster, state_dir: &Path) -> Self {
        let (fencer, events, watched) =
            Fencer::attach(command, state_dir, &cluster.data_dir).await.unwrap();
        Self {
            cluster: cluster.clone(),
            state_dir: state_dir.to_path_buf(),
            fencer,
            events,
            watched,
        }
    }

    /// Starts PostgreSQL, waits until it can be used, and returns its pid.
    pub async fn serving(&self, deadline: Option<Moment>) -> u32 {
        let pid = self.fencer.start(self.cluster.start(deadline)).await.unwrap();
        self.session().await;
        pid
    }

    /// Returns a session, as soon as PostgreSQL takes one.
    pub async fn session(&self) -> tokio_postgres::Client {
        let until = now() + PATIENCE;
        loop {
            let mut config = tokio_postgres::Config::new();
            config
                .host_path(&self.cluster.dir)
                .user("pgdeputy")
                .password(PASSWORD)
                .dbname("postgres");
            match config.connect(tokio_postgres::NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(now() < until, "{error}: {}", self.postgres_log()),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Opens a session that computes for ever, and returns the pid of its backend.
    pub async fn busy_backend(&self) -> u32 {
        let session = self.session().await;
        let pid = number(&session, "select pg_backend_pid()").await;
        tokio::spawn(
            async move { session.batch_execute("do $$ begin loop end loop; end $$").await },
        );
        let watcher = self.session().await;
        let active = format!(
            "select count(*)::int from pg_stat_activity where pid = {pid} and state = 'active'"
        );
        let until = now() + PATIENCE;
        while number(&watcher, &active).await == 0 {
            assert!(now() < until, "the backend never became active");
        }
        pid
    }

    /// Waits for the next event.
    pub async fn event(&mut self) -> FencerEvent {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event
            .unwrap_or_else(|_| panic!("no event; fencer: {}", self.log()))
            .expect("the channel is open")
    }

    /// Waits for the events of one postmaster's end and returns them, with `Gone`, the last.
    pub async fn end(&mut self) -> Vec<FencerEvent> {
        let mut events = vec![self.event().await];
        while !matches!(events.last(), Some(FencerEvent::Gone | FencerEvent::Lost)) {
            events.push(self.event().await);
        }
        events
    }

    pub fn fencer_process(&self) -> Process {
        Process::with_pid(self.watched.fencer_pid).expect("the fencer lives")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(keeper::fencer::log_path(&self.state_dir)).unwrap_or_default()
    }

    fn postgres_log(&self) -> String {
        std::fs::read_to_string(self.cluster.dir.join("postgresql.log")).unwrap_or_default()
    }
}

/// Returns the only number that `query` returns.
pub async fn number(session: &tokio_postgres::Client, query: &str) -> u32 {
    let row = session.query_one(query, &[]).await.unwrap();
    row.get::<_, i32>(0) as u32
}

/// Waits until `fact` holds.
pub async fn until(what: &str, fact: impl Fn() -> bool) {
    let give_up_at = now() + PATIENCE;
    while !fact() {
        assert!(now() < give_up_at, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Stops a process and waits until it stands still.
pub async fn freeze(pid: u32) {
    assert_eq!(Process::with_pid(pid).unwrap().signal(Signal::SIGSTOP), Ok(true));
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    until("the process is stopped", || state().contains(") T ")).await;
}

pub fn command() -> FencerCommand {
    FencerCommand { program: "/proc/self/exe".into(), args: vec!["fencer".into()] }
}

fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if nix::unistd::geteuid().is_root() {
        let user = postgres_user();
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn postgres_user() -> User {
    User::from_name(POSTGRES_USER).expect("look up the user").expect("user postgres: run make deps")
}

/// Returns the directory of the newest PostgreSQL of Debian.
fn programs() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL: run make deps");
    let newest = installed.flatten().map(|e| e.path()).max().expect("PostgreSQL: run make deps");
    newest.join("bin")
}
