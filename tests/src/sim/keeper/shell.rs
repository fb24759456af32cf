//! The keeper's loop, as the product's shell turns it: gather, decide, do.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::sim::watch;
use keeper::action::{Action, ActionKind, Hold};
use keeper::facts::{ClusterView, Facts, Process};
use keeper::member_files::Role;
use keeper::postgres::probe::SqlFacts;
use keeper::reconcile::reconcile;
use keeper::report::Identity;
use keeper::run::note_outcome;
use keeper::wiring::UNRESPONSIVE_AFTER;
use keeper::worker::{LeaseView, serve_until};
use proto::report::{DataDirectory, RejoinOutcome};

use proto::{MemberReport, Moment, WallTime};
use tokio::sync::{mpsc, oneshot};

use super::worker::{Shared, Versions, Worker};
use super::{follow, handover, promote, prove, rejoin, seal};
use crate::sim::executor::{Micros, ProcId, TaskId};
use crate::sim::fencer::Event;

/// How long facts are asked for eagerly after something changed.
pub const BUSY_FOR: Micros = 2_000_000;
const IDLE_TURN: Micros = 1_000_000;

/// The loop: gather, decide, do.
pub struct Shell {
    pub identity: Identity,
    pub worker: Shared,
    pub proc: ProcId,
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub sql: watch::Receiver<Option<SqlFacts>>,
    pub renewed: watch::Receiver<Option<LeaseView>>,
    pub signed: watch::Receiver<Option<Moment>>,
    pub report: watch::Sender<Option<MemberReport>>,
    pub eager: watch::Sender<bool>,
    pub events: mpsc::UnboundedReceiver<Event>,
    pub serve_until: Option<Moment>,
    pub running: Option<(Action, TaskId)>,
    pub done: Option<oneshot::Receiver<anyhow::Result<()>>>,
    pub busy_until: Micros,
    pub last_decision: Option<Action>,
    /// The facts of the last turn: most turns find nearly the same.
    pub known: Option<(Versions, Facts)>,
}

impl Shell {
    pub async fn turn(mut self) -> anyhow::Result<()> {
        let worker = self.worker.clone();
        loop {
            self.decide();
            tokio::select! {
                biased;
                changed = self.view.changed() => changed?,
                changed = self.sql.changed() => changed?,
                changed = self.renewed.changed() => { changed?; self.renewed(); }
                changed = self.signed.changed() => { changed?; self.signed(); }
                () = worker.changed.notified() => {}
                event = self.events.recv() => match event {
                    Some(event) => self.fencer_says(event),
                    None => anyhow::bail!("the fencer is gone, and PostgreSQL with it"),
                },
                done = ended(&mut self.done) => self.action_ended(done),
                () = worker.sim.sleep(IDLE_TURN) => {}
            }
        }
    }

    fn facts(&mut self) -> Facts {
        let worker = &self.worker;
        let versions = worker.versions.get();
        let mut facts = match self.known.take() {
            Some((known, mut facts)) => {
                if known.local != versions.local {
                    facts.local = worker.local();
                }
                if known.files != versions.files {
                    facts.files = worker.files();
                }
                facts
            }
            None => Facts {
                member: worker.name.clone(),
                files: worker.files(),
                data: DataDirectory::Empty,
                sql: None,
                known: None,
                local: worker.local(),
                lease: None,
            },
        };
        facts.local.etcd_away = worker.etcd_is_away();
        facts.local.last_answer = worker.local.borrow().last_answer;
        let is_running = matches!(facts.local.process, Process::Running { .. });
        let now = worker.host.now();
        let empty = worker.sim.with(|w| w.members[worker.member].disk.data.is_none());
        facts.data = if empty { DataDirectory::Empty } else { DataDirectory::Present };
        facts.sql = self.sql.borrow_and_update().clone().filter(|_| is_running);
        let last = facts.local.last_answer;
        facts.known =
            last.filter(|(_, at)| now.since(*at) < UNRESPONSIVE_AFTER).map(|(server, _)| server);
        facts.lease = worker.lease.borrow().map(|lease| lease.id);
        facts
    }

    fn decide(&mut self) {
        let now = self.worker.host.now();
        let view = self.view.borrow_and_update().clone();
        let versions = self.worker.versions.get();
        let facts = self.facts();
        self.note_replay(&facts, now);
        self.note_rejoin(&view, &facts);
        self.publish(&view, &facts);
        if view.frozen.is_some() != facts.files.frozen {
            if view.frozen.is_none() && !self.worker.sim.mutant("adopted-store-keeps-the-right") {
                self.worker.update(|local| local.right = None);
            }
            self.worker.save(|_| {});
        }
        let stale = facts.sql.as_ref().is_some_and(|s| s.asked < self.worker.settled.get());
        if !(stale && self.running.is_none()) {
            let action =
                self.worker.sim.mutated_action(&view, &facts, now, reconcile(&view, &facts, now));
            self.offer(action, &facts);
        }
        self.known = Some((versions, facts));
        let eager = self.worker.sim.now() < self.busy_until;
        self.eager.send_if_modified(|known| std::mem::replace(known, eager) != eager);
    }

    fn offer(&mut self, action: Action, facts: &Facts) {
        let sim = self.worker.sim.clone();
        if self.last_decision.as_ref() != Some(&action) {
            sim.trace(|| format!("{} decides {action:?}", self.worker.name));
            sim.count_action(&action);
            self.last_decision = Some(action.clone());
            self.busy_until = sim.now() + BUSY_FOR;
        }
        if matches!(action, Action::Hold(_)) {
            self.note_state_when_idle(&action, facts);
            return;
        }
        if let Some((running, task)) = &self.running {
            if !running.yields_to(&action) {
                return;
            }
            sim.trace(|| format!("{} cuts {:?}", self.worker.name, running.kind()));
            sim.cut(*task);
        }
        let (worker, chosen) = (self.worker.clone(), action.clone());
        let (task, done) = sim.call(self.proc, async move { perform(&worker, &chosen).await });
        self.running = Some((action, task));
        self.done = Some(done);
    }

    fn note_state_when_idle(&self, action: &Action, facts: &Facts) {
        let idle =
            matches!(action, Action::Hold(Hold::Following | Hold::Leading | Hold::Sealed(_)));
        if idle && self.running.is_none() {
            let known = self.view.borrow().state.as_ref().map(|s| s.number);
            if known.is_some_and(|number| number > facts.files.state_number) {
                self.worker.save(|_| {});
            }
        }
    }

    fn action_ended(&mut self, done: Result<anyhow::Result<()>, oneshot::error::RecvError>) {
        self.done = None;
        let Some((action, _)) = self.running.take() else { return };
        let now = self.worker.host.now();
        self.worker.settled.set(now);
        self.busy_until = self.worker.sim.now() + BUSY_FOR;
        let problem = match done {
            Ok(Err(error)) => Some(format!("{error:#}")),
            Ok(Ok(())) | Err(_) => None,
        };
        let (name, kind) = (&self.worker.name, action.kind());
        self.worker.sim.trace(|| match &problem {
            Some(problem) => format!("{name} fails in {kind:?}: {problem}"),
            None => format!("{name} has done {kind:?}"),
        });
        self.worker.update(|local| note_outcome(local, kind, problem, now));
    }

    fn fencer_says(&mut self, event: Event) {
        let host = self.worker.host.clone();
        self.busy_until = host.sim.now() + BUSY_FOR;
        match event {
            Event::Exited { at } => {
                if self.worker.local.borrow().last_answer.is_none() {
                    let kind = match self.worker.files().role {
                        Role::Primary => ActionKind::StartPrimary,
                        Role::Standby | Role::None => ActionKind::StartStandby,
                    };
                    let problem = Some("PostgreSQL ended before it answered".to_owned());
                    self.worker.update(|local| note_outcome(local, kind, problem, host.now()));
                }
                self.process_ended(at, false);
            }
            Event::Gone => {
                let noticed = match self.worker.local().process {
                    Process::Exited { noticed, .. } => noticed,
                    Process::None | Process::Running { .. } => host.wall(),
                };
                self.process_ended(noticed, true);
            }
        }
    }

    fn process_ended(&mut self, noticed: WallTime, gone: bool) {
        self.worker.update(|local| {
            local.process = Process::Exited { noticed, gone };
            local.opened = None;
            local.confirmed = None;
        });
    }

    fn renewed(&mut self) {
        let Some(renewal) = *self.renewed.borrow_and_update() else { return };
        let view = self.view.borrow().clone();
        let Some(state) = &view.state else { return };
        let files = self.worker.files();
        let is_mine = state.primary.as_ref() == Some(&self.worker.name)
            && state.epoch == files.epoch
            && (state.sealing.is_none() || self.worker.sim.mutant("sealed-primary-serves-on"))
            && files.role == Role::Primary;
        let is_mine = is_mine
            || self.worker.sim.mutant("keepalive-alone-renews") && files.role == Role::Primary;
        self.serve_until = is_mine.then(|| serve_until(renewal.expires, &self.worker.spec()));
        if let Some(until) = self.serve_until {
            self.worker.fencer.lease_at_most(self.worker.spec().lease_ttl);
            self.worker.fencer.serve_until(Some(until));
        }
    }

    fn signed(&mut self) {
        let Some(until) = *self.signed.borrow_and_update() else { return };
        let is_later = self.serve_until.is_none_or(|known| until > known);
        if is_later && self.worker.local.borrow().opened.is_some() {
            self.serve_until = Some(until);
            self.worker.fencer.serve_until(Some(until));
        }
    }

    fn publish(&mut self, view: &ClusterView, facts: &Facts) {
        let problems = BTreeSet::new();
        let report = keeper::report::report(&self.identity, view, facts, problems);
        self.report.send_if_modified(|known| {
            let modified = known.as_ref() != Some(&report);
            *known = Some(report);
            modified
        });
    }

    fn note_replay(&self, facts: &Facts, now: Moment) {
        let Some(seal) = facts.local.seal.filter(|s| s.replayed < s.position.lsn) else { return };
        let sql = facts.sql.as_ref().filter(|s| s.in_recovery);
        let Some(replayed) = sql.and_then(|s| s.replay_lsn) else { return };
        if replayed > seal.replayed && now.since(facts.local.replay_told).as_millis() >= 1000 {
            self.worker.update(|local| {
                local.replay_told = now;
                if let Some(seal) = &mut local.seal {
                    seal.replayed = replayed.min(seal.position.lsn);
                }
            });
        }
    }

    fn note_rejoin(&self, view: &ClusterView, facts: &Facts) {
        let Some(rejoin) = &facts.local.rejoin else { return };
        if !matches!(rejoin.outcome, RejoinOutcome::Running { .. }) || !facts.files.complete {
            return;
        }
        let receiver = facts.sql.as_ref().and_then(|s| s.receiver.as_ref());
        let timeline = view.state.as_ref().map(|s| s.timeline);
        if receiver.is_some_and(|r| r.streaming && Some(r.timeline) == timeline) {
            let ended = self.worker.host.wall();
            self.worker.update(|local| {
                if let Some(rejoin) = &mut local.rejoin {
                    rejoin.outcome = RejoinOutcome::Done { ended };
                }
            });
        }
    }
}

async fn ended(
    done: &mut Option<oneshot::Receiver<anyhow::Result<()>>>,
) -> Result<anyhow::Result<()>, oneshot::error::RecvError> {
    match done {
        Some(done) => done.await,
        None => std::future::pending().await,
    }
}

async fn perform(worker: &Worker, action: &Action) -> anyhow::Result<()> {
    match action {
        Action::Hold(_) => Ok(()),
        Action::TakeSettings(wanted) => {
            worker.sim.sleep(20_000).await;
            worker.sim.with(|w| w.members[worker.member].disk.accepted = Some(wanted.clone()));
            worker.update(|local| local.accepted = Some(wanted.clone()));
            match worker.is_running() {
                true => worker.reload(worker.settings()).await,
                false => Ok(()),
            }
        }
        Action::Fence(_) => worker.fence().await,
        Action::Found => rejoin::found(worker).await,
        Action::Seal { sealing } => seal::seal(worker, *sealing).await,
        Action::Scan => seal::scan(worker).await,
        Action::StartStandby { follow, name } => follow::start(worker, follow, *name).await,
        Action::StartSealed { position } => follow::start_sealed(worker, *position).await,
        Action::TakeRight { epoch, restart } => promote::take_right(worker, *epoch, *restart).await,
        Action::Repoint { follow, name } => follow::repoint(worker, follow, *name).await,
        Action::MarkComplete { .. } => {
            follow::mark_complete(worker);
            Ok(())
        }
        Action::Promote(lead) => promote::promote(worker, lead).await,
        Action::StartPrimary { restart, .. } => promote::start_primary(worker, *restart).await,
        Action::StartAlone(_) => promote::start_alone(worker).await,
        Action::Open(lead) => promote::open(worker, lead).await,
        Action::OpenBySigns(lead) => promote::open_by_signs(worker, lead).await,
        Action::PrepareHandOver { request, .. } => handover::prepare(worker, request).await,
        Action::HandOver(order) => handover::hand_over(worker, order).await,
        Action::Confirm { cfg, proof } => prove::confirm(worker, cfg, *proof).await,
        Action::KeepSlots { members, primary } => {
            worker.admin()?.sql(|_| Some(())).await?;
            let settings = worker.settings();
            if settings.eager {
                let settings = keeper::postgres::settings::Settings { eager: false, ..settings };
                worker.reload(settings).await?;
            }
            worker.update(|local| local.slots_for = Some((members.clone(), *primary)));
            Ok(())
        }
        Action::Compare { .. } | Action::DropUnreplayed(_) => {
            anyhow::bail!("the model's disks show only where their WAL ends")
        }
        Action::Rewind { follow, reason } => rejoin::rewind(worker, follow, reason).await,
        Action::Copy { follow, from, reason } => {
            rejoin::copy(worker, follow, from.as_ref(), reason).await
        }
    }
}
