//! The commit canary: small rows written by the way that clients take, and asked for again after each change of primary.
//!
//! The one rule: it believes only what PostgreSQL answered. Who answers, it learns from the answer itself (timeline and
//! start of the server), so it needs neither etcd nor pgdeputy's word, and works through any proxy or pooler.

mod judge;
mod table;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use store::clock;
use tokio::task::JoinHandle;
use tokio_postgres::Config;
use tokio_util::sync::CancellationToken;

use crate::session::{Session, Way};
pub use judge::{Acknowledged, Evidence, Origin, Proof, ReadBack, Verdict, judge};
use table::{ANSWER_DEADLINE, CONNECT_DEADLINE, KEEP, Table};

/// Between two canaries.
const EVERY: Duration = Duration::from_secs(1);

/// Between two attempts while canaries are not acknowledged: the end of a gap is known as well as this.
const RETRY: Duration = Duration::from_millis(100);

/// A running canary. Dropping it stops the writing.
pub struct Canary {
    shared: Arc<Shared>,
    stop: CancellationToken,
    writer: Option<JoinHandle<Writer>>,
}

#[derive(Default)]
struct Shared {
    evidence: Mutex<Evidence>,
}

impl Canary {
    /// Connects without TLS by the way that clients take, and goes on as `start`.
    ///
    /// # Errors
    /// As `start`.
    pub async fn start_at(target: Config) -> anyhow::Result<Self> {
        Self::start(Way::plain(target)).await
    }

    /// Connects by the way that clients take, creates the table where there is none, and begins to write.
    ///
    /// # Errors
    /// No primary answers, or its user can neither create `pgdeputy_drill.canary` nor write to it.
    pub async fn start(target: Way) -> anyhow::Result<Self> {
        let session = Session::open_by(&target, CONNECT_DEADLINE).await?;
        let table = Table::of_a_new_run(rand::random());
        table.prepare(&session).await?;
        let shared = Arc::new(Shared::default());
        shared.with(|evidence| evidence.keep = KEEP);
        let stop = CancellationToken::new();
        let mut writer =
            Writer { target, table, session: Some(session), next_id: 1, unasked: None };
        if !writer.write(&shared).await {
            bail!("the first canary was not acknowledged");
        }
        let (told, stopped) = (Arc::clone(&shared), stop.clone());
        let writer = tokio::spawn(async move {
            writer.write_until(&told, &stopped).await;
            writer
        });
        Ok(Self { shared, stop, writer: Some(writer) })
    }

    /// Returns what is known so far.
    pub fn evidence(&self) -> Evidence {
        self.shared.with(|evidence| evidence.clone())
    }

    /// Does the same as `finish`, and deletes its rows where they are proven to be all there: what is not good stays for
    /// a day, for whoever looks into it. Rows that cannot be deleted now are deleted then, too.
    ///
    /// # Errors
    /// As `finish`.
    pub async fn finish_and_forget(mut self, bound: Duration) -> anyhow::Result<Evidence> {
        let mut writer = self.ended(bound).await?;
        let evidence = self.evidence();
        if judge(&evidence).is_good() {
            writer.forget().await;
        }
        Ok(evidence)
    }

    /// Stops writing, asks the primary for everything once more, for at most `bound`, and returns what is known. Without
    /// that answer the evidence is returned all the same; `judge` says that it is thin.
    ///
    /// # Errors
    /// The writer has ended by itself, which it never should.
    pub async fn finish(mut self, bound: Duration) -> anyhow::Result<Evidence> {
        self.ended(bound).await?;
        Ok(self.evidence())
    }

    async fn ended(&mut self, bound: Duration) -> anyhow::Result<Writer> {
        self.stop.cancel();
        let writer = self.writer.take().context("the canary was stopped before")?;
        let mut writer = writer.await.context("the canary has ended by itself")?;
        let until = clock::now() + bound;
        while !writer.read_back(&self.shared).await && clock::now() < until {
            tokio::time::sleep(RETRY).await;
        }
        Ok(writer)
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    fn with<T>(&self, body: impl FnOnce(&mut Evidence) -> T) -> T {
        body(&mut self.evidence.lock().expect("no holder of this lock panics"))
    }
}

struct Writer {
    target: Way,
    table: Table,
    session: Option<Session>,
    next_id: i64,
    /// Who acknowledged last, if it has not been asked yet what it holds.
    unasked: Option<Origin>,
}

impl Writer {
    async fn write_until(&mut self, shared: &Shared, stop: &CancellationToken) {
        loop {
            let turn = clock::now() + EVERY;
            let written = self.write(shared).await;
            if self.unasked.is_some() {
                self.read_back(shared).await;
            }
            let pause = if written { turn.since(clock::now()) } else { RETRY };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Returns the open session, or a new one; it is put back only after a good answer.
    async fn take_session(&mut self) -> Option<Session> {
        match self.session.take() {
            Some(session) => Some(session),
            None => Session::open_by(&self.target, CONNECT_DEADLINE).await.ok(),
        }
    }

    /// Returns whether one more canary was acknowledged.
    async fn write(&mut self, shared: &Shared) -> bool {
        let Some(session) = self.take_session().await else { return false };
        let id = self.next_id;
        self.next_id += 1;
        let sent = clock::now();
        let answer = tokio::time::timeout(ANSWER_DEADLINE, self.table.insert(&session, id)).await;
        let (answered, wall) = (clock::now(), clock::wall());
        let origin = match answer {
            // A commit that comes with a warning waited in vain for the standbys.
            Ok(Ok(origin)) if !session.has_warned() => origin,
            Ok(_) | Err(_) => {
                shared.with(|evidence| evidence.unknown += 1);
                return false;
            }
        };
        self.session = Some(session);
        let last = shared.with(|evidence| {
            let last = evidence.acknowledged.last().map(|ack| ack.origin);
            evidence.acknowledged.push(Acknowledged { id, sent, answered, wall, origin });
            last
        });
        if last.is_some_and(|last| last != origin) {
            self.unasked = Some(origin);
        }
        true
    }

    async fn forget(&mut self) {
        let Some(session) = self.take_session().await else { return };
        match tokio::time::timeout(ANSWER_DEADLINE, self.table.forget(&session)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = format!("{error:#}"), "forget canaries"),
            Err(_) => tracing::debug!("forget canaries: no answer in time"),
        }
    }

    /// Asks a primary what it holds; returns whether it answered.
    async fn read_back(&mut self, shared: &Shared) -> bool {
        let Some(session) = self.take_session().await else { return false };
        let (asked, wall) = (clock::now(), clock::wall());
        let answer = tokio::time::timeout(ANSWER_DEADLINE, self.table.read(&session)).await;
        let Ok(Ok((origin, lsn, ids))) = answer else { return false };
        self.session = Some(session);
        let highest_sent = self.next_id - 1;
        let read = ReadBack { asked, wall, origin, lsn, ids, highest_sent };
        shared.with(|evidence| evidence.read_back.push(read));
        if self.unasked == Some(origin) {
            self.unasked = None;
        }
        true
    }
}
