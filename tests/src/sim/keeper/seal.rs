//! Sealing and scanning, step by step as the product does them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use keeper::facts::Local;
use keeper::postgres::settings::Settings;
use proto::report::Seal;
use proto::{Epoch, Lsn, Timeline, WalPosition};

use super::worker::Worker;
use crate::sim::postgres::Pg;
use crate::sim::rng::Stream;
use crate::sim::wal::At;

const SESSION_PATIENCE: Duration = Duration::from_millis(300);
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// Seals for `sealing`. PostgreSQL runs as a standby or not at all.
pub async fn seal(worker: &Worker, sealing: Epoch) -> anyhow::Result<()> {
    let complete = worker.files().complete || worker.sim.mutant("incomplete-member-counts");
    ensure!(complete, "this member is incomplete");
    worker.forget_credentials(None);
    let upstream = worker.settings().upstream.filter(|_| worker.sim.mutant("upstream-stays"));
    let settings = Settings { upstream, eager: true, ..worker.settings() };
    let session = match worker.is_running() {
        true => match answering(worker).await {
            Ok(session) => Some(session),
            Err(_) if worker.local().started_sealed.is_some() => {
                return seal_recovering(worker, sealing);
            }
            Err(_) => {
                worker.fence().await?;
                None
            }
        },
        false => None,
    };
    let early = match worker.sim.mutant("position-before-cut") {
        true => Some(sealed_at(worker, session.as_ref(), sealing).await?),
        false => None,
    };
    match &session {
        Some(session) => {
            worker.reload(settings).await?;
            end_receiver(worker, session).await?;
        }
        None => worker.install(settings),
    }
    worker.promise(sealing);
    let seal = match early {
        Some(seal) => seal,
        None => sealed_at(worker, session.as_ref(), sealing).await?,
    };
    let unreached = match worker.sim.mutant("piece-not-seen") {
        true => BTreeSet::new(),
        false => unreached(worker, seal.position)?,
    };
    worker.update(|local| {
        local.seal = Some(seal);
        local.unreached = unreached;
    });
    Ok(())
}

async fn sealed_at(worker: &Worker, session: Option<&Pg>, sealing: Epoch) -> anyhow::Result<Seal> {
    match session {
        Some(session) => running_seal(worker, session, sealing).await,
        None => stopped_seal(worker, sealing).await,
    }
}

async fn answering(worker: &Worker) -> anyhow::Result<Pg> {
    let session = worker.admin_within(SESSION_PATIENCE).await?;
    let answer = worker.host.within(ANSWER_PATIENCE, session.sql(|_| Some(()))).await;
    answer.context("PostgreSQL does not answer")??;
    Ok(session)
}

fn seal_recovering(worker: &Worker, sealing: Epoch) -> anyhow::Result<()> {
    worker.promise(sealing);
    worker.update(|local| {
        let position = local.started_sealed;
        local.seal =
            position.map(|position| Seal { sealing, position, replayed: Lsn(0), clean: true });
    });
    Ok(())
}

/// Ends the walreceiver and returns when none is left.
async fn end_receiver(worker: &Worker, session: &Pg) -> anyhow::Result<()> {
    if worker.sim.mutant("receiver-not-ended") {
        return Ok(());
    }
    let patience = worker.patience(Duration::from_secs(5), "the walreceiver to end");
    loop {
        let receiver = session.sql(|pg| pg.with(|s| s.receiver.as_ref().map(|r| r.proc))).await?;
        worker.sim.signal_startup(session);
        let Some(proc) = receiver else { return Ok(()) };
        session.end_receiver(proc);
        patience.soon(worker).await?;
    }
}

async fn running_seal(worker: &Worker, session: &Pg, sealing: Epoch) -> anyhow::Result<Seal> {
    let (received, replayed) =
        session.sql(|pg| pg.with(|s| (s.received.unwrap_or(Lsn(0)), s.replay))).await?;
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

fn streamed_position(
    worker: &Worker,
    local: &Local,
    lsn: Lsn,
) -> anyhow::Result<Option<WalPosition>> {
    if local.streamed.is_none() {
        return Ok(None);
    }
    let position = position_at(worker, lsn)?;
    let whole = unreached(worker, position)?.is_empty() || worker.sim.mutant("piece-not-seen");
    Ok(whole.then_some(position))
}

async fn stopped_seal(worker: &Worker, sealing: Epoch) -> anyhow::Result<Seal> {
    let position = scan_position(worker).await?;
    let clean =
        worker.sim.with(|w| w.members[worker.member].disk.data.as_ref().is_some_and(|d| d.clean));
    worker.update(|local| local.end_of_wal = Some(position));
    Ok(Seal { sealing, position, replayed: position.lsn, clean })
}

/// Finds the end of the WAL of a stopped member.
pub async fn scan(worker: &Worker) -> anyhow::Result<()> {
    let position = scan_position(worker).await?;
    worker.update(|local| local.end_of_wal = Some(position));
    Ok(())
}

async fn scan_position(worker: &Worker) -> anyhow::Result<WalPosition> {
    worker.sim.sleep(worker.sim.between(Stream::Keeper, 500, 15_000)).await;
    let end = worker.sim.with(|w| {
        let data = w.members[worker.member].disk.data.as_ref()?;
        Some(data.end(&w.wal))
    });
    with_epoch(worker, end.context("scan for the end of WAL")?)
}

fn position_at(worker: &Worker, lsn: Lsn) -> anyhow::Result<WalPosition> {
    let at = worker.sim.with(|w| {
        let data = w.members[worker.member].disk.data.as_ref()?;
        Some(w.wal.on_path(data.at, lsn))
    });
    with_epoch(worker, at.context("no WAL file holds it")?)
}

fn with_epoch(worker: &Worker, at: At) -> anyhow::Result<WalPosition> {
    let timeline = worker.sim.with(|w| w.wal.branch(at.branch).tli);
    let epoch = worker.state()?.epoch_of(timeline);
    let epoch = epoch.with_context(|| format!("timeline {timeline} belongs to no epoch"))?;
    Ok(WalPosition { epoch, lsn: at.lsn, timeline })
}

/// Returns the timelines beyond `position` of which this member holds pieces.
fn unreached(worker: &Worker, position: WalPosition) -> anyhow::Result<BTreeSet<Timeline>> {
    let held = worker.sim.with(|w| {
        let data = w.members[worker.member].disk.data.as_ref()?;
        let reach = position.timeline.max(data.control);
        Some(data.piece.map(|(tli, _)| tli).filter(|tli| *tli > reach))
    });
    Ok(held.context("read the data directory")?.into_iter().collect())
}
