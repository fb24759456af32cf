//! Single processes of a member's PostgreSQL and its fencer: found, killed, and seen to be gone; and sessions, until there are
//! no more.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::MemberName;
use store::clock;

use super::commands::prepare;
use super::freeze::is_dead;
use super::{APPLICATION, Lab, Struck};
use crate::session::Session;

/// A killed process is gone within milliseconds, and a stream begins within some tens of them.
const SEEN_BOUND: Duration = Duration::from_secs(10);

/// A crowd is opened one by one; each login hashes.
const LOGIN_BOUND: Duration = Duration::from_secs(10);

/// Far above any `max_connections` of a lab.
const CROWD: usize = 1_000;

/// The role as which standbys stream.
const REPLICATION: &str = "pgdeputy_replication";

/// A process of PostgreSQL that is none of its fixed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerProcess {
    /// A session of the application.
    Session,
    Walsender,
    Walreceiver,
}

impl ServerProcess {
    /// As `pg_stat_activity` names it.
    fn kind(self) -> &'static str {
        match self {
            ServerProcess::Session => "client backend",
            ServerProcess::Walsender => "walsender",
            ServerProcess::Walreceiver => "walreceiver",
        }
    }
}

impl Lab {
    /// Kills one process of this kind, and proves that it is gone.
    pub async fn kill_server_process(
        &self,
        member: &MemberName,
        which: ServerProcess,
    ) -> anyhow::Result<Struck> {
        let pid = self.server_process(member, which).await?;
        self.kill_seen(pid, which.kind()).await
    }

    /// Returns the id of one process of this kind.
    pub(super) async fn server_process(
        &self,
        member: &MemberName,
        which: ServerProcess,
    ) -> anyhow::Result<i32> {
        const FIND: &str = "SELECT pid FROM pg_stat_activity WHERE backend_type = $1 \
             AND (usename = $2 OR backend_type <> 'client backend') LIMIT 1";
        let session = self.superuser(member).await?;
        let found = session.client().query_opt(FIND, &[&which.kind(), &APPLICATION]).await?;
        let found = found.with_context(|| format!("{member} has no {}", which.kind()))?;
        Ok(found.try_get(0)?)
    }

    /// Kills the fencer of a member, and proves that it is gone.
    pub async fn kill_fencer(&self, member: &MemberName) -> anyhow::Result<Struck> {
        let is_fencer = |program: &str| program.contains("fencer");
        let found = self.processes_of(member).into_iter().find(|p| is_fencer(&p.program));
        let pid = found.with_context(|| format!("{member} has no fencer"))?.pid;
        self.kill_seen(pid, "fencer").await
    }

    async fn kill_seen(&self, pid: i32, what: &str) -> anyhow::Result<Struck> {
        self.home.spawner.adopt(vec![pid]);
        let struck = Struck::now();
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill {what} {pid}"))?;
        while !is_dead(pid) {
            ensure!(clock::now() < struck.at + SEEN_BOUND, "{what} {pid} does not end");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(struck)
    }

    /// Kills a process that is no member's, such as `proxy-config`, and proves that it is gone.
    pub async fn kill_other(&mut self, name: &str) -> anyhow::Result<Struck> {
        let found = self.others.iter().rposition(|(known, _)| known == name);
        let (_, pid) = self.others.remove(found.with_context(|| format!("no process {name}"))?);
        self.kill_seen(pid, name).await
    }

    /// Opens sessions as superuser until PostgreSQL has no more, its reserved ones too.
    pub async fn exhaust(&self, member: &MemberName) -> anyhow::Result<(Struck, Vec<Session>)> {
        let target = self.superuser_at(member)?;
        let struck = Struck::now();
        let mut crowd = Vec::new();
        while crowd.len() < CROWD {
            match Session::open(&target, LOGIN_BOUND).await {
                Ok(session) => crowd.push(session),
                Err(error) if format!("{error:#}").contains("too many clients") => {
                    return Ok((struck, crowd));
                }
                Err(error) => return Err(error).context("take all sessions"),
            }
        }
        bail!("{member} takes {CROWD} sessions and more")
    }

    /// Has somebody who is no member stream from `member` under the name of one of its voters, and proves that it counts.
    pub async fn start_stranger(&mut self, member: &MemberName) -> anyhow::Result<Struck> {
        const STREAMS: &str = "SELECT count(*) FROM pg_stat_replication \
             WHERE application_name = $1 AND state = 'streaming' AND sync_state IN ('sync', 'quorum')";
        let cluster = self.cluster().await?;
        let cfg = cluster.state.as_ref().and_then(|state| state.newest_cfg());
        let cfg = cfg.context("there is no Cfg")?;
        let name = cfg.wire_name(cfg.voters.first().context("nobody votes")?);
        let at = self.address(member)?;
        // One of its own each time: a stranger goes on where an earlier one ended, and that WAL may be gone.
        let directory = format!("stranger-wal-{:08x}", rand::random::<u32>());
        let directory = self.home.layout.process(&directory);
        std::fs::create_dir_all(&directory).context("make the stranger's directory")?;
        let password = self.home.layout.password("replication");
        let password = std::fs::read_to_string(password).context("read a password")?;
        let bin = self.config.postgres_bin.clone().unwrap_or_default();
        let layout = &self.home.layout;
        let mut command = prepare(layout, "stranger", &bin.join("pg_receivewal"), &layout.root)?;
        command.arg("-D").arg(&directory).args(["--synchronous", "--no-loop", "-d"]);
        let (host, port) = (at.host, at.postgres);
        command
            .arg(format!("host={host} port={port} user={REPLICATION} application_name={name}"))
            .env("PGPASSWORD", password.trim_end());
        let struck = Struck::now();
        self.start_other("stranger", command)?;
        let session = self.superuser(member).await?;
        loop {
            let row = session.client().query_one(STREAMS, &[&name]).await?;
            if row.try_get::<_, i64>(0)? > 1 {
                return Ok(struck);
            }
            let log = || self.log_of("stranger");
            ensure!(clock::now() < struck.at + SEEN_BOUND, "no stranger streams: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
