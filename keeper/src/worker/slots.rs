//! One physical replication slot per member, on every member: on the primary they hold WAL back for those who are
//! away; on a standby they exist, so that whoever is promoted is ready, and hold nothing back.

use std::time::Duration;

use anyhow::bail;
use proto::assignment::Follow;
use proto::{ClusterState, Epoch, MemberName};
use tokio::time::timeout;

use super::Worker;
use super::rejoin::{SOURCE_ANSWERS_WITHIN, source_of};
use crate::postgres::session::{Session, SqlError};
use crate::postgres::settings::{REPLICATION_ROLE, Settings, slot_name};
use crate::postgres::walsender::Walsender;

/// The fsyncs of a slot take 5 to 30 ms, more on a busy disk. Clients wait for a promotion, which needs some itself.
const RESERVE_AT_MOST: Duration = Duration::from_secs(1);

/// Brings the slots in line with `members`, and relaxes the retry interval: the member has settled.
pub async fn keep(worker: &Worker, members: &[MemberName], primary: bool) -> anyhow::Result<()> {
    let session = worker.admin().await?;
    let wanted: Vec<String> = members.iter().map(slot_name).collect();
    let rows = session
        .rows(
            "SELECT slot_name, active, restart_lsn IS NOT NULL FROM pg_replication_slots
              WHERE slot_type = 'physical' AND slot_name LIKE 'pgdeputy\\_%' AND NOT temporary",
            &[],
        )
        .await?;
    let mut good = Vec::new();
    let mut left = Vec::new();
    for row in &rows {
        let (name, active, reserved): (String, bool, bool) = (row.get(0), row.get(1), row.get(2));
        if wanted.contains(&name) && (active || reserved == primary) {
            good.push(name);
        } else if !active {
            drop_slot(&session, &name).await;
        } else if !wanted.contains(&name) {
            // Of a member that was removed. It is told by its own keeper too, where one runs.
            end_user_of(&session, &name).await?;
            left.push(name);
        }
    }
    let lacking: Vec<String> = wanted.into_iter().filter(|name| !good.contains(name)).collect();
    create_missing(&session, &lacking, primary).await?;
    let settings = worker.settings();
    if settings.eager {
        worker.reload(Settings { eager: false, ..settings }).await?;
    }
    if !left.is_empty() {
        bail!("{} of no member any more are still in use: stop those standbys", left.join(", "));
    }
    worker.update(|local| local.slots_for = Some((members.to_vec(), primary)));
    Ok(())
}

/// Creates the slots that are missing, for a primary that cannot open before its standbys stream.
pub async fn ensure(worker: &Worker, session: &Session) -> anyhow::Result<()> {
    let names: Vec<String> = others(worker, worker.state()?).iter().map(slot_name).collect();
    Ok(create_missing(session, &names, true).await?)
}

/// Creates those of the slots that are not there; `reserves`: they hold WAL back at once.
async fn create_missing(
    session: &Session,
    names: &[String],
    reserves: bool,
) -> Result<(), SqlError> {
    session
        .rows(
            "SELECT pg_create_physical_replication_slot(name, $2) FROM unnest($1::text[]) AS name
              WHERE NOT EXISTS (SELECT 1 FROM pg_replication_slots WHERE slot_name::text = name)",
            &[&names, &reserves],
        )
        .await?;
    Ok(())
}

/// Makes the slots of `members` that hold nothing back and are not in use hold WAL back from the redo position of the last
/// checkpoint on. On a standby that is about to be promoted that is at or before the fork.
pub async fn reserve(session: &Session, members: &[MemberName]) -> Result<(), SqlError> {
    let names: Vec<String> = members.iter().map(slot_name).collect();
    // There is no way to reserve by a slot that is there, but one: to stream.
    session
        .rows(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
              WHERE slot_name::text = ANY($1::text[]) AND NOT active AND restart_lsn IS NULL",
            &[&names],
        )
        .await?;
    create_missing(session, &names, true).await
}

/// Has a standby hold WAL back from before its promotion on, whose first checkpoint begins with it and may be over a moment
/// later: whoever is away at a promotion then finds all that came after the fork. Whoever has sealed for it is there and
/// follows at once. Never fails the promotion, nor delays it for long: a slot that is not reserved costs a copy at worst.
pub async fn reserve_before_promotion(worker: &Worker, epoch: Epoch) {
    let away = away(worker, epoch);
    if away.is_empty() {
        return;
    }
    let reserved = async {
        // Should it not be promoted after all, they are brought in line again.
        worker.note_quietly(|local| local.slots_for = None);
        // A session of its own, so that a slow disk does not stand in the way of what comes next.
        reserve(&worker.door.open().await?, &away).await
    };
    match timeout(RESERVE_AT_MOST, reserved).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "reserve WAL for other members"),
        Err(_) => {
            tracing::warn!("the slots of other members were not reserved before the promotion")
        }
    }
}

/// Has the primary hold WAL back for this member, whose slot may have lost some, for the time in which it is copied and beyond.
/// Never fails the copy: `wal_keep_size` may be enough.
pub async fn renew_own(worker: &Worker, follow: &Follow) {
    let renewed = async {
        let password = &worker.secrets.replication;
        let source = source_of(worker, follow, REPLICATION_ROLE, password)?;
        let slot = slot_name(&worker.place.member);
        Walsender::connect(&source, password).await?.renew_slot(&slot).await
    };
    match timeout(SOURCE_ANSWERS_WITHIN, renewed).await {
        Ok(Ok(false)) => {}
        Ok(Ok(true)) => tracing::info!("this member's slot held no WAL back: it was made anew"),
        Ok(Err(error)) => tracing::warn!(%error, "look after this member's slot"),
        Err(_) => tracing::warn!("the primary does not answer about this member's slot"),
    }
}

/// Returns the members that have not said what they hold for this epoch.
fn away(worker: &Worker, epoch: Epoch) -> Vec<MemberName> {
    let view = worker.view.borrow();
    let Some(state) = view.state.clone() else { return Vec::new() };
    let has_sealed =
        |m: &MemberName| view.reports.get(m).is_some_and(|r| r.sealed_for(epoch).is_some());
    others(worker, state).into_iter().filter(|m| !has_sealed(m)).collect()
}

fn others(worker: &Worker, state: ClusterState) -> Vec<MemberName> {
    state.members.into_keys().filter(|m| *m != worker.place.member).collect()
}

/// Ends the walsender that streams by a slot, so that the slot can be dropped the next time.
async fn end_user_of(session: &Session, name: &str) -> anyhow::Result<()> {
    session
        .rows(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
              WHERE slot_name = $1 AND active_pid IS NOT NULL",
            &[&name],
        )
        .await?;
    Ok(())
}

/// Drops a slot. Its standby may have taken it this moment, and then it is as it should be.
async fn drop_slot(session: &Session, name: &str) {
    if let Err(error) = session.row("SELECT pg_drop_replication_slot($1)", &[&name]).await {
        tracing::info!(%error, slot = name, "the slot stays");
    }
}
