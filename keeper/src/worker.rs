//! Does what `reconcile` chose. No choices are left here; each action is safe when it is cut anywhere (I20).

mod checkpoint;
mod compare;
mod copy;
mod copy_source;
mod diverged;
mod follow;
mod found;
pub mod leftovers;
mod open;
pub mod progress;
mod promote;
pub mod prove;
mod readers;
mod rejoin;
mod right;
mod seal;
mod slots;
mod switchover;
mod tablespaces;
mod unreplayed;

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use proto::report::Ended;
use proto::right::Secrets;
use proto::spec::PostgresSpec;
use proto::{ClusterSpec, ClusterState, Epoch, Moment};
use store::keys::Keys;
use store::{LeaseId, Store};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::action::Action;
use crate::facts::{ClusterView, Local, Process};
use crate::fencer::Fencer;
use crate::member_files::{MemberFiles, MemberStore};
use crate::postgres::binaries::PostgresBinaries;
use crate::postgres::session::{Door, Session};
use crate::postgres::settings::{self, Place, Settings};

pub use follow::address;
pub use promote::serve_until;
pub use prove::{own_record, wait_for_voters};

/// How often a condition is looked at that ends within milliseconds: sealing and promoting only.
const SOON: Duration = Duration::from_millis(1);

/// The bound of a wait for something that ends within milliseconds, if it ends.
pub struct Patience {
    deadline: Moment,
    what: &'static str,
}

impl Patience {
    /// Begins to wait for `what`, for at most `bound`.
    pub fn of(bound: Duration, what: &'static str) -> Self {
        Self { deadline: store::clock::now() + bound, what }
    }

    /// Returns in a millisecond, or says that the bound has passed.
    pub async fn soon(&self) -> anyhow::Result<()> {
        if store::clock::now() >= self.deadline {
            bail!("waited too long for {}", self.what);
        }
        sleep(SOON).await;
        Ok(())
    }
}

/// The keeper's lease as the worker needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseView {
    pub id: LeaseId,
    /// The local deadline, counted from the send time of the last renewal.
    pub expires: Moment,
}

/// What a worker is made of, and shares.
pub struct Parts {
    pub place: Place,
    pub binaries: PostgresBinaries,
    pub keys: Keys,
    pub store: Arc<dyn Store>,
    pub secrets: Secrets,
    pub fencer: Fencer,
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub lease: watch::Receiver<Option<LeaseView>>,
}

/// Everything an action works with.
pub struct Worker {
    parts: Parts,
    pub door: Door,
    pub begun: Moment,
    /// Woken when something changed that `reconcile` should see before the action ends.
    pub changed: Arc<Notify>,
    /// Notified when a Cfg was confirmed.
    pub voters_follow: Arc<Notify>,
    /// Notified when the running server should be asked at once: what it said before an action ended is old.
    pub ask: Arc<Notify>,
    local: Mutex<Local>,
    files: Mutex<MemberStore>,
    admin: tokio::sync::Mutex<Option<Arc<Session>>>,
}

impl Deref for Worker {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Worker {
    /// Puts a worker together.
    pub fn new(parts: Parts, local: Local, files: MemberStore) -> Self {
        Self {
            door: Door::new(&parts.place, &parts.secrets.superuser),
            begun: store::clock::now(),
            parts,
            changed: Arc::new(Notify::new()),
            voters_follow: Arc::new(Notify::new()),
            ask: Arc::new(Notify::new()),
            local: Mutex::new(local),
            files: Mutex::new(files),
            admin: tokio::sync::Mutex::new(None),
        }
    }

    /// Does `action`. Of one that was to bring this member back it tells if it failed.
    pub async fn perform(&self, action: &Action) -> anyhow::Result<()> {
        let done = self.act(action).await;
        if let Err(error) = &done {
            self.rejoin_failed(action.kind(), error);
        }
        done
    }

    async fn act(&self, action: &Action) -> anyhow::Result<()> {
        match action {
            Action::Hold(_) => Ok(()),
            Action::TakeSettings(wanted) => self.take_settings(wanted).await,
            Action::Fence(reason) => self.fence(&reason.to_string()).await,
            Action::Found => found::found(self).await,
            Action::Seal { sealing } => seal::seal(self, *sealing).await,
            Action::Scan => seal::scan(self).await,
            Action::StartStandby { follow, name } => follow::start(self, follow, *name).await,
            Action::StartSealed { position } => follow::start_sealed(self, *position).await,
            Action::TakeRight { epoch, restart } => right::take(self, *epoch, *restart).await,
            Action::Repoint { follow, name } => follow::repoint(self, follow, *name).await,
            Action::MarkComplete { epoch } => follow::mark_complete(self, *epoch),
            Action::Promote(lead) => promote::promote(self, lead).await,
            Action::StartPrimary { lead, restart } => {
                open::start_primary(self, lead, *restart).await
            }
            Action::StartAlone(lead) => open::start_alone(self, lead).await,
            Action::Open(lead) => open::open(self, lead).await,
            Action::OpenBySigns(lead) => open::open_by_signs(self, lead).await,
            Action::Confirm { cfg, proof } => prove::confirm(self, cfg, *proof).await,
            Action::KeepSlots { members, primary } => slots::keep(self, members, *primary).await,
            Action::PrepareHandOver { request, target, patience } => {
                switchover::prepare(self, request, target.as_deref(), *patience).await
            }
            Action::HandOver(handover) => switchover::hand_over(self, handover).await,
            Action::Compare { follow } => compare::compare(self, follow).await,
            Action::DropUnreplayed(dropping) => unreplayed::drop_unreplayed(self, dropping).await,
            Action::Rewind { follow, reason } => rejoin::rewind(self, follow, reason).await,
            Action::Copy { follow, from, reason } => {
                copy::copy(self, follow, from.as_ref(), reason).await
            }
        }
    }

    /// Returns a copy of what the actions have brought about.
    pub fn local(&self) -> Local {
        self.lock_local().clone()
    }

    /// Changes it, and wakes whoever decides.
    pub fn update(&self, change: impl FnOnce(&mut Local)) {
        change(&mut self.lock_local());
        self.changed.notify_one();
    }

    /// Changes it in a way that calls for no decision.
    pub fn note_quietly(&self, change: impl FnOnce(&mut Local)) {
        change(&mut self.lock_local());
    }

    fn lock_local(&self) -> MutexGuard<'_, Local> {
        self.local.lock().expect("no thread panics while it holds this lock")
    }

    /// Returns the member files as they are on disk.
    pub fn files(&self) -> MemberFiles {
        let mut files = self.files.lock().expect("no thread panics while it holds this lock");
        files.load().ok().flatten().expect("the member files were written when the keeper started")
    }

    /// Changes the member files; they are on disk when this returns.
    pub fn save(&self, change: impl FnOnce(&mut MemberFiles)) -> anyhow::Result<()> {
        let mut store = self.files.lock().expect("no thread panics while it holds this lock");
        let mut files = store.load()?.context("member files vanished")?;
        change(&mut files);
        self.note_state(&mut files);
        store.save(&files)?;
        drop(store);
        self.changed.notify_one();
        Ok(())
    }

    /// Notes which state and which etcd the change rests on, in the same write.
    fn note_state(&self, files: &mut MemberFiles) {
        let view = self.view.borrow();
        if let Some(state) = view.state.as_ref().filter(|s| s.number >= files.state_number) {
            files.state_number = state.number;
            files.etcd_cluster_id = Some(state.etcd_cluster_id.clone());
            files.acted_on = Some(state.clone());
        }
        files.frozen = view.frozen.is_some();
        files.lease_id = self.lease.borrow().map(|lease| lease.id.0).or(files.lease_id);
    }

    /// Promises to serve and follow nothing below `epoch`. Durable when it returns (I5).
    pub fn promise(&self, epoch: Epoch) -> anyhow::Result<()> {
        self.save(|files| files.promise = files.promise.max(epoch)).context("write the promise")
    }

    /// Returns whether the postmaster runs, by the fencer's word.
    pub fn is_running(&self) -> bool {
        matches!(self.lock_local().process, Process::Running { .. })
    }

    /// Returns whether no renewal has reached etcd for `lease_ttl`.
    pub fn etcd_is_away(&self, now: Moment) -> bool {
        let ttl = self.view.borrow().spec.as_ref().map_or(Duration::from_secs(4), |s| s.lease_ttl);
        let renewed = self.lease.borrow().map(|lease| lease.expires - ttl);
        now.since(renewed.unwrap_or(self.begun).max(self.begun)) >= ttl
    }

    /// Returns the agreed state as last read.
    pub fn state(&self) -> anyhow::Result<ClusterState> {
        self.view.borrow().state.clone().context("no agreed state is known")
    }

    /// Returns the spec as last read, with PostgreSQL's settings as PostgreSQL last took them.
    pub fn spec(&self) -> ClusterSpec {
        let mut spec = self.view.borrow().spec.clone().unwrap_or_default();
        spec.postgres = self.lock_local().accepted.clone().unwrap_or_default();
        spec
    }

    /// Takes PostgreSQL's settings over from the spec, if PostgreSQL takes them.
    async fn take_settings(&self, wanted: &PostgresSpec) -> anyhow::Result<()> {
        let mut spec = self.spec();
        spec.postgres = wanted.clone();
        settings::check(&self.binaries, &self.place, &spec, &self.settings()).await?;
        settings::keep_accepted(&self.place, wanted)?;
        self.update(|local| local.accepted = Some(wanted.clone()));
        if self.is_running() {
            self.reload(self.settings()).await?;
        }
        tracing::info!("took the spec's PostgreSQL settings over");
        Ok(())
    }

    /// Returns the directory of the WAL.
    pub fn pg_wal(&self) -> PathBuf {
        self.place.data_dir.join("pg_wal")
    }

    /// Returns the kept session, opened anew if the server closed it. `PostgreSQL` may not accept one yet.
    pub async fn admin(&self) -> anyhow::Result<Arc<Session>> {
        let mut kept = self.admin.lock().await;
        if let Some(session) = kept.as_ref().filter(|s| !s.is_closed()) {
            return Ok(Arc::clone(session));
        }
        let session = Arc::new(self.door.open().await?);
        *kept = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Returns the kept session as soon as the server accepts one, for at most `patience` and while the server lives.
    pub async fn admin_within(&self, patience: Duration) -> anyhow::Result<Arc<Session>> {
        let opening = async {
            loop {
                match self.admin().await {
                    Ok(session) => return Ok(session),
                    Err(_) if self.is_running() => sleep(Duration::from_millis(5)).await,
                    Err(error) => return Err(error.context("PostgreSQL has ended")),
                }
            }
        };
        timeout(patience, opening)
            .await
            .map_err(|_| anyhow::anyhow!("PostgreSQL accepts no session"))?
    }

    /// Puts `settings` on disk; the server reads them at its next start or reload.
    pub fn install(&self, settings: Settings) -> anyhow::Result<()> {
        settings::install(&self.place, &self.spec(), &settings)?;
        self.update(|local| local.settings = Some(settings));
        Ok(())
    }

    /// Puts `settings` on disk and has the postmaster and its children read them. They count as in force only once
    /// the signal is sent: otherwise nobody would send it again.
    pub async fn reload(&self, settings: Settings) -> anyhow::Result<()> {
        settings::install(&self.place, &self.spec(), &settings)?;
        self.fencer.signal(Signal::SIGHUP).await.context("reload PostgreSQL")?;
        self.update(|local| local.settings = Some(settings));
        Ok(())
    }

    /// Returns the settings in force, for a change of one of them.
    pub fn settings(&self) -> Settings {
        self.lock_local().settings.clone().unwrap_or_else(Settings::cut_off)
    }

    /// Puts `names` in force, with the other settings as they are.
    pub async fn put_names(&self, names: &str) -> anyhow::Result<()> {
        self.apply(Settings { standby_names: names.to_owned(), ..self.settings() }).await
    }

    /// Reloads, and returns once a session shows the new names: the postmaster has then read the files.
    pub async fn apply(&self, settings: Settings) -> anyhow::Result<()> {
        let session = self.admin().await?;
        let names = settings.standby_names.clone();
        self.reload(settings).await?;
        let patience =
            Patience::of(Duration::from_secs(5), "the new synchronous_standby_names to be read");
        while session.value::<String>("SHOW synchronous_standby_names").await? != names {
            patience.soon().await?;
        }
        Ok(())
    }

    /// Ends every process of the data directory. What was sealed before says nothing of where its WAL ends now.
    pub async fn fence(&self, why: &str) -> anyhow::Result<()> {
        self.update(|local| {
            local.opened = None;
            local.seal = None;
            local.ended.get_or_insert(Ended::Fenced);
        });
        let fenced = self.fencer.fence().await.context("fence PostgreSQL")?;
        tracing::info!(
            why,
            took_ms = fenced.took.as_millis() as u64,
            killed = fenced.killed,
            "fenced"
        );
        Ok(())
    }

    /// Removes the replication credentials of every epoch but `keep`.
    pub fn forget_credentials(&self, keep: Option<Epoch>) -> anyhow::Result<()> {
        #[cfg(feature = "mistakes")]
        if crate::mistakes::makes("upstream-stays") {
            return Ok(());
        }
        let kept = keep.map(|epoch| self.place.replication_passfile(epoch));
        for entry in fs::read_dir(&self.place.state_dir).context("list the state directory")? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_ours = name.starts_with("replication.e") && name.ends_with(".pgpass");
            if is_ours && Some(&path) != kept.as_ref() {
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}
