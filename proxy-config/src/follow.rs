//! Follows one cluster's documents in the store. What was once read is kept until something newer is: a store that
//! is away takes nothing back (I18).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proto::{
    ClusterSpec, ClusterState, DecodeError, Document, MemberName, MemberReport, Moment, document,
};
use store::keys::Keys;
use store::{Store, StoreError, Watch, WatchEvent, clock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The pauses between attempts to read while the store is away.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The longest `lease_ttl` that a spec may have, for as long as the spec was not read.
const LONGEST_LEASE: Duration = Duration::from_secs(60);

/// What the store was last seen to hold.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub agreed: Agreed,
    /// Of members with a live lease only.
    pub reports: BTreeMap<MemberName, MemberReport>,
    /// The last one that could be read; none before there was one.
    pub spec: Option<Box<ClusterSpec>>,
}

/// The agreed state, as far as it can be acted on.
#[derive(Debug, Clone, PartialEq)]
pub enum Agreed {
    /// The store has not answered since our start.
    Unheard,
    /// There is none.
    Absent,
    /// It is damaged, or of a newer format: stand by.
    Unreadable,
    State(Box<ClusterState>),
}

impl Agreed {
    /// Returns the state, if there is one to act on.
    pub fn state(&self) -> Option<&ClusterState> {
        match self {
            Agreed::State(state) => Some(state),
            Agreed::Unheard | Agreed::Absent | Agreed::Unreadable => None,
        }
    }
}

impl View {
    /// Returns for how long a replaced primary may go on answering.
    pub fn lease_ttl(&self) -> Duration {
        self.spec.as_ref().map_or(LONGEST_LEASE, |spec| spec.lease_ttl)
    }

    /// Returns the view of somebody who has heard nothing.
    pub fn unheard() -> Self {
        Self { agreed: Agreed::Unheard, reports: BTreeMap::new(), spec: None }
    }
}

/// How old our picture of the store can be.
#[derive(Clone)]
pub struct Heard(Arc<watch::Sender<Following>>, Arc<Notify>);

#[derive(Clone, Copy)]
struct Following {
    /// At this time the picture was what the store held.
    last: Moment,
    /// A watch runs from that picture on, so that any answer of the store vouches for it.
    watching: bool,
    /// This process has stood still, and the picture is from before.
    doubted: bool,
}

impl Heard {
    /// Begins with a picture of `now`.
    pub fn new(now: Moment) -> Self {
        let following = Following { last: now, watching: false, doubted: false };
        Self(Arc::new(watch::Sender::new(following)), Arc::default())
    }

    /// Notes that the store answered a request of ours that was sent at `sent`.
    pub fn answered(&self, sent: Moment) {
        self.0.send_modify(|f| f.last = if f.watching { sent.max(f.last) } else { f.last });
    }

    fn watches(&self, since: Moment) {
        let last = since.max(self.0.borrow().last);
        self.0.send_replace(Following { last, watching: true, doubted: false });
    }

    fn watch_broke(&self) {
        self.0.send_modify(|f| f.watching = false);
    }

    /// Asks for the picture anew: what comes over the old watch first may be from before this process stood still.
    pub fn doubt(&self) {
        self.0.send_modify(|f| (f.watching, f.doubted) = (false, true));
        self.1.notify_one();
    }

    /// Returns whether the picture was doubted and has not been read again.
    pub fn is_doubted(&self) -> bool {
        self.0.borrow().doubted
    }

    /// Returns how long the store may have held something else than our picture.
    pub fn silent_for(&self, now: Moment) -> Duration {
        now.since(self.0.borrow().last)
    }
}

/// Reads the documents of `keys` once.
pub async fn read(store: Arc<dyn Store>, keys: Keys) -> Result<View, StoreError> {
    let snapshot = store.read(keys.prefix()).await?;
    let values = snapshot.entries.into_iter().map(|(key, entry)| (key, entry.value)).collect();
    let (views, heard) = (watch::Sender::new(View::unheard()), Heard::new(clock::now()));
    Ok(Follower { store, keys, views, heard, said: BTreeSet::new() }.view(&values))
}

/// Follows the documents of `keys` until `stop`. Never ends by itself.
pub async fn follow(
    store: Arc<dyn Store>,
    keys: Keys,
    to: (watch::Sender<View>, Heard),
    stop: CancellationToken,
) {
    let mut follower = Follower { store, keys, views: to.0, heard: to.1, said: BTreeSet::new() };
    tokio::select! {
        () = stop.cancelled() => {}
        () = follower.follow() => {}
    }
}

struct Follower {
    store: Arc<dyn Store>,
    keys: Keys,
    views: watch::Sender<View>,
    heard: Heard,
    /// Complaints that were logged, so that each is logged once.
    said: BTreeSet<String>,
}

impl Follower {
    async fn follow(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let ended = self.read_and_watch().await;
            self.heard.watch_broke();
            match ended {
                Ok(()) => pause = FIRST_PAUSE,
                Err(e) => {
                    if pause == FIRST_PAUSE {
                        warn!(error = %e, "store is away: the last known routes stay");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Reads everything and follows the changes until the watch breaks.
    async fn read_and_watch(&mut self) -> Result<(), StoreError> {
        let sent = clock::now();
        let snapshot = self.store.read(self.keys.prefix()).await?;
        let mut values: BTreeMap<String, Vec<u8>> =
            snapshot.entries.into_iter().map(|(key, entry)| (key, entry.value)).collect();
        if !values.contains_key(&self.keys.state()) && !values.contains_key(&self.keys.spec()) {
            let unknown = format!("nothing is known under {}", self.keys.prefix());
            if self.said.insert(unknown.clone()) {
                warn!(
                    "{unknown}: check --cluster and --etcd, or create the cluster with `pgdeputy init`; waiting"
                );
            }
        }
        self.publish(&values);
        let mut watch: Watch = self.store.watch(self.keys.prefix(), snapshot.revision + 1).await?;
        self.heard.watches(sent);
        info!(revision = snapshot.revision, "following the cluster");
        let doubted = self.heard.1.clone();
        loop {
            let events = tokio::select! {
                biased;
                () = doubted.notified() => return Ok(()),
                events = watch.events.recv() => events,
            };
            let Some(events) = events else { return Ok(()) };
            self.heard.answered(clock::now());
            for event in events {
                match event {
                    WatchEvent::Put { key, entry } => drop(values.insert(key, entry.value)),
                    WatchEvent::Delete { key, .. } => drop(values.remove(&key)),
                }
            }
            self.publish(&values);
        }
    }

    fn publish(&mut self, values: &BTreeMap<String, Vec<u8>>) {
        let view = self.view(values);
        self.views.send_if_modified(|last| {
            let changed = *last != view;
            *last = view;
            changed
        });
    }

    fn view(&mut self, values: &BTreeMap<String, Vec<u8>>) -> View {
        let agreed = match values.get(&self.keys.state()) {
            None => Agreed::Absent,
            Some(text) => match self.decode::<ClusterState>(text) {
                Some(state) => Agreed::State(Box::new(state)),
                None => Agreed::Unreadable,
            },
        };
        let keys = self.keys.clone();
        let of_member = |key: &str| keys.strip(key).is_some_and(|k| k.starts_with("members/"));
        let reports = values
            .iter()
            .filter(|(key, _)| of_member(key))
            .filter_map(|(_, text)| self.decode::<MemberReport>(text))
            .map(|report| (report.member.clone(), report))
            .collect();
        let spec = values.get(&self.keys.spec()).and_then(|text| self.decode::<ClusterSpec>(text));
        let known = self.views.borrow().spec.clone();
        View { agreed, reports, spec: spec.map(Box::new).or(known) }
    }

    fn decode<D: Document>(&mut self, text: &[u8]) -> Option<D> {
        let decoded: Result<D, DecodeError> = document::decode(text);
        match decoded {
            Ok(document) => Some(document),
            Err(e) => {
                let complaint = e.to_string();
                if self.said.insert(complaint.clone()) {
                    warn!("{complaint}; standing by on the last known routes");
                }
                None
            }
        }
    }
}
