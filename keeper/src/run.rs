//! The shell: wires the tasks together and turns the loop. Gather, decide, do; woken by events, never by polling.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use proto::{MemberReport, Moment, WallTime};
use store::keys::Keys;
use store::{LeaseId, Store};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::action::{Action, ActionKind, Hold};
use crate::announce::{Announcing, announce};
use crate::cluster::watch_cluster;
use crate::config::Config;
use crate::facts::{ClusterView, Facts, Failure, Local, Process};
use crate::fencer::{Fencer, FencerCommand, FencerEvent};
use crate::gather::{Pace, gather};
use crate::postgres::probe::SqlFacts;
use crate::postgres::settings::{self, Place};
use crate::reconcile::reconcile;
use crate::renew::{Renewal, Renewing, renew};
use crate::report::Identity;
use crate::startup::{self, Prepared};
use crate::view::View;
use crate::worker::{LeaseView, Parts, Worker};
use crate::{http, present, worker};

/// How long facts are asked for eagerly after something changed.
const BUSY_FOR: Duration = Duration::from_secs(2);

/// Without any event the loop turns this often, for what only time changes.
const IDLE_TURN: Duration = Duration::from_secs(1);

/// Runs a keeper until `stop`; then PostgreSQL is stopped and the keeper's keys are given back.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let store: Arc<dyn Store> = Arc::new(store::etcd::EtcdStore::connect(&config.etcd).await?);
    let prepared = startup::prepare(&config, store.as_ref()).await?;
    Shell::start(config, store, prepared).await?.turn(stop).await
}

/// A running keeper.
pub struct Shell {
    pub config: Config,
    pub identity: Identity,
    pub worker: Arc<Worker>,
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub sql: watch::Receiver<Option<SqlFacts>>,
    pub http: watch::Sender<View>,
    pub serve_until: Option<Moment>,
    report: watch::Sender<Option<MemberReport>>,
    renewed: watch::Receiver<Option<Renewal>>,
    pace: watch::Sender<Pace>,
    events: mpsc::UnboundedReceiver<FencerEvent>,
    running: Option<Action>,
    actions: JoinSet<anyhow::Result<()>>,
    /// Facts asked for before this moment are from before the last action.
    settled: Moment,
    busy_until: Moment,
    last_decision: Option<Action>,
    tasks: JoinSet<()>,
    /// Ends the tasks, after the loop has ended.
    ended: CancellationToken,
}

impl Shell {
    async fn start(
        config: Config,
        store: Arc<dyn Store>,
        prepared: Prepared,
    ) -> anyhow::Result<Self> {
        let Prepared { binaries, secrets, view, mut files, http } = prepared;
        let keys = Keys::of(&config.cluster);
        let place = Place {
            cluster: config.cluster.clone(),
            member: config.member.clone(),
            data_dir: config.data_dir.clone(),
            state_dir: config.state_dir.clone(),
            host: config.listen.host.clone(),
            port: config.listen.port,
            major: binaries.major(),
        };
        let (fencer, events, watched) =
            Fencer::attach(&FencerCommand::own(), &config.state_dir, &config.data_dir).await?;
        let known = files.load()?.context("member files were just written")?;
        let local = Local {
            process: watched
                .postmaster
                .as_ref()
                .map_or(Process::None, |p| Process::Running { pid: p.pid }),
            settings: settings::installed(&place),
            ..Local::default()
        };
        let (view_tx, view) = watch::channel(Arc::new(view));
        let (lease_tx, lease) = watch::channel(None::<LeaseView>);
        let (renewed_tx, renewed) = watch::channel(None);
        let (report, report_rx) = watch::channel(None);
        let identity = Identity {
            postgres_version: binaries.version(),
            postgres_address: config.listen.to_string(),
            http_address: config.http.to_string(),
            zone: config.zone.clone(),
            started: store::clock::wall(),
        };
        let ended = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let renewing = Renewing {
            store: store.clone(),
            keys: keys.clone(),
            view: view_tx.clone(),
            lease: lease_tx,
            renewed: renewed_tx,
        };
        tasks.spawn(renew(renewing, known.lease_id.map(LeaseId), ended.clone()));
        tasks.spawn(watch_cluster(store.clone(), keys.clone(), view_tx, ended.clone()));
        let announcing = Announcing {
            store: store.clone(),
            keys: keys.clone(),
            member: config.member.clone(),
            incarnation: known.incarnation.clone(),
            report: report_rx,
            lease: lease.clone(),
        };
        tasks.spawn(announce(announcing, ended.clone()));
        let parts = Parts { local, files };
        let worker = Arc::new(Worker::new(
            place,
            binaries,
            (keys, store),
            secrets,
            fencer,
            (view.clone(), lease),
            parts,
        ));
        let (pace, pace_rx) = watch::channel(Pace::Eager);
        let (sql_tx, sql) = watch::channel(None);
        tasks.spawn(gather(worker.clone(), pace_rx, sql_tx, ended.clone()));
        let facts = facts(&config, &worker, None);
        let (http_tx, http_rx) =
            watch::channel(present::first_view(&identity, &view.borrow(), &facts));
        let listener = tokio::net::TcpListener::from_std(http).context("take the HTTP listener")?;
        let until = ended.clone();
        tasks.spawn(async move {
            if let Err(error) = http::serve(listener, http_rx, until).await {
                tracing::error!(%error, "serve HTTP");
            }
        });
        let now = store::clock::now();
        Ok(Self {
            config,
            identity,
            worker,
            view,
            sql,
            http: http_tx,
            serve_until: watched.deadline,
            report,
            renewed,
            pace,
            events,
            running: None,
            actions: JoinSet::new(),
            settled: now,
            busy_until: now + BUSY_FOR,
            last_decision: None,
            tasks,
            ended,
        })
    }

    async fn turn(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let changed = self.worker.changed.clone();
        loop {
            self.decide().await;
            tokio::select! {
                () = stop.cancelled() => break,
                _ = self.view.changed() => {}
                _ = self.sql.changed() => {}
                _ = self.renewed.changed() => self.renewed(),
                () = changed.notified() => {}
                Some(event) = self.events.recv() => self.fencer_says(event)?,
                Some(done) = self.actions.join_next() => self.action_ended(done),
                () = tokio::time::sleep(IDLE_TURN) => {}
            }
        }
        self.shut_down().await
    }

    /// Gathers, decides, and offers the decision to the worker.
    async fn decide(&mut self) {
        let now = store::clock::now();
        let view = self.view.borrow_and_update().clone();
        let sql = self.sql.borrow_and_update().clone();
        let facts = facts(&self.config, &self.worker, sql);
        present::note_rejoin(&self.worker, &view, &facts);
        self.publish(&view, &facts);
        let stale = facts.sql.as_ref().is_some_and(|s| s.asked < self.settled);
        if !(stale && self.running.is_none()) {
            let action = reconcile(&view, &facts, now);
            self.offer(action, now).await;
        }
        let pace = if now < self.busy_until { Pace::Eager } else { Pace::Steady };
        self.pace.send_if_modified(|known| std::mem::replace(known, pace) != pace);
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
        let worker = self.worker.clone();
        self.running = Some(action.clone());
        self.actions.spawn(async move { worker.perform(&action).await });
    }

    /// Remembers the state that this member has settled on, so that a store that was set back is recognised.
    fn note_state_when_idle(&self, action: &Action) {
        let idle =
            matches!(action, Action::Hold(Hold::Following | Hold::Leading | Hold::Sealed(_)));
        if idle && self.running.is_none() {
            let known = self.view.borrow().state.as_ref().map(|s| s.number);
            if known.is_some_and(|number| number > self.worker.files().state_number)
                && let Err(error) = self.worker.save(|_| {})
            {
                tracing::error!(error = format!("{error:#}"), "write the member files");
            }
        }
    }

    fn action_ended(&mut self, done: Result<anyhow::Result<()>, tokio::task::JoinError>) {
        let Some(action) = self.running.take() else { return };
        let now = store::clock::now();
        self.settled = now;
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
        self.worker.update(|local| note_outcome(local, kind, problem, now));
    }

    fn fencer_says(&mut self, event: FencerEvent) -> anyhow::Result<()> {
        self.busy_until = store::clock::now() + BUSY_FOR;
        match event {
            FencerEvent::Exited { pid, status, clean, at } => {
                tracing::warn!(pid, status, clean, "PostgreSQL has ended");
                self.process_ended(at, false);
            }
            FencerEvent::Fenced { why, took } => {
                tracing::warn!(
                    ?why,
                    took_ms = took.as_millis() as u64,
                    "the fencer has fenced PostgreSQL"
                );
            }
            FencerEvent::Gone => {
                let noticed = match self.worker.local().process {
                    Process::Exited { noticed, .. } => noticed,
                    Process::None | Process::Running { .. } => store::clock::wall(),
                };
                self.process_ended(noticed, true);
            }
            FencerEvent::Lost => anyhow::bail!("the fencer is gone, and PostgreSQL with it"),
        }
        Ok(())
    }

    fn process_ended(&mut self, noticed: WallTime, gone: bool) {
        self.worker.update(|local| {
            local.process = Process::Exited { noticed, gone };
            local.opened = None;
            local.confirmed = None;
        });
    }

    /// Extends the time for which a primary may serve, after a renewal that read a state which still names it.
    fn renewed(&mut self) {
        let Some(renewal) = *self.renewed.borrow_and_update() else { return };
        let view = self.view.borrow().clone();
        let Some(state) = &view.state else { return };
        let files = self.worker.files();
        let is_mine = state.primary.as_ref() == Some(&self.config.member)
            && state.epoch == files.epoch
            && state.sealing.is_none()
            && files.role == crate::member_files::Role::Primary;
        if is_mine {
            let until = worker::serve_until(renewal.expires, &self.worker.spec());
            self.serve_until = Some(until);
            self.worker.fencer.serve_until(Some(until));
        }
    }

    fn publish(&mut self, view: &ClusterView, facts: &Facts) {
        let problems = present::problems(facts);
        let report = crate::report::report(&self.identity, view, facts, problems);
        self.http.send_replace(present::view(view, facts, report.clone(), self.serve_until));
        self.report.send_if_modified(|known| {
            let modified = known.as_ref() != Some(&report);
            *known = Some(report);
            modified
        });
    }

    /// Stops PostgreSQL, says so, and gives the keys back.
    async fn shut_down(mut self) -> anyhow::Result<()> {
        self.actions.shutdown().await;
        crate::stopping::stop_postgres(&self.worker, &mut self.events).await;
        self.process_ended(store::clock::wall(), true);
        let view = self.view.borrow().clone();
        self.publish(&view, &facts(&self.config, &self.worker, None));
        crate::stopping::give_back(&self.worker).await;
        self.ended.cancel();
        self.tasks.shutdown().await;
        Ok(())
    }
}

fn note_outcome(local: &mut Local, kind: ActionKind, problem: Option<String>, at: Moment) {
    match problem {
        None => {
            local.failures.remove(&kind);
        }
        Some(problem) => {
            let times = local.failures.get(&kind).map_or(0, |f| f.times) + 1;
            local.failures.insert(kind, Failure { problem, times, at });
        }
    }
}

/// Puts together what is known of this member.
fn facts(config: &Config, worker: &Worker, sql: Option<SqlFacts>) -> Facts {
    let local = worker.local();
    let is_running = matches!(local.process, Process::Running { .. });
    Facts {
        member: config.member.clone(),
        files: worker.files(),
        data: present::data(config),
        sql: sql.filter(|_| is_running),
        local,
        lease: worker.lease.borrow().map(|lease| lease.id),
    }
}
