//! Proof that a Cfg's names decide what is acknowledged, by the product's own rules of what counts.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use keeper::action::Proof;
use keeper::facts::Names;
use keeper::worker::prove::{counted, places_are_right};
use proto::cfg::unsatisfiable_names;
use proto::report::Confirmed;
use proto::{Cfg, Lsn, MemberName};
use tokio::sync::oneshot;

use super::worker::Worker;
use crate::sim::postgres::{Pg, shown};

const FIRST_AT_MOST: Duration = Duration::from_millis(250);
const CANARY_AT_MOST: Duration = Duration::from_secs(10);

/// Puts the names of `cfg` in force, proves it, and confirms it once k voters hold all that came before.
pub async fn confirm(worker: &Worker, cfg: &Cfg, proof: Proof) -> anyhow::Result<()> {
    let session = worker.admin()?;
    match proof {
        Proof::Given => {}
        Proof::Priorities => step_through_first(worker, &session, cfg).await?,
        Proof::Canary => canary(worker, &session, cfg).await?,
        Proof::FromNone => from_none(worker, &session, cfg).await?,
        Proof::Alone => put_in_force(worker, "", Names::Free).await?,
        Proof::Closed => {
            put_in_force(worker, &unsatisfiable_names(), Names::Closed).await?;
            canary_waits(worker, &session).await?;
        }
    }
    if worker.sim.mutant("names-wider-than-recorded") {
        let all = worker.state()?.members.keys().filter(|m| **m != worker.name).cloned().collect();
        worker.put_names(&Cfg { voters: all, ..cfg.clone() }.standby_names()).await?;
    }
    let lsn = session.own_record().await?;
    let voters = if worker.sim.mutant("confirm-without-evidence") {
        cfg.voters.clone()
    } else {
        wait_for_voters(worker, &session, cfg, lsn).await?
    };
    worker.save(|files| files.confirmed = Some(cfg.clone()));
    worker.voters_follow.notify_waiters();
    worker.update(|local| {
        local.confirmed = Some(Confirmed { cfg: cfg.id, lsn, voters });
        local.voters_late = false;
    });
    Ok(())
}

async fn step_through_first(worker: &Worker, session: &Pg, cfg: &Cfg) -> anyhow::Result<()> {
    worker.update(|local| local.names = Names::Unproven);
    if worker.sim.mutant("walsenders-not-proven") {
        worker.put_names(&cfg.standby_names()).await?;
        worker.update(|local| local.names = Names::Proven(cfg.id));
        return Ok(());
    }
    worker.put_names(&cfg.proving_names()).await?;
    let places = all_show_their_places(worker, session, cfg).await;
    worker.put_names(&cfg.standby_names()).await?;
    places?;
    worker.update(|local| local.names = Names::Proven(cfg.id));
    Ok(())
}

async fn put_in_force(worker: &Worker, list: &str, names: Names) -> anyhow::Result<()> {
    worker.update(|local| local.names = Names::Unproven);
    worker.put_names(list).await?;
    worker.update(|local| local.names = names);
    Ok(())
}

async fn from_none(worker: &Worker, session: &Pg, cfg: &Cfg) -> anyhow::Result<()> {
    if worker.settings().standby_names.is_empty() {
        let caught_up = session.own_record().await?;
        wait_for_voters(worker, session, cfg, caught_up).await?;
    }
    put_in_force(worker, &unsatisfiable_names(), Names::Closed).await?;
    let (_, released) = launch(worker, session).await?;
    step_through_first(worker, session, cfg).await?;
    worker.host.within(CANARY_AT_MOST, released).await.context("the canary commit")??;
    Ok(())
}

async fn all_show_their_places(worker: &Worker, session: &Pg, cfg: &Cfg) -> anyhow::Result<()> {
    let patience = worker.patience(FIRST_AT_MOST, "all walsenders to show their places");
    while !places_are_right(cfg, &session.sql(|pg| Some(shown(&pg.sim, pg.member))).await?) {
        patience.soon(worker).await?;
    }
    Ok(())
}

/// From a list that nobody satisfies: a commit is seen to wait, then released by the names.
pub async fn canary(worker: &Worker, session: &Pg, cfg: &Cfg) -> anyhow::Result<()> {
    let (_, released) = launch(worker, session).await?;
    worker.update(|local| local.names = Names::Unproven);
    worker.put_names(&cfg.standby_names()).await?;
    let waited = worker.host.within(CANARY_AT_MOST, released).await;
    waited.context("the canary commit was not released")?.context("the canary commit")?;
    worker.update(|local| local.names = Names::Proven(cfg.id));
    Ok(())
}

/// For a recorded k = 0: backends wait, and the commit is taken back.
pub async fn canary_waits(worker: &Worker, session: &Pg) -> anyhow::Result<()> {
    let (lsn, released) = launch(worker, session).await?;
    session.sql(move |pg| pg.cancel(lsn)).await?;
    worker.host.within(CANARY_AT_MOST, released).await.context("the canary commit")??;
    Ok(())
}

async fn launch(worker: &Worker, session: &Pg) -> anyhow::Result<(Lsn, oneshot::Receiver<()>)> {
    let (lsn, mut released) = session.canary().context("the canary commit")?;
    let patience = worker.patience(Duration::from_secs(5), "the canary commit to wait");
    while !session.sql(move |pg| Some(pg.waits(lsn))).await? {
        if released.try_recv().is_ok() {
            if worker.sim.mutant("canary-not-looked-at") {
                let (done, released) = oneshot::channel();
                let _ = done.send(());
                return Ok((lsn, released));
            }
            bail!("the canary commit did not wait for standbys");
        }
        patience.soon(worker).await?;
    }
    Ok((lsn, released))
}

/// Waits until k voters of `cfg` hold everything before `lsn`.
pub async fn wait_for_voters(
    worker: &Worker,
    session: &Pg,
    cfg: &Cfg,
    lsn: Lsn,
) -> anyhow::Result<BTreeSet<MemberName>> {
    let begun = worker.sim.now();
    let lsn = if worker.sim.mutant("streaming-counts-as-holding") { Lsn(0) } else { lsn };
    loop {
        let (senders, own) = session
            .sql(|pg| {
                let own = pg.with_world(|w| w.flushed(pg.member)).flatten()?;
                Some((shown(&pg.sim, pg.member), own.lsn))
            })
            .await?;
        for ahead in senders.iter().filter(|s| s.flush_lsn.is_some_and(|at| at > own)) {
            session.end_sender(ahead.pid);
        }
        let holders = counted(&worker.view.borrow(), cfg, &senders, lsn, own);
        if holders.len() >= cfg.k {
            return Ok(holders);
        }
        let young = worker.sim.now() - begun < 500_000;
        if !young && !worker.local.borrow().voters_late {
            worker.update(|local| local.voters_late = true);
        }
        worker.sim.sleep(if young { 2_000 } else { 50_000 }).await;
    }
}

impl Pg {
    /// Ends a walsender.
    pub fn end_sender(&self, pid: i32) {
        let ended = self.with(|s| s.senders.remove(&pid)).flatten();
        if let Some(sender) = ended {
            self.sim.kill(sender.proc);
        }
    }
}
