//! A simulated keeper: the product's `reconcile` and `report`, the shell's loop around them, and its actions on the
//! modelled PostgreSQL. Each action can be cut at every await, as the product's can.

mod follow;
mod handover;
mod probe;
mod promote;
mod prove;
mod rejoin;
mod seal;
mod shell;
mod tasks;
mod worker;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::sim::watch;
use keeper::facts::{ClusterView, Local, Names, Process};
use keeper::member_files::{MemberFiles, Role};
use keeper::postgres::probe::SqlFacts;
use keeper::report::Identity;
use proto::{Epoch, Incarnation, WallTime};
use store::LeaseId;
use tokio::sync::Notify;

use super::executor::{Node, ProcId, Sim};
use super::fencer::{Client, Watched};
use super::net::Host;
use shell::{BUSY_FOR, Shell};
use worker::{Shared, Worker};

/// A running keeper, as the world sees it.
#[derive(Clone)]
pub struct Keeper {
    pub proc: ProcId,
    worker: Shared,
    sql: watch::Receiver<Option<SqlFacts>>,
}

impl Sim {
    /// Starts a keeper; a service manager does so again after it ended.
    pub fn keeper_start(&self, member: usize) {
        let proc = self.start_process(Node::Member(member));
        let sim = self.clone();
        self.with(|w| w.members[member].keeper_proc = Some(proc));
        self.spawn(proc, async move {
            let outcome = live(&sim, member, proc).await;
            if let Err(error) = outcome {
                sim.trace(|| format!("keeper {member} ends: {error:#}"));
            }
            sim.keeper_dies(member);
        });
    }

    /// The keeper ends. It is started again after a second, unless its machine is down.
    pub fn keeper_dies(&self, member: usize) {
        let proc = self.with(|w| {
            w.members[member].keeper = None;
            w.members[member].keeper_proc.take()
        });
        let at = self.now() + 1_000_000;
        self.at(at, move |sim| {
            let due = sim.with(|w| w.members[member].up && w.members[member].keeper_proc.is_none());
            if due {
                sim.keeper_start(member);
            }
        });
        if let Some(proc) = proc {
            self.kill(proc);
        }
    }

    /// Whether the keeper of `member` answers an echo for `epoch`, and now.
    pub async fn echo_answers(&self, member: usize, epoch: Epoch) -> bool {
        let Some(keeper) = self.with(|w| w.members[member].keeper.clone()) else { return false };
        let (of, sql) = (keeper.worker.clone(), keeper.sql.clone());
        let asked = self.call(keeper.proc, async move { is_there(&of, &sql, epoch) });
        asked.1.await.unwrap_or(false)
    }

    /// The same with the ways of question and answer, where all three take no time that matters; else `None`.
    pub fn echo_answers_at_once(&self, from: Node, member: usize, epoch: Epoch) -> Option<bool> {
        if !self.is_near(from, Node::Member(member)) {
            return None;
        }
        let keeper = self.with(|w| w.members[member].keeper.clone())?;
        self.runs(keeper.proc).then(|| is_there(&keeper.worker, &keeper.sql, epoch))
    }

    /// Writes member files; never with a number that goes down.
    pub fn put_files(&self, member: usize, files: MemberFiles) {
        let before = self.with(|w| {
            w.moves.notify_waiters();
            w.members[member].disk.files.replace(files.clone())
        });
        self.oracle_files(member, before.as_ref(), &files);
    }
}

fn is_there(of: &Worker, sql: &watch::Receiver<Option<SqlFacts>>, epoch: Epoch) -> bool {
    let opened = of.local.borrow().opened.is_some_and(|o| o.epoch == epoch);
    let now = of.host.now();
    opened && sql.borrow().as_ref().is_some_and(|s| now.since(s.asked).as_millis() < 500)
}

fn first_files(sim: &Sim, member: usize) -> MemberFiles {
    let (files, empty, name) = sim.with(|w| {
        let m = &w.members[member];
        (m.disk.files.clone(), m.disk.data.is_none(), m.name.clone())
    });
    let forgets = sim.with(|w| w.members[member].disk.forgets.take());
    let Some(mut files) = files else {
        let files = MemberFiles::new(name, Incarnation::from_random(sim.fresh()));
        sim.put_files(member, files.clone());
        return files;
    };
    if let Some(before) = forgets {
        files.promise = before.max(files.epoch);
        sim.with(|w| w.members[member].disk.files = Some(files.clone()));
    }
    if empty && files.complete {
        files.complete = false;
        files.role = Role::None;
        sim.put_files(member, files.clone());
    }
    files
}

/// One life of a keeper process.
async fn live(sim: &Sim, member: usize, proc: ProcId) -> anyhow::Result<()> {
    let host = sim.host(Node::Member(member));
    host.sleep(Duration::from_millis(30)).await;
    let read = what_was_agreed(&host, member).await?;
    let files = first_files(sim, member);
    let first = keeper::cluster::believed(read, &files);
    let (fencer, events, watched) = Client::attach(sim, member).await?;
    let (view_tx, view) = watch::channel(Arc::new(first));
    let (lease_tx, lease) = watch::channel(None);
    let (renewed_tx, renewed) = watch::channel(None);
    let (signed_tx, signed) = watch::channel(None);
    let (report_tx, report) = watch::channel(None);
    let (sql_tx, sql) = watch::channel(None);
    let (eager_tx, eager) = watch::channel(true);
    let local = first_local(&host, member, &watched);
    if watched.pid.is_some() && !watched.ending {
        let _ = fencer.hang_up().await;
    }
    let worker = Rc::new(Worker {
        sim: sim.clone(),
        host: host.clone(),
        member,
        name: files.member.clone(),
        keys: sim.with(|w| w.keys.clone()),
        view: view.clone(),
        lease: lease.clone(),
        fencer,
        begun: host.now(),
        changed: Notify::new(),
        voters_follow: Notify::new(),
        local: RefCell::new(local),
        versions: Cell::default(),
        settled: Cell::new(host.now()),
    });
    let renewing = tasks::Renewing {
        host: host.clone(),
        member,
        view: view_tx.clone(),
        lease: lease_tx,
        renewed: renewed_tx,
    };
    sim.spawn(proc, tasks::renew(renewing, files.lease_id.map(LeaseId)));
    sim.spawn(proc, tasks::watch_cluster(host.clone(), view_tx));
    sim.spawn(proc, tasks::keep_copy(host.clone(), member, view.clone()));
    sim.spawn(proc, tasks::announce(worker.clone(), report, lease));
    sim.spawn(proc, tasks::gather(worker.clone(), eager, sql_tx));
    sim.spawn(proc, tasks::sign(worker.clone(), renewed.clone(), signed_tx));
    sim.spawn(proc, tasks::echo(worker.clone(), sql.clone()));
    let keeper = Keeper { proc, worker: worker.clone(), sql: sql.clone() };
    sim.with(|w| w.members[member].keeper = Some(keeper));
    let shell = Shell {
        identity: identity(member, host.wall()),
        worker,
        proc,
        view,
        sql,
        renewed,
        signed,
        report: report_tx,
        eager: eager_tx,
        events,
        serve_until: watched.deadline,
        running: None,
        done: None,
        busy_until: sim.now() + BUSY_FOR,
        last_decision: None,
        known: None,
    };
    shell.turn().await
}

/// The cluster as etcd shows it, or this member's copy where etcd does not answer at once. A first start needs etcd.
async fn what_was_agreed(host: &Host, member: usize) -> anyhow::Result<ClusterView> {
    let keys = host.sim.with(|w| w.keys.clone());
    let asked = host.sim.etcd_read(host.node, keys.prefix());
    let copy = host.sim.with(|w| w.members[member].disk.copy.clone());
    let snapshot = match copy {
        None => asked.await?,
        Some(copy) => match host.within(Duration::from_millis(500), asked).await {
            Some(Ok(snapshot)) => snapshot,
            Some(Err(_)) | None => return Ok(copy),
        },
    };
    Ok(keeper::cluster::view_of(&keys, &snapshot))
}

fn identity(member: usize, started: WallTime) -> Identity {
    Identity {
        postgres_version: 150_018,
        postgres_address: format!("10.0.0.{member}:5432"),
        http_address: format!("10.0.0.{member}:8080"),
        zone: None,
        started,
    }
}

/// What an earlier keeper has left.
fn first_local(host: &Host, member: usize, watched: &Watched) -> Local {
    let (settings, accepted) = host.sim.with(|w| {
        let disk = &w.members[member].disk;
        (disk.settings.clone(), disk.accepted.clone())
    });
    let process = match watched.pid {
        Some(pid) => Process::Running { pid },
        None if watched.ending => Process::Exited { noticed: host.wall(), gone: false },
        None => Process::None,
    };
    let impossible =
        settings.as_ref().is_some_and(|s| s.standby_names == proto::cfg::unsatisfiable_names());
    let names = if impossible { Names::Impossible } else { Names::Unproven };
    Local { process, settings, accepted, names, ..Local::default() }
}
