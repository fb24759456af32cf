//! Backends: commits that wait, the keeper's statements, checkpoints.

use proto::Lsn;
use tokio::sync::oneshot;

use super::{Pg, Phase, Waiter};
use crate::sim::executor::{Micros, Sim};
use crate::sim::rng::Stream;
use crate::sim::wal::{At, TxId};

/// The deadline of the keeper's statements.
pub const STATEMENT_DEADLINE: Micros = 2_000_000;

/// Why a statement brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SqlError {
    /// The server is gone, or refuses sessions.
    Closed,
    TimedOut,
    ReadOnly,
    /// It is committed here, and the client got a warning: nothing was promised.
    Cancelled,
}

impl std::fmt::Display for SqlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for SqlError {}

impl Sim {
    /// Returns the server of `member` if a session to it can be opened now.
    pub fn session(&self, member: usize) -> Option<Pg> {
        self.with(|w| {
            let server = w.server(member).filter(|s| s.sessions && s.postmaster_lives)?;
            Some(server.id)
        })
        .map(|id| Pg { sim: self.clone(), member, id })
    }
}

impl Pg {
    /// Runs a statement of the keeper's in a backend. One that runs answers by what holds now, and the answer takes its
    /// time to come; one that is stopped answers once it goes on.
    pub async fn sql<R: 'static>(
        &self,
        statement: impl FnOnce(&Pg) -> Option<R> + 'static,
    ) -> Result<R, SqlError> {
        if !self.answers_at_once() {
            let of = self.clone();
            let work = async move { statement(&of).ok_or(SqlError::Closed) };
            return self.run(STATEMENT_DEADLINE, work).await;
        }
        let answer = statement(self);
        self.sim.sleep(self.sim.between(Stream::Postgres, 60, 400)).await;
        answer.ok_or(SqlError::Closed)
    }

    /// Returns whether its backends run.
    pub fn answers_at_once(&self) -> bool {
        self.with(|s| s.backends).is_some_and(|procs| self.sim.runs(procs))
    }

    /// Runs `work` in a backend, for at most `patience`.
    pub async fn run<R: 'static>(
        &self,
        patience: Micros,
        work: impl Future<Output = Result<R, SqlError>> + 'static,
    ) -> Result<R, SqlError> {
        let backends = self.with(|s| s.backends).ok_or(SqlError::Closed)?;
        let sim = self.sim.clone();
        let takes = sim.between(Stream::Postgres, 60, 400);
        let (_, done) = sim.clone().call(backends, async move {
            sim.sleep(takes).await;
            work.await
        });
        match self.sim.within(patience, done).await {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(SqlError::Closed),
            None => Err(SqlError::TimedOut),
        }
    }

    /// Writes a small record, durable here, and returns its end.
    pub async fn own_record(&self) -> Result<Lsn, SqlError> {
        let of = self.clone();
        self.run(STATEMENT_DEADLINE, async move {
            let lsn = of.insert(90).ok_or(SqlError::ReadOnly)?;
            of.flush(lsn).await;
            Ok(lsn)
        })
        .await
    }

    fn insert(&self, size: u64) -> Option<Lsn> {
        self.with_world(|w| {
            let branch = w.server(self.member).filter(|s| s.phase == Phase::Primary)?.branch;
            Some(w.wal.append(branch, size))
        })
        .flatten()
    }

    /// Returns once all up to `lsn` is on disk.
    async fn flush(&self, lsn: Lsn) {
        let takes = self.sim.between(Stream::Postgres, 200, 2_500);
        self.sync_takes(takes).await;
        self.with_world(|w| {
            let Some(branch) = w.server(self.member).map(|s| s.branch) else { return };
            let Some(data) = w.members[self.member].disk.data.as_mut() else { return };
            if data.at.branch != branch || data.at.lsn < lsn {
                data.at = At { branch, lsn };
                data.written = data.at;
            }
        });
        self.tell();
    }

    /// Sleeps as long as a sync takes on this disk now.
    pub async fn sync_takes(&self, usual: Micros) {
        let slow = self.sim.with(|w| w.members[self.member].disk.slow_sync);
        self.sim.sleep(usual + slow).await;
        loop {
            let until = self.sim.with(|w| w.members[self.member].disk.stalled_until);
            if until <= self.sim.now() {
                return;
            }
            self.sim.sleep_until(until).await;
        }
    }

    /// A client's transaction. Returns once it is acknowledged.
    pub fn commit(&self, tx: TxId, size: u64) -> oneshot::Receiver<Result<At, SqlError>> {
        let of = self.clone();
        let Some(backends) = self.with(|s| s.backends) else { return oneshot::channel().1 };
        self.sim.call(backends, async move { of.committed(tx, size).await }).1
    }

    async fn committed(&self, tx: TxId, size: u64) -> Result<At, SqlError> {
        let lsn = self.insert(size).ok_or(SqlError::ReadOnly)?;
        self.flush(lsn).await;
        match self.wait_for_standbys(lsn, true).await {
            Ok(true) => {}
            Ok(false) => {
                self.with(|s| s.exposed.insert(lsn));
                return Err(SqlError::Cancelled);
            }
            Err(ended) => return Err(ended),
        }
        let branch = self.with(|s| s.branch).ok_or(SqlError::Closed)?;
        self.with(|s| s.visible = s.visible.max(lsn));
        let at = At { branch, lsn };
        self.sim.oracle_acknowledged(self.member, tx, at);
        Ok(at)
    }

    /// `SyncRepWaitForLSN`: nobody waits where the checkpointer has said so. False: the wait was cancelled. An error:
    /// the session was ended.
    async fn wait_for_standbys(&self, lsn: Lsn, client: bool) -> Result<bool, SqlError> {
        let (release, released) = oneshot::channel();
        let waits = self.with(|s| {
            let waits = s.commits_wait() && lsn > s.released;
            if waits {
                s.waiters.push(Waiter { lsn, client, release });
            }
            waits
        });
        match waits {
            Some(true) => released.await.map_err(|_| SqlError::Closed),
            Some(false) | None => Ok(true),
        }
    }

    /// A commit of the keeper's that waits as a client's does; resolves once it is released.
    pub fn canary(&self) -> Option<(Lsn, oneshot::Receiver<()>)> {
        let lsn = self.insert(90)?;
        let (of, backends) = (self.clone(), self.with(|s| s.backends)?);
        let released = self.sim.call(backends, async move {
            of.flush(lsn).await;
            let _ = of.wait_for_standbys(lsn, false).await;
        });
        Some((lsn, released.1))
    }

    /// Returns whether a commit that ends at `lsn` waits for standbys.
    pub fn waits(&self, lsn: Lsn) -> bool {
        self.with(|s| s.waiters.iter().any(|w| w.lsn == lsn)).unwrap_or(false)
    }

    /// Cancels the wait of a commit.
    pub fn cancel(&self, lsn: Lsn) -> Option<()> {
        self.with(|s| {
            if let Some(at) = s.waiters.iter().position(|w| w.lsn == lsn) {
                let _ = s.waiters.remove(at).release.send(false);
            }
        })
    }

    /// Ends the sessions of clients; on a standby only.
    pub fn end_client_sessions(&self) -> Option<()> {
        let floor = self.sim.fresh();
        self.with(|s| s.session_floor = floor)
    }

    /// Writes a checkpoint: pg_control then names this timeline.
    pub fn checkpoint(&self) {
        let Some(checkpointer) = self.with(|s| s.checkpointer) else { return };
        let of = self.clone();
        self.sim.spawn(checkpointer, async move {
            let takes = of.sim.between(Stream::Postgres, 20_000, 400_000);
            of.sync_takes(takes).await;
            of.with_world(|w| {
                let Some(branch) = w.server(of.member).map(|s| s.branch) else { return };
                let tli = w.wal.branch(branch).tli;
                if let Some(data) = w.members[of.member].disk.data.as_mut() {
                    data.control = tli;
                }
            });
        });
    }
}
