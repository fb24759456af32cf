//! A standby's start and change of upstream, and everything that starts PostgreSQL.

use anyhow::Context;
use keeper::facts::{Names, Process};
use keeper::member_files::Role;
use keeper::postgres::settings::{Access, Settings, StreamName, Upstream};
use proto::assignment::Follow;
use proto::cfg::unsatisfiable_names;
use proto::report::{RejoinBy, RejoinOutcome};
use proto::{MemberName, Moment, WalPosition};

use super::worker::Worker;
use crate::sim::fencer::Refusal;

/// Starts PostgreSQL as a standby of the primary in `follow`.
pub async fn start(worker: &Worker, follow: &Follow, name: StreamName) -> anyhow::Result<()> {
    let was_primary = worker.files().role == Role::Primary;
    worker.save(|files| {
        files.promise = files.promise.max(follow.epoch);
        files.epoch = follow.epoch;
        files.role = Role::Standby;
    });
    if was_primary && worker.files().complete {
        worker.begin_rejoin(follow.epoch, RejoinBy::Follow, "its WAL ends before the fork");
    }
    worker.prepare_standby(worker.local().end_of_wal.is_some() && worker.files().complete);
    worker.install(standby_settings(worker, follow, name)?);
    worker.start_postgres(None).await
}

/// Starts PostgreSQL as a standby that receives from nobody.
pub async fn start_sealed(worker: &Worker, position: WalPosition) -> anyhow::Result<()> {
    worker.prepare_standby(true);
    worker.forget_credentials(None);
    worker.install(Settings::cut_off());
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
    });
    worker.update(|local| local.slots_for = None);
    worker.reload(standby_settings(worker, follow, name)?).await
}

/// Takes the mark *incomplete* away.
pub fn mark_complete(worker: &Worker) {
    worker.save(|files| {
        files.complete = true;
        files.rejoin = None;
    });
}

fn standby_settings(
    worker: &Worker,
    follow: &Follow,
    name: StreamName,
) -> anyhow::Result<Settings> {
    let known = worker.settings().upstream.filter(|u| u.epoch == follow.epoch);
    let (host, port) = match (worker.address_of(&follow.primary), known) {
        (Ok(reported), _) => reported,
        (Err(_), Some(known)) => (known.host, known.port),
        (Err(error), None) => return Err(error),
    };
    worker.sim.with(|w| w.members[worker.member].disk.passfiles.insert(follow.epoch));
    worker.forget_credentials(Some(follow.epoch));
    let standby_names = match worker.sim.mutant("names-empty-on-standbys") {
        true => String::new(),
        false => unsatisfiable_names(),
    };
    Ok(Settings {
        standby_names,
        upstream: Some(Upstream { epoch: follow.epoch, host, port, name }),
        access: Access::Open,
        eager: true,
    })
}

impl Worker {
    pub fn address_of(&self, member: &MemberName) -> anyhow::Result<(String, u16)> {
        let view = self.view.borrow();
        let report =
            view.reports.get(member).with_context(|| format!("{member} does not report"))?;
        let (host, port) =
            report.postgres_address.rsplit_once(':').context("address without a port")?;
        Ok((host.to_owned(), port.parse().context("port of an address")?))
    }

    /// Removes placeholders and, where asked, pieces; and makes PostgreSQL start as a standby.
    fn prepare_standby(&self, set_aside: bool) {
        let stays = self.sim.mutant("piece-stays");
        self.sim.with(|w| {
            if let Some(data) = &mut w.members[self.member].disk.data {
                data.placeholders.clear();
                data.standby_signal = true;
                if set_aside && !stays {
                    data.piece = None;
                }
            }
        });
        if set_aside {
            self.update(|local| local.unreached.clear());
        }
    }

    /// Starts the postmaster through the fencer.
    pub async fn start_postgres(&self, deadline: Option<Moment>) -> anyhow::Result<()> {
        let before = self.local().process;
        self.update(|local| {
            local.process = Process::Running { pid: 0 };
            local.end_of_wal = None;
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
        let started = self.fencer.start(deadline).await;
        self.update(|local| match (&started, local.process) {
            (Ok(pid), Process::Running { .. }) => local.process = Process::Running { pid: *pid },
            (Err(Refusal::AlreadyRuns | Refusal::NoAnswer), _) => {}
            (Err(_), Process::Running { .. }) => local.process = before,
            (Ok(_) | Err(_), _) => {}
        });
        started.context("start PostgreSQL")?;
        Ok(())
    }

    pub fn begin_rejoin(&self, epoch: proto::Epoch, by: RejoinBy, reason: &str) {
        let rejoin = proto::report::Rejoin {
            epoch,
            by,
            reason: reason.to_owned(),
            started: self.host.wall(),
            outcome: RejoinOutcome::Running { progress: None },
            kept: None,
            details: Default::default(),
        };
        self.update(|local| local.rejoin = Some(rejoin));
    }
}
