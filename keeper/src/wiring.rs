//! Starts the tasks around the loop and connects them: each one has one job, and watch channels lie between them.

use std::sync::Arc;

use anyhow::Context;
use nix::sys::signal::Signal;
use proto::{ClusterSpec, MemberReport, Moment};
use store::keys::Keys;
use store::{LeaseId, Store};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::announce::{Announcing, announce};
use crate::cluster::watch_cluster;
use crate::config::Config;
use crate::drill::Drilling;
use crate::echo::{Echo, echo};
use crate::facts::{ClusterView, Facts, Local, Names, Process};
use crate::fencer::{Fencer, FencerCommand, FencerEvent, KeeperCommand, Watched};
use crate::gather::{Pace, gather};
use crate::http::Agents;
use crate::postgres::probe::SqlFacts;
use crate::postgres::settings::{self, Access, Place, Settings};
use crate::pulse::pulse;
use crate::receiver::wake_for_receivers;
use crate::renew::{Renewing, renew};
use crate::report::Identity;
use crate::sign::{Signing, sign};
use crate::startup::Prepared;
use crate::topology::Source;
use crate::view::View;
use crate::worker::{LeaseView, Parts, Worker};
use crate::{
    commit_level, drill, http, kept, onlooker, prerequisites, present, take_over, topology,
};

/// A keeper's tasks, running, and the loop's ends of the channels to them.
pub struct Wires {
    pub identity: Identity,
    pub worker: Arc<Worker>,
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub sql: watch::Receiver<Option<SqlFacts>>,
    pub http: watch::Sender<View>,
    /// The load balancers that ask by agent-check.
    pub agents: Arc<Agents>,
    pub report: watch::Sender<Option<MemberReport>>,
    pub renewed: watch::Receiver<Option<LeaseView>>,
    /// Until when the voters' last sign lets a primary serve whose renewals fail.
    pub signed: watch::Receiver<Option<Moment>>,
    pub pace: watch::Sender<Pace>,
    pub events: mpsc::UnboundedReceiver<FencerEvent>,
    /// Until when a PostgreSQL that was found running may serve.
    pub deadline: Option<Moment>,
    /// Newer keepers that ask for this member.
    pub asked: mpsc::Receiver<take_over::Request>,
    pub tasks: JoinSet<()>,
    /// Ends the tasks.
    pub ended: CancellationToken,
}

/// Attaches to the fencer and starts all tasks.
pub async fn wire(
    config: &Config,
    store: Arc<dyn Store>,
    prepared: Prepared,
) -> anyhow::Result<Wires> {
    let Prepared { binaries, secrets, view, mut files, http, echo: echo_socket } = prepared;
    let (fencer, events, watched) = attach(config).await?;
    let known = files.load()?.context("member files were just written")?;
    let keys = Keys::of(&config.cluster);
    let place = place(config, binaries.major());
    let identity = identity(config, binaries.version());
    let (view_tx, view) = watch::channel(Arc::new(view));
    let (lease_tx, lease) = watch::channel(None);
    let (renewed_tx, renewed) = watch::channel(None);
    let (report, report_rx) = watch::channel(None);
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
    tasks.spawn(kept::keep(config.state_dir.clone(), view.clone(), ended.clone()));
    let (asked_tx, asked) = mpsc::channel(1);
    tasks.spawn(take_over::listen(config.state_dir.clone(), asked_tx, ended.clone()));
    let announcing = Announcing {
        store: store.clone(),
        keys: keys.clone(),
        member: config.member.clone(),
        incarnation: known.incarnation.clone(),
        report: report_rx,
        lease: lease.clone(),
        view: view.clone(),
    };
    tasks.spawn(announce(announcing, ended.clone()));
    let local = found(&place, &view.borrow(), &watched);
    settle(&fencer, &watched).await;
    let parts = Parts { place, binaries, keys, store, secrets, fencer, view: view.clone(), lease };
    let worker = Arc::new(Worker::new(parts, local, files));
    let (signed_tx, signed) = watch::channel(None);
    let signing = Signing { worker: worker.clone(), renewed: renewed.clone(), signed: signed_tx };
    tasks.spawn(sign(signing, ended.clone()));
    let (pace, pace_rx) = watch::channel(Pace::Eager);
    let sql = question(&mut tasks, (&worker, config), pace_rx, &ended);
    let socket = UdpSocket::from_std(echo_socket).context("take the echo's socket")?;
    tasks.spawn(echo(Echo { worker: worker.clone(), socket, sql: sql.clone() }, ended.clone()));
    let (http_tx, http_rx) = watch::channel(first_view(config, &identity, &worker, &view.borrow()));
    let agents = Arc::new(Agents::default());
    let answers = (http_rx, agents.clone(), routes(config, &view));
    tasks.spawn(serve(TcpListener::from_std(http)?, answers, ended.clone()));
    Ok(Wires {
        identity,
        worker,
        view,
        sql,
        http: http_tx,
        agents,
        report,
        renewed,
        signed,
        pace,
        events,
        deadline: watched.deadline,
        asked,
        tasks,
        ended,
    })
}

/// Starts the tasks that ask the running PostgreSQL, and the one that does to it what drills want.
fn question(
    tasks: &mut JoinSet<()>,
    (worker, config): (&Arc<Worker>, &Config),
    pace: watch::Receiver<Pace>,
    ended: &CancellationToken,
) -> watch::Receiver<Option<SqlFacts>> {
    let (facts, sql) = watch::channel(None);
    tasks.spawn(gather(worker.clone(), pace, facts, ended.clone()));
    tasks.spawn(pulse(worker.clone(), sql.clone(), ended.clone()));
    tasks.spawn(onlooker::watch(worker.clone(), sql.clone(), ended.clone()));
    tasks.spawn(onlooker::visit(worker.clone(), ended.clone()));
    tasks.spawn(wake_for_receivers(worker.clone(), sql.clone(), ended.clone()));
    tasks.spawn(commit_level::follow(worker.clone(), ended.clone()));
    tasks.spawn(prerequisites::follow(worker.clone(), ended.clone()));
    let drilling = Drilling::new(worker.clone(), config.refused_drills.clone());
    tasks.spawn(drill::carry_out(drilling, ended.clone()));
    sql
}

/// Finds the fencer, or starts one, and tells it whether and how to start this keeper again.
async fn attach(
    config: &Config,
) -> anyhow::Result<(Fencer, mpsc::UnboundedReceiver<FencerEvent>, Watched)> {
    let attached =
        Fencer::attach(&FencerCommand::own(), &config.state_dir, &config.data_dir).await?;
    let command = config.restarted_by_fencer.then(KeeperCommand::own).transpose()?;
    attached.0.restart_by(command);
    Ok(attached)
}

pub use proto::spec::UNRESPONSIVE_AFTER;

/// Puts together what is known of this member.
pub fn facts(config: &Config, worker: &Worker, sql: Option<SqlFacts>) -> Facts {
    let mut local = worker.local();
    local.etcd_away = worker.etcd_is_away(store::clock::now());
    let is_running = matches!(local.process, Process::Running { .. });
    let now = store::clock::now();
    let unresponsive_after = worker.spec().unresponsive_after;
    Facts {
        member: config.member.clone(),
        files: worker.files(),
        data: present::data(config),
        sql: sql.filter(|_| is_running),
        known: local
            .last_answer
            .filter(|(_, at)| now.since(*at) < unresponsive_after)
            .map(|(s, _)| s),
        local,
        lease: worker.lease.borrow().map(|lease| lease.id),
    }
}

fn place(config: &Config, major: u32) -> Place {
    Place {
        cluster: config.cluster.clone(),
        member: config.member.clone(),
        data_dir: config.data_dir.clone(),
        state_dir: config.state_dir.clone(),
        host: config.listen.host.clone(),
        port: config.listen.port,
        major,
        tls: config.tls.clone(),
    }
}

fn identity(config: &Config, postgres_version: u32) -> Identity {
    Identity {
        postgres_version,
        postgres_address: config.listen.to_string(),
        http_address: config.http.to_string(),
        zone: config.zone.clone(),
        started: store::clock::wall(),
    }
}

/// What an earlier keeper has left: a PostgreSQL that runs under the fencer, and its settings.
pub fn first_local(settings: Option<Settings>, watched: &Watched) -> Local {
    let process = match &watched.postmaster {
        Some(postmaster) => Process::Running { pid: postmaster.pid },
        // Children outlive their postmaster, and a PostgreSQL its fencer, for a moment in which they still serve.
        None if watched.ending || !watched.strays.is_empty() => {
            Process::Exited { noticed: store::clock::wall(), gone: false }
        }
        None => Process::None,
    };
    let names = match &settings {
        Some(s) if s.standby_names == proto::cfg::unsatisfiable_names() => match s.access {
            // Of this server's start: it has never had other names.
            Access::Closed => Names::Impossible,
            Access::Open => Names::Closed,
        },
        Some(_) | None => Names::Unproven,
    };
    let fence_way = Some(watched.way);
    Local { process, fence_way, settings, names, ..Local::default() }
}

/// Returns what an earlier keeper has left. The settings of a running PostgreSQL are written anew: this keeper may have been
/// started with another way to reach other members. They are read with the signal that follows.
fn found(place: &Place, view: &ClusterView, watched: &Watched) -> Local {
    let accepted = settings::accepted(place);
    let local = Local { accepted, ..first_local(settings::installed(place), watched) };
    write_anew(place, view, &local);
    local
}

fn write_anew(place: &Place, view: &ClusterView, local: &Local) {
    let (Process::Running { .. }, Some(spec), Some(settings), Some(accepted)) =
        (local.process, &view.spec, &local.settings, &local.accepted)
    else {
        return;
    };
    let spec = ClusterSpec { postgres: accepted.clone(), ..spec.clone() };
    if let Err(error) = settings::install(place, &spec, settings) {
        tracing::warn!(error = format!("{error:#}"), "write the settings anew");
    }
}

/// Brings what an earlier keeper has left to a known end: a change of settings that it wrote and did not signal, or
/// processes that no fencer has started. *Gone* follows for the latter.
async fn settle(fencer: &Fencer, watched: &Watched) {
    let done = match &watched.postmaster {
        Some(_) if !watched.ending => fencer.signal(Signal::SIGHUP).await,
        None if !watched.ending && !watched.strays.is_empty() => fencer.fence().await.map(drop),
        Some(_) | None => Ok(()),
    };
    if let Err(error) = done {
        tracing::warn!(%error, "settle what an earlier keeper has left");
    }
}

/// What is answered before the loop has looked at anything.
fn first_view(
    config: &Config,
    identity: &Identity,
    worker: &Worker,
    cluster: &ClusterView,
) -> View {
    present::first_view(identity, cluster, &facts(config, worker, None))
}

/// Returns what is answered on the keeper's port of the cluster as a whole.
fn routes(config: &Config, view: &watch::Receiver<Arc<ClusterView>>) -> axum::Router {
    topology::routes(Source { cluster: config.cluster.clone(), view: view.clone() })
}

async fn serve(
    listener: TcpListener,
    (view, agents, more): (watch::Receiver<View>, Arc<Agents>, axum::Router),
    stop: CancellationToken,
) {
    if let Err(error) = http::serve(listener, view, agents, more, stop).await {
        tracing::error!(%error, "serve HTTP");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> Watched {
        Watched {
            protocol: 1,
            fencer_pid: 1,
            data_dir: "/data".into(),
            postmaster: None,
            deadline: None,
            ending: false,
            strays: vec![],
            last_exit: None,
            way: crate::fencer::FenceWay::Processes,
        }
    }

    #[test]
    fn what_is_left_of_a_dead_postgres_is_not_taken_for_nothing() {
        assert!(first_local(None, &watched()).process.is_gone());
        let dying = Watched { ending: true, ..watched() };
        assert!(!first_local(None, &dying).process.is_gone(), "its children may still serve");
        let strays = Watched { strays: vec![7], ..watched() };
        assert!(!first_local(None, &strays).process.is_gone(), "its fencer has died");
    }

    #[test]
    fn a_restarted_keeper_knows_a_list_that_nobody_satisfies_when_it_finds_one() {
        let closed = Settings { access: Access::Closed, ..Settings::cut_off() };
        assert_eq!(first_local(Some(closed.clone()), &watched()).names, Names::Impossible);
        let open = Settings { access: Access::Open, ..closed };
        assert_eq!(first_local(Some(open), &watched()).names, Names::Closed);
        let names = Settings { standby_names: "ANY 1 (\"b.e2\")".into(), ..Settings::cut_off() };
        assert_eq!(first_local(Some(names), &watched()).names, Names::Unproven);
    }
}
