//! Reads that hang on a standby that has vanished or stands still: PgBouncer would wait for its answer for ever.
//!
//! The one rule: a read has all of `reads.drain` after its standby has left, and is ended then only if that standby's
//! server does not answer: one that merely lags finishes its long queries.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use store::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::info;

use super::console::{ConsoleError, Row, quoted};
use super::instance::{Instance, Want, is};
use super::render::Entry;

/// A postmaster answers this question before any login, from its main loop or a child that it forks for it.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// PostgreSQL's SSLRequest: its length, and its number.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

impl Instance {
    /// Ends the reads that still hang on a standby that left `drain` ago.
    ///
    /// PgBouncer before 1.23 can end a whole database only: other reads of it end too, and can be asked again.
    pub(super) async fn free_readers(&mut self, want: &Want) -> Result<(), ConsoleError> {
        let overdue = |since| clock::now().since(since) >= want.drain;
        if !self.readers_left.is_some_and(overdue) {
            return Ok(());
        }
        let servers = self.open_console()?.console.ask("SHOW SERVERS").await?;
        let hanging = hanging(&want.entries, &servers);
        let mut databases = BTreeSet::new();
        for ((host, port), of) in &hanging {
            if !answers(host, port).await {
                info!(pgbouncer = %self.name, host, port, "reads wait for a server that does not answer");
                databases.extend(of.iter().cloned());
            }
        }
        for name in &databases {
            self.mark_paused()?;
            let console = &self.open_console()?.console;
            console.ask(&format!("KILL {}", quoted(name))).await?;
            console.ask(&format!("RESUME {}", quoted(name))).await?;
            info!(pgbouncer = %self.name, database = %name, "reads that hung were ended");
        }
        // Those that go on are looked at again: their server may vanish yet.
        if databases.len() == hanging.values().flatten().collect::<BTreeSet<_>>().len() {
            self.readers_left = None;
        }
        Ok(())
    }
}

/// Returns the servers that a reload has marked and that have not answered yet, with the read databases in which they
/// are waited for.
fn hanging(entries: &[Entry], servers: &[Row]) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut found: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    let reads = |row: &&Row| {
        let entry = entries.iter().find(|entry| is(row, "database", &entry.name));
        entry.is_some_and(|entry| !entry.kind.is_of_primary())
    };
    let waits = |row: &&Row| is(row, "close_needed", "1") && is(row, "state", "active");
    for row in servers.iter().filter(reads).filter(waits) {
        let text = |column: &str| row.get(column).cloned().unwrap_or_default();
        found.entry((text("addr"), text("port"))).or_default().insert(text("database"));
    }
    found
}

/// Returns whether a PostgreSQL at this place says anything at all.
async fn answers(host: &str, port: &str) -> bool {
    let asking = async {
        let mut stream = TcpStream::connect(format!("{}:{port}", bracketed(host))).await?;
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_u8().await
    };
    matches!(tokio::time::timeout(ANSWER_WITHIN, asking).await, Ok(Ok(_)))
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}
