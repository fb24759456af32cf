//! Asks the probes' questions: of an open primary whether it accepts sessions and commits, of every member how its disks
//! are. What the answers mean is decided in `health`.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::statvfs::{FsFlags, statvfs};
use proto::Cfg;
use proto::status::{Prepared, Space};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::facts::Process;
use crate::health::{Answer, Disk, Pulse, QUESTIONS};
use crate::postgres::control::ControlFile;
use crate::postgres::probe::SqlFacts;
use crate::postgres::session::{Knock, Session, SqlError};
use crate::worker::Worker;

/// They come at least this often, also where `unresponsive_after` is long: voters miss them once it is made shorter.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How often the time without an answer is counted: finer than any `unresponsive_after`.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often the disks are looked at: they fill up over minutes.
const DISKS_EVERY: Duration = Duration::from_secs(5);

/// The file on the WAL disk that is written to see whether it can be.
const PROBE_FILE: &str = "pgdeputy.probe";

/// A record of its own: transactional, so that its commit is flushed.
const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'pgdeputy', 'pulse')";

/// Asks until `stop`.
pub async fn pulse(
    worker: Arc<Worker>,
    sql: watch::Receiver<Option<SqlFacts>>,
    stop: CancellationToken,
) {
    let asking = async {
        tokio::join!(look(&worker), sessions(&worker), commits(&worker, &sql), disks(&worker))
    };
    tokio::select! {
        _ = asking => {}
        () = stop.cancelled() => {}
    }
}

/// Counts, and wakes whoever decides when that changes what is to be said.
async fn look(worker: &Worker) {
    loop {
        sleep(LOOK_EVERY).await;
        let (after, open) = (worker.spec().unresponsive_after, is_open(worker));
        let mut changed = false;
        worker.note_quietly(|local| {
            let before = local.pulse.unresponsive(after);
            local.pulse.look(store::clock::now());
            if !open {
                local.pulse = Pulse::default();
            }
            changed = local.pulse.unresponsive(after) != before;
        });
        if changed {
            worker.update(|_| {});
        }
    }
}

/// Returns how long the next question waits.
pub fn pause(unresponsive_after: Duration) -> Duration {
    (unresponsive_after / QUESTIONS).min(LONGEST_PAUSE)
}

/// Opens a session, over and over.
async fn sessions(worker: &Worker) {
    loop {
        let after = worker.spec().unresponsive_after;
        sleep(pause(after)).await;
        let asked_of = worker.local().process;
        if !is_open(worker) {
            continue;
        }
        worker.note_quietly(|local| local.pulse.sessions.asks(store::clock::now()));
        let answer = match worker.door.knock(after).await {
            Knock::Answered => Answer::Well,
            Knock::QueueIsFull => {
                Answer::Unwell("the queue of those who want one is full".to_owned())
            }
            Knock::Unanswered => Answer::Unwell(format!("no answer within {after:?}")),
            Knock::NoDoor => Answer::Unknown,
        };
        worker.note_quietly(|local| {
            // A server that refuses a session is no less what it was when it last granted one.
            if answer == Answer::Well
                && local.process == asked_of
                && let Some((_, at)) = &mut local.last_answer
            {
                *at = store::clock::now();
            }
            local.pulse.sessions.hears(answer);
        });
    }
}

/// Commits on a kept session, over and over; while too few voters stream, writes a file on the WAL disk instead.
async fn commits(worker: &Worker, sql: &watch::Receiver<Option<SqlFacts>>) {
    let mut kept: Option<Session> = None;
    loop {
        let after = worker.spec().unresponsive_after;
        sleep(pause(after)).await;
        if !is_open(worker) {
            kept = None;
            continue;
        }
        let streams = enough_stream(worker, sql.borrow().as_ref());
        if streams && kept.as_ref().is_none_or(Session::is_closed) {
            // Whether sessions can be had is the other question.
            kept = worker.door.open().await.ok();
            if kept.is_none() {
                worker.note_quietly(|local| local.pulse.commits.hears(Answer::Unknown));
                continue;
            }
        }
        worker.note_quietly(|local| local.pulse.commits.asks(store::clock::now()));
        let answer = match kept.as_ref().filter(|_| streams) {
            Some(session) => commit(session, after).await,
            None => match timeout(after, write_file(worker)).await {
                Ok(Ok(_)) => Answer::Well,
                Ok(Err(error)) => Answer::Unwell(error.to_string()),
                Err(_) => Answer::Unwell(format!("no answer within {after:?}")),
            },
        };
        if answer != Answer::Well {
            // A statement that is still under way would stand in the way of the next one.
            kept = None;
        }
        worker.note_quietly(|local| local.pulse.commits.hears(answer));
    }
}

async fn commit(session: &Session, after: Duration) -> Answer {
    match session.run_within(after, COMMIT).await {
        Ok(()) => Answer::Well,
        Err(SqlError::Deadline(_)) => Answer::Unwell(format!("no answer within {after:?}")),
        Err(SqlError::Statement(said)) if is_of_the_disk(&said) => Answer::Unwell(said),
        // Cancelled or ended by somebody, out of memory: says nothing of commits.
        Err(SqlError::Statement(_) | SqlError::Connect(_)) => Answer::Unknown,
    }
}

/// Disk full, and errors of the system below PostgreSQL.
fn is_of_the_disk(said: &str) -> bool {
    said.contains("(53100)") || said.contains("(58030)")
}

/// Looks at the disks, over and over.
async fn disks(worker: &Worker) {
    loop {
        sleep(DISKS_EVERY).await;
        // While PostgreSQL is down its directories may be under work.
        if !matches!(worker.local().process, Process::Running { .. }) {
            continue;
        }
        let (data, wal) = (worker.place.data_dir.clone(), worker.pg_wal());
        let look = move || (see(&data), see(&wal), ControlFile::read(&data).ok());
        let seen = tokio::task::spawn_blocking(look).await;
        let synced = write_file(worker).await.map_err(|error| error.to_string());
        let before = worker.local().disks;
        let mut disks = before.clone();
        let (data, wal, control) = seen.unwrap_or_default();
        let mut prepared = Prepared {
            rewindable: control.map(|c| c.data_checksums || c.wal_log_hints),
            ..Prepared::default()
        };
        for (name, disk) in [("data directory", data), ("WAL", wal)] {
            if let Some(disk) = disk {
                disks.see(name, disk);
                let Disk { size, available, read_only } = disk;
                prepared.disks.insert(name.to_owned(), Space { available, size, read_only });
            }
        }
        disks.synced(synced);
        if disks.problems() != before.problems() {
            tracing::warn!(problems = ?disks.problems(), "what is known of the disks changed");
            worker.update(|local| (local.disks, local.prepared) = (disks, prepared));
        } else {
            worker.note_quietly(|local| (local.disks, local.prepared) = (disks, prepared));
        }
    }
}

fn see(directory: &Path) -> Option<Disk> {
    let found = statvfs(directory).ok()?;
    let unit = found.fragment_size();
    Some(Disk {
        size: found.blocks() * unit,
        available: found.blocks_available() * unit,
        read_only: found.flags().contains(FsFlags::ST_RDONLY),
    })
}

/// Writes a few bytes to the WAL disk and syncs them; returns how long that took. A disk that hangs keeps a thread.
async fn write_file(worker: &Worker) -> io::Result<Duration> {
    let file = worker.pg_wal().join(PROBE_FILE);
    let begun = store::clock::now();
    let writing = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(file)?;
        file.write_all(b"written by pgdeputy to see whether this disk takes it\n")?;
        file.sync_all()
    });
    writing.await.map_err(io::Error::other)??;
    Ok(store::clock::now().since(begun))
}

/// Returns whether clients may write here.
fn is_open(worker: &Worker) -> bool {
    let local = worker.local();
    local.opened.is_some() && matches!(local.process, Process::Running { .. })
}

/// Returns whether the newest Cfg has its k voters streaming.
fn enough_stream(worker: &Worker, sql: Option<&SqlFacts>) -> bool {
    let view = worker.view.borrow();
    let newest: Option<&Cfg> = view.state.as_ref().and_then(|state| state.newest_cfg());
    let (Some(cfg), Some(sql)) = (newest, sql) else { return false };
    let names: Vec<String> = cfg.voters.iter().map(|voter| cfg.wire_name(voter)).collect();
    let streaming =
        sql.walsenders.iter().filter(|s| s.state == "streaming" && names.contains(&s.name)).count();
    streaming >= cfg.k
}
