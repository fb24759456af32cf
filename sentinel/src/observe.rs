//! What the leader believes: one linearizable snapshot, read as documents, and how long conditions
//! have held.
//!
//! The one rule: a missing report says nothing. Whoever is not in `members` is neither dead nor
//! alive.

use std::collections::{BTreeMap, BTreeSet};

use proto::document::{Anew, DecodeError, Reader, decode};
use proto::history::HistoryRecord;
use proto::proxy::ProxyReport;
use proto::request::{Request, RequestId, RequestKind};
use proto::schedule::Scheduled;
use proto::spec::Durability;
use proto::topology::Topology;
use proto::{
    CfgId, ClusterSpec, ClusterState, Document, Epoch, Lsn, MemberName, MemberReport, Moment,
    PrimaryKey,
};
use std::time::Duration;
use store::Snapshot;
use store::keys::Keys;

use crate::decide;
use crate::record;

/// A document of the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Stored<T> {
    #[default]
    Absent,
    Known(T),
    /// Written by a newer pgdeputy: read nothing into it, write nothing over it.
    Newer(DecodeError),
    Malformed(DecodeError),
}

/// What was seen of one cluster, besides spec and state.
#[derive(Debug, Clone, Default)]
pub struct Observations {
    /// The id of the sentinel that looks, for the explanation.
    pub leader: String,
    pub etcd_cluster_id: String,
    /// Reports whose lease lives, by the name in their key.
    pub members: BTreeMap<MemberName, MemberReport>,
    /// Live reports that cannot be read, and why: their members take part in nothing.
    pub unreadable: BTreeMap<MemberName, String>,
    pub primary_key: Stored<PrimaryKey>,
    /// What the spec says of a cluster without voters; strict where the spec cannot be read. For the checker.
    pub durability: Durability,
    /// What live proxies say of themselves, by the id in their key. One that cannot be read is not waited for.
    pub proxies: BTreeMap<String, ProxyReport>,
    /// Requests that wait for their answer.
    pub requests: BTreeMap<RequestKind, Request>,
    /// Switchovers that wait for their time. One that cannot be read is begun by nobody.
    pub scheduled: BTreeMap<RequestId, Scheduled>,
    /// Requests that cannot be read, and why: nobody answers them, and they end with their lease.
    pub unreadable_requests: BTreeMap<String, String>,
    /// The record of the change that led to, or leads to, the present epoch.
    pub history: Option<HistoryRecord>,
    /// What came of the leader's own last question to the primary's keeper.
    pub probe: Option<Probe>,
    pub held: Timers,
}

/// A question of the leader itself to the primary's keeper, asked where only one voter can say that it is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pub epoch: Epoch,
    pub answered: bool,
    /// When the answer came, or was given up.
    pub at: Moment,
}

/// Something whose duration matters. It holds or does not hold in each snapshot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// The founder does not report, and has not run initdb as far as is known.
    FounderAway { founder: MemberName },
    /// The primary of this open epoch holds no right.
    Lapsed { epoch: Epoch },
    /// The same, and others are there that could replace it.
    Replaceable { epoch: Epoch },
    /// The keeper of this open epoch's primary says that PostgreSQL does not do its work.
    Unresponsive { epoch: Epoch },
    /// The primary's keeper lives and does not say that PostgreSQL serves.
    NotServing { epoch: Epoch },
    /// The primary has not opened and shows no progress since.
    Unopened { epoch: Epoch, restart: u64, running: bool, replayed: Option<Lsn> },
    /// The voters are well and receive nothing of the primary of this open epoch.
    Deserted { epoch: Epoch },
    /// The primary's keeper does not report, before it has opened.
    Absent { epoch: Epoch, restart: u64 },
    /// This restart order stands.
    Ordered { epoch: Epoch, restart: u64 },
    /// PostgreSQL died while it was promoted, and without its member there is no base.
    DiedPromoting { epoch: Epoch },
    /// The switchover of this request is in this part of it.
    Switchover { request: RequestId, part: Part },
    /// A base exists for this epoch.
    Base { sealing: Epoch },
    /// These members could vote, and the newest Cfg is this one.
    Voters { newest: CfgId, voters: BTreeSet<MemberName> },
    /// Fewer members could vote than acknowledge commits under this Cfg.
    Short { newest: CfgId },
    /// This pause stands.
    Paused { id: RequestId },
    /// Loss was accepted to end the seal of this epoch.
    LossAccepted { sealing: Epoch },
    /// Enough members stream to acknowledge commits, and too few of them are voters of this Cfg.
    Stalled { newest: CfgId },
}

/// The parts of a switchover that have a bound of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Checkpoint,
    Hold,
    Stop,
}

/// The first moment, on this leader's own clock, since which each condition has held in every
/// snapshot.
///
/// It is memory of one leader: the next one begins anew, which only makes it more patient.
#[derive(Debug, Clone, Default)]
pub struct Timers {
    since: BTreeMap<Condition, Moment>,
    looked: Option<Moment>,
}

/// Snapshots further apart than this prove nothing about the time between (an etcd outage must not
/// count as silence of a member). Above the safety tick of the shell, so that calm clusters keep
/// their timers.
pub const LONGEST_GAP: Duration = Duration::from_secs(5);

impl Timers {
    /// Notes which conditions hold in a snapshot that was read at `now`.
    pub fn update(&mut self, holding: BTreeSet<Condition>, now: Moment) {
        if self.looked.is_some_and(|looked| now.since(looked) > LONGEST_GAP) {
            self.since.clear();
        }
        self.looked = Some(now);
        self.since.retain(|condition, _| holding.contains(condition));
        for condition in holding {
            self.since.entry(condition).or_insert(now);
        }
    }

    /// Returns since when `condition` has held; `None` if it does not.
    pub fn since(&self, condition: &Condition) -> Option<Moment> {
        self.since.get(condition).copied()
    }
}

/// Spec, state and everything else in one snapshot.
#[derive(Debug, Clone)]
pub struct World {
    pub spec: Stored<ClusterSpec>,
    pub state: Stored<ClusterState>,
    /// The revision of the state's last change, for the guard of the next one.
    pub state_revision: Option<i64>,
    /// The revision of the last change of the history record in `seen`.
    pub history_revision: Option<i64>,
    /// The keys of all history records, oldest first.
    pub records: Vec<String>,
    /// The revisions of the requests in `seen`, for the guard of the transaction that answers them.
    pub request_revisions: BTreeMap<RequestKind, i64>,
    /// The same of the scheduled switchovers in `seen`.
    pub scheduled_revisions: BTreeMap<RequestId, i64>,
    /// What clients were last told.
    pub topology: Stored<Topology>,
    pub seen: Observations,
}

/// Reads `snapshot` as documents. Timers are left empty: see `World::mark`.
pub fn observe(snapshot: &Snapshot, keys: &Keys, leader: &str) -> World {
    observe_by(&mut Anew, snapshot, keys, leader)
}

/// The same, with what `reader` makes of the documents.
pub fn observe_by(
    reader: &mut impl Reader,
    snapshot: &Snapshot,
    keys: &Keys,
    leader: &str,
) -> World {
    let state: Stored<ClusterState> = stored(reader, snapshot, &keys.state());
    let mut seen = Observations {
        leader: leader.to_owned(),
        etcd_cluster_id: snapshot.cluster_id.clone(),
        primary_key: stored(reader, snapshot, &keys.primary()),
        ..Observations::default()
    };
    let members = format!("{}members/", keys.prefix());
    for (key, entry) in &snapshot.entries {
        let Some(name) = key.strip_prefix(&members).and_then(|n| n.parse::<MemberName>().ok())
        else {
            continue;
        };
        match reader.read::<MemberReport>(key, &entry.value) {
            Ok(report) if report.member == name => {
                seen.members.insert(name, report);
            }
            Ok(report) => {
                seen.unreadable
                    .insert(name, format!("the report names another member, {}", report.member));
            }
            Err(error) => {
                seen.unreadable.insert(name, error.to_string());
            }
        }
    }
    seen.proxies = proxies(snapshot, keys);
    let request_revisions = requests(snapshot, keys, &mut seen);
    let scheduled_revisions = scheduled(snapshot, keys, &mut seen);
    let mut history_revision = None;
    if let Stored::Known(state) = &state {
        let (epoch, restart) = record::current(state);
        let key = keys.history(epoch, restart);
        seen.history = known(stored(reader, snapshot, &key));
        history_revision = snapshot.entries.get(&key).map(|e| e.mod_revision);
    }
    let history = format!("{}history/", keys.prefix());
    World {
        spec: stored(reader, snapshot, &keys.spec()),
        records: snapshot.entries.keys().filter(|k| k.starts_with(&history)).cloned().collect(),
        state_revision: snapshot.entries.get(&keys.state()).map(|e| e.mod_revision),
        state,
        request_revisions,
        scheduled_revisions,
        history_revision,
        topology: stored(reader, snapshot, &keys.topology()),
        seen,
    }
}

fn proxies(snapshot: &Snapshot, keys: &Keys) -> BTreeMap<String, ProxyReport> {
    let prefix = format!("{}proxies/", keys.prefix());
    let readable = snapshot.entries.iter().filter_map(|(key, entry)| {
        let id = key.strip_prefix(&prefix)?;
        Some((id.to_owned(), decode::<ProxyReport>(&entry.value).ok()?))
    });
    readable.collect()
}

/// Reads the requests into `seen` and returns their revisions. One that stands under another kind's key is not answered.
fn requests(
    snapshot: &Snapshot,
    keys: &Keys,
    seen: &mut Observations,
) -> BTreeMap<RequestKind, i64> {
    let mut revisions = BTreeMap::new();
    let prefix = format!("{}requests/", keys.prefix());
    for (key, entry) in &snapshot.entries {
        let Some(name) = key.strip_prefix(&prefix) else { continue };
        match decode::<Request>(&entry.value) {
            Ok(request) if keys.request(request.wanted.kind()) == *key => {
                revisions.insert(request.wanted.kind(), entry.mod_revision);
                seen.requests.insert(request.wanted.kind(), request);
            }
            Ok(request) => {
                let problem = format!("it asks for a {}", request.wanted.kind());
                seen.unreadable_requests.insert(name.to_owned(), problem);
            }
            Err(error) => {
                seen.unreadable_requests.insert(name.to_owned(), error.to_string());
            }
        }
    }
    revisions
}

/// Reads the scheduled switchovers into `seen` and returns their revisions.
fn scheduled(
    snapshot: &Snapshot,
    keys: &Keys,
    seen: &mut Observations,
) -> BTreeMap<RequestId, i64> {
    let mut revisions = BTreeMap::new();
    let prefix = keys.all_scheduled();
    for (key, entry) in snapshot.entries.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        if let Ok(scheduled) = decode::<Scheduled>(&entry.value)
            && keys.scheduled(&scheduled.id) == *key
        {
            revisions.insert(scheduled.id.clone(), entry.mod_revision);
            seen.scheduled.insert(scheduled.id.clone(), scheduled);
        }
    }
    revisions
}

impl World {
    /// Brings `timers` up to this world, seen at `now`, and lets the observations carry them.
    pub fn mark(&mut self, spec: &ClusterSpec, timers: &mut Timers, now: Moment) {
        let holding = match &self.state {
            Stored::Known(state) => decide::conditions(spec, state, &self.seen),
            Stored::Absent | Stored::Newer(_) | Stored::Malformed(_) => BTreeSet::new(),
        };
        timers.update(holding, now);
        self.seen.durability = spec.durability;
        self.seen.held = timers.clone();
    }
}

fn stored<D: Document + Clone + 'static>(
    reader: &mut impl Reader,
    snapshot: &Snapshot,
    key: &str,
) -> Stored<D> {
    let Some(entry) = snapshot.entries.get(key) else { return Stored::Absent };
    match reader.read(key, &entry.value) {
        Ok(document) => Stored::Known(document),
        Err(error @ DecodeError::NewerFormat { .. }) => Stored::Newer(error),
        Err(error @ DecodeError::Malformed { .. }) => Stored::Malformed(error),
    }
}

fn known<T>(stored: Stored<T>) -> Option<T> {
    match stored {
        Stored::Known(document) => Some(document),
        Stored::Absent | Stored::Newer(_) | Stored::Malformed(_) => None,
    }
}
