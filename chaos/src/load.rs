//! The load: writers through the write port, each commit with a fresh id that is logged when it is told.
//!
//! The one rule: an id is used once. A lost connection or a time-out at commit is unknown, is never counted as
//! failed, and is never tried again.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use proto::Moment;
use store::clock;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::Statement;
use tokio_postgres::types::{ToSql, Type};

use crate::session::Session;
use crate::verdict::Ack;

/// How long one commit may take before it counts as unknown and the connection is given up.
const COMMIT_DEADLINE: Duration = Duration::from_secs(1);

/// How long connecting may take. A proxy without a server refuses at once; this is for one that says nothing.
const CONNECT_DEADLINE: Duration = Duration::from_millis(500);

/// Between two commits of one writer: long enough for a small machine to keep up, and below the 10 ms that
/// would make the pauses of the clients part of the gap.
const PAUSE: Duration = Duration::from_millis(4);

/// Between two attempts to connect, at random so that the writers do not march in step.
const RECONNECT_MICROSECONDS: std::ops::RangeInclusive<u64> = 3_000..=5_000;

/// What to write, and where.
#[derive(Clone)]
pub struct LoadConfig {
    pub target: tokio_postgres::Config,
    pub writers: usize,
    pub statements: Statements,
    /// The first id; others write none from here on.
    pub first_id: i64,
    /// Each acknowledged id is appended here, one a line.
    pub log: PathBuf,
}

/// How a statement is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statements {
    /// Prepared once for each session.
    Prepared,
    /// Each by itself: a pooler in transaction mode hands the next one to another session of PostgreSQL.
    OneByOne,
}

impl LoadConfig {
    /// One writer of prepared statements to nowhere yet, who logs there.
    pub fn new(log: PathBuf) -> Self {
        let target = tokio_postgres::Config::new();
        Self { target, writers: 1, statements: Statements::Prepared, first_id: 1, log }
    }
}

/// Running writers. Dropping it stops them.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    config: LoadConfig,
    next_id: AtomicI64,
    unknown: AtomicU64,
    overdue: AtomicU64,
    refused: Mutex<Vec<i64>>,
    log: Mutex<(File, Vec<Ack>)>,
    /// When the last acknowledged commit was sent: what waiters wait for.
    latest: watch::Sender<Moment>,
}

/// What the writers were told, in the order in which they were told it.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub acknowledged: Vec<Ack>,
    /// Commits of which nobody knows what became.
    pub unknown: u64,
    /// Those of the unknown ones that had no answer in time. The others had their session cut.
    pub overdue: u64,
    /// Commits that PostgreSQL refused for certain, such as on a standby.
    pub refused: u64,
    /// Their ids.
    pub refused_ids: Vec<i64>,
    /// All ids that were sent, whatever became of them.
    pub tried: Vec<Range<i64>>,
}

impl Load {
    /// Starts the writers.
    pub fn start(config: LoadConfig) -> anyhow::Result<Self> {
        let file = File::create(&config.log)
            .with_context(|| format!("create {}", config.log.display()))?;
        let (writers, first_id) = (config.writers, config.first_id);
        let shared = Arc::new(Shared {
            config,
            next_id: AtomicI64::new(first_id),
            unknown: AtomicU64::new(0),
            overdue: AtomicU64::new(0),
            refused: Mutex::default(),
            log: Mutex::new((file, Vec::new())),
            latest: watch::Sender::new(Moment::default()),
        });
        let mut tasks = JoinSet::new();
        for _ in 0..writers {
            tasks.spawn(write_for_ever(Arc::clone(&shared)));
        }
        Ok(Self { shared, tasks })
    }

    /// Waits until a commit is acknowledged that was sent after `after`; returns when.
    pub async fn acknowledged_after(
        &self,
        after: Moment,
        bound: Duration,
    ) -> anyhow::Result<Moment> {
        let mut latest = self.shared.latest.subscribe();
        let waited = tokio::time::timeout(bound, latest.wait_for(|sent| *sent > after)).await;
        if waited.is_err() {
            bail!("no commit was acknowledged within {bound:?}");
        }
        Ok(clock::now())
    }

    /// Waits until `count` commits were acknowledged.
    pub async fn acknowledged_count(&self, count: usize, bound: Duration) -> anyhow::Result<()> {
        let mut latest = self.shared.latest.subscribe();
        let enough = latest.wait_for(|_| self.count() >= count);
        if tokio::time::timeout(bound, enough).await.is_err() {
            bail!("{} of {count} commits were acknowledged within {bound:?}", self.count());
        }
        Ok(())
    }

    /// Returns how many commits were acknowledged so far.
    pub fn count(&self) -> usize {
        self.shared.log.lock().expect("no holder of this lock panics").1.len()
    }

    /// Returns the ids' and times of what was acknowledged so far.
    pub fn told(&self) -> Told {
        let mut acknowledged =
            self.shared.log.lock().expect("no holder of this lock panics").1.clone();
        acknowledged.sort_by_key(|ack| ack.acked);
        let refused_ids =
            self.shared.refused.lock().expect("no holder of this lock panics").clone();
        let next = self.shared.next_id.load(Ordering::SeqCst);
        Told {
            acknowledged,
            unknown: self.shared.unknown.load(Ordering::SeqCst),
            overdue: self.shared.overdue.load(Ordering::SeqCst),
            refused: refused_ids.len() as u64,
            refused_ids,
            tried: std::iter::once(self.shared.config.first_id..next).collect(),
        }
    }

    /// Stops the writers; a commit that is under way stays unknown.
    pub async fn stop(mut self) -> Told {
        self.tasks.shutdown().await;
        self.told()
    }
}

impl Told {
    /// Returns the longest time without any acknowledgement that touches the time from `from` to `to`.
    pub fn longest_gap(&self, from: Moment, to: Moment) -> Duration {
        self.longest_silence(from, to).map_or(Duration::MAX, |(last, next)| next.since(last))
    }

    /// Returns the same as the last acknowledgement before it and the first one after it; none if there are none.
    pub fn longest_silence(&self, from: Moment, to: Moment) -> Option<(Moment, Moment)> {
        let first = self.acknowledged.partition_point(|ack| ack.acked <= from).saturating_sub(1);
        let last = self.acknowledged.partition_point(|ack| ack.acked <= to);
        let around = &self.acknowledged[first..(last + 1).min(self.acknowledged.len())];
        let pairs = around.windows(2).map(|pair| (pair[0].acked, pair[1].acked));
        pairs.max_by_key(|(last, next)| next.since(*last))
    }

    /// Takes in what other writers, with ids of their own, were told.
    pub fn join(&mut self, other: Told) {
        self.acknowledged.extend(other.acknowledged);
        self.acknowledged.sort_by_key(|ack| ack.acked);
        self.unknown += other.unknown;
        self.overdue += other.overdue;
        self.refused += other.refused;
        self.refused_ids.extend(other.refused_ids);
        self.tried.extend(other.tried);
    }

    /// Returns when the first commit was acknowledged after `from`.
    pub fn first_after(&self, from: Moment) -> Option<Moment> {
        let first = self.acknowledged.partition_point(|ack| ack.acked <= from);
        self.acknowledged.get(first).map(|ack| ack.acked)
    }

    /// Returns the commits per second between two times.
    pub fn per_second(&self, from: Moment, to: Moment) -> f64 {
        let count = self.acknowledged.iter().filter(|a| a.acked >= from && a.acked < to).count();
        count as f64 / to.since(from).as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

async fn write_for_ever(shared: Arc<Shared>) {
    loop {
        if let Ok((session, insert)) = connect(&shared.config).await {
            while write_once(&shared, &session, insert.as_ref()).await {
                tokio::time::sleep(PAUSE).await;
            }
        }
        let pause = rand::random_range(RECONNECT_MICROSECONDS);
        tokio::time::sleep(Duration::from_micros(pause)).await;
    }
}

const INSERT: &str = "INSERT INTO load (id) VALUES ($1)";

/// The same, answering with a row, which is what a statement that is not prepared can be judged by.
const INSERT_RETURNING: &str = "INSERT INTO load (id) VALUES ($1) RETURNING id";

async fn connect(config: &LoadConfig) -> anyhow::Result<(Session, Option<Statement>)> {
    let session = Session::open(&config.target, CONNECT_DEADLINE).await?;
    let insert = match config.statements {
        Statements::Prepared => {
            let prepare = session.client().prepare(INSERT);
            Some(tokio::time::timeout(CONNECT_DEADLINE, prepare).await??)
        }
        Statements::OneByOne => None,
    };
    Ok((session, insert))
}

/// Returns whether the session may be used again.
async fn write_once(shared: &Shared, session: &Session, insert: Option<&Statement>) -> bool {
    let id = shared.next_id.fetch_add(1, Ordering::SeqCst);
    let invoked = clock::now();
    let commit = async {
        match insert {
            Some(insert) => {
                let values: [&(dyn ToSql + Sync); 1] = [&id];
                session.client().execute(insert, &values).await
            }
            None => {
                let values: [(&(dyn ToSql + Sync), Type); 1] = [(&id, Type::INT8)];
                let rows = session.client().query_typed(INSERT_RETURNING, &values).await?;
                Ok(rows.len() as u64)
            }
        }
    };
    match tokio::time::timeout(COMMIT_DEADLINE, commit).await {
        Ok(Ok(1)) if !session.has_warned() => {
            shared.note(Ack { id, invoked, acked: clock::now() });
            true
        }
        Ok(Err(error)) if is_refusal(&error) => {
            shared.refused.lock().expect("no holder of this lock panics").push(id);
            false
        }
        Ok(_) => {
            shared.unknown.fetch_add(1, Ordering::SeqCst);
            false
        }
        Err(_) => {
            shared.overdue.fetch_add(1, Ordering::SeqCst);
            shared.unknown.fetch_add(1, Ordering::SeqCst);
            false
        }
    }
}

/// Only a statement that cannot have begun to commit is certain not to have committed.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::READ_ONLY_SQL_TRANSACTION)
}

impl Shared {
    fn note(&self, ack: Ack) {
        {
            let mut log = self.log.lock().expect("no holder of this lock panics");
            // The list in memory is what is judged; the file is for people, and a full disk must not stop us.
            let _ = writeln!(log.0, "{} {:.6}", ack.id, ack.acked.boot_time().as_secs_f64());
            log.1.push(ack);
        }
        self.latest.send_modify(|latest| *latest = (*latest).max(ack.invoked));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::since_boot(Duration::from_millis(ms))
    }

    fn told(times: &[u64]) -> Told {
        let ack =
            |ms: &u64| Ack { id: i64::try_from(*ms).unwrap(), invoked: at(*ms), acked: at(*ms) };
        let acknowledged = times.iter().map(ack).collect();
        Told { acknowledged, ..Told::default() }
    }

    #[test]
    fn the_gap_around_a_fault_begins_with_the_last_acknowledgement_before_it() {
        let told = told(&[0, 500, 510, 600, 605, 2000]);
        assert_eq!(told.longest_gap(at(515), at(606)), Duration::from_millis(1395));
        assert_eq!(told.longest_gap(at(515), at(603)), Duration::from_millis(90));
        assert_eq!(told.longest_gap(at(501), at(502)), Duration::from_millis(10));
    }

    #[test]
    fn without_two_acknowledgements_the_gap_is_endless() {
        assert_eq!(told(&[1]).longest_gap(at(0), at(10)), Duration::MAX);
        assert_eq!(told(&[]).longest_gap(at(0), at(10)), Duration::MAX);
    }

    #[test]
    fn the_rate_counts_only_the_time_asked_for() {
        let per_second = told(&[0, 100, 200, 300, 900]).per_second(at(100), at(600));
        assert!((per_second - 6.0).abs() < 1e-9);
    }
}
