//! What the simulated keeper's actions share: the same state as the product's worker has, on the modelled disk.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::sim::watch;
use anyhow::{Context, bail};
use keeper::facts::{ClusterView, Local, Process};
use keeper::member_files::MemberFiles;
use keeper::postgres::settings::Settings;
use keeper::worker::{LeaseView, serve_until};
use proto::{ClusterSpec, ClusterState, Epoch, MemberName, Moment};
use store::keys::Keys;
use tokio::sync::Notify;

use crate::sim::executor::{Micros, Node, Sim};
use crate::sim::fencer::Client;
use crate::sim::net::Host;
use crate::sim::postgres::Pg;

/// How often a condition is looked at that ends within milliseconds.
pub const SOON: Micros = 1_000;

pub struct Worker {
    pub sim: Sim,
    pub host: Host,
    pub member: usize,
    pub name: MemberName,
    pub keys: Keys,
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub lease: watch::Receiver<Option<LeaseView>>,
    pub fencer: Client,
    pub begun: Moment,
    pub changed: Notify,
    pub voters_follow: Notify,
    pub local: RefCell<Local>,
    /// How often `local` and the member files were changed: what was copied from them before is as good until then.
    pub versions: Cell<Versions>,
    /// When the last action ended: answers to what was asked before tell of what was before.
    pub settled: Cell<Moment>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Versions {
    pub local: u64,
    pub files: u64,
}

impl Worker {
    pub fn node(&self) -> Node {
        Node::Member(self.member)
    }

    pub fn local(&self) -> Local {
        self.local.borrow().clone()
    }

    /// Changes what is known, and wakes whoever decides.
    pub fn update(&self, change: impl FnOnce(&mut Local)) {
        change(&mut self.local.borrow_mut());
        self.note_change();
    }

    /// Wakes whoever decides, because of something in `local`.
    pub fn note_change(&self) {
        let versions = self.versions.get();
        self.versions.set(Versions { local: versions.local + 1, ..versions });
        self.changed.notify_one();
    }

    pub fn files(&self) -> MemberFiles {
        let files = self.sim.with(|w| w.members[self.member].disk.files.clone());
        files.expect("the member files were written when the keeper started")
    }

    /// Changes the member files; they are on disk when this returns.
    pub fn save(&self, change: impl FnOnce(&mut MemberFiles)) {
        let mut files = self.files();
        change(&mut files);
        let view = self.view.borrow().clone();
        if let Some(state) = view.state.as_ref().filter(|s| s.number >= files.state_number) {
            files.state_number = state.number;
            files.etcd_cluster_id = Some(state.etcd_cluster_id.clone());
            files.acted_on = Some(state.clone());
        }
        files.frozen = view.frozen.is_some();
        files.lease_id = self.lease.borrow().map(|lease| lease.id.0).or(files.lease_id);
        self.sim.put_files(self.member, files);
        let versions = self.versions.get();
        self.versions.set(Versions { files: versions.files + 1, ..versions });
        self.changed.notify_one();
    }

    /// Promises to serve and follow nothing below `epoch`.
    pub fn promise(&self, epoch: Epoch) {
        if self.sim.mutant("promise-not-durable") {
            let before = self.files().promise;
            self.sim.with(|w| w.members[self.member].disk.forgets.get_or_insert(before).to_owned());
        }
        self.save(|files| files.promise = files.promise.max(epoch));
    }

    /// Returns whether no renewal has reached etcd for `lease_ttl`.
    pub fn etcd_is_away(&self) -> bool {
        let ttl = self.view.borrow().spec.as_ref().map_or(Duration::from_secs(4), |s| s.lease_ttl);
        let renewed = self.lease.borrow().map(|lease| lease.expires - ttl);
        self.host.now().since(renewed.unwrap_or(self.begun).max(self.begun)) >= ttl
    }

    pub fn is_running(&self) -> bool {
        matches!(self.local.borrow().process, Process::Running { .. })
    }

    pub fn state(&self) -> anyhow::Result<ClusterState> {
        self.view.borrow().state.clone().context("no agreed state is known")
    }

    pub fn spec(&self) -> ClusterSpec {
        self.view.borrow().spec.clone().unwrap_or_default()
    }

    pub fn silent_after(&self) -> Duration {
        self.view.borrow().spec.as_ref().map_or(Duration::from_secs(1), |s| s.silent_after)
    }

    pub fn settings(&self) -> Settings {
        self.local.borrow().settings.clone().unwrap_or_else(Settings::cut_off)
    }

    /// Returns a session to the own server.
    pub fn admin(&self) -> anyhow::Result<Pg> {
        self.sim.session(self.member).context("PostgreSQL accepts no session")
    }

    /// Returns a session as soon as the server accepts one, while it lives.
    pub async fn admin_within(&self, patience: Duration) -> anyhow::Result<Pg> {
        let until = self.host.now() + patience;
        loop {
            match self.admin() {
                Ok(session) => return Ok(session),
                Err(error) if !self.is_running() => {
                    return Err(error.context("PostgreSQL has ended"));
                }
                Err(error) if self.host.now() >= until => return Err(error),
                Err(_) => self.sim.sleep(5_000).await,
            }
        }
    }

    fn write_settings(&self, settings: &Settings) {
        let settings = settings.clone();
        self.sim.with(|w| w.members[self.member].disk.settings = Some(settings));
    }

    /// Puts `settings` on disk.
    pub fn install(&self, settings: Settings) {
        self.write_settings(&settings);
        self.update(|local| local.settings = Some(settings));
    }

    /// Puts `settings` on disk and has PostgreSQL read them.
    pub async fn reload(&self, settings: Settings) -> anyhow::Result<()> {
        self.write_settings(&settings);
        self.fencer.hang_up().await.context("reload PostgreSQL")?;
        self.update(|local| local.settings = Some(settings));
        Ok(())
    }

    pub async fn put_names(&self, names: &str) -> anyhow::Result<()> {
        self.apply(Settings { standby_names: names.to_owned(), ..self.settings() }).await
    }

    /// Reloads, and returns once a session shows the new names.
    pub async fn apply(&self, settings: Settings) -> anyhow::Result<()> {
        let session = self.admin()?;
        let names = settings.standby_names.clone();
        self.reload(settings).await?;
        let patience = self.patience(Duration::from_secs(5), "the new names to be read");
        while session.sql(|pg| pg.with(|s| s.session_names.clone())).await? != names {
            patience.soon(self).await?;
        }
        Ok(())
    }

    /// Ends every process of the data directory.
    pub async fn fence(&self) -> anyhow::Result<()> {
        self.update(|local| {
            local.opened = None;
            local.seal = None;
        });
        self.fencer.fence().await.context("fence PostgreSQL")
    }

    /// Removes the replication passwords of every epoch but `keep`.
    pub fn forget_credentials(&self, keep: Option<Epoch>) {
        if self.sim.mutant("upstream-stays") {
            return;
        }
        self.sim.with(|w| {
            w.members[self.member].disk.passfiles.retain(|epoch| Some(*epoch) == keep);
        });
    }

    /// Tells the fencer until when a primary may serve, by the lease as last renewed.
    pub fn bound_service(&self) {
        let until = match *self.lease.borrow() {
            Some(lease) => serve_until(lease.expires, &self.spec()),
            None => self.host.now(),
        };
        self.fencer.serve_until(Some(until));
    }

    pub fn patience(&self, bound: Duration, what: &'static str) -> Patience {
        Patience { deadline: self.host.now() + bound, what }
    }
}

/// The bound of a wait.
pub struct Patience {
    deadline: Moment,
    what: &'static str,
}

impl Patience {
    pub async fn soon(&self, worker: &Worker) -> anyhow::Result<()> {
        if worker.host.now() >= self.deadline {
            bail!("waited too long for {}", self.what);
        }
        worker.sim.sleep(SOON).await;
        Ok(())
    }
}

/// A worker that tasks share.
pub type Shared = Rc<Worker>;
