//! The canary that is written always, by one of the runners, where the spec asks for it (`drills.canary`).
//!
//! The one rule: one runner writes at a time. Its right is a key under its lease, and it stops writing before that can have
//! ended, also when etcd does not answer.

use std::time::Duration;

use anyhow::Context;
use chaos::canary::Canary;
use chaos::session::Way;
use proto::canary::{CanaryHolder, CanaryRecord};
use proto::document::{decode, encode};
use proto::spec::CanaryWhen;
use proto::{ClusterSpec, Moment};
use store::{Guard, LeaseId, Operation, Store, StoreError, Txn, TxnOutcome, clock};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::way::WayArgs;
use crate::target::Target;

mod book;
mod told;
use book::Book;
pub use told::Told;

/// How long the right to write outlives its runner, and etcd may be away. Whole seconds, as etcd grants them.
const LEASE: Duration = Duration::from_secs(30);

/// Between two renewals, and how long one is waited for.
const RENEW_EVERY: Duration = Duration::from_secs(6);

/// After one that failed.
const RENEW_AGAIN: Duration = Duration::from_secs(1);

/// The writing ends so long before the lease may have: a canary is waited for up to 5 s.
const MARGIN: Duration = Duration::from_secs(6);

/// So often the spec is read, and what was seen is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What is no news is written so often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// A run of the canary: its rows are deleted when they are proven, and memory is bounded by it.
const RUN: Duration = Duration::from_secs(3600);

/// How long the primary may take to say at the end of a run which canaries it holds.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What a runner needs for it.
pub struct Standing<'a> {
    pub store: &'a dyn Store,
    pub target: &'a Target,
    /// The runner's name.
    pub own: &'a str,
}

/// Why a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was long enough, and the next one begins.
    Full,
    /// Nobody wants it any more.
    Unwanted,
}

impl Standing<'_> {
    /// Writes the canary whenever it is wanted and nobody else does, until `stop`.
    pub async fn run(&self, args: &WayArgs, stop: &CancellationToken) {
        let mut complained = String::new();
        while !stop.is_cancelled() {
            if let Err(error) = self.turn(args, stop).await {
                let problem = format!("{error:#}");
                if complained != problem {
                    tracing::warn!(problem, "the canary is not written");
                    complained = problem;
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Takes the right to write, if it is free and the canary is wanted, and writes for as long as it is held.
    async fn turn(&self, args: &WayArgs, stop: &CancellationToken) -> anyhow::Result<()> {
        if !self.is_wanted().await? {
            return Ok(());
        }
        let way = args.way()?.context("the spec wants it always (drills.canary): give --dsn")?;
        let Some((lease, until)) = self.take().await? else { return Ok(()) };
        tracing::info!(runner = self.own, "writes the canary");
        let ended = tokio::select! {
            ended = self.write(&way, lease, stop) => ended,
            () = self.lapses(lease, until) => {
                Err(anyhow::anyhow!("the right to write it has ended: etcd did not answer in time"))
            }
        };
        self.store.revoke(lease).await.context("give up the right to write the canary")?;
        ended
    }

    async fn is_wanted(&self) -> anyhow::Result<bool> {
        let key = self.target.keys().spec();
        let snapshot = self.store.read(&key).await.context("read the spec")?;
        let Some(entry) = snapshot.entries.get(&key) else { return Ok(false) };
        Ok(decode::<ClusterSpec>(&entry.value)?.drills.canary == CanaryWhen::Always)
    }

    /// The same while it is written. Where etcd does not answer the writing goes on, for as long as the right to it lasts:
    /// that is when it is worth most.
    async fn is_still_wanted(&self) -> bool {
        match self.is_wanted().await {
            Ok(wanted) => wanted,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "look whether the canary is still wanted");
                true
            }
        }
    }

    /// Returns the lease of the right, and until when it lasts at least; none where somebody else has it.
    async fn take(&self) -> anyhow::Result<Option<(LeaseId, Moment)>> {
        let key = self.target.keys().canary_holder();
        if self
            .store
            .read(&key)
            .await
            .context("read who writes the canary")?
            .entries
            .contains_key(&key)
        {
            return Ok(None);
        }
        let until = clock::now() + LEASE;
        let (lease, _) = self.store.grant(LEASE).await.context("ask for a lease")?;
        let holder = CanaryHolder { runner: self.own.to_owned(), since: clock::wall() };
        let value = encode(&holder).into_bytes();
        let put = Operation::Put { key: key.clone(), value, lease: Some(lease) };
        let txn = Txn { when: vec![Guard::Absent(key)], then: vec![put] };
        let taken = self.store.commit(txn).await;
        if let Ok(TxnOutcome::Committed { .. }) = taken {
            return Ok(Some((lease, until)));
        }
        self.store.revoke(lease).await.context("end a lease")?;
        taken.context("take the right to write the canary")?;
        Ok(None)
    }

    /// Renews the lease, and returns when it may end soon. A renewal counts from when it was sent.
    async fn lapses(&self, lease: LeaseId, mut until: Moment) {
        let mut pause = RENEW_EVERY;
        loop {
            sleep(pause.min((until - MARGIN).since(clock::now()))).await;
            let sent = clock::now();
            let patience = RENEW_EVERY.min((until - MARGIN).since(sent));
            pause = match timeout(patience, self.store.keep_alive(lease)).await {
                Ok(Ok(())) => {
                    until = sent + LEASE;
                    RENEW_EVERY
                }
                Ok(Err(StoreError::LeaseExpired)) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "renew the right to write the canary");
                    RENEW_AGAIN
                }
                Err(_) => {
                    tracing::warn!("renew the right to write the canary: no answer");
                    RENEW_AGAIN
                }
            };
            if clock::now() >= until - MARGIN {
                return;
            }
        }
    }

    async fn write(
        &self,
        way: &Way,
        lease: LeaseId,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut book = Book::of(self.known().await?, self.own);
        loop {
            let Some(canary) = self.begin(way, stop).await? else { return Ok(()) };
            let end = self.one_run(&canary, &book, lease, stop).await?;
            book.close(&canary.finish_and_forget(ANSWER_WITHIN).await?, clock::wall());
            self.has_told(book.record(), lease).await?;
            if end == End::Unwanted {
                return Ok(());
            }
        }
    }

    /// Returns what the holders before have seen.
    async fn known(&self) -> anyhow::Result<CanaryRecord> {
        let key = self.target.keys().canary();
        let snapshot = self.store.read(&key).await.context("read what the canary has seen")?;
        match snapshot.entries.get(&key) {
            // One that cannot be read is not written over.
            Some(entry) => Ok(decode(&entry.value)?),
            None => Ok(CanaryRecord::begun(self.own.to_owned(), clock::wall())),
        }
    }

    /// Begins a run as soon as somebody can be written to; none where it is not wanted any more.
    async fn begin(&self, way: &Way, stop: &CancellationToken) -> anyhow::Result<Option<Canary>> {
        let mut complained = false;
        loop {
            match Canary::start(way.clone()).await {
                Ok(canary) => return Ok(Some(canary)),
                Err(error) if !complained => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the canary cannot be written yet"
                    );
                    complained = true;
                }
                Err(_) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = sleep(Duration::from_secs(1)) => {}
            }
            if !self.is_still_wanted().await {
                return Ok(None);
            }
        }
    }

    /// Looks on while `canary` writes, and tells what it sees.
    async fn one_run(
        &self,
        canary: &Canary,
        book: &Book,
        lease: LeaseId,
        stop: &CancellationToken,
    ) -> anyhow::Result<End> {
        let begun = clock::now();
        let mut told: Option<(CanaryRecord, Moment)> = None;
        loop {
            let (evidence, now) = (canary.evidence(), clock::now());
            let record = book.with(&evidence, clock::wall());
            let is_news = told.as_ref().is_none_or(|(last, at)| {
                record.gaps != last.gaps
                    || record.losses != last.losses
                    || now.since(*at) >= TELL_EVERY
            });
            if is_news && self.has_told(&record, lease).await? {
                told = Some((record, now));
            }
            // At its end a primary is asked for what it holds: that waits until one answers.
            let is_calm = evidence
                .acknowledged
                .last()
                .is_some_and(|ack| now.since(ack.answered) < LOOK_EVERY);
            if is_calm && now.since(begun) >= RUN {
                return Ok(End::Full);
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(End::Unwanted),
                () = sleep(LOOK_EVERY) => {}
            }
            if !self.is_still_wanted().await {
                return Ok(End::Unwanted);
            }
        }
    }

    /// Writes what was seen; returns whether etcd took it. What it did not take is told at the next look. Fails where the
    /// right to write is another's.
    async fn has_told(&self, record: &CanaryRecord, lease: LeaseId) -> anyhow::Result<bool> {
        let keys = self.target.keys();
        let put =
            Operation::Put { key: keys.canary(), value: encode(record).into_bytes(), lease: None };
        let txn = Txn { when: vec![Guard::Lease(keys.canary_holder(), lease)], then: vec![put] };
        match self.store.commit(txn).await {
            Ok(TxnOutcome::Committed { .. }) => Ok(true),
            Ok(TxnOutcome::Conflict) => anyhow::bail!("the right to write it is another's"),
            Err(error) => {
                tracing::warn!(%error, "write what the canary has seen");
                Ok(false)
            }
        }
    }
}

#[cfg(test)]
mod tests;
