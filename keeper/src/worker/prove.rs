//! Proof that a Cfg's names decide what is acknowledged (I3, I4). `sync_state = 'sync'` is no evidence; positions
//! flushed by voters, taken after every walsender and the checkpointer have heard, are.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use proto::cfg::unsatisfiable_names;
use proto::report::{Confirmed, Stream};
use proto::{Cfg, Lsn, MemberName};
use tokio::time::{sleep, timeout};

use super::{Patience, Worker};
use crate::action::Proof;
use crate::facts::{ClusterView, Names};
use crate::postgres::probe::{Walsender, walsenders};
use crate::postgres::session::Session;

/// While `FIRST k` is in force a frozen first voter stalls commits, so the step is bounded; not proven within it,
/// both Cfgs stay and it is tried again.
const FIRST_AT_MOST: Duration = Duration::from_millis(250);

/// A backend waits for standbys within a millisecond of its commit; the checkpointer may be in a long fsync.
const CANARY_AT_MOST: Duration = Duration::from_secs(10);

/// Puts the names of `cfg` in force, proves it, and confirms the Cfg once k voters hold all that came before.
pub async fn confirm(worker: &Worker, cfg: &Cfg, proof: Proof) -> anyhow::Result<()> {
    match proof {
        Proof::Given => {}
        Proof::Priorities => step_through_first(worker, cfg).await?,
        Proof::Canary => canary(worker, cfg).await?,
        Proof::FromNone => from_none(worker, cfg).await?,
        Proof::Alone => put_in_force(worker, "", Names::Free).await?,
        Proof::Closed => {
            put_in_force(worker, &unsatisfiable_names(), Names::Closed).await?;
            canary_waits(worker).await?;
        }
    }
    let session = worker.admin().await?;
    let lsn = own_record(&session, "confirm").await?;
    let voters = wait_for_voters(worker, cfg, lsn).await?;
    // The Cfg whose voters' signs count is on disk before anybody learns that it is confirmed.
    worker.save(|files| files.confirmed = Some(cfg.clone()))?;
    tracing::info!(%cfg, %lsn, "confirmed");
    worker.voters_follow.notify_waiters();
    worker.update(|local| {
        local.confirmed = Some(Confirmed { cfg: cfg.id, lsn, voters });
        local.voters_late = false;
    });
    Ok(())
}

/// Writes a small record, durable here, and returns its end: all that was written before lies below it.
///
/// A flush position may lie within a record, and what a scan finds after a crash, the end of the last whole record,
/// would be below a floor taken from it. The insert position of an idle server may lie a page header beyond what it
/// ever sends. The end of a record of our own is neither.
pub async fn own_record(session: &Session, why: &str) -> anyhow::Result<Lsn> {
    let row =
        session.row("SELECT pg_logical_emit_message(true, 'pgdeputy', $1)::text", &[&why]).await?;
    Ok(row.get::<_, &str>(0).parse()?)
}

/// From the names of another Cfg: under `FIRST k` with an impossible name in front each walsender that has reloaded
/// shows its own place. It acknowledges only what `ANY k` of the same voters would, so the step back needs no proof.
async fn step_through_first(worker: &Worker, cfg: &Cfg) -> anyhow::Result<()> {
    worker.update(|local| local.names = Names::Unproven);
    worker.put_names(&cfg.proving_names()).await?;
    let session = worker.admin().await?;
    let shown = all_show_their_places(cfg, &session).await;
    worker.put_names(&cfg.standby_names()).await?;
    shown?;
    worker.update(|local| local.names = Names::Proven(cfg.id));
    Ok(())
}

async fn all_show_their_places(cfg: &Cfg, session: &Session) -> anyhow::Result<()> {
    let patience = Patience::of(FIRST_AT_MOST, "all walsenders to show their places");
    while !places_are_right(cfg, &walsenders(session).await?) {
        patience.soon().await?;
    }
    Ok(())
}

/// Returns whether every walsender shows what the proving list gives it: voters their place, all others none.
pub fn places_are_right(cfg: &Cfg, senders: &[Walsender]) -> bool {
    let place = |name: &str| {
        cfg.voters.iter().position(|v| cfg.wire_name(v) == name).map_or(0, |i| i as i32 + 2)
    };
    senders.iter().all(|s| s.sync_priority == place(&s.name))
}

async fn put_in_force(worker: &Worker, list: &str, names: Names) -> anyhow::Result<()> {
    worker.update(|local| local.names = Names::Unproven);
    worker.put_names(list).await?;
    worker.update(|local| local.names = names);
    Ok(())
}

/// From no voters. Whoever joins is waited for only once it has caught up; then backends are shown to wait, which is the
/// checkpointer's word, and walsenders to know the names: one of before may have heard of neither.
async fn from_none(worker: &Worker, cfg: &Cfg) -> anyhow::Result<()> {
    if worker.settings().standby_names.is_empty() {
        let session = worker.admin().await?;
        let caught_up = own_record(&session, "catch up").await?;
        wait_for_voters(worker, cfg, caught_up).await?;
    }
    put_in_force(worker, &unsatisfiable_names(), Names::Closed).await?;
    let canary = Canary::launch(worker).await?;
    step_through_first(worker, cfg).await?;
    canary.released_by_names(worker).await
}

/// From a list that nobody satisfies: a commit is seen to wait, so backends look at the list; then the names are put
/// in force and release it.
pub async fn canary(worker: &Worker, cfg: &Cfg) -> anyhow::Result<()> {
    let canary = Canary::launch(worker).await?;
    worker.update(|local| local.names = Names::Unproven);
    worker.put_names(&cfg.standby_names()).await?;
    canary.released_by_names(worker).await?;
    worker.update(|local| local.names = Names::Proven(cfg.id));
    Ok(())
}

/// For a recorded k = 0: shows that backends wait, and takes the commit back.
pub async fn canary_waits(worker: &Worker) -> anyhow::Result<()> {
    let canary = Canary::launch(worker).await?;
    let session = worker.admin().await?;
    session.row("SELECT pg_cancel_backend($1)", &[&canary.pid]).await?;
    canary.released().await
}

/// A commit of the keeper that waits for standbys as a client's does.
struct Canary {
    pid: i32,
    commit: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Canary {
    /// Commits, and returns once that was seen to wait.
    async fn launch(worker: &Worker) -> anyhow::Result<Self> {
        let session = worker.door.open_synchronous().await?;
        let pid: i32 = session.value("SELECT pg_backend_pid()").await?;
        let commit = tokio::spawn(async move {
            session
                .run_within(
                    CANARY_AT_MOST,
                    "SELECT pg_logical_emit_message(true, 'pgdeputy', 'canary')",
                )
                .await?;
            Ok(())
        });
        let canary = Self { pid, commit };
        let admin = worker.admin().await?;
        let patience = Patience::of(Duration::from_secs(5), "the canary commit to wait");
        while !canary.waits(&admin).await? {
            patience.soon().await?;
        }
        Ok(canary)
    }

    async fn waits(&self, admin: &Session) -> anyhow::Result<bool> {
        if self.commit.is_finished() {
            bail!("the canary commit did not wait for standbys");
        }
        let row = admin
            .row(
                "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')",
                &[&self.pid],
            )
            .await?;
        Ok(row.get(0))
    }

    async fn released(self) -> anyhow::Result<()> {
        timeout(CANARY_AT_MOST, self.commit)
            .await
            .context("the canary commit was not released")?
            .context("the canary commit")?
    }

    /// The same where names were put in force since it began to wait. A walsender releases commits at a reply of its
    /// standby, and the one to the canary may have come before the walsender had read the names: the next would come
    /// after `wal_receiver_status_interval`. A record more is replied to at once.
    async fn released_by_names(mut self, worker: &Worker) -> anyhow::Result<()> {
        let session = worker.admin().await?;
        let mut pause = Duration::from_millis(5);
        while pause < CANARY_AT_MOST {
            if let Ok(committed) = timeout(pause, &mut self.commit).await {
                return committed.context("the canary commit")?;
            }
            own_record(&session, "reply").await?;
            pause *= 2;
        }
        bail!("the canary commit was not released")
    }
}

/// Waits until k voters of `cfg` hold everything before `lsn`, and returns them. Has no bound: `reconcile` cuts it
/// for another Cfg, a fence or a seal.
pub async fn wait_for_voters(
    worker: &Worker,
    cfg: &Cfg,
    lsn: Lsn,
) -> anyhow::Result<BTreeSet<MemberName>> {
    let session = worker.admin().await?;
    let begun = store::clock::now();
    loop {
        let senders = walsenders(&session).await?;
        let own: Lsn =
            session.value::<String>("SELECT pg_current_wal_flush_lsn()::text").await?.parse()?;
        end_those_ahead(&session, &senders, own).await?;
        let holders = counted(&worker.view.borrow(), cfg, &senders, lsn, own);
        if holders.len() >= cfg.k {
            return Ok(holders);
        }
        // Voters follow within tens of milliseconds or not for a while.
        let young = store::clock::now().since(begun) < Duration::from_millis(500);
        if !young && !worker.local().voters_late {
            worker.update(|local| local.voters_late = true);
        }
        sleep(if young { Duration::from_millis(2) } else { Duration::from_millis(50) }).await;
    }
}

/// Returns the voters that hold everything before `lsn`. The walsender's word is not enough: a receiver's first reply
/// gives its replay position as flushed, also past the fork. So the voter itself must say that it receives on the
/// primary's timeline, and its position must not be past the primary's own.
pub fn counted(
    view: &ClusterView,
    cfg: &Cfg,
    senders: &[Walsender],
    lsn: Lsn,
    own: Lsn,
) -> BTreeSet<MemberName> {
    let Some(state) = &view.state else { return BTreeSet::new() };
    let says_so = |voter: &MemberName| {
        view.reports.get(voter).is_some_and(|report| {
            matches!(report.stream, Stream::Live { epoch, timeline, voter: true }
                if epoch == cfg.epoch && timeline == state.timeline)
        })
    };
    let holds = |voter: &MemberName| {
        let name = cfg.wire_name(voter);
        senders.iter().any(|s| {
            s.name == name
                && s.state == "streaming"
                && s.flush_lsn.is_some_and(|at| at >= lsn && at <= own)
        })
    };
    cfg.voters.iter().filter(|v| holds(v) && says_so(v)).cloned().collect()
}

/// Ends walsenders whose standby claims to hold more than the primary has written: it is past the fork.
async fn end_those_ahead(session: &Session, senders: &[Walsender], own: Lsn) -> anyhow::Result<()> {
    for sender in senders.iter().filter(|s| s.flush_lsn.is_some_and(|at| at > own)) {
        tracing::error!(standby = %sender.name, flush = ?sender.flush_lsn, %own, "a standby is ahead of its primary");
        session.row("SELECT pg_terminate_backend($1)", &[&sender.pid]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(name: &str, sync_priority: i32) -> Walsender {
        Walsender {
            pid: 1,
            name: name.into(),
            state: "streaming".into(),
            flush_lsn: None,
            replay_lsn: None,
            sync_priority,
            sync_state: "sync".into(),
        }
    }

    #[test]
    fn a_walsender_that_has_not_reloaded_gives_no_proof() {
        let cfg = Cfg {
            id: proto::CfgId(2),
            epoch: proto::Epoch(7),
            leader: "a".parse().unwrap(),
            voters: ["b", "c"].iter().map(|n| n.parse().unwrap()).collect(),
            k: 1,
            round: 0,
        };
        assert!(places_are_right(&cfg, &[sender("b.e7", 2), sender("c.e7", 3)]));
        assert!(
            !places_are_right(&cfg, &[sender("b.e7", 1), sender("c.e7", 3)]),
            "b shows its place of before"
        );
        assert!(
            !places_are_right(&cfg, &[sender("b.e7", 2), sender("d.e7", 1)]),
            "d has left and does not know"
        );
        assert!(places_are_right(&cfg, &[sender("b.e7", 2), sender("d.e7", 0)]));
    }
}
