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
mod readers;
pub mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use proto::proxy::Clients;
use proto::state::SwitchoverStep;
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
use instance::{Board, Instance, Standing, Want};
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
    /// Those that run and do not do what they are told, and why.
    pub refusing: BTreeMap<String, String>,
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
        counted: None,
        written: None,
        file: 0,
        unsynced: false,
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
    /// The PgBouncers that followed when the present hold began, by their places: it is whole when each of them holds.
    /// One that refused before is not waited for, and one that does from then on calls the switchover off.
    counted: Option<(RequestId, BTreeSet<usize>)>,
    written: Option<Rendered>,
    /// Counts the files written.
    file: u64,
    unsynced: bool,
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
        let switchover = order.state.as_deref().and_then(ClusterState::switchover);
        let soon = switchover.is_some_and(|s| s.step == SwitchoverStep::Checkpoint);
        let drain = order.routes.limits.drain;
        let want = Want { file: self.file, entries, hold, soon, drain };
        self.wants.send_if_modified(|last| {
            let changed = *last != want;
            *last = want;
            changed
        });
        self.sync().await;
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
        let replace = move || file::replace(&path, &cluster, (&routes, &text));
        tokio::task::spawn_blocking(replace).await.context("install a file")??;
        self.file += 1;
        self.unsynced = true;
        self.say(&rendered.notes.join("; "));
        self.written = Some(rendered);
        Ok(())
    }

    /// Syncs the file that PgBouncers are being told to load: clients do not wait for the disk. A host that loses its power
    /// before has lost its PgBouncers too, and no member serves in an older epoch any more.
    async fn sync(&mut self) {
        if !std::mem::take(&mut self.unsynced) {
            return;
        }
        let path = self.config.file.clone();
        let synced = tokio::task::spawn_blocking(move || file::sync(&path)).await;
        if let Err(e) = synced.context("sync a file").flatten() {
            self.say(&format!("{e:#}"));
        }
    }

    fn say(&mut self, text: &str) {
        if text != self.said && !text.is_empty() {
            warn!(config = %self.config.file.display(), "{text}");
        }
        self.said = text.to_owned();
    }

    /// Returns the places of the PgBouncers whose clients a hold is about.
    fn counted(&mut self, standings: &[Standing]) -> BTreeSet<usize> {
        let follows = |standing: &Standing| matches!(standing, Standing::Following(_));
        let following = standings.iter().enumerate().filter(|(_, s)| follows(s)).map(|(at, _)| at);
        let following: BTreeSet<usize> = following.collect();
        let Some(holding) = &self.decision.holding else {
            self.counted = None;
            return following;
        };
        match &self.counted {
            Some((request, counted)) if *request == holding.request => counted.clone(),
            // Whoever has just started knows nothing of those that it has not asked.
            Some(_) | None if standings.contains(&Standing::Unasked) => BTreeSet::new(),
            Some(_) | None => {
                self.counted = Some((holding.request.clone(), following.clone()));
                following
            }
        }
    }

    fn told(&mut self, order: &Orders, standings: &[Standing], before: Epoch) -> Told {
        let counted = self.counted(standings);
        let all_obey =
            !standings.iter().any(|s| matches!(s, Standing::Refusing(_) | Standing::Unasked));
        let is_loaded = |s: &Standing| match s {
            Standing::Following(following) => following.file == self.file,
            Standing::Unasked | Standing::Away | Standing::Refusing(_) => true,
        };
        let is_loaded = all_obey && self.file > 0 && standings.iter().all(is_loaded);
        let request = self.decision.holding.as_ref().map(|h| h.request.clone());
        let holds = |at: &usize| match standings.get(*at) {
            Some(Standing::Following(following)) => following.held == request,
            // One that has ended has no clients any more.
            Some(Standing::Away) => true,
            Some(Standing::Unasked | Standing::Refusing(_)) | None => false,
        };
        let is_held = !counted.is_empty() && counted.iter().all(holds);
        let refusing = standings.iter().zip(&self.config.consoles).filter_map(|(s, at)| match s {
            Standing::Refusing(why) => Some((instance::name(at), why.clone())),
            Standing::Unasked | Standing::Away | Standing::Following(_) => None,
        });
        Told {
            epoch: if is_loaded { order.routes.epoch } else { before },
            clients: if counted.is_empty() { Clients::Cut } else { Clients::Held },
            held: request.filter(|_| is_held),
            refusing: refusing.collect(),
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
