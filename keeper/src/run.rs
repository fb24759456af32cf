//! The shell: wires the tasks together and turns the loop. Gather, decide, do; woken by events, never by polling.

use std::future::pending;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Context;
use proto::report::Ended;
use proto::{Moment, WallTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::action::{Action, ActionKind, Hold};
use crate::config::Config;
use crate::facts::{ClusterView, Facts, Failure, Local, Process};
use crate::fencer::{FenceReason, FencerEvent};
use crate::freshness::Freshness;
use crate::gather::Pace;
use crate::lag::Lag;
use crate::member_files::Role;
use crate::reconcile::reconcile;
use crate::wiring::{Wires, facts, wire};
use crate::{late_store, present, startup, stopping, take_over, worker};

/// How long facts are asked for eagerly after something changed.
const BUSY_FOR: Duration = Duration::from_secs(2);

/// Without any event the loop turns this often, for what only time changes.
const IDLE_TURN: Duration = Duration::from_secs(1);

/// Runs a keeper until `stop`; then PostgreSQL is stopped and the keeper's keys are given back.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let (store, known) = late_store::reach(&config).await?;
    if config.take_over {
        startup::rehearse(&config, &known)?;
        take_over::take_over(&config.state_dir).await?;
    }
    let prepared = startup::prepare(&config, known)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        cluster = %config.cluster,
        member = %config.member,
        postgres = %prepared.binaries.version(),
        data_dir = %config.data_dir.display(),
        "keeper starts"
    );
    let wires = wire(&config, store, prepared).await?;
    Shell::new(config, wires).turn(stop).await
}

/// A running keeper.
struct Shell {
    config: Config,
    wires: Wires,
    serve_until: Option<Moment>,
    running: Option<Action>,
    actions: JoinSet<anyhow::Result<()>>,
    /// Facts asked for before this moment are from before the last action.
    settled: Moment,
    busy_until: Moment,
    last_decision: Option<Action>,
    /// A newer keeper has asked for this member.
    successor: Option<take_over::Request>,
    lag: Lag,
    freshness: Freshness,
}

impl Shell {
    fn new(config: Config, wires: Wires) -> Self {
        let now = store::clock::now();
        Self {
            config,
            serve_until: wires.deadline,
            wires,
            running: None,
            actions: JoinSet::new(),
            settled: now,
            busy_until: now + BUSY_FOR,
            last_decision: None,
            successor: None,
            lag: Lag::default(),
            freshness: Freshness::default(),
        }
    }

    async fn turn(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let changed = self.wires.worker.changed.clone();
        let mut relieved: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(pending());
        let mut leaving = false;
        let mut leave = signal(SignalKind::user_defined2()).context("listen for SIGUSR2")?;
        let mut leaves_postgres = false;
        loop {
            self.decide().await;
            tokio::select! {
                Some(()) = leave.recv() => leaves_postgres = true,
                () = stop.cancelled(), if self.config.leave_postgres && !leaves_postgres => {
                    leaves_postgres = true;
                }
                () = stop.cancelled(), if !self.config.leave_postgres && !leaving => {
                    leaving = true;
                    let worker = self.wires.worker.clone();
                    worker.update(|local| local.leaving = true);
                    relieved = Box::pin(stopping::be_relieved(worker, self.config.hand_over_within));
                }
                () = &mut relieved => break,
                _ = self.wires.view.changed() => {}
                _ = self.wires.sql.changed() => {}
                _ = self.wires.renewed.changed() => self.renewed(),
                _ = self.wires.signed.changed() => self.signed(),
                () = changed.notified() => {}
                Some(request) = self.wires.asked.recv() => self.successor = Some(request),
                Some(event) = self.wires.events.recv() => self.fencer_says(event)?,
                Some(done) = self.actions.join_next() => self.action_ended(done),
                () = tokio::time::sleep(IDLE_TURN) => {}
            }
            // Whoever was told to stop is not left running by a successor.
            let leaves = leaves_postgres && self.is_good_moment();
            if !leaving && (leaves || self.hands_over().await?) {
                // With the lease that the next keeper renews from.
                self.wires.worker.save(|_| {})?;
                tracing::info!("leaves PostgreSQL running for the next keeper");
                self.wires.ended.cancel();
                self.wires.tasks.shutdown().await;
                return Ok(());
            }
        }
        self.shut_down().await
    }

    /// Returns whether another keeper can go on from here: no action is cut short, and enough of the right to serve is
    /// left that the other one can renew it.
    fn is_good_moment(&self) -> bool {
        let worker = &self.wires.worker;
        let spec = worker.spec();
        let left = self.serve_until.map(|until| until.since(store::clock::now()));
        let short = left.is_some_and(|left| left < (spec.lease_ttl - spec.fence_time) / 2);
        self.running.is_none() && !(short && worker.files().role == Role::Primary)
    }

    /// Leaves PostgreSQL to a newer keeper that has asked for it, at a good moment. Returns whether the other one knows.
    async fn hands_over(&mut self) -> anyhow::Result<bool> {
        if !self.is_good_moment() {
            return Ok(false);
        }
        let worker = &self.wires.worker;
        let Some(request) = self.successor.take() else { return Ok(false) };
        // With the lease that the other one renews from.
        worker.save(|_| {})?;
        let leaves = take_over::leaving(request).await;
        if leaves {
            worker.fencer.let_go().await;
            tracing::info!("a newer keeper takes over");
        }
        Ok(leaves)
    }

    /// Gathers, decides, and offers the decision to the worker.
    async fn decide(&mut self) {
        let now = store::clock::now();
        let view = self.wires.view.borrow_and_update().clone();
        let sql = self.wires.sql.borrow_and_update().clone();
        let facts = facts(&self.config, &self.wires.worker, sql);
        present::note_replay(&self.wires.worker, &facts, now);
        present::note_rejoin(&self.wires.worker, &view, &facts);
        self.publish(&view, &facts);
        if view.frozen.is_some() != facts.files.frozen {
            if view.frozen.is_none() {
                // The store that is believed again may hold the right of an earlier primary.
                self.wires.worker.update(|local| local.right = None);
            }
            self.save_member_files();
        }
        let stale = facts.sql.as_ref().is_some_and(|s| s.asked < self.settled);
        if !(stale && self.running.is_none()) {
            let action = reconcile(&view, &facts, now);
            #[cfg(feature = "mistakes")]
            let action = crate::mistakes::mistaken(&view, &facts, action);
            let refused = self.refusal().map(str::to_owned);
            self.offer(action, now).await;
            if self.refusal() != refused.as_deref() {
                self.publish(&view, &facts);
            }
        }
        let pace = if now < self.busy_until { Pace::Eager } else { Pace::Steady };
        self.wires.pace.send_if_modified(|known| std::mem::replace(known, pace) != pace);
    }

    /// Returns why this member does not come back, if a person has to see to it.
    fn refusal(&self) -> Option<&str> {
        match &self.last_decision {
            Some(Action::Hold(Hold::Refused(why))) => Some(why),
            Some(_) | None => None,
        }
    }

    async fn offer(&mut self, action: Action, now: Moment) {
        if self.last_decision.as_ref() != Some(&action) {
            tracing::info!(?action, "decided");
            self.last_decision = Some(action.clone());
            self.busy_until = now + BUSY_FOR;
        }
        if matches!(action, Action::Hold(_)) {
            self.note_state_when_idle(&action);
            return;
        }
        if let Some(running) = &self.running {
            if !running.yields_to(&action) {
                return;
            }
            tracing::info!(?running, for_ = ?action, "cut short");
            self.actions.shutdown().await;
        }
        // Names of a Cfg that nobody remembers could not be vouched for after a restore of etcd (I3).
        if matches!(action, Action::Confirm { .. })
            && self.is_ahead_of_files()
            && !self.save_member_files()
        {
            return;
        }
        let worker = self.wires.worker.clone();
        self.running = Some(action.clone());
        self.actions.spawn(async move { worker.perform(&action).await });
    }

    /// Remembers the state that this member has settled on, so that a store that was set back is recognised.
    fn note_state_when_idle(&self, action: &Action) {
        let idle =
            matches!(action, Action::Hold(Hold::Following | Hold::Leading | Hold::Sealed(_)));
        if idle && self.running.is_none() && self.is_ahead_of_files() {
            self.save_member_files();
        }
    }

    fn is_ahead_of_files(&self) -> bool {
        let known = self.wires.view.borrow().state.as_ref().map(|s| s.number);
        known.is_some_and(|number| number > self.wires.worker.files().state_number)
    }

    /// Puts the state, and whether the store is believed, on disk. Returns whether that is done.
    fn save_member_files(&self) -> bool {
        let saved = self.wires.worker.save(|_| {});
        if let Err(error) = &saved {
            tracing::error!(error = format!("{error:#}"), "write the member files");
        }
        saved.is_ok()
    }

    fn action_ended(&mut self, done: Result<anyhow::Result<()>, tokio::task::JoinError>) {
        let Some(action) = self.running.take() else { return };
        let now = store::clock::now();
        self.settled = now;
        self.wires.worker.ask.notify_one();
        self.busy_until = now + BUSY_FOR;
        let kind = action.kind();
        let problem = match done {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(error) if error.is_cancelled() => None,
            Err(error) => Some(format!("it panicked: {error}")),
        };
        if let Some(problem) = &problem {
            tracing::warn!(?kind, problem, "action failed");
        }
        self.wires.worker.update(|local| note_outcome(local, kind, problem, now));
    }

    fn fencer_says(&mut self, event: FencerEvent) -> anyhow::Result<()> {
        self.busy_until = store::clock::now() + BUSY_FOR;
        match event {
            FencerEvent::Exited { pid, status, clean, at } => {
                tracing::warn!(pid, status, clean, "PostgreSQL has ended");
                self.note_failed_start(&status);
                let ended = self.why_ended(clean);
                self.wires.worker.note_quietly(|local| {
                    local.ended.get_or_insert(ended);
                });
                self.process_ended(at, false);
            }
            FencerEvent::Fenced { why, took } => {
                tracing::warn!(
                    ?why,
                    took_ms = took.as_millis() as u64,
                    "the fencer has fenced PostgreSQL"
                );
                if why == FenceReason::Deadline {
                    self.wires.worker.update(|local| local.ended = Some(Ended::Expired));
                }
            }
            FencerEvent::Gone => {
                let noticed = match self.wires.worker.local().process {
                    Process::Exited { noticed, .. } => noticed,
                    Process::None | Process::Running { .. } => store::clock::wall(),
                };
                self.process_ended(noticed, true);
            }
            FencerEvent::Lost => anyhow::bail!("the fencer is gone, and PostgreSQL with it"),
        }
        Ok(())
    }

    /// Returns why PostgreSQL has ended that nobody here has ended. The fencer says it too, but later.
    fn why_ended(&self, clean: bool) -> Ended {
        match self.serve_until {
            Some(until) if store::clock::now() >= until => Ended::Expired,
            Some(_) | None if clean => Ended::Stopped,
            Some(_) | None => Ended::Died,
        }
    }

    /// A server that ended before it answered did not start, and starting it again at once would not help.
    fn note_failed_start(&self, status: &str) {
        let worker = &self.wires.worker;
        if worker.local().last_answer.is_some() {
            return;
        }
        let kind = match worker.files().role {
            Role::Primary => ActionKind::StartPrimary,
            Role::Standby | Role::None => ActionKind::StartStandby,
        };
        let said = present::last_fatal(&worker.place.state_dir.join("postgresql.log"));
        let problem = format!("PostgreSQL {status} before it answered; {said}");
        let now = store::clock::now();
        worker.update(|local| note_outcome(local, kind, Some(problem), now));
    }

    fn process_ended(&mut self, noticed: WallTime, gone: bool) {
        self.wires.worker.update(|local| {
            local.process = Process::Exited { noticed, gone };
            local.opened = None;
            local.confirmed = None;
        });
    }

    /// Extends the time for which a primary may serve, after a renewal that read a state which still names it.
    fn renewed(&mut self) {
        let Some(renewal) = *self.wires.renewed.borrow_and_update() else { return };
        let view = self.wires.view.borrow().clone();
        let Some(state) = &view.state else { return };
        let files = self.wires.worker.files();
        let is_mine = state.primary.as_ref() == Some(&self.config.member)
            && state.epoch == files.epoch
            && state.sealing.is_none()
            && files.role == Role::Primary;
        // What held for an earlier epoch of this member says nothing of the next one.
        self.serve_until =
            is_mine.then(|| worker::serve_until(renewal.expires, &self.wires.worker.spec()));
        if let Some(until) = self.serve_until {
            let fencer = &self.wires.worker.fencer;
            fencer.lease_at_most(self.wires.worker.spec().lease_ttl);
            fencer.serve_until(Some(until));
        }
    }

    /// Extends it by the voters' sign: it is proof by itself, whatever etcd would say.
    fn signed(&mut self) {
        let Some(until) = *self.wires.signed.borrow_and_update() else { return };
        let is_later = self.serve_until.is_none_or(|known| until > known);
        if is_later && self.wires.worker.local().opened.is_some() {
            self.serve_until = Some(until);
            self.wires.worker.fencer.serve_until(Some(until));
        }
    }

    fn publish(&mut self, view: &ClusterView, facts: &Facts) {
        let mut problems = present::problems(facts);
        problems.extend(self.refusal().map(|why| format!("does not come back: {why}")));
        if let Some(why) = &view.frozen {
            problems.insert(format!(
                "frozen: {why}. Clients are served, nothing is decided; see `pgdeputy adopt-store`"
            ));
        }
        let report = crate::report::report(&self.wires.identity, view, facts, problems);
        let moving = present::Moving {
            serve_until: self.serve_until,
            lag: facts.sql.as_ref().and_then(|sql| self.lag.look(sql)),
            fresh: self.freshness.look(view, facts),
        };
        self.wires.http.send_replace(present::view(view, facts, report.clone(), moving));
        self.wires.report.send_if_modified(|known| {
            let modified = known.as_ref() != Some(&report);
            *known = Some(report);
            modified
        });
    }

    /// Stops PostgreSQL, says so, and gives the keys back.
    async fn shut_down(mut self) -> anyhow::Result<()> {
        self.wires.worker.fencer.let_go().await;
        self.actions.shutdown().await;
        self.wires.worker.note_quietly(|local| local.ended = Some(Ended::Stopped));
        let gone = stopping::stop_postgres(&self.wires.worker, &mut self.wires.events).await;
        self.process_ended(store::clock::wall(), gone);
        let view = self.wires.view.borrow().clone();
        self.publish(&view, &facts(&self.config, &self.wires.worker, None));
        // The right is given back only when nothing is left that could use it; otherwise it ends with the lease.
        if gone {
            stopping::give_back(&self.wires.worker).await;
        }
        self.wires.agents.farewell().await;
        self.wires.ended.cancel();
        self.wires.tasks.shutdown().await;
        Ok(())
    }
}

/// Notes how an action ended; `problem` is none where it succeeded.
pub fn note_outcome(local: &mut Local, kind: ActionKind, problem: Option<String>, at: Moment) {
    match problem {
        // A start has succeeded when the server answers, not when it was forked.
        None if matches!(kind, ActionKind::StartStandby | ActionKind::StartPrimary) => {}
        None => {
            local.failures.remove(&kind);
        }
        Some(problem) => {
            let times = local.failures.get(&kind).map_or(0, |f| f.times) + 1;
            local.failures.insert(kind, Failure { problem, times, at });
        }
    }
}
