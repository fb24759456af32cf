//! A real PostgreSQL in a temporary directory, killed and removed however its test ends.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use keeper::postgres::binaries::{PostgresBinaries, RunAs};
use keeper::postgres::initdb::initdb;
use keeper::postgres::source::Source;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use proto::spec::Initdb;

pub const SUPERUSER: &str = "pgdeputy";
pub const PASSWORD: &str = "se'cret:\\x";

/// No test waits longer than this for one fact.
const BOUND: Duration = Duration::from_secs(60);

/// The programs in `PGDEPUTY_TEST_POSTGRES`, so that other versions can be tested, or those installed.
pub fn binaries() -> PostgresBinaries {
    let explicit = std::env::var_os("PGDEPUTY_TEST_POSTGRES").map(PathBuf::from);
    let binaries = PostgresBinaries::find(explicit.as_deref()).unwrap();
    match postgres_user() {
        Some(user) => binaries.run_as(user),
        None => binaries,
    }
}

/// PostgreSQL refuses root.
fn postgres_user() -> Option<RunAs> {
    geteuid().is_root().then(|| {
        let user = User::from_name("postgres").unwrap().expect("the user postgres exists");
        RunAs { uid: user.uid.as_raw(), gid: user.gid.as_raw() }
    })
}

/// A directory of PostgreSQL's own user.
pub fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    own(dir.path());
    dir
}

/// Gives a file to PostgreSQL's user.
pub fn own(path: &Path) {
    if let Some(user) = postgres_user() {
        chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}

pub struct Cluster {
    pub data: PathBuf,
    postmaster: Option<Child>,
    keep_wal_mb: u32,
    /// Where it listens besides its Unix socket, from its next start on; empty: nowhere.
    pub address: String,
    /// Where others reach it, which is where it listens then; its Unix socket otherwise.
    pub link: Option<&'static str>,
    /// A directory that it has in the place of another one, as if it ran on a host of its own; needs root.
    pub sees: Option<(PathBuf, PathBuf)>,
    root: tempfile::TempDir,
}

impl Cluster {
    /// A stopped cluster.
    pub async fn new(segment_size_mb: u32) -> Self {
        let cluster = Self::empty();
        let spec = Initdb { wal_segment_size_mb: segment_size_mb, ..Initdb::default() };
        initdb(&binaries(), &spec, &cluster.data, SUPERUSER, PASSWORD).await.unwrap();
        cluster
    }

    /// Only the directories.
    pub fn empty() -> Self {
        let root = directory();
        let passfile = root.path().join("pass");
        let escaped = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
        fs::write(&passfile, format!("*:*:*:*:{escaped}\n")).unwrap();
        fs::set_permissions(&passfile, Permissions::from_mode(0o600)).unwrap();
        own(&passfile);
        Self {
            data: root.path().join("data"),
            postmaster: None,
            keep_wal_mb: 1024,
            address: String::new(),
            link: None,
            sees: None,
            root,
        }
    }

    pub fn source(&self) -> Source {
        Source {
            host: self.link.unwrap_or(self.root.path().to_str().unwrap()).to_owned(),
            port: 5432,
            user: SUPERUSER.to_owned(),
            passfile: self.root.path().join("pass"),
            application_name: "x.e1.joining".to_owned(),
            tls: None,
        }
    }

    /// A directory of its own, for whatever belongs to it.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Keeps the data of a stopped cluster as it is now, to be put back by `put_back`.
    pub fn keep_data(&self) {
        copy_all(&self.data, &self.root.path().join("as-it-was"));
    }

    /// Puts the data back that `keep_data` has kept.
    pub fn put_back(&self) {
        #[expect(
            clippy::disallowed_methods,
            reason = "the test's own data, of which it has a copy"
        )]
        fs::remove_dir_all(&self.data).unwrap();
        copy_all(&self.root.path().join("as-it-was"), &self.data);
    }

    pub fn pg_wal(&self) -> PathBuf {
        self.data.join("pg_wal")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("log")).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Sets how much WAL it keeps, from its next start on; 1 GB at least.
    pub fn keep_wal(&mut self, megabytes: u32) {
        self.keep_wal_mb = megabytes.max(1024);
    }

    /// Makes it a standby of `primary` at its next start.
    pub fn follow(&self, primary: &Cluster) {
        let signal = self.data.join("standby.signal");
        File::create(&signal).unwrap();
        own(&signal);
        let conninfo = primary.source().conninfo(15, None).replace('\'', "''");
        let text = format!(
            "primary_conninfo = '{conninfo}'\nrecovery_target_timeline = 'latest'\n\
             wal_retrieve_retry_interval = 20ms\n"
        );
        let conf = self.data.join("postgresql.auto.conf");
        fs::write(&conf, text).unwrap();
        own(&conf);
    }

    /// Starts it and waits until it answers.
    pub async fn start(&mut self) {
        self.spawn();
        self.eventually("it answers", |c| c.try_sql("SELECT 1").status.success()).await;
    }

    /// Starts it, and returns its postmaster before that has done anything.
    pub fn spawn(&mut self) -> i32 {
        let log = File::options().create(true).append(true).open(self.root.path().join("log"));
        let mut command = match &self.sees {
            None => {
                let mut command = Command::new(binaries().postgres());
                as_postgres(&mut command);
                command
            }
            Some((directory, place)) => postgres_that_sees(directory, place),
        };
        command.arg("-D").arg(&self.data).arg("-k").arg(self.root.path());
        for setting in [
            "port=5432",
            "fsync=off",
            "shared_buffers=16MB",
            "max_wal_size=1GB",
            "wal_log_hints=on",
            "log_checkpoints=off",
            "autovacuum=off",
        ] {
            command.arg("-c").arg(setting);
        }
        let listens = self.link.unwrap_or(&self.address);
        command.arg("-c").arg(format!("listen_addresses={listens}"));
        command.arg("-c").arg(format!("wal_keep_size={}MB", self.keep_wal_mb));
        command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.unwrap());
        let postmaster = command.spawn().unwrap();
        let pid = postmaster.id() as i32;
        self.postmaster = Some(postmaster);
        pid
    }

    /// Ends it as a crash does: every process of it at once, without a word.
    pub fn crash(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else { return };
        let pid = Pid::from_raw(postmaster.id() as i32);
        // Stopped first: it must not start anything while its children are looked for.
        let _ = kill(pid, Signal::SIGSTOP);
        let children = children_of(pid.as_raw());
        let _ = kill(pid, Signal::SIGKILL);
        for child in &children {
            let _ = kill(Pid::from_raw(*child), Signal::SIGKILL);
        }
        postmaster.wait().unwrap();
        let deadline = store::clock::now() + BOUND;
        while children.iter().any(|c| state_and_parent(*c).is_some_and(|(state, _)| state != 'Z')) {
            assert!(store::clock::now() < deadline, "a process outlives its kill");
            let _ = nix::poll::poll(&mut [], 1_u8);
        }
    }

    /// Shuts it down cleanly.
    pub async fn stop(&mut self) {
        let postmaster = self.postmaster.as_mut().expect("it runs");
        kill(Pid::from_raw(postmaster.id() as i32), Signal::SIGINT).unwrap();
        let deadline = store::clock::now() + BOUND;
        while postmaster.try_wait().unwrap().is_none() {
            assert!(store::clock::now() < deadline, "it does not stop: {}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.postmaster = None;
    }

    pub fn try_sql(&self, sql: &str) -> Output {
        let mut command = Command::new(binaries().dir().join("psql"));
        command
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER, "-p", "5432"])
            .arg("-h")
            .arg(self.root.path())
            .args(["-d", "postgres", "-c", sql])
            .env("PGPASSFILE", self.root.path().join("pass"))
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        as_postgres(&mut command);
        command.output().unwrap()
    }

    pub fn sql(&self, sql: &str) -> String {
        let output = self.try_sql(sql);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{sql}: {errors}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn lsn(&self, sql: &str) -> proto::Lsn {
        self.sql(sql).parse().unwrap()
    }

    pub async fn eventually(&self, what: &str, fact: impl Fn(&Self) -> bool) {
        let deadline = store::clock::now() + BOUND;
        while !fact(self) {
            assert!(store::clock::now() < deadline, "not in time: {what}\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until this standby has received all that `primary` has flushed.
    pub async fn caught_up(&self, primary: &Cluster) {
        let target = primary.lsn("SELECT pg_current_wal_flush_lsn()");
        self.eventually("the standby has caught up", |c| {
            let received = c.sql("SELECT coalesce(pg_last_wal_receive_lsn(), '0/0')");
            received.parse::<proto::Lsn>().unwrap() >= target
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.crash();
    }
}

fn copy_all(from: &Path, to: &Path) {
    let status = Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to).status();
    assert!(status.unwrap().success(), "copy {} to {}", from.display(), to.display());
}

/// Runs one of PostgreSQL's programs as a judge and returns its output, standard output first.
pub fn judge(program: &str, args: &[&str]) -> (String, String) {
    let mut command = Command::new(binaries().dir().join(program));
    command.args(args).env("LC_ALL", "C").stdin(Stdio::null());
    as_postgres(&mut command);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// PostgreSQL in a mount namespace of its own in which `directory` lies at `place`.
fn postgres_that_sees(directory: &Path, place: &Path) -> Command {
    let user = postgres_user().expect("only root may mount");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
    command.arg("mount --bind \"$0\" \"$1\"; shift; exec \"$@\"").arg(directory).arg(place);
    command.args(["setpriv", "--clear-groups", "--pdeathsig", "QUIT"]);
    command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
    command.arg(binaries().postgres());
    command
}

fn as_postgres(command: &mut Command) {
    if let Some(user) = postgres_user() {
        command.uid(user.uid).gid(user.gid).current_dir("/");
    }
    // SAFETY: one system call between fork and exec, which touches no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(Signal::SIGQUIT).map_err(std::io::Error::from)
        });
    }
}

pub fn children_of(parent: i32) -> Vec<i32> {
    pids().filter(|pid| state_and_parent(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// Returns the processes whose command line holds `text`.
pub fn processes_with(text: &str) -> Vec<i32> {
    pids()
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .collect()
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok())
}

fn state_and_parent(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
