//! Becoming the primary of an epoch, opening one that was started, and the right to run.

use std::time::Duration;

use anyhow::{Context, bail};
use keeper::facts::Names;
use keeper::member_files::Role;
use keeper::postgres::settings::{Access, Settings};
use keeper::sign::whose_signs_count;
use keeper::worker::serve_until;
use proto::assignment::Lead;
use proto::cfg::unsatisfiable_names;
use proto::document::{decode, encode};
use proto::report::Opened;
use proto::{Cfg, ClusterState, Epoch, Lsn, PrimaryKey, Timeline};
use store::{Guard, Operation, Txn, TxnOutcome};

use super::prove;
use super::tasks::give;
use super::worker::{SOON, Worker};
use crate::sim::postgres::{Pg, Phase};

const PATIENCE_WITH_READERS: u64 = 200_000;
const REDO_AT_MOST: Duration = Duration::from_secs(3600);
const ATTEMPTS: u32 = 5;

/// Promotes the running standby and lets clients in.
pub async fn promote(worker: &Worker, lead: &Lead) -> anyhow::Result<()> {
    let cfg = lead.own_cfg().cloned().context("the state holds no Cfg of this epoch")?;
    let session = worker.admin().context("open a session to promote")?;
    worker.save(|files| {
        files.promise = files.promise.max(lead.epoch);
        files.epoch = lead.epoch;
        files.role = Role::Primary;
        files.confirmed = None;
    });
    worker.bound_service();
    let (key, promoted) = tokio::join!(
        take_right(worker, lead.epoch, lead.restart.unwrap_or(0)),
        promote_server(worker, &session, lead, &cfg),
    );
    let start_lsn = promoted?;
    key?;
    if !lead.open_at_once && !worker.sim.mutant("open-without-voters") {
        let end = session.own_record().await?;
        prove::wait_for_voters(worker, &session, &cfg, end).await?;
    }
    let_clients_in(worker).await?;
    let restart = lead.restart.unwrap_or(0);
    let opened = Opened { epoch: lead.epoch, timeline: lead.timeline, start_lsn, restart };
    worker.update(|local| local.opened = Some(opened));
    checkpoint_soon(worker, &session);
    Ok(())
}

async fn promote_server(
    worker: &Worker,
    session: &Pg,
    lead: &Lead,
    cfg: &Cfg,
) -> anyhow::Result<Lsn> {
    let access = if lead.open_at_once { worker.settings().access } else { Access::Closed };
    let standby_names = match worker.sim.mutant("names-empty-at-promotion") {
        true => String::new(),
        false => cfg.standby_names(),
    };
    worker.apply(Settings { standby_names, upstream: None, access, eager: false }).await?;
    if access == Access::Closed {
        session.sql(Pg::end_client_sessions).await?;
    }
    let skip = worker.sim.mutant("no-placeholders");
    worker.sim.with(|w| {
        if let Some(data) = w.members[worker.member].disk.data.as_mut().filter(|_| !skip) {
            let missing = (2..lead.timeline.0).filter(|n| !data.histories.contains(n));
            data.placeholders.extend(missing.collect::<Vec<_>>());
        }
    });
    session.sql(|pg| pg.with(|s| s.promote = true)).await.context("promote")?;
    session.tell();
    out_of_recovery(worker, session).await?;
    let timeline = current_timeline(session).await?;
    if timeline != lead.timeline && !skip {
        worker.fence().await?;
        bail!("promoted to timeline {timeline}, the state named {}", lead.timeline);
    }
    let start_lsn = switch_point(session).await?;
    check_start(worker, lead, start_lsn).await?;
    worker.update(|local| {
        local.names = if cfg.k == 0 { Names::Impossible } else { Names::Proven(cfg.id) };
        local.promoted = Some(timeline);
    });
    Ok(start_lsn)
}

async fn check_start(worker: &Worker, lead: &Lead, start: Lsn) -> anyhow::Result<()> {
    let sealed = worker.local().seal.filter(|seal| seal.sealing == lead.epoch);
    let replayed = sealed.map_or(Lsn(0), |seal| seal.replayed);
    let unseen = ["piece-not-seen", "piece-stays"].iter().any(|m| worker.sim.mutant(m));
    if start < replayed && !unseen {
        worker.fence().await?;
        bail!("timeline {} begins at {start}, replayed was {replayed}", lead.timeline);
    }
    Ok(())
}

async fn out_of_recovery(worker: &Worker, session: &Pg) -> anyhow::Result<()> {
    let begun = worker.sim.now();
    let mut readers_ended = false;
    while session.sql(|pg| pg.with(|s| s.phase != Phase::Primary)).await? {
        if !readers_ended && worker.sim.now() - begun > PATIENCE_WITH_READERS {
            session.sql(Pg::end_client_sessions).await?;
            readers_ended = true;
        }
        worker.sim.sleep(SOON).await;
    }
    Ok(())
}

async fn current_timeline(session: &Pg) -> anyhow::Result<Timeline> {
    let timeline = session
        .sql(|pg| {
            let branch = pg.with(|s| s.branch)?;
            pg.with_world(|w| w.wal.branch(branch).tli)
        })
        .await?;
    Ok(timeline)
}

async fn switch_point(session: &Pg) -> anyhow::Result<Lsn> {
    let lsn = session
        .sql(|pg| {
            let branch = pg.with(|s| s.branch)?;
            pg.with_world(|w| w.wal.branch(branch).parent.map_or(Lsn(0), |p| p.lsn))
        })
        .await?;
    Ok(lsn)
}

async fn let_clients_in(worker: &Worker) -> anyhow::Result<()> {
    if worker.settings().access == Access::Open {
        return Ok(());
    }
    worker.reload(Settings { access: Access::Open, ..worker.settings() }).await
}

/// In the background: when a voter has followed, or soon.
fn checkpoint_soon(worker: &Worker, session: &Pg) {
    let (sim, session) = (worker.sim.clone(), session.clone());
    let Some(backends) = session.with(|s| s.backends) else { return };
    sim.clone().spawn(backends, async move {
        sim.sleep(300_000).await;
        session.checkpoint();
    });
}

/// Starts PostgreSQL closed, as the primary of its own epoch.
pub async fn start_primary(worker: &Worker, restart: u64) -> anyhow::Result<()> {
    prepare_closed(worker);
    let lease = (*worker.lease.borrow()).context("this keeper has no lease to start under")?;
    worker.save(|files| files.restarted = files.restarted.max(restart));
    worker.start_postgres(Some(serve_until(lease.expires, &worker.spec()))).await?;
    started_as_primary(worker).await
}

/// The same while etcd is away: no time is set until it is opened.
pub async fn start_alone(worker: &Worker) -> anyhow::Result<()> {
    let is_set_back = worker.sim.with(|w| {
        let data = w.members[worker.member].disk.data.as_ref()?;
        let end = data.end(&w.wal);
        Some(w.wal.end(end.branch) > end.lsn)
    });
    // What it would write lies where others hold something else. The product finds that out by its control file and by comparing
    // WAL before it follows again (`keeper::reconcile::way`).
    anyhow::ensure!(is_set_back != Some(true), "the model knows one writer of a timeline");
    prepare_closed(worker);
    worker.start_postgres(None).await?;
    started_as_primary(worker).await
}

fn prepare_closed(worker: &Worker) {
    worker.forget_credentials(None);
    worker.sim.with(|w| {
        if let Some(data) = &mut w.members[worker.member].disk.data {
            data.placeholders.clear();
            data.standby_signal = false;
        }
    });
    let open = worker.sim.mutant("restart-opens-at-once");
    worker.install(Settings {
        standby_names: unsatisfiable_names(),
        upstream: None,
        access: if open { Access::Open } else { Access::Closed },
        eager: false,
    });
}

async fn started_as_primary(worker: &Worker) -> anyhow::Result<()> {
    let session = worker.admin_within(REDO_AT_MOST).await?;
    if session.sql(|pg| pg.with(|s| s.phase != Phase::Primary)).await? {
        bail!("PostgreSQL is in recovery although it was started as a primary");
    }
    Ok(())
}

/// Takes the right, proves that backends wait for standbys, and lets clients in.
pub async fn open(worker: &Worker, lead: &Lead) -> anyhow::Result<()> {
    let session = worker.admin()?;
    check_timeline(worker, &session, lead).await?;
    check_start(worker, lead, switch_point(&session).await?).await?;
    take_right(worker, lead.epoch, lead.restart.unwrap_or(0)).await?;
    worker.bound_service();
    if worker.settings().access != Access::Open {
        let cfg = lead.own_cfg().context("the state holds no Cfg of this epoch")?;
        wait_until_safe(worker, &session, cfg).await?;
        let_clients_in(worker).await?;
    }
    note_open(worker, &session, lead).await
}

/// Lets clients in by a sign of the voters, while etcd is away.
pub async fn open_by_signs(worker: &Worker, lead: &Lead) -> anyhow::Result<()> {
    let session = worker.admin()?;
    check_timeline(worker, &session, lead).await?;
    let cfg = whose_signs_count(&worker.files(), worker.state()?)?;
    if worker.settings().access != Access::Open {
        wait_until_safe(worker, &session, &cfg).await?;
    }
    let spec = worker.spec();
    let given = worker.host.within(spec.lease_ttl / 2, give(worker)).await;
    let at = given.context("the voters gave no sign in time")??;
    worker.fencer.lease_at_most(spec.lease_ttl);
    worker.fencer.serve_until(Some(serve_until(at + spec.lease_ttl, &spec)));
    let_clients_in(worker).await?;
    note_open(worker, &session, lead).await
}

async fn check_timeline(worker: &Worker, session: &Pg, lead: &Lead) -> anyhow::Result<()> {
    let timeline = current_timeline(session).await?;
    if timeline != lead.timeline {
        worker.fence().await?;
        bail!("PostgreSQL writes timeline {timeline}, the state names {}", lead.timeline);
    }
    Ok(())
}

async fn note_open(worker: &Worker, session: &Pg, lead: &Lead) -> anyhow::Result<()> {
    let (timeline, restart) = (lead.timeline, lead.restart.unwrap_or(0));
    let start_lsn = match lead.start_lsn {
        Some(known) => known,
        None => switch_point(session).await?,
    };
    worker.save(|files| files.restarted = files.restarted.max(restart));
    worker.update(|local| {
        local.opened = Some(Opened { epoch: lead.epoch, timeline, start_lsn, restart });
    });
    checkpoint_soon(worker, session);
    Ok(())
}

async fn wait_until_safe(worker: &Worker, session: &Pg, cfg: &Cfg) -> anyhow::Result<()> {
    let recovered = session.own_record().await?;
    if cfg.k == 0 {
        return prove::canary_waits(worker, session).await;
    }
    if worker.sim.mutant("open-without-voters") {
        return worker.put_names(&cfg.standby_names()).await;
    }
    if worker.local().names == Names::Impossible {
        prove::canary(worker, session, cfg).await?;
    }
    prove::wait_for_voters(worker, session, cfg, recovered).await?;
    Ok(())
}

/// Takes `primary` for `epoch`.
pub async fn take_right(worker: &Worker, epoch: Epoch, restart: u64) -> anyhow::Result<()> {
    let (sim, node) = (&worker.sim, worker.node());
    for _ in 0..ATTEMPTS {
        let lease = (*worker.lease.borrow()).context("this keeper has no lease")?;
        let snapshot = sim.etcd_read(node, worker.keys.prefix()).await.context("read the state")?;
        let entry = snapshot.entries.get(&worker.keys.state()).context("there is no state")?;
        let state: ClusterState = decode(&entry.value)?;
        check_right(worker, &state, epoch, restart)?;
        let key = worker.keys.primary();
        let held = match snapshot.entries.get(&key) {
            None => Guard::Absent(key.clone()),
            Some(held) => {
                let holder: PrimaryKey = decode(&held.value)?;
                if holder.epoch >= epoch && holder.member != worker.name {
                    bail!("{} holds the right of epoch {}", holder.member, holder.epoch);
                }
                Guard::ModRevision(key.clone(), held.mod_revision)
            }
        };
        let incarnation = worker.files().incarnation;
        let value = PrimaryKey { member: worker.name.clone(), epoch, incarnation };
        let value = encode(&value).into_bytes();
        let put = Operation::Put { key, value, lease: Some(lease.id) };
        let when = vec![Guard::ModRevision(worker.keys.state(), entry.mod_revision), held];
        match sim.etcd_commit(node, Txn { when, then: vec![put] }).await {
            Ok(TxnOutcome::Committed { .. }) => {
                worker.update(|local| local.right = Some((epoch, lease.id)));
                return Ok(());
            }
            Ok(TxnOutcome::Conflict) => {}
            Err(_) => sim.sleep(50_000).await,
        }
    }
    bail!("the right to run as primary could not be taken, the state kept changing")
}

fn check_right(
    worker: &Worker,
    state: &ClusterState,
    epoch: Epoch,
    restart: u64,
) -> anyhow::Result<()> {
    let ordered = state.restart.as_ref().filter(|r| r.epoch == epoch).map_or(0, |r| r.number);
    if state.epoch != epoch || state.primary.as_ref() != Some(&worker.name) {
        bail!("the state names {:?} as primary of epoch {}", state.primary, state.epoch);
    }
    if let Some(sealing) = state.sealing {
        bail!("epoch {sealing} is being sealed");
    }
    if ordered != restart {
        bail!("restart {ordered} was ordered, not {restart}");
    }
    Ok(())
}
