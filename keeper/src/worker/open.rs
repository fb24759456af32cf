//! Starting PostgreSQL as the primary of its own epoch: closed first, open only by the agreed state read after the
//! start, and when enough voters hold all that was recovered (I10, I16).

use std::time::Duration;

use anyhow::{Context, bail};
use proto::Cfg;
use proto::assignment::Lead;
use proto::cfg::unsatisfiable_names;
use proto::report::Opened;

use super::promote::{check_start, current_timeline, serve_until, switch_point};
use super::{Worker, prove, right};
use crate::durable::remove_if_there;
use crate::facts::Names;
use crate::postgres::rewindable::FUNCTIONS;
use crate::postgres::session::Session;
use crate::postgres::settings::{Access, REPLICATION_ROLE, REWIND_ROLE, Settings};
use crate::postgres::wal_files;
use crate::sign;

/// Crash recovery reads at some hundred MB/s; an hour is beyond any `max_wal_size` that is sane.
const REDO_AT_MOST: Duration = Duration::from_secs(3600);

/// Starts PostgreSQL closed, and returns when it is out of recovery.
pub async fn start_primary(worker: &Worker, lead: &Lead, restart: u64) -> anyhow::Result<()> {
    prepare_closed(worker)?;
    let lease = (*worker.lease.borrow()).context("this keeper has no lease to start under")?;
    worker.save(|files| files.restarted = files.restarted.max(restart))?;
    // The right is bounded from before the start: with it gone the fencer ends what recovery has begun.
    worker.start_postgres(Some(serve_until(lease.expires, &worker.spec()))).await?;
    out_of_recovery(worker, lead).await
}

/// The same while etcd is away. Closed it serves nobody, so no time is set until it is opened.
pub async fn start_alone(worker: &Worker, lead: &Lead) -> anyhow::Result<()> {
    tracing::warn!(epoch = %lead.epoch, "etcd is away: starting PostgreSQL closed, to open when its voters follow");
    prepare_closed(worker)?;
    worker.start_postgres(None).await?;
    out_of_recovery(worker, lead).await
}

fn prepare_closed(worker: &Worker) -> anyhow::Result<()> {
    worker.forget_credentials(None)?;
    wal_files::remove_placeholders(&worker.pg_wal()).context("remove empty timeline histories")?;
    for signal_file in ["standby.signal", "recovery.signal"] {
        remove_if_there(&worker.place.data_dir.join(signal_file))
            .context("remove a signal file")?;
    }
    worker.install(Settings {
        standby_names: unsatisfiable_names(),
        upstream: None,
        access: Access::Closed,
        eager: false,
    })
}

async fn out_of_recovery(worker: &Worker, lead: &Lead) -> anyhow::Result<()> {
    let session = worker.admin_within(REDO_AT_MOST).await?;
    if session.value::<bool>("SELECT pg_is_in_recovery()").await? {
        bail!(
            "PostgreSQL is in recovery although it was started as the primary of epoch {}",
            lead.epoch
        );
    }
    Ok(())
}

/// Takes the right, proves that backends wait for standbys, and lets clients in.
pub async fn open(worker: &Worker, lead: &Lead) -> anyhow::Result<()> {
    let session = worker.admin().await?;
    check_timeline(worker, &session, lead).await?;
    check_start(worker, lead, switch_point(worker, lead.timeline)?).await?;
    let restart = lead.restart.unwrap_or(0);
    right::take(worker, lead.epoch, restart).await?;
    // Not before: a lease that is kept is no right, only the state read after it is.
    worker.bound_service();
    let was_open = worker.settings().access == Access::Open;
    if !was_open {
        ensure_roles(worker, &session).await?;
        let cfg = lead.own_cfg().context("the state holds no Cfg of this epoch")?;
        wait_until_safe(worker, &session, cfg).await?;
        worker.let_clients_in().await?;
    }
    note_open(worker, lead)
}

/// Lets clients in, or goes on with those that an earlier keeper has let in, by a sign of the voters. Only the Cfg whose
/// signs count is put in force: it is on record, whatever has become of the others since.
pub async fn open_by_signs(worker: &Worker, lead: &Lead) -> anyhow::Result<()> {
    let session = worker.admin().await?;
    check_timeline(worker, &session, lead).await?;
    let cfg = sign::whose_signs_count(&worker.files(), worker.state()?)?;
    if worker.settings().access != Access::Open {
        wait_until_safe(worker, &session, &cfg).await?;
    }
    let spec = worker.spec();
    let at = sign::give(worker, spec.lease_ttl / 2).await?;
    // Clients come in after the time is set that ends their service.
    worker.fencer.lease_at_most(spec.lease_ttl);
    worker.fencer.serve_until(Some(serve_until(at + spec.lease_ttl, &spec)));
    worker.let_clients_in().await?;
    tracing::warn!(%cfg, "etcd is away: open by the sign of this primary's voters");
    note_open(worker, lead)
}

async fn check_timeline(worker: &Worker, session: &Session, lead: &Lead) -> anyhow::Result<()> {
    let timeline = current_timeline(session).await?;
    if timeline != lead.timeline {
        worker.fence("it writes another timeline than the state names").await?;
        bail!("PostgreSQL writes timeline {timeline}, the state names {}", lead.timeline);
    }
    Ok(())
}

fn note_open(worker: &Worker, lead: &Lead) -> anyhow::Result<()> {
    let timeline = lead.timeline;
    let restart = lead.restart.unwrap_or(0);
    let start_lsn = lead.start_lsn.map_or_else(|| switch_point(worker, timeline), Ok)?;
    // An order that found PostgreSQL running is carried out: its next death needs another one.
    worker.save(|files| files.restarted = files.restarted.max(restart))?;
    tracing::info!(epoch = %lead.epoch, %timeline, restart, "open");
    worker.update(|local| {
        local.opened = Some(Opened { epoch: lead.epoch, timeline, start_lsn, restart });
    });
    worker.checkpoint_soon(lead.epoch);
    Ok(())
}

/// Waits until k voters of the Cfg in force have flushed all that was recovered; meanwhile shows that backends wait.
async fn wait_until_safe(worker: &Worker, session: &Session, cfg: &Cfg) -> anyhow::Result<()> {
    let recovered = prove::own_record(session, "open").await?;
    if cfg.k == 0 {
        return prove::canary_waits(worker).await;
    }
    if worker.local().names == Names::Impossible {
        prove::canary(worker, cfg).await?;
    }
    prove::wait_for_voters(worker, cfg, recovered).await?;
    Ok(())
}

/// Creates the roles of the keepers, where they are missing. Existing roles keep their passwords.
async fn ensure_roles(worker: &Worker, session: &Session) -> anyhow::Result<()> {
    let roles = [
        (REPLICATION_ROLE, "LOGIN REPLICATION", &worker.secrets.replication),
        (REWIND_ROLE, "LOGIN", &worker.secrets.rewind),
    ];
    for (role, attributes, password) in roles {
        let known = session
            .row("SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1)", &[&role])
            .await?;
        if known.get::<_, bool>(0) {
            continue;
        }
        let password = password.replace('\'', "''");
        session
            .run(&format!(
                "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = panic;
                 CREATE ROLE {role} {attributes} PASSWORD '{password}'"
            ))
            .await
            .with_context(|| format!("create role {role}"))?;
    }
    session.run(&grants()).await.context("grant what rewinds and copies need")
}

/// Returns the rights that pg_rewind needs on its source, and a copy of a standby on that.
fn grants() -> String {
    FUNCTIONS
        .iter()
        .map(|function| format!("EXECUTE ON FUNCTION pg_catalog.{function}"))
        .chain(["pg_checkpoint".to_owned()])
        .map(|right| format!("GRANT {right} TO {REWIND_ROLE};\n"))
        .collect()
}
