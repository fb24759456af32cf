//! Sealing: stop receiving in a way that no stale process can undo, promise, and only then look how far the WAL
//! reaches. This, and not a clock, takes the old primary's power away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::report::Seal;
use proto::{Epoch, Lsn, Timeline, WalPosition};

use super::{Patience, Worker};
use crate::facts::Local;
use crate::postgres::control::ControlFile;
use crate::postgres::session::Session;
use crate::postgres::settings::Settings;
use crate::postgres::{stopped, wal_files, wal_scan};

/// A server that has accepted sessions for a while answers within milliseconds. One that does not is starting, or
/// hangs: it is stopped and its files are read, because a seal must not wait for replay.
const SESSION_PATIENCE: Duration = Duration::from_millis(300);

/// Far longer than any silence of a healthy server on a busy machine: being stopped for nothing costs a restart.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// Seals for `sealing`. PostgreSQL runs as a standby or not at all.
pub async fn seal(worker: &Worker, sealing: Epoch) -> anyhow::Result<()> {
    ensure!(worker.files().complete, "this member is incomplete: where its WAL ends says nothing");
    let running = worker.is_running();
    worker.forget_credentials(None)?;
    let settings = Settings { upstream: None, eager: true, ..worker.settings() };
    #[cfg(feature = "mistakes")]
    let settings = crate::mistakes::sealed(worker, settings);
    let session = match running {
        true => match answering(worker).await {
            Ok(session) => Some(session),
            // Started without an upstream and still recovering: it has received nothing since, and goes on.
            Err(_) if worker.local().started_sealed.is_some() => {
                return seal_recovering(worker, sealing);
            }
            Err(_) => {
                worker.fence("it does not answer and must be sealed").await?;
                None
            }
        },
        false => None,
    };
    match &session {
        Some(session) => {
            worker.reload(settings).await?;
            end_receiver(session).await?;
        }
        None => worker.install(settings)?,
    }
    // From here on nothing of an older epoch reaches this member's WAL.
    worker.promise(sealing)?;
    let seal = match &session {
        Some(session) => running_seal(worker, session, sealing).await?,
        None => stopped_seal(worker, sealing).await?,
    };
    let unreached = unreached(worker, seal.position)?;
    tracing::info!(%sealing, position = %seal.position, clean = seal.clean, ?unreached, "sealed");
    worker.update(|local| {
        local.seal = Some(seal);
        local.unreached = unreached;
    });
    Ok(())
}

/// Returns a session that answers. One that was kept says nothing by itself: its server may hang since.
async fn answering(worker: &Worker) -> anyhow::Result<Arc<Session>> {
    let session = worker.admin_within(SESSION_PATIENCE).await?;
    session.run_within(ANSWER_PATIENCE, "SELECT 1").await.context("PostgreSQL does not answer")?;
    Ok(session)
}

fn seal_recovering(worker: &Worker, sealing: Epoch) -> anyhow::Result<()> {
    worker.promise(sealing)?;
    worker.update(|local| {
        local.seal = local.started_sealed.map(|position| Seal {
            sealing,
            position,
            replayed: Lsn(0),
            clean: true,
        });
    });
    Ok(())
}

/// Returns the timelines beyond `position` of which this member holds pieces.
fn unreached(worker: &Worker, position: WalPosition) -> anyhow::Result<BTreeSet<Timeline>> {
    let control = ControlFile::read(&worker.place.data_dir)?;
    let reach = position.timeline.max(control.timeline());
    wal_files::unreached(&worker.pg_wal(), reach, control.wal_segment_size)
}

/// Sets such pieces aside. PostgreSQL is down and its WAL ends at `position`.
pub fn set_unreached_aside(worker: &Worker, position: WalPosition) -> anyhow::Result<()> {
    let control = ControlFile::read(&worker.place.data_dir)?;
    let reach = position.timeline.max(control.timeline());
    let aside = wal_files::set_unreached_aside(&worker.pg_wal(), reach, control.wal_segment_size)?;
    if !aside.is_empty() {
        tracing::warn!(?aside, %position, "set aside pieces of timelines that were not reached");
    }
    worker.update(|local| local.unreached.clear());
    Ok(())
}

/// Finds the end of the WAL of a stopped member.
pub async fn scan(worker: &Worker) -> anyhow::Result<()> {
    let position = scan_position(worker).await?;
    note_end(worker, position)
}

/// Notes where a stopped member's WAL ends, and what else its disk shows.
fn note_end(worker: &Worker, position: WalPosition) -> anyhow::Result<()> {
    let stopped = stopped::read(&worker.place.data_dir, position.timeline)?;
    worker.update(|local| {
        local.end_of_wal = Some(position);
        local.stopped = Some(stopped);
    });
    Ok(())
}

/// Ends the walreceiver and returns when no process of that kind is left. The startup process gets its SIGHUP
/// directly: the postmaster signals its children one by one, and a stale one could start another receiver. The
/// process is ended by its pid because a reload alone waits until replay looks at its settings.
async fn end_receiver(session: &Session) -> anyhow::Result<()> {
    let patience = Patience::of(Duration::from_secs(5), "the walreceiver to end");
    loop {
        let rows = session
            .rows(
                "SELECT pid, backend_type FROM pg_stat_activity WHERE backend_type IN ('startup', 'walreceiver')",
                &[],
            )
            .await?;
        let mut receives = false;
        for row in rows {
            let is_receiver = row.get::<_, &str>(1) == "walreceiver";
            receives |= is_receiver;
            let signal = if is_receiver { Signal::SIGTERM } else { Signal::SIGHUP };
            // A process that ended meanwhile is what is wanted.
            let _ = kill(Pid::from_raw(row.get(0)), signal);
        }
        if !receives {
            return Ok(());
        }
        patience.soon().await?;
    }
}

async fn running_seal(worker: &Worker, session: &Session, sealing: Epoch) -> anyhow::Result<Seal> {
    let row = session
        .row(
            "SELECT COALESCE(pg_last_wal_receive_lsn(), '0/0')::text, COALESCE(pg_last_wal_replay_lsn(), '0/0')::text",
            &[],
        )
        .await?;
    let received: Lsn = row.get::<_, &str>(0).parse()?;
    let replayed: Lsn = row.get::<_, &str>(1).parse()?;
    // Without a stream since its start the receive position is where a receiver would begin, not what is there.
    let local = worker.local();
    let position = match local.started_sealed.filter(|_| local.streamed.is_none()) {
        Some(position) => position,
        None => match streamed_position(worker, &local, received.max(replayed))? {
            Some(position) => position,
            None => {
                let scanned = scan_position(worker).await?;
                if scanned.lsn >= replayed { scanned } else { position_at(worker, replayed)? }
            }
        },
    };
    Ok(Seal { sealing, position, replayed: replayed.min(position.lsn), clean: true })
}

/// Returns the position of a member whose receiver reached `lsn`. `None`: none streamed, or one was on its way to
/// another timeline and began that segment anew, so that the older one's file holds more.
fn streamed_position(
    worker: &Worker,
    local: &Local,
    lsn: Lsn,
) -> anyhow::Result<Option<WalPosition>> {
    if local.streamed.is_none() {
        return Ok(None);
    }
    let position = position_at(worker, lsn)?;
    Ok(unreached(worker, position)?.is_empty().then_some(position))
}

async fn stopped_seal(worker: &Worker, sealing: Epoch) -> anyhow::Result<Seal> {
    let position = scan_position(worker).await?;
    let control = ControlFile::read(&worker.place.data_dir)?;
    note_end(worker, position)?;
    Ok(Seal { sealing, position, replayed: position.lsn, clean: control.is_clean() })
}

fn position_at(worker: &Worker, lsn: Lsn) -> anyhow::Result<WalPosition> {
    let control = ControlFile::read(&worker.place.data_dir)?;
    let timeline =
        wal_files::newest_timeline_holding(&worker.pg_wal(), lsn, control.wal_segment_size)?
            .with_context(|| format!("no WAL file holds {lsn}"))?;
    with_epoch(worker, lsn, timeline)
}

/// Scans this member's WAL for its end. Reads files only; nothing may write them meanwhile.
pub async fn scan_position(worker: &Worker) -> anyhow::Result<WalPosition> {
    let data_dir = worker.place.data_dir.clone();
    let end = tokio::task::spawn_blocking(move || wal_scan::scan(&data_dir))
        .await
        .context("scan for the end of WAL")?
        .context("scan for the end of WAL")?;
    with_epoch(worker, end.lsn, end.timeline)
}

fn with_epoch(worker: &Worker, lsn: Lsn, timeline: Timeline) -> anyhow::Result<WalPosition> {
    let epoch = worker
        .state()?
        .epoch_of(timeline)
        .with_context(|| format!("timeline {timeline} belongs to no epoch of this cluster"))?;
    Ok(WalPosition { epoch, lsn, timeline })
}
