//! Becoming the primary of an epoch. The names for it are in force before PostgreSQL is promoted, and the timeline
//! is the one that the promote commit named.

use anyhow::{Context, bail};
use proto::assignment::Lead;
use proto::report::Opened;
use proto::{Cfg, ClusterSpec, Lsn, Moment, Timeline};

use super::readers::PATIENCE_WITH_READERS;
use super::{Worker, prove, right, slots};
use crate::facts::{Local, Names};
use crate::member_files::Role;
use crate::postgres::session::Session;
use crate::postgres::settings::{Access, Settings};
use crate::postgres::wal_files;

/// Promotes the running standby and lets clients in.
pub async fn promote(worker: &Worker, lead: &Lead) -> anyhow::Result<()> {
    let cfg = lead.own_cfg().cloned().context("the state holds no Cfg of this epoch")?;
    let session = worker.admin().await.context("open a session to promote")?;
    // From here on this member is a primary of the epoch and of no other, also after a crash.
    worker.save(|files| {
        files.promise = files.promise.max(lead.epoch);
        files.epoch = lead.epoch;
        files.role = Role::Primary;
        files.confirmed = None;
    })?;
    worker.bound_service();
    let (key, promoted) = tokio::join!(
        right::take(worker, lead.epoch, lead.restart.unwrap_or(0)),
        promote_server(worker, &session, lead, &cfg),
    );
    let start_lsn = promoted?;
    key?;
    if !lead.open_at_once {
        slots::ensure(worker, &session).await?;
        let end = prove::own_record(&session, "open").await?;
        prove::wait_for_voters(worker, &cfg, end).await?;
    }
    worker.let_clients_in().await?;
    let opened = Opened {
        epoch: lead.epoch,
        timeline: lead.timeline,
        start_lsn,
        restart: lead.restart.unwrap_or(0),
    };
    tracing::info!(epoch = %lead.epoch, timeline = %lead.timeline, %start_lsn, "promoted and open");
    worker.update(|local| local.opened = Some(opened));
    worker.checkpoint_soon(lead.epoch);
    Ok(())
}

/// Returns the switch point of the new timeline.
async fn promote_server(
    worker: &Worker,
    session: &Session,
    lead: &Lead,
    cfg: &Cfg,
) -> anyhow::Result<Lsn> {
    let access = if lead.open_at_once { worker.settings().access } else { Access::Closed };
    let settings =
        Settings { standby_names: cfg.standby_names(), upstream: None, access, eager: false };
    let (applied, ()) =
        tokio::join!(worker.apply(settings), slots::reserve_before_promotion(worker, lead.epoch));
    applied?;
    if access == Access::Closed {
        end_client_sessions(session).await?;
    }
    wal_files::place_placeholders(&worker.pg_wal(), Timeline(lead.timeline.0 - 1))
        .context("reserve the timelines that were named before")?;
    session
        .run("SELECT CASE WHEN pg_is_wal_replay_paused() THEN pg_wal_replay_resume() END")
        .await?;
    if access == Access::Closed {
        // Whoever was still logging in by the old pg_hba.conf the first time.
        end_client_sessions(session).await?;
    }
    session.run("SELECT pg_promote(false)").await.context("promote")?;
    out_of_recovery(worker, session).await?;
    let timeline = current_timeline(session).await?;
    if timeline != lead.timeline {
        worker.fence("the promotion ended on another timeline than the state named").await?;
        bail!("promoted to timeline {timeline}, the state named {}", lead.timeline);
    }
    let start_lsn = switch_point(worker, timeline)?;
    check_start(worker, lead, start_lsn).await?;
    let promoted = |local: &mut Local| {
        local.names = if cfg.k == 0 { Names::Impossible } else { Names::Proven(cfg.id) };
        local.promoted = Some(timeline);
    };
    // Told in one report with the opening, where that follows at once: two would be written one after the other.
    match lead.open_at_once {
        true => worker.note_quietly(promoted),
        false => worker.update(promoted),
    }
    Ok(start_lsn)
}

/// A server that took a piece of WAL for the whole begins its timeline before what it had shown to be replayed.
pub(super) async fn check_start(worker: &Worker, lead: &Lead, start: Lsn) -> anyhow::Result<()> {
    let sealed = worker.local().seal.filter(|seal| seal.sealing == lead.epoch);
    let replayed = sealed.map_or(Lsn(0), |seal| seal.replayed);
    if start < replayed {
        worker.fence("the promotion left out WAL that was sealed").await?;
        bail!("timeline {} begins at {start}, this member had replayed {replayed}", lead.timeline);
    }
    Ok(())
}

/// Waits until PostgreSQL is out of recovery. Has no bound of its own: the leader seals the next epoch when replay
/// makes no progress, and that cuts this action.
async fn out_of_recovery(worker: &Worker, session: &Session) -> anyhow::Result<()> {
    let mut patient_since = store::clock::now();
    loop {
        if !session.value::<bool>("SELECT pg_is_in_recovery()").await? {
            return Ok(());
        }
        // Again and again: clients come back, and what they then read may be in the way of the next record.
        if store::clock::now().since(patient_since) > PATIENCE_WITH_READERS {
            end_client_sessions(session).await?;
            patient_since = store::clock::now();
            tracing::warn!(member = %worker.place.member, "ended sessions that held replay up");
        }
        tokio::time::sleep(super::SOON).await;
    }
}

/// Ends the sessions of clients of a *standby*. Never called on a primary: there it would make commits visible that
/// wait for standbys (I16).
async fn end_client_sessions(session: &Session) -> anyhow::Result<()> {
    session
        .run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE backend_type = 'client backend' AND pg_is_in_recovery()
                AND NOT (usename = current_user AND application_name = 'pgdeputy-keeper')",
        )
        .await
        .context("end client sessions")
}

/// Returns the timeline that the server writes.
pub async fn current_timeline(session: &Session) -> anyhow::Result<Timeline> {
    let name: String = session.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").await?;
    let number = name.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    number.map(Timeline).with_context(|| format!("{name} is no WAL file name"))
}

/// Returns where `timeline` begins, by its history file; the first one begins at zero.
pub fn switch_point(worker: &Worker, timeline: Timeline) -> anyhow::Result<Lsn> {
    let history = wal_files::history(&worker.pg_wal(), timeline)?;
    Ok(history.ancestors.last().map_or(Lsn(0), |a| a.until))
}

/// Returns until when a primary may serve whose lease was last known to live until `expires`: less the time that a
/// fence takes, and 1 % for clocks of different speed.
pub fn serve_until(expires: Moment, spec: &ClusterSpec) -> Moment {
    expires - spec.fence_time - spec.lease_ttl / 100
}

impl Worker {
    /// Opens `pg_hba.conf` to clients.
    pub async fn let_clients_in(&self) -> anyhow::Result<()> {
        if self.settings().access == Access::Open {
            return Ok(());
        }
        self.reload(Settings { access: Access::Open, ..self.settings() }).await
    }

    /// Tells the fencer until when a primary may serve, by the lease as last renewed (I17).
    pub fn bound_service(&self) {
        let spec = self.spec();
        let until = match *self.lease.borrow() {
            Some(lease) => serve_until(lease.expires, &spec),
            // Without a lease there is no right: the fence comes at once.
            None => store::clock::now(),
        };
        self.fencer.serve_until(Some(until));
    }
}
