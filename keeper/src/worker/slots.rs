//! One physical replication slot per member, on every member: on the primary they hold WAL back for those who are
//! away; on a standby they exist, so that whoever is promoted is ready, and hold nothing back.

use anyhow::bail;
use proto::MemberName;

use super::Worker;
use crate::postgres::session::{Session, SqlError};
use crate::postgres::settings::{Settings, slot_name};

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
    for name in wanted.iter().filter(|name| !good.contains(name)) {
        session
            .rows(
                "SELECT pg_create_physical_replication_slot($1, $2)
                  WHERE NOT EXISTS (SELECT 1 FROM pg_replication_slots WHERE slot_name = $1)",
                &[name, &primary],
            )
            .await?;
    }
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
    let state = worker.state()?;
    for member in state.members.keys().filter(|m| **m != worker.place.member) {
        session
            .rows(
                "SELECT pg_create_physical_replication_slot($1, true)
                  WHERE NOT EXISTS (SELECT 1 FROM pg_replication_slots WHERE slot_name = $1)",
                &[&slot_name(member)],
            )
            .await?;
    }
    Ok(())
}

/// Makes the idle slots of `members` hold WAL back from the last checkpoint on, before the next one moves on: a member
/// that was away at a promotion then finds all that came after the fork. A slot in use holds it back already.
pub async fn reserve(session: &Session, members: &[MemberName]) -> Result<(), SqlError> {
    for name in members.iter().map(slot_name) {
        session
            .rows(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                  WHERE slot_name = $1 AND NOT active AND restart_lsn IS NULL",
                &[&name],
            )
            .await?;
        session
            .rows(
                "SELECT pg_create_physical_replication_slot($1, true)
                  WHERE NOT EXISTS (SELECT 1 FROM pg_replication_slots WHERE slot_name = $1)",
                &[&name],
            )
            .await?;
    }
    Ok(())
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
