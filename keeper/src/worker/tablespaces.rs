//! The tablespaces of a fresh copy: asked of its source before anything is written, and put in their places at its end.

use std::path::PathBuf;

use anyhow::Context;
use tokio::time::timeout;

use super::Worker;
use super::leftovers::remove_unfinished;
use super::rejoin::{SOURCE_ANSWERS_WITHIN, session_with};
use crate::postgres::session::describe;
use crate::postgres::settings::REWIND_ROLE;
use crate::postgres::source::Source;
use crate::postgres::tablespaces::{Mapping, Tablespace, mappings, settle};

impl Worker {
    /// Puts tablespaces in their places that a copy has left beside them. Where that cannot be, PostgreSQL finds them
    /// where they are, and only a rewind would not.
    pub(super) fn settle_tablespaces(&self) {
        match settle(&self.place.data_dir) {
            Ok(places) if places.is_empty() => {}
            Ok(places) => tracing::info!(?places, "tablespaces of the copy took their places"),
            Err(error) => {
                let why = format!("{error:#}");
                tracing::warn!(why, "tablespaces of the copy stay beside their places");
            }
        }
    }
}

/// Returns where the tablespaces of `source` are copied to, after what earlier copies have left there is gone. Refuses
/// where one cannot be copied, before anything is written.
pub async fn plan(worker: &Worker, source: &Source, suffix: &str) -> anyhow::Result<Vec<Mapping>> {
    // What a copy has left is told from what is in use only once that is in its place.
    settle(&worker.place.data_dir).context("put the last copy's tablespaces in their places")?;
    let tablespaces = match ask(worker, source).await {
        Ok(tablespaces) => tablespaces,
        Err(error) => {
            // A copy needs the replication role alone, and pg_basebackup writes into no directory that is in use.
            let why = format!("{error:#}");
            tracing::warn!(why, "which tablespaces the source has is not known");
            Vec::new()
        }
    };
    for Tablespace { location, .. } in &tablespaces {
        let removed = match location.parent().is_some_and(|dir| dir.is_dir()) {
            true => remove_unfinished(location).context("remove what a copy has left")?,
            false => Vec::new(),
        };
        if !removed.is_empty() {
            tracing::info!(?removed, "removed tablespaces of copies that were cut");
        }
    }
    mappings(&worker.place.data_dir, suffix, &tablespaces, worker.binaries.user())
}

async fn ask(worker: &Worker, source: &Source) -> anyhow::Result<Vec<Tablespace>> {
    let source = Source { user: REWIND_ROLE.to_owned(), ..source.clone() };
    let (client, connection) = session_with(worker, &source).await?;
    let question = "SELECT spcname::text, pg_catalog.pg_tablespace_location(oid)
                      FROM pg_catalog.pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')";
    let rows = timeout(SOURCE_ANSWERS_WITHIN, client.query(question, &[])).await;
    connection.abort();
    let rows = rows
        .context("the source does not answer")?
        .map_err(|e| anyhow::anyhow!("ask the source: {}", describe(&e)))?;
    let tablespace = |row: &tokio_postgres::Row| Tablespace {
        name: row.get(0),
        location: PathBuf::from(row.get::<_, &str>(1)),
    };
    Ok(rows.iter().map(tablespace).collect())
}
