//! A real primary with two standbys, moved by the same steps.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use keeper::postgres::copy::{CopyTerms, base_backup};
use keeper::postgres::source::Source;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use system_tests::sim::scripted::{Part, Told};

use crate::cases::Step;
use crate::cluster::{Cluster, SUPERUSER, binaries, children_of, own};

/// No fact takes longer to come about.
const BOUND: Duration = Duration::from_secs(10);
/// What has not happened by then does not happen: nothing here is polled more seldom than every 20 ms.
const NEVER: Duration = Duration::from_millis(400);

/// Under which each streams; the first is the primary.
const NAMES: [&str; 3] = ["a.e1", "b.e1", "c.e1"];

pub struct Real {
    servers: Vec<Cluster>,
    commits: Vec<Commit>,
    stopped: Vec<(usize, Part, Vec<i32>)>,
}

struct Commit {
    number: u64,
    answer: mpsc::Receiver<Told>,
    told: Option<Told>,
    /// The end of WAL when it waited.
    lsn: proto::Lsn,
}

impl Real {
    pub async fn start(names: &str) -> Self {
        let mut primary = Cluster::new(1).await;
        set(&primary, &[("synchronous_standby_names", "")]);
        primary.start().await;
        primary.sql("CREATE TABLE t (i int)");
        primary.sql(
            "CREATE PROCEDURE p(i int) LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (i); COMMIT; END $$",
        );
        let mut servers = vec![primary];
        for name in &NAMES[1..] {
            let mut standby = Cluster::empty();
            base_backup(
                &binaries(),
                &servers[0].source(),
                &standby.data,
                &CopyTerms::default(),
                |_| {},
            )
            .await
            .unwrap();
            standby.follow(&servers[0]);
            let conf = standby.data.join("postgresql.auto.conf");
            let text = fs::read_to_string(&conf).unwrap().replace("x.e1.joining", name);
            let slot = &name[..1];
            servers[0].sql(&format!("SELECT pg_create_physical_replication_slot('{slot}', true)"));
            let more = format!(
                "synchronous_standby_names = ''\nwal_receiver_status_interval = 1s\nprimary_slot_name = {slot}\n"
            );
            fs::write(&conf, format!("{text}{more}")).unwrap();
            standby.start().await;
            servers.push(standby);
        }
        let real = Self { servers, commits: Vec::new(), stopped: Vec::new() };
        let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        real.servers[0].eventually("both stream", |c| c.sql(streams) == "2").await;
        real.names(0, names).await;
        real
    }

    async fn names(&self, member: usize, names: &str) {
        set(&self.servers[member], &[("synchronous_standby_names", names)]);
        self.reload(member, "synchronous_standby_names", names).await;
    }

    async fn reload(&self, member: usize, setting: &str, value: &str) {
        self.servers[member].sql("SELECT pg_reload_conf()");
        let shown = format!("SHOW {setting}");
        self.servers[member].eventually("the setting is read", |c| c.sql(&shown) == value).await;
        // The other processes read it by themselves, those that run.
        tokio::time::sleep(NEVER).await;
    }

    async fn follow(&self, member: usize, upstream: usize) {
        let name = NAMES[member];
        let slot = &name[..1];
        let of = &self.servers[upstream];
        of.sql(&format!("SELECT pg_create_physical_replication_slot('{slot}', true)"));
        let conninfo = of.source().conninfo(15, None).replace("x.e1.joining", name);
        let quoted = conninfo.replace('\'', "''");
        set(&self.servers[member], &[("primary_conninfo", &quoted)]);
        self.reload(member, "primary_conninfo", &conninfo).await;
    }

    pub async fn does(&mut self, step: &Step) {
        match *step {
            Step::Names(member, names) => self.names(member, names).await,
            Step::CutOff(member) => {
                set(&self.servers[member], &[("primary_conninfo", "")]);
                self.reload(member, "primary_conninfo", "").await;
            }
            Step::Commit(number, member) => {
                self.commit(member, number, &[&format!("INSERT INTO t VALUES ({number})")]).await;
            }
            Step::CommitWithTimeout(number, member) => {
                let insert = format!("INSERT INTO t VALUES ({number})");
                self.commit(member, number, &["SET statement_timeout = 200", &insert]).await;
            }
            Step::CallWithTimeout(number, member) => {
                let call = format!("CALL p({number})");
                self.commit(member, number, &["SET statement_timeout = 200", &call]).await;
            }
            Step::Cancel(member) => self.signal(member, "pg_cancel_backend").await,
            Step::Terminate(member) => self.signal(member, "pg_terminate_backend").await,
            Step::Stop(member, part) => {
                let pids = self.processes(member, part);
                assert!(!pids.is_empty(), "{part:?} of {member} does not run");
                pids.iter().for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap());
                self.stopped.push((member, part, pids));
            }
            Step::GoOn(member, part) => {
                for (_, _, pids) in self.stopped.extract_if(.., |s| (s.0, s.1) == (member, part)) {
                    pids.iter().for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGCONT).unwrap());
                }
            }
            Step::Crash(member) => self.servers[member].crash(),
            Step::StartAgain(member) => self.servers[member].start().await,
            Step::Promote(member) => {
                self.servers[member].sql("SELECT pg_promote(wait => false)");
            }
            Step::TryToStart(member) => {
                self.servers[member].spawn();
            }
            Step::Follow(member, upstream) => self.follow(member, upstream).await,
            Step::Reserve(member, timelines) => {
                for timeline in timelines {
                    let file =
                        self.servers[member].pg_wal().join(format!("{timeline:08X}.history"));
                    fs::write(&file, "").unwrap();
                    own(&file);
                }
            }
            Step::Told(_)
            | Step::Sees(..)
            | Step::Holds(..)
            | Step::Writes(_)
            | Step::Senders(_)
            | Step::Runs(_) => unreachable!("a question"),
        }
    }

    /// Asks until the answer is the wanted one; one that says that nothing happens has to stay.
    pub async fn shows(&mut self, step: &Step, wanted: &str) -> String {
        let deadline = store::clock::now() + BOUND;
        loop {
            let shown = format!("{step:?}: {}", self.asked(step));
            if shown == wanted {
                tokio::time::sleep(NEVER).await;
                return format!("{step:?}: {}", self.asked(step));
            }
            if store::clock::now() > deadline {
                return shown;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn asked(&mut self, step: &Step) -> String {
        match *step {
            Step::Told(number) => {
                let commit = self.commits.iter_mut().find(|c| c.number == number).unwrap();
                commit.told = commit.told.or(commit.answer.try_recv().ok());
                format!("{:?}", commit.told.unwrap_or(Told::Waits))
            }
            Step::Sees(number, member) => {
                let query = format!("SELECT count(*) > 0 FROM t WHERE i = {number}");
                format!("{:?}", self.answer(member, &query).map(|a| a == "t"))
            }
            Step::Holds(number, member) => {
                let lsn = self.commits.iter().find(|c| c.number == number).unwrap().lsn;
                let query = "SELECT coalesce(pg_last_wal_receive_lsn(), '0/0')";
                let holds = |text: String| text.parse::<proto::Lsn>().unwrap() >= lsn;
                format!("{:?}", self.answer(member, query).map(holds))
            }
            Step::Writes(member) => {
                let query = "SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE
                    ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int::text END";
                let timeline = self.answer(member, query).and_then(|t| t.parse::<u32>().ok());
                format!("{timeline:?}")
            }
            Step::Senders(member) => {
                let query = "SELECT coalesce(string_agg(format('(\"%s\", %s, %s)', application_name, sync_priority,
                    state = 'streaming'), ', ' ORDER BY application_name), '') FROM pg_stat_replication";
                let text = self.answer(member, query).unwrap_or_default();
                format!("[{}]", text.replace(", t)", ", true)").replace(", f)", ", false)"))
            }
            Step::Runs(member) => self.answer(member, "SELECT 1").is_some().to_string(),
            ref other => unreachable!("{other:?} is no question"),
        }
    }

    /// `None` where no session can be opened.
    fn answer(&self, member: usize, sql: &str) -> Option<String> {
        let output = self.servers[member].try_sql(sql);
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| text.trim().to_owned())
    }

    async fn commit(&mut self, member: usize, number: u64, statements: &[&str]) {
        let source = self.servers[member].source();
        let (tells, answer) = mpsc::channel();
        let mut psql = psql(&source, statements);
        std::thread::spawn(move || {
            let output = psql.output().unwrap();
            let warned = String::from_utf8_lossy(&output.stderr)
                .contains("canceling wait for synchronous replication");
            let told = match (output.status.success(), warned) {
                (true, false) => Told::Done,
                (true, true) => Told::Warned,
                (false, _) => Told::Lost,
            };
            let _ = tells.send(told);
        });
        tokio::time::sleep(NEVER).await;
        let lsn = self.answer(member, "SELECT pg_current_wal_flush_lsn()");
        let lsn = lsn.map_or(proto::Lsn(0), |text| text.parse().unwrap());
        self.commits.push(Commit { number, answer, told: None, lsn });
    }

    async fn signal(&self, member: usize, function: &str) {
        self.servers[member].sql(&format!(
            "SELECT {function}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        ));
        let none = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        self.servers[member].eventually("nobody waits", |c| c.sql(none) == "0").await;
    }

    fn processes(&self, member: usize, part: Part) -> Vec<i32> {
        let title = match part {
            Part::Receiver => "walreceiver",
            Part::Senders => "walsender",
            Part::Checkpointer => "checkpointer",
            Part::Startup => "startup",
            Part::Backends => "idle",
        };
        let file = fs::read_to_string(self.servers[member].data.join("postmaster.pid")).unwrap();
        let postmaster = file.lines().next().unwrap().trim().parse().unwrap();
        let named = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(title)
        };
        children_of(postmaster).into_iter().filter(named).collect()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        for (_, _, pids) in &self.stopped {
            for pid in pids {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGCONT);
            }
        }
    }
}

/// Puts settings into `postgresql.auto.conf`, over those that stand there.
fn set(cluster: &Cluster, settings: &[(&str, &str)]) {
    let conf = cluster.data.join("postgresql.auto.conf");
    let mut text = fs::read_to_string(&conf).unwrap_or_default();
    for (name, value) in settings {
        text.push_str(&format!("{name} = '{value}'\n"));
    }
    fs::write(&conf, text).unwrap();
    own(&conf);
}

fn psql(source: &Source, statements: &[&str]) -> Command {
    let mut command = Command::new(binaries().dir().join("psql"));
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER, "-p", "5432"]);
    command.arg("-h").arg(&source.host).args(["-d", "postgres"]);
    for statement in statements {
        command.args(["-c", statement]);
    }
    command.env("PGPASSFILE", &source.passfile).env("LC_ALL", "C").stdin(Stdio::null());
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).current_dir("/");
    }
    command
}
