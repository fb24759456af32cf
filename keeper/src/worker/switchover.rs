//! The primary's side of a switchover. Clients wait from the stop on, so all that can be done before is done before.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use proto::assignment::HandOver;
use proto::report::{Handover, NEAR, Readiness};
use proto::{Lsn, MemberName, RequestId};
use tokio::time::{sleep, timeout};

use super::{Worker, prove, seal};
use crate::postgres::control::ControlFile;
use crate::postgres::session::Session;

/// How long it is waited that standbys have a new WAL segment. It is sent and made within a tenth of a second; a standby
/// that lags is waited for as the target, if it is.
const SEGMENT_AT_MOST: Duration = Duration::from_millis(500);

/// How often standbys are asked for while one catches up.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A standby that does not move in this time is not catching up. Also the bound of the queries here.
const QUERY_PATIENCE: Duration = Duration::from_secs(2);

/// A fast stop ends in far less after a checkpoint; what hangs longer is fenced, and clients have waited for long.
const STOP_AT_MOST: Duration = Duration::from_secs(10);

/// Once the shutdown checkpoint is on disk only the walsenders' last handshake is left, 33 ms measured. A standby that
/// is frozen keeps its walsender for `wal_sender_timeout`, and with it the postmaster.
const LAST_HANDSHAKE: Duration = Duration::from_millis(500);

/// How often the control file and the process are looked at during the stop.
const SOON: Duration = Duration::from_millis(2);

/// Writes a checkpoint, waits until the target (any standby, where none is named) is near, and reports.
pub async fn prepare(
    worker: &Worker,
    request: &RequestId,
    target: Option<&str>,
    patience: Duration,
) -> anyhow::Result<()> {
    // Of its own: the kept session is needed for what is urgent.
    let session = worker.door.open().await.context("open a session for the checkpoint")?;
    let began = store::clock::now();
    session.run_within(patience, "CHECKPOINT").await.context("write a checkpoint")?;
    let begun_anew = begin_segment(&session).await?;
    let took_ms = store::clock::now().since(began).as_millis() as u64;
    tracing::info!(took_ms, %begun_anew, "the checkpoint before the stop is written");
    let switched = store::clock::now();
    let give_up_at = switched + patience;
    let readiness = loop {
        let left = left_to_replay(&session).await?;
        let near = |bytes: &u64| *bytes <= NEAR;
        let is_near = match target {
            Some(name) => left.get(name).is_some_and(near),
            None => left.values().any(near),
        };
        let is_sent = store::clock::now().since(switched) >= SEGMENT_AT_MOST
            || all_have_replayed(&session, begun_anew).await?;
        if is_near && is_sent {
            let members = left.into_iter().filter(|(_, bytes)| near(bytes));
            let left = members.filter_map(|(name, bytes)| Some((member(&name)?, bytes))).collect();
            break Readiness::Ready { left };
        }
        if store::clock::now() >= give_up_at {
            break Readiness::Impossible { reason: too_far(target, &left) };
        }
        sleep(if is_sent { LOOK_EVERY } else { SOON * 5 }).await;
    };
    let handover = Handover { request: request.clone(), readiness };
    worker.update(|local| local.handover = Some(handover));
    Ok(())
}

/// Begins a new WAL segment, and returns the end of the first record in it.
///
/// At the change of timelines a receiver begins with the start of its segment, and the new primary copies that much: a
/// segment that has just begun is short. That it is made and sent is waited for before clients are held, not after.
async fn begin_segment(session: &Session) -> anyhow::Result<Lsn> {
    session.row("SELECT pg_switch_wal()", &[]).await.context("begin a new WAL segment")?;
    prove::own_record(session, "switchover").await
}

async fn all_have_replayed(session: &Session, lsn: Lsn) -> anyhow::Result<bool> {
    let lsn = lsn.to_string();
    let question = "SELECT COALESCE(bool_and(replay_lsn >= $1::text::pg_lsn), true)
                      FROM pg_stat_replication WHERE state = 'streaming'";
    let asking = async { anyhow::Ok(session.row(question, &[&lsn]).await?.get(0)) };
    timeout(QUERY_PATIENCE, asking).await.context("ask for the standbys")?
}

fn too_far(target: Option<&str>, left: &BTreeMap<String, u64>) -> String {
    let least = match target {
        Some(name) => left.get(name).map(|bytes| (name, *bytes)),
        None => left.iter().map(|(name, bytes)| (name.as_str(), *bytes)).min_by_key(|(_, b)| *b),
    };
    match least {
        Some((name, bytes)) => format!(
            "{name} has {} MB left to receive and replay, {} are allowed: wait until it has caught up",
            bytes >> 20,
            NEAR >> 20
        ),
        None => format!(
            "{} does not stream from this primary: wait until it follows",
            target.unwrap_or("any standby")
        ),
    }
}

/// Returns how many bytes each standby that streams has still to receive or to replay, by its name on the wire.
async fn left_to_replay(session: &Session) -> anyhow::Result<BTreeMap<String, u64>> {
    let asking = async {
        let end: String = session.value("SELECT pg_current_wal_flush_lsn()::text").await?;
        let rows = session
            .rows(
                "SELECT application_name, replay_lsn::text FROM pg_stat_replication
                 WHERE state = 'streaming' AND replay_lsn IS NOT NULL",
                &[],
            )
            .await?;
        let end: Lsn = end.parse()?;
        let mut left = BTreeMap::new();
        for row in rows {
            let replayed: Lsn = row.get::<_, &str>(1).parse()?;
            left.insert(row.get::<_, String>(0), end.bytes_ahead_of(replayed));
        }
        anyhow::Ok(left)
    };
    timeout(QUERY_PATIENCE, asking).await.context("ask for the standbys")?
}

/// Returns whose voter's name this is: `b` of `b.e7` or `b.e7.r2`.
fn member(wire_name: &str) -> Option<MemberName> {
    wire_name.split_once('.')?.0.parse().ok()
}

/// Stops PostgreSQL fast, then promises the next epoch and seals for it with where its WAL ends.
pub async fn hand_over(worker: &Worker, handover: &HandOver) -> anyhow::Result<()> {
    worker.update(|local| local.opened = None);
    if !worker.local().process.is_gone() {
        stop(worker, &handover.waits_for).await?;
    }
    seal::seal(worker, handover.sealing).await
}

async fn stop(worker: &Worker, waits_for: &[String]) -> anyhow::Result<()> {
    let began = store::clock::now();
    if let Err(error) = end_other_walsenders(worker, waits_for).await {
        // They only make the stop longer, which has its bound.
        tracing::warn!(error = format!("{error:#}"), "end other walsenders");
    }
    let mut why = "the fast stop failed";
    if worker.fencer.signal(Signal::SIGINT).await.is_ok() {
        let mut shut_down = None;
        loop {
            if worker.local().process.is_gone() {
                let took_ms = store::clock::now().since(began).as_millis() as u64;
                tracing::info!(took_ms, "PostgreSQL has stopped to hand over");
                return Ok(());
            }
            let now = store::clock::now();
            if shut_down.is_none() && is_shut_down(worker) {
                shut_down = Some(now);
            }
            if shut_down.is_some_and(|at| now.since(at) > LAST_HANDSHAKE) {
                why = "a standby keeps its walsender after the shutdown checkpoint";
                break;
            }
            if now.since(began) > STOP_AT_MOST {
                why = "the fast stop took too long";
                break;
            }
            sleep(SOON).await;
        }
    }
    tracing::warn!(why, "PostgreSQL is fenced to hand over");
    worker.fence(why).await?;
    // The fencer's word that nothing is left comes as an event of its own.
    let patience = super::Patience::of(Duration::from_secs(2), "the word that nothing is left");
    while !worker.local().process.is_gone() {
        patience.soon().await?;
    }
    Ok(())
}

fn is_shut_down(worker: &Worker) -> bool {
    ControlFile::read(&worker.place.data_dir).is_ok_and(|control| control.is_clean())
}

/// A fast stop waits until each walsender's client has everything: those of voters and the target are worth it.
async fn end_other_walsenders(worker: &Worker, waits_for: &[String]) -> anyhow::Result<()> {
    let ending = async {
        let session = worker.admin().await?;
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication
                      WHERE NOT application_name = ANY ($1)";
        anyhow::Ok(session.rows(others, &[&waits_for]).await?)
    };
    timeout(Duration::from_millis(250), ending).await.context("the server does not answer")??;
    Ok(())
}
