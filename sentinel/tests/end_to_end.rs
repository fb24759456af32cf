//! The shell on the in-memory store, with keepers that do at once what the state asks of them.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proto::assignment::assignment;
use proto::document::{decode, encode};
use proto::explanation::Explanation;
use proto::history::HistoryRecord;
use proto::report::{Confirmed, DataDirectory, Opened, Seal, Server, Stream};
use proto::topology::Topology;
use proto::{
    Assignment, ClusterSpec, ClusterState, Document, Epoch, Incarnation, Lsn, MemberName,
    MemberReport, Phase, PrimaryKey, SystemIdentifier, WalPosition,
};
use sentinel::{Clusters, Config, Drills};
use store::keys::Keys;
use store::memory::{CommitFault, MemoryStore};
use store::{LeaseId, Operation, Snapshot, Store, Txn, WatchEvent};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const BOUND: Duration = Duration::from_secs(20);

fn keys() -> Keys {
    Keys::of(&"c1".parse().unwrap())
}

fn document<D: Document>(snapshot: &Snapshot, key: &str) -> Option<D> {
    snapshot.entries.get(key).map(|e| decode(&e.value).unwrap())
}

async fn put(store: &MemoryStore, key: String, value: String, lease: Option<LeaseId>) {
    let put = Operation::Put { key, value: value.into_bytes(), lease };
    store.commit(Txn { when: vec![], then: vec![put] }).await.unwrap();
}

/// Reads until `found` finds what it looks for, at each change.
async fn until<T>(
    store: &MemoryStore,
    what: &str,
    mut found: impl FnMut(&Snapshot) -> Option<T>,
) -> T {
    let look = async {
        loop {
            let snapshot = store.read(keys().prefix()).await.unwrap();
            if let Some(result) = found(&snapshot) {
                return result;
            }
            let mut watch = store.watch(keys().prefix(), snapshot.revision + 1).await.unwrap();
            watch.events.recv().await;
        }
    };
    match tokio::time::timeout(BOUND, look).await {
        Ok(result) => result,
        Err(_) => panic!(
            "not within {BOUND:?}: {what}; {:#?}",
            store
                .read(keys().prefix())
                .await
                .unwrap()
                .entries
                .iter()
                .map(|(k, e)| format!("{k} {}", String::from_utf8_lossy(&e.value)))
                .collect::<Vec<_>>()
        ),
    }
}

async fn state_where(
    store: &MemoryStore,
    what: &str,
    fits: impl Fn(&ClusterState) -> bool,
) -> ClusterState {
    until(store, what, |snapshot| document(snapshot, &keys().state()).filter(&fits)).await
}

/// One member's keeper.
struct Keeper {
    store: MemoryStore,
    lease: LeaseId,
    report: MemberReport,
    crashed: Arc<AtomicBool>,
}

struct Member {
    name: MemberName,
    crashed: Arc<AtomicBool>,
    store: MemoryStore,
    lease: LeaseId,
    task: JoinHandle<()>,
}

impl Member {
    async fn start(store: &MemoryStore, name: &str) -> Self {
        let name: MemberName = name.parse().unwrap();
        let (lease, _) = store.grant(Duration::from_secs(4)).await.unwrap();
        let crashed = Arc::new(AtomicBool::new(false));
        let keeper = Keeper {
            store: store.clone(),
            lease,
            report: blank(&name),
            crashed: Arc::clone(&crashed),
        };
        Self { name, crashed, store: store.clone(), lease, task: tokio::spawn(keeper.run()) }
    }

    /// PostgreSQL dies; the keeper says so and follows the next primary.
    async fn crash(&self) {
        self.crashed.store(true, Ordering::SeqCst);
        // The keeper looks at each change: this is one.
        put(&self.store, format!("{}proxies/nudge", keys().prefix()), "{}".into(), None).await;
    }

    /// Keeper and PostgreSQL die, and the lease lapses.
    async fn vanish(self) {
        self.task.abort();
        self.store.revoke(self.lease).await.unwrap();
    }
}

impl Keeper {
    async fn run(mut self) {
        let mut written = None;
        loop {
            let snapshot = self.store.read(keys().prefix()).await.unwrap();
            if let Some(state) = document::<ClusterState>(&snapshot, &keys().state()) {
                self.act(&snapshot, &state).await;
            }
            if written.as_ref() != Some(&self.report) {
                let key = keys().member(&self.report.member);
                put(&self.store, key, encode(&self.report), Some(self.lease)).await;
                written = Some(self.report.clone());
                continue;
            }
            let mut watch = self.store.watch(keys().prefix(), snapshot.revision + 1).await.unwrap();
            watch.events.recv().await;
        }
    }

    async fn act(&mut self, snapshot: &Snapshot, state: &ClusterState) {
        let report = &mut self.report;
        if self.crashed.swap(false, Ordering::SeqCst) {
            report.server = Server::Dead { noticed: store::clock::wall(), gone: true };
            report.opened = None;
        }
        match assignment(state, &report.member) {
            Assignment::Wait => {}
            Assignment::Found => made(report),
            Assignment::Seal { sealing } => seal(report, state, sealing),
            Assignment::HandOver(handover) => seal(report, state, handover.sealing),
            Assignment::Lead(lead) => {
                let dead = matches!(report.server, Server::Dead { .. });
                if dead && lead.phase == Phase::Open {
                    return;
                }
                let key = PrimaryKey {
                    member: report.member.clone(),
                    epoch: lead.epoch,
                    incarnation: report.incarnation.clone(),
                };
                report.promise = lead.epoch;
                report.server = Server::Primary { timeline: lead.timeline };
                report.stream = Stream::None;
                report.opened = Some(Opened {
                    epoch: lead.epoch,
                    timeline: lead.timeline,
                    start_lsn: Lsn(0x100_0000 * u64::from(lead.timeline.0)),
                    restart: lead.restart.unwrap_or(0),
                });
                confirm(report, snapshot, state);
                if document::<PrimaryKey>(snapshot, &keys().primary()).as_ref() != Some(&key) {
                    put(&self.store, keys().primary(), encode(&key), Some(self.lease)).await;
                }
            }
            Assignment::Follow(follow) => {
                made(report);
                let primary: Option<MemberReport> =
                    document(snapshot, &keys().member(&follow.primary));
                let open = primary.and_then(|p| p.opened).is_some_and(|o| o.epoch == follow.epoch);
                report.promise = follow.epoch;
                report.server = Server::Standby { timeline: follow.timeline };
                report.stream = match open {
                    true => {
                        Stream::Live { epoch: follow.epoch, timeline: follow.timeline, voter: true }
                    }
                    false => Stream::Silent { epoch: follow.epoch },
                };
            }
        }
    }
}

fn made(report: &mut MemberReport) {
    report.data = DataDirectory::Present;
    report.system_identifier = Some(SystemIdentifier(42));
    report.complete = true;
}

fn seal(report: &mut MemberReport, state: &ClusterState, sealing: Epoch) {
    report.promise = sealing;
    report.opened = None;
    report.stream = Stream::None;
    let lsn = Lsn(0x900_0000);
    let position = WalPosition { epoch: state.epoch, lsn, timeline: state.timeline };
    let clean = matches!(report.server, Server::Standby { .. });
    report.seal = Some(Seal { sealing, position, replayed: lsn, clean });
}

/// Proves the newest Cfg if k of its voters stream.
fn confirm(report: &mut MemberReport, snapshot: &Snapshot, state: &ClusterState) {
    let Some(cfg) = state.newest_cfg() else { return };
    let streams = |voter: &&MemberName| {
        let theirs: Option<MemberReport> = document(snapshot, &keys().member(voter));
        theirs
            .is_some_and(|r| matches!(r.stream, Stream::Live { epoch, .. } if epoch == state.epoch))
    };
    let voters: BTreeSet<MemberName> = cfg.voters.iter().filter(streams).cloned().collect();
    if voters.len() >= cfg.k && report.confirmed.as_ref().is_none_or(|c| c.cfg != cfg.id) {
        report.confirmed = Some(Confirmed { cfg: cfg.id, lsn: Lsn(0x800_0000), voters });
    }
}

fn blank(name: &MemberName) -> MemberReport {
    MemberReport {
        member: name.clone(),
        incarnation: Incarnation(format!("{name}-1")),
        understands_format: 1,
        pgdeputy_version: "0.1.0".into(),
        postgres_version: 150_018,
        postgres_address: "127.0.0.1:5432".parse().unwrap(),
        http_address: "127.0.0.1:8008".parse().unwrap(),
        zone: None,
        promise: Epoch(0),
        data: DataDirectory::Empty,
        system_identifier: None,
        complete: false,
        server: Server::Stopped,
        opened: None,
        confirmed: None,
        stream: Stream::None,
        seal: None,
        rejoin: None,
        unresponsive: None,
        ended: None,
        never_received: false,
        silence: None,
        standstill: None,
        hears: Default::default(),
        handover: None,
        leaving: false,
        frozen: None,
        problems: BTreeSet::new(),
    }
}

fn sentinel(
    store: &MemoryStore,
    id: &str,
    clusters: Clusters,
) -> (CancellationToken, JoinHandle<()>) {
    let stop = CancellationToken::new();
    let config = Config {
        etcd: vec![].into(),
        clusters,
        listen: None,
        id: id.into(),
        drills: Drills::default(),
    };
    let run = sentinel::run_on(Arc::new(store.clone()), config, stop.clone());
    (stop, tokio::spawn(async move { run.await.unwrap() }))
}

fn named() -> Clusters {
    Clusters::Named(vec!["c1".parse().unwrap()])
}

async fn cluster_of_three(store: &MemoryStore) -> Vec<Member> {
    let spec = ClusterSpec { settle: Duration::from_millis(100), ..ClusterSpec::default() };
    put(store, keys().spec(), encode(&spec), None).await;
    let mut members = Vec::new();
    for name in ["a", "b", "c"] {
        members.push(Member::start(store, name).await);
    }
    until(store, "the founding ends in redundancy", |snapshot| {
        let record: HistoryRecord = document(snapshot, &keys().history(Epoch(1), 0))?;
        let state: ClusterState = document(snapshot, &keys().state())?;
        (record.redundant.is_some() && state.members.len() == 3).then_some(())
    })
    .await;
    members
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_founds_itself_and_replaces_a_primary_that_dies() {
    let store = MemoryStore::new();
    let (stop, task) = sentinel(&store, "s1", named());
    let members = cluster_of_three(&store).await;
    let primary =
        state_where(&store, "a primary", |s| s.phase == Phase::Open).await.primary.unwrap();

    let begun = store::clock::now();
    members.iter().find(|m| m.name == primary).unwrap().crash().await;
    let state =
        state_where(&store, "epoch 2 opens", |s| s.epoch == Epoch(2) && s.phase == Phase::Open)
            .await;
    let took = store::clock::now().since(begun);
    assert_ne!(state.primary, Some(primary));
    assert!(
        took < Duration::from_secs(1),
        "three commits without a pause between them took {took:?}"
    );

    let record = until(&store, "all are back", |snapshot| {
        let record: HistoryRecord = document(snapshot, &keys().history(Epoch(2), 0))?;
        record.redundant.is_some().then_some(record)
    })
    .await;
    let phases: Vec<&str> = record.phases.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(phases, ["notice", "seal", "choose", "promote", "redundancy"]);
    until(&store, "an explanation that all is well", |snapshot| {
        let explanation: Explanation = document(snapshot, &keys().explanation())?;
        (explanation.epoch == Epoch(2) && explanation.promotable.len() == 2).then_some(())
    })
    .await;
    until(&store, "clients are told of all", |snapshot| {
        let told: Topology = document(snapshot, &keys().topology())?;
        let is_new = told.epoch == Epoch(2) && told.primary == state.primary;
        (is_new && told.readers().count() == 2).then_some(())
    })
    .await;
    stop.cancel();
    task.await.unwrap();
    let snapshot = store.read(keys().prefix()).await.unwrap();
    assert!(!snapshot.entries.contains_key(&keys().leader()), "a stopped leader resigns");
    assert!(!snapshot.entries.contains_key(&keys().sentinel("s1")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_vanishes_is_replaced_by_the_next_leader_too() {
    let store = MemoryStore::new();
    let (stop_first, first) = sentinel(&store, "s1", named());
    let mut members = cluster_of_three(&store).await;
    let (stop_second, second) = sentinel(&store, "s2", Clusters::All);
    until(&store, "the second sentinel lives", |s| {
        s.entries.contains_key(&keys().sentinel("s2")).then_some(())
    })
    .await;

    let primary =
        state_where(&store, "a primary", |s| s.phase == Phase::Open).await.primary.unwrap();
    let lost = members.remove(members.iter().position(|m| m.name == primary).unwrap());
    stop_first.cancel();
    first.await.unwrap();
    lost.vanish().await;
    // The followers of a vanished primary find their streams silent.
    for member in members {
        member.task.abort();
        let report = silent(&store, &member.name).await;
        put(&store, keys().member(&member.name), encode(&report), Some(member.lease)).await;
    }
    let state = state_where(&store, "the seal", |s| s.sealing.is_some()).await;
    assert_eq!(state.sealing, Some(Epoch(2)));
    stop_second.cancel();
    second.await.unwrap();
}

async fn silent(store: &MemoryStore, name: &MemberName) -> MemberReport {
    let snapshot = store.read(keys().prefix()).await.unwrap();
    let mut report: MemberReport = document(&snapshot, &keys().member(name)).unwrap();
    report.stream = Stream::Silent { epoch: Epoch(1) };
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_and_broken_watches_delay_a_failover_and_change_nothing_else() {
    let store = MemoryStore::new();
    let (stop, task) = sentinel(&store, "s1", named());
    let members = cluster_of_three(&store).await;
    let primary =
        state_where(&store, "a primary", |s| s.phase == Phase::Open).await.primary.unwrap();
    for fault in [CommitFault::NotSent, CommitFault::RequestLost, CommitFault::AnswerLost] {
        store.cancel_watches();
        // Whoever commits next meets the fault; keepers here do not take one, so it is given to the
        // leader alone.
        let before: ClusterState =
            document(&store.read(keys().prefix()).await.unwrap(), &keys().state()).unwrap();
        let mut spec: ClusterSpec =
            document(&store.read(keys().prefix()).await.unwrap(), &keys().spec()).unwrap();
        spec.synchronous.count = 3 - spec.synchronous.count;
        put(&store, keys().spec(), encode(&spec), None).await;
        store.fail_next_commit(fault);
        let wanted = spec.synchronous.count;
        let state = state_where(&store, "k follows the spec", |s| {
            s.newest_cfg().is_some_and(|c| c.k == wanted)
        })
        .await;
        assert!(state.number > before.number);
        assert_eq!((state.epoch, state.primary.as_ref()), (Epoch(1), Some(&primary)));
        state_where(&store, "it is proven", |s| s.cfgs.len() == 1).await;
    }
    drop(members);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_state_is_left_alone() {
    let newer = r#"{"format_version":2,"tomorrow":true}"#;
    is_left_alone(newer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_was_damaged_by_hand_is_left_alone() {
    let store = MemoryStore::new();
    let (stop, task) = sentinel(&store, "s1", named());
    let members = cluster_of_three(&store).await;
    stop.cancel();
    task.await.unwrap();
    drop(members);
    let mut state = state_where(&store, "a primary", |s| s.phase == Phase::Open).await;
    let mut impossible = state.clone();
    impossible.cfgs[0].k = 3;
    is_left_alone(&encode(&impossible)).await;
    state.primary = None;
    is_left_alone(&encode(&state)).await;
}

async fn is_left_alone(newer: &str) {
    let store = MemoryStore::new();
    put(&store, keys().spec(), encode(&ClusterSpec::default()), None).await;
    put(&store, keys().state(), newer.into(), None).await;
    let mut watch = store.watch(&keys().leader(), 1).await.unwrap();
    let (stop, task) = sentinel(&store, "s1", named());
    let led_and_gave_it_up = async {
        loop {
            let batch = watch.events.recv().await.unwrap();
            if batch.iter().any(|event| matches!(event, WatchEvent::Delete { .. })) {
                return;
            }
        }
    };
    tokio::time::timeout(BOUND, led_and_gave_it_up).await.unwrap();
    let member: MemberName = "a".parse().unwrap();
    put(&store, keys().member(&member), encode(&blank(&member)), None).await;
    stop.cancel();
    task.await.unwrap();
    let snapshot = store.read(keys().prefix()).await.unwrap();
    assert_eq!(snapshot.entries[&keys().state()].value, newer.as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metrics_are_served_and_a_taken_port_is_a_clear_error() {
    let store = MemoryStore::new();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let config = |listen| Config {
        drills: Drills::default(),
        etcd: vec![].into(),
        clusters: named(),
        listen: Some(listen),
        id: "s1".into(),
    };
    let refused =
        sentinel::run_on(Arc::new(store.clone()), config(address.clone()), stop.clone()).await;
    assert!(refused.unwrap_err().to_string().contains("choose another --listen"));

    drop(taken);
    put(&store, keys().spec(), encode(&ClusterSpec::default()), None).await;
    let task = tokio::spawn(sentinel::run_on(
        Arc::new(store.clone()),
        config(address.clone()),
        stop.clone(),
    ));
    until(&store, "it leads", |s| s.entries.contains_key(&keys().explanation()).then_some(()))
        .await;
    let answer = get(&address, "/metrics").await;
    assert!(answer.contains("pgdeputy_sentinel_leading{cluster=\"c1\"} 1"), "{answer}");
    assert!(get(&address, "/health").await.starts_with("HTTP/1.0 200"));
    assert!(get(&address, "/nonsense").await.starts_with("HTTP/1.0 404"));
    stop.cancel();
    task.await.unwrap().unwrap();
}

async fn get(address: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_created_later_costs_nothing_before_and_is_led_at_once() {
    let store = MemoryStore::new();
    let (stop, task) = sentinel(&store, "s1", named());
    let first = until(&store, "it leads", |s| {
        let leads = s.entries.contains_key(&keys().leader());
        (leads && s.entries.contains_key(&keys().sentinel("s1"))).then_some(s.revision)
    })
    .await;
    let _member = Member::start(&store, "a").await;
    until(&store, "a reports", |s| {
        s.entries.contains_key(&keys().member(&"a".parse().unwrap())).then_some(())
    })
    .await;
    let begun = store::clock::now();
    put(&store, keys().spec(), encode(&ClusterSpec::default()), None).await;
    let before = store.read(keys().prefix()).await.unwrap().entries[&keys().spec()].mod_revision;
    assert_eq!(before, first + 2, "nobody wrote but the member and the operator");
    state_where(&store, "a founds it", |_| true).await;
    let took = store::clock::now().since(begun);
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_does_not_grow_for_ever() {
    let store = MemoryStore::new();
    for number in 1..=130 {
        put(&store, keys().history(Epoch(0), number), "{}".into(), None).await;
    }
    let (stop, task) = sentinel(&store, "s1", named());
    let _members = cluster_of_three(&store).await;
    let snapshot = store.read(keys().prefix()).await.unwrap();
    let records: Vec<&String> =
        snapshot.entries.keys().filter(|k| k.contains("/history/")).collect();
    assert_eq!(records.len(), 100);
    assert_eq!(records[0], &keys().history(Epoch(0), 32), "the oldest went");
    assert_eq!(records[99], &keys().history(Epoch(1), 0));
    stop.cancel();
    task.await.unwrap();
}
