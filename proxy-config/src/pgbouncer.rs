//! Keeps PgBouncers in line with the agreed state: where their databases lead to, and who waits during a switchover.
//!
//! One file with the databases, which every PgBouncer of this host includes, and a task for each of them: one that is
//! stuck holds up no other.

pub mod console;
pub mod entries;
pub mod file;
mod header;
pub mod hold;
pub mod instance;
pub mod render;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use proto::proxy::Clients;
use proto::{ClusterState, Epoch, RequestId};
use store::clock;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::presence::Followed;
use crate::route::Routes;
use entries::{OLDEST, Version};
use hold::Decision;
use instance::{Board, Following, Instance, Standing, Want};
use render::{Rendered, Wishes};

/// How soon a file that could not be written is tried again.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The PgBouncers of this host that lead to one cluster.
#[derive(Debug, Clone)]
pub struct PgbouncerConfig {
    /// The file that pgbouncer.ini includes: all of it is written here.
    pub file: PathBuf,
    /// The console of each.
    pub consoles: Vec<tokio_postgres::Config>,
    pub wishes: Wishes,
}

/// What the router has decided, from one and the same state.
#[derive(Debug, Clone, PartialEq)]
pub struct Orders {
    pub routes: Routes,
    /// Absent while none is known that is at least as new as the routes.
    pub state: Option<Box<ClusterState>>,
}

/// What has come of it, for the report of this proxy-config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// The epoch that every running PgBouncer follows.
    pub epoch: Epoch,
    pub clients: Clients,
    pub held: Option<RequestId>,
}

/// Follows the orders until `stop`.
pub async fn follow(
    config: PgbouncerConfig,
    mut orders: watch::Receiver<Option<Orders>>,
    followed: Arc<watch::Sender<Followed>>,
    stop: CancellationToken,
) {
    if let Err(e) = prepare(&config).await {
        warn!(config = %config.file.display(), "{e:#}");
    }
    let (board, wants) =
        (Arc::new(watch::Sender::new(Vec::new())), watch::Sender::new(Want::default()));
    let mut instances = JoinSet::new();
    board.send_replace(vec![Standing::Unasked; config.consoles.len()]);
    for (place, at) in config.consoles.iter().enumerate() {
        let board = Board { standings: board.clone(), place };
        let instance = Instance::new(at.clone(), &config.file);
        instances.spawn(instance.follow(wants.subscribe(), board, stop.clone()));
    }
    let mut standings = board.subscribe();
    let mut keeper = Keeper {
        config,
        decision: Decision::default(),
        written: None,
        file: 0,
        wants,
        said: String::new(),
    };
    loop {
        let order = orders.borrow_and_update().clone();
        let standing = standings.borrow_and_update().clone();
        let mut again = None;
        if let Some(order) = order {
            again = keeper.follow(&order, &standing).await;
            followed.send_if_modified(|all| {
                let last = all.pgbouncer.take().unwrap_or_default();
                let next = keeper.told(&order, &standing, last.epoch);
                let changed = last != next;
                all.pgbouncer = Some(next);
                changed
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = orders.changed() => if changed.is_err() { break },
            changed = standings.changed() => if changed.is_err() { break },
            () = sleep(again) => {}
        }
    }
    while instances.join_next().await.is_some() {}
}

/// Returns the file as it would be written for `routes` and the PgBouncers that run; none without a primary.
pub async fn preview(config: &PgbouncerConfig, routes: &Routes) -> Option<Rendered> {
    let mut known = Vec::new();
    for at in &config.consoles {
        known.extend(Instance::new(at.clone(), &config.file).version().await);
    }
    render::render(&config.wishes, routes, known.into_iter().min().unwrap_or(OLDEST))
}

/// Installs the file for `routes` and has it loaded. Returns what a person should know, a line each.
pub async fn once(config: &PgbouncerConfig, routes: &Routes) -> anyhow::Result<Vec<String>> {
    let file = config.file.display();
    let Some(rendered) = preview(config, routes).await else {
        return Ok(vec![format!("{file} stays as it is: there is no primary to lead to now")]);
    };
    file::install(&config.file, &config.wishes.cluster, (routes, &rendered.text))?;
    let mut lines = rendered.notes;
    for at in &config.consoles {
        let mut instance = Instance::new(at.clone(), &config.file);
        let name = instance::name(at);
        match instance.load_once(rendered.entries.clone()).await {
            Standing::Following(following) => {
                lines.push(format!("PgBouncer {} at {name} follows {file}", following.version));
            }
            Standing::Away | Standing::Unasked => {
                lines.push(format!("{file} is installed; PgBouncer at {name} does not run yet"));
            }
            Standing::Refusing(why) => bail!("PgBouncer at {name}: {why}"),
        }
    }
    Ok(lines)
}

/// Puts a file in place for PgBouncer to start with, where there is none.
async fn prepare(config: &PgbouncerConfig) -> anyhow::Result<()> {
    let (path, wishes) = (config.file.clone(), config.wishes.clone());
    let prepare = move || match file::installed(&path, &wishes.cluster)? {
        Some(_) => Ok(()),
        None => {
            let text = render::empty(&wishes);
            file::install(&path, &wishes.cluster, (&Routes::default(), &text))
        }
    };
    tokio::task::spawn_blocking(prepare).await.context("install a file")?
}

async fn sleep(at_most: Option<Duration>) {
    match at_most {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

struct Keeper {
    config: PgbouncerConfig,
    decision: Decision,
    written: Option<Rendered>,
    /// Counts the files written.
    file: u64,
    wants: watch::Sender<Want>,
    /// The last trouble or notes that were logged.
    said: String,
}

impl Keeper {
    /// Writes the file if it has to be another, and tells the PgBouncers. Returns when to come again at the latest.
    async fn follow(&mut self, order: &Orders, standings: &[Standing]) -> Option<Duration> {
        let now = clock::now();
        let held = self.decision.holding.is_some();
        self.decision = hold::decide(order.state.as_deref(), &self.decision, now);
        if held != self.decision.holding.is_some() {
            info!(holding = ?self.decision.holding, "clients of PgBouncer wait for a switchover");
        }
        let mut again = self.decision.holding.as_ref().map(|h| h.until.since(now));
        // Asked first, so that the first file has what the version allows.
        if !standings.contains(&Standing::Unasked)
            && let Err(e) = self.write(&order.routes, version(standings)).await
        {
            self.say(&format!("{e:#}"));
            again = Some(again.map_or(WRITE_AGAIN_AFTER, |a| a.min(WRITE_AGAIN_AFTER)));
        }
        let entries = self.written.as_ref().map(|w| w.entries.clone()).unwrap_or_default();
        let hold = self.decision.holding.as_ref().map(|h| h.request.clone());
        let want = Want { file: self.file, entries, hold };
        self.wants.send_if_modified(|last| {
            let changed = *last != want;
            *last = want;
            changed
        });
        again
    }

    async fn write(&mut self, routes: &Routes, version: Version) -> anyhow::Result<()> {
        let Some(rendered) = render::render(&self.config.wishes, routes, version) else {
            return Ok(());
        };
        if self.written.as_ref() == Some(&rendered) {
            return Ok(());
        }
        let (path, cluster) = (self.config.file.clone(), self.config.wishes.cluster.clone());
        let (routes, text) = (routes.clone(), rendered.text.clone());
        let install = move || file::install(&path, &cluster, (&routes, &text));
        tokio::task::spawn_blocking(install).await.context("install a file")??;
        self.file += 1;
        self.say(&rendered.notes.join("; "));
        self.written = Some(rendered);
        Ok(())
    }

    fn say(&mut self, text: &str) {
        if text != self.said && !text.is_empty() {
            warn!(config = %self.config.file.display(), "{text}");
        }
        self.said = text.to_owned();
    }

    fn told(&self, order: &Orders, standings: &[Standing], before: Epoch) -> Told {
        let follow = |standing: &Standing| match standing {
            Standing::Following(following) => Some(following.clone()),
            Standing::Unasked | Standing::Away | Standing::Refusing(_) => None,
        };
        let following: Vec<Following> = standings.iter().filter_map(follow).collect();
        let refuses = |s: &Standing| matches!(s, Standing::Refusing(_) | Standing::Unasked);
        let obey = !standings.iter().any(refuses);
        let clients = match obey && !following.is_empty() {
            true => Clients::Held,
            false => Clients::Cut,
        };
        let is_loaded = obey && self.file > 0 && following.iter().all(|f| f.file == self.file);
        let request = self.decision.holding.as_ref().map(|h| h.request.clone());
        let is_held = clients == Clients::Held && following.iter().all(|f| f.held == request);
        Told {
            epoch: if is_loaded { order.routes.epoch } else { before },
            clients,
            held: request.filter(|_| is_held),
        }
    }
}

/// Returns the oldest version that runs, as far as is known.
fn version(standings: &[Standing]) -> Version {
    let known = standings.iter().filter_map(|standing| match standing {
        Standing::Following(following) => Some(following.version),
        Standing::Unasked | Standing::Away | Standing::Refusing(_) => None,
    });
    known.min().unwrap_or(OLDEST)
}
