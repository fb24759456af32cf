//! A standby's start, its change of upstream, and its becoming complete.

use std::fs;

use anyhow::Context;
use proto::assignment::Follow;
use proto::cfg::unsatisfiable_names;
use proto::report::{MemberReport, RejoinBy, RejoinOutcome};
use proto::{Epoch, MemberName, WalPosition};

use super::seal::set_unreached_aside;
use super::{Worker, readers};
use crate::durable::{remove_if_there, replace, write_atomic};
use crate::facts::{Names, Process};
use crate::fencer::{FencerError, Refusal};
use crate::member_files::Role;
use crate::postgres::settings::{Access, REPLICATION_ROLE, Settings, StreamName, Upstream};
use crate::postgres::wal_files;

/// Starts PostgreSQL as a standby of the primary in `follow`. Its WAL was shown to be a prefix of the primary's,
/// or it is incomplete and streams under a name that no list holds.
pub async fn start(worker: &Worker, follow: &Follow, name: StreamName) -> anyhow::Result<()> {
    let was_primary = worker.files().role == Role::Primary;
    worker.save(|files| {
        files.promise = files.promise.max(follow.epoch);
        files.epoch = follow.epoch;
        files.role = Role::Standby;
    })?;
    if was_primary && worker.files().complete {
        let reason = "its WAL ends before the fork".to_owned();
        worker.begin_rejoin(follow.epoch, RejoinBy::Follow, &reason);
    }
    wal_files::remove_placeholders(&worker.pg_wal()).context("remove empty timeline histories")?;
    if let Some(end) = worker.local().end_of_wal.filter(|_| worker.files().complete) {
        set_unreached_aside(worker, end)?;
    }
    write_signal_file(worker)?;
    worker.install(standby_settings(worker, follow, name)?)?;
    worker.start_postgres(None).await
}

/// Starts PostgreSQL as a standby that receives from nobody, so that it can be promoted. It serves nobody meanwhile.
pub async fn start_sealed(worker: &Worker, position: WalPosition) -> anyhow::Result<()> {
    wal_files::remove_placeholders(&worker.pg_wal()).context("remove empty timeline histories")?;
    set_unreached_aside(worker, position)?;
    worker.forget_credentials(None)?;
    write_signal_file(worker)?;
    worker.install(Settings::cut_off())?;
    worker.start_postgres(None).await?;
    worker.update(|local| local.started_sealed = Some(position));
    Ok(())
}

/// Points the running standby at the primary in `follow`.
pub async fn repoint(worker: &Worker, follow: &Follow, name: StreamName) -> anyhow::Result<()> {
    worker.save(|files| {
        files.promise = files.promise.max(follow.epoch);
        files.epoch = follow.epoch;
        files.role = Role::Standby;
    })?;
    worker.update(|local| local.slots_for = None);
    worker.reload(standby_settings(worker, follow, name)?).await?;
    readers::replay_what_was_sealed(worker, follow).await
}

/// Takes the mark *incomplete* away; `reconcile` then gives the member its voter's name.
pub fn mark_complete(worker: &Worker, epoch: Epoch) -> anyhow::Result<()> {
    worker.save(|files| {
        files.complete = true;
        files.rejoin = None;
    })?;
    tracing::info!(%epoch, "complete");
    Ok(())
}

fn standby_settings(
    worker: &Worker,
    follow: &Follow,
    name: StreamName,
) -> anyhow::Result<Settings> {
    // A primary that does not report for a while is looked for where it was.
    let known = worker.settings().upstream.filter(|u| u.epoch == follow.epoch);
    let (host, port) = match (worker.address_of(&follow.primary), known) {
        (Ok(reported), _) => reported,
        (Err(_), Some(known)) => (known.host, known.port),
        (Err(error), None) => return Err(error),
    };
    let upstream = Upstream { epoch: follow.epoch, host, port, name };
    write_passfile(worker, &upstream)?;
    worker.forget_credentials(Some(follow.epoch))?;
    Ok(Settings {
        standby_names: unsatisfiable_names(),
        upstream: Some(upstream),
        access: Access::Open,
        eager: true,
    })
}

fn write_passfile(worker: &Worker, upstream: &Upstream) -> anyhow::Result<()> {
    let text = passfile_line(
        upstream.host.as_str(),
        upstream.port,
        REPLICATION_ROLE,
        &worker.secrets.replication,
    );
    replace(&worker.place.replication_passfile(upstream.epoch), text.as_bytes(), 0o600)
        .context("write the replication password file")
}

/// Returns one line of a libpq password file. Colons and backslashes are escaped as libpq wants it.
pub fn passfile_line(host: &str, port: u16, user: &str, password: &str) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    format!("{}:{port}:*:{user}:{}\n", escape(host), escape(password))
}

/// Makes PostgreSQL start as a standby (I10).
pub fn write_signal_file(worker: &Worker) -> anyhow::Result<()> {
    let data_dir = &worker.place.data_dir;
    write_atomic(&data_dir.join("standby.signal"), b"", 0o600).context("write standby.signal")?;
    remove_if_there(&data_dir.join("recovery.signal")).context("remove recovery.signal")?;
    Ok(())
}

/// Returns the host and the port at which a member's PostgreSQL listens, by its report.
pub fn address(report: &MemberReport) -> anyhow::Result<(String, u16)> {
    let (host, port) =
        report.postgres_address.rsplit_once(':').context("address without a port")?;
    Ok((host.trim_matches(['[', ']']).to_owned(), port.parse().context("port of an address")?))
}

impl Worker {
    /// Returns where `member`'s PostgreSQL listens, by its report.
    pub fn address_of(&self, member: &MemberName) -> anyhow::Result<(String, u16)> {
        let view = self.view.borrow();
        let report =
            view.reports.get(member).with_context(|| format!("{member} does not report"))?;
        address(report)
    }

    /// Starts the postmaster through the fencer.
    pub async fn start_postgres(&self, deadline: Option<proto::Moment>) -> anyhow::Result<()> {
        self.settle_tablespaces();
        fs::create_dir_all(self.place.socket_dir()).context("create the socket directory")?;
        let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let args = vec![
            "-D".to_owned(),
            text(&self.place.data_dir),
            "-c".to_owned(),
            format!("config_file={}", text(&self.place.config_file())),
        ];
        // The environment is cleared so that no PGPASSWORD of ours reaches a walreceiver.
        let env = [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into();
        let before = self.local().process;
        // It counts as running from before the order is sent: an action may be cut, or its answer lost, and then
        // PostgreSQL starts all the same. The fencer's events, and nothing else, say that it has ended.
        self.update(|local| {
            local.process = Process::Running { pid: 0 };
            local.ended = None;
            local.end_of_wal = None;
            local.stopped = None;
            local.compared = None;
            local.promoted = None;
            local.last_answer = None;
            local.started_sealed = None;
            local.streamed = None;
            local.begins = None;
            local.slots_for = None;
            local.opened = None;
            local.confirmed = None;
            local.names = Names::Impossible;
            local.voters_late = false;
        });
        let start = crate::fencer::StartPostgres {
            program: self.binaries.postgres(),
            args,
            env,
            log_file: self.place.state_dir.join("postgresql.log"),
            deadline,
        };
        let started = self.fencer.start(start).await;
        self.update(|local| match (&started, local.process) {
            (Ok(pid), Process::Running { .. }) => local.process = Process::Running { pid: *pid },
            (Err(FencerError::Refused(refusal)), Process::Running { .. })
                if !matches!(refusal, Refusal::AlreadyRuns { .. }) =>
            {
                local.process = before;
            }
            // It has ended already, or whether it runs is not known.
            (Ok(_) | Err(_), _) => {}
        });
        let pid = started.context("start PostgreSQL")?;
        tracing::info!(pid, "started PostgreSQL");
        Ok(())
    }

    /// Notes that a rejoin has begun.
    pub fn begin_rejoin(&self, epoch: Epoch, by: RejoinBy, reason: &str) {
        tracing::info!(%epoch, ?by, reason, "rejoin");
        let rejoin = proto::report::Rejoin {
            epoch,
            by,
            reason: reason.to_owned(),
            started: store::clock::wall(),
            outcome: RejoinOutcome::Running { progress: None },
            kept: None,
            details: Default::default(),
        };
        self.update(|local| {
            local.rejoin = Some(rejoin);
            local.copying = None;
        });
    }
}
